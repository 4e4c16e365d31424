import io
import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmflow.data.video import Video
from mmflow.world import listening
from mmflow.world.listening import (
    COLOURS,
    IDLE,
    KINDS,
    QUESTIONS,
    WorldAve,
    WorldListeningQuestions,
    WorldMs3,
    WorldS4,
    best_accuracy,
    best_iou,
    draw_ave,
    draw_layout,
    draw_ms3,
    draw_question,
    draw_s4,
    events_of,
    frames,
    shapes,
)
from mmflow.world.scene import Scene

DRAWS = 2400
SOURCES = (WorldAve, WorldS4, WorldMs3, WorldListeningQuestions)


@pytest.fixture(scope="module")
def found():
    return listening.ceilings(DRAWS)


def clips(draw, count, *about, seed=0):
    generator = np.random.default_rng(seed)
    return [draw(generator, *about) for _ in range(count)]


def near(value, trials, errors=4):
    """Within some standard errors of a share that was counted in so many trials."""
    return pytest.approx(value, abs=errors * max((value * (1 - value) / trials) ** 0.5, 1e-9))


# ---- ceilings: the numbers are those of the task's definition


def test_the_ceilings_of_ave(found):
    scored = 10 * DRAWS // 2
    assert found["AVE"] == {
        "majority": near(0.5, scored),
        "audio": near(0.6, scored),
        "video": near(0.6, scored),
        "both": 1.0,
    }


def test_the_ceilings_of_masks(found):
    """A mask of all four things is best for the eye in MS3: half of what sounds is one thing, half two, and in silence
    the share of the picture that is left out counts. The ear takes any cells."""
    covered = 4 * np.pi * 36 / 64**2
    assert found["S4"] == {"audio": near(1 / 9, DRAWS / 2), "video": near(1 / 4, DRAWS / 2), "both": 1.0}
    assert found["MS3"]["video"] == pytest.approx(0.9 * (1 / 4 + 2 / 4) / 2 + 0.1 * (1 - covered), abs=0.012)
    assert found["MS3"]["audio"] == pytest.approx(0.1 + 0.9 * (1 / 9 + 2 / 9) / 2, abs=0.03)
    assert found["MS3"]["both"] == 1.0


@pytest.mark.parametrize(
    ("kind", "question", "audio", "video"),
    [
        ("Audio/Counting", 1 / 3, 1, 1 / 3),
        ("Visual/Colour", 1 / 6, 1 / 6, 1),
        ("Audio-Visual/Colour-first", 1 / 6, 1 / 6, 1 / 4),
        ("Audio-Visual/Where-first", 1 / 3, 1 / 3, 0.536),
        ("Audio-Visual/Exists", 1 / 2, 1 / 2, 1 / 2),
        ("Audio-Visual/Before", 1 / 2, 1 / 2, 1 / 2),
        ("Audio-Visual/Louder", 1 / 2, 1 / 2, 1 / 2),
    ],
)
def test_the_ceilings_of_questions(found, kind, question, audio, video):
    expected = {"question": question, "audio": audio, "video": video, "both": 1}
    for known, value in found[kind].items():
        assert value == near(expected[known], DRAWS / 2), known
    assert list(found[kind]) == list(expected)


def test_the_fullest_column_holds_536_of_1000_over_all_layouts():
    full = [
        max(Counter(cell % 3 for cell in range(9) if layout >> cell & 1).values()) / 4
        for layout in range(512)
        if layout.bit_count() == 4
    ]
    assert len(full) == 126
    assert np.mean(full) == pytest.approx(0.536, abs=5e-4)


def test_best_accuracy_counts_the_most_frequent_answer_of_each_group():
    known = [0, 0] * 30 + [1, 1] * 10
    answers = ["a", "a"] * 20 + ["b", "b"] * 10 + ["c", "c"] * 10
    assert best_accuracy(known, answers) == pytest.approx(30 / 40)
    assert best_accuracy([0] * 80, answers) == pytest.approx(20 / 40)
    assert best_accuracy(list(range(80)), answers) == 0  # nothing is learnt from what never comes again


