"""The average of the weights is what is evaluated and kept, and a run goes on exactly wherever it was stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from mmflow.training.checkpoints import Checkpoints
from mmflow.training.ema import WeightEMA
from tests.training.toy import Line, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

DECAY = 0.75


class Notes(Callback):
    """The weights after each step and in each validation; saves a checkpoint in the middle of the first validation."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.trained.append(weights(pl_module).clone())

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, number: int, *_: Any
    ) -> None:
        if number == 0:
            self.validated.append(weights(pl_module).clone())
            if len(self.validated) == 1:
                trainer.save_checkpoint(Path(trainer.default_root_dir) / "validating.ckpt")


def averages(trained: list[torch.Tensor]) -> list[torch.Tensor]:
    found = [trained[0]]
    for own in trained[1:]:
        found.append(DECAY * found[-1] + (1 - DECAY) * own)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Notes, Line]:
    """Six steps of a lane, a checkpoint after each, validated after the third and the sixth."""
    folder, notes = tmp_path_factory.mktemp("run"), Notes()
    kept = Checkpoints(every_steps=1, keep=9, monitor="val/loss")
    _, line = fit(folder, lanes=1, callbacks=[WeightEMA(DECAY), notes], checkpoints=kept)
    return folder, notes, line


def stored(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(path, weights_only=True)
    parts = {"average": checkpoint["state_dict"], "own": checkpoint["current_model_state"]}
    return {name: torch.cat([state["line.weight"][0], state["line.bias"]]) for name, state in parts.items()}


def test_it_validates_and_returns_the_average_and_trains_on_with_its_own_weights(run):
    _, notes, line = run
    expected = averages(notes.trained)
    assert (expected[2] - notes.trained[2]).abs().max() > 0.01
    assert torch.allclose(notes.validated[0], expected[2])
    assert torch.allclose(notes.validated[1], expected[5])
    assert torch.allclose(weights(line), expected[5])
    _, plain = fit(run[0] / "plain", lanes=1)  # the same steps without it
    assert torch.equal(weights(plain), notes.trained[5])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoints/step-00000002.ckpt", 2),
        ("checkpoints/best-step-00000006.ckpt", 6),
        ("validating.ckpt", 3),
        ("checkpoints/step-00000006.ckpt", 6),
    ],
)
def test_a_checkpoint_holds_the_average_as_its_weights_and_beside_it_those_that_learn(run, name, step):
    folder, notes, _ = run
    found = stored(folder / name)
    assert torch.allclose(found["average"], averages(notes.trained)[step - 1])
    assert torch.equal(found["own"], notes.trained[step - 1])


@pytest.mark.parametrize(
    "name", ["checkpoints/step-00000002.ckpt", "checkpoints/step-00000003.ckpt", "validating.ckpt"]
)
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path, name):
    folder, _, line = run
    _, resumed = fit(tmp_path, lanes=1, callbacks=[WeightEMA(DECAY)], ckpt_path=folder / name)
    assert torch.equal(weights(resumed), weights(line))


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"decay=1.0 is the share of the average that stays; give at least 0 and less"):
        WeightEMA(1.0)
