"""What can be reached without understanding: honest floors, and known limits, for the tasks of a made data set.

A family of floors applies where the samples have what it is about, told by the keys of their JSON. Guessers learn from
the training part and are scored on another one.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from mmflow.data.corpus import Corpus
from mmflow.data.spec import DataSpec
from mmflow.world import edits, language, listening, tables
from mmflow.world.scene import Scene

log = logging.getLogger(__name__)

MOST_PICTURES = {"train": 2000, "other": 500}  # that the nearest neighbours are looked for among, and for
SIDE = 32  # pixels of the pictures that are compared
Sample = dict[str, Any]  # "info" and, where the spec has it, "text"
Found = dict[str, float]


def floors(spec: DataSpec, split: str = "test") -> Found:
    """Floors and limits of a data set, found on `split` by what `train` tells; those that do not apply are logged.

    Names are parts with "/" between them, the last of which says who guesses:
        majority: the most frequent label, answer or text of training; "question": that of each question (by its form
            and words where they are told, and of the type of question where it is new).
        nearest: the label of the nearest training picture at 32 x 32 pixels, of up to 2000.
        chance: by drawing.
        copy: an edit that changes nothing ("changed" and "kept", see `mmflow.world.edits.verify`; not of "restyle").
        audio, video, both: the best that is possible from these; text, categorical, numerical, joined by "+": the best
            from these columns. For the listening tasks and the world's table only.

    Values are accuracies, but for "caption" the share of what is said that is true (and of things that are named), for
    "auroc" that area, and for S4 and MS3 mean IoU.
    Raises ValueError for a spec without training shards, without `split`, or without JSON.
    """
    if "info" not in spec.fields:
        raise ValueError(f"{spec.path} has no field 'info', only {sorted(spec.fields)}; floors are told by the JSON")
    train, other = (_samples(spec, part) for part in ("train", split))
    if not train or not other:
        raise ValueError(f"{spec.path}: train has {len(train)} and {split} has {len(other)} samples; both need some")
    found: Found = {}
    absent = []
    for name, (wanted, family) in FAMILIES.items():
        if wanted(other[0]):
            found |= {f"{name}/{key}": value for key, value in family(train, other).items()}
        else:
            absent.append(name)
    if _has_label(other[0]) and "image" in spec.fields:
        found["label/nearest"] = _nearest(spec, split)
    else:
        absent.append("label/nearest")
    log.info("%s: these floors do not apply, for the samples tell nothing of them: %s", spec.name, ", ".join(absent))
    return found


def _samples(spec: DataSpec, split: str) -> list[Sample]:
    """JSON and text of a part; where the JSON is of several tasks they are all in it."""
    fields = [field for field in ("info", "text") if field in spec.fields]
    corpus = Corpus([spec], split, fields)
    bad = corpus.problems()
    return [corpus.read(number) for number in range(len(corpus)) if number not in bad]


# ---- guessing the most frequent


def most_frequent(pairs: Sequence[tuple[Hashable, Hashable]]) -> dict[Hashable, Hashable]:
    """The most frequent second one for each first one; of equally frequent ones the one that came first."""
    counts: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for given, answer in pairs:
        counts[given][answer] += 1
    return {given: count.most_common(1)[0][0] for given, count in counts.items()}


def _accuracy(train: Sequence[tuple[Hashable, Hashable]], other: Sequence[tuple[Hashable, Hashable]]) -> float:
    usual = most_frequent(train)
    return float(np.mean([usual.get(given) == answer for given, answer in other]))


def _label_of(sample: Sample) -> int | None:
    label = _table(sample).get("label")
    return label if isinstance(label, int) else None


def _has_label(sample: Sample) -> bool:
    return _label_of(sample) is not None


def _label(train: list[Sample], other: list[Sample]) -> Found:
    learnt, asked = ([((), _label_of(sample)) for sample in part] for part in (train, other))
    return {"majority": _accuracy(learnt, asked)}


def _nearest(spec: DataSpec, split: str) -> float:
    """Accuracy of the label of the nearest training picture by squared distance."""
    learnt, labels = _pictures(spec, "train", MOST_PICTURES["train"])
    asked, answers = _pictures(spec, split, MOST_PICTURES["other"])
    far = (learnt**2).sum(1) - 2 * asked @ learnt.T  # and what is the same for all of a row
    return float((labels[far.argmin(1)] == answers).mean())


def _pictures(spec: DataSpec, split: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3 * 32 * 32) in 0..1 and labels (N,) of pictures evenly over a part."""
    corpus = Corpus([spec], split, ["image", "info"])
    usable = sorted(set(range(len(corpus))) - set(corpus.problems()))
    numbers = [usable[i] for i in np.linspace(0, len(usable) - 1, min(most, len(usable))).astype(int)]
    read = [corpus.read(number) for number in numbers]
    pixels = np.stack([sample["image"].tensor((SIDE, SIDE)).numpy().ravel() for sample in read])
    return pixels.astype(np.float32) / 255, np.array([_label_of(sample) for sample in read])


