import io
import itertools
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import av
import numpy as np
import pytest

from mmflow.data.video import Video
from mmflow.world import clips, language, pictures, sounds
from mmflow.world.clips import WorldClips, draw_events, encode, frames, labels
from mmflow.world.scene import COLOURS, Scene, SceneOptions, Sound, Thing, draw_scene, held_out

MOVING = Scene(
    (Thing("square", "red", "big", 0.25, 0.5, 0.2, "right", 0.25, (Sound(0.5, 1.0, seen=True),)),), seconds=2
)


@pytest.fixture(scope="module")
def samples():
    return [item.sample() for item in WorldClips(12, 4, 4, seed=1, overlapping=0).items()]


def decoded(data, rate):
    video = Video(data)
    return video.clip(0, video.seconds, rate).permute(0, 2, 3, 1).numpy()


def number_frames(count, size=64):
    """Frame i has i in binary as eight grey stripes."""
    stripes = (np.arange(count)[:, None] >> np.arange(8) & 1) * 200 + 20
    wide = np.repeat(stripes, size // 8, 1).astype(np.uint8)
    return np.broadcast_to(wide[:, None, :, None], (count, size, size, 3)).copy()


def number_of(frame):
    bits = frame[:, :, 0].mean(0).reshape(8, -1)[:, 2:-2].mean(1) > 120
    return int((bits << np.arange(8)).sum())


# ---- frames and labels


def test_frames_are_the_scene_at_their_times():
    shown = frames(MOVING, 64, 4)
    assert shown.shape == (8, 64, 64, 3)
    for i in (0, 3, 7):
        np.testing.assert_array_equal(shown[i], pictures.render(MOVING, 64, i / 4))
    bright = shown[:, 31, :, 1].max(1)  # green of a flashing red square is up to 255
    np.testing.assert_array_equal(bright > 200, [False, False, True, True, False, False, False, False])


def test_labels_follow_what_moves_and_the_front_one_is_seen():
    front = Thing("square", "blue", "big", 0.75, 0.5, 0.1)
    shown = labels(replace(MOVING, things=(*MOVING.things, front)), 64, 4)
    assert shown.shape == (8, 64, 64)
    assert shown.dtype == np.uint8
    assert set(np.unique(shown)) == {0, 1, 2}
    columns = np.arange(64) + 0.5
    for i in range(8):
        assert (shown[i] == 2).sum() == (shown[0] == 2).sum()
        red = shown[i, 16:22] == 1  # rows above the blue one
        assert (columns * red).sum() / red.sum() == pytest.approx(64 * (0.25 + 0.25 * i / 4), abs=0.6)
    assert shown[7, 32, 48] == 2


def test_a_still_has_no_frames():
    with pytest.raises(ValueError, match=r"a scene of 0.0 s at 8 pictures/s has no picture"):
        frames(replace(MOVING, seconds=0.0), 64, 8)


# ---- files


@pytest.mark.parametrize(("rate", "count"), [(1, 10), (8, 24), (10, 7), (25, 60), (29.97, 30), (12.5, 20)])
def test_every_frame_is_shown_from_its_time_on(rate, count):
    video = Video(encode(number_frames(count), rate))
    assert video.seconds == pytest.approx(count / rate, abs=0.002)
    assert video.rate == pytest.approx(rate, rel=1e-4)
    assert not video.has_audio
    for shift in (0.01, 0.98):  # just after a frame appears, and just before the next one does
        shown = video.clip(shift / rate, (count - 1) / rate, rate).permute(0, 2, 3, 1).numpy()
        assert [number_of(frame) for frame in shown] == list(range(count - 1))
    assert number_of(video.clip((count - 0.5) / rate, 1 / rate, rate)[0].permute(1, 2, 0).numpy()) == count - 1


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.37])
def test_sound_is_where_it_was_to_the_sample(seconds):
    sound = np.zeros(round(16_000 * seconds), np.float32)
    clicks = np.arange(1000, len(sound) - 1000, 3210)
    sound[clicks] = 0.9
    video = Video(encode(number_frames(round(10 * seconds)), 10, sound))
    assert video.has_audio
    heard = video.sound(0, seconds).numpy()
    assert heard.shape == sound.shape
    for click in clicks:
        assert click - 500 + abs(heard[click - 500 : click + 500]).argmax() == pytest.approx(click, abs=1)


