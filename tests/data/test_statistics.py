import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmflow.data import statistics as module
from mmflow.data.make import make
from mmflow.data.spec import DataSpec
from mmflow.data.statistics import statistics, summary, tables
from tests.shards import encoded, noise, write_data_set

SPECS = Path(__file__).parents[2] / "data_specs"


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def counted(tmp_path, samples: list[dict], **fields: list[str]) -> dict:
    """What is found in the train split of these samples."""
    spec = DataSpec.read(write_data_set(tmp_path, {"train": [samples]}, fields=fields))
    return statistics(spec, workers=0)["splits"]["train"]


@pytest.mark.parametrize("seed", range(4))
def test_quantiles_are_those_of_numpy(seed):
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 50, 1 + 40 * seed)
    found = summary(dict(zip(*map(np.ndarray.tolist, np.unique(values, return_counts=True)), strict=True)))
    for name, share in module.QUANTILES.items():
        assert found[name] == np.quantile(values, share, method="inverted_cdf")
    assert found["mean"] == pytest.approx(values.mean())
    assert (found["min"], found["max"], found["total"]) == (values.min(), values.max(), values.sum())
    assert sum(found["histogram"]["counts"]) == found["count"] == len(values)


def test_the_last_bin_takes_what_is_far_out():
    found = summary({1: 50, 2: 49, 1000: 1})
    assert found["histogram"] == {"edges": [1.0, 2.0, 3.0], "counts": [50, 50]}
    found = summary({0.0: 50, 1.0: 49, 1000.0: 1})
    assert np.allclose(found["histogram"]["edges"], np.linspace(0, 1, 21))
    assert (found["histogram"]["counts"][0], found["histogram"]["counts"][-1]) == (50, 50)


def test_names_are_counted_and_have_no_quantiles():
    found = summary({"cat": 3, "dog": 5, "ant": 3})
    assert found == {"count": 11, "different": 3, "most_frequent": [["dog", 5], ["ant", 3], ["cat", 3]]}


def test_sounds_pictures_and_texts_are_measured(tmp_path):
    samples = [
        {"wav": encoded(noise(0.5, rate=8000), "wav", 8000), "png": picture(4, 3), "txt": "Grüße an alle"},
        {"flac": encoded(noise(1.5)), "png": picture(6, 3), "txt": ""},
        {"flac": b"no sound", "png": picture(4, 3), "txt": b"\xff"},
    ]
    found = counted(tmp_path, samples, audio=["flac", "wav"], image=["png"], text=["txt"])
    assert (found["samples"], found["shards"], found["unreadable"]) == (3, 1, 2)
    assert found["members"]["png"] == {"count": 3, "bytes": sum(len(sample["png"]) for sample in samples)}
    quantities = found["quantities"]
    assert quantities["audio: seconds"]["most_frequent"] == [[0.5, 1], [1.5, 1]]
    assert quantities["audio: rate"]["most_frequent"] == [[16000, 1], [8000, 1]]
    assert quantities["image: size"]["most_frequent"] == [["4 x 3", 2], ["6 x 3", 1]]
    assert quantities["image: width"]["mean"] == pytest.approx(14 / 3)
    assert quantities["text: words"]["total"] == 3
    assert (quantities["text: characters"]["total"], quantities["text: bytes"]["total"]) == (13, 15)
    assert quantities["text: words"]["missing"] == 1


def test_columns_classes_answers_and_times_of_json_are_counted(tmp_path):
    infos = [
        {"row": {"age": 3, "town": "Bonn", "note": None}, "class": "cat", "ok": True, "events": [[0, 2.5, "bark"]]},
        {
            "row": {"age": 5, "town": "Bonn", "note": "x" * 61},
            "class": "cat",
            "ok": False,
            "objects": [{"class": "a"}] * 2,
        },
        {
            "row": {"age": None, "town": "Ulm", "note": None},
            "class": "dog",
            "score": float("nan"),
            "answers": ["yes", "no"],
        },
        ["no object"],
    ]
    quantities = counted(tmp_path, [{"json": info} for info in infos], info=["json"])["quantities"]
    assert quantities["info.row.age"] | {"histogram": 0} == {
        **dict.fromkeys(("5 %", "25 %", "median", "min"), 3.0), **dict.fromkeys(("75 %", "95 %", "max"), 5.0),
        "count": 2, "different": 2, "most_frequent": [[3, 1], [5, 1]], "total": 8.0, "mean": 4.0, "histogram": 0,
        "missing": 2,
    }  # fmt: skip
    assert quantities["info.row.town"]["most_frequent"] == [["Bonn", 2], ["Ulm", 1]]
    assert (quantities["info.row.note"]["missing"], quantities["info.row.note"]["most_frequent"]) == (
        3, [["(longer text)", 1]]
    )  # fmt: skip
    assert quantities["info.class"]["most_frequent"] == [["cat", 2], ["dog", 1]]
    assert quantities["info.ok"]["most_frequent"] == [["false", 1], ["true", 1]]
    assert quantities["info.events: seconds"]["total"] == 2.5
    assert quantities["info.events"]["most_frequent"] == [["bark", 1]]
    assert quantities["info.objects.class"]["count"] == 2
    assert quantities["info.objects: entries"]["total"] == 2
    assert quantities["info.answers"]["count"] == 2
    assert "info.score" not in quantities


def test_parts_of_documents_are_counted(tmp_path):
    document = [{"text": "A cat."}, {"image": "0.png"}, {"text": "Two dogs"}]
    quantities = counted(tmp_path, [{"doc.json": document, "0.png": picture(2, 2)}], document=["doc.json"])[
        "quantities"
    ]
    assert quantities["document: words"]["total"] == 4
    assert quantities["document: text parts"]["total"] == 2
    assert quantities["document: image parts"]["total"] == 1


def test_of_very_many_different_values_the_rarest_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_DIFFERENT", 2)
    infos = [{"json": {"id": name}} for name in ("a", "b", "b", "c", "c", "d")]
    found = counted(tmp_path, infos, info=["json"])["quantities"]["info.id"]
    assert sorted(map(tuple, found["most_frequent"])) == [("(rarer values)", 2), ("b", 2), ("c", 2)]
    assert found["count"] == 6


def test_the_terminal_shows_amounts_histograms_and_bars(tmp_path):
    samples = [{"txt": "word " * n, "json": {"class": "cat" if n % 3 else "dog"}} for n in range(1, 31)]
    spec = DataSpec.read(write_data_set(tmp_path, {"train": [samples]}, fields={"text": ["txt"], "info": ["json"]}))
    found = statistics(spec, ["train"], workers=0)
    json.dumps(found)
    console = Console(file=io.StringIO(), width=160)
    console.print(tables(found))
    said = console.file.getvalue()
    for words in (
        "465 words (2,325 bytes) of text",
        "████████████ 20 (66.7%)  cat",
        "██████       10 (33.3%)  dog",
        "│ text: words      │ train │ 30    │ 1   │ 2   │ 15     │ 15.5 │ 29   │ 30  │ ███████████████     │",
    ):
        assert words in said


def test_real_data_has_the_counts_of_its_readme(real_data, tmp_path):
    spec = DataSpec.read(SPECS / "flickr8k.yaml").with_root(tmp_path / "out")
    made = make(spec, real_data / "flickr8k", workers=1, progress=False)
    splits = statistics(spec, workers=0)["splits"]
    assert {split: of["samples"] for split, of in splits.items()} == made
    assert sum(of["quantities"]["info.captions"]["count"] for of in splits.values()) == 3500
    assert sum(of["quantities"]["image: width"]["count"] for of in splits.values()) == 700
