import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmflow.data.decode import decode
from mmflow.data.make import build_source
from mmflow.data.spec import DataSpec
from mmflow.world import language, pictures
from mmflow.world.scene import COLOURS, SHAPES, Background, Scene, Thing, held_out
from mmflow.world.stills import (
    KINDS,
    PALETTE,
    TO_MAP,
    TO_PICTURE,
    WorldPictures,
    WorldStructures,
    objects,
    read_segmentation,
    read_skeleton,
    score_structure,
    structure,
)

SCENE = Scene(
    (Thing("square", "red", "big", 0.4, 0.5, 0.2), Thing("circle", "blue", "small", 0.7, 0.5, 0.2)),
    background=Background("plain", (0, 0)),
)
COUNTS = {"train": 60, "validation": 40, "test": 40}
# A process of its own, with a seed of its own for the hashes of texts, makes what it is sent.
MAKE = "import pickle, sys; sys.stdout.buffer.write(pickle.dumps([i.sample() for i in pickle.load(sys.stdin.buffer)]))"


@pytest.fixture(scope="module")
def samples():
    return [(item.split, item.sample()) for item in WorldPictures(*COUNTS.values(), seed=3, masks=True).items()]


@pytest.fixture(scope="module")
def structures():
    return [(item.split, item.sample()) for item in WorldStructures(*COUNTS.values(), seed=3).items()]


def pixels(data, extension):
    """(H, W, 3) of a member as a shard would give it."""
    return decode(data, extension).tensor().permute(1, 2, 0).numpy()


def scene_of(sample):
    return Scene.from_json(decode(json.dumps(sample["json"]).encode(), "json")["scene"])


# ---- both sources


@pytest.mark.parametrize("source", [WorldPictures, WorldStructures])
def test_there_are_as_many_as_asked_for_and_their_keys_are_unique(source):
    items = source(5, 0, 3).items()
    assert [item.key for item in items if item.split == "test"] == ["test-000000", "test-000001", "test-000002"]
    assert len({item.key for item in items}) == len({item.group for item in items}) == len(items) == 8
    assert {item.split for item in items} == {"train", "test"}


@pytest.mark.parametrize("made", ["samples", "structures"])
def test_pairs_that_are_held_out_are_in_their_split_alone(made, request):
    unseen = {"train": 0, "validation": 0, "test": 0}
    for split, sample in request.getfixturevalue(made):
        homes = {held_out(thing.colour, thing.shape) for thing in scene_of(sample).things}
        assert homes <= {None, split}
        new = sample["json"].get("unseen_template", False)
        assert sample["json"]["unseen"] == (split in homes or new)
        assert not (split == "train" and new)
        unseen[split] += split in homes
    assert unseen["train"] == 0
    for split in ("validation", "test"):  # half of them, within three standard errors
        assert abs(unseen[split] / COUNTS[split] - 0.5) < 3 * 0.5 / COUNTS[split] ** 0.5


@pytest.mark.parametrize("source", [WorldPictures, WorldStructures])
def test_a_sample_depends_on_seed_split_and_number_alone(source):
    few, many = source(2, 1, 1).items(), source(5, 0, 3).items()
    assert few[1].sample() == many[1].sample()
    assert few[3].sample() == many[5].sample()
    assert few[0].sample()["json"] != source(2, 1, 1, seed=1).items()[0].sample()["json"]
    assert few[0].sample()["json"]["scene"] != few[2].sample()["json"]["scene"]


def test_samples_are_the_same_bytes_in_another_process():
    items = [*WorldPictures(6, 0, 3, masks=True).items(), *WorldStructures(6, 0, 3).items()]
    made = subprocess.run([sys.executable, "-c", MAKE], input=pickle.dumps(items), capture_output=True, check=True)
    assert pickle.loads(made.stdout) == [item.sample() for item in items]


