"""Span masks, valid positions and statistics over them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmflow.nn.masking import span_mask, standardize, valid_mask


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the runs of True in a row."""
    return [len(run) for run in "".join("x" if hidden else " " for hidden in row.tolist()).split()]


def test_valid_mask_marks_the_beginning_of_each_row():
    assert valid_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_standardize_uses_valid_positions_only():
    x = torch.tensor([[1.0, 3.0, 100.0], [2.0, 4.0, 9.0]])
    y = standardize(x, valid_mask(torch.tensor([2, 3]), 3), eps=0.0)
    assert torch.allclose(y[0], torch.tensor([-1.0, 1.0, 0.0]))
    assert torch.allclose(y[1], torch.tensor([-3.0, -1.0, 4.0]) / math.sqrt(26 / 3))


def test_the_hidden_share_is_far_below_mask_prob_because_spans_overlap():
    g = generator(0)
    share = sum(span_mask(torch.tensor([499]), generator=g).float().mean().item() for _ in range(1000)) / 1000
    assert 0.56 <= share <= 0.575


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 2**31))
def test_rows_hide_equally_many_frames_and_never_padding(lengths, seed):
    lengths = torch.tensor(lengths)
    mask = span_mask(lengths, generator=generator(seed))
    assert mask.shape == (len(lengths), lengths.max())
    assert not mask[~valid_mask(lengths, mask.shape[1])].any()
    counts = mask.sum(1)
    assert (counts == counts[0]).all()
    assert counts[0] >= 1


def test_a_single_row_hides_whole_spans_and_never_its_last_frame():
    g = generator(1)
    for _ in range(200):
        row = span_mask(torch.tensor([120]), generator=g)[0]
        assert min(runs(row)) >= 10
        assert not row[-1]  # starts lie in [0, T - span)


def test_spans_of_one_frame_without_overlap_hide_exactly_mask_prob():
    mask = span_mask(torch.tensor([100, 100]), mask_prob=0.5, span=1, generator=generator(0))
    assert mask.sum(1).tolist() == [50, 50]


def test_a_fraction_of_a_span_is_rounded_at_random():
    g = generator(0)
    counts = [span_mask(torch.tensor([10]), 0.25, 1, 1, g).sum().item() for _ in range(2000)]
    assert set(counts) == {2, 3}
    assert sum(counts) / 2000 == pytest.approx(2.5, abs=0.05)


def test_even_a_short_row_gets_its_minimum_of_spans():
    mask = span_mask(torch.tensor([40]), mask_prob=0.01, span=3, min_spans=5, generator=generator(0))
    assert 6 < mask.sum() <= 15  # 5 different starts of 3 frames


@pytest.mark.parametrize("length", range(1, 13))
def test_rows_shorter_than_a_span_still_hide_something(length):
    for seed in range(50):
        assert span_mask(torch.tensor([length]), generator=generator(seed)).any()


def test_rows_without_frames_hide_none_and_do_not_reduce_the_others():
    mask = span_mask(torch.tensor([100, 0, 100]), generator=generator(0))
    assert mask.sum(1)[1] == 0
    assert mask.sum(1)[0] == mask.sum(1)[2] > 30


def test_the_generator_decides_the_mask():
    lengths = torch.tensor([200, 150])
    first, again, other = (span_mask(lengths, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_frame_but_the_edges_is_hidden_equally_often():
    g = generator(0)
    often = torch.stack([span_mask(torch.tensor([60]), generator=g)[0] for _ in range(2000)]).float().mean(0)
    middle = often[10:49]  # frames that ten starts can hide
    assert middle.max() - middle.min() < 0.08
    assert often[0] < middle.min() / 3  # only a start at 0 hides frame 0


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"mask_prob=1\.5 is not a share"):
        span_mask(torch.tensor([10]), mask_prob=1.5)
    with pytest.raises(ValueError, match=r"span=0 and min_spans=2 must both be at least 1"):
        span_mask(torch.tensor([10]), span=0)
