"""Looking at a data set: which samples are broken, and a few of them to see and hear.

Whole shards are gone through in processes of their own, because damaged files can crash a decoder or make it hang: that
costs the sample which it was reading, and the process, but not the check.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import re
import signal
import tarfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mmflow.data.corpus import Corpus, held
from mmflow.data.decode import BadSample, Lazy
from mmflow.data.index import build, open_shards
from mmflow.data.remote import fetch, is_remote
from mmflow.data.spec import DataSpec
from mmflow.data.workers import processors
from mmflow.processes import end_with_parent

log = logging.getLogger(__name__)

HANG_S = 600.0  # hours of video take minutes to decode; what takes longer than this will not end


class Fault(NamedTuple):
    """What is wrong with a sample, or where the key is "" with a whole shard."""

    shard: str
    key: str
    reason: str


class Row(NamedTuple):
    """A walk is about to read this row of the shard, out of so many."""

    number: int
    of: int
    key: str


# What is done with one shard: (spec, split, shard, rows to leave out) -> a Row before each sample, and anything else
Walk = Callable[[DataSpec, str, str, Set[int]], Iterator[Any]]


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


# -- shards in processes of their own ----------------------------------------------------------------------------------


def over_shards(
    walk: Walk, spec: DataSpec, shards: list[tuple[str, str]], workers: int | None, doing: str
) -> list[list[Any]]:
    """Walk through shards in parallel.

    A process that dies, or does not come to the next row within HANG_S, costs the sample that it was reading: a Fault
    says so, and the shard is walked through again without it.

    Args:
        walk: a function of a module, for it is named to other processes.
        spec: the data set.
        shards: (split, shard) of each.
        workers: processes, by default one per core; 0 walks in this process, unprotected.
        doing: a word for the progress bar.

    Returns for each shard what its walk yielded, without the rows.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers={workers} must be 0 or more; 0 is this process itself")
    with _bar(doing, len(shards)) as progress:
        if workers == 0:
            found = []
            for split, shard in shards:
                found.append([one for one in walk(spec, split, shard, frozenset()) if not isinstance(one, Row)])
                progress(len(found))
            return found
        count = processors() if workers is None else workers
        return _Crew(walk, spec, shards, progress).run(min(count, len(shards)))


@contextlib.contextmanager
def _bar(doing: str, total: int) -> Iterator[Callable[[float], None]]:
    """A function that is told how many shards are done; it draws on a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), TextColumn("{task.fields[done]} of {task.total} shards"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=total, done=0)
        yield lambda done: progress.update(task, completed=done, done=int(done))


@dataclass
class _Shard:
    """How far the walk through one shard is."""

    split: str
    path: str
    said: list[Any] = field(default_factory=list)
    row: Row | None = None
    lost: dict[int, Fault] = field(default_factory=dict)
    since: float = 0.0  # when the last message came


class _Worker:
    """A process that walks through the shards it is sent."""

    def __init__(self, walk: Walk, spec: DataSpec) -> None:
        context = multiprocessing.get_context("spawn")  # not forked: this process may hold locks of torch's threads
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, walk, spec), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.shard: _Shard | None = None

    def give(self, shard: _Shard) -> None:
        shard.said, shard.row, shard.since = [], None, time.monotonic()
        self.shard = shard
        self.pipe.send((shard.split, shard.path, frozenset(shard.lost)))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Any, walk: Walk, spec: DataSpec) -> None:
    """What a worker does until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    end_with_parent()
    torch.set_num_threads(1)
    while True:
        try:
            for message in walk(spec, *pipe.recv()):
                pipe.send(message)
            pipe.send(None)
        except Exception as error:
            pipe.send(error)


class _Crew:
    """The workers, and the shards that wait for one."""

    def __init__(
        self, walk: Walk, spec: DataSpec, shards: list[tuple[str, str]], progress: Callable[[float], None]
    ) -> None:
        self.walk, self.spec, self.progress = walk, spec, progress
        self.shards = [_Shard(*shard) for shard in shards]
        self.waiting = deque(self.shards)
        self.workers: dict[Any, _Worker] = {}  # by their pipes
        self.done = 0

    def run(self, count: int) -> list[list[Any]]:
        try:
            while self.done < len(self.shards):
                while self.waiting and len(self.workers) < count:
                    worker = _Worker(self.walk, self.spec)
                    self.workers[worker.pipe] = worker
                    worker.give(self.waiting.popleft())
                for pipe in multiprocessing.connection.wait(list(self.workers), timeout=0.5):
                    self._hear(self.workers[pipe])
                for worker in list(self.workers.values()):
                    # the time until the first row is that of starting the process and reading the index
                    if worker.shard and worker.shard.row and time.monotonic() - worker.shard.since > HANG_S:
                        self._lose(worker, f"takes more than {HANG_S:g} s to decode; the process was ended")
                walked = sum(
                    w.shard.row.number / w.shard.row.of for w in self.workers.values() if w.shard and w.shard.row
                )
                self.progress(self.done + walked)
        finally:
            for worker in self.workers.values():
                worker.end()
        return [[*shard.lost.values(), *shard.said] for shard in self.shards]

    def _hear(self, worker: _Worker) -> None:
        """Take one message of a worker."""
        shard = worker.shard
        assert shard
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(5)  # it has closed its end of the pipe
            self._lose(worker, f"the process that decoded it ended with {_told(worker.process.exitcode)}")
            return
        shard.since = time.monotonic()
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Row):
            shard.row = message
        elif message is not None:
            shard.said.append(message)
        else:
            self.done += 1
            worker.shard = None
            if self.waiting:
                worker.give(self.waiting.popleft())
            else:
                self.workers.pop(worker.pipe).end()

    def _lose(self, worker: _Worker, reason: str) -> None:
        """Go on without the sample that a worker was reading, and without the worker."""
        shard = worker.shard
        assert shard
        self.workers.pop(worker.pipe).end()
        if shard.row is None:
            shard.said = [Fault(shard.path, "", reason)]
            self.done += 1
        else:
            shard.lost[shard.row.number] = Fault(shard.path, shard.row.key, reason)
            self.waiting.append(shard)


def _told(code: int | None) -> str:
    """An exit code in words."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


# -- a few samples -----------------------------------------------------------------------------------------------------


def present_fields(spec: DataSpec, split: str) -> list[str]:
    """The fields that some shard of a split holds."""
    shards = open_shards(spec.shards(split), spec.allow_pipe)
    return [name for name, extensions in spec.fields.items() if any(held(shard, extensions) for shard in shards)]


def pick(spec: DataSpec, split: str, count: int, units: Path | None = None) -> Iterator[dict[str, Any]]:
    """`count` samples spread evenly over a split, decoded, with the units of a sidecar if given."""
    fields = present_fields(spec, split)
    corpus = Corpus([spec], split, fields + ["units"] * (units is not None), {"units": str(units)} if units else None)
    for number in np.unique(np.linspace(0, len(corpus) - 1, count).round().astype(int)):
        try:
            yield corpus.read(int(number))
        except BadSample as error:
            log.warning("%s in %s: %s", *reversed(corpus.name(int(number))), error)
