"""Swin Transformer: attention within windows, over ever fewer and wider tokens (Liu et al. 2021, arXiv:2103.14030).

Picture -> (normalise) -> patches -> norm -> stages: blocks, then 2 x 2 tokens are merged into one of twice the width ->
norm -> mean. A block attends within windows of M x M tokens; every second one shifts them by half a window, so that
tokens on both sides of a border meet. The cost grows with the area of a picture, not with its square.

Letters: B batch, H and W pixels, h and w tokens down and across, N = h w, M side of a window, D width. Pictures are RGB
in [0, 1] and of any size: what is missing below and to the right is padded with zeros, as `transformers` does it.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.nn.dropout import DropPath
from mmflow.nn.positions import resize_positions
from mmflow.nn.transformer import FeedForward, init_linears


class SwinOutput(NamedTuple):
    """What the encoder returns.

    Attributes:
        last: (B, N, D), the tokens of the last stage after the norm, row by row.
        pooled: (B, D), their mean.
        layers: "0": input of the first block; "k": output of block k of all stages, before merging; (B, N_k, D_k) each.
    """

    last: Tensor
    pooled: Tensor
    layers: dict[str, Tensor]


class Swin(nn.Module):
    """The encoder. Its attribute `dim` is the width D of what it returns.

    Args:
        image_size: pixels down and across, or of both sides, that windows are made for; others can be encoded too.
        patch_size: pixels of a side of a patch.
        dim: width of the first stage; each next one is twice as wide.
        depths: blocks of each stage.
        num_heads: attention heads in each stage.
        window: side M of a window. Stages with fewer tokens than that, down or across, have windows of so many.
        drop_path: probability of passing the last block by in training; it rises linearly from 0 at the first one.
        mean, std: of each channel, to normalise pictures by; they belong to the weights.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.0,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        self.arguments: dict[str, Any] = {name: v for name, v in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        down, across = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = (down, across)
        if min(self.image_size) < 1:
            raise ValueError(f"image_size={image_size} has no pixels; give those of a side, or those down and across")
        if min(patch_size, window) < 1:
            raise ValueError(f"patch_size={patch_size} and window={window} must be at least 1; published are 4 and 7")
        if len(depths) != len(num_heads) or min(depths, default=0) < 1:
            raise ValueError(
                f"depths={tuple(depths)} and num_heads={tuple(num_heads)} must have one number per stage, at least 1"
            )
        self.patch_size, self.dim = patch_size, dim * 2 ** (len(depths) - 1)
        self.patches, self.patch_norm = nn.Conv2d(3, dim, patch_size, patch_size), nn.LayerNorm(dim)
        self.windows = [min(window, *grid) for grid in self.grids(*self.image_size)]  # of each stage
        rates = [drop_path * number / max(1, sum(depths) - 1) for number in range(sum(depths))]
        self.stages = nn.ModuleList()
        for stage, end in enumerate(accumulate(depths)):
            sizes = dim * 2**stage, num_heads[stage], self.windows[stage]
            self.stages.append(Stage(*sizes, rates[end - depths[stage] : end], merge=end < sum(depths)))
        self.norm = nn.LayerNorm(self.dim)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={mean}, std={std}: give three numbers each, for red, green and blue; std above 0")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def t(cls, **arguments: Any) -> "Swin":
        """27,519,354 parameters at 224 pixels, without a head as all counts here."""
        return cls(**arguments)

    @classmethod
    def s(cls, **arguments: Any) -> "Swin":
        """48,837,258 parameters."""
        return cls(**{"depths": (2, 2, 18, 2), **arguments})

    @classmethod
    def b(cls, **arguments: Any) -> "Swin":
        """86,743,224 parameters; 86,878,584 with image_size=384 and window=12."""
        return cls(**{"dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), **arguments})

    @classmethod
    def l(cls, **arguments: Any) -> "Swin":  # noqa: E743  its published name
        """194,995,476 parameters; 195,198,516 with image_size=384 and window=12."""
        return cls(**{"dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), **arguments})

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Tokens down and across in each stage, of a picture of so many pixels."""
        sides = [self.patch_size * 2**number for number in range(len(self.arguments["depths"]))]
        return [(-(-height // side), -(-width // side)) for side in sides]

    def forward(self, images: Tensor) -> SwinOutput:
        """Encode pictures (B, 3, H, W), RGB in [0, 1]; any other tensor raises ValueError."""
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; give floating-point RGB in [0, 1], such as bytes / 255")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images have shape {tuple(images.shape)}; this encoder takes (B, 3, H, W)")
        x = _padded((images - self.mean) / self.std, self.patch_size, (2, 3))
        x = self.patch_norm(self.patches(x).permute(0, 2, 3, 1))  # (B, h, w, D)
        layers = {"0": x.flatten(1, 2)}
        for stage in self.stages:
            outputs, x = stage(x)
            layers |= {str(len(layers) + number): output.flatten(1, 2) for number, output in enumerate(outputs)}
        last = self.norm(x.flatten(1, 2))
        return SwinOutput(last, last.mean(1), layers)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Maps (B, D_s, h_s, w_s) of pictures (B, 3, H, W): what each stage makes, before it merges tokens.

        For detection and segmentation, which put a norm of their own on each of them."""
        layers = self(images).layers
        ends = accumulate(self.arguments["depths"])
        return [
            layers[str(end)].unflatten(1, grid).permute(0, 3, 1, 2)
            for end, grid in zip(ends, self.grids(*images.shape[2:]), strict=True)
        ]

    def resized(self, image_size: int | tuple[int, int], window: int | None = None) -> "Swin":
        """The same encoder for pictures of another size, with other windows: its tables of biases are interpolated
        (bicubic), all else is copied. Published are 384 pixels with windows of 12, out of 224 with 7."""
        window = self.arguments["window"] if window is None else window
        other = Swin(**self.arguments | {"image_size": image_size, "window": window})
        state = self.state_dict()
        for name, table in other.state_dict().items():
            if name.endswith("bias_table"):
                old, new = math.isqrt(len(state[name])), math.isqrt(len(table))
                state[name] = resize_positions(state[name][None], (old, old), (new, new))[0]
        other.load_state_dict(state)
        return other.to(self.patches.weight).train(self.training)  # its device and type

    @property
    def macs(self) -> int:
        """Multiplications and additions, as pairs, to encode a picture; a training step takes three times as many."""
        grids, dim = self.grids(*self.image_size), self.arguments["dim"]
        total = 3 * self.patch_size**2 * dim * math.prod(grids[0])
        for stage, (depth, window) in enumerate(zip(self.arguments["depths"], self.windows, strict=True)):
            width, tokens = dim * 2**stage, math.prod(grids[stage])
            padded = math.prod(-(-side // window) * window for side in grids[stage])  # to whole windows
            total += depth * (padded * (4 * width**2 + 2 * window**2 * width) + 8 * tokens * width**2)
            if stage + 1 < len(grids):
                total += math.prod(grids[stage + 1]) * 8 * width**2
        return total


class Stage(nn.Module):
    """Blocks of one width, and the merging of their tokens where another stage follows."""

    def __init__(self, dim: int, num_heads: int, window: int, drop_path: Sequence[float], merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, window, shifted=number % 2 == 1, drop_path=rate)
            for number, rate in enumerate(drop_path)
        )
        self.merging = Merging(dim) if merge else None

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each block makes of `x` (B, h, w, D), and the input of the next stage."""
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs, x if self.merging is None else self.merging(x)


class Block(nn.Module):
    """Attention within windows and a feed-forward layer, each after a norm and with a residual: (B, h, w, D) -> the
    same. A unit of FSDP and checkpointing.

    Args:
        dim: Width D, a multiple of `num_heads`.
        num_heads: Attention heads.
        window: Side M of a window; of a map with fewer tokens, down or across, so many.
        shifted: Move the windows by half their side down and to the right, where there is more than one.
        drop_path: Probability that a sample passes a sublayer by in training.
    """

    def __init__(self, dim: int, num_heads: int, window: int, shifted: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.attention, self.attention_norm = WindowAttention(dim, num_heads, window), nn.LayerNorm(dim)
        self.ffn, self.ffn_norm = FeedForward(dim, 4 * dim), nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attended(self.attention_norm(x)))
        return x + self.drop_path(self.ffn(self.ffn_norm(x)))

    def _attended(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window, shift = fit(height, width, self.window, self.shifted)
        x = _padded(x, window, (1, 2))
        if shift:
            x = self.attention(x.roll((-shift, -shift), (1, 2)), window, shift).roll((shift, shift), (1, 2))
        else:
            x = self.attention(x, window)
        return x[:, :height, :width]


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learnt bias per head and distance between two tokens.

    Args:
        dim: Width D, a multiple of `num_heads`.
        num_heads: Attention heads.
        window: Side M of the widest windows: `bias_table` has a row for each of their (2 M - 1)**2 distances.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"dim={dim} is not divisible by num_heads={num_heads}; "
                f"try num_heads={math.gcd(dim, num_heads)} or dim={num_heads * math.ceil(dim / num_heads)}"
            )
        self.num_heads, self.window = num_heads, window
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, num_heads))

    def forward(self, x: Tensor, window: int, shift: int = 0) -> Tensor:
        """Attend within the windows of `x` (B, h, w, D), whose sides are multiples of `window`, at most M.

        shift: how far `x` has been rolled up and to the left, so that windows at the end hold what was at both ends;
            these do not look at each other.
        """
        batch, height, width, dim = x.shape
        down, across, head_dim = height // window, width // window, dim // self.num_heads
        bias = self.bias(window)
        if shift:
            mask = shift_mask(height, width, window, shift, x.device)  # (windows, M M, M M)
            bias = (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)  # (windows H, M M, M M)
        # One copy takes windows, heads, and queries, keys and values apart; a bias is the same for all that is left.
        parts = self.qkv(x).view(batch, down, window, across, window, 3, self.num_heads, head_dim)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)
        query, key, value = parts.reshape(3, -1, len(bias), window**2, head_dim)
        mixed = _attend(query, key, value, bias).view(batch, down, across, self.num_heads, window, window, head_dim)
        return self.out(mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(x.shape))

    def bias(self, window: int) -> Tensor:
        """(H, window**2, window**2): what is added to the score of a query (row) and a key (column)."""
        index = relative_index(window, self.window, self.bias_table.device)
        return self.bias_table.index_select(0, index.flatten()).T.contiguous().unflatten(1, index.shape)


class Merging(nn.Module):
    """2 x 2 tokens side by side become one of twice the width: (B, h, w, D) -> (B, h / 2, w / 2, 2 D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)
        nn.init.normal_(self.reduction.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(merged(x)))


def merged(x: Tensor) -> Tensor:
    """(B, h, w, D) -> (B, h / 2, w / 2, 4 D): each 2 x 2 tokens in a row, the left two from top to bottom first."""
    x = _padded(x, 2, (1, 2))
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention of (..., H, T, D / H) with a bias (H, T, T) that learns: CPUs have no fused kernel for its gradient."""
    if not query.is_cpu:
        return F.scaled_dot_product_attention(query, key, value, bias[None].to(query.dtype))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return (scores + bias).softmax(-1) @ value


def fit(height: int, width: int, window: int, shifted: bool) -> tuple[int, int]:
    """Side of a window in a map of h x w tokens, and how far windows shift: not at all where they cover a side."""
    if min(height, width) <= window:
        return min(height, width), 0
    return window, window // 2 if shifted else 0


def _once_per_size(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps what was made. A graph that is being compiled makes its own."""
    kept = lru_cache(maxsize=64)(make)

    @wraps(make)
    def made(*sizes: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return make(*sizes)
        with torch.inference_mode(False):  # so that training can use it later
            return kept(*sizes)

    return made


@_once_per_size
def relative_index(window: int, largest: int, device: torch.device) -> Tensor:
    """(window**2, window**2): the row of a table for windows of `largest` that holds a query's distance to a key.

    Distance is the query's place minus the key's, down before across; both come row by row."""
    place = torch.arange(window, device=device)
    distance = place[:, None] - place + largest - 1  # (window, window), from 0 on
    index = distance[:, None, :, None] * (2 * largest - 1) + distance[None, :, None, :]
    return index.reshape(window**2, window**2)


@_once_per_size
def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, window**2, window**2): minus infinity between tokens of a rolled map that share a window only since it
    was rolled: the last `shift` tokens down and across came from the beginning. Else 0."""
    rows, columns = (torch.arange(side, device=device) >= side - shift for side in (height, width))
    regions = rows[:, None] * 2 + columns  # (h, w)
    split = regions.view(height // window, window, width // window, window).transpose(1, 2)
    regions = split.reshape(-1, window**2)
    return torch.where(regions[:, None] == regions[:, :, None], 0.0, -math.inf)


def _padded(x: Tensor, multiple: int, dims: tuple[int, int]) -> Tensor:
    """Zeros below and to the right, so that both dimensions are multiples."""
    down, across = (-x.shape[dim] % multiple for dim in dims)
    if not down and not across:
        return x
    after = (0, 0) * (x.ndim - 1 - dims[1])
    return F.pad(x, (*after, 0, across, 0, down))
