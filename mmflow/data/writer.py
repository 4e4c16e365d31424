"""Samples out: plain WebDataset tars, published atomically."""

import contextlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from mmflow.atomic import atomic_file

MAX_KEY_BYTES = 80  # a name in a plain tar has at most 100 with its extension
META_KEY = "__mmflow__/meta"  # WebDataset readers skip members whose folder is named __*__
MAX_SAMPLES, MAX_BYTES = 256, 256 * 2**20  # of a shard where nothing else is said
READ_ONLY = 0o444


def check_key(key: str) -> None:
    """Raise ValueError for a key that a tar cannot hold or that a WebDataset reader would split, skip or misplace."""
    if not key or "." in key or "/" in key or key.startswith("__") or not key.isprintable():
        raise ValueError(f'key {key!r} must be printable, without ".", "/" and a leading "__"; rename it')
    if len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"key {key!r} has {len(key.encode())} bytes, a tar takes {MAX_KEY_BYTES}; shorten it")


def encode(value: Any) -> bytes:
    """The bytes of one member: bytes stay, text becomes UTF-8, dicts and lists JSON, arrays npy (without pickles)."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return buffer.getvalue()
    return json.dumps(value, ensure_ascii=False).encode()


class TarShard:
    """One tar that appears under its name when its block ends without an error or `close` succeeds, never otherwise.

    Args:
        path: where the tar goes.
        meta: numbers and strings about the whole shard, stored in a member that WebDataset readers skip.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.samples = 0
        self.bytes = 0
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO = self._stack.enter_context(atomic_file(path))
        self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115 (closed by __exit__)
        if meta is not None:
            self._add(f"{META_KEY}.json", encode(dict(meta)))

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add one sample: `__key__`, and one entry per extension as `encode` takes it."""
        members = {extension: encode(value) for extension, value in sample.items() if extension != "__key__"}
        for extension, data in sorted(members.items()):
            self._add(f"{sample['__key__']}.{extension}", data)
        self.samples += 1

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # dated 1970, so that the same samples give the same bytes
        member.size, member.mode = len(data), READ_ONLY
        self._tar.addfile(member, io.BytesIO(data))
        self.bytes += len(data)

    def __enter__(self) -> "TarShard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish the shard, or after an error remove what was written; an OSError then names the shard."""
        with self._stack:
            if error is None:
                self._tar.close()
            else:
                with contextlib.suppress(OSError):
                    self._tar.close()  # writes its last bytes, or fails as the writing did
                raise error

    def close(self) -> None:
        """Publish the shard."""
        self.__exit__(None, None, None)


class ShardWriter:
    """Write samples into `<folder>/<split>-000000.tar`, `-000001.tar`, ...

    Args:
        folder: where the shards go; made when absent.
        split: first part of the shard names: train, validation or test.
        max_samples: samples per shard.
        max_bytes: bytes per shard, exceeded by at most one sample.
    """

    def __init__(self, folder: Path, split: str, max_samples: int = MAX_SAMPLES, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.split = Path(folder), split
        there = sorted(self.folder.glob(f"{split}-*.tar"))
        if there:
            raise ValueError(f"{self.folder} already holds shards of split {split!r}, first {there[0]}; remove them")
        self.max_samples, self.max_bytes = max_samples, max_bytes
        self.keys: set[str] = set()
        self.shards: list[Path] = []
        self._shard: TarShard | None = None

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add one sample: `__key__` and one entry per field extension (bytes, str, dict, list or ndarray)."""
        if sample["__key__"] in self.keys:
            raise ValueError(f"key {sample['__key__']!r} occurs twice in split {self.split!r}; keys must be unique")
        check_key(sample["__key__"])
        if self._shard and (self._shard.samples >= self.max_samples or self._shard.bytes >= self.max_bytes):
            self._publish()
        if self._shard is None:
            self._shard = TarShard(self.folder / f"{self.split}-{len(self.shards):06d}.tar")
        self._shard.write(sample)
        self.keys.add(sample["__key__"])

    def _publish(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            shard.close()
            self.shards.append(shard.path)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._publish()
        elif self._shard is not None:
            self._shard.__exit__(kind, error, trace)
