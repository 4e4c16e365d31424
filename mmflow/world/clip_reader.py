"""What is seen in clips in the world's style, frame by frame: when things flash, and how good masks are."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmflow.world.picture_reader import COLOURED, HUED, PAINTS, WHITE, Found, hues, read_picture
from mmflow.world.pictures import Pixels
from mmflow.world.scene import SHAPES, SIZES

FARTHEST = 0.15  # canvas widths that a thing may move from one frame to the next


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


def read_flashes(frames: Pixels, rate: float) -> list[Flashing]:
    """The things of a clip and when each flashes, to a frame.

    Args:
        frames: (T, H, W, 3) uint8.
        rate: frames per second.
    """
    if frames.ndim != 4 or not rate > 0:
        raise ValueError(f"frames of shape {frames.shape} at rate={rate} must be (T, H, W, 3) at more than 0 a second")
    tracks: list[list[tuple[int, Found]]] = []  # the frames that one thing is found in, and what is found
    for number, frame in enumerate(frames):
        things = read_picture(frame)
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
    hue, colourfulness = hues(part)
    shown = (colourfulness > COLOURED) & (hue == HUED.index(colour)) | (darkest > WHITE)  # and its white rim
    paint = PAINTS[HUED.index(colour)]
    usual = paint.min() / paint.max()
    pale = paint * 0.75 + 255 * 0.25
    flashing = 0.75 * pale.min() / pale.max() + 0.25  # a quarter is rim
    ratio = darkest[shown].sum() / max(brightest[shown].sum(), 1)
    return float((ratio - usual) / (flashing - usual))
