"""What is read, in which order, in which batch: a pure function, with no state but a count.

A training step is `lanes` micro-batches, one per lane. Rank r of W takes the lanes r, r+W, ..., so every W that
divides `lanes` makes the same steps from the same samples. One epoch of the plan is built like this:

1. `order`: every source gives its share of samples, walking through its shards in an order drawn anew for each pass;
   several sources are woven together evenly by weight.
2. The order is cut into `lanes` segments, equal to within one sample. A lane reads its own few shards, in order.
3. Within a lane, each `window` of samples is shuffled and cut into batches, by count or so that similar lengths meet.
4. All lanes give the number of batches that the shortest one has. What is left of the epoch is its `remainder`: the
   surplus batches of the other lanes and, when batching by count, less than one batch per lane.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Ids = np.ndarray  # int64, numbers of samples in the corpus


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
        ids, cost = ids[by_length], cost[by_length]
        # sample i is the longest of a batch that ends with it, which fits if it starts at `earliest[i]` or later
        places = np.arange(len(ids))
        earliest = places + 1 - np.floor(self.length / np.maximum(cost, 1e-9))
        ends = np.maximum(np.searchsorted(earliest, places, side="right"), places + 1).tolist()
        batches, start = [], 0
        while start < len(ids):
            batches.append(ids[start : ends[start]])
            start = ends[start]
        return batches


@dataclass(frozen=True)
class Source:
    """One data set in the mixture.

    Args:
        shards: usable sample numbers of each shard, in the order they lie in it.
        weight: share of the samples, relative to the other sources; by default its number of samples.
    """

    shards: Sequence[Ids]
    weight: float | None = None

    def __len__(self) -> int:
        return sum(map(len, self.shards))


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
        if sum(self._shares()) // self.lanes < (self.rule.size or 1):
            raise ValueError(
                f"{sum(map(len, self.sources))} samples do not make one batch for each of lanes={self.lanes} "
                f"with {self.rule}; lower lanes or the batch size, or add data"
            )

    def _shares(self) -> list[int]:
        """Samples of each source in one epoch."""
        total = sum(map(len, self.sources))
        weights = np.array([len(s) if s.weight is None else s.weight for s in self.sources], dtype=float)
        return np.rint(total * weights / weights.sum()).astype(int).tolist()

    def order(self, epoch: int) -> Ids:
        """All samples of one epoch in reading order."""
        shares = self._shares()
        parts = [self._walk(number, epoch * n, (epoch + 1) * n) for number, n in enumerate(shares)]
        if len(parts) == 1:
            return parts[0]
        places = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in shares])
        return np.concatenate(parts)[np.argsort(places, kind="stable")]

    def _walk(self, number: int, start: int, end: int) -> Ids:
        """Samples start..end of the endless walk through one source: pass after pass, its shards in a new order."""
        source, pieces, at = self.sources[number], [], start
        while at < end:
            turn, offset = divmod(at, len(source))
            draw = np.random.default_rng([self.seed, 1, number, turn])
            walk = np.concatenate([source.shards[i] for i in draw.permutation(len(source.shards))])
            pieces.append(walk[offset : offset + end - at])
            at += len(pieces[-1])
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def epoch(self, epoch: int) -> list[list[Ids]]:
        """The batches of each lane; all lanes have the same number."""
        order = self.order(epoch)
        cuts = [lane * len(order) // self.lanes for lane in range(self.lanes + 1)]
        lanes = [self._batches(order[a:b], epoch, lane) for lane, (a, b) in enumerate(itertools.pairwise(cuts))]
        shortest = min(map(len, lanes))
        return [batches[:shortest] for batches in lanes]

    def remainder(self, epoch: int) -> Ids:
        """Samples of `order(epoch)` that are in no batch of that epoch, ascending."""
        count = len(self.lengths)
        used = np.concatenate([batch for batches in self.epoch(epoch) for batch in batches])
        left = np.bincount(self.order(epoch), minlength=count) - np.bincount(used, minlength=count)
        return np.repeat(np.arange(count), left)

    def _batches(self, segment: Ids, epoch: int, lane: int) -> list[Ids]:
        draw = np.random.default_rng([self.seed, 2, epoch, lane])
        windows = [draw.permutation(segment[i : i + self.window]) for i in range(0, len(segment), self.window)]
        if self.rule.size is not None:
            batches = self.rule.cut(np.concatenate(windows or [segment]), self.lengths)
            return [batch for batch in batches if len(batch) == self.rule.size]
        batches = []
        for window in windows:
            cut = self.rule.cut(window, self.lengths)
            batches += [cut[i] for i in draw.permutation(len(cut))]
        return batches

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Iterator[Micro]:
        """The endless micro-batches of one rank from `step` on; step s is the s-th step since the run began."""
        if self.lanes % world:
            divisors = [w for w in range(1, self.lanes + 1) if self.lanes % w == 0]
            raise ValueError(
                f"lanes={self.lanes} is not divisible by {world} processes; "
                f"use one of {divisors} processes or lanes={-(-self.lanes // world) * world} (a new run)"
            )
        epoch, before = 0, 0
        while True:
            lanes = self.epoch(epoch)
            for i in range(max(step - before, 0), len(lanes[0])):
                for lane in range(rank, self.lanes, world):
                    yield Micro(tuple(lanes[lane][i].tolist()), epoch, before + i, lane)
            before += len(lanes[0])
            epoch += 1


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
