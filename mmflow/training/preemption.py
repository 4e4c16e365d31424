"""Save and leave at a step boundary when a signal asked for it, on all ranks together."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from mmflow import signals
from mmflow.training.checkpoints import Checkpoints


class Preemption(Callback):
    """On SIGTERM, SIGUSR1 (schedulers) or SIGINT (Ctrl-C): checkpoint after the current step, then exit.

    A signal may reach one rank only, or the ranks in different steps, so they agree by an all-reduce over gloo (no
    device synchronisation) at every step boundary and validation batch. The last step is the exception: its checkpoint
    comes after its validation, since a finished training does not validate when it is resumed.
    """

    def __init__(self) -> None:
        self.group: dist.ProcessGroup | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's own handler of SIGTERM sends a message to the other ranks, who may be waiting for another one
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        signals.deferring = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._leave_if_asked(trainer)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit":  # not for `validate`, which has nothing to save
            self._leave_if_asked(trainer)

    def _leave_if_asked(self, trainer: Trainer) -> None:
        flag = torch.tensor(signals.received)
        if self.group is not None:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        if (number := int(flag)) and trainer.global_step != trainer.max_steps:
            path = Checkpoints.of(trainer).save(trainer)
            if trainer.training:  # Lightning logs a step after this hook
                trainer._logger_connector.update_train_step_metrics()
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                print(f"signal {number}: saved {path}; the same command continues from here", flush=True)
            raise SystemExit(signals.exit_code(number))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.deferring = False

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        signals.deferring = False
        trainer.fit_loop.teardown()  # Lightning ends the data workers of one loop: validation's, when it was validating
