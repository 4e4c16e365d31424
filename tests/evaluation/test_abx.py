"""Warping against all paths, triples of the right kind, and errors that are known in advance."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmflow.evaluation.abx import abx_error, sample_triples, segment_distances, warped_distance


def paths(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """All ways from (0, 0) to the last cell."""
    if (rows, columns) == (1, 1):
        return [[(0, 0)]]
    before = [(h, w) for h, w in ((rows - 1, columns - 1), (rows - 1, columns), (rows, columns - 1)) if h and w]
    return [[*path, (rows - 1, columns - 1)] for shape in before for path in paths(*shape)]


def by_brute_force(distances: Tensor) -> float:
    walks = [[float(distances[cell]) for cell in path] for path in paths(*distances.shape)]
    cheapest = min(walks, key=sum)
    return sum(cheapest) / len(cheapest)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_warping_takes_the_cheapest_of_all_paths(height, width, seed):
    draw = torch.Generator().manual_seed(seed)
    distances = torch.rand(4, height, width, dtype=torch.float64, generator=draw)
    rows, columns = (torch.randint(1, size + 1, (4,), generator=draw) for size in (height, width))
    found = warped_distance(distances, rows, columns)
    for pair in range(4):
        expected = by_brute_force(distances[pair, : rows[pair], : columns[pair]])
        assert float(found[pair]) == pytest.approx(expected, rel=1e-12)


def test_warping_by_hand():
    # The diagonal costs 1 + 5 + 1; round the corner it is 1 + 2 + 0 + 1 in four cells.
    distances = torch.tensor([[1.0, 2.0, 9.0], [9.0, 5.0, 0.0], [9.0, 9.0, 1.0]])
    whole = warped_distance(distances[None], torch.tensor([3]), torch.tensor([3]))
    assert whole.tolist() == [pytest.approx(4 / 4)]
    assert warped_distance(distances[None], torch.tensor([2]), torch.tensor([2])).tolist() == [pytest.approx(6 / 2)]


def test_segments_are_as_far_apart_as_their_angles_whatever_their_loudness():
    right, up, left = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    frames = torch.tensor([right, up, [0.0, 7.0], left, [3.0, 0.0]])
    starts, lengths = torch.tensor([0, 1, 3, 4]), torch.tensor([2, 2, 1, 1])  # right up | up up | left | right
    pairs = torch.tensor([[0, 1], [1, 2], [0, 3], [2, 3]])
    expected = [0.25, 0.5, 0.25, 1.0]  # in units of pi; right up against up up is 0.5 and then 0
    assert segment_distances(frames, starts, lengths, pairs).tolist() == pytest.approx(expected, abs=1e-6)


def test_an_error_by_hand():
    def angle(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    frames = torch.tensor([angle(0), angle(30), angle(20), angle(0)])
    triples = torch.tensor([[0, 1, 2], [1, 0, 2], [0, 3, 1]])  # X nearer to B; to A; equally near
    one = torch.ones(4, dtype=torch.int64)
    assert abx_error(frames, torch.arange(4), one, triples) == pytest.approx((1 + 0 + 0.5) / 3)


def corpus(spread: float, seed: int = 0) -> tuple[list[str], list[int], Tensor, Tensor, Tensor]:
    """Phones, speakers, frames, starts and lengths of 300 segments of 5 phones, `spread` about a direction of each."""
    draw = torch.Generator().manual_seed(seed)
    phones = torch.randint(5, (300,), generator=draw)
    lengths = torch.randint(1, 9, (300,), generator=draw)
    centres = torch.eye(5, 16)[phones.repeat_interleave(lengths)]
    frames = centres + spread * torch.randn(centres.shape, generator=draw)
    speakers = torch.randint(3, (300,), generator=draw).tolist()
    return [f"p{phone}" for phone in phones.tolist()], speakers, frames, lengths.cumsum(0) - lengths, lengths


@pytest.mark.parametrize("across", [False, True])
def test_separate_phones_are_told_apart_and_noise_is_chance(across):
    phones, speakers, frames, starts, lengths = corpus(0.01)
    triples = sample_triples(phones, speakers, 3000, 0, across)
    assert abx_error(frames, starts, lengths, triples) == 0.0
    assert 0.02 < abx_error(corpus(0.5)[2], starts, lengths, triples) < 0.4
    # Triples share 300 segments, so their errors vary together and the tolerance is wide.
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    assert abx_error(noise, starts, torch.full_like(lengths, 1), triples) == pytest.approx(0.5, abs=0.03)
    assert abx_error(torch.ones_like(frames), starts, lengths, triples) == 0.5


@pytest.mark.parametrize("across", [False, True])
def test_triples_are_of_two_phones_and_the_right_speakers(across):
    phones, speakers, *_ = corpus(0.0)
    triples = sample_triples(phones, speakers, 1000, 0, across)
    assert triples.shape == (1000, 3)
    for a, b, x in triples.tolist():
        assert phones[a] == phones[x] != phones[b]
        assert speakers[a] == speakers[b]
        assert (speakers[x] != speakers[a]) == across
        assert a != x
    pairs = Counter((phones[a], phones[b]) for a, b, _ in triples.tolist())
    assert set(pairs.values()) == {50}  # of each of 5 * 4
    speaker = Counter(speakers[a] for a, _, _ in triples.tolist())
    assert min(speaker.values()) > 270  # a third each, within 4 standard deviations
    assert torch.equal(triples, sample_triples(phones, speakers, 1000, 0, across))
    assert not torch.equal(triples, sample_triples(phones, speakers, 1000, 1, across))


def test_where_no_triple_can_be_made_there_is_none():
    assert sample_triples(["a", "b"], [0, 0], 5, 0).shape == (0, 3)  # no second a, no second b
    assert sample_triples(["a", "a", "b"], [0, 0, 0], 5, 0, across=True).shape == (0, 3)  # one speaker
    assert sample_triples(["a", "a"], [0, 0], 5, 0).shape == (0, 3)  # one phone
    assert sample_triples([], [], 5, 0).shape == (0, 3)
    assert sample_triples(["a", "a", "b"], [0, 0, 0], 4, 0)[:, 1].tolist() == [2] * 4
