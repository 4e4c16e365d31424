"""The truth back out of pictures in the world's style, so that what models make can be scored.

No part is trained. A picture is taken apart by colour: backgrounds are grey and dark, so the angle of a pixel's colour
on the colour circle depends neither on shading nor on what shines through at an edge. Each patch of one colour is
compared with drawings of all shapes, styles and amounts of blur (`mmflow.world.templates`).

Of all things, so many are found with the right shape, colour, size and place (the slow tests; 400 to 1000 things each):
  clean             32 px, 1 thing .990;  64 px, up to 4 1.000;  128 px, up to 9 .996;  256 px, up to 9 .999
  all, JPEG 75      64 px, up to 4 .985;  128 px, up to 9 .996
  all, JPEG 50      64 px, up to 4 .960, up to 9 .920;  128 px, up to 9 .995
  halved, JPEG 75   64 px, up to 4 .977
  halved, JPEG 50   64 px, up to 4 .956
where "all" is rendered at twice the size, box-averaged to the size, blurred (Gaussian, 1 pixel) and compressed with
colour at half the resolution, and "halved" is blurred, box-averaged to half the size, enlarged and then compressed.
What fails there is mostly small, blue or purple, on the lightest backgrounds: only its colour tells it apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmflow.world.pictures import Pixels
from mmflow.world.scene import COLOURS, COLUMNS, RADII, ROWS, SIZES, Scene
from mmflow.world.templates import Fit, fit

Array = NDArray[np.float32]

HUED = tuple(name for name in COLOURS if name != "white")
COLOURED = 0.3  # colourfulness from which on a pixel belongs to a thing, where 1 is that of the thing's paint
WHITE = 105  # darkest channel from which on a colourless pixel belongs to a white thing; backgrounds go up to 75
LEAST_AREA = 0.0028  # canvas areas; the smallest thing is a triangle of 0.0062
LEAST_PIXELS = 5  # of a thing, seen at all
MOST_COVERED = 0.6  # of the canvas by things; 9 of the biggest cover 0.36
MOST_PATCHES = 40  # patches looked at, the largest first; a scene has 9 things at most
WORKING_SIZE = 144  # pictures are halved in size until they are no larger
SURE = 0.93  # share from which on a patch is not tried as two things that touch
SMALLEST, LARGEST = 0.048, 0.4  # radii of things; those of scenes are from 0.062 to 0.32
FILLED = 0.6  # share of a shape's area that is at least of its colour
FITS = 0.7  # share of a patch's energy that the best template must explain, or it is no thing


@dataclass(frozen=True, slots=True)
class Found:
    """A thing seen in a picture.

    Attributes:
        shape, colour, size, column, row: words of `mmflow.world.scene`.
        x, y: centre in canvas widths.
        radius: in canvas widths; where a picture is blurred, a dark outline and a soft edge look alike to 5 %.
        confidence: share of its pixels' energy that a drawing of it explains, up to 1.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    column: str
    row: str
    confidence: float