def test_a_flash_and_its_sound_come_together():
    """The click is at the beginning of the only white frame."""
    shown = np.zeros((20, 64, 64, 3), np.uint8)
    shown[7] = 255
    sound = np.zeros(32_000, np.float32)
    sound[7 * 1600 : 7 * 1600 + 800] = 0.5 * np.sin(np.arange(800))
    video = Video(encode(shown, 10, sound))
    fine = video.clip(0, 2, 1000, (8, 8))[:, 0].float().mean((1, 2)).numpy()
    assert np.flatnonzero(fine > 128)[0] == pytest.approx(700, abs=2)
    assert np.flatnonzero(fine > 128)[-1] == pytest.approx(799, abs=2)
    heard = np.abs(video.sound(0, 2).numpy())
    assert np.flatnonzero(heard > 0.1)[0] / 16 == pytest.approx(700, abs=2)


def test_the_sound_survives(samples):
    for sample in samples[:4]:
        scene = Scene.from_json(sample["json"]["scene"])
        heard = Video(sample["mp4"]).sound(0, scene.seconds).numpy()
        for event in sample["json"]["events"]:
            inside = heard[round(event["start"] * 16_000) + 160 : round(event["end"] * 16_000) - 160]
            if event["heard"] and event["shape"] in ("circle", "square", "triangle"):
                assert 20 * np.log10(np.std(inside) / 0.1) == pytest.approx(event["gain"], abs=0.6), sample["__key__"]
            if not event["heard"]:
                assert np.std(inside) < 2e-3


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_survive(colour):
    scene = Scene((Thing("square", colour, "big", 0.5, 0.5, 0.32),), seconds=1)
    shown = frames(scene, 64, 8)
    inside = np.s_[:, 20:44, 20:44]
    error = decoded(encode(shown, 8), 8)[inside].mean((0, 1, 2)) - COLOURS[colour]
    assert np.abs(error).max() < 3


def test_pictures_survive(samples):
    for sample in samples:
        scene = Scene.from_json(sample["json"]["scene"])
        assert np.abs(decoded(sample["mp4"], 8).astype(int) - frames(scene, 64, 8)).mean() < 3.5


