"""How good the units of each layer are, with and without the truth about phones."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmflow.cli import main
from mmflow.data.index import open_shard
from mmflow.data.spec import DataSpec
from mmflow.pipeline import Pipeline
from mmflow.systems.hubert.kmeans import HubertLayer
from mmflow.systems.hubert.model import Hubert
from mmflow.systems.hubert.quality import Utterance, best_layer, encoder_fingerprint, phone_segments
from mmflow.systems.hubert.weights import load_hubert, save_folder
from tests.systems.hubert.test_training import SMALL, training, write_units

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

PICTURES = {"quality.png", "clusters.png", "units.png"}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])


@pytest.fixture(scope="module")
def rounds(tmp_path_factory, tiny_speech) -> dict[str, Any]:
    """A pipeline of one round of two steps, which is only there to have layers, and the measuring of it."""
    folder = tmp_path_factory.mktemp("rounds")
    one = training(write_units(tiny_speech, folder / "units", 5), 5, 2)
    layers = {"num_clusters": 10, "rounds": {"round_1": "${stages.round_1.checkpoint}"}}
    tree = {
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 1},
        "data": {"init_args": {"spec": str(tiny_speech), "num_workers": 0}},
        "stages": {
            "round_1": one,
            "quality": {
                "run": "test",
                "model": {"class_path": "mmflow.systems.hubert.quality.LayerQuality", "init_args": layers},
                "data": {"class_path": "mmflow.systems.hubert.data.Utterances", "init_args": {"with_info": True}},
            },
        },
    }
    (folder / "rounds.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return {"config": folder / "rounds.yaml", "work": folder / "work"}


def measure(rounds: dict[str, Any], *more: str) -> tuple[int, Path]:
    """Exit code of a run, and the folder of the measuring; the round is trained once only."""
    words = ["--config", str(rounds["config"]), "--workdir", str(rounds["work"]), "--rerun", "quality", *more]
    return main(["fit", *words]), rounds["work"] / "quality"


def test_every_layer_is_measured_against_the_phones(rounds):
    code, folder = measure(rounds)
    assert code == 0
    quality = json.loads((folder / "quality.json").read_text())
    rows = quality["rows"]
    layers = [("mfcc", None), ("round_1", 0), ("round_1", 1), ("round_1", 2)]
    assert [(row["round"], row["layer"]) for row in rows] == layers
    assert quality["chosen_by"] == "pnmi"
    assert quality["best"] == max((row for row in rows if row["layer"] is not None), key=lambda row: row["pnmi"])
    assert quality["rounds"]["round_1"]["best_layer"] == quality["best"]["layer"]
    assert rows[0]["pnmi"] > 0.6  # hummed phones are told apart by their spectra
    assert rows[0]["phone_purity"] > 0.8
    for kind in ("abx_within", "abx_across"):
        assert rows[0][kind] < 0.02
        assert all(rows[0][kind] < row[kind] < 0.6 for row in rows[1:])  # two steps of training teach nothing
    assert all(0 < row["stability"] <= 1 for row in rows)
    assert rows[0]["stability"] > 0.7
    assert all(1 <= row["used_clusters"] <= 10 for row in rows)
    assert {path.name for path in folder.iterdir()} >= PICTURES
    metrics = json.loads((folder / "done.json").read_text())["metrics"]
    assert metrics == {
        "pnmi/mfcc": pytest.approx(rows[0]["pnmi"]),
        "pnmi/round_1": pytest.approx(quality["best"]["pnmi"]),
        "best_layer/round_1": quality["best"]["layer"],
    }


def without_info(tiny_speech: Path, folder: Path) -> Path:
    """The same data, of which the spec does not say that they have `info`."""
    tree = yaml.safe_load(tiny_speech.read_text())
    del tree["fields"]["info"]
    (folder / "bare.yaml").write_text(yaml.safe_dump(tree))
    assert "info" not in DataSpec.read(folder / "bare.yaml").fields
    return folder / "bare.yaml"


def test_without_phones_units_are_measured_by_themselves(rounds, tiny_speech, tmp_path, capsys):
    bare = ["--stages.quality.data.spec", str(without_info(tiny_speech, tmp_path))]
    assert measure(rounds, *bare)[0] == 2
    assert "has no field 'info'" in capsys.readouterr().err
    code, folder = measure(rounds, *bare, "--stages.quality.data.with_info", "false")
    assert code == 0
    quality = json.loads((folder / "quality.json").read_text())
    rows = quality["rows"]
    columns = {"round", "layer", "unit_entropy", "used_clusters", "segment_frames", "stability"}
    assert [set(row) for row in rows] == [columns] * 4
    assert quality["chosen_by"] == "stability"
    assert quality["best"] == max(rows[1:], key=lambda row: row["stability"])
    assert 1.0 < rows[0]["unit_entropy"] < 2.31  # nats; ln 10 at most
    assert PICTURES & {path.name for path in folder.iterdir()} == {"quality.png", "units.png"}


def test_a_bound_on_frames_chooses_utterances_by_their_keys(rounds):
    code, folder = measure(rounds, "--stages.quality.model.max_frames", "300")
    assert code == 0
    bounded = json.loads((folder / "quality.json").read_text())["rows"][0]
    code, folder = measure(rounds)
    assert json.loads((folder / "quality.json").read_text())["rows"][0]["segment_frames"] != bounded["segment_frames"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_frames", "100", r"1 utterances of the test split fit into max_frames=100 \(50 a second\); one half"),
        ("num_clusters", "800", r"frames do not make num_clusters=800 clusters; lower it or test on more audio"),
    ],
)
def test_too_little_to_measure_on_is_an_error(rounds, capsys, name, value, message):
    assert measure(rounds, f"--stages.quality.model.{name}", value)[0] == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_speakers_segments_are_of_one_utterance():
    phones = [[0.0, 0.1, "A"], [0.1, 0.2, "sil"], [0.2, 0.201, "B"], [0.2, 0.9, "A"], [0.9, 1.0, "B"]]
    frames = {"mfcc": torch.zeros(49, 39)}
    known = [Utterance(("s", key), frames, {"phones": phones, "speaker": "x"}, None) for key in "ab"]
    segments = phone_segments(known)
    assert segments.phones == ["A", "B"] * 2  # no silence, none without a frame, none longer than half a second
    assert segments.starts.tolist() == [0, 45, 49, 94]
    assert segments.lengths.tolist() == [5, 4, 5, 4]
    assert (segments.speakers, segments.named) == (["x"] * 4, True)
    segments = phone_segments([known[0], known[1]._replace(info={"phones": phones})])
    assert segments.speakers == [("s", "a")] * 2 + [("s", "b")] * 2
    assert not segments.named


# -- the layer that a stage takes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_speech) -> dict[str, Any]:
    """A folder in the layout of published models, and a pipeline that measures it and relabels from its best layer."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    save_folder(Hubert(**SMALL), folder / "model")
    model, quality = str(folder / "model"), "${stages.quality.folder}/quality.json"
    layer = {"checkpoint": model, "layer": "best", "quality": quality}
    features = {"class_path": "mmflow.systems.hubert.kmeans.HubertLayer", "init_args": layer}
    utterances = {"class_path": "mmflow.systems.hubert.data.Utterances"}
    measuring = {"num_clusters": 10, "rounds": {"published": model}}
    kmeans = {"features": features, "num_clusters": 10, "max_frames": 500, "max_iterations": 5, "n_init": 1}
    writer = {"class_path": "mmflow.data.sidecar.SidecarWriter", "init_args": {"field": "units"}}
    tree = {
        "trainer": {"accelerator": "cpu"},
        "data": {"init_args": {"spec": str(tiny_speech), "num_workers": 0}},
        "stages": {
            "quality": {
                "run": "test",
                "model": {"class_path": "mmflow.systems.hubert.quality.LayerQuality", "init_args": measuring},
                "data": utterances | {"init_args": {"with_info": True}},
            },
            "kmeans": {
                "run": "fit",
                "model": {"class_path": "mmflow.systems.hubert.kmeans.KMeans", "init_args": kmeans},
                "data": utterances,
                "trainer": {"max_epochs": -1, "limit_val_batches": 0},
            },
            "units": {
                "run": "predict",
                "ckpt_path": "${stages.kmeans.checkpoint}",
                "model": "${stages.kmeans.model}",
                "data": utterances,
                "trainer": {"callbacks": [writer]},
            },
        },
    }
    (folder / "relabel.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cli.py"])
        assert main(["fit", "--config", str(folder / "relabel.yaml"), "--workdir", str(folder / "work")]) == 0
    return {"config": folder / "relabel.yaml", "work": folder / "work", "model": model}


