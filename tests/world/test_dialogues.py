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
from mmflow.world import language, pictures
from mmflow.world.dialogues import ANSWERS, MOST_CANDIDATES, OPENING, TEMPLATES, WorldDialogues, candidates, talk
from mmflow.world.edits import place
from mmflow.world.guessers import most_frequent
from mmflow.world.questions import alike
from mmflow.world.scene import COLOURS, SHAPES, SIZES, Scene, SceneOptions, Thing, draw_scene, held_out

SCENE = Scene(
    (
        Thing("circle", "red", "big", 0.2, 0.2, 0.15),
        Thing("circle", "blue", "small", 0.27, 0.8, 0.09),
        Thing("square", "red", "small", 0.8, 0.5, 0.09),
    )
)
OPTIONS = SceneOptions(things=(2, 4))


def drawn(count, split="train"):
    found = []
    for i in range(count):
        draw = np.random.default_rng([5, i])
        scene = alike(draw_scene(draw, split, OPTIONS), draw, "colour", OPTIONS)
        found.append((scene, talk(scene, draw, int(draw.integers(2, 6)), split, OPTIONS)))
    return found


# ---- an answerer of its own, from the words of the dialogue so far


class Listener:
    """Keeps in mind what "it" is."""

    def __init__(self, scene):
        self.scene, self.it, self.shape, self.asked = scene, None, None, None

    def fitting(self, words):
        things = self.scene.things
        for word in re.findall("[a-z]+", words):
            if word in (*SHAPES, *COLOURS, *SIZES):
                things = [t for t in things if word in (t.shape, t.colour, t.size)]
        return things

    def only(self, words):
        (self.it,) = self.fitting(words)

    def value(self, attribute):
        self.asked = attribute
        return place(self.it) if attribute == "place" else getattr(self.it, attribute)

    def beside(self, question):
        it = self.it
        sides = {
            "to the left of": lambda t: it.x - t.x, "to the right of": lambda t: t.x - it.x,
            "above": lambda t: it.y - t.y, "below": lambda t: t.y - it.y,
        }  # fmt: skip
        (side,) = [words for words in sides if words in question]
        others = [t for t in self.scene.things if t is not it]
        assert all(abs(sides[side](t)) >= 0.05 for t in others)
        return [t for t in others if sides[side](t) > 0]

    def answer(self, form, question):
        places = [words for words in ANSWERS["place"] if re.search(rf"\b{words}( be found)?[?.]", question)]
        asked, self.asked = self.asked, None
        if form == "colour":
            self.only(re.sub("colour", "", question))
            return self.value("colour")
        if form == "at":
            (self.it,) = [t for t in self.scene.things if place(t) == max(places, key=len)]
            return language.grammar("en").join(f"a {self.it.size} {self.it.colour} {self.it.shape}")
        if form in ("exists", "exists-size", "instead"):
            words = f"{question} {self.shape}" if form == "instead" else question
            self.shape = next(shape for shape in SHAPES if shape in words)
            found = self.fitting(words)
            assert len(found) <= 1
            self.it = found[0] if found else None
            return "yes" if found else "no"
        others = [t for t in self.scene.things if t is not self.it]
        assert len(others) == len(self.scene.things) - 1, "it is unknown"
        if form.startswith("its-"):
            return self.value(form[4:])
        if form == "any":
            return "yes" if self.beside(question) else "no"
        if form == "same":
            return "yes" if any(t.colour == self.it.colour for t in others) else "no"
        if form == "others":
            return str(len(others))
        if form == "nearest":
            far = sorted(others, key=lambda t: math.dist((t.x, t.y), (self.it.x, self.it.y)))
            self.it = far[0]
            return self.it.shape
        assert form == "and"
        (self.it,) = self.beside(question)
        return self.value(asked)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_answers_are_right(split):
    forms = Counter()
    for scene, told in drawn(700, split):
        listener = Listener(scene)
        assert 2 <= len(told["dialogue"]) <= 5
        assert len({question for question, _ in told["dialogue"]}) >= len(told["dialogue"]) - 1
        for (question, answer), form, kind in zip(
            told["dialogue"], told["question_types"], told["answer_types"], strict=True
        ):
            assert answer == listener.answer(form, question), told["dialogue"]
            assert answer in ANSWERS[kind]
            forms[form] += 1
        assert told["question_types"][0] in OPENING
    assert set(forms) == set(TEMPLATES)


