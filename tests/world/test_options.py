"""What cannot be made is said in one line by `data make`, for every option of every source of the world."""

import importlib
import inspect
import math
from pathlib import Path

import pytest
import yaml

from mmflow import cli

SPECS = sorted((Path(__file__).parents[2] / "data_specs").glob("world*.yaml"))
COUNTS = ("train", "validation", "test", "train_minutes", "validation_minutes", "test_minutes")  # 0, not to wait long
RANGE = ([], [1], [3, 2], [-1, 2], [1, 1000], ["a", "b"], [1, 2, 3], 3)
CHANCE = (-0.1, 1.5, math.nan, "often")
IMPOSSIBLE = {  # option, in whichever source has it -> what it cannot be
    "train": (-1, "many", 1.5, True), "validation": (-1,), "test": (-1,), "seed": (-1, 1.5),
    "train_minutes": (-1, math.nan, "many"), "validation_minutes": (-0.5,), "test_minutes": (-math.inf,),
    "workers": (0, -1, "all"),
    "size": (-64, 0, 31, "64 pixels", 64.5, False), "scale": (0, 5, 1.5), "rate": (0, -8, 1000, "8 Hz"),
    "things": (*RANGE, [0, 1], [1, 10]), "events": RANGE, "turns": (*RANGE, [0, 2]),
    "steps": (*RANGE, [1, 2]), "ways": (*RANGE, [1, 2]), "shots": (*RANGE, [0, 1]), "candidates": (0, 1, 10**6, "all"),
    "scans": (0, -1, "two"), "questions": (0, -1, "four"),
    "moving": CHANCE, "overlapping": CHANCE, "clips": CHANCE, "long_share": CHANCE, "unseen": CHANCE,
    "languages": ([], ["en", "en"], ["xx"], ["EN"], "en", [1]),
    "voices": ({"train": 0}, {"train": -1}, {"train": 161}, {"dev": 3}, {"train": "all"}, 3),
    "modalities": ([], ["x"], "xray"), "tasks": ([], ["x"], "naming"), "kinds": ([], ["x"], "colour"),
    "shapes": ([], ["circle", "circle"], ["disc"], "circle"), "colours": ([], ["red", "red"], ["pink"], "red"),
    "styles": ([], ["flat", "flat"], ["cubist"], "flat"), "backgrounds": ([], ["plain", "plain"], ["sky"], "plain"),
    "format": ("gif", "", 3), "masks": ("yes please", 3), "pictures": ("yes please", 3),
}  # fmt: skip
SECONDS = {
    "tuple": ([0.0, 1.0], [1.0, 11.0], [3.0, 2.0], [2.0], 2.0, [math.nan, 2.0]),
    "float": (-1.0, math.nan, "two"),
}


def source_of(spec):
    module, _, name = yaml.safe_load(spec.read_text())["make"]["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def cases():
    for spec in SPECS:
        for name, parameter in inspect.signature(source_of(spec)).parameters.items():
            values = IMPOSSIBLE.get(name, ())
            if name == "seconds":
                values = SECONDS["tuple" if "tuple" in str(parameter.annotation) else "float"]
            assert values, f"{spec.name}: what can {name} not be? Say so in IMPOSSIBLE"
            yield pytest.param(spec, name, values, id=f"{spec.stem}-{name}")


@pytest.fixture
def said(tmp_path, capsys):
    """What `data make` says of a spec with other options."""

    def make(spec, **options):
        content = yaml.safe_load(spec.read_text()) | {"root": str(tmp_path / "shards")}
        content["make"]["init_args"] |= {name: 0 for name in content["make"]["init_args"] if name in COUNTS} | options
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(content))
        code = cli.main(["data", "make", "--spec", str(path)])
        text = capsys.readouterr().err
        assert code == 2, f"{options} gave {code}: {text}"
        assert not (tmp_path / "shards").exists()
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert text.splitlines()[-1] == line
        return line

    return make


@pytest.mark.parametrize(("spec", "name", "values"), cases())
def test_an_impossible_option_is_one_line_that_names_it(spec, name, values, said):
    for value in values:
        line = said(spec, **{name: value})
        assert name in line.split("; options of ")[0], (value, line)
        told = [str(part) for part in value] if isinstance(value, list | dict) else [str(value)]
        assert all(part in line for part in told), (value, line)
        assert any(word in line for word in ("must", "Expected", "name ", "not possible", "validate")), (value, line)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_an_unknown_option_is_answered_with_those_there_are(spec, said):
    line = said(spec, sede=1)
    assert "has no option 'sede'; did you mean 'seed'? Known: " in line
    assert all(name in line for name in inspect.signature(source_of(spec)).parameters)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("world_pictures", {"things": [1, 10]}, "things=(1, 10) must be from at least 1 to at most 9: more do not fit"),
        ("world_pictures", {"size": 257}, "size=257 pixels must be in 32..256"),
        ("world_pictures", {"colours": ["red"], "shapes": ["circle"]}, "leave 0 pairs for the train part, too few"),
        ("world_clips", {"size": 65}, "size=65 must be even"),
        ("world_clips", {"size": 258}, "size=258 must be even and in 32..256"),
        ("world_clips", {"seconds": [1, 11]}, "seconds=(1.0, 11.0) must be from at least 1 to at most 10"),
        ("world_clips", {"events": [1, 100]}, "more do not fit"),
        ("world_spoken", {"voices": {"train": 0}}, "voices=0 for train must be 1 to 160"),
        ("world_spoken", {"languages": ["xx"]}, "languages=['xx'] must be one or more of en, de, fr, es, it, nl, each"),
    ],
)
def test_the_value_the_rule_and_the_way_out_are_said(spec, options, message, said):
    assert message in said(next(path for path in SPECS if path.stem == spec), **options)
