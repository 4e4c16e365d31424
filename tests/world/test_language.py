import re
import unicodedata
from dataclasses import replace
from functools import cache
from itertools import permutations
from string import Formatter

import numpy as np
import pytest

from mmflow.world import language
from mmflow.world.language import (
    LANGUAGES,
    Content,
    Mention,
    Statement,
    caption,
    content,
    parse,
    phrase,
    read,
    say,
    score,
    tokens,
    words,
)
from mmflow.world.languages.table import SENTENCES
from mmflow.world.scene import (
    COLOURS,
    RADII,
    SHAPES,
    SPLITS,
    Background,
    Scene,
    SceneOptions,
    Sound,
    Thing,
    choose,
    draw_scene,
)

# circle at the top left, square at the bottom right, ring in the middle of the left
CIRCLE = Thing("circle", "red", "big", 0.2, 0.2, 0.1, sounds=(Sound(1.0, 1.5),))
SQUARE = Thing("square", "orange", "small", 0.8, 0.75, 0.1, "left", 0.1, (Sound(0.2, 0.5, seen=True),))
CROSS = Thing("cross", "white", "small", 0.15, 0.5, 0.1)
SCENE = Scene((CIRCLE, SQUARE, CROSS), "striped", Background("checks", (30, 50)), 2.0)


@cache
def drawn(number, split="train", most=4):
    """A scene; every other one is a still, the others move and sound."""
    draw = np.random.default_rng([3, number])
    scene = draw_scene(draw, split, SceneOptions((1, most), seconds=3.0 * (number % 2)))
    if not scene.seconds:
        return scene
    sounding = []
    for thing in scene.things:
        starts = draw.uniform(0, 2, int(draw.integers(3))).tolist()
        heard = bool(draw.random() < 0.7)
        sounds = tuple(Sound(s, s + 0.5, 0.0, heard, not heard or bool(draw.random() < 0.4)) for s in starts)
        sounding.append(replace(thing, sounds=sounds))
    return replace(scene, things=tuple(sounding))


def every_statement(scene):
    """A content for each sentence of each kind, about the scene's first things."""
    short, long = Mention(0, ("colour", "shape"), "the"), Mention(1, ("colour", "shape"), "the")
    for kind, lines in LANGUAGES["en"].sentences.items():
        word = {"relation": "above", "does": "still", "heard": "heard", "style": "striped", "background": "checks"}
        mentions = {"does": (short,), "heard": (short,), "style": (), "background": ()}.get(kind, (short, long))
        for number in range(len(lines)):
            statement = Statement(kind, number, mentions, word.get(kind, ""))
            yield kind, Content((statement,), False)


@pytest.mark.parametrize("name", LANGUAGES)
def test_what_a_caption_says_is_read_back(name):
    for number in range(300):
        split = SPLITS[number % 3]
        scene = drawn(number, split, most=9 if number % 7 == 0 else 4)
        for long in (False, True):
            text = caption(scene, np.random.default_rng(number), name, split, long)
            told = score(text, scene, name)
            assert (told["right"], told["invented"], told["unknown"]) == (1, 0, []), text
            assert told["said"] >= (5 * len(scene.things) + 2 if long else 1)
            assert not long or not told["missed"], text