def test_nothing_is_asked_that_was_told():
    for _, told in drawn(700):
        known = set()
        for (question, _), form in zip(told["dialogue"], told["question_types"], strict=True):
            if form in (*OPENING, "instead", "nearest", "and"):
                known = {"colour", "size", "shape", "place"} if form == "at" else set()
                known |= {"colour"} if form in ("colour", "exists", "instead") else set()
                known |= {"shape"} if form != "and" else set()
                known |= {word for word, among in (("size", SIZES),) if set(among) & set(question.split())}
            elif form.startswith("its-"):
                assert form[4:] not in known, told["dialogue"]
                known.add(form[4:])


def test_and_asks_the_same_of_another():
    found = Counter()
    for _, told in drawn(1500):
        for i, form in enumerate(told["question_types"]):
            if form == "and":
                assert told["answer_types"][i] == told["answer_types"][i - 1]
                found[told["answer_types"][i]] += 1
    assert {"colour", "size", "place"} <= set(found)


def test_after_another_thing_came_up_nothing_depends_on_which_it_is():
    unclear = {"its-colour", "its-size", "its-shape", "its-place", "same", "nearest", "and"}
    hints = 0
    for _, told in drawn(1500):
        hinted = False
        for (_, answer), form in zip(told["dialogue"], told["question_types"], strict=True):
            assert not (hinted and form in unclear), told["dialogue"]
            hinted = (form in ("any", "same") and answer == "yes") or (hinted and form not in OPENING)
            hints += hinted
    assert hints > 500


@pytest.mark.parametrize(
    ("scene", "turns", "split", "message"),
    [
        (SCENE, 1, "train", r"turns=1 must be in 2\.\.5"),
        (SCENE, 6, "train", r"turns=6 must be in 2\.\.5"),
        (SCENE, 3, "dev", "split='dev' must be one of train, validation, test"),
        (Scene(SCENE.things[:1]), 3, "train", r"two or more things .* not \['red circle'\]"),
        (Scene((SCENE.things[0], replace(SCENE.things[0], x=0.8))), 3, "train", "draw a scene that is distinct"),
    ],
)
def test_a_dialogue_that_cannot_be_is_said(scene, turns, split, message):
    with pytest.raises(ValueError, match=message):
        talk(scene, np.random.default_rng(0), turns, split)


def test_after_a_no_another_colour_may_be_asked_for():
    for _, told in drawn(700):
        for (_, before), form, (_, _), following in zip(
            told["dialogue"], told["question_types"], told["dialogue"][1:], told["question_types"][1:], strict=False
        ):
            if following == "instead":
                assert (form, before) == ("exists", "no")
            if before == "no" and form in ("instead", "exists-size"):
                assert following in OPENING


def test_a_dialogue_about_a_scene():
    """What there is to say of it."""
    said = defaultdict(set)
    for i in range(400):
        told = talk(SCENE, np.random.default_rng(i), 4, "train")
        for (question, answer), form in zip(told["dialogue"], told["question_types"], strict=True):
            said[form].add((question, answer))
    assert {
        ("what colour is the big circle?", "red"),
        ("what colour is the small circle?", "blue"),
        ("what colour is the square?", "red"),
    } <= said["colour"]
    assert {answer for _, answer in said["at"]} == {"a big red circle", "a small blue circle", "a small red square"}
    assert ("what is at the top left?", "a big red circle") in said["at"]
    assert said["exists-size"] & {("is there a big square?", "no"), ("do you see a big square?", "no")}
    assert {answer for _, answer in said["others"]} == {"2"}
    assert ("where is it?", "on the right at mid height") in said["its-place"]


def test_each_split_has_templates_of_its_own():
    for split, which in (("validation", -2), ("test", -1)):
        dialogues = [told for _, told in drawn(300, split)]
        assert 0.42 < np.mean([told["unseen_template"] for told in dialogues]) < 0.58
        for told in dialogues:
            for (question, _), form in zip(told["dialogue"], told["question_types"], strict=True):
                mine = [
                    re.fullmatch(re.escape(words).replace(r"\{\}", ".+"), question) is not None
                    for words in TEMPLATES[form]
                ]
                assert mine[which] == told["unseen_template"], question
    assert not any(told["unseen_template"] for _, told in drawn(100))


def test_floors_are_those_of_the_spec_header():
    dialogues = [told for _, told in drawn(2500)]
    turns = [
        [(form, *turn) for told in part for form, turn in zip(told["question_types"], told["dialogue"], strict=True)]
        for part in (dialogues[::2], dialogues[1::2])
    ]
    usual = most_frequent(((form, question), answer) for form, question, answer in turns[0])
    found = defaultdict(list)
    for form, question, answer in turns[1]:
        found[form].append(usual.get((form, question)) == answer)
    stated = {
        "colour": 0.15, "at": 0.02, "exists": 0.5, "exists-size": 0.5, "instead": 0.5, "its-colour": 0.13,
        "its-size": 0.5, "its-place": 0.2, "any": 0.57, "same": 0.7, "others": 0.35, "nearest": 0.17, "and": 0.1,
    }  # fmt: skip
    assert set(found) - {"its-shape"} == set(stated)  # which is rare
    for form, share in stated.items():
        assert np.mean(found[form]) == pytest.approx(share, abs=0.075), form


