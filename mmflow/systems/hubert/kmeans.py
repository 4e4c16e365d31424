"""k-means over speech frames as a LightningModule: `fit` clusters, `predict` names the cluster of every frame.

The targets of HuBERT (arXiv:2106.07447, section II-A): clusters of MFCCs for the first round, clusters of a hidden
layer of the previous model (`HubertLayer`) after it. Departures from the paper's code: Lloyd's algorithm over a bounded
random pool of frames instead of mini-batches, and features computed on the fly instead of dumped to disk.

Letters: B batch, S waveform samples, T frames of an utterance, N frames of the pool, D width, K clusters.
"""

import hashlib
import logging
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmflow.nn.kmeans import ClusterSums, Lloyd, best_start, farthest, kmeans_plus_plus, nearest, refill
from mmflow.systems.hubert.model import FRAME_RATE
from mmflow.systems.hubert.quality import best_layer, encoder_fingerprint
from mmflow.systems.hubert.weights import load_hubert

log = logging.getLogger(__name__)

HIGHEST_PRIORITY = 2**63 - 1
MOST_CLUSTERS = 2**16  # units are stored as uint16
PRECISIONS = ("32-true", "bf16-mixed")


class Pool(NamedTuple):
    """A random sample of frames, the smallest priority first."""

    priorities: Tensor  # (N,) int64
    frames: Tensor  # (N, D) float32


class FramePool:
    """Keeps the `max_frames` frames of smallest priority among all that are added, in whatever order they come.

    A priority is a hash of (seed, key, frame index). So ranks that see different utterances agree on what is kept
    everywhere: the frames whose priority does not exceed a common threshold. Holds at most twice `max_frames`.
    """

    def __init__(self, max_frames: int, dim: int, seed: int) -> None:
        self.max_frames, self.seed = max_frames, seed
        self.highest = HIGHEST_PRIORITY  # of what may still be among the smallest
        self.parts = [Pool(torch.empty(0, dtype=torch.int64), torch.empty(0, dim))]

    def __len__(self) -> int:
        return sum(len(part.priorities) for part in self.parts)

    def add(self, key: str, frames: Tensor) -> None:
        """Offer the frames (T, D) of one utterance."""
        priorities = frame_priorities(self.seed, key, len(frames))
        low = priorities <= self.highest
        self.parts.append(Pool(priorities[low], frames.float().cpu()[low]))
        if len(self) > 2 * self.max_frames:
            self.parts = [self.smallest()]
            self.highest = int(self.parts[0].priorities[-1])

    def smallest(self) -> Pool:
        """What is kept."""
        priorities = torch.cat([part.priorities for part in self.parts])
        order = priorities.argsort()[: self.max_frames]
        return Pool(priorities[order], torch.cat([part.frames for part in self.parts])[order])


def frame_priorities(seed: int, key: str, num_frames: int) -> Tensor:
    """A number in [0, 2^63) for each frame of an utterance, as good as random: SplitMix64 started from (seed, key)."""
    start = np.frombuffer(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest(), "<u8")
    x = start + np.arange(1, num_frames + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # overflow wraps
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(1)).astype(np.int64))


class LloydSteps:
    """An endless loader with nothing in it: one item per Lloyd step, for the frames stay on their rank."""

    def __iter__(self) -> Iterator[int]:
        step = 0
        while True:
            yield step
            step += 1


