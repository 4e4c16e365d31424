"""Bytes of one tar member to tensors, bounded and without ever running or unpickling anything."""

import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from mmflow.torchaudio_cpu import torchaudio

SAMPLE_RATE = 16_000  # Hz, of every decoded waveform
MAX_MEMBER_BYTES = 512 * 2**20
MAX_AUDIO_SECONDS = 3600.0


class BadSample(ValueError):
    """One sample cannot be used; the message says why. It costs the sample, never the run."""


def resampled_length(frames: int, rate: int) -> int:
    """Samples at 16 kHz that `frames` samples at `rate` Hz become."""
    return math.ceil(frames * SAMPLE_RATE / rate) if rate != SAMPLE_RATE else frames


def audio(data: bytes) -> Tensor:
    """Decode one audio file to mono float32 (S,) at 16 kHz, nominally in [-1, 1]; channels are averaged.

    Raises BadSample for what libsndfile cannot read, cut-off files, no samples, NaN, and more than an hour of audio.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised, rate = file.frames, file.samplerate
            if promised > MAX_AUDIO_SECONDS * rate:
                raise BadSample(f"{promised / rate:.0f} s of audio, more than {MAX_AUDIO_SECONDS:.0f} s")
            samples = file.read(dtype="float32", always_2d=True)  # (frames, channels)
    except soundfile.SoundFileError as error:
        raise BadSample(f"not readable audio: {error}") from error
    if len(samples) < promised:
        raise BadSample(f"cut off: {len(samples)} of {promised} samples")
    if len(samples) == 0:
        raise BadSample("no audio samples")
    if not np.isfinite(samples).all():
        raise BadSample("NaN or infinite audio samples")
    mono = torch.from_numpy(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1))
    if rate != SAMPLE_RATE:
        mono = torchaudio.functional.resample(mono, rate, SAMPLE_RATE)
    return mono


def text(data: bytes) -> str:
    """UTF-8 text without a byte order mark and outer white space."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"text is not UTF-8: {error}") from error


def parsed_json(data: bytes) -> Any:
    """A JSON value."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise BadSample(f"not JSON: {error}") from error


def array(data: bytes) -> np.ndarray:
    """A NumPy array without Python objects."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadSample(f"not a plain npy array: {error}") from error


AUDIO_EXTENSIONS = ("flac", "wav", "ogg", "mp3", "opus", "aiff")
DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(AUDIO_EXTENSIONS, audio),
    "txt": text,
    "json": parsed_json,
    "npy": array,
}


def decode(data: bytes, extension: str) -> Any:
    """Decode one member by the last part of its extension. Only listed extensions are ever decoded."""
    return DECODERS[extension.rpartition(".")[2]](data)