@pytest.mark.parametrize("name", LANGUAGES)
def test_all_languages_say_the_same(name):
    for number in range(150):
        split = SPLITS[number % 3]
        scene = drawn(number, split)
        english = caption(scene, np.random.default_rng(number), "en", split, number % 4 == 3)
        text = caption(scene, np.random.default_rng(number), name, split, number % 4 == 3)
        sort = [sorted((k, str(v)) for k, v in one.items() if k not in language.RELATIONS) for one in parse(text, name)]
        assert sorted(sort) == sorted(
            sorted((k, str(v)) for k, v in one.items() if k not in language.RELATIONS) for one in parse(english)
        )
        assert read(text, name).scene == read(english).scene


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_sentence_is_read_back_and_made_of_listed_words(name):
    known = set(words(name)) | set(",.")
    for kind, said in every_statement(SCENE):
        text = say(said, SCENE, name)
        reading = read(text, name)
        assert set(tokens(text)) <= known
        word = r"[^\W\d_]+(['-][^\W\d_]+)*"
        assert re.fullmatch(f"{word}(,? {word})*", text), text
        assert text == text.lower()
        if kind in ("style", "background"):
            assert reading.scene == {kind: {"style": "striped", "background": "checks"}[kind]}
            continue
        expected = [{"colour": "red", "shape": "circle"}, {"colour": "orange", "shape": "square"}]
        if kind == "relation":
            above = next(one for one in reading.things if "above" in one)
            assert reading.things[above.pop("above")[0]]["shape"] == "square"
            assert above["shape"] == "circle"
        elif kind == "does":
            expected = [expected[0] | {"motion": "still"}]
        elif kind == "heard":
            expected = [expected[0] | {"heard": True}]
        elif kind == "order":
            expected = [one | {"heard": True, "order": place} for place, one in enumerate(expected, 1)]
        assert sorted(reading.things, key=lambda one: one["shape"]) == expected, text


@pytest.mark.parametrize(
    ("name", "indefinite", "definite"),
    [
        ("en", "a small orange square", "the orange square"),
        ("de", "ein kleines orangefarbenes quadrat", "das orangefarbene quadrat"),
        ("fr", "un petit carré orange", "le carré orange"),
        ("es", "un cuadrado naranja pequeño", "el cuadrado naranja"),
        ("it", "un piccolo quadrato arancione", "il quadrato arancione"),
        ("nl", "een klein oranje vierkant", "het oranje vierkant"),
    ],
)
def test_noun_phrases_agree(name, indefinite, definite):
    own = language.grammar(name)
    assert own.join(own.noun_phrase(SQUARE, ("size", "colour", "shape"), "a")) == indefinite
    assert own.join(own.noun_phrase(SQUARE, ("colour", "shape"), "the")) == definite


def test_german_declines_by_gender_case_and_article():
    own = language.grammar("de")
    spoken = {
        (shape, article, case): own.noun_phrase(replace(CIRCLE, shape=shape), ("size", "colour"), article, case)
        for shape in ("circle", "square", "diamond")
        for article in ("a", "the")
        for case in ("nom", "acc", "dat")
    }
    assert list(spoken.values()) == [
        "ein großer roter kreis", "einen großen roten kreis", "einem großen roten kreis",
        "der große rote kreis", "den großen roten kreis", "dem großen roten kreis",
        "ein großes rotes quadrat", "ein großes rotes quadrat", "einem großen roten quadrat",
        "das große rote quadrat", "das große rote quadrat", "dem großen roten quadrat",
        "eine große rote raute", "eine große rote raute", "einer großen roten raute",
        "die große rote raute", "die große rote raute", "der großen roten raute",
    ]  # fmt: skip


def test_words_are_drawn_together():
    ring = replace(CIRCLE, shape="ring")
    scene = Scene((ring, replace(SQUARE, y=0.2)))
    pair = (Mention(1, ("shape",), "the"), Mention(0, ("shape",), "the"))
    said = Content((Statement("relation", 0, pair, "right_of"),), False)
    assert {name: say(said, scene, name) for name in LANGUAGES} == {
        "en": "the square is to the right of the ring",
        "de": "das quadrat ist rechts vom ring",
        "fr": "le carré est à droite de l'anneau",
        "es": "el cuadrado está a la derecha del anillo",
        "it": "il quadrato è a destra dell'anello",
        "nl": "het vierkant staat rechts van de ring",
    }
    circle = (pair[0], Mention(0, ("shape",), "a"))
    said = Content((Statement("relation", 0, circle, "right_of"),), False)
    assert say(said, scene, "fr") == "le carré est à droite d'un anneau"
    said = Content((Statement("relation", 0, pair[::-1], "left_of"),), False)
    assert say(said, scene, "it") == "l'anello è a sinistra del quadrato"
    assert say(said, replace(scene, things=(ring, replace(SQUARE, shape="cross"))), "it").endswith("della croce")


