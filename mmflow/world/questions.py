"""Questions about a scene, with answers and, where it takes thinking, an explanation whose every step can be checked.

A question has a kind (its "question_type"), a form (what is asked), and one of the form's templates (how). `floors`
finds what a guesser reaches that sees the questions alone.
"""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from mmflow.world import language, pictures
from mmflow.world.scene import (
    COLOURS,
    COLUMNS,
    ROWS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    SceneOptions,
    Thing,
    choose,
    draw_scene,
    held_out,
)  # fmt: skip
from mmflow.world.stills import WorldSource, check_picture, picture_bytes, scene_options

STREAM = 50  # what a sample's generator is for
TRIES = 200  # scenes that are drawn until one has the wanted answer
MOST = 3  # highest answer where things of one colour or shape are counted
APART = 0.05  # places and distances that are compared differ by so much, in canvas widths, so that it can be seen
APART_S = 0.2  # likewise times of sounds
SIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ORDERS = {"left": "left to right", "right": "right to left", "up": "top to bottom", "down": "bottom to top"}
YES_NO = ("yes", "no")


class Possible(NamedTuple):
    """What a form can ask of a scene.

    Attributes:
        answer: the right one.
        about: words for the places of the template.
        steps: sentences that the answer follows from.
        unseen: whether it is about a pair of colour and shape that the training part never shows.
    """

    answer: str
    about: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    unseen: bool = False


Find = Callable[[Scene, np.random.Generator, str, SceneOptions], Iterator[Possible]]


@dataclass(frozen=True)
class Form:
    """One thing that can be asked.

    Attributes:
        kind: one of KINDS.
        templates: the last one is the test's own, the one before validation's; training has the rest.
        answers: those that scenes with such options may have; fewer than two where the form makes no sense.
        find: all that can be asked of a scene (its generator, split, options).
        alike: "colour" or "shape", where scenes are wanted in which many things share it.
    """

    kind: str
    templates: tuple[str, ...]
    answers: Callable[[SceneOptions, str], Sequence[str]]
    find: Find
    alike: str = ""


# ---- words


def describe(thing: Thing) -> str:
    """All that is said of a thing: "big red circle"."""
    return f"{thing.size} {thing.colour} {thing.shape}"


def article(words: str) -> str:
    """With "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def listed(words: Sequence[str]) -> str:
    """ "x, y and z"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(word: str) -> str:
    """Of a shape, or of "shape"."""
    return f"{word}es" if word.endswith("s") else f"{word}s"


