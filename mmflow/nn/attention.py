"""Multi-head self-attention.

B batch, T tokens, D width, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.nn.dropout import dropout


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention with a bias on every projection (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        dim: Width D, a multiple of `num_heads`.
        num_heads: Heads, each of width D / num_heads; scores are scaled by the square root of that width.
        dropout: Probability of dropping an attention weight in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"dim={dim} is not divisible by num_heads={num_heads}; "
                f"try num_heads={math.gcd(dim, num_heads)} or dim={num_heads * math.ceil(dim / num_heads)}"
            )
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)  # queries, then keys, then values: one product instead of three
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Let each token of `x` (B, T, D) look at all tokens, or at those that are allowed.

        mask: where True a token may look at another; it must broadcast to (B, H, T, T): (B, 1, 1, T) for keys that are
            padding. Pass none where nothing is hidden: only then is the fastest kernel chosen.
        causal: a token looks at itself and those before it. Not together with a mask.
        """
        query, key, value = self._heads(x)
        p = self.dropout if self.training else 0.0
        attend = _attend_with_dropout if p and x.is_cpu else F.scaled_dot_product_attention
        mixed = attend(query, key, value, mask, p, causal)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))  # (B, H, T, D / H) -> (B, T, D)

    def weights(self, x: Tensor) -> Tensor:
        """What `forward` does not keep: how much each token of `x` (B, T, D) looks at each other one, (B, H, T, T).

        Rows sum to 1; nothing is hidden or dropped."""
        query, key, _ = self._heads(x)
        return (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values: (B, T, D) -> (3, B, H, T, D / H)."""
        split = (*x.shape[:2], 3, self.num_heads, x.shape[2] // self.num_heads)
        return self.qkv(x).view(split).permute(2, 0, 3, 1, 4)


def _attend_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, causal: bool
) -> Tensor:
    """`scaled_dot_product_attention` for CPUs, whose fused kernel knows no dropout: what it would do instead passes
    over the (B, H, T, T) weights twice as often."""
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)  # (B, H, T, T)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return dropout(scores.softmax(-1), p, training=True) @ value
