"""HuBERT: speech frames from raw audio, learnt by predicting the k-means unit of hidden frames (arXiv:2106.07447).

Waveform -> 7 strided convolutions -> (hide spans) -> convolutional positions -> Transformer -> cosine to unit vectors.
Departures from the paper's code: Base's GroupNorm takes its statistics over the valid frames only, so a padded batch
gives what each utterance gives alone, and is folded into the first kernel; layer drop computes every block and keeps or
discards its result, so that all ranks and all parameters take part in every step; logits are one matrix product instead
of a (C + 1, frames, E) tensor.

Letters: B batch, S waveform samples, T frames, K conv channels, D width, E width of the unit space, C units (classes).
Audio is 16 kHz mono in [-1, 1]; a frame is 20 ms and sees 25 ms.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmflow.nn.dropout import Dropout
from mmflow.nn.masking import standardize, valid_mask
from mmflow.nn.transformer import Block, init_linears

SAMPLE_RATE = 16_000  # Hz
KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
HOP = math.prod(STRIDES)  # 320 samples from frame to frame
RECEPTIVE_FIELD = 1 + sum((k - 1) * math.prod(STRIDES[:i]) for i, k in enumerate(KERNELS))  # 400 samples
FRAME_RATE = SAMPLE_RATE // HOP  # 50 Hz

Count = TypeVar("Count", int, Tensor)


def num_frames(num_samples: Count) -> Count:
    """Frames of an utterance of `num_samples`, an int or an integer tensor: (N - 400) // 320 + 1, and 0 below 400."""
    frames = (num_samples - RECEPTIVE_FIELD) // HOP + 1
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