class KMeans(LightningModule):
    """Clusters frames by k-means++ and Lloyd's algorithm, one training step per Lloyd step.

    `fit` first pools frames of `datamodule.pool_dataloader()`, which gives this rank its share of the utterances once,
    whole, as padded batches with `audio`, `lengths`, `valid` and `__key__`. Every rank keeps its frames; a step
    all-reduces their float64 sums. Which frames are pooled, where clustering starts and where it ends do not depend on
    the number of ranks. A resumed fit pools again, goes on and ends with the same bits.

    Logs per step: `train/inertia` (mean squared distance of a frame to its centroid), `train/used` and `train/empty`
    clusters, frames in the `train/smallest`, and `train/perplexity`, the exponential of the entropy of the units.

    Args:
        features: What is clustered: audio (B, S) and lengths (B,) -> frames (B, T, D) and frame lengths (B,), with
            `dim` and `fingerprint`. Frozen, and not part of this module's state.
        num_clusters: K, at most 65536.
        max_frames: Frames to keep over all ranks, at least K; a random choice when the utterances have more.
        max_iterations: Lloyd steps after which fitting stops at the latest.
        tolerance: Fitting stops when a step lowers the inertia by less than this share.
        n_init: k-means++ starts to choose from. 1, 3 and 10 ended within 0.3 % of each other on MFCCs with K=100.
        seed: Of the choice of frames and of the starts.
    """

    iteration: Tensor
    inertia: Tensor
    finished: Tensor

    def __init__(
        self,
        features: nn.Module,
        num_clusters: int = 100,
        max_frames: int = 200_000,
        max_iterations: int = 100,
        tolerance: float = 1e-4,
        n_init: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 1 <= num_clusters <= MOST_CLUSTERS:
            raise ValueError(
                f"num_clusters={num_clusters} is not in 1..{MOST_CLUSTERS}: units are stored as uint16; try 100 or 500"
            )
        if max_frames < num_clusters:
            raise ValueError(
                f"max_frames={max_frames} is less than num_clusters={num_clusters}; "
                f"give at least {60 * num_clusters} frames, 60 for each cluster"
            )
        if min(max_iterations, n_init) < 1:
            raise ValueError(f"max_iterations={max_iterations} and n_init={n_init} must both be at least 1")
        self.automatic_optimization = False
        self.num_clusters, self.max_frames = num_clusters, max_frames
        self.max_iterations, self.tolerance, self.n_init, self.seed = max_iterations, tolerance, n_init, seed
        self._features = (features.eval().requires_grad_(False),)  # in a tuple, so that it is not part of our state
        self.centroids = nn.Parameter(torch.full((num_clusters, self.features.dim), torch.nan, dtype=torch.float64))
        self.register_buffer("iteration", torch.tensor(0))  # Lloyd steps done
        self.register_buffer("inertia", torch.tensor(torch.inf, dtype=torch.float64))  # per frame, before the last step
        self.register_buffer("finished", torch.tensor(False))
        self.pool: Pool | None = None
        self.lloyd: Lloyd | None = None

    @property
    def features(self) -> Any:
        """The frozen feature extractor."""
        return self._features[0]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name this clustering: features and centroids."""
        self._check_fitted()
        digest = hashlib.sha256(self.features.fingerprint.encode())
        digest.update(self.centroids.detach().float().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    @property
    def sidecar_meta(self) -> dict[str, Any]:
        """What is stored with the units, so that a training can tell whether they fit."""
        return {
            "fingerprint": self.fingerprint,
            "num_clusters": self.num_clusters,
            "rate": FRAME_RATE,
            "features": self.features.fingerprint,
        }

    def _check_fitted(self) -> None:
        if self.centroids.isnan().any():
            raise ValueError("this KMeans has no centroids yet; fit it, or give the checkpoint of a fit (--ckpt_path)")

    # -- set-up ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.trainer.precision not in PRECISIONS:
            # "true" half precisions would round the float64 centroids, and a gradient scaler would scale their step.
            raise ValueError(
                f"trainer.precision={self.trainer.precision} does not suit k-means; use one of {', '.join(PRECISIONS)}"
            )
        if stage == "fit":
            datamodule: Any = getattr(self.trainer, "datamodule", None)
            if not hasattr(datamodule, "pool_dataloader"):
                raise ValueError(
                    f"KMeans is fitted on the utterances of datamodule.pool_dataloader(), "
                    f"but the datamodule is a {type(datamodule).__name__} without it; give one that has it"
                )
            datamodule.train_dataloader = self.train_dataloader  # where there is a datamodule Lightning asks only that

    def train_dataloader(self) -> LloydSteps:
        return LloydSteps()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # k-means is gradient descent whose rate is 1 / count (Bottou & Bengio 1995): with centroid - mean for gradient
        # and rate 1 the optimiser makes the Lloyd step, and Lightning counts and checkpoints it like any other.
        return torch.optim.SGD([self.centroids], lr=1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["features"] = self.features.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["features"] != self.features.fingerprint:
            raise ValueError(
                f"the checkpoint clusters features {checkpoint['features']!r}, but model.features gives "
                f"{self.features.fingerprint!r}; use the features it was fitted on or fit again"
            )

    # -- fitting -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def on_train_start(self) -> None:
        if self.finished:  # resumed after the last step: one more would change the result
            self.trainer.should_stop = True
            return
        self.features.to(self.device)
        self.pool = self._fill_pool()
        self.lloyd = Lloyd(self.pool.frames)
        if self.iteration == 0:
            self._start()

    def _fill_pool(self) -> Pool:
        """This rank's part of the `max_frames` frames of smallest priority over all ranks."""
        pool = FramePool(self.max_frames, self.features.dim, self.seed)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        with self.trainer.precision_plugin.forward_context():
            for batch in datamodule.pool_dataloader():
                for key, frames in self._frames(datamodule.on_before_batch_transfer(batch, 0)):
                    pool.add(key, frames)
        priorities, frames = pool.smallest()
        total = int(self._add(torch.tensor(len(frames))))
        if total < self.num_clusters:
            raise ValueError(
                f"num_clusters={self.num_clusters} needs at least as many frames, but the utterances to fit on have "
                f"{total} (50 per second); give more audio or lower num_clusters to {total} or less"
            )
        kept = self._rank_in(priorities, self.max_frames)
        log.info("k-means: %d of %d pooled frames are on this rank", kept, min(total, self.max_frames))
        return Pool(priorities[:kept].to(self.device), frames[:kept].to(self.device))

    def _frames(self, batch: dict[str, Any]) -> list[tuple[str, Tensor]]:
        """Key and frames (T, D) float32 of each valid utterance of a batch."""
        valid = batch["valid"].cpu()
        if not valid.any():
            return []
        audio, lengths = batch["audio"][valid].to(self.device), batch["lengths"][valid].to(self.device)
        keys = [key for key, real in zip(batch["__key__"], valid.tolist(), strict=True) if real]
        padded, frame_lengths = self.features(audio, lengths)  # (B, T, D), (B,)
        frames = [row[:length].float() for row, length in zip(padded, frame_lengths.tolist(), strict=True)]
        for key, own in zip(keys, frames, strict=True):
            if not own.isfinite().all():
                raise ValueError(
                    f"the features of utterance {key!r} are not all finite; look at it with `data show`, or at the "
                    f"training that made the feature extractor, which may have diverged"
                )
        return list(zip(keys, frames, strict=True))

    def _start(self) -> None:
        """Choose the first centroids by k-means++ on one sample of the pool, and the best start on another."""
        assert self.pool is not None
        size = max(30_000, 60 * self.num_clusters)
        mine = self._rank_in(self.pool.priorities, 2 * size)
        order = self._gather(self.pool.priorities[:mine]).argsort()
        sample = self._gather(self.pool.frames[:mine])[order]
        # Every rank does the same work, so that one which cannot go on does not leave the others waiting.
        generator = torch.Generator().manual_seed(self.seed)
        starts = kmeans_plus_plus(sample[:size], self.num_clusters, self.n_init, generator)
        self.centroids.copy_(best_start(starts, sample[-size:]))
        if self.trainer.world_size > 1:
            dist.broadcast(self.centroids.data, src=0)

    @torch.no_grad()
    def training_step(self, batch: int, batch_idx: int) -> None:  # noqa: ARG002 the batch holds nothing
        assert self.lloyd is not None
        sums, counts, inertia = self._add_up(self.lloyd(self.centroids))
        inertia /= counts.sum()
        # Holds after a refill too: a centroid without frames contributes nothing, wherever it is moved.
        assert inertia <= self.inertia * (1 + 1e-6), f"inertia rose from {self.inertia} to {inertia}"

        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], self.centroids)
        empty, moved = int((counts == 0).sum()), 0
        if empty:
            means, moved = refill(means, counts, self._farthest(empty))
        self.centroids.grad = self.centroids - means
        self.optimizers().step()  # type: ignore[union-attr]

        self.iteration += 1
        settled = moved == 0 and inertia >= self.inertia * (1 - self.tolerance)
        self.finished.fill_(settled or self.iteration >= self.max_iterations)
        self.inertia.copy_(inertia)
        if self.finished:
            self.trainer.should_stop = True
        self._log_step(counts, inertia)

    def _log_step(self, counts: Tensor, inertia: Tensor) -> None:
        self.log("train/inertia", inertia, prog_bar=True, batch_size=1)
        used = int((counts > 0).sum())
        share = counts / counts.sum()
        figures = {
            "train/used": used,
            "train/empty": len(counts) - used,
            "train/smallest": counts.min(),
            "train/perplexity": torch.special.entr(share).sum().exp(),
        }
        self.log_dict({name: torch.as_tensor(figure).float() for name, figure in figures.items()}, batch_size=1)

    def _farthest(self, number: int) -> Tensor:
        """The `number` frames of all ranks that are farthest from their centroids, farthest first: (n, D)."""
        assert self.pool is not None
        mine, distances = farthest(self.pool.frames, self.centroids, number)
        mine = mine[distances > 0]
        order = self._gather(self.pool.priorities[mine]).argsort()  # among equally far ones no rank comes first
        distances = self._gather(distances[distances > 0])[order]
        frames = self._gather(self.pool.frames[mine])[order]
        return frames[distances.argsort(descending=True, stable=True)[:number]]

    def on_train_end(self) -> None:
        self.pool = self.lloyd = None
        mine = torch.tensor(int(self.fingerprint[:15], 16), device=self.device)
        if (self._gather(mine[None]) != mine).any():
            raise RuntimeError("ranks ended with different centroids; do all of them run the same code and data?")

    # -- labelling ---------------------------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        self._check_fitted()
        self.features.to(self.device)

    @torch.no_grad()
    def predict_step(
        self,
        batch: dict[str, Any],
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> dict[str, list[np.ndarray]]:
        """`units`: for each valid utterance of the batch the cluster of every frame, (T,) uint16."""
        frames = [own for _, own in self._frames(batch)]
        if not frames:
            return {"units": []}
        labels, _ = nearest(torch.cat(frames), self.centroids)
        units = labels.cpu().numpy().astype(np.uint16)
        return {"units": np.split(units, np.cumsum([len(own) for own in frames])[:-1])}

    # -- over ranks --------------------------------------------------------------------------------------------------

    def _add(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks, on this module's device."""
        tensor = tensor.to(self.device)
        if self.trainer.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def _add_up(self, mine: ClusterSums) -> ClusterSums:
        packed = torch.cat([mine.sums.flatten(), mine.counts.double(), mine.inertia[None]])  # one message; counts fit
        sums, counts, inertia = self._add(packed).split([mine.sums.numel(), len(mine.counts), 1])
        return ClusterSums(sums.view_as(mine.sums), counts.long(), inertia[0])

    def _gather(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all ranks, each with its own n, one after the other."""
        if self.trainer.world_size == 1:
            return rows
        sizes = torch.zeros(self.trainer.world_size, dtype=torch.int64)
        sizes[self.trainer.global_rank] = len(rows)
        sizes = self._add(sizes)
        padded = rows.new_zeros(int(sizes.max()), *rows.shape[1:])
        padded[: len(rows)] = rows
        everywhere = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everywhere, padded)
        return torch.cat([part[:size] for part, size in zip(everywhere, sizes.tolist(), strict=True)])

    def _rank_in(self, priorities: Tensor, number: int) -> int:
        """How many of this rank's sorted `priorities` (N,) are among the `number` smallest of all ranks.

        Halves the range of values 63 times, so that a rank tells one count at a time and no rank holds all values."""
        low, high = 0, HIGHEST_PRIORITY
        while low < high:
            middle = (low + high) // 2
            if self._add((priorities <= middle).sum()) >= number:
                high = middle
            else:
                low = middle + 1
        return int((priorities <= low).sum())


class HubertLayer(nn.Module):
    """A hidden layer of a trained HuBERT as features: what the units of the next round are clustered from.

    Args:
        checkpoint: A checkpoint of a training of this package that holds a HuBERT, or published weights: whatever
            `load_hubert` reads.
        layer: 0 is what the first block receives, k what block k returns (before any closing norm). The paper took 6 of
            12 after the first round and 9 after the second; the last layers of a first round imitate its MFCC units.
            "best" is the layer that `quality` found best in exactly these weights.
        quality: With layer "best" only: the `quality.json` of a LayerQuality stage, or the stage's folder.
    """

    def __init__(self, checkpoint: str, layer: int | Literal["best"], quality: str | None = None) -> None:
        super().__init__()
        if layer != "best" and quality is not None:
            raise ValueError(f"layer={layer} is chosen without quality={quality}; leave quality out or give layer=best")
        if layer == "best" and quality is None:
            raise ValueError("layer=best needs quality=, the quality.json of a LayerQuality stage; or give a number")
        self.hubert = load_hubert(checkpoint)
        self.layer = best_layer(quality, self.hubert) if quality is not None else int(layer)
        depth = len(self.hubert.blocks)
        if not 0 <= self.layer <= depth:
            raise ValueError(f"layer={layer} is not in 0..{depth}, the layers of {checkpoint}; try {depth // 2}")
        del self.hubert.blocks[self.layer :]  # nobody looks at them
        self.dim = self.hubert.dim
        self.fingerprint = encoder_fingerprint(self.hubert, f"hubert layer {self.layer}")

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """audio (B, S), lengths (B,) samples -> frames (B, T, D), frame lengths (B,). Call it in eval mode."""
        encoded = self.hubert(audio, lengths)
        return encoded.layers[str(self.layer)], encoded.frame_lengths
