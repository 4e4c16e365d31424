"""How good the units of each layer are, with and without the truth about phones."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmflow.cli import main
from mmflow.data.spec import DataSpec
from tests.systems.hubert.test_training import training, write_units

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
    assert quality["best"] == max((row for row in rows if row["layer"] is not None), key=lambda row: row["pnmi"])
    assert rows[0]["pnmi"] > 0.6  # hummed phones are told apart by their spectra
    assert rows[0]["phone_purity"] > 0.8
    assert all(1 <= row["used_clusters"] <= 10 for row in rows)
    assert {path.name for path in folder.iterdir()} >= PICTURES
    metrics = json.loads((folder / "done.json").read_text())["metrics"]
    assert metrics["pnmi/mfcc"] == pytest.approx(rows[0]["pnmi"])
    assert metrics.keys() == {"pnmi/mfcc", "pnmi/round_1_0", "pnmi/round_1_1", "pnmi/round_1_2"}


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
    rows = json.loads((folder / "quality.json").read_text())["rows"]
    assert [set(row) for row in rows] == [{"round", "layer", "unit_entropy", "used_clusters", "segment_frames"}] * 4
    assert 1.0 < rows[0]["unit_entropy"] < 2.31  # nats; ln 10 at most
    assert PICTURES & {path.name for path in folder.iterdir()} == {"units.png"}


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
