"""A signal makes a training save at the next step boundary and leave; the same command then ends with the same bits."""

import os
import signal
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from mmflow import signals
from mmflow.evaluation.pictures import read_curves
from mmflow.training.checkpoints import newest_whole
from tests.training.toy import Line, files, fit, weights

pytestmark = [
    pytest.mark.usefixtures("handled"),
    pytest.mark.filterwarnings("ignore"),  # Lightning's advice on loggers and workers
]


class Send(Callback):
    """Signals this process in the second micro-batch of a step, or in the second batch of its validation."""

    def __init__(self, *numbers: int, step: int, validating: bool = False) -> None:
        self.numbers, self.step, self.validating = numbers, step, validating

    def _send(self, trainer: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and batch_idx % 4 == 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.validating:
            self._send(trainer, batch_idx)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        if self.validating:
            self._send(trainer, batch_idx)


def line() -> Line:
    return Line(dropout=0.5, momentum=0.9)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_it_saves_after_the_step_leaves_and_is_continued(tmp_path, capsys, number, code):
    _, uninterrupted = fit(tmp_path / "whole", line=line())
    with pytest.raises(SystemExit) as left:
        fit(tmp_path / "cut", line=line(), callbacks=[Send(number, step=2)])
    assert left.value.code == code
    newest = newest_whole(tmp_path / "cut" / "checkpoints")
    assert newest == tmp_path / "cut" / "checkpoints" / "step-00000003.ckpt"  # no multiple of every_steps
    assert f"signal {number:d}: saved {newest}; the same command continues from here" in capsys.readouterr().out
    signals.received = 0  # as in a new process
    _, resumed = fit(tmp_path / "cut", line=line(), ckpt_path=newest)
    assert torch.equal(weights(resumed), weights(uninterrupted))
    whole, cut = (sorted((tmp_path / name / "logs").glob("*/metrics.csv")) for name in ("whole", "cut"))
    assert len(cut) == 2
    assert read_curves(cut)["train/loss"] == read_curves(whole)["train/loss"]


def test_a_second_signal_does_not_wait_for_the_step(tmp_path):
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, callbacks=[Send(signal.SIGINT, signal.SIGINT, step=3)])
    assert left.value.code == 130
    assert files(tmp_path) == ["best-step-00000003.ckpt", "step-00000002.ckpt"]


def test_it_does_not_wait_for_the_end_of_a_validation_which_is_repeated(tmp_path):
    _, uninterrupted = fit(tmp_path / "whole", line=line())
    cut = line()
    with pytest.raises(SystemExit) as left:
        fit(tmp_path / "cut", line=cut, callbacks=[Send(signal.SIGTERM, step=3, validating=True)])
    assert left.value.code == 75
    assert files(tmp_path / "cut") == ["step-00000002.ckpt", "step-00000003.ckpt"]  # no score, so no best one
    newest = newest_whole(tmp_path / "cut" / "checkpoints")
    signals.received = 0  # as in a new process
    _, resumed = fit(tmp_path / "cut", line=line(), ckpt_path=newest)
    assert resumed.validated == [3, 6]
    assert torch.equal(weights(resumed), weights(uninterrupted))


@pytest.mark.parametrize("validating", [False, True])
def test_the_last_step_is_finished_and_the_signal_remembered(tmp_path, validating):
    _, trained = fit(tmp_path, callbacks=[Send(signal.SIGTERM, step=6 if validating else 5, validating=validating)])
    assert trained.validated == [3, 6]
    assert files(tmp_path)[-1] == "step-00000006.ckpt"
    with pytest.raises(SystemExit) as left:
        signals.leave_if_asked()
    assert left.value.code == 75


def test_without_a_signal_nobody_leaves(tmp_path):
    fit(tmp_path)
    assert not signals.deferring
    signals.leave_if_asked()


def test_an_error_in_training_ends_the_promise_to_look_at_signals(tmp_path):
    class Fail(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise RuntimeError("it failed")

    with pytest.raises(RuntimeError, match="it failed"):
        fit(tmp_path, callbacks=[Fail()])
    assert not signals.deferring
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


def test_validate_leaves_at_once(tmp_path):
    trainer, trained = fit(tmp_path)
    trainer.callbacks.append(Send(signal.SIGTERM, step=6, validating=True))
    with pytest.raises(SystemExit) as left:
        trainer.validate(trained, datamodule=trainer.datamodule)
    assert left.value.code == 75
