import io
import json
import math
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmflow.data.make import build_source
from mmflow.data.spec import DataSpec
from mmflow.world import pictures, questions
from mmflow.world.guessers import most_frequent
from mmflow.world.questions import (
    CLIP_KINDS,
    FORMS,
    KINDS,
    PICTURE_KINDS,
    REASONING_KINDS,
    WorldQuestions,
    WorldReasoning,
    ask,
    draw_question,
)
from mmflow.world.scene import COLOURS, SHAPES, SIZES, Scene, SceneOptions, Thing, draw_scene, held_out

# A big red circle at the top left, a small blue circle below it, a small red square on the right.
SCENE = Scene(
    (
        Thing("circle", "red", "big", 0.2, 0.2, 0.15),
        Thing("circle", "blue", "small", 0.25, 0.8, 0.09),
        Thing("square", "red", "small", 0.8, 0.5, 0.09),
    )
)


def drawn(count, split="train", kinds=PICTURE_KINDS, options=None):
    options = options or SceneOptions()
    return [draw_question(np.random.default_rng([7, i]), split, kinds, options) for i in range(count)]


def possible(form, scene, split="train"):
    found = FORMS[form].find(scene, np.random.default_rng(0), split, SceneOptions())
    return {(*one.about, one.answer) for one in found}


# ---- an answerer of its own, from the words alone


def fitting(words, things):
    words = re.sub(r"^(an?|the) ", "", words).split()
    for word in words:
        singular = next((s for s in (*SHAPES, "shape") if word in (s, f"{s}s", f"{s}es")), word)
        assert singular in (*SHAPES, *COLOURS, *SIZES, "shape"), word
        if singular != "shape":
            things = [t for t in things if singular in (t.shape, t.colour, t.size)]
    return things


def only(words, scene):
    (thing,) = fitting(words, scene.things)
    return thing


def said(true):
    return "yes" if true else "no"


def answer(form, about, scene):
    if form == "count":
        return str(len(scene.things))
    if form in ("count-colour", "count-shape"):
        return str(len(fitting(about[0], scene.things)))
    if form == "exists":
        return said(fitting(about[0], scene.things))
    if form in ("colour", "shape", "size", "column", "row"):
        return getattr(only(about[0], scene), form)
    if form in ("left-of", "above", "bigger"):
        one, other = (only(words, scene) for words in about)
        return said({"left-of": one.x < other.x, "above": one.y < other.y, "bigger": one.radius > other.radius}[form])
    if form in ("more-colour", "more-shape"):
        return said(len(fitting(about[0], scene.things)) > len(fitting(about[1], scene.things)))
    if form == "same":
        return said(sum(t.colour == only(about[0], scene).colour for t in scene.things) > 1)
    if form == "remaining":
        return str(len(scene.things) - len(fitting(about[0], scene.things)))
    if form == "either":
        return str(len({id(t) for words in about for t in fitting(words, scene.things)}))
    if form == "outermost":
        ends = {"left": lambda t: t.x, "right": lambda t: -t.x, "up": lambda t: t.y, "down": lambda t: -t.y}
        return min(scene.things, key=ends[about[0]]).colour
    if form == "nearest":
        it = only(about[0], scene)
        return min((math.dist((it.x, it.y), (t.x, t.y)), t.colour) for t in scene.things if t is not it)[1]
    raise AssertionError(form)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_answers_are_right(split):
    seen = set()
    for scene, asked in drawn(1000, split, (*PICTURE_KINDS, *REASONING_KINDS[1:])):
        assert asked["answer"] == answer(asked["form"], asked["about"], scene), asked
        assert asked["question_type"] == FORMS[asked["form"]].kind
        assert all(about in asked["question"] for about in asked["about"])
        assert asked["question"][-1] in "?."
        seen.add(asked["form"])
    assert seen == {form for form, one in FORMS.items() if one.kind not in CLIP_KINDS}


def test_what_can_be_asked_of_a_scene():
    assert possible("count", SCENE) == {("3",)}
    assert possible("colour", SCENE) == {
        ("the big circle", "red"), ("the small circle", "blue"), ("the square", "red")
    }  # fmt: skip
    assert possible("shape", SCENE) == {
        ("the blue shape", "circle"), ("the big shape", "circle"), ("the small red shape", "square")
    }  # fmt: skip
    assert possible("size", SCENE) == {
        ("the red circle", "big"), ("the blue circle", "small"), ("the square", "small")
    }  # fmt: skip
    assert {one for one in possible("count-shape", SCENE) if one[1] != "0"} == {("circles", "2"), ("squares", "1")}
    assert ("the red circle", "the square", "yes") in possible("left-of", SCENE)
    assert possible("bigger", SCENE) == {
        ("the red circle", "the square", "yes"), ("the square", "the red circle", "no"),
        ("the red circle", "the blue circle", "yes"), ("the blue circle", "the red circle", "no"),
    }  # fmt: skip
    assert ("red shapes", "blue shapes", "yes") in possible("more-colour", SCENE)
    assert ("red", "squares", "2") in possible("either", SCENE)
    assert possible("nearest", SCENE) == {("the red circle", "blue")}  # from the others it is nearly as far to both