def name(thing: Thing, scene: Scene, hidden: str = "") -> str | None:
    """The shortest phrase that names a thing uniquely without its place and its `hidden` "shape", "colour" or "size",
    if any does."""
    for words in (("shape",), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape")):
        said = [word for word in words if word != hidden]
        if said and _alone(thing, scene, said):
            return f"the {' '.join(getattr(thing, word) for word in said)}{' shape' if hidden == 'shape' else ''}"
    return None


def _alone(thing: Thing, scene: Scene, words: Sequence[str]) -> bool:
    return sum(all(getattr(other, word) == getattr(thing, word) for word in words) for other in scene.things) == 1


def _counted(number: int, words: str) -> str:
    """ "There are 2 red shapes." for 2 and "red shape"."""
    return f"There is 1 {words}." if number == 1 else f"There are {number} {plural(words)}."


# ---- forms


def _either(least: int) -> Callable[[SceneOptions, str], Sequence[str]]:
    """yes and no, where there may be so many things."""
    return lambda options, split: YES_NO if options.things[1] >= least else ()  # noqa: ARG005


def _numbers(attribute: str) -> Callable[[SceneOptions, str], Sequence[str]]:
    """How many of one colour, or shape, there may be."""

    def answers(options: SceneOptions, split: str) -> Sequence[str]:
        shared = Counter(pair[attribute == "shape"] for pair in options.pairs(split))
        return [str(number) for number in range(min(MOST, options.things[1], *shared.values()) + 1)]

    return answers


def _colours(least: int) -> Callable[[SceneOptions, str], Sequence[str]]:
    """The colours, where there may be so many things."""
    return lambda options, split: _words(options, split, "colour") if options.things[1] >= least else ()


def _words(options: SceneOptions, split: str, attribute: str) -> list[str]:
    """Colours or shapes that a split shows."""
    words = {pair[attribute == "shape"] for pair in options.pairs(split)}
    return [word for word in getattr(options, f"{attribute}s") if word in words]


def _exists(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:
    """Pairs that are there, and others: as often such that training never shows, and half of the rest of a colour and
    a shape that are there, but not together."""
    there = [(thing.colour, thing.shape) for thing in scene.things]
    colours, shapes = zip(*there, strict=True)
    absent = [pair for pair in options.pairs(split) if pair not in there]
    new = [pair for pair in absent if held_out(*pair)]
    known = [pair for pair in absent if not held_out(*pair)]
    mixed = [pair for pair in known if pair[0] in colours and pair[1] in shapes]
    for pair in there:
        yield Possible("yes", (article(" ".join(pair)),), unseen=held_out(*pair) is not None)
        among = new if new and (not known or draw.random() < 0.5 / len(there)) else known
        if among is known and mixed and draw.random() < 0.5:
            among = mixed
        if among:
            other = choose(draw, among)
            yield Possible("no", (article(" ".join(other)),), unseen=held_out(*other) is not None)


def _count_all(scene: Scene, *_: Any) -> Iterator[Possible]:
    yield Possible(str(len(scene.things)))


def _count(attribute: str) -> Find:
    def find(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:  # noqa: ARG001
        counts = Counter(getattr(thing, attribute) for thing in scene.things)
        for word in _words(options, split, attribute):
            yield Possible(str(counts[word]), (_group(attribute, word),))

    return find


def _group(attribute: str, word: str) -> str:
    """Things that share a colour or shape, in one word or two."""
    return f"{word} shapes" if attribute == "colour" else plural(word)


def _one_of(attribute: str, word: str) -> str:
    return f"{word} shape" if attribute == "colour" else word


def _attribute(attribute: str) -> Find:
    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        for thing in scene.things:
            if (named := name(thing, scene, attribute)) is not None:
                yield Possible(getattr(thing, attribute), (named,))

    return find


def _place(which: str) -> Find:
    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        for thing in _resting(scene):
            if (named := name(thing, scene)) is not None:
                yield Possible(getattr(thing, which), (named,))

    return find


def _resting(scene: Scene) -> list[Thing]:
    """The things that stay where they are."""
    return [thing for thing in scene.things if thing.motion == "still"]


def _relation(holds: Callable[[Thing, Thing], float]) -> Find:
    """`holds` is positive where it is true of two things, negative where of the two the other way round."""

    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        things = _resting(scene)
        names = [language.phrase(thing, scene, "en") for thing in things]
        for i, one in enumerate(things):
            for j, other in enumerate(things):
                if i != j and abs(much := holds(one, other)) >= APART:
                    yield Possible(YES_NO[much < 0], (names[i], names[j]))

    return find


def _compared(attribute: str) -> Find:
    def find(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:  # noqa: ARG001
        counts = Counter(getattr(thing, attribute) for thing in scene.things)
        words = _words(options, split, attribute)
        for one in words:
            for other in words:
                a, b = counts[one], counts[other]
                if one != other and (a or b):
                    steps = (_counted(a, _one_of(attribute, one)), _counted(b, _one_of(attribute, other)), _more(a, b))
                    yield Possible(YES_NO[a <= b], (_group(attribute, one), _group(attribute, other)), steps)

    return find


def _more(a: int, b: int) -> str:
    return f"{a} is {'' if a > b else 'not '}more than {b}."


def _same(scene: Scene, *_: Any) -> Iterator[Possible]:
    counts = Counter(thing.colour for thing in scene.things)
    for thing in scene.things:
        if len(scene.things) > 1 and (named := name(thing, scene, "colour")) is not None:
            count = counts[thing.colour]
            steps = (
                f"{named.capitalize()} is {thing.colour}.", _counted(count, f"{thing.colour} shape"), _more(count, 1)
            )  # fmt: skip
            yield Possible(YES_NO[count == 1], (named,), steps)


def _remaining(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:  # noqa: ARG001
    every = len(scene.things)
    for colour in _words(options, split, "colour"):
        if count := sum(thing.colour == colour for thing in scene.things):
            left = every - count
            steps = (_counted(every, "shape"), _counted(count, f"{colour} shape"), f"{every} - {count} = {left}.")
            if left <= MOST:
                yield Possible(str(left), (_group("colour", colour),), steps)


def _either_of(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:  # noqa: ARG001
    for colour, shape in options.pairs("train"):
        a = sum(thing.colour == colour for thing in scene.things)
        b = sum(thing.shape == shape for thing in scene.things)
        both = sum((thing.colour, thing.shape) == (colour, shape) for thing in scene.things)
        steps = (
            _counted(a, f"{colour} shape"),
            _counted(b, shape),
            _counted(both, f"{colour} {shape}"),
            f"{a} + {b} - {both} = {a + b - both}.",
        )
        if a + b - both <= MOST:
            yield Possible(str(a + b - both), (colour, plural(shape)), steps)


def _in_order(scene: Scene, side: str) -> list[Thing]:
    """The things, the one furthest to a side first."""
    dx, dy = SIDES[side]
    return sorted(scene.things, key=lambda thing: -dx * thing.x - dy * thing.y)


def _outermost(scene: Scene, *_: Any) -> Iterator[Possible]:
    if len(scene.things) < 2 or len(_resting(scene)) < len(scene.things):
        return
    for side, (dx, dy) in SIDES.items():
        along = _in_order(scene, side)
        if all(abs(dx * (a.x - b.x) + dy * (a.y - b.y)) >= APART for a, b in itertools.pairwise(along)):
            order = listed([article(describe(thing)) for thing in along])
            steps = (
                f"From {ORDERS[side]} there are {order}.",
                f"The shape furthest {side} is the {describe(along[0])}.",
                f"Its colour is {along[0].colour}.",
            )
            yield Possible(along[0].colour, (side,), steps)


def _nearest(scene: Scene, *_: Any) -> Iterator[Possible]:
    if len(scene.things) < 3 or len(_resting(scene)) < len(scene.things):
        return
    for thing in scene.things:
        others = [(math.dist((thing.x, thing.y), (t.x, t.y)), t) for t in scene.things if t is not thing]
        far = sorted(others, key=lambda one: one[0])
        if far[1][0] - far[0][0] >= APART:
            nearest = far[0][1]
            told = listed([f"{distance:.2f} to the {describe(other)}" for distance, other in far])
            steps = (
                f"From the {describe(thing)} it is {told}.",
                f"The shape nearest to the {describe(thing)} is the {describe(nearest)}.",
                f"Its colour is {nearest.colour}.",
            )
            yield Possible(nearest.colour, (language.phrase(thing, scene, "en"),), steps)


def _moves(scene: Scene, *_: Any) -> Iterator[Possible]:
    if scene.seconds:
        for thing in scene.things:
            yield Possible(YES_NO[thing.motion == "still"], (language.phrase(thing, scene, "en"),))


def _direction(scene: Scene, *_: Any) -> Iterator[Possible]:
    for thing in scene.things:
        if thing.motion != "still":
            yield Possible(thing.motion, (language.phrase(thing, scene, "en"),))


def _onsets(scene: Scene) -> list[tuple[float, Thing]]:
    """The things that are heard, in the order in which each is heard first."""
    heard = [(sound.start, i) for i, thing in enumerate(scene.things) for sound in thing.sounds if sound.heard]
    first = {i: start for start, i in sorted(heard, reverse=True)}
    return [(start, scene.things[i]) for start, i in sorted((start, i) for i, start in first.items())]


def _sounding(scene: Scene, *_: Any) -> Iterator[Possible]:
    heard = _onsets(scene)
    if len(heard) == 1 and len(scene.things) > 1:
        yield Possible(heard[0][1].colour)


def _first(scene: Scene, *_: Any) -> Iterator[Possible]:
    heard = _onsets(scene)
    if len(heard) > 1 and heard[1][0] - heard[0][0] >= APART_S:
        yield Possible(heard[0][1].colour)


def _before(scene: Scene, *_: Any) -> Iterator[Possible]:
    heard = _onsets(scene)
    for start, one in heard:
        for later, other in heard:
            if abs(start - later) >= APART_S:
                names = (language.phrase(one, scene, "en"), language.phrase(other, scene, "en"))
                yield Possible(YES_NO[later < start], names)


FORMS = {
    "exists": Form(
        "existence",
        ("is there {}?", "can you see {}?", "does the picture show {}?", "do you find {} anywhere?",
         "is {} among the shapes?"),
        _either(1), _exists,
    ),
    "count": Form(
        "counting",
        ("how many shapes are there?", "how many shapes can you see?", "count the shapes.",
         "what is the number of all shapes?", "how many shapes does the picture show?"),
        lambda options, split: [str(n) for n in range(options.things[0], options.things[1] + 1)], _count_all,  # noqa: ARG005
    ),
    "count-colour": Form(
        "counting",
        ("how many {} are there?", "how many {} can you see?", "count the {}.", "what is the number of {}?",
         "how many {} does the picture show?"),
        _numbers("colour"), _count("colour"), "colour",
    ),
    "count-shape": Form(
        "counting",
        ("how many {} are there?", "how many {} can you see?", "count the {}.", "what is the number of {}?",
         "how many {} does the picture show?"),
        _numbers("shape"), _count("shape"), "shape",
    ),
    "colour": Form(
        "colour",
        ("what colour is {}?", "which colour does {} have?", "what is the colour of {}?", "name the colour of {}.",
         "in what colour is {} painted?"),
        _colours(1), _attribute("colour"),
    ),
    "shape": Form(
        "shape",
        ("what is {}?", "what kind of shape is {}?", "which form does {} have?", "name the form of {}.",
         "how would you call the form of {}?"),
        lambda options, split: _words(options, split, "shape"), _attribute("shape"),
    ),
    "size": Form(
        "size",
        ("is {} small or big?", "what size is {}?", "how big is {}?", "name the size of {}.",
         "which size does {} have?"),
        lambda options, split: options.sizes, _attribute("size"),  # noqa: ARG005
    ),
    "column": Form(
        "place",
        ("is {} on the left, in the middle or on the right?", "left, middle or right: where is {}?",
         "in which third from left to right is {}?", "which of left, middle and right is the place of {}?",
         "does {} lie left, in the middle or right?"),
        lambda options, split: COLUMNS, _place("column"),  # noqa: ARG005
    ),
    "row": Form(
        "place",
        ("is {} at the top, in the centre or at the bottom?", "top, centre or bottom: where is {}?",
         "in which third from top to bottom is {}?", "which of top, centre and bottom is the place of {}?",
         "does {} lie at the top, in the centre or at the bottom?"),
        lambda options, split: ROWS, _place("row"),  # noqa: ARG005
    ),
    "left-of": Form(
        "relation",
        ("is {} left of {}?", "is {} to the left of {}?", "does {} lie left of {}?", "is {} further left than {}?",
         "do you see {} on the left of {}?"),
        _either(2), _relation(lambda one, other: other.x - one.x),
    ),
    "above": Form(
        "relation",
        ("is {} above {}?", "is {} higher up than {}?", "does {} lie above {}?", "is {} further up than {}?",
         "do you see {} over {}?"),
        _either(2), _relation(lambda one, other: other.y - one.y),
    ),
    "bigger": Form(
        "relation",
        ("is {} bigger than {}?", "is {} larger than {}?", "does {} have a greater size than {}?",
         "does {} exceed {} in size?", "of the two, is {} bigger than {}?"),
        lambda options, split: YES_NO if options.things[1] > 1 and len(options.sizes) > 1 else (),  # noqa: ARG005
        _relation(lambda one, other: SIZES.index(one.size) - SIZES.index(other.size)),
    ),
    "more-colour": Form(
        "comparison",
        ("are there more {} than {}?", "do you see more {} than {}?", "does the picture show more {} than {}?",
         "is the number of {} greater than that of {}?", "do the {} outnumber the {}?"),
        _either(2), _compared("colour"), "colour",
    ),
    "more-shape": Form(
        "comparison",
        ("are there more {} than {}?", "do you see more {} than {}?", "does the picture show more {} than {}?",
         "is the number of {} greater than that of {}?", "do the {} outnumber the {}?"),
        _either(2), _compared("shape"), "shape",
    ),
    "same": Form(
        "same",
        ("is there another shape of the same colour as {}?", "does {} share its colour with another shape?",
         "is any other shape coloured like {}?", "does a second shape have the colour of {}?",
         "is the colour of {} seen on another shape too?"),
        _either(2), _same, "colour",
    ),
    "remaining": Form(
        "remaining",
        ("if all {} are taken away, how many shapes are left?", "how many shapes remain without the {}?",
         "take the {} away. how many shapes are left?", "how many shapes are left once the {} are gone?",
         "leave out the {}. how many shapes are there?"),
        lambda options, split: [str(n) for n in range(min(MOST, options.things[1] - 1) + 1)],  # noqa: ARG005
        _remaining, "colour",
    ),
    "either": Form(
        "either",
        ("how many shapes are {} or {}?", "how many shapes do you see that are {} or {}?",
         "count the shapes that are {} or {}.", "what is the number of shapes that are {} or {}?",
         "of the shapes, how many are {} or {}?"),
        lambda options, split: [str(n) for n in range(min(MOST, options.things[1]) + 1)],  # noqa: ARG005
        _either_of, "colour",
    ),
    "outermost": Form(
        "outermost",
        ("what colour is the shape furthest {}?", "which colour does the shape furthest {} have?",
         "what is the colour of the shape furthest {}?", "name the colour of the shape furthest {}.",
         "in what colour is the shape furthest {} painted?"),
        _colours(2), _outermost,
    ),
    "nearest": Form(
        "nearest",
        ("what colour is the shape nearest to {}?", "which colour does the shape closest to {} have?",
         "what is the colour of the nearest neighbour of {}?", "name the colour of what is closest to {}.",
         "in what colour is the shape next to {} painted?"),
        _colours(3), _nearest,
    ),
    "moves": Form(
        "motion",
        ("does {} move?", "is {} moving?", "do you see {} move?", "is {} in motion?", "does {} change its place?"),
        lambda options, split: YES_NO if options.seconds and 0 < options.moving < 1 else (), _moves,  # noqa: ARG005
    ),
    "direction": Form(
        "motion",
        ("which way does {} move?", "where does {} go?", "in which direction does {} move?",
         "name the direction of {}.", "which direction does {} take?"),
        lambda options, split: ("left", "right", "up", "down") if options.seconds and options.moving else (),  # noqa: ARG005
        _direction,
    ),
    "sounding": Form(
        "sounding",
        ("what colour is the shape that sounds?", "which colour does the sounding shape have?",
         "what is the colour of the shape you hear?", "name the colour of what sounds.",
         "in what colour is the shape painted that you hear?"),
        lambda options, split: _words(options, split, "colour") if options.seconds else (), _sounding,
    ),
    "first": Form(
        "order",
        ("what colour is the shape that sounds first?", "which colour does the first shape to sound have?",
         "what is the colour of the shape you hear first?", "name the colour of what sounds first.",
         "in what colour is the shape painted that you hear first?"),
        lambda options, split: _words(options, split, "colour") if options.seconds else (), _first,
    ),
    "before": Form(
        "order",
        ("does {} sound before {}?", "do you hear {} before {}?", "is {} heard earlier than {}?",
         "does the sound of {} precede that of {}?", "does {} begin to sound before {} does?"),
        lambda options, split: YES_NO if options.seconds and options.things[1] > 1 else (), _before,  # noqa: ARG005
    ),
}  # fmt: skip
PICTURE_KINDS = ("existence", "counting", "colour", "shape", "size", "place", "relation", "comparison")
REASONING_KINDS = ("comparison", "same", "remaining", "either", "outermost", "nearest")  # these have explanations
CLIP_KINDS = ("motion", "sounding", "order")
KINDS = tuple(dict.fromkeys(form.kind for form in FORMS.values()))


# ---- asking


def ask(
    scene: Scene, draw: np.random.Generator, kinds: Sequence[str], split: str, options: SceneOptions | None = None
) -> list[dict[str, Any]]:
    """A question of each kind that can be asked of the scene, each answer that it may have there as likely.

    Args:
        scene: what is asked about. Places and relations are asked of things that do not move.
        draw: the generator.
        kinds: some of KINDS.
        split: one of train, validation and test, whose templates are used: validation and test have one each that
            training never has, for half of their questions.
        options: what scenes may have, so that questions are about nothing else.

    Returns dicts with "question", "answer", "question_type" (the kind), "form" (of FORMS), "about" (the words in the
    template), "unseen" (whether training never has the template, the pair asked for, or a pair of the scene),
    "unseen_template", and where there is one "explanation", which ends in "So the answer is ...".
    """
    _check_kinds(kinds)
    options = options or SceneOptions()
    asked = []
    for kind in kinds:
        possible = [
            (name, one)
            for name, form in FORMS.items()
            if form.kind == kind
            for one in form.find(scene, draw, split, options)
        ]
        if possible:
            form = choose(draw, list(dict.fromkeys(name for name, _ in possible)))
            own = [one for name, one in possible if name == form]
            answer = choose(draw, list(dict.fromkeys(one.answer for one in own)))
            asked.append(_worded(scene, draw, split, form, choose(draw, [one for one in own if one.answer == answer])))
    return asked


def draw_new(draw: np.random.Generator, split: str) -> bool:
    """Whether a template is to be one that training never has: half of the time in validation and test."""
    return split != "train" and bool(draw.random() < 0.5)


def template(draw: np.random.Generator, templates: Sequence[str], split: str, new: bool) -> str:
    """One of the templates for a split: the last one is the test's own, the one before validation's."""
    return templates[{"validation": -2, "test": -1}[split]] if new else choose(draw, templates[:-2])


def _worded(scene: Scene, draw: np.random.Generator, split: str, form: str, one: Possible) -> dict[str, Any]:
    new = draw_new(draw, split)
    words = template(draw, FORMS[form].templates, split, new)
    asked: dict[str, Any] = {
        "question": words.format(*one.about),
        "answer": one.answer,
        "question_type": FORMS[form].kind,
        "form": form,
        "about": list(one.about),
        "unseen": scene.unseen or one.unseen or new,
        "unseen_template": new,
    }
    if one.steps:
        asked["explanation"] = " ".join((*one.steps, f"So the answer is {one.answer}."))
    return asked


def draw_question(
    draw: np.random.Generator, split: str, kinds: Sequence[str], options: SceneOptions
) -> tuple[Scene, dict[str, Any]]:
    """A scene and a question about it: first the kind is drawn, then the form, then the answer, then a scene that has
    it, so that the question tells little of the answer. Raises ValueError where no scene can be asked so."""
    kind = choose(draw, kinds)
    form = choose(draw, _askable(kind, split, options))
    answers = FORMS[form].answers(options, split)
    for number in draw.permutation(len(answers)).tolist():  # the first one, but where it does not occur
        answer = answers[number]
        for _ in range(TRIES):
            scene = draw_scene(draw, split, options)
            if attribute := FORMS[form].alike:
                scene = alike(scene, draw, attribute, options)
            fitting = [one for one in FORMS[form].find(scene, draw, split, options) if one.answer == answer]
            if fitting:
                return scene, _worded(scene, draw, split, form, choose(draw, fitting))
    raise ValueError(f"{form!r} cannot be asked of scenes with {options}; name other kinds")


def alike(scene: Scene, draw: np.random.Generator, attribute: str, options: SceneOptions) -> Scene:
    """The scene with one colour, or shape, for about half of its things. Pairs that are held out stay, and no further
    ones come; no two things become the same."""
    word = choose(draw, getattr(options, f"{attribute}s"))
    things = list(scene.things)
    for i, thing in enumerate(things):
        other = replace(thing, **{attribute: word})
        taken = {(t.colour, t.shape) for t in things}
        fits = not (held_out(thing.colour, thing.shape) or held_out(other.colour, other.shape))
        if draw.random() < 0.5 and fits and (other.colour, other.shape) not in taken:
            things[i] = other
    return replace(scene, things=tuple(things))


def _askable(kind: str, split: str, options: SceneOptions) -> list[str]:
    """The forms of a kind that may have several answers."""
    return [name for name, form in FORMS.items() if form.kind == kind and len(form.answers(options, split)) > 1]


def _check_kinds(kinds: Sequence[str]) -> None:
    foreign = [kind for kind in kinds if kind not in KINDS]
    if foreign or not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds={list(kinds)} must be one or more of {', '.join(KINDS)}, each once")


# ---- explanations


def follows(explanation: str, scene: Scene) -> bool:
    """Whether each step of an explanation is true of the scene, and its answer follows from the last step."""
    *steps, end = re.split(r"(?<=[.])\s+(?=[A-Z0-9])", explanation.strip())
    concluded = re.fullmatch(r"So the answer is (\w+)\.", end)
    if not steps or not concluded:
        return False
    it: Thing | None = None
    answer: str | None = None
    for step in steps:
        true, it, answer = _read(step, scene, it)
        if not true:
            return False
    return concluded[1] == answer


def _read(step: str, scene: Scene, it: Thing | None) -> tuple[bool, Thing | None, str | None]:
    """Whether a step is true, what "its" means after it, and the answer it gives."""
    if match := re.fullmatch(r"There (?:is|are) (\d+) (.+)\.", step):
        group = _meant(match[2], scene)
        return group is not None and len(group) == int(match[1]), it, match[1]
    if match := re.fullmatch(r"(\d+) is (not )?more than (\d+)\.", step):
        more = match[2] is None
        return (int(match[1]) > int(match[3])) == more, it, YES_NO[not more]
    if match := re.fullmatch(r"(\d+)((?: [-+] \d+)+) = (-?\d+)\.", step):
        total = int(match[1]) + sum(int(sign + n) for sign, n in re.findall(r"([-+]) (\d+)", match[2]))
        return total == int(match[3]), it, match[3]
    if match := re.fullmatch(r"From (\w+ to \w+) there are (.+)\.", step):
        order = [_only(words, scene) for words in re.split(r", | and ", match[2])]
        return any(order == _in_order(scene, side) for side, words in ORDERS.items() if words == match[1]), it, None
    if match := re.fullmatch(r"The shape furthest (left|right|up|down) is (.+)\.", step):
        it = _only(match[2], scene)
        return it == _in_order(scene, match[1])[0], it, None
    if match := re.fullmatch(r"From (the .+) it is (.+)\.", step):
        start, far = _only(match[1], scene), re.split(r", | and ", match[2])
        return start is not None and all(_is_far(start, part, scene) for part in far), it, None
    if match := re.fullmatch(r"The shape nearest to (.+) is (.+)\.", step):
        start, it = _only(match[1], scene), _only(match[2], scene)
        others = [thing for thing in scene.things if thing != start]
        return (
            start is not None and it == min(others, key=lambda t: math.dist((t.x, t.y), (start.x, start.y))), it, None
        )  # fmt: skip
    if match := re.fullmatch(r"Its colour is (\w+)\.", step):
        return it is not None and it.colour == match[1], it, match[1]
    if match := re.fullmatch(r"(The .+) is (\w+)\.", step):
        it = _only(match[1], scene)
        return it is not None and it.colour == match[2], it, match[2]
    return False, it, None


def _meant(words: str, scene: Scene) -> list[Thing] | None:
    """The things that words such as "big red circles", "the ring" or "red shapes" fit; None where one is unknown."""
    group = list(scene.things)
    for word in re.sub(r"^(an?|the) ", "", words.lower()).split():
        one = {plural(shape): shape for shape in (*SHAPES, "shape")}.get(word, word)
        if one not in (*SHAPES, *COLOURS, *SIZES, "shape"):
            return None
        group = [thing for thing in group if one in (thing.shape, thing.colour, thing.size, "shape")]
    return group


def _only(words: str, scene: Scene) -> Thing | None:
    group = _meant(words, scene)
    return group[0] if group is not None and len(group) == 1 else None


def _is_far(start: Thing, told: str, scene: Scene) -> bool:
    """Whether something like "0.31 to the small red ring" is true."""
    distance, _, words = told.partition(" to ")
    other = _only(words, scene)
    far = None if other is None else math.dist((start.x, start.y), (other.x, other.y))
    return far is not None and re.fullmatch(r"\d+\.\d+", distance) is not None and abs(far - float(distance)) < 0.006


# ---- what the questions alone tell


def floors(asked: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Accuracy of guessers that see no picture: question type -> "majority" (the type's most frequent answer) and
    "question" (that of the form with these words in it, or of the type where it did not occur). Both learn from every
    other question and guess the rest."""
    learnt, rest = asked[::2], asked[1::2]
    by_type = _most_frequent([(one["question_type"], one["answer"]) for one in learnt])
    by_text = _most_frequent([(_text(one), one["answer"]) for one in learnt])
    right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for one in rest:
        usual = by_type.get(one["question_type"])
        guessed = by_text.get(_text(one), usual)
        right[one["question_type"]].append((usual == one["answer"], guessed == one["answer"]))
    shares = {kind: np.mean(hits, axis=0).tolist() for kind, hits in sorted(right.items())}
    return {kind: dict(zip(("majority", "question"), both, strict=True)) for kind, both in shares.items()}


def _text(one: dict[str, Any]) -> Hashable:
    return one["form"], *one["about"]


def _most_frequent(pairs: Sequence[tuple[Hashable, str]]) -> dict[Hashable, str]:
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for known, answer in pairs:
        counts[known][answer] += 1
    return {known: count.most_common(1)[0][0] for known, count in counts.items()}


# ---- sources


class WorldQuestions(WorldSource):
    """Questions about pictures: "jpg", "txt" (the question) and "json" as told by `ask`, with "scene".

    Args:
        train, validation, test: how many pictures.
        seed: another seed gives other pictures and questions.
        size: pixels of a side, 32 to 256.
        things: fewest and most in a picture, up to 9.
        kinds: what is asked, of PICTURE_KINDS and REASONING_KINDS; by default the former.
        questions: how many about each picture, each a sample of its own. The first is drawn before the picture, so that
            every answer is as likely; the others are what the picture allows.
        shapes, colours, styles, backgrounds: what there may be, by default all of `mmflow.world.scene`.
    """

    default_kinds: tuple[str, ...] = PICTURE_KINDS
    stream = STREAM

    def __init__(
        self,
        train: int = 8000,
        validation: int = 800,
        test: int = 800,
        seed: int = 0,
        size: int = 64,
        things: tuple[int, int] = (1, 4),
        kinds: list[str] | None = None,
        questions: int = 1,
        shapes: list[str] | None = None,
        colours: list[str] | None = None,
        styles: list[str] | None = None,
        backgrounds: list[str] | None = None,
    ) -> None:
        super().__init__(questions * train, questions * validation, questions * test, seed)
        check_picture(size, "jpg")
        if questions < 1:
            raise ValueError(f"questions={questions} about a picture must be 1 or more")
        self.size, self.questions = size, questions
        self.scenes = scene_options(things, shapes, colours, styles, backgrounds)
        self.kinds = self.default_kinds if kinds is None else tuple(kinds)
        _check_kinds(self.kinds)
        for kind in self.kinds:
            if not all(_askable(kind, split, self.scenes) for split in SPLITS):
                raise ValueError(
                    f"questions of kind {kind!r} need scenes in which they have several answers, which stills with "
                    f"things={things}, {len(self.scenes.shapes)} shapes and {len(self.scenes.colours)} colours are "
                    f"not; leave it out of kinds, or allow more"
                )

    def group(self, split: str, number: int) -> str:
        """The picture."""
        return f"{split}-{number // self.questions:06d}"

    def bytes_each(self) -> int:
        """About the bytes of a picture, and of its scene and question."""
        return picture_bytes(self.size, "jpg") + 1300

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A picture and a question about it."""
        picture, part = divmod(number, self.questions)
        draw = self.draw(self.stream, split, picture)
        scene, first = draw_question(draw, split, self.kinds, self.scenes)
        asked = [first]
        while len(asked) <= part:
            kinds = [self.kinds[i] for i in draw.permutation(len(self.kinds))]
            asked += ask(scene, draw, kinds, split, self.scenes)
        return {
            "jpg": pictures.encode(pictures.render(scene, self.size)),
            "txt": asked[part]["question"],
            "json": {**asked[part], "scene": scene.as_json()},
        }


class WorldReasoning(WorldQuestions):
    """Questions that take thinking (REASONING_KINDS), whose "json" has an "explanation" of three or four steps and the
    conclusion; `follows` checks one. Options as for WorldQuestions."""

    default_kinds = REASONING_KINDS
    stream = STREAM + 1
