"""How well two things go together, and losses that tell the pairs of a batch from all others.

B pairs of the whole batch, b of them on this process, E width. Features have length 1. Losses are sums over rows, not
means, so that the parts of a batch add up to the loss of all of it.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_SCALE = 100.0  # info_nce multiplies cosines by at most this (arXiv:2103.00020, section 2.5)


class Similarity(nn.Module):
    """Logits out of cosines, with the loss that they are learnt by.

    Args:
        objective: "info_nce", the cross entropy of the right text among all and of the right image among all (CLIP,
            Radford et al. 2021, arXiv:2103.00020, figure 3), or "sigmoid", that of "these two belong together" pair by
            pair (SigLIP, Zhai et al. 2023, arXiv:2303.15343, algorithm 1).
        scale: what cosines are multiplied by at the beginning; it is learnt. None takes the paper's, 1 / 0.07 or 10.
    """

    def __init__(self, objective: Literal["info_nce", "sigmoid"] = "info_nce", scale: float | None = None) -> None:
        super().__init__()
        if objective not in ("info_nce", "sigmoid"):
            raise ValueError(f"objective={objective!r} is unknown; take info_nce or sigmoid")
        if scale is not None and not 1 <= scale <= MOST_SCALE:
            raise ValueError(f"scale={scale} multiplies cosines; it must be in 1..{MOST_SCALE:g}")
        self.objective = objective
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale or (1 / 0.07 if objective == "info_nce" else 10))))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if objective == "sigmoid" else None

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits (I, T) of images (I, E) and texts (T, E), in fp32: in bf16 a logit of 100 is off by 0.4."""
        with torch.autocast(images.device.type, enabled=False):
            logits = self.log_scale.float().exp() * images.float() @ texts.float().T
            return logits if self.bias is None else logits + self.bias.float()

    def loss_sum(self, images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, first: int) -> Tensor:
        """The loss summed over own pairs; divided by B, the number of all pairs, it is the paper's.

        Args:
            images, texts: (b, E), own pairs.
            all_images, all_texts: (B, E), those of all processes in the order of ranks, with gradients.
            first: where the own ones begin among all.
        """
        own = torch.arange(len(images), device=images.device)
        to_text = self(images, all_texts)  # (b, B)
        if self.objective == "sigmoid":
            return F.softplus(to_text).sum() - to_text[own, own + first].sum()
        to_image = self(all_images, texts).T  # (b, B)
        sums = [F.cross_entropy(logits, own + first, reduction="sum") for logits in (to_text, to_image)]
        return torch.stack(sums).sum() / 2

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the scale in 1..MOST_SCALE; to be done after each step of the optimiser.

        That of the sigmoid is free, as in its paper: published weights have 118."""
        if self.objective == "info_nce":
            self.log_scale.clamp_(0, math.log(MOST_SCALE))
