"""`data make`: from an original data set to shards, all of them or none."""

import contextlib
import ctypes
import difflib
import errno
import hashlib
import importlib
import inspect
import itertools
import json
import logging
import os
import pickle
import shutil
import sys
import time
import typing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mmflow.atomic import locked, remove_parts, sync_folder, write_json
from mmflow.data.remote import is_remote
from mmflow.data.sources.items import Item
from mmflow.data.spec import DataSpec
from mmflow.data.workers import processors, worker_pool
from mmflow.data.writer import MAX_BYTES, MAX_SAMPLES, TarShard, check_key

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
JOURNAL = "journal.json"  # shard -> fingerprint, beside the shards until they are published
TINY_SAMPLES, TINY_BYTES = 10_000, 16 * 2**20  # fewer are written before processes would have started
LOOK_S, LOG_S = 0.2, 30.0  # how often progress is looked at, and logged where there is no terminal


class Source(Protocol):
    """What a converter is: its constructor arguments are its options.

    A source that needs no original data gives `root` the default None.
    """

    def items(self, root: Path) -> Iterable[Item]:
        """The samples, listed but not yet read: `Item.sample` is called in whichever process writes the shard."""
        ...


class Shard(NamedTuple):
    """A shard to be written."""

    name: str
    items: Sequence[Item]
    size: int  # bytes, about
    fingerprint: str  # of what its bytes depend on; what an interrupted run wrote is kept where this is the same


def make(
    spec: DataSpec, root: Path | None, out: Path | None = None, workers: int | None = None, progress: bool = True
) -> dict[str, int]:
    """Write the shards of a data set with the converter that its spec names.

    The samples are listed, sorted by key and cut into shards, which the workers then write; the bytes do not depend on
    how many there are. The shards are written into a hidden folder beside the target and appear there together when
    all are written. What an interrupted run has finished is kept and used by the next one, shard by shard, where the
    converter, its options and the original files are the same.

    Args:
        spec: the data set.
        root: folder of the original data, None for a source that makes its own.
        out: where the shards go, by default the root of the spec; absent or empty.
        workers: processes that write; by default as many as the processors this process may use, and none for a data
            set so small that this one is done sooner.
        progress: show a bar on a terminal, and log a line now and then elsewhere.

    Returns split -> samples written.
    Raises ValueError for a spec without a usable converter, an original that is not there, a target that holds
    anything or to which another process is writing; OSError naming the target when the disk is full, or when a worker
    was killed.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be 1 or more")
    source = build_source(spec)
    folder = _target(spec, out)
    _check_root(spec, source, root)
    lock = folder.with_name(f".{folder.name}.lock")
    with _only_writer(lock, folder):
        _check_free(folder)
        log.info("%s: listing the samples", spec.name)
        splits = _by_split(spec, source, root)
        shards = _cut(spec, source, splits)
        part = folder.with_name(f".{folder.name}.part")
        with _published(part, folder):
            _write(shards, part, workers, progress)
            write_json(_note(folder), spec.make)
    counts = {split: len(items) for split, items in splits.items()}
    log.info("%s: %s", folder, ", ".join(f"{split} {count}" for split, count in counts.items()))
    return counts


def build_source(spec: DataSpec) -> Source:
    """The converter that `spec.make` describes. Raises ValueError naming what is wrong and what can be set."""
    if spec.make is None:
        raise ValueError(
            f"{spec.path} says nothing under make; add class_path: the import path of a class with a method "
            f"items(root), for example mmflow.data.sources.audio_folder.AudioFolder"
        )
    kind = _source_class(spec.make["class_path"], f"{spec.path}: make.class_path")
    options = spec.make.get("init_args") or {}
    known = inspect.signature(kind).parameters
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? Known: {', '.join(known)}" if near else "it takes none"
            raise ValueError(f"{spec.path}: make.init_args: {kind.__name__} has no option {name!r}; {hint}")
        if options[name] is None and not may_be_none(known[name].annotation):  # which the parser lets through
            raise ValueError(f"{spec.path}: make.init_args: {name} is null; give it a value, or leave it out")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        options = parser.parse_object(options).as_dict()
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{spec.path}: make.init_args: {reason}; options of {kind.__name__}: {inspect.signature(kind)}"
        ) from error
    return kind(**options)


def may_be_none(annotation: Any) -> bool:
    """Whether an option of that type may be null."""
    return annotation in (inspect.Parameter.empty, Any) or type(None) in typing.get_args(annotation)


def _source_class(class_path: str, where: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: {class_path!r} cannot be imported ({error}); correct the path") from error
    items = getattr(kind, "items", None)
    if not (inspect.isclass(kind) and callable(items) and "root" in inspect.signature(items).parameters):
        raise ValueError(f"{where}: {class_path!r} is not a class with a method items(root), as a source must be")
    return kind


def _target(spec: DataSpec, out: Path | None) -> Path:
    if out is None and is_remote(spec.root):
        raise ValueError(f"{spec.path}: the root {spec.root!r} is a URL, which is not written to; give --out FOLDER")
    return Path(spec.root if out is None else out).expanduser().resolve()


def _check_root(spec: DataSpec, source: Source, root: Path | None) -> None:
    if root is None and inspect.signature(source.items).parameters["root"].default is not None:
        raise ValueError(
            f"{spec.path}: {type(source).__name__} converts an original data set; name its folder with --root FOLDER"
        )


@contextlib.contextmanager
def _only_writer(lock: Path, folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, wait=False))
        except BlockingIOError as error:
            raise ValueError(
                f"{folder} is being written by {error.strerror}; wait for it, or give another --out"
            ) from error
        yield


def _check_free(folder: Path) -> None:
    """Raise ValueError unless `folder` is absent or empty: only then can all shards appear at once."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give another --out")
    if os.path.ismount(folder):
        raise ValueError(f"{folder} is a mount point, which cannot be renamed to; give a folder inside it as --out")
    names = sorted(path.name for path in folder.iterdir())
    shards = [name for name in names if name.endswith(".tar")]
    if shards:
        raise ValueError(
            f"{folder} already holds shards ({len(shards)}, first {shards[0]}), which are not overwritten; "
            f"give another --out, or remove the folder first"
        )
    if names:
        raise ValueError(f"{folder} is not empty (it holds {names[0]}); give another --out")


