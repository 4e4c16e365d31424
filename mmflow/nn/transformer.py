"""The Transformer encoder block, its norm before or after each sublayer.

B batch, T tokens, D width.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.nn.attention import SelfAttention
from mmflow.nn.dropout import Dropout, DropPath


def quick_gelu(x: Tensor) -> Tensor:
    """x times the logistic function of 1.702 x, as in OpenAI's CLIP (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class FeedForward(nn.Module):
    """Linear, activation, Linear, over each token by itself.

    Args:
        dim: Width D of input and output.
        hidden_dim: Width between the two layers.
        dropout: Probability of dropping a hidden unit in training.
        activation: One of ACTIVATIONS; published weights were trained with one and need it.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0, activation: str = "gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; take one of {', '.join(ACTIVATIONS)}")
        self.expand, self.contract = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.dropout, self.activation = Dropout(dropout), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(ACTIVATIONS[self.activation](self.expand(x))))


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
        activation: Of the feed-forward layer, one of ACTIVATIONS.
        eps: Added to the variance in the norms.
        drop_path: Probability that a sample passes a sublayer by in training (stochastic depth).
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
        activation: str = "gelu",
        eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention, self.attention_norm = SelfAttention(dim, num_heads, attention_dropout), nn.LayerNorm(dim, eps)
        self.ffn, self.ffn_norm = FeedForward(dim, ffn_dim, ffn_dropout, activation), nn.LayerNorm(dim, eps)
        self.dropout, self.drop_path = Dropout(dropout), DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Map `x` (B, T, D) to (B, T, D); `mask` and `causal` say what tokens look at, see SelfAttention."""
        if self.pre_norm:
            x = x + self._added(self.attention(self.attention_norm(x), mask, causal))
            return x + self._added(self.ffn(self.ffn_norm(x)))
        x = self.attention_norm(x + self._added(self.attention(x, mask, causal)))
        return self.ffn_norm(x + self._added(self.ffn(x)))

    def _added(self, x: Tensor) -> Tensor:
        return self.drop_path(self.dropout(x))


def init_linears(module: nn.Module, std: float = 0.02) -> None:
    """Draw every Linear weight inside `module` from N(0, std), as BERT does (arXiv:1810.04805); biases become 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
