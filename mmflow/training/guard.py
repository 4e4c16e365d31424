"""A step whose loss or gradient is not finite does not reach the weights: it stops the run or is left out."""

import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from mmflow.atomic import write_json
from mmflow.data.loader import micro_batches

log = logging.getLogger(__name__)

Samples = list[tuple[str, str]]  # shard and key of each


class FiniteSteps(Callback):
    """Logs the norm of each step's gradient before clipping as `train/grad_norm`, and skips steps that are not finite.

    A skipped step changes neither weights nor moments of the optimiser, on no rank and whatever it accumulated; the
    step still counts, and the learning rate goes on. One skipped step too many raises FloatingPointError before it
    reaches the weights. Either way the samples are told in `bad_batches.json` in the stage's folder: those of the
    micro-batches whose loss is not finite, or those of the whole step if only its gradient is not. Under fp16 a
    gradient may overflow, which the gradient scaler takes care of, so there only the loss counts.

    Args:
        max_skipped: steps of a run that may be skipped; with 0 the first one that is not finite stops it.
    """

    def __init__(self, max_skipped: int = 0) -> None:
        if max_skipped < 0:
            raise ValueError(f"guard.max_skipped={max_skipped} must be at least 0, which stops at the first bad step")
        self.max_skipped = max_skipped
        self.skipped = 0  # steps of the run so far
        self.losses: list[Tensor] = []  # of this step's micro-batches, () each
        self.samples: list[Samples] = []  # in them

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.losses, self.samples = [], []
        named = [zip(m.get("__shard__", ()), m.get("__key__", ()), strict=True) for m in micro_batches(batch)]
        self.samples.append(list(itertools.chain.from_iterable(named)))

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach())  # looked at once per step, for that waits for the device

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not pl_module.automatic_optimization:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        pl_module.log("train/grad_norm", norm)
        fine = torch.stack(self.losses).isfinite().all()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            fine = fine & norm.isfinite()
        fine = fine.float()
        if trainer.world_size > 1:
            dist.all_reduce(fine, dist.ReduceOp.MIN)  # a loss may be finite on the other ranks
        if fine:
            return
        for parameter in parameters:
            parameter.grad = None  # an optimiser passes over it, and so over the decay of weights and moments
        self._skip(trainer)

    def _skip(self, trainer: Trainer) -> None:
        """Note the samples of a bad step, and stop if it is one too many; all ranks come here together."""
        ill = [s for loss, s in zip(self.losses, self.samples, strict=True) if not loss.isfinite()]
        everywhere: list[Any] = [(ill, self.samples)]
        if trainer.world_size > 1:
            everywhere = [None] * trainer.world_size
            dist.all_gather_object(everywhere, (ill, self.samples))
        cause = "loss" if any(ill for ill, _ in everywhere) else "gradient"
        batches = [batch for ill, step in everywhere for batch in (ill if cause == "loss" else step)]
        samples = [sample for batch in batches for sample in batch]

        path = Path(trainer.default_root_dir) / "bad_batches.json"
        if trainer.is_global_zero:
            noted = json.loads(path.read_text()) if path.exists() else []
            noted = [note for note in noted if note["step"] < trainer.global_step]  # a resumed run comes by again
            write_json(path, [*noted, {"step": trainer.global_step, "cause": cause, "samples": samples}])
        told = (
            f"the {cause} is not finite at step {trainer.global_step}; "
            f"the {len(samples)} samples that it comes from are listed in {path}"
        )
        if self.skipped == self.max_skipped:
            before = f" {self.skipped} steps were skipped before it." if self.skipped else ""
            raise FloatingPointError(
                f"{told}.{before} Look whether something is wrong with them, or lower the learning rate; "
                f"guard.max_skipped={self.max_skipped} is how many such steps a run may skip"
            )
        self.skipped += 1
        if trainer.is_global_zero:
            log.warning("skipped a step (%d of at most %d): %s", self.skipped, self.max_skipped, told)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.skipped = state_dict["skipped"]
