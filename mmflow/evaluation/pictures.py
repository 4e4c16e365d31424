"""Pictures of a run, as PNG files: losses, quality of units by layer, phones of clusters, units under a spectrogram.

Letters: S waveform samples, T frames at 50 Hz, P phones, K clusters.
"""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mmflow.atomic import atomic_file
from mmflow.data.decode import SAMPLE_RATE
from mmflow.evaluation.clustering import HOP, WINDOW

DPI = 160
INK, SOFT = "#26262e", "#8a8a94"
COLOURS = ("#3b6fb6", "#d1495b", "#e0962f", "#3a8f5f", "#7a5195")
STYLE: Any = {  # its keys are of a type of matplotlib's own
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a transcript may hold dollars
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e6ec",
    "legend.frameon": False,
}
# Title of a panel -> how the quantities begin that belong into it, in the logged names `stage/quantity`.
PANELS = {
    "loss": "loss",
    "inertia": "inertia",
    "accuracy": "acc",
    "character error rate": "cer",
    "word error rate": "wer",
}
# Column of a quality table -> title of its panel.
MEASURES = {
    "pnmi": "PNMI",
    "abx_within": "ABX error, one speaker",
    "abx_across": "ABX error across speakers",
    "stability": "stability between seeds",
}
RANGE_DB = 75.0  # of a spectrogram, below its loudest point

Curves = dict[str, list[tuple[int, float]]]  # logged name -> (step, value)


def save(figure: Figure, out: Path) -> None:
    """Write a figure as a PNG file, which appears when it is whole."""
    with atomic_file(out) as file:
        figure.savefig(file, format="png", dpi=DPI)


# -- losses ------------------------------------------------------------------------------------------------------------


