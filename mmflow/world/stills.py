"""Pictures of scenes that do not move, with captions, boxes and masks, or with the maps of their structure."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmflow.data.sources.items import Item
from mmflow.world import language, pictures
from mmflow.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SPLITS,
    STYLES,
    Scene,
    SceneOptions,
    check_chosen,
    draw_scene,
)
from mmflow.world.wording import draw_new, template

PICTURES_STREAM, STRUCTURES_STREAM = 10, 11  # what a sample's generator is for
SIDES = (32, 256)  # pixels, least and most
KINDS = ("segmentation", "edges", "skeleton")
CLOSE = 0.025  # canvas widths that a keypoint may be from its true place
WHITEST_BONE = 165  # grey level; what is above it is a keypoint, at 64 pixels or more
MOST_SAMPLES = 10_000_000  # of a split
CAPTIONS = 3  # short ones of a picture, besides a long one
# Colours of a segmentation map, RGB, by the number in `mmflow.world.pictures.segmentation`: none of a thing's paints.
PALETTE = np.array(
    [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)], np.uint8
)


class WorldSource(ABC):
    """Samples of any number from a seed; what one is like is up to `sample`.

    Args:
        train, validation, test: how many samples.
        seed: another seed gives others.
    """

    def __init__(self, train: int, validation: int, test: int, seed: int) -> None:
        self.counts = dict(zip(SPLITS, (train, validation, test), strict=True))
        for split, count in self.counts.items():
            if not 0 <= count <= MOST_SAMPLES:
                raise ValueError(f"{split}={count} must be in 0..{MOST_SAMPLES:,}; 0 is no such split")
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or more")
        self.seed = seed

    def items(self, root: Path | None = None) -> list[Item]:  # noqa: ARG002  (made, not read)
        """The samples, split by split; `root` is not used, for nothing is read."""
        return [
            Made(f"{split}-{number:06d}", split, self.group(split, number), source=self, number=number)
            for split, count in self.counts.items()
            for number in range(count)
        ]

    def group(self, split: str, number: int) -> str:
        """What samples must have in common to belong together; by default each is alone."""
        return f"{split}-{number:06d}"

    def draw(self, stream: int, split: str, number: int) -> np.random.Generator:
        """The generator of a sample."""
        return np.random.default_rng([self.seed, stream, SPLITS.index(split), number])

    @abstractmethod
    def bytes_each(self) -> int:
        """About the bytes of a sample."""

    @abstractmethod
    def sample(self, split: str, number: int) -> dict[str, Any]:
        """The members of a sample but its key: a pure function of the source's options, split and number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(Item):
    """A sample that is made when it is asked for."""

    source: WorldSource
    number: int

    @property
    def size(self) -> int:
        """About the bytes it takes."""
        return self.source.bytes_each()

    def sample(self) -> dict[str, Any]:
        """The sample; makes it."""
        return {"__key__": self.key, **self.source.sample(self.split, self.number)}


