"""How fast training goes and what it waits for."""

import logging
import math
import sys
import time
from collections import Counter
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

from mmflow.data.loader import micro_batches

log = logging.getLogger(__name__)

SLOW = 3.0  # times the median of the shards
FEWEST = 10  # samples of a shard before their mean says something


class Meters(Callback):
    """Logs how fast training goes, the share of time spent waiting for data, what decoding costs and the learning rate.

    Samples/s are the rows of the batches, `__key__`; seconds of audio per second are there where batches tell
    `audio_seconds`, and milliseconds per sample to read and decode each field where they tell `__seconds__`. All
    figures are over the steps since the last log; rates are of this process times the number of processes. Where the
    output is no terminal (a batch job's log), lines with the logged metrics are printed instead of a bar.

    At each validation and at the end, shards that took far longer per sample than the others since the last time are
    named in the program's log.
    """

    def __init__(self) -> None:
        self.lr: float | None = None
        self.waited_before_s = 0.0
        self.shard_s, self.shard_samples = Counter[str](), Counter[str]()
        self._clear()

    def _clear(self) -> None:
        self.samples, self.audio_s, self.waited_s = 0, 0.0, 0.0
        self.decode_s = Counter[str]()  # by field
        self.since = time.perf_counter()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        waited_s = getattr(trainer.train_dataloader, "waited_s", 0.0)  # of all batches so far
        self.waited_s, self.waited_before_s = self.waited_s + waited_s - self.waited_before_s, waited_s
        if trainer.lr_scheduler_configs:  # read before the step, which moves it
            self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for micro in micro_batches(batch):
            self.samples += len(micro.get("__key__", ()))
            self.audio_s += micro.get("audio_seconds", 0.0)
            self.decode_s.update(micro.get("__seconds__", {}))
            self.shard_s.update(micro.get("__shard_seconds__", {}))
            self.shard_samples.update(micro.get("__shard__", ()))
        boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if boundary and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rates = self._rates(trainer.world_size)
            pl_module.log_dict({f"speed/{name}": rate for name, rate in (rates | self._decode_ms()).items()})
            if self.lr is not None:
                pl_module.log("train/lr", self.lr)
            report(trainer, "train/", rates)
            self._clear()

    def _rates(self, world: int) -> dict[str, float]:
        elapsed_s = time.perf_counter() - self.since
        rates = {"data_wait": self.waited_s / elapsed_s}
        if self.samples:
            rates["samples_per_s"] = self.samples / elapsed_s * world
            rates |= {"audio_s_per_s": self.audio_s / elapsed_s * world} if self.audio_s else {}
        return rates

    def _decode_ms(self) -> dict[str, float]:
        """Milliseconds per sample to read and decode each field."""
        return {f"decode_ms/{name}": 1000 * s / self.samples for name, s in self.decode_s.items() if self.samples}

    def _name_slow_shards(self) -> None:
        """Log the slowest shards, at most three, if they are much slower than the median, and begin anew."""
        counts = self.shard_samples
        means = {shard: 1000 * s / counts[shard] for shard, s in self.shard_s.items() if counts[shard] >= FEWEST}
        usual = median(means.values()) if means else 0.0
        slow = sorted((shard for shard, ms in means.items() if ms > SLOW * usual), key=means.__getitem__, reverse=True)
        if slow:
            told = ", ".join(f"{shard} {means[shard]:.3g} ms" for shard in slow[:3])
            log.warning("the slowest shards, per sample, where the median shard takes %.3g ms: %s", usual, told)
        self.shard_s.clear()
        self.shard_samples.clear()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._name_slow_shards()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            report(trainer, "val/", {})
            self._name_slow_shards()
        self._clear()  # validation is no part of the rates


def report(trainer: Trainer, prefix: str, rates: dict[str, float]) -> None:
    """Print `step 200/1200  train/loss 3.21  ...  samples_per_s 41`: those of the bar's metrics with the prefix."""
    if not trainer.is_global_zero or sys.stdout.isatty():
        return
    shown = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith(prefix)}
    values = [f"{name} {float(value):.4g}" for name, value in (shown | rates).items()]
    of = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
    print("  ".join([f"step {trainer.global_step}{of}", *values]), flush=True)


class StepBar(RichProgressBar):
    """A bar over the steps of a training. Lightning's counts the micro-batches of an epoch, which has no end here."""

    @property
    @override
    def total_train_batches(self) -> int | float:
        return self.trainer.max_steps if self.trainer.max_steps > 0 else math.inf

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        return "Step".ljust(len(self.validation_description))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
