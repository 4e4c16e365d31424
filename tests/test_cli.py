"""The command line: what it answers, skips, refuses, and with what exit code it leaves."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from mmflow import cli
from mmflow.atomic import locked
from mmflow.cli import main, report, table
from mmflow.data.datamodule import ShardData
from mmflow.pipeline import Pipeline
from tests.shards import write_data_set

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

ROOT = Path(__file__).parents[1]


class Texts(ShardData):
    """Batches of texts."""

    fields = ("text",)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.setenv("COLUMNS", "200")


def words(config: Path, work: Path, *more: str | Path) -> list[str]:
    return ["fit", "--config", str(config), "--workdir", str(work), *map(str, more)]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_speech) -> Path:
    """The first two stages of the tiny pipeline, for the tiny data."""
    tree = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    tree["data"]["init_args"] |= {"spec": str(tiny_speech), "num_workers": 0}
    tree["stages"] = {name: tree["stages"][name] for name in ("kmeans", "units")}
    path = tmp_path_factory.mktemp("config") / "two.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config) -> Path:
    """The work folder of the two stages. Only to be copied and read."""
    work = tmp_path_factory.mktemp("finished")
    assert main(words(config, work)) == 0
    return work


@pytest.fixture
def work(tmp_path, finished) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "work"))


# -- answers at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--help"], "fit "),
        (["--version"], "0.1.0"),
        (["data", "--help"], "trace"),
        (["status", "--help"], "--workdir"),
        (["fitt"], ""),
    ],
)
def test_help_version_and_typing_errors_load_no_torch(given, said):
    program = (
        f"import sys\nfrom mmflow.cli import main\n"
        f"try:\n    main({given!r})\nfinally:\n    print('torch' in sys.modules, 'lightning' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert child.stdout.splitlines()[-1] == "False False"
    assert said in child.stdout


def test_the_help_of_fit_names_our_options_and_the_trainers(capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit", "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "--rerun STAGE" in said
    assert "--trainer.max_steps" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["fitt", "--config", "x"],
            "command 'fitt' is not known; did you mean 'fit'? Known: fit, validate, test, predict",
        ),
        (["data", "chek"], "command 'chek' is not known; did you mean 'check'? Known: make, check, stats, show"),
        (["fit"], "the following arguments are required: --config"),
        ([], "the following arguments are required: COMMAND"),
        (["data", "check", "--spec", "x", "--rot", "y"], "unknown option --rot"),
    ],
)
def test_commands_that_are_wrong_are_told_how_they_would_be_right(capsys, given, said):
    with pytest.raises(SystemExit) as left:
        main(given)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_a_missing_config_makes_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "pipelines/huber.yaml"]) == 2
    assert "error: there is no config pipelines/huber.yaml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- running -----------------------------------------------------------------------------------------------------------


def test_a_finished_pipeline_is_skipped_and_shown(config, work, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmflow.stage", None)  # importing it would now fail
    assert main(words(config, work)) == 0
    said = capsys.readouterr().out
    assert "── kmeans" not in said
    assert [line.split("│")[1].strip() for line in said.splitlines() if "done" in line] == ["kmeans", "units"]


def test_stages_say_when_they_begin_and_end(config, tmp_path, capsys):
    assert main(words(config, tmp_path / "w")) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("──")]
    assert said[0] == "── kmeans (1 of 2): fit"
    assert said[1].startswith("── kmeans done in ")
    assert "train/inertia" in said[1]
    assert said[2] == "── units (2 of 2): predict"
    assert said[3].startswith("── units done in ")
    assert len(said) == 4


def test_changed_settings_stop_it_before_anything_runs(config, work, capsys):
    assert main(words(config, work, "--stages.kmeans.model.num_clusters", "5")) == 2
    said = capsys.readouterr().err
    assert "error: stage 'kmeans' in" in said
    assert "  model.init_args.num_clusters: 12 -> 5\n" in said
    assert "(--workdir DIR)" in said
    assert "(--rerun kmeans)" in said


def test_rerun_runs_a_stage_and_its_dependents_again_and_no_others(config, work, capsys):
    before = {name: (work / name / "done.json").stat().st_mtime_ns for name in ("kmeans", "units")}
    assert main(words(config, work, "--rerun", "units")) == 0
    said = capsys.readouterr().out
    assert "running again: units\n" in said
    assert "── kmeans" not in said
    after = {name: (work / name / "done.json").stat().st_mtime_ns for name in ("kmeans", "units")}
    assert after["kmeans"] == before["kmeans"]
    assert after["units"] > before["units"]
    assert not (work / "rerun.json").exists()


def test_rerun_of_an_unknown_stage_is_an_error(config, work, capsys):
    assert main(words(config, work, "--rerun", "unit")) == 2
    assert "--rerun unit: stage 'unit' is not known; did you mean 'units'?" in capsys.readouterr().err


def test_an_override_for_an_unknown_stage_is_an_error(config, work, capsys):
    assert main(words(config, work, "--stages.unit.data.num_workers", "0")) == 2
    assert "stage 'unit' is not known; did you mean 'units'?" in capsys.readouterr().err


def test_two_runs_do_not_share_a_work_folder(config, work, capsys):
    with locked(work / ".lock", wait=False):
        assert main(words(config, work)) == 2
        said = capsys.readouterr().err
        assert f"{work} is in use by another run (" in said
        assert "process" in said
        assert "choose another --workdir" in said
    assert main(words(config, work)) == 0


def test_what_a_killed_run_left_half_written_is_removed(config, work):
    (work / "units" / ".step.ckpt.abcd.part").write_text("half")
    (work / "error.log").write_text("an old error")
    assert main(words(config, work)) == 0
    assert not list(work.rglob("*.part"))
    assert not (work / "error.log").exists()


def test_an_error_keeps_its_traceback_in_the_work_folder(config, work, capsys):
    assert main(words(config, work, "--rerun", "units", "--stages.units.ckpt_path", "gone.ckpt")) == 2
    said = capsys.readouterr().err
    assert "gone.ckpt" in said
    assert f"(where it came from: {work / 'error.log'})" in said
    assert "Traceback" not in said
    assert "Traceback" in (work / "error.log").read_text()


def test_a_saved_config_loads_again_as_a_pipeline_of_one(finished, tmp_path):
    saved = finished / "kmeans" / "config.yaml"
    assert main(["fit", "--config", str(saved), "--workdir", str(tmp_path / "again")]) == 0
    first, second = (
        json.loads((folder / "done.json").read_text())
        for folder in (finished / "kmeans", tmp_path / "again" / "config")
    )
    assert first["metrics"]["train/inertia"] == second["metrics"]["train/inertia"]
    weights = [
        torch.load(folder / note["checkpoint"], weights_only=True)["state_dict"]["centroids"]
        for folder, note in ((finished / "kmeans", first), (tmp_path / "again" / "config", second))
    ]
    assert torch.equal(*weights)


def test_the_other_commands_run_one_config(config, finished, tmp_path):
    saved = finished / "units" / "config.yaml"
    assert main(["predict", "--config", str(saved), "--workdir", str(tmp_path / "p")]) == 0
    ours, theirs = (
        (w / "shards" / "tiny_speech").glob("*.tar") for w in (tmp_path / "p" / "config", finished / "units")
    )
    assert [path.read_bytes() for path in sorted(ours)] == [path.read_bytes() for path in sorted(theirs)]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(["predict", "--config", str(config)]) == 2
    assert "has stages, which `fit` runs in order; `predict` takes a config of one stage" in said.getvalue()


def test_data_trace_prints_what_a_step_reads(finished, tiny_speech, tmp_path, capsys):
    tiny = ["--config", str(ROOT / "tests" / "tiny.yaml"), "--workdir", str(finished), "--data.spec", str(tiny_speech)]
    assert main(["data", "trace", *tiny, "--step", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("  ")[1] for line in lines} == {"lane 0", "lane 1"}
    assert all(re.fullmatch(r"epoch 1  lane \d  tiny_speech  .*train-00\d+\.tar  \S+", line) for line in lines)
    assert main(["data", "trace", *tiny, "--step", "7", "--stage", "round_2"]) == 2
    assert "--stage round_2: choose one of the training stages ['round_1']" in capsys.readouterr().err


def test_data_trace_follows_any_data_of_shards_but_nothing_else(tmp_path, capsys):
    spec = write_data_set(tmp_path, {"train": [[{"txt": word} for word in "abcdef"]]}, fields={"text": ["txt"]})
    stage = {"run": "fit", "model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}}
    stage |= {"trainer": {"max_steps": 1}}
    for name, kind, options in (
        ("texts", "tests.test_cli.Texts", {"spec": str(spec), "batch_size": 2, "lanes": 1}),
        ("other", "lightning.pytorch.demos.boring_classes.BoringDataModule", {}),
    ):
        data = {"data": {"class_path": kind, "init_args": options}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"stages": {name: stage | data}}))
    traced = ["data", "trace", "--workdir", str(tmp_path / "w"), "--step"]
    assert main([*traced, "4", "--config", str(tmp_path / "texts.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("epoch 1  lane 0  toy  ") for line in lines)
    assert main([*traced, "-1", "--config", str(tmp_path / "texts.yaml")]) == 2
    assert "--step -1 must be 0 or more" in capsys.readouterr().err
    assert main([*traced, "0", "--config", str(tmp_path / "other.yaml")]) == 2
    assert "the data of stage 'other' is a BoringDataModule, which has no plan" in capsys.readouterr().err


def test_data_check_lists_what_is_wrong_and_says_so_with_its_exit_code(tmp_path, capsys):
    samples = {"train": [[{"txt": "A"}, {"txt": b"\xff"}]], "test": [[{"txt": "A B"}]]}
    spec = write_data_set(tmp_path, samples, fields={"text": ["txt"]})
    assert main(["data", "check", "--spec", str(spec), "--workers", "0"]) == 1
    printed = capsys.readouterr()
    assert "checking" not in printed.err  # no bar where no terminal is
    said = printed.out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said if "│" in line]
    assert rows == [["train", "1", "2", "0.00", "0.00", "1"], ["test", "1", "1", "0.00", "0.00", "0"]]
    assert said[-1].startswith(f"{tmp_path}/toy/train-000000.tar  train-0-1: text: text is not UTF-8")
    (tmp_path / "toy" / "train-000000.tar").unlink()
    assert main(["data", "check", "--spec", str(spec), "--workers", "0"]) == 0


def test_data_stats_prints_tables_and_writes_the_numbers(tmp_path, capsys):
    spec = write_data_set(tmp_path, {"train": [[{"txt": "A"}]], "test": [[{"txt": "A B"}]]}, fields={"text": ["txt"]})
    out = tmp_path / "deep" / "stats.json"
    assert main(["data", "stats", "--spec", str(spec), "--split", "test", "--workers", "0", "--out", str(out)]) == 0
    assert "2 words (3 bytes) of text" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert list(found["splits"]) == ["test"]
    assert found["splits"]["test"]["quantities"]["text: words"]["total"] == 2


def test_data_show_writes_a_page(tmp_path, capsys):
    spec = write_data_set(tmp_path, {"train": [[{"txt": "a word"}]]}, fields={"text": ["txt"]})
    assert main(["data", "show", "--spec", str(spec), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"open {tmp_path / 'page.html'} in a browser\n"
    assert "a word" in (tmp_path / "page.html").read_text()


# -- where it stands ---------------------------------------------------------------------------------------------------


def shown(config: Path, work: Path) -> list[list[str]]:
    """The rows of the table."""
    out = io.StringIO()
    Console(file=out, width=200).print(table(Pipeline(config, folder=work)))
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines() if "│" in line]


def test_status_shows_state_step_result_time_and_size(config, finished, capsys):
    kmeans, units = shown(config, finished)
    assert kmeans[:3] == ["kmeans", "fit", "done"]
    assert kmeans[3] == str(json.loads((finished / "kmeans" / "done.json").read_text())["step"])
    assert kmeans[4].startswith("train/inertia ")
    assert kmeans[5].endswith(" s")
    assert units[:5] == ["units", "predict", "done", "", ""]
    assert units[6] == "0.1 MB"
    assert main(["status", "--config", str(config), "--workdir", str(finished)]) == 0
    assert "two in " in capsys.readouterr().out


def test_status_tells_waiting_interrupted_and_running_apart(config, work):
    for name in ("kmeans", "units"):
        (work / name / "done.json").unlink()
    (work / "units" / "settings.json").unlink()
    shutil.copy(next((work / "kmeans" / "checkpoints").glob("*.ckpt")), work / "kmeans/checkpoints/step-00001234.ckpt")
    assert [row[2:4] for row in shown(config, work)] == [["interrupted", "1,234"], ["waiting", ""]]
    with locked(work / ".lock", wait=False):
        assert [row[2] for row in shown(config, work)] == ["running", "waiting"]


# -- errors of several processes ---------------------------------------------------------------------------------------


@pytest.fixture
def second(monkeypatch) -> Any:
    """This is the second process of a run."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(cli.time, "sleep", lambda _: None)


