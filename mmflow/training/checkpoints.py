"""Checkpoints that are whole or absent: written aside, flushed, hashed, renamed; the newest whole one is resumed."""

import hashlib
import json
import logging
import math
import pickle
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from mmflow.atomic import atomic_file
from mmflow.processes import rank

log = logging.getLogger(__name__)

HASH = ".sha256"  # `<checkpoint>.sha256` is in the format of sha256sum


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_of(path: str) -> str:
    """`path`, or the checkpoint that a stage left, where `path` is the stage's folder."""
    done = Path(path) / "done.json"
    return str(Path(path) / json.loads(done.read_text())["checkpoint"]) if done.is_file() else path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Single-file checkpoints under Lightning's strategies, published with their hash.

    The hash is published first: a checkpoint that stands under its name therefore always has it, and a checkpoint
    whose content differs (cut off, or changed on the disk) is seen. A hash that stands alone after a crash does no
    harm. Loading unpickles nothing but tensors and plain containers.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        self.remove_checkpoint(path)  # a damaged one of the same step, else its content would meet the new hash
        with atomic_file(path) as file:
            write(checkpoint, file)
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
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise ValueError(
                f"checkpoint {path} cannot be used: it is cut off, or holds more than tensors, numbers, text and lists "
                f"of them, which would run code when it is loaded ({' '.join(repr(error).split()):.200})"
            ) from error

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
        Path(f"{path}{HASH}").unlink(missing_ok=True)


def write(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """torch.save, whose error of a write that fails in the middle is the system's and not about the zip format."""
    try:
        torch.save(checkpoint, file)
        file.flush()
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def problem_of(path: Path) -> str | None:
    """Why a checkpoint is not whole, or None. One without a hash file (from elsewhere) is taken as it is."""
    if not path.is_file():
        return "there is no such file"
    sums = path.with_name(path.name + HASH)
    if not sums.exists():
        return None
    if [hash_file(path)] != sums.read_text().split()[:1]:
        return f"its SHA-256 is not the one in {sums.name}; it is cut off or was changed"
    return None


def step_of(path: Path) -> int:
    """The training step in a checkpoint's name."""
    found = re.search(r"step-(\d+)", path.name)
    return int(found[1]) if found else -1


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint of the latest step in `folder` that is whole, None when there is none; says what it skipped.

    Raises ValueError when there are checkpoints and all of them are damaged: a run does not silently start anew.
    """
    found = sorted(folder.glob("step-*.ckpt"), key=step_of, reverse=True)
    for path in found:
        has_hash = path.with_name(path.name + HASH).exists()
        problem = problem_of(path) if has_hash else "its hash file is missing"
        if problem is None:
            return path
        if rank() == 0:
            log.warning("skipping checkpoint %s: %s", path, problem)
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} is whole; put back a copy with its {HASH} file, or "
            f"begin again: remove {folder}"
        )
    return None


class Checkpoints(Checkpoint):
    """Keep the last checkpoints and the best one in `<default_root_dir>/checkpoints`.

    A checkpoint of a step is the state before the validation that may be due at it; resuming validates first. Only the
    last step of a training is saved after its validation.

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
        for name, value, least in (("every_steps", every_steps, 1), ("keep", keep, 1)):
            if value < least:
                raise ValueError(f"checkpoints.{name}={value} must be at least {least}, or a run could not be resumed")
        self.every_steps, self.every_minutes, self.keep = every_steps, every_minutes, keep
        self.monitor, self.mode = monitor, mode
        self.best_score: float | None = None
        self.metrics: dict[str, float] = {}  # of the last validation
        self.saved_at = time.monotonic()
        self.saved_step = -1
        self.flushed = True  # whether the loggers have written what belongs to the last checkpoint

    @classmethod
    def of(cls, trainer: Trainer) -> "Checkpoints":
        """The Trainer's own."""
        return next(c for c in trainer.checkpoint_callbacks if isinstance(c, cls))

    def folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def path(self, trainer: Trainer, family: str) -> Path:
        """Where the checkpoint of this step in a family (`step` or `best-step`) goes."""
        return self.folder(trainer) / f"{family}-{trainer.global_step:08d}.ckpt"

    def save(self, trainer: Trainer) -> Path:
        """Publish a checkpoint of this step unless it stands, then drop the oldest."""
        if self.saved_step != trainer.global_step:
            self.saved_step, self.saved_at, self.flushed = trainer.global_step, time.monotonic(), False
            self._write(trainer, "step", self.keep)
        return self.path(trainer, "step")

    def _write(self, trainer: Trainer, family: str, keep: int) -> None:
        path = self.path(trainer, family)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            found = sorted(path.parent.glob(f"{family}-*.ckpt"), key=step_of)
            # one of a later step is damaged or of a run that went back further: it is of no use to this one
            kept = [other for other in found if step_of(other) <= step_of(path)][-keep:]
            for other in set(found) - set(kept):
                trainer.strategy.remove_checkpoint(other)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step or -1  # of step 0 there is none
        if self.monitor is not None and trainer.val_check_batch == math.inf:
            raise ValueError(
                f"checkpoints.monitor={self.monitor!r} is looked at when validating, which this training never does; "
                f"set trainer.val_check_interval"
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.flushed:  # a resumed run does not log again what came before its checkpoint
            for logger in trainer.loggers:
                logger.save()
            self.flushed = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step == trainer.max_steps:
            return
        if trainer.global_step % self.every_steps == 0 or self._is_late(trainer):
            self.save(trainer)

    def _is_late(self, trainer: Trainer) -> bool:
        late = time.monotonic() - self.saved_at > 60 * self.every_minutes
        if trainer.world_size == 1:
            return late
        # clocks differ and ranks must agree, which need not be checked at every step
        return trainer.global_step % 10 == 0 and trainer.strategy.broadcast(late)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.monitor is None:
            return
        if self.monitor not in self.metrics:
            known = ", ".join(sorted(self.metrics))
            raise ValueError(f"checkpoints.monitor={self.monitor!r} was not logged; there are: {known}")
        score, sign = self.metrics[self.monitor], 1 if self.mode == "min" else -1
        if not math.isnan(score) and (self.best_score is None or sign * score < sign * self.best_score):
            self.best_score = score
            self._write(trainer, "best-step", keep=1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "metrics": self.metrics}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best_score, self.metrics = state_dict["best_score"], state_dict["metrics"]
