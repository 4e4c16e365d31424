"""Whole shards gone through in processes of their own, because damaged files can crash a decoder or make it hang.

That costs the sample which it was reading, and the process, but not what the walk is for.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mmflow.data.spec import DataSpec
from mmflow.data.workers import processors
from mmflow.processes import end_with_parent

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
