"""How fast training goes and what it waits for."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class Meters(Callback):
    """Logs samples/s, seconds of audio per second and the share of time spent waiting for data.

    All figures are over the steps since the last log; rates are of this process times the number of processes. Where
    the output is no terminal (a batch job's log), one line with the logged metrics is printed instead of a bar.
    """

    def __init__(self) -> None:
        self._clear()
        self.ended_at = time.perf_counter()

    def _clear(self) -> None:
        self.samples, self.audio_s, self.waited_s, self.since = 0, 0.0, 0.0, time.perf_counter()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()
        self.ended_at = time.perf_counter()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.waited_s += time.perf_counter() - self.ended_at

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, dict) and "lengths" in batch:
            self.samples += len(batch["lengths"])
            self.audio_s += batch["audio_seconds"]
        boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if boundary and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            elapsed_s = time.perf_counter() - self.since
            rates = {"data_wait": self.waited_s / elapsed_s}
            if self.samples:
                rates["samples_per_s"] = self.samples / elapsed_s * trainer.world_size
                rates["audio_s_per_s"] = self.audio_s / elapsed_s * trainer.world_size
            pl_module.log_dict({f"speed/{name}": value for name, value in rates.items()})
            self._clear()
            if trainer.is_global_zero and not sys.stdout.isatty():
                print(line(trainer, rates), flush=True)
        self.ended_at = time.perf_counter()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()  # validation is no part of the rate
        self.ended_at = time.perf_counter()


def line(trainer: Trainer, rates: dict[str, float]) -> str:
    """`step 200/1200  train/loss 3.21  ...  samples_per_s 41`: the metrics of the progress bar and the rates."""
    shown = trainer.progress_bar_metrics | rates
    values = [f"{name} {float(value):.4g}" for name, value in shown.items() if isinstance(value, float | int)]
    return "  ".join([f"step {trainer.global_step}/{trainer.max_steps}", *values])
