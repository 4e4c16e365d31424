"""A loss that is not a number stops the run before the weights see it."""

import json

import pytest
import torch

from tests.training.toy import Line, files, fit, points, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers


class Sick(Line):
    """Its loss is not finite in the third micro-batch of step 3."""

    value = float("nan")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if batch_idx == 3 * 4 + 2 else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_step_the_rank_and_the_samples_are_named_and_the_weights_stay(tmp_path, value):
    sick = Sick()
    sick.value = value
    with pytest.raises(
        FloatingPointError, match=rf"the loss is {value} at step 3, rank 0; the batch's 6 samples"
    ) as told:
        fit(tmp_path, line=sick)
    assert str(tmp_path / "bad_batch.json") in str(told.value)
    assert json.loads((tmp_path / "bad_batch.json").read_text()) == {
        "step": 3,
        "rank": 0,
        "samples": [["s", key] for key in points(3, 2)["__key__"]],
    }
    assert files(tmp_path) == ["best-step-00000003.ckpt", "step-00000002.ckpt"]
    saved = torch.load(tmp_path / "checkpoints" / "best-step-00000003.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights(sick)[:3], saved["line.weight"][0])


def test_a_finite_loss_passes(tmp_path):
    fit(tmp_path)
    assert not (tmp_path / "bad_batch.json").exists()
