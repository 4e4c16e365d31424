import numpy as np
import pytest

from mmflow.world import sounds
from mmflow.world.scene import SHAPES, Scene, Sound, Thing


def generator(seed=0):
    return np.random.default_rng(seed)


def spectrum(samples):
    return np.fft.rfftfreq(len(samples), 1 / 16_000), np.abs(np.fft.rfft(samples.astype(float))) ** 2


def centroid(samples):
    hertz, power = spectrum(samples)
    return (hertz * power).sum() / power.sum()


def beats(samples):
    """The frequency in Hz, above 1 Hz, at which the loudness of 1 s of sound changes most."""
    loudness = np.sqrt(np.convolve(samples.astype(float) ** 2, np.ones(80) / 80, "same"))
    return 2 + int(np.abs(np.fft.rfft(loudness))[2:60].argmax())


def scene(*events, shape="circle", seconds=1.0):
    return Scene((Thing(shape, "red", "big", 0.5, 0.5, 0.2, sounds=events),), seconds=seconds)


@pytest.mark.parametrize(
    ("shape", "hertz"),
    [("circle", 440), ("square", 462), ("triangle", 1600), ("cross", 4500), ("ring", 880), ("diamond", 1390)],
)
def test_each_shape_has_its_place_in_the_spectrum(shape, hertz):
    for seed in range(3):
        assert centroid(sounds.sound(shape, 1, generator(seed))) == pytest.approx(hertz, rel=0.06)


def test_a_circle_is_one_sine_and_a_square_has_fifteen_harmonics_at_one_over_h():
    hertz, power = spectrum(sounds.sound("circle", 1, generator()))
    assert hertz[power.argmax()] == 440
    assert power[abs(hertz - 440) < 50].sum() > 0.998 * power.sum()
    hertz, power = spectrum(sounds.sound("square", 1, generator()))
    amplitudes = np.sqrt([power[220 * h] for h in range(1, 17)])
    np.testing.assert_allclose(amplitudes[:15] / amplitudes[0], 1 / np.arange(1, 16), rtol=0.02)
    assert amplitudes[15] < 0.002 * amplitudes[0]


def test_a_triangle_rises_from_800_to_2400_hz_four_times_a_second():
    samples = sounds.sound("triangle", 1, generator())
    turning = np.fft.fft(samples)
    turning[8000:] = 0  # without negative frequencies the angle is the phase
    hertz = np.diff(np.unwrap(np.angle(np.fft.ifft(turning)))) * 16_000 / (2 * np.pi)
    falls = np.flatnonzero(hertz[:-100] - hertz[100:] > 1000)
    falls = falls[np.diff(falls, prepend=-9999) > 2000] + 100
    assert len(falls) in (3, 4)
    np.testing.assert_allclose(np.diff(falls), 4000, atol=60)
    np.testing.assert_allclose(
        hertz[falls[0] + 100 : falls[0] + 3800 : 100], 800 + 0.4 * np.arange(100, 3800, 100), atol=80
    )


def test_a_cross_is_noise_of_3_to_6_khz():
    hertz, power = spectrum(sounds.sound("cross", 1, generator()))
    assert power[(hertz > 2980) & (hertz < 6020)].sum() > 0.999 * power.sum()
    assert (power[(hertz > 3000) & (hertz < 6000)] > 0).all()


@pytest.mark.parametrize(("shape", "hertz"), [("cross", 8), ("ring", 2), ("diamond", 12)])
def test_some_are_louder_and_softer_by_turns(shape, hertz):
    assert beats(sounds.sound(shape, 1, generator())) == hertz


@pytest.mark.parametrize("shape", SHAPES)
def test_all_are_as_loud_and_begin_and_end_softly(shape):
    samples = sounds.sound(shape, 0.9, generator())
    assert samples.shape == (14_400,)
    assert samples.dtype == np.float32
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.1, rel=0.04)
    assert np.abs(samples).max() < 0.8
    assert np.abs(samples[[0, -1]]).max() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_phases_are_drawn(shape):
    assert np.array_equal(sounds.sound(shape, 0.5, generator(1)), sounds.sound(shape, 0.5, generator(1)))
    assert not np.allclose(sounds.sound(shape, 0.5, generator(1)), sounds.sound(shape, 0.5, generator(2)), atol=0.01)


def test_a_mix_has_each_sound_at_its_time_and_gain_over_faint_noise():
    mixed = sounds.mix(scene(Sound(0.1, 0.3), Sound(0.5, 0.8, gain=-6), Sound(0.85, 0.95, heard=False)), generator())
    assert mixed.shape == (16_000,)
    assert mixed.dtype == np.float32
    loud = np.abs(mixed) > 0.005
    assert loud[1600:1615].any()
    assert not loud[:1600].any()
    assert not loud[4800:8000].any()
    assert loud[8000:8020].any()
    assert not loud[12_800:].any()
    first, second = np.std(mixed[2000:4400]), np.std(mixed[8400:12_400])
    assert first == pytest.approx(0.1, rel=0.02)
    assert first / second == pytest.approx(10 ** (6 / 20), rel=0.02)
    assert np.std(mixed[13_000:]) == pytest.approx(1e-3, rel=0.1)


def test_a_margin_keeps_sounds_within_their_events():
    mixed = sounds.mix(scene(Sound(0, 1)), generator(), margin=0.05)
    assert np.abs(mixed[:800]).max() < 0.006
    assert np.abs(mixed[-800:]).max() < 0.006
    assert np.std(mixed[960:-960]) == pytest.approx(0.1, rel=0.02)


def test_two_at_a_time_are_added_and_too_many_are_cut():
    both = Scene(
        tuple(Thing(s, "red", "big", 0.5, 0.5, 0.2, sounds=(Sound(0, 1),)) for s in ("circle", "cross")), seconds=1.0
    )
    hertz, power = spectrum(sounds.mix(both, generator()))
    assert power[hertz < 500].sum() == pytest.approx(power[hertz > 2900].sum(), rel=0.15)
    many = sounds.mix(Scene(both.things * 8, seconds=1.0), generator())
    assert np.abs(many).max() == 1


def test_what_cannot_sound_is_said():
    with pytest.raises(ValueError, match="shape 'star' has no sound; take one of circle, square"):
        sounds.sound("star", 1, generator())
    with pytest.raises(ValueError, match=r"seconds=0.01 must be 0.02 or more"):
        sounds.sound("circle", 0.01, generator())
    with pytest.raises(ValueError, match="a still has no sound"):
        sounds.mix(scene(seconds=0.0), generator())
    with pytest.raises(ValueError, match=r"sound from 0.5 to 1.5 s is not within 1.0 s"):
        sounds.mix(scene(Sound(0.5, 1.5)), generator())
