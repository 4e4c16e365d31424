"""Pictures of scenes that do not move, with captions, boxes and masks, or with the maps of their structure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmflow.data.sources.items import Item
from mmflow.world import language, pictures
from mmflow.world.scene import BACKGROUNDS, COLOURS, SHAPES, SPLITS, STYLES, Scene, SceneOptions, choose, draw_scene

PICTURES_STREAM, STRUCTURES_STREAM = 10, 11  # what a sample's generator is for
SIDES = (32, 256)  # pixels, least and most
KINDS = ("segmentation", "edges", "skeleton")
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
            if count < 0:
                raise ValueError(f"{split}={count} must be 0 (no such split) or more")
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
    thing shape, keypoints in pixels and the pairs of them that bones join), "unseen".

    Maps: "segmentation" has a colour for each shape (PALETTE), "edges" is white where things end, "skeleton" has grey
    bones and white keypoints.

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
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds={list(kinds)} must be one or more of {', '.join(KINDS)}, each once")
        self.size, self.kinds = size, list(kinds)
        self.scenes = scene_options(things, shapes, colours, styles, backgrounds)

    def bytes_each(self) -> int:
        """About the bytes of a picture, its maps and what belongs to it."""
        return picture_bytes(self.size, "jpg") + len(self.kinds) * (600 + self.size**2 // 20) + 2500

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A picture and its maps."""
        draw = self.draw(STRUCTURES_STREAM, split, number)
        scene = draw_scene(draw, split, self.scenes)
        caption = ", ".join(f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.things)
        maps = {kind: f"{i}.png" for i, kind in enumerate(self.kinds, 1)}
        drawn = {name: pictures.encode(structure(scene, self.size, kind), "png") for kind, name in maps.items()}
        pairs = []
        for kind, name in maps.items():
            back = f"{choose(draw, TO_PICTURE).format(kind=NAMES[kind])}: {caption}"
            there = choose(draw, TO_MAP).format(kind=NAMES[kind])
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
                "unseen": scene.unseen,
            },
        }


NAMES = {"segmentation": "segmentation map", "edges": "outlines", "skeleton": "skeletons"}
TO_PICTURE = ("make a picture from the {kind}", "fill in the {kind}", "paint a picture with the {kind} given")
TO_MAP = ("draw the {kind} of this picture", "find the {kind} of this picture", "show the {kind} of this picture")


def structure(scene: Scene, size: int, kind: str) -> np.ndarray:
    """A map of the scene as a picture: (size, size, 3) for segmentation, (size, size) for edges and skeleton."""
    if kind == "segmentation":
        return PALETTE[pictures.segmentation(scene, size, by="shape")]
    if kind == "edges":
        return pictures.edges(scene, size).astype(np.uint8) * 255
    if kind == "skeleton":
        return pictures.skeleton(scene, size)
    raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")


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
