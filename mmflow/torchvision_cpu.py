"""torchvision that imports beside a CPU build of torch.

mmflow does not use torchvision, but torchmetrics, transformers, timm and open_clip import it where it is installed.
Most of its wheels are linked against CUDA, so beside a CPU build of torch its compiled operators are missing and its
import fails where it describes them. Of these only the names are needed. To be imported before Lightning.
"""

import contextlib

import torch

try:
    with contextlib.suppress(ImportError):
        import torchvision
except RuntimeError:  # operator torchvision::nms does not exist
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
