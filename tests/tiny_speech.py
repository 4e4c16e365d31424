"""Something like speech, small enough to train on in a second."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mmflow.data.writer import ShardWriter


def write_tiny_speech(folder: Path) -> Path:
    """36 utterances for training, 11 and 12 for validation and test, six to a shard; returns the path of their spec."""
    for split, count in (("train", 36), ("validation", 11), ("test", 12)):
        with ShardWriter(folder / "shards", split, max_samples=6) as writer:
            for number in range(count):
                writer.write(hum(f"{split}{number:02d}"))
    spec = folder / "tiny_speech.yaml"
    spec.write_text(
        f"name: tiny_speech\nlicence: none\nroot: {folder / 'shards'}\n"
        'splits: {train: "train-*.tar", validation: "validation-*.tar", test: "test-*.tar"}\n'
        "fields: {audio: [flac], text: [txt], info: [json]}\n"
    )
    return spec


def hum(key: str) -> dict[str, Any]:
    """One utterance: a pitch of its own, and each phone of about 80 ms with the overtones that it lets through."""
    draw = np.random.default_rng(list(key.encode()))
    formants = {"A": (700, 1200), "E": (500, 2000), "I": (300, 2400), "O": (500, 900), "S": (3500, 6000)}
    pitch, pieces, phones, at = draw.uniform(90, 220), [], [], 0
    for name in draw.choice(list(formants), size=draw.integers(13, 24)):
        size = int(draw.uniform(0.06, 0.1) * 16_000)
        phones.append([at / 16_000, (at + size) / 16_000, str(name)])
        overtones = pitch * np.arange(1, 36)
        loud = sum(np.exp(-(((overtones - formant) / 200) ** 2)) for formant in formants[name])
        time = np.arange(at, at + size) / 16_000
        pieces.append((loud[:, None] * np.sin(2 * np.pi * overtones[:, None] * time)).sum(0))
        at += size
    audio = 0.1 * np.concatenate(pieces) + draw.normal(0, 0.01, at)
    flac = io.BytesIO()
    soundfile.write(flac, audio.clip(-1, 1), 16_000, format="FLAC")
    text = " ".join("".join(name for _, _, name in phones[i : i + 3]) for i in range(0, len(phones), 3))
    return {"__key__": key, "flac": flac.getvalue(), "txt": text, "json": {"speaker": key, "phones": phones}}
