import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmflow.data import documents
from mmflow.data.decode import decode
from mmflow.data.make import build_source
from mmflow.data.pictures import Picture
from mmflow.data.spec import DataSpec
from mmflow.data.video import Video
from mmflow.world import clips, pictures
from mmflow.world.documents import (
    ASKED,
    CLIP_RATE,
    CLIP_S,
    FORMS,
    TASKS,
    TEMPLATES,
    WORDS,
    WorldDocuments,
    WorldEpisodes,
    changed,
    described,
    place,
)
from mmflow.world.scene import COLOURS, GAP, SHAPES, SIZES, Scene, Thing, held_out

RED = Thing("circle", "red", "big", 0.2, 0.2, 0.14)
BLUE = Thing("square", "blue", "small", 0.8, 0.5, 0.09)
SCENE = Scene((RED, BLUE))
COUNTS = {"train": 60, "validation": 40, "test": 40}
# A process of its own, with a seed of its own for the hashes of texts, makes what it is sent.
MAKE = "import pickle, sys; sys.stdout.buffer.write(pickle.dumps([i.sample() for i in pickle.load(sys.stdin.buffer)]))"


@pytest.fixture(scope="module")
def stories():
    return [(item.split, item.sample()) for item in WorldDocuments(*COUNTS.values(), seed=2, size=32).items()]


@pytest.fixture(scope="module")
def with_clips():
    items = WorldDocuments(8, 4, 4, seed=2, size=64, steps=(3, 5), clips=0.6).items()
    return [(item.split, item.sample()) for item in items]


@pytest.fixture(scope="module")
def episodes():
    items = WorldEpisodes(300, 120, 120, seed=2, size=32).items()
    return [(item.split, item.sample()) for item in items]


def told(sample):
    return decode(json.dumps(sample["json"]).encode(), "json")


def scenes_of(sample):
    return [Scene.from_json(scene) for scene in told(sample)["scenes"]]


def parsed(sample):
    """The parts of the document with decoded members."""
    document = decode(json.dumps(sample["doc.json"]).encode(), "doc.json")
    members = {name: decode(value, name) for name, value in sample.items() if isinstance(value, bytes)}
    assert documents.references(document) == set(members)
    return documents.parse(document, members)


# ---- both sources


@pytest.mark.parametrize("source", [WorldDocuments, WorldEpisodes])
def test_there_are_as_many_as_asked_for(source):
    items = source(3, 0, 2).items()
    assert [item.key for item in items] == [f"train-{i:06d}" for i in range(3)] + ["test-000000", "test-000001"]
    assert [item.split for item in items] == ["train"] * 3 + ["test"] * 2


@pytest.mark.parametrize("made", ["stories", "with_clips", "episodes"])
def test_pairs_that_are_held_out_are_in_their_split_alone(made, request):
    unseen = Counter()
    for split, sample in request.getfixturevalue(made):
        homes = {held_out(thing.colour, thing.shape) for scene in scenes_of(sample) for thing in scene.things}
        assert homes <= {None, split}
        assert sample["json"]["unseen"] or split not in homes
        unseen[split] += sample["json"]["unseen"]
    assert unseen["train"] == 0
    assert unseen["validation"] + unseen["test"] > 0


@pytest.mark.parametrize("made", ["stories", "with_clips", "episodes"])
def test_documents_parse_and_refer_to_all_members_in_their_order(made, request):
    for _, sample in request.getfixturevalue(made):
        parts = parsed(sample)
        shown = [part for part in parts if not isinstance(part, str)]
        assert len(shown) == len(sample["json"]["scenes"])
        names = [name for part in sample["doc.json"] for kind, name in part.items() if kind != "text"]
        assert [int(name.split(".")[0]) for name in names] == list(range(len(names)))
        assert [isinstance(part, Picture) for part in shown] == [not name.endswith("mp4") for name in names]
        assert all(isinstance(part, Picture | Video | str) for part in parts)


