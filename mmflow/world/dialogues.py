"""Dialogues about a picture, in which "it" and "and a red one?" mean what was spoken of before."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mmflow.world import pictures
from mmflow.world.edits import place
from mmflow.world.language import grammar
from mmflow.world.questions import alike
from mmflow.world.scene import COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene, SceneOptions, Thing, choose, draw_scene
from mmflow.world.still_forms import APART, SIDES
from mmflow.world.stills import WorldSource, check_picture, picture_bytes, scene_options
from mmflow.world.wording import article, check_split, describe, draw_new, name, template

STREAM = 57  # what a sample's generator is for
TURNS = (2, 5)  # fewest and most
ATTRIBUTES = ("colour", "size", "shape")

# The last template is the test's own, the one before validation's; training has the rest.
TEMPLATES = {
    # These open a dialogue, or turn to another thing,
    "colour": ("what colour is {}?", "which colour does {} have?", "tell me the colour of {}.",
               "in what colour is {} painted?"),
    "at": ("what is {}?", "what do you see {}?", "which shape is {}?", "what can be found {}?"),
    "exists": ("is there {}?", "do you see {}?", "does the picture show {}?", "can {} be found?"),
    "exists-size": ("is there {}?", "do you see {}?", "does the picture show {}?", "can {} be found?"),
    # this goes on where there was none,
    "instead": ("and {} one?", "maybe {} one?", "what about {} one?", "perhaps {} one?"),
    # these are about the thing that was spoken of last,
    "its-colour": ("what colour is it?", "which colour does it have?", "what is its colour?", "tell me its colour."),
    "its-size": ("is it small or big?", "what size is it?", "how big is it?", "tell me its size."),
    "its-shape": ("what shape is it?", "what kind of shape is it?", "which form does it have?", "tell me its form."),
    "its-place": ("where is it?", "where do you see it?", "in which place is it?", "tell me its place."),
    "any": ("is there anything {} it?", "do you see anything {} it?", "does anything lie {} it?",
            "can anything be found {} it?"),
    "same": ("does anything else have its colour?", "is anything else of that colour?",
             "does another shape share its colour?", "is its colour found elsewhere?"),
    "others": ("how many other shapes are there?", "how many shapes are there besides it?",
               "how many more shapes do you see?", "without it, how many shapes are there?"),
    # and these turn from it to another one: the only one on that side, asked the same as it was.
    "nearest": ("what shape is nearest to it?", "which shape is closest to it?", "what kind of shape is next to it?",
                "what shape is its nearest neighbour?"),
    "and": ("and the shape {} it?", "and what about the shape {} it?", "the same for the shape {} it?",
            "and how about the one {} it?"),
}  # fmt: skip
OPENING = ("colour", "at", "exists", "exists-size")
HINTS = ("any", "same")  # with yes as answer these tell of another thing, which "it" might mean next,
CLEAR = (*OPENING, "any", "others")  # but in these it cannot, or makes no difference
BESIDE = {"left": "to the left of", "right": "to the right of", "up": "above", "down": "below"}
ANSWERS = {  # kind -> all answers of it
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "yes": ("yes", "no"),
    "number": tuple(str(number) for number in range(9)),
    "place": tuple(grammar("en").place[f"{row} {column}"] for row in ROWS for column in COLUMNS),
    "thing": tuple(article(f"{size} {colour} {shape}") for size in SIZES for colour in COLOURS for shape in SHAPES),
}
MOST_CANDIDATES = sum(map(len, ANSWERS.values()))


class Turn(NamedTuple):
    """What may be asked next.

    Attributes:
        about: a word or phrase for the template, if it has a place for one.
        answer: the right one.
        kind: of answer, a key of ANSWERS.
        it: the thing that is spoken of afterwards; None for the same one.
        told: what is known about that thing then.
        absent: the colour and shape that there is none of, where that may be followed up.
    """

    about: str
    answer: str
    kind: str
    it: Thing | None = None
    told: tuple[str, ...] = ()
    absent: tuple[str, str] | None = None


@dataclass
class _Talk:
    """What was said so far.

    Attributes:
        it: the thing that was spoken of last.
        told: what is known of it.
        asked: the attribute asked for last, if that was the last question.
        absent: colour and shape of what was asked for last, and is not there.
        hinted: whether the last answer told of another thing.
        said: questions, as form and words.
    """

    it: Thing | None = None
    told: set[str] = field(default_factory=set)
    asked: str | None = None
    absent: tuple[str, str] | None = None
    hinted: bool = False
    said: set[tuple[str, str]] = field(default_factory=set)


def _colour(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    for thing in scene.things:
        named = name(thing, scene, "colour")
        if named is not None and thing is not talk.it:
            told = [word for word in ATTRIBUTES if getattr(thing, word) in named.split()]
            yield Turn(named, thing.colour, "colour", thing, ("colour", *told))


def _at(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    for thing in scene.things:
        alone = sum(place(other) == place(thing) for other in scene.things) == 1
        if alone and thing is not talk.it:
            yield Turn(place(thing), article(describe(thing)), "thing", thing, (*ATTRIBUTES, "place"))


def _exists(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:
    """A colour with a shape that is there, in that colour or in others."""
    for shape in dict.fromkeys(thing.shape for thing in scene.things):
        for colour in [colour for colour, other in pairs if other == shape]:
            yield from _whether(scene, talk, "colour", colour, shape, f"{colour} {shape}")


def _exists_size(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    """A size with a shape that is there."""
    for shape in dict.fromkeys(thing.shape for thing in scene.things):
        for size in SIZES:
            for turn in _whether(scene, talk, "size", size, shape, f"{size} {shape}"):
                yield turn._replace(absent=None)


def _instead(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:
    """Another colour with the same shape."""
    if talk.absent is not None:
        missing, shape = talk.absent
        for colour in [colour for colour, other in pairs if other == shape and colour != missing]:
            for turn in _whether(scene, talk, "colour", colour, shape, colour):
                yield turn._replace(absent=None)


def _whether(scene: Scene, talk: _Talk, attribute: str, word: str, shape: str, about: str) -> Iterator[Turn]:
    """Whether there is such a thing, unless there are several, or it is spoken of already."""
    there = [thing for thing in scene.things if getattr(thing, attribute) == word and thing.shape == shape]
    if not there:
        yield Turn(article(about), "no", "yes", absent=(word, shape))
    elif len(there) == 1 and there[0] is not talk.it:
        yield Turn(article(about), "yes", "yes", there[0], (attribute, "shape"))


def _its(attribute: str) -> Callable[[Scene, _Talk, Sequence[tuple[str, str]]], Iterator[Turn]]:
    def turns(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
        if talk.it is not None and attribute not in talk.told:
            yield Turn("", _value(talk.it, attribute), attribute, told=(attribute,))

    return turns


def _value(thing: Thing, attribute: str) -> str:
    return place(thing) if attribute == "place" else str(getattr(thing, attribute))


def _beside(scene: Scene, it: Thing, side: str) -> list[Thing] | None:
    """The things to a side of one; None where of some that is not clearly so or not so."""
    dx, dy = SIDES[side]
    far = [dx * (thing.x - it.x) + dy * (thing.y - it.y) for thing in scene.things]
    if any(abs(much) < APART for much, thing in zip(far, scene.things, strict=True) if thing is not it):
        return None
    return [thing for much, thing in zip(far, scene.things, strict=True) if much > 0 and thing is not it]


def _any(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    for side, words in BESIDE.items():
        if talk.it is not None and (beside := _beside(scene, talk.it, side)) is not None:
            yield Turn(words, "yes" if beside else "no", "yes")


def _same(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    if talk.it is not None:
        yield Turn("", "yes" if sum(t.colour == talk.it.colour for t in scene.things) > 1 else "no", "yes")


def _others(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    if talk.it is not None and not any(form == "others" for form, _ in talk.said):
        yield Turn("", str(len(scene.things) - 1), "number")


def _nearest(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    it = talk.it
    if it is not None and len(scene.things) > 2:
        others = [thing for thing in scene.things if thing is not it]
        (near, number), (second, _), *_ = sorted(
            (math.dist((thing.x, thing.y), (it.x, it.y)), i) for i, thing in enumerate(others)
        )
        if second - near >= APART:
            yield Turn("", others[number].shape, "shape", others[number], ("shape",))


def _and(scene: Scene, talk: _Talk, pairs: Sequence[tuple[str, str]]) -> Iterator[Turn]:  # noqa: ARG001
    for side, words in BESIDE.items():
        if talk.it is not None and talk.asked is not None:
            beside = _beside(scene, talk.it, side)
            if beside is not None and len(beside) == 1:
                yield Turn(words, _value(beside[0], talk.asked), talk.asked, beside[0], (talk.asked,))


FORMS = dict(
    zip(
        TEMPLATES,
        (
            _colour, _at, _exists, _exists_size, _instead, *map(_its, ("colour", "size", "shape", "place")),
            _any, _same, _others, _nearest, _and,
        ),
        strict=True,
    )
)  # fmt: skip
ASKS = {"colour": "colour", **{f"its-{attribute}": attribute for attribute in (*ATTRIBUTES, "place")}}


def talk(
    scene: Scene, draw: np.random.Generator, turns: int, split: str, options: SceneOptions | None = None
) -> dict[str, Any]:
    """A dialogue of 2 to 5 turns about a scene of two or more things that differ in shape or colour.

    "It" is what was spoken of last. Where an answer has just told of another thing, nothing is asked of "it" that would
    depend on which one is meant.

    Returns "dialogue": [[question, answer], ...], "question_types" (of TEMPLATES) and "answer_types" (of ANSWERS) of
    its turns, and "unseen_template": whether all questions are in templates that training never has, as in half of the
    dialogues of validation and test.
    """
    check_split(split)
    if not TURNS[0] <= turns <= TURNS[1]:
        raise ValueError(f"turns={turns} must be in {TURNS[0]}..{TURNS[1]}")
    if len(scene.things) < 2 or len({(thing.colour, thing.shape) for thing in scene.things}) < len(scene.things):
        raise ValueError(
            f"a dialogue needs two or more things that differ in colour or shape, not "
            f"{[f'{thing.colour} {thing.shape}' for thing in scene.things]}; draw a scene that is distinct"
        )
    pairs = (options or SceneOptions()).pairs(split)
    new = draw_new(draw, split)
    state = _Talk()
    dialogue: list[list[str]] = []
    forms: list[str] = []
    kinds: list[str] = []
    while len(dialogue) < turns:
        possible = {form: list(find(scene, state, pairs)) for form, find in FORMS.items()}
        possible = {form: [t for t in own if (form, t.about) not in state.said] for form, own in possible.items()}
        if state.hinted:
            possible = {form: own for form, own in possible.items() if form in CLEAR}
        follow = [form for form, own in possible.items() if own and form not in OPENING]
        form = choose(draw, follow or [form for form, own in possible.items() if own])
        answer = choose(draw, list(dict.fromkeys(turn.answer for turn in possible[form])))
        turn = choose(draw, [turn for turn in possible[form] if turn.answer == answer])
        dialogue.append([template(draw, TEMPLATES[form], split, new).format(turn.about), answer])
        forms.append(form)
        kinds.append(turn.kind)
        _remember(state, form, turn)
    return {"dialogue": dialogue, "question_types": forms, "answer_types": kinds, "unseen_template": new}


def _remember(state: _Talk, form: str, turn: Turn) -> None:
    if turn.it is not None:
        state.it, state.told = turn.it, set(turn.told)
        state.said = {(f, about) for f, about in state.said if f in ("exists", "exists-size", "instead", "others")}
    elif form in ("exists", "exists-size", "instead"):
        state.it, state.told = None, set()
    else:
        state.told |= set(turn.told)
    state.absent = turn.absent
    state.hinted = (form in HINTS and turn.answer == "yes") or (state.hinted and form not in OPENING)
    state.asked = state.asked if form == "and" else ASKS.get(form)
    state.said.add((form, turn.about))


def candidates(draw: np.random.Generator, answer: str, kind: str, count: int) -> tuple[list[str], int]:
    """`count` different answers, the right one among them, and its place: first others of its kind, then any."""
    own = [other for other in ANSWERS[kind] if other != answer]
    rest = [other for name, others in ANSWERS.items() if name != kind for other in others]
    wrong = [own[i] for i in draw.permutation(len(own))] + [rest[i] for i in draw.permutation(len(rest))]
    right = int(draw.integers(count))
    return [*wrong[:right], answer, *wrong[right : count - 1]], right


class WorldDialogues(WorldSource):
    """Dialogues about pictures.

    Members: "jpg", "txt" (the dialogue, a turn in each line), "json": what `talk` tells, "candidates" (for each turn
    answers to rank) and "right" (the place of the right one among them), "scene", "unseen" (whether training never has
    the templates or a pair of colour and shape in the scene).

    Args:
        train, validation, test: how many dialogues.
        seed: another seed gives other ones.
        size: pixels of a side, 32 to 256.
        things: fewest (2 or more) and most in a picture, up to 9.
        turns: fewest and most questions of a dialogue, 2 to 5.
        candidates: how many answers there are to rank.
        shapes, colours, styles, backgrounds: what there may be, by default all of `mmflow.world.scene`.
    """

    def __init__(
        self,
        train: int = 4000,
        validation: int = 400,
        test: int = 400,
        seed: int = 0,
        size: int = 64,
        things: tuple[int, int] = (2, 4),
        turns: tuple[int, int] = TURNS,
        candidates: int = 20,
        shapes: list[str] | None = None,
        colours: list[str] | None = None,
        styles: list[str] | None = None,
        backgrounds: list[str] | None = None,
    ) -> None:
        super().__init__(train, validation, test, seed)
        check_picture(size, "jpg")
        if not TURNS[0] <= turns[0] <= turns[1] <= TURNS[1]:
            raise ValueError(f"turns={turns} must be from at least {TURNS[0]} to at most {TURNS[1]}")
        if not 2 <= candidates <= MOST_CANDIDATES:
            raise ValueError(f"candidates={candidates} must be in 2..{MOST_CANDIDATES}: there are no more answers")
        if things[0] < 2:
            raise ValueError(f"things={things} must be from at least 2, for a dialogue turns from one to another")
        self.size, self.turns, self.candidates = size, turns, candidates
        self.scenes = scene_options(things, shapes, colours, styles, backgrounds)

    def bytes_each(self) -> int:
        """About the bytes of a picture and a dialogue."""
        return picture_bytes(self.size, "jpg") + 1500 + 12 * self.candidates * sum(self.turns) // 2

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A picture and a dialogue about it."""
        draw = self.draw(STREAM, split, number)
        scene = alike(draw_scene(draw, split, self.scenes), draw, "colour", self.scenes)
        told = talk(scene, draw, int(draw.integers(*self.turns, endpoint=True)), split, self.scenes)
        ranked = [
            candidates(draw, answer, kind, self.candidates)
            for (_, answer), kind in zip(told["dialogue"], told["answer_types"], strict=True)
        ]
        return {
            "jpg": pictures.encode(pictures.render(scene, self.size)),
            "txt": "\n".join(f"{question} {answer}" for question, answer in told["dialogue"]),
            "json": {
                **told,
                "candidates": [answers for answers, _ in ranked],
                "right": [right for _, right in ranked],
                "scene": scene.as_json(),
                "unseen": scene.unseen or told["unseen_template"],
            },
        }
