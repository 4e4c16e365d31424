import numpy as np
import pytest

from mmflow.world import acoustics
from mmflow.world.acoustics import SAMPLE_RATE

SECOND = np.arange(SAMPLE_RATE) / SAMPLE_RATE  # (S,)


def tone(hertz):
    return np.sin(2 * np.pi * hertz * SECOND)


def loudest_hz(signal):
    return np.argmax(np.abs(np.fft.rfft(signal * np.hanning(len(signal))))) * SAMPLE_RATE / len(signal)


def power_db(signal):
    return 10 * np.log10(np.mean(signal**2))


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.25, 2.0])
def test_resampling_stretches_time_and_lowers_every_frequency_by_the_ratio(ratio):
    stretched = acoustics.resample(tone(1000), ratio)
    assert len(stretched) == round(SAMPLE_RATE * ratio)
    assert loudest_hz(stretched) == pytest.approx(1000 / ratio, abs=2)
    assert power_db(stretched) == pytest.approx(power_db(tone(1000)), abs=0.1)


def test_resampling_agrees_with_the_tone_written_down_at_the_new_rate():
    written = np.sin(2 * np.pi * 440 / 1.3 * np.arange(round(SAMPLE_RATE * 1.3)) / SAMPLE_RATE)
    difference = acoustics.resample(tone(440), 1.3) - written
    assert np.abs(difference[500:-500]).max() < 0.03  # a fifth of a sample late at the end, for sizes are whole numbers


def test_resampling_removes_what_lies_above_the_new_nyquist_frequency():
    assert power_db(acoustics.resample(tone(6000), 0.5)) < -40


def test_wobble_says_which_old_moment_is_heard_at_each_new_one():
    wobbled, times = acoustics.wobble(tone(300), 0.06, 0.15, generator())
    assert len(wobbled) == len(times) == SAMPLE_RATE
    assert times[0] == 0
    assert times[-1] == pytest.approx(SAMPLE_RATE - 1)
    assert np.all(np.diff(times) > 0.7)
    assert np.std(times - np.arange(SAMPLE_RATE)) > 20  # samples: it does move
    expected = np.sin(2 * np.pi * 300 * times / SAMPLE_RATE)
    assert np.abs(wobbled - expected)[200:-200].max() < 0.01


def test_wobble_of_no_depth_changes_nothing():
    wobbled, times = acoustics.wobble(tone(300), 0.0, 0.15, generator())
    assert np.allclose(times, np.arange(SAMPLE_RATE))
    assert np.abs(wobbled - tone(300))[200:-200].max() < 1e-3


def test_a_room_keeps_the_direct_sound_in_place_and_its_tail_falls_by_60_db_in_t60():
    click = np.zeros(SAMPLE_RATE)
    click[100] = 1.0
    heard = acoustics.reverberate(click, 0.4, 6.0, generator())
    assert np.allclose(heard[:100], 0, atol=1e-9)
    assert heard[100] == pytest.approx(1.0)
    tail = heard[101:]
    assert -10 * np.log10(np.sum(tail**2)) == pytest.approx(6.0, abs=0.1)
    early, late = tail[160:1760], tail[3360:4960]  # 0.2 s apart: half of T60
    assert power_db(early) - power_db(late) == pytest.approx(30, abs=3)


def test_an_equaliser_has_the_depth_asked_for_and_moves_nothing():
    click = np.zeros(4096)
    click[2048] = 1.0
    gains_db = [
        20 * np.log10(np.abs(np.fft.rfft(acoustics.equalise(click, 4.0, 8, generator(seed))))) for seed in range(50)
    ]
    assert np.std(gains_db) == pytest.approx(4.0, rel=0.25)
    assert np.argmax(acoustics.equalise(click, 4.0, 8, generator())) == 2048


def test_a_tilt_is_a_straight_line_over_octaves_through_500_hz():
    for hertz, gain_db in ((250, -3), (500, 0), (2000, 6)):
        assert power_db(acoustics.tilt(tone(hertz), 3.0)) - power_db(tone(hertz)) == pytest.approx(gain_db, abs=0.1)


def test_a_band_limit_halves_the_power_at_its_edges_and_passes_the_middle():
    for hertz, gain_db in ((300, -3), (1000, 0), (3400, -3)):
        change = power_db(acoustics.band_limit(tone(hertz), 300, 3400)) - power_db(tone(hertz))
        assert change == pytest.approx(gain_db, abs=0.2)
    assert power_db(acoustics.band_limit(tone(6800), 300, 3400)) < -30


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_has_the_power_and_the_slope_asked_for(exponent):
    speech = np.repeat(tone(440), 4)
    noise = acoustics.add_noise(speech, 20.0, exponent, generator()) - speech
    assert power_db(speech) - power_db(noise) == pytest.approx(20.0, abs=0.01)
    power = np.abs(np.fft.rfft(noise[:SAMPLE_RATE])) ** 2
    per_octave = 10 * np.log10(power[1000:2000].mean() / power[2000:4000].mean())
    assert per_octave == pytest.approx(10 * exponent * np.log10(2), abs=0.7)


def test_the_level_is_what_was_asked_for_unless_peaks_would_clip():
    assert power_db(acoustics.set_level(tone(440), -30.0)) == pytest.approx(-30.0)
    click = np.zeros(1000)
    click[7] = 0.1
    assert np.abs(acoustics.set_level(click, -10.0)).max() == pytest.approx(0.95)


def test_the_same_generator_state_gives_the_same_samples():
    speech = tone(440)
    for effect in (
        lambda g: acoustics.wobble(speech, 0.06, 0.15, g)[0],
        lambda g: acoustics.reverberate(speech, 0.3, 6.0, g),
        lambda g: acoustics.equalise(speech, 4.0, 8, g),
        lambda g: acoustics.add_noise(speech, 20.0, 1.0, g),
    ):
        assert np.array_equal(effect(generator(5)), effect(generator(5)))
        assert not np.array_equal(effect(generator(5)), effect(generator(6)))
