import importlib
import io
import json
import logging
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmflow.cli import main
from mmflow.data.make import make
from mmflow.data.spec import DataSpec
from mmflow.data.writer import TarShard
from mmflow.world import listening, told_floors
from mmflow.world.edits import Edit
from mmflow.world.floors import floors
from mmflow.world.scene import Scene, Thing

SCENE = Scene((Thing("circle", "red", "big", 0.2, 0.2, 0.15), Thing("ring", "blue", "small", 0.8, 0.8, 0.09)))


def encoded_picture(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(paint):
    """Of one colour, or grey level."""
    return encoded_picture(np.full((40, 40, 3), paint, np.uint8))


def encoded(array):
    file = io.BytesIO()
    np.save(file, array)
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
    found = floors(told(tmp_path, [info], [other | {"candidates": [["red", "blue"], ["left", "right", "c", "d"]]}]))
    assert found["dialogue/all/majority"] == 0.5
    assert (found["dialogue/colour/question"], found["dialogue/place/question"]) == (1, 0)
    assert found["ranking/chance"] == (1 / 2 + 1 / 4) / 2
    assert found["ranking/majority"] == (1 + 0) / 2


def test_labels_and_what_looks_alike(tmp_path):
    train = [{"png": picture(level), "json": {"label": label}} for level, label in ((0, 0), (200, 1), (250, 1))]
    test = [{"png": picture(level), "json": {"label": label}} for level, label in ((20, 0), (60, 0), (230, 1), (90, 1))]
    assert floors(made(tmp_path, train, test, image=["png"], info=["json"])) == {
        "label/majority": 0.5,
        "label/nearest": 0.75,
        "label/colours": 0.75,  # 90 is in a level of its own, of which nothing is known
    }


def test_answers_of_the_nearest_picture_to_the_same_question(tmp_path):
    def one(level, question, answer):
        return {"png": picture(level), "json": {"question": question, "answer": answer}}

    train = [one(0, "what?", "a"), one(100, "what?", "b"), one(0, "where?", "c"), one(10, "where?", "c")]
    test = [one(90, "what?", "b"), one(5, "what?", "a"), one(90, "where?", "c"), one(90, "when?", "b")]
    found = floors(made(tmp_path, train, test, image=["png"], info=["json"]))
    assert found["answer/any/nearest"] == found["answer/all/nearest"] == 1
    assert found["answer/all/majority"] == 0.25
    assert found["answer/all/question"] == 0.5  # the first "what?", and "where?"


def test_captions(tmp_path):
    info = {"scene": SCENE.as_json(), "captions": []}
    train = [{"txt": text, "json": info} for text in ("a ring", "a small red circle", "a small red circle")]
    spec = made(tmp_path, train, [{"txt": "a big red circle", "json": info}], text=["txt"], info=["json"])
    assert floors(spec) == {"caption/right/majority": pytest.approx(2 / 3), "caption/named/majority": 0.5}


def test_pictures_found_by_the_colours_of_their_captions(tmp_path):
    info = {"scene": SCENE.as_json(), "captions": []}
    paints = {"red": (220, 0, 0), "green": (0, 220, 0), "blue": (0, 0, 220)}
    train = [{"png": picture(paint), "txt": f"a {name} ring", "json": info} for name, paint in paints.items()]
    twice = [train[0], train[1], train[2], train[2]]  # two that no colour tells apart
    spec = made(tmp_path, train, twice, image=["png"], text=["txt"], info=["json"])
    found = floors(spec)
    assert found["retrieval/text-to-image/at-1/chance"] == 1 / 4
    assert found["retrieval/text-to-image/at-10/chance"] == 1
    assert found["retrieval/text-to-image/at-1/colours"] == pytest.approx(3 / 4)
    assert found["retrieval/image-to-text/at-1/colours"] == pytest.approx(3 / 4)
    assert found["caption/right/nearest"] == (0.5 + 0.5 + 1 + 1) / 4  # only the blue ring is there


def test_boxes(tmp_path):
    def one(level, left):
        objects = [{"box": [left, 0, 10, 10], "area": 100}, {"box": [0, 30, 2, 2], "area": 4}]
        return {"png": picture(level), "json": {"objects": objects, "scene": SCENE.as_json()}}

    train = [one(0, 0), one(100, 5), one(200, 10)]
    found = floors(made(tmp_path, train, [one(10, 0), one(100, 15)], image=["png"], info=["json"]))
    assert found["box/iou/majority"] == pytest.approx((50 / 150 + 0) / 2)
    assert found["box/iou/nearest"] == pytest.approx((1 + 0) / 2)


def test_masks(tmp_path):
    def one(level, columns):
        mask = np.zeros((2, 4, 4), np.uint8)
        mask[:, :, :columns] = 1
        return {"png": picture(level), "masks.npy": encoded(mask), "json": {}}

    train = [one(0, 1), one(100, 2), one(200, 2)]
    spec = made(tmp_path, train, [one(10, 1), one(90, 4)], image=["png"], masks=["masks.npy"], info=["json"])
    assert floors(spec) == {
        "mask/iou/majority": (1 / 2 + 2 / 4) / 2,  # the left half
        "mask/iou/all": (1 / 4 + 1) / 2,
        "mask/iou/nearest": (1 + 2 / 4) / 2,
    }


def test_maps(tmp_path):
    def one(level, *marked):
        edges = np.zeros((4, 4), np.uint8)
        edges.flat[list(marked)] = 255
        return {"0.png": picture(level), "1.png": encoded_picture(edges), "json": {"maps": {"edges": "1.png"}}}

    train = [one(0, 0, 1), one(100, 0, 5), one(200, 9)]
    spec = made(tmp_path, train, [one(10, 0), one(90, 0, 5)], image=["0.png"], edges=["1.png"], info=["json"])
    assert floors(spec) == {
        "map/edges/pixels/majority": 31 / 32,  # the first one is set in two of three
        "map/edges/iou/majority": 2 / 3,
        "map/edges/pixels/nearest": 31 / 32,
        "map/edges/iou/nearest": 3 / 4,
    }


def test_copying_is_no_edit(tmp_path):
    turned = [Edit("recolour", 0, colour="green"), Edit("restyle", style="striped"), Edit("remove", 1)]
    infos = [{"before": SCENE.as_json(), "edit": edit.as_json()} for edit in turned]
    assert floors(told(tmp_path, infos, infos)) == {"edit/changed/copy": 0, "edit/kept/copy": 1}


def test_stories(tmp_path):
    def one(*changes):
        scenes = [{"seconds": 0}, *[{"seconds": seconds} for seconds, _ in changes]]
        return {"scenes": scenes, "changes": [{"kind": kind} for _, kind in changes]}

    train = [one((0, "come"), (1.5, "move")), one((0, "come"), (1.5, "sound"), (1.5, "sound"), (0, "come"))]
    found = floors(told(tmp_path, train, [one((0, "come"), (1.5, "sound"), (0, "go"))]))
    assert found == {"story/majority": pytest.approx(1 / 3), "story/medium": pytest.approx(2 / 3)}


def test_episodes(tmp_path):
    shots = [{"answer": answer} for answer in ("dax", "dax", "wug")]
    info = {"task": "name", "shots": shots, "query": {"answer": "wug"}, "choices": ["dax", "wug"]}
    files = {f"{number}.png": picture(level) for number, level in enumerate((0, 100, 200, 190))}
    document = [{"image": name} for name in files]
    samples = [files | {"doc.json": document, "json": one} for one in (info, info | {"query": {"answer": "dax"}})]
    spec = made(tmp_path, samples[:1], [samples[0], *samples], document=["doc.json"], info=["json"])
    assert floors(spec) == {
        "episode/name/chance": 0.5,
        "episode/name/majority": pytest.approx(1 / 3),
        "episode/name/nearest": pytest.approx(2 / 3),
    }


def test_transcripts(tmp_path):
    def one(language, text):
        return {"txt": text, "json": {"language": language, "words": [], "translation": "a ring"}}

    train = [one("en", "a ring"), one("de", "ein Ring"), one("de", "ein Kreis"), one("de", "ein Kreis")]
    spec = made(tmp_path, train, [one("en", "a disc"), one("de", "kein Kreis")], text=["txt"], info=["json"])
    assert floors(spec) == {
        "transcript/words/majority": 2 / 4,
        "transcript/characters/majority": (3 + 1) / 16,
        "language/majority": 0.5,
    }


def test_reports(tmp_path):
    def one(level, size, text):
        findings = [{"kind": "cyst", "side": "left", "level": "upper", "size": size}] if size else []
        return {"png": picture(level), "json": {"report": text, "findings": findings, "modality": "soft-tissue"}}

    train = [one(0, 16, "a cyst"), one(200, 0, "nothing"), one(210, 0, "nothing")]
    found = floors(made(tmp_path, train, [one(10, 20, "a larger cyst")], image=["png"], info=["json"]))
    assert (found["report/right/majority"], found["report/named/majority"]) == (4 / 5, 0)
    assert (found["report/right/nearest"], found["report/named/nearest"]) == (4 / 5, 1)  # but for its size


def test_events_of_clips(tmp_path):
    def one(*events):
        told = [{"thing": 0, "shape": "ring", "start": s, "end": e, "heard": h, "seen": v} for s, e, h, v in events]
        return {"scene": {"seconds": 2.0}, "events": told}

    train = [one((0.1, 0.9, True, True), (1.2, 1.9, True, True)), one((0.1, 0.9, True, False)), one()]
    found = floors(told(tmp_path, train, [one((0.5, 1.4, True, False)), one((0.2, 0.9, True, True))]))
    assert found == {"second/majority": 0.75, "second/audio": 0.5, "second/video": 1, "second/both": 1}


def test_the_limits_of_listening(tmp_path, monkeypatch):
    few = listening.ceilings(400)
    monkeypatch.setattr("mmflow.world.seen_floors._ceilings", lambda: few)
    scene = SCENE.as_json()
    (tmp_path / "ave").mkdir()
    found = floors(
        told(tmp_path / "ave", [{"labels": [4, 4, 0], "scene": scene}], [{"labels": [4, 1], "scene": scene}])
    )
    assert found["second/majority"] == 0.5
    assert found["second/audio"] == pytest.approx(0.6, abs=0.05)
    assert found["second/both"] == 1
    (tmp_path / "s4").mkdir()
    infos = [{"label": label, "sounding": [[label]], "scene": scene} for label in (0, 1)]
    found = floors(told(tmp_path / "s4", infos[:1], infos[1:]))
    assert found["label/majority"] == 0
    assert found["mask/iou/video"] == pytest.approx(0.25, abs=0.05)
    (tmp_path / "asked").mkdir()
    asked = {"question": "?", "answer": "1", "question_type": ["Audio", "Counting"], "scene": scene, "events": []}
    found = floors(told(tmp_path / "asked", [asked], [asked]))
    assert found["answer/Audio/Counting/question"] == found["answer/Audio/Counting/both"] == 1
    assert found["answer/Audio/Counting/audio"] > 0.7  # 1 where there are enough clips
    assert found["answer/Audio/Counting/video"] == pytest.approx(1 / 3, abs=0.1)


def test_limits_of_the_world_are_not_those_of_other_data(tmp_path):
    (tmp_path / "ave").mkdir()
    found = floors(told(tmp_path / "ave", [{"labels": [4, 4, 0]}], [{"labels": [4, 1]}]))
    assert found == {"second/majority": 0.5}
    (tmp_path / "avqa").mkdir()
    asked = {"question": "?", "answer": "1", "question_type": ["Audio", "Counting"]}
    assert "answer/Audio/Counting/audio" not in floors(told(tmp_path / "avqa", [asked], [asked]))


def test_tables(tmp_path, caplog):
    spec = DataSpec.read("data_specs/world_table.yaml").with_root(tmp_path / "rows")
    options = {"train": 40, "validation": 1, "test": 30}
    make(DataSpec(**{**vars(spec), "make": spec.make | {"init_args": options}}), None, workers=1, progress=False)
    caplog.set_level(logging.INFO)
    found = floors(spec)
    assert found["table/accuracy/text"] == pytest.approx(0.641, abs=1e-3)
    assert found["table/auroc/text+categorical+numerical"] == pytest.approx(0.907, abs=2e-3)
    assert 0 <= found["label/majority"] <= 1
    assert "no floors of box, mask, map, answer, dialogue" in caplog.text


def test_all_in_one(tmp_path):
    spec = DataSpec.read("data_specs/world.yaml").with_root(tmp_path / "world")
    options = {"train": 4, "validation": 1, "test": 4}
    make(DataSpec(**{**vars(spec), "make": spec.make | {"init_args": options}}), None, workers=1, progress=False)
    found = floors(spec)
    tasks = {"label", "box", "mask", "answer", "dialogue", "caption", "retrieval", "transcript", "edit", "second"}
    assert {name.split("/")[0] for name in found} == tasks | {"map", "table"}
    assert {"label/nearest", "answer/all/nearest", "dialogue/all/nearest"} <= set(found)
    assert found["edit/kept/copy"] == 1


def rows(path):
    """What a spec's header tells: kind of question -> majority, question."""
    found = {}
    for line in Path(path).read_text().splitlines():
        if match := re.fullmatch(r"#  +([a-z-]+(?:, [a-z-]+)*) +(\.\d\d) +(\.\d\d)", line):
            found |= dict.fromkeys(match[1].split(", "), (float(match[2]), float(match[3])))
    return found


@pytest.mark.parametrize("name", ["questions", "reasoning", "dialogues", "scans"])
def test_floors_are_those_of_the_spec(name, monkeypatch):
    """Within five standard deviations, as few samples are made."""
    for module, function in (("pictures", "render"), ("pictures", "encode"), ("scans", "scan")):
        monkeypatch.setattr(f"mmflow.world.{module}.{function}", lambda *given: b"")  # nothing is looked at
    path = Path(f"data_specs/world_{name}.yaml")
    made_by = DataSpec.read(path).make
    module, _, kind = made_by["class_path"].rpartition(".")
    source = getattr(importlib.import_module(module), kind)(**made_by["init_args"])
    count = {"dialogues": 500, "scans": 2500}.get(name, 700)
    train, other = ([{"info": source.sample(part, i)["json"]} for i in range(count)] for part in ("train", "test"))
    ask = told_floors.turns if name == "dialogues" else told_floors.asked
    found = told_floors.of_answers(ask)(SimpleNamespace(train=train, other=other))
    stated = rows(path)
    kinds = {key.rpartition("/")[0] for key in found}
    assert kinds - {"its-shape"} == set(stated)  # which is seldom asked
    asked = Counter(kind for sample in other for kind, _, _ in ask(sample))
    for kind, values in stated.items():
        far = 0.02 + 5 * (0.25 / asked.get(kind, asked.total())) ** 0.5
        assert (found[f"{kind}/majority"], found[f"{kind}/question"]) == pytest.approx(values, abs=far), kind


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


def test_json_that_tells_of_no_task(tmp_path):
    with pytest.raises(
        ValueError, match=r"no floor is known for samples with name in their JSON; the tasks are label, "
    ):
        floors(told(tmp_path, [{"name": "x"}], [{"name": "y"}]))


def test_json_without_names(tmp_path):
    with pytest.raises(ValueError, match=r"the JSON \[1, 2\] has no names"):
        floors(told(tmp_path, [[1, 2]], [[1, 2]]))


def test_a_spec_without_training_part(tmp_path):
    spec = told(tmp_path, [{"label": 1}], [{"label": 1}])
    with pytest.raises(ValueError, match="has no split 'train', only test"):
        floors(DataSpec(**{**vars(spec), "splits": {"test": "test-*.tar"}}))
    with pytest.raises(ValueError, match="no shards of split 'train' match"):
        floors(DataSpec(**{**vars(spec), "splits": {"train": "none-*.tar", "test": "test-*.tar"}}))
