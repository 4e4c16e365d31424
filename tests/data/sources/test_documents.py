import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mmflow.data.decode import decode
from mmflow.data.documents import parse
from mmflow.data.make import build_source
from mmflow.data.sources.documents import Documents
from mmflow.data.spec import DataSpec
from tests.data.sources.made import made

SPECS = Path(__file__).parents[3] / "data_specs"


def picture(kind: str = "JPEG", width: int = 5) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 4)).save(file, kind)
    return file.getvalue()


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def mmc4(texts: list[str], pictures: list[tuple[str, int]], **more: object) -> dict[str, object]:
    info = [{"image_name": name, "matched_text_index": i, "matched_sim": 0.3, "raw_url": "-"} for name, i in pictures]
    return {"text_list": texts, "image_info": info, "similarity_matrix": [[0.3]], **more}


def only(root: Path) -> dict[str, object]:
    ((_, sample),) = made(Documents(), root)
    return sample


def test_pictures_stand_before_the_text_they_are_matched_to(put, tmp_path):
    put("images/a/x.jpg", picture(width=1))
    put("images/b/y.jpg", picture("PNG", 2))
    put("images/z.jpg", picture("WEBP", 3))
    put("docs_shard_0.jsonl", lines(mmc4(["one", "two", "three"], [("z.jpg", 2), ("x.jpg", 0), ("y.jpg", 2)], url="u")))
    sample = only(tmp_path)
    assert sample == {
        "__key__": "000000-0000000",
        "0.jpg": picture(width=1),
        "1.webp": picture("WEBP", 3),
        "2.png": picture("PNG", 2),
        "doc.json": [
            {"image": "0.jpg"},
            {"text": "one"},
            {"text": "two"},
            {"image": "1.webp"},
            {"image": "2.png"},
            {"text": "three"},
        ],
        "json": {"path": "docs_shard_0.jsonl", "url": "u"},
    }
    members = {name: decode(sample[name], name) for name in ("0.jpg", "1.webp", "2.png")}
    parts = parse(sample["doc.json"], members)
    assert [part if isinstance(part, str) else part.width for part in parts] == [1, "one", "two", 3, 2, "three"]


def test_lists_of_parts_may_hold_videos_and_sounds_and_name_files_from_their_own_folder(put, tmp_path, audio_bytes):
    put("set/media/a.wav", audio_bytes("FLAC"))
    put("set/media/b.MP4", b"video")
    put("set/c.png", picture("PNG"))
    put("c.png", picture("PNG", 9))
    parts = [("text", "a "), ("audio", "media/a.wav"), ("text", " "), ("video", "media/b.MP4"), ("image", "c.png")]
    content = [{"type": kind, kind: what} for kind, what in parts]
    put("set/docs.jsonl", lines({"id": 7, "content": content}))
    sample = only(tmp_path)
    assert sample["doc.json"] == [{"text": "a "}, {"audio": "0.flac"}, {"video": "1.mp4"}, {"image": "2.png"}]
    assert (sample["1.mp4"], sample["2.png"]) == (b"video", picture("PNG"))
    assert sample["json"] == {"path": "set/docs.jsonl", "id": 7}


def test_a_picture_that_is_named_twice_is_stored_once(put, tmp_path):
    put("a.jpg", picture())
    put("docs.jsonl", lines(mmc4(["one", "two"], [("a.jpg", 0), ("a.jpg", 1)])))
    sample = only(tmp_path)
    assert sample["doc.json"] == [{"image": "0.jpg"}, {"text": "one"}, {"image": "0.jpg"}, {"text": "two"}]
    assert sample.keys() == {"__key__", "0.jpg", "doc.json", "json"}


def test_pictures_that_cannot_be_had_are_counted_and_the_rest_is_kept(put, tmp_path, caplog):
    put("a.jpg", picture())
    put("b.jpg", b"<html>404 Not Found")
    put("c.jpg", b"")
    put("docs.jsonl", lines(mmc4(["one", " ", "three"], [("b.jpg", 0), ("a.jpg", 1), ("c.jpg", 2), ("gone.jpg", 2)])))
    assert only(tmp_path)["doc.json"] == [{"text": "one"}, {"image": "0.jpg"}, {"text": "three"}]
    assert "2 x file that is no JPEG, PNG or WebP" in caplog.text
    assert "1 x image that is not there, first: gone.jpg" in caplog.text