@pytest.mark.parametrize("source", [WorldPictures, WorldStructures])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": -1}, "train=-1 must be in 0..10,000,000"),
        ({"test": -2}, "test=-2 must be in 0..10,000,000"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"size": 31}, r"size=31 pixels must be in 32\.\.256; smaller shapes cannot be told apart"),
        ({"size": 257}, r"size=257 pixels must be in 32\.\.256"),
        ({"things": (1, 10)}, "from at least 1 to at most 9: more do not fit"),
        ({"things": (0, 2)}, r"things=\(0, 2\) must be from at least 1"),
        ({"things": (3, 2)}, r"things=\(3, 2\) must be"),
        ({"shapes": ["hexagon"]}, r"shapes=\['hexagon'\] must be one or more of circle, square"),
        ({"colours": []}, r"colours=\[\] must be one or more of red, green"),
        ({"colours": ["red", "red"]}, "colours=.* each once"),
        ({"styles": ["oil"]}, r"styles=\['oil'\] must be one or more of flat"),
        ({"backgrounds": ["sea"]}, r"backgrounds=\['sea'\] must be one or more of plain"),
        ({"shapes": ["ring"], "colours": ["red"], "things": (1, 2)}, "1 colours and 1 shapes leave 0 pairs for the"),
    ],
)
def test_impossible_options_are_said(source, options, message):
    with pytest.raises(ValueError, match=message):
        source(**options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (WorldPictures, {"format": "gif"}, "format='gif' must be one of jpg, png"),
        (WorldStructures, {"kinds": ["depth"]}, r"kinds=\['depth'\] must be one or more of segmentation, edges"),
        (WorldStructures, {"kinds": []}, r"kinds=\[\] must be one or more of"),
        (WorldStructures, {"kinds": ["edges", "edges"]}, "each once"),
    ],
)
def test_impossible_options_of_one_source_are_said(source, options, message):
    with pytest.raises(ValueError, match=message):
        source(**options)


@pytest.mark.parametrize(("source", "made"), [(WorldPictures, "samples"), (WorldStructures, "structures")])
def test_the_size_is_about_that_of_the_members(source, made, request):
    sizes = [
        sum(len(value if isinstance(value, bytes) else json.dumps(value)) for value in sample.values())
        for _, sample in request.getfixturevalue(made)
    ]
    most = 1024 * len(request.getfixturevalue(made)[0][1])  # a tar adds up to 1 kB to each
    assert np.mean(sizes) * 0.9 < source(1, 0, 0).items()[0].size < np.mean(sizes) + most


@pytest.mark.parametrize(("name", "made"), [("world_pictures", "samples"), ("world_structures", "structures")])
def test_the_spec_is_of_the_source_and_names_its_members(name, made, request):
    spec = DataSpec.read(Path("data_specs") / f"{name}.yaml")
    source = build_source(spec)
    assert type(source) is {"samples": WorldPictures, "structures": WorldStructures}[made]
    _, sample = request.getfixturevalue(made)[0]
    assert all(set(members) & set(sample) for members in spec.fields.values())
    assert set(spec.splits) == set(source.counts)


# ---- pictures


def test_members_decode(samples):
    for _, sample in samples:
        assert list(sample) == ["__key__", "jpg", "txt", "mask.png", "json"]
        picture = decode(sample["jpg"], "jpg")
        assert (picture.height, picture.width) == (64, 64)
        shown = pictures.render(scene_of(sample), 64).astype(int)
        assert abs(pixels(sample["jpg"], "jpg") - shown).mean() < 4  # JPEG
        assert decode(sample["txt"].encode(), "txt") == sample["txt"]


def test_png_is_what_was_drawn():
    sample = WorldPictures(1, 0, 0, format="png", size=48).items()[0].sample()
    assert list(sample) == ["__key__", "png", "txt", "json"]
    np.testing.assert_array_equal(pixels(sample["png"], "png"), pictures.render(scene_of(sample), 48))


def test_boxes_areas_and_labels_agree_with_the_mask(samples):
    """The mask is decoded, boxes and areas are counted in it."""
    for _, sample in samples:
        scene = scene_of(sample)
        mask = pixels(sample["mask.png"], "mask.png")[..., 0]
        np.testing.assert_array_equal(mask, pictures.segmentation(scene, 64))
        planes = pictures.masks(scene, 64)
        assert len(sample["json"]["objects"]) == len(scene.things) == mask.max()
        for number, (thing, told) in enumerate(zip(scene.things, sample["json"]["objects"], strict=True)):
            np.testing.assert_array_equal(mask == number + 1, planes[number])
            rows, columns = np.nonzero(mask == number + 1)
            left, top, width, height = told["box"]
            assert (left, left + width - 1) == (columns.min(), columns.max())
            assert (top, top + height - 1) == (rows.min(), rows.max())
            assert told["area"] == len(rows)
            assert SHAPES[told["label"]] == told["class"] == thing.shape
            assert (told["colour"], told["size"]) == (thing.colour, thing.size)


