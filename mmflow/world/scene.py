"""The world's scenes: coloured shapes on a canvas, some moving, some sounding. All else is told from one of these.

Lengths and places are in canvas widths, x to the right and y down from the upper left corner, times in seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = {  # RGB
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 190),
    "cyan": (50, 200, 210),
    "orange": (240, 140, 30),
    "white": (235, 235, 235),
}
SIZES = ("small", "big")
COLUMNS = ("left", "middle", "right")
ROWS = ("top", "centre", "bottom")
STYLES = ("flat", "outlined", "shaded", "striped")
BACKGROUNDS = ("plain", "gradient", "noise", "checks")
MOTIONS = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPLITS = ("train", "validation", "test")

MAX_THINGS = 9
RADII = {  # most things in a scene -> radii of small and of big ones; no small one is within 16 % of a big one
    1: ((0.17, 0.20), (0.28, 0.32)),
    4: ((0.088, 0.093), (0.133, 0.145)),
    MAX_THINGS: ((0.062, 0.07), (0.108, 0.112)),
}
REACH = 1.2  # radii from the centre to the farthest corner, which squares and triangles have
CLEAR = 0.025  # a centre keeps this far from the lines between left, middle and right, so that words are true of it
GAP = 0.02  # between a thing and the edge of the canvas
TRIES = 100


@dataclass(frozen=True, slots=True)
class Sound:
    """One event of a thing: its sound is heard, or it flashes, or both.

    Attributes:
        start, end: s.
        gain: of the sound, dB below full loudness (0 or less).
        heard, seen: whether it sounds and whether it flashes.
    """

    start: float
    end: float
    gain: float = 0.0
    heard: bool = True
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene. Each shape has its own sound (`mmflow.world.sounds`).

    Attributes:
        shape, colour, size: one of SHAPES, COLOURS, SIZES.
        x, y: centre at the beginning.
        radius: its corners may reach REACH radii from the centre, everything round reaches one.
        motion: one of MOTIONS.
        speed: canvas widths per second.
        sounds: its events in order.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    motion: str = "still"
    speed: float = 0.0
    sounds: tuple[Sound, ...] = ()

    def at(self, time: float) -> tuple[float, float]:
        """Centre at a time."""
        dx, dy = MOTIONS[self.motion]
        return self.x + dx * self.speed * time, self.y + dy * self.speed * time

    @property
    def column(self) -> str:
        """left, middle or right, at the beginning."""
        return COLUMNS[min(int(3 * self.x), 2)]

    @property
    def row(self) -> str:
        """top, centre or bottom, at the beginning."""
        return ROWS[min(int(3 * self.y), 2)]


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the things.

    Attributes:
        kind: one of BACKGROUNDS.
        levels: two grey levels, 0 to 255: the one it has and the one it turns to (gradient, noise, checks).
        seed: of its texture.
    """

    kind: str = "plain"
    levels: tuple[int, int] = (40, 40)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to see and hear.

    Attributes:
        things: from the back to the front.
        style: one of STYLES.
        background: what is behind them.
        seconds: how long it lasts; 0 for a still.
        unseen: whether a pair of colour and shape occurs that the training part never shows.
    """

    things: tuple[Thing, ...]
    style: str = "flat"
    background: Background = Background()
    seconds: float = 0.0
    unseen: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` takes them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Scene":
        """The scene that `as_json` described, also after a round trip through JSON."""
        things = tuple(Thing(**{**t, "sounds": tuple(Sound(**s) for s in t["sounds"])}) for t in value["things"])
        background = value["background"]
        background = Background(**{**background, "levels": tuple(background["levels"])})
        return cls(**{**value, "things": things, "background": background})


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are drawn.

    Args:
        things: fewest and most things in a scene; the radii follow from the most (RADII).
        shapes, colours, sizes, styles, backgrounds: what there may be.
        distinct: whether no two things of a scene share shape and colour.
        seconds: how long scenes last; 0 for stills.
        moving: chance that a thing moves, where the scene lasts.
    """

    things: tuple[int, int] = (1, 4)
    shapes: Sequence[str] = SHAPES
    colours: Sequence[str] = tuple(COLOURS)
    sizes: Sequence[str] = SIZES
    styles: Sequence[str] = STYLES
    backgrounds: Sequence[str] = BACKGROUNDS
    distinct: bool = True
    seconds: float = 0.0
    moving: float = 0.5

    def __post_init__(self) -> None:
        least, most = self.things
        if not 1 <= least <= most <= MAX_THINGS:
            raise ValueError(f"things={self.things} must be from at least 1 to at most {MAX_THINGS}: more do not fit")
        known = {
            "shapes": SHAPES, "colours": tuple(COLOURS), "sizes": SIZES, "styles": STYLES, "backgrounds": BACKGROUNDS
        }  # fmt: skip
        for name, words in known.items():
            check_chosen(name, getattr(self, name), words)
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds={self.seconds} must be 0 (a still) or more")
        if not 0 <= self.moving <= 1:
            raise ValueError(f"moving={self.moving} is a chance; it must be in 0..1")
        for split in SPLITS:
            pairs = len(self.pairs(split))
            if pairs < (most if self.distinct else 1):
                raise ValueError(
                    f"{len(self.colours)} colours and {len(self.shapes)} shapes leave {pairs} pairs for the {split} "
                    f"part, too few for things={self.things}; name more of them"
                )

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """The (colour, shape) pairs of a split: training has those that no other split holds out."""
        return [(c, s) for c in self.colours for s in self.shapes if held_out(c, s) in (None, split)]


