"""What is read, in which order, in which batch: a pure function, with no state but a count.

A training step is `lanes` micro-batches, one per lane. Rank r of W takes the lanes r, r+W, ..., so every W that
divides `lanes` makes the same steps from the same samples. One epoch of the plan is built like this:

1. `order`: every source gives its share of samples, walking through its shards in an order drawn anew for each pass;
   several sources are woven together evenly by weight.
2. The order is cut into `lanes` segments, equal to within one sample. A lane reads its own few shards, in order.
3. Within a lane, each `window` of samples is shuffled and cut into batches, by count or so that similar lengths meet.
4. All lanes give the number of batches that the shortest one has. What is left of the epoch is its `remainder`: the
   surplus batches of the other lanes and, when batching by count, less than one batch per lane.

Nothing of this is made before it is needed: to go on in the middle of an epoch of 100 million samples takes one window
per lane. Only batching by length has to know the lengths in all windows of the epochs so far, to count their batches.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Ids = np.ndarray  # int64, numbers of samples in the corpus

COUNTED = 2**20  # samples whose batches are counted at a time


@dataclass(frozen=True)
class BatchRule:
    """How samples become batches: `size` samples each, or as many as fit `length` when padded to the longest.

    Args:
        size: samples per batch.
        length: bound on samples x longest, in the unit of the lengths (seconds, tokens).
        max_length: a sample never counts more than this, because it is cropped to it.
    """

    size: int | None = None
    length: float | None = None
    max_length: float = float("inf")

    def __post_init__(self) -> None:
        if (self.size is None) == (self.length is None):
            raise ValueError(f"give either a batch size or a batch length; got size={self.size}, length={self.length}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"batch size {self.size} must be at least 1")
        if self.length is not None and not 0 < self.length < float("inf"):
            raise ValueError(f"batch length {self.length} must be a number above 0")
        if self.length is not None and self.length < self.max_length < float("inf"):
            raise ValueError(
                f"batch length {self.length} is under the length {self.max_length} that one sample may have"
            )

    def cut(self, ids: Ids, lengths: np.ndarray) -> list[Ids]:
        """Cut `ids` into batches; by length, similar lengths come together and the order of `ids` breaks ties."""
        if self.size is not None:
            return [ids[i : i + self.size] for i in range(0, len(ids), self.size)]
        assert self.length is not None
        cost = np.minimum(lengths[ids], self.max_length)
        by_length = np.argsort(cost, kind="stable")
        ids = ids[by_length]
        ends = self._ends(cost[by_length][None])[0].tolist()
        batches, start = [], 0
        while start < len(ids):
            batches.append(ids[start : ends[start]])
            start = ends[start]
        return batches

    def count(self, costs: np.ndarray) -> np.ndarray:
        """(R,) into how many batches `cut` makes each row of (R, W) lengths that are no longer than `max_length`."""
        ends = self._ends(np.sort(costs, axis=1))
        rows, starts = np.arange(len(costs)), np.zeros(len(costs), dtype=np.int64)
        counts = np.zeros(len(costs), dtype=np.int64)
        while len(rows):  # all rows take a batch at a time
            counts[rows] += 1
            starts = ends[rows, starts]
            rows, starts = rows[starts < costs.shape[1]], starts[starts < costs.shape[1]]
        return counts

    def _ends(self, costs: np.ndarray) -> np.ndarray:
        """int64 (R, W), where a batch ends that starts at each place of each row of ascending lengths (R, W)."""
        assert self.length is not None
        rows, width = costs.shape
        places = np.arange(width)
        # sample i is the longest of a batch that ends with it, which fits if it starts at `earliest[i]` or later;
        # so a batch that starts at s ends behind as many samples as have an `earliest` of at most s
        earliest = places + 1 - np.floor(self.length / np.maximum(costs, 1e-9))
        earliest = np.clip(earliest, 0, width).astype(np.int64) + np.arange(rows)[:, None] * (width + 1)
        counts = np.bincount(earliest.ravel(), minlength=rows * (width + 1)).reshape(rows, width + 1)
        return np.maximum(np.cumsum(counts, axis=1)[:, :width], places + 1)


@dataclass(frozen=True)
class Source:
    """One data set in the mixture.

    Args:
        shards: usable sample numbers of each shard, in the order they lie in it; a range where all are usable.
        weight: share of the samples, relative to the other sources; by default its number of samples.
    """

    shards: Sequence[Ids | range]
    weight: float | None = None

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64, samples of each shard."""
        return np.array([len(shard) for shard in self.shards], dtype=np.int64)

    def take(self, shard: int, start: int, end: int) -> Ids:
        """Some samples of one shard."""
        ids = self.shards[shard][start:end]
        return np.arange(ids.start, ids.stop, ids.step) if isinstance(ids, range) else ids


class Micro(NamedTuple):
    """One micro-batch: which samples, and the numbers that seed everything random about it."""

    ids: tuple[int, ...]
    epoch: int = 0
    step: int = 0
    lane: int = 0
    padding: bool = False  # repeats another batch to keep ranks in step; counts for nothing


