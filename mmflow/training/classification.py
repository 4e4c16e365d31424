"""Pictures to classes: any encoder with a linear layer, trained from scratch or fine-tuned.

B pictures, D width of the encoder, C classes.
"""

from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchmetrics import Metric

from mmflow.atomic import write_json
from mmflow.training.objective import StepMean
from mmflow.training.optimizers import adamw, decay_groups, layer_depths
from mmflow.training.schedules import cosine, linear_warmup_decay

TOP = 5


class ImageClassifier(StepMean):
    """Softmax cross-entropy over classes, of an encoder's pooled vector through a linear layer that begins at zero.

    Batches hold `image` (B, 3, H, W) in [0, 1] and `label`: (B,) numbers of classes, or (B, C) shares of them where an
    augmentation has mixed pictures. Validation and test count every picture once: `acc`, `acc5` for more than five
    classes, and, where the data says `unseen` (B,) of pictures of a kind that training never shows, `acc_seen` and
    `acc_unseen`. `test` leaves `classes.json`: all this for each class, too, with its name where batches tell `class`.

    A checkpoint holds how to build the encoder, of the size it has here, whatever it was first read from.

    Args:
        encoder: a `mmflow.nn.encoders.VisionEncoder`, fresh or read from a file by a function such as
            `mmflow.systems.vit.weights.load_vit`.
        num_classes: C.
        resized: fine-tune at another size: arguments of the encoder's `resized`, such as {image_size: 384}.
        label_smoothing: share of a target that is spread over all classes. Mixed targets stay as they are, for
            augmentations that mix smooth by themselves.
        lr: peak learning rate of the head and, without `layer_decay`, of all.
        warmup: share of the steps over which it rises from `start`; then it falls to `floor` at `max_steps`.
        start, floor: as factors of the peak.
        schedule: how it falls; `linear` ends at 0 and begins there.
        weight_decay: of matrices, see `mmflow.training.optimizers.is_decayed`.
        betas: of AdamW.
        momentum: if given, SGD with this momentum in place of AdamW, as in the fine-tuning of ViT.
        layer_decay: factor of the learning rate from each block to the one before it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        resized: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        lr: float = 1e-3,
        warmup: float = 0.05,
        start: float = 0.0,
        floor: float = 0.0,
        schedule: Literal["cosine", "linear"] = "cosine",
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} leaves nothing to tell apart; give the number of labels")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={label_smoothing} is a share of the target; give at least 0, less than 1"
            )
        if schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule={schedule!r} is unknown; take cosine or linear")
        if schedule == "linear" and (start or floor):
            raise ValueError(f"start={start} and floor={floor} are for the cosine; the linear schedule has 0 and 0")
        self.encoder = cast(Any, encoder)  # a VisionEncoder, which the command line cannot check
        if resized is not None:
            self.encoder = self.encoder.resized(**resized)
        self.encoder.train()
        self.head = nn.Linear(self.encoder.dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.lr, self.warmup, self.start, self.floor, self.schedule = lr, warmup, start, floor, schedule
        self.weight_decay, self.betas, self.momentum, self.layer_decay = weight_decay, betas, momentum, layer_decay
        self.seen, self.unseen = ClassCounts(num_classes), ClassCounts(num_classes)
        self.class_names: dict[int, str] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kind = type(self.encoder)
        built = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": self.encoder.arguments}
        checkpoint["hyper_parameters"] = checkpoint.get("hyper_parameters", {}) | {"encoder": built}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, 3, H, W) in [0, 1]."""
        return self.head(self.encoder(images).pooled)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        images, labels = batch["image"], self.labels_of(batch)
        logits = self(images).float()
        smoothing = self.label_smoothing if labels.ndim == 1 else 0.0
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        self.log("train/loss", total.detach() / len(images), prog_bar=True)
        if labels.ndim == 1:
            self.log("train/acc", (logits.argmax(1) == labels).float().mean(), prog_bar=True)
        return self.add(total, torch.tensor(len(images), device=self.device))

    def labels_of(self, batch: dict[str, Any]) -> Tensor:
        """(B,) or (B, C). Raises ValueError for labels that are not there or are no classes of this module."""
        labels = batch.get("label")
        if labels is None or len(labels) != len(batch["image"]):
            raise ValueError(
                f"a batch of {len(batch['image'])} pictures has {0 if labels is None else len(labels)} labels; "
                f"take data in which each picture has one, such as mmflow.systems.vit.data.LabelledPictures"
            )
        if labels.ndim == 2 and labels.shape[1] != self.num_classes:
            raise ValueError(
                f"targets of {labels.shape[1]} classes meet model.num_classes={self.num_classes}; "
                f"make num_classes of the model and of the augmentation that mixes equal"
            )
        if labels.ndim == 1 and len(labels):
            low, high = (int(end) for end in labels.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"labels go from {low} to {high}, but model.num_classes={self.num_classes} allows "
                    f"0..{self.num_classes - 1}; set num_classes={max(high + 1, self.num_classes)} or mend the labels"
                )
        return labels

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        self.count(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        self.count(batch)
        if "class" in batch:
            self.class_names |= dict(zip(batch["label"].tolist(), batch["class"], strict=True))

    def count(self, batch: dict[str, Any]) -> None:
        """Count the rows of a batch that are valid."""
        labels, valid = self.labels_of(batch), batch["valid"]
        if not valid.any():
            return
        logits, labels = self(batch["image"][valid]).float(), labels[valid]
        new = batch["unseen"][valid] if "unseen" in batch else torch.zeros_like(labels, dtype=torch.bool)
        self.seen.update(logits[~new], labels[~new])
        self.unseen.update(logits[new], labels[new])

    def on_validation_epoch_end(self) -> None:
        self._log_shares("val")

    def on_test_epoch_end(self) -> None:
        parts = self._log_shares("test")
        names: list[Any] = [self.class_names]
        if self.trainer.world_size > 1:
            names = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(names, self.class_names)
        if self.trainer.is_global_zero:
            told = {number: name for part in names for number, name in part.items()}
            report: dict[str, Any] = shares(parts["seen"] + parts["unseen"])
            if int(parts["unseen"][:, 0].sum()):
                report |= {part: shares(counts) for part, counts in parts.items()}
            report["classes"] = [
                {"label": number, "class": told.get(number), **shares((parts["seen"] + parts["unseen"])[number][None])}
                for number in range(self.num_classes)
            ]
            write_json(Path(self.trainer.default_root_dir) / "classes.json", report)

    def _log_shares(self, stage: str) -> dict[str, Tensor]:
        """Log what was counted on all ranks, forget it, and return it: (C, 4) for each part, see ClassCounts."""
        parts = {"seen": self.seen.compute(), "unseen": self.unseen.compute()}
        self.seen.reset()
        self.unseen.reset()
        logged = {"": shares(parts["seen"] + parts["unseen"])}
        if int(parts["unseen"][:, 0].sum()):
            logged |= {f"_{name}": shares(counts) for name, counts in parts.items()}
        for end, values in logged.items():
            for name in ("loss", "acc", "acc5"):
                if name == "acc" or (name in values and not end):
                    self.log(f"{stage}/{name}{end}", values[name], prog_bar=name == "acc")
        return parts

    # -- optimisation --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        depths = {f"encoder.{name}": depth for name, depth in layer_depths(self.encoder).items()}
        groups = decay_groups(self, self.lr, self.weight_decay, depths, self.layer_decay)
        optimizer: Optimizer
        if self.momentum is None:
            optimizer = adamw(self, self.lr, eps=1e-8, weight_decay=0.0, betas=self.betas, groups=groups)
        else:
            optimizer = SGD(groups, lr=self.lr, momentum=self.momentum)
        if self.schedule == "linear":
            schedule = linear_warmup_decay(optimizer, self.trainer.max_steps, self.warmup)
        else:
            schedule = cosine(optimizer, self.trainer.max_steps, self.warmup, self.start, self.floor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ClassCounts(Metric):
    """(C, 4) float64 for each class: pictures, those whose class has the highest logit, is among the highest five, and
    the sum of the losses in nats. Sums, so exact for any number of processes."""

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.table: Tensor
        self.add_state("table", torch.zeros(num_classes, 4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits (B, C), labels (B,)."""
        hits = logits.topk(min(TOP, logits.shape[1])).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="none")
        rows = torch.stack([torch.ones_like(loss), hits[:, 0], hits.any(1), loss], dim=1)  # (B, 4)
        self.table.index_add_(0, labels, rows.double())

    def compute(self) -> Tensor:
        return self.table.clone()


def shares(counts: Tensor) -> dict[str, float]:
    """Of counts (C, 4), see ClassCounts: pictures, mean loss, accuracy and, for more than five classes, top five."""
    pictures, hits, hits5, loss = counts.sum(0).tolist()
    found = {"pictures": int(pictures)}
    most = max(pictures, 1)
    return found | {"loss": loss / most, "acc": hits / most} | ({"acc5": hits5 / most} if len(counts) > TOP else {})