def test_a_long_caption_tells_everything():
    assert caption(SCENE, np.random.default_rng(2), long=True).count(".") == 9
    reading = read(caption(SCENE, np.random.default_rng(2), long=True))
    for told in reading.things:
        for relation in language.RELATIONS:
            told.pop(relation, None)
    assert reading.scene == {"style": "striped", "background": "checks"}
    assert reading.things == [
        {"size": "big", "colour": "red", "shape": "circle", "row": "top", "column": "left", "motion": "still",
         "heard": True, "order": 2},
        {"size": "small", "colour": "orange", "shape": "square", "row": "bottom", "column": "right", "motion": "left",
         "heard": True, "order": 1, "seen": True},
        {"size": "small", "colour": "white", "shape": "cross", "row": "centre", "column": "left", "motion": "still"},
    ]  # fmt: skip


def test_simple_captions_have_one_form_and_23_words():
    seen = set()
    for number in range(500):
        text = caption(drawn(number), np.random.default_rng(number), simple=True)
        assert re.fullmatch(r"an? (big|small) \w+ \w+ (on the left|in the middle|on the right)", text)
        seen |= set(tokens(text))
    assert seen == {*COLOURS, *SHAPES, "a", "big", "small", "on", "in", "the", "left", "middle", "right"}
    assert len(seen) == 23


def test_splits_hold_out_sentences():
    numbers = {}
    for split in SPLITS:
        for number in range(600):
            said = content(drawn(number), np.random.default_rng(number), split, long=number % 5 == 0)
            for statement in said.statements:
                numbers.setdefault((statement.kind, split), set()).add(statement.number)
            held = [s.number >= SENTENCES[s.kind][0] - 2 for s in said.statements]
            assert said.unseen == any(held)
    for kind, (count, _) in SENTENCES.items():
        seen = set(range(count - 2))
        assert numbers[kind, "train"] == seen
        assert numbers[kind, "validation"] == seen | {count - 2}
        assert numbers[kind, "test"] == seen | {count - 1}


def template(name, kind, number):
    """A pattern of a sentence's words, so that what was made from another sentence can be seen to be another."""
    own = language.grammar(name)
    slots = {
        "main": own.main.values(), "sub": own.sub.values(), "relation": own.relation.values(),
        "word": own.word.values(), "rest": [own.language.then],
    }  # fmt: skip
    articles = {word for forms in own.language.articles.values() for word in forms.split()}
    pattern = ""
    for text, slot, choices, _ in Formatter().parse(own.language.sentences[kind][number]):
        pattern += "".join(f"{word} " for word in own.part(text))
        if slot and "|" in choices:
            pattern += f"({'|'.join(' '.join(own.part(choice)) for choice in choices.split('|'))}) "
        elif slot in slots:
            pattern += f"({'|'.join(' '.join(own.part(words)) for words in slots[slot])}) (.* )?"
        elif slot:
            pattern += f"({'|'.join(articles)}) .* "
    return re.compile(pattern.replace(", ", ""))


