"""The arithmetic of k-means on one device: who is nearest, what a Lloyd step sums, where to start, what to refill.

Nothing here knows of ranks: `cluster_sums` of parts of the data add up to those of the whole, so a caller all-reduces
them. Labels do not depend on how frames are cut into chunks or dealt to devices, because what fp32 cannot tell apart is
decided in float64; all that is accumulated is float64 too.

Letters: N frames, D width, K clusters, R starts.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# The block of scores of one chunk should stay in a core's cache (K=100: 0.8 MB; 65,536 rows took twice the time), while
# a GPU wants few large products.
CPU_CHUNK, GPU_CHUNK = 2048, 65_536


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """fp32 matrix products in fp32, whatever autocast and `set_float32_matmul_precision` say.

    TF32 and bf16 products put 1-2 % of speech frames into another cluster."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def nearest(frames: Tensor, centroids: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The centroid nearest to each frame; of equally near ones the first.

    Args:
        frames: (N, D), any floating type, all finite.
        centroids: (K, D), any floating type; not rounded to fp32 where it matters.
        chunk: Rows at a time, by default what suits the device. No influence on the result.

    Returns:
        labels (N,) int64 and squared Euclidean distances (N,) float64.
    """
    wide = centroids.detach().double()
    labels = _labels(frames, wide, chunk)
    distances = torch.empty(len(frames), dtype=torch.float64, device=frames.device)
    for part, label, distance in _parts(frames, labels, distances, chunk=chunk):
        distance.copy_((part.double() - wide[label]).square_().sum(1))
    return labels, distances


def _parts(*tensors: Tensor, chunk: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Views of `chunk` rows of each tensor at a time."""
    size = chunk or (CPU_CHUNK if tensors[0].device.type == "cpu" else GPU_CHUNK)
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _labels(frames: Tensor, centroids: Tensor, chunk: int | None = None) -> Tensor:
    """The labels of `nearest`; centroids (K, D) float64."""
    # fp32 has no digits left for clusters far from the origin, so distances are taken around the middle of them all.
    middle = centroids.mean(0)
    centred = (centroids - middle).float()  # (K, D)
    half_norms, middle = centred.square().sum(1) / 2, middle.float()
    labels = torch.empty(len(frames), dtype=torch.int64, device=frames.device)
    with full_precision(frames.device):
        for part, label in _parts(frames, labels, chunk=chunk):
            label.copy_(_nearest_in_chunk(part, centroids, middle, centred, half_norms))
    return labels


