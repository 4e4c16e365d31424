"""ViT: a Transformer encoder over the patches of a picture (Dosovitskiy et al. 2021, arXiv:2010.11929).

Picture -> (normalise) -> patches -> (class token) -> + positions -> pre-norm blocks -> norm -> pool. With other
arguments it is the picture tower of CLIP (a norm before the blocks) or of SigLIP (pooling by attention).

Letters: B batch, H and W pixels, P side of a patch, N tokens, D width. Pictures are RGB in [0, 1].
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmflow.nn.attention import SelfAttention
from mmflow.nn.dropout import Dropout
from mmflow.nn.positions import Interpolation, resize_positions, sincos_2d
from mmflow.nn.transformer import Block, FeedForward

POOLS = ("class", "mean", "attention")


class ViTOutput(NamedTuple):
    """What the encoder returns.

    Attributes:
        last: (B, N, D), all tokens after the last norm: the class token, where there is one, and patches row by row.
        pooled: (B, D).
        layers: "0": input of the first block; "k": output of block k, before the last norm; (B, N, D) each.
    """

    last: Tensor
    pooled: Tensor
    layers: dict[str, Tensor]


class ViT(nn.Module):
    """The encoder.

    Args:
        image_size: pixels down and across, or of both sides; multiples of `patch_size`.
        patch_size: pixels P of a side of a patch.
        dim: width D.
        depth: blocks.
        num_heads: attention heads per block.
        ffn_dim: hidden width of the feed-forward layers; None for 4 D.
        pool: what stands for the picture: a "class" token, the "mean" over patches, or "attention" of a learnt query
            to the patches (Zhai et al. 2022, arXiv:2106.04560).
        pre_logits: a linear layer and tanh after pooling, as the published pretraining had.
        positions: "learned", or fixed "sincos" (arXiv:2205.01580).
        norm_before: a norm after the positions, before the first block, as in CLIP.
        patch_bias: whether patches are embedded with a bias.
        activation: of the feed-forward layers (`mmflow.nn.transformer.ACTIVATIONS`).
        eps: added to the variance in the norms.
        dropout: after positions, after each sublayer, and inside the feed-forward layers.
        drop_path: probability of passing the last block by in training; it rises linearly from 0 at the first one.
        mean, std: of each channel, to normalise pictures by; they belong to the weights.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        ffn_dim: int | None = None,
        pool: Literal["class", "mean", "attention"] = "class",
        pre_logits: bool = False,
        positions: Literal["learned", "sincos"] = "learned",
        norm_before: bool = False,
        patch_bias: bool = True,
        activation: str = "gelu",
        eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        self.arguments: dict[str, Any] = {name: v for name, v in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        down, across = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = (down, across)
        if any(size % patch_size or size < 1 for size in self.image_size):
            down, across = (max(1, round(size / patch_size)) * patch_size for size in self.image_size)
            raise ValueError(
                f"image_size={image_size} is not divisible by patch_size={patch_size}; "
                f"take pictures of {down} x {across} pixels, or another patch size"
            )
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; take one of {', '.join(POOLS)}")
        if positions not in ("learned", "sincos"):
            raise ValueError(f"positions={positions!r} is unknown; take learned or sincos")
        self.patch_size, self.dim, self.pool = patch_size, dim, pool
        self.grid = (self.image_size[0] // patch_size, self.image_size[1] // patch_size)
        self.patches = nn.Conv2d(3, dim, patch_size, patch_size, bias=patch_bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "class" else None
        self.positions = self._fresh_positions(positions)
        self.norm_before = nn.LayerNorm(dim, eps) if norm_before else None
        self.dropout = Dropout(dropout)
        ffn_dim = ffn_dim or 4 * dim
        rates = [drop_path * number / max(1, depth - 1) for number in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, ffn_dim, True, dropout, 0.0, dropout, activation, eps, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps)
        self.attention_pool = AttentionPool(dim, num_heads, ffn_dim, activation, eps) if pool == "attention" else None
        self.pre_logits = nn.Linear(dim, dim) if pre_logits else None
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={mean}, std={std}: give three numbers each, for red, green and blue; std above 0")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._init()

    def _fresh_positions(self, kind: str) -> nn.Parameter:
        height, width = self.grid
        if kind == "sincos":
            table = sincos_2d(height, width, self.dim)[None]
            if self.class_token is not None:
                table = torch.cat([torch.zeros(1, 1, self.dim), table], dim=1)
            return nn.Parameter(table, requires_grad=False)
        extra = 0 if self.class_token is None else 1
        return nn.Parameter(0.02 * torch.randn(1, extra + height * width, self.dim))

    def _init(self) -> None:
        """As the original: a matrix of queries, keys or values is drawn by itself, although the three are one."""
        nn.init.normal_(self.patches.weight, std=self.patches.weight[0].numel() ** -0.5)
        if self.patches.bias is not None:
            nn.init.zeros_(self.patches.bias)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                _draw_apart(module.qkv.weight)
            elif isinstance(module, nn.MultiheadAttention):
                _draw_apart(module.in_proj_weight)
            elif isinstance(module, FeedForward):
                for layer in (module.expand, module.contract):
                    nn.init.normal_(layer.bias, std=1e-6)

    # The published sizes call ViT and not cls: the command line sees their arguments only so.

    @classmethod
    def ti16(cls, **arguments: Any) -> "ViT":
        """5,524,416 parameters at 224 pixels, without a head as all counts here."""
        return ViT(dim=192, num_heads=3, **arguments)

    @classmethod
    def s32(cls, **arguments: Any) -> "ViT":
        """22,493,952 parameters."""
        return ViT(patch_size=32, dim=384, num_heads=6, **arguments)

    @classmethod
    def s16(cls, **arguments: Any) -> "ViT":
        """21,665,664 parameters."""
        return ViT(dim=384, num_heads=6, **arguments)

    @classmethod
    def b32(cls, **arguments: Any) -> "ViT":
        """87,455,232 parameters."""
        return ViT(patch_size=32, **arguments)

    @classmethod
    def b16(cls, **arguments: Any) -> "ViT":
        """85,798,656 parameters."""
        return ViT(**arguments)

    @classmethod
    def b8(cls, **arguments: Any) -> "ViT":
        """85,807,872 parameters."""
        return ViT(patch_size=8, **arguments)

    @classmethod
    def l32(cls, **arguments: Any) -> "ViT":
        """305,510,400 parameters."""
        return ViT(patch_size=32, dim=1024, depth=24, num_heads=16, **arguments)

    @classmethod
    def l16(cls, **arguments: Any) -> "ViT":
        """303,301,632 parameters."""
        return ViT(dim=1024, depth=24, num_heads=16, **arguments)

    @classmethod
    def h14(cls, **arguments: Any) -> "ViT":
        """630,764,800 parameters."""
        return ViT(patch_size=14, dim=1280, depth=32, num_heads=16, **arguments)

    def forward(self, images: Tensor) -> ViTOutput:
        """Encode pictures (B, 3, H, W) of `image_size`, RGB in [0, 1]; any other tensor raises ValueError."""
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; give floating-point RGB in [0, 1], such as bytes / 255")
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; this encoder takes (B, 3, {self.image_size[0]}, "
                f"{self.image_size[1]}). Crop them to it, or take `resized` for another size"
            )
        x = self.patches((images - self.mean) / self.std).flatten(2).transpose(1, 2)  # (B, h * w, D)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        x = self.dropout(x + self.positions)
        if self.norm_before is not None:
            x = self.norm_before(x)
        layers = {"0": x}
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            layers[str(number)] = x
        last = self.norm(x)
        return ViTOutput(last, self._pooled(last), layers)

    def _pooled(self, last: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        if self.attention_pool is not None:
            pooled = self.attention_pool(last)
        else:
            pooled = last.mean(1) if self.class_token is None else last[:, 0]
        return pooled if self.pre_logits is None else self.pre_logits(pooled).tanh()

    def resized(self, image_size: int | tuple[int, int], interpolation: Interpolation = "bicubic") -> "ViT":
        """The same encoder for pictures of another size: its positions are interpolated, all else is copied."""
        other = ViT(**self.arguments | {"image_size": image_size})
        state = self.state_dict()
        if self.arguments["positions"] == "sincos":
            state["positions"] = other.positions
        else:
            state["positions"] = resize_positions(state["positions"], self.grid, other.grid, interpolation)
        other.load_state_dict(state)
        return other.to(self.positions).train(self.training)  # its device and type

    @property
    def macs(self) -> int:
        """Multiplications and additions, as pairs, to encode a picture; a training step takes three times as many."""
        tokens, dim = self.positions.shape[1], self.dim
        ffn = 2 * dim * (self.arguments["ffn_dim"] or 4 * dim)
        block = tokens * (4 * dim**2 + ffn) + 2 * tokens**2 * dim
        pool = (2 * tokens + 2) * dim**2 + 2 * tokens * dim + ffn if self.attention_pool is not None else 0
        pre_logits = dim**2 if self.pre_logits is not None else 0
        return math.prod(self.grid) * 3 * self.patch_size**2 * dim + len(self.blocks) * block + pool + pre_logits


def _draw_apart(weight: Tensor) -> None:
    for part in weight.chunk(3):  # queries, keys, values
        nn.init.xavier_uniform_(part)


class AttentionPool(nn.Module):
    """A learnt query looks at all tokens, and a feed-forward layer follows (arXiv:2106.04560): (B, N, D) -> (B, D)."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, activation: str, eps: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm, self.ffn = nn.LayerNorm(dim, eps), FeedForward(dim, ffn_dim, activation=activation)
        nn.init.xavier_uniform_(self.query[0])

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)
        return (x + self.ffn(self.norm(x)))[:, 0]
