"""Nearest centroids, Lloyd sums, k-means++ and the refilling of empty clusters."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from mmflow.nn.kmeans import Lloyd, Targets, best_start, farthest, full_precision, kmeans_plus_plus, nearest, refill


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(num: int, dim: int, k: int, spread: float = 0.5, seed: int = 0) -> Tensor:
    """(num, dim) float32: overlapping Gaussians around k random places."""
    draw = generator(seed)
    middles = torch.randn(k, dim, generator=draw)
    which = torch.randint(k, (num,), generator=draw)
    return middles[which] + spread * torch.randn(num, dim, generator=draw)


def exact_labels(frames: Tensor, centroids: Tensor) -> Tensor:
    """By differences in float64, without any product."""
    return torch.stack([(frames.double() - c).square().sum(1) for c in centroids.double()], 1).argmin(1)


def lloyd(frames: Tensor, centroids: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    inertias, step = [], Lloyd(frames)
    for _ in range(steps):
        sums, counts, inertia = step(centroids)
        inertias.append(float(inertia))
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        empty = int((counts == 0).sum())
        centroids, _ = refill(means, counts, frames[farthest(frames, centroids, empty)[0]])
    return centroids, inertias


# -- nearest -----------------------------------------------------------------------------------------------------------


def test_nearest_gives_labels_and_squared_distances():
    frames = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    labels, distances = nearest(frames, torch.tensor([[9.0, 0.0], [0.0, 1.0]]))
    assert labels.tolist() == [1, 1, 0]
    assert distances.tolist() == [1.0, 18.0, 1.0]
    assert (labels.dtype, distances.dtype) == (torch.int64, torch.float64)


def test_of_equally_near_centroids_the_first_wins():
    centroids = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    assert nearest(torch.tensor([[0.0], [2.0]]), centroids)[0].tolist() == [1, 1]


def test_no_frames_have_no_labels():
    labels, distances = nearest(torch.empty(0, 3), torch.zeros(2, 3))
    assert (labels.shape, distances.shape) == ((0,), (0,))


@settings(max_examples=20, deadline=None)
@given(chunk=st.integers(1, 700), seed=st.integers(0, 5))
def test_labels_and_distances_do_not_depend_on_the_chunk(chunk, seed):
    frames = blobs(600, 7, 9, seed=seed)
    centroids = blobs(9, 7, 9, seed=seed + 100)
    labels, distances = nearest(frames, centroids, chunk)
    whole = nearest(frames, centroids)
    assert torch.equal(labels, whole[0])
    assert torch.equal(distances, whole[1])


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize("dim", [2, 39])
def test_labels_are_those_of_float64_whatever_the_offset(offset, dim):
    frames = blobs(20_000, dim, 50) + offset  # 1000 takes 10 of fp32's 24 bits
    centroids = frames[:50].double() + 1e-3
    assert torch.equal(nearest(frames, centroids)[0], exact_labels(frames, centroids))


def test_what_fp32_cannot_tell_apart_is_decided_by_the_float64_centroids():
    frames = torch.ones(1, 1)
    centroids = torch.tensor([[0.0], [2.0 - 1e-12]], dtype=torch.float64)
    assert nearest(frames, centroids)[0].tolist() == [1]


def test_a_far_outlier_does_not_blur_the_others():
    frames = torch.cat([blobs(5000, 4, 8), torch.full((1, 4), 1e6)])
    centroids = frames[-20:].double()
    assert torch.equal(nearest(frames, centroids)[0], exact_labels(frames, centroids))


def test_autocast_and_reduced_matmul_precision_change_nothing():
    frames, centroids = blobs(5000, 39, 50), blobs(50, 39, 50)
    expected = nearest(frames, centroids)[0]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert (frames @ centroids.T).dtype == torch.bfloat16  # what would happen
            labels = nearest(frames, centroids)[0]
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(labels, expected)


# -- Lloyd -------------------------------------------------------------------------------------------------------------


def test_sums_of_a_small_case():
    frames = torch.tensor([[0.0, 1.0], [0.0, 3.0], [10.0, 0.0]])
    sums, counts, inertia = Lloyd(frames)(torch.tensor([[0.0, 2.0], [9.0, 0.0], [99.0, 99.0]]))
    assert sums.tolist() == [[0.0, 4.0], [10.0, 0.0], [0.0, 0.0]]
    assert counts.tolist() == [2, 1, 0]
    assert inertia == pytest.approx(3.0, rel=1e-14)
    assert (sums.dtype, counts.dtype, inertia.dtype) == (torch.float64, torch.int64, torch.float64)


def test_sums_of_parts_add_up_to_those_of_the_whole():
    frames, centroids = blobs(5000, 39, 20) + 1000, blobs(20, 39, 20) + 1000
    whole = Lloyd(frames)(centroids)
    parts = [Lloyd(part)(centroids) for part in frames.split([17, 0, 3000, 1983])]
    assert torch.allclose(sum(part.sums for part in parts), whole.sums, rtol=1e-14, atol=0)
    assert torch.equal(sum(part.counts for part in parts), whole.counts)
    assert sum(part.inertia for part in parts) == pytest.approx(float(whole.inertia), rel=1e-13)


@pytest.mark.parametrize(("k", "dim", "offset"), [(1, 3, 0.0), (2, 1, 0.0), (20, 39, 0.0), (100, 8, 1000.0)])
def test_steps_that_remember_give_the_bits_of_steps_that_look_at_all(k, dim, offset):
    frames = blobs(6000, dim, 2 * k) + offset
    centroids, step = frames[:k].double(), Lloyd(frames)
    for _ in range(25):
        remembered, fresh = step(centroids), Lloyd(frames)(centroids)
        assert all(torch.equal(a, b) for a, b in zip(remembered, fresh, strict=True))
        assert torch.equal(step.labels, exact_labels(frames, centroids))
        centroids = torch.where(fresh.counts[:, None] > 0, fresh.sums / fresh.counts.clamp(min=1)[:, None], centroids)


def test_steps_that_remember_follow_centroids_that_jump():
    frames, draw = blobs(3000, 5, 12), generator(1)
    step = Lloyd(frames)
    for _ in range(20):
        centroids = frames[torch.randint(len(frames), (12,), generator=draw)].double()
        step(centroids)
        assert torch.equal(step.labels, exact_labels(frames, centroids))


def test_a_step_computes_only_what_may_have_changed(monkeypatch):
    frames, seen = torch.cat([blobs(1000, 4, 1) + 100 * i for i in range(5)]), []
    label, step = Targets.label, Lloyd(frames)
    monkeypatch.setattr(Targets, "label", lambda self, rows: seen.append(len(rows)) or label(self, rows))
    sums, counts, _ = step(frames[::1000].double())
    step(sums / counts[:, None])
    assert sum(seen) == 5000


def test_a_million_small_frames_are_summed_without_loss():
    frames = torch.full((2**20, 1), 0.1)
    sums, _, _ = Lloyd(frames)(torch.zeros(1, 1))
    assert sums.item() == 2**20 * float(torch.tensor(0.1))  # exact; added one by one in fp32 it is off by 1 %


def test_one_lloyd_step_from_known_centroids():
    frames = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    centroids, inertias = lloyd(frames, torch.tensor([[0.0], [9.0]], dtype=torch.float64), 2)
    assert centroids.flatten().tolist() == [1.0, 12.0]
    assert inertias == pytest.approx([0 + 4 + 1 + 25, 1 + 1 + 4 + 4], rel=1e-13)


def test_from_equal_starts_lloyd_agrees_with_scikit_learn():
    frames = blobs(4000, 12, 15)
    start = frames[:15].double()
    theirs = KMeans(15, init=start.numpy(), n_init=1, max_iter=10, tol=0).fit(frames.double().numpy())
    mine, inertias = lloyd(frames, start, 10)
    assert torch.allclose(mine, torch.from_numpy(theirs.cluster_centers_), atol=1e-9)
    assert Lloyd(frames)(mine).inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    assert all(after <= before for before, after in itertools.pairwise(inertias))


# -- k-means++ ---------------------------------------------------------------------------------------------------------


def test_starts_are_frames_and_differ_from_each_other():
    frames = blobs(500, 3, 5)
    starts = kmeans_plus_plus(frames, 5, 4, generator())
    assert starts.shape == (4, 5, 3)
    _, distances = nearest(starts.view(-1, 3), frames)
    assert distances.max() == 0
    assert len(starts.view(4, -1).unique(dim=0)) == 4


def test_far_apart_clusters_all_get_a_centroid():
    frames = torch.cat([torch.randn(50, 2, generator=generator(i)) + 1000 * i for i in range(12)])
    for start in kmeans_plus_plus(frames, 12, 5, generator()):
        assert (start[:, 0] / 1000).round().sort().values.tolist() == list(range(12))


def test_the_same_seed_gives_the_same_starts():
    frames = blobs(300, 4, 6)
    assert torch.equal(kmeans_plus_plus(frames, 6, 2, generator(3)), kmeans_plus_plus(frames, 6, 2, generator(3)))
    assert not torch.equal(kmeans_plus_plus(frames, 6, 2, generator(3)), kmeans_plus_plus(frames, 6, 2, generator(4)))


def test_the_first_centroid_is_uniform_and_the_second_follows_the_squared_distance():
    frames = torch.tensor([[0.0], [1.0], [3.0]])
    starts = kmeans_plus_plus(frames, 2, 4000, generator())[..., 0]  # (R, 2); k=2 tries 2 candidates
    first = torch.stack([(starts[:, 0] == value).double().mean() for value in (0, 1, 3)])
    assert torch.allclose(first, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.03)
    # Behind 0 the weights are 1 : 9. Taking 1 leaves (3 - 1)^2 = 4, taking 3 leaves 1, so 3 loses only if never drawn.
    after_zero = starts[starts[:, 0] == 0, 1]
    assert (after_zero == 1).double().mean() == pytest.approx(0.1**2, abs=0.01)


def test_greedy_seeding_starts_lower_than_random_frames():
    frames = blobs(3000, 10, 40)
    start = best_start(kmeans_plus_plus(frames, 40, 3, generator()), frames)
    random = frames[torch.randperm(len(frames), generator=generator())[:40]]
    assert Lloyd(frames)(start).inertia < 0.8 * Lloyd(frames)(random).inertia


def test_the_best_start_is_the_one_of_lowest_inertia_on_the_judging_frames():
    starts = torch.tensor([[[0.0], [1.0]], [[0.0], [10.0]]])
    assert best_start(starts, torch.tensor([[0.0], [9.0]])).tolist() == [[0.0], [10.0]]
    assert best_start(starts, torch.tensor([[0.0], [2.0]])).tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_too_few_different_frames_are_refused(offset):
    frames = (torch.tensor([[0.1], [0.2], [0.3]]) + offset).repeat(20, 5)
    assert kmeans_plus_plus(frames, 3, 2, generator()).shape == (2, 3, 5)
    with pytest.raises(ValueError, match=r"k=4 clusters need .* only 3 of 60 frames differ; lower the number"):
        kmeans_plus_plus(frames, 4, 2, generator())


# -- empty clusters ----------------------------------------------------------------------------------------------------


def test_farthest_frames_come_first_and_earlier_ones_before_equals():
    frames = torch.tensor([[1.0], [-3.0], [3.0], [0.0]])
    indices, distances = farthest(frames, torch.zeros(1, 1), 3)
    assert (indices.tolist(), distances.tolist()) == ([1, 2, 0], [9.0, 9.0, 1.0])
    assert farthest(frames, torch.zeros(1, 1), 9)[0].tolist() == [1, 2, 0, 3]


def test_empty_clusters_take_the_frames_given_each_once():
    centroids = torch.arange(4.0)[:, None].double()
    moved, number = refill(centroids, torch.tensor([0, 5, 0, 0]), torch.tensor([[7.0], [7.0], [8.0]]))
    assert (moved.flatten().tolist(), number) == ([7.0, 1.0, 8.0, 3.0], 2)
    assert centroids.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_full_clusters_are_left_alone():
    moved, number = refill(torch.ones(2, 1), torch.tensor([1, 1]), torch.tensor([[7.0]]))
    assert (moved.flatten().tolist(), number) == ([1.0, 1.0], 0)


def test_refilling_lowers_the_inertia_and_uses_all_clusters():
    frames = blobs(2000, 5, 10)
    start = torch.cat([frames[:7].double(), torch.full((3, 5), 1e3, dtype=torch.float64)])  # three serve nobody
    centroids, inertias = lloyd(frames, start, 15)
    assert (Lloyd(frames)(centroids).counts > 0).all()
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(inertias))
    assert math.isfinite(inertias[-1])