def held_out(colour: str, shape: str) -> str | None:
    """The split that alone shows a pair of colour and shape: validation or test (6 of the 48 pairs each), or None."""
    place = (list(COLOURS).index(colour) + 3 * SHAPES.index(shape)) % len(COLOURS)
    return {0: "test", 4: "validation"}.get(place)


def check_chosen(name: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError unless some words were chosen, each of them known and once."""
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
        raise ValueError(f"{name}={list(chosen)} must be one or more of {', '.join(known)}, each once")


def choose(draw: np.random.Generator, among: Sequence[T]) -> T:
    """One of several, each as likely."""
    return among[int(draw.integers(len(among)))]


def draw_scene(draw: np.random.Generator, split: str, options: SceneOptions) -> Scene:
    """A scene of a split. Half of those for validation and test have a thing whose pair training never shows."""
    count = int(draw.integers(options.things[0], options.things[1], endpoint=True))
    seen = [pair for pair in options.pairs(split) if held_out(*pair) is None]
    own = [pair for pair in options.pairs(split) if held_out(*pair) == split]
    unseen = bool(own) and (not seen or draw.random() < 0.5)
    pairs = [choose(draw, own)] if unseen else []
    while len(pairs) < count:
        pair = choose(draw, seen or own)
        if not (options.distinct and pair in pairs):
            pairs.append(pair)
    pairs = [pairs[i] for i in draw.permutation(count)]
    sizes = [choose(draw, options.sizes) for _ in pairs]
    most = min(m for m in RADII if m >= options.things[1])
    radii = [float(draw.uniform(*RADII[most][SIZES.index(size)])) for size in sizes]
    places = _places(draw, radii)
    things = [
        _moving(draw, Thing(shape, colour, size, x, y, radius), options)
        for (colour, shape), size, radius, (x, y) in zip(pairs, sizes, radii, places, strict=True)
    ]
    style = choose(draw, options.styles)
    return Scene(tuple(things), style, _background(draw, options), options.seconds, unseen)


def _places(draw: np.random.Generator, radii: list[float]) -> list[tuple[float, float]]:
    """Centres of things that do not touch, none near the lines that part left, middle and right."""
    for _ in range(TRIES):
        places: list[tuple[float, float]] = []
        for radius in radii:
            for _ in range(TRIES):
                x, y = draw.uniform(radius + GAP, 1 - radius - GAP, 2).tolist()
                clear = all(abs(value - line) > CLEAR for value in (x, y) for line in (1 / 3, 2 / 3))
                apart = (math.dist((x, y), p) > REACH * (radius + r) for p, r in zip(places, radii, strict=False))
                if clear and all(apart):
                    places.append((x, y))
                    break
        if len(places) == len(radii):
            return places
    raise ValueError(f"{len(radii)} things with radii up to {max(radii):.2f} do not fit; draw fewer")


def _moving(draw: np.random.Generator, thing: Thing, options: SceneOptions) -> Thing:
    """The thing, perhaps moving as far as the canvas lets it."""
    if not options.seconds or draw.random() >= options.moving:
        return thing
    room = {
        "left": thing.x - thing.radius,
        "right": 1 - thing.x - thing.radius,
        "up": thing.y - thing.radius,
        "down": 1 - thing.y - thing.radius,
    }
    possible = [motion for motion, far in room.items() if far > 0.1]
    motion = choose(draw, possible)
    return replace(thing, motion=motion, speed=float(draw.uniform(0.1, room[motion])) / options.seconds)


def _background(draw: np.random.Generator, options: SceneOptions) -> Background:
    kind = choose(draw, options.backgrounds)
    first, second = draw.integers(10, 75, 2).tolist()  # darker than every colour of a thing
    return Background(kind, (first, first if kind == "plain" else second), int(draw.integers(2**31)))
