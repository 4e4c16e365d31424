"""The truth back out of pictures, masks, clips and sounds in the world's style, so that what models make can be scored.

No part is trained. A picture is taken apart by colour: backgrounds are grey and dark, so the angle of a pixel's colour
on the colour circle depends neither on shading nor on what shines through at an edge. Each patch of one colour is
compared with templates of all shapes, styles and amounts of blur, each moved and scaled to where it fits best by
Gauss-Newton steps (the inverse compositional algorithm of Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 2004,
whose matrices depend on the templates alone).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmflow.world import sounds
from mmflow.world.acoustics import SAMPLE_RATE
from mmflow.world.pictures import Pixels, draw_thing
from mmflow.world.scene import COLOURS, COLUMNS, MAX_THINGS, RADII, ROWS, SHAPES, SIZES, STYLES, Scene, Thing

Array = NDArray[np.float32]

HUED = tuple(name for name in COLOURS if name != "white")
COLOURED = 0.3  # colourfulness from which on a pixel belongs to a thing, where 1 is that of the thing's paint
WHITE = 105  # darkest channel from which on a colourless pixel belongs to a white thing; backgrounds go up to 75
LEAST_AREA = 0.0028  # canvas areas; the smallest thing is a triangle of 0.0058
LEAST_PIXELS = 5  # of a thing, seen at all
MOST_COVERED = 0.6  # of the canvas by things; 9 of the biggest cover 0.37
MOST_PATCHES = 40  # patches looked at, the largest first; a scene has 9 things at most
WORKING_SIZE = 144  # pictures are halved in size until they are no larger

FARTHEST = 0.15  # canvas widths that a thing may move from one frame to the next

WINDOW, HOP = 1024, 160  # samples: spectra of 64 ms, 100 a second
ATOMS = 16  # spectra that the sound of a shape is made of
UPDATES = 40
AUDIBLE = 0.1  # of full loudness (-20 dB)
PAUSES = {"cross": 0.13, "ring": 0.1, "diamond": 0.13}  # s: how long a sound dies down within itself; others are steady
EDGES = {
    "cross": 0.2,
    "ring": 0.1,
    "diamond": 0.2,
}  # of the usual loudness of a sound: where it begins and ends; else 0.45
SHORTEST = 0.1  # s of a sound
STEADY = 0.1  # s that a steady sound must last, for others sound like it for moments

GRID = 28  # samples across a template
REACH = 1.3  # radii from the centre of a template to its border
FINE = 4  # a template is drawn finer by this and averaged
BLURS = (0.03, 0.08, 0.15, 0.22, 0.3, 0.4, 0.52, 0.68)  # radii: standard deviations of the Gaussian blur of templates
PICTURE_BLURS = (
    0.4,
    0.7,
    1.0,
    1.3,
    1.6,
    2.0,
    2.5,
    3.0,
)  # pixels: those that a picture may have, one for all of its things
FREE_STEPS, COMMON_STEPS = 4, 2  # Gauss-Newton steps with the template that fits best, then in one style and blur
SURE = 0.93  # share from which on a patch is not tried as two things that touch
SMALLEST, LARGEST = 0.048, 0.4  # radii of things; those of scenes are from 0.06 to 0.32
FILLED = 0.6  # share of a shape's area that is at least of its colour
FITS = 0.7  # share of a patch's energy that the best template must explain, or it is no thing
AREAS = {"circle": 3.14, "square": 2.89, "triangle": 1.62, "cross": 2.04, "ring": 2.19, "diamond": 2.0}  # radii squared
SINKS = {"triangle": 0.2}  # radii from the centre of a shape down to its centre of mass, where they differ


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


def read_picture(pixels: Pixels, most_things: int | None = None) -> list[Found]:
    """The things in a picture, from left to right; none where most is no dark grey background, as in photographs.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        most_things: the most things that its scene could have had, which says which radii are small and which big
            (RADII). None takes the table that agrees best with the radii and the number of things found.

    Raises:
        ValueError: for anything but an RGB picture of 8 bits that is 16 pixels wide and high or more.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 16:
        raise ValueError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype} must be (H, W, 3) uint8, H and W >= 16"
        )
    picture = _halved(pixels)
    height, width = picture.shape[:2]
    hue, colourfulness = _colours(picture)
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
    signal, near = _signal(picture, owners, paints, kinds)
    fits = _fit(signal, near, paints, areas[order])
    parted, whole = _parted(signal, owners, [fit.share < SURE for fit in fits])
    if len(whole) > len(paints):
        signal, near = _signal(picture, parted, paints[whole], kinds)
        fits = _better(fits, _fit(signal, near, paints[whole], np.bincount(parted.ravel())[1:]), whole)
    fits = sorted(_without_overlaps(fits, width), key=lambda fit: (fit.x, fit.y))
    sizes = size_words([fit.radius / width for fit in fits], most_things)
    names = (*HUED, "white")
    return [
        Found(
            shape=fit.shape,
            colour=names[fit.paint],
            size=size,
            x=fit.x / width,
            y=fit.y / width,
            radius=fit.radius / width,
            column=_word(COLUMNS, fit.x / width),
            row=_word(ROWS, fit.y / height),
            confidence=fit.share,
        )
        for fit, size in zip(fits, sizes, strict=True)
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


def _colours(picture: Array) -> tuple[NDArray[np.intp], Array]:
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
) -> tuple[Array, NDArray[np.intp]]:
    """(H, W) how far each pixel is from background (0) to the paint of the patch it belongs to (1), and whose it is."""
    height, width = owners.shape
    things = (kinds > 0).astype(int)
    for _ in range(3):
        owners, things = _grown(owners), _grown(things)
    back = _background(picture.mean(axis=2), things > 0)
    signal = np.zeros((height, width), np.float32)
    place = np.nonzero(owners)
    toward = (PAINTS[paints[owners[place] - 1]] - back[place][:, None]) @ VIEW
    away = (picture[place] - back[place][:, None]) @ VIEW
    signal[place] = np.clip((away * toward).sum(axis=1) / (toward * toward).sum(axis=1), 0, 1)
    return signal, owners


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


