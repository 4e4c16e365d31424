"""Units, features and transcripts of recordings of any length: called on a file, or as a `predict` stage on a folder.

    recognizer = Recognizer("runs/hubert/ctc")
    print(recognizer("recording.flac"))

A recording is cut into chunks of `chunk_seconds` whose `margin_seconds` of context on either side are computed and
dropped, so no seam shows in the number of frames or in the convolutions' output: what is normalised over time takes its
statistics from the whole recording. Only attention ends at the margins. A recording of one chunk gives exactly what
the model gives on it whole.

B batch, S waveform samples, T frames (50 Hz), D width, L layers, V characters.
"""

import contextlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from mmflow.atomic import atomic_file, write_json
from mmflow.data.audio_files import AudioFiles, Chunking, Place, batches
from mmflow.data.decode import BadSample
from mmflow.data.text import Characters
from mmflow.nn.kmeans import nearest
from mmflow.nn.published import weights_fingerprint
from mmflow.systems.hubert.kmeans import HubertLayer, KMeans
from mmflow.systems.hubert.model import (
    FRAME_RATE,
    HOP,
    KERNELS,
    RECEPTIVE_FIELD,
    STRIDES,
    Hubert,
    HubertOutput,
)
from mmflow.systems.hubert.weights import load_ctc, load_hubert
from mmflow.training.checkpoints import checkpoint_of

BATCH_S = 100.0  # padded seconds that are encoded together when a model is called


class Moments:
    """Mean and variance of the samples of a recording, and mean and covariance of those under the first convolution.

    Sums in float64: the covariance of a recording of hours is as good as that of a second."""

    def __init__(self) -> None:
        self.samples, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())
        self.windows, self.window_sum, self.products = 0, torch.zeros(KERNELS[0]), torch.zeros(KERNELS[0], KERNELS[0])
        self.tail = torch.empty(0, dtype=torch.float64)  # samples from the next window on

    def add(self, piece: Tensor) -> None:
        piece = piece.double()
        self.samples += len(piece)
        self.sum = self.sum + piece.sum()
        self.squares = self.squares + piece.square().sum()
        self.tail = torch.cat([self.tail, piece])
        if len(self.tail) < KERNELS[0]:
            return
        windows = self.tail.unfold(0, KERNELS[0], STRIDES[0])  # (W, 10)
        self.windows += len(windows)
        self.window_sum = self.window_sum + windows.sum(0)
        self.products = self.products + windows.T @ windows
        self.tail = self.tail[len(windows) * STRIDES[0] :]

    def value(self) -> tuple[Tensor, ...]:
        """Mean () and variance () of samples, mean (10,) and covariance (10, 10) of windows; float64."""
        mean, window_mean = self.sum / self.samples, self.window_sum / self.windows
        variance = (self.squares / self.samples - mean**2).clamp(min=0)
        return mean, variance, window_mean, self.products / self.windows - torch.outer(window_mean, window_mean)


def encode(hubert: Hubert, batch: dict[str, Any]) -> HubertOutput:
    """What `hubert` makes of chunks, with the statistics of the recordings that they were cut out of."""
    audio, (mean, variance, window_mean, covariance) = batch["audio"], batch["summary"]
    if hubert.normalize:
        scale = torch.rsqrt(variance + 1e-5)[:, None]
        audio = ((audio - mean[:, None]) * scale).float()
        window_mean, covariance = (window_mean - mean[:, None]) * scale, covariance * scale[..., None] ** 2
    return hubert(audio, batch["lengths"], normalized=True, moments=(window_mean, covariance))


