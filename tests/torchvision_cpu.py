"""torchvision, timm and open_clip beside a CPU build of torch.

The wheels of torchvision are linked against CUDA, so its compiled operators are missing there and its import fails
where it describes them. Of these only the names are needed.
"""

import torch

if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip
import timm

__all__ = ["open_clip", "timm"]
