"""The beginning of HuBERT's pipeline as a user starts, kills and continues it, on one process and on two."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mmflow.cli import main
from mmflow.evaluation.pictures import read_curves
from tests.command import Command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CONFIG = Path(__file__).parents[2] / "tiny.yaml"
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
SICK = "tests.systems.hubert.sick"

Start = Callable[..., Command]


@pytest.fixture(scope="module")
def words(tiny_speech) -> Callable[..., list[str]]:
    """The command of a run in a work folder."""

    def of(work: Path, *more: str) -> list[str]:
        return ["fit", "--config", str(CONFIG), "--data.spec", str(tiny_speech), "--workdir", str(work), *more]

    return of


@pytest.fixture(scope="module")
def whole(tmp_path_factory, words) -> tuple[Path, str]:
    """All stages on one process, and what was printed. Only to be copied and read."""
    work = tmp_path_factory.mktemp("whole")
    command = Command(*words(work))
    assert command.end() == 0, command.output
    return work, command.output


@pytest.fixture
def labelled(tmp_path, whole) -> Path:
    """A work folder with units, in which training has not begun."""
    for stage in ("kmeans", "units"):
        shutil.copytree(whole[0] / stage, tmp_path / "work" / stage)
    return tmp_path / "work"


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """The parts that fail can be named in a config."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


def state(work: Path) -> dict[str, Tensor]:
    """All that the last training step left: weights and moments of the optimiser."""
    checkpoint = torch.load(work / "round_1" / "checkpoints" / "step-00000030.ckpt", weights_only=True)
    moments = checkpoint["optimizer_states"][0]["state"]
    return checkpoint["state_dict"] | {f"{n}.{m}": value for n, own in moments.items() for m, value in own.items()}