def test_best_iou_takes_the_best_union():
    assert best_iou([()] * 8, [{0}, {0}, {1}, {1}] * 2, 2, 0.1) == 0.5
    assert best_iou([()] * 4, [{0, 1}] * 4, 3, 0.1) == 1
    assert best_iou([()] * 4, [set()] * 4, 3, 0.1) == 1
    # the first thing always and the second every other time: with both 3/4, with the first alone 3/4, with none 0
    assert best_iou([()] * 8, [{0}, {0}, {0, 1}, {0, 1}] * 2, 3, 0.1) == 0.75
    # mostly silence: a mask of one thing would cost 0.1 where nothing sounds
    assert best_iou([()] * 40, [{0}, {0}] + [set()] * 38, 1, 0.1) == 0.95
    assert best_iou([()] * 4, [{0}, {0}, set(), set()], 1, 0.1) == pytest.approx((1 + 0.9) / 2)
    assert best_iou([0, 0, 1, 1], [{0}, {0}, {1}, {1}], 2, 0.1) == 1


# ---- draws


def test_every_kind_is_in_a_cell_and_a_colour_of_its_own():
    cells, colours, offsets = Counter(), Counter(), []
    for scene in clips(draw_layout, 500, 10, 7, 2):
        places = [(int(3 * thing.x), int(3 * thing.y)) for thing in scene.things]
        assert [thing.shape for thing in scene.things] == ["circle", "square", "triangle", "cross"]
        assert len(set(places)) == 4
        assert len({thing.colour for thing in scene.things}) == 4
        assert all(thing.radius * 64 == 7 for thing in scene.things)
        cells.update(places)
        colours.update((thing.shape, thing.colour) for thing in scene.things)
        offsets += [64 * (t.x - (x + 0.5) / 3) for t, (x, _) in zip(scene.things, places, strict=True)]
    assert len(cells) == 9
    assert min(cells.values()) > 2000 / 9 * 0.75
    assert len(colours) == 24
    assert min(colours.values()) > 500 / 6 * 0.6
    assert (min(offsets), max(offsets)) == (pytest.approx(-2, abs=0.05), pytest.approx(2, abs=0.05))


def test_seconds_of_ave():
    drawn = clips(draw_ave, 500)
    cases = Counter()
    for scene, told in drawn:
        for t, label in enumerate(told["labels"]):
            events = [event for event in events_of(scene) if event["t0"] == t]
            assert all(event["t1"] == t + 1 for event in events)
            seen, heard = ([e["kind"] for e in events if e[way]] for way in ("seen", "heard"))
            assert len(seen) <= 1
            assert len(heard) <= 1
            assert label == (list(KINDS).index(seen[0]) if seen and seen == heard else 4)
            cases["both" if seen == heard else "other" if seen and heard else "seen" if seen else "heard"] += 1
    assert {case: count / 5000 for case, count in cases.items()} == {
        "both": near(0.5, 5000),
        "seen": near(0.1, 5000),
        "heard": near(0.1, 5000),
        "other": near(0.3, 5000),
    }
    labels = Counter(label for _, told in drawn for label in told["labels"])
    assert all(labels[kind] / 5000 == near(1 / 8, 5000) for kind in range(4))
    gains = [event["gain"] for scene, _ in drawn for event in events_of(scene) if event["heard"]]
    assert (min(gains), max(gains)) == (pytest.approx(-6, abs=0.02), pytest.approx(0, abs=0.02))


