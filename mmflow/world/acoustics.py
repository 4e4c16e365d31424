"""What happens to speech between the mouth and the file: vocal tract, tempo, room, microphone, noise, channel, level.

Every function is pure: samples in, new samples out, all randomness from the `generator` it is given. Signals are 1-d
float64 arrays (S,) at `SAMPLE_RATE` unless said otherwise, and none but `resample` and `wobble` moves anything in time,
so that phone times stay exact.
"""

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz

Signal = NDArray[np.float64]


def resample(signal: Signal, ratio: float) -> Signal:
    """Play the signal `1 / ratio` times as fast by Fourier interpolation: (S,) -> (round(S * ratio),).

    Read at the old rate, every frequency is divided by `ratio`, pitch and formants together: a longer vocal tract for
    ratio > 1. Content beyond the new Nyquist frequency is removed."""
    size = _fast_length(len(signal) + 64)  # the padding keeps the end from wrapping round to the start
    new_size = round(size * ratio)
    spectrum = np.fft.rfft(signal, size)
    kept = np.zeros(new_size // 2 + 1, complex)
    common = min(len(kept), len(spectrum))
    kept[:common] = spectrum[:common]
    return np.fft.irfft(kept, new_size)[: round(len(signal) * ratio)] * (new_size / size)


def wobble(
    signal: Signal, depth: float, period_s: float, generator: np.random.Generator
) -> tuple[Signal, NDArray[np.float64]]:
    """Let the speed wander smoothly by a few percent, as no speaker says the same sound twice in the same way.

    depth: standard deviation of the speed around 1. period_s: from one independent speed to the next.
    Returns the new signal (S,), as long as the old one, and `times` (S,): the old sample position heard at each sample.
    """
    knots = wobble_knots(len(signal), period_s)
    speed_at_knots = np.exp(depth * generator.standard_normal(knots))
    speed = np.interp(np.linspace(0, knots - 1, len(signal)), np.arange(knots), speed_at_knots)
    times = np.concatenate([[0.0], np.cumsum(speed)[:-1]])
    times *= (len(signal) - 1) / times[-1]  # begin and end stay where they are
    return _between(signal, times), times


def wobble_knots(size: int, period_s: float) -> int:
    """How many normal numbers `wobble` draws for a signal of so many samples."""
    return 2 + int(size / SAMPLE_RATE / period_s)


_OVERSAMPLING = 8  # makes linear interpolation good to -42 dB at 6 kHz


def _between(signal: Signal, times: NDArray[np.float64]) -> Signal:
    """The signal (S,) at times (R,) in samples, 0 to S - 1: between the two nearest of its points at eight times the
    rate.

    Those are eight signals, each an eighth of a sample ahead of the last; so many small transforms take a third of the
    time of `resample` by 8, a large one most of which is zero."""
    size = _fast_length(len(signal) + 64)
    spectrum = np.fft.rfft(signal, size)
    spectrum[-1] *= 2  # at eight times the rate there is room for both signs of the Nyquist frequency
    ahead = np.exp(2j * np.pi / (_OVERSAMPLING * size) * np.arange(len(spectrum)))
    shifted = np.empty((_OVERSAMPLING, size))
    for row in shifted:
        np.fft.irfft(spectrum, size, out=row)
        spectrum *= ahead
    position = times * _OVERSAMPLING
    before = position.astype(int)
    low, high = (shifted.take((at & 7) * size + (at >> 3)) for at in (before, before + 1))
    return low + (high - low) * (position - before)


def reverberate(signal: Signal, t60_s: float, direct_db: float, generator: np.random.Generator) -> Signal:
    """A room: the direct sound, then a tail of noise that falls by 60 dB in `t60_s`, brighter at first.

    direct_db: energy of the direct sound over that of the tail (Polack's statistical model of late reverberation)."""
    size = int(t60_s * SAMPLE_RATE)
    seconds = np.arange(size) / SAMPLE_RATE
    tail = generator.standard_normal(size) * np.exp(-np.log(1000) * seconds / t60_s)
    tail[: int(0.002 * SAMPLE_RATE)] = 0  # the nearest wall is some 30 cm away
    darkened = np.convolve(tail, [0.25, 0.5, 0.25])[:size]  # walls and air absorb high frequencies
    fade = np.exp(-seconds / (0.2 * t60_s))
    tail = fade * tail + (1 - fade) * darkened
    response = tail * 10 ** (-direct_db / 20) / np.linalg.norm(tail)
    response[0] = 1.0
    return _convolve(signal, response)


def equalise(signal: Signal, depth_db: float, knots: int, generator: np.random.Generator) -> Signal:
    """A microphone and its place: a smooth random gain curve with standard deviation `depth_db` over the mel scale."""
    gains_db = depth_db * generator.standard_normal(knots)
    return _shape(signal, lambda mel: np.interp(mel, np.linspace(0, 1, knots), gains_db))


def tilt(signal: Signal, db_per_octave: float) -> Signal:
    """A brighter (> 0) or darker (< 0) voice: a straight line over log frequency, 0 dB at 500 Hz."""
    size = _fast_length(len(signal))
    ratio = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 62.5) / 500
    gain = ratio ** (db_per_octave * np.log2(10) / 20)
    return np.fft.irfft(np.fft.rfft(signal, size) * gain, size)[: len(signal)]


def band_limit(signal: Signal, low_hz: float, high_hz: float) -> Signal:
    """A telephone or a cheap recorder: sixth-order-like slopes below `low_hz` and above `high_hz`."""
    size = _fast_length(len(signal))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    gain = 1 / np.sqrt((1 + (low_hz / np.maximum(hertz, 1)) ** 6) * (1 + (hertz / high_hz) ** 12))
    return np.fft.irfft(np.fft.rfft(signal, size) * gain, size)[: len(signal)]


def add_noise(signal: Signal, snr_db: float, exponent: float, generator: np.random.Generator) -> Signal:
    """Steady noise with power ~ 1 / f**exponent (0 white, 1 pink, 2 brown) `snr_db` below the signal's power."""
    size = _fast_length(len(signal))
    hertz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50)
    spectrum = np.fft.rfft(generator.standard_normal(size)) * hertz ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, size)[: len(signal)]
    return signal + noise * np.sqrt(np.mean(signal**2) / np.mean(noise**2) * 10 ** (-snr_db / 10))


def set_level(signal: Signal, rms_db: float, peak: float = 0.95) -> Signal:
    """Scale to `rms_db` relative to full scale 1.0, or to the largest level whose peaks stay within `peak`."""
    gain = 10 ** (rms_db / 20) / np.sqrt(np.mean(signal**2))
    return signal * min(gain, peak / np.max(np.abs(signal)))


def _shape(signal: Signal, gain_db) -> Signal:
    size = _fast_length(len(signal))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    mel = np.log1p(hertz / 700) / np.log1p(SAMPLE_RATE / 2 / 700)
    return np.fft.irfft(np.fft.rfft(signal, size) * 10 ** (gain_db(mel) / 20), size)[: len(signal)]


def _convolve(signal: Signal, response: Signal) -> Signal:
    """Causal convolution cut to the signal's length: (S,), (R,) -> (S,)."""
    size = _fast_length(len(signal) + len(response))
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[: len(signal)]


def _fast_length(size: int) -> int:
    """The next multiple of a power of two that is fast to transform and wastes under 7 percent."""
    step = 1 << max(0, size.bit_length() - 5)
    return -(-size // step) * step
