"""Samples of an original data set on their way into shards."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmflow.data.writer import MAX_KEY_BYTES


@dataclass(frozen=True, slots=True)
class Item:
    """One sample: the files it is made of, as they are, and what is known about it.

    A list of them is made first, and sent in pieces to the processes that write the shards. What is costly, such as
    reading a file whole, belongs into `sample`.

    Attributes:
        key: unique in its split, without "." and "/".
        split: train, validation or test, as the original has it.
        group: what must not be in two splits that were one, such as a photo with several questions; often the key.
        files: extension -> file, whose bytes become that member; as text it takes a fifth of the memory of a Path.
        values: extension -> bytes, text, JSON or array, as `TarShard.write` takes it.
    """

    key: str
    split: str
    group: str
    files: Mapping[str, str | Path] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """About the bytes it takes in a shard: those of its files and texts, for the rest is small."""
        texts = sum(len(value) for value in self.values.values() if isinstance(value, bytes | str))
        return texts + sum(Path(path).stat().st_size for path in self.files.values())

    def sample(self) -> dict[str, Any]:
        """The sample as `TarShard.write` takes it; reads the files."""
        return {"__key__": self.key} | {e: Path(path).read_bytes() for e, path in self.files.items()} | self.values


def unique_keys(names: Sequence[str]) -> list[str]:
    """A readable unique key for each path; one that would be empty, equal to another or too long gets a hash."""
    keys = [re.sub(r"[^\w-]", "_", name.rpartition(".")[0].replace("/", "-")).lstrip("_") for name in names]
    times = Counter(keys)
    unique = []
    for name, key in zip(names, keys, strict=True):
        if not key or times[key] > 1 or len(key.encode()) > MAX_KEY_BYTES:
            end = key.encode()[-MAX_KEY_BYTES // 2 :].decode(errors="ignore")
            key = f"{end}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:10]}".lstrip("-")
        unique.append(key)
    return unique