# ---- questions


def _asked(sample: Sample) -> Iterator[tuple[str, Hashable, str]]:
    """(type, question, answer) of all questions of a sample."""
    info = sample["info"]
    for one in info.get("questions", [info] if "question" in info else []):
        kind = one["question_type"]
        text = (one["form"], *one["about"]) if "form" in one else one["question"]
        yield kind if isinstance(kind, str) else "/".join(kind), text, one["answer"]


def _turns(sample: Sample) -> Iterator[tuple[str, Hashable, str]]:
    """The same of the turns of a dialogue."""
    told = _told(sample)
    for (question, answer), kind in zip(told["dialogue"], told["question_types"], strict=True):
        yield kind, question, answer


def _told(sample: Sample) -> Mapping[str, Any]:
    """What is told of a dialogue, which the all-in-one world has in a part of its own."""
    told: Any = sample["info"].get("dialogue")
    return told if isinstance(told, Mapping) else sample["info"]


def _answers(ask: Callable[[Sample], Iterator[tuple[str, Hashable, str]]]) -> Callable[..., Found]:
    """Guessers that see the type of a question, or the question."""

    def family(train: list[Sample], other: list[Sample]) -> Found:
        asked = [one for sample in train for one in ask(sample)]
        of_type = most_frequent([(kind, answer) for kind, _, answer in asked])
        of_text = most_frequent([((kind, text), answer) for kind, text, answer in asked])
        hits: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        for kind, text, answer in (one for sample in other for one in ask(sample)):
            usual = of_type.get(kind)
            hits[kind].append((usual == answer, of_text.get((kind, text), usual) == answer))
        hits["all"] = [hit for own in hits.values() for hit in own]
        return _shares(hits, ("majority", "question"))

    return family


def _shares(hits: Mapping[str, Sequence[tuple[float, float]]], names: tuple[str, str]) -> Found:
    """The means of each column of `hits`, kind by kind."""
    means = {kind: np.mean(own, axis=0).tolist() for kind, own in sorted(hits.items())}
    return {f"{kind}/{name}": mean for kind, own in means.items() for name, mean in zip(names, own, strict=True)}


def _ranking(train: list[Sample], other: list[Sample]) -> Found:  # noqa: ARG001
    """Of the right answer among the candidates."""
    return {"chance": float(np.mean([1 / len(own) for sample in other for own in sample["info"]["candidates"]]))}


def _episodes(train: list[Sample], other: list[Sample]) -> Found:  # noqa: ARG001
    """By task: an answer that is drawn from the choices, and the most frequent one of the examples."""
    hits: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for info in (sample["info"] for sample in other):
        chance = 1 / len(info["choices"]) if info["choices"] else 0.0
        usual = Counter(shot["answer"] for shot in info["shots"]).most_common(1)[0][0]
        hits[info["task"]].append((chance, usual == info["query"]["answer"]))
    return _shares(hits, ("chance", "majority"))


# ---- texts and edits


