"""One split of one or several data sets, with its sidecars joined: the samples that a DataModule reads."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmflow.data.decode import SAMPLE_RATE, BadSample, decode
from mmflow.data.index import ShardIndex, open_shards
from mmflow.data.plan import Source
from mmflow.data.spec import DataSpec

log = logging.getLogger(__name__)


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
        self.specs = list(specs)
        self.shards: list[ShardIndex] = []
        self.spec_of: list[DataSpec] = []  # per shard
        for spec in specs:
            opened = open_shards(spec.shards(split))
            self.shards += opened
            self.spec_of += [spec] * len(opened)
        self.starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self.shards])]).astype(np.int64)
        self.joined = {field: self._join(field, folder) for field, folder in self.sidecars.items()}
        self._check_fields()
        frames = np.concatenate([shard.frames for shard in self.shards])
        rates = np.maximum(np.concatenate([shard.rates for shard in self.shards]), 1)
        self.num_samples = -(-frames * SAMPLE_RATE // rates)
        self.seconds = self.num_samples / SAMPLE_RATE

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _join(self, field: str, folder: str) -> list[ShardIndex]:
        """The sidecar shards of one field. Raises ValueError unless names and keys match those of the data."""
        paths = [Path(folder) / s.name / _basename(d.path) for s, d in zip(self.spec_of, self.shards, strict=True)]
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
        return opened

    def _check_fields(self) -> None:
        for field in self.fields:
            if field in self.joined:
                continue
            for spec in self.specs:
                if field not in spec.fields:
                    raise ValueError(
                        f"{spec.path} has no field {field!r}, only {sorted(spec.fields)}; add it under `fields:`"
                    )
            for spec, shard in zip(self.spec_of, self.shards, strict=True):
                if not any(extension in shard.offsets for extension in spec.fields[field]):
                    raise ValueError(
                        f"{shard.path} has no {field}: the spec {spec.name!r} looks for {spec.fields[field]}, "
                        f"the shard holds {sorted(shard.offsets)}; correct `fields:` in {spec.path}"
                    )

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
        return {
            int(start) + row: shard.problems[key]
            for start, shard in zip(self.starts[:-1], self.shards, strict=True)
            if shard.problems
            for row, key in enumerate(shard.keys)
            if key in shard.problems
        }

    def read(self, number: int) -> dict[str, Any]:
        """Decode the fields of one sample, with `__key__` and `__shard__`. Raises BadSample."""
        shard, row = self.place(number)
        index, spec = self.shards[shard], self.spec_of[shard]
        sample: dict[str, Any] = {"__key__": index.keys[row], "__shard__": index.path}
        for field in self.fields:
            if field in self.joined:
                sample[field] = decode(self.joined[field][shard].read(row, f"{field}.npy"), "npy")
                continue
            extension = index.extension(row, spec.fields[field])
            if extension is None:
                raise BadSample(f"no {field}: none of {spec.fields[field]}")
            sample[field] = decode(index.read(row, extension), extension)
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
        chosen = weights or [None] * len(parts)
        return [Source(shards, weight) for shards, weight in zip(parts.values(), chosen, strict=True)]


def _basename(shard: str) -> str:
    """The file name of a path or URL, without a query."""
    return shard.rsplit("/", 1)[-1].split("?")[0]
