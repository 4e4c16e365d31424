"""Forms of questions about clips: what moves, flashes and sounds, and when.

Each shape has its own sound, so the ear alone tells which shape sounds, and never its colour, place or motion. Where a
question means one thing by its sound, no other thing has its shape: of two circles nobody could say which one sounds.
Whatever needs sound and picture together is asked only where the picture allows several answers.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmflow.world import language
from mmflow.world.clips import PART_S
from mmflow.world.forms import MOST, YES_NO, Answers, Find, Form, Possible, shown
from mmflow.world.scene import COLUMNS, MOTIONS, Scene, SceneOptions, Thing, held_out
from mmflow.world.wording import alone, name

APART_S = 0.2  # times that are compared differ by so much, and what happens together does so for as long
DIRECTIONS = tuple(motion for motion in MOTIONS if motion != "still")
MOVES = {motion: f"moves {motion}" if motion != "still" else "stays where it is" for motion in MOTIONS}


class Span(NamedTuple):
    """When a thing sounds (or flashes) first and last, s.

    Attributes:
        start: of the first sound.
        latest: beginning of the last one.
        end: of the last one.
        thing: whose they are.
    """

    start: float
    latest: float
    end: float
    thing: Thing


def spans(scene: Scene, sense: str) -> list[Span]:
    """Of each thing that is "heard" or "seen" (to flash), the one that begins first before the others."""
    found = []
    for thing in scene.things:
        if own := [sound for sound in thing.sounds if getattr(sound, sense)]:
            first, last = (which(own, key=lambda sound: sound.start) for which in (min, max))
            found.append(Span(first.start, last.start, last.end, thing))
    return sorted(found, key=lambda span: span.start)


def _known(scene: Scene) -> list[Thing]:
    """The things whose sound is theirs alone; none where there is nothing to tell them from."""
    return [thing for thing in scene.things if len(scene.things) > 1 and alone(thing, scene, ("shape",))]


def _placed(scene: Scene) -> list[Span]:
    """What is heard, if of each sound it can be told which thing makes it."""
    heard, known = spans(scene, "heard"), _known(scene)
    return heard if all(span.thing in known for span in heard) else []


def _may_be_any_of(thing: Thing, heard: list[Thing]) -> bool:
    """Whether a thing of this colour may be any of those heard, for all who know which pairs training never shows."""
    return all(other is thing or held_out(thing.colour, other.shape) is None for other in heard)


def _interchangeable(scene: Scene) -> list[Span]:
    """What is heard, where it can be told which thing makes which sound, but not from their colours alone."""
    placed = _placed(scene)
    things = [span.thing for span in placed]
    return placed if all(_may_be_any_of(thing, things) for thing in things) else []


def _ends(own: list[Span]) -> Iterator[tuple[str, Thing]]:
    """Which of several is the first one, which the last, where that is clear."""
    if len(own) > 1:
        first, second = own[:2]
        *others, last = sorted(own, key=lambda span: span.latest)
        if second.start - first.start >= APART_S:
            yield "first", first.thing
        if all(min(last.latest - other.latest, last.end - other.end) >= APART_S for other in others):
            yield "last", last.thing


# ---- which answers there may be


def _lasting(answers: Answers, least: int = 1) -> Answers:
    """The same, in clips of so many things."""
    return lambda options, split: answers(options, split) if options.seconds and options.things[1] >= least else ()


def _said(options: SceneOptions, split: str) -> tuple[str, ...]:  # noqa: ARG001
    return YES_NO


def _colours(options: SceneOptions, split: str) -> list[str]:
    return shown(options, split, "colour")


def _shapes(options: SceneOptions, split: str) -> list[str]:
    return shown(options, split, "shape")


def _where_some_move(answers: Answers) -> Answers:
    return lambda options, split: answers(options, split) if options.moving else ()


def _numbers(options: SceneOptions, split: str) -> list[str]:  # noqa: ARG001
    return [str(number) for number in range(min(MOST, options.things[1]) + 1)]


def _numbers_heard(options: SceneOptions, split: str) -> list[str]:
    fitting = min(MOST, len(_shapes(options, split)), options.things[1], int(options.seconds / PART_S + 1e-6))
    return [str(number) for number in range(fitting + 1)]


# ---- what can be asked of a scene: the picture is enough


def _moves(scene: Scene, *_: Any) -> Iterator[Possible]:
    if scene.seconds:
        for thing in scene.things:
            yield Possible(YES_NO[thing.motion == "still"], (language.phrase(thing, scene, "en"),))


def _direction(scene: Scene, *_: Any) -> Iterator[Possible]:
    for thing in scene.things:
        if thing.motion != "still":
            yield Possible(thing.motion, (language.phrase(thing, scene, "en"),))


def _movers(scene: Scene) -> Iterator[tuple[str, Thing]]:
    """Things that alone move in such a way, and words for that."""
    if scene.seconds and len(scene.things) > 1:
        for motion, words in MOVES.items():
            own = [thing for thing in scene.things if thing.motion == motion]
            if len(own) == 1:
                yield words, own[0]


def _mover(scene: Scene, *_: Any) -> Iterator[Possible]:
    for words, thing in _movers(scene):
        yield Possible(thing.colour, (words,))


def _count_moving(scene: Scene, *_: Any) -> Iterator[Possible]:
    moving = sum(thing.motion != "still" for thing in scene.things)
    if scene.seconds and moving <= MOST:
        yield Possible(str(moving))


def _flashes(scene: Scene, *_: Any) -> Iterator[Possible]:
    if scene.seconds:
        seen = [span.thing for span in spans(scene, "seen")]
        for thing in scene.things:
            yield Possible(YES_NO[thing not in seen], (language.phrase(thing, scene, "en"),))


def _flash_colour(scene: Scene, *_: Any) -> Iterator[Possible]:
    for word, thing in _ends(spans(scene, "seen")):
        yield Possible(thing.colour, (word,))


# ---- the sound is enough


def _heard_shape(scene: Scene, *_: Any) -> Iterator[Possible]:
    for word, thing in _ends(spans(scene, "heard")):
        yield Possible(thing.shape, (word,))


def _count_heard(scene: Scene, *_: Any) -> Iterator[Possible]:
    shapes = [span.thing.shape for span in spans(scene, "heard")]
    if scene.seconds and len(set(shapes)) == len(shapes) <= MOST:
        yield Possible(str(len(shapes)))


def _before(spans_of: Callable[[Scene], list[Span]], words: Callable[[Thing, Scene], str | None]) -> Find:
    """Whether one thing is all over before another one begins; not asked of those that take turns."""

    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        for one, other in itertools.permutations(spans_of(scene), 2):
            a, b = words(one.thing, scene), words(other.thing, scene)
            apart = abs(one.start - other.start) >= APART_S and (one.end <= other.start or other.end <= one.start)
            if apart and a is not None and b is not None:
                yield Possible(YES_NO[other.start < one.start], (a, b))

    return find


# ---- it takes both


def _whether_heard(named: Callable[[Scene], Iterator[tuple[str | None, Thing]]]) -> Find:
    """Whether things sound, where some do and some do not: how many sounds there are then tells nothing."""

    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        heard, known = [span.thing for span in spans(scene, "heard")], _known(scene)
        about = [
            (words, thing in heard)
            for words, thing in named(scene)
            if words is not None and thing in known and _may_be_any_of(thing, heard)
        ]
        if len({sounds for _, sounds in about}) == 2:
            yield from (Possible(YES_NO[not sounds], (words,)) for words, sounds in about)

    return find


def _by_looks(scene: Scene) -> Iterator[tuple[str | None, Thing]]:
    return ((name(thing, scene, "shape"), thing) for thing in scene.things)


def _only_one(scene: Scene, *_: Any) -> Iterator[Possible]:
    heard = _placed(scene)
    if len(heard) == 1 and len({thing.colour for thing in _known(scene)}) > 1:
        yield Possible(heard[0].thing.colour)


def _heard(attribute: str, among: Callable[[Thing], bool]) -> Find:
    """The colour, column or motion of what sounds first or last, of such things."""

    def find(scene: Scene, *_: Any) -> Iterator[Possible]:
        candidates = [thing for thing in _known(scene) if among(thing)]
        if len({getattr(thing, attribute) for thing in candidates}) > 1:
            for word, thing in _ends(_placed(scene)):
                if thing in candidates:
                    yield Possible(getattr(thing, attribute), (word,))

    return find


def _meanwhile(scene: Scene, *_: Any) -> Iterator[Possible]:
    """The colour of the only thing that flashes while one, which sounds once, is heard."""
    flashes = [(sound, thing) for thing in scene.things for sound in thing.sounds if sound.seen]
    for thing in _known(scene) if len({other.colour for _, other in flashes}) > 1 else ():
        own = [sound for sound in thing.sounds if sound.heard]
        if len(own) == 1:
            together = [(min(own[0].end, s.end) - max(own[0].start, s.start), other.colour) for s, other in flashes]
            together = [(seconds, colour) for seconds, colour in together if seconds > 0]
            if len(together) == 1 and together[0][0] >= APART_S:
                yield Possible(together[0][1], (f"the {thing.shape}",))


# ---- the forms

FORMS = {
    "moves": Form(
        "motion",
        ("does {} move?", "is {} moving?", "do you see {} move?", "is {} in motion?", "does {} change its place?"),
        _lasting(lambda options, split: YES_NO if 0 < options.moving < 1 else ()), _moves,  # noqa: ARG005
    ),
    "direction": Form(
        "motion",
        ("which way does {} move?", "where does {} go?", "in which direction does {} move?",
         "name the direction of {}.", "which direction does {} take?"),
        _lasting(_where_some_move(lambda options, split: DIRECTIONS)), _direction,  # noqa: ARG005
    ),
    "mover": Form(
        "motion",
        ("what colour is the shape that {}?", "tell the colour of the shape that {}.",
         "what is the colour of the shape that {}?", "name the colour of the shape that {}.",
         "in what colour is the shape painted that {}?"),
        _lasting(_where_some_move(_colours), 2), _mover,
    ),
    "count-moving": Form(
        "motion",
        ("how many shapes move?", "how many shapes are moving?", "count the shapes that move.",
         "what is the number of shapes that move?", "how many shapes change their places?"),
        _lasting(lambda options, split: _numbers(options, split) if 0 < options.moving < 1 else ()), _count_moving,
    ),
    "flashes": Form(
        "flashing",
        ("does {} flash?", "do you see {} flash?", "does {} light up?", "is {} seen to flash?",
         "is there a moment at which {} flashes?"),
        _lasting(_said), _flashes,
    ),
    "flash-colour": Form(
        "flashing",
        ("what colour is the shape that flashes {}?", "tell the colour of the shape that flashes {}.",
         "what is the colour of the shape that lights up {}?", "name the colour of what flashes {}.",
         "in what colour is the shape painted that you see flash {}?"),
        _lasting(_colours, 2), _flash_colour,
    ),
    "flash-before": Form(
        "flashing",
        ("does {} flash before {}?", "do you see {} flash before {}?", "does {} light up earlier than {}?",
         "is the flash of {} earlier than that of {}?", "does the flash of {} precede that of {}?"),
        _lasting(_said, 2),
        _before(lambda scene: spans(scene, "seen"), lambda thing, scene: language.phrase(thing, scene, "en")),
    ),
    "heard-shape": Form(
        "hearing",
        ("which shape sounds {}?", "what shape do you hear {}?", "which shape is heard {}?",
         "name the shape that sounds {}.", "what kind of shape makes a sound {}?"),
        _lasting(_shapes, 2), _heard_shape, needs="sound",
    ),
    "count-heard": Form(
        "hearing",
        ("how many shapes sound?", "how many shapes do you hear?", "count the shapes that sound.",
         "what is the number of shapes that you hear?", "how many shapes make a sound?"),
        _lasting(_numbers_heard), _count_heard, needs="sound",
    ),
    "heard-before": Form(
        "hearing",
        ("does {} sound before {}?", "do you hear {} before {}?", "is {} heard earlier than {}?",
         "does the sound of {} precede that of {}?", "does {} begin to sound before {} does?"),
        _lasting(_said, 2), _before(_placed, lambda thing, scene: f"the {thing.shape}"), needs="sound",  # noqa: ARG005
    ),
    "sounds": Form(
        "sounding",
        ("does {} sound?", "do you hear {}?", "does {} make a sound?", "is {} heard?",
         "does any sound come from {}?"),
        _lasting(_said, 2), _whether_heard(_by_looks), needs="both",
    ),
    "mover-sounds": Form(
        "sounding",
        ("does the shape that {} make a sound?", "do you hear the shape that {}?", "can the shape that {} be heard?",
         "is the shape that {} heard?", "does any sound come from the shape that {}?"),
        _lasting(_where_some_move(_said), 2), _whether_heard(_movers), needs="both",
    ),
    "only-one": Form(
        "sounding",
        ("what colour is the shape that sounds?", "which colour does the sounding shape have?",
         "what is the colour of the shape you hear?", "name the colour of what sounds.",
         "in what colour is the shape painted that you hear?"),
        _lasting(_colours, 2), _only_one, needs="both",
    ),
    "heard-colour": Form(
        "order",
        ("what colour is the shape that sounds {}?", "tell the colour of the shape that sounds {}.",
         "what is the colour of the shape you hear {}?", "name the colour of what sounds {}.",
         "in what colour is the shape painted that you hear {}?"),
        _lasting(_colours, 2), _heard("colour", lambda thing: True), needs="both",  # noqa: ARG005
    ),
    "before": Form(
        "order",
        ("does {} sound before {}?", "do you hear {} before {}?", "is {} heard earlier than {}?",
         "does the sound of {} precede that of {}?", "does {} begin to sound before {} does?"),
        _lasting(_said, 2), _before(_interchangeable, lambda thing, scene: name(thing, scene, "shape")),
        needs="both",
    ),
    "heard-column": Form(
        "where",
        ("is the shape that sounds {} on the left, in the middle or on the right?",
         "left, middle or right: where is the shape that sounds {}?",
         "in which third from left to right is the shape that you hear {}?",
         "on the left, in the middle or on the right: where does the shape lie that you hear {}?",
         "does the shape that is heard {} lie on the left, in the middle or on the right?"),
        _lasting(lambda options, split: COLUMNS if options.moving < 1 else (), 2),  # noqa: ARG005
        _heard("column", lambda thing: thing.motion == "still"), needs="both",
    ),
    "heard-direction": Form(
        "where",
        ("which way does the shape move that sounds {}?", "where does the shape go that you hear {}?",
         "in which direction does the shape move that is heard {}?",
         "name the direction of the shape that sounds {}.", "which direction does the shape take that sounds {}?"),
        _lasting(_where_some_move(lambda options, split: DIRECTIONS), 2),  # noqa: ARG005
        _heard("motion", lambda thing: thing.motion != "still"), needs="both",
    ),
    "meanwhile": Form(
        "together",
        ("what colour is the shape that flashes while {} sounds?",
         "while you hear {}, what colour is the shape that flashes?",
         "what is the colour of the shape you see flash while {} sounds?",
         "name the colour of what flashes while {} sounds.",
         "in what colour is the shape painted that flashes during the sound of {}?"),
        _lasting(_colours, 2), _meanwhile, needs="both",
    ),
}  # fmt: skip