def test_places_are_not_asked_for_where_it_cannot_be_seen():
    close = replace(SCENE.things[1], x=SCENE.things[0].x + 0.02)
    assert not possible("left-of", Scene((SCENE.things[0], close)))
    assert possible("above", Scene((SCENE.things[0], close)))
    moving = replace(SCENE, things=tuple(replace(t, motion="up", speed=0.1) for t in SCENE.things), seconds=1)
    for form in ("left-of", "above", "bigger", "column", "row", "nearest", "outermost"):
        assert not possible(form, moving), form


def test_ask_gives_one_question_of_each_kind_with_each_answer_as_likely():
    draw = np.random.default_rng(0)
    counts = defaultdict(Counter)
    for _ in range(400):
        asked = ask(SCENE, draw, KINDS, "train")
        kinds = [one["question_type"] for one in asked]
        assert set(kinds) == set(PICTURE_KINDS) | set(REASONING_KINDS)
        assert len(kinds) == len(set(kinds))
        for one in asked:
            counts[one["question_type"]][one["answer"]] += 1
            assert one["answer"] == answer(one["form"], one["about"], SCENE)
    for kind in ("existence", "size", "relation", "comparison", "same"):
        assert 160 < counts[kind]["yes"] + counts[kind]["small"] < 240, kind
    with pytest.raises(ValueError, match=r"kinds=\['smell'\] must be a list of one or more of existence"):
        ask(SCENE, draw, ["smell"], "train")
    with pytest.raises(ValueError, match="each once"):
        ask(SCENE, draw, ["size", "size"], "train")
    with pytest.raises(ValueError, match="kinds=size must be a list of one or more of existence"):
        ask(SCENE, draw, "size", "train")
    with pytest.raises(ValueError, match="split='dev' must be one of train, validation, test"):
        ask(SCENE, draw, ["size"], "dev")


# ---- what the questions alone tell


def guessed(asked):
    """Type of question -> share that is right by its most frequent answer, and by that to the form with its words."""
    found = defaultdict(list)
    by_type = most_frequent((one["question_type"], one["answer"]) for one in asked[::2])
    by_text = most_frequent(((one["form"], *one["about"]), one["answer"]) for one in asked[::2])
    for one in asked[1::2]:
        usual = by_type.get(one["question_type"])
        text = by_text.get((one["form"], *one["about"]), usual)
        found[one["question_type"]].append((usual == one["answer"], text == one["answer"]))
    return {kind: np.mean(hits, axis=0) for kind, hits in found.items()}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_most_frequent_answer_to_a_form_is_near_chance(split):
    rows = defaultdict(list)
    for _, asked in drawn(1500, split, (*PICTURE_KINDS, *REASONING_KINDS[1:])):
        rows[asked["form"]].append(asked["answer"])
    chance = {
        "exists": 0.5, "count": 0.25, "count-colour": 0.25, "count-shape": 0.25, "colour": 1 / 6, "shape": 1 / 4,
        "size": 0.5, "column": 1 / 3, "row": 1 / 3, "left-of": 0.5, "above": 0.5, "bigger": 0.5, "more-colour": 0.5,
        "more-shape": 0.5, "same": 0.5, "remaining": 0.25, "either": 0.25, "outermost": 1 / 8, "nearest": 1 / 8,
    }  # fmt: skip
    assert set(chance) == set(rows)
    for form, own in rows.items():
        (_, most), *_ = Counter(own).most_common(1)
        error = (chance[form] * (1 - chance[form]) / len(own)) ** 0.5
        assert most / len(own) < chance[form] + 0.02 + 3 * error, form