def check_same_bits(work: Path, other: Path) -> None:
    ours, theirs = state(work), state(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def curves(work: Path) -> dict[str, Any]:
    """What was logged over all starts, apart from speeds."""
    logs = sorted(work.glob("round_1/logs/*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    return {name: curve for name, curve in read_curves(logs).items() if not name.startswith("speed/")}


def children(command: Command) -> list[int]:
    """The other processes of a run on several."""
    listed = subprocess.run(["pgrep", "-P", str(command.process.pid)], capture_output=True, text=True).stdout.split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes() for pid in listed}
    return [pid for pid, environment in environments.items() if b"\0LOCAL_RANK=1\0" in b"\0" + environment]


def alive(command: Command) -> list[str]:
    """What still runs of a run, entries that nobody has collected apart."""
    told = subprocess.run(["ps", "-o", "stat=,args=", "-g", str(command.process.pid)], capture_output=True, text=True)
    return [line for line in told.stdout.splitlines() if not line.startswith("Z")]


def check_all_gone(command: Command) -> None:
    """Data workers see within seconds that their process has gone."""
    for _ in range(300):
        if not alive(command):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {alive(command)}")


# -- the whole chain ---------------------------------------------------------------------------------------------------


def test_the_chain_learns_and_leaves_its_pictures(whole):
    work, _ = whole
    assert sorted(path.name for path in work.iterdir()) == [".lock", "kmeans", "quality", "round_1", "units"]
    for picture in ("kmeans/curves.png", "round_1/curves.png", "quality/quality.png", "quality/clusters.png"):
        assert (work / picture).stat().st_size > 10_000
    logged = curves(work)
    losses = [value for _, value in logged["train/loss"]]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3
    assert [step for step, _ in logged["val/loss"]] == [9, 19, 29]
    assert logged["train/lr"][0][1] == pytest.approx(2e-3 / 2)  # 8 % of 30 steps are 2
    note = json.loads((work / "round_1" / "done.json").read_text())
    assert note["best"] == ["val/loss", pytest.approx(min(value for _, value in logged["val/loss"]), rel=1e-5)]


def test_the_log_is_quiet(whole):
    _, said = whole
    lines = said.splitlines()
    for start in ("── kmeans (1 of 4): fit", "── round_1 (3 of 4): fit", "step 30/30  val/loss"):
        assert sum(line.startswith(start) for line in lines) == 1
    for noise in ("Warning", "GPU available", "Tip:", "litlogger", "Restoring", "max_steps` reached", "cache_hits"):
        assert noise not in said
    assert sum(line.startswith("step ") for line in lines) <= 30 + 3 + 40
    assert all(name in said for name in ("kmeans", "units", "round_1", "quality", "result"))


def test_the_same_command_skips_everything(whole, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(words(whole[0])) == 0
    assert "── kmeans" not in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.fixture(scope="module")
def pair(tmp_path_factory, words) -> tuple[Path, str]:
    """All stages on two processes."""
    work = tmp_path_factory.mktemp("pair")
    command = Command(*words(work, *TWO))
    assert command.end() == 0, command.output
    return work, command.output


def test_two_processes_make_the_same_units_and_learn_the_same(whole, pair):
    units = [sorted((work / "units" / "shards" / "tiny_speech").glob("*.tar")) for work in (whole[0], pair[0])]
    assert [path.name for path in units[0]] == [path.name for path in units[1]]
    assert len(units[0]) == 10
    assert [path.read_bytes() for path in units[0]] == [path.read_bytes() for path in units[1]]
    ours, theirs = state(whole[0]), state(pair[0])
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
    one, two = curves(whole[0]), curves(pair[0])
    for name in ("val/loss", "val/acc_masked", "val/majority"):
        assert [value for _, value in two[name]] == pytest.approx([value for _, value in one[name]], rel=1e-4)


def test_two_processes_measure_the_same(whole, pair):
    ours, theirs = (json.loads((work / "quality" / "quality.json").read_text()) for work in (whole[0], pair[0]))
    assert ours["best"]["layer"] == theirs["best"]["layer"]
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert mine == pytest.approx(other, abs=1e-3)


def test_two_processes_do_not_say_things_twice(pair):
    lines = pair[1].splitlines()
    assert sum(line.startswith("── round_1 (3 of 4): fit") for line in lines) == 1
    assert sum(line.startswith("step 30/30  train/loss") for line in lines) == 1
    assert "Warning" not in pair[1]


# -- killed and continued ----------------------------------------------------------------------------------------------


def test_killed_and_asked_to_stop_it_ends_with_the_same_bits_whatever_the_workers(whole, labelled, words, start):
    killed = start(*words(labelled, "--data.num_workers", "2")).until("step 8/").send_all(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    stopped = start(*words(labelled, "--data.num_workers", "0")).until("step 10/30  train").send(signal.SIGTERM)
    assert stopped.end() == 75
    assert "round_1 continues from" in stopped.output
    assert "step-00000006.ckpt" in stopped.output
    assert "signal 15: saved" in stopped.output
    assert "Traceback" not in stopped.output
    stopped = start(*words(labelled)).until("step 20/30  train").send_all(signal.SIGINT)  # as Ctrl-C does
    assert stopped.end() == 130
    check_all_gone(stopped)
    ended = start(*words(labelled))
    assert ended.end() == 0, ended.output
    assert yaml.safe_load((labelled / "round_1" / "config.yaml").read_text())["ckpt_path"] is None  # as it was given
    check_same_bits(labelled, whole[0])
    assert curves(labelled) == curves(whole[0])
    quality = [json.loads((work / "quality" / "quality.json").read_text()) for work in (labelled, whole[0])]
    assert quality[0] == quality[1]


def test_two_processes_end_together_and_go_on_to_the_same_bits_with_two_or_one(pair, labelled, words, start):
    alone = ("--data.num_workers", "0")  # else workers need seconds to see that their process was killed
    killed = start(*words(labelled, *TWO, *alone)).until("step 8/")
    os.kill(children(killed)[0], signal.SIGKILL)  # the second process only
    assert killed.end(60) not in (0, 75)
    check_all_gone(killed)
    stopped = start(*words(labelled, *TWO)).until("step 9/").send(signal.SIGTERM)  # the first process only
    assert stopped.end() == 75
    assert "step-00000006.ckpt" in stopped.output
    check_all_gone(stopped)
    stopped = start(*words(labelled, *TWO)).until("step 14/")
    os.kill(children(stopped)[0], signal.SIGUSR1)
    assert stopped.end() == 75
    assert "signal 10: saved" in stopped.output
    killed = start(*words(labelled, *TWO, *alone)).until("step 20/").send(signal.SIGKILL)  # the first process only
    assert killed.end(60) == -signal.SIGKILL
    check_all_gone(killed)
    ended = start(*words(labelled))
    assert ended.end() == 0, ended.output
    check_same_bits(labelled, pair[0])  # two lanes add up in one order only


def test_a_damaged_checkpoint_is_passed_over_to_the_same_bits(whole, labelled, words, start, capsys, monkeypatch):
    stopped = start(*words(labelled)).until("step 13/").send(signal.SIGTERM)
    assert stopped.end() == 75
    checkpoints = sorted((labelled / "round_1" / "checkpoints").glob("step-*.ckpt"))
    checkpoints[-1].write_bytes(checkpoints[-1].read_bytes()[:5000])
    (labelled / "round_1" / "checkpoints" / ".step-00000018.ckpt.abc.part").write_bytes(b"half")
    ended = start(*words(labelled))
    assert ended.end() == 0, ended.output
    assert f"skipping checkpoint {checkpoints[-1]}: its SHA-256 is not the one in" in ended.output
    assert f"round_1 continues from {checkpoints[-2]}" in ended.output
    assert list(labelled.rglob("*.part")) == []
    check_same_bits(labelled, whole[0])
    for path in (labelled / "round_1" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:5000])
    (labelled / "round_1" / "done.json").unlink()
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    assert main(words(labelled)) == 2
    assert "error: none of the 2 checkpoints in" in capsys.readouterr().err


def test_labelling_that_was_killed_makes_no_shard_again(whole, tmp_path, words, start):
    work = tmp_path / "work"
    shutil.copytree(whole[0] / "kmeans", work / "kmeans")
    slow = ("--stages.units.data.class_path", f"{SICK}.SlowUtterances")
    killed = start(*words(work, *slow))
    shards = work / "units" / "shards" / "tiny_speech"
    while len(list(shards.glob("*.tar"))) < 2:
        time.sleep(0.05)
        assert killed.process.poll() is None
    killed.send_all(signal.SIGKILL).end()
    made = {path: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    stopped = start(*words(work, *slow, *TWO)).until("── units")
    while len(list(shards.glob("*.tar"))) < len(made) + 2:
        time.sleep(0.05)
        assert stopped.process.poll() is None
    assert stopped.send(signal.SIGTERM).end() == 75
    check_all_gone(stopped)
    ended = start(*words(work, *slow)).until("── units done").send_all(signal.SIGKILL)
    ended.end()
    assert f"{len(made)} of 10 sidecar shards stand already" in stopped.output
    assert "of 10 sidecar shards stand already" in ended.output
    assert {path: path.stat().st_mtime_ns for path in made} == made
    theirs = whole[0] / "units" / "shards" / "tiny_speech"
    assert all(path.read_bytes() == (theirs / path.name).read_bytes() for path in shards.glob("*.tar"))


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_error_in_one_process_is_said_once_and_ends_all(labelled, words, start):
    command = start(*words(labelled, *TWO, "--stages.round_1.model.class_path", f"{SICK}.NotANumber"))
    assert command.end(90) not in (0, 75)
    check_all_gone(command)
    assert command.output.count("the loss is not finite at step 7") == 1
    assert "Traceback" not in command.output
    (bad,) = json.loads((labelled / "round_1" / "bad_batches.json").read_text())
    assert bad["step"] == 7
    assert all(key.startswith("train") for _, key in bad["samples"])
    assert "FloatingPointError" in (labelled / "error-rank1.log").read_text()


def test_an_error_in_a_data_worker_is_said_once_and_ends_the_run(labelled, words, start):
    command = start(*words(labelled, "--stages.round_1.data.class_path", f"{SICK}.BrokenWorkers"))
    assert command.end(90) == 1
    check_all_gone(command)
    assert command.output.count("KeyError: 'no such thing in train") == 1


def test_all_processes_may_log_to_one_file_of_a_start(pair):
    """Only the first process logs; each start has a file of its own."""
    (log,) = (pair[0] / "round_1" / "logs").glob("*/metrics.csv")
    with log.open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/lr"]]
    assert steps == list(range(30))