def test_objects_of_a_scene_by_hand():
    """A square of 34 x 34 pixels behind a circle, of which it loses a part of its right side."""
    square, circle = objects(SCENE, 100)
    assert square["box"] == [23, 33, 34, 34]
    assert circle["box"] == [50, 30, 40, 40]
    assert circle["area"] == pytest.approx(np.pi * 20**2, rel=0.02)
    assert 34 * 34 - 34 * 7 < square["area"] < 34 * 34
    assert (square["label"], circle["label"]) == (1, 0)


def test_the_class_is_the_shape_of_the_biggest(samples):
    for _, sample in samples:
        told = sample["json"]
        radius, shape = max((thing.radius, thing.shape) for thing in scene_of(sample).things)
        assert radius > 0.05
        assert told["class"] == shape == SHAPES[told["label"]]


def test_captions_are_true_and_the_text_is_the_first(samples):
    for _, sample in samples:
        scene, captions = scene_of(sample), sample["json"]["captions"]
        assert captions[0] == sample["txt"]
        assert len(set(captions)) == len(captions) in (2, 3, 4)
        for caption in captions:
            assert language.score(caption, scene)["right"] == 1
        assert language.score(captions[-1], scene)["missed"] == []  # the long one names all things


def test_options_are_kept():
    few = {"shapes": ["ring", "cross", "square"], "colours": ["red", "blue", "cyan"]}
    options = {"styles": ["striped"], "backgrounds": ["checks"], "things": (2, 2), "size": 32, "format": "png"}
    for item in WorldPictures(10, 3, 3, **few, **options).items():
        sample = item.sample()
        scene = scene_of(sample)
        assert pixels(sample["png"], "png").shape == (32, 32, 3)
        assert len(scene.things) == 2
        assert (scene.style, scene.background.kind) == ("striped", "checks")
        assert {thing.shape for thing in scene.things} <= set(few["shapes"])
        assert {thing.colour for thing in scene.things} <= set(few["colours"])


@pytest.mark.parametrize("source", [WorldPictures, WorldStructures])
def test_the_most_things_fit(source):
    sample = source(1, 0, 0, things=(9, 9), size=256).items()[0].sample()
    assert len(sample["json"]["scene"]["things"]) == 9
    assert (pictures.boxes(scene_of(sample), 256)[:, 2:] > 20).all()


# ---- structures


def test_maps_are_those_of_the_scene(structures):
    for _, sample in structures:
        assert list(sample) == ["__key__", "0.jpg", "1.png", "2.png", "3.png", "txt", "json"]
        scene = scene_of(sample)
        segmentation, edges, skeleton = (pixels(sample[f"{i}.png"], f"{i}.png") for i in (1, 2, 3))
        np.testing.assert_array_equal(segmentation, PALETTE[pictures.segmentation(scene, 64, by="shape")])
        np.testing.assert_array_equal(edges[..., 0] == 255, pictures.edges(scene, 64))
        np.testing.assert_array_equal(edges[..., 0] == 0, ~pictures.edges(scene, 64))
        np.testing.assert_array_equal(skeleton[..., 0], pictures.skeleton(scene, 64))
        assert abs(pixels(sample["0.jpg"], "0.jpg") - pictures.render(scene, 64).astype(int)).mean() < 4


def test_the_colours_of_segmentation_tell_shapes_and_are_no_paints():
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == len(SHAPES) + 1
    assert not {tuple(colour) for colour in PALETTE.tolist()} & set(COLOURS.values())
    shown = structure(SCENE, 100, "segmentation")
    assert tuple(shown[50, 30]) == tuple(PALETTE[1 + SHAPES.index("square")])
    assert tuple(shown[50, 70]) == tuple(PALETTE[1 + SHAPES.index("circle")])
    assert tuple(shown[5, 5]) == (0, 0, 0)


def test_an_unknown_map_is_said():
    with pytest.raises(ValueError, match="kind='depth' must be one of segmentation, edges, skeleton"):
        structure(SCENE, 64, "depth")


