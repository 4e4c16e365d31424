"""Planned micro-batches from worker processes: exactly in order, ahead of time, and past decoders that hang or crash.

A decoder written in C can hang for ever or take its process with it. So every worker notes on a board, in memory that
it shares with the main process, which sample it is on and since when. When a batch does not come and its worker is
dead or has been on one sample for too long, that sample is condemned: from then on it counts as broken, as if it had
been known from the start. All workers are replaced by new ones that know it, and these begin with the first batch that
was not received, which is possible because the plan says what is in it.
"""

import contextlib
import io
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from typing_extensions import override

from mmflow.data.corpus import Corpus
from mmflow.data.errors import BadSample
from mmflow.data.plan import Ids, Micro, Plan
from mmflow.data.remote import fetch, is_remote
from mmflow.processes import end_with_parent

log = logging.getLogger(__name__)

Sample = dict[str, Any]
Prepare = Callable[[Sample, np.random.Generator], Sample]
Collate = Callable[[list[Sample], np.random.Generator], dict[str, Any]]

AHEAD = 4  # micro-batches that are asked of each worker at a time
LOOK_S = 0.5  # between looks at the board while a batch does not come
IDLE = -1.0  # on the board: on no sample


class Reader:
    """Turns one planned micro-batch into tensors. All that is random in it is seeded by the plan's numbers.

    A sample that cannot be decoded is replaced by the next usable one and reported under `__broken__`. In a pass that
    sees each sample once, its row stays under its own name and is marked in `valid` as not counting.

    Args:
        corpus: where samples are read.
        usable: numbers of the samples that may be read, ascending.
        prepare: sample, generator -> sample; raises BadSample for what cannot be used.
        collate: samples, generator -> batch of tensors.
        seed: of all draws.
        training: replace broken samples for good instead of masking their rows.
        most_tries: so many broken samples in a row are passed over.
        known: number -> reason, for samples that count as broken without being tried.

    Attributes:
        mark: the number of the sample that it is on, or IDLE, and since when by `time.monotonic`.
    """

    def __init__(
        self,
        corpus: Corpus,
        usable: Ids,
        prepare: Prepare,
        collate: Collate,
        seed: int,
        training: bool,
        most_tries: int,
        known: dict[int, str] | None = None,
    ) -> None:
        self.corpus, self.usable, self.seed, self.training = corpus, usable, seed, training
        self.prepare, self.collate, self.most_tries = prepare, collate, most_tries
        self.known = dict(known or {})
        self.mark: MutableSequence[float] | np.ndarray = [IDLE, 0.0]

    def __getitem__(self, micro: Micro) -> dict[str, Any]:
        broken: list[tuple[str, str, str]] = []
        samples, valid = [], []
        by_field: dict[str, float] = defaultdict(float)  # seconds
        by_shard: dict[str, float] = defaultdict(float)
        for number in micro.ids:
            sample, own = self._read(number, micro, broken)
            for field, seconds in sample.pop("__seconds__", {}).items():
                by_field[field] += seconds
                by_shard[sample["__shard__"]] += seconds
            samples.append(sample)
            valid.append((own or self.training) and not micro.padding)
        self.mark[0] = IDLE
        batch = self.collate(samples, np.random.default_rng([self.seed, 4, micro.step, micro.lane]))
        batch["valid"] = torch.tensor(valid)
        batch["__key__"] = [sample["__key__"] for sample in samples]
        batch["__shard__"] = [sample["__shard__"] for sample in samples]
        batch["__broken__"] = broken
        batch["__seconds__"], batch["__shard_seconds__"] = dict(by_field), dict(by_shard)
        if self.training:
            batch["__step__"], batch["__lane__"] = micro.step, micro.lane
        return batch

    def _read(self, number: int, micro: Micro, broken: list[tuple[str, str, str]]) -> tuple[Sample, bool]:
        for tried, candidate in enumerate(self._from(number)):
            try:
                sample = self._try(candidate, micro)
            except BadSample as error:
                broken.append((*self.corpus.name(candidate), str(error)))
                if tried == self.most_tries:
                    raise too_many_broken(self.corpus, tried + 1, *broken[-1]) from error
                continue
            if candidate == number or self.training:
                return sample, candidate == number
            shard, key = self.corpus.name(number)
            return sample | {"__shard__": shard, "__key__": key}, False
        raise ValueError(f"no sample of split {self.corpus.split!r} can be read; the last: {' '.join(broken[-1])}")

    def _try(self, number: int, micro: Micro) -> Sample:
        if number in self.known:
            raise BadSample(self.known[number])
        index = self.corpus.shards[self.corpus.place(number)[0]]
        if is_remote(index.path):
            self.mark[0] = IDLE  # a transfer takes the time it takes, and is given up by rules of its own
            fetch(index.path, index.allow_pipe).close()
        self.mark[1], self.mark[0] = time.monotonic(), number
        # not of the epoch alone, in which a sample of a source with a large weight comes more than once
        draw = np.random.default_rng([self.seed, 3, number, micro.step, micro.lane])
        return self.prepare(self.corpus.read(number), draw)

    def _from(self, number: int) -> Iterator[int]:
        """`number` and then the usable samples behind it, round to it again."""
        yield number
        at = int(np.searchsorted(self.usable, number))
        for i in range(at + 1, at + len(self.usable)):
            yield int(self.usable[i % len(self.usable)])


