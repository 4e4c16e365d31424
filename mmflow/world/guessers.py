"""Guessers that learn from one part of a data set and guess another: by what is most frequent, and by what looks alike.

They understand nothing, which is what they are for (`mmflow.world.floors`).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmflow.data.corpus import Corpus
from mmflow.data.spec import DataSpec

MOST_SEEN = {"train": 3000, "other": 1000}  # samples whose pictures are looked at
SIDE = 32  # pixels of the pictures that are compared
MOST_MASKS = 5  # of a clip, evenly
LEVELS = 4  # of each colour channel in a histogram
TOLD = ("info", "text")  # fields that are read of every sample
MASKS = ("masks", "mask")
MAPS = ("segmentation", "edges", "skeleton")

Sample = dict[str, Any]  # field -> value
Found = dict[str, float]  # name of a floor -> value
Told = Iterable[tuple[Sequence[Hashable], Any]]  # what is given, the most telling first, and what is to be guessed


class Parts:
    """What guessers learn from and what they guess.

    Attributes:
        train, other: JSON and text of all samples that can be read.

    Raises ValueError where JSON is no mapping.
    """

    def __init__(self, spec: DataSpec, split: str) -> None:
        self.spec, self.split = spec, split
        self.train, self.other = (self._read(part, TOLD, None) for part in ("train", split))
        for info in (sample["info"] for sample in self.train + self.other):
            if not isinstance(info, dict):
                raise ValueError(f"{spec.path}: the JSON {info!r:.80} has no names; floors are told by them")

    def _read(self, split: str, fields: Iterable[str], most: int | None) -> list[Sample]:
        """Samples of a part, evenly over it."""
        corpus = Corpus([self.spec], split, [field for field in fields if field in self.spec.fields])
        usable = sorted(set(range(len(corpus))) - set(corpus.problems()))
        places = np.linspace(0, len(usable) - 1, min(most or len(usable), len(usable))).astype(int)
        return [self._small(corpus.read(usable[place])) for place in places]

    def _small(self, sample: Sample) -> Sample:
        """With "pixels" (3 * 32 * 32,) in 0..1 of the picture, or of the first one of a clip, in its place; maps are
        arrays (H, W) of whole colours, masks bool (T, H, W)."""
        shown = sample.pop("image", None) or sample.pop("video", None)
        if shown:
            size = (SIDE, SIDE)
            pixels = shown.tensor(size) if hasattr(shown, "tensor") else shown.clip(0, 1 / shown.rate, shown.rate, size)
            sample["pixels"] = pixels.numpy().ravel().astype(np.float32) / 255
        if "document" in sample:
            shown = [part.tensor((SIDE, SIDE)) for part in sample["document"] if hasattr(part, "tensor")]
            sample["document"] = np.array([one.numpy().ravel().astype(np.float32) / 255 for one in shown])
        for field in set(MAPS) & set(sample):
            red, green, blue = sample[field].tensor().numpy().astype(np.int32)
            sample[field] = (red << 16) + (green << 8) + blue
        for field in set(MASKS) & set(sample):
            mask = sample[field]
            planes = mask.tensor().numpy()[:1] if hasattr(mask, "tensor") else np.asarray(mask)
            sample[field] = planes[np.linspace(0, len(planes) - 1, min(MOST_MASKS, len(planes))).astype(int)] > 0
        return sample

    @cached_property
    def seen(self) -> tuple[list[Sample], list[Sample]]:
        """Samples of both parts with what is to be seen (`_small`), evenly over each."""
        sight = "image" if "image" in self.spec.fields else "video"
        fields = (*TOLD, sight, "document", *MAPS, *MASKS)
        return self._read("train", fields, MOST_SEEN["train"]), self._read(self.split, fields, MOST_SEEN["other"])

    @property
    def info(self) -> dict[str, Any]:
        """JSON of the first guessed sample, which tells what they are about."""
        return self.other[0]["info"]

    @property
    def has_sight(self) -> bool:
        """Whether there are pictures or clips."""
        return bool({"image", "video"} & set(self.spec.fields))

    @cached_property
    def _far(self) -> NDArray[np.float32]:
        """(other, train) squared distances of pictures, but for what is the same for all of a row."""
        learnt, asked = (np.stack([sample["pixels"] for sample in part]) for part in self.seen)
        return (learnt**2).sum(1) - 2 * asked @ learnt.T

    def nearest(self, tell: Callable[[Sample], Told]) -> list[tuple[Sequence[Hashable], Any, Any]]:
        """(given, guess, truth) of all that is told of the seen samples. The guess is what is told of the training
        picture that looks most alike, of those with the first of the things given that training has, else None."""
        learnt, asked = self.seen
        known: dict[Hashable, tuple[list[int], list[Any]]] = defaultdict(lambda: ([], []))
        for row, sample in enumerate(learnt):
            for given, answer in tell(sample):
                for one in given:
                    known[one][0].append(row)
                    known[one][1].append(answer)
        arrays = {one: np.array(rows) for one, (rows, _) in known.items()}
        found = []
        for sample, far in zip(asked, self._far, strict=True):
            for given, truth in tell(sample):
                key = next((one for one in given if one in known), None)
                guess = None if key is None else known[key][1][far[arrays[key]].argmin()]
                found.append((given, guess, truth))
        return found


def most_frequent(pairs: Iterable[tuple[Hashable, Hashable]]) -> dict[Hashable, Hashable]:
    """The most frequent second one for each first one; of equally frequent ones the one that came first."""
    counts: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for given, answer in pairs:
        counts[given][answer] += 1
    return {given: count.most_common(1)[0][0] for given, count in counts.items()}


def accuracy(train: Iterable[tuple[Hashable, Hashable]], other: Iterable[tuple[Hashable, Hashable]]) -> float:
    """Of the most frequent answer of training to what is given."""
    usual = most_frequent(train)
    return float(np.mean([usual.get(given) == answer for given, answer in other]))


def shares(hits: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str]) -> dict[str, float]:
    """Means of each column of `hits` (kind -> rows) as "kind/name"; with a column each of `names`."""
    means = {kind: np.mean(own, axis=0).tolist() for kind, own in sorted(hits.items())}
    return {f"{kind}/{name}": mean for kind, own in means.items() for name, mean in zip(names, own, strict=True)}


# ---- by colour


def histograms(samples: Iterable[Sample]) -> NDArray[np.float64]:
    """(N, 64 + 1): how much of each picture has each colour, of four levels of red, green and blue, and a constant."""
    found = []
    for sample in samples:
        levels = np.minimum(sample["pixels"].reshape(3, -1) * LEVELS, LEVELS - 1).astype(int)
        colours = np.ravel_multi_index(tuple(levels), (LEVELS,) * 3)
        found.append([*np.bincount(colours, minlength=LEVELS**3) / colours.size, 1])
    return np.array(found)


def by_colour(parts: Parts, targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, K): what a linear fit of `targets` (M, K) of seen training pictures to their histograms says of the rest."""
    learnt, asked = (histograms(part) for part in parts.seen)
    return asked @ np.linalg.lstsq(learnt, targets, rcond=1e-6)[0]


def recall(similar: NDArray[np.floating], most: int) -> float:
    """Share of rows of a square matrix whose own column is among the `most` largest; draws among equals are chances."""
    own = np.diag(similar)[:, None]
    before, equal = (similar > own).sum(1), (similar == own).sum(1)
    return float(np.clip((most - before) / equal, 0, 1).mean())
