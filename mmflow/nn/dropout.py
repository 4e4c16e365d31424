"""Dropout that costs a third of torch's on a CPU, where drawing a Bernoulli number takes longer than a matrix product.

torch draws one 32-bit number or more per element. Here one 64-bit number decides about four elements, so a probability
is rounded down to a multiple of 2**-16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # what 16 random bits tell apart


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x` with each element set to 0 with probability `p` and the others divided by 1 - p; `x` itself in evaluation."""
    if not training or not 0 < p < 1 or not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over all of int16
    dropped = int(p * LEVELS)
    keep = bits >= dropped - LEVELS // 2
    return x * keep.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): drops the result of a residual branch (B, ...) for a
    sample with probability `p` in training, and divides those that stay by 1 - p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"drop_path={p} is a probability; give at least 0 and less than 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
