from collections import Counter

import pytest

from mmflow.data.sources.daquar import Daquar
from tests.data.sources.made import made

PNG = b"\x89PNG\r\n\x1a\n"


def pair(photo: int, answer: str = "desk") -> str:
    return f"what is left of the chair in the image{photo} ?\n{answer}\n"


@pytest.fixture
def daquar(put, tmp_path):
    for photo in range(1, 7):
        put(f"daquar/nyu_depth_images/image{photo}.png", PNG + f"{photo}".encode())
    put("daquar/qa.894.raw.train.txt", pair(1) + pair(2, "lamp, book") + pair(1) + pair(3) + pair(4))
    put("daquar/qa.894.raw.test.txt", pair(5, "2") + pair(6))
    put("daquar/qa.37.raw.train.txt", pair(1))
    return tmp_path / "daquar"


def test_one_sample_per_question_with_its_photo(daquar):
    found = made(Daquar(), daquar)
    assert Counter(split for split, _ in found) == {"train": 4, "validation": 1, "test": 2}
    samples = {sample["__key__"]: sample for _, sample in found}
    assert samples.keys() == {f"image{n}" for n in ("1-001", "1-002", "2-001", "3-001", "4-001", "5-001", "6-001")}
    assert samples["image1-002"] == {
        "__key__": "image1-002",
        "png": PNG + b"1",
        "json": {
            "question": "what is left of the chair in the image?",
            "answer": "desk",
            "answer_list": ["desk"],
            "image": "image1",
        },
    }


def test_an_answer_that_is_a_list_is_taken_apart_too(daquar):
    samples = {sample["__key__"]: sample["json"] for _, sample in made(Daquar(), daquar / "nyu_depth_images")}
    assert samples["image2-001"]["answer"] == "lamp, book"
    assert samples["image2-001"]["answer_list"] == ["lamp", "book"]


def test_lists_of_photos_make_the_splits(daquar, put, caplog):
    put("daquar/train.txt", "image5\nimage6.png\n")
    put("daquar/test.txt", "image1\nimage2\n")
    found = made(Daquar(), daquar)
    assert {s["json"]["image"] for split, s in found if split == "test"} == {"image1", "image2"}
    assert "2 x question about a photo that is in no list" in caplog.text


def test_the_questions_with_37_answers_are_read_where_the_others_are_not_there(daquar):
    for part in ("train", "test"):
        (daquar / f"qa.894.raw.{part}.txt").unlink()
    assert [sample["__key__"] for _, sample in made(Daquar(), daquar)] == ["image1-001"]


def test_what_cannot_be_used_is_counted(daquar, put, caplog):
    stray = "desk\nwhat is in the image2 ?\n"
    put("daquar/qa.894.raw.train.txt", stray + pair(1) + pair(9) + "is it\n" + "what is on image3 ?")
    put("daquar/nyu_depth_images/image5.png", "no picture")
    found = made(Daquar(), daquar)
    assert {sample["__key__"] for _, sample in found} == {"image1-001", "image6-001"}
    for reason in (
        "2 x question without an answer, first: qa.894.raw.train.txt: what is in the image2 ?",
        "2 x line that is no question about an image and no answer, first: qa.894.raw.train.txt: desk",
        "2 x question without its photo, first: qa.894.raw.train.txt: what is left of the chair in the image9 ?",
        "1 x file that is no JPEG, PNG or WebP",
    ):
        assert reason in caplog.text


def test_questions_without_any_photo_are_an_error(daquar):
    (daquar / "nyu_depth_images").rename(daquar / ".images")
    with pytest.raises(ValueError, match=r"no question has its photo; expected qa\.894\.raw\.train\.txt and"):
        made(Daquar(), daquar)


def test_a_folder_with_another_layout_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold qa\.894\.raw\.train\.txt and"):
        made(Daquar(), tmp_path)


def test_the_real_copy_has_5790_questions_about_680_photos(real_data, caplog):
    seen: Counter[str] = Counter()
    photos: dict[str, set[str]] = {}
    by_key = {}
    for split, sample in made(Daquar(), real_data / "daquar"):
        seen[split] += 1
        photos.setdefault(split, set()).add(sample["json"]["image"])
        by_key[sample["__key__"]] = sample["json"]
        assert sample["jpg"][:3] == b"\xff\xd8\xff"
        assert sample["json"]["question"].endswith("?")
    assert seen["train"] + seen["validation"] == 4733
    assert seen["test"] == 1057
    assert len(photos["train"] | photos["validation"]) == 560
    assert not photos["train"] & photos["validation"]
    assert len(photos["test"]) == 120
    assert len(by_key) == 5790
    question = "what is on the right side of the black telephone and on the left side of the red chair in the image?"
    assert by_key["image3-001"] == {"question": question, "answer": "desk", "answer_list": ["desk"], "image": "image3"}
    assert sum(len(info["answer_list"]) > 1 for info in by_key.values()) == 545
    assert [record.message.split(";")[0] for record in caplog.records] == ["DAQUAR has no part for validation"]
