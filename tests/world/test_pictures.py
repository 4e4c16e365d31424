import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmflow.world import pictures
from mmflow.world.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STYLES,
    Background,
    Scene,
    SceneOptions,
    Sound,
    Thing,
    draw_scene,
)

AREAS = {
    "circle": math.pi,
    "square": 1.7**2,
    "triangle": 1.8**2 / 2,
    "cross": 2 * 2 * 0.6 - 0.6**2,
    "ring": math.pi * (1 - 0.55**2),
    "diamond": 2.0,
}  # squared radii


def one(shape="circle", colour="white", x=0.5, y=0.5, radius=0.3, **more):
    return Scene((Thing(shape, colour, "big", x, y, radius, **more),), background=Background("plain", (0, 0)))


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_of_a_shape_is_that_of_its_formula(shape, size):
    area = AREAS[shape] * (0.3 * size) ** 2
    shown = pictures.render(one(shape, x=0.51, y=0.48), size)[..., 0].astype(float).sum() / COLOURS["white"][0]
    assert shown == pytest.approx(area, rel=0.02 if size > 32 else 0.04)
    assert pictures.masks(one(shape, x=0.51, y=0.48), size).sum() == pytest.approx(area, rel=0.06)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_where_a_render_is_more_than_half_bright(shape):
    scene = one(shape, x=0.47, y=0.52)
    bright = pictures.render(scene, 128)[..., 0] / COLOURS["white"][0]
    mask = pictures.masks(scene, 128)[0]
    sure = abs(bright - 0.5) > 0.06
    np.testing.assert_array_equal(mask[sure], (bright > 0.5)[sure])


def test_the_front_one_is_seen_in_picture_masks_boxes_and_segmentation():
    back = Thing("square", "red", "big", 0.4, 0.5, 0.2)
    front = Thing("circle", "blue", "small", 0.4, 0.5, 0.1)
    scene = Scene((back, front), background=Background("plain", (0, 0)))
    masks = pictures.masks(scene, 100)
    assert not (masks[0] & masks[1]).any()
    np.testing.assert_array_equal(pictures.render(scene, 100)[50, 40], COLOURS["blue"])
    np.testing.assert_array_equal(pictures.boxes(scene, 100), [[23, 33, 34, 34], [30, 40, 20, 20]])
    assert pictures.segmentation(scene, 100)[50, 40] == 2
    assert pictures.segmentation(scene, 100, by="shape")[50, 40] == 1
    assert pictures.segmentation(scene, 100, by="shape")[50, 25] == 2
    hidden = replace(scene, things=(front, replace(back, radius=0.3)))
    np.testing.assert_array_equal(pictures.boxes(hidden, 100)[0], [0, 0, 0, 0])
    with pytest.raises(ValueError, match="by='colour' must be thing or shape"):
        pictures.segmentation(scene, 100, by="colour")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_every_style_and_background_keeps_things_apart_from_what_is_behind(style, kind):
    for size in (32, 64, 256):
        scene = replace(one("square", "green"), style=style, background=Background(kind, (10, 70), 3))
        shown = pictures.render(scene, size)
        assert shown.shape == (size, size, 3)
        assert shown.dtype == np.uint8
        inside = shown[pictures.masks(scene, size)[0]]
        assert (inside[:, 1].astype(int) - inside[:, 0]).min() > 30
        corner = shown[: size // 8, : size // 8]
        assert (corner == corner[..., :1]).all()
        assert corner.max() <= 70


def test_a_flash_is_lighter_with_a_white_rim_while_it_lasts():
    scene = one("square", "red", sounds=(Sound(0.5, 1.0, seen=True),))
    before, during, after = (pictures.render(scene, 100, time) for time in (0.49, 0.5, 1.0))
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(during[50, 50], [229, 94, 94])  # a quarter of the way to white
    np.testing.assert_array_equal(during[50, 26], [255, 255, 255])
    np.testing.assert_array_equal(before[50, 26], COLOURS["red"])


def test_what_moves_is_somewhere_else_and_may_leave():
    scene = one("circle", motion="right", speed=0.2)
    np.testing.assert_array_equal(pictures.boxes(scene, 100, 1.0)[0], [40, 20, 60, 60])
    assert not pictures.masks(scene, 100, 10.0).any()
    assert pictures.skeleton(scene, 100, 10.0).max() == 0


def test_edges_are_one_pixel_wide_and_inside():
    scene = one("square", radius=20 / 85)
    outline = pictures.edges(scene, 100)
    assert outline.sum() == 4 * 40 - 4
    assert not (outline & ~pictures.masks(scene, 100)[0]).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_skeletons_have_their_keypoints_on_the_shape(shape):
    scene = one(shape)
    drawn = pictures.skeleton(scene, 200)
    points = pictures.keypoints(scene.things[0])
    for x, y in points:
        assert drawn[int(200 * y - 0.01), int(200 * x - 0.01)] > 200
        across, down = (np.array([[(value - 0.5) / 0.3]], np.float32) for value in (x, y))
        assert pictures.distance(shape, across, down)[0, 0] < 1e-3
    for i, j in pictures.BONES[shape]:
        x, y = np.add(points[i], points[j]) / 2
        assert drawn[int(200 * y), int(200 * x)] > 100


def test_no_two_skeletons_are_alike():
    drawn = [pictures.skeleton(one(shape), 64) > 50 for shape in SHAPES]
    for i in range(len(SHAPES)):
        for j in range(i):
            assert (drawn[i] != drawn[j]).sum() > 0.3 * drawn[i].sum()


def test_files_hold_the_picture():
    draw = np.random.default_rng(0)
    for size in (32, 64, 128):
        shown = pictures.render(draw_scene(draw, "train", SceneOptions()), size)
        png, jpg = (pictures.encode(shown, form) for form in ("png", "jpg"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), shown)
        assert abs(np.asarray(Image.open(io.BytesIO(jpg))).astype(int) - shown).mean() < 4  # 3.2 at 32 pixels
        assert pictures.encode(shown) == jpg
    grey = np.asarray(Image.open(io.BytesIO(pictures.encode(shown[..., 0], "png"))))
    np.testing.assert_array_equal(grey, shown[..., 0])


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match="format='gif' must be one of jpg, png"):
        pictures.encode(np.zeros((4, 4, 3), np.uint8), "gif")
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match=r"give uint8 \(H, W, 3\) or \(H, W\)"):
            pictures.encode(wrong)
    with pytest.raises(ValueError, match="shape 'star' is unknown"):
        pictures.render(one("star"), 32)