def check_lengths(audio: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Refuse rows of `audio` (B, S) that hold no frame; return `lengths` (B,), or None where no row is padded.

    Reading lengths waits for the device and breaks a compiled graph: pass None for batches cropped to one length."""
    if audio.ndim != 2:
        raise ValueError(f"audio has shape {tuple(audio.shape)}; give mono waveforms as (batch, samples)")
    size = audio.shape[1]
    shortest, longest = size, size
    if lengths is not None:
        shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < RECEPTIVE_FIELD:
        raise ValueError(
            f"an utterance of {shortest} samples is shorter than the {RECEPTIVE_FIELD} that one frame needs; "
            f"filter out utterances with num_frames(samples) == 0"
        )
    if longest > size:
        raise ValueError(f"lengths name {longest} samples but audio holds {size}; lengths are samples, not frames")
    return None if lengths is None or shortest == size else lengths.to(audio.device)


def normalize_utterance(audio: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Zero mean and unit variance over each whole utterance of `audio` (..., S); padding becomes 0.

    lengths: (B,) samples, None = nothing padded. To be done before an utterance is cropped, never after."""
    if lengths is None:
        return F.layer_norm(audio, audio.shape[-1:])
    return standardize(audio, valid_mask(lengths, audio.shape[-1]))


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which nothing is rounded to bf16 or fp16 on the device of `x` (the meta device has no autocast)."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class ConvEncoder(nn.Module):
    """Seven convolutions without padding, each followed by an exact GELU: (B, S) -> (B, T, K).

    Args:
        dim: Channels K of every layer.
        norm: "group" normalises each channel of the first layer over time (Base), "layer" normalises each frame of
            every layer over channels (Large, X-Large).
        bias: Give the convolutions a bias, as some published Large models do.
    """

    def __init__(self, dim: int = 512, norm: str = "group", bias: bool = False) -> None:
        super().__init__()
        if norm not in ("group", "layer"):
            raise ValueError(f'conv norm {norm!r} is neither "group" (as in Base) nor "layer" (as in Large)')
        self.norm = norm
        self.convs = nn.ModuleList(
            nn.Conv1d(dim if i else 1, dim, kernel, stride, bias=bias)
            for i, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True))
        )
        self.norms = nn.ModuleList(
            [nn.GroupNorm(dim, dim)] if norm == "group" else [nn.LayerNorm(dim) for _ in KERNELS]
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]

    def forward(
        self, audio: Tensor, lengths: Tensor | None = None, moments: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """audio: (B, S). lengths: (B,) samples where rows are padded, None where none is. Returns (B, T, K).

        moments: where rows were cut out of longer recordings, mean (B, 10) and covariance (B, 10, 10) of the samples
        under the first kernel over all its positions in the whole recording, float64; only "group" looks at them."""
        x = audio[..., None]  # (B, S, 1)
        for i, conv in enumerate(self.convs):
            if self.norm == "layer":
                norm: Any = self.norms[i]
                x = _halve(conv, x) if i else _convolve(conv, x)
                x = norm(x.to(norm.weight.dtype))  # (B, T_i, K), fp32 under autocast
            else:
                x = _halve(conv, x) if i else self._convolve_and_norm(audio, lengths, moments)
            x = F.gelu(x)
        return x

    def _convolve_and_norm(
        self, audio: Tensor, lengths: Tensor | None, moments: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The first convolution and its GroupNorm over time in one product: (B, S) -> (B, T_0, K).

        A channel is a linear function of the ten samples under the kernel, so its mean and variance over time follow
        from the mean and the covariance of those samples, and normalising it only rescales its kernel. That saves the
        passes over the longest activations and a third of their memory, and counts valid frames only at no cost. In
        float64, since a channel tuned to weak high frequencies is a small difference of large covariances.
        """
        conv: Any = self.convs[0]
        norm: Any = self.norms[0]
        with without_autocast(audio):
            windows = audio.double().unfold(1, KERNELS[0], STRIDES[0])  # (B, T_0, 10)
            size = windows.shape[1]
            count = torch.full((len(audio),), size, device=audio.device)
            if lengths is not None:
                count = (lengths - KERNELS[0]) // STRIDES[0] + 1
            padding, count = ~valid_mask(count, size)[..., None], count[:, None, None]
            if moments is None:
                mean = windows.masked_fill(padding, 0).sum(1, keepdim=True) / count  # (B, 1, 10)
                windows = (windows - mean).masked_fill(padding, 0)
                covariance = windows.transpose(1, 2) @ windows / count  # (B, 10, 10)
            else:
                windows, covariance = (windows - moments[0][:, None]).masked_fill(padding, 0), moments[1]
            kernels = conv.weight[:, 0].double()  # (K, 10)
            variance = torch.einsum("kn, bnm, km -> bk", kernels, covariance, kernels)
            scale = norm.weight * torch.rsqrt(variance + norm.eps)  # (B, K)
            kernels = (scale[..., None] * kernels).transpose(1, 2)  # (B, 10, K)
            # The norm takes any bias of the convolution away again: what is left of it is a gradient of zero.
            shift = norm.bias if conv.bias is None else norm.bias + 0 * conv.bias
            return torch.baddbmm(shift, windows.to(shift.dtype), kernels.to(shift.dtype))


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """Conv1d over frames, (B, T, C) -> (B, T', K), as a convolution over an image one pixel high.

    That keeps channels last in memory, where CPU kernels run forward and backward in half the time and LayerNorm needs
    no transposition; Conv1d would first rearrange its input."""
    layer: Any = conv
    image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T)
    stride, padding = (1, layer.stride[0]), (0, layer.padding[0])
    y = F.conv2d(image, layer.weight.unsqueeze(2), layer.bias, stride, padding, groups=layer.groups)
    return y.squeeze(2).transpose(1, 2)


def _halve(conv: nn.Module, x: Tensor) -> Tensor:
    """Conv1d of 2 or 3 taps and stride 2, (B, T, C) -> (B, T', K), as one matrix product for every two taps.

    The frames under the first two taps lie side by side in memory, so the products read them where they are. The
    backward pass through a strided convolution of a CPU library runs at half the speed of these."""
    layer: Any = conv
    batch, frames = x.shape[:2]
    taps = layer.weight.permute(2, 1, 0)  # (2 or 3, C, K)
    size = (frames - len(taps)) // 2 + 1  # T'
    pairs = x[:, : 2 * size].unflatten(1, (size, 2)).flatten(2)  # (B, T', 2C), a view
    kernel = taps[:2].flatten(0, 1).expand(batch, -1, -1)  # (B, 2C, K)
    y = torch.bmm(pairs, kernel) if layer.bias is None else torch.baddbmm(layer.bias, pairs, kernel)
    if len(taps) == 2:
        return y
    return torch.baddbmm(y, x[:, 2::2][:, :size], taps[2].expand(batch, -1, -1))


class ConvPositions(nn.Module):
    """Relative positions from a wide grouped convolution over frames, weight-normed per tap: (B, T, D) -> (B, T, D).

    Args:
        dim: Width D, a multiple of `groups`.
        kernel: Frames each position sees, half of them before it.
        groups: Groups of the convolution.
    """

    def __init__(self, dim: int, kernel: int = 128, groups: int = 16) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(
                f"dim={dim} is not divisible by position_groups={groups}; try {math.gcd(dim, groups)} groups"
            )
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * dim)))
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(_convolve(self.conv, x)[:, : x.shape[1]])  # an even kernel gives one frame too many


class HubertOutput(NamedTuple):
    """What Hubert returns, always. Frames past a row's own length are finite but mean nothing."""

    last: Tensor  # (B, T, D), after the closing norm of pre-norm models
    layers: dict[
        str, Tensor
    ]  # "0": input of the first block; "k": output of block k before any closing norm; (B, T, D)
    frame_lengths: Tensor  # (B,) int64, valid frames per row
    feature_penalty: (
        Tensor  # (), sum over valid frames of the mean square of the conv output; a mean after / sum(frame_lengths)
    )


class Hubert(nn.Module):
    """The HuBERT encoder without heads; the defaults are Base, `Hubert.large()` and `Hubert.xlarge()` the others.

    Args:
        dim: Width D.
        depth: Transformer blocks.
        num_heads: Attention heads per block.
        ffn_dim: Hidden width of the feed-forward layers.
        conv_dim: Channels of the convolutions.
        conv_norm: "group" (Base) or "layer" (Large, X-Large), see ConvEncoder.
        conv_bias: Give the convolutions a bias, as some published Large models do.
        pre_norm: Norm before the sublayers and once more at the end (Large, X-Large) instead of after them (Base).
        position_kernel: Frames that the positional convolution sees.
        position_groups: Groups of the positional convolution.
        dropout: After positions and after each sublayer.
        attention_dropout: On attention weights.
        ffn_dropout: Inside the feed-forward layers.
        input_dropout: On the projected conv output.
        layer_drop: Probability that a block is passed by in training. Drawn per call from the default generator of the
            audio's device. A dropped block is still computed, its result unused: that wastes this share of the time,
            and in return no parameter ever misses its gradient (so DDP needs no search for unused ones), ranks may
            draw differently, and compiled graphs stay whole.
        feature_grad_mult: Scale of the gradient that reaches the conv encoder; 0 runs it without gradients. Adam
            undoes a constant scale, so it acts through gradient clipping only.
        normalize: Bring each utterance to zero mean and unit variance first (Large, X-Large).
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        ffn_dim: int = 3072,
        conv_dim: int = 512,
        conv_norm: str = "group",
        conv_bias: bool = False,
        pre_norm: bool = False,
        position_kernel: int = 128,
        position_groups: int = 16,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        ffn_dropout: float = 0.0,
        input_dropout: float = 0.1,
        layer_drop: float = 0.05,
        feature_grad_mult: float = 0.1,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= layer_drop < 1:
            raise ValueError(f"layer_drop={layer_drop} is a probability; give at least 0 and less than 1")
        if feature_grad_mult < 0:
            raise ValueError(f"feature_grad_mult={feature_grad_mult} would climb the loss; give 0 (frozen) or more")
        self.dim, self.pre_norm, self.normalize = dim, pre_norm, normalize
        self.layer_drop, self.feature_grad_mult = layer_drop, feature_grad_mult
        self.conv = ConvEncoder(conv_dim, conv_norm, conv_bias)
        if feature_grad_mult == 0:
            self.conv.requires_grad_(False)  # DDP would wait for its gradients
        self.input_norm = nn.LayerNorm(conv_dim)
        self.input_projection = nn.Linear(conv_dim, dim)  # keeps torch's own init, as in the original
        self.input_dropout = Dropout(input_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(dim).uniform_())
        self.positions = ConvPositions(dim, position_kernel, position_groups)
        self.norm = nn.LayerNorm(dim)  # before the first block, or after the last if pre_norm
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, ffn_dim, pre_norm, dropout, attention_dropout, ffn_dropout) for _ in range(depth)
        )
        init_linears(self.blocks)

    @classmethod
    def base(cls) -> "Hubert":
        """94,371,712 parameters."""
        return cls()

    @classmethod
    def large(cls) -> "Hubert":
        """315,435,136 parameters."""
        return cls(dim=1024, depth=24, num_heads=16, ffn_dim=4096, **_ABOVE_BASE)

    @classmethod
    def xlarge(cls) -> "Hubert":
        """962,493,824 parameters."""
        return cls(dim=1280, depth=48, num_heads=16, ffn_dim=5120, **_ABOVE_BASE)

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        normalized: bool = False,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> HubertOutput:
        """Encode a batch of waveforms.

        Args:
            audio: (B, S), 16 kHz, zero padded.
            lengths: (B,) samples per row, at least 400; None where nothing is padded, as in cropped training batches.
            mask: (B, T) bool, frames to replace by the mask vector; never frames of padding.
            channel_mask: (B, D) bool, channels to set to 0 in all frames (fine-tuning).
            normalized: The audio was cut out of utterances that were normalised whole, so leave it as it is.
            moments: What ConvEncoder takes its statistics from where rows were cut out of longer recordings.
        """
        lengths = check_lengths(audio, lengths)
        if self.normalize and not normalized:
            audio = normalize_utterance(audio, lengths)
        features = self._convolve(audio, lengths, moments)  # (B, T, K)
        batch, frames = features.shape[:2]
        for name, given, shape in (("mask", mask, (batch, frames)), ("channel_mask", channel_mask, (batch, self.dim))):
            if given is not None and given.shape != shape:
                raise ValueError(f"{name} has shape {tuple(given.shape)} where this batch needs {shape}")

        penalty = features.float().square().mean(-1)  # (B, T)
        x = self.input_dropout(self.input_projection(self.input_norm(features)))  # (B, T, D)
        key_mask = None
        frame_lengths = torch.full((batch,), frames, device=audio.device)
        if lengths is not None:
            frame_lengths = num_frames(lengths)
            valid = valid_mask(frame_lengths, frames)  # (B, T)
            penalty, x = penalty.masked_fill(~valid, 0), x.masked_fill(~valid[..., None], 0)
            key_mask = valid[:, None, None]  # (B, 1, 1, T)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_embedding.to(x.dtype), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None], 0)

        x = x + self.positions(x)
        x = self.dropout(x if self.pre_norm else self.norm(x))
        layers = {"0": x}
        for i, block in enumerate(self.blocks, 1):
            x = self._maybe_drop(block(x, key_mask), x)
            layers[str(i)] = x
        last = self.norm(x) if self.pre_norm else x
        return HubertOutput(last, layers, frame_lengths, penalty.sum())

    def _convolve(self, audio: Tensor, lengths: Tensor | None, moments: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.feature_grad_mult == 0:
            with torch.no_grad():
                return self.conv(audio, lengths, moments)
        features = self.conv(audio, lengths, moments)
        if self.feature_grad_mult == 1 or not torch.is_grad_enabled():
            return features
        return _ScaleGradient.apply(features, self.feature_grad_mult)

    def _maybe_drop(self, after: Tensor, before: Tensor) -> Tensor:
        if not self.training or self.layer_drop == 0:
            return after
        return torch.where(torch.rand((), device=after.device) < self.layer_drop, before, after)


_ABOVE_BASE: dict[str, Any] = {
    "conv_norm": "layer",
    "pre_norm": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "input_dropout": 0.0,
    "layer_drop": 0.0,
    "feature_grad_mult": 1.0,
    "normalize": True,
}


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.scale, None


class HubertPretrainingHead(nn.Module):
    """How close each frame is to each unit: cosine(W h, e_c) / temperature (section 2.3 of the paper).

    Args:
        dim: Width D of the encoder.
        num_classes: Units C, one number per label set.
        unit_dim: Width E of the space in which frames and units are compared (Base 256, Large 768, X-Large 1024).
        temperature: Divides the cosine.
    """

    def __init__(self, dim: int, num_classes: Sequence[int], unit_dim: int = 256, temperature: float = 0.1) -> None:
        super().__init__()
        if not num_classes or min(num_classes) < 2:
            raise ValueError(f"num_classes={list(num_classes)}; give one number of units, at least 2, per label set")
        self.temperature = temperature
        self.projection = nn.Linear(dim, unit_dim * len(num_classes))
        self.units = nn.ParameterList(torch.empty(c, unit_dim).uniform_() for c in num_classes)

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """hidden (..., D) -> one tensor of fp32 logits (..., C) per label set, fp32 under autocast too."""
        frames = self.projection(hidden).float().chunk(len(self.units), -1)  # each (..., E)
        with without_autocast(hidden):
            return [
                F.normalize(x, dim=-1) @ F.normalize(units.float(), dim=-1).T / self.temperature
                for x, units in zip(frames, self.units, strict=True)
            ]


class PredictionSums(NamedTuple):
    """Sums over frames, () each, to be divided by counts that were summed over all ranks and micro-batches."""

    masked_nll: Tensor  # nats
    masked_correct: Tensor  # frames whose likeliest unit is the label
    masked_count: Tensor
    unmasked_nll: Tensor
    unmasked_correct: Tensor
    unmasked_count: Tensor


def masked_prediction_loss(
    logits: Tensor, labels: Tensor, mask: Tensor, frame_lengths: Tensor | None = None
) -> PredictionSums:
    """Cross-entropy of units at hidden and at visible frames, in sums (equations 1 and 2 of the paper).

    The paper trains on hidden frames alone: loss = masked_nll / masked_count, each summed over all ranks first.
    All frames are scored although half are not trained on: that costs under 1 % of a step, keeps shapes static and
    gives the accuracy at visible frames.

    Args:
        logits: (B, T, C).
        labels: (B, T) int64, any value at padding.
        mask: (B, T) bool, True = hidden.
        frame_lengths: (B,) valid frames, None where nothing is padded.
    """
    if labels.shape != mask.shape or logits.shape[:2] != mask.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)} and mask {tuple(mask.shape)} do not share "
            f"their (batch, frames); labels must hold num_frames(samples) units per utterance"
        )
    masked, unmasked = mask, ~mask
    if frame_lengths is not None:
        valid = valid_mask(frame_lengths, mask.shape[1])
        masked, unmasked, labels = mask & valid, valid & ~mask, labels.masked_fill(~valid, 0)
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(mask)  # (B, T)
    correct = logits.detach().argmax(-1) == labels  # (B, T)
    return PredictionSums(
        (nll * masked).sum(), (correct & masked).sum(), masked.sum(),
        (nll * unmasked).sum(), (correct & unmasked).sum(), unmasked.sum(),
    )  # fmt: skip


class CTCHead(nn.Module):
    """Characters from frames: dropout and one linear layer, hidden (B, T, D) -> logits (B, T, V).

    Args:
        dim: Width D of the encoder.
        vocab_size: Characters V, the blank included.
        dropout: On the encoder's output in training.
    """

    def __init__(self, dim: int, vocab_size: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout, self.projection = Dropout(dropout), nn.Linear(dim, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projection(self.dropout(hidden))