def read_picture(pixels: Pixels) -> list[Found]:
    """The things in a picture, from left to right; none where most is no dark grey background, as in photographs.

    Args:
        pixels: (H, W, 3) uint8, RGB.

    Raises:
        ValueError: for anything but an RGB picture of 8 bits that is 16 pixels wide and high or more.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 16:
        raise ValueError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype} must be (H, W, 3) uint8, H and W >= 16"
        )
    picture = _halved(pixels)
    height, width = picture.shape[:2]
    hue, colourfulness = hues(picture)
    kinds = np.where(colourfulness > COLOURED, hue + 1, 0)
    kinds[(kinds == 0) & (picture.min(axis=2) > WHITE)] = len(HUED) + 1
    if (kinds > 0).mean() > MOST_COVERED:
        return []
    labels, colours, areas = _patches(_without_rims(kinds))
    order = np.argsort(-areas, kind="stable")[:MOST_PATCHES]
    order = order[areas[order] >= max(LEAST_AREA * height * width, LEAST_PIXELS)]
    if len(order) == 0:
        return []
    renumber = np.zeros(len(areas) + 1, int)
    renumber[order + 1] = np.arange(1, len(order) + 1)
    owners, paints = renumber[labels], colours[order] - 1
    signal, near, coloured = _signal(picture, owners, paints, kinds)
    patches = list(zip(fit(signal, near, areas[order], coloured), paints.tolist(), strict=True))
    parted, whole = _parted(signal, owners, [patch.share < SURE for patch, _ in patches])
    if len(whole) > len(paints):
        signal, near, coloured = _signal(picture, parted, paints[whole], kinds)
        parts = fit(signal, near, np.bincount(parted.ravel(), minlength=len(whole) + 1)[1:], coloured)
        patches = _better(patches, parts, whole)
    things = sorted(_without_overlaps(patches, width), key=lambda thing: (thing[0].x, thing[0].y))
    return [
        Found(
            shape=thing.shape,
            colour=(*HUED, "white")[paint],
            size=size_word(thing.radius / width, len(things)),
            x=thing.x / width,
            y=thing.y / width,
            radius=thing.radius / width,
            column=_word(COLUMNS, thing.x / width),
            row=_word(ROWS, thing.y / height),
            confidence=thing.share,
        )
        for thing, paint in things
    ]


def _halved(pixels: Pixels) -> Array:
    """The picture as floats, halved in size until it is no larger than WORKING_SIZE."""
    picture: Array = pixels.astype(np.float32)
    while min(picture.shape[:2]) > WORKING_SIZE:
        picture = picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2]
        picture = (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2]) * np.float32(0.25)
    return picture


def _opponent(colours: Array) -> Array:
    """(..., 3) RGB to (..., 2): the plane of colours without lightness, in which greys are at 0."""
    red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
    return np.stack([red - (green + blue) / 2, (green - blue) * np.float32(0.75**0.5)], axis=-1)


PAINTS = np.array([COLOURS[name] for name in HUED] + [COLOURS["white"]], np.float32)  # (8, 3)
HUES = _opponent(PAINTS[:-1])  # (7, 2)
STRENGTHS = np.linalg.norm(HUES, axis=1)  # (7,)
# (3, 3) RGB to lightness and two differences of colours. Lightness counts double, as JPEG keeps it at full resolution.
VIEW = np.array([[0.598, -0.169, 0.5], [1.174, -0.331, -0.419], [0.228, 0.5, -0.081]], np.float32)


def hues(picture: Array) -> tuple[NDArray[np.intp], Array]:
    """(H, W) number of the nearest hue, and how colourful the pixel is compared with the paint of that hue."""
    along = _opponent(picture) @ (HUES / STRENGTHS[:, None]).T  # (H, W, 7)
    nearest = along.argmax(axis=-1)
    return nearest, along.max(axis=-1) / STRENGTHS[nearest]


def _patches(kinds: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Connected pixels of one kind (0 is none): labels (H, W) from 1 on, and the kind and area of each.

    Runs of equal pixels in a row are joined with the runs of the row above that they touch."""
    height, width = kinds.shape
    padded = np.zeros((height, width + 1), int)
    padded[:, :-1] = kinds
    flat = padded.ravel()
    borders = np.flatnonzero(np.diff(flat, prepend=0))
    starts = borders[flat[borders] > 0]
    ends = np.append(borders, len(flat))[np.searchsorted(borders, starts, side="right")]
    parents = list(range(len(starts)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    # runs of the row above that end after this one's start, and begin before its end
    first = np.searchsorted(ends, starts - (width + 1), side="right")
    last = np.searchsorted(starts, ends - (width + 1), side="left")
    run_kinds = flat[starts]
    for run in np.flatnonzero(last > first).tolist():
        for above in range(first[run], last[run]):
            if run_kinds[above] == run_kinds[run]:
                parents[root(run)] = root(above)
    roots = np.array([root(run) for run in range(len(starts))], int)
    kept, numbers = np.unique(roots, return_inverse=True)
    areas = np.bincount(numbers, weights=ends - starts, minlength=len(kept)).astype(int)
    steps = np.zeros(len(flat) + 1, int)
    np.add.at(steps, starts, numbers + 1)
    np.add.at(steps, ends, -(numbers + 1))
    labels = np.cumsum(steps)[:-1].reshape(height, width + 1)[:, :-1]
    return labels, run_kinds[kept] if len(kept) else np.zeros(0, int), areas


def _without_rims(kinds: NDArray[np.intp]) -> NDArray[np.intp]:
    """The kinds with the white rims of flashing things given to what they enclose, for nothing is within another."""
    white = len(HUED) + 1
    if not ((kinds == white).any() and ((kinds > 0) & (kinds < white)).any()):
        return kinds
    labels, colours, areas = _patches(kinds)
    least = LEAST_AREA * kinds.size / 4
    boxes = []
    for number in np.flatnonzero(areas >= least):
        down, across = np.nonzero(labels == number + 1)
        boxes.append((number, down.min(), down.max(), across.min(), across.max()))
    kinds = kinds.copy()
    for rim, top, bottom, left, right in boxes:
        within = [
            colours[n]
            for n, *box in boxes
            if colours[rim] == white != colours[n]
            and top <= box[0] and box[1] <= bottom and left <= box[2] and box[3] <= right
        ]  # fmt: skip
        if within:
            kinds[labels == rim + 1] = within[0]
    return kinds


def _grown(owners: NDArray[np.intp]) -> NDArray[np.intp]:
    """Owners (H, W) with every patch grown by one pixel where nothing else is."""
    grown = owners.copy()
    for there, here in (
        (np.s_[1:], np.s_[:-1]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        free = grown[there] == 0
        grown[there][free] = owners[here][free]
    return grown


def _signal(
    picture: Array, owners: NDArray[np.intp], paints: NDArray[np.intp], kinds: NDArray[np.intp]
) -> tuple[Array, NDArray[np.intp], Array]:
    """(H, W) how far each pixel is from background (0) to the paint of the patch it belongs to (1), and whose it is.

    And (N,) how much of the contrast of each patch is in its colour and not in its lightness."""
    height, width = owners.shape
    things = (kinds > 0).astype(int)
    for _ in range(3):
        owners, things = _grown(owners), _grown(things)
    back = _background(picture.mean(axis=2), things > 0)
    signal = np.zeros((height, width), np.float32)
    place = np.nonzero(owners)
    patch = owners[place] - 1
    toward = (PAINTS[paints[patch]] - back[place][:, None]) @ VIEW
    away = (picture[place] - back[place][:, None]) @ VIEW
    away[:, 0] = np.maximum(away[:, 0], 0)  # paints are lighter than backgrounds: outlines that are darker still count
    contrast = (toward * toward).sum(axis=1)
    signal[place] = np.clip((away * toward).sum(axis=1) / contrast, 0, 1)
    of_colour = np.bincount(patch, weights=(toward[:, 1:] ** 2).sum(axis=1) / contrast, minlength=len(paints))
    return signal, owners, (of_colour / np.bincount(patch, minlength=len(paints))).astype(np.float32)


def _background(lightness: Array, hidden: NDArray[np.bool_]) -> Array:
    """(H, W): the lightness of the background, also where things hide it.

    By cells of an eighth of the canvas, which are also those of the checks."""
    height, width = lightness.shape
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    cells = rows[:, None] * 8 + columns
    counts = np.bincount(cells.ravel(), weights=~hidden.ravel(), minlength=64)
    sums = np.bincount(cells.ravel(), weights=np.where(hidden, 0, lightness).ravel(), minlength=64)
    odd = (np.arange(64) // 8 + np.arange(64)) % 2
    alike = np.bincount(odd, weights=sums) / np.maximum(np.bincount(odd, weights=counts), 1)  # for cells all hidden
    levels = np.where(counts > 0, sums / np.maximum(counts, 1), alike[odd]).astype(np.float32)
    return levels[cells]


def _parted(signal: Array, owners: NDArray[np.intp], doubtful: list[bool]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Owners (H, W) with every doubtful patch parted where it is thinnest or palest, and of which patch each is a part.

    Returns the old owners where nothing could be parted."""
    parts, whole = owners.copy(), list(range(len(doubtful)))
    least = LEAST_AREA * owners.size
    for number in np.flatnonzero(doubtful):
        patch = owners == number + 1
        if patch.sum() < 2 * least:
            continue
        rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inside, bright = patch[box], signal[box]
        for core in (inside & (bright > 0.6), inside & (bright > 0.8), _shrunk(inside), _shrunk(_shrunk(inside))):
            labels, _, areas = _patches(core.astype(int))
            large = np.flatnonzero(areas >= least / 3)
            if len(large) == 2:
                break
        else:
            labels, large = _halves(inside), np.array([0, 1])
        seeds = (labels == large[0] + 1) + 2 * (labels == large[1] + 1)
        while (seeds[inside] == 0).any():
            seeds = _grown(seeds) * inside
        parts[box][seeds == 2] = len(whole) + 1
        whole.append(int(number))
    return parts, np.array(whole)


def _shrunk(patch: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a patch whose four neighbours are in it."""
    padded = np.pad(patch, 1)
    return patch & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]


def _halves(patch: NDArray[np.bool_]) -> NDArray[np.intp]:
    """1 and 2 on the two sides of the middle of a patch across its longest direction, 0 outside."""
    points = np.argwhere(patch)
    points = points - points.mean(axis=0)
    longest = np.linalg.eigh(points.T @ points)[1][:, -1]
    halves = np.zeros(patch.shape, int)
    halves[patch] = 1 + (points @ longest > 0)
    return halves


def _better(patches: list[tuple[Fit, int]], parts: list[Fit], whole: NDArray[np.intp]) -> list[tuple[Fit, int]]:
    """Of every patch (with its paint) its two parts where both fit better than it does, else itself."""
    chosen = []
    for number, (patch, paint) in enumerate(patches):
        mine = [part for part, of in zip(parts, whole, strict=True) if of == number]
        split = len(mine) == 2 and min(part.share for part in mine) > max(patch.share, FITS)
        chosen += [(part, paint) for part in (mine if split else [patch])]
    return chosen


def _without_overlaps(patches: list[tuple[Fit, int]], width: int) -> list[tuple[Fit, int]]:
    """Those (with their paint) that fit and may be things, without the fringes of others: things do not overlap."""
    kept: list[tuple[Fit, int]] = []
    for thing, paint in sorted(patches, key=lambda patch: -patch[0].share * patch[0].radius):
        apart = (np.hypot(thing.x - o.x, thing.y - o.y) > 0.7 * max(thing.radius, o.radius) for o, _ in kept)
        possible = SMALLEST <= thing.radius / width <= LARGEST and thing.filled >= FILLED
        if thing.share >= FITS and possible and all(apart):
            kept.append((thing, paint))
    return kept


def size_word(radius: float, things: int = 1) -> str:
    """small or big: the word of the range nearest to a radius (canvas widths) in those RADII that allow so many things.

    More things than any scene has are judged by the last ones."""
    possible = [table for most, table in RADII.items() if most >= things] or [RADII[max(RADII)]]

    def away(low: float, high: float) -> float:
        return max(low / radius, radius / high)

    return min(SIZES, key=lambda size: min(away(*table[SIZES.index(size)]) for table in possible))


def _word(words: Sequence[str], share: float) -> str:
    return words[min(max(int(share * len(words)), 0), len(words) - 1)]


def score(found: Sequence[Found], scene: Scene) -> dict[str, int]:
    """How well found things agree with the true ones of a still, matched one to one.

    Those that agree in most of shape, colour, size and place (row and column) are matched first, nearer ones before;
    two that agree in fewer than two of these are not matched.

    Returns:
        "shape", "colour", "size", "place", "all": how many true things are found with this (with all of it) right;
        "things": true ones, "missed": true ones without a found one, "invented": found ones without a true one.
    """
    pairs = []
    for i, thing in enumerate(scene.things):
        for j, other in enumerate(found):
            place = (thing.column, thing.row) == (other.column, other.row)
            agree = (thing.shape == other.shape, thing.colour == other.colour, thing.size == other.size, place)
            pairs.append((-sum(agree), float(np.hypot(thing.x - other.x, thing.y - other.y)), i, j, agree))
    counts = dict.fromkeys(("shape", "colour", "size", "place", "all"), 0)
    true_left, found_left = set(range(len(scene.things))), set(range(len(found)))
    for disagree, _, i, j, agree in sorted(pairs):
        if disagree <= -2 and i in true_left and j in found_left:
            true_left.remove(i)
            found_left.remove(j)
            for name, right in zip(counts, (*agree, all(agree)), strict=True):
                counts[name] += right
    return counts | {"things": len(scene.things), "missed": len(true_left), "invented": len(found_left)}
