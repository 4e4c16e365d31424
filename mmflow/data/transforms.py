"""What becomes of one field of one sample in the worker that reads it: crops, clips, excerpts, labels.

A transform is called with the decoded value and a generator of the sample's own, drawn from (seed, sample, step, lane).
Without a generator it is an evaluation: nothing is drawn, and what is random in training comes from the middle.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmflow.data.decode import (
    AUDIO_EXTENSIONS,
    DECODERS,
    PICTURE_EXTENSIONS,
    SAMPLE_RATE,
    VIDEO_EXTENSIONS,
    kind_of,
)
from mmflow.data.errors import BadSample
from mmflow.data.pictures import Picture, center_box, random_resized_crop

if TYPE_CHECKING:  # FFmpeg's libraries are large and most runs see no video
    from mmflow.data.video import Video

MAX_FLOAT = float(np.finfo(np.float32).max)


class Transform(ABC):
    """The base of all transforms. Must be picklable, and short, for it goes to every worker.

    Attributes:
        kinds: what it can take, by the last part of a member's extension.
        several: whether it takes the list of all members of a field such as `*.jpg`, rather than one.
    """

    kinds: Sequence[str] = tuple(DECODERS)
    several = False

    @abstractmethod
    def __call__(self, value: Any, draw: np.random.Generator | None) -> Any:
        """A tensor, number or text, or a dict of such by the names that they have in the batch.

        Args:
            value: as `mmflow.data.decode` gives it; it may be changed.
            draw: where random numbers come from; None in evaluation.

        Raises BadSample for what cannot be used.
        """

    def names(self, field: str) -> list[str]:
        """What it makes of a field of that name; a transform that returns a dict says its names."""
        return [field]

    def named(self, field: str, value: Any, draw: np.random.Generator | None) -> dict[str, Any]:
        """The result by name."""
        made = self(value, draw)
        return made if isinstance(made, dict) else {field: made}

    def refused(self, extensions: Sequence[str]) -> str | None:
        """The first extension of a field that it cannot take, if there is one."""
        if any(extension.startswith("*.") for extension in extensions) != self.several:
            return extensions[0]
        return next((extension for extension in extensions if kind_of(extension) not in self.kinds), None)


class Crop(Transform):
    """Part of a picture: uint8 (3, size, size).

    In training a random one (see `mmflow.data.pictures.random_resized_crop`), in evaluation the square in the middle.
    No more of a JPEG is decoded than the size asks for.

    Args:
        size: pixels along each side.
        scale: least and largest share of the area in training.
        ratio: least and largest ratio of width to height in training, before it is made a square.
        flip: probability of a mirror image in training. Leave it 0 where left and right have a meaning, as in captions,
            questions and written text.
        crop_ratio: side of the square over the short side of the picture in evaluation; 0.875 takes 224 out of 256.
    """

    kinds = PICTURE_EXTENSIONS

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
        crop_ratio: float = 0.875,
    ) -> None:
        if size < 1:
            raise ValueError(f"size={size} pixels must be at least 1")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale={scale} must be two shares of the area in 0..1, the least first")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ValueError(f"ratio={ratio} must be two ratios of width to height above 0, the least first")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip={flip} is a probability; it must be in 0..1")
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"crop_ratio={crop_ratio} must be above 0 and at most 1, which is the whole short side")
        self.size, self.scale, self.ratio, self.flip, self.crop_ratio = size, scale, ratio, flip, crop_ratio

    def __call__(self, value: Picture, draw: np.random.Generator | None) -> Tensor:
        size = (self.size, self.size)
        if draw is None:
            return value.tensor(size, center_box(value.width, value.height, self.crop_ratio))
        pixels = value.tensor(size, random_resized_crop(draw, value.width, value.height, self.scale, self.ratio))
        return pixels.flip(2) if draw.random() < self.flip else pixels


class Several(Transform):
    """The first members of a field with several, each transformed, in one tensor (N, ...).

    Args:
        transform: of each member; must give tensors of one shape.
        maximum: members that are taken; those behind are left out.
    """

    several = True

    def __init__(self, transform: Transform, maximum: int = 8) -> None:
        if maximum < 1:
            raise ValueError(f"maximum={maximum} members must be at least 1")
        self.transform, self.maximum = transform, maximum
        self.kinds = transform.kinds

    def __call__(self, value: list[Any], draw: np.random.Generator | None) -> Tensor:
        return torch.stack([self.transform(member, draw) for member in value[: self.maximum]])


class Clip(Transform):
    """Pictures of an interval of a video: uint8 (T, 3, H, W), T = round(seconds * rate).

    The interval begins anywhere in training and lies in the middle in evaluation. A video that is shorter is taken from
    its beginning; its last picture is held, and the sound is zeros behind its end.

    Args:
        seconds: length of the interval.
        rate: pictures per second.
        size: (H, W) that each whole picture is scaled to, whatever its aspect.
        sound: cut the sound to the same interval, float32 (round(seconds * 16000),) at 16 kHz, and name it so; the
            pictures are then named `video`. A video without sound counts as broken.
    """

    kinds = VIDEO_EXTENSIONS

    def __init__(self, seconds: float, rate: float, size: tuple[int, int], sound: str | None = None) -> None:
        if not (0 < seconds < math.inf and 0 < rate < math.inf) or round(seconds * rate) < 1:
            raise ValueError(f"seconds={seconds} at rate={rate} pictures/s must make at least one picture")
        if min(size) < 1:
            raise ValueError(f"size={size} pixels (H, W) must be at least 1 x 1")
        if sound == "video":
            raise ValueError("sound='video' is the name of the pictures; give the sound another, such as 'audio'")
        self.seconds, self.rate, self.size, self.sound = seconds, rate, size, sound

    def __call__(self, value: "Video", draw: np.random.Generator | None) -> Tensor | dict[str, Tensor]:
        latest = max(value.seconds - self.seconds, 0.0)
        start = latest * (0.5 if draw is None else draw.random())
        pictures = value.clip(start, self.seconds, self.rate, self.size)
        if self.sound is None:
            return pictures
        return {"video": pictures, self.sound: value.sound(start, self.seconds)}

    def names(self, field: str) -> list[str]:
        return ["video", self.sound] if self.sound else [field]


class Excerpt(Transform):
    """Sound, float32 (S,) at 16 kHz: a random piece in training, the middle in evaluation, or all of it.

    Args:
        seconds: length of the piece; what is shorter is padded with zeros behind it. By default all, as it is.
    """

    kinds = AUDIO_EXTENSIONS

    def __init__(self, seconds: float | None = None) -> None:
        if seconds is not None and not (seconds < math.inf and round(seconds * SAMPLE_RATE) >= 1):
            raise ValueError(f"seconds={seconds} must be at least one sample of 1/{SAMPLE_RATE} s, or null for all")
        self.seconds = seconds

    def __call__(self, value: Tensor, draw: np.random.Generator | None) -> Tensor:
        if self.seconds is None:
            return value
        size = round(self.seconds * SAMPLE_RATE)
        spare = len(value) - size
        if spare <= 0:
            return F.pad(value, (0, -spare))
        start = spare // 2 if draw is None else int(draw.integers(spare + 1))
        return value[start:][:size]


class Text(Transform):
    """Text as it is."""

    kinds = ("txt",)

    def __call__(self, value: str, draw: np.random.Generator | None) -> str:  # noqa: ARG002
        return value


def entry(value: Any, path: str) -> Any:
    """What lies at a dotted path of names and places in a JSON value: "words.0.text". Raises BadSample without it."""
    found = value
    for name in filter(None, path.split(".")):
        try:
            found = found[int(name)] if isinstance(found, list) else found[name]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadSample(f"no {path!r}: there is no {name!r} in {found!r:.80}") from error
    return found


class Entry(Transform):
    """A number or text out of JSON, such as a label.

    Args:
        path: where it lies, as in `label`, `speaker.age` or `answers.0`.
        kind: what it must be: `int` (int64), `float` (float32; whole numbers are taken too) or `str`.
    """

    kinds = ("json",)

    def __init__(self, path: str, kind: Literal["int", "float", "str"] = "int") -> None:
        self.path, self.kind = path, kind

    def __call__(self, value: Any, draw: np.random.Generator | None) -> int | float | str:  # noqa: ARG002
        found = entry(value, self.path)
        if self.kind == "str" and isinstance(found, str):
            return found
        if self.kind == "int" and type(found) is int and -(2**63) <= found < 2**63:
            return found
        if self.kind == "float" and type(found) in (int, float) and abs(found) <= MAX_FLOAT:  # NaN is not
            return float(found)
        raise BadSample(f"{self.path!r} is {found!r:.80}, must be {self.kind}")


class OneOf(Transform):
    """One text of several: a random one in training, the first in evaluation.

    Args:
        path: where in the JSON the list lies, such as `captions`; see `Entry`.
    """

    kinds = ("json",)

    def __init__(self, path: str = "captions") -> None:
        self.path = path

    def __call__(self, value: Any, draw: np.random.Generator | None) -> str:
        texts = entry(value, self.path)
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise BadSample(f"{self.path!r} is {texts!r:.80}, must be a list of texts")
        return texts[0 if draw is None else int(draw.integers(len(texts)))]


class Array(Transform):
    """A stored array as a tensor of its shape: bool and uint8 as they are, other integers int64, others float32."""

    kinds = ("npy", "bin")

    def __call__(self, value: np.ndarray, draw: np.random.Generator | None) -> Tensor:  # noqa: ARG002
        if value.dtype.kind not in "biuf":
            raise BadSample(f"an array of {value.dtype}, must be of bool, integers or floats")
        if value.dtype in (np.bool_, np.uint8):
            return torch.from_numpy(value)
        return torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))


class Parts(Transform):
    """Several things out of one field, or one under another name than the field's.

    Args:
        parts: name in the batch -> transform of the field's value.
    """

    def __init__(self, parts: dict[str, Transform]) -> None:
        if not parts:
            raise ValueError("parts={} makes nothing; give it at least one name and its transform")
        self.parts = parts

    def __call__(self, value: Any, draw: np.random.Generator | None) -> dict[str, Any]:
        return {key: made for name, part in self.parts.items() for key, made in part.named(name, value, draw).items()}

    def names(self, field: str) -> list[str]:  # noqa: ARG002
        return [made for name, part in self.parts.items() for made in part.names(name)]

    def refused(self, extensions: Sequence[str]) -> str | None:
        return next(filter(None, (part.refused(extensions) for part in self.parts.values())), None)
