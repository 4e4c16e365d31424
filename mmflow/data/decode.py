"""Bytes of one tar member to tensors, bounded and without ever running or unpickling anything."""

import functools
import io
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.data.errors import BadSample
from mmflow.data.pictures import Picture
from mmflow.torchaudio_cpu import torchaudio

SAMPLE_RATE = 16_000  # Hz, of every decoded waveform
MAX_MEMBER_BYTES = 512 * 2**20
MAX_AUDIO_SECONDS = 3600.0
MAX_AUDIO_VALUES = 3600 * 48_000 * 2  # samples x channels: an hour of stereo at 48 kHz, 1.4 GB while it is decoded
AUDIO_RATES = (1_000, 400_000)  # Hz, least and most
MAX_JSON_DEPTH = 100  # lists and objects in each other; pickle, which carries a sample to its reader, ends at some 300
MAX_PEAK = 1e6  # full scale is 1; what is far over it is no waveform, and its square would overflow


def resampling_ratio(rate: int) -> Fraction:
    """16 kHz over `rate` Hz, exact for usual rates; for odd ones within 3e-5 of it, to keep the filter small."""
    return Fraction(SAMPLE_RATE, rate).limit_denominator(1000)


def resampled_length(frames: Any, rate: int) -> Any:
    """Samples at 16 kHz that `frames` samples (an int or an array of int) at `rate` Hz become."""
    ratio = resampling_ratio(rate)
    return -(-frames * ratio.numerator // ratio.denominator)


@functools.lru_cache(maxsize=16)
def _resampler(rate: int) -> nn.Module:
    """Keeps the filter, which takes longer to compute than to apply."""
    ratio = resampling_ratio(rate)
    return torchaudio.transforms.Resample(ratio.denominator, ratio.numerator)


def resample(audio: Tensor, rate: int) -> Tensor:
    """(S,) at `rate` Hz to (resampled_length(S, rate),) at 16 kHz, by windowed sinc interpolation."""
    if rate == SAMPLE_RATE:
        return audio
    # torchaudio computes the length in float32 and may be one short of it; a period of silence behind gives the rest
    padded = F.pad(audio, (0, resampling_ratio(rate).denominator))
    return _resampler(rate)(padded)[: resampled_length(len(audio), rate)]


def audio_size(file: BinaryIO) -> tuple[int, int]:
    """Samples and Hz of an audio file as its header says. Raises BadSample for what `audio` would refuse by it."""
    try:
        with soundfile.SoundFile(file) as opened:
            _check_bounds(opened)
            return opened.frames, opened.samplerate
    except soundfile.SoundFileError as error:
        raise _unreadable(error) from error


def _unreadable(error: soundfile.SoundFileError) -> BadSample:
    # str(error) of libsndfile's own errors would name an object in memory
    return BadSample(f"not readable audio: {getattr(error, 'error_string', error)}")


def _check_bounds(file: soundfile.SoundFile) -> None:
    frames, rate, channels = file.frames, file.samplerate, file.channels
    if frames <= 0:
        raise BadSample("no audio samples")
    if not AUDIO_RATES[0] <= rate <= AUDIO_RATES[1]:
        raise BadSample(f"sampled at {rate} Hz, which is not in {AUDIO_RATES[0]}..{AUDIO_RATES[1]}")
    if frames > MAX_AUDIO_SECONDS * rate or frames * channels > MAX_AUDIO_VALUES:
        raise BadSample(
            f"{frames / rate:.0f} s of audio with {channels} channels at {rate} Hz, more than "
            f"{MAX_AUDIO_SECONDS:.0f} s or {MAX_AUDIO_VALUES} values in all"
        )


def audio(data: bytes) -> Tensor:
    """Decode one audio file to mono float32 (S,) at 16 kHz, nominally in [-1, 1]; channels are averaged.

    Raises BadSample for what libsndfile cannot read, cut-off files, no samples, NaN, absurd peaks and sizes.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_bounds(file)
            promised, rate = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)  # (frames, channels)
    except soundfile.SoundFileError as error:
        raise _unreadable(error) from error
    if len(samples) < promised:
        raise BadSample(f"cut off: {len(samples)} of {promised} samples")
    mono = samples[:, 0] if samples.shape[1] == 1 else _mean(samples)
    if not np.vdot(mono, mono) <= MAX_PEAK**2:  # never less than the peak, NaN where there is one, and fast
        peak = np.abs(mono).max()
        if not peak <= MAX_PEAK:
            raise BadSample(f"audio with a peak of {peak}, where full scale is 1")
    return resample(torch.from_numpy(mono), rate)


def _mean(samples: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the peak tells
        return samples.mean(axis=1)


def text(data: bytes) -> str:
    """UTF-8 text without a byte order mark and outer white space."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"text is not UTF-8: {error}") from error


def parsed_json(data: bytes) -> Any:
    """A JSON value, also with the NaN and Infinity that some programs write."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"not JSON: {error}") from error
    if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise BadSample(f"JSON with more than {MAX_JSON_DEPTH} lists and objects in each other")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether more than `depth` lists and dicts are in each other."""
    level = [value]
    for _ in range(depth):
        held = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (list, dict))]
        level = [part for parts in held for part in parts]
    return any(isinstance(part, (list, dict)) for part in level)