@pytest.mark.parametrize("source", [WorldDocuments, WorldEpisodes])
def test_a_sample_depends_on_seed_split_and_number_alone(source):
    few, many = source(2, 1, 1).items(), source(5, 0, 3).items()
    assert few[1].sample() == many[1].sample()
    assert few[3].sample() == many[5].sample()
    assert few[0].sample()["json"] != source(2, 1, 1, seed=1).items()[0].sample()["json"]


def test_samples_are_the_same_bytes_in_another_process():
    items = [*WorldDocuments(4, 0, 2, clips=0.4).items(), *WorldEpisodes(4, 0, 3).items()]
    made = subprocess.run([sys.executable, "-c", MAKE], input=pickle.dumps(items), capture_output=True, check=True)
    assert pickle.loads(made.stdout) == [item.sample() for item in items]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        *((source, {"train": -1}, "train=-1 must be in 0..10,000,000") for source in (WorldDocuments, WorldEpisodes)),
        *((source, {"seed": -1}, "seed=-1 must be 0 or more") for source in (WorldDocuments, WorldEpisodes)),
        *((source, {"size": 31}, r"size=31 pixels must be in 32\.\.256") for source in (WorldDocuments, WorldEpisodes)),
        *((source, {"format": "gif"}, "format='gif' must be one of jpg") for source in (WorldDocuments, WorldEpisodes)),
        (WorldDocuments, {"clips": 1.1}, r"clips=1.1 is a chance; it must be in 0\.\.1"),
        (WorldDocuments, {"clips": float("nan")}, "clips=nan is a chance"),
        (WorldDocuments, {"clips": 0.1, "size": 33}, "size=33 must be even, for there are clips"),
        (WorldDocuments, {"steps": (1, 3)}, r"steps=\(1, 3\) must be from at least 2 to at most 8"),
        (WorldDocuments, {"steps": (2, 9)}, r"steps=\(2, 9\) must be"),
        (WorldDocuments, {"steps": (4, 3)}, r"steps=\(4, 3\) must be"),
        (WorldDocuments, {"things": (1, 1)}, r"things=\(1, 1\) must be from at least 1 to 2, 3 or 4, so that some"),
        (WorldDocuments, {"things": (2, 5)}, r"things=\(2, 5\) must be"),
        (WorldDocuments, {"things": (0, 2)}, r"things=\(0, 2\) must be"),
        (WorldEpisodes, {"tasks": []}, r"tasks=\[\] must be one or more of name, question, caption"),
        (WorldEpisodes, {"tasks": ["draw"]}, r"tasks=\['draw'\] must be one or more"),
        (WorldEpisodes, {"tasks": ["name", "name"]}, "each once"),
        (WorldEpisodes, {"ways": (1, 2)}, r"ways=\(1, 2\) must be from at least 2 to at most 4"),
        (WorldEpisodes, {"ways": (2, 5)}, r"ways=\(2, 5\) must be from at least 2 to at most 4"),
        (WorldEpisodes, {"shots": (0, 1)}, r"shots=\(0, 1\) must be from at least 1 to at most 8"),
        (WorldEpisodes, {"shots": (1, 9)}, r"shots=\(1, 9\) must be"),
    ],
)
def test_impossible_options_are_said(source, options, message):
    with pytest.raises(ValueError, match=message):
        source(**options)


@pytest.mark.parametrize(
    ("source", "options"),
    [(WorldDocuments, {}), (WorldDocuments, {"clips": 0.5}), (WorldEpisodes, {}), (WorldEpisodes, {"shots": (4, 8)})],
)
def test_the_size_is_about_that_of_the_members(source, options):
    items = source(24, 0, 0, **options).items()
    sizes = [
        sum(len(value if isinstance(value, bytes) else json.dumps(value)) for value in item.sample().values())
        for item in items
    ]
    most = 1024 * max(len(item.sample()) for item in items[:4])  # a tar adds up to 1 kB to each
    assert np.mean(sizes) * 0.9 < items[0].size < np.mean(sizes) + most