@pytest.mark.parametrize(
    "stated",
    [
        {"existence": 0.5, "size": 0.5, "relation": 0.5, "comparison": 0.5, "counting": 0.27, "colour": 0.17,
         "shape": 0.22, "place": 0.33},
        {"comparison": 0.5, "same": 0.5, "remaining": 0.26, "either": 0.26, "outermost": 0.14, "nearest": 0.14},
    ],
)  # fmt: skip
def test_floors_are_those_of_the_spec_header(stated):
    found = guessed([asked for _, asked in drawn(300 * len(stated), kinds=list(stated))])
    assert set(found) == set(stated)
    for kind, share in stated.items():
        error = (share * (1 - share) / 150) ** 0.5
        assert (found[kind] < share + 0.01 + 3 * error).all(), kind


# ---- what is held out


def test_each_split_has_templates_of_its_own():
    new = {}
    for split in ("train", "validation", "test"):
        rows = [asked for _, asked in drawn(800, split)]
        share = np.mean([row["unseen_template"] for row in rows])
        assert share == 0 if split == "train" else 0.43 < share < 0.57
        own = {(row["form"], row["question"].format(*row["about"])) for row in rows if row["unseen_template"]}
        for form, question in own:
            pattern = FORMS[form].templates[-2 if split == "validation" else -1]
            assert re.fullmatch(re.escape(pattern).replace(r"\{\}", ".+"), question)
        new[split] = own
    for form in FORMS.values():
        assert len(set(form.templates)) == 5


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_unseen_tells_what_training_never_has(split):
    flags = []
    for scene, asked in drawn(600, split, [*PICTURE_KINDS, *REASONING_KINDS[1:]]):
        there = any(held_out(thing.colour, thing.shape) for thing in scene.things)
        words = " ".join(asked["about"]).split()
        pair = asked["form"] == "exists" and held_out(words[1], words[2]) is not None
        assert asked["unseen"] == (there or pair or asked["unseen_template"])
        assert {held_out(thing.colour, thing.shape) for thing in scene.things} <= {None, split}
        flags.append(asked["unseen"])
    assert not any(flags) if split == "train" else 0.6 < np.mean(flags) < 0.9


def test_yes_and_no_are_as_likely_for_pairs_that_are_held_out():
    answers = Counter()
    for _, asked in drawn(2500, "test", ["existence"]):
        _, colour, shape = asked["about"][0].split()
        if held_out(colour, shape):
            assert held_out(colour, shape) == "test"
            answers[asked["answer"]] += 1
    assert sum(answers.values()) > 300
    assert 0.38 < answers["yes"] / sum(answers.values()) < 0.62


# ---- the sources


def test_a_sample_has_picture_question_and_scene():
    for item in WorldQuestions(12, 4, 4, seed=3, size=48).items():
        sample = item.sample()
        assert list(sample) == ["__key__", "jpg", "txt", "json"]
        told = sample["json"]
        assert sample["txt"] == told["question"]
        scene = Scene.from_json(json.loads(json.dumps(told["scene"])))
        assert told["answer"] == answer(told["form"], told["about"], scene)
        assert sample["jpg"] == pictures.encode(pictures.render(scene, 48))
        assert ("explanation" in told) == (told["question_type"] == "comparison")


def test_several_questions_about_a_picture_have_one_group():
    source = WorldQuestions(5, 2, 0, questions=3)
    items = source.items()
    assert [item.split for item in items] == ["train"] * 15 + ["validation"] * 6
    assert len({item.key for item in items}) == 21
    assert Counter(item.group for item in items) == {f"train-{i:06d}": 3 for i in range(5)} | {
        f"validation-{i:06d}": 3 for i in range(2)
    }
    samples = [item.sample() for item in items]
    for i in range(0, 21, 3):
        assert len({sample["jpg"] for sample in samples[i : i + 3]}) == 1
        assert len({sample["txt"] for sample in samples[i : i + 3]}) == 3
        for sample in samples[i : i + 3]:
            told = sample["json"]
            assert told["answer"] == answer(told["form"], told["about"], Scene.from_json(told["scene"]))


