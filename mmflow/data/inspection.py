"""Looking at a data set: which samples are broken, and a few of them to see and hear."""

import contextlib
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from mmflow.data.corpus import Corpus, held
from mmflow.data.decode import BadSample, Lazy
from mmflow.data.index import build, open_shards
from mmflow.data.remote import fetch, is_remote
from mmflow.data.spec import DataSpec
from mmflow.data.walk import Fault, Row, over_shards

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


# -- all samples -------------------------------------------------------------------------------------------------------


def check(spec: DataSpec, workers: int | None = None) -> tuple[dict[str, dict[str, float]], list[Fault]]:
    """Read the headers of all shards anew and decode every field of every sample, whole.

    A field that some shard of a split holds must be in all samples of that split. A key in two splits is only a
    warning, for many data sets count their samples from 0 in each.

    Args:
        spec: the data set.
        workers: processes, by default one per core; 0 does it in this one, which a decoder that crashes then ends.

    Returns per split the number of shards, samples, hours of sound, mean seconds and faults, and the faults.
    """
    table: dict[str, dict[str, float]] = {}
    faults: list[Fault] = []
    shards = [(split, shard) for split in present_splits(spec) for shard in spec.shards(split)]
    found = over_shards(check_shard, spec, shards, workers, "checking")
    splits_of: Counter[str] = Counter()
    for split in present_splits(spec):
        said = [(shard, one) for (of, shard), all in zip(shards, found, strict=True) if of == split for one in all]
        wrong = [fault for _, fault in said if isinstance(fault, Fault)]
        mine = {shard: summary for shard, summary in said if isinstance(summary, Summary)}
        wrong += _incomplete(spec, mine) + _keys_twice(mine)
        seconds = np.concatenate([np.zeros(0), *(summary.seconds for summary in mine.values())])
        splits_of.update({key for summary in mine.values() for key in summary.keys})
        table[split] = {
            "shards": sum(of == split for of, _ in shards),
            "samples": sum(len(summary.keys) for summary in mine.values()),
            "hours": float(seconds.sum()) / 3600,
            "mean_s": float(seconds.mean()) if len(seconds) else 0.0,
            "broken": len(wrong),
        }
        faults += sorted(wrong)
    shared = [key for key, count in splits_of.items() if count > 1]
    if shared:
        log.warning("%d keys are in more than one split, such as %s; are the samples others?", len(shared), shared[0])
    return table, faults


@dataclass
class Summary:
    """What `check_shard` found in a shard.

    Attributes:
        keys: of its samples.
        fields: those that at least one of them has.
        lacking: (field, key, what the sample has instead) for each field that a sample does not have.
        seconds: of those that have sound or video.
    """

    keys: list[str]
    fields: list[str]
    lacking: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))


def check_shard(spec: DataSpec, split: str, shard: str, passed_over: Set[int]) -> Iterator[Any]:
    """A walk that yields the faults of one shard, and at last its Summary."""
    try:
        with _warnings_of("mmflow.data.index") as said:
            index = build(shard, spec.allow_pipe)
        yield from (Fault(shard, "", reason.partition(shard)[2].lstrip(" :") or reason) for reason in said)
        yield from (Fault(shard, *twice) for twice in _members_twice(shard, spec.allow_pipe))
    except (ValueError, OSError, tarfile.TarError) as error:
        yield Fault(shard, "", f"cannot be read: {error}")
        return
    if not len(index):
        yield Fault(shard, "", "no sample in it")
    fields = {name: allowed for name, allowed in spec.fields.items() if held(index, allowed)}
    alone = replace(spec, splits={split: [_pattern(shard)]}, fields=fields)
    corpora = {name: Corpus([alone], split, [name]) for name in fields if len(index)}
    summary = Summary(index.keys, list(fields))
    for row, key in enumerate(summary.keys):
        yield Row(row, len(index), key)
        if row in passed_over:
            continue
        for name, allowed in spec.fields.items():
            if index.extension(row, held(index, allowed)) is None:
                members = sorted(extension for extension in index.offsets if index.extension(row, [extension]))
                summary.lacking.append((name, key, ", ".join(members)))
                continue
            try:
                _decode_whole(corpora[name].read(row)[name])
            except BadSample as error:
                yield Fault(shard, key, f"{name}: {error}")
            except Exception as error:  # no decoder should, but it is one sample that a check must name
                yield Fault(shard, key, f"{name}: {type(error).__name__}: {error}")
    timed = (corpus.seconds[corpus.seconds > 0] for corpus in corpora.values())
    summary.seconds = next((seconds for seconds in timed if len(seconds)), summary.seconds)
    yield summary


