"""Small sets of shards, made on the spot, for the tests of everything that reads them."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import yaml

from mmflow.data.writer import TarShard

RATE = 16_000


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """(S,) int16, another waveform for each seed."""
    return np.random.default_rng(seed).integers(-8000, 8000, round(seconds * rate), dtype=np.int16)


def encoded(samples: np.ndarray, kind: str = "flac", rate: int = RATE, subtype: str | None = None) -> bytes:
    """An audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind.upper(), subtype=subtype)
    return file.getvalue()


def film(seconds: float, rate: int = 10) -> bytes:
    """A silent mp4 of 16 x 16 pixels that grows brighter from picture to picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 16
        for number in range(round(seconds * rate)):
            values = np.full((16, 16, 3), number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def cut_flac(seconds: float, seed: int = 0) -> bytes:
    """Its header promises everything, but decoding fails half way."""
    data = encoded(noise(seconds, seed))
    return data[: len(data) // 2]


def write_data_set(folder: Path, splits: dict[str, list[list[Any]]], name: str = "toy", **spec: Any) -> Path:
    """Write shards into `folder/name`; returns the path of their spec.

    Each split is a list of shards, each a list of samples. A sample is its seconds of noise, "cut" for audio that
    cannot be decoded, "junk" for no audio at all, or the dict to write. Keys name split, shard and place: `train-0-1`.
    """
    seed = 0
    for split, shards in splits.items():
        for number, samples in enumerate(shards):
            with TarShard(folder / name / f"{split}-{number:06d}.tar") as shard:
                for place, what in enumerate(samples):
                    seed += 1
                    shard.write({"__key__": f"{split}-{number}-{place}"} | _sample(what, seed))
    return write_spec(folder / name, folder, name, **spec)


def _sample(what: Any, seed: int) -> dict[str, Any]:
    if isinstance(what, dict):
        return what
    if what == "junk":
        return {"flac": b"no audio", "txt": "HELLO"}
    return {"flac": cut_flac(0.5, seed) if what == "cut" else encoded(noise(what, seed)), "txt": "HELLO"}


def write_spec(root: Path | str, folder: Path, name: str = "toy", **changes: Any) -> Path:
    """A data spec in `folder` for the shards below `root`."""
    content = {
        "name": name,
        "licence": "CC0",
        "root": str(root),
        "splits": {split: f"{split}-*.tar" for split in ("train", "validation", "test")},
        "fields": {"audio": ["flac", "wav"], "text": ["txt"], "info": ["json"]},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path
