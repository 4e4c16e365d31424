"""One stage: what is said about a config that does not fit, and what a stage leaves when it is done."""

import json
import logging
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse import ArgumentError

from mmflow import stage as stage_module
from mmflow.pipeline import Pipeline, apply_override
from mmflow.stage import StageCLI, build_data, contents, execute, explain, parameters, publish, trainer_help
from mmflow.systems.hubert.data import SpeechUnits
from mmflow.training.checkpoints import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers


def config() -> dict[str, Any]:
    hubert = {"class_path": "mmflow.systems.hubert.model.Hubert", "init_args": {"dim": 32}}
    training = "mmflow.systems.hubert.training.HubertPretraining"
    data = {"spec": "none.yaml", "sidecars": {"units": "none"}, "batch_size": 2}
    return {
        "model": {"class_path": training, "init_args": {"hubert": hubert, "num_classes": 12}},
        "data": {"class_path": "mmflow.systems.hubert.data.SpeechUnits", "init_args": data},
        "trainer": {"max_steps": 3},
    }


MISTAKES = [
    ("modle.x", 1, r"'modle' is not known; did you mean 'model'\? Known: .*stages, trainer"),
    ("stagess", 1, r"'stagess' is not known; did you mean 'stages'"),
    ("trainer.max_stepz", 1, r"^trainer: 'max_stepz' is not known; did you mean 'max_steps'\? Known: accelerator, "),
    ("trainer.max_steps", "many", r'Parser key "trainer.max_steps": .* Got value: many'),
    ("checkpoints.every_step", 1, r"^checkpoints: 'every_step' is not known; did you mean 'every_steps'"),
    ("guard.max_skip", 1, r"^guard: 'max_skip' is not known; did you mean 'max_skipped'"),
    ("checkpoints.mode", "low", r"checkpoints.mode.*'min', 'max'.* Got value: low"),
    ("model.numclasses", 1, r"^HubertPretraining: 'numclasses' is not known; did you mean 'num_classes'"),
    ("model.hubert.dimm", 1, r"^Hubert: 'dimm' is not known; did you mean 'dim'"),
    ("model.class_path", "mmflow.systems.hubert.training.HubertCTCs", r"'HubertCTCs' is not known; .*'HubertCTC'"),
    ("model.hubert.class_path", "mmflow.systems.hubert.model.Huber", r"'Huber' is not known; did you mean 'Hubert'"),
    ("data.class_path", "mmflow.systems.hubert.dat.SpeechUnits", r"'dat' is not known; did you mean 'data'\? Known: "),
    ("data.lane", 1, r"^SpeechUnits: 'lane' is not known; did you mean 'lanes'"),
    ("data.lanes", "two", r'SpeechUnits\': Parser key "lanes": Expected a <class \'int\'>. Got value: two'),
    (
        "trainer.callbacks",
        [{"class_path": "mmflow.data.sidecar.SidecarWriter", "init_args": {"feld": "units"}}],
        r"^SidecarWriter: 'feld' is not known; did you mean 'field'",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), MISTAKES, ids=[name for name, _, _ in MISTAKES])
def test_a_misspelt_name_or_a_wrong_value_is_told_in_a_line(tmp_path, name, value, message):
    wrong = config()
    apply_override(wrong, name, value)
    with pytest.raises((ValueError, ArgumentError)) as told:
        StageCLI("fit", wrong, tmp_path)
    said = explain(str(told.value))
    assert re.search(message, said), said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_parameters_are_those_of_all_bases_without_the_catch_all_ones():
    names = parameters(SpeechUnits)
    assert {"mask_prob", "lanes", "spec"} <= set(names)
    assert not {"self", "args", "kwargs", "shards"} & set(names)


def test_contents_are_the_classes_of_a_module_and_the_modules_of_a_package():
    import mmflow.systems.hubert
    import mmflow.training.checkpoints

    assert contents(mmflow.training.checkpoints) == ["AtomicCheckpointIO", "Checkpoints"]
    assert {"data", "kmeans", "model", "training"} <= set(contents(mmflow.systems.hubert))


