"""Purities, PNMI and the phones under frames."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from mmflow.evaluation.clustering import (
    UNKNOWN,
    ClusterQuality,
    cluster_purity,
    entropy,
    joint_counts,
    phone_frames,
    phone_purity,
    phone_spans,
    pnmi,
)

# Two phones, three clusters, 10 frames.
JOINT = torch.tensor([[4, 0, 1], [1, 3, 1]])


def test_joint_counts_leave_out_frames_without_a_phone():
    joint = joint_counts(torch.tensor([0, 0, 1, UNKNOWN]), torch.tensor([2, 2, 0, 1]), 2, 3)
    assert joint.tolist() == [[0, 0, 2], [1, 0, 0]]
    assert joint.dtype == torch.int64


def test_purities_of_a_small_case():
    assert phone_purity(JOINT) == pytest.approx((4 + 3 + 1) / 10)
    assert cluster_purity(JOINT) == pytest.approx((4 + 3) / 10)


def test_pnmi_of_a_small_case():
    # I = sum p ln(p / (p_phone p_unit)), both phones have 1/2; the units have 5/10, 3/10 and 2/10.
    information = 0.4 * math.log(0.4 / 0.25) + 0.1 * math.log(0.1 / 0.25) + 0.3 * math.log(0.3 / 0.15)
    information += 0.1 * math.log(0.1 / 0.1) * 2
    assert pnmi(JOINT) == pytest.approx(information / math.log(2))
    assert pnmi(JOINT) == pytest.approx(0.43903595, abs=1e-8)


def test_pnmi_is_one_for_renamed_phones_and_zero_for_independent_units():
    assert pnmi(torch.tensor([[0, 5, 0], [3, 0, 0], [0, 0, 9]])) == pytest.approx(1.0)
    assert pnmi(torch.tensor([[2, 4], [3, 6]])) == pytest.approx(0.0, abs=1e-12)


def test_pnmi_of_one_phone_is_not_a_number():
    assert math.isnan(pnmi(torch.tensor([[2, 3]])))


def test_entropy_of_equal_counts_is_the_logarithm_of_their_number():
    assert entropy(torch.tensor([7, 7, 7, 0])) == pytest.approx(math.log(3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=2, max_size=60))
def test_pnmi_agrees_with_scikit_learn(pairs):
    phones, units = np.array(pairs).T
    joint = joint_counts(torch.from_numpy(phones), torch.from_numpy(units), 5, 7)
    of_phones = mutual_info_score(phones, phones)  # H(phone)
    if of_phones > 0:
        assert pnmi(joint) == pytest.approx(mutual_info_score(phones, units) / of_phones, abs=1e-9)


def test_quality_of_two_utterances():
    quality = ClusterQuality(num_phones=2, num_clusters=4)
    quality.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 3]))
    quality.update(torch.tensor([1, UNKNOWN]), torch.tensor([3, 1]).to(torch.uint8))
    result = quality.compute()
    assert quality.joint.tolist() == [[2, 0, 0, 0], [1, 0, 0, 2]]
    assert result["phone_purity"] == pytest.approx(4 / 5)
    assert result["cluster_purity"] == pytest.approx(4 / 5)
    assert result["pnmi"] == pytest.approx(pnmi(quality.joint))
    assert result["used_clusters"] == 3
    assert result["unit_entropy"] == pytest.approx(-(3 * math.log(3 / 6) + 2 * math.log(2 / 6) + math.log(1 / 6)) / 6)
    assert result["segment_frames"] == pytest.approx(6 / 4)  # 000 3 | 3 1: an utterance ends a run


def test_quality_of_parts_adds_up():
    """torchmetrics sums these states over ranks."""
    draw = torch.Generator().manual_seed(0)
    utterances = [torch.randint(3, (2, 50), generator=draw) for _ in range(6)]
    whole, parts = ClusterQuality(3, 3), [ClusterQuality(3, 3), ClusterQuality(3, 3)]
    for number, (phones, units) in enumerate(utterances):
        whole.update(phones, units)
        parts[number % 2].update(phones, units)
    assert whole._reductions.keys() == {"joint", "unit_counts", "runs"}
    for state in whole._reductions:
        assert torch.equal(getattr(parts[0], state) + getattr(parts[1], state), getattr(whole, state))


def test_a_reset_quality_starts_again():
    quality = ClusterQuality(2, 2)
    quality.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    quality.reset()
    assert quality.joint.sum() == 0


def test_quality_refuses_what_does_not_fit():
    quality = ClusterQuality(2, 4)
    with pytest.raises(ValueError, match=r"phones \(3,\) and units \(2,\) are not one number per frame"):
        quality.update(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"unit 4 is not below 4"):
        quality.update(torch.tensor([0]), torch.tensor([4]))
    with pytest.raises(ValueError, match=r"phone 2 is not below 2"):
        quality.update(torch.tensor([2]), torch.tensor([0]))


def test_without_phones_only_the_units_are_measured():
    quality = ClusterQuality(1, 4)
    quality.update(torch.full((4,), UNKNOWN), torch.tensor([2, 2, 3, 3]))
    expected = {"unit_entropy": pytest.approx(math.log(2)), "used_clusters": 2, "segment_frames": 2.0}
    assert quality.compute() == expected


def test_frames_take_the_phone_at_their_centre():
    # Centres are at 12.5, 32.5, 52.5, 72.5, 92.5 ms.
    phones = [[0.0, 0.0325, "a"], [0.0325, 0.06, "b"], [0.08, 1.0, "a"]]
    assert phone_frames(phones, 5, ["b", "a"]).tolist() == [1, 0, 0, UNKNOWN, 1]


def test_spans_are_the_frames_under_each_phone():
    phones = [[0.0, 0.0325, "a"], [0.0325, 0.06, "b"], [0.06, 0.07, "c"], [0.08, 1.0, "a"]]
    assert phone_spans(phones, 5) == [(0, 1), (1, 3), (3, 3), (4, 5)]
    assert phone_spans([], 5) == []


def test_no_phones_and_no_frames_give_nothing():
    assert phone_frames([], 2, ["a"]).tolist() == [UNKNOWN, UNKNOWN]
    assert phone_frames([[0, 1, "a"]], 0, ["a"]).shape == (0,)


def test_a_phone_outside_the_inventory_is_refused():
    with pytest.raises(ValueError, match=r"phone 'x' at 0.5 s is not among the 2 of the inventory \(a, b\)"):
        phone_frames([[0.5, 1.0, "x"]], 4, ["a", "b"])
