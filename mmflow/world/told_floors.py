"""Floors of tasks about what is told: questions, dialogues, episodes, captions, speech, reports, edits, stories.

Each function gives those of a family by name, see `mmflow.world.floors`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from mmflow.world import edits, language, scans
from mmflow.world.guessers import Found, Parts, Sample, Told, accuracy, by_colour, most_frequent, recall, shares
from mmflow.world.scene import COLOURS, Scene

Question = tuple[str, Hashable, str]  # type, question, answer

# ---- questions


def asked(sample: Sample) -> Iterator[Question]:
    """All questions of a sample."""
    info = sample["info"]
    for one in info.get("questions", [info] if {"question", "answer"} <= set(info) else []):
        kind = one.get("question_type", "any")
        text = (one["form"], *one["about"]) if "form" in one else one["question"]
        yield kind if isinstance(kind, str) else "/".join(kind), text, one["answer"]


def turns(sample: Sample) -> Iterator[Question]:
    """The turns of a dialogue, which the all-in-one world has in a part of its own."""
    told: Any = sample["info"].get("dialogue")
    told = told if isinstance(told, Mapping) else sample["info"]
    for (question, answer), kind in zip(told["dialogue"], told["question_types"], strict=True):
        yield kind, question, answer


def of_answers(ask: Callable[[Sample], Iterator[Question]]) -> Callable[[Parts], Found]:
    """Guessers that see the type of a question, or the question."""

    def family(parts: Parts) -> Found:
        asked = [one for sample in parts.train for one in ask(sample)]
        of_type = most_frequent((kind, answer) for kind, _, answer in asked)
        of_text = most_frequent(((kind, text), answer) for kind, text, answer in asked)
        hits: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        for kind, text, answer in (one for sample in parts.other for one in ask(sample)):
            usual = of_type.get(kind)
            hits[kind].append((usual == answer, of_text.get((kind, text), usual) == answer))
        hits["all"] = [hit for own in hits.values() for hit in own]
        return shares(hits, ("majority", "question"))

    return family


def of_nearest_answers(ask: Callable[[Sample], Iterator[Question]]) -> Callable[[Parts], Found]:
    """A guesser that sees type, question and picture."""

    def tell(sample: Sample) -> Told:
        return [(((kind, text), kind), answer) for kind, text, answer in ask(sample)]

    def family(parts: Parts) -> Found:
        hits: dict[str, list[tuple[bool]]] = defaultdict(list)
        for (_, kind), guess, answer in parts.nearest(tell):
            hits[str(kind)].append((guess == answer,))
        hits["all"] = [hit for own in hits.values() for hit in own]
        return shares(hits, ("nearest",))

    return family


def of_rankings(parts: Parts) -> Found:
    """Of the right answer among the candidates; the majority's is the one that training has most often."""
    often = Counter((kind, answer) for sample in parts.train for kind, _, answer in turns(sample))
    scores: dict[str, list[float]] = {"chance": [], "majority": []}
    for sample in parts.other:
        for (kind, _, answer), among in zip(turns(sample), sample["info"]["candidates"], strict=True):
            counts = [often[kind, one] for one in among]
            best = [one for one, count in zip(among, counts, strict=True) if count == max(counts)]
            scores["chance"].append(1 / len(among))
            scores["majority"].append((answer in best) / len(best))
    return _means(scores)


def of_episodes(parts: Parts) -> Found:
    """By task: an answer that is drawn from the choices, the most frequent one of the examples, and that of the example
    whose picture is the nearest."""
    hits: dict[str, list[tuple[float, bool, bool]]] = defaultdict(list)
    for sample in parts.seen[1]:
        info, looks = sample["info"], sample["document"]
        chance = 1 / len(info["choices"]) if info["choices"] else 0.0
        shots = [shot["answer"] for shot in info["shots"]]
        usual = Counter(shots).most_common(1)[0][0]
        alike = shots[int(((looks[:-1] - looks[-1]) ** 2).sum(1).argmin())]
        truth = info["query"]["answer"]
        hits[info["task"]].append((chance, usual == truth, alike == truth))
    return shares(hits, ("chance", "majority", "nearest"))


def _means(values: Mapping[str, Sequence[float]]) -> Found:
    return {name: float(np.mean(own)) for name, own in values.items()}


# ---- texts, edits and stories


def _text_of(sample: Sample) -> str:
    """In English."""
    return sample["info"].get("translation", sample["text"])


def _scene_of(sample: Sample) -> Scene:
    return Scene.from_json(sample["info"]["scene"])


def of_captions(parts: Parts) -> Found:
    """Of the text that training has most often."""
    usual = Counter(map(_text_of, parts.train)).most_common(1)[0][0]
    return _true("majority", [(usual, _scene_of(sample)) for sample in parts.other])