# ---- answers to rank


@pytest.mark.parametrize("count", [2, 20, MOST_CANDIDATES])
def test_the_right_answer_is_at_its_place_among_different_ones(count):
    draw = np.random.default_rng(0)
    places = Counter()
    for kind, answers in ANSWERS.items():
        for _ in range(40):
            found, right = candidates(draw, answers[1], kind, count)
            assert len(found) == len(set(found)) == count
            assert found[right] == answers[1]
            assert len(set(answers) & set(found)) == min(len(answers), count)
            places[right] += 1
    assert MOST_CANDIDATES == 8 + 6 + 2 + 2 + 9 + 9 + 96
    if count == 2:
        assert 110 < places[0] < 170


# ---- the source


def test_a_sample_has_picture_dialogue_and_candidates():
    for item in WorldDialogues(20, 10, 10, seed=4, candidates=12).items():
        sample = item.sample()
        assert list(sample) == ["__key__", "jpg", "txt", "json"]
        told = json.loads(json.dumps(sample["json"]))
        scene = Scene.from_json(told["scene"])
        assert sample["jpg"] == pictures.encode(pictures.render(scene, 64))
        assert sample["txt"].split("\n") == [f"{question} {answer}" for question, answer in told["dialogue"]]
        right = [among[i] for among, i in zip(told["candidates"], told["right"], strict=True)]
        assert right == [answer for _, answer in told["dialogue"]]
        assert {len(among) for among in told["candidates"]} == {12}
        assert told["unseen"] == (scene.unseen or told["unseen_template"])
        assert scene.unseen == any(held_out(thing.colour, thing.shape) for thing in scene.things)
        assert not (item.split == "train" and told["unseen"])


def test_samples_are_the_same_bytes_in_another_process():
    code = (
        "import hashlib; from mmflow.world.dialogues import WorldDialogues\n"
        "print(hashlib.sha256(repr([i.sample() for i in WorldDialogues(8, 0, 4).items()]).encode()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop()) == 65


def test_a_sample_depends_on_seed_split_and_number_alone():
    few, many = WorldDialogues(2, 1, 1).items(), WorldDialogues(5, 0, 3).items()
    assert few[1].sample() == many[1].sample()
    assert few[3].sample() == many[5].sample()
    assert few[0].sample()["txt"] != WorldDialogues(2, 1, 1, seed=1).items()[0].sample()["txt"]


def test_options_are_kept():
    for item in WorldDialogues(20, 3, 3, size=32, things=(2, 2), turns=(5, 5), shapes=["ring", "cross"]).items():
        sample = item.sample()
        assert Image.open(io.BytesIO(sample["jpg"])).size == (32, 32)
        assert len(sample["json"]["dialogue"]) == 5
        assert {thing["shape"] for thing in sample["json"]["scene"]["things"]} <= {"ring", "cross"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": -1}, "train=-1 must be in 0..10,000,000"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"size": 300}, r"size=300 pixels must be in 32\.\.256"),
        ({"things": (1, 4)}, r"things=\(1, 4\) must be from at least 2, for a dialogue"),
        ({"things": (2, 10)}, "at most 9: more do not fit"),
        ({"turns": (1, 5)}, r"turns=\(1, 5\) must be from at least 2 to at most 5"),
        ({"turns": (4, 3)}, r"turns=\(4, 3\) must be from"),
        ({"turns": (2, 6)}, r"turns=\(2, 6\) must be from"),
        ({"candidates": 1}, r"candidates=1 must be in 2\.\.132: there are no more answers"),
        ({"candidates": 133}, r"candidates=133 must be in 2\.\.132"),
        ({"colours": ["pink"]}, r"colours=\['pink'\] must be one or more of red"),
    ],
)
def test_impossible_options_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        WorldDialogues(**options)


def test_the_size_is_about_that_of_the_members():
    items = WorldDialogues(20, 5, 5).items()
    found = sum(len(s["jpg"]) + len(s["txt"]) + len(json.dumps(s["json"])) for s in (i.sample() for i in items))
    assert sum(item.size for item in items) == pytest.approx(found, rel=0.35)


def test_the_spec_is_of_this_source():
    source = build_source(DataSpec.read(Path("data_specs") / "world_dialogues.yaml"))
    assert Counter(item.split for item in source.items()) == {"train": 4000, "validation": 400, "test": 400}
    assert Image.open(io.BytesIO(source.items()[-1].sample()["jpg"])).size == (64, 64)
