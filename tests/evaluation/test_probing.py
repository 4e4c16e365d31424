"""Probes of frozen features, beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from mmflow.evaluation.probing import (
    Labelled,
    accuracy,
    few_of_each,
    knn_scores,
    linear_probe,
    logistic_regression,
    ridge_scores,
)

CLASSES = 3


def blobs(count: int, seed: int, spread: float = 1.5) -> Labelled:
    """Three overlapping clouds in four dimensions, of which one is constant."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    features = spread * torch.randn(count, 4, generator=draw) + 2 * torch.eye(4)[labels]
    features[:, 3] = 7.0
    return Labelled(features, labels)


@pytest.mark.parametrize("l2", [1e-4, 0.03, 1.0])
def test_the_regression_is_scikit_learns(l2):
    train, test = blobs(200, 0), blobs(50, 1)
    weight, bias = logistic_regression(Labelled(train.features.double(), train.labels), CLASSES, l2)
    theirs = LogisticRegression(C=1 / (200 * l2), tol=1e-8, max_iter=5000).fit(train.features, train.labels)
    mine = (test.features.double() @ weight.T + bias).softmax(1)
    assert np.abs(mine.numpy() - theirs.predict_proba(test.features)).max() < 1e-4


def test_the_strength_is_the_best_on_validation_and_of_equals_the_strongest():
    train, validation, test = blobs(60, 0), blobs(200, 1), blobs(500, 2)
    found = linear_probe(train, validation, test, CLASSES, strengths=[1e-5, 0.1, 1000.0])
    alone = {l2: linear_probe(train, validation, test, CLASSES, strengths=[l2]) for l2 in (1e-5, 0.1, 1000.0)}
    best = max(alone.values(), key=lambda probe: (probe["validation"], probe["l2"]))
    assert found == best
    assert found["accuracy"] > 0.6
    assert {probe["validation"] for probe in alone.values()} != {best["validation"]}


def test_what_is_constant_or_huge_does_no_harm():
    train, validation, test = blobs(200, 0), blobs(100, 1), blobs(300, 2)
    plain = linear_probe(train, validation, test, CLASSES)
    scaled = [Labelled(1e6 * part.features + 3e6, part.labels) for part in (train, validation, test)]
    assert linear_probe(*scaled, CLASSES)["accuracy"] == pytest.approx(plain["accuracy"], abs=0.02)


def test_a_probe_works_within_inference_mode():
    with torch.inference_mode():
        train = blobs(100, 0)
        assert linear_probe(train, blobs(50, 1), blobs(50, 2), CLASSES)["accuracy"] > 0.5


@pytest.mark.parametrize("k", [1, 10, 100])
def test_neighbours_vote_as_scikit_learns_do(k):
    train, test = blobs(300, 0), blobs(80, 1)
    x, new = (torch.nn.functional.normalize(part.features, dim=1).numpy() for part in (train, test))

    def weights(distances):  # of vectors of length 1: their square is 2 - 2 cosine
        return np.exp((1 - distances**2 / 2) / 0.07)

    theirs = KNeighborsClassifier(k, weights=weights, algorithm="brute").fit(x, train.labels)
    mine = knn_scores(train, test.features, CLASSES, k)
    assert np.abs((mine / mine.sum(1, keepdim=True)).numpy() - theirs.predict_proba(new)).max() < 1e-4


def test_more_neighbours_than_pictures_are_refused():
    with pytest.raises(ValueError, match=r"k=20 neighbours of 5 training pictures; give at least 1 and at most all"):
        knn_scores(blobs(5, 0), blobs(5, 0).features, CLASSES)


def test_least_squares_are_scikit_learns():
    train, test = blobs(30, 0), blobs(40, 1)
    ones = [np.hstack([part.features.numpy(), np.ones((len(part.labels), 1))]) for part in (train, test)]
    targets = 2 * np.eye(CLASSES)[train.labels] - 1
    theirs = Ridge(alpha=0.5, fit_intercept=False).fit(ones[0], targets).predict(ones[1])
    assert np.abs(ridge_scores(train, test.features, CLASSES, l2=0.5).numpy() - theirs).max() < 1e-6


def test_a_few_of_each_class_are_drawn():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 9)
    rows = few_of_each(labels, 3)
    assert labels[rows].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(rows.unique()) == 9
    assert torch.equal(rows, few_of_each(labels, 3))
    assert not torch.equal(rows, few_of_each(labels, 3, seed=1))
    with pytest.raises(ValueError, match="class 1 has 3 pictures, fewer than 4; ask for fewer shots"):
        few_of_each(labels, 4)


def test_accuracy_is_the_share_of_the_highest():
    assert accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)
