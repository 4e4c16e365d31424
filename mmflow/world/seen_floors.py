"""Floors of tasks about what is seen and heard: labels, boxes, masks, maps and seconds, and the limits of one modality.

Each function gives those of a family by name, see `mmflow.world.floors`.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmflow.world import listening, tables
from mmflow.world.clip_reader import iou
from mmflow.world.guessers import MAPS, MASKS, Found, Parts, Sample, Told, accuracy, by_colour


def label_of(sample: Sample) -> int | None:
    """The label of a sample, if it has one."""
    label = table(sample["info"]).get("label")
    return label if isinstance(label, int) else None


def of_labels(parts: Parts) -> Found:
    """Of the most frequent label."""
    return {"majority": accuracy(*([((), label_of(sample)) for sample in part] for part in (parts.train, parts.other)))}


def of_seen_labels(parts: Parts) -> Found:
    """Of the nearest picture, and of a fit to colours."""
    labels, answers = ([label_of(sample) for sample in part] for part in parts.seen)
    kinds = sorted(set(labels), key=str)
    guessed = by_colour(parts, np.array([[label == kind for kind in kinds] for label in labels], float)).argmax(1)
    colours = np.mean([kinds[guess] == answer for guess, answer in zip(guessed, answers, strict=True)])
    pairs = parts.nearest(lambda sample: [([()], label_of(sample))])
    return {"nearest": float(np.mean([guess == truth for _, guess, truth in pairs])), "colours": float(colours)}


def _box_of(sample: Sample) -> NDArray[np.float64]:
    """(4,): left, top, right and bottom of the biggest object."""
    left, top, width, height = max(sample["info"]["objects"], key=lambda one: one["area"])["box"]
    return np.array([left, top, left + width, top + height], float)


def of_boxes(parts: Parts) -> Found:
    """Of the box of the biggest object; the majority's sides are the medians."""
    usual = np.median([_box_of(sample) for sample in parts.train], axis=0)
    pairs = parts.nearest(lambda sample: [([()], _box_of(sample))])
    return {
        "iou/majority": float(np.mean([_box_iou(usual, truth) for _, _, truth in pairs])),
        "iou/nearest": float(np.mean([_box_iou(guess, truth) for _, guess, truth in pairs])),
    }


def _box_iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    sides = np.clip(np.minimum(one, other)[2:] - np.maximum(one, other)[:2], 0, None)
    both = sides.prod()
    return float(both / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - both))


def of_masks(parts: Parts) -> Found:
    """Of what is not background; where a clip has many masks of up to five of them, evenly."""
    field = next(field for field in MASKS if field in parts.spec.fields)
    learnt, asked = ([mask for sample in part for mask in sample[field]] for part in parts.seen)
    often = np.mean(learnt, axis=0)
    levels = [often >= share * often.max() for share in np.linspace(0.05, 1, 20)]
    best = max(levels, key=lambda mask: _iou(mask, learnt))
    pairs = parts.nearest(partial(_member, field))
    nearest = [float(np.mean(iou(guess, truth))) for _, guess, truth in pairs if guess.shape == truth.shape]
    return {
        "iou/majority": _iou(best, asked),
        "iou/all": _iou(np.ones_like(best), asked),
        "iou/nearest": float(np.mean(nearest)),
    }


def _iou(mask: NDArray[np.bool_], masks: Sequence[NDArray[np.bool_]]) -> float:
    return float(np.mean([iou(mask, one) for one in masks]))


def _member(field: str, sample: Sample) -> Told:
    return [([()], sample[field])]


def of_maps(parts: Parts) -> Found:
    """Of each kind of map, pixel by pixel."""
    found: Found = {}
    for kind in (kind for kind in MAPS if kind in parts.spec.fields):
        learnt = np.stack([sample[kind] for sample in parts.seen[0]])
        colours, counts = np.unique(learnt, return_counts=True)
        usual = colours[np.argmax([(learnt == colour).sum(0) for colour in colours], axis=0)]
        drawn = [colour for colour in colours if colour != colours[counts.argmax()]]
        pairs = parts.nearest(partial(_member, kind))
        truth = np.stack([true for _, _, true in pairs])
        for name, guess in (
            ("majority", np.broadcast_to(usual, truth.shape)),
            ("nearest", np.stack([guess for _, guess, _ in pairs])),
        ):
            both = [((guess == colour) & (truth == colour)).sum() for colour in drawn]
            either = [((guess == colour) | (truth == colour)).sum() for colour in drawn]
            found[f"{kind}/pixels/{name}"] = float((guess == truth).mean())
            found[f"{kind}/iou/{name}"] = float(np.mean(np.array(both) / np.maximum(either, 1)))
    return found


# ---- seconds, and the limits of one modality


def of_labelled_seconds(parts: Parts) -> Found:
    """A label for each second."""
    learnt, asked = ([((), one) for s in part for one in s["info"]["labels"]] for part in (parts.train, parts.other))
    return {"majority": accuracy(learnt, asked)}


def of_events(parts: Parts) -> Found:
    """Which shape is both seen and heard in each second of a clip, if any, of the event that fills most of it."""
    learnt, asked = ([one for s in part for one in _seconds(s["info"])] for part in (parts.train, parts.other))
    guessers: dict[str, Callable[[Hashable, Hashable], Hashable]] = {
        "majority": lambda heard, seen: (),  # noqa: ARG005
        "audio": lambda heard, seen: heard,  # noqa: ARG005
        "video": lambda heard, seen: seen,  # noqa: ARG005
        "both": lambda heard, seen: (heard, seen),
    }
    return {
        name: accuracy(*([(given(heard, seen), label) for heard, seen, label in part] for part in (learnt, asked)))
        for name, given in guessers.items()
    }


def _seconds(info: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(heard, seen, both) in each second: a shape or ""."""
    for t in range(math.ceil(info["scene"]["seconds"])):
        lasting = [(min(one["end"], t + 1) - max(one["start"], t), one) for one in info["events"]]
        length, event = max(lasting, key=lambda pair: pair[0], default=(0.0, None))
        heard, seen = (event["shape"] if event and length > 0 and event[how] else "" for how in ("heard", "seen"))
        yield heard, seen, heard and seen


_ceilings = cache(listening.ceilings)


def _limits(task: str) -> Found:
    known = _ceilings()[task]
    return {name: known[name] for name in ("audio", "video", "both")}


def limits_of_seconds(parts: Parts) -> Found:  # noqa: ARG001
    """Of AVE."""
    return _limits("AVE")


def limits_of_masks(parts: Parts) -> Found:
    """Of S4 or MS3."""
    return {f"iou/{name}": value for name, value in _limits("S4" if "label" in parts.info else "MS3").items()}


def limits_of_questions(parts: Parts) -> Found:  # noqa: ARG001
    """Of each type of listening question."""
    kinds = ["/".join(asked) for asked in listening.QUESTIONS]
    return {f"{kind}/{name}": value for kind in kinds for name, value in _limits(kind).items()}


# ---- tables


def limits_of_rows(parts: Parts) -> Found:  # noqa: ARG001
    """The best that is possible from some columns, by the law that labels were drawn by."""
    found: Found = {}
    for number in range(1, 2 ** len(tables.PARTS)):
        chosen = [part for place, part in enumerate(tables.PARTS) if number >> place & 1]
        found[f"accuracy/{'+'.join(chosen)}"], found[f"auroc/{'+'.join(chosen)}"] = tables.limits(chosen)
    return found


def table(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is told of a row, which the all-in-one world has in a part of its own."""
    return info.get("table", info)
