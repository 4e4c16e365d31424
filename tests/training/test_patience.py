"""A rank that is ready early does not give up on the others."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from mmflow.training.patience import Patience
from tests.training.toy import on_two_ranks

TIMEOUT_S = 3


class Uneven(LightningModule):
    """The second rank takes longer than the timeout of the strategy."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(self.global_rank * 1.6 * TIMEOUT_S)


class Barrier(Callback):
    """Waits at the end as a writer of predictions does."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.barrier()


def on_rank(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(timeout=timedelta(seconds=TIMEOUT_S)),
        callbacks=[Patience(), Barrier()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.predict(Uneven(), DataLoader([0, 1], batch_size=None), return_predictions=False)  # type: ignore[arg-type]
    (folder / f"rank{rank}").touch()


@pytest.mark.slow
def test_a_rank_waits_longer_than_the_timeout_of_the_strategy(tmp_path):
    on_two_ranks(on_rank, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0", "rank1"]