@cache
def _templates() -> tuple[Array, Array, Array]:
    """Templates (S, K, P) of unit energy for K = styles x blurs, their norms (S, K), and the matrices (S, K, 3, P) that
    turn what a template leaves unexplained into steps of x, y and the logarithm of the radius, in radii."""
    size = GRID * FINE
    at = np.arange(size)
    apart = (at[:, None] - at[None]) * (2 * REACH / size)  # radii
    coordinate = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    drawn, matrices = [], []
    for shape in SHAPES:
        for style in STYLES:
            canvas = np.zeros((size, size, 3), np.float32)
            draw_thing(canvas, Thing(shape, "white", "big", 0.5, 0.5, 0.5 / REACH), style)
            sharp = canvas[..., 0] / COLOURS["white"][0]
            for blur in BLURS:
                kernel = np.exp(-0.5 * (apart / blur) ** 2)
                kernel /= kernel.sum(axis=1, keepdims=True)
                soft = (kernel @ sharp @ kernel.T).reshape(GRID, FINE, GRID, FINE).mean(axis=(1, 3))
                down, across = np.gradient(soft, 2 * REACH / GRID)
                outward = across * coordinate[None] + down * coordinate[:, None]
                slopes = np.stack([soft, -across, -down, -outward], axis=-1).reshape(-1, 4)
                drawn.append(soft.ravel())
                matrices.append(np.linalg.pinv(slopes)[1:])
    kinds = (len(SHAPES), len(STYLES) * len(BLURS))
    templates = np.array(drawn, np.float32).reshape(*kinds, -1)
    norms = np.linalg.norm(templates, axis=-1)
    return templates / norms[..., None], norms, np.array(matrices, np.float32).reshape(*kinds, 3, -1)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A template where it explains a patch best: its share, shape, paint, x, y and radius in pixels, and how much of
    its area is in the patch."""

    share: float
    shape: str
    paint: int
    x: float
    y: float
    radius: float
    filled: float


def _fit(signal: Array, owners: NDArray[np.intp], paints: NDArray[np.intp], areas: NDArray[np.intp]) -> list[_Fit]:
    """The best template of every patch. All are drawn in one style, the one that explains most of the picture."""
    count, shapes = len(paints), len(SHAPES)
    height, width = signal.shape
    flat = owners.ravel()

    def total(values: Array) -> NDArray[np.float64]:
        return np.bincount(flat, weights=values.ravel(), minlength=count + 1)[1:].astype(np.float64)

    down, across = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
    weight = np.maximum(total(signal), 1e-6)  # what is darker than its surroundings has none
    x, y = total(signal * across) / weight, total(signal * down) / weight
    places = np.empty((count, shapes, 3))
    places[..., 2] = np.sqrt(areas[:, None] / np.array([AREAS[shape] for shape in SHAPES]))
    places[..., 0] = x[:, None]
    places[..., 1] = y[:, None] - np.array([SINKS.get(shape, 0) for shape in SHAPES]) * places[..., 2]

    templates, norms, matrices = _templates()
    each = np.arange(shapes)
    for step in range(FREE_STEPS + COMMON_STEPS + 1):
        seen = _sampled(signal, owners, places)  # (N, S, P)
        alike = np.matmul(templates[None], seen[..., None])[..., 0]  # (N, S, K)
        shares = _shares(seen, alike, weight, places)
        if step < FREE_STEPS:
            too_soft = np.array(BLURS) * places[..., 2:] > PICTURE_BLURS[-1] + 0.3
            best = np.where(np.tile(too_soft, len(STYLES)), 0, alike).argmax(axis=-1)  # (N, S)
        elif step == FREE_STEPS:
            best = _common(shares, places[..., 2])
        if step == FREE_STEPS + COMMON_STEPS:
            break
        loudness = np.take_along_axis(alike, best[..., None], -1)[..., 0] / norms[each, best]
        move = np.matmul(matrices[each, best], seen[..., None])[..., 0] / np.maximum(loudness, 0.05)[..., None]
        move = np.clip(move, -0.25, 0.25)
        places[..., :2] += move[..., :2] * places[..., 2:]
        places[..., 2] = np.clip(places[..., 2] * np.exp(move[..., 2]), 1, max(height, width))
    shares = np.take_along_axis(shares, best[..., None], -1)[..., 0]  # (N, S)
    chosen = shares.argmax(axis=-1)
    fits = []
    for i, s in enumerate(chosen):
        x, y, radius = places[i, s].tolist()
        filled = float(areas[i] / (AREAS[SHAPES[s]] * radius**2))
        fits.append(_Fit(float(shares[i, s]), SHAPES[s], int(paints[i]), x, y, radius, filled))
    return fits


def _shares(seen: Array, alike: Array, weight: NDArray[np.float64], places: NDArray[np.float64]) -> Array:
    """(N, S, K): the share of each patch's energy that each template explains, 1 at most."""
    within = (seen**2).sum(axis=-1)
    # What lies beyond the samples is not explained either. 3 % is the error of sampling; most of a thing is near 0.7.
    whole = weight[:, None] * (GRID / (2 * REACH * places[..., 2])) ** 2  # sum of the samples that a patch would fill
    beyond = 0.7 * np.maximum(0.97 * whole - seen.sum(axis=-1), 0)
    return (alike**2 / (within + beyond + 1e-6)[..., None]).astype(np.float32)


