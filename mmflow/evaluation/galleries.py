"""Pictures of how pictures and texts go together: a gallery of what was found, bars by class, a similarity matrix.

All are PNG files. Pictures are (3, H, W), RGB in [0, 1]. Letters: N pairs.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mmflow.evaluation.pictures import COLOURS, INK, SOFT, STYLE, save

KNOWN, UNSEEN, RIGHT, FAINT = COLOURS[0], COLOURS[2], COLOURS[3], "#d9dbe3"
MOST_BARS = 60  # of more classes the worst and the best are drawn
THUMBNAIL = 0.95  # inches
LABEL = 2.75  # inches of the texts beside a matrix
MOST_NUMBERS = 12  # pairs of a matrix whose cells hold their numbers


class Answer(NamedTuple):
    """Something that was found."""

    found: Any  # a picture, or a text
    score: float
    right: bool


class Query(NamedTuple):
    """What was asked for, and the best answers.

    Attributes:
        asked: a text or a picture.
        answers: best first, of the other kind than `asked`.
        rank: answers that were preferred to the right one; 0 where it was found first.
        right: the right answer, shown where it is not among `answers`.
    """

    asked: Any
    answers: Sequence[Answer]
    rank: int
    right: Any


# -- what was found ----------------------------------------------------------------------------------------------------


def retrieval_gallery(by_text: Sequence[Query], by_image: Sequence[Query], out: Path) -> None:
    """Draw texts with the pictures that were found for them, and below pictures with the texts that were found.

    What is right has a green frame or a green bar. Where it is not among the answers it stands behind them, with its
    place.

    Args:
        by_text: queries whose `asked` is a text; all have as many answers.
        by_image: queries whose `asked` is a picture; all have as many answers.
        out: The PNG file.

    Raises:
        ValueError: there are no queries of a kind.
    """
    if not by_text or not by_image:
        raise ValueError(f"{len(by_text)} texts and {len(by_image)} pictures ask; a gallery needs one of each")
    shown, told = len(by_text[0].answers), len(by_image[0].answers)
    row = max(THUMBNAIL, 0.19 * (told + 1))  # inches of a picture's texts
    width = 2.4 + (THUMBNAIL + 0.1) * (shown + 1.3)
    heights = len(by_text) * 1.22 + 0.5, len(by_image) * row * 1.2 + 0.5
    with rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=heights).tolist()  # type: ignore[union-attr]
        _title(upper, "pictures found for a text, best first")
        widths = [2.2, *[1] * shown, 0.12, 1]
        grid = upper.subplots(len(by_text), shown + 3, squeeze=False, width_ratios=widths)
        for cells, query in zip(grid, by_text, strict=True):
            _draw_found_pictures(cells, query)
        _title(lower, "texts found for a picture, best first")
        grid = lower.subplots(len(by_image), 2, squeeze=False, width_ratios=[1, 5.5])
        for cells, query in zip(grid, by_image, strict=True):
            _draw_picture(cells[0], query.asked)
            _draw_found_texts(cells[1], query)
        save(figure, out)


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")


def _draw_found_pictures(cells: Sequence[Axes], query: Query) -> None:
    asked, *answers, _, behind = cells
    for axes in cells:
        axes.set_axis_off()
    text = textwrap.fill(str(query.asked), 30, max_lines=5, placeholder=" …")
    asked.text(0.98, 0.5, text, ha="right", va="center", fontsize=8.5, transform=asked.transAxes)
    for axes, answer in zip(answers, query.answers, strict=True):
        _draw_picture(axes, answer.found, framed=answer.right)
        axes.set_title(f"{answer.score:.2f}", fontsize=7, pad=2, loc="center", fontweight="normal", color=SOFT)
    if query.rank >= len(query.answers):
        _draw_picture(behind, query.right, framed=True)
        behind.set_title(f"place {query.rank + 1:,}", fontsize=7, pad=2, loc="center", fontweight="normal", color=RIGHT)


def _draw_picture(axes: Axes, picture: Tensor, framed: bool = False) -> None:
    axes.imshow(picture.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=RIGHT if framed else FAINT, linewidth=2.6 if framed else 0.6)


def _draw_found_texts(axes: Axes, query: Query) -> None:
    """A line for each text, and its score as a bar behind it."""
    lines: list[tuple[Any, float | None, bool, str]]
    lines = [(answer.found, answer.score, answer.right, "") for answer in query.answers]
    if query.rank >= len(query.answers):
        lines.append((query.right, None, True, f"place {query.rank + 1:,}: "))
    scores = [answer.score for answer in query.answers]
    low, high = min(0.0, *scores), max(*scores, 1e-6)
    for number, (text, score, right, before) in enumerate(lines):
        if score is not None:
            width = 0.02 + 0.96 * (score - low) / (high - low)
            axes.barh(number, width, height=0.78, color=RIGHT if right else KNOWN, alpha=0.3 if right else 0.14)
            axes.text(-0.012, number, f"{score:.2f}", ha="right", va="center", fontsize=7, color=SOFT)
        words = textwrap.shorten(before + str(text), 95, placeholder=" …")
        axes.text(0.01, number, words, va="center", fontsize=8, color=RIGHT if before else INK)
    axes.set(xlim=(-0.07, 1), ylim=(len(query.answers) + 0.5, -0.6))
    axes.set_axis_off()


# -- classes -----------------------------------------------------------------------------------------------------------


def class_bars(accuracies: Mapping[str, float], unseen: Sequence[str], chance: float, title: str, out: Path) -> None:
    """Draw the accuracy of each class as a bar, the best on top; classes that training never showed in another colour.

    Of more than 60 classes the 30 best and the 30 worst are drawn.

    Args:
        accuracies: class -> share of its pictures that are classified right.
        unseen: classes that training never showed.
        chance: accuracy of guessing.
        title: Of the picture.
        out: The PNG file.

    Raises:
        ValueError: there are no classes.
    """
    if not accuracies:
        raise ValueError("accuracies={} leaves nothing to draw; give at least one class")
    order = sorted(accuracies, key=lambda name: (-accuracies[name], name))
    means = {
        "mean of all classes" if not unseen else "mean of seen classes": _mean(accuracies, set(order) - set(unseen)),
        "mean of unseen classes": _mean(accuracies, set(unseen)),
    }
    left_out = len(order) - MOST_BARS
    if left_out > 0:
        order = [*order[: MOST_BARS // 2], f"… {left_out} more …", *order[-MOST_BARS // 2 :]]
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 1.3 + 0.19 * len(order)), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(order):
            if name in accuracies:
                colour, share = UNSEEN if name in unseen else KNOWN, accuracies[name]
                axes.barh(place, share, height=0.72, color=colour)
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # over the lines of the means
                axes.text(share + 0.008, place, f"{share:.0%}", va="center", fontsize=7, color=SOFT, bbox=box)
        for (name, mean), colour in zip(means.items(), (KNOWN, UNSEEN), strict=True):
            if mean is not None:
                axes.axvline(mean, color=colour, linewidth=1.2, zorder=0.8, label=f"{name} {mean:.1%}")
        axes.axvline(chance, color=SOFT, linewidth=1.2, linestyle=(0, (4, 2)), label=f"chance {chance:.1%}", zorder=0.8)
        axes.set_yticks(range(len(order)), order, fontsize=7.5)
        axes.set(xlim=(0, 1.06), ylim=(len(order) - 0.4, -0.6), xlabel="accuracy", title=title)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
        save(figure, out)


def _mean(accuracies: Mapping[str, float], names: set[str]) -> float | None:
    return sum(accuracies[name] for name in names) / len(names) if names else None


# -- all with all ------------------------------------------------------------------------------------------------------


def similarity_matrix(images: Sequence[Tensor], texts: Sequence[str], cosines: Tensor, out: Path) -> None:
    """Draw the cosine of each of some pictures with each of their texts; what belongs together is framed.

    Args:
        images: N pictures.
        texts: N, text i is of picture i.
        cosines: (N, N), row i of picture i, column j of text j.
        out: The PNG file.

    Raises:
        ValueError: the numbers of pictures and texts do not fit.
    """
    size = len(images)
    if not size or len(texts) != size or cosines.shape != (size, size):
        raise ValueError(f"{size} pictures, {len(texts)} texts and cosines {tuple(cosines.shape)} are not N, N, (N, N)")
    values = cosines.float().cpu().T.numpy()  # a row for each text, so that it can be read
    numbered = size <= MOST_NUMBERS
    cell = 0.62 if numbered else 0.3  # inches
    width, height = LABEL + cell * size + 0.8, cell * (size + 1.3) + 0.4
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((LABEL / width, 0.1 / height, cell * size / width, cell * size / height))
        scale = figure.add_axes(((LABEL + cell * size + 0.12) / width, 0.1 / height, 0.12 / width, 0.6))
        shown = axes.imshow(values, cmap="PuBuGn", aspect="equal")
        low, high = float(values.min()), float(values.max())
        for number, picture in enumerate(images):
            thumbnail = axes.inset_axes((number - 0.46, -1.5, 0.92, 0.92), transform=axes.transData)
            _draw_picture(thumbnail, picture)
            axes.add_patch(
                Rectangle((number - 0.5, number - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=1.4)
            )
        for row, column in itertools.product(range(size), repeat=2) if numbered else ():
            value = values[row, column]
            ink = "white" if value > low + 0.6 * (high - low) else INK
            axes.text(column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=7, color=ink)
        labels = [textwrap.fill(text, 44, max_lines=3 if numbered else 1, placeholder=" …") for text in texts]
        axes.set_yticks(range(size), labels, fontsize=7.5)
        axes.set(xticks=[], title="cosines of pictures and texts")
        axes.title.set_y(1 + 1.25 / size)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(shown, cax=scale).outline.set_visible(False)  # type: ignore[operator]
        scale.tick_params(labelsize=7)
        save(figure, out)