@pytest.mark.parametrize(("name", "source"), [("documents", WorldDocuments), ("episodes", WorldEpisodes)])
def test_the_spec_is_of_the_source_and_names_its_members(name, source):
    spec = DataSpec.read(Path(f"data_specs/world_{name}.yaml"))
    built = build_source(spec)
    assert type(built) is source
    assert spec.fields == {"document": ["doc.json"], "info": ["json"]}
    assert set(spec.splits) == set(built.counts)


# ---- stories


def test_pictures_are_those_of_the_scenes(stories):
    lengths = Counter()
    for _, sample in stories:
        scenes = scenes_of(sample)
        lengths[len(scenes)] += 1
        for number, scene in enumerate(scenes):
            assert sample[f"{number}.jpg"] == pictures.encode(pictures.render(scene, 32))
            assert 1 <= len(scene.things) <= 3
    assert set(lengths) == {2, 3, 4}


@pytest.mark.parametrize("made", ["stories", "with_clips"])
def test_text_and_pictures_take_turns(made, request):
    for _, sample in request.getfixturevalue(made):
        texts = [part["text"] for part in sample["doc.json"][::2]]
        assert all("text" not in part for part in sample["doc.json"][1::2])
        assert [change["text"] for change in sample["json"]["changes"]] == texts[1:]
        assert len(filled(TEMPLATES["opening"], texts[0])) == 1
        for text in texts[1:-1]:
            assert len(filled(TEMPLATES["next"], text)) == 1
        assert len(filled(TEMPLATES["last"], texts[-1])) == 1
        assert not any(".." in text or "{" in text for text in texts)


def filled(templates, text):
    """(number, words) of the templates that give the text, words by the names of their places."""
    patterns = [re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template)) for template in templates]
    matches = ((number, re.fullmatch(pattern, text)) for number, pattern in enumerate(patterns))
    return [(number, match.groupdict()) for number, match in matches if match]


@pytest.mark.parametrize("made", ["stories", "with_clips"])
def test_templates_that_are_held_out_are_in_their_split_alone(made, request):
    new = Counter()
    for split, sample in request.getfixturevalue(made):
        told = sample["json"]
        texts = [part["text"] for part in sample["doc.json"][::2]]
        own = {"train": None, "validation": -2, "test": -1}[split]
        parts = [(TEMPLATES["opening"], texts[0])]
        for change, text in zip(told["changes"], texts[1:], strict=True):
            joining = TEMPLATES["last" if text is texts[-1] else "next"]
            ((_, words),) = filled(joining, text)
            parts += [(joining, text), (TEMPLATES[change["kind"]], words["what"])]
        for templates, text in parts:
            numbers = {number for number, _ in filled(templates, text)}
            if told["unseen_template"]:
                assert len(templates) + own in numbers
            else:
                assert min(numbers) < len(templates) - 2
        assert told["unseen"] or not told["unseen_template"]
        new[split] += told["unseen_template"]
    assert new["train"] == 0
    assert made == "with_clips" or (10 < new["validation"] < 30 and 10 < new["test"] < 30)  # half of 40
    assert all(len(set(templates)) == len(templates) >= 4 for templates in TEMPLATES.values())


def test_the_opening_names_all_things_and_their_places(stories):
    for _, sample in stories:
        ((_, words),) = filled(TEMPLATES["opening"], sample["doc.json"][0]["text"])
        told = [f"a {thing.size} {thing.colour} {thing.shape} {place(thing)}" for thing in scenes_of(sample)[0].things]
        assert words["things"] == (f"{', '.join(told[:-1])} and {told[-1]}" if len(told) > 1 else told[0])
    assert place(replace(RED, x=0.5)) == "at the top"
    assert place(replace(RED, x=0.8, y=0.9)) == "at the bottom right"
    assert place(replace(BLUE, x=0.5)) == "in the middle"
    assert place(BLUE) == "on the right"


def named(text, scene):
    """The numbers of the things that the words of a change fit, by its size, colour, shape and place."""
    words = set(re.findall("[a-z]+", text))
    places = {"top", "bottom", "left", "right", "middle", "centre"} & words
    return [
        number
        for number, thing in enumerate(scene.things)
        if words & set(COLOURS) <= {thing.colour}
        and words & {*SHAPES} <= {thing.shape}
        and words & {*SIZES} <= {thing.size}
        and places <= {thing.column, thing.row}
    ]