def _common(shares: Array, radii: NDArray[np.float64]) -> NDArray[np.intp]:
    """(N, S): the templates in the style and with the blur in pixels that together explain most of all patches."""
    softness = np.abs(np.array(BLURS) - np.array(PICTURE_BLURS)[:, None, None, None] / radii[..., None]).argmin(axis=-1)
    blurs = len(BLURS)
    totals = [
        [np.take_along_axis(shares, (style * blurs + soft)[..., None], -1).max(axis=1).sum() for soft in softness]
        for style in range(len(STYLES))
    ]
    style, blur = np.unravel_index(np.argmax(totals), (len(STYLES), len(PICTURE_BLURS)))
    return style * blurs + softness[blur]


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


def _better(fits: list[_Fit], parts: list[_Fit], whole: NDArray[np.intp]) -> list[_Fit]:
    """Of every patch its two parts where both fit better than it does, else itself."""
    chosen = []
    for number, fit in enumerate(fits):
        mine = [part for part, of in zip(parts, whole, strict=True) if of == number]
        split = len(mine) == 2 and min(part.share for part in mine) > max(fit.share, FITS)
        chosen += mine if split else [fit]
    return chosen


def _sampled(signal: Array, owners: NDArray[np.intp], places: NDArray[np.float64]) -> Array:
    """(N, S, P): the signal of each patch, 0 where it does not belong to it, between pixels at the templates' samples.

    places: (N, S, 3), x, y and radius of the templates in pixels."""
    height, width = signal.shape
    signal, owners = np.pad(signal, 1).ravel(), np.pad(owners, 1).ravel()
    offsets = ((np.arange(GRID, dtype=np.float32) + 0.5) / GRID * 2 - 1) * REACH
    at_pixels: Array = places.astype(np.float32)
    whose = np.arange(1, len(places) + 1)[:, None, None, None]

    def pixel(centre: Array, most: int) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
        at = np.clip(
            centre[..., None] + offsets * at_pixels[..., 2:] + np.float32(0.5), 0, most
        )  # one pixel of padding
        low = np.minimum(at.astype(int), most - 1)
        return low, at - low

    column, right = pixel(at_pixels[..., 0], width + 1)  # (N, S, GRID)
    row, below = pixel(at_pixels[..., 1], height + 1)
    corner = row[..., :, None] * (width + 2) + column[..., None, :]  # (N, S, GRID, GRID)
    right, below = right[..., None, :], below[..., :, None]

    def value(place: NDArray[np.intp]) -> Array:
        return signal[place] * (owners[place] == whose)

    upper = value(corner) * (1 - right) + value(corner + 1) * right
    lower = value(corner + width + 2) * (1 - right) + value(corner + width + 3) * right
    return (upper * (1 - below) + lower * below).reshape(*places.shape[:2], -1)