class Inference(LightningModule):
    """Something made of every frame of a recording, from which `result` makes what the user wants.

    `predict` leaves the results in the stage's folder under the names of the recordings, each as soon as it is whole;
    the same command again goes on with those that have none or have changed since. `broken.json` names the recordings
    that could not be read. A subclass says what is computed (`frames`), returned (`result`) and written (`writer`).

    Args:
        chunk_seconds: that are encoded at once; what attention sees.
        margin_seconds: of context on either side of a chunk.
    """

    suffix: ClassVar[str]  # of the file whose presence tells that a recording is done

    def __init__(self, chunk_seconds: float, margin_seconds: float) -> None:
        super().__init__()
        chunk, margin = round(chunk_seconds * FRAME_RATE), round(margin_seconds * FRAME_RATE)
        if chunk < 1 or margin < 0:
            raise ValueError(
                f"chunk_seconds={chunk_seconds} must be at least one frame, {1 / FRAME_RATE} s, and "
                f"margin_seconds={margin_seconds} not negative; 20 and 2 suit most recordings"
            )
        self.chunking = Chunking(RECEPTIVE_FIELD, HOP, chunk, margin, Moments)
        self.writers: dict[str, Any] = {}  # name -> writer of a recording whose last chunk is still to come

    @abstractmethod
    def frames(self, batch: dict[str, Any]) -> Tensor:
        """(B, T, ...) of a batch of chunks."""

    @abstractmethod
    def result(self, frames: Tensor) -> Any:
        """What a user gets for the frames (T, ...) of one whole recording."""

    @abstractmethod
    def writer(self, place: Place) -> Any:
        """Takes the frames of one recording by `write` and publishes its result at `close`."""

    @torch.no_grad()
    def forward(self, source: str | Path | Tensor) -> Any:
        """The result for an audio file, or for a waveform (S,) at 16 kHz. Raises BadSample for an unusable one."""
        self.eval()
        name = "the waveform" if isinstance(source, Tensor) else str(source)
        if isinstance(source, Tensor) and source.ndim != 1:
            raise ValueError(f"the waveform has shape {tuple(source.shape)}; give mono samples (S,) at 16 kHz")
        source = source.cpu() if isinstance(source, Tensor) else Path(source)
        kept = []
        for batch in batches([(name, source)], self.chunking, BATCH_S):
            for _, reason in batch["__broken__"]:
                raise BadSample(f"{name}: {reason}")
            kept += [rows for _, rows in self._kept(self.transfer_batch_to_device(batch, self.device, 0))]
        return self.result(torch.cat(kept))

    def _kept(self, batch: dict[str, Any]) -> Iterator[tuple[Place, Tensor]]:
        """The frames of each chunk that count, on the CPU."""
        if batch["places"]:
            frames = self.frames(batch).cpu()
            for place, rows in zip(batch["places"], frames, strict=True):
                yield place, rows[place.skip : place.skip + place.keep]

    # -- predict -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:  # noqa: ARG002
        if not isinstance(self._data, AudioFiles):
            raise ValueError(
                f"{type(self).__name__} predicts on plain audio files; set data to mmflow.data.audio_files.AudioFiles"
            )
        self._data.chunking, self._data.finished = self.chunking, self._is_finished
        if self.trainer.is_global_zero:
            self._check_made()

    @property
    def _data(self) -> AudioFiles:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def _root(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def target(self, name: str, suffix: str) -> Path:
        """The file for a result of the recording `name`."""
        return self._root / f"{self._data.names[name]}{suffix}"

    def _is_finished(self, name: str) -> bool:
        target = self.target(name, self.suffix)
        return target.exists() and target.stat().st_mtime >= (self._data.folder / name).stat().st_mtime

    def _check_made(self) -> None:
        """Results of two models or settings never stand in one folder, even if both are called last.ckpt."""
        path = self._root / "made_by.json"
        made = {"model": type(self).__name__, "weights": weights_fingerprint(self.state_dict(), type(self).__name__)}
        if path.exists() and (there := json.loads(path.read_text())) != made:
            raise ValueError(
                f"{path.parent} holds results of {there}, this is {made}; choose another folder (--workdir DIR), or "
                f"make all of them again (--rerun {path.parent.name})"
            )
        write_json(path, made)

    @torch.no_grad()
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        for place, rows in self._kept(batch):
            if place.name not in self.writers:
                self.writers[place.name] = self.writer(place)
            self.writers[place.name].write(rows.numpy())
            if place.last:
                self.writers.pop(place.name).close()

    def teardown(self, stage: str) -> None:
        # here and not in on_predict_end, which Lightning does not call on a rank that had nothing to predict
        if stage != "predict":
            return
        everywhere: list[Any] = [self._data.broken]
        if self.trainer.world_size > 1:
            everywhere = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, self._data.broken)
        if self.trainer.is_global_zero:
            broken = {name: reason for part in everywhere for name, reason in part.items()}
            write_json(self._root / "broken.json", dict(sorted(broken.items())))
            self.conclude(sorted(self._data.names.keys() - broken.keys()))

    def conclude(self, names: list[str]) -> None:
        """Called on the first rank when all recordings are done, with the names of those that were not broken."""


