"""Clustering speech frames as a Lightning stage: pooling, fitting, resuming, two processes, labelling."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmflow.nn.kmeans import nearest
from mmflow.systems.hubert.kmeans import FramePool, HubertLayer, KMeans, frame_priorities
from mmflow.systems.hubert.model import Hubert
from tests.training.toy import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers, workers and manual optimisation

K = 8


class Windows(nn.Module):
    """Four neighbouring samples are a frame; the values are multiples of 1/64, so that `offset` loses nothing."""

    dim = 4

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))
        self.fingerprint = f"windows {offset}"

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = audio.unfold(1, 4, 4) * 64  # (B, T, 4)
        return frames.round() / 64 + self.offset, lengths // 4


class Broken(Windows):
    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames, frame_lengths = super().forward(audio, lengths)
        return frames.log(), frame_lengths


class Utterances(LightningDataModule):
    """Batches of 5 whole utterances, the last one filled up with rows that do not count, dealt round robin.

    Args:
        count: utterances.
        folder: of audio files; by default each utterance is a random walk round a circle.
    """

    batch_size = 5

    def __init__(self, count: int = 37, folder: str | None = None) -> None:
        super().__init__()
        self.count, self.folder = count, folder

    def utterance(self, number: int) -> Tensor:
        if self.folder is not None:
            path = sorted(Path(self.folder).rglob("*.flac"))[number]
            return torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        draw = torch.Generator().manual_seed(number)
        size = 200 + int(torch.randint(400, (), generator=draw))
        return torch.randn(size, generator=draw).cumsum(0).fmod(2)

    def batches(self) -> list[dict[str, Any]]:
        batches = []
        for start in range(0, self.count, self.batch_size):
            numbers = range(start, min(start + self.batch_size, self.count))
            rows = [self.utterance(number) for number in numbers]
            rows += [rows[0]] * (self.batch_size - len(rows))
            batches.append(
                {
                    "audio": nn.utils.rnn.pad_sequence(rows, batch_first=True),
                    "lengths": torch.tensor([len(row) for row in rows]),
                    "valid": torch.arange(self.batch_size) < len(numbers),
                    "__key__": [f"u{number}" for number in numbers] + ["padding"] * (self.batch_size - len(numbers)),
                }
            )
        return batches

    def pool_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        mine = self.batches()[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader:
        raise AssertionError("k-means asked for training batches")

    def predict_dataloader(self) -> list[DataLoader]:
        return [self.pool_dataloader(), self.pool_dataloader()]


class NoPool(LightningDataModule):
    def train_dataloader(self) -> list[int]:
        return [0]


def build(folder: Path, model: dict[str, Any] | None = None, data: Any = Utterances, **trainer: Any) -> LightningCLI:
    """What the command line would build. Keeps a checkpoint of every step in `folder`."""
    settings: dict[str, Any] = {"features": {"class_path": f"{__name__}.Windows"}, "num_clusters": K, "tolerance": 1e-6}
    saver = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_top_k": -1}}
    saver["init_args"] |= {"dirpath": str(folder), "filename": "{step}"}  # type: ignore[operator]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    where = {"accelerator": "cpu", "devices": 1, "default_root_dir": str(folder)}
    how = {"max_epochs": 1, "use_distributed_sampler": False, "callbacks": [saver]}
    args = {"model": settings | (model or {}), "trainer": quiet | where | how | trainer}
    if isinstance(data, tuple):
        data, args["data"] = data
    return LightningCLI(KMeans, data, args=args, run=False, save_config_callback=None)


def fit(folder: Path, *args: Any, ckpt_path: Path | None = None, **kwargs: Any) -> LightningCLI:
    cli = build(folder, *args, **kwargs)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path)
    return cli


def all_frames(data: Utterances, features: nn.Module) -> tuple[list[str], list[Tensor]]:
    """Keys and frames of the utterances, each taken alone."""
    keys = [f"u{number}" for number in range(data.count)]
    audio = [data.utterance(number)[None] for number in range(data.count)]
    with torch.no_grad():
        return keys, [features(row, torch.tensor([row.shape[1]]))[0][0] for row in audio]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[LightningCLI, Path]:
    """An uninterrupted fit and the folder of its checkpoints. Only to be read."""
    folder = tmp_path_factory.mktemp("fitted")
    return fit(folder), folder


# -- the pool ----------------------------------------------------------------------------------------------------------


def test_priorities_are_fixed_numbers_that_depend_on_seed_key_and_frame():
    assert frame_priorities(0, "a", 2).tolist() == [6902703923489085534, 1468521458284913388]
    assert torch.equal(frame_priorities(0, "a", 5)[:2], frame_priorities(0, "a", 2))
    apart = torch.cat([frame_priorities(seed, key, 100) for seed, key in ((0, "a"), (0, "b"), (1, "a"), (1, "b"))])
    assert len(apart.unique()) == 400
    assert apart.min() >= 0


def test_priorities_are_uniform():
    share = (frame_priorities(0, "long", 100_000).double() / 2**63).histc(10, 0, 1) / 100_000
    assert torch.allclose(share, torch.full((10,), 0.1, dtype=torch.float64), atol=0.005)


def test_a_pool_keeps_the_frames_of_smallest_priority_in_whatever_order_they_come():
    utterances = {f"u{i}": torch.randn(1 + 13 * i, 3, generator=torch.Generator().manual_seed(i)) for i in range(20)}
    pools = []
    for keys in (sorted(utterances), sorted(utterances, reverse=True)):
        pool = FramePool(100, 3, seed=5)
        for key in keys:
            pool.add(key, utterances[key])
            assert len(pool) <= 200
        pools.append(pool.smallest())
    every = torch.cat([frame_priorities(5, key, len(frames)) for key, frames in utterances.items()])
    order = every.argsort()[:100]
    for pool in pools:
        assert torch.equal(pool.priorities, every[order])
        assert torch.equal(pool.frames, torch.cat(list(utterances.values()))[order])


def test_a_pool_of_nothing_is_empty():
    pool = FramePool(10, 3, seed=0)
    pool.add("short", torch.empty(0, 3))
    assert pool.smallest().frames.shape == (0, 3)


# -- fitting -----------------------------------------------------------------------------------------------------------


def test_each_step_is_a_lloyd_step_and_is_counted_as_one(fitted):
    cli, folder = fitted
    steps = cli.trainer.global_step
    assert cli.model.iteration == steps > 5
    centroids = [load(folder, step)["state_dict"]["centroids"] for step in range(1, steps + 1)]
    frames = torch.cat(all_frames(cli.datamodule, cli.model.features)[1])
    for before, after in itertools.pairwise(centroids):
        assert torch.allclose(after, means(frames, before), rtol=0, atol=1e-12)


def means(frames: Tensor, centroids: Tensor) -> Tensor:
    labels = nearest(frames, centroids)[0]
    return torch.stack([frames[labels == cluster].double().mean(0) for cluster in range(K)])


def load(folder: Path, step: int) -> dict[str, Any]:
    return torch.load(folder / f"step={step}.ckpt", weights_only=True)


def test_inertia_never_rises_and_is_the_mean_squared_distance(fitted):
    cli, folder = fitted
    steps = cli.trainer.global_step
    inertias = [float(load(folder, step)["state_dict"]["inertia"]) for step in range(1, steps + 1)]
    assert all(after < before for before, after in itertools.pairwise(inertias[:-1]))
    assert inertias[-1] >= inertias[-2] * (1 - 1e-6)  # why it stopped
    frames = torch.cat(all_frames(cli.datamodule, cli.model.features)[1])
    before = load(folder, steps - 1)["state_dict"]["centroids"]
    assert inertias[-1] == pytest.approx(float(nearest(frames, before)[1].mean()), rel=1e-12)
    logged = cli.trainer.callback_metrics
    assert logged["train/inertia"] == pytest.approx(inertias[-1])
    assert (logged["train/used"], logged["train/empty"]) == (K, 0)
    assert 1 <= logged["train/smallest"] <= len(frames) / K
    assert 1 < logged["train/perplexity"] <= K


def test_inertia_is_within_one_percent_of_scikit_learn(fitted):
    cli, _ = fitted
    frames = torch.cat(all_frames(cli.datamodule, cli.model.features)[1])
    theirs = ScikitKMeans(K, n_init=10, random_state=0).fit(frames.numpy()).inertia_
    assert float(nearest(frames, cli.model.centroids)[1].sum()) == pytest.approx(theirs, rel=0.01)


@pytest.mark.slow
def test_inertia_on_real_speech_is_within_one_percent_of_scikit_learn(real_data, tmp_path):
    mfcc = {"features": {"class_path": "mmflow.systems.hubert.features.MFCC"}, "num_clusters": 50, "tolerance": 1e-4}
    speech = {"count": 20, "folder": str(real_data / "librispeech")}
    cli = fit(tmp_path, mfcc, (Utterances, speech), callbacks=[])
    frames = torch.cat(all_frames(cli.datamodule, cli.model.features)[1])
    theirs = ScikitKMeans(50, n_init=3, random_state=0).fit(frames.numpy()).inertia_
    assert float(nearest(frames, cli.model.centroids)[1].sum()) == pytest.approx(theirs, rel=0.01)


def test_a_large_common_offset_changes_no_unit(fitted, tmp_path):
    cli, _ = fitted
    features = {"class_path": f"{__name__}.Windows", "init_args": {"offset": 1024.0}}
    moved = fit(tmp_path, {"features": features}, callbacks=[])
    assert torch.allclose(moved.model.centroids - 1024, cli.model.centroids, rtol=0, atol=1e-9)
    assert [u.tolist() for u in units(moved)] == [u.tolist() for u in units(cli)]


def units(cli: LightningCLI, **trainer: Any) -> list[np.ndarray]:
    """Of all utterances, from a Trainer of its own."""
    own = build(Path(cli.trainer.default_root_dir), callbacks=[], enable_checkpointing=False, **trainer)
    first, _ = own.trainer.predict(cli.model, datamodule=cli.datamodule)
    return [unit for batch in first for unit in batch["units"]]


def test_only_the_max_frames_of_smallest_priority_are_clustered(tmp_path):
    cli = fit(tmp_path, {"max_frames": 500, "seed": 3, "tolerance": 0.0}, callbacks=[])
    keys, frames = all_frames(cli.datamodule, cli.model.features)
    priorities = torch.cat([frame_priorities(3, key, len(own)) for key, own in zip(keys, frames, strict=True)])
    pool = torch.cat(frames)[priorities.argsort()[:500]]
    assert torch.allclose(cli.model.centroids, means(pool, cli.model.centroids), rtol=0, atol=1e-12)  # nothing moves


def test_it_stops_after_max_iterations(tmp_path):
    cli = fit(tmp_path, {"max_iterations": 3})
    assert (cli.model.iteration, cli.trainer.global_step, cli.model.finished) == (3, 3, True)


def test_clusters_without_frames_are_refilled(fitted, tmp_path):
    uninterrupted, folder = fitted
    checkpoint = with_empty_clusters(load(folder, 1))
    torch.save(checkpoint, tmp_path / "empty.ckpt")
    cli = fit(tmp_path, ckpt_path=tmp_path / "empty.ckpt")
    first = load(tmp_path, 2)["state_dict"]["centroids"]
    frames = torch.cat(all_frames(cli.datamodule, cli.model.features)[1])
    before = checkpoint["state_dict"]["centroids"]
    labels, distances = nearest(frames, before)
    refilled = [cluster for cluster in range(K) if not (labels == cluster).any()]
    assert set(refilled) >= {2, 5, 6}
    far = frames[distances.argsort(descending=True)[: len(refilled)]].double()
    assert sorted(first[refilled].tolist()) == sorted(far.tolist())
    assert (cli.trainer.callback_metrics["train/used"], cli.trainer.callback_metrics["train/empty"]) == (K, 0)
    assert float(cli.model.inertia) == pytest.approx(float(uninterrupted.model.inertia), rel=0.1)


def with_empty_clusters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    checkpoint["state_dict"]["centroids"][[2, 5, 6]] = 1e3
    checkpoint["state_dict"]["inertia"].fill_(torch.inf)
    return checkpoint


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_fit_ends_with_the_same_bits(fitted, tmp_path, step):
    cli, folder = fitted
    resumed = fit(tmp_path, ckpt_path=folder / f"step={step}.ckpt", callbacks=[])
    assert resumed.trainer.global_step == cli.trainer.global_step
    for name, value in cli.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.model.fingerprint == cli.model.fingerprint


def test_a_fit_resumed_after_its_last_step_changes_nothing(fitted, tmp_path):
    cli, folder = fitted
    resumed = fit(tmp_path, ckpt_path=folder / f"step={cli.trainer.global_step}.ckpt")
    assert resumed.trainer.global_step == cli.trainer.global_step
    assert torch.equal(resumed.model.centroids, cli.model.centroids)


def test_features_are_frozen_and_not_saved(fitted):
    cli, folder = fitted
    assert list(load(folder, 1)["state_dict"]) == ["centroids", "iteration", "inertia", "finished"]
    assert [name for name, _ in cli.model.named_parameters()] == ["centroids"]
    cli.model.train()
    assert not cli.model.features.training
    assert not cli.model.features.offset.requires_grad


def test_a_checkpoint_of_other_features_is_refused(fitted, tmp_path):
    features = {"class_path": f"{__name__}.Windows", "init_args": {"offset": 1.0}}
    with pytest.raises(ValueError, match=r"clusters features 'windows 0.0', but model.features gives 'windows 1.0'"):
        fit(tmp_path, {"features": features}, ckpt_path=fitted[1] / "step=1.ckpt")


# -- two processes -----------------------------------------------------------------------------------------------------


def on_rank(rank: int, folder: Path, checkpoint: Path, port: int) -> None:
    """One of two processes: fit from the start and from `checkpoint` with few frames, and label the share of a rank."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    cli = fit(folder / "start", {"max_frames": 2000}, callbacks=[], **two)
    resumed = fit(folder / "resumed", ckpt_path=checkpoint, callbacks=[], **two)
    labelled = cli.trainer.predict(cli.model, datamodule=cli.datamodule)[0]
    result = {
        "centroids": cli.model.centroids.detach(),
        "resumed": resumed.model.centroids.detach(),
        "units": [torch.from_numpy(unit.astype(np.int64)) for batch in labelled for unit in batch["units"]],
    }
    torch.save(result, folder / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_end_with_the_same_centroids_and_units_as_one(fitted, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # the processes import this file by its name from there
    torch.save(with_empty_clusters(load(fitted[1], 1)), tmp_path / "empty.ckpt")
    on_two_ranks(on_rank, tmp_path, tmp_path / "empty.ckpt")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["centroids"], second["centroids"])

    alone = fit(tmp_path / "alone", {"max_frames": 2000}, callbacks=[])
    assert (first["centroids"] - alone.model.centroids).abs().max() < 1e-6
    resumed = fit(tmp_path / "alone_resumed", ckpt_path=tmp_path / "empty.ckpt", callbacks=[])
    assert (first["resumed"] - resumed.model.centroids).abs().max() < 1e-6

    batches = [first["units"][:5], second["units"][:5], first["units"][5:10], second["units"][5:10]]
    expected = units(alone)[:20]
    for mine, theirs in zip([unit for batch in batches for unit in batch], expected, strict=True):
        assert mine.tolist() == theirs.tolist()


def test_ranks_that_end_apart_are_an_error(fitted, monkeypatch):
    monkeypatch.setattr(KMeans, "_gather", lambda self, rows: torch.cat([rows, rows + 1]))
    with pytest.raises(RuntimeError, match="ranks ended with different centroids"):
        fitted[0].model.on_train_end()


# -- labelling ---------------------------------------------------------------------------------------------------------


def test_units_name_the_nearest_centroid_of_every_frame_of_the_valid_utterances(fitted):
    cli, _ = fitted
    mine = units(cli)
    _, frames = all_frames(cli.datamodule, cli.model.features)
    assert len(mine) == cli.datamodule.count
    for unit, own in zip(mine, frames, strict=True):
        assert unit.dtype == np.uint16
        distances = (own[:, None].double() - cli.model.centroids.detach()).square().sum(2)
        assert torch.equal(torch.from_numpy(unit.astype(np.int64)), distances.argmin(1))


def test_autocast_changes_no_unit(fitted):
    assert [u.tolist() for u in units(fitted[0], precision="bf16-mixed")] == [u.tolist() for u in units(fitted[0])]


def test_a_batch_of_padding_has_no_units(fitted):
    batch = fitted[0].datamodule.batches()[0]
    assert fitted[0].model.predict_step(batch | {"valid": torch.zeros(5, dtype=torch.bool)}, 0) == {"units": []}


def test_the_fingerprint_names_features_and_centroids(fitted):
    model = fitted[0].model
    before = model.fingerprint
    assert len(before) == 16
    assert int(before, 16) >= 0
    other = KMeans(Windows(1.0), K)
    other.load_state_dict(model.state_dict())
    assert other.fingerprint != before
    same = KMeans(Windows(), K)
    same.load_state_dict(model.state_dict())
    assert same.fingerprint == before
    same.centroids.data[0, 0] += 1e-3
    assert same.fingerprint != before


def test_units_are_stored_with_what_made_them(fitted):
    model = fitted[0].model
    expected = {"fingerprint": model.fingerprint, "num_clusters": K, "features": "windows 0.0", "rate": 50}
    assert model.sidecar_meta == expected


# -- what a user can get wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 0}, r"num_clusters=0 is not in 1..65536: .* try 100 or 500"),
        ({"num_clusters": 65_537}, r"num_clusters=65537 is not in 1..65536"),
        ({"max_frames": 99}, r"max_frames=99 is less than num_clusters=100; give at least 6000"),
        ({"max_iterations": 0}, r"max_iterations=0 and n_init=3 must both be at least 1"),
        ({"n_init": 0}, r"max_iterations=100 and n_init=0 must both be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KMeans(Windows(), **settings)


def test_too_few_frames_are_refused_with_both_numbers(tmp_path):
    frames = sum(len(own) for own in all_frames(Utterances(2), Windows())[1])
    with pytest.raises(ValueError, match=rf"num_clusters=1000 needs .* have {frames} .*lower num_clusters to {frames}"):
        fit(tmp_path, {"num_clusters": 1000}, (Utterances, {"count": 2}))


def test_features_that_are_not_finite_name_their_utterance(tmp_path):
    with pytest.raises(ValueError, match=r"features of utterance 'u0' are not all finite"):
        fit(tmp_path, {"features": {"class_path": f"{__name__}.Broken"}})


def test_a_datamodule_without_a_pool_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the datamodule is a NoPool without it"):
        fit(tmp_path, data=NoPool)


def test_labelling_before_fitting_is_refused(tmp_path):
    cli = build(tmp_path)
    with pytest.raises(ValueError, match=r"no centroids yet; fit it, or give the checkpoint"):
        cli.trainer.predict(cli.model, datamodule=cli.datamodule)
    with pytest.raises(ValueError, match=r"no centroids yet"):
        _ = cli.model.fingerprint


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precisions_that_would_round_the_centroids_are_refused(tmp_path, precision):
    with pytest.raises(ValueError, match=rf"trainer.precision={precision} does not suit k-means; use one of 32-true"):
        fit(tmp_path, precision=precision)


# -- a layer of HuBERT -------------------------------------------------------------------------------------------------

SIZE = {"dim": 32, "depth": 3, "num_heads": 2, "ffn_dim": 64}
TINY = SIZE | {"conv_dim": 16, "position_kernel": 8, "position_groups": 4}


@pytest.fixture(scope="module")
def hubert(tmp_path_factory) -> tuple[Hubert, Path]:
    """A small random Hubert and a checkpoint of it in the form that a training leaves."""
    torch.manual_seed(0)
    model = Hubert(**TINY)
    path = tmp_path_factory.mktemp("hubert") / "last.ckpt"
    torch.save(checkpoint_of(model), path)
    return model.eval(), path


def checkpoint_of(model: Hubert) -> dict[str, Any]:
    config = {"class_path": "mmflow.systems.hubert.model.Hubert", "init_args": TINY}
    weights = {f"hubert.{name}": weight for name, weight in model.state_dict().items()}
    return {"state_dict": weights | {"head.weight": torch.zeros(2)}, "hyper_parameters": {"hubert": config}}


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_layer_is_that_of_the_whole_model_in_eval_mode(hubert, layer):
    model, path = hubert
    audio, lengths = torch.randn(2, 4000), torch.tensor([4000, 2100])
    features = HubertLayer(str(path), layer).eval()
    with torch.no_grad():
        frames, frame_lengths = features(audio, lengths)
        again, _ = features(audio, lengths)
        expected = model(audio, lengths)
    assert torch.equal(frames, again)
    assert torch.equal(frames, expected.layers[str(layer)])
    assert frame_lengths.tolist() == [12, 6]
    assert features.dim == 32


def test_the_fingerprint_of_a_layer_names_weights_and_layer(hubert, tmp_path):
    model, path = hubert
    names = [HubertLayer(str(path), layer).fingerprint for layer in (1, 2, 2)]
    assert names[1] == names[2] != names[0]
    changed = Hubert(**TINY)
    changed.load_state_dict(model.state_dict())
    changed.blocks[0].ffn.expand.weight.data[0, 0] += 1e-3
    torch.save(checkpoint_of(changed), tmp_path / "changed.ckpt")
    assert HubertLayer(str(tmp_path / "changed.ckpt"), 2).fingerprint != names[1]


def test_a_layer_that_the_model_lacks_is_refused(hubert):
    with pytest.raises(ValueError, match=r"layer=4 is not in 0..3, the layers of .*last.ckpt; try 1"):
        HubertLayer(str(hubert[1]), 4)


def test_a_checkpoint_without_a_hubert_is_refused(fitted):
    with pytest.raises(ValueError, match=r"step=1.ckpt: the checkpoint does not say how to build its HuBERT"):
        HubertLayer(str(fitted[1] / "step=1.ckpt"), 1)