def _without_overlaps(fits: list[_Fit], width: int) -> list[_Fit]:
    """Those that fit and may be things, without the fringes of others: things do not overlap."""
    kept: list[_Fit] = []
    for fit in sorted(fits, key=lambda fit: -fit.share * fit.radius):
        apart = (np.hypot(fit.x - other.x, fit.y - other.y) > 0.7 * max(fit.radius, other.radius) for other in kept)
        possible = SMALLEST <= fit.radius / width <= LARGEST and fit.filled >= FILLED
        if fit.share >= FITS and possible and all(apart):
            kept.append(fit)
    return kept


def size_words(radii: Sequence[float], most_things: int | None = None) -> list[str]:
    """small or big for every radius (canvas widths) of a scene, by the table of RADII that is told or agrees best."""

    def outside(radius: float, low: float, high: float) -> float:
        return max(low - radius, radius - high, 0) / (low + high)

    def strangeness(table: tuple[tuple[float, float], ...]) -> float:
        return sum(min(outside(radius, *band) for band in table) ** 2 for radius in radii)

    if most_things is None:
        possible = [most for most in RADII if most >= len(radii)] or [max(RADII)]
        # a little against the table of many things: what is big there is as large as what is small among 4
        most = min(possible, key=lambda most: strangeness(RADII[most]) + 1e-3 * (most == MAX_THINGS))
    else:
        most = min((m for m in RADII if m >= most_things), default=max(RADII))
    (_, small), (big, _) = RADII[most]
    return [SIZES[int(radius > (small + big) / 2)] for radius in radii]


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


