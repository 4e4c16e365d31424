import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmflow.cli import main
from mmflow.data.make import make
from mmflow.data.spec import DataSpec
from mmflow.data.writer import TarShard
from mmflow.world import listening
from mmflow.world.edits import Edit
from mmflow.world.floors import floors, most_frequent
from mmflow.world.scene import Scene, Thing

SCENE = Scene((Thing("circle", "red", "big", 0.2, 0.2, 0.15), Thing("ring", "blue", "small", 0.8, 0.8, 0.09)))


def picture(level):
    file = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def made(folder, train, test, **fields):
    """A data set with these samples."""
    for split, samples in {"train": train, "test": test}.items():
        with TarShard(folder / f"{split}-0.tar") as shard:
            for number, sample in enumerate(samples):
                shard.write({"__key__": f"{number:04d}"} | sample)
    return DataSpec("tiny", "none", str(folder), {"train": "train-*.tar", "test": "test-*.tar"}, fields)


def told(folder, train, test):
    """A data set with JSON alone."""
    return made(folder, [{"json": info} for info in train], [{"json": info} for info in test], info=["json"])


def test_most_frequent():
    assert most_frequent([("a", 1), ("a", 2), ("a", 2), ("b", 3), ("b", 4)]) == {"a": 2, "b": 3}


def test_questions(tmp_path):
    def one(question, answer, kind="colour"):
        return {"question": question, "answer": answer, "question_type": kind}

    train = [one("is it so?", "yes", "e"), one("the ring?", "red"), one("the disc?", "blue"), one("the disc?", "blue")]
    test = [one("the ring?", "red"), one("a new one?", "blue"), one("the disc?", "red"), one("why?", "no", "e")]
    assert floors(told(tmp_path, train, test)) == {
        "answer/all/majority": 1 / 4,
        "answer/all/question": 1 / 2,
        "answer/colour/majority": pytest.approx(1 / 3),
        "answer/colour/question": pytest.approx(2 / 3),
        "answer/e/majority": 0,
        "answer/e/question": 0,
    }


def test_a_question_is_known_by_its_form(tmp_path):
    def one(question, about, answer):
        return {"question": question, "answer": answer, "question_type": "c", "form": "f", "about": [about]}

    train = [one("is a ring there?", "ring", "yes"), *[one("is a disc there?", "disc", "no")] * 2]
    found = floors(told(tmp_path, train, [one("does a ring exist?", "ring", "yes")]))
    assert (found["answer/c/majority"], found["answer/c/question"]) == (0, 1)


def test_dialogues(tmp_path):
    info = {"dialogue": [["what?", "red"], ["where?", "left"]], "question_types": ["colour", "place"]}
    other = {"dialogue": [["which?", "red"], ["where?", "right"]], "question_types": ["colour", "place"]}
    found = floors(told(tmp_path, [info], [other | {"candidates": [["red", "blue"], ["a", "b", "c", "d"]]}]))
    assert found["dialogue/all/majority"] == 0.5
    assert (found["dialogue/colour/question"], found["dialogue/place/question"]) == (1, 0)
    assert found["ranking/chance"] == (1 / 2 + 1 / 4) / 2


def test_labels_and_nearest_neighbours(tmp_path):
    train = [{"png": picture(level), "json": {"label": label}} for level, label in ((0, 0), (200, 1), (250, 1))]
    test = [{"png": picture(level), "json": {"label": label}} for level, label in ((20, 0), (60, 0), (230, 1), (90, 1))]
    assert floors(made(tmp_path, train, test, image=["png"], info=["json"])) == {
        "label/majority": 0.5,
        "label/nearest": 0.75,
    }


def test_captions(tmp_path):
    info = {"scene": SCENE.as_json(), "captions": []}
    train = [{"txt": text, "json": info} for text in ("a ring", "a small red circle", "a small red circle")]
    spec = made(tmp_path, train, [{"txt": "a big red circle", "json": info}], text=["txt"], info=["json"])
    assert floors(spec) == {"caption/majority/right": pytest.approx(2 / 3), "caption/majority/named": 0.5}


