"""How the world's shapes sound: each has its own timbre, at 16 kHz."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmflow.world.acoustics import SAMPLE_RATE
from mmflow.world.scene import SHAPES, Scene

Samples = NDArray[np.float32]  # (S,)
Wave = NDArray[np.float64]  # (S,)

RMS = 0.1  # at full loudness; full scale is 1
RAMP_S = 0.01  # at either end of a sound
NOISE = 1e-3  # RMS of the white noise that is always there

BELL_HZ, BELL_PERIOD_S = 520.0, 0.5
BELL = {1.0: 1.0, 2.0: 0.5, 2.76: 0.7, 5.4: 0.5, 8.93: 0.3}  # partials, relative to BELL_HZ: loudness
TICK_HZ, TICK_RATE, TICK_DECAY_S = 1400.0, 12.0, 0.012


def sound(shape: str, seconds: float, draw: np.random.Generator) -> Samples:
    """The sound of a shape: float32 (round(seconds * 16000),), RMS 0.1 but for ramps of 10 ms at both ends.

    circle: a sine of 440 Hz. square: 220 Hz with 15 harmonics at 1/h. triangle: chirps from 800 to 2400 Hz, 4 a second.
    cross: noise of 3 to 6 kHz, 8 times a second louder and softer. ring: a bell struck twice a second. diamond: 12
    ticks a second; these two from the beginning. Phases and noise are drawn. The first four are those of the
    audio-visual tasks (`mmflow.world.listening`).
    """
    if shape not in TIMBRES:
        raise ValueError(f"shape {shape!r} has no sound; take one of {', '.join(TIMBRES)}")
    count = round(seconds * SAMPLE_RATE)
    if count < 2 * RAMP_S * SAMPLE_RATE:
        raise ValueError(f"seconds={seconds} must be {2 * RAMP_S} or more, so that the ramps fit")
    wave = TIMBRES[shape](np.arange(count) / SAMPLE_RATE, draw)
    wave *= RMS / np.sqrt(np.mean(wave**2))
    ramp = np.arange(1, round(RAMP_S * SAMPLE_RATE) + 1) / (RAMP_S * SAMPLE_RATE)
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    return wave.astype(np.float32)


def mix(scene: Scene, draw: np.random.Generator, margin: float = 0.0) -> Samples:
    """All that is heard in a scene: float32 (round(scene.seconds * 16000),) in [-1, 1], over faint white noise.

    A sound begins `margin` s after its event and ends as much before it. Raises ValueError for a still, and for an
    event that is not within the scene or too short.
    """
    if not scene.seconds > 0:
        raise ValueError("a still has no sound; draw a scene with seconds above 0")
    total = NOISE * draw.standard_normal(round(scene.seconds * SAMPLE_RATE), dtype=np.float32)
    for thing in scene.things:
        for event in filter(lambda event: event.heard, thing.sounds):
            if not 0 <= event.start < event.end <= scene.seconds:
                raise ValueError(f"sound from {event.start} to {event.end} s is not within {scene.seconds} s")
            heard = sound(thing.shape, event.end - event.start - 2 * margin, draw)
            first = min(round((event.start + margin) * SAMPLE_RATE), len(total) - len(heard))  # where both round up
            total[first : first + len(heard)] += np.float32(10 ** (event.gain / 20)) * heard
    return np.clip(total, -1, 1)  # many at a time may be too loud


def _sine(time: Wave, draw: np.random.Generator) -> Wave:
    return np.sin(2 * np.pi * (440 * time + draw.random()))


def _harmonics(time: Wave, draw: np.random.Generator) -> Wave:
    cycles = 220 * time + draw.random()
    return sum((np.sin(2 * np.pi * h * cycles) / h for h in range(1, 16)), np.zeros_like(time))


def _chirps(time: Wave, draw: np.random.Generator) -> Wave:
    """The frequency rises evenly and falls back at once, without a break of phase."""
    periods = 4 * time + draw.random()
    whole, part = np.divmod(periods, 1)
    cycles = (800 * periods + (2400 - 800) * (whole + part**2) / 2) / 4
    return np.sin(2 * np.pi * (cycles + draw.random()))


def _noise(time: Wave, draw: np.random.Generator) -> Wave:
    spectrum = np.fft.rfft(draw.standard_normal(len(time)))
    hertz = np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE)
    spectrum[(hertz < 3000) | (hertz > 6000)] = 0
    return np.fft.irfft(spectrum, len(time)) * (1 + np.sin(2 * np.pi * (8 * time + draw.random()))) / 2


def _bell(time: Wave, draw: np.random.Generator) -> Wave:
    since = time % BELL_PERIOD_S
    struck = np.zeros_like(time)
    for ratio, loudness in BELL.items():
        decay = np.exp(-2.5 * ratio**0.7 * since)  # the higher, the sooner gone; its end stays audible
        struck += loudness * decay * np.sin(2 * np.pi * (BELL_HZ * ratio * since + draw.random()))
    return struck * np.minimum(since / 0.002, 1)


def _ticks(time: Wave, draw: np.random.Generator) -> Wave:
    since = time % (1 / TICK_RATE)
    return np.exp(-since / TICK_DECAY_S) * np.sin(2 * np.pi * (TICK_HZ * since + draw.random()))


TIMBRES: dict[str, Callable[[Wave, np.random.Generator], Wave]] = dict(
    zip(SHAPES, (_sine, _harmonics, _chirps, _noise, _bell, _ticks), strict=True)
)
