"""The arithmetic of k-means on one device: who is nearest, what a Lloyd step sums, where to start, what to refill.

Nothing here knows of ranks: the sums of a Lloyd step over parts of the data add up to those of the whole, so a caller
all-reduces them. Labels do not depend on how frames are cut into chunks or dealt to devices, because what fp32 cannot
tell apart is decided in float64; all that is accumulated is float64 too.

Letters: N frames, D width, K clusters, R starts.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers in a block of rows that are worked on together. On a CPU it should stay in a core's cache (for K=100, 2^22
# takes two fifths longer), while a GPU wants few large products.
CPU_BLOCK, GPU_BLOCK = 2**19, 2**25


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
    targets = Targets(centroids)
    labels, _, _ = targets.label(frames, chunk)
    distances = torch.empty(len(frames), dtype=torch.float64, device=frames.device)
    for part, label, distance in _parts(frames, labels, distances, width=frames.shape[1], chunk=chunk):
        distance.copy_((part.double() - targets.exact[label]).square_().sum(1))
    return labels, distances


def _parts(*tensors: Tensor, width: int, chunk: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Views of `chunk` rows of each tensor at a time, by default as many as make a good block of `width` columns."""
    size = chunk or max(1, (CPU_BLOCK if tensors[0].is_cpu else GPU_BLOCK) // width)
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


class Targets:
    """Centroids (K, D), ready to be compared with frames.

    fp32 has no digits left for clusters far from the origin, so distances are taken around the middle of them all.
    """

    def __init__(self, centroids: Tensor) -> None:
        self.exact = centroids.detach().double()
        middle = self.exact.mean(0)
        self.centred, self.middle = (self.exact - middle).float(), middle.float()
        self.half_norms = self.centred.square().sum(1) / 2
        self.reach = self.half_norms.max().mul(2).sqrt()  # of the longest
        k, dim = self.exact.shape
        self.numbers = torch.arange(k, dtype=torch.int32, device=middle.device)
        self.kept_bits = -1 << (k - 1).bit_length()  # ones where a score keeps its own bits
        # A dot product of D terms is off by about sqrt(D) roundings of |x||c|, and 8 leaves room; a score that gives up
        # its last bits is off by as many roundings as they can tell apart.
        self.slack = (8 * math.sqrt(dim) - 2 * self.kept_bits) * torch.finfo(torch.float32).eps

    def label(self, frames: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The labels of `nearest` (N,), what the distance to that centroid is at most (N,), and what those to all other
        centroids are at least (N,).

        By fp32 scores, and by float64 distances where fp32 rounding might decide."""
        labels = torch.empty(len(frames), dtype=torch.int64, device=frames.device)
        own, others = frames.new_empty(2, len(frames), dtype=torch.float64)
        parts = list(_parts(frames, labels, own, others, width=len(self.exact), chunk=chunk))
        block = self.middle.new_empty(len(parts[0][0]), len(self.exact))  # new memory costs page faults
        for part, *results in parts:
            for result, found in zip(results, self._by_scores(part, block[: len(part)]), strict=True):
                result.copy_(found)
        close = (own >= others).nonzero()[:, 0]  # frames with a second contender
        for (rows,) in _parts(close, width=max(self.exact.shape), chunk=chunk):
            labels[rows] = self._exactly(frames[rows], own[rows])
        return labels, own, others  # what bounds the nearest by score bounds the nearest by distance too

    def _scores(self, frames: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Half of |x - c|^2 - |x|^2 for all pairs (n, K), and the frames around the middle (n, D)."""
        near = frames.float() - self.middle
        with full_precision(frames.device):
            return torch.addmm(self.half_norms, near, self.centred.T, alpha=-1, out=out), near

    def _by_scores(self, frames: Tensor, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, near = self._scores(frames, block)
        # With its column in the last bits of each score the smallest tells where it stands: torch's min of values alone
        # takes a tenth of the time of one with indices.
        scores.view(torch.int32).bitwise_and_(self.kept_bits).bitwise_or_(self.numbers)
        best = scores.amin(1)
        labels = best.view(torch.int32).bitwise_and(~self.kept_bits).long()
        scores.scatter_(1, labels[:, None], math.inf)
        norms, error = self._norms(near)
        own = norms.add(best, alpha=2).add_(error)
        others = norms.sub_(error).add_(scores.amin(1), alpha=2)
        return labels, own.clamp_(min=0).sqrt_(), others.clamp_(min=0).sqrt_()

    def _norms(self, near: Tensor) -> tuple[Tensor, Tensor]:
        """|x|^2 of `near` (n, D), frames around the middle, and how far |x - c|^2 may be off in fp32: (n,)."""
        norms = near.square().sum(1)
        return norms, norms.sqrt().add_(self.reach).square_().mul_(self.slack)

    def _exactly(self, frames: Tensor, own: Tensor) -> Tensor:
        """Labels (n,) of frames whose nearest centroid is within `own` (n,), by float64 distances."""
        scores, near = self._scores(frames)
        norms, error = self._norms(near)
        bound = own.square() - norms + error  # of twice a score
        rows, columns = (2 * scores <= bound[:, None]).nonzero().unbind(1)
        return _first_nearest(frames, self.exact, rows, columns)


def _first_nearest(frames: Tensor, centroids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The nearest contender of each frame by float64 distance, the lowest index among equals: (n,).

    rows, columns: all (frame, centroid) index pairs that contend."""
    exact = torch.cat(
        [(frames[r].double() - centroids[c]).square_().sum(1) for r, c in _parts(rows, columns, width=frames.shape[1])]
    )
    best = exact.new_full((len(frames),), math.inf).scatter_reduce(0, rows, exact, "amin")
    won = exact == best[rows]
    return columns.new_full((len(frames),), len(centroids)).scatter_reduce(0, rows[won], columns[won], "amin")


class ClusterSums(NamedTuple):
    """What one Lloyd step needs to know about frames. The sums of parts add up to those of the whole."""

    sums: Tensor  # (K, D) float64, sum of the frames of each cluster
    counts: Tensor  # (K,) int64
    inertia: Tensor  # () float64, sum of squared distances to the nearest centroid


class Lloyd:
    """Lloyd steps over the same frames (N, D), which compute only the distances that may have changed.

    A frame stays where it is while its centroid is nearer than every other can be, by what the distances were when last
    computed and what the centroids moved since (Hamerly 2010, "Making k-means even faster"). The results are those of
    computing all.
    """

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames
        self.middle = frames.sum(0, dtype=torch.float64) / max(1, len(frames))
        self.energy = self.middle.new_zeros(())  # sum of squared distances to the middle
        for (part,) in _parts(frames, width=frames.shape[1]):
            self.energy += (part.double() - self.middle).square_().sum()
        self.labels = torch.zeros(len(frames), dtype=torch.int64, device=frames.device)
        self.own = self.middle.new_full((len(frames),), math.inf)  # most that the distance to its centroid can be
        self.others = torch.zeros_like(self.own)  # least that the distance to any other can be
        self.before: Tensor | None = None  # the centroids of the last step

    def __call__(self, centroids: Tensor) -> ClusterSums:
        """Assign the frames to `centroids` (K, D) and add up what each cluster received."""
        targets = Targets(centroids)
        if self.before is not None:
            self._move(torch.linalg.vector_norm(targets.exact - self.before, dim=1))
        self.before = targets.exact.clone()
        unsettled = (self.own >= self.others).nonzero()[:, 0]
        if len(unsettled) > len(self.frames) / 2:  # looking at all is then faster than picking
            self.labels, self.own, self.others = targets.label(self.frames)
        else:
            for (rows,) in _parts(unsettled, width=16):  # many at once, yet no second copy of all frames
                self.labels[rows], self.own[rows], self.others[rows] = targets.label(self.frames[rows])
        return self._sums(targets)

    def _move(self, drift: Tensor) -> None:
        """Widen the bounds by what each centroid moved (K,)."""
        self.own += drift[self.labels]
        two = drift.topk(min(2, len(drift))).values  # the most that any centroid moved, and any but that
        self.others -= torch.where(drift == two[0], two[-1], two[0])[self.labels]

    def _sums(self, targets: Targets) -> ClusterSums:
        sums = torch.zeros_like(targets.exact)
        for part, label in _parts(self.frames, self.labels, width=len(self.middle)):
            # As fast as index_add_ on a CPU (13 ms for 200,000 x 39; a one-hot product takes 78), and on a GPU it sorts
            # instead of racing, so that a resumed fit ends with the same bits.
            sums.index_put_((label,), part.double(), accumulate=True)
        counts = torch.bincount(self.labels, minlength=len(sums))
        # sum |x - c|^2 = sum |x|^2 - 2 c sum x + n |c|^2 in each cluster, around the middle of all frames
        centred = targets.exact - self.middle
        gained = centred * (2 * sums - counts[:, None] * (targets.exact + self.middle))
        return ClusterSums(sums, counts, (self.energy - gained.sum()).clamp(min=0))


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
