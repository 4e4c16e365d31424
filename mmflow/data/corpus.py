"""One split of one or several data sets, with its sidecars joined: the samples that a DataModule reads."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmflow.data.decode import DECODERS, SAMPLE_RATE, BadSample, decode, kind_of, resampled_length
from mmflow.data.documents import EXTENSION, parse, references
from mmflow.data.index import ShardIndex, open_shards
from mmflow.data.plan import Source
from mmflow.data.spec import DataSpec

NUMBER = re.compile(r"\d{1,3}")  # what the * of `*.jpg` stands for


class Corpus:
    """Random access to samples by number; numbers run over specs, shards and rows in order.

    Args:
        specs: the data sets.
        split: train, validation or test.
        fields: what `read` returns; each must be a field of every spec or a sidecar.
        sidecars: field -> folder with further tars, `<folder>/<spec name>/<shard name>`, that hold it as npy.

    Attributes:
        num_samples: int64 (N,), audio samples after resampling to 16 kHz; 0 without readable audio.
        seconds: float64 (N,).
    """

    def __init__(
        self, specs: Sequence[DataSpec], split: str, fields: Sequence[str], sidecars: Mapping[str, str] | None = None
    ) -> None:
        self.split, self.fields, self.sidecars = split, list(fields), dict(sidecars or {})
        self.stored = [field for field in self.fields if field not in self.sidecars]  # in the shards themselves
        self.specs = list(specs)
        self._check_specs()
        self.shards: list[ShardIndex] = []
        self.spec_of: list[DataSpec] = []  # per shard
        for spec in specs:
            opened = open_shards(spec.shards(split), spec.allow_pipe)
            self.shards += opened
            self.spec_of += [spec] * len(opened)
        self.starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self.shards])]).astype(np.int64)
        self.joined = {field: self._join(field, folder) for field, folder in self.sidecars.items()}
        self._check_shards()
        self.num_samples = np.concatenate([np.zeros(0, np.int64), *map(_num_samples, self.shards, self.spec_of)])
        self.seconds = self.num_samples / SAMPLE_RATE

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _check_specs(self) -> None:
        twice = [name for name, count in Counter(spec.name for spec in self.specs).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is the name of two specs; sidecars are kept by name, so rename one of them")
        for spec in self.specs:
            for field in self.stored:
                if field not in spec.fields:
                    raise ValueError(
                        f"{spec.path} has no field {field!r}, only {sorted(spec.fields)}; add it under `fields:`"
                    )
                foreign = [extension for extension in spec.fields[field] if kind_of(extension) not in DECODERS]
                if foreign:
                    raise ValueError(
                        f"{spec.path}: field {field!r} names .{foreign[0]}, for which there is no decoder; "
                        f"there are: {', '.join(DECODERS)}"
                    )

    def _join(self, field: str, folder: str) -> list[ShardIndex]:
        """The sidecar shards of one field. Raises ValueError unless names and keys match those of the data."""
        paths = [sidecar_path(Path(folder), s, d.path) for s, d in zip(self.spec_of, self.shards, strict=True)]
        absent = [str(path) for path in paths if not path.exists()]
        if absent:
            raise ValueError(
                f"the sidecar {field!r} lacks {len(absent)} of {len(paths)} shards, first {absent[0]}; "
                f"run the predict stage that writes {folder} for split {self.split!r} of this spec"
            )
        opened = open_shards([str(path) for path in paths])
        for data, sidecar in zip(self.shards, opened, strict=True):
            if data.keys != sidecar.keys:
                both = zip(data.keys, sidecar.keys, strict=False)
                first = next((f"{a!r} against {b!r}" for a, b in both if a != b), "one is longer")
                raise ValueError(
                    f"{sidecar.path} was made for other data: it has {len(sidecar)} keys, {data.path} has {len(data)}, "
                    f"first difference {first}; run the predict stage again"
                )
            if len(sidecar) and f"{field}.npy" not in sidecar.offsets:
                raise ValueError(
                    f"{sidecar.path} has no {field}.npy, only {sorted(sidecar.offsets)}; is {folder} the folder of "
                    f"another sidecar?"
                )
        return opened

    def _check_shards(self) -> None:
        for field in self.stored:
            for spec, shard in zip(self.spec_of, self.shards, strict=True):
                if len(shard) and not held(shard, spec.fields[field]):
                    raise ValueError(
                        f"{shard.path} has no {field}: the spec {spec.name!r} looks for {spec.fields[field]}, "
                        f"the shard holds {sorted(shard.offsets)}; correct `fields:` in {spec.path}"
                    )

    @cached_property
    def paths(self) -> dict[str, None]:
        """Those of its shards, in order."""
        return dict.fromkeys(shard.path for shard in self.shards)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another: names of the shards, number of samples, hash of keys and lengths."""
        digest = hashlib.sha256(self.num_samples.astype("<i8").tobytes())
        for shard in self.shards:
            digest.update("\n".join(["", *shard.keys]).encode(errors="surrogateescape"))
        pairs = zip(self.spec_of, self.shards, strict=True)
        names = [str(sidecar_path(Path(), spec, shard.path)) for spec, shard in pairs]
        return {"shards": names, "samples": len(self), "hash": digest.hexdigest()}

    def place(self, number: int) -> tuple[int, int]:
        """(shard, row) of one sample."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])

    def name(self, number: int) -> tuple[str, str]:
        """(shard path, key) of one sample."""
        shard, row = self.place(number)
        return self.shards[shard].path, self.shards[shard].keys[row]

    def problems(self) -> dict[int, str]:
        """Number -> reason, for the samples that cannot be used as far as the headers tell."""
        found: dict[int, str] = {}
        for start, spec, shard in zip(self.starts[:-1].tolist(), self.spec_of, self.shards, strict=True):
            for field in self.stored:
                extensions = held(shard, spec.fields[field])
                chosen = _chosen(shard, extensions)
                for row in np.flatnonzero(chosen < 0).tolist():
                    found.setdefault(start + row, f"no {field}: none of {spec.fields[field]}")
                for place, extension in enumerate(extensions):
                    problems = shard.problems.get(extension, {})
                    read = shard.offsets[extension] >= 0 if _is_several(spec.fields[field]) else chosen == place
                    for row in np.flatnonzero(read).tolist() if problems else ():
                        if shard.keys[row] in problems:
                            found.setdefault(start + row, problems[shard.keys[row]])
        return found

    def read(self, number: int) -> dict[str, Any]:
        """Decode the fields of one sample, with `__key__` and `__shard__`. Raises BadSample."""
        shard, row = self.place(number)
        index, spec = self.shards[shard], self.spec_of[shard]
        sample: dict[str, Any] = {"__key__": index.keys[row], "__shard__": index.path}
        for field in self.fields:
            if field in self.joined:
                sample[field] = decode(self.joined[field][shard].read(row, f"{field}.npy"), "npy")
                continue
            present = [e for e in held(index, spec.fields[field]) if index.offsets[e][row] >= 0]
            if not present:
                raise BadSample(f"no {field}: none of {spec.fields[field]}")
            if _is_several(spec.fields[field]):
                sample[field] = [_read(index, row, extension) for extension in present]
            else:
                sample[field] = _read(index, row, present[0])
        return sample

    def by_shard(self, ids: np.ndarray) -> list[np.ndarray]:
        """`ids`, in ascending order, split by the shard they lie in; shards without any are left out."""
        cuts = np.split(ids, np.searchsorted(ids, self.starts[1:-1]))
        return [part for part in cuts if len(part)]

    def sources(self, ids: np.ndarray, weights: Sequence[float] | None) -> list[Source]:
        """What the plan mixes: the usable `ids`, one source per spec."""
        parts: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self.specs}
        for part in self.by_shard(ids):
            parts[self.spec_of[self.place(int(part[0]))[0]].name].append(part)
        empty = [name for name, shards in parts.items() if not shards]
        if empty:
            raise ValueError(f"split {self.split!r} of {empty[0]!r} has no usable sample; run `data check` on its spec")
        chosen: Sequence[float | None] = weights or [None] * len(parts)
        return [Source(shards, weight) for shards, weight in zip(parts.values(), chosen, strict=True)]


def _is_several(extensions: Sequence[str]) -> bool:
    """Whether a field with these extensions is all the members of a sample that have one of them."""
    return any(extension.startswith("*.") for extension in extensions)


def held(shard: ShardIndex, extensions: Sequence[str]) -> list[str]:
    """Those of `extensions` that a shard has, `*.jpg` as 0.jpg, 1.jpg, ...; several in the order of their numbers."""
    named = [extension for extension in extensions if extension in shard.offsets]
    if not _is_several(extensions):
        return named
    kinds = [extension[2:] for extension in extensions if extension.startswith("*.")]
    numbered = [extension.partition(".") for extension in shard.offsets]
    found = [
        (int(number), kinds.index(kind), f"{number}.{kind}")
        for number, _, kind in numbered
        if kind in kinds and NUMBER.fullmatch(number)
    ]
    return named + [extension for _, _, extension in sorted(found)]


def _read(index: ShardIndex, row: int, extension: str) -> Any:
    """One decoded member; of a document its parts."""
    value = decode(index.read(row, extension), extension)
    if extension != EXTENSION:
        return value
    named = [name for name in sorted(references(value)) if index.extension(row, [name])]
    return parse(value, {name: decode(index.read(row, name), name) for name in named})


def _chosen(shard: ShardIndex, extensions: Sequence[str]) -> np.ndarray:
    """(N,) which of `extensions` holds a field of each sample: the first one it has, -1 for none."""
    chosen = np.full(len(shard), -1)
    for place, extension in reversed(list(enumerate(extensions))):
        if extension in shard.offsets:
            chosen[shard.offsets[extension] >= 0] = place
    return chosen


def _num_samples(shard: ShardIndex, spec: DataSpec) -> np.ndarray:
    """int64 (N,), samples at 16 kHz of the field `audio` by its headers, 0 where it is absent or cannot be read."""
    extensions = spec.fields.get("audio", [])
    chosen, found = _chosen(shard, extensions), np.zeros(len(shard), dtype=np.int64)
    for place, extension in enumerate(extensions):
        if extension not in shard.frames:
            continue
        for rate in np.unique(shard.rates[extension]):
            rows = (chosen == place) & (shard.rates[extension] == rate) & (rate > 0)
            found[rows] = resampled_length(shard.frames[extension][rows], max(int(rate), 1))
    return found


def sidecar_path(folder: Path, spec: DataSpec, shard: str) -> Path:
    """Where the sidecar of a shard stands: `<folder>/<spec name>/`, then the shard's path below the spec's root."""
    path = Path(shard.split("?")[0])
    root = Path(spec.root).expanduser()
    name = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return folder / spec.name / (path.name if ".." in name.parts else name)
