"""Looking at a data set: which samples are broken, and a few of them to see and hear."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmflow.data.corpus import Corpus, held
from mmflow.data.decode import BadSample, Lazy
from mmflow.data.index import open_shards
from mmflow.data.spec import DataSpec

log = logging.getLogger(__name__)


def present_splits(spec: DataSpec) -> list[str]:
    """The splits that have shards. Raises ValueError when none has."""
    found = []
    for split in spec.splits:
        try:
            spec.shards(split)
            found.append(split)
        except ValueError as error:
            log.info("%s", error)
            last = error
    if not found:
        raise last
    return found


def check(spec: DataSpec) -> tuple[dict[str, dict[str, float]], list[tuple[str, str, str]]]:
    """Decode every field of every sample.

    Returns per split the number of shards, samples, hours of audio, mean seconds and broken samples, and a list of
    (shard, key, reason) for each broken sample and each key that occurs twice.
    """
    table: dict[str, dict[str, float]] = {}
    broken: list[tuple[str, str, str]] = []
    for split in present_splits(spec):
        corpus = Corpus([spec], split, present_fields(spec, split))
        before = len(broken)
        for number in range(len(corpus)):
            try:
                for value in corpus.read(number).values():
                    _decode_whole(value)
            except BadSample as error:
                broken.append((*corpus.name(number), str(error)))
        keys = Counter(key for shard in corpus.shards for key in shard.keys)
        twice = {key for key, count in keys.items() if count > 1}
        broken += [
            (s.path, key, "this key occurs in more than one shard")
            for s in corpus.shards
            for key in s.keys
            if key in twice
        ]
        seconds = corpus.seconds[corpus.num_samples > 0]
        table[split] = {
            "shards": len(corpus.shards),
            "samples": len(corpus),
            "hours": seconds.sum() / 3600,
            "mean_s": seconds.mean() if len(seconds) else 0.0,
            "broken": len(broken) - before,
        }
    return table, broken


def present_fields(spec: DataSpec, split: str) -> list[str]:
    """The fields that some shard of a split holds."""
    shards = open_shards(spec.shards(split), spec.allow_pipe)
    return [field for field, extensions in spec.fields.items() if any(held(shard, extensions) for shard in shards)]


def _decode_whole(value: object) -> None:
    """Decode what is otherwise decoded when it is looked at. Raises BadSample."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, Lazy):
            part.check()


def pick(spec: DataSpec, split: str, count: int, units: Path | None = None) -> Iterator[dict[str, Any]]:
    """`count` samples spread evenly over a split, decoded, with the units of a sidecar if given."""
    fields = present_fields(spec, split)
    corpus = Corpus([spec], split, fields + ["units"] * (units is not None), {"units": str(units)} if units else None)
    for number in np.unique(np.linspace(0, len(corpus) - 1, count).round().astype(int)):
        try:
            yield corpus.read(int(number))
        except BadSample as error:
            log.warning("%s in %s: %s", *reversed(corpus.name(int(number))), error)
