"""What frozen features tell about classes: linear probes, nearest neighbours, least squares of a few per class.

N pictures, D width, C classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmflow.atomic import write_json

STRENGTHS = tuple(10.0**power for power in range(-6, 3))  # of L2, swept
NEIGHBOURS = (10, 20, 100, 200)
CHUNK = 1024  # pictures whose neighbours are looked for at a time
SIDE = 16  # pixels of a side of the raw pictures that are probed


class Labelled(NamedTuple):
    """Features (N, D) float32 and their classes (N,) int64."""

    features: Tensor
    labels: Tensor


# -- linear ------------------------------------------------------------------------------------------------------------


def logistic_regression(
    data: Labelled, num_classes: int, l2: float, steps: int = 1000, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and bias (C,) that minimise mean cross-entropy + l2 / 2 * the squares of the weights, by L-BFGS.

    The bias is not held back, as in scikit-learn, whose C is 1 / (N l2). steps: of L-BFGS, at most. start: weights and
    bias to begin with rather than zeros.
    """
    with torch.inference_mode(False), torch.enable_grad():  # also within a `test` stage
        features, labels = data.features.clone(), data.labels.clone()
        if start is None:
            start = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
        weight, bias = (part.clone().requires_grad_() for part in start)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, max_eval=2 * steps, tolerance_grad=1e-6, tolerance_change=1e-10,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(features, weight, bias), labels) + l2 / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def linear_probe(
    train: Labelled, validation: Labelled, test: Labelled, num_classes: int, strengths: Sequence[float] = STRENGTHS
) -> dict[str, float]:
    """Accuracy on `test` of the logistic regression whose L2 is best on `validation` (of equal ones the strongest).

    Features are standardised by the mean and deviation that they have in `train`; those that are constant are left out.
    Returns "accuracy", "validation" (accuracy there) and "l2".
    """
    mean, std = train.features.double().mean(0), train.features.double().std(0)
    varies = std > 1e-6 * std.amax().clamp(min=1e-30)

    def standardised(data: Labelled) -> Labelled:
        scaled = (data.features.double() - mean)[:, varies] / std[varies]
        return Labelled(scaled.float(), data.labels)

    train, validation, test = standardised(train), standardised(validation), standardised(test)
    best: tuple[float, float, tuple[Tensor, Tensor]] | None = None
    fitted = None
    for l2 in sorted(strengths, reverse=True):
        fitted = logistic_regression(train, num_classes, l2, start=fitted)  # next to the one before
        share = accuracy(F.linear(validation.features, *fitted), validation.labels)
        if best is None or share > best[0]:
            best = share, l2, fitted
    assert best is not None, "no strength to sweep"
    share, l2, chosen = best
    return {"accuracy": accuracy(F.linear(test.features, *chosen), test.labels), "validation": share, "l2": l2}


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of the rows (N, C) whose highest score is that of their label."""
    return float((scores.argmax(1) == labels).double().mean())


# -- neighbours --------------------------------------------------------------------------------------------------------


def knn_scores(train: Labelled, features: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """(N, C): for each of `features` (N, D) and each class, the sum of exp(cosine / temperature) over those of its `k`
    nearest in `train` that have the class (Wu et al. 2018, arXiv:1805.01978)."""
    if not 1 <= k <= len(train.labels):
        raise ValueError(f"k={k} neighbours of {len(train.labels)} training pictures; give at least 1 and at most all")
    known = F.normalize(train.features, dim=1)
    found = []
    for chunk in features.split(CHUNK):
        similar, nearest = (F.normalize(chunk, dim=1) @ known.T).topk(k)  # (n, k)
        votes = torch.zeros(len(chunk), num_classes, dtype=similar.dtype)
        found.append(votes.scatter_add_(1, train.labels[nearest], (similar / temperature).exp()))
    return torch.cat(found)


# -- few of a class ----------------------------------------------------------------------------------------------------


def ridge_scores(train: Labelled, features: Tensor, num_classes: int, l2: float = 1.0) -> Tensor:
    """(N, C): regularised least squares from features to targets of 1 for the class and -1 for others (Dosovitskiy et
    al. 2021, arXiv:2010.11929, section 4.1), (X'X + l2 I)^-1 X'Y, with a column of ones in X."""
    x, new = (torch.cat([f.double(), f.new_ones(len(f), 1).double()], 1) for f in (train.features, features))
    y = 2.0 * F.one_hot(train.labels, num_classes).double() - 1
    gram = x.T @ x + l2 * torch.eye(x.shape[1], dtype=x.dtype)
    return new @ torch.linalg.solve(gram, x.T @ y)


def few_of_each(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Numbers of `count` random rows of each class. Raises ValueError for a class with fewer."""
    draw = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < count:
            raise ValueError(f"class {int(label)} has {len(rows)} pictures, fewer than {count}; ask for fewer shots")
        chosen.append(rows[torch.randperm(len(rows), generator=draw)[:count]])
    return torch.cat(chosen)


# -- a stage -----------------------------------------------------------------------------------------------------------


class FeatureProbe(LightningModule):
    """`test` tells what the features of a frozen encoder know about the labels, layer by layer.

    Features are taken without augmentation, layers as the mean over their tokens, from the `train`, `validation` (for
    what is swept) and `test` parts of the data. Leaves `probes.json`: encoder -> layer -> "linear" (see
    `linear_probe`), "knn" (k -> accuracy) and "few_shot" (accuracy), for the encoder, the same one untrained, and raw
    pixels of 16 x 16. Logs the linear probe's accuracy of each encoder's pooled vector and best layer.

    Args:
        encoder: a `mmflow.nn.encoders.VisionEncoder`, read from a file by a function such as
            `mmflow.systems.vit.weights.load_vit`.
        num_classes: C.
        max_train: pictures of the training part, evenly over it, that probes learn from; all with null.
        shots: pictures of each class for the least squares.
        strengths: of L2, of which the best on validation is taken.
        seed: of the untrained encoder and of the shots.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        max_train: int | None = 5000,
        shots: int = 10,
        strengths: Sequence[float] = STRENGTHS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes, self.max_train, self.shots, self.strengths = num_classes, max_train, shots, strengths
        self.seed = seed
        trained: Any = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(trained)(**trained.arguments)
        self.encoders = nn.ModuleDict({"trained": trained, "untrained": fresh}).requires_grad_(False).eval()
        self.rows: list[tuple[dict[str, Tensor], Tensor]] = []  # of the test part

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """ "encoder/layer" -> (B, D) float32 on the CPU, of pictures (B, 3, H, W)."""
        found = {"pixels/raw": F.adaptive_avg_pool2d(images, SIDE).flatten(1)}
        for name, encoder in self.encoders.items():
            out = encoder(images)
            found |= {f"{name}/{layer}": tokens.mean(1) for layer, tokens in out.layers.items()}
            found[f"{name}/pooled"] = out.pooled
        return {name: value.float().cpu() for name, value in found.items()}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        self.rows.append(self._row(batch))

    def _row(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        valid = batch["valid"]
        return self.features(batch["image"][valid]), batch["label"][valid].cpu()

    def on_test_epoch_end(self) -> None:
        parts = {"test": self._gathered(self.rows)} | {split: self._split(split) for split in ("train", "validation")}
        if self.trainer.is_global_zero:
            report: dict[str, dict[str, Any]] = {}
            for name in parts["test"][0]:
                encoder, layer = name.split("/")
                report.setdefault(encoder, {})[layer] = self.probe(
                    *(Labelled(parts[split][0][name], parts[split][1]) for split in ("train", "validation", "test"))
                )
            write_json(Path(self.trainer.default_root_dir) / "probes.json", report)
            for encoder, layers in report.items():
                shares = {layer: probes["linear"]["accuracy"] for layer, probes in layers.items()}
                best = max(layers, key=lambda layer: layers[layer]["linear"]["validation"])
                self.log(f"test/{encoder}", shares.get("pooled", shares[best]), rank_zero_only=True)
                self.log(f"test/{encoder}_best", shares[best], rank_zero_only=True)

    def probe(self, train: Labelled, validation: Labelled, test: Labelled) -> dict[str, Any]:
        """All probes of one layer."""
        few = few_of_each(train.labels, self.shots, self.seed)
        shots = Labelled(train.features[few], train.labels[few])
        return {
            "linear": linear_probe(train, validation, test, self.num_classes, self.strengths),
            "knn": {
                str(k): accuracy(knn_scores(train, test.features, self.num_classes, k), test.labels)
                for k in NEIGHBOURS
                if k <= len(train.labels)
            },
            "few_shot": accuracy(ridge_scores(shots, test.features, self.num_classes), test.labels),
        }

    def _split(self, split: str) -> tuple[dict[str, Tensor], Tensor]:
        """Features and labels of another part than that which is tested."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        data.corpus(split)
        ids = data.usable[split]
        if split == "train" and self.max_train is not None and self.max_train < len(ids):
            ids = ids[torch.linspace(0, len(ids) - 1, self.max_train, dtype=torch.float64).round().long().numpy()]
        rows = []
        for batch in data.once(split, ids):
            data.on_before_batch_transfer(batch, 0)
            rows.append(
                self._row(data.on_after_batch_transfer(self.transfer_batch_to_device(batch, self.device, 0), 0))
            )
        return self._gathered(rows)

    def _gathered(self, rows: list[tuple[dict[str, Tensor], Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """The rows of all processes, on each of them."""
        everywhere: list[Any] = [rows]
        if self.trainer.world_size > 1:
            everywhere = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, rows)
        rows = [row for part in everywhere for row in part if len(row[1])]
        names = rows[0][0]
        return {name: torch.cat([row[0][name] for row in rows]) for name in names}, torch.cat([row[1] for row in rows])
