import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mmflow.world import pictures, readers, sounds
from mmflow.world.readers import Found, Heard, iou, read_flashes, read_picture, read_sounds, score, size_words
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


CHANGES = {
    "clean": lambda pixels: pixels,
    "halved": as_picture(lambda p: p.resize((p.width // 2,) * 2, Image.Resampling.BOX).resize(p.size)),
    "blurred": as_picture(lambda p: p.filter(ImageFilter.GaussianBlur(1))),
    "jpeg 75": compressed(75),
    "jpeg 50": compressed(50),
    "shifted": shifted,
}
CHANGES["all"] = lambda pixels: compressed(60)(CHANGES["halved"](CHANGES["blurred"](pixels)))


def total(change, size, most, count, **options):
    """The scores of read pictures of `count` scenes, added up; sizes of scenes are told."""
    options = SceneOptions(things=(1, most), **options)
    scores = Counter()
    for number in range(count):
        scene = draw_scene(np.random.default_rng([size, most, number]), "test", options)
        scores.update(score(read_picture(CHANGES[change](pictures.render(scene, size)), most), scene))
    return scores


def check(scores, least):
    assert scores["all"] / scores["things"] >= least, scores
    assert scores["invented"] / scores["things"] <= (1 - least) / 2, scores


FAST = [
    ("clean", 64, 4, 120, 0.99),
    ("clean", 64, 9, 60, 0.99),
    ("clean", 32, 1, 100, 0.98),
    ("clean", 128, 9, 30, 0.99),
    ("halved", 64, 4, 80, 0.95),
    ("blurred", 64, 4, 80, 0.95),
    ("jpeg 50", 64, 4, 80, 0.95),
    ("all", 128, 4, 50, 0.95),
]
SLOW = [
    ("clean", 32, 1, 400, 0.98),
    ("clean", 32, 4, 400, 0.95),
    ("clean", 64, 1, 400, 0.99),
    ("clean", 64, 4, 400, 0.99),
    ("clean", 64, 9, 300, 0.99),
    ("clean", 128, 9, 200, 0.99),
    ("clean", 256, 4, 300, 0.99),
    ("clean", 256, 9, 200, 0.99),
    ("halved", 64, 4, 400, 0.95),
    ("halved", 128, 9, 200, 0.95),
    ("blurred", 64, 4, 400, 0.95),
    ("blurred", 64, 9, 200, 0.95),
    ("blurred", 128, 9, 200, 0.95),
    ("jpeg 75", 64, 4, 400, 0.95),
    ("jpeg 75", 128, 9, 200, 0.95),
    ("jpeg 50", 64, 4, 400, 0.95),
    ("jpeg 50", 128, 9, 200, 0.95),
    ("shifted", 64, 4, 400, 0.95),
    ("all", 64, 1, 400, 0.95),
    ("all", 64, 4, 400, 0.93),
    ("all", 128, 4, 300, 0.95),
    ("all", 128, 9, 200, 0.95),
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
    assert found.x == pytest.approx(0.45, abs=0.3 / 128)
    assert found.y == pytest.approx(0.6, abs=0.3 / 128)
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
    found = read_picture(CHANGES["blurred"](pictures.render(Scene(things), 64)))
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


def test_photographs_are_read_without_an_error(real_data):
    for path in sorted((real_data / "flickr8k" / "Images").glob("*.jpg"))[:10]:
        for found in read_picture(np.asarray(Image.open(path).convert("RGB"))):
            assert found.confidence >= readers.FITS


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


@pytest.mark.parametrize("most", RADII)
def test_size_words_follow_the_told_table(most):
    for word, (low, high) in zip(("small", "big"), RADII[most], strict=True):
        assert size_words([low, high], most) == [word, word]


def test_size_words_follow_from_the_radii_where_no_table_is_told():
    assert size_words([0.18]) == ["small"]
    assert size_words([0.30]) == ["big"]
    assert size_words([0.09]) == ["small"]
    assert size_words([0.15, 0.095]) == ["big", "small"]
    assert size_words([0.065, 0.108]) == ["small", "big"]
    assert size_words([0.07] * 3 + [0.1] * 3) == ["small"] * 3 + ["big"] * 3
    assert size_words([]) == []


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
    found = {f.thing.colour: f for f in read_flashes(clip(scene, 128, 8), 8, 4)}
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
        found = read_flashes(clip(replace(scene, things=tuple(things)), 128, 4), 4, 4)
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


LATE = {"ring": 0.42}  # s: a bell has nearly died away before its sound ends


@pytest.mark.parametrize("shape", SHAPES)
def test_one_sound_is_heard_when_it_sounds(shape):
    scene = one(shape, seconds=3.0)
    scene = replace(scene, things=(replace(scene.things[0], sounds=(Sound(0.6, 2.1, gain=-6.0),)),))
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