@pytest.mark.parametrize("made", ["stories", "with_clips"])
def test_each_change_is_the_only_one_and_is_as_told(made, request):
    """Replays the story from its text; a thing that changes is the only one that its words fit."""
    kinds = Counter()
    for _, sample in request.getfixturevalue(made):
        scenes = scenes_of(sample)
        for number, change in enumerate(told(sample)["changes"], 1):
            earlier, shown = scenes[number - 1], scenes[number]
            before = [ended(thing, earlier.seconds) for thing in earlier.things]
            now = [ended(thing, 0) for thing in shown.things]
            kind, i = change["kind"], change["thing"]
            kinds[kind] += 1
            start = replace(earlier, things=tuple(before))
            ((_, joined),) = filled(TEMPLATES["last" if number == len(scenes) - 1 else "next"], change["text"])
            words = filled(TEMPLATES[kind], joined["what"])[0][1]
            if kind == "come":
                assert now[:-1] == before
                assert i == len(now) - 1
                assert words == {"new": f"a {now[i].size} {now[i].colour} {now[i].shape}", "place": place(now[i])}
                continue
            assert named(words["thing"], start) == [i]
            others = [thing for j, thing in enumerate(before) if j != i]
            if kind == "go":
                assert now == others
                continue
            assert [thing for j, thing in enumerate(now) if j != i] == others
            old, new = before[i], now[i]
            if kind == "colour":
                assert words["colour"] == new.colour != old.colour
                assert new == replace(old, colour=new.colour)
            elif kind == "size":
                assert words.get("size", new.size) == new.size
                assert words.get("grew", "grew" if new.size == "big" else "shrank") in joined["what"]
                assert (new.radius > old.radius) == (new.size == "big")
                assert new == replace(old, size=new.size, radius=new.radius)
            elif kind == "move":
                end = ended(shown.things[i], shown.seconds)
                assert words["way"].replace("to the ", "") == way(old, end)
            else:
                (event,) = shown.things[i].sounds
                assert event.heard
                assert event.seen
                assert 0 <= event.start < event.end <= CLIP_S
    wanted = {"stories": {"move", "colour", "size", "come", "go"}}.get(made, {"move", "sound"})
    assert wanted <= set(kinds)
    assert ("sound" in kinds) == (made == "with_clips")


def ended(thing, seconds):
    """The thing at the end of its clip, at rest; rounded, for the path was divided by its time and multiplied again."""
    x, y = thing.at(seconds)
    return replace(thing, x=round(x, 9), y=round(y, 9), motion="still", speed=0.0, sounds=())


def way(old, new):
    dx, dy = new.x - old.x, new.y - old.y
    assert min(abs(dx), abs(dy)) < 1e-8 < 0.1 < max(abs(dx), abs(dy))
    return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")


def test_a_clip_shows_its_scene(with_clips):
    seen = 0
    for _, sample in with_clips:
        for number, scene in enumerate(scenes_of(sample)):
            data = sample.get(f"{number}.mp4")
            assert (data is None) == (scene.seconds == 0)
            if data:
                video = decode(data, "mp4")
                assert video.seconds == pytest.approx(CLIP_S, abs=0.01)
                shown = video.clip(0, video.seconds, CLIP_RATE).permute(0, 2, 3, 1)
                wanted = torch.from_numpy(clips.frames(scene, 64, CLIP_RATE))
                assert shown.shape == wanted.shape
                assert (shown.float() - wanted.float()).abs().mean() < 6
                heard = video.sound(0, CLIP_S).abs().max() > 0.01
                assert heard == any(thing.sounds for thing in scene.things)
                seen += 1
    assert seen > 12


