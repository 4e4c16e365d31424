"""Optimisers as every training sets them up."""

import re
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW

# What has two dimensions or more but is no matrix that is multiplied by: tokens and tables that are added to something.
ADDED = ("positions", "class_token", "query", "bias_table", "mask_embedding")

_BLOCK = re.compile(r"^(?:.*\.)?blocks\.\d+(?=\.)")


def adamw(
    module: LightningModule,
    lr: float,
    eps: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    groups: Sequence[dict[str, Any]] | None = None,
) -> AdamW:
    """AdamW over `groups`, or over the parameters of `module` that learn.

    All in one kernel, a third of the time of the others, except under mixed precision, where Lightning would refuse to
    clip gradients before such an optimiser."""
    learning: Any = groups
    if groups is None:
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = not str(module.trainer.precision).endswith("mixed")
    return AdamW(learning, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay is for this parameter: for matrices, but not for biases, norms, tokens and positions."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in ADDED


def decay_groups(
    module: nn.Module, lr: float, weight_decay: float, depths: dict[str, int] | None = None, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """The parameters of `module` that learn, in groups for an optimiser: with weight decay and without, by depth.

    Args:
        module: its names tell what a parameter is; see `is_decayed`.
        lr: peak learning rate of what is deepest.
        weight_decay: of matrices.
        depths: name -> depth of a parameter, such as `layer_depths` tells; what is not named is deepest.
        layer_decay: factor of the learning rate for each step of depth towards the input (Clark et al. 2020,
            arXiv:2003.10555).
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be above 0 and at most 1, which is no decay; 0.75 is usual")
    depths = depths or {}
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            depth, decayed = depths.get(name, deepest), is_decayed(name, parameter)
            group = groups.setdefault((depth, decayed), {"params": []})
            group |= {"lr": lr * layer_decay ** (deepest - depth), "weight_decay": weight_decay if decayed else 0.0}
            group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]  # the first one's rate, which is logged, is the peak


def layer_depths(encoder: nn.Module) -> dict[str, int]:
    """Name -> depth of each parameter of an encoder whose blocks are in lists called `blocks`.

    What comes before the first block has depth 0, block k of all stages together k from 1 on, what lies between two
    stages that of the block before it, and what follows the last block one more."""
    found: dict[str, int] = {}
    blocks: list[str] = []
    for name, _ in encoder.named_parameters():
        block = _BLOCK.match(name)
        if block and block[0] not in blocks:
            blocks.append(block[0])
        found[name] = len(blocks)
    return {
        name: depth + 1 if depth == len(blocks) and not _BLOCK.match(name) else depth for name, depth in found.items()
    }
