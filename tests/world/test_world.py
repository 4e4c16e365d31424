import io
import json
import re

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmflow.data.documents import references
from mmflow.data.make import build_source
from mmflow.data.spec import DataSpec
from mmflow.world import edits, language, picture_reader, questions, templates
from mmflow.world.explanations import follows
from mmflow.world.scene import SPLITS, Scene, held_out
from mmflow.world.tables import known
from mmflow.world.world import World

SOURCE = World(seed=1)


@pytest.fixture(scope="module")
def samples():
    return [(split, SOURCE.sample(split, number)) for split in SPLITS for number in range(3)]


def pixels(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def scene_of(sample):
    return Scene.from_json(json.loads(json.dumps(sample["json"]))["scene"])


def test_members(samples):
    for _, sample in samples:
        assert set(sample) == {
            "jpg", "mask.png", "edges.png", "skeleton.png", "edited.jpg", "mp4", "masks.npy", "txt", "flac", "doc.json",
            "json",
        }  # fmt: skip
        assert set(sample["json"]) == {
            "scene", "objects", "events", "captions", "long", "speech", "questions", "edit", "dialogue", "table",
            "unseen",
        }  # fmt: skip


def test_pairs_are_those_of_the_split(samples):
    for split, sample in samples:
        pairs = {held_out(thing.colour, thing.shape) for thing in scene_of(sample).things}
        assert pairs <= {None, split}
        assert sample["json"]["unseen"] == (split in pairs)


def test_the_picture_shows_the_scene(samples):
    scores = [picture_reader.score(picture_reader.read_picture(pixels(s["jpg"])), scene_of(s)) for _, s in samples]
    assert sum(score["all"] for score in scores) >= 0.95 * sum(score["things"] for score in scores)
    assert sum(score["invented"] for score in scores) == 0


def test_the_mask_shows_the_scene(samples):
    for _, sample in samples:
        mask = np.array(Image.open(io.BytesIO(sample["mask.png"])))
        assert mask.shape == (64, 64)
        for number, thing in enumerate(scene_of(sample).things, 1):
            rows, columns = np.nonzero(mask == number)
            area = templates.AREAS[thing.shape] * thing.radius**2
            assert len(rows) / 64**2 == pytest.approx(area, rel=0.2)
            assert abs((columns.min() + columns.max() + 1) / 128 - thing.x) < 0.02


def test_maps_are_of_the_picture_and_of_the_clip(samples):
    for _, sample in samples:
        mask, edges, skeleton = (
            np.array(Image.open(io.BytesIO(sample[f"{name}.png"]))) for name in ("mask", "edges", "skeleton")
        )
        masks = sample["masks.npy"]
        assert masks.shape == (16, 64, 64)
        assert np.array_equal(masks[0], mask)
        moving = any(thing.motion != "still" for thing in scene_of(sample).things)
        assert np.array_equal(masks[0], masks[-1]) != moving
        assert set(np.unique(edges)) == {0, 255}
        assert np.all(mask[edges > 0] > 0)
        assert 0.2 < np.mean(edges[mask > 0] > 0) < 0.8
        for thing in scene_of(sample).things:  # a bone or a keypoint in the middle of all but rings and diamonds
            seen = skeleton[int(thing.y * 64), int(thing.x * 64)] > 0
            assert seen or thing.shape in ("ring", "diamond", "triangle")


def test_the_document_tells_and_shows_the_scene_its_edit_and_the_clip(samples):
    for _, sample in samples:
        assert references(sample["doc.json"]) == {"jpg", "edited.jpg", "mp4"} <= set(sample)
        told = [part["text"] for part in sample["doc.json"] if "text" in part]
        assert told == [sample["txt"], sample["json"]["edit"]["instruction"], sample["json"]["long"]]


def test_the_clip_is_the_picture_in_motion_with_sound(samples):
    for _, sample in samples:
        with av.open(io.BytesIO(sample["mp4"])) as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        with av.open(io.BytesIO(sample["mp4"])) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert len(shown) == 16
        assert np.abs(shown[0].astype(int) - pixels(sample["jpg"])).mean() < 8
        heard = [event for event in sample["json"]["events"] if event["heard"]]
        loud = np.sqrt(np.mean(sound[:32_000] ** 2)) > 0.005
        assert loud == bool(heard)
        told = [(e["shape"], e["thing"]) for e in sample["json"]["events"]]
        assert all(scene_of(sample).things[number].shape == shape for shape, number in told)


def test_captions_are_true_in_every_language(samples):
    for _, sample in samples:
        scene = scene_of(sample)
        assert sample["json"]["captions"]["en"] == sample["txt"]
        assert len(sample["json"]["captions"]) == len(language.LANGUAGES)
        for name, text in sample["json"]["captions"].items():
            score = language.score(text, scene, name)
            assert (score["right"], score["invented"], score["unknown"]) == (1.0, 0, [])
        score = language.score(sample["json"]["long"], scene)
        assert (score["right"], score["missed"]) == (1.0, [])


def test_speech_says_the_caption_in_languages_that_take_turns(samples):
    assert [s["json"]["speech"]["language"] for _, s in samples] == ["en", "de", "fr"] * 3
    for split, sample in samples:
        told = sample["json"]["speech"]
        assert told["speaker"].startswith(split)
        assert told["translation"] == sample["txt"]
        audio, rate = soundfile.read(io.BytesIO(sample["flac"]))
        assert rate == 16_000
        assert told["words"][-1][1] <= len(audio) / rate
        words = " ".join(word.lower() for _, _, word in told["words"])  # eSpeak says some in one
        assert words == re.sub("[,.]", "", sample["json"]["captions"][told["language"]].lower())


def test_answers_follow_from_the_scene(samples):
    forms = set()
    for split, sample in samples:
        scene = scene_of(sample)
        asked = sample["json"]["questions"]
        assert len({one["question_type"] for one in asked}) == len(asked) >= 5
        for one in asked:
            forms.add(one["form"])
            if one["form"] == "count-all":
                assert one["answer"] == str(len(scene.things))
            if one["question_type"] == "colour":
                assert one["answer"] in {thing.colour for thing in scene.things}
            if "explanation" in one:
                assert follows(one["explanation"], scene)
            found = questions.FORMS[one["form"]].find(scene, np.random.default_rng(0), split, SOURCE.scenes)
            assert one["answer"] in {possible.answer for possible in found}
    assert {one["needs"] for _, sample in samples for one in sample["json"]["questions"]} == {
        "picture",
        "sound",
        "both",
    }
    assert len(forms) > 12


def test_the_edit_is_done_in_the_edited_picture(samples):
    results = []
    for _, sample in samples:
        edit = edits.Edit.from_json(json.loads(json.dumps(sample["json"]["edit"]["edit"])))
        after = Scene.from_json(sample["json"]["edit"]["after"])
        assert edits.verify(scene_of(sample), after.things, edit, after.style) == {"changed": 1.0, "kept": 1.0}
        seen = picture_reader.read_picture(pixels(sample["edited.jpg"]))
        style = edits.read_style(pixels(sample["edited.jpg"]), seen)
        results.append(edits.verify(scene_of(sample), seen, edit, style))
        assert sample["json"]["edit"]["instruction"]
    assert np.mean([result["changed"] for result in results]) >= 0.85
    assert np.mean([result["kept"] for result in results]) >= 0.95


def test_the_row_is_about_the_biggest_thing(samples):
    for _, sample in samples:
        things, table = scene_of(sample).things, sample["json"]["table"]
        thing = things[table["about"]]
        assert thing.radius == max(other.radius for other in things)
        row = table["row"]
        assert (row["shape"], row["colour"], row["size"]) == (thing.shape, thing.colour, thing.size)
        assert known(row)[0] in (1, -1)


def test_the_dialogue_and_boxes_are_of_the_scene(samples):
    for _, sample in samples:
        things = scene_of(sample).things
        assert [(o["class"], o["colour"]) for o in sample["json"]["objects"]] == [(t.shape, t.colour) for t in things]
        told = sample["json"]["dialogue"]
        assert 2 <= len(told["dialogue"]) <= 5
        for (_, answer), kind in zip(told["dialogue"], told["question_types"], strict=True):
            if kind in ("colour", "its-colour"):
                assert answer in {thing.colour for thing in things}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"things": (1, 3)}, r"things=\(1, 3\) must be from at least 2"),
        ({"things": (2, 12)}, "more do not fit"),
        ({"seconds": 0.5}, "must be from at least 1"),
        ({"seconds": 11}, "to at most 10"),
        ({"size": 65}, "size=65 must be even"),
        ({"moving": 2.0}, "moving=2.0 is a chance"),
        ({"languages": ["en", "xx"]}, r"languages=\['en', 'xx'\] must be one or more of en, de"),
        ({"voices": {"train": 0}}, "voices=0 for train must be 1 to 160"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"test": -1}, "test=-1"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        World(**options)


def test_spec():
    assert isinstance(build_source(DataSpec.read("data_specs/world.yaml")), World)
