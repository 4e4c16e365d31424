"""What can be reached without understanding: honest floors, and known limits, for the tasks of a made data set.

A family of floors applies where the samples have what it is about, told by the keys of their JSON. Guessers learn from
the training part and are scored on another one (`mmflow.world.guessers`).
"""

import logging
from collections.abc import Callable

from mmflow.data.spec import DataSpec
from mmflow.world import seen_floors, told_floors
from mmflow.world.guessers import MAPS, MASKS, Found, Parts

log = logging.getLogger(__name__)


def floors(spec: DataSpec, split: str = "test") -> Found:
    """Floors and limits of a data set, found on `split` by what `train` tells; those that do not apply are logged.

    Names are parts with "/" between them: task, perhaps the type of a question or what is measured, and last who
    guesses:
        chance: by drawing.
        majority: the most frequent label, answer, text, box or map of training; for masks the best that is always the
            same. "all" takes the whole picture.
        question: the most frequent answer to the question (by its form and words where they are told), or of its type
            where the question is new.
        medium: the most frequent kind of change in a story by whether a picture or a clip shows it.
        nearest: what is told of the training picture (or first picture of a clip) that looks most alike at 32 x 32
            pixels, of up to 3000; for questions of those with the same question, or else of its type. In an episode,
            of its examples.
        colours: a linear fit to the histogram of the picture's colours; in retrieval of the caption's colour words.
        copy: an edit that changes nothing ("changed" and "kept", see `mmflow.world.edits.verify`).
        audio, video, both: the best that is possible from these; text, categorical, numerical, joined by "+": the best
            from these columns.

    Values are accuracies, but for these. "right": the share of what is said that is true, "named": of things (or
    findings with their places) that are told. "iou": mean IoU of boxes and masks, and of the colours of a map but the
    most frequent one; "pixels": the share that agree. "at-1", "at-10": recall of the picture by its caption (text to
    image) and the other way. "words", "characters": error rates, lower is better. "auroc": that area.

    Raises ValueError for a spec without training shards, without `split`, without JSON, or with JSON that tells of
    none of the tasks.
    """
    if "info" not in spec.fields:
        raise ValueError(f"{spec.path} has no field 'info', only {sorted(spec.fields)}; floors are told by the JSON")
    parts = Parts(spec, split)
    if not parts.train or not parts.other:
        counts = f"train has {len(parts.train)} and {split} has {len(parts.other)} samples"
        raise ValueError(f"{spec.path}: {counts} that can be read; both need some")
    found: Found = {}
    names: dict[str, bool] = {}  # of the families, and whether one of that name applies
    for name, applies, family in FAMILIES:
        names[name] = names.get(name, False)
        if applies(parts):
            found |= {f"{name}/{key}": value for key, value in family(parts).items()}
            names[name] = True
    if not found:
        raise ValueError(
            f"{spec.path}: no floor is known for samples with {', '.join(sorted(parts.info))} in their JSON; "
            f"the tasks are {', '.join(names)}"
        )
    absent = [name for name, there in names.items() if not there]
    log.info("%s: no floors of %s, for the samples tell nothing of them", spec.name, ", ".join(absent))
    return found


# ---- which apply


Applies = Callable[[Parts], bool]


def _tells(*names: str) -> Applies:
    """Whether the JSON has these names; "scene" where it must be the world's."""
    return lambda parts: set(names) <= set(parts.info)


def _and_shows(applies: Applies) -> Applies:
    """Whether there are pictures or clips too."""
    return lambda parts: parts.has_sight and applies(parts)


def _has_label(parts: Parts) -> bool:
    return seen_floors.label_of(parts.other[0]) is not None


def _has_caption(parts: Parts) -> bool:
    return "text" in parts.spec.fields and "scene" in parts.info and bool({"captions", "translation"} & set(parts.info))


def _has_questions(parts: Parts) -> bool:
    return any(True for _ in told_floors.asked(parts.other[0]))


def _has_mask(parts: Parts) -> bool:
    return bool(set(MASKS) & set(parts.spec.fields))


def _has_maps(parts: Parts) -> bool:
    return bool(set(MAPS) & set(parts.spec.fields))


def _is_spoken(parts: Parts) -> bool:
    return "text" in parts.spec.fields and "words" in parts.info.get("speech", parts.info)


def _has_events(parts: Parts) -> bool:
    alone = _tells("scene", "events")(parts) and "question" not in parts.info  # else what is seen is not what is heard
    return alone and all("thing" in event for event in parts.info["events"])


def _is_listening(parts: Parts) -> bool:
    return _tells("events", "scene", "question_type")(parts) and isinstance(parts.info["question_type"], list)


Family = tuple[str, Applies, Callable[[Parts], Found]]
FAMILIES: tuple[Family, ...] = (
    ("label", _has_label, seen_floors.of_labels),
    ("label", _and_shows(_has_label), seen_floors.of_seen_labels),
    ("box", _and_shows(_tells("objects", "scene")), seen_floors.of_boxes),
    ("mask", _and_shows(_has_mask), seen_floors.of_masks),
    ("mask", _tells("sounding", "scene"), seen_floors.limits_of_masks),
    ("map", _and_shows(_has_maps), seen_floors.of_maps),
    ("answer", _has_questions, told_floors.of_answers(told_floors.asked)),
    ("answer", _and_shows(_has_questions), told_floors.of_nearest_answers(told_floors.asked)),
    ("answer", _is_listening, seen_floors.limits_of_questions),
    ("dialogue", _tells("dialogue"), told_floors.of_answers(told_floors.turns)),
    ("dialogue", _and_shows(_tells("dialogue")), told_floors.of_nearest_answers(told_floors.turns)),
    ("ranking", _tells("candidates"), told_floors.of_rankings),
    ("episode", _tells("task", "shots", "query"), told_floors.of_episodes),
    ("caption", _has_caption, told_floors.of_captions),
    ("caption", _and_shows(_has_caption), told_floors.of_nearest_captions),
    ("retrieval", _and_shows(_has_caption), told_floors.of_retrieval),
    ("transcript", _is_spoken, told_floors.of_transcripts),
    ("language", _tells("language"), told_floors.of_languages),
    ("report", _and_shows(_tells("report", "findings", "modality")), told_floors.of_reports),
    ("edit", _tells("edit"), told_floors.of_edits),
    ("story", _tells("changes", "scenes"), told_floors.of_stories),
    ("second", _tells("labels"), seen_floors.of_labelled_seconds),
    ("second", _tells("labels", "scene"), seen_floors.limits_of_seconds),
    ("second", _has_events, seen_floors.of_events),
    ("table", lambda parts: {"chance", "row"} <= set(seen_floors.table(parts.info)), seen_floors.limits_of_rows),
)
