"""Positions of patches in a picture: fixed tables, and tables of one size for another.

h, w: patches down and across; D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bicubic", "bicubic_antialias", "bilinear_corners"]


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """Sines and cosines of the column and of the row: (h * w, D), row by row (Beyer et al. 2022, arXiv:2205.01580)."""
    if dim % 4 or dim < 8:
        raise ValueError(f"dim={dim} must be a multiple of 4, and at least 8: sine and cosine of rows and of columns")
    rates = 10_000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4 - 1))
    rows, columns = (
        place.flatten()[:, None] * rates  # (h * w, D / 4)
        for place in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1).float()


def resize_positions(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """A learnt table of another size of picture: (1, extra + h * w, D) to (1, extra + h' * w', D), in fp32.

    What stands before the patches (a class token) stays as it is.

    Args:
        table: patches row by row.
        old, new: patches down and across.
        interpolation: "bicubic" as transformers does it, "bicubic_antialias" as timm and open_clip, "bilinear_corners"
            (corners stay corners) as the original. They differ visibly: weights trained on at another size by one of
            these libraries want its way.
    """
    extra = table.shape[1] - old[0] * old[1]
    if extra < 0:
        raise ValueError(f"a table of {table.shape[1]} positions is none of {old[0]} x {old[1]} patches")
    if old == new:
        return table
    grid = table[:, extra:].float().unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, h, w)
    if interpolation == "bilinear_corners":
        grid = F.interpolate(grid, new, mode="bilinear", align_corners=True)
    else:
        grid = F.interpolate(grid, new, mode="bicubic", antialias=interpolation == "bicubic_antialias")
    return torch.cat([table[:, :extra].float(), grid.flatten(2).transpose(1, 2)], dim=1)
