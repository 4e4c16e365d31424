"""Dropout from 16 bits a number."""

import pytest
import torch

from mmflow.nn.attention import SelfAttention
from mmflow.nn.dropout import Dropout, DropPath, dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_as_many_elements_are_dropped_as_asked_and_the_others_scaled(p):
    torch.manual_seed(0)
    y = dropout(torch.ones(1000, 1001), p, training=True)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=2e-3)
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=2e-4)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(4_000_000), 0.5, training=True) != 0).float().view(-1, 4)  # four share one draw
    assert torch.allclose(torch.corrcoef(kept.T), torch.eye(4), atol=5e-3)
    assert torch.allclose(kept.mean(0), torch.full((4,), 0.5), atol=2e-3)


def test_the_gradient_passes_where_the_value_does():
    x = torch.ones(50, 3, requires_grad=True)
    y = dropout(x, 0.5, training=True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


def test_the_seed_decides_what_is_dropped():
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append(dropout(torch.ones(33), 0.5, training=True))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], dropout(torch.ones(33), 0.5, training=True))


@pytest.mark.parametrize(("p", "training", "expected"), [(0.0, True, 1.0), (1.0, True, 0.0), (0.5, False, 1.0)])
def test_nothing_is_drawn_where_nothing_is_random(p, training, expected):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module = Dropout(p).train(training)
    assert torch.equal(module(torch.ones(2, 5)), torch.full((2, 5), expected))
    assert p == 1.0 or torch.equal(torch.get_rng_state(), before)


def test_half_precision_and_empty_tensors_keep_their_type_and_shape():
    y = dropout(torch.ones(3, 5, dtype=torch.bfloat16), 0.5, training=True)
    assert (y.dtype, y.shape) == (torch.bfloat16, (3, 5))
    assert dropout(torch.empty(0, 4), 0.5, training=True).shape == (0, 4)


def test_attention_with_dropout_is_torchs_on_average_and_hides_the_same_keys(monkeypatch):
    torch.manual_seed(0)
    attention, x = SelfAttention(24, 4, dropout=0.3).train(), torch.randn(2, 7, 24)
    valid = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None]
    expected = attention.eval()(x, valid)  # the fused kernel
    attention.train()
    mean = torch.stack([attention(x, valid) for _ in range(2000)]).mean(0)
    assert (mean - expected).abs().max() < 0.03
    monkeypatch.setattr("mmflow.nn.attention.dropout", lambda weights, p, training: weights)
    assert torch.allclose(attention(x, valid), expected, atol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    path, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = path(x)
    kept = y[:, 0, 0] > 0
    assert torch.equal(y, kept[:, None, None] * torch.full_like(x, 1 / 0.75))
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(path.eval()(x), x)


def test_a_drop_path_of_one_is_refused():
    with pytest.raises(ValueError, match="drop_path=1 is a probability; give at least 0 and less than 1"):
        DropPath(1)
