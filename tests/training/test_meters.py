"""What is said about the speed of training, in lines and in the logs."""

import csv

import pytest

from mmflow.training import meters
from mmflow.training.meters import Meters, StepBar
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