def test_pairs_go_both_ways_and_tell_the_colours(structures):
    for _, sample in structures:
        told = sample["json"]
        assert told["maps"] == {"segmentation": "1.png", "edges": "2.png", "skeleton": "3.png"}
        ways = {(pair["kind"], pair["source"], pair["target"]) for pair in told["pairs"]}
        there = {(kind, "0.jpg", name) for kind, name in told["maps"].items()}
        assert ways == there | {(kind, name, "0.jpg") for kind, name in told["maps"].items()}
        assert len(told["pairs"]) == 6
        for pair in told["pairs"]:
            said = {"segmentation": "segmentation map", "edges": "outline", "skeleton": "skeleton"}[pair["kind"]]
            assert said in pair["instruction"]
            assert pair["instruction"].endswith(f": {sample['txt']}") == (pair["target"] == "0.jpg")
        named = [phrase.split()[1:] for phrase in sample["txt"].split(", ")]
        assert named == [[thing.size, thing.colour, thing.shape] for thing in scene_of(sample).things]


def test_instructions_that_are_held_out_are_in_their_split_alone(structures):
    numbers = {"train": set(), "validation": set(), "test": set()}
    new = {"validation": 0, "test": 0}
    for split, sample in structures:
        told = sample["json"]
        for pair in told["pairs"]:
            words = pair["instruction"].split(":")[0]
            templates = TO_PICTURE if pair["target"] == "0.jpg" else TO_MAP
            said = {"segmentation": "segmentation map", "edges": "outline", "skeleton": "skeleton"}[pair["kind"]]
            number = [template.format(kind=said) for template in templates].index(words)
            numbers[split].add(number)
            assert (number > 2) == told["unseen_template"]
        if split != "train":
            new[split] += told["unseen_template"]
    assert numbers == {"train": {0, 1, 2}, "validation": {0, 1, 2, 3}, "test": {0, 1, 2, 4}}
    assert 10 < new["validation"] < 30  # half of 40
    assert 10 < new["test"] < 30
    assert len(set(TO_PICTURE)) == len(set(TO_MAP)) == 5


# ---- maps that something has drawn


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_map_has_full_marks(structures, kind):
    for _, sample in structures[:40]:
        scores = score_structure(structure(scene_of(sample), 64, kind), scene_of(sample), kind)
        assert set(scores.values()) == {1.0}


@pytest.mark.parametrize(
    ("kind", "scores"),
    [
        ("segmentation", {"iou": 0, "things": 0}),
        ("edges", {"precision": 0, "recall": 0, "f1": 0}),
        ("skeleton", {"precision": 0, "recall": 0, "f1": 0, "things": 0}),
    ],
)
def test_an_empty_map_has_none(kind, scores):
    found = score_structure(np.zeros((100, 100, 3), np.uint8), SCENE, kind)
    shown = (pictures.segmentation(SCENE, 100) > 0).mean()
    if kind == "segmentation":
        scores = scores | {"pixels": pytest.approx(1 - shown)}
    assert found == scores


SQUARE = Scene((Thing("square", "red", "big", 0.5, 0.5, 0.2),))  # of 34 x 34 pixels in 100


def test_a_segmentation_that_is_off_by_hand():
    """Moved by 17 of 34 pixels a third of what either covers is of both; another shape's colour is no hit at all."""
    moved = np.roll(structure(SQUARE, 100, "segmentation"), 17, axis=1)
    assert score_structure(moved, SQUARE, "segmentation") == {
        "pixels": pytest.approx(1 - 34 * 34 / 10_000), "iou": pytest.approx(1 / 3), "things": 0
    }  # fmt: skip
    wrong = np.zeros((100, 100, 3), np.uint8)
    wrong[33:67, 33:67] = PALETTE[1 + SHAPES.index("ring")]
    assert score_structure(wrong, SQUARE, "segmentation") == {
        "pixels": pytest.approx(1 - 34 * 34 / 10_000), "iou": 0, "things": 0
    }  # fmt: skip
    near = structure(SQUARE, 100, "segmentation").astype(int) + 25  # colours need not be exact
    assert score_structure(near.astype(np.uint8), SQUARE, "segmentation") == {"pixels": 1, "iou": 1, "things": 1}


@pytest.mark.parametrize(("moved", "share"), [(1, 1.0), (2, 68 / 132), (50, 0.0)])
def test_outlines_that_are_off_by_hand(moved, share):
    """Of 4 x 33 edge pixels; moved by two, 33 of the upper side, 33 of the lower one and the two next to them on the
    left are still beside true ones."""
    found = score_structure(np.roll(structure(SQUARE, 100, "edges"), moved, axis=1), SQUARE, "edges")
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(share)


