"""Pairs for CLIP: pictures with their captions, and sounds with theirs.

B pairs, C captions of a pair, T tokens, S samples of sound, M mel bands, F frames of a spectrogram.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from mmflow.data import fields
from mmflow.data.augmentation import Augmentation
from mmflow.data.decode import AUDIO_EXTENSIONS, SAMPLE_RATE
from mmflow.data.errors import BadSample
from mmflow.data.fields import FieldData
from mmflow.data.loader import Collate, Prepare, Sample
from mmflow.data.transforms import Crop, Entry, Excerpt, Parts, Transform, entry
from mmflow.systems.clip.tokenizer import TextTokenizer
from mmflow.torchaudio_cpu import torchaudio

QUIET, RANGE = -2.0, 8.0  # log10 of power: what counts as loud at least, and how far below the loudest it gets black


class Captions(Transform):
    """Tokens of one caption in training, of some or all in evaluation.

    Makes `tokens`, (T,) of one that is drawn in training and (C, T) in evaluation; `captions`, a list of these texts;
    and `truncated`, how many of them are longer than the context and lost their last words. Captions without words
    are left out; a sample with no other ones counts as broken.

    Args:
        tokenizer: makes tokens of texts.
        path: where in JSON the caption or the list of captions lies, see `mmflow.data.transforms.Entry`; None for a
            text.
        evaluated: the number of the caption that evaluation takes, such as 0 for the first and -1 for the last; None
            takes all.
    """

    def __init__(self, tokenizer: TextTokenizer, path: str | None = None, evaluated: int | None = 0) -> None:
        self.tokenizer, self.path, self.evaluated = tokenizer, path, evaluated
        self.kinds = ("txt",) if path is None else ("json",)

    def __call__(self, value: Any, draw: np.random.Generator | None) -> dict[str, Any]:
        found = value if self.path is None else entry(value, self.path)
        texts = found if isinstance(found, list) else [found]
        if not all(isinstance(text, str) for text in texts):
            raise BadSample(f"{self.path!r} is {found!r:.80}, must be a text or a list of texts")
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise BadSample("the caption is empty or white space")
        if draw is not None:
            texts = [texts[int(draw.integers(len(texts)))]]
        elif self.evaluated is not None:
            try:
                texts = [texts[self.evaluated]]
            except IndexError:
                raise BadSample(f"there is no caption number {self.evaluated} of {len(texts)}") from None
        tokens, truncated = self.tokenizer.encode(texts)
        return {"tokens": tokens if draw is None else tokens[0], "captions": texts, "truncated": truncated}

    @override
    def names(self, field: str) -> list[str]:
        return ["tokens", "captions", "truncated"]


class ClassName(Transform):
    """What a picture is one of, out of its JSON: `class`, a name, and `unseen`, whether it is of a kind that training
    never shows (False where it is not told).

    Args:
        pattern: the name, with the place of each part of it in braces: "{class}", "{objects.0.colour} {class}".
    """

    kinds = ("json",)

    def __init__(self, pattern: str = "{class}") -> None:
        self.parts = re.split(r"{([^{}]+)}", pattern)  # what stands between braces has odd numbers
        if len(self.parts) < 2:
            raise ValueError(
                f"class_name={pattern!r} gives all pictures one name; name a place in the JSON, as {{class}}"
            )

    def __call__(self, value: Any, draw: np.random.Generator | None) -> dict[str, Any]:
        name = "".join(
            str(Entry(part, "str")(value, draw)) if number % 2 else part for number, part in enumerate(self.parts)
        )
        return {"class": name, "unseen": isinstance(value, dict) and value.get("unseen") is True}

    @override
    def names(self, field: str) -> list[str]:
        return ["class", "unseen"]


def collate(samples: list[Sample], draw: np.random.Generator, end_id: int | None) -> dict[str, Any]:
    """A batch by name whose texts are cut behind the end, of which `end_id` is the token, of the longest one."""
    batch = fields.collate(samples, draw)
    if end_id is not None:
        ends = (batch["tokens"] == end_id).int().argmax(-1)
        batch["tokens"] = batch["tokens"][..., : int(ends.max()) + 1].contiguous()
    return batch


class Pairs(FieldData):
    """Something with its captions.

    Batches hold `tokens`, (B, T) in training and (B, C, T) with `tokens_lengths` (B,) captions in evaluation, T as
    long as the longest text where the padding is not part of the model; `captions`, `truncated` (B,); and, where
    `class_name` is given, `class` and `unseen`. See `Captions` and `ClassName`.

    Args:
        spec: path of a data spec, or several to mix.
        tokenizer: makes tokens of texts.
        others: field -> what becomes of it, for what is paired with the texts.
        captions: where in the field `info` the captions lie; None takes the field `text`.
        evaluated: which caption evaluation takes, None for all.
        class_name: the name of what is to be classified, see `ClassName`; None where there is none.
    """

    def __init__(
        self,
        spec: str | list[str],
        tokenizer: TextTokenizer,
        others: dict[str, Transform],
        captions: str | None,
        evaluated: int | None,
        class_name: str | None,
        augmentations: Sequence[Augmentation],
        **shards: Any,
    ) -> None:
        self.tokenizer = tokenizer
        told: dict[str, Transform] = {}  # by the JSON
        texts = Captions(tokenizer, captions, evaluated)
        transforms = dict(others)
        if captions is None:
            transforms["text"] = texts
        else:
            told["captions"] = texts
        if class_name is not None:
            told["class"] = ClassName(class_name)
        if told:
            transforms["info"] = Parts(told)
        super().__init__(spec, transforms, augmentations=augmentations, **shards)

    @override
    def transforms(self, training: bool) -> tuple[Prepare, Collate]:
        prepare, _ = super().transforms(training)
        tokenizer = self.tokenizer
        return prepare, functools.partial(
            collate, end_id=None if tokenizer.pad_id == tokenizer.end_id else tokenizer.end_id
        )


class PicturesAndTexts(Pairs):
    """Batches of `image` (B, 3, size, size) with captions; see `Pairs`.

    Args:
        spec: path of a data spec with the fields `image` and `text` or `info`, or several to mix.
        tokenizer: makes tokens of texts.
        size: pixels along each side.
        scale: least and largest share of the area that a crop has in training.
        ratio: least and largest ratio of width to height of it.
        crop_ratio: side of the square in the middle, that is evaluated, over the short side of the picture.
        captions: where in the field `info` the captions lie; by default the field `text` is the caption.
        evaluated: which caption evaluation takes, such as -1 for the last; null for all.
        class_name: the name of what is in the picture by the field `info`, such as "{class}".
        augmentations: applied to the batch on the device in training, in this order.
        shards: of `mmflow.data.datamodule.ShardData`.
    """

    def __init__(
        self,
        spec: str | list[str],
        tokenizer: TextTokenizer,
        size: int = 224,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        crop_ratio: float = 1.0,
        captions: str | None = None,
        evaluated: int | None = 0,
        class_name: str | None = None,
        augmentations: Sequence[Augmentation] = (),
        **shards: Any,
    ) -> None:
        picture = Crop(size, scale, ratio, crop_ratio=crop_ratio)
        super().__init__(spec, tokenizer, {"image": picture}, captions, evaluated, class_name, augmentations, **shards)


class AudioTextPairs(Pairs):
    """Batches of `image` (B, 3, M, F), spectrograms of sounds for a picture tower, with captions; see `Pairs`.

    Args:
        spec: path of a data spec with the fields `audio` and `text` or `info`, or several to mix.
        tokenizer: makes tokens of texts.
        seconds: length of the piece of each sound, see `mmflow.data.transforms.Excerpt`.
        mels: frequency bands M.
        hop: samples from one frame to the next; F = seconds * 16000 / hop.
        captions: where in the field `info` the captions lie; by default the field `text` is the caption.
        evaluated: which caption evaluation takes, such as -1 for the last; null for all.
        class_name: the name of what is heard by the field `info`, such as "{class}".
        augmentations: applied to the batch on the device in training, in this order.
        shards: of `mmflow.data.datamodule.ShardData`.
    """

    def __init__(
        self,
        spec: str | list[str],
        tokenizer: TextTokenizer,
        seconds: float = 4.0,
        mels: int = 64,
        hop: int = 320,
        captions: str | None = None,
        evaluated: int | None = 0,
        class_name: str | None = None,
        augmentations: Sequence[Augmentation] = (),
        **shards: Any,
    ) -> None:
        sound: dict[str, Transform] = {"audio": Parts({"image": Spectrogram(seconds, mels, hop)})}
        super().__init__(spec, tokenizer, sound, captions, evaluated, class_name, augmentations, **shards)


class Spectrogram(Transform):
    """Sound as a picture: float32 (3, M, F) in [0, 1], low frequencies at the top, the three channels alike.

    It is the logarithm of the power in mel bands, from 80 dB below the loudest band, black, to the loudest, white.

    Args:
        seconds: length of the piece that is taken.
        mels: bands M.
        hop: samples from one frame to the next.
    """

    kinds = AUDIO_EXTENSIONS

    def __init__(self, seconds: float, mels: int, hop: int) -> None:
        if mels < 1 or hop < 1:
            raise ValueError(f"mels={mels} bands and hop={hop} samples must be at least 1")
        self.excerpt, self.hop = Excerpt(seconds), hop
        self.window = 1 << (2 * hop - 1).bit_length()  # samples
        bins = self.window // 2 + 1
        self.filters = torchaudio.functional.melscale_fbanks(
            bins, 0.0, SAMPLE_RATE / 2, mels, SAMPLE_RATE
        ).T  # (M, bins)

    def __call__(self, value: Tensor, draw: np.random.Generator | None) -> Tensor:
        sound = self.excerpt(value, draw)
        if not sound.isfinite().all():
            raise BadSample("the sound has values that are not finite")
        hann = torch.hann_window(self.window)
        frames = torch.stft(sound, self.window, self.hop, window=hann, pad_mode="constant", return_complex=True)
        power = self.filters @ frames[:, : len(sound) // self.hop].abs().square()  # (M, F)
        level = power.clamp(min=10 ** (QUIET - RANGE)).log10()
        level = (level - level.max().clamp(min=QUIET)) / RANGE + 1
        return level.clamp(min=0).expand(3, -1, -1)
