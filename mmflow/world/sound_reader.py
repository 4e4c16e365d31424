"""The truth back out of the world's sounds: which shapes are heard when, so that sounds models make can be scored."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmflow.world import sounds
from mmflow.world.acoustics import SAMPLE_RATE
from mmflow.world.scene import SHAPES

Array = NDArray[np.float32]

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