def test_copying_is_no_edit(tmp_path):
    turned = [Edit("recolour", 0, colour="green"), Edit("restyle", style="striped"), Edit("remove", 1)]
    infos = [{"before": SCENE.as_json(), "edit": edit.as_json()} for edit in turned]
    assert floors(told(tmp_path, infos, infos)) == {"edit/copy/changed": 0, "edit/copy/kept": 1}


def test_episodes(tmp_path):
    shots = [{"answer": answer} for answer in ("dax", "dax", "wug")]
    info = {"task": "name", "shots": shots, "query": {"answer": "wug"}, "choices": ["dax", "wug"]}
    other = info | {"query": {"answer": "dax"}}
    assert floors(told(tmp_path, [info], [info, other])) == {"episode/name/chance": 0.5, "episode/name/majority": 0.5}


def test_the_limits_of_listening(tmp_path, monkeypatch):
    few = listening.ceilings(400)
    monkeypatch.setattr("mmflow.world.floors._ceilings", lambda: few)
    (tmp_path / "ave").mkdir()
    found = floors(told(tmp_path / "ave", [{"labels": [4, 4, 0]}], [{"labels": [4, 1]}]))
    assert found["seconds/majority"] == 0.5
    assert found["seconds/audio"] == pytest.approx(0.6, abs=0.05)
    assert found["seconds/both"] == 1
    (tmp_path / "s4").mkdir()
    found = floors(told(tmp_path / "s4", [{"label": 0, "sounding": [[0]]}], [{"label": 1, "sounding": [[1]]}]))
    assert found["label/majority"] == 0
    assert found["sounding/video"] == pytest.approx(0.25, abs=0.05)
    (tmp_path / "asked").mkdir()
    asked = {"question": "?", "answer": "1", "question_type": ["Audio", "Counting"]}
    found = floors(told(tmp_path / "asked", [asked], [asked]))
    assert found["answer/Audio/Counting/question"] == found["listening/Audio/Counting/both"] == 1
    assert found["listening/Audio/Counting/audio"] > 0.7  # 1 where there are enough clips
    assert found["listening/Audio/Counting/video"] == pytest.approx(1 / 3, abs=0.1)


def test_tables(tmp_path, caplog):
    spec = DataSpec.read("data_specs/world_table.yaml").with_root(tmp_path / "rows")
    options = {"train": 40, "validation": 1, "test": 30}
    make(DataSpec(**{**vars(spec), "make": spec.make | {"init_args": options}}), None, workers=1, progress=False)
    caplog.set_level(logging.INFO)
    found = floors(spec)
    assert found["table/text"] == pytest.approx(0.641, abs=1e-3)
    assert found["table/text+categorical+numerical/auroc"] == pytest.approx(0.907, abs=2e-3)
    assert 0 <= found["label/majority"] <= 1
    assert "do not apply" in caplog.text
    assert "dialogue" in caplog.text


def test_all_in_one(tmp_path):
    spec = DataSpec.read("data_specs/world.yaml").with_root(tmp_path / "world")
    options = {"train": 4, "validation": 1, "test": 4}
    make(DataSpec(**{**vars(spec), "make": spec.make | {"init_args": options}}), None, workers=1, progress=False)
    found = floors(spec)
    assert {name.split("/")[0] for name in found} == {"label", "answer", "dialogue", "caption", "edit", "table"}
    assert "label/nearest" in found
    assert found["edit/copy/kept"] == 1


def test_command(tmp_path, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    told(folder, [{"label": 1}, {"label": 1}, {"label": 0}], [{"label": 1}, {"label": 0}])
    path = tmp_path / "tiny.yaml"
    content = {
        "name": "tiny", "licence": "none", "root": "elsewhere",
        "splits": {"train": "train-*.tar", "test": "test-*.tar"}, "fields": {"info": ["json"]},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    assert main(["data", "floors", "--spec", str(path), "--root", str(folder)]) == 0
    assert "0.500" in capsys.readouterr().out
    assert main(["data", "floors", "--spec", str(path), "--root", str(folder), "--split", "dev"]) == 2
    assert "no split 'dev'" in capsys.readouterr().err


def test_a_spec_without_json(tmp_path):
    spec = DataSpec("tiny", "none", str(tmp_path), {"train": "a.tar"}, {"image": ["jpg"]}, path=Path("tiny.yaml"))
    with pytest.raises(ValueError, match=r"tiny\.yaml has no field 'info'"):
        floors(spec)