def loss_curves(logs: Sequence[Path], out: Path) -> None:
    """Draw losses, accuracies and error rates by step, one panel for each kind and all stages in it.

    Training values, which are of one batch each, are drawn faintly under their running mean; others as points.

    Args:
        logs: What Lightning's CSVLogger left, one file per start of the run, in order: a column `step` and columns
            named `stage/quantity`.
        out: The PNG file.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves = read_curves(logs)
    panels = {
        title: {name: curve for name, curve in curves.items() if name.split("/")[-1].startswith(start)}
        for title, start in PANELS.items()
    }
    panels = {title: members for title, members in panels.items() if members}
    if not panels:
        raise ValueError(
            f"{', '.join(map(str, logs))} holds no values of any quantity named {', '.join(PANELS.values())} (but of "
            f"{', '.join(curves) or 'none'}); log one, or draw after the first logged step"
        )
    with rc_context(STYLE):
        figure = Figure(figsize=(4.0 * len(panels), 3.0), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for here, (title, members) in zip(axes, panels.items(), strict=True):
            _draw_curves(here, title, members)
        save(figure, out)


def read_curves(logs: Sequence[Path]) -> Curves:
    """All logged values by name, in order of steps; what a resumed run logged again counts once, the later value."""
    values: dict[str, dict[int, float]] = {}
    for log in logs:
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if "/" in name and text:
                        values.setdefault(name, {})[int(row["step"])] = float(text)
    return {name: sorted(points.items()) for name, points in values.items()}


def _draw_curves(axes: Axes, title: str, curves: Curves) -> None:
    quantities = {name.split("/")[-1] for name in curves}
    for (name, curve), colour in zip(curves.items(), itertools.cycle(COLOURS)):
        stage, _, quantity = name.partition("/")
        label = stage if len(quantities) == 1 else f"{stage} {quantity.replace('_', ' ')}"
        steps, values = np.array(curve).T
        if stage == "train" and len(curve) > 100:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, running_mean(values, len(values) // 20), color=colour, linewidth=1.6, label=label)
        else:
            marker = "o" if len(curve) <= 50 else ""
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=label)
    axes.set(title=title, xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(True)
    axes.legend()


def running_mean(values: np.ndarray, size: int) -> np.ndarray:
    """Mean over `size` neighbours on each side, over fewer at the ends."""
    ones = np.ones(2 * size + 1)
    return np.convolve(values, ones, "full")[size:-size] / np.convolve(np.ones_like(values), ones, "full")[size:-size]


# -- quality of units --------------------------------------------------------------------------------------------------


def quality_by_layer(table: Sequence[Mapping], out: Path) -> None:
    """Draw the MEASURES of the units of each layer that the table holds, one line per round.

    Args:
        table: Rows with `round` (its name in the legend), `layer` (int, or None for features that have no layers, which
            are drawn as a level across), and the numbers of at least one of MEASURES, all rows of the same.
        out: The PNG file.
    """
    rounds = list(dict.fromkeys(row["round"] for row in table))
    panels = {measure: title for measure, title in MEASURES.items() if measure in table[0]}
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 2.8 * len(panels), 3.0), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (measure, title) in zip(grid, panels.items(), strict=True):
            for name, colour in zip(rounds, itertools.cycle(COLOURS)):
                rows = [row for row in table if row["round"] == name]
                _draw_round(axes, str(name), {row["layer"]: row[measure] for row in rows}, colour)
            axes.set(title=title, xlabel="layer")
            axes.set_ylim(0, 1.08 * max(row[measure] for row in table))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(True, axis="y")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
        save(figure, out)


def _draw_round(axes: Axes, name: str, values: dict[int | None, float], colour: str) -> None:
    if None in values:
        axes.axhline(values[None], color=colour, linewidth=1.4, linestyle=(0, (4, 2)), label=name)
    layers = sorted(layer for layer in values if layer is not None)
    if layers:
        axes.plot(layers, [values[layer] for layer in layers], color=colour, marker="o", markersize=4, label=name)


def cluster_phone_heatmap(joint: Tensor, phone_names: Sequence[str], out: Path) -> None:
    """Draw p(phone | cluster): phones from the most frequent down, clusters by their most likely phone.

    Args:
        joint: (P, K) frames with each pair; phones and clusters without any are left out.
        phone_names: P names.
        out: The PNG file.
    """
    phones, clusters = sorted_for_heatmap(joint)
    counts = joint[phones][:, clusters].double()
    share = counts / counts.sum(0)  # (P', K')
    with rc_context(STYLE):
        size = (min(14.0, 3.0 + 0.075 * len(clusters)), 1.2 + 0.15 * len(phones))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(share, aspect="auto", cmap="BuPu", vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks(range(len(phones)), [phone_names[phone] for phone in phones], fontsize=7)
        axes.set(xlabel=f"{len(clusters)} used of {joint.shape[1]} clusters, by most likely phone")
        axes.set(ylabel="phone, by frequency", title="p(phone | cluster)", xticks=[])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01).outline.set_visible(False)  # type: ignore[operator]
        save(figure, out)


def sorted_for_heatmap(joint: Tensor) -> tuple[list[int], list[int]]:
    """Phones that occur, most frequent first, and clusters in use, by their likeliest phone and then its share."""
    frequency = joint.sum(1)
    phones = [int(phone) for phone in frequency.argsort(descending=True, stable=True) if frequency[phone] > 0]
    share = (joint[phones] / joint.sum(0)).nan_to_num(-1.0)  # (P', K)
    best, likeliest = share.max(0)
    used = (joint.sum(0) > 0).nonzero()[:, 0].tolist()
    return phones, sorted(used, key=lambda cluster: (int(likeliest[cluster]), -float(best[cluster])))


# -- one utterance -----------------------------------------------------------------------------------------------------


def units_under_spectrogram(audio: Tensor, units: Tensor, phones: Sequence[Sequence], text: str, out: Path) -> None:
    """Draw a spectrogram of an utterance, under it a strip with its units and one with its phones.

    A unit has the same colour wherever it occurs; its number stands in runs of three frames or more.

    Args:
        audio: (S,) at 16 kHz.
        units: (T,) integers, one per 20 ms.
        phones: [start in s, end in s, name]; none for an utterance without an alignment.
        text: What is said, for the title.
        out: The PNG file.
    """
    seconds = len(audio) / SAMPLE_RATE
    strips = 2 if phones else 1
    with rc_context(STYLE):
        size = (min(max(2.6 * seconds, 7.0), 26.0), 2.9 + 0.3 * strips)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.02, hspace=0.0))
        rows = figure.subplots(1 + strips, 1, sharex=True, height_ratios=[7] + [1] * strips)
        _draw_spectrogram(rows[0], audio, seconds)
        rows[0].set_title(text)
        _draw_units(rows[1], units)
        if phones:
            _draw_phones(rows[2], phones)
        for axes in rows[1:]:
            axes.set(ylim=(0, 1), yticks=[])
            axes.spines[:].set_visible(False)
        for axes in rows[:-1]:
            axes.tick_params(bottom=False, labelbottom=False)
        rows[-1].set(xlim=(0, seconds), xlabel="s")
        save(figure, out)


def _draw_spectrogram(axes: Axes, audio: Tensor, seconds: float) -> None:
    step = 80  # samples, 5 ms
    window = torch.hann_window(WINDOW)
    louder = torch.cat([audio[:1], audio[1:] - 0.97 * audio[:-1]])  # without it hum outshines consonants
    power = torch.stft(louder, 512, step, WINDOW, window, return_complex=True).abs().square()  # (257, S / 80 + 1)
    decibels = 10 * power.clamp(min=1e-12).log10()
    axes.imshow(
        decibels - decibels.max(),
        aspect="auto",
        origin="lower",
        extent=(0, seconds, 0, SAMPLE_RATE / 2000),
        cmap="magma",
        vmin=-RANGE_DB,
        vmax=0,
    )
    axes.set(ylabel="kHz", yticks=[0, 2, 4, 6, 8])
    axes.spines[:].set_visible(False)


def _draw_units(axes: Axes, units: Tensor) -> None:
    axes.set_ylabel("unit", rotation=0, ha="right", va="center")
    start = 0
    for unit, run in itertools.groupby(units.tolist()):
        size = len(list(run))
        # A frame is drawn as the 20 ms around the middle of the 25 ms that it spans.
        left_s = (start * HOP + (WINDOW - HOP) / 2) / SAMPLE_RATE
        width_s = size * HOP / SAMPLE_RATE
        axes.axvspan(left_s, left_s + width_s, color=unit_colour(unit), linewidth=0)
        if size >= 3:
            axes.text(left_s + width_s / 2, 0.47, str(unit), ha="center", va="center", fontsize=6.5, clip_on=True)
        start += size


def unit_colour(unit: int) -> tuple[float, float, float]:
    """A light colour (red, green, blue); consecutive units lie a golden angle apart, so none are near each other."""
    hue = unit * (math.sqrt(5) - 1) / 2 % 1
    return tuple(hsv_to_rgb((hue, 0.38 + 0.2 * (unit % 3) / 2, 0.95)).tolist())


def _draw_phones(axes: Axes, phones: Sequence[Sequence]) -> None:
    axes.set_ylabel("phone", rotation=0, ha="right", va="center")
    for number, (start_s, end_s, name) in enumerate(phones):
        axes.axvspan(start_s, end_s, color=("#eef0f5", "#dfe3ec")[number % 2], linewidth=0)
        axes.text((start_s + end_s) / 2, 0.47, name, ha="center", va="center", fontsize=7.5, clip_on=True)
