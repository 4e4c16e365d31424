"""The smallest training that has everything a Trainer of mmflow gets: a line through random points."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from mmflow.training.checkpoints import AtomicCheckpointIO, Checkpoints
from mmflow.training.guard import FiniteSteps
from mmflow.training.lanes import Lanes
from mmflow.training.meters import Meters
from mmflow.training.objective import StepMean
from mmflow.training.preemption import Preemption

SEED = 3


def points(step: int, lane: int) -> dict[str, Any]:
    """The micro-batch of a lane at a step, of 1 to 7 points."""
    size = 1 + (3 * step + 5 * lane) % 7
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(100 * step + lane), dtype=torch.float64)
    keys = [f"{step}-{lane}-{number}" for number in range(size)]
    return {
        "x": x,
        "y": x.sum(1) + 0.5,
        "lengths": torch.full((size,), 8000),
        "audio_seconds": size / 2,
        "__key__": keys,
        "__shard__": ["s"] * size,
    }


class Points(LightningDataModule):
    """Micro-batches of `lanes` lanes, dealt to the ranks as ShardData deals them."""

    seed = SEED

    def __init__(self, lanes: int = 4) -> None:
        super().__init__()
        self.lanes = lanes

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        order = Order(self.lanes, self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(order, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([points(step, 99) for step in range(3)], batch_size=None)  # type: ignore[arg-type]


class Order(torch.utils.data.IterableDataset):
    def __init__(self, lanes: int, step: int, rank: int, world: int) -> None:
        self.lanes, self.step, self.rank, self.world = lanes, step, rank, world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.step
        while True:
            yield from (points(step, lane) for lane in range(self.rank, self.lanes, self.world))
            step += 1


class Line(StepMean):
    """Squared error summed over points; dropout on x shows whether the device seeds are the same.

    Notes the steps at which it validated, and the mask of each micro-batch.
    """

    def __init__(self, dropout: float = 0.0, momentum: float = 0.0) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1, dtype=torch.float64)
        with torch.no_grad():
            self.line.weight.fill_(0.25)
            self.line.bias.zero_()
        self.dropout, self.momentum = nn.Dropout(dropout), momentum
        self.validated: list[int] = []
        self.masks: list[tuple[int, int, Tensor]] = []  # step, micro-batch, (N, 3)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        kept = self.dropout(torch.ones_like(batch["x"]))
        self.masks.append((self.global_step, batch_idx % self.trainer.accumulate_grad_batches, kept))
        error = (self.line(batch["x"] * kept)[:, 0] - batch["y"]).square().sum()
        self.log("train/loss", error.detach() / len(batch["x"]), prog_bar=True)
        return self.add(error, torch.tensor(len(batch["x"])))

    def on_validation_start(self) -> None:
        self.validated.append(self.global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        error = (self.line(batch["x"])[:, 0] - batch["y"]).square().mean()
        self.log("val/loss", error, prog_bar=True, batch_size=len(batch["x"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=self.momentum)
        schedule = LambdaLR(optimizer, partial(falling, steps=self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def falling(step: int, steps: int) -> float:
    return 1 - step / steps


def fit(
    folder: Path,
    steps: int = 6,
    lanes: int = 4,
    line: Line | None = None,
    callbacks: Sequence[Callback] = (),
    ckpt_path: Path | None = None,
    checkpoints: Checkpoints | None = None,
    guard: FiniteSteps | None = None,
    **options: Any,
) -> tuple[Trainer, Line]:
    """Train to the end, with a checkpoint at every second step and a validation at every third."""
    line, data = line or Line(), Points(lanes)
    given = {"accelerator": "cpu", "devices": 1, "val_check_interval": 3, "max_steps": steps}
    given |= {"enable_progress_bar": False} | options
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[
            *(Lanes(), Meters(), Preemption(), guard or FiniteSteps()),
            checkpoints or Checkpoints(every_steps=2, monitor="val/loss"),
            *callbacks,
        ],
        plugins=[AtomicCheckpointIO()],
        logger=CSVLogger(str(folder), name="logs"),
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        **given,
    )
    trainer.fit(line, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, line


def weights(line: Line) -> Tensor:
    """(4,) the three slopes and the offset."""
    return torch.cat([line.line.weight.detach()[0], line.line.bias.detach()])


def files(folder: Path) -> list[str]:
    """The checkpoints in a folder without their hash files."""
    return sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))


def on_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """`on_ranks` with two processes."""
    on_ranks(2, function, *arguments)


def on_ranks(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run `function(rank, *arguments, port)` in `world` processes, with a port that they can meet on.

    They are forked from a process that has imported Lightning, which takes seconds, once for all tests.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload(["mmflow.torchvision_cpu", "lightning.pytorch"])
    given = (dict(os.environ), function, *arguments, port)
    torch.multiprocessing.start_processes(in_environment, given, nprocs=world, start_method="forkserver")


def in_environment(rank: int, environment: dict[str, str], function: Callable[..., None], *arguments: Any) -> None:
    """A forked process has the environment in which the server began, not that of this test."""
    os.environ |= environment
    function(rank, *arguments)