@pytest.mark.parametrize("name", LANGUAGES)
def test_no_sentence_of_another_part_is_in_training(name):
    """By their words, in 1000 captions of training; and the parts that have them do say them."""
    patterns = {
        split: [template(name, kind, count + place) for kind, (count, _) in SENTENCES.items()]
        for split, place in language.HELD_OUT.items()
    }
    said = {split: set() for split in SPLITS}
    for split in SPLITS:
        for number in range(1000 if split == "train" else 400):
            text = caption(drawn(number), np.random.default_rng(number), name, split, number % 4 == 0)
            parted = " ".join(language.grammar(name).part(text)) + " "
            said[split] |= set(re.split(r"\. ", parted.replace(", ", "")))
    for split, own in patterns.items():
        for pattern in own:
            for other in SPLITS:
                found = [sentence for sentence in said[other] if pattern.fullmatch(sentence)]
                assert bool(found) == (other == split), (split, pattern, other, found)


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"shapes": "circle, square"}, "shapes must have an entry for each of circle, .*; it has .'circle', 'square'."),
        ({"colours": "red,, blue"}, "colours must have an entry for each of red, green"),
        ({"genders": "mf"}, "shapes: 'circle' must end with its gender, one of m, f"),
        (
            {"genders": "mf", "shapes": ", ".join(f"{s} m" for s in SHAPES)},
            "articles.'a'.='a' must have a form for each",
        ),
        ({"articles": {"a": "a"}}, "articles are of a; there must be a and the"),
        ({"agreement": {"a": "0"}}, "agreement must have a digit for each gender and article"),
        ({"sentences": {}}, "sentences.'things'. must be 6 that differ, not 0.*sentences.'background'. must be 3"),
        (
            {"sentences": LANGUAGES["en"].sentences | {"relation": ["{0} {1}", "{0}", "{1}", "{relation} {0} {1}"]}},
            "sentence '.0. .1.' of relation must have .relation.; sentence '.0.' of relation must have .1., .relation.",
        ),
    ],
)
def test_a_table_that_is_not_whole_tells_what_it_lacks(changes, lacks):
    with pytest.raises(ValueError, match=f"the table of English is not whole: .*{lacks}"):
        replace(LANGUAGES["en"], **changes)


def test_vocabularies_are_small():
    expected = {"en": 86, "de": 123, "fr": 102, "es": 95, "it": 104, "nl": 102}
    assert {name: len(words(name)) for name in LANGUAGES} == expected


def test_a_phrase_is_the_shortest_that_names_one_thing():
    twin = replace(CIRCLE, size="small", x=0.5)
    assert phrase(CIRCLE, SCENE) == "the circle"
    assert phrase(CIRCLE, replace(SCENE, things=(CIRCLE, replace(CIRCLE, colour="blue")))) == "the red circle"
    assert phrase(twin, replace(SCENE, things=(CIRCLE, twin))) == "the small circle"
    other = replace(twin, colour="blue")
    assert phrase(other, replace(SCENE, things=(CIRCLE, twin, other, replace(other, size="big")))) == (
        "the small blue circle"
    )
    alike = replace(CIRCLE, x=0.8)
    assert phrase(alike, replace(SCENE, things=(CIRCLE, alike))) == "the red circle on the right"
    assert phrase(alike, replace(SCENE, things=(CIRCLE, alike)), "fr") == "le cercle rouge à droite"
    assert phrase(SQUARE, SCENE, "de", "dat") == "dem quadrat"


@pytest.mark.parametrize("name", LANGUAGES)
def test_phrases_tell_the_things_of_a_scene_apart(name):
    for number in range(100):
        scene = drawn(number, most=max(RADII))
        phrases = [phrase(thing, scene, name) for thing in scene.things]
        assert len(set(phrases)) == len(phrases)
        for spoken, thing in zip(phrases, scene.things, strict=True):
            (told,) = parse(spoken, name)
            assert [all(getattr(t, k) == v for k, v in told.items()) for t in scene.things].count(True) == 1
            assert all(getattr(thing, key) == value for key, value in told.items())


def test_a_text_with_slips_is_read_as_far_as_it_goes():
    reading = read("A big RED circle on the left  small blurple blue square moves up")
    assert reading.things == [
        {"size": "big", "colour": "red", "shape": "circle", "column": "left"},
        {"size": "small", "colour": "blue", "shape": "square", "motion": "up"},
    ]
    assert reading.unknown == ["blurple"]
    assert parse("") == parse("...,") == parse("left of") == parse("first then and the") == []
    assert parse("the circle is to the left of") == [{"shape": "circle"}]
    assert read("un cercle rouges", "fr").unknown == ["rouges"]
    assert parse("the of a square is the and a a red") == [{"shape": "square"}, {"colour": "red"}]