def test_data_are_built_outside_of_a_trainer(tiny_speech):
    kind = "mmflow.systems.hubert.data.Utterances"
    data = build_data({"data": {"class_path": kind, "init_args": {"spec": str(tiny_speech), "lanes": 3}}})
    assert (type(data).__name__, data.lanes) == ("Utterances", 3)
    with pytest.raises(ValueError, match=r"Utterances: 'lane' is not known; did you mean 'lanes'"):
        build_data({"data": {"class_path": kind, "init_args": {"lane": 3}}})


def test_the_help_of_the_trainer_names_its_options():
    assert "--trainer.max_steps" in trainer_help()


# -- the end of a stage ------------------------------------------------------------------------------------------------


@pytest.fixture
def one(tmp_path, tiny_speech) -> Pipeline:
    """A pipeline of one stage: k-means."""
    (tmp_path / "one.yaml").write_text(
        f"""
        model:
          class_path: mmflow.systems.hubert.kmeans.KMeans
          init_args: {{features: {{class_path: mmflow.systems.hubert.features.MFCC}}, num_clusters: 4, max_frames: 200}}
        data: {{class_path: mmflow.systems.hubert.data.Utterances, init_args: {{spec: {tiny_speech}, num_workers: 0}}}}
        trainer: {{max_epochs: -1, limit_val_batches: 0, accelerator: cpu}}
        """
    )
    return Pipeline(tmp_path / "one.yaml", folder=tmp_path / "work")


def test_a_stage_leaves_its_config_a_checkpoint_logs_curves_and_last_its_note(one):
    stage = one.stages["one"]
    one.begin(stage)
    execute(one, stage)
    note = stage.done()
    assert note is not None
    assert note["checkpoint"] == f"checkpoints/step-{note['step']:08d}.ckpt"
    assert (stage.folder / note["checkpoint"]).exists()
    assert note["metrics"]["train/used"] == 4
    assert (stage.folder / "curves.png").exists()
    assert (stage.folder / "config.yaml").read_text().startswith("run: fit\n")
    assert stage.folder / "done.json" == max(stage.folder.rglob("*.*"), key=lambda path: path.stat().st_mtime_ns)


def test_all_stages_of_a_start_have_the_same_number_of_processes(one, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match=r"stage 'one' needs 1 processes, but at least 2 are running; give all stages"):
        execute(one, one.stages["one"])
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(stage_module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(stage_module.dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"stage 'one' needs 1 processes, but 2 are running"):
        execute(one, one.stages["one"])


def finished(step: int, ckpt_path: str | None = None, **state: Any) -> Any:
    keeper = Checkpoints(monitor=state.pop("monitor", None))
    keeper.load_state_dict({"best_score": None, "metrics": {}} | state)
    return SimpleNamespace(
        global_step=step, callback_metrics={}, checkpoint_callbacks=[keeper], ckpt_path=ckpt_path, default_root_dir="."
    )


def test_curves_that_cannot_be_drawn_do_not_spoil_a_finished_training(one, caplog):
    stage = one.stages["one"]
    folder = stage.folder / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,speed/data_wait\n0,0.5\n")
    (stage.folder / "checkpoints").mkdir()
    with caplog.at_level(logging.INFO):
        publish(one, stage, finished(3, ckpt_path="/elsewhere/x.ckpt"), time.time())
    assert "no curves: " in caplog.text
    assert json.loads((stage.folder / "done.json").read_text())["checkpoint"] == "/elsewhere/x.ckpt"


def test_the_best_checkpoint_and_the_metrics_of_an_earlier_start_are_noted(one):
    stage = one.stages["one"]
    (stage.folder / "checkpoints").mkdir(parents=True)
    Path(stage.folder / "checkpoints" / "best-step-00000002.ckpt").touch()
    publish(one, stage, finished(3, monitor="val/loss", best_score=1.5, metrics={"val/loss": 2.0}), time.time())
    note = stage.done()
    assert note is not None
    assert note["checkpoint"] == "checkpoints/best-step-00000002.ckpt"
    assert note["best"] == ["val/loss", 1.5]
    assert note["metrics"] == {"val/loss": 2.0}
