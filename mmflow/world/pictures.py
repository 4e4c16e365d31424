"""Scenes to pixels: anti-aliased shapes on a background, and what belongs to them pixel by pixel.

Only operations that IEEE 754 rounds in one way are used where it matters, so that pictures are the same everywhere.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmflow.world.scene import COLOURS, SHAPES, Background, Scene, Thing

Pixels = NDArray[np.uint8]  # (H, W, 3)
Plane = NDArray[np.floating]  # (H, W)
Labels = NDArray[np.uint8]  # (H, W)

FORMATS = ("jpg", "png")
QUALITY = 92  # of JPEG; colours have the full resolution, for half of it is too coarse for small pictures

RIM = 0.16  # width of an outline in radii
FLASH_RIM = 0.14  # width in radii of the white rim of a thing that flashes
STRIPE = 0.5  # width of a pair of stripes in radii
BONE = 0.012  # width of a bone of a skeleton in canvas widths, though a pixel at least
BONE_LEVEL = 140  # grey level of bones; keypoints are white


def _around(count: int, radius: float) -> tuple[tuple[float, float], ...]:
    """Points at equal angles on a circle, the first one at the top."""
    angles = (2 * math.pi * i / count for i in range(count))
    return tuple((radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles)


# Keypoints of each shape in radii from its centre, and the pairs of them that bones join. No two shapes look alike: a
# circle is a star of six, a square an x, a triangle a y, a cross a +, ring and diamond are closed.
KEYPOINTS: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": ((0, 0), *_around(6, 1)),
    "square": ((0, 0), (-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, 0.2), (0, -1), (0.9, 0.8), (-0.9, 0.8)),
    "cross": ((0, 0), *_around(4, 1)),
    "ring": _around(8, 0.775),
    "diamond": _around(4, 1),
}
BONES = {
    shape: [(i, (i + 1) % len(points)) for i in range(len(points))]
    if shape in ("ring", "diamond")
    else [(0, i) for i in range(1, len(points))]
    for shape, points in KEYPOINTS.items()
}


def distance(shape: str, dx: Plane, dy: Plane) -> Plane:
    """Signed distance to the outline of a shape in its radii, negative inside, for offsets from its centre in radii.

    The areas are 3.1 (circle), 2.9 (square), 1.6 (triangle), 2.0 (cross), 2.2 (ring) and 2.0 (diamond) squared radii.
    """
    across, down = np.abs(dx), np.abs(dy)
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - 1
    if shape == "ring":
        return np.abs(np.sqrt(dx * dx + dy * dy) - 0.775) - 0.225
    if shape == "square":
        return np.maximum(across, down) - 0.85
    if shape == "triangle":
        return np.maximum(dy - 0.8, (2 * across - 1 - dy) / np.float32(5**0.5))
    if shape == "cross":
        return np.minimum(np.maximum(across - 0.3, down - 1), np.maximum(across - 1, down - 0.3))
    if shape == "diamond":
        return (across + down - 1) / np.float32(2**0.5)
    raise ValueError(f"shape {shape!r} is unknown")


def render(scene: Scene, size: int, time: float = 0.0) -> Pixels:
    """The scene at a time as an RGB picture (size, size, 3)."""
    canvas = backdrop(scene.background, size)
    for thing in scene.things:
        draw_thing(canvas, thing, scene.style, time)
    return (canvas + np.float32(0.5)).astype(np.uint8)


def masks(scene: Scene, size: int, time: float = 0.0) -> NDArray[np.bool_]:
    """(N, size, size): the pixels that show each thing, those behind others left out; a pixel counts from half on."""
    planes = np.zeros((len(scene.things), size, size), dtype=bool)
    for number, thing in enumerate(scene.things):
        rows, columns, dx, dy = _offsets(thing, size, time)
        shown = distance(thing.shape, dx, dy) < 0
        planes[:number, rows, columns] &= ~shown
        planes[number, rows, columns] = shown
    return planes


def boxes(scene: Scene, size: int, time: float = 0.0) -> NDArray[np.int64]:
    """(N, 4): left, top, width and height in pixels of what shows of each thing; zeros for one that is all hidden."""
    found = np.zeros((len(scene.things), 4), np.int64)
    for number, mask in enumerate(masks(scene, size, time)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            found[number] = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    return found


def segmentation(scene: Scene, size: int, time: float = 0.0, by: str = "thing") -> Labels:
    """(size, size): 0 where the background shows, i + 1 where thing i does or, by "shape", one of SHAPES[i].

    Raises ValueError for another `by`.
    """
    if by not in ("thing", "shape"):
        raise ValueError(f"by={by!r} must be thing or shape")
    labels = np.zeros((size, size), np.uint8)
    for number, (thing, mask) in enumerate(zip(scene.things, masks(scene, size, time), strict=True)):
        labels[mask] = 1 + (number if by == "thing" else SHAPES.index(thing.shape))
    return labels


def edges(scene: Scene, size: int, time: float = 0.0) -> NDArray[np.bool_]:
    """(size, size): the outermost pixels of each thing that shows, where its neighbour to any side shows none of it."""
    outline = np.zeros((size, size), np.bool_)
    for mask in masks(scene, size, time):
        wide = np.pad(mask, 1)
        outline |= mask & ~(wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:])
    return outline


def keypoints(thing: Thing, time: float = 0.0) -> list[tuple[float, float]]:
    """Places of the keypoints of a thing (KEYPOINTS) in canvas widths."""
    x, y = thing.at(time)
    return [(x + thing.radius * across, y + thing.radius * down) for across, down in KEYPOINTS[thing.shape]]


def skeleton(scene: Scene, size: int, time: float = 0.0) -> Labels:
    """(size, size): grey bones and white keypoints of all things on black; what is hidden is drawn too."""
    canvas = np.zeros((size, size), np.float32)
    half = max(BONE * size, 1) / 2  # pixels
    for thing in scene.things:
        rows, columns, dx, dy = _offsets(thing, size, time)
        pixel = thing.radius * size
        points = KEYPOINTS[thing.shape]
        away = np.sqrt(np.min([squared_distance(dx, dy, points[i], points[j]) for i, j in BONES[thing.shape]], axis=0))
        near = np.sqrt(np.min([(dx - x) ** 2 + (dy - y) ** 2 for x, y in points], axis=0))
        drawn = np.maximum(BONE_LEVEL * _step(half - away * pixel), 255 * _step(1.8 * half - near * pixel))
        canvas[rows, columns] = np.maximum(canvas[rows, columns], drawn)
    return (canvas + np.float32(0.5)).astype(np.uint8)


def squared_distance(dx: Plane, dy: Plane, start: tuple[float, float], end: tuple[float, float]) -> Plane:
    """Squared distance of each place to the line between two points, all in one unit."""
    along_x, along_y = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    from_x, from_y = dx - np.float32(start[0]), dy - np.float32(start[1])
    part = np.clip((from_x * along_x + from_y * along_y) / (along_x**2 + along_y**2), 0, 1)
    return (from_x - part * along_x) ** 2 + (from_y - part * along_y) ** 2


def encode(pixels: NDArray[np.uint8], format: str = "jpg") -> bytes:
    """A file of the picture (H, W, 3) RGB or (H, W) grey; the same pixels give the same bytes.

    Raises ValueError for a format but jpg and png, and for anything but 8 bits of such a shape.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}")
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)) or pixels.ndim < 2:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; give uint8 (H, W, 3) or (H, W)")
    file = io.BytesIO()
    if format == "jpg":
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
    else:
        Image.fromarray(pixels).save(file, "PNG", compress_level=6)
    return file.getvalue()