def of_nearest_captions(parts: Parts) -> Found:
    """Of the text of the nearest training picture."""
    pairs = parts.nearest(lambda sample: [([()], (_text_of(sample), sample))])
    return _true("nearest", [(guess[0], _scene_of(truth[1])) for _, guess, truth in pairs])


def _true(who: str, said: Sequence[tuple[str, Scene]]) -> Found:
    scores = [language.score(text, scene) for text, scene in said]
    missed = sum(len(score["missed"]) for score in scores) / sum(len(scene.things) for _, scene in said)
    return {f"right/{who}": float(np.mean([score["right"] for score in scores])), f"named/{who}": 1 - missed}


def of_retrieval(parts: Parts) -> Found:
    """Among all seen pictures of the part."""
    learnt, asked = (
        np.array([[colour in _text_of(sample).lower().split() for colour in COLOURS] for sample in part], float)
        for part in parts.seen
    )
    far = ((by_colour(parts, learnt)[:, None] - asked) ** 2).sum(2)  # (pictures, texts)
    found = {}
    for name, similar in (("text-to-image", -far.T), ("image-to-text", -far)):
        for most in (1, 10):
            found[f"{name}/at-{most}/chance"] = min(1.0, most / len(far))
            found[f"{name}/at-{most}/colours"] = recall(similar, most)
    return found


def of_transcripts(parts: Parts) -> Found:
    """Of the text that training has most often in the language."""
    usual = most_frequent((sample["info"].get("language"), sample["text"]) for sample in parts.train)
    pairs = [(sample["text"], str(usual.get(sample["info"].get("language"), ""))) for sample in parts.other]
    words = [(true.split(), guess.split()) for true, guess in pairs]
    return {"words/majority": _error_rate(words), "characters/majority": _error_rate(pairs)}


def _error_rate(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Edits of all pairs of (true, guess) per unit of all true ones."""
    return sum(Levenshtein.distance(*pair) for pair in pairs) / sum(len(true) for true, _ in pairs)


def of_languages(parts: Parts) -> Found:
    """Of the most frequent language."""
    return {
        "majority": accuracy(*([((), one["info"]["language"]) for one in part] for part in (parts.train, parts.other)))
    }


def of_reports(parts: Parts) -> Found:
    """Of the report that training has most often, and of that of the nearest scan."""
    infos = [sample["info"] for sample in parts.train]
    text = Counter(info["report"] for info in infos).most_common(1)[0][0]
    usual = next(info for info in infos if info["report"] == text)
    pairs = parts.nearest(lambda sample: [([()], sample["info"])])
    found: Found = {}
    for who, guesses in (("majority", [usual] * len(pairs)), ("nearest", [guess for _, guess, _ in pairs])):
        said = [_stated(info) for info in guesses]
        true = [_stated(info) for _, _, info in pairs]
        right = [len(a.items() & b.items()) / len(b) for a, b in zip(said, true, strict=True)]
        there = [(a.get(kind), b[kind]) for a, b in zip(said, true, strict=True) for kind in scans.KINDS if b[kind]]
        found[f"right/{who}"] = float(np.mean(right))
        found[f"named/{who}"] = float(np.mean([a is not None and a[:2] == b[:2] for a, b in there]))
    return found


def _stated(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a report states: the modality, and of each kind of finding side, level and size, or None."""
    there = {one["kind"]: (one["side"], one["level"], one["size"]) for one in info["findings"]}
    return {"modality": info["modality"]} | {kind: there.get(kind) for kind in scans.KINDS}


def of_edits(parts: Parts) -> Found:
    """Of the input as it is."""
    scores = []
    for info in (sample["info"] for sample in parts.other):
        inside = "before" not in info  # the all-in-one world
        before = Scene.from_json(info["scene"] if inside else info["before"])
        edit = edits.Edit.from_json(info["edit"]["edit"] if inside else info["edit"])
        scores.append(edits.verify(before, before.things, edit, before.style))
    return {f"{name}/copy": float(np.mean([score[name] for score in scores])) for name in ("changed", "kept")}


def of_stories(parts: Parts) -> Found:
    """Of the kind of each change."""

    def changes(part: list[Sample]) -> list[tuple[bool, str]]:
        told = [(info["scenes"][1:], info["changes"]) for info in (sample["info"] for sample in part)]
        return [(s["seconds"] > 0, c["kind"]) for pair in told for s, c in zip(*pair, strict=True)]

    learnt, asked = changes(parts.train), changes(parts.other)
    majority = accuracy(*([((), kind) for _, kind in part] for part in (learnt, asked)))
    return {"majority": majority, "medium": accuracy(learnt, asked)}
