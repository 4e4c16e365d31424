import json
import math
from collections import Counter

import numpy as np
import pytest

from mmflow.world.scene import CLEAR, COLOURS, GAP, SHAPES, Scene, SceneOptions, Sound, Thing, draw_scene, held_out


def scenes(split, count=300, **options):
    draw = np.random.default_rng(0)
    return [draw_scene(draw, split, SceneOptions(**options)) for _ in range(count)]


def test_each_split_holds_out_six_pairs_and_training_keeps_36():
    homes = Counter(held_out(colour, shape) for colour in COLOURS for shape in SHAPES)
    assert homes == {None: 36, "validation": 6, "test": 6}
    for shape in SHAPES:  # training knows each shape and each colour
        assert sum(held_out(colour, shape) is None for colour in COLOURS) == 6
    assert all(any(held_out(colour, shape) is None for shape in SHAPES) for colour in COLOURS)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_scenes_show_the_pairs_of_their_split(split):
    drawn = scenes(split)
    for scene in drawn:
        homes = {held_out(thing.colour, thing.shape) for thing in scene.things}
        assert homes <= {None, split}
        assert scene.unseen == (split in homes)
    assert np.mean([scene.unseen for scene in drawn]) == pytest.approx(0 if split == "train" else 0.5, abs=0.09)


@pytest.mark.parametrize("most", [1, 4, 9])
def test_things_do_not_touch_and_their_places_are_clear(most):
    for scene in scenes("train", 60, things=(most, most)):
        assert len(scene.things) == most
        assert len({(thing.colour, thing.shape) for thing in scene.things}) == most
        for i, thing in enumerate(scene.things):
            assert thing.radius + GAP <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
            assert min(abs(value - line) for value in (thing.x, thing.y) for line in (1 / 3, 2 / 3)) > CLEAR
            for other in scene.things[:i]:
                assert math.dist((thing.x, thing.y), (other.x, other.y)) > thing.radius + other.radius


def test_words_tell_the_place():
    assert [Thing("circle", "red", "big", x, 0.5, 0.1).column for x in (0.1, 0.5, 0.9, 1.0)] == [
        "left", "middle", "right", "right",
    ]  # fmt: skip
    assert [Thing("circle", "red", "big", 0.5, y, 0.1).row for y in (0.1, 0.5, 0.9)] == ["top", "centre", "bottom"]


def test_what_moves_stays_on_the_canvas():
    moving = [t for scene in scenes("train", seconds=3.0, moving=1.0) for t in scene.things]
    assert {thing.motion for thing in moving} == {"left", "right", "up", "down"}
    for thing in moving:
        x, y = thing.at(3.0)
        assert thing.radius - 1e-9 <= min(x, y, 1 - x, 1 - y)
        assert math.dist((x, y), (thing.x, thing.y)) > 0.099


def test_a_scene_comes_back_from_json():
    scene = scenes("test", 1, seconds=2.0)[0]
    sounding = Scene((Thing("ring", "red", "small", 0.5, 0.5, 0.1, sounds=(Sound(0.5, 1.0, -3.0, True, True),)),))
    for one in (scene, sounding):
        assert Scene.from_json(json.loads(json.dumps(one.as_json()))) == one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"things": (1, 10)}, r"things=\(1, 10\) must be from at least 1 to at most 9: more do not fit"),
        ({"things": (0, 2)}, "must be from at least 1"),
        ({"shapes": ["star"]}, r"shapes=\['star'\] must be one or more of circle, square"),
        ({"colours": []}, r"colours=\[\] must be one or more"),
        ({"styles": ["flat", "flat"]}, "each once"),
        ({"seconds": -1.0}, "seconds=-1.0 must be 0"),
        ({"moving": 2.0}, "moving=2.0 is a chance"),
        ({"colours": ["red"], "shapes": ["circle"]}, "leave 0 pairs for the train part"),
        ({"colours": ["red"], "things": (1, 8)}, "too few for things"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SceneOptions(**options)