def _caption(train: list[Sample], other: list[Sample]) -> Found:
    """Of the text that training has most often."""
    texts = (sample["info"].get("translation", sample["text"]) for sample in train)
    usual = Counter(texts).most_common(1)[0][0]
    scenes = [Scene.from_json(sample["info"]["scene"]) for sample in other]
    scores = [language.score(usual, scene) for scene in scenes]
    things = sum(len(scene.things) for scene in scenes)
    named = 1 - sum(len(score["missed"]) for score in scores) / things
    return {"majority/right": float(np.mean([score["right"] for score in scores])), "majority/named": named}


def _is_caption(sample: Sample) -> bool:
    info = sample["info"]
    return "text" in sample and "scene" in info and bool({"captions", "translation"} & set(info))


def _edit(train: list[Sample], other: list[Sample]) -> Found:  # noqa: ARG001
    scores = []
    for info in (sample["info"] for sample in other):
        inside = "before" not in info  # the all-in-one world
        before = Scene.from_json(info["scene"] if inside else info["before"])
        edit = edits.Edit.from_json(info["edit"]["edit"] if inside else info["edit"])
        if edit.kind != "restyle":  # which is not verified
            scores.append(edits.verify(before, before.things, edit))
    return {f"copy/{name}": float(np.mean([score[name] for score in scores])) for name in ("changed", "kept")}


# ---- listening: the limits of one modality


def _seconds(train: list[Sample], other: list[Sample]) -> Found:
    """AVE: a label for each second."""
    learnt, asked = ([((), label) for sample in part for label in sample["info"]["labels"]] for part in (train, other))
    return {"majority": _accuracy(learnt, asked)} | _limits("AVE")


def _sounding(train: list[Sample], other: list[Sample]) -> Found:  # noqa: ARG001
    return _limits("S4" if "label" in other[0]["info"] else "MS3")


def _heard_questions(train: list[Sample], other: list[Sample]) -> Found:  # noqa: ARG001
    found: Found = {}
    for asked in listening.QUESTIONS:
        name = "/".join(asked)
        found |= {f"{name}/{key}": value for key, value in _limits(name).items()}
    return found


_ceilings = cache(listening.ceilings)


def _limits(task: str) -> Found:
    known = _ceilings()[task]
    return {name: known[name] for name in ("audio", "video", "both")}


# ---- tables


def _rows(train: list[Sample], other: list[Sample]) -> Found:  # noqa: ARG001
    """The best that is possible from some columns, by the law that labels were drawn by."""
    found: Found = {}
    for number in range(1, 2 ** len(tables.PARTS)):
        parts = [part for place, part in enumerate(tables.PARTS) if number >> place & 1]
        accuracy, auroc = tables.limits(parts)
        found |= {"+".join(parts): accuracy, f"{'+'.join(parts)}/auroc": auroc}
    return found


def _table(sample: Sample) -> Mapping[str, Any]:
    return sample["info"].get("table", sample["info"])


def _is_row(sample: Sample) -> bool:
    return "chance" in _table(sample) and "row" in _table(sample)


Family = tuple[Callable[[Sample], bool], Callable[[list[Sample], list[Sample]], Found]]
FAMILIES: dict[str, Family] = {
    "label": (_has_label, _label),
    "answer": (lambda sample: any(True for _ in _asked(sample)), _answers(_asked)),
    "dialogue": (lambda sample: "dialogue" in sample["info"], _answers(_turns)),
    "ranking": (lambda sample: "candidates" in sample["info"], _ranking),
    "episode": (lambda sample: {"task", "shots", "query"} <= set(sample["info"]), _episodes),
    "caption": (_is_caption, _caption),
    "edit": (lambda sample: "edit" in sample["info"], _edit),
    "seconds": (lambda sample: "labels" in sample["info"], _seconds),
    "sounding": (lambda sample: "sounding" in sample["info"], _sounding),
    "listening": (lambda sample: isinstance(sample["info"].get("question_type"), list), _heard_questions),
    "table": (_is_row, _rows),
}
