"""A loss that is not a number stops the run before it reaches the weights, and names the batch."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from mmflow.atomic import write_json


class FiniteLoss(Callback):
    """Raise FloatingPointError before the backward pass of a loss that is NaN or infinite.

    The shard and key of each sample of the batch are kept in `bad_batch.json` in the stage's folder.
    """

    def __init__(self) -> None:
        self.batch: dict[str, Any] = {}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch = batch if isinstance(batch, dict) else {}

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if torch.isfinite(loss):
            return
        samples = list(zip(self.batch.get("__shard__", ()), self.batch.get("__key__", ()), strict=True))
        name = "bad_batch" if trainer.is_global_zero else f"bad_batch-rank{trainer.global_rank}"
        path = Path(trainer.default_root_dir) / f"{name}.json"
        write_json(path, {"step": trainer.global_step, "rank": trainer.global_rank, "samples": samples})
        raise FloatingPointError(
            f"the loss is {float(loss.detach())} at step {trainer.global_step}, rank {trainer.global_rank}; "
            f"the batch's {len(samples)} samples are listed in {path}: look whether something is wrong with them; "
            f"otherwise lower the learning rate"
        )
