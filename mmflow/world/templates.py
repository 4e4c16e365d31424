"""Drawings of all shapes, styles and amounts of blur, and how they are laid on the patches of a picture.

Each is moved and scaled to where it fits best by Gauss-Newton steps (the inverse compositional algorithm of Baker and
Matthews, "Lucas-Kanade 20 Years On", IJCV 2004, whose matrices depend on the templates alone). A picture has one style
and one blur, so those are chosen for all of its patches together: a dark outline and a soft edge look alike in one.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmflow.world.pictures import draw_thing
from mmflow.world.scene import COLOURS, RADII, SHAPES, STYLES, Thing

Array = NDArray[np.float32]

GRID = 30  # samples across a template
REACH = 1.7  # radii from the centre of a template to its border, so that soft edges lie within
FINE = 4  # a template is drawn finer by this and averaged
BLURS = (0.03, 0.08, 0.15, 0.22, 0.3, 0.4, 0.52, 0.68)  # radii: standard deviations of the Gaussian blur of templates
PICTURE_BLURS = (0.4, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0)  # pixels: those that a picture may have
COLOUR_BLURS = (0.0, 0.8, 1.3)  # pixels: further blur of colour, which JPEG keeps at half the resolution
FREE_STEPS, COMMON_STEPS = 4, 2  # Gauss-Newton steps with the template that fits best, then in one style and blur
STRANGE, ODD = 0.1, 0.03  # shares lost per 100 % that a radius is off RADII: in choosing a style, and a shape
AREAS = {"circle": 3.14, "square": 2.89, "triangle": 1.62, "cross": 2.04, "ring": 2.19, "diamond": 2.0}  # radii squared
SINKS = {"triangle": 0.2}  # radii from the centre of a shape down to its centre of mass, where they differ


@dataclass(frozen=True, slots=True)
class Fit:
    """A template where it explains a patch best.

    Attributes:
        share: of the patch's energy that it explains, up to 1.
        shape: one of SHAPES.
        x, y, radius: pixels.
        filled: share of the shape's area that is in the patch.
    """

    share: float
    shape: str
    x: float
    y: float
    radius: float
    filled: float


@dataclass(frozen=True, slots=True)
class Templates:
    """Drawings of all shapes (S), each in all styles and blurs (K), as P samples.

    Attributes:
        drawn: (S, K, P) of unit energy.
        norms: (S, K): the root of their energy before.
        steps: (S, K, 3, P): turn what a template leaves unexplained into steps of x, y and the logarithm of the radius,
            in radii.
        reach: (S, K * 4, P): orthonormal, of each what it can explain by small steps; the first is itself.
    """

    drawn: Array
    norms: Array
    steps: Array
    reach: Array


@cache
def templates() -> Templates:
    """All templates."""
    size = GRID * FINE
    at = np.arange(size)
    apart = (at[:, None] - at[None]) * (2 * REACH / size)  # radii
    coordinate = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    drawn, steps, reach = [], [], []
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
                steps.append(np.linalg.pinv(slopes)[1:])
                reach.append(np.linalg.qr(slopes)[0].T)
    shapes, kinds = len(SHAPES), len(STYLES) * len(BLURS)
    flat = np.array(drawn, np.float32).reshape(shapes, kinds, -1)
    norms = np.linalg.norm(flat, axis=-1)
    return Templates(
        flat / norms[..., None],
        norms,
        np.array(steps, np.float32).reshape(shapes, kinds, 3, -1),
        np.array(reach, np.float32).reshape(shapes, kinds * 4, -1),
    )


def fit(signal: Array, owners: NDArray[np.intp], areas: NDArray[np.intp], coloured: Array) -> list[Fit]:
    """The best template of every patch. All are drawn in one style and blur, those that explain most of the picture.

    Args:
        signal: (H, W) how far each pixel is from background (0) to paint (1).
        owners: (H, W) the patch each pixel belongs to, from 1 on, with soft edges; 0 for none.
        areas: (N,) pixels of each patch without soft edges.
        coloured: (N,) how much of a patch's contrast is in its colour and not in its lightness, 0 to 1.
    """
    count, shapes = len(areas), len(SHAPES)
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

    known, each = templates(), np.arange(shapes)
    for step in range(FREE_STEPS + COMMON_STEPS + 1):
        seen = _sampled(signal, owners, places)  # (N, S, P)
        alike = np.matmul(known.drawn, seen[..., None])[..., 0]  # (N, S, K)
        energy = _energy(seen, weight, places[..., 2])
        if step < FREE_STEPS:
            too_soft = np.array(BLURS) * places[..., 2:] > PICTURE_BLURS[-1] + 0.3
            best = np.where(np.tile(too_soft, len(STYLES)), 0, alike).argmax(axis=-1)  # (N, S)
        elif step == FREE_STEPS:
            # What each would explain, and how large it would be, after a step of its own: at places that suit one style
            # no other could win.
            reached = np.matmul(known.reach, seen[..., None]).reshape(*alike.shape, 4)
            grown = np.matmul(known.steps[:, :, 2], seen[..., None])[..., 0] / np.maximum(alike / known.norms, 0.05)
            radii = places[..., 2:] * np.exp(np.clip(grown, -0.25, 0.25))
            shares = (reached**2).sum(axis=-1) / energy[..., None] - STRANGE * _strangeness(radii / width)
            best = _common(shares, places[..., 2], coloured)
        if step == FREE_STEPS + COMMON_STEPS:
            break
        loudness = np.take_along_axis(alike, best[..., None], -1)[..., 0] / known.norms[each, best]
        move = np.matmul(known.steps[each, best], seen[..., None])[..., 0] / np.maximum(loudness, 0.05)[..., None]
        move = np.clip(move, -0.25, 0.25)
        places[..., :2] += move[..., :2] * places[..., 2:]
        places[..., 2] = np.clip(places[..., 2] * np.exp(move[..., 2]), 1, max(height, width))
    shares = np.take_along_axis(alike, best[..., None], -1)[..., 0] ** 2 / energy  # (N, S)
    chosen = (shares - ODD * _strangeness(places[..., 2] / width)).argmax(axis=-1)
    fits = []
    for i, s in enumerate(chosen):
        x, y, radius = places[i, s].tolist()
        filled = float(areas[i] / (AREAS[SHAPES[s]] * radius**2))
        fits.append(Fit(float(shares[i, s]), SHAPES[s], x, y, radius, filled))
    return fits


def _energy(seen: Array, weight: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, S): the energy of each patch, whose signal adds up to `weight`, in samples around each template's place."""
    # What lies beyond the samples is not explained either. 3 % is the error of sampling; most of a thing is near 0.7.
    whole = weight[:, None] * (GRID / (2 * REACH * radii)) ** 2  # sum of the samples that a patch would fill
    beyond = 0.7 * np.maximum(0.97 * whole - seen.sum(axis=-1), 0)
    return (seen**2).sum(axis=-1) + beyond + 1e-6


def _strangeness(radii: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far radii (canvas widths) are from the nearest range of RADII as a share of it, 0.1 at most."""
    ranges = [size for table in RADII.values() for size in table]
    away = np.min([np.maximum(np.log(low / radii), np.log(radii / high)) for low, high in ranges], axis=0)
    return np.clip(away, 0, 0.1)


def _common(shares: NDArray[np.floating], radii: NDArray[np.float64], coloured: Array) -> NDArray[np.intp]:
    """(N, S): the templates in the style and with the blurs in pixels that together explain most of all patches."""
    pixels = np.array([np.hypot(blur, more * coloured**0.5) for more in COLOUR_BLURS for blur in PICTURE_BLURS])
    softness = np.abs(np.array(BLURS) - (pixels[..., None] / radii)[..., None]).argmin(axis=-1)  # (blurs, N, S)
    totals = [
        [np.take_along_axis(shares, (style * len(BLURS) + soft)[..., None], -1).max(axis=1).sum() for soft in softness]
        for style in range(len(STYLES))
    ]
    style, blur = np.unravel_index(np.argmax(totals), (len(STYLES), len(pixels)))
    return style * len(BLURS) + softness[blur]


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
