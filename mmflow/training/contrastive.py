"""Losses over all pairs of a step, exact for any number of processes and micro-batches.

B pairs of the step, b of them on this process, E width.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmflow.nn.contrastive import Similarity
from mmflow.training.lanes import device_seed
from mmflow.training.objective import StepMean

Batch = dict[str, Any]


class Contrastive(StepMean):
    """Pairs of anything and texts, each told from all others of the step.

    The negatives of a pair are all others of the step, wherever they are: in other micro-batches and on other
    processes. So all micro-batches of a process come as one batch, a list; where there are several, their activations
    are not kept but computed again in the backward pass, one micro-batch at a time (which is gradient caching, Gao et
    al. 2021, arXiv:2101.06983), so that memory is that of one. What is drawn in a micro-batch is seeded by step and
    lane. The loss and its gradient are those of one process with the whole batch.
    """

    joins_lanes: ClassVar[bool] = True

    @property
    @abstractmethod
    def similarity(self) -> Similarity:
        """What the loss is computed by."""

    @abstractmethod
    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two sides (b, E) of the pairs of a micro-batch, of any length."""

    def setup(self, stage: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and data.rule.size is None:
            raise ValueError(
                f"batch_seconds={data.rule.length:g} makes batches of differing size, but pairs are gathered from all "
                f"processes in equal parts; give batch_size instead"
            )

    def pairs(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Both sides of this process's pairs, of length 1, with the gradients that all micro-batches together have."""
        seed = self.trainer.datamodule.seed  # type: ignore[attr-defined]
        sides = []
        for batch in batches:
            torch.manual_seed(device_seed(seed, batch["__step__"], batch["__lane__"]))
            if len(batches) == 1:
                sides.append(self.features(batch))
            else:  # draws the same again in the backward pass
                sides.append(checkpoint(self.features, batch, use_reentrant=False))
        images, texts = (F.normalize(torch.cat(side).float(), dim=-1) for side in zip(*sides, strict=True))
        return images, texts

    def gathered(self, features: Tensor) -> Tensor:
        """(B, E) of all processes, in the order of ranks; gradients go back to where they belong."""
        if self.trainer.world_size == 1:
            return features
        everywhere = self.all_gather(features, sync_grads=True)  # (ranks, b, E)
        assert isinstance(everywhere, Tensor)
        return everywhere.flatten(0, 1)

    def training_step(self, batch: list[Batch], batch_idx: int) -> Tensor:  # noqa: ARG002
        images, texts = self.pairs(batch)
        first = self.global_rank * len(images)
        total = self.similarity.loss_sum(images, texts, self.gathered(images), self.gathered(texts), first)
        count = torch.tensor(float(len(images)), device=self.device)
        own = in_batch(images.detach(), texts.detach())
        self.log("train/loss", (total / count).detach(), prog_bar=True)
        self.log("train/acc", own.accuracy, prog_bar=True)  # among the pairs of this process
        self.log("train/cosine", own.cosine)
        self.log("train/cosine_others", own.cosine_others)
        self.log("train/scale", self.similarity.log_scale.detach().exp())
        return self.add(total, count)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.similarity.clamp()  # before a checkpoint of the step is saved


class InBatch(NamedTuple):
    """How well the pairs of a batch are told apart, () each.

    Attributes:
        accuracy: share of pictures whose own text is the nearest.
        cosine: mean over pairs.
        cosine_others: mean over what does not belong together; NaN of a single pair.
    """

    accuracy: Tensor
    cosine: Tensor
    cosine_others: Tensor


def in_batch(images: Tensor, texts: Tensor) -> InBatch:
    """Of images (B, E) and their texts (B, E), both of length 1."""
    with torch.autocast(images.device.type, enabled=False):  # cosines of neighbours differ by less than bf16 can tell
        cosines = images.float() @ texts.float().T  # (B, B)
    count, own = len(images), cosines.diagonal()
    hits = cosines.argmax(1) == torch.arange(count, device=images.device)
    others = (cosines.sum() - own.sum()) / (count * (count - 1))
    return InBatch(hits.float().mean(), own.mean(), others)
