"""What is said about the speed of training, in lines and in the logs."""

import csv
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmflow.training import meters
from mmflow.training.meters import Meters, StepBar
from tests.training import toy
from tests.training.toy import Line, fit, points

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers


def test_rates_are_over_all_processes_and_waiting_is_a_share(monkeypatch):
    now = iter([10.0, 14.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(now))
    meter = Meters()
    meter.samples, meter.audio_s, meter.waited_s = 12, 30.0, 1.0
    assert meter._rates(world=2) == {"data_wait": 0.25, "samples_per_s": 6.0, "audio_s_per_s": 15.0}


def test_no_rates_of_samples_where_a_batch_holds_none(monkeypatch):
    now = iter([10.0, 14.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(now))
    assert Meters()._rates(world=1) == {"data_wait": 0.0}


def batch(shard: str, rows: int, seconds: dict[str, float]) -> dict[str, Any]:
    total = {shard: sum(seconds.values())}
    return {"__key__": ["k"] * rows, "__shard__": [shard] * rows, "__seconds__": seconds, "__shard_seconds__": total}


def test_decoding_is_told_by_field_per_sample():
    meter, trainer = Meters(), SimpleNamespace(accumulate_grad_batches=10)
    meter.on_train_batch_end(trainer, None, None, batch("a", 6, {"image": 0.3, "text": 0.01}), 0)
    meter.on_train_batch_end(trainer, None, None, batch("b", 4, {"image": 0.1}), 1)
    meter.on_train_batch_end(trainer, None, None, torch.zeros(3), 2)  # other data modules' batches may be anything
    assert meter._decode_ms() == {"decode_ms/image": pytest.approx(40.0), "decode_ms/text": pytest.approx(1.0)}
    assert meter.samples == 10
    assert "audio_s_per_s" not in meter._rates(world=1)
    meter._clear()
    assert meter._decode_ms() == {}


def test_joined_micro_batches_count_each():
    meter, trainer = Meters(), SimpleNamespace(accumulate_grad_batches=10)
    micros = [batch("a", 6, {"image": 0.3}), batch("b", 4, {"image": 0.1}) | {"audio_seconds": 2.5}]
    meter.on_train_batch_end(trainer, None, None, micros, 0)
    assert meter._decode_ms() == {"decode_ms/image": pytest.approx(40.0)}
    assert (meter.samples, meter.audio_s) == (10, 2.5)
    assert meter.shard_samples == {"a": 6, "b": 4}


def test_shards_that_are_much_slower_than_the_median_are_named(caplog):
    meter, trainer = Meters(), SimpleNamespace(accumulate_grad_batches=100)
    slow = {"b": 0.5, "d": 1.0, "f": 0.4, "g": 0.31}  # seconds for 10 samples; 0.1 for the others
    for shard in "abcdefghijklm":
        meter.on_train_batch_end(trainer, None, None, batch(shard, 10, {"image": slow.get(shard, 0.1)}), 0)
    meter.on_train_batch_end(trainer, None, None, batch("few", 9, {"image": 9.0}), 0)
    meter.on_train_end(trainer, None)
    text = "the slowest shards, per sample, where the median shard takes 10 ms: d 100 ms, b 50 ms, f 40 ms"
    assert [record.getMessage() for record in caplog.records] == [text]
    meter.on_train_end(trainer, None)
    assert len(caplog.records) == 1  # each is told of what came since


def test_shards_that_are_not_much_slower_are_not_named(caplog):
    meter, trainer = Meters(), SimpleNamespace(accumulate_grad_batches=100)
    for shard in "abc":
        meter.on_train_batch_end(trainer, None, None, batch(shard, 10, {"image": 0.29 if shard == "a" else 0.1}), 0)
    meter._name_slow_shards()
    Meters()._name_slow_shards()
    assert not caplog.records


def test_decoding_and_slow_shards_are_logged_in_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(toy, "points", timed_points)
    fit(tmp_path, steps=6)
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [float(row["speed/decode_ms/x"]) for row in csv.DictReader(file) if row["speed/decode_ms/x"]]
    sizes = [sum(len(points(step, lane)["x"]) for lane in range(4)) for step in range(6)]
    assert rows == pytest.approx([4 * 4 / size for size in sizes])
    text = "the slowest shards, per sample, where the median shard takes 100 ms: s0 900 ms"
    assert caplog.text.count(text) == 2  # at the validations after steps 3 and 6, so there is nothing new at the end


def timed_points(step: int, lane: int) -> dict[str, Any]:
    """Points of three shards, the first of which is slow."""
    shard, given = f"s{step % 3}", points(step, lane)
    rows = len(given["x"])
    seconds = {"__seconds__": {"x": 0.004}, "__shard_seconds__": {shard: rows * (0.9 if shard == "s0" else 0.1)}}
    return given | {"__shard__": [shard] * rows} | seconds


def test_a_line_per_logged_step_and_one_per_validation(tmp_path, capsys):
    fit(tmp_path, steps=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/3", "step 2/3", "step 3/3", "step 3/3"]
    names = [part.split()[0] for part in lines[0].split("  ")[1:]]
    assert names == ["train/loss", "data_wait", "samples_per_s", "audio_s_per_s"]
    assert [part.split()[0] for part in lines[3].split("  ")[1:]] == ["val/loss"]


def test_a_terminal_gets_no_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(meters.sys.stdout, "isatty", lambda: True)
    fit(tmp_path, steps=2)
    assert capsys.readouterr().out == ""


def test_speed_and_learning_rate_are_logged_once_a_step(tmp_path):
    fit(tmp_path, steps=3)
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = [(int(row["step"]), float(row["train/lr"])) for row in rows if row["train/lr"]]
    assert rates == [(0, pytest.approx(0.05)), (1, pytest.approx(0.05 * 2 / 3)), (2, pytest.approx(0.05 / 3))]
    assert len([row for row in rows if row["speed/samples_per_s"]]) == 3
    waits = [float(row["speed/data_wait"]) for row in rows if row["speed/data_wait"]]
    assert all(0 <= wait <= 1 for wait in waits)


def test_samples_of_all_micro_batches_of_a_step_are_counted(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(Meters, "_rates", lambda self, world: counted.append((self.samples, self.audio_s)) or {})
    fit(tmp_path, steps=2, line=Line())
    sizes = [sum(len(points(step, lane)["x"]) for lane in range(4)) for step in range(2)]
    assert counted == [(size, size / 2) for size in sizes]


def test_the_bar_counts_steps_and_shows_metrics_only(tmp_path):
    seen = []

    class Watched(StepBar):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            (task,) = [task for task in self.progress.tasks if task.id == self.train_progress_bar_id]
            names = set(self.get_metrics(trainer, pl_module))
            seen.append((task.description.strip(), task.completed, task.total, names - {"val/loss"}))

    fit(tmp_path, steps=3, lanes=2, callbacks=[Watched()], enable_progress_bar=True)
    steps = [0, 1, 1, 2, 2, 3]  # an optimiser step after every second micro-batch
    assert seen == [("Step", step, 3, {"train/loss"}) for step in steps]
