"""What at least two systems measure."""

import mmflow.torchvision_cpu  # noqa: F401  before Lightning, which imports torchmetrics