def test_a_file_begins_with_its_index_and_tells_no_time_or_version():
    data = encode(number_frames(10), 10, np.zeros(16_000, np.float32))
    assert data.index(b"moov") < data.index(b"mdat")
    for word in (b"Lavf", b"Lavc", b"x264"):
        assert word not in data
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        for found in re.finditer(box, data):
            assert data[found.end() + 4 : found.end() + 12] == bytes(8)  # times of creation and change
    with av.open(io.BytesIO(data)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.audio[0].rate == 16_000


def test_what_cannot_be_encoded_is_said():
    with pytest.raises(ValueError, match="frames are of 63 x 64 pixels; both numbers must be even"):
        encode(np.zeros((2, 64, 63, 3), np.uint8), 8)
    with pytest.raises(ValueError, match=r"frames are float64 \(2, 64, 64, 3\); give uint8"):
        encode(np.zeros((2, 64, 64, 3)), 8)
    with pytest.raises(ValueError, match="T of 1 or more"):
        encode(np.zeros((0, 64, 64, 3), np.uint8), 8)


# ---- the source


def test_samples_are_the_same_bytes_in_another_process():
    code = (
        "import hashlib, sys; from mmflow.world.clips import WorldClips\n"
        "item = WorldClips(3, 0, 0).items()[2].sample()\n"
        "print(hashlib.sha256(item['mp4'] + item['masks.npy'].tobytes() + repr(item['json']).encode()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop()) == 65


def test_a_sample_depends_on_seed_split_and_number_alone():
    few, many = WorldClips(2, 1, 1), WorldClips(5, 0, 3)
    assert few.items()[1].sample()["mp4"] == many.items()[1].sample()["mp4"]
    assert few.items()[-1].sample()["json"] == pickle.loads(pickle.dumps(many.items()[5])).sample()["json"]
    assert few.items()[0].sample()["json"] != WorldClips(2, 1, 1, seed=1).items()[0].sample()["json"]
    assert [item.key for item in few.items()] == ["train-000000", "train-000001", "validation-000000", "test-000000"]
    assert [item.split for item in few.items()] == ["train", "train", "validation", "test"]


def test_a_clip_has_what_its_json_tells(samples):
    assert len({sample["__key__"] for sample in samples}) == 20
    for sample in samples:
        scene = Scene.from_json(sample["json"]["scene"])
        video = Video(sample["mp4"])
        assert video.seconds == pytest.approx(scene.seconds, abs=1e-3)
        assert 2 <= scene.seconds <= 4
        assert sample["masks.npy"].shape == (round(scene.seconds * 8), 64, 64)
        assert sample["masks.npy"].max() <= len(scene.things)
        assert (video.width, video.height, video.rate) == (64, 64, 8)
        assert sample["txt"] == sample["json"]["captions"][0]
        assert len(sample["txt"]) < len(sample["json"]["captions"][1])
        for thing in scene.things:
            assert f"{thing.size} {thing.colour} {thing.shape}" in sample["json"]["captions"][1]
        assert sample["json"]["unseen"] == scene.unseen
        events = sample["json"]["events"]
        assert 1 <= len(events) <= 3
        for event, following in zip(events, [*events[1:], {"start": scene.seconds}], strict=True):
            assert event["shape"] == scene.things[event["thing"]].shape
            assert event["heard"] or event["seen"]
            assert 0.25 <= round(event["end"] - event["start"], 6) <= 1
            assert 0 <= event["start"] < event["end"] <= following["start"] - 0.149


def test_a_flash_is_seen_in_the_frames_of_its_time(samples):
    checked = 0
    for sample in samples:
        shown, masks = decoded(sample["mp4"], 8).astype(float), sample["masks.npy"]
        for event in sample["json"]["events"]:
            times = np.arange(len(shown)) / 8
            during = (event["start"] <= times) & (times < event["end"])
            own = masks == event["thing"] + 1
            others = [e for e in sample["json"]["events"] if e["thing"] == event["thing"] and e is not event]
            if not event["seen"] or others or during.all() or not own.any((1, 2)).all():
                continue
            light = np.array([frame[mask].min(1).mean() for frame, mask in zip(shown, own, strict=True)])
            assert during.sum() >= 2
            assert light[during].min() > light[~during].max()
            checked += 1
    assert checked >= 5


def test_pairs_of_validation_and_test_are_held_out():
    options = SceneOptions(seconds=1)
    for item in WorldClips(40, 20, 20, seconds=(1, 1), events=(1, 2)).items():
        source = item.source
        draw = np.random.default_rng([0, clips.STREAM, ["train", "validation", "test"].index(item.split), item.number])
        draw.integers(8, 8, endpoint=True)
        scene = draw_scene(draw, item.split, replace(source.scenes, seconds=1.0))
        splits = {held_out(thing.colour, thing.shape) for thing in scene.things}
        assert splits <= {None, item.split}
        assert scene.unseen == (item.split in splits)
    assert options.seconds == 1


def test_the_size_is_about_that_of_the_members(samples):
    items = WorldClips(12, 4, 4, seed=1).items()
    found = sum(len(sample["mp4"]) + sample["masks.npy"].nbytes for sample in samples)
    assert sum(item.size for item in items) == pytest.approx(found, rel=0.3)


def test_events_of_a_scene_fill_it_one_after_the_other():
    draw = np.random.default_rng(0)
    kinds = set()
    for _ in range(200):
        scene = draw_events(draw, draw_scene(draw, "train", SceneOptions(seconds=1)), 2)
        events = clips.events_of(scene)
        kinds |= {(event["heard"], event["seen"]) for event in events}
        assert len(events) == 2
        assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(events))
        assert events[0]["start"] >= 0
        assert events[-1]["end"] <= 1
    assert kinds == {(True, True), (True, False), (False, True)}
    with pytest.raises(ValueError, match=r"3 events do not fit in 1 s; each needs 0.4 s"):
        draw_events(draw, replace(scene, seconds=1), 3)


def test_events_of_several_things_may_overlap():
    """Those of one thing do not, all begin 0.4 s apart, and captions tell their order."""
    overlapping = pairs = 0
    for number in range(300):
        draw = np.random.default_rng(number)
        scene = draw_scene(draw, "train", SceneOptions((2, 3), seconds=2))
        scene = draw_events(draw, scene, 3, overlap=True)
        events = clips.events_of(scene)
        assert len(events) == 3
        for event, following in itertools.pairwise(events):
            assert following["start"] - event["start"] > 0.39
            overlapping += event["end"] > following["start"]
            pairs += 1
        for thing in scene.things:
            assert all(b.start - a.end > 0.149 for a, b in itertools.pairwise(thing.sounds))
        assert all(0.249 < event["end"] - event["start"] <= 1.001 and event["end"] <= 2 for event in events)
        for long in (False, True):
            assert language.score(language.caption(scene, draw, split="test", long=long), scene)["right"] == 1
    assert overlapping > 0.3 * pairs
    with pytest.raises(ValueError, match=r"6 events do not fit in 2 s; each needs 0.4 s"):
        draw_events(draw, replace(scene, seconds=2), 6, overlap=True)


def test_clips_overlap_as_often_as_asked_for():
    def overlap(sample):
        events = sample["json"]["events"]
        return any(a["end"] > b["start"] for a, b in itertools.pairwise(events))

    options = {"size": 32, "rate": 4, "things": (2, 3), "events": (3, 3)}
    assert not any(overlap(item.sample()) for item in WorldClips(10, 0, 0, overlapping=0, **options).items())
    assert sum(overlap(item.sample()) for item in WorldClips(10, 0, 0, overlapping=1, **options).items()) > 5


def test_what_is_heard_and_seen_at_once_is_both_there():
    """The loudness of both sounds adds up while both last, and both things flash in the same frame."""
    circle = Thing("circle", "red", "big", 0.25, 0.5, 0.14, sounds=(Sound(0.25, 1.25, seen=True),))
    triangle = Thing("triangle", "blue", "big", 0.75, 0.5, 0.14, sounds=(Sound(0.75, 1.75, seen=True),))
    scene = Scene((circle, triangle), seconds=2)
    video = Video(encode(frames(scene, 64, 8), 8, sounds.mix(scene, np.random.default_rng(0))))
    heard = video.sound(0, 2).numpy()
    loud = [np.std(heard[round(a * 16_000) : round(b * 16_000)]) for a, b in ((0.3, 0.7), (0.8, 1.2), (1.3, 1.7))]
    assert loud == pytest.approx([0.1, 0.1 * 2**0.5, 0.1], rel=0.05)
    shown = decoded(encode(frames(scene, 64, 8), 8), 8)
    for column, during in ((16, range(2, 10)), (48, range(6, 14))):
        lit = np.flatnonzero(shown[:, 32, column - 6 : column + 7].min(2).max(1) > 85)
        assert lit.tolist() == list(during)


def test_colours_of_a_file_are_exact_but_for_rounding():
    """Planes as they are in the file, turned back by ITU-R BT.601 in floats; the rest is the decoder's rounding."""
    errors = []
    for colour in ((12, 12, 12), (70, 70, 70), *COLOURS.values()):
        flat = np.empty((2, 64, 64, 3), np.uint8)
        flat[:] = colour
        with av.open(io.BytesIO(encode(flat, 8))) as container:
            planes = next(container.decode(video=0)).to_ndarray().astype(float).reshape(-1)
        y, u, v = planes[:4096].mean() - 16, planes[4096:5120].mean() - 128, planes[5120:].mean() - 128
        rgb = [1.164384 * y + 1.596027 * v, 1.164384 * y - 0.391762 * u - 0.812968 * v, 1.164384 * y + 2.017232 * u]
        errors.append(np.array(rgb) - colour)
    assert np.abs(errors).max() < 1.8  # one level of Y, U and V is up to 2 of RGB
    assert np.abs(np.mean(errors)) < 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlapping": 1.5}, r"overlapping=1.5 is a chance; it must be in 0\.\.1"),
        ({"events": (3, 2)}, r"events=\(3, 2\) must be from at least 0 to at most 5"),
        ({"train": -1}, "train=-1 must be in 0..10,000,000"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"size": 63}, r"size=63 must be even and in 32\.\.256"),
        ({"size": 512}, r"size=512 must be even and in 32\.\.256"),
        ({"rate": 3}, r"rate=3 pictures/s must be in 4\.\.60"),
        ({"seconds": (0.5, 2)}, r"seconds=\(0.5, 2\) must be from at least 1 to at most 10"),
        ({"seconds": (3, 2)}, "seconds=.* must be from at least 1"),
        ({"events": (1, 6)}, "events=.* at most 5: more do not fit in 2.0 s"),
        ({"seconds": (1.0, 2.0)}, "events=.* at most 2: more do not fit in 1.0 s"),
        ({"things": (1, 10)}, "at most 9: more do not fit"),
        ({"styles": ["oil"]}, "styles=.* must be one or more of flat"),
        ({"moving": 2.0}, "moving=2.0 is a chance"),
    ],
)
def test_impossible_options_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        WorldClips(**options)
