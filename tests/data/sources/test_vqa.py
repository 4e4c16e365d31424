import json
from collections import Counter

import pytest

from mmflow.data.sources.vqa import VQA
from tests.data.sources.made import made

JPEG = b"\xff\xd8\xff\xe0"


def question(number: int, photo: int) -> dict:
    return {"image_id": photo, "question": f"What is {number}? ", "question_id": number}


def annotation(number: int, answers: list[str], **more) -> dict:
    about = {"question_type": "what is", "answer_type": "other", "image_id": number // 1000, "question_id": number}
    listed = [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)]
    return about | {"answers": listed} | more


@pytest.fixture
def vqa(put, tmp_path):
    def part(name: str, numbers: list[int], *, answered: bool = True) -> None:
        questions = [question(number, number // 1000) for number in numbers]
        put(f"vqa/v2_OpenEnded_mscoco_{name}_questions.json", json.dumps({"info": {}, "questions": questions}))
        if answered:
            answers = [annotation(n, ["net", "nets", "net"], multiple_choice_answer="net") for n in numbers]
            put(f"vqa/v2_mscoco_{name}_annotations.json", json.dumps({"annotations": answers}))
        for photo in {number // 1000 for number in numbers}:
            put(f"vqa/{name}/COCO_{name}_{photo:012d}.jpg", JPEG + f"{name} {photo}".encode())

    part("train2014", [9000, 9001, 25000])
    part("val2014", [42002])
    part("test2015", [262144000, 262144001], answered=False)
    return tmp_path / "vqa"


def test_one_sample_per_question_with_its_photo_and_answers(vqa):
    found = made(VQA(), vqa)
    assert Counter(split for split, _ in found) == {"train": 3, "validation": 1, "test": 2}
    assert found[1] == (
        "train",
        {
            "__key__": "000000009001",
            "jpg": JPEG + b"train2014 9",
            "json": {
                "question": "What is 9001?",
                "answer": "net",
                "answers": ["net", "nets", "net"],
                "question_type": "what is",
                "answer_type": "other",
                "question_id": 9001,
                "image_id": 9,
            },
        },
    )


def test_questions_of_test_have_no_answers(vqa):
    *_, (split, sample) = made(VQA(), vqa)
    assert split == "test"
    assert sample["json"] == {
        "question": "What is 262144001?",
        "answer": None,
        "question_id": 262144001,
        "image_id": 262144,
    }


def test_without_a_chosen_answer_it_is_the_most_frequent(vqa, put):
    answers = [annotation(42002, ["bat", "net", "net"])]
    put("vqa/v2_mscoco_val2014_annotations.json", json.dumps({"annotations": answers}))
    assert [s["json"]["answer"] for split, s in made(VQA(), vqa) if split == "validation"] == ["net"]


def test_the_part_for_validation_alone_is_cut_by_photo(vqa, put):
    for path in (*vqa.glob("*train2014*"), *vqa.glob("*test2015*")):
        path.rename(path.with_name(f".{path.name}"))
    numbers = [photo * 1000 + i for photo in range(1, 11) for i in range(3)]
    put(
        "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
        json.dumps({"questions": [question(n, n // 1000) for n in numbers]}),
    )
    put(
        "vqa/v2_mscoco_val2014_annotations.json",
        json.dumps({"annotations": [annotation(n, ["yes"]) for n in numbers]}),
    )
    for photo in range(1, 11):
        put(f"vqa/val2014/COCO_val2014_{photo:012d}.jpg", JPEG)
    found = made(VQA(), vqa)
    assert Counter(split for split, _ in found) == {"train": 24, "validation": 3, "test": 3}
    photos = {split: {s["json"]["image_id"] for at, s in found if at == split} for split, _ in found}
    assert [len(photos[split]) for split in ("train", "validation", "test")] == [8, 1, 1]


def test_what_cannot_be_used_is_counted(vqa, put, caplog):
    questions = [question(9000, 9), question(9000, 9), question(9001, 9), question(9002, 9), question(7000, 7)]
    questions += [question(25000, 25), {"question": "Who?", "image_id": "../../secret", "question_id": 1}]
    put("vqa/v2_OpenEnded_mscoco_train2014_questions.json", json.dumps({"questions": questions}))
    put("vqa/v2_OpenEnded_mscoco_test-dev2015_questions.json", json.dumps({"questions": [question(262144000, 262144)]}))
    answers = [annotation(9000, ["a"]), annotation(9001, []), annotation(7000, ["a"]), annotation(25000, ["a"])]
    put("vqa/v2_mscoco_train2014_annotations.json", json.dumps({"annotations": [*answers, {"answers": ["a"]}]}))
    put("vqa/train2014/COCO_train2014_000000000025.jpg", "<html>")
    found = made(VQA(), vqa)
    assert [sample["__key__"] for split, sample in found if split == "train"] == ["000000009000"]
    for reason in (
        "1 x second question of the same question_id, first: 9000",
        "2 x question without answers, first: train2014: 9001",
        "1 x question without its photo, first: COCO_train2014_000000000007.jpg",
        "1 x file that is no JPEG, PNG or WebP",
        "1 x annotation whose answers are not as expected, first: 9001",
        "1 x file of questions that is not of a whole part, such as test-dev",
        "1 x record of v2_OpenEnded_mscoco_train2014_questions.json without question, image_id, question_id as",
        "1 x record of v2_mscoco_train2014_annotations.json without question_id, answers as expected",
    ):
        assert reason in caplog.text


def test_a_file_without_the_list_is_an_error(vqa, put):
    put("vqa/v2_mscoco_val2014_annotations.json", "{}")
    with pytest.raises(ValueError, match=r"must hold a list under the key 'annotations'; it is not the file that"):
        made(VQA(), vqa)


def test_questions_without_any_photo_are_an_error(vqa):
    for path in vqa.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no question has its answers and its photo; expected files named"):
        made(VQA(), vqa)


def test_a_folder_with_another_layout_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold files named \*_train2014_questions\.json"):
        made(VQA(), tmp_path)


def test_a_photo_is_opened_once_to_see_what_it_is(vqa, monkeypatch):
    opened = []
    monkeypatch.setattr("mmflow.data.sources.vqa.as_member", lambda path, _: opened.append(path.name) or {"jpg": path})
    assert len(made(VQA(), vqa)) == 6
    assert len(opened) == 4