def _by_split(spec: DataSpec, source: Source, root: Path | None) -> dict[str, list[Item]]:
    """The items of each split, sorted by key. Raises ValueError for keys and splits that cannot be used."""
    splits: dict[str, list[Item]] = defaultdict(list)
    for item in source.items(root):  # type: ignore[arg-type]  # None only where that is the default
        if item.split not in spec.splits:
            raise ValueError(
                f"{spec.path} has no split {item.split!r}, which its source makes; "
                f'add {item.split}: "{item.split}-*.tar"'
            )
        check_key(item.key)
        splits[item.split].append(item)
    if not splits:
        where = "" if root is None else f" in {root}"
        raise ValueError(f"{spec.path}: {type(source).__name__} found no sample{where}; nothing was written")
    for split, items in splits.items():
        items.sort(key=lambda item: item.key)
        for one, other in itertools.pairwise(items):
            if one.key == other.key:
                raise ValueError(f"key {one.key!r} occurs twice in split {split!r}; keys must be unique")
    return dict(splits)


def _cut(spec: DataSpec, source: Source, splits: dict[str, list[Item]]) -> list[Shard]:
    """The shards of all splits, cut by number of samples, and by bytes, which the last one of a shard may exceed."""
    assert spec.make is not None
    max_samples = spec.make.get("samples_per_shard", MAX_SAMPLES)
    options = repr((spec.make["class_path"], spec.make.get("init_args")))
    common = hashlib.sha256(options.encode() + Path(inspect.getfile(type(source))).read_bytes())
    shards = []
    for split, items in splits.items():
        start, size, digest, numbers = 0, 0, common.copy(), itertools.count()
        for end, item in enumerate(items, 1):
            size += item.size
            digest.update(pickle.dumps((item, [_state(path) for path in item.files.values()])))
            if end == len(items) or end - start >= max_samples or size >= MAX_BYTES:
                shards.append(Shard(f"{split}-{next(numbers):06d}.tar", items[start:end], size, digest.hexdigest()))
                start, size, digest = end, 0, common.copy()
    return shards


def _state(path: str | Path) -> tuple[int, int]:
    """What tells a file from another one, or from itself before it was changed."""
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _published(part: Path, folder: Path) -> Iterator[None]:
    """Rename `part` to `folder` after a block without an error; after one, keep `part` if there are shards in it."""
    try:
        yield
        (part / JOURNAL).unlink()
        part.rename(folder)
        sync_folder(folder.parent)
    except BaseException as error:
        finished = len(list(part.glob("[!.]*.tar")))
        if finished:
            log.warning("%d finished shards are kept in %s; the same command goes on from there", finished, part)
        else:
            shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(error.errno, "the disk is full; no shard was published", str(folder)) from error
        raise


def _write(shards: list[Shard], part: Path, workers: int | None, progress: bool) -> None:
    """Write the shards that are not in `part` already."""
    finished = _resume(shards, part)
    done = RawArray(ctypes.c_int64, len(shards))  # samples written of each; workers write into it too
    for number, shard in enumerate(shards):
        done[number] = len(shard.items) * (shard.name in finished)
    missing = {number: shard for number, shard in enumerate(shards) if shard.name not in finished}
    if workers is None:
        samples = sum(len(shard.items) for shard in missing.values())
        size = sum(shard.size for shard in missing.values())
        workers = 1 if samples < TINY_SAMPLES and size < TINY_BYTES else processors()
    with _Progress(shards, done, progress) as told:
        if min(workers, len(missing)) > 1:
            _write_in_parallel(missing, part, workers, done, told.look)
        else:
            for number, shard in missing.items():
                _write_shard(shard, part, number, done, told.look)


