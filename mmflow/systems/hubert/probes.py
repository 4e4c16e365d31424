"""What can be read off frozen representations by a linear map: phones, speakers and words, layer by layer.

A softmax classifier on each layer of each checkpoint, on a learnt mixture of each checkpoint's layers, and, for
comparison, on MFCCs and on every layer of an untrained network of the same shape. Where units and representations are
good for phones, PNMI (`mmflow.systems.hubert.quality`) and the accuracy for phones peak at similar layers; that for
speakers peaks earlier.

B batch, S waveform samples, T frames, N items, D width, C classes, L layers.
"""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from mmflow.atomic import atomic_file, write_json
from mmflow.evaluation.clustering import UNKNOWN, phone_frames
from mmflow.evaluation.pictures import COLOURS, DPI, SOFT, STYLE
from mmflow.systems.hubert.data import hash_order
from mmflow.systems.hubert.features import MFCC
from mmflow.systems.hubert.model import Hubert
from mmflow.systems.hubert.weights import hubert_arguments, load_hubert
from mmflow.training.objective import StepMean
from mmflow.training.schedules import linear_warmup_decay

log = logging.getLogger(__name__)

Target = Literal["phone", "speaker", "keyword"]
Segment = Sequence[Any]  # [start_s, end_s, name]

WHITENING_UTTERANCES = 1000  # from which means and covariances are taken
FRAME_STEP = 2  # of the frames of an utterance every so many-th is trained on, for its neighbours tell little new
UNTRAINED, MFCCS, MIXTURE = "untrained", "mfcc", "mix"


def segments(target: Target, annotation: Mapping[str, Any]) -> list[Segment]:
    """What one utterance has to tell, as [start_s, end_s, name]; nothing where the annotation does not say it.

    Phones and words are those of `info`. An utterance without word times whose `text` is one word is that word, as in
    a data set of isolated words."""
    info, text = annotation.get("info", {}), annotation.get("text", "")
    if target == "speaker":
        return [(0.0, math.inf, str(info["speaker"]))] if "speaker" in info else []
    if target == "phone" or "words" in info:
        return info.get("phones" if target == "phone" else "words", [])
    return [(0.0, math.inf, text.upper())] if len(text.split()) == 1 else []


def spans(target: Target, annotation: Mapping[str, Any], frames: int, classes: Sequence[str]) -> list[list[int]]:
    """[first, end, class] of each item of an utterance of so many frames.

    For phones an item is a frame under a phone, else it is all frames of a segment. What has no class is left out, and
    so are words without a frame."""
    index = {name: number for number, name in enumerate(classes)}
    known = [segment for segment in segments(target, annotation) if segment[2] in index]
    if target == "phone":
        labels = phone_frames(known, frames, classes).tolist()
        return [[t, t + 1, label] for t, label in enumerate(labels) if label != UNKNOWN]
    items = []
    for segment in known:
        inside = (phone_frames([segment], frames, classes) != UNKNOWN).nonzero()[:, 0].tolist()
        if inside:
            items.append([inside[0], inside[-1] + 1, index[segment[2]]])
    return items


