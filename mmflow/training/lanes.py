"""Steps that do not depend on the number of processes: accumulation, seeds and progress in terms of lanes."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


def device_seed(seed: int, step: int, lane: int) -> int:
    """Seed of what is drawn on the device (dropout, masks) in one micro-batch."""
    return int(np.random.SeedSequence([seed, 5, step, lane]).generate_state(1, np.uint64)[0] >> 1)


class Lanes(Callback):
    """Makes W processes take `datamodule.lanes` micro-batches per optimiser step together.

    Sets gradient accumulation to lanes / W, or has the lanes / W micro-batches come as one batch for a module whose
    `joins_lanes` asks for it, so that `max_steps`, `val_check_interval` and every other count is in optimiser steps;
    seeds the device generator by (seed, step, lane) before each micro-batch; and translates the
    progress stored in a checkpoint, which Lightning counts in micro-batches per process, to the present W.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not pl_module.automatic_optimization:  # k-means steps over its own pool
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "lanes"):
            raise ValueError(
                f"training takes its steps from the plan of its data, and {type(data).__name__} has none; "
                f"derive it from mmflow.data.datamodule.ShardData"
            )
        if trainer.max_steps < 1:
            raise ValueError(
                f"trainer.max_steps={trainer.max_steps}, but the order of the data has no end and the learning rate is "
                f"scheduled over all steps; set trainer.max_steps"
            )
        lanes, world = data.lanes, trainer.world_size
        if lanes % world:
            divisors = [w for w in range(1, lanes + 1) if lanes % w == 0]
            raise ValueError(
                f"data.lanes={lanes} is not divisible by {world} processes; "
                f"use one of {divisors} processes, or data.lanes={-(-lanes // world) * world} in a new run"
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} must stay 1: "
                f"accumulation follows from data.lanes={lanes} and the number of processes; raise data.lanes instead"
            )
        if getattr(pl_module, "joins_lanes", False):
            data.joins_lanes = True
        else:
            trainer.accumulate_grad_batches = lanes // world
        if isinstance(trainer.val_check_interval, int):
            trainer.val_check_interval *= trainer.accumulate_grad_batches

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        lane = trainer.global_rank + batch_idx % trainer.accumulate_grad_batches * trainer.world_size
        torch.manual_seed(device_seed(data.seed, trainer.global_step, lane))

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        steps, loops = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
        batches, every = steps * trainer.accumulate_grad_batches, trainer.val_check_interval
        fill(loops["epoch_loop.batch_progress"], batches)
        # A checkpoint is the state before the validation that was due at its step. Lightning would take it for the
        # state after: it goes back to a validation only where it sees that one had begun.
        due = isinstance(every, int) and batches % every == 0 and trainer.enable_validation
        fill(loops["epoch_loop.val_loop.batch_progress"], 0)
        loops["epoch_loop.val_loop.batch_progress"]["total"].update(ready=int(due), started=int(due))
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - due  # counted up after the validation


def fill(progress: dict[str, Any], batches: int) -> None:
    """Set a stored progress of Lightning's to `batches` begun and finished."""
    for count in (progress["total"], progress["current"]):
        count.update(dict.fromkeys(count, batches))