def test_seconds_of_s4_and_ms3():
    for scene, told in clips(draw_s4, 100):
        (event,) = events_of(scene)
        assert (event["kind"], event["t0"], event["t1"], event["seen"]) == (told["class"], 0, 5, False)
        assert told["sounding"] == [[told["label"]]] * 5
        assert all(0 <= thing.speed * 64 <= 0.25 for thing in scene.things)
        assert all(thing.motion != "still" for thing in scene.things)
    counts, kinds = Counter(), Counter()
    for scene, told in clips(draw_ms3, 500):
        for t, sounding in enumerate(told["sounding"]):
            events = [event for event in events_of(scene) if event["t0"] == t]
            assert sorted(list(KINDS).index(event["kind"]) for event in events) == sounding
            assert not any(event["seen"] for event in events)
            counts[len(sounding)] += 1
            kinds.update(sounding)
    assert [counts[n] / 2500 for n in range(3)] == [near(0.1, 2500), near(0.45, 2500), near(0.45, 2500)]
    assert all(kinds[kind] / 2500 == near(0.45 * 0.75, 2500) for kind in range(4))


@pytest.mark.parametrize("asked", QUESTIONS, ids="/".join)
def test_each_question_is_true_of_its_clip(asked):
    answers = Counter()
    for scene, told in clips(draw_question, 600, asked):
        events = events_of(scene)
        starts = [event["t0"] for event in events]
        assert len(events) == (int(told["answer"]) if asked[1] == "Counting" else 2)
        assert len({event["kind"] for event in events}) == len(events)
        assert all(b - a >= 2.999 for a, b in itertools.pairwise(starts))
        assert all(e["t1"] - e["t0"] == pytest.approx(2) and e["t0"] >= 0 and e["t1"] <= 10 for e in events)
        assert not any(event["seen"] for event in events)
        assert told["question_type"] == list(asked)
        answers[told["answer"]] += 1
        things = {listening.NAMES[thing.shape]: thing for thing in scene.things}
        colours = [things[event["kind"]].colour for event in events]  # of what sounds, in order
        words = told["question"].rstrip("?").split()
        named = [word for word in words if word in COLOURS]
        assert named == [word for word in told["about"] if word in COLOURS]
        if asked[1] == "Colour":
            assert things[words[-1]].colour == told["answer"]
        elif asked[1] == "Colour-first":
            assert colours[0] == told["answer"]
        elif asked[1] == "Where-first":
            x = things[events[0]["kind"]].x
            assert told["answer"] == ("left" if x < 1 / 3 else "middle" if x < 2 / 3 else "right")
        elif asked[1] == "Exists":
            assert (named[0] in colours) == (told["answer"] == "yes")
        elif asked[1] == "Before":
            assert (named == colours) == (told["answer"] == "yes")
        elif asked[1] == "Louder":
            gains = dict(zip(colours, (event["gain"] for event in events), strict=True))
            apart = gains[named[0]] - gains[named[1]]
            assert (apart > 0) == (told["answer"] == "yes")
            assert 5.999 < abs(apart) < 12.001
    share = {"Counting": 1 / 3, "Colour": 1 / 6, "Colour-first": 1 / 6, "Where-first": 1 / 3}.get(asked[1], 1 / 2)
    assert len(answers) == round(1 / share)
    assert all(count / 600 == near(share, 600) for count in answers.values())


def test_types_of_questions_are_as_likely():
    source = WorldListeningQuestions(1400, 0, 0)
    drawn = [source.clip(np.random.default_rng([0, 0, number])) for number in range(1400)]
    types = Counter(tuple(told["question_type"]) for _, told in drawn)
    assert set(types) == set(QUESTIONS)
    assert all(count / 1400 == near(1 / 7, 1400) for count in types.values())


def test_an_unknown_question_type_is_said():
    with pytest.raises(ValueError, match=r"question type \('Audio', 'Smell'\) is unknown; take one of \('Audio', 'Co"):
        draw_question(np.random.default_rng(0), ("Audio", "Smell"))


# ---- pictures


@pytest.mark.parametrize("scale", [1, 3])
def test_all_kinds_have_the_area_of_the_disc(scale):
    scenes = clips(draw_layout, 40, 5, 6, 1)
    areas = np.mean([shapes(scene, 0, scale).sum((1, 2)) for scene in scenes], 0) / scale**2
    np.testing.assert_allclose(areas, np.pi * 36, rtol=0.025)


