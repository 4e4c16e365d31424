"""Where a ViT looks: attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928), as numbers and as pictures.

B batch, H and W pixels, h and w patches, N tokens.
"""

from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from mmflow.evaluation.pictures import STYLE, save
from mmflow.systems.vit.model import ViT


@torch.no_grad()
def attention_rollout(vit: ViT, images: Tensor) -> Tensor:
    """How much each patch has to do with the pooled vector, by attention alone: (B, 3, H, W) -> (B, h, w), float32.

    Per block, attention is averaged over heads, and half of what a token becomes is itself, for the residual; the
    product over blocks says what a token of the last one is made of. The map is the row of the class token, the mean of
    all rows, or the mean as pooling by attention weighs them. It sums to 1, less what the class token has of itself.

    Attention weights are computed again from what the blocks were given, for the model itself does not keep them. The
    model should be in eval mode.
    """
    last, _, layers = vit(images)
    mixed = torch.eye(last.shape[1], device=last.device).expand(len(images), -1, -1)  # (B, N, N)
    blocks: Any = vit.blocks
    for number, block in enumerate(blocks):
        weights = block.attention.weights(block.attention_norm(layers[str(number)]))  # (B, heads, N, N)
        mixed = (weights.float().mean(1) @ mixed + mixed) / 2
    if vit.class_token is not None:
        return mixed[:, 0, 1:].unflatten(1, vit.grid)
    if vit.attention_pool is None:
        return mixed.mean(1).unflatten(1, vit.grid)
    query = vit.attention_pool.query.expand(len(images), -1, -1)
    _, looks = vit.attention_pool.attention(query, last, last)  # (B, 1, N)
    return (looks.float() @ mixed)[:, 0].unflatten(1, vit.grid)


def rollout_pictures(vit: ViT, images: Tensor, out: Path) -> None:
    """Draw pictures (B, 3, H, W), RGB in [0, 1], each beside its rollout and the two over each other, as a PNG.

    The colours of a map go from its own lowest value to its highest."""
    maps = attention_rollout(vit, images).cpu()
    across, down = (8, -(-len(images) // 8)) if len(images) > 8 else (len(images), 1)
    with rc_context(STYLE):
        height, width = vit.image_size
        figure = Figure(figsize=(1.5 * across, 0.3 + 3 * 1.5 * height / width * down), layout="constrained")
        grid = figure.subplots(3 * down, across, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        extent = (0, width, height, 0)
        for number, (image, share) in enumerate(zip(images.cpu(), maps, strict=True)):
            row, column = divmod(number, across)
            picture, overlay, alone = grid[3 * row : 3 * row + 3, column]
            picture.imshow(image.permute(1, 2, 0).float().clamp(0, 1), extent=extent)
            overlay.imshow(image.mean(0).float(), cmap="gray", vmin=0, vmax=1, extent=extent)
            overlay.imshow(share, cmap="magma", alpha=0.6, interpolation="bicubic", extent=extent)
            alone.imshow(share, cmap="magma", interpolation="nearest", extent=extent)
        figure.suptitle("pictures and where the attention of all blocks together goes", fontsize=9, x=0.01, ha="left")
        save(figure, out)
