"""The Transformer encoder block, its norm before or after each sublayer.

B batch, T tokens, D width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.nn.attention import SelfAttention
from mmflow.nn.dropout import Dropout


class FeedForward(nn.Module):
    """Linear, GELU (exact), Linear, over each token by itself.

    Args:
        dim: Width D of input and output.
        hidden_dim: Width between the two layers.
        dropout: Probability of dropping a hidden unit in training.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(F.gelu(self.expand(x))))


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with a residual and a LayerNorm; a unit of FSDP and checkpointing.

    Post-norm computes `x = norm(x + f(x))` (Vaswani et al. 2017, arXiv:1706.03762), pre-norm `x = x + f(norm(x))`
    (Xiong et al. 2020, arXiv:2002.04745), which trains deep stacks more easily but needs one more norm at their end.

    Args:
        dim: Width D, a multiple of `num_heads`.
        num_heads: Attention heads.
        ffn_dim: Hidden width of the feed-forward layer.
        pre_norm: Norm before each sublayer instead of after its residual.
        dropout: Applied to what each sublayer adds.
        attention_dropout: Applied to the attention weights.
        ffn_dropout: Applied inside the feed-forward layer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        pre_norm: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention, self.attention_norm = SelfAttention(dim, num_heads, attention_dropout), nn.LayerNorm(dim)
        self.ffn, self.ffn_norm = FeedForward(dim, ffn_dim, ffn_dropout), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Map `x` (B, T, D) to (B, T, D); keys where `key_mask` (B, 1, 1, T) is False are not looked at."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), key_mask))
            return x + self.dropout(self.ffn(self.ffn_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, key_mask)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


def init_linears(module: nn.Module, std: float = 0.02) -> None:
    """Draw every Linear weight inside `module` from N(0, std), as BERT does (arXiv:1810.04805); biases become 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