def test_samples_are_the_same_bytes_in_another_process():
    code = (
        "import hashlib; from mmflow.world.questions import WorldQuestions, WorldReasoning\n"
        "items = WorldQuestions(3, 0, 3).items() + WorldReasoning(3, 0, 3).items()\n"
        "print(hashlib.sha256(repr([item.sample() for item in items]).encode()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop()) == 65


def test_a_sample_depends_on_seed_split_and_number_alone():
    few, many = WorldQuestions(2, 1, 1).items(), WorldQuestions(5, 0, 3).items()
    assert few[1].sample() == many[1].sample()
    assert few[3].sample() == many[5].sample()
    assert few[0].sample()["jpg"] != WorldQuestions(2, 1, 1, seed=1).items()[0].sample()["jpg"]
    assert few[0].sample()["jpg"] != WorldReasoning(2, 1, 1).items()[0].sample()["jpg"]


def test_options_are_kept():
    options = {
        "things": (2, 3),
        "shapes": ["circle", "ring", "cross"],
        "styles": ["flat"],
        "kinds": ["counting", "colour"],
    }
    for item in WorldQuestions(40, 5, 5, **options).items():
        told = item.sample()["json"]
        scene = Scene.from_json(told["scene"])
        assert told["question_type"] in ("counting", "colour")
        assert 2 <= len(scene.things) <= 3
        assert {thing.shape for thing in scene.things} <= {"circle", "ring", "cross"}
        assert scene.style == "flat"
        assert not {"square", "triangle", "diamond"} & set(re.findall(r"[a-z]+?(?=s?\b)", told["question"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": -1}, "train=-.* must be in 0"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"size": 31}, r"size=31 pixels must be in 32\.\.256"),
        ({"size": 512}, r"size=512 pixels must be in 32\.\.256"),
        ({"things": (1, 10)}, "at most 9: more do not fit"),
        ({"questions": 0}, "questions=0 about a picture must be 1 or more"),
        ({"kinds": ["smell"]}, r"kinds=\['smell'\] must be a list of one or more of existence"),
        ({"kinds": []}, r"kinds=\[\] must be a list of one or more of"),
        ({"kinds": ["motion"]}, "kind 'motion' need scenes in which they have several answers, which stills"),
        ({"kinds": ["order"]}, "questions of kind 'order' need scenes"),
        ({"things": (1, 1)}, r"questions of kind 'relation' need scenes .* things=\(1, 1\)"),
        ({"kinds": ["nearest"], "things": (2, 2)}, r"kind 'nearest' need .* leave it out of kinds, or allow more"),
        ({"kinds": ["shape"], "shapes": ["ring"]}, r"kind 'shape' need scenes .* 1 shapes"),
        ({"colours": ["pink"]}, r"colours=\['pink'\] must be one or more of red"),
    ],
)  # fmt: skip
def test_impossible_options_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        WorldQuestions(**options)


def test_what_no_scene_has_is_said(monkeypatch):
    draw = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no question of kind 'sounding' has several answers in scenes with Scene"):
        draw_question(draw, "train", ["sounding"], SceneOptions(things=(1, 1), seconds=1.0))
    with pytest.raises(ValueError, match="no question of kind 'place' has several answers"):
        draw_question(draw, "train", ["place"], SceneOptions(seconds=1.0, moving=1.0))
    with pytest.raises(ValueError, match="split='dev' must be one of"):
        draw_question(draw, "dev", ["size"], SceneOptions())
    with pytest.raises(ValueError, match=r"kinds=\[\] must be a list"):
        draw_question(draw, "train", [], SceneOptions())
    monkeypatch.setattr(questions, "CLIP_TRIES", 2)
    with pytest.raises(ValueError, match="'only-one' cannot be asked of scenes"):  # nothing sounds in these
        questions.draw_of_form(draw, "train", "only-one", SceneOptions(seconds=1.0))


def test_the_size_is_about_that_of_the_members():
    items = WorldQuestions(20, 5, 5).items()
    found = sum(len(s["jpg"]) + len(s["txt"]) + len(json.dumps(s["json"])) for s in (i.sample() for i in items))
    assert sum(item.size for item in items) == pytest.approx(found, rel=0.35)


@pytest.mark.parametrize("name", ["questions", "reasoning"])
def test_specs_are_of_these_sources(name):
    source = build_source(DataSpec.read(Path("data_specs") / f"world_{name}.yaml"))
    sample = source.items()[-1].sample()
    assert Image.open(io.BytesIO(sample["jpg"])).size == (64, 64)
    assert sample["json"]["question_type"] in (PICTURE_KINDS if name == "questions" else REASONING_KINDS)


def test_a_scene_with_more_alike_is_still_one_of_its_split():
    for split in ("train", "test"):
        for i in range(200):
            draw = np.random.default_rng(i)
            scene = draw_scene(draw, split, SceneOptions(things=(3, 6)))
            other = questions.alike(scene, draw, "colour", SceneOptions())
            pairs = [(thing.colour, thing.shape) for thing in other.things]
            assert len(set(pairs)) == len(pairs)
            assert any(held_out(*pair) for pair in pairs) == scene.unseen
            assert [(t.x, t.y, t.shape) for t in other.things] == [(t.x, t.y, t.shape) for t in scene.things]