def too_many_broken(corpus: Corpus, count: int, shard: str, key: str, reason: str) -> ValueError:
    """The error that stops a run."""
    return ValueError(
        f"{count} of {len(corpus)} samples of split {corpus.split!r} are broken, more than data.max_broken allows; "
        f"for example {key} in {shard}: {reason}. "
        f"Repair the data (`data check` lists every broken sample) or raise data.max_broken"
    )


class TrainingOrder:
    """The endless micro-batches of one rank. Has no length, so no epoch arithmetic of Lightning's applies."""

    def __init__(self, plan: Plan, step: int, rank: int, world: int) -> None:
        self.plan, self.step, self.rank, self.world = plan, step, rank, world

    def __iter__(self) -> Any:
        return self.plan.micro_batches(self.step, self.rank, self.world)


class Steps(Iterable[list[dict[str, Any]]]):
    """The micro-batches of a loader by steps: all that a rank has of a step are one batch, a list."""

    def __init__(self, loader: "Loader", count: int) -> None:
        self.loader, self.count = loader, count

    @property
    def waited_s(self) -> float:
        """See Loader."""
        return self.loader.waited_s

    @override
    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches = iter(self.loader)
        while step := list(itertools.islice(batches, self.count)):
            yield step


def micro_batches(batch: Any) -> list[dict[str, Any]]:
    """Those that a batch is: itself, or each of a list; none where it is something else."""
    return [micro for micro in (batch if isinstance(batch, list) else [batch]) if isinstance(micro, dict)]


# -- from process to process -----------------------------------------------------------------------------------------

ALIGNMENT = 64  # bytes


class _Packer(pickle.Pickler):
    """Pickles a batch without its tensors, wherever in it they are, and says where each will stand."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, Tensor]] = []  # first byte, and what begins there
        self.size = 0

    @override
    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.layout is not torch.strided:
            return None
        start = self.size
        self.tensors.append((start, obj))
        self.size += -(-obj.nbytes // ALIGNMENT) * ALIGNMENT
        return start, obj.dtype, tuple(obj.shape)


class _Unpacker(pickle.Unpickler):
    """Makes the tensors views of a buffer."""

    def __init__(self, file: io.BytesIO, buffer: Tensor) -> None:
        super().__init__(file)
        self.buffer = buffer

    @override
    def persistent_load(self, pid: Any) -> Tensor:
        start, dtype, shape = pid
        return self.buffer[start:][: int(np.prod(shape)) * dtype.itemsize].view(dtype).view(shape)


def pack(batch: Any) -> int:
    """The descriptor of a file in memory with all tensors of a batch, one after the other, and then the rest of it.

    One descriptor is all that goes from process to process, and no socket's buffer is ever too small for it.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(batch)
    rest = file.getvalue() + packer.size.to_bytes(8, "little")
    descriptor = os.memfd_create("batch")
    with open(descriptor, "wb", closefd=False) as memory:  # written, for a page that is touched first costs a fault
        for start, tensor in packer.tensors:
            memory.seek(start)
            memory.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        memory.seek(packer.size)
        memory.write(rest)
    return descriptor