@pytest.mark.parametrize("name", LANGUAGES)
def test_any_words_in_any_order_can_be_read(name):
    draw = np.random.default_rng(0)
    some = [*words(name), ".", ",", "zzz"]
    for _ in range(300):
        text = " ".join(choose(draw, some) for _ in range(int(draw.integers(1, 30))))
        assert 0 <= score(text, SCENE, name)["right"] <= 1


def test_scores_tell_what_is_wrong():
    told = score("a big red circle at the top left and a small orange square on the left", SCENE)
    assert (told["right"], told["said"], told["missed"], told["invented"]) == (8 / 9, 9, [2], 0)
    told = score("the circle is below the square", SCENE)
    assert (told["right"], told["said"]) == (2 / 3, 3)
    told = score("a small blue diamond in the centre", SCENE)
    assert (told["right"], told["invented"], told["missed"]) == (0, 1, [0, 1, 2])
    told = score("first the circle makes a sound, then the orange square", SCENE)
    assert (told["right"], told["said"]) == (5 / 7, 7)
    told = score("everything is drawn in outline. the background is checked.", SCENE)
    assert (told["right"], told["said"], told["missed"]) == (1 / 2, 2, [0, 1, 2])


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_text_may_be_carelessly_written(name):
    for number in range(20):
        text = caption(drawn(number), np.random.default_rng(number), name, SPLITS[number % 3], number % 2 == 0)
        there = read(text, name)
        for careless in (
            text.upper(), text.title(), text.rstrip("."), text + ".", text.replace(" ", "  "), f"  {text} \n\n",
            text.replace(". ", "! "), text.replace(". ", "\n"), text.replace("'", "’"), text.replace(",", " , "),
            unicodedata.normalize("NFD", text), f"\"{text}\"", text.replace(", ", " "),
        ):  # fmt: skip
            assert read(careless, name) == there, careless
    assert read("an red circle and a orange square") == read("a red circle and an orange square")
    assert read("red circle and orange square").things == read("a red circle and an orange square").things


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_caption_made_wrong_scores_less(name):
    """The caption of a scene with one thing changed, of the scene as it is, by how many attributes are wrong."""
    for number in range(40):
        scene = drawn(number)
        told = Content(
            tuple(Statement("things", 0, (Mention(n, ("size", "colour", "shape", "row", "column"), "a"),), "")
                  for n in range(len(scene.things))), False
        )  # fmt: skip
        said = 5 * len(scene.things)

        def scored(things, told=told, scene=scene):
            found = score(say(told, replace(scene, things=tuple(things)), name), scene, name)
            return round(found["right"] * found["said"]), found["said"], len(found["missed"]), found["invented"]

        first, *rest = scene.things
        assert scored(scene.things) == (said, said, 0, 0)
        other = next(c for c in COLOURS if all(c != thing.colour for thing in scene.things))
        assert scored([replace(first, colour=other), *rest]) == (said - 1, said, 0, 0)
        mirrored = replace(first, y=1 - first.y) if first.row != "centre" else replace(first, y=0.1)
        assert scored([replace(first, size="big" if first.size == "small" else "small"), *rest])[0] == said - 1
        assert scored([mirrored, *rest])[0] == said - 1
        fewer = say(Content(told.statements[1:], False), scene, name)
        assert score(fewer, scene, name)["missed"] == [0]
        more = say(told, scene, name).rstrip(".") + ". " + say(Content(told.statements[:1], False), scene, name)
        found = score(more, scene, name)
        assert (found["invented"], found["missed"]) == (1, [])
        assert found["right"] == pytest.approx(said / (said + 5))


def test_swapped_colours_and_wrong_relations_are_half_true():
    scene = Scene((CIRCLE, SQUARE))
    assert score("a red square and an orange circle", scene)["right"] == 0.5
    assert score("the circle is to the left of the square", scene)["right"] == 1
    assert score("the square is to the left of the circle", scene)["right"] == 2 / 3
    assert score("the circle is below the square. the circle is above the square", scene)["right"] == 3 / 4
    assert score("the square is above the ring", scene) == {
        "right": 1 / 3, "said": 3, "missed": [0], "invented": 1, "unknown": []
    }  # fmt: skip
    for text in ("a circle and a red circle", "a red circle and a circle"):  # who says more chooses first
        found = score(text, Scene((CIRCLE, replace(CIRCLE, colour="blue", x=0.8))))
        assert (found["right"], found["missed"], found["invented"]) == (1, [], 0)