class WorldPictures(WorldSource):
    """Pictures of scenes.

    Members: "jpg" or "png", "txt" (a short caption), "mask.png" if asked for (0 where the background shows, i + 1 where
    thing i does), and "json": "scene", "captions" (the text, further short ones, a long one), "objects" (see
    `objects`), "class" and "label" (name and number of the shape of the biggest thing), "unseen".

    Args:
        train, validation, test: how many pictures.
        seed: another seed gives other pictures.
        size: pixels of a side, 32 to 256.
        things: fewest and most in a picture, up to 9.
        format: jpg or png.
        masks: whether there are masks.
        shapes, colours, styles, backgrounds: what there may be, by default all of `mmflow.world.scene`.
    """

    def __init__(
        self,
        train: int = 20_000,
        validation: int = 1000,
        test: int = 1000,
        seed: int = 0,
        size: int = 64,
        things: tuple[int, int] = (1, 4),
        format: str = "jpg",
        masks: bool = False,
        shapes: list[str] | None = None,
        colours: list[str] | None = None,
        styles: list[str] | None = None,
        backgrounds: list[str] | None = None,
    ) -> None:
        super().__init__(train, validation, test, seed)
        check_picture(size, format)
        self.size, self.format, self.masks = size, format, masks
        self.scenes = scene_options(things, shapes, colours, styles, backgrounds)

    def bytes_each(self) -> int:
        """About the bytes of a picture and what belongs to it."""
        return picture_bytes(self.size, self.format) + 1500

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A picture with all that is known about it."""
        draw = self.draw(PICTURES_STREAM, split, number)
        scene = draw_scene(draw, split, self.scenes)
        captions = captions_of(scene, draw, split)
        biggest = max(scene.things, key=lambda thing: thing.radius).shape
        found: dict[str, Any] = {
            self.format: pictures.encode(pictures.render(scene, self.size), self.format),
            "txt": captions[0],
        }
        if self.masks:
            found["mask.png"] = pictures.encode(pictures.segmentation(scene, self.size), "png")
        found["json"] = {
            "scene": scene.as_json(),
            "captions": captions,
            "objects": objects(scene, self.size),
            "class": biggest,
            "label": SHAPES.index(biggest),
            "unseen": scene.unseen,
        }
        return found


class WorldStructures(WorldSource):
    """Pictures and the maps of their structure, to make the one from the other.

    Members: "0.jpg" (the picture), "1.png", "2.png", ... (a map of each of the `kinds` in their order), "txt" (what
    there is to see), and "json": "scene", "maps" (kind -> member), "pairs" ({kind, source, target, instruction}: from a
    map, with the colours that it does not tell, to the picture and from the picture to a map), "skeletons" (of each
    thing shape, keypoints in pixels and the pairs of them that bones join), "unseen" (whether training never has a pair
    of colour and shape or the templates of the instructions), "unseen_template".

    Maps: "segmentation" has a colour for each shape (PALETTE), "edges" is white where things end, "skeleton" has grey
    bones and white keypoints. `score_structure` tells how good one is that something else has drawn.

    Args:
        train, validation, test: how many pictures.
        seed: another seed gives other pictures.
        size: pixels of a side, 32 to 256.
        things: fewest and most in a picture, up to 9.
        kinds: maps that there are.
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

    def bytes_each(self) -> int:
        """About the bytes of a picture, its maps and what belongs to it."""
        return picture_bytes(self.size, "jpg") + len(self.kinds) * (600 + self.size**2 // 20) + 2500

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A picture and its maps."""
        draw = self.draw(STRUCTURES_STREAM, split, number)
        scene = draw_scene(draw, split, self.scenes)
        new = draw_new(draw, split)
        caption = ", ".join(f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.things)
        maps = {kind: f"{i}.png" for i, kind in enumerate(self.kinds, 1)}
        drawn = {name: pictures.encode(structure(scene, self.size, kind), "png") for kind, name in maps.items()}
        pairs = []
        for kind, name in maps.items():
            back = f"{template(draw, TO_PICTURE, split, new).format(kind=NAMES[kind])}: {caption}"
            there = template(draw, TO_MAP, split, new).format(kind=NAMES[kind])
            pairs.append({"kind": kind, "source": name, "target": "0.jpg", "instruction": back})
            pairs.append({"kind": kind, "source": "0.jpg", "target": name, "instruction": there})
        skeletons = [
            {
                "shape": thing.shape,
                "keypoints": [[round(self.size * x, 2), round(self.size * y, 2)] for x, y in pictures.keypoints(thing)],
                "bones": [list(pair) for pair in pictures.BONES[thing.shape]],
            }
            for thing in scene.things
        ]
        return {
            "0.jpg": pictures.encode(pictures.render(scene, self.size)),
            **drawn,
            "txt": caption,
            "json": {
                "scene": scene.as_json(),
                "maps": maps,
                "pairs": pairs,
                "skeletons": skeletons,
                "unseen": scene.unseen or new,
                "unseen_template": new,
            },
        }


NAMES = {"segmentation": "segmentation map", "edges": "outline", "skeleton": "skeleton"}
# The last template is the test's own, the one before validation's; training has the rest.
TO_PICTURE = (
    "make a picture from the {kind}", "fill in the {kind}", "paint a picture with this {kind}",
    "turn the {kind} into a picture", "draw a picture that has this {kind}",
)  # fmt: skip
TO_MAP = (
    "draw the {kind} of this picture", "find the {kind} of this picture", "show the {kind} of this picture",
    "turn this picture into its {kind}", "what is the {kind} of this picture",
)  # fmt: skip


def structure(scene: Scene, size: int, kind: str) -> np.ndarray:
    """A map of the scene as a picture: (size, size, 3) for segmentation, (size, size) for edges and skeleton."""
    if kind == "segmentation":
        return PALETTE[pictures.segmentation(scene, size, by="shape")]
    if kind == "edges":
        return pictures.edges(scene, size).astype(np.uint8) * 255
    if kind == "skeleton":
        return pictures.skeleton(scene, size)
    raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")


def score_structure(pixels: np.ndarray, scene: Scene, kind: str) -> dict[str, float]:
    """How well a map agrees with that of a scene, in numbers from 0 to 1.

    Args:
        pixels: the map, (H, H, 3) or (H, H) uint8; colours and greys need not be exact.
        scene: the true one, at its beginning.
        kind: one of KINDS.

    Returns, for "segmentation", "pixels" (the share that is right), "iou" (the mean over the shapes that are in either
    map) and "things" (the share that mostly have the colour of their shape); for "edges" "precision", "recall" and "f1"
    of edge pixels, one pixel beside the true place being right; for "skeleton" the same of keypoints, right where they
    are at most CLOSE apart, and "things" (the share of which all are found). The true map has 1 in all, but keypoints
    run together in pictures of 32 pixels with several things and of 64 with more than 4.

    Raises ValueError for another kind, and for a map that is not square or not of 8 bits.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    square = pixels.ndim in (2, 3) and pixels.shape[0] == pixels.shape[1] and pixels.shape[2:] in ((), (3,))
    if not square or pixels.dtype != np.uint8:
        raise ValueError(f"a map of {pixels.dtype} {pixels.shape} must be uint8 (H, H, 3) or (H, H)")
    size = len(pixels)
    if kind == "segmentation":
        found, true = read_segmentation(pixels), pictures.segmentation(scene, size, by="shape")
        present = [label for label in range(1, len(PALETTE)) if (found == label).any() or (true == label).any()]
        both = [((found == n) & (true == n)).sum() / ((found == n) | (true == n)).sum() for n in present]
        named = [
            np.bincount(found[mask], minlength=1).argmax() == 1 + SHAPES.index(thing.shape)
            for thing, mask in zip(scene.things, pictures.masks(scene, size), strict=True)
        ]
        return {"pixels": float((found == true).mean()), "iou": float(np.mean(both)), "things": float(np.mean(named))}
    if kind == "edges":
        drawn, outline = _grey(pixels) > 127, pictures.edges(scene, size)
        return _f1(drawn[_grown(outline)], outline[_grown(drawn)], drawn.sum(), outline.sum())
    wanted = [pictures.keypoints(thing) for thing in scene.things]
    points = read_skeleton(pixels)
    hits: list[list[bool]] = []
    for own in wanted:  # each found point is taken once
        hits.append([])
        for point in own:
            near = min(points, key=lambda other: math.dist(point, other), default=None)
            hits[-1].append(near is not None and math.dist(point, near) <= CLOSE)
            points = [other for other in points if other is not near] if hits[-1][-1] else points
    right = [hit for own in hits for hit in own]
    scores = _f1(right, right, sum(right) + len(points), len(right))
    return scores | {"things": float(np.mean([all(own) for own in hits]))}


def read_segmentation(pixels: np.ndarray) -> np.ndarray:
    """(H, W) out of a segmentation map (H, W, 3): the nearest of PALETTE, 0 for none or 1 + the number of a shape."""
    if pixels.shape[2:] != (3,):
        raise ValueError(f"a segmentation map of shape {pixels.shape} must be (H, W, 3), for colours tell the shapes")
    far = ((pixels[..., None, :].astype(int) - PALETTE) ** 2).sum(-1)  # (H, W, C)
    return far.argmin(-1)


def read_skeleton(pixels: np.ndarray) -> list[tuple[float, float]]:
    """The keypoints (x, y) of a map of skeletons (H, H[, 3]), in canvas widths: where it is whiter than bones are."""
    level = np.pad(_grey(pixels).astype(float), 1)
    size = len(pixels)
    reach = 0.9 * max(pictures.BONE * size, 1) + 0.5  # pixels, of a keypoint's disc
    row, column = np.indices(level.shape)
    points = []
    while level.max() > WHITEST_BONE:
        y, x = (float(at) for at in np.unravel_index(level.argmax(), level.shape))
        for _ in range(3):  # to the middle of the disc
            weight = np.where((column - x) ** 2 + (row - y) ** 2 <= (reach + 0.5) ** 2, level - pictures.BONE_LEVEL, 0)
            weight = weight.clip(0)
            x, y = (float((at * weight).sum() / weight.sum()) for at in (column, row))
        level[(column - x) ** 2 + (row - y) ** 2 <= (reach + 1) ** 2] = 0
        points.append(((x - 0.5) / size, (y - 0.5) / size))  # the padding is one pixel, a pixel's middle half of one
    return points


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else pixels.mean(-1)


def _grown(plane: np.ndarray) -> np.ndarray:
    """With the eight neighbours of each pixel."""
    wide = np.pad(plane, 1)
    return np.any([wide[i : i + len(plane), j : j + len(plane)] for i in range(3) for j in range(3)], axis=0)


def _f1(precise: Any, recalled: Any, found: int, true: int) -> dict[str, float]:
    """From what is right of `found` ones and what is found of `true` ones; nothing found is not precise."""
    precision, recall = float(np.sum(precise)) / max(found, 1), float(np.sum(recalled)) / max(true, 1)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def objects(scene: Scene, size: int) -> list[dict[str, Any]]:
    """The things of a scene as COCO's objects are told: "class" (shape), "label" (its number), "box" ([left, top,
    width, height] in pixels, of what shows), "area" (square pixels), and here also "colour" and "size"."""
    areas = pictures.masks(scene, size).sum((1, 2)).tolist()
    boxes = pictures.boxes(scene, size).tolist()
    return [
        {"class": thing.shape, "label": SHAPES.index(thing.shape), "box": box, "area": area}
        | {"colour": thing.colour, "size": thing.size}
        for thing, box, area in zip(scene.things, boxes, areas, strict=True)
    ]


def check_picture(size: int, format: str) -> None:
    """Raise ValueError for a size or a format that pictures cannot have."""
    if not SIDES[0] <= size <= SIDES[1]:
        raise ValueError(f"size={size} pixels must be in {SIDES[0]}..{SIDES[1]}; smaller shapes cannot be told apart")
    if format not in pictures.FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(pictures.FORMATS)}")


def scene_options(
    things: tuple[int, int],
    shapes: list[str] | None,
    colours: list[str] | None,
    styles: list[str] | None,
    backgrounds: list[str] | None,
) -> SceneOptions:
    """Options of stills; None stands for all there are."""
    return SceneOptions(
        (things[0], things[1]),
        shapes=SHAPES if shapes is None else shapes,
        colours=tuple(COLOURS) if colours is None else colours,
        styles=STYLES if styles is None else styles,
        backgrounds=BACKGROUNDS if backgrounds is None else backgrounds,
    )


def picture_bytes(size: int, format: str) -> int:
    """About the bytes of a picture's file."""
    return 700 + size**2 // (3 if format == "jpg" else 2)


def captions_of(scene: Scene, draw: np.random.Generator, split: str) -> list[str]:
    """Several different captions, short ones and then a long one."""
    short = [language.caption(scene, draw, split=split) for _ in range(CAPTIONS)]
    return list(dict.fromkeys([*short, language.caption(scene, draw, split=split, long=True)]))
