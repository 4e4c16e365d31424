"""How good units are: the layers of every round clustered, and their clusters compared with the phones that were said.

Phone purity, cluster purity and phone-normalised mutual information are those of the paper (arXiv:2106.07447, section
IV-E). The layer to cluster for the next round is the one with the highest PNMI, rarely the last.

B batch, T frames, N frames of all utterances, D width, K clusters.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmflow.atomic import write_json
from mmflow.evaluation.clustering import ClusterQuality, phone_frames
from mmflow.evaluation.pictures import cluster_phone_heatmap, quality_by_layer, units_under_spectrogram
from mmflow.nn.kmeans import best_start, cluster_sums, kmeans_plus_plus, nearest
from mmflow.systems.hubert.features import MFCC
from mmflow.systems.hubert.kmeans import load_hubert

LLOYD_STEPS = 30


class Utterance(NamedTuple):
    """What is kept of one utterance: features of each source, and its phones as [start_s, end_s, name]."""

    key: str
    frames: dict[str, Tensor]  # "mfcc" or "<round>/<layer>" -> (T, D) float16
    phones: list[Any]


class LayerQuality(LightningModule):
    """`test` clusters MFCCs and every layer of every round on one half of the utterances and scores the other half.

    Leaves `quality.json` with a row per round and layer, and the pictures `quality.png`, `clusters.png` (the best
    layer's clusters by phone) and `units.png` (one utterance). Without phones in `info` only what units tell by
    themselves is measured: entropy, used clusters and the length of their runs.

    Args:
        rounds: name -> checkpoint of a HubertPretraining, in order.
        num_clusters: K of every clustering.
        max_frames: frames kept over all ranks; with D=128 and two rounds of 5 layers 2.6 kB each.
        seed: of the clustering.
    """

    def __init__(
        self, rounds: dict[str, str], num_clusters: int = 100, max_frames: int = 60_000, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_clusters, self.max_frames, self.seed = num_clusters, max_frames, seed
        self.mfcc = MFCC()
        self.rounds = nn.ModuleDict({name: load_hubert(checkpoint) for name, checkpoint in rounds.items()})
        self.utterances: list[Utterance] = []
        self.kept = 0
        self.example: tuple[str, Tensor, dict[str, Any]] | None = None  # key, audio and info of the one that is drawn

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        if self.kept >= self.max_frames / self.trainer.world_size:
            return
        audio, lengths = batch["audio"], batch["lengths"]
        mfcc, frame_lengths = self.mfcc(audio, lengths)
        sources = {"mfcc": mfcc}
        for name, hubert in self.rounds.items():
            layers = hubert(audio, lengths).layers
            sources |= {f"{name}/{layer}": hidden for layer, hidden in layers.items()}
        for row in batch["valid"].nonzero()[:, 0].tolist():
            size = int(frame_lengths[row])
            frames = {source: hidden[row, :size].half().cpu() for source, hidden in sources.items()}
            self.utterances.append(Utterance(batch["__key__"][row], frames, batch["info"][row].get("phones", [])))
            self.kept += size
            if self.example is None:
                self.example = batch["__key__"][row], audio[row, : lengths[row]].cpu(), batch["info"][row]

    def on_test_epoch_end(self) -> None:
        utterances = self._gather()
        inventory = sorted({phone[2] for utterance in utterances for phone in utterance.phones})
        table, joints, centroids = [], {}, {}
        for source in utterances[0].frames:
            centroids[source] = self._cluster(torch.cat([u.frames[source] for u in utterances[::2]]))
            quality = ClusterQuality(max(len(inventory), 1), self.num_clusters).to(self.device)
            for utterance in utterances[1::2]:
                quality.update(*self._labels(utterance, source, inventory, centroids[source]))
            name, _, layer = source.partition("/")
            table.append({"round": name, "layer": int(layer) if layer else None, **quality.compute()})
            joints[source] = quality.joint.cpu()
        best = max(range(len(table)), key=lambda row: table[row].get("pnmi", table[row]["unit_entropy"]))
        for row in table:
            if "pnmi" in row:
                self.log(f"pnmi/{row['round']}" + ("" if row["layer"] is None else f"_{row['layer']}"), row["pnmi"])
        if self.trainer.is_global_zero:
            self._publish(table, best, list(joints)[best], joints, centroids, inventory)

    def _labels(
        self, utterance: Utterance, source: str, inventory: list[str], centroids: Tensor
    ) -> tuple[Tensor, Tensor]:
        frames = utterance.frames[source].to(self.device)
        phones = phone_frames(utterance.phones, len(frames), inventory).to(self.device)
        return phones, nearest(frames, centroids)[0]

    def _cluster(self, frames: Tensor) -> Tensor:
        """Centroids (K, D) of frames (N, D), by k-means++ and Lloyd's algorithm."""
        frames, generator = frames.to(self.device).float(), torch.Generator().manual_seed(self.seed)
        if len(frames) < self.num_clusters:
            raise ValueError(
                f"{len(frames)} frames do not make num_clusters={self.num_clusters} clusters; "
                f"lower it or test on more audio"
            )
        centroids = best_start(kmeans_plus_plus(frames[:30_000], self.num_clusters, 1, generator), frames[:30_000])
        for _ in range(LLOYD_STEPS):
            sums, counts, _ = cluster_sums(frames, centroids)
            centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        return centroids

    def _gather(self) -> list[Utterance]:
        """The utterances of all ranks, in the order of their keys."""
        everywhere: list[Any] = [self.utterances]
        if self.trainer.world_size > 1:
            everywhere = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, self.utterances)
        return sorted((u for part in everywhere for u in part), key=lambda utterance: utterance.key)

    def _publish(
        self,
        table: list[dict[str, Any]],
        best: int,
        source: str,
        joints: dict[str, Tensor],
        centroids: dict[str, Tensor],
        inventory: list[str],
    ) -> None:
        folder = Path(self.trainer.default_root_dir)
        write_json(folder / "quality.json", {"rows": table, "best": table[best]})
        if "pnmi" in table[best]:
            quality_by_layer(table, folder / "quality.png")
            cluster_phone_heatmap(joints[source], inventory, folder / "clusters.png")
        assert self.example is not None
        key, audio, info = self.example
        utterance = next(u for u in self.utterances if u.key == key)
        _, units = self._labels(utterance, source, inventory, centroids[source])
        words = " ".join(word[2] for word in info.get("words", [])) or key
        units_under_spectrogram(audio, units.cpu(), info.get("phones", []), words, folder / "units.png")