@functools.lru_cache(maxsize=4096)
def _array_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type. NumPy compiles each header, which takes longer than reading a short array."""
    file = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # damaged headers make NumPy's parser raise many kinds
        raise BadSample(f"not a plain npy array: {error}") from error
    if dtype.hasobject:
        raise BadSample("not a plain npy array: it holds Python objects, which are never unpickled")
    return shape, fortran_order, dtype


def array(data: bytes) -> np.ndarray:
    """A NumPy array without Python objects."""
    count = 2 if data[6:7] == b"\1" else 4  # bytes that tell the size of the header in versions 1 and 2
    size = 8 + count + int.from_bytes(data[8 : 8 + count], "little")
    shape, fortran_order, dtype = _array_header(data[:size])
    values = data[size:]
    try:
        if dtype.itemsize * math.prod(shape) != len(values):
            raise ValueError(f"{len(values)} bytes for shape {shape} of {dtype}")
        flat = np.frombuffer(bytearray(values), dtype)  # a bytearray, because tensors want memory that can be written
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except (ValueError, TypeError) as error:  # from NumPy for what is no shape, and for values without bytes
        raise BadSample(f"not a plain npy array: {error}") from error


def raw_bytes(data: bytes) -> np.ndarray:
    """The bytes themselves, uint8 (N,)."""
    return np.frombuffer(bytearray(data), np.uint8)  # a bytearray, because tensors want memory that can be written


def video(data: bytes) -> Any:
    """A `mmflow.data.video.Video`, of which nothing is decoded yet."""
    from mmflow.data.video import Video  # here, because FFmpeg's libraries are large and most runs see no video

    return Video(data)


AUDIO_EXTENSIONS = ("flac", "wav", "ogg", "mp3", "opus", "aiff")
PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mpg", "avi", "mov", "ts", "ogv")
DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(AUDIO_EXTENSIONS, audio),
    **dict.fromkeys(PICTURE_EXTENSIONS, Picture),
    **dict.fromkeys(VIDEO_EXTENSIONS, video),
    "txt": text,
    "json": parsed_json,
    "npy": array,
    "bin": raw_bytes,
}


@runtime_checkable
class Lazy(Protocol):
    """What is decoded when it is looked at: a picture, a video."""

    data: bytes

    def check(self) -> None:
        """Decode all of it. Raises BadSample for what is damaged anywhere."""
        ...


def kind_of(extension: str) -> str:
    """The part of an extension that says how it is decoded: "npy" of "units.npy"."""
    return extension.rpartition(".")[2]


def decode(data: bytes, extension: str) -> Any:
    """Decode one member by the last part of its extension. Only those in DECODERS are ever decoded."""
    return DECODERS[kind_of(extension)](data)