class ArrayWriter:
    """An npy file that grows frame by frame and appears when it is whole."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(atomic_file(path))
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())

    def close(self) -> None:
        self._stack.close()


class FeatureExtractor(Inference):
    """Hidden layers of a HuBERT: a Tensor (T, D), or (T, L, D) for several layers; `predict` leaves `x.features.npy`.

    Args:
        checkpoint: of a training of ours, the folder of its stage, or published weights, as `load_hubert` reads them.
        layer: 0 is what the first block receives, k what block k returns (before any closing norm); or several.
        dtype: of the numbers.
        chunk_seconds: that are encoded at once; what attention sees.
        margin_seconds: of context on either side of a chunk.
    """

    suffix = ".features.npy"

    def __init__(
        self,
        checkpoint: str,
        layer: int | list[int] = 9,
        dtype: Literal["float32", "float16"] = "float32",
        chunk_seconds: float = 20.0,
        margin_seconds: float = 2.0,
    ) -> None:
        super().__init__(chunk_seconds, margin_seconds)
        self.hubert, self.layer, self.numbers = load_hubert(checkpoint_of(checkpoint)), layer, dtype
        layers, depth = [layer] if isinstance(layer, int) else layer, len(self.hubert.blocks)
        if not layers or min(layers) < 0 or max(layers) > depth:
            raise ValueError(f"layer={layer} is not in 0..{depth}, the layers of {checkpoint}; try {depth // 2}")
        del self.hubert.blocks[max(layers) :]  # nobody looks at them

    def frames(self, batch: dict[str, Any]) -> Tensor:
        hidden = encode(self.hubert, batch).layers
        if isinstance(self.layer, int):
            chosen = hidden[str(self.layer)]  # (B, T, D)
        else:
            chosen = torch.stack([hidden[str(k)] for k in self.layer], 2)  # (B, T, L, D)
        return chosen.to(getattr(torch, self.numbers))

    def result(self, frames: Tensor) -> Tensor:
        return frames

    def writer(self, place: Place) -> ArrayWriter:
        layers = [] if isinstance(self.layer, int) else [len(self.layer)]
        path = self.target(place.name, self.suffix)
        return ArrayWriter(path, (place.frames, *layers, self.hubert.dim), self.numbers)


class UnitExtractor(Inference):
    """The k-means unit of every frame: an int64 Tensor (T,); `predict` leaves uint16 arrays `x.units.npy`.

    Args:
        checkpoint: of a KMeans training, or the folder of its stage. What it clusters is built as its config says.
        chunk_seconds: that are encoded at once; what attention sees.
        margin_seconds: of context on either side of a chunk.
    """

    suffix = ".units.npy"

    def __init__(self, checkpoint: str, chunk_seconds: float = 20.0, margin_seconds: float = 2.0) -> None:
        super().__init__(chunk_seconds, margin_seconds)
        kmeans = KMeans.load_from_checkpoint(checkpoint_of(checkpoint), map_location="cpu", weights_only=True)
        self.features = kmeans.features
        self.centroids: Tensor
        self.register_buffer("centroids", kmeans.centroids.detach())

    def frames(self, batch: dict[str, Any]) -> Tensor:
        if isinstance(self.features, HubertLayer):
            hidden = encode(self.features.hubert, batch).layers[str(self.features.layer)]  # (B, T, D)
        else:
            hidden, _ = self.features(batch["audio"], batch["lengths"])
        units, _ = nearest(hidden.flatten(0, 1).float(), self.centroids)
        return units.view(hidden.shape[:2])

    def result(self, frames: Tensor) -> Tensor:
        return frames

    def writer(self, place: Place) -> ArrayWriter:
        return ArrayWriter(self.target(place.name, self.suffix), (place.frames,), "uint16")


class Word(NamedTuple):
    """A word and when it was said."""

    text: str
    start: float  # s
    end: float  # s


class Transcript(NamedTuple):
    """What was said in a recording; prints as its text."""

    text: str
    words: list[Word]  # from the best path; empty when a decoder chose the text

    def __str__(self) -> str:
        return self.text


class Recognizer(Inference):
    """Speech to text by CTC: a Transcript; `predict` leaves `x.txt`, `x.words.json` and one `transcripts.jsonl`.

    Args:
        checkpoint: of a HubertCTC training, the folder of its stage, or published weights, as `load_ctc` reads them.
        decoder: log probabilities (T, V) of a recording -> text; by default the best path, which also times the words.
        chunk_seconds: that are encoded at once; what attention sees.
        margin_seconds: of context on either side of a chunk.
    """

    suffix = ".words.json"

    def __init__(
        self,
        checkpoint: str,
        decoder: Callable[[Tensor], str] | None = None,
        chunk_seconds: float = 20.0,
        margin_seconds: float = 2.0,
    ) -> None:
        super().__init__(chunk_seconds, margin_seconds)
        self.hubert, self.head, _ = load_ctc(checkpoint_of(checkpoint))
        self.characters, self.decoder = Characters(), decoder

    def frames(self, batch: dict[str, Any]) -> Tensor:
        return self.head(encode(self.hubert, batch).last).float().log_softmax(-1)  # (B, T, V)

    def result(self, frames: Tensor) -> Transcript:
        if self.decoder is not None:
            return Transcript(self.decoder(frames), [])
        best = frames.argmax(-1)
        return Transcript(self.characters.collapse(best), self._words(best))

    def _words(self, best: Tensor) -> list[Word]:
        """The words of a CTC path (T,), each from its first letter's first frame to its last letter's last one."""
        words: list[Word] = []
        joined, frame = False, 0  # whether the next letter belongs to the last word
        numbers, counts = torch.unique_consecutive(best, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            start, frame = frame, frame + count
            token = self.characters.tokens[number]
            if token == "|":
                joined = False
            elif number > self.characters.numbers["|"]:
                end = frame / FRAME_RATE
                if joined:
                    words[-1] = words[-1]._replace(text=words[-1].text + token, end=end)
                else:
                    words.append(Word(token, start / FRAME_RATE, end))
                joined = True
        return words

    def writer(self, place: Place) -> "TranscriptWriter":
        return TranscriptWriter(self, place)

    def conclude(self, names: list[str]) -> None:
        with atomic_file(self._root / "transcripts.jsonl") as file:
            for name in names:
                record = json.loads(self.target(name, self.suffix).read_text())
                file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


class TranscriptWriter:
    """Gathers the log probabilities of a recording, 23 MB per hour, and decodes them at its end."""

    def __init__(self, recognizer: Recognizer, place: Place) -> None:
        self.recognizer, self.place = recognizer, place
        self.rows: list[np.ndarray] = []

    def write(self, rows: np.ndarray) -> None:
        self.rows.append(rows.copy())  # not a view, which would keep the whole batch

    def close(self) -> None:
        name, transcript = self.place.name, self.recognizer.result(torch.from_numpy(np.concatenate(self.rows)))
        with atomic_file(self.recognizer.target(name, ".txt")) as file:
            file.write(f"{transcript}\n".encode())
        words = [word._asdict() for word in transcript.words]
        record = {"path": name, "seconds": round(self.place.seconds, 3), "text": transcript.text, "words": words}
        write_json(self.recognizer.target(name, self.recognizer.suffix), record)