def _decode_whole(value: object) -> None:
    """Decode what is otherwise decoded when it is looked at. Raises BadSample."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, Lazy):
            part.check()


def _pattern(shard: str) -> str:
    """What a spec names this very shard by."""
    if is_remote(shard):
        return shard
    return re.sub(r"([{},\\])", r"\\\1", escape(str(Path(shard).absolute())))


@contextlib.contextmanager
def _warnings_of(name: str) -> Iterator[list[str]]:
    """The warnings that a logger gives meanwhile."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _members_twice(shard: str, allow_pipe: bool) -> list[tuple[str, str]]:
    """(key, reason) for each member that a shard has more than once; readers differ in which one they take."""
    times: Counter[str] = Counter()
    file = fetch(shard, allow_pipe)
    # of the damaged rest of a tar the index tells
    with file, tarfile.open(fileobj=file, mode="r:") as tar, contextlib.suppress(tarfile.TarError):
        for member in tar:
            times[member.name] += member.isreg()
    twice = [(name, count) for name, count in times.items() if count > 1]
    return [(re.sub(r"\.[^/]*$", "", name), f"the member {name} is there {count} times") for name, count in twice]


def _incomplete(spec: DataSpec, summaries: dict[str, Summary]) -> list[Fault]:
    """A fault for each sample that lacks a field which some shard of its split holds."""
    present = {name for summary in summaries.values() for name in summary.fields}
    return [
        Fault(shard, key, f"{name}: none of {spec.fields[name]}; the sample has {members} (keys have no dots)")
        for shard, summary in summaries.items()
        for name, key, members in summary.lacking
        if name in present
    ]


def _keys_twice(summaries: dict[str, Summary]) -> list[Fault]:
    """A fault for each sample whose key is in another shard of its split too."""
    times = Counter(key for summary in summaries.values() for key in summary.keys)
    reason = "this key occurs in more than one shard"
    return [Fault(shard, key, reason) for shard, s in summaries.items() for key in s.keys if times[key] > 1]


# -- a few samples -----------------------------------------------------------------------------------------------------


def present_fields(spec: DataSpec, split: str) -> list[str]:
    """The fields that some shard of a split holds."""
    shards = open_shards(spec.shards(split), spec.allow_pipe)
    return [name for name, extensions in spec.fields.items() if any(held(shard, extensions) for shard in shards)]


def pick(spec: DataSpec, split: str, count: int, units: Path | None = None) -> Iterator[dict[str, Any]]:
    """`count` samples spread evenly over a split, decoded, with the units of a sidecar if given."""
    fields = present_fields(spec, split) + ["units"] * (units is not None)
    sidecars = {"units": str(units)} if units else None
    corpora = [Corpus([spec], split, [name], sidecars if name == "units" else None) for name in fields]
    for number in np.unique(np.linspace(0, len(corpora[0]) - 1, count).round().astype(int)):
        sample: dict[str, Any] = {}
        for corpus in corpora:  # field by field: one that a sample lacks, or that is broken, is no reason to hide it
            try:
                sample |= corpus.read(int(number))
            except BadSample as error:
                log.warning("%s in %s: %s", *reversed(corpus.name(int(number))), error)
        if sample:
            yield sample
