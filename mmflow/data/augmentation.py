"""Augmentation of whole batches of pictures, clips and spectrograms on the device they are on.

B pictures, clips or spectrograms, T frames, F frequencies, C classes. Each picture gets its own draw, and all frames of
a clip the same one. Pixel arithmetic is kornia's where that agrees with Pillow, which the papers used. Its containers
are not used: kornia's RandAugment chooses its operations once for the whole batch and applies them most weakly at
m=15 of 30, and its modules draw from the global generators.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

Batch = dict[str, Any]

STREAM = 6  # sets these draws apart from others of the same seed: 1 and 2 plan, 3 samples, 4 collation, 5 dropout
GREY = 0.5  # what a moved picture uncovers


class Augmentation(nn.Module):
    """Changes training batches, by draws that depend on the seed, step and lane only.

    A subclass says `augment`, in which torch's global generators (`torch.rand` and modules that call it, on the CPU and
    on the CUDA device of the batch) may be used freely: they are seeded for it and afterwards are as they were before.
    What is drawn on the CPU is the same on every device.

    reads: the names that a batch must have.
    """

    def __init__(self, *reads: str) -> None:
        super().__init__()
        self.reads = reads

    @torch.no_grad()
    @override
    def forward(self, batch: Batch, seed: int) -> Batch:
        """Augment a training batch.

        batch: with the plan's `__step__` and `__lane__`. It is left as it is; the result shares what is not changed.
        seed: of the run. The same one for all augmentations of a batch, which are told apart by their place: the result
        counts them in `__augmented__`.
        """
        if missing := {"__step__", "__lane__"} - batch.keys():
            raise ValueError(
                f"{type(self).__name__} draws by step and lane, but the batch has no {' and '.join(sorted(missing))}; "
                f"augment only training batches, as mmflow.data.datamodule.ShardData makes them"
            )
        if missing := set(self.reads) - batch.keys():
            raise ValueError(
                f"{type(self).__name__} reads {' and '.join(sorted(missing))}, but the batch has only "
                f"{', '.join(sorted(name for name in batch if not name.startswith('__')))}; give it the right names"
            )
        place = batch.get("__augmented__", 0)
        words = np.random.SeedSequence([seed, STREAM, batch["__step__"], batch["__lane__"], place])
        number = int(words.generate_state(1, np.uint64)[0] >> 1)
        devices = {value.device for value in batch.values() if isinstance(value, Tensor) and value.is_cuda}
        with torch.random.fork_rng(devices, device_type="cuda"):
            torch.default_generator.manual_seed(number)  # torch.manual_seed would seed the other devices too
            for device in devices:
                torch.cuda.default_generators[device.index].manual_seed(number)
            return self.augment(batch) | {"__augmented__": place + 1}

    @abstractmethod
    def augment(self, batch: Batch) -> Batch:
        """The batch with other values under some of its names."""


# -- one picture at a time ---------------------------------------------------------------------------------------------


class ColourJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue by random factors (Howard 2013, arXiv:1312.5402; with hue as in
    SimCLR, Chen et al. 2020, arXiv:2002.05709).

    The four follow one another in an order that is drawn once per batch.

    Args:
        brightness: factors are uniform in [max(0, 1 - brightness), 1 + brightness]; 0 black, 1 unchanged.
        contrast: the same; 0 is the mean grey of the frame.
        saturation: the same; 0 is the grey picture.
        hue: turns of the colour circle, uniform in [-hue, hue]; at most 0.5.
        probability: share of the pictures that are changed.
        field: name of the pictures (B, 3, H, W) or clips (B, T, 3, H, W), float32 in [0, 1].
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        probability: float = 0.8,
        field: str = "image",
    ) -> None:
        super().__init__(field)
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} is the widest change of a factor of 1; give a number of at least 0")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue={hue} is in turns of the colour circle; give a number in 0..0.5")
        self.ranges = [(max(0.0, 1 - value), 1 + value) for value in (brightness, contrast, saturation)]
        self.hue, self.probability, self.field = hue, check_share("probability", probability), field

    @override
    def augment(self, batch: Batch) -> Batch:
        x = pictures_of(batch, self.field)
        frames = x.flatten(0, -4)  # (B, 3, H, W), or (B * T, 3, H, W) of clips
        chosen = torch.rand(len(x)) < self.probability  # (B,)
        factors = torch.stack([torch.empty(len(x)).uniform_(*ends) for ends in self.ranges])  # (3, B)
        turns = torch.empty(len(x)).uniform_(-self.hue, self.hue)  # (B,)
        order = torch.randperm(4).tolist()

        rows, factors, turns = per_frame(chosen, x).nonzero()[:, 0], per_frame(factors, x), per_frame(turns, x)
        brightness, contrast, saturation = factors[:, rows]
        steps: list[Callable[[Tensor], Tensor]] = [
            lambda y: enhance().adjust_brightness_accumulative(y, brightness),
            lambda y: enhance().adjust_contrast_with_mean_subtraction(y, contrast),
            lambda y: enhance().adjust_saturation_with_gray_subtraction(y, saturation),
            lambda y: enhance().adjust_hue(y, 2 * math.pi * turns[rows]).clamp(0, 1),
        ]
        rows = rows.to(x.device)
        changed = frames[rows]
        for number in order:
            changed = steps[number](changed)
        return batch | {self.field: frames.index_copy(0, rows, changed).view(x.shape)}


class RandAugment(Augmentation):
    """Applies `n` of 14 operations to each picture, all with about magnitude `m` (Cubuk et al. 2019, arXiv:1909.13719).

    Every picture draws its own operations, with replacement, and their magnitudes and signs. Identity, auto-contrast
    and equalize have no magnitude; the others change nothing at 0 and at 10 reach: rotation by 30 degrees, shear by
    0.3, translation by 0.45 of the side (what is uncovered is grey), colour, contrast, brightness and sharpness factors
    of 0.1 or 1.9, 4 bits, solarization of everything.

    Args:
        n: operations per picture.
        m: magnitude in 0..10; the paper's ResNet-50 has n=2, m=9.
        m_std: standard deviation of a picture's magnitude around `m`, which stays in 0..10 (0.5 in DeiT's recipe,
            Touvron et al. 2020, arXiv:2012.12877; 0 in the paper).
        field: name of the pictures (B, 3, H, W) or clips (B, T, 3, H, W), float32 in [0, 1].
    """

    def __init__(self, n: int = 2, m: float = 9.0, m_std: float = 0.5, field: str = "image") -> None:
        super().__init__(field)
        if n < 1:
            raise ValueError(f"n={n} is the number of operations per picture; give at least 1")
        if not 0 <= m <= 10:
            raise ValueError(f"m={m} is not a magnitude; give a number in 0..10 (kornia counts to 30: divide by 3)")
        if m_std < 0:
            raise ValueError(f"m_std={m_std} is a standard deviation; give a number of at least 0")
        self.n, self.m, self.m_std, self.field = n, m, m_std, field

    @override
    def augment(self, batch: Batch) -> Batch:
        x = pictures_of(batch, self.field)
        shape = (self.n, len(x))
        choice = torch.randint(len(OPERATIONS), shape)
        strength = (self.m + self.m_std * torch.randn(shape)).clamp(0, 10) / 10
        strength = torch.where(torch.rand(shape) < 0.5, strength, -strength)  # (n, B) in [-1, 1]

        frames = x.flatten(0, -4).clone()  # (B, 3, H, W), or (B * T, 3, H, W) of clips
        for chosen, strengths in zip(per_frame(choice, x), per_frame(strength, x), strict=True):
            for number, operation in enumerate(OPERATIONS.values()):
                rows = (chosen == number).nonzero()[:, 0]
                if len(rows):
                    amount, rows = strengths[rows].to(x.device), rows.to(x.device)  # (N,)
                    frames[rows] = operation(frames[rows], amount).clamp(0, 1)
        return batch | {self.field: frames.view(x.shape)}


class RandomErasing(Augmentation):
    """Overwrites one rectangle of a picture (Zhong et al. 2017, arXiv:1708.04896); of a clip, of all its frames.

    Args:
        probability: share of the pictures that are changed.
        area: smallest and largest share of the picture that is erased; uniform between.
        ratio: smallest and largest height / width of the rectangle; its logarithm is uniform between. Where one side
            would be longer than the picture's, it is cut, and the erased area is smaller.
        fill: what is written, in [0, 1]. None is uniform noise, drawn on the device, so that it depends on its kind.
        field: name of the pictures (B, 3, H, W) or clips (B, T, 3, H, W), float32 in [0, 1].
    """

    def __init__(
        self,
        probability: float = 0.25,
        area: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 3.3),
        fill: float | None = None,
        field: str = "image",
    ) -> None:
        super().__init__(field)
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(
                f"area={area} must be two ascending shares of the picture; give 0 < smallest <= largest <= 1"
            )
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"ratio={ratio} must be two ascending quotients of the sides; give 0 < smallest <= largest"
            )
        if fill is not None:
            check_share("fill", fill)
        self.probability, self.area, self.ratio = check_share("probability", probability), area, ratio
        self.fill, self.field = fill, field

    @override
    def augment(self, batch: Batch) -> Batch:
        x = pictures_of(batch, self.field)
        count, height, width = len(x), x.shape[-2], x.shape[-1]
        chosen = torch.rand(count) < self.probability
        area = torch.empty(count).uniform_(*self.area) * height * width
        ratio = torch.empty(count).uniform_(*map(math.log, self.ratio)).exp()
        tall = (area * ratio).sqrt().round().long().clamp(1, height)
        wide = (area / ratio).sqrt().round().long().clamp(1, width) * chosen  # nothing lies in a box of no width
        top, left = below(height - tall + 1), below(width - wide + 1)
        inside = boxes(top, top + tall, left, left + wide, x)  # (B, 1, H, W), or (B, 1, 1, H, W) of clips
        noise = (*inside.shape[:-3], 3, height, width)  # not rand_like: that depends on the order in memory
        fill = torch.rand(noise, device=x.device) if self.fill is None else self.fill
        return batch | {self.field: torch.where(inside, fill, x)}


# -- two pictures into one ---------------------------------------------------------------------------------------------


class Mixing(Augmentation):
    """Mixes each picture of a batch with the one before it, and their labels by the same shares.

    The labels (B,), int64 in 0..C-1, become soft targets (B, C), float32, each row of which sums to 1. They keep their
    name: `cross_entropy` takes both, and a metric that needs true labels fails instead of counting wrong ones.

    Args:
        num_classes: C.
        alpha: a picture keeps the share Beta(alpha, alpha) of itself.
        probability: share of the pictures that are mixed with another.
        label_smoothing: so much of each target is spread evenly over all classes (Szegedy et al. 2015,
            arXiv:1512.00567).
        field: name of the pictures (B, 3, H, W) or clips (B, T, 3, H, W), float32 in [0, 1].
        label: name of the labels.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 1.0,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
        field: str = "image",
        label: str = "label",
    ) -> None:
        super().__init__(field, label)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} leaves nothing to tell apart; give the number of labels")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha={alpha} is not a parameter of a Beta distribution; give a number above 0")
        self.num_classes, self.alpha = num_classes, alpha
        self.probability = check_share("probability", probability)
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        self.field, self.label = field, label

    @override
    def augment(self, batch: Batch) -> Batch:
        x, labels = pictures_of(batch, self.field), self._labels(batch)
        if len(x) != len(labels):
            raise ValueError(
                f"the batch has {len(x)} of {self.field!r} and {len(labels)} of {self.label!r}; {type(self).__name__} "
                f"needs one label per picture: take it from a spec in which every sample has both"
            )
        kept = torch.distributions.Beta(self.alpha, self.alpha).sample((len(x),))
        kept = torch.where(torch.rand(len(x)) < self.probability, kept, 1.0)  # (B,)
        mixed, kept = self.mix(x, kept)
        own = F.one_hot(labels, self.num_classes) * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        kept = kept[:, None].to(own.device)
        return batch | {self.field: mixed, self.label: kept * own + (1 - kept) * own.roll(1, 0)}

    @abstractmethod
    def mix(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures like `x` that keep the shares `kept` (B,) of themselves, and the shares that they really keep."""

    def _labels(self, batch: Batch) -> Tensor:
        """The labels (B,), in range."""
        labels = batch[self.label]
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(
                f"{self.label!r} is {describe(labels)}; mixing needs one class per picture, int64 (B,). "
                f"To mix in two ways, use one MixupOrCutMix"
            )
        low, high = (int(end) for end in labels.aminmax()) if len(labels) else (0, 0)
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{self.label!r} has classes from {low} to {high}, but num_classes={self.num_classes} allows "
                f"0..{self.num_classes - 1}; set num_classes={max(high + 1, self.num_classes)} or mend the labels"
            )
        return labels


class Mixup(Mixing):
    """Averages pictures, and their labels, with random weights (Zhang et al. 2017, arXiv:1710.09412).

    The paper's ImageNet runs have alpha=0.2. Arguments: see Mixing."""

    @override
    def mix(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        weight = kept.view(-1, *[1] * (x.ndim - 1)).to(x.device)  # (B, 1, 1, 1), or one more of clips
        return weight * x + (1 - weight) * x.roll(1, 0), kept


class CutMix(Mixing):
    """Pastes a rectangle of another picture, and mixes the labels by area (Yun et al. 2019, arXiv:1905.04899).

    The rectangle has the picture's shape and lies anywhere, cut off at the edges; labels are mixed by what is left of
    it. Of a clip, all frames have the same. Arguments: see Mixing."""

    @override
    def mix(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        side = (1 - kept).sqrt()  # (B,), of the rectangle, as a share of the picture's
        tall, wide = (height * side).long(), (width * side).long()
        top, left = below(torch.full_like(tall, height)) - tall // 2, below(torch.full_like(wide, width)) - wide // 2
        top, bottom = top.clamp(min=0), (top + tall).clamp(max=height)
        left, right = left.clamp(min=0), (left + wide).clamp(max=width)
        pasted = (bottom - top) * (right - left) / (height * width)
        return torch.where(boxes(top, bottom, left, right, x), x.roll(1, 0), x), 1 - pasted


class MixupOrCutMix(Augmentation):
    """One of the two for each batch, with the defaults of DeiT (Touvron et al. 2020, arXiv:2012.12877).

    Args:
        num_classes: C; the labels become (B, C), as in Mixing.
        mixup_alpha: of Mixup.
        cutmix_alpha: of CutMix.
        probability: share of the pictures that are mixed with another.
        switch_probability: share of the batches that get CutMix.
        label_smoothing: so much of each target is spread evenly over all classes.
        field: name of the pictures (B, 3, H, W) or clips (B, T, 3, H, W), float32 in [0, 1].
        label: name of the labels.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        probability: float = 1.0,
        switch_probability: float = 0.5,
        label_smoothing: float = 0.1,
        field: str = "image",
        label: str = "label",
    ) -> None:
        super().__init__(field, label)
        self.mixup = Mixup(num_classes, mixup_alpha, probability, label_smoothing, field, label)
        self.cutmix = CutMix(num_classes, cutmix_alpha, probability, label_smoothing, field, label)
        self.switch_probability = check_share("switch_probability", switch_probability)

    @override
    def augment(self, batch: Batch) -> Batch:
        chosen = self.cutmix if torch.rand(()) < self.switch_probability else self.mixup
        return chosen.augment(batch)


# -- spectrograms ------------------------------------------------------------------------------------------------------


class SpecAugment(Augmentation):
    """Hides random bands of frequencies and stretches of time (Park et al. 2019, arXiv:1904.08779); no time warping.

    The defaults are the paper's policy LD. Widths are uniform in 0..widest, places uniform. Every row draws its own and
    keeps them inside its length. torchaudio's TimeMasking knows no lengths, and both its maskings draw on the device.

    Args:
        time_masks: stretches per row; they may overlap.
        time_width: frames of the widest.
        time_share: the widest is also at most this share of the row's own length.
        frequency_masks: bands per row; they may overlap.
        frequency_width: frequencies of the widest band.
        value: written over what is hidden; the mean of the features, so 0 where they are normalised.
        field: name of the spectrograms (B, F, T), floating. Where the batch has `<field>_lengths` (B,), these are the
            valid frames of each row.
        time_first: the spectrograms are (B, T, F), as FieldData pads them.
    """

    def __init__(
        self,
        time_masks: int = 2,
        time_width: int = 100,
        time_share: float = 1.0,
        frequency_masks: int = 2,
        frequency_width: int = 27,
        value: float = 0.0,
        field: str = "spectrogram",
        time_first: bool = False,
    ) -> None:
        super().__init__(field)
        counts = {"time_masks": time_masks, "time_width": time_width}
        counts |= {"frequency_masks": frequency_masks, "frequency_width": frequency_width}
        for name, count in counts.items():
            if count < 0:
                raise ValueError(f"{name}={count} is a count; give at least 0")
        self.time_masks, self.time_width = time_masks, time_width
        self.time_share = check_share("time_share", time_share)
        self.frequency_masks, self.frequency_width = frequency_masks, frequency_width
        self.value, self.field, self.time_first = value, field, time_first

    @override
    def augment(self, batch: Batch) -> Batch:
        x = batch[self.field]
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 3:
            layout = "(B, T, F)" if self.time_first else "(B, F, T)"
            raise ValueError(f"{self.field!r} is {describe(x)}; SpecAugment needs floating spectrograms {layout}")
        count, frequencies, frames = (x.mT if self.time_first else x).shape
        lengths = batch.get(f"{self.field}_lengths", torch.full((count,), frames)).to(x.device)
        if lengths.shape != (count,) or (count and not 0 <= int(lengths.min()) <= int(lengths.max()) <= frames):
            raise ValueError(
                f"'{self.field}_lengths' is {lengths.tolist()}; it must be {count} lengths in 0..{frames}, counted in "
                f"frames of {self.field!r}, not in samples of the sound; or time_first={self.time_first} is wrong"
            )
        longest = (self.time_share * lengths).long().clamp(max=self.time_width)
        stretches = spans(lengths, frames, longest, self.time_masks)  # (B, T)
        heights = torch.full_like(lengths, frequencies)
        bands = spans(heights, frequencies, heights.clamp(max=self.frequency_width), self.frequency_masks)  # (B, F)
        valid = torch.arange(frames, device=x.device) < lengths[:, None]  # (B, T)
        hidden = stretches[:, None] | bands[:, :, None] & valid[:, None]  # (B, F, T)
        return batch | {self.field: x.masked_fill(hidden.mT if self.time_first else hidden, self.value)}


# -- what they draw ----------------------------------------------------------------------------------------------------


def below(counts: Tensor) -> Tensor:
    """A random whole number from 0 to count - 1 for each of `counts`, int64 of at least 1."""
    drawn = (torch.rand(counts.shape).to(counts.device) * counts).long()
    return torch.minimum(drawn, counts - 1)  # the product of a number next to 1 may round up


def spans(lengths: Tensor, size: int, widest: Tensor, count: int) -> Tensor:
    """`count` random spans in each row: (B,) lengths, (B,) largest widths -> (B, size) bool."""
    widths = below((widest + 1)[:, None].expand(-1, count))  # (B, count)
    starts = below(lengths[:, None] - widths + 1)
    at = torch.arange(size, device=lengths.device)[:, None, None]
    return ((at >= starts) & (at < starts + widths)).any(-1).T


def boxes(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """True inside one box per picture of `x`: four (B,) -> (B, 1, H, W), or (B, 1, 1, H, W) for clips."""
    top, bottom, left, right = torch.stack([top, bottom, left, right])[..., None].to(x.device)  # (B, 1) each
    down, along = (torch.arange(side, device=x.device) for side in x.shape[-2:])
    tall, wide = (down >= top) & (down < bottom), (along >= left) & (along < right)  # (B, H), (B, W)
    inside = tall[:, :, None] & wide[:, None, :]
    return inside.view(len(x), *[1] * (x.ndim - 3), *x.shape[-2:])


def per_frame(drawn: Tensor, x: Tensor) -> Tensor:
    """What was drawn (..., B) for the pictures or clips `x`, for each of their frames (..., B * T)."""
    return drawn if x.ndim == 4 else drawn.repeat_interleave(x.shape[1], -1)


# -- RandAugment's operations: pictures (N, 3, H, W), amounts (N,) in [-1, 1] -> pictures, to be clamped to [0, 1] -----


def enhance() -> ModuleType:
    """kornia.enhance, imported when it is needed: it takes 0.2 s, with all of kornia."""
    import kornia.enhance

    return kornia.enhance


def auto_contrast(x: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]. One that is constant stays, as in Pillow; kornia makes it black."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), x)


def solarize(x: Tensor, amount: Tensor) -> Tensor:
    """Invert what is not below a threshold, which is above 1 for an amount of 0, so that white stays white."""
    threshold = (1 - amount.abs()) * (256 / 255)
    return torch.where(x < threshold[:, None, None, None], x, 1 - x)


def posterize(x: Tensor, amount: Tensor) -> Tensor:
    """Keep 8 bits of each value for an amount of 0, down to 4 for 1."""
    bits = 8 - (4 * amount.abs()).round().long()
    return enhance().posterize(x, bits)


def rotate(x: Tensor, amount: Tensor) -> Tensor:
    """Turn by up to 30 degrees about the middle."""
    angle = amount * math.pi / 6
    return affine(x, angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0)


Entry = Tensor | float  # (N,), or one for all


def affine(x: Tensor, a: Entry, b: Entry, c: Entry, d: Entry, e: Entry, f: Entry) -> Tensor:
    """Show, at (right, down) pixels from the middle, what was at (a right + b down + c W, d right + e down + f H)."""
    height, width = x.shape[-2:]
    matrix = torch.empty(len(x), 6, device=x.device)
    for column, entry in enumerate((a, b * height / width, 2 * c, d * width / height, e, 2 * f)):
        matrix[:, column] = entry
    grid = F.affine_grid(matrix.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x - GREY, grid, align_corners=False) + GREY  # zeros come in from outside


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda x, _: x,
    "auto_contrast": lambda x, _: auto_contrast(x),
    "equalize": lambda x, _: enhance().equalize(x),
    "rotate": rotate,
    "solarize": solarize,
    "colour": lambda x, amount: enhance().adjust_saturation_with_gray_subtraction(x, 1 + 0.9 * amount),
    "posterize": posterize,
    "contrast": lambda x, amount: enhance().adjust_contrast_with_mean_subtraction(x, 1 + 0.9 * amount),
    "brightness": lambda x, amount: enhance().adjust_brightness_accumulative(x, 1 + 0.9 * amount),
    "sharpness": lambda x, amount: enhance().sharpness(x, 1 + 0.9 * amount),
    "shear_x": lambda x, amount: affine(x, 1, 0.3 * amount, 0, 0, 1, 0),
    "shear_y": lambda x, amount: affine(x, 1, 0, 0, 0.3 * amount, 1, 0),
    "translate_x": lambda x, amount: affine(x, 1, 0, 0.45 * amount, 0, 1, 0),
    "translate_y": lambda x, amount: affine(x, 1, 0, 0, 0, 1, 0.45 * amount),
}


# -- checks ------------------------------------------------------------------------------------------------------------


def pictures_of(batch: Batch, name: str) -> Tensor:
    """The pictures (B, 3, H, W) or clips (B, T, 3, H, W) of a batch, float32 in [0, 1]."""
    x = batch[name]
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.ndim not in (4, 5) or x.shape[-3] != 3:
        raise ValueError(
            f"{name!r} is {describe(x)}; pictures are augmented as float32 (B, 3, H, W) and clips as float32 "
            f"(B, T, 3, H, W), all of one size: crop or resize them to one, and divide uint8 by 255"
        )
    if x.numel():
        low, high = (float(end) for end in x.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name!r} has values from {low:g} to {high:g}; pictures are augmented in [0, 1], so divide by 255 "
                f"before, and normalise after it"
            )
    return x


def describe(value: Any) -> str:
    """Type and shape of a value for an error."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_share(name: str, value: float) -> float:
    """`value`. Raises ValueError where it is not in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is a share; give a number in 0..1")
    return value
