import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mmflow.world import picture_reader, pictures
from mmflow.world.picture_reader import Found, read_picture, score, size_word
from mmflow.world.scene import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    SHAPES,
    STYLES,
    Background,
    Scene,
    SceneOptions,
    Sound,
    Thing,
    draw_scene,
)


def as_picture(change):
    return lambda pixels: np.asarray(change(Image.fromarray(pixels)).convert("RGB"))


def compressed(quality):
    def change(picture):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return as_picture(change)


def shifted(pixels):
    """Warmer, darker in green, lighter in the shadows: as a generative model may be off."""
    return (pixels * np.array([1.04, 0.97, 0.95]) + [5, -3, 6]).clip(0, 255).astype(np.uint8)


def clean(scene, size):
    return pictures.render(scene, size)


def halved(scene, size):
    """Half of the details are lost: rendered at its size, box-averaged to half of it, and enlarged again (bicubic)."""
    return as_picture(lambda p: p.resize((p.width // 2,) * 2, Image.Resampling.BOX).resize(p.size))(clean(scene, size))


def blurred(scene, size):
    return as_picture(lambda p: p.filter(ImageFilter.GaussianBlur(1)))(clean(scene, size))


def all_at_once(quality):
    """Rendered at twice the size, box-averaged to the size, blurred by a pixel, then JPEG with half as much colour."""

    def changed(scene, size):
        smaller = as_picture(lambda p: p.resize((size, size), Image.Resampling.BOX))(clean(scene, 2 * size))
        return compressed(quality)(as_picture(lambda p: p.filter(ImageFilter.GaussianBlur(1)))(smaller))

    return changed


def all_and_halved(quality):
    """Rendered at its size, blurred by a pixel, halved and enlarged again, then JPEG: harder."""

    def changed(scene, size):
        smaller = as_picture(lambda p: p.resize((size // 2,) * 2, Image.Resampling.BOX).resize(p.size))
        return compressed(quality)(smaller(blurred(scene, size)))

    return changed


CHANGES = {
    "clean": clean,
    "halved": halved,
    "blurred": blurred,
    "jpeg 75": lambda scene, size: compressed(75)(clean(scene, size)),
    "jpeg 50": lambda scene, size: compressed(50)(clean(scene, size)),
    "shifted": lambda scene, size: shifted(clean(scene, size)),
    "all 75": all_at_once(75),
    "all 50": all_at_once(50),
    "all, halved 75": all_and_halved(75),
    "all, halved 50": all_and_halved(50),
}


def total(change, size, most, count, **options):
    """The scores of read pictures of `count` scenes, added up."""
    options = SceneOptions(things=(1, most), **options)
    scores = Counter()
    for number in range(count):
        scene = draw_scene(np.random.default_rng([size, most, number]), "test", options)
        scores.update(score(read_picture(CHANGES[change](scene, size)), scene))
    return scores


def check(scores, least):
    assert scores["all"] / scores["things"] >= least, scores
    assert scores["invented"] / scores["things"] <= (1 - least) / 2, scores


FAST = [
    ("clean", 64, 4, 80, 0.99),
    ("clean", 32, 1, 80, 0.98),
    ("clean", 128, 9, 30, 0.99),
    ("shifted", 64, 4, 40, 0.95),
    ("all 75", 64, 4, 60, 0.95),
    ("all 75", 128, 9, 25, 0.95),
    ("all 50", 128, 9, 25, 0.95),
]
SLOW = [
    ("clean", 32, 1, 400, 0.99),
    ("clean", 32, 4, 400, 0.95),
    ("clean", 64, 1, 400, 0.99),
    ("clean", 64, 4, 400, 0.99),
    ("clean", 64, 9, 200, 0.99),
    ("clean", 128, 9, 200, 0.99),
    ("clean", 256, 4, 200, 0.99),
    ("clean", 256, 9, 200, 0.99),
    ("halved", 64, 4, 300, 0.95),
    ("blurred", 64, 9, 200, 0.95),
    ("jpeg 75", 64, 4, 300, 0.95),
    ("jpeg 50", 64, 4, 300, 0.95),
    ("shifted", 64, 4, 300, 0.95),
    ("all 75", 64, 4, 400, 0.95),
    ("all 50", 64, 4, 400, 0.95),
    ("all 75", 128, 9, 200, 0.95),
    ("all 50", 128, 9, 200, 0.95),
    ("all, halved 75", 64, 4, 400, 0.95),
    ("all, halved 50", 64, 4, 400, 0.95),
    ("all, halved 50", 128, 9, 200, 0.95),
    ("all 50", 64, 9, 200, 0.9),
]


@pytest.mark.parametrize(("change", "size", "most", "count", "least"), FAST)
def test_things_are_read_with_shape_colour_size_and_place(change, size, most, count, least):
    check(total(change, size, most, count), least)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "size", "most", "count", "least"), SLOW)
def test_things_of_many_scenes_are_read_with_shape_colour_size_and_place(change, size, most, count, least):
    scores = total(change, size, most, count)
    print({name: round(value / scores["things"], 4) for name, value in scores.items()}, scores["things"])
    check(scores, least)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_style_is_read_on_every_background(style, background):
    check(total("clean", 64, 4, 100, styles=[style], backgrounds=[background]), 0.985)


def one(shape="circle", colour="red", radius=0.15, x=0.45, y=0.6, **scene):
    size = "small" if radius < 0.12 else "big"
    return Scene((Thing(shape, colour, size, x, y, radius),), **scene)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", ["red", "white"])
def test_one_thing_is_read_to_a_fraction_of_a_pixel(shape, colour):
    [found] = read_picture(pictures.render(one(shape, colour), 128))
    assert (found.shape, found.colour, found.size, found.column, found.row) == (
        shape,
        colour,
        "big",
        "middle",
        "centre",
    )
    assert found.x == pytest.approx(0.45, abs=0.4 / 128)
    assert found.y == pytest.approx(0.6, abs=0.4 / 128)
    assert found.radius == pytest.approx(0.15, rel=0.025)
    assert found.confidence > 0.97


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_read(colour):
    [found] = read_picture(pictures.render(one(colour=colour), 64))
    assert found.colour == colour


def test_things_are_told_from_left_to_right():
    things = tuple(Thing("circle", "red", "small", x, 0.5, 0.09) for x in (0.8, 0.2, 0.5))
    assert [round(found.x, 1) for found in read_picture(pictures.render(Scene(things), 64))] == [0.2, 0.5, 0.8]


def test_things_of_one_colour_that_touch_are_parted():
    things = (Thing("square", "red", "big", 0.3, 0.5, 0.15), Thing("circle", "red", "small", 0.53, 0.5, 0.09))
    found = read_picture(blurred(Scene(things), 64))
    assert [thing.shape for thing in found] == ["square", "circle"]


def test_a_thing_is_read_while_it_flashes():
    scene = one("diamond", "green", seconds=1.0)
    [thing] = scene.things
    scene = replace(scene, things=(replace(thing, sounds=(Sound(0, 1, seen=True),)),))
    [found] = read_picture(pictures.render(scene, 128))
    assert (found.shape, found.colour) == ("diamond", "green")


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_nothing_is_found_on_an_empty_canvas(kind):
    assert read_picture(pictures.render(Scene((), background=Background(kind, (10, 75), 3)), 64)) == []


@pytest.mark.parametrize("level", [0, 255])
def test_nothing_is_found_in_black_and_in_white(level):
    assert read_picture(np.full((64, 64, 3), level, np.uint8)) == []


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize("grain", [1, 4])
def test_nothing_is_found_in_noise(size, grain):
    for seed in range(10):
        noise = np.random.default_rng(seed).integers(0, 256, (size // grain, size // grain, 3), np.uint8)
        assert read_picture(np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))) == []


@pytest.mark.parametrize("brightest", [60, 110])
def test_dark_noise_is_no_error_and_has_few_things(brightest):
    for seed in range(10):
        noise = np.random.default_rng(seed).integers(0, brightest, (64, 64, 3), np.uint8)
        assert len(read_picture(noise)) <= 1


def test_pictures_may_be_wider_than_high():
    pixels = np.hstack([pictures.render(one(x=0.5, y=0.5, radius=0.2), 64), np.full((64, 64, 3), 40, np.uint8)])
    [found] = read_picture(pixels)
    assert (found.column, found.row) == ("left", "centre")
    assert found.x == pytest.approx(0.25, abs=0.01)
    assert found.y == pytest.approx(0.25, abs=0.01)  # canvas widths too


@pytest.mark.parametrize("shape", [(16, 16), (1000, 1000), (40, 50), (50, 40), (16, 1000)])
def test_pictures_of_any_size_are_read(shape):
    dark = np.full((*shape, 3), 40, np.uint8)
    assert read_picture(dark) == []
    short = min(shape)
    dark[:short, :short] = pictures.render(one(radius=0.3, x=0.5, y=0.5), short)
    seen = [(found.shape, found.colour) for found in read_picture(dark)]
    assert seen == ([("circle", "red")] if shape != (16, 1000) else [])  # there it is 0.005 canvas widths large


def test_faint_blobs_and_noise_add_nothing():
    for number in range(20):
        draw = np.random.default_rng([3, number])
        scene = draw_scene(draw, "train", SceneOptions())
        pixels = pictures.render(scene, 64) + draw.normal(0, 6, (64, 64, 3))
        row, column = draw.integers(0, 56, 2)
        pixels[row : row + 8, column : column + 8] += draw.uniform(-12, 12, 3)
        assert score(read_picture(pixels.clip(0, 255).astype(np.uint8)), scene)["invented"] == 0


def test_photographs_are_read_without_an_error(real_data):
    for path in sorted((real_data / "flickr8k" / "Images").glob("*.jpg"))[:10]:
        for found in read_picture(np.asarray(Image.open(path).convert("RGB"))):
            assert found.confidence >= picture_reader.FITS


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((8, 64, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_an_error(pixels):
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8, H and W >= 16"):
        read_picture(pixels)


def test_radii_alone_tell_small_from_big():
    ranges = [(size, *table[i]) for table in RADII.values() for i, size in enumerate(("small", "big"))]
    for size, low, high in ranges:
        assert size_word(low) == size_word(high) == size
        for other, start, end in ranges:
            assert other == size or start / high >= 1.16 or low / end >= 1.16


def test_size_words_are_those_of_the_nearest_range_that_so_many_things_may_have():
    assert [size_word(radius) for radius in (0.05, 0.095, 0.104, 0.16, 0.22, 0.4)] == [
        "small", "small", "big", "small", "small", "big"
    ]  # fmt: skip
    assert size_word(0.16, things=2) == "big"  # small only where a thing is alone
    assert size_word(0.092, things=5) == "big"
    assert size_word(0.07, things=20) == "small"


def as_found(thing, **changes):
    fields = {name: getattr(thing, name) for name in ("shape", "colour", "size", "x", "y", "radius", "column", "row")}
    return Found(**fields | {"confidence": 1.0} | changes)


def test_the_score_counts_what_is_right_missed_and_invented():
    first = Thing("circle", "red", "big", 0.2, 0.2, 0.15)
    second = Thing("ring", "blue", "small", 0.8, 0.8, 0.09)
    third = Thing("cross", "white", "small", 0.5, 0.8, 0.09)
    scene = Scene((first, second, third))
    found = [as_found(second, shape="circle"), as_found(first), as_found(first, colour="cyan")]
    assert score(found, scene) == {
        "shape": 1, "colour": 2, "size": 2, "place": 2, "all": 1, "things": 3, "missed": 1, "invented": 1
    }  # fmt: skip
    assert score([], scene)["missed"] == 3
    assert score([as_found(first)] * 2, Scene(()))["invented"] == 2