def unpack(descriptor: int, pin: bool = False) -> Any:
    """The batch again, whose tensors are views of one buffer, in pinned memory if asked; closes the descriptor."""
    num_bytes = os.fstat(descriptor).st_size
    # unlike Python's mmap, torch's keeps no descriptor, so that any number of batches may be held
    buffer = torch.from_file(f"/proc/self/fd/{descriptor}", shared=True, size=num_bytes, dtype=torch.uint8)
    os.close(descriptor)
    size = int.from_bytes(buffer[-8:].numpy().tobytes(), "little")
    file = io.BytesIO(buffer[size:-8].numpy().tobytes())
    return _Unpacker(file, buffer.pin_memory() if pin else buffer).load()


def ignore_signals(_: int) -> None:
    """Workers leave SIGTERM, SIGUSR1 and Ctrl-C to their parent, which saves first and then ends them."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def work(reader: Reader, connection: Connection, board: Any, place: int) -> None:
    """What a worker does: it takes micro-batches and gives back batches, or what went wrong, until it is killed."""
    ignore_signals(place)
    end_with_parent()
    torch.set_num_threads(1)
    reader.mark = np.frombuffer(board)[2 * place :][:2]
    with contextlib.suppress(EOFError, ConnectionError), ThreadPoolExecutor(1, "sender") as sender:
        while True:  # until the parent is gone
            micro = connection.recv()
            try:
                batch: Any = reader[micro]
            except Exception:
                batch = ExceptionWrapper(where=f"in data worker {place}")
            sender.submit(give, batch, connection, place)  # while the next one is decoded


def give(batch: Any, connection: Connection, place: int) -> None:
    """Send a batch to the parent."""
    try:
        descriptor = pack(batch)
    except Exception:
        descriptor = pack(ExceptionWrapper(where=f"in data worker {place}, which sends a batch"))
    send_handle(connection, descriptor, os.getppid())  # the pid is for Windows
    os.close(descriptor)


def end(processes: list[BaseProcess]) -> None:
    """Kill workers; they ignore what asks politely."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


class Loss(NamedTuple):
    """A sample that a worker did not survive."""

    worker: int
    number: int
    what: str  # happened


class Lost(Exception):
    """A batch will not come, because of these samples."""

    def __init__(self, losses: list[Loss]) -> None:
        super().__init__(losses)
        self.losses = losses


class Workers:
    """Processes that are asked for micro-batches in turn and give them in turn, each through a socket of its own.

    A worker that is killed while it writes leaves half a message, which in a queue that they share would be the end of
    all of them.

    Args:
        reader: what they work with.
        count: how many.
        stuck_after_s: longer than this on one sample is too long.
        pin: put batches into pinned memory.

    Attributes:
        stop: a function that kills them; is called when the object is dropped or Python ends.
    """

    def __init__(self, reader: Reader, count: int, stuck_after_s: float, pin: bool) -> None:
        self.reader, self.stuck_after_s, self.pin = reader, stuck_after_s, pin
        self.asked = self.answered = 0
        self.connections: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self.stop = Finalize(self, end, (self.processes,), exitpriority=10)  # before Python waits for its children
        shared = multiprocessing.RawArray("d", [IDLE, 0.0] * count)
        self.board = np.frombuffer(shared).reshape(count, 2)  # number of a sample, since when
        for place in range(count):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=work, args=(reader, theirs, shared, place), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen, and before the next worker inherits it
            self.connections.append(ours)
            self.processes.append(process)

    def ask(self, micro: Micro) -> None:
        """Give the next worker a micro-batch to make."""
        with contextlib.suppress(OSError):  # a dead one is found when its batch does not come
            self.connections[self.asked % len(self.processes)].send(micro)
        self.asked += 1

    def answer(self) -> Any:
        """The first batch asked for and not yet received.

        Raises Lost when it will not come, RuntimeError when its worker died on no sample, and what a worker raised.
        """
        place = self.answered % len(self.processes)
        connection, process = self.connections[place], self.processes[place]
        warn_at = time.monotonic() + self.stuck_after_s
        while not wait([connection, process.sentinel], LOOK_S):
            self._raise_if_lost(place)
            if time.monotonic() > warn_at:
                text = "data worker %d made no batch for %.0f s, with no single sample for as long"
                log.warning(text, place, self.stuck_after_s)
                warn_at = float("inf")
        try:
            descriptor = recv_handle(connection)  # what a dead worker sent before is still there
        except (EOFError, OSError):
            process.join()
            self._raise_if_lost(place)
            raise RuntimeError(
                f"data worker {place}, which was on no sample, {_ended(process)}; its own output says more, or, if "
                f"memory ran out, the system's log"
            ) from None
        self.answered += 1
        batch = unpack(descriptor, self.pin)
        if isinstance(batch, ExceptionWrapper):
            batch.reraise()
        return batch

    def _raise_if_lost(self, place: int) -> None:
        """Raise Lost if the batch of a worker will not come, then with the samples that any of them did not survive."""
        losses = []
        for worker, (number, since) in enumerate(self.board.tolist()):
            process = self.processes[worker]
            if number == IDLE:
                continue
            if not process.is_alive():
                losses.append(Loss(worker, int(number), _ended(process)))
            elif time.monotonic() - since > self.stuck_after_s:
                losses.append(Loss(worker, int(number), f"took more than {self.stuck_after_s:g} s"))
        if place in [loss.worker for loss in losses]:
            raise Lost(losses)


