"""What each Trainer gets."""

import mmflow.torchvision_cpu  # noqa: F401  before Lightning, which imports torchmetrics