def _resume(shards: list[Shard], part: Path) -> set[str]:
    """Names of the shards in `part` that would become the same again; everything else in it is removed."""
    part.mkdir(parents=True, exist_ok=True)
    remove_parts(part)
    known = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((part / JOURNAL).read_bytes())
    same = {shard.name for shard in shards if known.get(shard.name) == shard.fingerprint}
    finished = {name for name in same if (part / name).is_file()}
    for path in part.iterdir():
        if path.name not in finished:
            path.unlink()
    write_json(part / JOURNAL, {shard.name: shard.fingerprint for shard in shards})
    if finished:
        log.info("%d of %d shards are there from an interrupted run, and kept", len(finished), len(shards))
    return finished


def _write_shard(shard: Shard, part: Path, number: int, done: Any, after_each: Callable[[], None]) -> None:
    with TarShard(part / shard.name) as tar:
        for item in shard.items:
            tar.write(item.sample())
            done[number] += 1
            after_each()


def _write_in_parallel(shards: dict[int, Shard], part: Path, workers: int, done: Any, look: Callable[[], None]) -> None:
    stop = RawValue(ctypes.c_bool, False)
    with worker_pool(min(workers, len(shards)), _share, done, stop) as pool:
        try:
            waiting = {pool.submit(_work, shard, part, number) for number, shard in shards.items()}
            while waiting:
                finished, waiting = wait(waiting, LOOK_S, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                look()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was killed, as happens when memory runs out; no shard was published; start again, "
                "with fewer --workers if it was that"
            ) from error
        finally:  # also after Ctrl-C: the workers give up the shard they are at
            stop.value = True
            pool.shutdown(cancel_futures=True)


_shared: tuple[Any, Any]  # in a worker: samples written of each shard, and whether to stop


def _share(done: Any, stop: Any) -> None:
    global _shared
    _shared = done, stop


def _work(shard: Shard, part: Path, number: int) -> None:
    done, stop = _shared

    def leave_if_asked() -> None:
        if stop.value:
            raise InterruptedError("another worker has failed, or the run was interrupted")

    _write_shard(shard, part, number, done, leave_if_asked)


class _Progress:
    """Samples, samples/s, shards and the time left: a bar on a terminal, elsewhere a line in the log now and then.

    Args:
        shards: all that are to be there in the end.
        done: samples of each that have been written.
        shown: whether anything is shown.
    """

    def __init__(self, shards: list[Shard], done: Any, shown: bool) -> None:
        self.sizes, self.done, self.shown = [len(shard.items) for shard in shards], done, shown
        self.kept, self.start = sum(done), time.monotonic()
        self.next = self.start + LOG_S
        self.bar: Progress | None = None
        if shown and sys.stderr.isatty():
            self.bar = Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
            self.task, self.next = self.bar.add_task("", total=sum(self.sizes)), self.start

    def __enter__(self) -> "_Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self._tell()
            self.bar.stop()

    def look(self) -> None:
        """Show how far it has come, if the last time was long enough ago."""
        if self.shown and time.monotonic() >= self.next:
            self._tell()
            self.next = time.monotonic() + (LOOK_S if self.bar else LOG_S)

    def _tell(self) -> None:
        samples, total = sum(self.done), sum(self.sizes)
        shards = sum(done == size for done, size in zip(self.done, self.sizes, strict=True))
        rate = (samples - self.kept) / max(time.monotonic() - self.start, 1e-9)
        left = timedelta(seconds=round((total - samples) / rate)) if rate else "?"
        said = f"{samples} of {total} samples, {rate:.0f}/s, {shards} of {len(self.sizes)} shards, {left} left"
        if self.bar:
            self.bar.update(self.task, completed=samples, description=said)
        else:
            log.info(said)


def _note(folder: Path) -> Path:
    """The file that tells how shards were made, beside their folder."""
    return folder.with_name(f".{folder.name}.made.json")


def ensure(spec: DataSpec) -> None:
    """Make the shards of a spec whose source needs no original data, unless they are there already.

    Raises ValueError when the shards that are there were made with other options than the spec has now.
    """
    if spec.make is None or is_remote(spec.root):
        return
    source, folder = build_source(spec), _target(spec, None)
    if any(folder.glob("*.tar")):
        made = json.loads(_note(folder).read_text()) if _note(folder).exists() else spec.make
        if made != json.loads(json.dumps(spec.make)):
            raise ValueError(
                f"{folder} was made with {made}, but {spec.path} now says {spec.make}; remove the folder to make it "
                f"anew, or give the spec another root"
            )
        return
    needs_original = inspect.signature(source.items).parameters["root"].default is not None
    if needs_original:
        return
    log.info("making %s in %s", spec.name, folder)
    with locked(folder.with_name(f".{folder.name}.ensure")):  # whoever comes second waits and finds it made
        if not any(folder.glob("*.tar")):
            make(spec, None)
