"""How good units are: the layers of every round clustered, and their clusters compared with the phones that were said.

Phone purity, cluster purity and phone-normalised mutual information are those of the paper (arXiv:2106.07447, section
IV-E). The layer to cluster for the next round is the one with the highest PNMI, rarely the last; where nobody knows the
phones it is the one whose units change least when they are clustered from another seed.

B batch, T frames, N frames of all utterances, D width, K clusters.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmflow.atomic import write_json
from mmflow.evaluation.abx import abx_error, sample_triples
from mmflow.evaluation.clustering import ClusterQuality, joint_counts, phone_frames, phone_spans, pnmi
from mmflow.evaluation.pictures import cluster_phone_heatmap, quality_by_layer, units_under_spectrogram
from mmflow.nn.kmeans import Lloyd, kmeans_plus_plus, nearest
from mmflow.nn.published import weights_fingerprint
from mmflow.systems.hubert.data import hash_order
from mmflow.systems.hubert.features import MFCC
from mmflow.systems.hubert.model import num_frames
from mmflow.systems.hubert.weights import load_hubert

LLOYD_STEPS = 15  # 15 more changed PNMI by up to 0.003 and stability by 0.01
START_FRAMES = 100  # for each cluster, that k-means++ chooses from; half as many again changed neither
TRIPLES = 10_000  # of each kind: the standard error of an ABX error of 0.15 is 0.004, and less between two layers
LONGEST_SEGMENT = 25  # frames; a longer phone is a wrong alignment more often than not, and slow to warp
NO_PHONE = {"", "SIL", "SP", "SPN"}  # what aligners write for silence, pauses and noise; ABX leaves these out

Name = tuple[str, str]  # shard and key of an utterance


class Utterance(NamedTuple):
    """What is kept of one utterance."""

    name: Name
    frames: dict[str, Tensor]  # "mfcc" or "<round>/<layer>" -> (T, D) float16
    info: dict[str, Any]  # may hold `phones` and `words` as [start_s, end_s, name], and `speaker`
    audio: Tensor | None  # (S,), of the one that is drawn


def encoder_fingerprint(hubert: nn.Module, title: str = "hubert encoder") -> str:
    """Names the weights that layers depend on: not the mask vector, which is random where a file lacks it."""
    weights = {name: weight for name, weight in hubert.state_dict().items() if name != "mask_embedding"}
    return weights_fingerprint(weights, title)


def best_layer(quality: str | Path, hubert: nn.Module) -> int:
    """The best layer of `hubert` by a `quality.json`, which may also be given as the folder that it lies in.

    It belongs to the round with exactly these weights. Raises ValueError when none has them."""
    path = Path(quality) / "quality.json" if Path(quality).is_dir() else Path(quality)
    if not path.is_file():
        raise ValueError(f"there is no quality file {path}; give the quality.json that a LayerQuality stage left")
    rounds = json.loads(path.read_text()).get("rounds", {})
    mine = encoder_fingerprint(hubert)
    for measured in rounds.values():
        if measured["fingerprint"] == mine:
            return measured["best_layer"]
    known = ", ".join(f"{name} ({measured['fingerprint']})" for name, measured in rounds.items())
    raise ValueError(
        f"{path} does not measure a HuBERT with these weights ({mine}), but {known or 'none'}; "
        f"measure this checkpoint, or give the number of a layer"
    )


class LayerQuality(LightningModule):
    """`test` clusters MFCCs and every layer of every round on one half of the utterances and scores the other half.

    Leaves `quality.json`, and the pictures `quality.png`, `clusters.png` (the best layer's clusters by phone) and
    `units.png` (one utterance). `quality.json` holds `rows`, one for MFCCs and for each layer of each round, with

    - `pnmi`, `phone_purity`, `cluster_purity`: of units and phones, where `info` tells the phones;
    - `abx_within`, `abx_across`: error of telling two phones apart by the frames themselves (`mmflow.evaluation.abx`)
      in segments of one speaker, or with X of another; on all utterances, as nothing is fitted. Where `info` has no
      speakers the segments of a triple are of one utterance, and `abx_across` is not measured;
    - `stability`: I(z; z') / H(z) of units z and those z' of a second clustering that starts elsewhere;
    - `unit_entropy` in nats, `used_clusters` and `segment_frames`, the mean length of a run of equal units;

    then `chosen_by`, the measure that decides: `pnmi`, or `stability` where there are no phones; `best`, the row that
    is highest in it; and `rounds`: each with the `fingerprint` of its weights and its `best_layer`, which is what
    `HubertLayer(layer="best")` takes.

    Args:
        rounds: name -> checkpoint of a HubertPretraining, or anything else that `load_hubert` reads, in order.
        num_clusters: K of every clustering.
        max_frames: frames to measure on, of utterances chosen by a hash of their keys; each rank holds all of them,
            2.6 kB each with D=128 and two rounds of 5 layers.
        seed: of the choice, the triples and the clusterings.
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
        segments = phone_segments(utterances)
        kinds = {"abx_within": False} | ({"abx_across": True} if segments.named else {})
        triples = {
            kind: sample_triples(segments.phones, segments.speakers, TRIPLES, self.seed, across).to(self.device)
            for kind, across in kinds.items()
        }
        table: list[dict[str, Any]] = []
        measured: dict[str, tuple[Tensor, Tensor]] = {}  # source -> joint counts, centroids
        for source in utterances[0].frames:
            frames = [utterance.frames[source] for utterance in utterances]
            centroids, again = self._cluster(torch.cat(frames[::2]))
            quality = ClusterQuality(max(len(inventory), 1), self.num_clusters).to(self.device)
            agreement = torch.zeros(self.num_clusters, self.num_clusters, dtype=torch.int64, device=self.device)
            for utterance in utterances[1::2]:
                phones, units = self._labels(utterance, source, inventory, centroids)
                quality.update(phones, units)
                _, others = self._labels(utterance, source, inventory, again)
                agreement += joint_counts(units, others, self.num_clusters, self.num_clusters)
            starts, lengths = segments.starts.to(self.device), segments.lengths.to(self.device)
            errors = {
                kind: abx_error(torch.cat(frames).to(self.device), starts, lengths, drawn)
                for kind, drawn in triples.items()
                if len(drawn)
            }
            name, _, layer = source.partition("/")
            row = {"round": name, "layer": int(layer) if layer else None, **quality.compute()}
            table.append(row | errors | {"stability": pnmi(agreement)})
            measured[source] = (quality.joint.cpu(), centroids)
        self._report(utterances, inventory, table, measured)

    def _report(
        self,
        utterances: list[Utterance],
        inventory: list[str],
        table: list[dict[str, Any]],
        measured: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        """Choose the best layers, log what they reach, write and draw."""
        measure = "pnmi" if "pnmi" in table[0] else "stability"
        best = {
            name: max((row for row in table if row["round"] == name), key=lambda row: row[measure])
            for name in self.rounds
        }
        self.log(f"{measure}/mfcc", table[0][measure])
        for name, row in best.items():
            self.log(f"{measure}/{name}", row[measure])
            self.log(f"best_layer/{name}", float(row["layer"]))
        if not self.trainer.is_global_zero:
            return
        winner = max(best.values(), key=lambda row: row[measure])  # the one to cluster for a next round
        rounds = {
            name: {"fingerprint": encoder_fingerprint(hubert), "best_layer": best[name]["layer"]}
            for name, hubert in self.rounds.items()
        }
        report = {"chosen_by": measure, "best": winner, "rounds": rounds, "rows": table}
        write_json(self.folder / "quality.json", report)
        quality_by_layer(table, self.folder / "quality.png")
        source = f"{winner['round']}/{winner['layer']}"
        joint, centroids = measured[source]
        if measure == "pnmi":
            cluster_phone_heatmap(joint, inventory, self.folder / "clusters.png")
        for utterance in utterances:
            if utterance.audio is not None:
                self._draw_units(utterance, utterance.audio, source, inventory, centroids)

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
        """Two sets of centroids (2, K, D) of frames (N, D), by k-means++ and Lloyd's algorithm from two starts."""
        generator = torch.Generator().manual_seed(self.seed)
        frames = frames[torch.randperm(len(frames), generator=generator)].to(self.device).float()
        if len(frames) < self.num_clusters:
            raise ValueError(
                f"{len(frames)} frames do not make num_clusters={self.num_clusters} clusters; "
                f"lower it or test on more audio"
            )
        starts = kmeans_plus_plus(frames[: START_FRAMES * self.num_clusters], self.num_clusters, 2, generator)
        for centroids in starts:
            lloyd = Lloyd(frames)
            for _ in range(LLOYD_STEPS):
                sums, counts, _ = lloyd(centroids)
                centroids.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids))
        return starts

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


class Segments(NamedTuple):
    """The phones of all utterances, for ABX."""

    phones: list[str]
    speakers: list[Any]  # the utterance where the speaker is not known
    starts: Tensor  # (S,) first frame, counted over all utterances
    lengths: Tensor  # (S,) frames
    named: bool  # whether all speakers are known


def phone_segments(utterances: list[Utterance]) -> Segments:
    """All phones of half a second at most under which a frame lies, but not silence."""
    phones, speakers, spans, offset = [], [], [], 0
    named = all("speaker" in utterance.info for utterance in utterances)
    for utterance in utterances:
        said, num_frames = utterance.info.get("phones", []), len(utterance.frames["mfcc"])
        for (_, _, phone), (first, stop) in zip(said, phone_spans(said, num_frames), strict=True):
            if phone.upper() not in NO_PHONE and 0 < stop - first <= LONGEST_SEGMENT:
                phones.append(phone)
                speakers.append(utterance.info["speaker"] if named else utterance.name)
                spans.append((offset + first, stop - first))
        offset += num_frames
    starts, lengths = torch.tensor(spans, dtype=torch.int64).view(-1, 2).unbind(1)
    return Segments(phones, speakers, starts, lengths, named)