def _nearest_in_chunk(frames: Tensor, wide: Tensor, middle: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    """The labels (n,) of one chunk by fp32 scores, and by float64 distances where fp32 rounding might decide.

    wide: (K, D) float64. centroids and half_norms: they around the `middle`, and half their squared lengths, fp32."""
    near = frames.float() - middle
    scores = torch.addmm(half_norms, near, centroids.T, alpha=-1)  # (n, K), half of |x - c|^2 - |x|^2
    best, labels = scores.min(1)
    reach = half_norms.max().mul(2).sqrt()  # the longest centroid
    # A dot product of D terms is off by about sqrt(D) roundings of |x||c|; 8 leaves room, and costs few extra pairs.
    slack = 8 * torch.finfo(torch.float32).eps * math.sqrt(frames.shape[1])
    bound = best + slack * reach * (torch.linalg.vector_norm(near, dim=1) + reach)  # (n,)
    scores.scatter_(1, labels[:, None], math.inf)
    close = (scores.amin(1) <= bound).nonzero()[:, 0]  # frames with a second contender
    if len(close):
        scores[close, labels[close]] = best[close]
        rows, columns = (scores[close] <= bound[close, None]).nonzero().unbind(1)
        labels[close] = _first_nearest(frames[close], wide, rows, columns)
    return labels


def _first_nearest(frames: Tensor, centroids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The nearest contender of each frame by float64 distance, the lowest index among equals: (n,).

    rows, columns: all (frame, centroid) index pairs that contend."""
    exact = torch.cat(
        [
            (frames[r].double() - centroids[c]).square_().sum(1)
            for r, c in zip(rows.split(GPU_CHUNK), columns.split(GPU_CHUNK), strict=True)
        ]
    )
    best = exact.new_full((len(frames),), math.inf).scatter_reduce(0, rows, exact, "amin")
    won = exact == best[rows]
    return columns.new_full((len(frames),), len(centroids)).scatter_reduce(0, rows[won], columns[won], "amin")


class ClusterSums(NamedTuple):
    """What one Lloyd step needs to know about frames. The sums of parts add up to those of the whole."""

    sums: Tensor  # (K, D) float64, sum of the frames of each cluster
    counts: Tensor  # (K,) int64
    inertia: Tensor  # () float64, sum of squared distances to the nearest centroid


def cluster_sums(frames: Tensor, centroids: Tensor) -> ClusterSums:
    """Assign `frames` (N, D) to `centroids` (K, D) and add up what each cluster received."""
    wide = centroids.detach().double()
    labels = _labels(frames, wide)
    sums, inertia = torch.zeros_like(wide), wide.new_zeros(())
    for part, label in _parts(frames, labels):
        inertia += wide.index_select(0, label).sub_(part).square_().sum()
        # As fast as index_add_ on a CPU (13 ms for 200,000 x 39; a one-hot product takes 78), and on a GPU it sorts
        # instead of racing, so that a resumed fit ends with the same bits.
        sums.index_put_((label,), part.double(), accumulate=True)
    return ClusterSums(sums, torch.bincount(labels, minlength=len(centroids)), inertia)


def kmeans_plus_plus(frames: Tensor, k: int, n_init: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007, section 5): R = `n_init` independent starts at once.

    Each centroid is the best of 2 + floor(ln k) frames drawn in proportion to their squared distance to the nearest
    centroid so far, where best means the lowest sum of such distances afterwards.

    Args:
        frames: (N, D), N >= k.
        k: Centroids per start.
        n_init: Starts R.
        generator: On the CPU, whatever the device of the frames, so that every device draws the same.

    Returns:
        (R, k, D) float64; pick one with `best_start`.

    Raises:
        ValueError: fewer than k of the frames differ from each other.
    """
    x = frames.double()
    x = x - x.mean(0)
    norms = x.square().sum(1)  # (N,)
    starts = torch.arange(n_init, device=x.device)
    chosen = torch.empty(n_init, k, dtype=torch.int64, device=x.device)
    closest = x.new_full((n_init, len(x)), math.inf)  # squared distance to the nearest centroid so far
    candidates = torch.randint(len(x), (n_init, 1), generator=generator).to(x.device)  # (R, C)
    for i in range(k):
        if i:
            mass = closest.cumsum(1)  # (R, N)
            if not mass[:, -1].min() > 0:
                raise ValueError(
                    f"k={k} clusters need as many different frames, but only {i} of {len(x)} frames differ; "
                    f"lower the number of clusters or give more varied audio"
                )
            draws = torch.rand(n_init, 2 + int(math.log(k)), dtype=torch.float64, generator=generator).to(x.device)
            candidates = torch.searchsorted(mass, draws * mass[:, -1:], right=True).clamp(max=len(x) - 1)
        offered = candidates.flatten()
        scale = norms[offered, None] + norms  # (R C, N)
        distances = torch.addmm(scale, x[offered], x.T, alpha=-2)
        distances.masked_fill_(distances < 1e-12 * scale, 0)  # a copy of the candidate, up to rounding
        distances = torch.minimum(distances.view(n_init, -1, len(x)), closest[:, None])  # (R, C, N)
        best = distances.sum(2).argmin(1)  # (R,)
        chosen[:, i], closest = candidates[starts, best], distances[starts, best]
    return frames[chosen].double()


def best_start(starts: Tensor, frames: Tensor) -> Tensor:
    """Of `starts` (R, K, D) the centroids (K, D) with the lowest inertia on `frames` (N, D)."""
    inertia = torch.stack([nearest(frames, centroids)[1].sum() for centroids in starts])
    return starts[inertia.argmin()]


def farthest(frames: Tensor, centroids: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The `number` frames (or all, if fewer) farthest from their centroids, farthest first, earlier first among equals.

    Returns their indices (n,) and squared distances (n,) float64."""
    distances, indices = nearest(frames, centroids)[1].sort(descending=True, stable=True)
    return indices[:number], distances[:number]


def refill(centroids: Tensor, counts: Tensor, frames: Tensor) -> tuple[Tensor, int]:
    """Move the centroids of empty clusters onto `frames` (n, D), in their order, each vector used once.

    A centroid without frames adds nothing to the inertia wherever it stands, so moving it can only lower the next one.
    Returns centroids (K, D), float64, and how many were moved: fewer than are empty when frames run out."""
    centroids = centroids.detach().double().clone()
    distinct: list[Tensor] = []
    for frame in frames.double():
        if not any(torch.equal(frame, other) for other in distinct):
            distinct.append(frame)
    empty = (counts == 0).nonzero()[:, 0]
    moved = min(len(empty), len(distinct))
    for cluster, frame in zip(empty[:moved], distinct, strict=False):
        centroids[cluster] = frame
    return centroids, moved
