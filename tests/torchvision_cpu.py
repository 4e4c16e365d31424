"""torchvision that imports beside a CPU build of torch, for transformers, timm and open_clip.

Its wheels are linked against CUDA, so its compiled operators are missing and its import fails where it describes them.
Of these only the names are needed.
"""

import torch

if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
