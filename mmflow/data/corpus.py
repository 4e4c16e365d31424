"""One split of one or several data sets, with its sidecars joined: the samples that a DataModule reads."""

import hashlib
import itertools
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmflow.data.decode import AUDIO_EXTENSIONS, DECODERS, SAMPLE_RATE, BadSample, decode, kind_of, resampled_length
from mmflow.data.documents import EXTENSION, parse, references
from mmflow.data.index import NUMBERED, ShardIndex, open_shards
from mmflow.data.plan import Source
from mmflow.data.remote import shown
from mmflow.data.spec import DataSpec

LENGTHS = ("audio", "video")  # fields that tell how long a sample is, the first one that there is


class Corpus:
    """Random access to samples by number; numbers run over specs, shards and rows in order.

    Opening reads the headers of the indexes. Keys, places and lengths of the samples are read when asked for.

    Args:
        specs: the data sets.
        split: train, validation or test.
        fields: what `read` returns; each must be a field of every spec or a sidecar.
        sidecars: field -> folder with further tars, `<folder>/<spec name>/<shard name>`, that hold it as npy.
        partial: a field may be absent from a spec, and then from its samples, so long as every field is in some spec
            and every spec has some field.

    Attributes:
        names: of the shards, paths or URLs without what is secret in them.
    """

    def __init__(
        self,
        specs: Sequence[DataSpec],
        split: str,
        fields: Sequence[str],
        sidecars: Mapping[str, str] | None = None,
        partial: bool = False,
    ) -> None:
        self.split, self.fields, self.sidecars = split, list(fields), dict(sidecars or {})
        self.stored = [field for field in self.fields if field not in self.sidecars]  # in the shards themselves
        self.specs = list(specs)
        self._check_specs(partial)
        self.stored_of = {spec.name: [field for field in self.stored if field in spec.fields] for spec in specs}
        self.shards: list[ShardIndex] = []
        self.spec_of: list[DataSpec] = []  # per shard
        for spec in specs:
            opened = open_shards(spec.shards(split), spec.allow_pipe)
            self.shards += opened
            self.spec_of += [spec] * len(opened)
        self.names = _numbered([shown(shard.path) for shard in self.shards])
        self._starts = list(itertools.accumulate(map(len, self.shards), initial=0))
        self.starts = np.array(self._starts, dtype=np.int64)
        self.joined = {field: self._join(field, folder) for field, folder in self.sidecars.items()}
        self._check_shards()

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def num_samples(self) -> np.ndarray:
        """int64 (N,), samples of the field `audio` after resampling to 16 kHz; 0 without readable audio, and where a
        sample has several sounds (`*.flac`)."""
        pairs = zip(self.shards, self.spec_of, strict=True)
        return np.concatenate([np.zeros(0, np.int64), *itertools.starmap(_num_samples, pairs)])

    @cached_property
    def seconds(self) -> np.ndarray:
        """float64 (N,) of `audio`, else of `video`, as far as they are among the fields; 0 where there is none that can
        be read or there are several in a sample (`*.mp4`)."""
        if all(self._timed_by(spec) is None for spec in self.specs):
            return np.broadcast_to(0.0, len(self))  # takes no memory
        own = (_seconds(s, spec, self._timed_by(spec)) for s, spec in zip(self.shards, self.spec_of, strict=True))
        return np.concatenate([np.zeros(0), *own])

    @cached_property
    def timed(self) -> np.ndarray:
        """bool (N,): whether the spec of a sample has a field that tells how long it is."""
        timed = [self._timed_by(spec) is not None for spec in self.spec_of]
        return np.repeat(np.array(timed, dtype=bool), np.diff(self.starts))

    def _timed_by(self, spec: DataSpec) -> str | None:
        """The field that tells how long the samples of a spec are."""
        stored = self.stored_of[spec.name]
        return next((field for field in LENGTHS if field in stored and not _is_several(spec.fields[field])), None)

    def _check_specs(self, partial: bool) -> None:
        twice = [name for name, count in Counter(spec.name for spec in self.specs).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is the name of two specs; sidecars are kept by name, so rename one of them")
        everywhere = {field for spec in self.specs for field in spec.fields}
        for spec in self.specs:
            if partial and self.fields and not self.sidecars and not set(self.stored) & set(spec.fields):
                raise ValueError(
                    f"{spec.path} has none of the fields {self.stored}, only {sorted(spec.fields)}; leave the spec out"
                )
            for field in self.stored:
                if field not in (everywhere if partial else spec.fields):
                    raise ValueError(
                        f"{spec.path} has no field {field!r}, only {sorted(spec.fields)}; add it under `fields:`"
                    )
                if field not in spec.fields:
                    continue
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
            if (len(data), data.keys_digest) != (len(sidecar), sidecar.keys_digest):
                both = zip(data.keys, sidecar.keys, strict=False)
                first = next((f"{a!r} against {b!r}" for a, b in both if a != b), "one is longer")
                raise ValueError(
                    f"{sidecar.path} was made for other data: it has {len(sidecar)} keys, {shown(data.path)} has "
                    f"{len(data)}, first difference {first}; run the predict stage again"
                )
            if len(sidecar) and f"{field}.npy" not in sidecar.counts:
                raise ValueError(
                    f"{sidecar.path} has no {field}.npy, only {sorted(sidecar.counts)}; is {folder} the folder of "
                    f"another sidecar?"
                )
        return opened

    def _check_shards(self) -> None:
        for spec, shard, name in zip(self.spec_of, self.shards, self.names, strict=True):
            for field in self.stored_of[spec.name]:
                if len(shard) and not held(shard, spec.fields[field]):
                    raise ValueError(
                        f"{name} has no {field}: the spec {spec.name!r} looks for {spec.fields[field]}, "
                        f"the shard holds {sorted(shard.counts)}; correct `fields:` in {spec.path}"
                    )

    @cached_property
    def paths(self) -> dict[str, None]:
        """The names of its shards, in order."""
        return dict.fromkeys(self.names)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another: names of the shards, number of samples, hash of keys and lengths."""
        digest, names = hashlib.sha256(), []
        for spec, shard in zip(self.spec_of, self.shards, strict=True):
            timed_by = self._timed_by(spec)
            chosen = "" if timed_by is None else " ".join([timed_by, *spec.fields[timed_by], shard.lengths_digest])
            digest.update(f"{shard.keys_digest} {chosen}\n".encode())
            names.append(str(sidecar_path(Path(), spec, shard.path)))
        return {"shards": names, "samples": len(self), "hash": digest.hexdigest()}

    def place(self, number: int) -> tuple[int, int]:
        """(shard, row) of one sample."""
        shard = bisect_right(self._starts, number) - 1
        return shard, number - self._starts[shard]

    def name(self, number: int) -> tuple[str, str]:
        """(shard name, key) of one sample."""
        shard, row = self.place(number)
        return self.names[shard], self.shards[shard].key(row)

    def problems(self) -> dict[int, str]:
        """Number -> reason, for the samples that cannot be used as far as the headers tell."""
        found: dict[int, str] = {}
        for start, spec, shard in zip(self._starts, self.spec_of, self.shards, strict=False):
            for field in self.stored_of[spec.name]:
                wanted = spec.fields[field]
                extensions = held(shard, wanted)
                broken = [extension for extension in extensions if extension in shard.broken]
                if not broken and any(shard.counts[extension] == len(shard) for extension in extensions):
                    continue  # as in nearly every shard, and nothing more is read from its index
                chosen, problems = _chosen(shard, extensions), shard.problems
                for row in np.flatnonzero(chosen < 0).tolist():
                    found.setdefault(start + row, f"no {field}: none of {wanted}")
                for extension in broken:
                    place = extensions.index(extension)
                    for row, reason in problems[extension].items():
                        if _is_several(wanted) or chosen[row] == place:
                            found.setdefault(start + row, reason)
        return found

    def read(self, number: int) -> dict[str, Any]:
        """Decode the fields of one sample, with `__key__`, `__shard__` (its name), `__spec__` (the name of its spec)
        and `__seconds__` (field -> seconds of reading and decoding). Raises BadSample."""
        shard, row = self.place(number)
        index, spec = self.shards[shard], self.spec_of[shard]
        key, members = index.sample(row)
        seconds: dict[str, float] = {}
        sample: dict[str, Any] = {
            "__key__": key,
            "__shard__": self.names[shard],
            "__spec__": spec.name,
            "__seconds__": seconds,
        }
        for field in self.fields:
            started_at = time.perf_counter()
            if field in self.joined:
                sample[field] = decode(self.joined[field][shard].read(row, f"{field}.npy"), "npy")
            elif field in spec.fields:
                sample[field] = _read_field(index, members, field, spec.fields[field])
            else:
                continue
            seconds[field] = time.perf_counter() - started_at
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
    return _matching(shard.counts, extensions)


def _matching(present: Iterable[str], extensions: Sequence[str]) -> list[str]:
    named = [extension for extension in extensions if extension in present]
    if not _is_several(extensions):
        return named
    kinds = [extension[2:] for extension in extensions if extension.startswith("*.")]
    numbered = (match for extension in present if (match := NUMBERED.fullmatch(extension)) and match[2] in kinds)
    found = sorted((int(match[1]), kinds.index(match[2]), match[0]) for match in numbered)
    return named + [extension for _, _, extension in found]


def _read_field(
    index: ShardIndex, members: Mapping[str, tuple[int, int]], field: str, extensions: Sequence[str]
) -> Any:
    """The decoded value of one field, a list where it is all members of a kind."""
    present = _matching(members, extensions)
    if not present:
        raise BadSample(f"no {field}: none of {extensions}")
    if _is_several(extensions):
        return [_read(index, members, extension) for extension in present]
    return _read(index, members, present[0])


def _read(index: ShardIndex, members: Mapping[str, tuple[int, int]], extension: str) -> Any:
    """One decoded member; of a document its parts."""
    value = decode(index.read_at(extension, *members[extension]), extension)
    if extension != EXTENSION:
        return value
    named = [name for name in sorted(references(value)) if name in members]
    return parse(value, {name: decode(index.read_at(name, *members[name]), name) for name in named})


def _chosen(shard: ShardIndex, extensions: Sequence[str]) -> np.ndarray:
    """(N,) which of `extensions` holds a field of each sample: the first one it has, -1 for none."""
    chosen = np.full(len(shard), -1)
    for place, extension in reversed(list(enumerate(extensions))):
        if extension in shard.counts:
            chosen[shard.has(extension)] = place
    return chosen


def _num_samples(shard: ShardIndex, spec: DataSpec) -> np.ndarray:
    """int64 (N,), samples at 16 kHz of the field `audio` by its headers, 0 where it is absent or cannot be read."""
    extensions = [e for e in spec.fields.get("audio", []) if kind_of(e) in AUDIO_EXTENSIONS and e in shard.counts]
    found = np.zeros(len(shard), dtype=np.int64)
    for extension in reversed(extensions):  # the first one that a sample has is the last to be written
        frames, rates = shard.measured(extension).T.astype(np.int64)
        values = np.zeros(len(frames), dtype=np.int64)
        for rate in set(rates.tolist()) - {0}:
            values[rates == rate] = resampled_length(frames[rates == rate], rate)
        found[shard.has(extension)] = values
    return found


def _seconds(shard: ShardIndex, spec: DataSpec, field: str | None) -> np.ndarray:
    """float64 (N,), seconds of a field by its headers, 0 where it is absent or cannot be read."""
    if field == "audio":
        return _num_samples(shard, spec) / SAMPLE_RATE
    found = np.zeros(len(shard))
    extensions = [] if field is None else spec.fields[field]
    for extension in reversed([e for e in extensions if e in shard.seconds]):
        found[shard.has(extension)] = shard.measured(extension)[:, 1]
    return found


def _numbered(names: list[str]) -> list[str]:
    """The same names; those that are alike, because URLs differ in their query alone, with a number behind."""
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[place] = f"{name}#{seen[name]}"
    return names


def sidecar_path(folder: Path, spec: DataSpec, shard: str) -> Path:
    """Where the sidecar of a shard stands: `<folder>/<spec name>/`, then the shard's path below the spec's root."""
    path = Path(shard.split("?")[0])
    root = Path(spec.root).expanduser()
    name = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return folder / spec.name / (path.name if ".." in name.parts else name)