@dataclass(frozen=True)
class Plan:
    """The training order of a corpus.

    Args:
        sources: what is mixed.
        lengths: (N,) length of every sample of the corpus, in the unit of the rule.
        rule: how samples become batches.
        lanes: micro-batches per step.
        seed: of all draws.
        window: samples that are shuffled together; a lane holds no more than this many in mind.
    """

    sources: Sequence[Source]
    lengths: np.ndarray = field(repr=False)
    rule: BatchRule
    lanes: int = 1
    seed: int = 0
    window: int = 8192
    cached: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"lanes={self.lanes} must be at least 1")
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1")
        if not all(map(len, self.sources)):
            raise ValueError(f"a source has no sample; the sources have {[len(source) for source in self.sources]}")
        weights = [1.0 if source.weight is None else source.weight for source in self.sources]
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights {weights} must all be numbers above 0; leave a source out instead")
        if self.drawn // self.lanes < (self.rule.size or 1):
            raise ValueError(
                f"{sum(map(len, self.sources))} samples do not make one batch for each of lanes={self.lanes} "
                f"with {self.rule}; lower lanes or the batch size, or add data"
            )

    @cached_property
    def shares(self) -> list[int]:
        """Samples of each source in one epoch."""
        total = sum(map(len, self.sources))
        weights = np.array([len(s) if s.weight is None else s.weight for s in self.sources], dtype=float)
        return np.rint(total * weights / weights.sum()).astype(int).tolist()

    @property
    def drawn(self) -> int:
        """Samples of one epoch."""
        return sum(self.shares)

    # ---- the order

    def order(self, epoch: int) -> Ids:
        """All samples of one epoch in reading order."""
        return self._ordered(epoch, 0, self.drawn)

    def _ordered(self, epoch: int, start: int, end: int) -> Ids:
        """Samples start..end of an epoch.

        Number i of the n samples of a source has the place (i + 0.5) / n in the epoch, and as many samples of each
        source are before it as this place says, to within a half. So what lies between two places is known at once,
        and sorting it with a few samples to either side gives the samples wanted.
        """
        if len(self.shares) == 1:
            return self._walk(0, epoch * self.drawn + start, epoch * self.drawn + end)
        margin, before, ids, places = len(self.shares) + 2, 0, [], []
        for number, share in enumerate(self.shares):
            first = min(max((start - margin) * share // self.drawn, 0), share)
            last = min(max(-(-(end + margin) * share // self.drawn), 0), share)
            ids.append(self._walk(number, epoch * share + first, epoch * share + last))
            places.append((np.arange(first, last) + 0.5) / max(share, 1))
            before += first
        woven = np.argsort(np.concatenate(places), kind="stable")[start - before : end - before]
        return np.concatenate(ids)[woven]

    def _walk(self, number: int, start: int, end: int) -> Ids:
        """Samples start..end of the endless walk through one source: pass after pass, its shards in a new order."""
        source, pieces, at = self.sources[number], [np.empty(0, dtype=np.int64)], start
        while at < end:
            turn, offset = divmod(at, len(source))
            shards, ends = self._pass(number, turn)
            i = int(np.searchsorted(ends, offset, side="right"))
            first = offset - int(ends[i] - source.sizes[shards[i]])
            pieces.append(source.take(int(shards[i]), first, first + end - at))
            at += len(pieces[-1])
        return np.concatenate(pieces)

    def _pass(self, number: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of one pass through a source in order, and behind how many samples each one ends."""
        passes: dict[tuple[int, int], Any] = self.cached.setdefault("passes", {})
        if (number, turn) not in passes:
            source, draw = self.sources[number], np.random.default_rng([self.seed, 1, number, turn])
            shards = draw.permutation(len(source.shards))
            while len(passes) >= 2 * len(self.sources) + 2:
                del passes[next(iter(passes))]  # the oldest
            passes[number, turn] = shards, np.cumsum(source.sizes[shards])
        return passes[number, turn]

    # ---- the batches

    def steps(self, epoch: int) -> int:
        """Steps of one epoch, which is the number of batches of every lane."""
        if self.rule.size is not None:
            return self.drawn // self.lanes // self.rule.size
        known: dict[int, int] = self.cached.setdefault("steps", {})
        if epoch not in known:
            known[epoch] = min(int(counts.sum()) for counts in self._counts(epoch))
        return known[epoch]

    def left_over(self, epoch: int) -> int:
        """Samples that are in no batch of an epoch."""
        steps = self.steps(epoch)
        if self.rule.size is not None:
            return self.drawn - steps * self.lanes * self.rule.size
        return sum(len(batch) for lane in range(self.lanes) for batch in self._batches(epoch, lane, steps))

    def epoch(self, epoch: int) -> list[list[Ids]]:
        """The batches of each lane; all lanes have the same number."""
        steps = self.steps(epoch)
        return [list(itertools.islice(self._batches(epoch, lane, 0), steps)) for lane in range(self.lanes)]

    def remainder(self, epoch: int) -> Ids:
        """Samples of `order(epoch)` that are in no batch of that epoch, ascending."""
        count = len(self.lengths)
        used = np.concatenate([batch for batches in self.epoch(epoch) for batch in batches])
        left = np.bincount(self.order(epoch), minlength=count) - np.bincount(used, minlength=count)
        return np.repeat(np.arange(count), left)

    def _segment(self, lane: int) -> tuple[int, int]:
        """Where in the order the samples of a lane begin and end."""
        return lane * self.drawn // self.lanes, (lane + 1) * self.drawn // self.lanes

    def _window(self, epoch: int, lane: int, window: int) -> tuple[Ids, np.random.Generator]:
        """The samples of one window of a lane, shuffled, and the generator that did it; none behind the last one."""
        start, end = self._segment(lane)
        start += window * self.window
        ids = self._ordered(epoch, start, max(min(start + self.window, end), start))
        # the number of the window makes each of them known without those before; the first one needs none
        draw = np.random.default_rng([self.seed, 2, epoch, lane] + [window] * (window > 0))
        return draw.permutation(ids), draw

    def _batches(self, epoch: int, lane: int, first: int) -> Iterator[Ids]:
        """The batches of a lane from number `first` on, surplus ones too."""
        if self.rule.size is None:
            return self._batches_by_length(epoch, lane, first)
        return self._batches_by_count(epoch, lane, first, self.rule.size)

    def _batches_by_count(self, epoch: int, lane: int, first: int, size: int) -> Iterator[Ids]:
        window, offset = divmod(first * size, self.window)
        ids = self._window(epoch, lane, window)[0][offset:]
        while True:
            while len(ids) < size:
                window += 1
                following = self._window(epoch, lane, window)[0]
                if len(following) == 0:
                    return
                ids = np.concatenate([ids, following])
            yield ids[:size]
            ids = ids[size:]

    def _batches_by_length(self, epoch: int, lane: int, first: int) -> Iterator[Ids]:
        ends = np.cumsum(self._counts(epoch)[lane])
        for window in range(int(np.searchsorted(ends, first, side="right")), len(ends)):
            ids, draw = self._window(epoch, lane, window)
            batches = self.rule.cut(ids, self.lengths)
            begin = int(ends[window]) - len(batches)
            for i in draw.permutation(len(batches))[max(first - begin, 0) :]:
                yield batches[i]

    def _counts(self, epoch: int) -> list[np.ndarray]:
        """Batches by length of each window of each lane. What is shuffled within a window makes no difference."""
        if self.cached.get("counted") != epoch:
            self.cached["counts"] = [self._count(epoch, *self._segment(lane)) for lane in range(self.lanes)]
            self.cached["counted"] = epoch
        return self.cached["counts"]

    def _count(self, epoch: int, start: int, end: int) -> np.ndarray:
        counts, at = [], start
        while at < end:
            width = min(self.window, end - at)
            rows = min((end - at) // width, max(COUNTED // width, 1))
            ids = self._ordered(epoch, at, at + rows * width)
            counts.append(self.rule.count(np.minimum(self.lengths[ids], self.rule.max_length).reshape(rows, width)))
            at += rows * width
        return np.concatenate(counts)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Iterator[Micro]:
        """The endless micro-batches of one rank from `step` on; step s is the s-th step since the run began."""
        if self.lanes % world:
            divisors = [w for w in range(1, self.lanes + 1) if self.lanes % w == 0]
            raise ValueError(
                f"lanes={self.lanes} is not divisible by {world} processes; "
                f"use one of {divisors} processes or lanes={-(-self.lanes // world) * world} (a new run)"
            )
        epoch, first = self._place(step)
        lanes = range(rank, self.lanes, world)
        while True:
            streams = [self._batches(epoch, lane, first) for lane in lanes]
            for _ in range(first, self.steps(epoch)):
                for lane, batches in zip(lanes, streams, strict=True):
                    yield Micro(tuple(next(batches).tolist()), epoch, step, lane)
                step += 1
            epoch, first = epoch + 1, 0

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the number of the step in it."""
        if self.rule.size is not None:
            return divmod(step, self.steps(0))
        epoch = 0
        while step >= self.steps(epoch):
            step -= self.steps(epoch)
            epoch += 1
        return epoch, step


def once(ids: Ids, lengths: np.ndarray, rule: BatchRule, rank: int = 0, world: int = 1) -> list[Micro]:
    """Each of `ids` exactly once over all ranks, for validation, testing and pooling.

    The batches are the same for every world size and dealt round robin; where they do not come out even, the last
    ranks get a padding batch, so that all ranks make the same number of forward passes.
    """
    batches = [Micro(tuple(b.tolist()), step=i) for i, b in enumerate(rule.cut(ids, lengths))]
    short = -len(batches) % world
    batches += [batches[-1]._replace(padding=True)] * short if batches else []
    return batches[rank::world]


def once_by_shard(shards: Sequence[Ids], lengths: np.ndarray, rule: BatchRule) -> list[Micro]:
    """Each sample of `shards` once, shard after shard; no batch spans two, so that whole shards can be written."""
    return [Micro(tuple(batch.tolist())) for ids in shards for batch in rule.cut(ids, lengths)]