def test_what_a_user_can_mend_is_said_in_a_line(tmp_path, capsys):
    assert report(ValueError("lanes=0"), tmp_path) == 2
    assert capsys.readouterr().err == f"error: lanes=0\n(where it came from: {tmp_path / 'error.log'})\n"
    assert report(FloatingPointError("nan"), None) == 2
    assert capsys.readouterr().err == "error: nan\n"


def test_anything_else_is_shown_whole(tmp_path, capsys):
    assert report(KeyError("x"), tmp_path) == 1
    assert capsys.readouterr().err == "KeyError: 'x'\n"
    assert (tmp_path / "error.log").read_text() == "KeyError: 'x'\n"


def test_a_lost_process_is_not_blamed_on_the_network(tmp_path, capsys):
    lost = RuntimeError(
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"
    )
    assert report(lost, tmp_path) == 1
    said = "error: another process of this run has ended or does not answer; what it said stands above"
    assert capsys.readouterr().err == f"{said} (what this one saw: {tmp_path / 'error.log'})\n"


def test_other_words_about_distributed_runs_are_not_taken_for_a_lost_process(capsys):
    assert report(RuntimeError("Distributed package doesn't have NCCL built in"), None) == 1
    assert "NCCL built in" in capsys.readouterr().err


def test_one_reason_of_all_processes_is_said_by_the_first(tmp_path, capsys, second):
    (tmp_path / "error.log").write_text("Traceback ...\nValueError: lanes=0\n")
    assert report(ValueError("lanes=0"), tmp_path) == 1
    assert capsys.readouterr().err == ""
    assert (tmp_path / "error-rank1.log").exists()


def test_a_reason_of_its_own_is_said_by_the_process_that_has_it(tmp_path, capsys, second):
    assert report(ValueError("lanes=0"), tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: lanes=0\n")


def test_a_full_disk_does_not_hide_the_error(tmp_path, capsys, monkeypatch):
    def full(self: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert report(OSError(28, "No space left on device", "x.ckpt"), tmp_path) == 2
    assert "error: [Errno 28] No space left on device: 'x.ckpt'" in capsys.readouterr().err
