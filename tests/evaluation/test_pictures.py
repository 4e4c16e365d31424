"""What is drawn is checked on the numbers behind the pictures; the files are checked to be pictures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mmflow.evaluation.pictures import (
    cluster_phone_heatmap,
    loss_curves,
    quality_by_layer,
    read_curves,
    running_mean,
    sorted_for_heatmap,
    unit_colour,
    units_under_spectrogram,
)

CSV = """epoch,step,train/loss,train/acc_masked,val/loss,speed/samples
0,10,3.0,0.1,,50
0,20,2.5,0.2,,51
0,20,,,2.75,
0,30,2.0,0.3,,
0,20,2.25,0.2,,
"""


def ink(path: Path) -> float:
    """Share of pixels that are not white."""
    pixels = imread(path)[..., :3]
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 400
    return float((pixels < 0.98).any(2).mean())


def test_curves_are_read_by_name_and_a_repeated_step_counts_once(tmp_path):
    (tmp_path / "metrics.csv").write_text(CSV)
    curves = read_curves([tmp_path / "metrics.csv"])
    assert curves["train/loss"] == [(10, 3.0), (20, 2.25), (30, 2.0)]
    assert curves["val/loss"] == [(20, 2.75)]
    assert "epoch" not in curves


def test_curves_of_a_resumed_run_are_joined_and_the_later_start_counts(tmp_path):
    (tmp_path / "first.csv").write_text(CSV)
    (tmp_path / "second.csv").write_text("epoch,step,train/loss,val/loss\n0,30,1.75,\n0,40,1.5,1.6\n")
    curves = read_curves([tmp_path / "first.csv", tmp_path / "second.csv"])
    assert curves["train/loss"] == [(10, 3.0), (20, 2.25), (30, 1.75), (40, 1.5)]
    assert curves["train/acc_masked"][-1] == (30, 0.3)
    assert curves["val/loss"] == [(20, 2.75), (40, 1.6)]


def test_running_mean_shrinks_its_window_at_the_ends():
    assert running_mean(np.array([1.0, 2.0, 6.0, 3.0]), 1).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 4.5])


def test_loss_curves_are_drawn_for_short_and_long_runs(tmp_path):
    (tmp_path / "short.csv").write_text(CSV)
    loss_curves([tmp_path / "short.csv"], tmp_path / "short.png")
    lines = [f"{step},{math.exp(-step / 100)},{0.5},{0.25}" for step in range(300)]
    (tmp_path / "long.csv").write_text("\n".join(["step,train/loss,val/wer,val/cer", *lines]))
    loss_curves([tmp_path / "long.csv"], tmp_path / "folder" / "long.png")
    short, long = imread(tmp_path / "short.png"), imread(tmp_path / "folder" / "long.png")
    assert long.shape[1] == 1.5 * short.shape[1]  # three panels against two
    assert 0.01 < ink(tmp_path / "short.png") < 0.5


def test_a_log_without_losses_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,speed/samples\n0,10,5\n")
    with pytest.raises(ValueError, match=r"metrics.csv holds no values of .* loss.* \(but of speed/samples\)"):
        loss_curves([tmp_path / "metrics.csv"], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_quality_is_drawn_with_and_without_layers(tmp_path):
    row = {"pnmi": 0.4, "abx_within": 0.1, "abx_across": 0.2, "stability": 0.7, "unit_entropy": 4.4}
    level = {"round": "MFCC", "layer": None} | row
    quality_by_layer([level], tmp_path / "level.png")
    layers = [{"round": "round 1", "layer": layer} | row | {"pnmi": 0.4 + layer / 20} for layer in range(4)]
    quality_by_layer([level, *layers], tmp_path / "layers.png")
    assert ink(tmp_path / "layers.png") > ink(tmp_path / "level.png") > 0


def test_quality_has_a_panel_for_each_measure_in_the_table(tmp_path):
    quality_by_layer([{"round": "MFCC", "layer": None, "stability": 0.7}], tmp_path / "one.png")
    both = {"round": "MFCC", "layer": None, "stability": 0.7, "pnmi": 0.4}
    quality_by_layer([both], tmp_path / "two.png")
    one, two = imread(tmp_path / "one.png"), imread(tmp_path / "two.png")
    assert two.shape[1] - one.shape[1] == round(2.8 * 160)


def test_heatmap_orders_phones_by_frequency_and_clusters_by_their_phone():
    joint = torch.tensor(
        [
            [1, 0, 0, 0, 2],  # 3 frames
            [0, 0, 0, 0, 0],  # never
            [0, 9, 0, 5, 3],  # 17 frames
        ]
    )
    phones, clusters = sorted_for_heatmap(joint)
    assert phones == [2, 0]
    assert clusters == [1, 3, 4, 0]  # all of phone 2 first, the purest of them first; cluster 2 is not in use


def test_heatmap_is_drawn(tmp_path):
    joint = torch.randint(0, 50, (12, 30), generator=torch.Generator().manual_seed(0))
    cluster_phone_heatmap(joint, [f"p{number}" for number in range(12)], tmp_path / "heat.png")
    assert ink(tmp_path / "heat.png") > 0.3


def test_units_are_drawn_with_and_without_phones(tmp_path):
    audio = torch.sin(torch.arange(16_000) * 0.1) * 0.1
    units = torch.arange(49) // 6
    phones = [[0.0, 0.4, "AA"], [0.4, 1.0, "SIL"]]
    units_under_spectrogram(audio, units, phones, "costs $5, or $6 on $days_", tmp_path / "with.png")
    units_under_spectrogram(audio, units, [], "", tmp_path / "without.png")
    assert imread(tmp_path / "with.png").shape[0] > imread(tmp_path / "without.png").shape[0]
    assert ink(tmp_path / "with.png") > 0.4


def test_a_shortest_utterance_is_drawn(tmp_path):
    units_under_spectrogram(torch.zeros(400), torch.tensor([7]), [], "", tmp_path / "short.png")
    assert (tmp_path / "short.png").stat().st_size > 0


def test_neighbouring_units_have_different_colours():
    colours = np.array([unit_colour(unit) for unit in range(100)])
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert np.abs(np.diff(colours, axis=0)).max(1).min() > 0.1
