"""Losses that tell the pairs of a batch from all others.

B pairs of the whole batch, b of them on this process, E width. Features have length 1. Sums over rows, not means, so
that the parts of a batch add up to the loss of all of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_sum(
    images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, first: int, scale: Tensor
) -> Tensor:
    """Cross entropy of the right text among all and of the right image among all, halved and summed over own pairs
    (CLIP, Radford et al. 2021, arXiv:2103.00020, figure 3).

    Args:
        images, texts: (b, E), own pairs.
        all_images, all_texts: (B, E), those of all processes in the order of ranks, with gradients.
        first: where the own ones begin among all.
        scale: (), what cosines are multiplied by.
    """
    own = torch.arange(first, first + len(images), device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # in bf16 a logit of 100 is off by 0.4
        to_text = scale.float() * images.float() @ all_texts.float().T  # (b, B)
        to_image = scale.float() * texts.float() @ all_images.float().T
        return (F.cross_entropy(to_text, own, reduction="sum") + F.cross_entropy(to_image, own, reduction="sum")) / 2


def sigmoid_sum(images: Tensor, all_texts: Tensor, first: int, scale: Tensor, bias: Tensor) -> Tensor:
    """Cross entropy of "these two belong together", pair by pair, summed over own images and all texts (SigLIP, Zhai et
    al. 2023, arXiv:2303.15343, algorithm 1). To be divided by B, not by the number of its terms.

    Args:
        images: (b, E), own ones.
        all_texts: (B, E), those of all processes in the order of ranks, with gradients.
        first: where the own ones begin among all.
        scale, bias: (), what cosines are multiplied by, and what is then added.
    """
    own = torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, enabled=False):
        logits = scale.float() * images.float() @ all_texts.float().T + bias.float()  # (b, B)
        return F.softplus(logits).sum() - logits[own, own + first].sum()
