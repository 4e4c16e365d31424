"""Shards of something like speech: voices, pauses and noise, so that FLAC has the work it has on speech."""

import io
from pathlib import Path

import numpy as np
import soundfile
import yaml

from mmflow.data.writer import ShardWriter, TarShard
from mmflow.systems.hubert.model import FRAME_RATE, SAMPLE_RATE, num_frames

UNITS = 100


def write_speech(folder: Path, utterances: int, seconds: float) -> Path:
    """Utterances of about `seconds`, all for training, with random units; returns the path of their spec."""
    draw = np.random.default_rng(0)
    meta = {"fingerprint": "0" * 16, "num_clusters": UNITS, "rate": FRAME_RATE, "features": "random"}
    lengths = {}
    with ShardWriter(folder / "speech", "train", max_samples=64) as writer:
        for number in range(utterances):
            audio, flac = hum(seconds * draw.uniform(0.8, 1.2), draw), io.BytesIO()
            soundfile.write(flac, audio, SAMPLE_RATE, format="FLAC")
            lengths[f"utterance{number:05d}"] = len(audio)
            writer.write({"__key__": f"utterance{number:05d}", "flac": flac.getvalue()})
    keys = list(lengths)
    for number, shard in enumerate(writer.shards):
        with TarShard(folder / "units" / "speech" / shard.name, meta) as sidecar:
            for key in keys[64 * number : 64 * (number + 1)]:
                units = draw.integers(UNITS, size=num_frames(lengths[key])).astype(np.uint16)
                sidecar.write({"__key__": key, "units.npy": units})
    spec = {"name": "speech", "licence": "none", "root": str(folder / "speech"), "fields": {"audio": ["flac"]}}
    path = folder / "speech.yaml"
    path.write_text(yaml.safe_dump(spec | {"splits": {"train": "train-*.tar"}}))
    return path


def hum(seconds: float, draw: np.random.Generator) -> np.ndarray:
    """(S,) float32: twenty overtones of a wandering pitch, louder and softer by the syllable, over faint noise."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time)) / SAMPLE_RATE
    voice = sum(np.sin(k * phase + draw.uniform(0, 6)) / k for k in range(1, 21))
    loud = np.clip(np.sin(2 * np.pi * 3 * time + draw.uniform(0, 6)), 0, 1)
    return (0.1 * loud * voice + draw.normal(0, 0.003, len(time))).astype(np.float32)
