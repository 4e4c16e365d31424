import math
import subprocess
import sys

import numpy as np
import pytest

from mmflow.data.make import build_source
from mmflow.data.sources.table import Columns, Row
from mmflow.data.spec import DataSpec
from mmflow.world.scene import COLOURS, SPLITS, Scene, SceneOptions, held_out
from mmflow.world.tables import BLAME, COLUMNS, PARTS, PRAISE, SYNONYMS, TURNED, WorldTable, known, limits

SOURCE = WorldTable(seed=3)


def rows(count, split="train", source=SOURCE):
    return [source.sample(split, number) for number in range(count)]


def test_a_row_tells_of_the_scene():
    for sample in rows(200, "validation"):
        info = sample["json"]
        thing = Scene.from_json(info["scene"]).things[0]
        row = info["row"]
        assert list(row) == ["review", "shape", "colour", "size", "seller", "price", "weight", "age"]
        assert (row["shape"], row["colour"], row["size"]) == (thing.shape, thing.colour, thing.size)
        assert info["class"] == ("returned", "kept")[info["label"]]
        assert info["unseen"] == (held_out(thing.colour, thing.shape) == "validation")
        words = row["review"].split()
        assert 10 <= len(words) <= 15
        assert sum(word in (*PRAISE, *BLAME) for word in words) == 1


def test_weight_is_the_area_of_the_thing():
    info = next(s["json"] for s in rows(100) if s["json"]["row"]["shape"] == "circle")
    assert info["row"]["weight"] == pytest.approx(1000 * math.pi * info["scene"]["things"][0]["radius"] ** 2, rel=2e-3)


def test_layout_is_that_of_tables():
    info = rows(1)[0]["json"]
    cells = {name: "" if value is None else str(value) for name, value in info["row"].items()}
    kinds = {kind: list(names) for kind, names in COLUMNS.items()}
    columns = Columns(kinds, "label", ["returned", "kept"], None, frozenset([""]))
    item = columns.item("a", "train", Row("here", cells | {"label": str(info["label"])}))
    assert item.values["txt"] == rows(1)[0]["txt"]
    assert item.values["json"] == {name: info[name] for name in ("row", "label", "class")}


def test_chance_is_the_law_of_what_is_known_from_the_row():
    for sample in rows(300):
        opinion, colour, z = known(sample["json"]["row"])
        if z is not None:
            logit = 1.2 * opinion + 0.9 * z + 2.0 * opinion * colour
            assert sample["json"]["chance"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=2e-3)


def test_shares_of_what_is_missing_and_of_the_bits():
    told = [sample["json"] for sample in rows(4000)]
    missing = {name: np.mean([info["row"][name] is None for info in told]) for name in told[0]["row"]}
    assert missing["price"] == pytest.approx(0.1, abs=0.02)
    assert missing["age"] == pytest.approx(0.05, abs=0.015)
    assert {name for name, share in missing.items() if share} == {"price", "age", "seller"}
    bits = np.array([known(info["row"])[:2] for info in told])
    assert np.abs(bits.mean(0)).max() < 0.06
    assert abs((bits[:, 0] * bits[:, 1]).mean()) < 0.06


@pytest.mark.parametrize("split", SPLITS)
def test_colours_that_turn_a_review_are_half_of_all(split):
    own = [pair for pair in SceneOptions().pairs(split) if held_out(*pair) == split]
    seen = [pair for pair in SceneOptions().pairs(split) if held_out(*pair) is None]
    for pairs in filter(None, (own, seen)):
        assert 2 * sum(colour in TURNED for colour, _ in pairs) == len(pairs)


@pytest.mark.parametrize(
    ("parts", "accuracy", "auroc"),
    [
        ((), 0.5, 0.5),
        (("text",), 0.641, 0.641),
        (("categorical",), 0.5, 0.5),
        (("numerical",), 0.577, 0.610),
        (("text", "numerical"), 0.647, 0.697),
        (("text", "categorical"), 0.806, 0.877),
        (("categorical", "numerical"), 0.578, 0.620),
        (PARTS, 0.825, 0.907),
    ],
)  # the figures of the specification, which were drawn
def test_limits(parts, accuracy, auroc):
    assert limits(parts) == (pytest.approx(accuracy, abs=1e-3), pytest.approx(auroc, abs=3e-3))


def test_limits_are_reached_on_rows():
    told = [sample["json"] for sample in rows(4000)]
    labels = np.array([info["label"] for info in told])
    signs = [known(info["row"])[:2] for info in told]
    for parts in (("text",), ("text", "categorical")):
        guesses = [(a * g if "categorical" in parts else a) > 0 for a, g in signs]
        assert np.mean(labels == np.array(guesses)) == pytest.approx(limits(parts)[0], abs=0.025)
    full = np.array([info["chance"] > 0.5 for info in told])
    assert np.mean(labels == full) == pytest.approx(0.83, abs=0.025)  # who knows the missing prices too


def test_words_for_colours_that_training_never_has():
    told = [sample["json"] for sample in rows(2000, "test")]
    other = [info for info in told if info["unseen_category"]]
    assert len(other) / len(told) == pytest.approx(0.1, abs=0.025)
    assert all(info["row"]["colour"] == SYNONYMS[info["scene"]["things"][0]["colour"]] for info in other)
    assert all(info["unseen"] and known(info["row"])[1] is None for info in other)
    assert not any(info["row"]["colour"] in SYNONYMS.values() for info in (s["json"] for s in rows(500, "validation")))
    copy = [sample["json"] for sample in rows(2000, "test", WorldTable(seed=3, unseen=0))]
    assert all(info["row"]["colour"] in COLOURS for info in copy)
    for one, same in zip(told, copy, strict=True):
        assert one["label"] == same["label"]
        assert one["row"] | {"colour": 0} == same["row"] | {"colour": 0}


def test_the_same_everywhere():
    program = (
        "from mmflow.world.tables import WorldTable; import hashlib;"
        "print(hashlib.sha256(repr([WorldTable(seed=3).sample('test', i) for i in range(20)]).encode()).hexdigest())"
    )
    found = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"unseen": 1.5}, "unseen=1.5 is a share"), ({"train": -1}, "train=-1"), ({"seed": -1}, "seed=-1")],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        WorldTable(**options)


def test_unknown_part():
    with pytest.raises(ValueError, match=r"must be some of text, categorical, numerical; \['picture'\]"):
        limits(["picture"])


def test_spec():
    source = build_source(DataSpec.read("data_specs/world_table.yaml"))
    assert isinstance(source, WorldTable)
    assert source.counts == {"train": 12_000, "validation": 2000, "test": 4000}
