import numpy as np
import pytest

from mmflow.world.guessers import accuracy, histograms, most_frequent, recall, shares


def test_most_frequent():
    assert most_frequent([("a", 1), ("a", 2), ("a", 2), ("b", 3), ("b", 4)]) == {"a": 2, "b": 3}


def test_accuracy_is_learnt_from_one_part_and_found_on_the_other():
    assert accuracy([("a", 1), ("a", 1), ("a", 2)], [("a", 1), ("a", 2), ("b", 1)]) == pytest.approx(1 / 3)


def test_shares():
    assert shares({"b": [(1, 0), (0, 0)], "a": [(1, 1)]}, ("one", "other")) == {
        "a/one": 1, "a/other": 1, "b/one": 0.5, "b/other": 0
    }  # fmt: skip


def test_histograms_of_colours():
    pixels = np.zeros((3, 4), np.float32)  # four pixels: two black, two white
    pixels[:, 2:] = 1
    (found,) = histograms([{"pixels": pixels.ravel()}])
    assert found[0] == found[63] == 0.5
    assert found[64] == 1  # the constant
    assert found.sum() == 2


def test_recall_by_hand():
    similar = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert recall(similar, 1) == pytest.approx(1 / 3)
    assert recall(similar, 2) == pytest.approx(2 / 3)
    assert recall(np.zeros((4, 4)), 1) == 1 / 4  # draws among equals
    assert recall(np.zeros((4, 4)), 10) == 1
