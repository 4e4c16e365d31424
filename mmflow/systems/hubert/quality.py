"""How good units are: the layers of every round clustered, and their clusters compared with the phones that were said.

Phone purity, cluster purity and phone-normalised mutual information are those of the paper (arXiv:2106.07447, section
IV-E). The layer to cluster for the next round is the one with the highest PNMI, rarely the last.

B batch, T frames, N frames of all utterances, D width, K clusters.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmflow.atomic import write_json
from mmflow.evaluation.clustering import ClusterQuality, phone_frames
from mmflow.evaluation.pictures import cluster_phone_heatmap, quality_by_layer, units_under_spectrogram
from mmflow.nn.kmeans import best_start, cluster_sums, kmeans_plus_plus, nearest
from mmflow.systems.hubert.data import hash_order
from mmflow.systems.hubert.features import MFCC
from mmflow.systems.hubert.model import num_frames
from mmflow.systems.hubert.weights import load_hubert

LLOYD_STEPS = 30

Name = tuple[str, str]  # shard and key of an utterance


class Utterance(NamedTuple):
    """What is kept of one utterance."""

    name: Name
    frames: dict[str, Tensor]  # "mfcc" or "<round>/<layer>" -> (T, D) float16
    info: dict[str, Any]  # may hold `phones` and `words` as [start_s, end_s, name]
    audio: Tensor | None  # (S,), of the one that is drawn


class LayerQuality(LightningModule):
    """`test` clusters MFCCs and every layer of every round on one half of the utterances and scores the other half.

    Leaves `quality.json` with a row per round and layer, and the pictures `quality.png`, `clusters.png` (the best
    layer's clusters by phone) and `units.png` (one utterance). Without phones in `info` only what units tell by
    themselves is measured: entropy, used clusters and the length of their runs.

    Args:
        rounds: name -> checkpoint of a HubertPretraining, in order.
        num_clusters: K of every clustering.
        max_frames: frames to measure on, of utterances chosen by a hash of their keys; each rank holds all of them,
            2.6 kB each with D=128 and two rounds of 5 layers.
        seed: of the choice and of the clustering.
    """

    def __init__(
        self, rounds: dict[str, str], num_clusters: int = 100, max_frames: int = 60_000, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_clusters, self.max_frames, self.seed = num_clusters, max_frames, seed
        self.mfcc = MFCC()
        self.rounds = nn.ModuleDict({name: load_hubert(checkpoint) for name, checkpoint in rounds.items()})
        self.chosen: set[Name] = set()  # utterances to measure on
        self.utterances: list[Utterance] = []

    def setup(self, stage: str) -> None:  # noqa: ARG002
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        corpus, order = data.corpus("test"), hash_order(data.usable["test"], data.corpus("test"), self.seed)
        frames = num_frames(torch.from_numpy(corpus.num_samples[order])).numpy()
        self.chosen = {corpus.name(int(number)) for number in order[np.cumsum(frames) <= self.max_frames]}
        if len(self.chosen) < 2:
            raise ValueError(
                f"{len(self.chosen)} utterances of the test split fit into max_frames={self.max_frames} (50 a second); "
                f"one half of them is clustered and the other measured: raise it or test on more utterances"
            )

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        names = list(zip(batch["__shard__"], batch["__key__"], strict=True))
        rows = [row for row in batch["valid"].nonzero()[:, 0].tolist() if names[row] in self.chosen]
        if not rows:
            return
        audio, lengths = batch["audio"][rows], batch["lengths"][rows]
        mfcc, frame_lengths = self.mfcc(audio, lengths)
        sources = {"mfcc": mfcc}
        for name, hubert in self.rounds.items():
            layers = hubert(audio, lengths).layers
            sources |= {f"{name}/{layer}": hidden for layer, hidden in layers.items()}
        for i, row in enumerate(rows):
            frames = {source: hidden[i, : frame_lengths[i]].half().cpu() for source, hidden in sources.items()}
            info = batch["info"][row] if "info" in batch else {}
            drawn = audio[i, : lengths[i]].cpu() if names[row] == min(self.chosen) else None
            self.utterances.append(Utterance(names[row], frames, info, drawn))

    def on_test_epoch_end(self) -> None:
        utterances = self._gather()
        inventory = sorted({phone[2] for utterance in utterances for phone in utterance.info.get("phones", [])})
        table: list[dict[str, Any]] = []
        joints, centroids = {}, {}
        for source in utterances[0].frames:
            centroids[source] = self._cluster(torch.cat([u.frames[source] for u in utterances[::2]]))
            quality = ClusterQuality(max(len(inventory), 1), self.num_clusters).to(self.device)
            for utterance in utterances[1::2]:
                quality.update(*self._labels(utterance, source, inventory, centroids[source]))
            name, _, layer = source.partition("/")
            table.append({"round": name, "layer": int(layer) if layer else None, **quality.compute()})
            joints[source] = quality.joint.cpu()
        measure = "pnmi" if "pnmi" in table[0] else "unit_entropy"
        for row in table:
            self.log(f"{measure}/{row['round']}" + ("" if row["layer"] is None else f"_{row['layer']}"), row[measure])
        if self.trainer.is_global_zero:
            layers = [row for row in range(len(table)) if table[row]["layer"] is not None]
            best = max(layers, key=lambda row: table[row][measure])  # the one to cluster for a next round
            write_json(self.folder / "quality.json", {"rows": table, "best": table[best]})
            source = list(joints)[best]
            if measure == "pnmi":
                quality_by_layer(table, self.folder / "quality.png")
                cluster_phone_heatmap(joints[source], inventory, self.folder / "clusters.png")
            for utterance in utterances:
                if utterance.audio is not None:
                    self._draw_units(utterance, utterance.audio, source, inventory, centroids[source])

    @property
    def folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def _labels(
        self, utterance: Utterance, source: str, inventory: list[str], centroids: Tensor
    ) -> tuple[Tensor, Tensor]:
        frames = utterance.frames[source].to(self.device)
        phones = phone_frames(utterance.info.get("phones", []), len(frames), inventory).to(self.device)
        return phones, nearest(frames, centroids)[0]

    def _cluster(self, frames: Tensor) -> Tensor:
        """Centroids (K, D) of frames (N, D), by k-means++ and Lloyd's algorithm."""
        generator = torch.Generator().manual_seed(self.seed)
        frames = frames[torch.randperm(len(frames), generator=generator)].to(self.device).float()
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
        """The utterances of all ranks, in the order of their names."""
        everywhere: list[Any] = [self.utterances]
        if self.trainer.world_size > 1:
            everywhere = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, self.utterances)
        return sorted((u for part in everywhere for u in part), key=lambda utterance: utterance.name)

    def _draw_units(
        self, utterance: Utterance, audio: Tensor, source: str, inventory: list[str], centroids: Tensor
    ) -> None:
        _, units = self._labels(utterance, source, inventory, centroids)
        words = " ".join(word[2] for word in utterance.info.get("words", [])) or utterance.name[1]
        phones = utterance.info.get("phones", [])
        title = f"{words} – units of {source.replace('/', ', layer ')}"
        units_under_spectrogram(audio, units.cpu(), phones, title, self.folder / "units.png")