def backdrop(background: Background, size: int) -> NDArray[np.float32]:
    """Grey levels (size, size, 3) of a background."""
    first, second = background.levels
    if background.kind == "plain":
        plane: Plane = np.full((size, size), first, np.float32)
    else:
        plane = first + (second - first) * _texture(background, size)
    return np.repeat(plane[..., None], 3, axis=2)


def _texture(background: Background, size: int) -> Plane:
    """Values in 0..1."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    if background.kind == "gradient":
        angle = 2 * math.pi * (background.seed % 360) / 360
        along = math.cos(angle) * (at - 0.5)[None] + math.sin(angle) * (at - 0.5)[:, None]
        return (along / 1.42 + 0.5).astype(np.float32)
    if background.kind == "checks":
        odd = (at * 8).astype(int) % 2
        return (odd[None] ^ odd[:, None]).astype(np.float32)
    # noise: a coarse lattice of random values, interpolated
    lattice = np.random.default_rng(background.seed).random((9, 9), dtype=np.float32)
    place = at * 8
    low = place.astype(int)
    part = place - low
    across = lattice[:, low] * (1 - part) + lattice[:, low + 1] * part
    return across[low] * (1 - part)[:, None] + across[low + 1] * part[:, None]


def draw_thing(canvas: NDArray[np.float32], thing: Thing, style: str, time: float = 0.0) -> None:
    """Paint a thing over the canvas (H, W, 3); while it flashes it is lighter, with a white rim."""
    size = len(canvas)
    rows, columns, dx, dy = _offsets(thing, size, time)
    away = distance(thing.shape, dx, dy)
    pixel = thing.radius * size  # per radius
    paint: NDArray[np.floating] = np.broadcast_to(np.array(COLOURS[thing.colour], np.float32), (*away.shape, 3))
    if style == "shaded":
        paint = paint * np.clip(0.86 - 0.14 * (dx + dy), 0.6, 1)[..., None]
    elif style == "striped":
        stripe = np.abs((dx - dy) / np.float32(STRIPE * 2**0.5) % 1 - 0.5) * 2  # 0..1 and back
        paint = paint * (1 - 0.3 * _step((0.5 - stripe) * (STRIPE * 2**0.5 / 2) * pixel))[..., None]
    elif style == "outlined":
        paint = paint * (1 - 0.45 * _step((away + RIM) * pixel))[..., None]
    if any(sound.seen and sound.start <= time < sound.end for sound in thing.sounds):
        rim = _step((away + FLASH_RIM) * pixel)[..., None]
        paint = paint + (255 - paint) * (0.25 + 0.75 * rim)
    cover = _step(-away * pixel)[..., None]
    canvas[rows, columns] += cover * (paint - canvas[rows, columns])


def _step(pixels: Plane) -> Plane:
    """From 0 to 1 over one pixel about 0: how much of a pixel lies beyond an edge."""
    return np.clip(pixels + np.float32(0.5), 0, 1)


def _offsets(thing: Thing, size: int, time: float) -> tuple[slice, slice, Plane, Plane]:
    """The rows and columns that a thing may touch, and their offsets (H, 1), (1, W) broadcast, in its radii."""
    x, y = thing.at(time)
    low_x, high_x = (
        int(np.clip(value, 0, size)) for value in ((x - thing.radius) * size - 1, (x + thing.radius) * size + 2)
    )
    low_y, high_y = (
        int(np.clip(value, 0, size)) for value in ((y - thing.radius) * size - 1, (y + thing.radius) * size + 2)
    )
    across = ((np.arange(low_x, high_x, dtype=np.float32) + 0.5) / size - x) / thing.radius
    down = ((np.arange(low_y, high_y, dtype=np.float32) + 0.5) / size - y) / thing.radius
    dx, dy = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
    return slice(low_y, high_y), slice(low_x, high_x), dx, dy
