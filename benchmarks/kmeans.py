"""k-means, fit and assign: against scikit-learn's MiniBatchKMeans to the same inertia, and against faiss on a CPU.

scikit-learn runs with the settings of the HuBERT paper's code (batches of 10,000, at most 100 passes, stop after 100
batches without gain); ours, from k-means++ starts of its own, until its inertia is no higher. faiss and ours make the
same number of Lloyd steps from the same starts. The data is a mixture of overlapping clusters.

    python benchmarks/kmeans.py --threads 2 --frames 100000 --dim 768 --clusters 500
"""

import os
import sys

import timing

# before anything starts the thread pools of BLAS and OpenMP
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = timing.threads_from(sys.argv)

import faiss
import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from mmflow.nn.kmeans import Lloyd, best_start, kmeans_plus_plus, nearest

MOST_STEPS = 100


def mixture(frames: int, dim: int, clusters: int) -> Tensor:
    """(frames, dim) float32: twice as many Gaussians as clusters, wider than the distance between them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2 * clusters, dim, generator=generator)
    return centres[torch.randint(len(centres), (frames,), generator=generator)] + 1.2 * torch.randn(
        frames, dim, generator=generator
    )


def start(x: Tensor, clusters: int) -> Tensor:
    sample, generator = x[: max(30_000, 60 * clusters)], torch.Generator().manual_seed(0)
    return best_start(kmeans_plus_plus(sample, clusters, 3, generator), sample)


def lloyd(x: Tensor, centroids: Tensor, steps: int, target: float = 0.0) -> float:
    """Inertia after a fit that ends after `steps` or below the `target`, and assigning all frames to its clusters."""
    step = Lloyd(x)
    for _ in range(steps):
        sums, counts, inertia = step(centroids)
        if inertia <= target:
            break
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
    return float(nearest(x, centroids)[1].sum())


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=39)
    parser.add_argument("--clusters", type=int, default=100)
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    if options.quick:
        options.frames, options.clusters, options.repeats = 4000, 20, 1
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    x = mixture(options.frames, options.dim, options.clusters)
    size = f"{options.frames} x {options.dim}, K={options.clusters}"
    found: dict[str, float] = {}

    def sklearn() -> None:
        model = MiniBatchKMeans(
            options.clusters, batch_size=10_000, n_init=3, max_iter=100, max_no_improvement=100, tol=0.0,
            reassignment_ratio=0.0, random_state=0,
        ).fit(x.numpy())  # fmt: skip
        labels = model.predict(x.numpy())
        found["scikit-learn"] = float(((x.numpy() - model.cluster_centers_[labels]) ** 2).sum(dtype=np.float64))

    def ours() -> None:
        found["mmflow"] = lloyd(x, start(x, options.clusters), MOST_STEPS, found["scikit-learn"])

    sklearn()
    seconds = timing.alternate({"mmflow": ours, "scikit-learn": sklearn}, options)
    timing.report(f"k-means to the same inertia, {size}", seconds, {name: {"inertia": i} for name, i in found.items()})

    centroids, steps = start(x, options.clusters), 20

    def same_steps() -> None:
        found["mmflow"] = lloyd(x, centroids, steps)

    def faiss_steps() -> None:
        model = faiss.Kmeans(options.dim, options.clusters, niter=steps, max_points_per_centroid=len(x))
        model.train(x.numpy(), init_centroids=centroids.float().numpy())
        distances, _ = model.assign(x.numpy())
        found["faiss"] = float(distances.sum(dtype=np.float64))

    seconds = timing.alternate({"mmflow": same_steps, "faiss": faiss_steps}, options)
    timing.report(f"{steps} Lloyd steps, {size}", seconds, {name: {"inertia": found[name]} for name in seconds})


if __name__ == "__main__":
    main()
