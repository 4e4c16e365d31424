"""A step is the same on any number of processes, and so are the validations and the progress of a resumed run."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmflow.training.lanes import Lanes, device_seed
from tests.training.toy import SEED, Line, fit, on_two_ranks, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers


def test_seeds_differ_by_run_step_and_lane():
    seeds = {device_seed(seed, step, lane) for seed in range(2) for step in range(20) for lane in range(4)}
    assert len(seeds) == 160
    assert device_seed(0, 0, 0) == device_seed(0, 0, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_is_dropped_depends_on_seed_step_and_lane_only(tmp_path):
    _, line = fit(tmp_path, steps=2, line=Line(dropout=0.5))
    assert [(step, micro) for step, micro, _ in line.masks] == [(s, m) for s in range(2) for m in range(4)]
    for step, lane, kept in line.masks:
        torch.manual_seed(device_seed(SEED, step, lane))
        assert torch.equal(kept, torch.nn.functional.dropout(torch.ones_like(kept), 0.5))


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_counts_are_in_steps_whatever_the_lanes(tmp_path, lanes):
    trainer, line = fit(tmp_path, steps=7, lanes=lanes)
    assert trainer.global_step == 7
    assert trainer.accumulate_grad_batches == lanes
    assert len(line.masks) == 7 * lanes
    assert line.validated == [3, 6]
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 7


def set_up(world: int, **options: Any) -> None:
    """What `setup` says about a Trainer of so many processes."""
    given = {"max_steps": 5, "accumulate_grad_batches": 1, "world_size": world, "val_check_interval": 1.0}
    trainer = SimpleNamespace(**given | {"datamodule": SimpleNamespace(lanes=6)} | options)
    Lanes().setup(trainer, SimpleNamespace(automatic_optimization=True), "fit")  # type: ignore[arg-type]


def test_processes_must_divide_the_lanes():
    with pytest.raises(
        ValueError, match=r"data.lanes=6 is not divisible by 4 processes; use one of \[1, 2, 3, 6\] pro"
    ):
        set_up(4)
    with pytest.raises(ValueError, match=r"or data.lanes=8 in a new run"):
        set_up(4)
    set_up(3)


def test_accumulation_cannot_be_set_beside_lanes():
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2 must stay 1: .* raise data.lanes instead"):
        set_up(1, accumulate_grad_batches=2)


def test_a_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"trainer.max_steps=-1, but the order of the data has no end"):
        set_up(1, max_steps=-1)


def test_data_without_a_plan_is_refused():
    with pytest.raises(ValueError, match=r"takes its steps from the plan of its data, and NoneType has none"):
        set_up(1, datamodule=None)


def test_a_module_that_joins_lanes_gets_all_of_a_step_at_once():
    given = {"max_steps": 5, "accumulate_grad_batches": 1, "world_size": 2, "val_check_interval": 3}
    data = SimpleNamespace(lanes=6, joins_lanes=False)
    trainer = SimpleNamespace(**given, datamodule=data)
    Lanes().setup(trainer, SimpleNamespace(automatic_optimization=True, joins_lanes=True), "fit")  # type: ignore[arg-type]
    assert data.joins_lanes
    assert (trainer.accumulate_grad_batches, trainer.val_check_interval) == (1, 3)


def resumed_at(steps: int, accumulate: int, every: Any = 6) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Training progress, validation progress and logged steps of a checkpoint, translated to a Trainer."""
    counts = dict.fromkeys(("ready", "started", "processed", "completed"), 77)
    progress = {name: {"total": counts.copy(), "current": counts.copy()} for name in ("train", "val")}
    loops = {
        "epoch_loop.batch_progress": progress["train"],
        "epoch_loop.val_loop.batch_progress": progress["val"],
        "epoch_loop.state_dict": {"_batches_that_stepped": 77},
    }
    trainer: Any = SimpleNamespace(
        accumulate_grad_batches=accumulate,
        val_check_interval=every,
        enable_validation=True,
        state=SimpleNamespace(fn="fit"),
    )
    module: Any = None
    Lanes().on_load_checkpoint(trainer, module, {"global_step": steps, "loops": {"fit_loop": loops}})
    return progress["train"], progress["val"], loops["epoch_loop.state_dict"]["_batches_that_stepped"]


def test_progress_is_translated_to_the_present_number_of_processes():
    train, val, logged = resumed_at(steps=5, accumulate=2)
    assert set(train["total"].values()) == set(train["current"].values()) == {10}
    assert set(val["total"].values()) == set(val["current"].values()) == {0}
    assert logged == 5


def test_a_validation_that_was_due_is_shown_as_begun():
    _, val, logged = resumed_at(steps=6, accumulate=2, every=6)
    assert val["total"] == {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    assert logged == 5  # counted up after the validation
    _, val, logged = resumed_at(steps=6, accumulate=2, every=None)
    assert (set(val["total"].values()), logged) == ({0}, 6)


# -- two processes -----------------------------------------------------------------------------------------------------


def on_rank(rank: int, folder: Path, port: int) -> None:
    """One of two processes: train from the start, and go on with a checkpoint of one process."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp", "gradient_clip_val": 0.5}
    _, line = fit(folder / "two", line=Line(dropout=0.5, momentum=0.9), **two)
    checkpoint = folder / "one" / "checkpoints" / "step-00000003.ckpt"
    trainer, resumed = fit(folder / "resumed", line=Line(dropout=0.5, momentum=0.9), ckpt_path=checkpoint, **two)
    result = {
        "line": weights(line),
        "masks": [(step, micro, kept) for step, micro, kept in line.masks],
        "resumed": weights(resumed),
        "validated": resumed.validated,
        "steps": trainer.global_step,
    }
    torch.save(result, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Line, list[dict[str, Any]]]:
    """The line of one process, and what two processes made of the same steps."""
    from mmflow.training.checkpoints import Checkpoints

    folder = tmp_path_factory.mktemp("both")
    kept = Checkpoints(every_steps=1, keep=9)
    _, line = fit(folder / "one", line=Line(dropout=0.5, momentum=0.9), checkpoints=kept, gradient_clip_val=0.5)
    on_two_ranks(on_rank, folder)
    return line, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(both):
    alone, ranks = both
    assert torch.equal(ranks[0]["line"], ranks[1]["line"])
    assert (ranks[0]["line"] - weights(alone)).abs().max() < 1e-7
    mine = {(step, lane): kept for step, lane, kept in alone.masks}
    for rank, result in enumerate(ranks):
        for step, micro, kept in result["masks"]:
            assert torch.equal(kept, mine[step, rank + 2 * micro])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(both):
    alone, ranks = both
    for result in ranks:
        assert (result["resumed"] - weights(alone)).abs().max() < 1e-7
        assert result["steps"] == 6
        assert result["validated"] == [3, 6]  # the first one was due where the checkpoint was made
