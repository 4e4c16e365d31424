from dataclasses import replace

import numpy as np
import pytest

from mmflow.world import pictures
from mmflow.world.clip_reader import iou, read_flashes
from mmflow.world.scene import Scene, SceneOptions, Sound, Thing, draw_scene


def test_iou_is_intersection_over_union_or_emptiness_where_nothing_is_true():
    true = np.zeros((3, 4, 4), bool)
    predicted = np.zeros((3, 4, 4), bool)
    true[0, :2] = True
    predicted[0, 1:3] = True  # 4 of 12
    predicted[1, 0] = True  # nothing is true: 12 of 16 are left empty
    assert iou(predicted, true) == pytest.approx([1 / 3, 0.75, 1.0])


def test_unlike_masks_are_an_error():
    with pytest.raises(ValueError, match="must be of one shape"):
        iou(np.zeros((4, 4), bool), np.zeros((1, 4, 4), bool))
    with pytest.raises(ValueError, match=r"compare probabilities with 0\.5"):
        iou(np.zeros((4, 4)), np.zeros((4, 4), bool))


def clip(scene, size, rate):
    return np.stack([pictures.render(scene, size, i / rate) for i in range(round(scene.seconds * rate))])


def test_flashes_are_read_to_a_frame_also_of_what_moves():
    things = (
        Thing("circle", "red", "big", 0.2, 0.2, 0.15, "right", 0.2, (Sound(0.5, 1.5, seen=True),)),
        Thing("square", "white", "small", 0.2, 0.8, 0.09, sounds=(Sound(1, 2, seen=True), Sound(0, 2, seen=False))),
        Thing("ring", "blue", "big", 0.75, 0.7, 0.15),
    )
    scene = Scene(things, seconds=2.0)
    found = {f.thing.colour: f for f in read_flashes(clip(scene, 128, 8), 8)}
    assert {c: (f.thing.shape, f.thing.size) for c, f in found.items()} == {
        "red": ("circle", "big"), "white": ("square", "small"), "blue": ("ring", "big")
    }  # fmt: skip
    assert found["red"].flashes == ((0.5, 1.5),)
    assert found["white"].flashes == ((1.0, 2.0),)
    assert found["blue"].flashes == ()
    assert found["red"].thing.x == pytest.approx(0.2, abs=0.01)


def test_flashes_of_many_clips_are_right_in_nearly_all_frames():
    right = frames = 0
    for number in range(8):
        draw = np.random.default_rng([1, number])
        scene = draw_scene(draw, "train", SceneOptions(things=(1, 4), seconds=3.0, moving=0.0))
        lit = draw.random((len(scene.things), 3)) < 0.4
        things = [
            replace(thing, sounds=tuple(Sound(s, s + 1, seen=True) for s in np.flatnonzero(row).tolist()))
            for thing, row in zip(scene.things, lit, strict=True)
        ]
        found = read_flashes(clip(replace(scene, things=tuple(things)), 128, 4), 4)
        for thing, row in zip(things, lit, strict=True):
            frames += 12
            for f in found:
                if (f.thing.shape, f.thing.colour) == (thing.shape, thing.colour):
                    read = [any(a <= i / 4 < b for a, b in f.flashes) for i in range(12)]
                    right += sum(np.repeat(row, 4) == read)
    assert right / frames >= 0.98


def test_frames_that_are_none_are_an_error():
    with pytest.raises(ValueError, match=r"must be \(T, H, W, 3\)"):
        read_flashes(np.zeros((64, 64, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="rate=0"):
        read_flashes(np.zeros((2, 64, 64, 3), np.uint8), 0)
    assert read_flashes(np.zeros((0, 64, 64, 3), np.uint8), 8) == []
