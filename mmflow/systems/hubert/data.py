"""What HuBERT reads: whole utterances, crops with their units and masks, and transcribed utterances.

B batch, S waveform samples, T frames of 20 ms, L characters.
"""

import hashlib
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmflow.data.corpus import Corpus
from mmflow.data.datamodule import ShardData
from mmflow.data.decode import SAMPLE_RATE, BadSample, decode
from mmflow.data.loader import Collate, Loader, Prepare, Sample
from mmflow.data.plan import Ids
from mmflow.data.text import Characters
from mmflow.nn.masking import span_mask
from mmflow.systems.hubert.model import FRAME_RATE, HOP, RECEPTIVE_FIELD, normalize_utterance, num_frames

CHARACTERS = Characters()
NPY_HEADER = 128  # bytes before the numbers of a one-dimensional npy


def keep(sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: ARG001 (the signature of every Prepare)
    """A sample as it was read."""
    return sample


def pad_audio(samples: list[Sample]) -> dict[str, Any]:
    """Audio (B, S) zero padded behind each utterance, and lengths (B,) in samples."""
    lengths = torch.tensor([len(sample["audio"]) for sample in samples])
    audio = pad_sequence([sample["audio"] for sample in samples], batch_first=True)
    return {"audio": audio, "lengths": lengths, "audio_seconds": float(lengths.sum()) / SAMPLE_RATE}


def collate_utterances(samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:  # noqa: ARG001
    """Whole utterances; other fields stay lists."""
    fields = {name: [sample[name] for sample in samples] for name in samples[0] if name in ("text", "info")}
    return pad_audio(samples) | fields


def hash_order(ids: Ids, corpus: Corpus, seed: int) -> Ids:
    """`ids` in an order that depends on the seed and each sample's key only."""
    ranks = [hashlib.sha256(f"{seed} {corpus.name(int(number))[1]}".encode()).digest() for number in ids]
    return ids[np.array(sorted(range(len(ids)), key=ranks.__getitem__), dtype=np.int64)]


class Utterances(ShardData):
    """Whole utterances, padded: for clustering, relabelling and measuring.

    Args:
        fit_fraction: share of the training utterances that k-means is fitted on, chosen by a hash of their keys.
        with_info: read the `info` field too (phone times).
    """

    def __init__(
        self,
        *,
        fit_fraction: float = 1.0,
        with_info: bool = False,
        batch_seconds: float | None = 60.0,
        **shards: Any,
    ) -> None:
        super().__init__(batch_seconds=batch_seconds, **shards)
        if not 0 < fit_fraction <= 1:
            raise ValueError(f"fit_fraction={fit_fraction} must be above 0 and at most 1")
        self.fit_fraction = fit_fraction
        self.fields = ("audio", "info") if with_info else ("audio",)

    def transforms(self, training: bool) -> tuple[Prepare, Collate]:  # noqa: ARG002
        return keep, collate_utterances

    def pool_dataloader(self) -> Loader:
        """This rank's share of the utterances that k-means is fitted on, each once."""
        ids, corpus = self.usable["train"], self.corpus("train")
        chosen = hash_order(ids, corpus, self.seed)[: max(1, round(self.fit_fraction * len(ids)))]
        return self.once("train", np.sort(chosen))


def check_units(corpus: Corpus) -> dict[str, Any]:
    """The clustering that made the units of a split; raises ValueError for units that do not fit the audio.

    One clustering for all shards, units at 50 Hz, and exactly `num_frames` of them per utterance (none for one that was
    broken when the units were made) are checked without decoding anything; that they are below the number of clusters,
    on one utterance per shard, and on all others when they are read.
    """
    first = corpus.joined["units"][0]
    for shard in corpus.joined["units"]:
        for name in ("fingerprint", "num_clusters", "rate", "features"):
            if name not in shard.meta:
                raise ValueError(
                    f"{shard.path} does not tell the {name} of its units; they must be written by the predict stage of "
                    f"a clustering: run it again"
                )
            if shard.meta[name] != first.meta[name]:
                raise ValueError(
                    f"{shard.path}: its units have {name}={shard.meta[name]!r}, those of {first.path} "
                    f"{first.meta[name]!r}; all shards must come from one clustering: run the predict stage again"
                )
    if first.meta["rate"] != FRAME_RATE:
        raise ValueError(
            f"{first.path}: units at {first.meta['rate']} Hz, the model has {FRAME_RATE} frames a second; "
            f"run the predict stage again"
        )
    _check_counts(corpus)
    _check_dictionary(corpus, first.meta["num_clusters"])
    return dict(first.meta)


def unit_counts(corpus: Corpus) -> np.ndarray:
    """(N,) units of every utterance by the size of its npy."""
    sizes = [shard.sizes["units.npy"] if len(shard) else np.empty(0, np.int64) for shard in corpus.joined["units"]]
    return (np.concatenate(sizes) - NPY_HEADER) // 2  # uint16


def _check_counts(corpus: Corpus) -> None:
    counts, expected = unit_counts(corpus), np.maximum((corpus.num_samples - RECEPTIVE_FIELD) // HOP + 1, 0)
    wrong = np.flatnonzero((counts != expected) & (counts > 0))
    if len(wrong):
        shard, key = corpus.name(int(wrong[0]))
        units, frames = int(counts[wrong[0]]), int(expected[wrong[0]])
        raise ValueError(
            f"{len(wrong)} of {len(counts)} utterances have another number of units than frames; first {key} in "
            f"{shard}: {units} units for {frames} frames ({units / max(frames, 1):.2f} per frame). The units were made "
            f"from other audio or at another rate: run the predict stage again"
        )


def _check_dictionary(corpus: Corpus, num_clusters: int) -> None:
    for ids in corpus.by_shard(np.flatnonzero(unit_counts(corpus) > 0)):
        shard, row = corpus.place(int(ids[len(ids) // 2]))
        sidecar = corpus.joined["units"][shard]
        units = decode(sidecar.read(row, "units.npy"), "npy")
        if units.dtype != np.uint16 or units.max() >= num_clusters:
            raise ValueError(
                f"{sidecar.path}: {sidecar.key(row)} has {units.dtype} units up to {units.max()}, but its clustering "
                f"has {num_clusters} clusters; run the predict stage again"
            )


def prepare_crop(sample: Sample, rng: np.random.Generator, normalize: bool, num_clusters: int, train: bool) -> Sample:
    """Normalise the whole utterance if asked, and draw where a crop will start, in [0, 1)."""
    units, frames = sample["units"], num_frames(len(sample["audio"]))
    if len(units) != frames or frames == 0:
        raise BadSample(f"{len(units)} units for {frames} frames")
    if units.max() >= num_clusters:
        raise BadSample(f"unit {units.max()} is outside the dictionary of {num_clusters}")
    audio = normalize_utterance(sample["audio"]) if normalize else sample["audio"]
    start = rng.random() if train else 0.0
    return sample | {"audio": audio, "units": torch.from_numpy(units.astype(np.int64)), "start": start}


def collate_crops(
    samples: list[Sample], rng: np.random.Generator, max_frames: float, mask_prob: float, mask_span: int
) -> dict[str, Any]:
    """Crop all to the shortest, or to `max_frames`, at whole frames so that labels keep their windows; draw the masks.

    Returns audio (B, S), units (B, T) and mask (B, T); nothing is padded.
    """
    frames = int(min(max_frames, *(len(sample["units"]) for sample in samples)))
    size = (frames - 1) * HOP + RECEPTIVE_FIELD
    starts = [int(sample["start"] * (len(sample["units"]) - frames + 1)) for sample in samples]
    audio = torch.stack([sample["audio"][a * HOP :][:size] for sample, a in zip(samples, starts, strict=True)])
    units = torch.stack([sample["units"][a:][:frames] for sample, a in zip(samples, starts, strict=True)])
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    mask = span_mask(torch.full((len(samples),), frames), mask_prob, mask_span, generator=generator)
    lengths = torch.full((len(samples),), size)
    return {
        "audio": audio,
        "units": units,
        "mask": mask,
        "lengths": lengths,
        "audio_seconds": audio.numel() / SAMPLE_RATE,
    }


class SpeechUnits(ShardData):
    """Crops of speech with the units of their frames, for masked prediction. Needs the sidecar `units`.

    Args:
        normalize: bring each whole utterance to zero mean and unit variance (Large, X-Large).
        mask_prob: see `mmflow.nn.masking.span_mask`.
        mask_span: frames per masked span.
        max_seconds: longer samples are cropped to this.
    """

    fields = ("audio", "units")
    crops = True

    def __init__(
        self,
        *,
        normalize: bool = False,
        mask_prob: float = 0.8,
        mask_span: int = 10,
        min_seconds: float = 1.0,
        max_seconds: float = 15.6,
        **shards: Any,
    ) -> None:
        super().__init__(min_seconds=min_seconds, max_seconds=max_seconds, **shards)
        if "units" not in self.sidecars:
            raise ValueError("sidecars lacks `units`; name the folder that the predict stage of a clustering wrote")
        self.normalize, self.mask_prob, self.mask_span = normalize, mask_prob, mask_span
        self.clustering: dict[str, Any] = {}  # fingerprint, num_clusters, rate and features of the units

    def check(self, corpus: Corpus) -> None:
        clustering = check_units(corpus)
        if self.clustering and clustering["fingerprint"] != self.clustering["fingerprint"]:
            raise ValueError(
                f"the units of split {corpus.split!r} come from clustering {clustering['fingerprint']}, those of the "
                f"other splits from {self.clustering['fingerprint']}; one clustering must label all splits"
            )
        self.clustering = clustering

    def problems(self, corpus: Corpus) -> dict[int, str]:
        """As far as the headers tell, and the utterances that were broken when the units were made."""
        unlabelled = np.flatnonzero((unit_counts(corpus) == 0) & (corpus.seconds >= self.min_seconds)).tolist()
        return dict.fromkeys(unlabelled, "it has no units") | super().problems(corpus)

    def transforms(self, training: bool) -> tuple[Prepare, Collate]:
        prepare = partial(
            prepare_crop, normalize=self.normalize, num_clusters=self.clustering["num_clusters"], train=training
        )
        finite = np.isfinite(self.max_seconds)
        max_frames = num_frames(round(self.max_seconds * SAMPLE_RATE)) if finite else self.max_seconds
        collate = partial(collate_crops, max_frames=max_frames, mask_prob=self.mask_prob, mask_span=self.mask_span)
        return prepare, collate


def prepare_transcript(
    sample: Sample,
    rng: np.random.Generator,  # noqa: ARG001
    normalize: bool,
    train: bool = True,
) -> Sample:
    """Spell the transcript; raises BadSample for letters outside the vocabulary and, in training, for an empty one."""
    targets = CHARACTERS.encode(sample["text"])
    if train and len(targets) == 0:
        raise BadSample("the transcript is empty")
    audio = normalize_utterance(sample["audio"]) if normalize else sample["audio"]
    return sample | {"audio": audio, "targets": targets, "text": CHARACTERS.normalise(sample["text"])}


def collate_transcripts(
    samples: list[Sample], rng: np.random.Generator, mask_prob: float, mask_span: int, train: bool
) -> dict[str, Any]:
    """Whole utterances with targets (B, L) padded with 0 and target_lengths (B,); a time mask (B, T) in training."""
    batch = pad_audio(samples)
    targets: list[Tensor] = [sample["targets"] for sample in samples]
    batch["targets"] = pad_sequence(targets, batch_first=True)
    batch["target_lengths"] = torch.tensor([len(target) for target in targets])
    batch["text"] = [sample["text"] for sample in samples]
    if train and mask_prob > 0:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        batch["mask"] = span_mask(num_frames(batch["lengths"]), mask_prob, mask_span, generator=generator)
    return batch


class TranscribedSpeech(ShardData):
    """Whole utterances with their transcripts, for CTC.

    Args:
        labelled_minutes: use only so much of the training split, chosen by a hash of the keys.
        normalize: bring each whole utterance to zero mean and unit variance (Large, X-Large).
        mask_prob: time masking of the input in training; 0 for none.
        mask_span: frames per masked span.
    """

    fields = ("audio", "text")

    def __init__(
        self,
        *,
        labelled_minutes: float | None = None,
        normalize: bool = False,
        mask_prob: float = 0.75,
        mask_span: int = 10,
        **shards: Any,
    ) -> None:
        super().__init__(**shards)
        self.labelled_minutes, self.normalize = labelled_minutes, normalize
        self.mask_prob, self.mask_span = mask_prob, mask_span

    def find_usable(self, corpus: Corpus) -> Ids:
        ids = super().find_usable(corpus)
        if corpus.split != "train" or self.labelled_minutes is None:
            return ids
        order = hash_order(ids, corpus, self.seed)
        chosen = order[np.cumsum(corpus.seconds[order]) <= 60 * self.labelled_minutes]
        if len(chosen) == 0:
            raise ValueError(f"labelled_minutes={self.labelled_minutes} holds no utterance; raise it, or null for all")
        return np.sort(chosen)

    def transforms(self, training: bool) -> tuple[Prepare, Collate]:
        collate = partial(collate_transcripts, mask_prob=self.mask_prob, mask_span=self.mask_span, train=training)
        return partial(prepare_transcript, normalize=self.normalize, train=training), collate


class AnnotatedSpeech(ShardData):
    """Whole utterances with all that is known about them, the fields `info` and, where the spec has it, `text`.

    Args:
        held_out: Test on every so many-th training utterance of each speaker, by a hash of the keys, and train on the
            others; 0 for the test split. For probing who speaks, where no speaker is in two splits.
    """

    def __init__(self, *, held_out: int = 0, **shards: Any) -> None:
        super().__init__(**shards)
        if held_out < 0 or held_out == 1:
            raise ValueError(f"held_out={held_out} must be 2 (each second utterance) or more, or 0 for the test split")
        self.held_out = held_out
        self.fields = (
            ("audio", "info", "text") if all("text" in spec.fields for spec in self.specs) else ("audio", "info")
        )

    def transforms(self, training: bool) -> tuple[Prepare, Collate]:  # noqa: ARG002
        return keep, collate_utterances

    def corpus(self, split: str) -> Corpus:
        return super().corpus("train" if self.held_out and split == "test" else split)

    def find_usable(self, corpus: Corpus) -> Ids:
        ids = super().find_usable(corpus)
        if corpus.split != "train" or not self.held_out:
            return ids
        order, seen = hash_order(ids, corpus, self.seed), Counter[Any]()
        chosen = []
        for number, annotation in zip(order, self.annotations("train", order), strict=True):
            speaker = annotation.get("info", {}).get("speaker")
            seen[speaker] += 1
            if speaker is not None and seen[speaker] % self.held_out == 0:
                chosen.append(number)
        if not chosen:
            raise ValueError(
                f"no speaker has held_out={self.held_out} utterances in the training split, by `speaker` in `info`; "
                f"lower it, or 0 for the test split"
            )
        self.usable["test"] = np.sort(np.array(chosen))
        return np.setdiff1d(ids, self.usable["test"])

    def annotations(self, split: str, ids: Ids) -> list[dict[str, Any]]:
        """The samples `ids` of a split without their audio; an empty one for what cannot be read."""
        corpus, found = Corpus(self.specs, split, self.fields[1:]), []
        for number in ids.tolist():
            try:
                found.append(corpus.read(number))
            except BadSample:  # is counted when it is read with its audio
                found.append({})
        return found