def test_who_says_both_ways_is_not_right():
    assert score("the background is plain. the background is checked.", SCENE)["right"] == 0
    assert score("the circle moves up. the circle does not move.", SCENE)["invented"] == 1
    both = "first the square makes a sound, then the circle. first the circle makes a sound, then the square."
    assert score(both, SCENE)["right"] == 4 / 6  # two shapes that do sound, in neither order
    assert score("a red circle at the top left and at the bottom right", SCENE)["right"] == 2 / 4


@pytest.mark.parametrize(
    ("name", "denied"),
    [
        ("en", "there is no red circle"),
        ("en", "the circle is not red"),
        ("de", "es gibt keinen roten kreis"),
        ("fr", "il n'y a pas de cercle rouge"),
        ("es", "no hay un círculo rojo"),
        ("it", "non c'è un cerchio rosso"),
        ("nl", "er is geen rode cirkel"),
    ],
)
def test_what_is_denied_is_not_taken_for_said(name, denied):
    found = score(denied, SCENE, name)
    assert (found["right"], found["said"], found["missed"]) == (0, 0, [0, 1, 2])
    assert set(found["unknown"]) >= set(language.grammar(name).denials) & set(tokens(denied))
    for text in (caption(SCENE, np.random.default_rng(n), name, long=True) for n in range(20)):
        assert read(text, name).unknown == []  # "does not move" denies nothing


def test_what_says_nothing_is_worth_nothing():
    nothing = {"right": 0, "said": 0, "missed": [0, 1, 2], "invented": 0}
    for text in ("", " \n", "...", "lorem ipsum dolor sit amet", "\x00\ufffd", "🔴⬛", "1 2 3"):
        assert score(text, SCENE).items() >= nothing.items()
    for name in LANGUAGES:
        others = {other for other in LANGUAGES if other != name}
        for other in others:
            text = caption(SCENE, np.random.default_rng(1), other, long=True)
            found = score(text, SCENE, name)
            assert len(found["unknown"]) > 0.5 * len(re.findall(r"\w+", text)), (name, other)


def test_the_same_again_and_again_is_invented():
    for text in ("a big red circle at the top left ", "the red circle and the blue square ", "left of the red above "):
        found = score(1000 * text, SCENE)
        assert found["right"] < 0.01
        assert found["invented"] > 900
    assert score(1000 * "the red circle is big. ", SCENE) | {"unknown": []} == score("the red circle is big.", SCENE)


def test_a_thing_is_told_left_of_another_only_where_that_is_how_they_lie():
    for number in range(400):
        scene = drawn(number)
        for told in parse(caption(scene, np.random.default_rng(number), long=True)):
            for relation in set(told) & set(language.RELATIONS):
                apart = {
                    name: max(
                        language._apart(scene, a, b)[name]
                        for a, b in permutations(range(len(scene.things)), 2)
                        if scene.things[a].shape == told["shape"] and scene.things[a].colour == told["colour"]
                    )
                    for name in language.RELATIONS
                }
                assert apart[relation] > language.FAR


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: caption(SCENE, np.random.default_rng(0), "xx"),
            "language='xx' is not spoken here; take one of en",
        ),
        (lambda: parse("a", "pt"), "language='pt' is not spoken here"),
        (lambda: words("EN"), "language='EN' is not spoken here"),
        (lambda: caption(SCENE, np.random.default_rng(0), split="val"), "split='val' must be one of train, validation"),
        (lambda: caption(Scene(()), np.random.default_rng(0)), "no things to speak of"),
    ],
)
def test_impossible_arguments_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
