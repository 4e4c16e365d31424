"""The gradient of a step is that of the mean over all of its items, however they are cut into micro-batches."""

import pytest
import torch
from torch import Tensor

from tests.training.toy import Line, fit, points, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers


def mean_gradient(lanes: int) -> Tensor:
    """Of the first step, over all points of all lanes at once: (4,)."""
    line = Line()
    batches = [points(0, lane) for lane in range(lanes)]
    x, y = torch.cat([b["x"] for b in batches]), torch.cat([b["y"] for b in batches])
    (line.line(x)[:, 0] - y).square().mean().backward()
    assert line.line.weight.grad is not None
    assert line.line.bias.grad is not None
    return torch.cat([line.line.weight.grad[0], line.line.bias.grad])


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_a_step_follows_the_mean_over_all_items_of_all_micro_batches(tmp_path, lanes):
    _, line = fit(tmp_path, steps=1, lanes=lanes, val_check_interval=9, checkpoints=None)
    expected = weights(Line()) - 0.05 * mean_gradient(lanes)
    assert torch.allclose(weights(line), expected, atol=1e-6)  # the scale is fp32


def test_the_mean_per_micro_batch_would_be_another():
    sizes = [len(points(0, lane)["x"]) for lane in range(4)]
    assert sizes == [1, 6, 4, 2]
    means = torch.stack(
        [(Line().line(points(0, lane)["x"])[:, 0] - points(0, lane)["y"]).square().mean() for lane in range(4)]
    )
    total = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / 13
    assert (means.mean() - total).abs() > 0.1


def test_clipping_sees_the_gradient_of_the_mean(tmp_path):
    gradient = mean_gradient(4)
    norm = float(gradient.norm())
    (tmp_path / "above").mkdir()
    _, line = fit(tmp_path / "above", steps=1, val_check_interval=9, gradient_clip_val=norm * 1.01)
    assert torch.allclose(weights(line), weights(Line()) - 0.05 * gradient, atol=1e-6)
    _, line = fit(tmp_path / "below", steps=1, val_check_interval=9, gradient_clip_val=norm / 4)
    assert torch.allclose(weights(line), weights(Line()) - 0.05 * gradient / 4, atol=1e-6)
