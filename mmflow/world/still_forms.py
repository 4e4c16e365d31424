"""Forms of questions that a still answers (and the first picture of a clip, where things do not move)."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmflow.world import language
from mmflow.world.forms import MOST, YES_NO, Answers, Find, Form, Possible, shown
from mmflow.world.scene import COLUMNS, ROWS, SIZES, Scene, SceneOptions, Thing, choose, held_out
from mmflow.world.wording import article, counted, describe, group, listed, name, one_of, plural

APART = 0.05  # places and distances that are compared differ by so much, in canvas widths, so that it can be seen
SIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ORDERS = {"left": "left to right", "right": "right to left", "up": "top to bottom", "down": "bottom to top"}


# ---- which answers there may be


def _either(least: int) -> Answers:
    """yes and no, where there may be so many things."""
    return lambda options, split: YES_NO if options.things[1] >= least else ()  # noqa: ARG005


def _numbers(attribute: str) -> Answers:
    """How many of one colour, or shape, there may be."""

    def answers(options: SceneOptions, split: str) -> Sequence[str]:
        shared = Counter(pair[attribute == "shape"] for pair in options.pairs(split))
        return [str(number) for number in range(min(MOST, options.things[1], *shared.values()) + 1)]

    return answers


def _colours(least: int) -> Answers:
    """The colours, where there may be so many things."""
    return lambda options, split: shown(options, split, "colour") if options.things[1] >= least else ()


def _where_things_rest(answers: Answers) -> Answers:
    """The same, unless all things move."""
    return lambda options, split: answers(options, split) if not options.seconds or options.moving < 1 else ()


# ---- what can be asked of a scene


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
        for word in shown(options, split, attribute):
            yield Possible(str(counts[word]), (group(attribute, word),))

    return find


def _attribute(attribute: str) -> Find:
    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        for thing in scene.things:
            if (named := name(thing, scene, attribute)) is not None:
                yield Possible(getattr(thing, attribute), (named,))

    return find


def _place(which: str) -> Find:
    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        for thing in resting(scene):
            if (named := name(thing, scene)) is not None:
                yield Possible(getattr(thing, which), (named,))

    return find


def resting(scene: Scene) -> list[Thing]:
    """The things that stay where they are."""
    return [thing for thing in scene.things if thing.motion == "still"]


def _relation(holds: Callable[[Thing, Thing], float]) -> Find:
    """`holds` is positive where it is true of two things, negative where of the two the other way round."""

    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        things = resting(scene)
        names = [language.phrase(thing, scene, "en") for thing in things]
        for i, one in enumerate(things):
            for j, other in enumerate(things):
                if i != j and abs(much := holds(one, other)) >= APART:
                    yield Possible(YES_NO[much < 0], (names[i], names[j]))

    return find


def _compared(attribute: str) -> Find:
    def find(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:  # noqa: ARG001
        counts = Counter(getattr(thing, attribute) for thing in scene.things)
        words = shown(options, split, attribute)
        for one in words:
            for other in words:
                a, b = counts[one], counts[other]
                if one != other and (a or b):
                    steps = (counted(a, one_of(attribute, one)), counted(b, one_of(attribute, other)), _more(a, b))
                    yield Possible(YES_NO[a <= b], (group(attribute, one), group(attribute, other)), steps)

    return find


def _more(a: int, b: int) -> str:
    return f"{a} is {'' if a > b else 'not '}more than {b}."


def _same(scene: Scene, *_: Any) -> Iterator[Possible]:
    counts = Counter(thing.colour for thing in scene.things)
    for thing in scene.things:
        if len(scene.things) > 1 and (named := name(thing, scene, "colour")) is not None:
            count = counts[thing.colour]
            steps = (
                f"{named.capitalize()} is {thing.colour}.", counted(count, f"{thing.colour} shape"), _more(count, 1)
            )  # fmt: skip
            yield Possible(YES_NO[count == 1], (named,), steps)


def _remaining(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:  # noqa: ARG001
    every = len(scene.things)
    for colour in shown(options, split, "colour"):
        if count := sum(thing.colour == colour for thing in scene.things):
            left = every - count
            steps = (counted(every, "shape"), counted(count, f"{colour} shape"), f"{every} - {count} = {left}.")
            if left <= MOST:
                yield Possible(str(left), (group("colour", colour),), steps)


def _either_of(scene: Scene, draw: np.random.Generator, split: str, options: SceneOptions) -> Iterator[Possible]:  # noqa: ARG001
    for colour, shape in options.pairs("train"):
        a = sum(thing.colour == colour for thing in scene.things)
        b = sum(thing.shape == shape for thing in scene.things)
        both = sum((thing.colour, thing.shape) == (colour, shape) for thing in scene.things)
        steps = (
            counted(a, f"{colour} shape"),
            counted(b, shape),
            counted(both, f"{colour} {shape}"),
            f"{a} + {b} - {both} = {a + b - both}.",
        )
        if a + b - both <= MOST:
            yield Possible(str(a + b - both), (colour, plural(shape)), steps)


def in_order(scene: Scene, side: str) -> list[Thing]:
    """The things, the one furthest to a side first."""
    dx, dy = SIDES[side]
    return sorted(scene.things, key=lambda thing: -dx * thing.x - dy * thing.y)


def _outermost(scene: Scene, *_: Any) -> Iterator[Possible]:
    if len(scene.things) < 2 or len(resting(scene)) < len(scene.things):
        return
    for side, (dx, dy) in SIDES.items():
        along = in_order(scene, side)
        if all(abs(dx * (a.x - b.x) + dy * (a.y - b.y)) >= APART for a, b in itertools.pairwise(along)):
            order = listed([article(describe(thing)) for thing in along])
            steps = (
                f"From {ORDERS[side]} there are {order}.",
                f"The shape furthest {side} is the {describe(along[0])}.",
                f"Its colour is {along[0].colour}.",
            )
            yield Possible(along[0].colour, (side,), steps)


def _nearest(scene: Scene, *_: Any) -> Iterator[Possible]:
    if len(scene.things) < 3 or len(resting(scene)) < len(scene.things):
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


# ---- the forms

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
        ("what is {}?", "what kind of thing is {}?", "which form does {} have?", "name the form of {}.",
         "what do you call the form of {}?"),
        lambda options, split: shown(options, split, "shape"), _attribute("shape"),
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
         "in which third from left to right is {}?", "on the left, in the middle or on the right: where does {} lie?",
         "does {} lie on the left, in the middle or on the right?"),
        _where_things_rest(lambda options, split: COLUMNS), _place("column"),  # noqa: ARG005
    ),
    "row": Form(
        "place",
        ("is {} at the top, in the centre or at the bottom?", "top, centre or bottom: where is {}?",
         "in which third from top to bottom is {}?", "at the top, in the centre or at the bottom: where does {} lie?",
         "does {} lie at the top, in the centre or at the bottom?"),
        _where_things_rest(lambda options, split: ROWS), _place("row"),  # noqa: ARG005
    ),
    "left-of": Form(
        "relation",
        ("is {} left of {}?", "is {} to the left of {}?", "does {} lie left of {}?", "is {} further left than {}?",
         "do you see {} on the left of {}?"),
        _where_things_rest(_either(2)), _relation(lambda one, other: other.x - one.x),
    ),
    "above": Form(
        "relation",
        ("is {} above {}?", "is {} higher up than {}?", "does {} lie above {}?", "is {} nearer to the top than {}?",
         "do you see {} further up than {}?"),
        _where_things_rest(_either(2)), _relation(lambda one, other: other.y - one.y),
    ),
    "bigger": Form(
        "relation",
        ("is {} bigger than {}?", "is {} larger than {}?", "is {} of greater size than {}?",
         "does {} exceed {} in size?", "of the two, is {} bigger than {}?"),
        _where_things_rest(lambda options, split: _either(2)(options, split) if len(options.sizes) > 1 else ()),
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
         "leave out the {}. how many shapes are there then?"),
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
        _where_things_rest(_colours(2)), _outermost,
    ),
    "nearest": Form(
        "nearest",
        ("what colour is the shape nearest to {}?", "which colour does the shape closest to {} have?",
         "what is the colour of the nearest neighbour of {}?", "name the colour of what is closest to {}.",
         "in what colour is the shape next to {} painted?"),
        _where_things_rest(_colours(3)), _nearest,
    ),
}  # fmt: skip
