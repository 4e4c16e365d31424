"""Save and leave at a step boundary when a signal asked for it, on all ranks together."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from mmflow import signals
from mmflow.training.checkpoints import Checkpoints


class Preemption(Callback):
    """On SIGTERM, SIGUSR1 (schedulers) or SIGINT (Ctrl-C): checkpoint after the current step, then exit.

    A signal may reach one rank only, or the ranks in different steps, so they agree by an all-reduce over gloo (no
    device synchronisation) at every step boundary.
    """

    def __init__(self) -> None:
        self.group: dist.ProcessGroup | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.install()  # Lightning has put its own SIGTERM handler, which saves nothing
        signals.deferring = True
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        flag = torch.tensor(signals.received)
        if self.group is not None:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        if number := int(flag):
            path = next(c for c in trainer.callbacks if isinstance(c, Checkpoints)).save(trainer)
            trainer.strategy.barrier()
            rank_zero_warn(f"signal {number}: saved {path}; the same command continues from here")
            raise SystemExit(signals.exit_code(number))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.deferring = False

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        signals.deferring = False
