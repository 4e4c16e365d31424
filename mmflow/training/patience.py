"""Ranks that have nothing left to predict wait for the others, however long that takes."""

from datetime import timedelta

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class Patience(Callback):
    """At the end of `predict`, waits for all ranks for up to a week.

    Shards and machines differ, and a rank may even have no shard at all; but a barrier of the strategy gives up after
    its timeout, by default half an hour. To be the first of the callbacks, for the others may use such barriers.
    """

    def __init__(self) -> None:
        self.group: dist.ProcessGroup | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict" and trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(days=7))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.group is not None:
            dist.barrier(self.group)
