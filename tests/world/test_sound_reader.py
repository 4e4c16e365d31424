import numpy as np
import pytest

from mmflow.world import sounds
from mmflow.world.scene import SHAPES, Scene, Sound, Thing
from mmflow.world.sound_reader import Heard, read_sounds

LATE = {"ring": 0.42}  # s: a bell has nearly died away before its sound ends


@pytest.mark.parametrize("shape", SHAPES)
def test_one_sound_is_heard_when_it_sounds(shape):
    thing = Thing(shape, "red", "big", 0.5, 0.5, 0.15, sounds=(Sound(0.6, 2.1, gain=-6.0),))
    scene = Scene((thing,), seconds=3.0)
    [heard] = read_sounds(sounds.mix(scene, np.random.default_rng(0)))
    assert heard.shape == shape
    assert heard.start == pytest.approx(0.6, abs=0.2 if shape == "ring" else 0.08)
    assert heard.end == pytest.approx(2.1, abs=LATE.get(shape, 0.08))


def test_sounds_that_overlap_are_told_apart():
    missed = invented = 0
    errors = []
    for number in range(12):
        draw = np.random.default_rng([2, number])
        things = []
        for shape in draw.permutation(SHAPES)[:3].tolist():
            start = float(draw.uniform(0, 2))
            event = Sound(start, start + float(draw.uniform(0.6, 1.8)), gain=float(draw.uniform(-6, 0)))
            things.append(Thing(shape, "red", "big", 0.5, 0.5, 0.1, sounds=(event,)))
        heard = read_sounds(sounds.mix(Scene(tuple(things), seconds=4.0), draw))
        invented += len(heard)
        for thing in things:
            mine = [event for event in heard if event.shape == thing.shape]
            missed += len(mine) != 1
            invented -= len(mine)
            errors += [abs(event.start - thing.sounds[0].start) for event in mine if event.shape != "ring"]
    assert (missed, invented) == (0, 0)
    assert np.percentile(errors, 95) < 0.08


def test_silence_and_faint_noise_have_no_sounds():
    assert read_sounds(np.zeros(16000, np.float32)) == []
    assert read_sounds(np.zeros(0, np.float32)) == []
    assert read_sounds(np.float32(1e-3) * np.random.default_rng(0).standard_normal(32000, dtype=np.float32)) == []


def test_what_is_no_sound_is_an_error():
    with pytest.raises(ValueError, match=r"must be \(S,\) of a floating type"):
        read_sounds(np.zeros(16000, np.int16))
    with pytest.raises(ValueError, match=r"must be \(S,\) of a floating type"):
        read_sounds(np.zeros((2, 16000), np.float32))


def test_sounds_are_told_in_order():
    sound = np.zeros(48000, np.float32)
    draw = np.random.default_rng(0)
    sound[:16000] += sounds.sound("triangle", 1.0, draw)
    sound[24000:40000] += sounds.sound("circle", 1.0, draw)
    assert [type(h) for h in read_sounds(sound)] == [Heard, Heard]
    assert [h.shape for h in read_sounds(sound)] == ["triangle", "circle"]
