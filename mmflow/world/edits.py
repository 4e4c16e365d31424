"""Edits of pictures: an instruction, and the picture before and after it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from mmflow.world import language, pictures
from mmflow.world.scene import (
    CLEAR,
    GAP,
    RADII,
    REACH,
    SIZES,
    SPLITS,
    STYLES,
    Background,
    Scene,
    SceneOptions,
    Thing,
    check_chosen,
    choose,
    draw_scene,
    held_out,
)
from mmflow.world.stills import WorldSource, check_picture, picture_bytes, scene_options
from mmflow.world.wording import article, describe, draw_new, template

STREAM = 55  # what a sample's generator is for
TRIES = 100  # of an edit in a scene, and of scenes for an edit
BLURS = 4  # that a style is looked for with, each of 0.7 pixels more (one standard deviation, in squares)
NEAR = 0.08  # a thing in a picture is the one that should be within this many canvas widths of it

# Of each kind the last template is the test's own, the one before validation's; training has the rest.
TEMPLATES = {
    "recolour": ("make {thing} {colour}", "colour {thing} {colour}", "change the colour of {thing} to {colour}",
                 "paint {thing} {colour}", "let {thing} be {colour}"),
    "reshape": ("turn {thing} into {shape}", "make {thing} {shape}", "change {thing} to {shape}",
                "transform {thing} into {shape}", "let {thing} become {shape}"),
    "resize": ("make {thing} {size}", "change the size of {thing} to {size}", "draw {thing} {size}",
               "set the size of {thing} to {size}", "let {thing} be {size}"),
    "move": ("put {thing} {place}", "place {thing} {place}", "move {thing} so that it is {place}",
             "carry {thing} to where it is {place}", "let {thing} be {place}"),
    "remove": ("remove {thing}", "delete {thing}", "take away {thing}", "erase {thing}", "let {thing} disappear"),
    "add": ("add {new} {place}", "draw {new} {place}", "put {new} {place}", "insert {new} {place}",
            "let there be {new} {place}"),
    "restyle": ("make everything {style}", "draw all shapes {style}", "change the style to {style}",
                "turn the style of all shapes to {style}", "let all shapes be {style}"),
    "swap": ("swap the colours of {thing} and {other}", "exchange the colours of {thing} and {other}",
             "let {thing} and {other} trade colours", "switch the colours of {thing} and {other}",
             "give {thing} the colour of {other} and the other way round"),
}  # fmt: skip
KINDS = tuple(TEMPLATES)


class Seen(Protocol):
    """A thing as it is in a scene, or as it was read from a picture (`mmflow.world.picture_reader`)."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...
    @property
    def radius(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a scene. What a kind does not need is None.

    Attributes:
        kind: one of KINDS.
        thing: the number of the thing that is changed, of "swap" the first.
        other: of "swap" the number of the second.
        colour, shape, style: what it gets.
        size, radius: what it gets in "resize".
        x, y: where it goes in "move".
        new: what comes in "add".
    """

    kind: str
    thing: int | None = None
    other: int | None = None
    colour: str | None = None
    shape: str | None = None
    style: str | None = None
    size: str | None = None
    radius: float | None = None
    x: float | None = None
    y: float | None = None
    new: Thing | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Edit":
        """The edit that `as_json` described."""
        new = value.get("new")
        return cls(**{**value, "new": Thing(**{**new, "sounds": ()}) if new else None})


def apply(scene: Scene, edit: Edit) -> Scene:
    """The scene after an edit; a thing that is added comes last, before all others. Raises ValueError for an edit that
    names no thing of the scene, or of an unknown kind."""
    things = list(scene.things)
    for number in (edit.thing, edit.other):
        if number is not None and not 0 <= number < len(things):
            raise ValueError(f"the scene has {len(things)} things, the first is 0; there is no thing {number} to edit")
    if edit.kind == "restyle":
        assert edit.style is not None
        return replace(scene, style=edit.style)
    if edit.kind == "add":
        assert edit.new is not None
        return _with(scene, [*things, edit.new])
    if edit.kind not in KINDS:
        raise ValueError(f"edit of kind {edit.kind!r} is unknown; take one of {', '.join(KINDS)}")
    assert edit.thing is not None
    if edit.kind == "remove":
        del things[edit.thing]
    elif edit.kind == "swap":
        assert edit.other is not None
        one, other = things[edit.thing], things[edit.other]
        things[edit.thing], things[edit.other] = replace(one, colour=other.colour), replace(other, colour=one.colour)
    else:
        names = ("colour", "shape", "size", "radius", "x", "y")
        given = {name: getattr(edit, name) for name in names if getattr(edit, name) is not None}
        things[edit.thing] = replace(things[edit.thing], **given)
    return _with(scene, things)


def _with(scene: Scene, things: Sequence[Thing]) -> Scene:
    """The scene with these things."""
    unseen = any(held_out(thing.colour, thing.shape) is not None for thing in things)
    return replace(scene, things=tuple(things), unseen=unseen)


def fits(scene: Scene) -> bool:
    """Whether its things are within the canvas, apart from each other and from the lines between left, middle and
    right, and no two share colour and shape."""
    things = scene.things
    for i, thing in enumerate(things):
        within = all(thing.radius <= value <= 1 - thing.radius for value in (thing.x, thing.y))
        clear = all(abs(value - line) > CLEAR for value in (thing.x, thing.y) for line in (1 / 3, 2 / 3))
        apart = all(
            math.dist((thing.x, thing.y), (other.x, other.y)) > REACH * (thing.radius + other.radius)
            and (thing.colour, thing.shape) != (other.colour, other.shape)
            for other in things[:i]
        )
        if not (within and clear and apart):
            return False
    return True


def place(thing: Thing) -> str:
    """Where a thing is, in words: "at the top left"."""
    return language.grammar("en").place[f"{thing.row} {thing.column}"]


# ---- drawing


def draw_edit(draw: np.random.Generator, scene: Scene, kind: str, split: str, options: SceneOptions) -> Edit | None:
    """An edit of this kind after which the scene is one of the split and `fits`, or None where none was found. It
    changes something, and leaves one thing at least."""
    if kind not in KINDS:
        raise ValueError(f"edit of kind {kind!r} is unknown; take one of {', '.join(KINDS)}")
    allowed = set(options.pairs(split))
    for _ in range(TRIES):
        if (edit := DRAWN[kind](draw, scene, options)) is not None:
            after = apply(scene, edit)
            if fits(after) and all((thing.colour, thing.shape) in allowed for thing in after.things):
                return edit
    return None


def _recolour(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:
    number = int(draw.integers(len(scene.things)))
    others = [colour for colour in options.colours if colour != scene.things[number].colour]
    return Edit("recolour", number, colour=choose(draw, others)) if others else None


def _reshape(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:
    number = int(draw.integers(len(scene.things)))
    others = [shape for shape in options.shapes if shape != scene.things[number].shape]
    return Edit("reshape", number, shape=choose(draw, others)) if others else None


def _resize(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:
    number = int(draw.integers(len(scene.things)))
    others = [size for size in options.sizes if size != scene.things[number].size]
    if not others:
        return None
    size = choose(draw, others)
    return Edit("resize", number, size=size, radius=_radius(draw, size, options))


def _radius(draw: np.random.Generator, size: str, options: SceneOptions) -> float:
    most = min(count for count in RADII if count >= options.things[1])
    return float(draw.uniform(*RADII[most][SIZES.index(size)]))


def _move(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:  # noqa: ARG001
    number = int(draw.integers(len(scene.things)))
    thing = scene.things[number]
    x, y = _point(draw, thing.radius)
    return Edit("move", number, x=x, y=y) if place(replace(thing, x=x, y=y)) != place(thing) else None


def _point(draw: np.random.Generator, radius: float) -> tuple[float, float]:
    x, y = draw.uniform(radius + GAP, 1 - radius - GAP, 2).tolist()
    return x, y


def _remove(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:  # noqa: ARG001
    return Edit("remove", int(draw.integers(len(scene.things)))) if len(scene.things) > 1 else None


def _add(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:
    if len(scene.things) >= options.things[1]:
        return None
    size = choose(draw, options.sizes)
    radius = _radius(draw, size, options)
    x, y = _point(draw, radius)
    return Edit("add", new=Thing(choose(draw, options.shapes), choose(draw, options.colours), size, x, y, radius))


def _restyle(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:
    others = [style for style in options.styles if style != scene.style]
    return Edit("restyle", style=choose(draw, others)) if others else None


def _swap(draw: np.random.Generator, scene: Scene, options: SceneOptions) -> Edit | None:  # noqa: ARG001
    things = scene.things
    pairs = [(i, j) for i in range(len(things)) for j in range(len(things)) if things[i].colour != things[j].colour]
    if not pairs:
        return None
    one, other = choose(draw, pairs)
    return Edit("swap", one, other)


DRAWN: dict[str, Callable[[np.random.Generator, Scene, SceneOptions], Edit | None]] = {
    "recolour": _recolour,
    "reshape": _reshape,
    "resize": _resize,
    "move": _move,
    "remove": _remove,
    "add": _add,
    "restyle": _restyle,
    "swap": _swap,
}


def instruct(draw: np.random.Generator, scene: Scene, edit: Edit, split: str) -> tuple[str, bool]:
    """The edit of a scene in words, and whether in a template that training never has: half of those of validation
    and test."""
    new = draw_new(draw, split)
    words = template(draw, TEMPLATES[edit.kind], split, new)
    numbers = {"thing": edit.thing, "other": edit.other}
    said = {key: language.phrase(scene.things[i], scene, "en") for key, i in numbers.items() if i is not None}
    said |= {key: value for key in ("colour", "size", "style") if (value := getattr(edit, key)) is not None}
    if edit.shape is not None:
        said["shape"] = article(edit.shape)
    if edit.new is not None:
        said["new"] = article(describe(edit.new))
    if edit.kind in ("move", "add"):
        said["place"] = place(apply(scene, edit).things[-1 if edit.thing is None else edit.thing])
    return words.format(**said), new


# ---- scoring


def read_style(pixels: pictures.Pixels, things: Sequence[Seen]) -> str | None:
    """How the things of a picture (H, H, 3) are drawn: the one of STYLES in which a drawing of them is most like it,
    sharp or blurred.

    things: those of the picture, of its scene or as read from its pixels; without any there is no style."""
    size = len(pixels)
    copies = tuple(Thing(seen.shape, seen.colour, seen.size, seen.x, seen.y, seen.radius) for seen in things)
    shown = pictures.masks(Scene(copies), size).any(0) if copies else np.zeros((size, size), bool)
    if not shown.any():
        return None
    level = int(np.median(pixels[~shown]))
    errors = {}
    for style in STYLES:
        drawn = pictures.render(Scene(copies, style, Background("plain", (level, level))), size).astype(float)
        for blur in range(BLURS):
            errors[style, blur] = float(((drawn - pixels)[shown] ** 2).sum())
            for axis in (0, 1):
                drawn = (np.roll(drawn, 1, axis) + 2 * drawn + np.roll(drawn, -1, axis)) / 4
    return min(errors, key=lambda key: errors[key])[0]


def verify(before: Scene, after: Sequence[Seen], edit: Edit, style: str | None = None) -> dict[str, float]:
    """How well the things of a picture are those of a scene after an edit.

    Args:
        before: the true scene.
        after: the things of the edited picture, of a scene or as read from pixels, in any order.
        edit: what was asked for.
        style: of the edited picture, from its scene or by `read_style`; only "restyle" needs it.

    Returns "changed": 1 where what was asked for is so, else 0 (as for "restyle" without a style), and "kept": the
    share of the attributes of all things that were not asked to change (shape, colour, size and whether it is where it
    was) that are as before; a thing too many counts as one whose four attributes are wrong. To copy the input gives 0
    and 1.
    """
    wanted = apply(before, edit)
    partners = _partners(wanted.things, after)
    asked = _asked(before, edit)
    hits, total = 0, 0
    changed = edit.kind != "restyle" or style == edit.style
    for number, thing in enumerate(wanted.things):
        found = partners.get(number)
        for name in ("shape", "colour", "size", "place"):
            right = found is not None and _agrees(found, thing, name)
            if (number, name) in asked:
                changed &= right
            else:
                hits, total = hits + right, total + 1
    extra = len(after) - len(partners)
    if edit.kind == "remove":
        assert edit.thing is not None
        gone = before.things[edit.thing]
        looks = (gone.shape, gone.colour)  # which no other thing of a scene has
        still_there = any((seen.shape, seen.colour) == looks or _far(seen, gone) < NEAR for seen in after)
        changed, extra = not still_there, extra - still_there
    return {"changed": float(changed), "kept": hits / max(total + 4 * max(extra, 0), 1)}


def _asked(before: Scene, edit: Edit) -> set[tuple[int, str]]:
    """(number of a thing, attribute) of all that an edit is to change."""
    attribute = {"recolour": "colour", "reshape": "shape", "resize": "size", "move": "place", "swap": "colour"}
    if edit.kind == "add":
        return {(len(before.things), name) for name in ("shape", "colour", "size", "place")}
    if edit.kind not in attribute:
        return set()
    return {(n, attribute[edit.kind]) for n in (edit.thing, edit.other) if n is not None}


def _agrees(found: Seen, thing: Thing, name: str) -> bool:
    """Places agree to the ninth of the canvas, for an instruction says no more."""
    if name != "place":
        return bool(getattr(found, name) == getattr(thing, name))
    return [min(int(3 * value), 2) for value in (found.x, found.y)] == [min(int(3 * v), 2) for v in (thing.x, thing.y)]


def _partners(things: Sequence[Thing], seen: Sequence[Seen]) -> dict[int, Seen]:
    """For each thing the one that is most like it, nearest pairs of equal look first; each is taken once."""
    pairs = sorted(
        (_unlike(found, thing), number, index)
        for number, thing in enumerate(things)
        for index, found in enumerate(seen)
    )
    partners: dict[int, Seen] = {}
    taken: set[int] = set()
    for _, number, index in pairs:
        if number not in partners and index not in taken:
            partners[number] = seen[index]
            taken.add(index)
    return partners


def _unlike(found: Seen, thing: Thing) -> float:
    """Wrong attributes, of which a place beyond NEAR is one, and among equals how far it is."""
    wrong = sum(getattr(found, name) != getattr(thing, name) for name in ("shape", "colour", "size"))
    return wrong + (_far(found, thing) > NEAR) + _far(found, thing) / 100


def _far(one: Seen, other: Seen) -> float:
    return math.dist((one.x, one.y), (other.x, other.y))


# ---- the source


class WorldEdits(WorldSource):
    """Instructions to edit a picture.

    Members: "0.jpg" and "1.jpg" (before and after), "txt" (the instruction), "json": "before" and "after" (scenes),
    "edit" (see `Edit`), "instruction", "unseen" (whether training never has the template or a pair of colour and shape
    of either scene), "unseen_template".

    Args:
        train, validation, test: how many edits.
        seed: another seed gives other ones.
        size: pixels of a side, 32 to 256.
        things: fewest and most in a picture before the edit, up to 9; "remove" may leave one less, "add" makes no more.
        kinds: what is done, of KINDS.
        shapes, colours, styles, backgrounds: what there may be, by default all of `mmflow.world.scene`.
    """

    def __init__(
        self,
        train: int = 5000,
        validation: int = 500,
        test: int = 500,
        seed: int = 0,
        size: int = 64,
        things: tuple[int, int] = (1, 4),
        kinds: Sequence[str] = KINDS,
        shapes: list[str] | None = None,
        colours: list[str] | None = None,
        styles: list[str] | None = None,
        backgrounds: list[str] | None = None,
    ) -> None:
        super().__init__(train, validation, test, seed)
        check_picture(size, "jpg")
        check_chosen("kinds", kinds, KINDS)
        self.size, self.kinds = size, list(kinds)
        self.scenes = scene_options(things, shapes, colours, styles, backgrounds)
        for kind in self.kinds:
            if not all(self._possible(kind, split) for split in SPLITS):
                raise ValueError(
                    f"an edit of kind {kind!r} is not possible with things={things}, {len(self.scenes.shapes)} shapes, "
                    f"{len(self.scenes.colours)} colours and {len(self.scenes.styles)} styles; leave it out of kinds, "
                    f"or allow more"
                )

    def _possible(self, kind: str, split: str) -> bool:
        try:
            self._drawn(np.random.default_rng(0), kind, split)
        except ValueError:
            return False
        return True

    def _drawn(self, draw: np.random.Generator, kind: str, split: str) -> tuple[Scene, Edit]:
        """A scene, and an edit of it."""
        for _ in range(TRIES):
            scene = draw_scene(draw, split, self.scenes)
            if (edit := draw_edit(draw, scene, kind, split, self.scenes)) is not None:
                return scene, edit
        raise ValueError(f"no scene was found with room for an edit of kind {kind!r}; allow fewer things")

    def bytes_each(self) -> int:
        """About the bytes of two pictures and what belongs to them."""
        return 2 * picture_bytes(self.size, "jpg") + 2000

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A scene before and after an edit."""
        draw = self.draw(STREAM, split, number)
        before, edit = self._drawn(draw, choose(draw, self.kinds), split)
        after = apply(before, edit)
        instruction, new = instruct(draw, before, edit, split)
        return {
            "0.jpg": pictures.encode(pictures.render(before, self.size)),
            "1.jpg": pictures.encode(pictures.render(after, self.size)),
            "txt": instruction,
            "json": {
                "before": before.as_json(),
                "after": after.as_json(),
                "edit": edit.as_json(),
                "instruction": instruction,
                "unseen": before.unseen or after.unseen or new,
                "unseen_template": new,
            },
        }
