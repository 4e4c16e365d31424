"""What a pipeline file means: defaults, references, overrides, what has changed, and what runs again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmflow.pipeline import Pipeline, data_identity, flatten, parse_overrides, read_yaml, unknown
from tests.shards import write_data_set

TEXT = """
name: toy
trainer: {log_every_n_steps: 5, gradient_clip_val: 1.0}
data: {init_args: {spec: SPEC}}
seed_everything: 3
stages:
  first:
    run: fit
    model: {class_path: a.Model, init_args: {dim: 8, part: {class_path: a.Part, init_args: {lr: 1e-3}}}}
    data: {class_path: a.Data}
    trainer: {max_steps: 10, gradient_clip_val: null}
  labels:
    run: predict
    ckpt_path: ${stages.first.checkpoint}
    model: ${stages.first.model}
    data: {class_path: a.Data, init_args: {sidecars: {units: "${stages.first.folder}/x"}}}
  second:
    model: {class_path: a.Other, init_args: {places: ["${stages.labels.shards}", b]}}
  alone:
    run: test
    model: ${stages.second.model.class_path}
"""


@pytest.fixture
def path(tmp_path) -> Path:
    spec = write_data_set(tmp_path, {"train": [[1.0, 1.0], [1.0]]})
    (tmp_path / "pipe.yaml").write_text(TEXT.replace("SPEC", str(spec)))
    return tmp_path / "pipe.yaml"


def pipeline(path: Path, *words: str, **options: Any) -> Pipeline:
    return Pipeline(path, parse_overrides(list(words)), path.parent / "work", **options)


def end(pipeline: Pipeline, name: str, **results: Any) -> None:
    """Leave what a stage leaves that has run."""
    stage = pipeline.stages[name]
    pipeline.begin(stage)
    pipeline.finish(stage, 0.0, {"metrics": {}} | results)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_stages_take_the_defaults_and_keep_their_order(path):
    stages = pipeline(path).stages
    assert list(stages) == ["first", "labels", "second", "alone"]
    assert [stage.run for stage in stages.values()] == ["fit", "predict", "fit", "test"]
    assert stages["first"].config["trainer"] == {"log_every_n_steps": 5, "gradient_clip_val": None, "max_steps": 10}
    assert stages["first"].config["seed_everything"] == 3
    assert stages["labels"].config["data"]["class_path"] == "a.Data"
    assert stages["labels"].config["data"]["init_args"]["spec"].endswith("toy.yaml")
    assert stages["first"].folder == path.parent / "work" / "first"


def test_a_number_with_an_exponent_is_a_number(path):
    assert pipeline(path).stages["first"].config["model"]["init_args"]["part"]["init_args"]["lr"] == 0.001


def test_references_give_parts_of_configs_and_outputs_of_finished_stages(path):
    toy = pipeline(path)
    assert toy.stages["labels"].config["model"] == toy.stages["first"].config["model"]
    assert toy.stages["alone"].config["model"] == "a.Other"
    end(toy, "first", checkpoint="checkpoints/best.ckpt")
    work = path.parent / "work"
    labels = toy.resolved(toy.stages["labels"])
    assert labels["ckpt_path"] == str(work / "first" / "checkpoints" / "best.ckpt")
    assert labels["data"]["init_args"]["sidecars"]["units"] == f"{work / 'first'}/x"
    places = toy.resolved(toy.stages["second"])["model"]["init_args"]["places"]
    assert places == [str(work / "labels" / "shards"), "b"]


def test_a_checkpoint_from_elsewhere_keeps_its_place(path):
    toy = pipeline(path)
    end(toy, "first", checkpoint="/elsewhere/last.ckpt")
    assert toy.resolved(toy.stages["labels"])["ckpt_path"] == "/elsewhere/last.ckpt"


def test_a_stage_needs_those_whose_outputs_it_uses_not_those_whose_settings_it_shares(path):
    assert {name: stage.needs for name, stage in pipeline(path).stages.items()} == {
        "first": [],
        "labels": ["first"],
        "second": ["labels"],
        "alone": [],
    }
    assert pipeline(path).dependents(["first"]) == ["first", "labels", "second"]
    assert pipeline(path).dependents(["alone", "second"]) == ["second", "alone"]


def test_a_file_without_stages_is_a_pipeline_of_one(tmp_path):
    (tmp_path / "one.yaml").write_text("model: {class_path: a.Model}\ntrainer: {max_steps: 3}\n")
    one = Pipeline(tmp_path / "one.yaml")
    assert [(s.name, s.run, str(s.folder)) for s in one.stages.values()] == [("one", "fit", "runs/one/one")]
    assert Pipeline(tmp_path / "one.yaml", run="test").stages["one"].run == "test"
    (tmp_path / "one.yaml").write_text("run: predict\nmodel: {class_path: a.Model}\nfolder: elsewhere\n")
    assert Pipeline(tmp_path / "one.yaml").stages["one"].run == "predict"
    assert Pipeline(tmp_path / "one.yaml", run="test").stages["one"].run == "test"  # the command line beats the file
    assert Pipeline(tmp_path / "one.yaml").folder == Path("elsewhere")
    assert Pipeline(tmp_path / "one.yaml", folder=tmp_path).folder == tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("run: test", "run: tets", r"stage 'alone' in .*: run: 'tets' is not known; did you mean 'test'\?"),
        (
            "first.checkpoint",
            "frist.checkpoint",
            r"stage 'labels' .* does not stand before it: 'frist' is not known; did",
        ),
        ("first.checkpoint", "second.checkpoint", r"stage 'labels' .* does not stand before it: 'second' is not known"),
        (
            "first.checkpoint",
            "first.chekpoint",
            r"stages.first.chekpoint}: 'chekpoint' is not known; did you mean 'chec",
        ),
        ("first.checkpoint}", "first.checkpoint", r"pipe.yaml cannot be read: .* stages.labels.ckpt_path"),
        ("  labels:", "  la-bels:", r"stage 'la-bels' holds .* the name of a stage is made of letters, digits and _"),
        ("  labels:", "  first:", r"pipe.yaml cannot be read: .* found duplicate key first"),
        ("name: toy", "name: [", r"pipe.yaml cannot be read: .*"),
    ],
)
def test_mistakes_in_a_file_are_named(path, old, new, message):
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        pipeline(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no mapping; a pipeline has `stages:`, or"),
        ("- a\n- b\n", "holds no mapping"),
        ("stages: [a, b]\n", r"stages is \['a', 'b'\]; it must map the name of each stage to its config"),
        ("stages: {}\n", r"stages is {}; it must map"),
        ("stages: {a: 5}\n", r"stage 'a' holds 5; the name of a stage"),
    ],
)
def test_files_that_are_no_pipelines_are_refused(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Pipeline(tmp_path / "p.yaml")


def test_a_missing_file_is_named_with_the_nearest(path):
    with pytest.raises(ValueError, match=r"there is no config .*/pip.yaml; did you mean .*/pipe.yaml\?"):
        read_yaml(path.with_name("pip.yaml"))
    with pytest.raises(ValueError, match=r"there is no config nowhere/x.yaml; pipelines/ holds those of mmflow"):
        read_yaml(Path("nowhere/x.yaml"))


def test_only_fit_runs_several_stages(path):
    with pytest.raises(ValueError, match=r"has stages, which `fit` runs in order; `test` takes a config of one stage"):
        pipeline(path, run="test")


# -- overrides ---------------------------------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_in_both_forms():
    words = ["--a.b", "1e-3", "--c=x=y", "--d", "[1, two]", "--e=null", "--f", "-1", "--g="]
    assert parse_overrides(words) == [
        ("a.b", 0.001),
        ("c", "x=y"),
        ("d", [1, "two"]),
        ("e", None),
        ("f", -1),
        ("g", None),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "unexpected word 'x'; options are --name value or --name=value"),
        (["--"], "unexpected word '--'"),
        (["--trainer.max_steps"], "option --trainer.max_steps needs a value"),
        (["--workdri", "x"], "there is no option --workdri; did you mean --workdir"),
        (["--x", "[1"], r"--x: '\[1' is not YAML; put it in quotes"),
    ],
)
def test_words_that_are_no_overrides_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        parse_overrides(words)


def test_an_override_goes_to_every_stage_or_to_one(path):
    stages = pipeline(path, "--trainer.max_steps", "7", "--stages.second.trainer.max_steps", "9").stages
    assert [stage.config["trainer"]["max_steps"] for stage in stages.values()] == [7, 7, 9, 7]


def test_an_override_finds_init_args_by_itself(path):
    words = ["--stages.first.model.dim", "16", "--stages.first.model.part.lr", "2e-3", "--data.spec", "other.yaml"]
    stages = pipeline(path, *words).stages
    part = {"class_path": "a.Part", "init_args": {"lr": 0.002}}
    assert stages["first"].config["model"] == {"class_path": "a.Model", "init_args": {"dim": 16, "part": part}}
    assert stages["labels"].config["model"] == stages["first"].config["model"]  # refers to it
    assert [stage.config["data"]["init_args"]["spec"] for stage in stages.values()] == ["other.yaml"] * 4


def test_an_override_of_what_a_stage_shares_reaches_those_that_refer_to_it(path):
    stages = pipeline(path, "--stages.second.model.class_path", "a.New").stages
    assert stages["alone"].config["model"] == "a.New"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--stages.frist.trainer.max_steps", "stage 'frist' is not known; did you mean 'first'"),
        ("--stages.first", "--stages.first names no key of that stage; try --stages.first.trainer.max_steps"),
        ("--stages", "--stages: stage '' is not known"),
    ],
)
def test_an_override_for_no_stage_is_an_error(path, word, message):
    with pytest.raises(ValueError, match=message):
        pipeline(path, word, "3")


# -- what has changed --------------------------------------------------------------------------------------------------


def test_finished_stages_are_skipped(path):
    toy = pipeline(path)
    for name in ("first", "labels"):
        end(toy, name)
    assert [stage.name for stage in pipeline(path).pending()] == ["second", "alone"]


def test_changed_settings_are_shown_with_both_ways_out(path):
    end(pipeline(path), "first")
    changed = pipeline(path, "--stages.first.model.dim", "16", "--stages.first.trainer.max_time", "1")
    with pytest.raises(ValueError, match="was run with other settings") as told:
        list(changed.pending())
    assert str(told.value).splitlines() == [
        f"stage 'first' in {path.parent / 'work'} was run with other settings:",
        "  model.init_args.dim: 8 -> 16",
        "  trainer.max_time: '(not set)' -> 1",
        "Either choose another folder (--workdir DIR), or run it and what depends on it again (--rerun first)",
    ]


def test_an_interrupted_stage_is_compared_too_and_all_before_the_first_runs(path):
    toy = pipeline(path)
    toy.begin(toy.stages["second"])
    with pytest.raises(ValueError, match=r"stage 'second' .*\n.*class_path: 'a.Other' -> 'a.New'"):
        next(pipeline(path, "--stages.second.model.class_path", "a.New").pending())


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
        ["--trainer.strategy", "{class_path: DDPStrategy, init_args: {timeout: 5}}"],
        ["--data.num_workers", "3"],
        ["--checkpoints.every_steps", "5", "--checkpoints.keep", "9"],
        ["--trainer.log_every_n_steps", "1"],
    ],
)
def test_where_and_how_a_stage_runs_may_change(path, words):
    end(pipeline(path), "first")
    assert [stage.name for stage in pipeline(path, *words).pending()] == ["labels", "second", "alone"]


def test_a_stage_before_it_that_changed_is_a_change(path):
    toy = pipeline(path)
    end(toy, "first")
    end(toy, "labels")
    shutil.rmtree(toy.stages["first"].folder)
    with pytest.raises(
        ValueError, match=r"stage 'labels' .*\n  one of the stages it uses \(first\) has other settings"
    ):
        pipeline(path, "--stages.first.trainer.max_steps", "11").check_unchanged(
            pipeline(path, "--stages.first.trainer.max_steps", "11").stages["labels"]
        )


def test_changed_data_are_a_change(path):
    end(pipeline(path), "first")
    (shard, *_) = sorted((path.parent / "toy").glob("*.tar"))
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(ValueError, match=r"stage 'first' .*\n  the data: 2 shards, \w{16} -> 2 shards, \w{16}"):
        list(pipeline(path).pending())


def test_data_are_identified_by_the_names_and_sizes_of_their_shards(path):
    config = pipeline(path).stages["first"].config
    assert data_identity(config) == data_identity(json.loads(json.dumps(config)))
    assert data_identity(config).startswith("2 shards, ")
    assert data_identity({}).startswith("0 shards, ")


def test_a_folder_of_plain_files_may_grow(tmp_path):
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "one.wav").write_bytes(b"1")
    (tmp_path / "one.yaml").write_text(f"run: predict\ndata: {{init_args: {{folder: {tmp_path / 'recordings'}}}}}\n")

    def names() -> list[str]:
        return [stage.name for stage in Pipeline(tmp_path / "one.yaml", folder=tmp_path / "work").pending()]

    one = Pipeline(tmp_path / "one.yaml", folder=tmp_path / "work")
    assert names() == ["one"]
    end(one, "one")
    assert names() == []
    (tmp_path / "recordings" / "two.wav").write_bytes(b"2")
    assert names() == ["one"]
    one.begin(one.stages["one"])
    assert one.stages["one"].done() is None
    end(one, "one")
    assert names() == []


def test_a_start_that_failed_at_once_binds_the_next_one_to_nothing(path):
    toy = pipeline(path)
    first = toy.stages["first"]
    toy.begin(first)
    (first.folder / "config.yaml").touch()
    toy.withdraw(first)
    assert next(pipeline(path, "--stages.first.model.dim", "16").pending()).name == "first"
    toy.begin(first)
    (first.folder / "logs").mkdir()
    toy.withdraw(first)
    with pytest.raises(ValueError, match="was run with other settings"):
        next(pipeline(path, "--stages.first.model.dim", "16").pending())


# -- running again -----------------------------------------------------------------------------------------------------


def test_what_runs_again_takes_its_dependents_with_it(path):
    toy = pipeline(path)
    for name in toy.stages:
        end(toy, name)
    assert toy.forget(["labels"]) == ["labels", "second"]
    assert [stage.name for stage in toy.pending()] == ["labels", "second"]
    assert not toy.stages["labels"].folder.exists()


def test_the_same_request_goes_on_until_all_is_finished(path):
    """A requeued job gives its command again; it must not lose what it has done since."""
    toy = pipeline(path)
    for name in toy.stages:
        end(toy, name)
    toy.forget(["first"])
    assert toy.was_forgotten(["first"])
    end(toy, "first")
    assert pipeline(path).forget(["first"]) == []
    assert [stage.name for stage in pipeline(path).pending()] == ["labels", "second"]
    assert pipeline(path).forget(["labels"]) == ["labels", "second"]  # another request
    assert pipeline(path, "--stages.first.model.dim", "9").forget(["first"]) == ["first", "labels", "second"]
    for name in toy.stages:
        end(toy, name)
    toy.finish_all()
    assert pipeline(path).forget(["first"]) == ["first", "labels", "second"]


def test_a_changed_stage_runs_again_with_its_new_settings(path):
    end(pipeline(path), "first")
    changed = pipeline(path, "--stages.first.model.dim", "16")
    changed.forget(["first"])
    assert [stage.name for stage in changed.pending()] == ["first", "labels", "second", "alone"]


def test_running_an_unknown_stage_again_is_an_error(path):
    with pytest.raises(ValueError, match=r"--rerun frist: stage 'frist' is not known; did you mean 'first'"):
        pipeline(path).forget(["frist"])


# -- pieces ------------------------------------------------------------------------------------------------------------


def test_flatten_joins_names_and_keeps_lists():
    assert flatten({"a": {"b": 1, "c": {"d": [2, {"e": 3}]}}, "f": None}) == {
        "a.b": 1,
        "a.c.d": [2, {"e": 3}],
        "f": None,
    }


def test_an_unknown_name_is_told_with_the_nearest_and_all():
    assert unknown("modle", ["data", "model"]) == "'modle' is not known; did you mean 'model'? Known: data, model"
    assert unknown("x", []) == "'x' is not known; none is"