def _ended(process: BaseProcess) -> str:
    """How a process ended, in words."""
    code = process.exitcode or 0
    return f"ended its process {f'by {signal.Signals(-code).name}' if code < 0 else f'with exit code {code}'}"


class Loader(Iterable[dict[str, Any]]):
    """The micro-batches of an order, made by worker processes ahead of time, or by this one when they are wanted.

    Without workers a decoder that hangs or crashes hangs or ends the run, for it is the run's own process.

    Args:
        reader: makes a batch of a micro-batch.
        order: the micro-batches.
        num_workers: processes; 0 for this one.
        stuck_after_s: a worker that is longer on one sample is stuck.

    Attributes:
        waited_s: seconds between asking for a batch and getting it, over all batches so far.
    """

    def __init__(self, reader: Reader, order: Iterable[Micro], num_workers: int, stuck_after_s: float) -> None:
        self.reader, self.order = reader, order
        self.num_workers, self.stuck_after_s = num_workers, stuck_after_s
        self.waited_s = 0.0
        self.condemned: dict[int, str] = {}  # number -> reason, of samples that a worker did not survive

    def __len__(self) -> int:
        """Raises TypeError for an order without end, as Lightning expects it."""
        return len(self.order)  # type: ignore[arg-type]

    @override
    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self._from_workers() if self.num_workers else map(self.reader.__getitem__, self.order)
        asked_at = time.perf_counter()
        for batch in batches:
            self.waited_s += time.perf_counter() - asked_at
            yield batch
            asked_at = time.perf_counter()

    def _from_workers(self) -> Iterator[dict[str, Any]]:
        order, asked = iter(self.order), deque[Micro]()  # `asked` are those that did not come yet
        pin = torch.cuda.is_available()
        device = torch.accelerator.current_device_index() if pin else None
        workers = Workers(self.reader, self.num_workers, self.stuck_after_s, pin)

        def receive() -> Any:
            if pin:
                torch.accelerator.set_device_index(device)  # is told to each thread anew
            for micro in itertools.islice(order, AHEAD * self.num_workers - len(asked)):
                asked.append(micro)
                workers.ask(micro)
            if not asked:
                return None
            batch = workers.answer()
            asked.popleft()
            return batch

        with ThreadPoolExecutor(1, "receiver") as receiver:
            try:
                coming = receiver.submit(receive)
                while True:
                    try:
                        batch = coming.result()
                    except Lost as lost:
                        workers.stop()
                        self._condemn(lost.losses)
                        workers = Workers(self.reader, self.num_workers, self.stuck_after_s, pin)
                        for micro in asked:
                            workers.ask(micro)
                        coming = receiver.submit(receive)
                        continue
                    if batch is None:
                        return
                    coming = receiver.submit(receive)
                    yield batch
            finally:
                workers.stop()  # first, so that the thread does not wait for what they make

    def _condemn(self, losses: list[Loss]) -> None:
        """Count samples as broken from now on. Raises ValueError when they are too many."""
        for worker, number, what in losses:
            shard, key = self.reader.corpus.name(number)
            log.warning("data worker %d on %s in %s: decoding %s; it is replaced", worker, key, shard, what)
            self.reader.known[number] = self.condemned[number] = f"decoding {what}"
        if len(self.condemned) > self.reader.most_tries:
            raise too_many_broken(self.reader.corpus, len(self.condemned), shard, key, self.condemned[number])
