"""Plain audio files instead of shards: a folder of recordings of any format, rate and length, read in pieces.

Memory is bounded by the chunk, not by the recording: a file is decoded and resampled piece by piece, once for what must
be known of all of it (its length, statistics), and, if it is longer than a chunk, once more for its chunks.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import soundfile
import torch

import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before Lightning)
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override

from mmflow.data.decode import (
    AUDIO_EXTENSIONS,
    AUDIO_RATES,
    MAX_PEAK,
    SAMPLE_RATE,
    BadSample,
    resample,
    resampling_ratio,
)
from mmflow.data.loader import ignore_signals

log = logging.getLogger(__name__)

PIECE_S = 10.0  # decoded at once, of all channels together
CONTEXT = 8  # periods of a resampling ratio to either side of a piece; its filter reaches over less than 8 at any ratio


def stream(path: Path) -> Iterator[Tensor]:
    """One audio file as mono float32 pieces (S,) at 16 kHz; together they are what decoding it whole gives.

    Raises BadSample for what libsndfile cannot read, cut-off files, no samples, NaN and absurd peaks.
    """
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames <= 0:
                raise BadSample("no audio samples")
            if not AUDIO_RATES[0] <= file.samplerate <= AUDIO_RATES[1]:
                raise BadSample(f"sampled at {file.samplerate} Hz, which is not in {AUDIO_RATES[0]}..{AUDIO_RATES[1]}")
            yield from resample_pieces(_decoded(file), file.samplerate)
    except soundfile.SoundFileError as error:
        raise BadSample(f"not readable audio: {getattr(error, 'error_string', error)}") from error


def _decoded(file: soundfile.SoundFile) -> Iterator[Tensor]:
    """Mono pieces at the file's own rate."""
    size, got = round(PIECE_S * file.samplerate / file.channels), 0
    while len(samples := file.read(size, dtype="float32", always_2d=True)):  # (S, channels)
        got += len(samples)
        mono = torch.from_numpy(samples).mean(1)
        peak = mono.abs().max()  # NaN where there is one
        if not peak <= MAX_PEAK:
            raise BadSample(f"audio with a peak of {peak}, where full scale is 1")
        yield mono
    if got < file.frames:
        raise BadSample(f"cut off: {got} of {file.frames} samples")


def resample_pieces(pieces: Iterator[Tensor], rate: int) -> Iterator[Tensor]:
    """Pieces (S,) at `rate` Hz to pieces at 16 kHz that together are the whole, resampled."""
    if rate == SAMPLE_RATE:
        yield from pieces
        return
    ratio = resampling_ratio(rate)
    period, new = ratio.denominator, ratio.numerator
    held = torch.zeros(CONTEXT * period)  # silence stands before a recording, as it does when it is resampled whole
    for piece in pieces:
        held = torch.cat([held, piece])
        periods = len(held) // period - 2 * CONTEXT  # that have their context on both sides
        if periods > 0:
            yield resample(held[: (periods + 2 * CONTEXT) * period], rate)[CONTEXT * new : (CONTEXT + periods) * new]
            held = held[periods * period :]
    yield resample(held, rate)[CONTEXT * new :]


class Summary(Protocol):
    """Gathers what a model must know of a whole recording before it sees the first chunk."""

    def add(self, piece: Tensor) -> None:
        """The next samples (S,)."""

    def value(self) -> tuple[Tensor, ...]:
        """What was gathered."""


class Place(NamedTuple):
    """What a chunk is of its recording."""

    name: str  # of the recording
    frames: int  # of the whole recording
    seconds: float  # of the whole recording
    skip: int  # frames of the left margin
    keep: int  # frames after those that count
    last: bool  # whether it ends the recording


class Chunk(NamedTuple):
    """Part of a recording with its surroundings."""

    place: Place
    audio: Tensor  # (S,) with margins
    summary: tuple[Tensor, ...]  # of the whole recording


