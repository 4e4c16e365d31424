"""`data make`: from an original data set to shards, all of them or none."""

import contextlib
import difflib
import errno
import importlib
import inspect
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from jsonargparse import ArgumentError, ArgumentParser

from mmflow.atomic import locked, sync_folder
from mmflow.data.remote import is_remote
from mmflow.data.spec import DataSpec
from mmflow.data.writer import ShardWriter

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)


class Source(Protocol):
    """What a converter is: its constructor arguments are its options.

    A source that needs no original data gives `root` the default None.
    """

    def samples(self, root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (split, sample) with the sample as `ShardWriter.write` takes it."""
        ...


def make(spec: DataSpec, root: Path | None, out: Path | None = None) -> dict[str, int]:
    """Write the shards of a data set with the converter that its spec names.

    The shards are written beside the target folder under another name, and moved there as a whole when all are
    written: an interrupted run leaves nothing that could be taken for a data set, and what it left is removed by the
    next one.

    Args:
        spec: the data set.
        root: folder of the original data, None for a source that makes its own.
        out: where the shards go, by default the root of the spec; absent or empty.

    Returns split -> samples written.
    Raises ValueError for a spec without a usable converter, an original that is not there, a target that holds
    anything or to which another process is writing; OSError naming the target when the disk is full.
    """
    source = build_source(spec)
    folder = _target(spec, out)
    _check_root(spec, source, root)
    lock = folder.with_name(f".{folder.name}.lock")
    with _only_writer(lock, folder):
        _check_free(folder)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed: nobody else is writing now
        try:
            counts = _write(spec, source, root, part)
            folder.parent.mkdir(parents=True, exist_ok=True)
            part.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise OSError(error.errno, "the disk is full; no shard was published", str(folder)) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    log.info("%s: %s", folder, ", ".join(f"{split} {count}" for split, count in counts.items()))
    return counts


def build_source(spec: DataSpec) -> Source:
    """The converter that `spec.make` describes. Raises ValueError naming what is wrong and what can be set."""
    if spec.make is None:
        raise ValueError(
            f"{spec.path} says nothing under make; add class_path: the import path of a class with a method "
            f"samples(root), for example mmflow.data.sources.audio_folder.AudioFolder"
        )
    kind = _source_class(spec.make["class_path"], f"{spec.path}: make.class_path")
    options = spec.make.get("init_args") or {}
    known = list(inspect.signature(kind).parameters)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? Known: {', '.join(known)}" if near else "it takes none"
            raise ValueError(f"{spec.path}: make.init_args: {kind.__name__} has no option {name!r}; {hint}")
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


def _source_class(class_path: str, where: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: {class_path!r} cannot be imported ({error}); correct the path") from error
    samples = getattr(kind, "samples", None)
    if not (inspect.isclass(kind) and callable(samples) and "root" in inspect.signature(samples).parameters):
        raise ValueError(f"{where}: {class_path!r} is not a class with a method samples(root), as a source must be")
    return kind


def _target(spec: DataSpec, out: Path | None) -> Path:
    if out is None and is_remote(spec.root):
        raise ValueError(f"{spec.path}: the root {spec.root!r} is a URL, which is not written to; give --out FOLDER")
    return Path(spec.root if out is None else out).expanduser().resolve()


def _check_root(spec: DataSpec, source: Source, root: Path | None) -> None:
    if root is None and inspect.signature(source.samples).parameters["root"].default is not None:
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


def _write(spec: DataSpec, source: Source, root: Path | None, part: Path) -> dict[str, int]:
    counts: Counter[str] = Counter()
    writers: dict[str, ShardWriter] = {}
    with contextlib.ExitStack() as stack:
        for split, sample in source.samples(root):  # type: ignore[arg-type]  # None only where that is the default
            if split not in spec.splits:
                raise ValueError(
                    f'{spec.path} has no split {split!r}, which its source makes; add {split}: "{split}-*.tar"'
                )
            if split not in writers:
                writers[split] = stack.enter_context(ShardWriter(part, split))
            writers[split].write(sample)
            counts[split] += 1
    if not counts:
        raise ValueError(f"{spec.path}: {type(source).__name__} found no sample in {root}; nothing was written")
    return dict(counts)


def ensure(spec: DataSpec) -> None:
    """Make the shards of a spec whose source needs no original data, unless they are there already."""
    if spec.make is None or is_remote(spec.root):
        return
    source, folder = build_source(spec), _target(spec, None)
    needs_original = inspect.signature(source.samples).parameters["root"].default is not None
    if needs_original or any(folder.glob("*.tar")):
        return
    log.info("making %s in %s", spec.name, folder)
    with locked(folder.with_name(f".{folder.name}.ensure")):  # whoever comes second waits and finds it made
        if not any(folder.glob("*.tar")):
            make(spec, None)
