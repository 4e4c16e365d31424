"""Losses over all pairs of a step, exact for any number of processes and micro-batches.

B pairs of the step, E width.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmflow.nn.contrastive import info_nce_sum, sigmoid_sum
from mmflow.training.lanes import device_seed
from mmflow.training.objective import StepMean

Batch = dict[str, Any]
MOST_SCALE = 100.0  # cosines are multiplied by at most this (arXiv:2103.00020, section 2.5)


class Contrastive(StepMean):
    """Pairs of anything and texts, each told from all others of the step.

    The negatives of a pair are all others of the step, wherever they are: in other micro-batches and on other
    processes. So all micro-batches of a process come as one batch, a list; where there are several, their activations
    are not kept but computed again in the backward pass, one micro-batch at a time (which is gradient caching, Gao et
    al. 2021, arXiv:2101.06983), so that memory is that of one. What is drawn in a micro-batch is seeded by step and
    lane. The loss and its gradient are those of one process with the whole batch.

    Args:
        objective: "info_nce" (CLIP) or "sigmoid" (SigLIP).
        scale: what cosines are multiplied by at the beginning; it is learnt. None takes the paper's: 1 / 0.07 or 10.
    """

    joins_lanes: ClassVar[bool] = True

    def __init__(self, objective: Literal["info_nce", "sigmoid"] = "info_nce", scale: float | None = None) -> None:
        super().__init__()
        if objective not in ("info_nce", "sigmoid"):
            raise ValueError(f"objective={objective!r} is unknown; take info_nce or sigmoid")
        if scale is not None and not 1 <= scale <= MOST_SCALE:
            raise ValueError(f"scale={scale} multiplies cosines; it must be in 1..{MOST_SCALE:g}")
        self.objective = objective
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale or (1 / 0.07 if objective == "info_nce" else 10))))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if objective == "sigmoid" else None

    @abstractmethod
    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two sides (b, E) of the pairs of a micro-batch, of any length."""

    def pairs(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Both sides of this process's pairs, of length 1, with the gradients that all micro-batches together have."""
        sides = []
        for batch in batches:
            lane_seed = device_seed(self.trainer.datamodule.seed, batch["__step__"], batch["__lane__"])  # type: ignore[attr-defined]
            torch.manual_seed(lane_seed)
            if len(batches) == 1:
                sides.append(self.features(batch))
            else:  # draws the same again in the backward pass
                sides.append(checkpoint(self.features, batch, use_reentrant=False))
        images, texts = (F.normalize(torch.cat(side).float(), dim=-1) for side in zip(*sides, strict=True))
        return images, texts

    def loss_sum(self, images: Tensor, texts: Tensor) -> Tensor:
        """The loss summed over this process's pairs, given as features of length 1."""
        all_images, all_texts = self.gathered(images), self.gathered(texts)
        first = self.global_rank * len(images)
        scale = self.log_scale.exp()
        if self.bias is None:
            return info_nce_sum(images, texts, all_images, all_texts, first, scale)
        return sigmoid_sum(images, all_texts, first, scale, self.bias)

    def gathered(self, features: Tensor) -> Tensor:
        """(B, E) of all processes, in the order of ranks; gradients go back to where they belong."""
        if self.trainer.world_size == 1:
            return features
        everywhere = self.all_gather(features, sync_grads=True)  # (ranks, b, E)
        assert isinstance(everywhere, Tensor)
        return everywhere.flatten(0, 1)

    def training_step(self, batch: list[Batch], batch_idx: int) -> Tensor:  # noqa: ARG002
        images, texts = self.pairs(batch)
        total = self.loss_sum(images, texts)
        count = torch.tensor(float(len(images)), device=self.device)
        with torch.no_grad():
            hits = (images @ texts.T).argmax(1) == torch.arange(len(images), device=self.device)
        self.log("train/loss", (total / count).detach(), prog_bar=True)
        self.log("train/acc", hits.float().mean(), prog_bar=True)  # among the pairs of this process
        self.log("train/cosine", (images * texts).sum(1).mean().detach())
        self.log("train/scale", self.log_scale.detach().exp())
        return self.add(total, count)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(MOST_SCALE))