def test_documents_without_any_of_their_pictures_are_left_out_but_those_of_text_only_are_not(put, tmp_path, caplog):
    put("docs.jsonl", lines(mmc4(["one"], [("gone.jpg", 0)]), mmc4(["two"], []), mmc4([" "], [])))
    assert only(tmp_path)["doc.json"] == [{"text": "two"}]
    assert "2 x document without text, or without any of its files, first: docs.jsonl, line 1" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "3",
        '"content"',
        "null",
        "{}",
        '{"text_list": ["a"]}',
        '{"text_list": "a", "image_info": [{"image_name": "a.jpg", "matched_text_index": 1}]}',
        '{"text_list": ["a"], "image_info": [{"image_name": "a.jpg", "matched_text_index": -1}]}',
        '{"text_list": ["a"], "image_info": [{"image_name": "a.jpg"}]}',
        '{"text_list": ["a", null], "image_info": []}',
        '{"text_list": ["a"], "image_info": [{"image_name": ["a.jpg"], "matched_text_index": 0}]}',
        '{"content": "text"}',
        '{"content": [{"type": "text"}]}',
        '{"content": [{"type": "pickle", "pickle": "a.pickle"}]}',
        '{"content": [{"type": ["text"], "text": "a"}]}',
        "[" * 100_000,
    ],
)
def test_lines_that_are_no_document_are_counted(put, tmp_path, caplog, line):
    put("a.jpg", picture())
    put("docs.jsonl", f"{line}\n" + lines(mmc4(["good"], [("a.jpg", 0)])))
    assert only(tmp_path)["doc.json"] == [{"image": "0.jpg"}, {"text": "good"}]
    assert "1 x line that is no document, first: docs.jsonl, line 1: " in caplog.text


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "linked.jpg", "folder/secret.jpg"])
def test_names_lead_nowhere_outside_the_root(put, tmp_path, name):
    secret = put("secret.jpg", picture())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked.jpg").symlink_to(secret)
    (tmp_path / "set" / "folder").symlink_to(tmp_path)
    put("set/docs.jsonl", lines(mmc4(["one"], [(name, 0)])))
    with pytest.raises(ValueError, match="holds no document that can be used"):
        only(tmp_path / "set")


def test_documents_are_split_and_copies_of_a_page_stay_together(put, tmp_path):
    put("1.jsonl", lines(*(mmc4([f"{i}"], [], url=f"page {i}") for i in range(30))))
    put("2.jsonl", lines(*(mmc4([f"{i} again"], [], url=f"page {i}") for i in range(30))))
    found = made(Documents(), tmp_path)
    assert Counter(split for split, _ in found) == {"train": 48, "validation": 6, "test": 6}
    places = {sample["json"]["url"]: split for split, sample in found}
    assert all(places[sample["json"]["url"]] == split for split, sample in found)


def test_a_folder_without_documents_is_an_error(put, tmp_path):
    put("docs.jsonl.zip", "PK")
    with pytest.raises(ValueError, match=r"holds no document that can be used; expected files \.jsonl \(unpacked\)"):
        only(tmp_path)
    with pytest.raises(ValueError, match=r"docs\.jsonl\.zip is not a folder; name one with files \.jsonl"):
        only(tmp_path / "docs.jsonl.zip")


def test_other_encodings_than_utf8_are_an_error(put, tmp_path):
    put("docs.jsonl", '{"content": [{"type": "text", "text": "é"}]}'.encode("latin1"))
    with pytest.raises(ValueError, match=r"docs\.jsonl is not UTF-8 text"):
        only(tmp_path)


def test_the_real_prompt_has_seven_pictures_each_before_its_question(real_data):
    ((split, sample),) = made(build_source(DataSpec.read(SPECS / "mmc4.yaml")), real_data / "vqa_rad_fewshot")
    names = [f"{i}.jpg" for i in range(7)]
    assert split == "train"
    assert sample.keys() == {"__key__", "doc.json", "json", *names}
    assert sample["json"] == {"path": "interleaved.jsonl", "id": "med-flamingo-demo"}
    assert sample["0.jpg"] == (real_data / "vqa_rad_fewshot" / "images" / "synpic50962.jpg").read_bytes()
    parts = parse(sample["doc.json"], {name: decode(sample[name], name) for name in names})
    assert parts[-1] == "Question: Where is the largest mass located in the cerebellum? Answer:"
    assert [isinstance(part, str) for part in parts] == [False, True] * 7
    assert max(max(part.width, part.height) for part in parts[::2]) <= 256