@dataclass
class Chunking:
    """How a recording is cut for a model that makes one frame of `window` samples every `hop`.

    A chunk is `chunk` frames with up to `margin` frames to either side, which give context and are dropped. Frame t of
    the whole recording covers samples [t hop, t hop + window), so chunks share samples but no kept frame, and all kept
    frames are exactly those of the whole. A recording of at most `chunk` frames is one chunk, untouched.

    Args:
        window: samples that one frame sees.
        hop: samples from frame to frame.
        chunk: frames to keep of each chunk.
        margin: frames of context on either side.
        summary: makes what gathers the summary of a recording.
    """

    window: int
    hop: int
    chunk: int
    margin: int
    summary: Callable[[], Summary]

    def __call__(self, name: str, source: Path | Tensor) -> Iterator[Chunk]:
        """The chunks of an audio file or of a waveform (S,) at 16 kHz. Raises BadSample before the first one."""
        total, summary = 0, self.summary()
        held: list[Tensor] = []  # all of a recording that is one chunk
        for piece in _pieces(source):
            total += len(piece)
            summary.add(piece)
            held = [*held, piece] if self.frames(total) <= self.chunk else []
        frames, seconds = self.frames(total), total / SAMPLE_RATE
        if frames < 1:
            raise BadSample(f"{seconds:.4f} s is too short; one frame needs {self.window / SAMPLE_RATE} s")
        pieces = iter(held) if held else _pieces(source)
        buffer, start = torch.empty(0), 0  # samples from `start` on
        for first in range(0, frames, self.chunk):
            stop = min(first + self.chunk, frames)
            before, behind = max(first - self.margin, 0), min(stop + self.margin, frames)
            end = total if behind == frames else (behind - 1) * self.hop + self.window
            while start + len(buffer) < end:
                buffer = torch.cat([buffer, next(pieces)])
            buffer, start = buffer[before * self.hop - start :], before * self.hop
            place = Place(name, frames, seconds, first - before, stop - first, stop == frames)
            yield Chunk(place, buffer[: end - start].clone(), summary.value())

    def frames(self, samples: int) -> int:
        """Frames of so many samples."""
        return max((samples - self.window) // self.hop + 1, 0)


def _pieces(source: Path | Tensor) -> Iterator[Tensor]:
    return iter([source]) if isinstance(source, Tensor) else stream(source)


def batches(
    sources: Sequence[tuple[str, Path | Tensor]], chunking: Chunking, batch_seconds: float
) -> Iterator[dict[str, Any]]:
    """The chunks of recordings (name, source), in order, in padded batches of up to `batch_seconds`.

    Each has `audio` (B, S), `lengths` (B,), `summary` (its tensors (B, ...)), `places`, and `__broken__` with name and
    reason of the recordings that were passed over since the batch before; one without `places` has nothing else.
    """
    held: list[Chunk] = []
    broken: list[tuple[str, str]] = []
    for name, source in sources:
        try:
            for chunk in chunking(name, source):
                longest = max(len(other.audio) for other in [*held, chunk])
                if held and longest * (len(held) + 1) > batch_seconds * SAMPLE_RATE:
                    yield _collate(held, broken)
                    held, broken = [], []
                held.append(chunk)
        except (BadSample, OSError) as error:
            broken.append((name, str(error)))
    if held or broken:
        yield _collate(held, broken)


def _collate(chunks: list[Chunk], broken: list[tuple[str, str]]) -> dict[str, Any]:
    batch: dict[str, Any] = {"places": [chunk.place for chunk in chunks], "__broken__": broken}
    if chunks:
        batch["audio"] = pad_sequence([chunk.audio for chunk in chunks], batch_first=True)
        batch["lengths"] = torch.tensor([len(chunk.audio) for chunk in chunks])
        batch["summary"] = tuple(torch.stack(parts) for parts in zip(*(chunk.summary for chunk in chunks), strict=True))
    return batch


class FileStream(IterableDataset):
    """The batches of recordings, of which each data worker reads its share."""

    def __init__(self, sources: Sequence[tuple[str, Path]], chunking: Chunking, batch_seconds: float) -> None:
        self.sources, self.chunking, self.batch_seconds = sources, chunking, batch_seconds

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return batches(self.sources[first::step], self.chunking, self.batch_seconds)


def as_it_is(batch: Any) -> Any:
    """For DataLoader, which otherwise walks through every list of a batch in search of arrays."""
    return batch


class AudioFiles(LightningDataModule):
    """`predict` over the audio files in a folder and the folders below it.

    The longest files come first, each rank and each data worker takes its share, and neighbours in a batch are about
    equally long. The model says how files are cut (`chunking`) and which of them need no prediction (`finished`).
    Broken and too short files are logged, kept in `broken` and passed over.

    Args:
        folder: with .flac, .wav, .ogg, .mp3, .opus and .aiff files; hidden ones and other files do not count.
        batch_seconds: padded seconds of audio per batch.
        num_workers: processes that decode, per rank; no influence on what is read.
    """

    def __init__(self, folder: str, batch_seconds: float = 100.0, num_workers: int = 1) -> None:
        super().__init__()
        self.folder, self.batch_seconds, self.num_workers = Path(folder), batch_seconds, num_workers
        self.chunking: Chunking | None = None
        self.finished: Callable[[str], bool] = lambda _: False
        self.names: dict[str, str] = {}  # path of a file relative to the folder -> name of its results, without ending
        self.broken: dict[str, str] = {}  # name -> reason, of what this rank read

    def setup(self, stage: str) -> None:  # noqa: ARG002
        self.names = find_audio(self.folder)

    def predict_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        if self.chunking is None:
            raise ValueError(
                f"{type(self.trainer.lightning_module).__name__} does not say how it wants audio files cut; predict "
                f"on them with a model of mmflow.systems.hubert.inference"
            )
        # as the first rank sees it, for another may already have published when a late one looks
        left = self.trainer.strategy.broadcast([name for name in self.names if not self.finished(name)])
        if len(left) < len(self.names):
            log.info("%d of %d files are done already", len(self.names) - len(left), len(self.names))
        mine = left[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(
            FileStream([(name, self.folder / name) for name in mine], self.chunking, self.batch_seconds),
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=2 if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
        )

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        for name, reason in batch.pop("__broken__", ()):
            self.broken[name] = reason
            log.warning("broken file %s: %s", name, reason)
        return batch


def find_audio(folder: Path) -> dict[str, str]:
    """Audio files below `folder`, the largest first: path relative to it -> name of its results without ending.

    That is the path without its ending, or with it where other files differ in the ending only. Raises ValueError where
    there is none."""
    if not folder.is_dir():
        raise ValueError(f"data.folder={folder} is not a folder; name one with audio files")
    endings = {f".{extension}" for extension in AUDIO_EXTENSIONS}
    sizes = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in endings and not hidden and path.is_file():
            sizes[str(name)] = path.stat().st_size
    if not sizes:
        raise ValueError(f"data.folder={folder} holds no audio file; known are {', '.join(sorted(endings))}")
    plain = {name: str(Path(name).with_suffix("")) for name in sorted(sizes, key=lambda name: (-sizes[name], name))}
    count = Counter(plain.values())
    return {name: stem if count[stem] == 1 else name for name, stem in plain.items()}
