"""Checkpoints are whole or absent, the newest whole one is resumed, and a resumed run ends with the same bits."""

import errno
import hashlib
import logging
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from mmflow.atomic import PART, remove_parts
from mmflow.evaluation.pictures import read_curves
from mmflow.training import checkpoints as module
from mmflow.training.checkpoints import AtomicCheckpointIO, Checkpoints, checkpoint_of, newest_whole, problem_of
from tests.training.toy import Line, files, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

CONTENT = {"weights": torch.arange(4.0), "step": 7, "names": ["a", "b"]}


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "checkpoints" / "step-00000007.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "flipped bit":
        data[len(data) // 2] ^= 1
    else:
        data.clear()
    path.write_bytes(data)


DAMAGES = pytest.mark.parametrize("how", ["cut", "flipped bit", "empty"])


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_and_its_hash_is_that_of_sha256sum(saved):
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["weights"], CONTENT["weights"])
    assert (loaded["step"], loaded["names"]) == (7, ["a", "b"])
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert Path(f"{saved}.sha256").read_text() == f"{digest}  step-00000007.ckpt\n"
    assert problem_of(saved) is None
    assert sorted(path.name for path in saved.parent.iterdir()) == [saved.name, f"{saved.name}.sha256"]


@DAMAGES
def test_damage_is_seen_before_loading(saved, how):
    damage(saved, how)
    reason = r"its SHA-256 is not the one in step-00000007.ckpt.sha256; it is cut off or was changed"
    with pytest.raises(ValueError, match=rf"step-00000007.ckpt cannot be used: {reason}"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_an_empty_hash_file_is_damage(saved):
    Path(f"{saved}.sha256").write_text("")
    assert "SHA-256" in str(problem_of(saved))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.ckpt cannot be used: there is no such file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "gone.ckpt")


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_nothing_is_unpickled_but_tensors_and_plain_containers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"bomb": Bomb()}, "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt cannot be used: .* holds more than tensors, numbers, text"):
        AtomicCheckpointIO().load_checkpoint("other.ckpt", weights_only=False)
    Path("plain.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"plain.ckpt cannot be used"):
        AtomicCheckpointIO().load_checkpoint("plain.ckpt", weights_only=False)
    assert not Path("exploded").exists()


@DAMAGES
def test_a_damaged_checkpoint_from_elsewhere_has_a_clear_error(saved, how):
    Path(f"{saved}.sha256").unlink()
    damage(saved, how)
    if how == "flipped bit":
        return  # without a hash nobody can tell
    with pytest.raises(ValueError, match=r"cannot be used: it is cut off, or"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(saved, monkeypatch):
    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    path = saved.with_name("step-00000009.ckpt")
    with pytest.raises(OSError, match=r"No space left on device; nothing was published.*step-00000009.ckpt"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    assert [p.name for p in sorted(saved.parent.iterdir())] == [saved.name, f"{saved.name}.sha256"]
    assert newest_whole(saved.parent) == saved


CHILD = """
import os, resource, sys, torch
from pathlib import Path
from mmflow.training.checkpoints import AtomicCheckpointIO
{before}
AtomicCheckpointIO().save_checkpoint({{"weights": torch.zeros(100_000)}}, Path(sys.argv[1]))
"""
LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
DEATH = "torch.save = lambda content, file: (file.write(b'x' * 1000), file.flush(), os.kill(os.getpid(), 9))"


def save_in_a_child(path: Path, before: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", CHILD.format(before=before), path], capture_output=True, text=True)


@pytest.mark.slow
def test_a_write_that_the_system_cuts_short_is_an_error_and_publishes_nothing(saved):
    child = save_in_a_child(saved.with_name("step-00000009.ckpt"), LIMIT)
    assert child.returncode == 1
    assert "File too large; nothing was published" in child.stderr
    assert files(saved.parents[1]) == [saved.name]
    assert list(saved.parent.glob(f".*{PART}")) == []


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_a_part_that_nobody_takes_for_a_checkpoint(saved):
    child = save_in_a_child(saved.with_name("step-00000009.ckpt"), DEATH)
    assert child.returncode == -signal.SIGKILL
    assert len(list(saved.parent.glob(f".step-00000009.ckpt*{PART}"))) == 1
    assert newest_whole(saved.parent) == saved
    remove_parts(saved.parents[1])
    assert list(saved.parent.glob(f".*{PART}")) == []


# -- which one is resumed ----------------------------------------------------------------------------------------------


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_whole(tmp_path / "checkpoints") is None


@DAMAGES
def test_the_newest_whole_one_is_taken_and_the_skipped_ones_are_named(saved, how, caplog):
    newer = saved.with_name("step-00000012.ckpt")
    AtomicCheckpointIO().save_checkpoint(CONTENT, newer)
    assert newest_whole(saved.parent) == newer
    damage(newer, how)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(saved.parent) == saved
    assert f"skipping checkpoint {newer}: its SHA-256 is not the one in" in caplog.text


def test_a_checkpoint_without_its_hash_was_not_written_by_us(saved, caplog):
    stranger = saved.with_name("step-00000012.ckpt")
    torch.save(CONTENT, stranger)
    assert newest_whole(saved.parent) == saved
    assert f"skipping checkpoint {stranger}: its hash file is missing" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(saved):
    damage(saved, "cut")
    with pytest.raises(
        ValueError, match=r"none of the 1 checkpoints in .* is whole; put back a copy .* or begin again"
    ):
        newest_whole(saved.parent)


# -- in training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Line, Path]:
    """A run of 8 steps that nothing has interrupted, with all its checkpoints. Only to be read."""
    folder = tmp_path_factory.mktemp("whole")
    kept = Checkpoints(every_steps=1, keep=9, monitor="val/loss")
    _, line = fit(folder, steps=8, line=Line(dropout=0.5, momentum=0.9), checkpoints=kept)
    return line, folder


def resume(folder: Path, path: Path | None, callbacks: Any = (), **options: Any) -> tuple[Any, Line]:
    keeper = Checkpoints(every_steps=1, keep=options.pop("keep", 2), monitor="val/loss")
    line = Line(dropout=0.5, momentum=0.9)
    return fit(folder, steps=8, line=line, ckpt_path=path, checkpoints=keeper, callbacks=callbacks, **options)


@pytest.mark.parametrize("step", range(1, 8))
def test_a_run_resumed_at_any_step_ends_with_the_same_bits_logs_and_best_score(whole, tmp_path, step):
    line, folder = whole
    trainer, resumed = resume(tmp_path, folder / "checkpoints" / f"step-{step:08d}.ckpt")
    assert torch.equal(weights(resumed), weights(line))
    assert resumed.validated == [s for s in (3, 6) if s >= step]
    logs = [folder / "logs" / "version_0" / "metrics.csv", tmp_path / "logs" / "version_0" / "metrics.csv"]
    for name, curve in read_curves(logs[1:]).items():
        first = step - name.startswith("val/")  # the validation that was due counts to the step before
        if not name.startswith("speed/"):
            assert curve == [point for point in read_curves(logs[:1])[name] if point[0] >= first]
    keeper = Checkpoints.of(trainer)
    finished = torch.load(folder / "checkpoints" / "step-00000008.ckpt", weights_only=True)["callbacks"]["Checkpoints"]
    assert keeper.best_score == finished["best_score"]
    assert keeper.metrics["val/loss"] == finished["metrics"]["val/loss"]


def test_a_run_resumed_after_its_last_step_is_finished_and_still_knows_its_metrics(whole, tmp_path):
    line, folder = whole
    trainer, resumed = resume(tmp_path, folder / "checkpoints" / "step-00000008.ckpt")
    assert torch.equal(weights(resumed), weights(line))
    assert (trainer.global_step, resumed.masks, resumed.validated) == (8, [], [])
    assert files(tmp_path) == []
    assert Checkpoints.of(trainer).metrics["val/loss"] > 0


class Stop(Exception):
    pass


class StopAt(Callback):
    """Ends the run as a crash does, in the first micro-batch of a step or in the validation after it."""

    def __init__(self, step: int, validating: bool = False) -> None:
        self.step, self.validating = step, validating

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.validating:
            raise Stop

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step and self.validating:
            raise Stop


def test_a_crash_during_the_last_validation_repeats_the_steps_since_the_last_checkpoint(tmp_path):
    _, line = fit(tmp_path / "whole", steps=6, line=Line(dropout=0.5))
    with pytest.raises(Stop):
        fit(tmp_path / "cut", steps=6, line=Line(dropout=0.5), callbacks=[StopAt(6, validating=True)])
    assert files(tmp_path / "cut") == ["best-step-00000003.ckpt", "step-00000002.ckpt", "step-00000004.ckpt"]
    newest = newest_whole(tmp_path / "cut" / "checkpoints")
    _, resumed = fit(tmp_path / "cut", steps=6, line=Line(dropout=0.5), ckpt_path=newest)
    assert torch.equal(weights(resumed), weights(line))
    assert resumed.validated == [6]


def test_a_kill_loses_no_logs_that_belong_to_a_checkpoint(tmp_path):
    class Kill(Callback):
        """At step 3, before the loggers write by themselves."""

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 2:
                logs = tmp_path / "logs" / "version_0" / "metrics.csv"
                shutil.copy(logs, tmp_path / "seen.csv")

    fit(tmp_path, steps=4, checkpoints=Checkpoints(every_steps=2), callbacks=[Kill()])
    assert [step for step, _ in read_curves([tmp_path / "seen.csv"])["train/loss"]] == [0, 1]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_latest_stay_and_older_ones_go(tmp_path, keep):
    fit(tmp_path, steps=7, checkpoints=Checkpoints(every_steps=1, keep=keep))
    assert files(tmp_path) == [f"step-{step:08d}.ckpt" for step in range(8 - keep, 8)]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2 * keep  # hash files go with theirs


def test_the_old_checkpoint_goes_only_after_the_new_one_stands(tmp_path, monkeypatch):
    seen = []
    publish = AtomicCheckpointIO.save_checkpoint

    def watched(self: Any, content: Any, path: Any, **rest: Any) -> None:
        seen.append(files(tmp_path))
        publish(self, content, path, **rest)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", watched)
    fit(tmp_path, steps=4, checkpoints=Checkpoints(every_steps=2, keep=1))
    assert seen == [[], ["step-00000002.ckpt"]]
    assert files(tmp_path) == ["step-00000004.ckpt"]


def test_a_damaged_checkpoint_of_a_later_step_does_not_crowd_out_the_new_ones(tmp_path):
    fit(tmp_path, steps=7, checkpoints=Checkpoints(every_steps=3, keep=9))
    Path(tmp_path / "checkpoints" / "step-00000007.ckpt").unlink()
    damage(tmp_path / "checkpoints" / "step-00000006.ckpt", "cut")
    newest = newest_whole(tmp_path / "checkpoints")
    assert newest == tmp_path / "checkpoints" / "step-00000003.ckpt"
    with pytest.raises(Stop):
        fit(tmp_path, 7, ckpt_path=newest, checkpoints=Checkpoints(every_steps=1, keep=1), callbacks=[StopAt(5)])
    assert files(tmp_path) == ["step-00000005.ckpt"]


def test_the_best_checkpoint_is_the_one_of_the_best_score(tmp_path):
    lows = iter([3.0, 1.0, 2.0])
    line = Line()
    line.validation_step = lambda batch, batch_idx: line.log("val/loss", 0.0)  # type: ignore[assignment, method-assign]
    line.on_validation_epoch_end = lambda: line.log("val/score", next(lows))  # type: ignore[method-assign]
    trainer, _ = fit(tmp_path, steps=9, line=line, checkpoints=Checkpoints(every_steps=20, monitor="val/score"))
    assert files(tmp_path) == ["best-step-00000006.ckpt", "step-00000009.ckpt"]
    assert Checkpoints.of(trainer).best_score == 1.0


@pytest.mark.parametrize(
    ("mode", "scores", "best"), [("max", [1.0, 3.0, 2.0], 6), ("min", [float("nan"), 5.0, 7.0], 6)]
)
def test_the_best_may_be_the_largest_and_is_never_nan(tmp_path, mode, scores, best):
    values, line = iter(scores), Line()
    line.on_validation_epoch_end = lambda: line.log("val/score", next(values))  # type: ignore[method-assign]
    fit(tmp_path, steps=9, line=line, checkpoints=Checkpoints(every_steps=20, monitor="val/score", mode=mode))
    assert files(tmp_path)[0] == f"best-step-{best:08d}.ckpt"


def test_a_checkpoint_is_made_when_time_has_passed(tmp_path, monkeypatch):
    now = iter(range(0, 100_000, 20))  # every look at the clock is 20 s later
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    seen = []
    monkeypatch.setattr(Checkpoints, "_write", lambda self, trainer, family, keep: seen.append(trainer.global_step))
    fit(tmp_path, steps=6, checkpoints=Checkpoints(every_steps=500, every_minutes=0.6, keep=9))
    assert seen == [2, 4, 6]


def test_a_metric_that_is_not_logged_is_an_error_that_names_the_others(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints.monitor='val/los' was not logged; there are: .*val/loss"):
        fit(tmp_path, checkpoints=Checkpoints(monitor="val/los"))


def test_a_metric_without_a_validation_is_an_error_at_the_start(tmp_path):
    with pytest.raises(
        ValueError, match=r"checkpoints.monitor='val/loss' is looked at when validating, which this tra"
    ):
        fit(tmp_path, val_check_interval=None, checkpoints=Checkpoints(monitor="val/loss"))


@pytest.mark.parametrize("options", [{"keep": 0}, {"every_steps": 0}])
def test_a_run_that_could_not_be_resumed_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"checkpoints.{name}=0 must be at least 1, or a run could not be resumed"):
        Checkpoints(**options)


def test_a_stage_folder_stands_for_its_checkpoint(tmp_path):
    (tmp_path / "done.json").write_text('{"checkpoint": "checkpoints/best.ckpt"}')
    assert checkpoint_of(str(tmp_path)) == f"{tmp_path}/checkpoints/best.ckpt"
    assert checkpoint_of("facebook/folder") == "facebook/folder"