def test_things_stay_apart_and_within_the_canvas(stories, with_clips):
    for _, sample in (*stories, *with_clips):
        for scene in scenes_of(sample):
            things = [ended(thing, scene.seconds) for thing in scene.things]
            for i, thing in enumerate(things):
                low = thing.radius + GAP - 1e-8
                assert all(low <= at <= 1 - low for at in (thing.x, thing.y))
                far = [np.hypot(thing.x - o.x, thing.y - o.y) - thing.radius - o.radius for o in things[:i]]
                assert min(far, default=1) > 0
            assert len({(thing.colour, thing.shape) for thing in things}) == len(things)


def test_changes_of_one_thing_alone():
    """With one thing and one at most, none comes and none goes."""
    kinds = {
        (lasting, changed(Scene((RED,)), np.random.default_rng(i), 1, lasting).kind)
        for i in range(80)
        for lasting in (False, True)
    }
    assert kinds == {(False, "move"), (False, "colour"), (False, "size"), (True, "move"), (True, "sound")}


# ---- episodes


def true_of(thing, word):
    return word in (thing.colour, thing.shape, thing.size, thing.column, thing.row)


def test_an_episode_shows_one_thing_at_a_time_and_ends_in_the_answer(episodes):
    for _, sample in episodes:
        info = told(sample)
        scenes = scenes_of(sample)
        examples = [*info["shots"], info["query"]]
        for number, (scene, example) in enumerate(zip(scenes, examples, strict=True)):
            assert len(scene.things) == 1
            assert example["image"] == f"{number}.jpg"
            assert sample[example["image"]] == pictures.encode(pictures.render(scene, 32))
        parts = [next(iter(part.values())) for part in sample["doc.json"]]
        expected = []
        for shot in info["shots"]:
            expected += [shot["image"], f"{shot['prompt']} {shot['answer']}."]
        query = info["query"]
        assert parts == [*expected, query["image"], query["prompt"], query["answer"]]


def test_names_follow_from_the_examples(episodes):
    ways = Counter()
    for _, sample in episodes:
        info = told(sample)
        if info["task"] != "name":
            continue
        pairs = [(scene.things[0].colour, scene.things[0].shape) for scene in scenes_of(sample)]
        learnt = {}
        for pair, shot in zip(pairs, info["shots"], strict=False):
            assert learnt.setdefault(pair, shot["answer"]) == shot["answer"]
        assert learnt[pairs[-1]] == info["query"]["answer"]
        assert sorted(learnt.values()) == info["choices"]
        shown = Counter(shot["answer"] for shot in info["shots"])
        assert len(set(shown.values())) == 1  # each as often
        ways[len(learnt)] += 1
    assert set(ways) == {2, 3}


def test_answers_to_questions_follow_from_the_examples(episodes):
    attributes = Counter()
    words = [word for values in ASKED.values() for word in values]
    assert len(set(words)) == len(words)  # so that one answer tells what is asked for
    for _, sample in episodes:
        info = told(sample)
        if info["task"] != "question":
            continue
        things = [scene.things[0] for scene in scenes_of(sample)]
        told_by = {
            name
            for name, values in ASKED.items()
            if all(
                shot["answer"] in values and true_of(thing, shot["answer"])
                for thing, shot in zip(things, info["shots"], strict=False)
            )
        }
        (asked,) = told_by
        assert getattr(things[-1], asked) == info["query"]["answer"]
        assert set(info["choices"]) == set(ASKED[asked])
        assert len({shot["prompt"] for shot in info["shots"]} | {info["query"]["prompt"]}) == 1
        attributes[asked] += 1
    assert set(attributes) == set(ASKED)


def test_captions_follow_from_the_examples(episodes):
    """Only one form agrees with all examples, and it gives the caption of the query."""
    forms = set()
    for split, sample in episodes:
        info = told(sample)
        if info["task"] != "caption":
            continue
        things = [scene.things[0] for scene in scenes_of(sample)]
        (form,) = [
            form
            for form in FORMS
            if all(described(thing, form) == shot["answer"] for thing, shot in zip(things, info["shots"], strict=False))
        ]
        assert described(things[-1], form) == info["query"]["answer"]
        assert info["choices"] == []
        forms.add((split, form))
    assert {form for split, form in forms if split == "train"} == set(FORMS[:-2])
    assert ("validation", FORMS[-2]) in forms
    assert ("test", FORMS[-1]) in forms
    assert not {("validation", FORMS[-1]), ("test", FORMS[-2])} & forms