def iou(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of masks (..., H, W) -> (...); where nothing is true, the share of pixels left empty.

    That is the rule of audio-visual segmentation (Zhou et al., ECCV 2022), so their mean over frames is its mIoU.
    Raises ValueError for masks of unlike shapes or not bool."""
    if predicted.shape != true.shape or predicted.ndim < 2 or predicted.dtype != bool or true.dtype != bool:
        raise ValueError(
            f"masks of shapes {predicted.shape} and {true.shape} and types {predicted.dtype} and {true.dtype} must be "
            "of one shape (..., H, W) and bool; compare probabilities with 0.5 first"
        )
    both = (predicted & true).sum(axis=(-2, -1))
    either = (predicted | true).sum(axis=(-2, -1))
    empty = ~true.any(axis=(-2, -1))
    return np.where(empty, (~predicted).mean(axis=(-2, -1)), both / np.maximum(either, 1))


@dataclass(frozen=True, slots=True)
class Flashing:
    """A thing of a clip as it is where first seen, and the (start, end) in seconds of its flashes."""

    thing: Found
    flashes: tuple[tuple[float, float], ...]


def read_flashes(frames: Pixels, rate: float, most_things: int | None = None) -> list[Flashing]:
    """The things of a clip and when each flashes, to a frame.

    Args:
        frames: (T, H, W, 3) uint8.
        rate: frames per second.
        most_things: as in `read_picture`.
    """
    if frames.ndim != 4 or not rate > 0:
        raise ValueError(f"frames of shape {frames.shape} at rate={rate} must be (T, H, W, 3) at more than 0 a second")
    tracks: list[list[tuple[int, Found]]] = []  # the frames that one thing is found in, and what is found
    for number, frame in enumerate(frames):
        things = read_picture(frame, most_things)
        pairs = [
            (np.hypot(track[-1][1].x - thing.x, track[-1][1].y - thing.y), t, n)
            for t, track in enumerate(tracks)
            for n, thing in enumerate(things)
            if track[-1][1].colour == thing.colour
        ]
        old, new = set(range(len(tracks))), set(range(len(things)))
        for away, t, n in sorted(pairs):
            if away < FARTHEST and t in old and n in new:
                old.remove(t)
                new.remove(n)
                tracks[t].append((number, things[n]))
        tracks += [[(number, things[n])] for n in sorted(new)]
    return [_flashing(frames, rate, track) for track in tracks if len(track) >= len(frames) / 2]  # others are errors


def _flashing(frames: Pixels, rate: float, track: list[tuple[int, Found]]) -> Flashing:
    """A thing that is found in some frames, and its flashes in all of them; it goes straight on between these."""
    seen = [number for number, _ in track]
    number = np.arange(len(frames))
    x, y = (np.interp(number, seen, [getattr(thing, name) for _, thing in track]) for name in "xy")
    radius = float(np.median([thing.radius for _, thing in track]))
    colour = track[0][1].colour
    lightness = [_lightness(*values, radius, colour) for values in zip(frames, x.tolist(), y.tolist(), strict=True)]
    low, high = np.percentile(lightness, [5, 95])
    # where there are two clear levels, those of the higher one
    lit = np.array(lightness) > (np.clip((low + high) / 2, 0.35, 0.7) if high - low > 0.4 else 0.4)
    edges = np.flatnonzero(np.diff(lit.astype(int), prepend=0, append=0)) / rate
    calm = [thing for n, thing in track if not lit[n]] or [thing for _, thing in track]
    shapes, sizes = [thing.shape for thing in calm], [thing.size for thing in calm]
    thing = replace(
        track[0][1],
        shape=max(SHAPES, key=shapes.count),
        size=max(SIZES, key=sizes.count),
        radius=float(np.median([thing.radius for thing in calm])),
    )
    return Flashing(thing, tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)))


def _lightness(frame: Pixels, x: float, y: float, radius: float, colour: str) -> float:
    """How light a thing is, where 0 is its usual paint and 1 about what it is in a flash."""
    x, y, radius = (value * frame.shape[1] for value in (x, y, radius))
    top, left = max(int(y - radius), 0), max(int(x - radius), 0)
    part = frame[top : int(y + radius) + 2, left : int(x + radius) + 2].astype(np.float32)
    brightest, darkest = part.max(axis=2), part.min(axis=2)
    if colour == "white":
        bright = np.sort(brightest[brightest > WHITE])
        return float(np.mean(bright[len(bright) * 2 // 3 :]) - PAINTS[-1][0]) / 10 if len(bright) else 0.0
    hue, colourfulness = _colours(part)
    shown = (colourfulness > COLOURED) & (hue == HUED.index(colour)) | (darkest > WHITE)  # and its white rim
    paint = PAINTS[HUED.index(colour)]
    usual = paint.min() / paint.max()
    pale = paint * 0.75 + 255 * 0.25
    flashing = 0.75 * pale.min() / pale.max() + 0.25  # a quarter is rim
    ratio = darkest[shown].sum() / max(brightest[shown].sum(), 1)
    return float((ratio - usual) / (flashing - usual))


@dataclass(frozen=True, slots=True)
class Heard:
    """The sound of a shape from `start` to `end` (s)."""

    shape: str
    start: float
    end: float


def read_sounds(sound: NDArray[np.floating]) -> list[Heard]:
    """Which shapes are heard when, to a few hundredths of a second: (S,) at 16 kHz, full scale 1, in order of start.

    Spectra are taken apart into those of the shapes by non-negative factorisation with a known dictionary (Smaragdis,
    Raj and Shashanka, ICA 2007). Sounds of one shape that overlap or nearly touch are heard as one."""
    if sound.ndim != 1 or not np.issubdtype(sound.dtype, np.floating):
        raise ValueError(f"sound of shape {sound.shape} and type {sound.dtype} must be (S,) of a floating type")
    if len(sound) == 0:
        return []
    spectra = _spectra(sound)  # (T, F)
    atoms, loudest = _atoms()
    shares = np.full((len(spectra), len(atoms)), spectra.mean(), np.float32)
    for _ in range(UPDATES):  # of Kullback and Leibler's divergence
        shares *= (spectra / (shares @ atoms + 1e-12)) @ atoms.T / atoms.sum(axis=1)
    loudness = shares[:, :-1].reshape(len(spectra), len(SHAPES), ATOMS).sum(axis=2) / loudest
    heard = [event for i, shape in enumerate(SHAPES) for event in _events(shape, loudness[:, i], len(sound))]
    return sorted(heard, key=lambda event: (event.start, event.shape))


def _events(shape: str, loudness: Array, samples: int) -> list[Heard]:
    """When a shape is heard, from its loudness (T,) every HOP samples, 1 at full loudness."""
    if shape in PAUSES:
        level = _extreme(_extreme(loudness, PAUSES[shape], np.max), PAUSES[shape], np.min)
    else:
        level = _extreme(_extreme(loudness, STEADY, np.min), STEADY, np.max)
    events = []
    for first, last in _runs(level > AUDIBLE):
        if last - first <= SHORTEST * SAMPLE_RATE / HOP:
            continue
        edge = EDGES.get(shape, 0.45) * np.median(level[first:last])  # half of the window at a border is sound
        above = np.flatnonzero(level[first:last] > edge) + first
        start, end = above[0] * HOP / SAMPLE_RATE, (above[-1] + 1) * HOP / SAMPLE_RATE
        events.append(Heard(shape, float(start), float(min(end, samples / SAMPLE_RATE))))
    return events


def _runs(on: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and end of every run of True."""
    edges = np.flatnonzero(np.diff(on.astype(int), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _extreme(values: Array, seconds: float, which: Callable[..., Array]) -> Array:
    """The largest or smallest value (T,) in a window of so long around every moment."""
    half = round(seconds * SAMPLE_RATE / HOP / 2)
    padded = np.pad(values, half, mode="edge")
    return which(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)


def _spectra(sound: NDArray[np.floating]) -> Array:
    """(T, F): amplitudes in windows of WINDOW samples around every HOP-th sample."""
    padded = np.pad(sound.astype(np.float32), WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    amplitudes: Array = np.abs(np.fft.rfft(windows * np.hanning(WINDOW), axis=1)).astype(np.float32)
    return amplitudes / np.float32(WINDOW)


@cache
def _atoms() -> tuple[Array, Array]:
    """(shapes * ATOMS + 1, F): spectra that the sounds of the shapes are made of, then white noise, each of sum 1; and
    the loudness (shapes,) of each shape in these: the largest within its pauses, on average."""
    atoms, loudest = [], []
    for shape in SHAPES:
        spectra = _spectra(sounds.sound(shape, 3.0, np.random.default_rng(0)))[20:-20]
        pitch = (spectra @ np.arange(spectra.shape[1])) / spectra.sum(axis=1)
        for part in np.array_split(np.argsort(pitch, kind="stable"), ATOMS):
            atom = spectra[part].mean(axis=0)
            atoms.append(atom / atom.sum())
        loudest.append(_extreme(spectra.sum(axis=1), PAUSES.get(shape, STEADY), np.max).mean())
    atoms.append(np.full_like(atoms[0], 1 / len(atoms[0])))
    return np.array(atoms, np.float32), np.array(loudest, np.float32)