def test_shapes_are_whole_apart_and_in_their_cells_to_the_end():
    for scene, _ in clips(draw_s4, 100):
        planes = shapes(scene, 4.99)
        assert planes.sum(0).max() == 1
        assert planes.sum((1, 2)).min() > 90
        for thing, plane in zip(scene.things, planes, strict=True):
            rows, columns = np.nonzero(plane)
            assert set((columns + 0.5) * 3 // 64) == {int(3 * thing.x)}
            assert set((rows + 0.5) * 3 // 64) == {int(3 * thing.y)}
    for scene, _ in clips(draw_ave, 100):
        assert shapes(scene, 0).sum(0).max() == 1


def test_forms_are_those_of_their_names():
    scene = draw_layout(np.random.default_rng(0), 10, 7, 2)
    disc, square, triangle, plus = shapes(scene, 0, scale=3)
    sides = {}
    for name, plane in (("disc", disc), ("square", square), ("triangle", triangle), ("plus", plus)):
        rows, columns = np.nonzero(plane)
        sides[name] = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert sides["disc"] == pytest.approx((42, 42), abs=1)
    assert sides["square"] == pytest.approx((21 * np.pi**0.5,) * 2, abs=1)
    height = (2 * np.pi * 21**2 / 1.1547) ** 0.5
    assert sides["triangle"] == pytest.approx((1.1547 * height, height), abs=1.5)
    assert sides["plus"] == pytest.approx(
        (2 * 22.27,) * 2, abs=1.5
    )  # twice (pi R^2 + 4 a^2) / 8 a, a = 0.27 sqrt(pi) R
    widths = triangle.sum(1)[triangle.any(1)]
    assert (np.diff(widths) >= 0).all()
    assert set(plus.sum(1)) - {0} == {max(plus.sum(1)), min(set(plus.sum(1)) - {0})}


@pytest.mark.parametrize("scale", [1, 3])
def test_what_flashes_is_bright_with_a_white_rim_for_the_whole_second(scale):
    scene, _ = draw_ave(np.random.default_rng(0))
    times = [0.0, 0.5, 0.99, 1.0, 3.5, 9.9]
    shown = frames(scene, times, scale)
    assert shown.shape == (6, 64 * scale, 64 * scale, 3)
    behind = ~shapes(scene, 0, scale).any(0)
    assert shown[:, behind].mean() == pytest.approx(255 * 0.08, abs=0.3)
    assert shown[:, behind].std() == pytest.approx(255 * 0.01, abs=0.3)
    flashed = set()
    for picture, time in zip(shown, times, strict=True):
        flashing = {e["kind"] for e in events_of(scene) if e["seen"] and e["t0"] <= time < e["t1"]}
        for thing, inside in zip(scene.things, shapes(scene, time, scale), strict=True):
            colours, counts = np.unique(picture[inside], axis=0, return_counts=True)
            own = np.array(COLOURS[thing.colour])
            if listening.NAMES[thing.shape] in flashing:
                np.testing.assert_array_equal(colours, sorted([own.tolist(), [255, 255, 255]]))
                assert 0.15 < counts[-1] / counts.sum() < 0.5
                flashed.add(time)
            else:
                np.testing.assert_allclose(colours, [own * IDLE], atol=0.51)
    assert flashed


# ---- samples


@pytest.mark.parametrize("source", SOURCES)
def test_pictures_and_sound_survive_the_file(source):
    for item in source(3, 0, 0).items():
        sample = item.sample()
        scene = Scene.from_json(sample["json"]["scene"])
        video = Video(sample["mp4"])
        assert (video.seconds, video.rate, video.width, video.height) == (scene.seconds, 2, 64, 64)
        times = np.arange(2 * scene.seconds) / 2
        shown = video.clip(0, scene.seconds, 2).permute(0, 2, 3, 1).numpy().astype(float)
        true = frames(scene, times.tolist())
        assert np.abs(shown - true).mean() < 2.5
        for picture, before, time in zip(shown, true, times, strict=True):
            for inside in shapes(scene, time):
                core = listening._core(inside, 2)
                assert np.abs(picture[core].mean(0) - before[core].mean(0)).max() < 12
        heard = video.sound(0, scene.seconds).numpy()
        silent = np.ones(len(heard), bool)
        for event in sample["json"]["events"]:
            if event["heard"]:
                first, last = round((event["t0"] + 0.05) * 16_000), round((event["t1"] - 0.05) * 16_000)
                silent[max(first - 400, 0) : last + 400] = False
                assert np.std(heard[first + 160 : last - 160]) > 0.1 * 10 ** (event["gain"] / 20) * 0.9
        if silent.sum() > 1000:
            assert np.std(heard[silent]) == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize(("source", "draw"), [(WorldS4, draw_s4), (WorldMs3, draw_ms3)])
@pytest.mark.parametrize("scale", [1, 3])
def test_masks_show_what_sounds_in_the_middle_of_each_second(source, draw, scale):
    for item in source(4, 0, 0, scale=scale).items():
        sample = item.sample()
        scene, told = draw(np.random.default_rng([0, 0, item.number]))
        masks = sample["masks.npy"]
        assert masks.dtype == np.uint8
        assert masks.shape == (5, 64 * scale, 64 * scale)
        assert set(np.unique(masks)) <= {0, 1}
        picture = frames(scene, [t + 0.5 for t in range(5)], scale)
        for t, kinds in enumerate(told["sounding"]):
            assert masks[t].sum() == pytest.approx(np.pi * 36 * scale**2 * len(kinds), rel=0.12)
            found = {tuple(colour) for colour in picture[t][masks[t] == 1].tolist()}
            assert len(found) == len(kinds)


def test_pictures_and_a_wav_file_instead_of_an_mp4_file():
    sample = WorldS4(1, 0, 0, pictures=True).items()[0].sample()
    assert sorted(sample) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "__key__", "json", "masks.npy", "wav"]
    scene = Scene.from_json(sample["json"]["scene"])
    picture = np.asarray(Image.open(io.BytesIO(sample["4.jpg"]))).astype(float)
    assert np.abs(picture - frames(scene, [4.5])[0]).mean() < 4
    samples, rate = soundfile.read(io.BytesIO(sample["wav"]))
    assert (len(samples), rate, samples.ndim) == (80_000, 16_000, 1)
    film = Video(WorldS4(1, 0, 0).items()[0].sample()["mp4"]).sound(0, 5).numpy()
    assert np.std(film - samples) < 0.1 * np.std(samples)


def test_a_sample_is_drawn_from_seed_split_and_number():
    for split, name in enumerate(("train", "validation", "test")):
        item = WorldAve(1, 1, 1, seed=5).items()[split]
        scene, told = draw_ave(np.random.default_rng([5, split, 0]))
        assert (item.key, item.split) == (f"{name}-000000", name)
        assert item.sample()["json"] == {**told, "events": events_of(scene), "scene": scene.as_json()}


def test_samples_are_the_same_bytes_in_another_process():
    code = (
        "import hashlib; from mmflow.world import listening; from mmflow.data.writer import encode\n"
        f"for name in {[source.__name__ for source in SOURCES]}:\n"
        "    sample = getattr(listening, name)(0, 2, 0).items()[1].sample()\n"
        "    print(hashlib.sha256(b''.join(encode(sample[name]) for name in sorted(sample))).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0].split())) == 4


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("options", [{}, {"scale": 3}, {"pictures": True}])
def test_the_size_is_about_that_of_the_members(source, options):
    item = source(1, 0, 0, **options).items()[0]
    members = item.sample().items()
    found = sum(len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0) for _, value in members)
    assert item.size == pytest.approx(found, rel=0.35)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": -2}, "test=-2 must be in 0..10,000,000"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"scale": 0}, r"scale=0 must be in 1\.\.4, for 64 to 256 pixels"),
        ({"rate": 31}, r"rate=31 pictures/s must be in 1\.\.30"),
    ],
)
def test_impossible_options_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        WorldMs3(**options)
