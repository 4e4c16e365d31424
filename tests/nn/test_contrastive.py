"""Losses that tell pairs apart: closed forms, a few lines of another way, and the scale they are learnt with."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmflow.nn.contrastive import Similarity


def features(count, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator), dim=1)


def test_info_nce_of_orthogonal_pairs():
    """Each row is (s, 0, ..., 0), so its cross entropy is log(1 + (B - 1) exp(-s))."""
    similarity, eye = Similarity(scale=3.0), torch.eye(5)
    assert similarity.loss_sum(eye, eye, eye, eye, 0).item() == pytest.approx(
        5 * math.log(1 + 4 * math.exp(-3)), rel=1e-6
    )
    assert Similarity(scale=100.0).loss_sum(eye, eye, eye, eye, 0) < 1e-6


def test_info_nce_of_equal_features_is_log_of_their_number():
    u = torch.ones(7, 1)
    assert Similarity().loss_sum(u, u, u, u, 0).item() / 7 == pytest.approx(math.log(7), rel=1e-6)


def test_sigmoid_of_orthogonal_pairs():
    """B pairs with logit s + b, B (B - 1) others with b."""
    similarity, eye = Similarity("sigmoid", scale=4.0), torch.eye(3)
    with torch.no_grad():
        similarity.bias.fill_(-1.0)
    expected = 3 * math.log(1 + math.exp(-3)) + 6 * math.log(1 + math.exp(-1))
    assert similarity.loss_sum(eye, eye, eye, eye, 0).item() == pytest.approx(expected, rel=1e-6)


def test_sigmoid_is_that_of_the_paper_s_pseudo_code():
    similarity, u, v = Similarity("sigmoid"), features(9), features(9, seed=1)
    signs = 2 * torch.eye(9) - 1
    expected = -F.logsigmoid(signs * (10 * u @ v.T - 10)).sum()
    torch.testing.assert_close(similarity.loss_sum(u, v, u, v, 0), expected)


@pytest.mark.parametrize("count", [16, 128, 1024])
def test_the_sigmoid_s_first_loss_is_about_10_whatever_the_batch(count):
    similarity, u, v = Similarity("sigmoid"), features(count, 2048), features(count, 2048, seed=1)
    loss = similarity.loss_sum(u, v, u, v, 0) / count
    loss.backward()
    assert 9.9 < loss < 11
    assert -1.0 <= similarity.bias.grad <= -0.9


@pytest.mark.parametrize("objective", ["info_nce", "sigmoid"])
def test_parts_of_a_batch_add_up_to_all_of_it(objective):
    similarity = Similarity(objective)
    u, v = features(12).requires_grad_(), features(12, seed=1).requires_grad_()
    whole = similarity.loss_sum(u, v, u, v, 0)
    parts = [similarity.loss_sum(u[n : n + 4], v[n : n + 4], u, v, n) for n in (0, 4, 8)]
    torch.testing.assert_close(sum(parts), whole)
    leaves = [u, v, *similarity.parameters()]
    expected, found = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (whole, sum(parts)))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_both_directions_count_in_info_nce():
    """A picture that lies near all texts spoils the choice of a picture for each text, not the other."""
    similarity = Similarity(scale=10.0)
    u, v = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    rows, columns = torch.tensor([[10.0, 0.0], [10.0, 0.0]]), torch.tensor([[10.0, 10.0], [0.0, 0.0]])
    target = torch.arange(2)
    expected = (F.cross_entropy(rows, target) + F.cross_entropy(columns, target)) / 2
    torch.testing.assert_close(similarity.loss_sum(u, v, u, v, 0) / 2, expected)


@pytest.mark.parametrize(("objective", "scale", "parameters"), [("info_nce", 1 / 0.07, 1), ("sigmoid", 10.0, 2)])
def test_scales_begin_as_published(objective, scale, parameters):
    similarity = Similarity(objective)
    assert similarity.log_scale.item() == pytest.approx(math.log(scale), rel=1e-6)
    assert sum(p.numel() for p in similarity.parameters()) == parameters
    assert Similarity(objective, scale=50.0).log_scale.exp().item() == pytest.approx(50, rel=1e-6)


def test_the_scale_stays_in_1_to_100_and_goes_on_learning():
    similarity, u = Similarity(), features(4).requires_grad_()
    optimizer = torch.optim.SGD(similarity.parameters(), lr=1.0)
    similarity.log_scale.grad = torch.tensor(-1000.0)
    optimizer.step()
    similarity.clamp()
    assert similarity.log_scale.item() == pytest.approx(4.605170, abs=1e-6)
    similarity.zero_grad()
    similarity.loss_sum(u, features(4, seed=1), u, features(4, seed=1), 0).backward()
    assert similarity.log_scale.grad > 0
    with torch.no_grad():
        similarity.log_scale.fill_(-3.0)
    similarity.clamp()
    assert similarity.log_scale == 0


def test_published_scales_of_the_sigmoid_are_kept():
    similarity = Similarity("sigmoid")
    with torch.no_grad():
        similarity.log_scale.fill_(4.77)  # 118
    similarity.clamp()
    assert similarity.log_scale.item() == pytest.approx(4.77)


def test_logits_are_computed_in_fp32_under_autocast():
    similarity, u, v = Similarity(scale=100.0), features(8), features(8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        logits, loss = similarity(u, v), similarity.loss_sum(u, v, u, v, 0)
    assert logits.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(logits, 100 * u @ v.T)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="objective='triplet' is unknown; take info_nce or sigmoid"):
        Similarity("triplet")
    with pytest.raises(ValueError, match=r"scale=0\.07 multiplies cosines; it must be in 1\.\.100"):
        Similarity(scale=0.07)