def span_means(x: Tensor, rows: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Means of the frames [first, end) of rows of x (B, T, D) -> (N, D) float32; rows, first and end are (N,)."""
    sums = F.pad(x.double().cumsum(1), (0, 0, 1, 0))  # (B, T + 1, D)
    return ((sums[rows, end] - sums[rows, first]) / (end - first)[:, None]).float()


class Items(NamedTuple):
    """What is classified."""

    features: dict[str, Tensor]  # source -> (N, D)
    labels: Tensor  # (N,) int64


class Whiten(nn.Module):
    """What makes features uncorrelated with unit variance: (x - mean) @ matrix, for x (..., D).

    The matrix is symmetric, so that the axes stay nearest to what they were. A softmax classifier has the same optimum
    on any invertible map of its features, but from these it is found in few hundred steps."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    def fit(self, moments: Tensor) -> None:
        """moments (D + 1, D + 1): the sum over items of the outer product of [1, x] with itself, float64.

        Directions with less than D / N of the mean variance are left smaller: of N items they tell nothing certain."""
        count, total = moments[0, 0], moments[0, 1:]
        mean = total / count
        variances, axes = torch.linalg.eigh(moments[1:, 1:] / count - mean.outer(mean))
        floor = (len(mean) / count * variances.mean()).clamp(min=1e-12)
        self.mean.copy_(mean)
        self.matrix.copy_(axes * (variances.clamp(min=0) + floor).rsqrt() @ axes.T)


class LinearProbe(StepMean):
    """`fit` trains the classifiers of all sources together, `test` measures them.

    The encoders are frozen and no part of this module's state. They see an utterance once, in a first pass that also
    whitens what each source gives; then the steps are cheap. The classes are those of the training split, by frequency,
    and are kept in the checkpoint. Where there are not two of them, as of phones in data without their times, both
    stages say so and end. Classifiers start at zero: only the untrained network is random.

    `test` leaves `probes.json`, a row per source with its accuracy, and the picture `probes.png`. It logs the accuracy
    of MFCCs, of the majority class, and of the best layer of each checkpoint and of the untrained network.

    Args:
        checkpoints: name -> checkpoint or folder of a HuBERT, see `load_hubert`; the untrained network is shaped like
            the first.
        target: "phone" (of a frame), "speaker" (from the mean over an utterance) or "keyword" (which word, from the
            mean over its frames).
        max_classes: only the most frequent so many; items of others are left out.
        lr: peak learning rate of Adam; it falls to 0 at `max_steps`.
        max_items: each process keeps so many items in memory, 4 kB each for two checkpoints of 5 layers with D=128;
            utterances beyond them are encoded each time that they are read.
        seed: of the untrained network.
    """

    def __init__(
        self,
        checkpoints: dict[str, str],
        target: Target = "phone",
        max_classes: int | None = None,
        lr: float = 0.02,
        max_items: int = 100_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not checkpoints or checkpoints.keys() & {UNTRAINED, MFCCS, "majority"}:
            raise ValueError(
                f"checkpoints names {list(checkpoints)}; give at least one, none of them {UNTRAINED!r}, {MFCCS!r} or "
                f"'majority', which are added"
            )
        self.target, self.max_classes, self.lr, self.max_items = target, max_classes, lr, max_items
        self.mfcc = MFCC()
        encoders = {name: load_hubert(checkpoint) for name, checkpoint in checkpoints.items()}
        self.depths = {name: len(hubert.blocks) for name, hubert in encoders.items()}  # of those with a mixture
        encoders[UNTRAINED] = untrained(next(iter(encoders.values())), seed)
        for hubert in encoders.values():
            hubert.eval().requires_grad_(False)
        self.encoders = encoders  # in a plain dict, so that they are not part of our state
        self.classes: list[str] | None = None  # not known yet
        self.memory: dict[tuple[str, str], Items] = {}  # by shard and key
        self.in_memory = 0  # items

    def build(self, classes: list[str]) -> None:
        """Make the parts whose size depends on the classes; none where there is nothing to tell apart."""
        self.classes = classes
        if not classes:
            return
        widths = {MFCCS: self.mfcc.dim}
        for name, hubert in self.encoders.items():
            widths |= {f"{name}/{layer}": hubert.dim for layer in range(len(hubert.blocks) + 1)}
        self.whiten = nn.ModuleDict({source: Whiten(dim) for source, dim in widths.items()})
        self.mixtures = nn.ParameterDict({name: torch.zeros(depth + 1) for name, depth in self.depths.items()})
        widths |= {f"{name}/{MIXTURE}": self.encoders[name].dim for name in self.depths}
        self.classifiers = nn.ModuleDict({source: nn.Linear(dim, len(classes)) for source, dim in widths.items()})
        for parameter in self.classifiers.parameters():
            nn.init.zeros_(parameter)
        accuracies = {source: MulticlassAccuracy(len(classes), average="micro") for source in [*widths, "majority"]}
        self.accuracies, self.items = nn.ModuleDict(accuracies), SumMetric()

    # -- set-up ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "annotations"):
            raise ValueError(
                f"LinearProbe classifies what `info` tells, which {type(data).__name__} does not read; "
                f"set data to mmflow.systems.hubert.data.AnnotatedSpeech"
            )
        if stage == "fit":
            classes = self._find_classes(data.annotations("train", data.usable["train"]))
            if len(classes) < 2:
                log.warning(
                    "nothing is probed: the training split has %d classes of target %s; phones and words are read from "
                    "`info`, speakers from its `speaker`",
                    len(classes),
                    self.target,
                )
                classes = []
            self.build(classes)

    def _find_classes(self, annotations: list[dict[str, Any]]) -> list[str]:
        counts = Counter[str]()
        for annotation in annotations:
            for start_s, end_s, name in segments(self.target, annotation):
                counts[name] += end_s - start_s if self.target == "phone" else 1
        return sorted(counts, key=lambda name: (-counts[name], name))[: self.max_classes]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["classes"] = self.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.classes is None:
            self.build(checkpoint["classes"])
        elif self.classes != checkpoint["classes"]:
            raise ValueError(
                f"the checkpoint classifies {len(checkpoint['classes'])} classes, the data have {len(self.classes)} or "
                f"others; go on with the data it was begun on, or begin again"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if not self.classes:
            return None
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        schedule = linear_warmup_decay(optimizer, self.trainer.max_steps, warmup=0.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Whiten every source by some utterances of all ranks, unless resumed."""
        self._move_encoders()
        if not self.classes:
            self.trainer.should_stop = True
        if self.global_step or not self.classes:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        chosen = hash_order(data.usable["train"], data.corpus("train"), data.seed)[:WHITENING_UTTERANCES]
        whiten: dict[str, Any] = dict(self.whiten.items())
        moments = {}
        for source, whitening in whiten.items():
            size = len(whitening.mean) + 1
            moments[source] = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for batch in data.once("train", chosen):
            if not batch["valid"].any():
                continue
            batch = self.trainer.strategy.batch_to_device(data.on_before_batch_transfer(batch, 0))
            for source, x in self.remembered(batch).features.items():
                with_one = F.pad(x.double(), (1, 0), value=1.0)  # (N, D + 1)
                moments[source] += with_one.T @ with_one
        for source, whitening in whiten.items():
            if self.trainer.world_size > 1:
                dist.all_reduce(moments[source])
            whitening.fit(moments[source])

    def _move_encoders(self) -> None:
        for hubert in self.encoders.values():
            hubert.to(self.device)

    # -- what is classified ------------------------------------------------------------------------------------------

    def remembered(self, batch: dict[str, Any]) -> Items:
        """The training items of a batch's valid utterances, encoded when an utterance is first seen.

        Each alone, so that its bits do not depend on its neighbours, who are others in a resumed run."""
        parts = []
        for row in batch["valid"].nonzero()[:, 0].tolist():
            name = (batch["__shard__"][row], batch["__key__"][row])
            items = self.memory.get(name)
            if items is None:
                items = self.encode(batch, [row], FRAME_STEP if self.target == "phone" else 1)
                if self.in_memory + len(items.labels) <= self.max_items:
                    self.memory[name] = items
                    self.in_memory += len(items.labels)
            parts.append(items)
        features = {source: torch.cat([part.features[source] for part in parts]).float() for source in self.whiten}
        return Items(features, torch.cat([part.labels for part in parts]))

    @torch.no_grad()
    def encode(self, batch: dict[str, Any], rows: list[int], step: int = 1) -> Items:
        """Every `step`-th item of some rows of a batch, its features in float16."""
        lengths = batch["lengths"][rows]
        audio = batch["audio"][rows, : int(lengths.max())]
        frames, frame_lengths = self.mfcc(audio, lengths)
        sources = {MFCCS: frames}
        for name, hubert in self.encoders.items():
            layers = hubert(audio, lengths).layers
            sources |= {f"{name}/{layer}": hidden for layer, hidden in layers.items()}
        items = []
        for place, (row, length) in enumerate(zip(rows, frame_lengths.tolist(), strict=True)):
            annotation: dict[str, Any] = {name: batch[name][row] for name in ("info", "text") if name in batch}
            found = spans(self.target, annotation, length, self.classes or [])
            items += [[place, *span] for span in found[::step]]
        where, first, end, labels = torch.tensor(items, dtype=torch.int64, device=self.device).view(-1, 4).unbind(1)
        return Items({source: span_means(x, where, first, end).half() for source, x in sources.items()}, labels)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits (N, C) of every source, among them the mixtures, from features (N, D) of those that have any."""
        whiten: dict[str, Any] = dict(self.whiten.items())
        centred = {source: features[source] - whitening.mean for source, whitening in whiten.items()}
        logits = {source: self._linear(x, source, source) for source, x in centred.items()}
        for name, weights in self.mixtures.items():
            layers = [f"{name}/{layer}" for layer in range(len(weights))]
            parts = [self._linear(centred[layer], layer, f"{name}/{MIXTURE}") for layer in layers]
            logits[f"{name}/{MIXTURE}"] = torch.einsum("l, lnc -> nc", weights.softmax(0), torch.stack(parts))
        return logits

    def _linear(self, centred: Tensor, source: str, classifier: str) -> Tensor:
        """Logits (N, C): the weights are whitened instead of the features, of which there are more."""
        whitening: Any = self.whiten[source]
        linear: Any = self.classifiers[classifier]
        return F.linear(centred, linear.weight @ whitening.matrix, linear.bias)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        features, labels = self.remembered(batch)
        losses = [F.cross_entropy(logits, labels, reduction="sum") for logits in self(features).values()]
        total, count = torch.stack(losses).sum(), torch.tensor(float(len(labels)), device=self.device)
        self.log("train/loss", (total / len(losses) / count.clamp(min=1)).detach(), prog_bar=True)
        return self.add(total, count)

    # -- measuring ---------------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        if self.classes is None:
            raise ValueError("this LinearProbe is not trained; set ckpt_path to the checkpoint of its fit stage")
        self._move_encoders()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        rows = batch["valid"].nonzero()[:, 0].tolist()
        if not rows or not self.classes:
            return
        features, labels = self.encode(batch, rows)
        if not len(labels):
            return
        accuracies: Any = self.accuracies
        for source, logits in self({source: x.float() for source, x in features.items()}).items():
            accuracies[source].update(logits, labels)
        accuracies["majority"].update(torch.zeros_like(labels), labels)  # the commonest class of the training
        self.items.update(len(labels))

    def on_test_epoch_end(self) -> None:
        if not self.classes:
            return  # nothing to tell apart
        number = int(self.items.compute())
        if number == 0:
            raise ValueError(
                f"no {self.target} in the test utterances is among the {len(self.classes)} classes of the training; "
                f"where no speaker is in two splits, test on training utterances that data.held_out leaves out"
            )
        table: list[dict[str, Any]] = []
        accuracies: dict[str, Any] = dict(self.accuracies.items())
        for source, accuracy in accuracies.items():
            name, _, layer = source.partition("/")
            place = int(layer) if layer.isdecimal() else layer or None
            table.append({"source": name, "layer": place, "accuracy": float(accuracy.compute())})
        for name in [*self.depths, MFCCS, UNTRAINED, "majority"]:
            best = max(row["accuracy"] for row in table if row["source"] == name and row["layer"] != MIXTURE)
            self.log(f"{self.target}/{name}", best)
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            mixtures = {name: weights.softmax(0).tolist() for name, weights in self.mixtures.items()}
            write_json(
                folder / "probes.json",
                {"target": self.target, "items": number, "rows": table, "mixtures": mixtures, "classes": self.classes},
            )
            title = f"{self.target}: {len(self.classes)} classes, {number:,} items"
            accuracy_by_layer(table, title, folder / "probes.png")


def untrained(hubert: Hubert, seed: int) -> Hubert:
    """A network of the same shape with the weights that `seed` gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Hubert(**hubert_arguments(hubert))
    fresh.normalize = hubert.normalize
    return fresh


def accuracy_by_layer(table: Sequence[Mapping[str, Any]], title: str, out: Path) -> None:
    """Draw the accuracy of each layer, one line per network with a star for its mixture, and levels for the others.

    Args:
        table: Rows with `source`, `layer` (a number, "mix", or None for what has no layers) and `accuracy`.
        title: Over the picture.
        out: The PNG file.
    """
    names = list(dict.fromkeys(row["source"] for row in table if row["layer"] is not None))
    colours = dict(zip([name for name in names if name != UNTRAINED], itertools.cycle(COLOURS))) | {UNTRAINED: SOFT}
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for name in names:
            values = {row["layer"]: row["accuracy"] for row in table if row["source"] == name}
            mixed = values.pop(MIXTURE, None)
            axes.plot(list(values), list(values.values()), color=colours[name], marker="o", markersize=4, label=name)
            if mixed is not None:
                axes.plot(len(values), mixed, color=colours[name], marker="*", markersize=9, linestyle="")
        depth = max(row["layer"] for row in table if isinstance(row["layer"], int))
        ticks = range(0, depth + 1, 1 + depth // 12)
        axes.set_xticks([*ticks, depth + 1], [*map(str, ticks), "mixture"])
        for name, dashes in ((MFCCS, (4, 2)), ("majority", (1, 2))):
            level = next(row["accuracy"] for row in table if row["source"] == name)
            axes.axhline(level, color="#26262e", linewidth=1.2, linestyle=(0, dashes), label=name)
        axes.set(title=title, xlabel="layer", ylabel="accuracy", ylim=(0, None))
        axes.grid(True, axis="y")
        figure.legend(loc="outside right center")
        with atomic_file(out) as file:
            figure.savefig(file, format="png", dpi=DPI)
