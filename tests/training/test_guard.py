"""A step that is not finite is told, and stops the run before the weights see it or is skipped as if it never was."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmflow.evaluation.pictures import read_curves
from mmflow.training.guard import FiniteSteps
from tests.training.test_objective import mean_gradient
from tests.training.toy import Line, files, fit, on_two_ranks, points, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

STEP, LANE = 3, 3  # where it is ill; of two ranks, in the second one's last micro-batch
TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp"}


class Poisoned(Line):
    """The points of one micro-batch are infinite. As fine, it takes another one in which that step does nothing."""

    def __init__(self, fine: bool = False, steps: tuple[int, ...] = (STEP,), **options: Any) -> None:
        super().__init__(**{"momentum": 0.9} | options)
        self.fine, self.steps = fine, steps

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        ill = self.global_step in self.steps and batch["__key__"][0].startswith(f"{self.global_step}-{LANE}-")
        return super().training_step(self.spoil(batch) if ill and not self.fine else batch, batch_idx)

    def spoil(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"x": batch["x"] * torch.inf}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.fine and self.global_step in self.steps:
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        for group in made["optimizer"].param_groups:
            group["weight_decay"] = 0.1
        return made


class Rooted(Poisoned):
    """Its loss is finite, but the slope of a root at zero is not."""

    def add(self, total: Tensor, count: Tensor) -> Tensor:
        ill = self.global_step in self.steps and not self.fine
        return super().add(total + (0 * self.line.weight).sqrt().sum() if ill else total, count)

    def spoil(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def keys(step: int, lanes: Any) -> list[list[str]]:
    return [["s", key] for lane in lanes for key in points(step, lane)["__key__"]]


def notes(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "bad_batches.json").read_text())


def momenta(line: Line) -> Tensor:
    (optimizer,) = line.trainer.optimizers
    return torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in line.parameters()])


def check_equal(line: Line, expected: Line) -> None:
    assert torch.equal(weights(line), weights(expected))
    assert torch.equal(momenta(line), momenta(expected))


def test_joined_micro_batches_tell_all_their_samples():
    guard, trainer = FiniteSteps(), SimpleNamespace(accumulate_grad_batches=1)
    guard.on_train_batch_start(trainer, None, [points(0, lane) for lane in (0, 1)], 0)  # type: ignore[arg-type]
    assert guard.samples == [[("s", key) for lane in (0, 1) for key in points(0, lane)["__key__"]]]


def test_the_first_bad_step_stops_the_run_before_the_weights_see_it(tmp_path):
    line = Poisoned()
    with pytest.raises(FloatingPointError, match="the loss is not finite at step 3; the 4 samples") as told:
        fit(tmp_path, line=line)
    assert str(tmp_path / "bad_batches.json") in str(told.value)
    assert notes(tmp_path) == [{"step": 3, "cause": "loss", "samples": keys(3, [LANE])}]
    assert files(tmp_path) == ["best-step-00000003.ckpt", "step-00000002.ckpt"]
    saved = torch.load(tmp_path / "checkpoints" / "best-step-00000003.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights(line)[:3], saved["line.weight"][0])


def test_a_skipped_step_is_one_that_did_nothing_and_the_schedule_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        _, line = fit(tmp_path / "ill", line=Poisoned(), guard=FiniteSteps(1))
    trainer, expected = fit(tmp_path / "fine", line=Poisoned(fine=True))
    assert trainer.global_step == 6
    check_equal(line, expected)
    assert "skipped a step (1 of at most 1): the loss is not finite at step 3; the 4 samples" in caplog.text
    rates = [read_curves([tmp_path / run / "logs/version_0/metrics.csv"])["train/lr"] for run in ("ill", "fine")]
    assert rates[0] == rates[1]
    assert [step for step, _ in rates[0]] == list(range(6))
    assert (weights(expected) - weights(fit(tmp_path / "whole", line=Poisoned(steps=()))[1])).abs().max() > 1e-3


def test_adam_passes_over_a_skipped_step_too(tmp_path):
    class Adam(Poisoned):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5, foreach=True)

    _, line = fit(tmp_path / "ill", line=Adam(), guard=FiniteSteps(1), gradient_clip_val=0.5)
    _, expected = fit(tmp_path / "fine", line=Adam(fine=True), gradient_clip_val=0.5)
    assert torch.equal(weights(line), weights(expected))
    for mine, theirs in zip(line.parameters(), expected.parameters(), strict=True):
        ours, other = line.trainer.optimizers[0].state[mine], expected.trainer.optimizers[0].state[theirs]
        assert float(ours["step"]) == 5
        assert all(torch.equal(ours[name], other[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_a_gradient_that_is_not_finite_is_told_with_all_samples_of_the_step(tmp_path):
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 3; the 14 samples"):
        fit(tmp_path / "stop", line=Rooted())
    assert notes(tmp_path / "stop") == [{"step": 3, "cause": "gradient", "samples": keys(3, range(4))}]
    _, line = fit(tmp_path / "skip", line=Rooted(), guard=FiniteSteps(1))
    check_equal(line, fit(tmp_path / "fine", line=Rooted(fine=True))[1])


def test_one_skipped_step_too_many_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step 4; .* 2 steps were skipped before it.*guard.max_skipped=2"):
        fit(tmp_path, line=Poisoned(steps=(0, 2, 4, 5)), guard=FiniteSteps(2))
    assert [note["step"] for note in notes(tmp_path)] == [0, 2, 4]


def test_a_resumed_run_counts_on_and_tells_no_step_twice(tmp_path):
    ill = (1, 3, 5)
    _, expected = fit(tmp_path / "fine", line=Poisoned(fine=True, steps=ill))
    with pytest.raises(FloatingPointError):
        fit(tmp_path / "run", line=Poisoned(steps=ill), guard=FiniteSteps(1))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002.ckpt"
    assert torch.load(checkpoint, weights_only=True)["callbacks"]["FiniteSteps"] == {"skipped": 1}
    guard = FiniteSteps(3)
    _, line = fit(tmp_path / "run", line=Poisoned(steps=ill), guard=guard, ckpt_path=checkpoint)
    check_equal(line, expected)
    assert guard.skipped == 3
    assert [note["step"] for note in notes(tmp_path / "run")] == [1, 3, 5]


def test_the_overflow_of_a_gradient_is_left_to_the_gradient_scaler():
    class Module:
        automatic_optimization = True

        def log(self, name: str, value: Tensor) -> None:
            assert (name, float(value)) == ("train/grad_norm", float("inf"))

    guard, weight = FiniteSteps(), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([torch.inf, 0.0])
    trainer: Any = type("Trainer", (), {"world_size": 1, "precision_plugin": type("Mixed", (), {"scaler": object()})})
    guard.losses = [torch.tensor(1.0)]
    module: Any = Module()
    guard.on_before_optimizer_step(trainer, module, torch.optim.SGD([weight]))
    assert weight.grad is not None


def test_fewer_than_no_steps_cannot_be_skipped():
    with pytest.raises(ValueError, match=r"guard.max_skipped=-1 must be at least 0"):
        FiniteSteps(-1)


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_norm_of_the_gradient_of_the_mean_is_logged_before_clipping(tmp_path, lanes):
    fit(tmp_path, steps=1, lanes=lanes, val_check_interval=9, gradient_clip_val=0.01)
    ((step, norm),) = read_curves([tmp_path / "logs/version_0/metrics.csv"])["train/grad_norm"]
    assert step == 0
    assert norm == pytest.approx(float(mean_gradient(lanes).norm()), rel=1e-6)
    assert not (tmp_path / "bad_batches.json").exists()


# -- two processes -----------------------------------------------------------------------------------------------------


def on_rank(rank: int, folder: Path, port: int) -> None:
    """One of two processes: runs with an ill step, which only the second one sees."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = {}
    for name, line in (("loss", Poisoned()), ("gradient", Rooted()), ("fine", Poisoned(fine=True))):
        _, line = fit(folder / name, line=line, guard=FiniteSteps(1), **TWO)
        result[name] = torch.cat([weights(line), momenta(line)])
    try:
        fit(folder / "stop", line=Poisoned(), **TWO)
    except FloatingPointError as error:
        result["told"] = str(error)
    torch.save(result, folder / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_skip_and_stop_together(tmp_path):
    on_two_ranks(on_rank, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for result in ranks:
        assert torch.equal(result["loss"], ranks[0]["fine"])
        assert torch.equal(result["gradient"], ranks[0]["fine"])
        assert result["told"] == ranks[0]["told"]
        assert result["told"].startswith("the loss is not finite at step 3; the 4 samples")
    assert notes(tmp_path / "loss") == [{"step": 3, "cause": "loss", "samples": keys(3, [LANE])}]
    assert notes(tmp_path / "gradient") == [{"step": 3, "cause": "gradient", "samples": keys(3, (0, 2, 1, 3))}]
    norms = read_curves([tmp_path / "fine" / "logs/version_0/metrics.csv"])["train/grad_norm"]
    assert norms[0][1] == pytest.approx(float(mean_gradient(4).norm()), rel=1e-6)