def test_published_weights_are_measured_and_relabelled_from_their_best_layer(published):
    quality = json.loads((published["work"] / "quality" / "quality.json").read_text())
    best = quality["rounds"]["published"]["best_layer"]
    assert [row["layer"] for row in quality["rows"]] == [None, 0, 1, 2]
    sidecars = sorted((published["work"] / "units" / "shards").rglob("*.tar"))
    meta = open_shard(str(sidecars[0])).meta
    assert meta["features"] == HubertLayer(published["model"], best).fingerprint
    assert meta["features"] == HubertLayer(published["model"], "best", str(published["work"] / "quality")).fingerprint


def test_a_stage_that_takes_the_best_layer_depends_on_the_measuring(published):
    pipeline = Pipeline(published["config"])
    assert pipeline.stages["kmeans"].needs == ["quality"]
    assert pipeline.dependents(["quality"]) == ["quality", "kmeans", "units"]
    other = Pipeline(published["config"], [("stages.quality.model.seed", 1)])
    for name in ("kmeans", "units"):
        assert other.fingerprint(other.stages[name]) != pipeline.fingerprint(pipeline.stages[name])


def test_the_best_layer_is_that_of_the_round_with_the_same_weights(published, tmp_path):
    hubert = load_hubert(published["model"])
    rounds = {
        "other": {"fingerprint": "0123456789abcdef", "best_layer": 0},
        "mine": {"fingerprint": encoder_fingerprint(hubert), "best_layer": 1},
    }
    path = tmp_path / "quality.json"
    path.write_text(json.dumps({"rounds": rounds}))
    assert best_layer(path, hubert) == best_layer(tmp_path, hubert) == 1
    torch.nn.init.zeros_(hubert.mask_embedding)  # no layer depends on it without a mask
    assert best_layer(path, hubert) == 1
    hubert.blocks[1].ffn.expand.weight.data[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"does not measure .* \(\w{16}\), but other \(0123456789abcdef\), mine"):
        best_layer(path, hubert)
    with pytest.raises(ValueError, match=r"there is no quality file .*nowhere; give the quality.json"):
        best_layer(tmp_path / "nowhere", hubert)


def test_best_needs_a_quality_and_a_number_takes_none(published):
    with pytest.raises(ValueError, match=r"layer=best needs quality="):
        HubertLayer(published["model"], "best")
    with pytest.raises(ValueError, match=r"layer=1 is chosen without quality=q.json; leave quality out or give layer"):
        HubertLayer(published["model"], 1, "q.json")


def test_a_published_model_without_a_mask_vector_is_the_same_each_time_that_it_is_read(tmp_path):
    save_folder(Hubert(**SMALL), tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    never_masks = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | never_masks))
    tensors = load_file(weights)
    del tensors["masked_spec_embed"]
    save_file(tensors, weights, metadata={"format": "pt"})
    first, second = (HubertLayer(str(tmp_path), 1) for _ in range(2))
    assert not torch.equal(first.hubert.mask_embedding, second.hubert.mask_embedding)
    assert first.fingerprint == second.fingerprint
