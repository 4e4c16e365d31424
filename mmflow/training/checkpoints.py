"""Checkpoints that are whole or absent: written aside, flushed, hashed, renamed; the newest whole one is resumed."""

import hashlib
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from mmflow.atomic import atomic_file

log = logging.getLogger(__name__)

HASH = ".sha256"  # `<checkpoint>.sha256` is in the format of sha256sum


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Single-file checkpoints under Lightning's strategies, published with their hash.

    The hash is published first: a checkpoint that stands under its name therefore always has it, and a checkpoint
    whose content differs (cut off, or changed on the disk) is seen. Files are never overwritten, so a hash that stands
    alone after a crash does no harm. Loading unpickles nothing but tensors and plain containers.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        with atomic_file(path) as file:
            torch.save(checkpoint, file)
            file.flush()
            digest = hash_file(Path(file.name))
            with atomic_file(path.with_name(path.name + HASH)) as sums:
                sums.write(f"{digest}  {path.name}\n".encode())

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        if (problem := problem_of(Path(path))) is not None:
            raise ValueError(f"checkpoint {path} cannot be used: {problem}")
        return torch.load(path, map_location=map_location, weights_only=True)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
        Path(f"{path}{HASH}").unlink(missing_ok=True)


def problem_of(path: Path) -> str | None:
    """Why a checkpoint is not whole, or None. One without a hash file (from elsewhere) is taken as it is."""
    if not path.is_file():
        return "there is no such file"
    sums = path.with_name(path.name + HASH)
    if not sums.exists():
        return None
    if hash_file(path) != sums.read_text().split()[0]:
        return f"its SHA-256 is not the one in {sums.name}; it is cut off or was changed"
    return None


def step_of(path: Path) -> int:
    """The training step in a checkpoint's name."""
    found = re.search(r"step-(\d+)", path.name)
    return int(found[1]) if found else -1


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint of the latest step in `folder` that is whole; says which ones it skipped."""
    for path in sorted(folder.glob("step-*.ckpt"), key=step_of, reverse=True):
        has_hash = path.with_name(path.name + HASH).exists()
        problem = problem_of(path) if has_hash else "its hash file is missing"
        if problem is None:
            return path
        log.warning("skipping checkpoint %s: %s", path, problem)
    return None


class Checkpoints(Checkpoint):
    """Keep the last checkpoints and the best one in `<default_root_dir>/checkpoints`.

    Args:
        every_steps: a checkpoint each so many steps.
        every_minutes: and when so much time has passed since the last one.
        keep: how many of the latest stay; an old one goes only after a new one stands.
        monitor: metric that names the best checkpoint; none is kept without it.
        mode: whether the best is the smallest or the largest.
    """

    def __init__(
        self,
        every_steps: int = 500,
        every_minutes: float = 15.0,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1: the run could not be resumed")
        self.every_steps, self.every_minutes, self.keep = every_steps, every_minutes, keep
        self.monitor, self.mode = monitor, mode
        self.best_score: float | None = None
        self.saved_at = time.monotonic()
        self.saved_step = -1

    def folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def save(self, trainer: Trainer) -> Path:
        """Publish a checkpoint of this step, then drop the oldest."""
        path = self.folder(trainer) / f"step-{trainer.global_step:08d}.ckpt"
        if self.saved_step != trainer.global_step:
            self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
            self._write(trainer, path, "step-*.ckpt", self.keep)
        return path

    def _write(self, trainer: Trainer, path: Path, family: str, keep: int) -> None:
        if path.exists() and problem_of(path) is not None:  # a damaged one of the same step, which was skipped
            trainer.strategy.remove_checkpoint(path)
        if not path.exists():
            trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            for old in sorted(path.parent.glob(family), key=step_of)[:-keep]:
                trainer.strategy.remove_checkpoint(old)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = trainer.global_step % self.every_steps == 0
        late = time.monotonic() - self.saved_at > 60 * self.every_minutes
        if trainer.world_size > 1 and trainer.global_step % 10 == 0:  # clocks differ, ranks must agree
            late = trainer.strategy.broadcast(late)
        elif trainer.world_size > 1:
            late = False
        if due or late:
            self.save(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"checkpoints monitor {self.monitor!r}, which was not logged; there are: {known}")
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "min" else -1
        if self.best_score is None or sign * score < sign * self.best_score:
            self.best_score = score
            self._write(trainer, self.folder(trainer) / f"best-step-{trainer.global_step:08d}.ckpt", "best-*.ckpt", 1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