def test_half_of_an_outline_is_all_right_but_half_found():
    half = structure(SQUARE, 100, "edges")
    half[:, 50:] = 0
    found = score_structure(half, SQUARE, "edges")
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(0.5, abs=0.02)
    assert found["f1"] == pytest.approx(2 / 3, abs=0.02)


def test_keypoints_are_read_to_a_third_of_a_pixel():
    for shape in SHAPES:
        thing = Thing(shape, "red", "big", 0.43, 0.52, 0.14)
        points = read_skeleton(structure(Scene((thing,)), 64, "skeleton"))
        true = np.array(pictures.keypoints(thing))
        assert len(points) == len(true)
        far = np.linalg.norm(true[:, None] - np.array(points)[None], axis=2)
        assert far.min(1).max() * 64 < 0.34


def test_a_skeleton_that_is_off_by_hand():
    """A square has 5 keypoints; moved by more than is CLOSE none is right, and with a ring beside it 5 of 13 are."""
    shown = structure(SQUARE, 100, "skeleton")
    assert score_structure(np.roll(shown, 2, axis=0), SQUARE, "skeleton")["f1"] == 1
    assert score_structure(np.roll(shown, 4, axis=0), SQUARE, "skeleton")["f1"] == 0
    ring = Thing("ring", "blue", "small", 0.85, 0.85, 0.1)
    both = structure(Scene((*SQUARE.things, ring)), 100, "skeleton")
    assert score_structure(both, SQUARE, "skeleton") == {
        "precision": pytest.approx(5 / 13), "recall": 1, "f1": pytest.approx(10 / 18), "things": 1
    }  # fmt: skip
    alone = score_structure(shown, Scene((*SQUARE.things, ring)), "skeleton")
    assert alone == {"precision": 1, "recall": pytest.approx(5 / 13), "f1": pytest.approx(10 / 18), "things": 0.5}


def test_maps_that_cannot_be_scored_are_said():
    with pytest.raises(ValueError, match="kind='depth' must be one of segmentation, edges, skeleton"):
        score_structure(np.zeros((64, 64), np.uint8), SCENE, "depth")
    with pytest.raises(ValueError, match=r"a map of float64 \(64, 64\) must be uint8 \(H, H, 3\) or \(H, H\)"):
        score_structure(np.zeros((64, 64)), SCENE, "edges")
    with pytest.raises(ValueError, match=r"a map of uint8 \(64, 32\) must be"):
        score_structure(np.zeros((64, 32), np.uint8), SCENE, "edges")
    with pytest.raises(ValueError, match=r"a segmentation map of shape \(64, 64\) must be \(H, W, 3\)"):
        read_segmentation(np.zeros((64, 64), np.uint8))


def test_keypoints_are_white_in_the_map_and_bones_join_them(structures):
    for _, sample in structures:
        shown = pixels(sample["3.png"], "3.png")[..., 0]
        for thing, skeleton in zip(scene_of(sample).things, sample["json"]["skeletons"], strict=True):
            assert skeleton["shape"] == thing.shape
            points = np.array(skeleton["keypoints"])
            far = np.linalg.norm(points - 64 * np.array([thing.x, thing.y]), axis=1)
            assert far.max() < 64 * thing.radius * 1.25
            columns, rows = np.clip(points.T.astype(int), 0, 63)
            assert (shown[rows, columns] > pictures.BONE_LEVEL + 20).all()
            for i, j in skeleton["bones"]:
                column, row = ((points[i] + points[j]) / 2).astype(int)
                assert shown[row - 1 : row + 2, column - 1 : column + 2].max() > 60


@pytest.mark.parametrize("kinds", [["skeleton"], ["edges", "segmentation"], list(KINDS)[::-1]])
def test_maps_come_in_the_order_of_the_kinds(kinds):
    sample = WorldStructures(1, 0, 0, kinds=kinds).items()[0].sample()
    assert sample["json"]["maps"] == {kind: f"{i}.png" for i, kind in enumerate(kinds, 1)}
    assert sum(name.endswith(".png") for name in sample) == len(kinds)
    for kind, name in sample["json"]["maps"].items():
        assert sample[name] == pictures.encode(structure(scene_of(sample), 64, kind), "png")