@pytest.mark.parametrize("options", [{}, {"ways": (2, 2), "shots": (1, 1)}, {"ways": (4, 4), "shots": (2, 4)}])
def test_an_episode_is_solved_from_its_examples_alone(options):
    """By a solver that knows what things look like, but neither the task nor the split."""
    for item in WorldEpisodes(16, 8, 8, seed=5, size=32, **options).items():
        sample = item.sample()
        things = {f"{i}.jpg": scene.things[0] for i, scene in enumerate(scenes_of(sample))}
        parts = [next(iter(part.values())) for part in sample["doc.json"]]
        shots, (image, prompt, answer) = parts[:-3], parts[-3:]
        examples = [
            (things[shown], text[len(prompt) + 1 : -1]) for shown, text in zip(shots[::2], shots[1::2], strict=True)
        ]
        assert solved(examples, things[image], prompt) == answer


def solved(examples, query, prompt):
    """Names stand for looks, answers for one attribute, captions for one order of words."""
    if prompt.endswith("?"):
        names = [
            n for n in ("colour", "shape", "size", "column", "row") if all(getattr(t, n) == a for t, a in examples)
        ]
        (name,) = names
        return getattr(query, name)
    if prompt == "caption:":
        (form,) = {form for form in FORMS if all(described(thing, form) == told for thing, told in examples)}
        return described(query, form)
    (name,) = {told for thing, told in examples if (thing.colour, thing.shape) == (query.colour, query.shape)}
    return name


def test_words_that_are_held_out_are_in_their_split_alone(episodes):
    assert len(set(WORDS)) == 24
    own = {"validation": set(WORDS[16:20]), "test": set(WORDS[20:]), "train": set()}
    used = {split: set() for split in own}
    for split, sample in episodes:
        text = " ".join(part["text"] for part in sample["doc.json"] if "text" in part)
        words = set(re.findall("[a-z]+", text)) & set(WORDS)
        assert sample["json"]["unseen"] or not words & own[split]
        used[split] |= words
    assert used["train"] == set(WORDS[:16])
    assert used["validation"] & set(WORDS[16:]) == own["validation"]
    assert used["test"] & set(WORDS[16:]) == own["test"]


def test_without_the_examples_little_is_known(episodes):
    """The limits of the spec: a name is one of the choices, a question is about one of five attributes."""
    hits = {"name": [], "question": []}
    chances = []
    for _, sample in episodes:
        info = told(sample)
        answer, thing = info["query"]["answer"], scenes_of(sample)[-1].things[0]
        if info["task"] == "name":
            hits["name"].append(info["choices"][0] == answer)
            chances.append(1 / len(info["choices"]))
        elif info["task"] == "question":
            hits["question"].append(thing.colour == answer)
    for task, chance in {"name": np.mean(chances), "question": 1 / 5}.items():
        error = (chance * (1 - chance) / len(hits[task])) ** 0.5
        assert abs(np.mean(hits[task]) - chance) < 3 * error


def test_options_of_episodes_are_kept():
    items = WorldEpisodes(8, 2, 2, size=48, tasks=["name"], ways=(4, 4), shots=(3, 3), format="png").items()
    for item in items:
        sample = item.sample()
        info = sample["json"]
        assert (info["task"], len(info["choices"]), len(info["shots"])) == ("name", 4, 12)
        picture = decode(sample["12.png"], "png")
        assert (picture.height, picture.width) == (48, 48)
        np.testing.assert_array_equal(
            picture.tensor().permute(1, 2, 0).numpy(), pictures.render(scenes_of(sample)[-1], 48)
        )


def test_tasks_are_as_frequent(episodes):
    tasks = Counter(sample["json"]["task"] for _, sample in episodes)
    assert set(tasks) == set(TASKS)
    error = (2 / 9 / len(episodes)) ** 0.5
    assert all(abs(count / len(episodes) - 1 / 3) < 3 * error for count in tasks.values())
