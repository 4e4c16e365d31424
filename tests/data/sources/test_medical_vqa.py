import json
from collections import Counter

import pytest

from mmflow.data.sources.medical_vqa import Slake, VQARad
from tests.data.sources.made import made

JPEG = b"\xff\xd8\xff\xe0"


def rad_record(number: int, name: str, **changes) -> dict:
    return {
        "qid": number,
        "phrase_type": "freeform",
        "image_name": name,
        "image_organ": "HEAD",
        "question": "Are regions of the brain infarcted? ",
        "question_type": "PRES",
        "answer": "Yes\t",
        "answer_type": "CLOSED",
    } | changes


@pytest.fixture
def rad(put, tmp_path):
    records = [rad_record(i, f"synpic{i}.jpg") for i in range(5)]
    records += [rad_record(5, "synpic0.jpg", phrase_type="test_para", answer=3, answer_type="OPEN")]
    put("VQA_RAD/VQA_RAD Dataset Public.json", json.dumps(records))
    for i in range(5):
        put(f"VQA_RAD/VQA_RAD Image Folder/synpic{i}.jpg", JPEG + f"{i}".encode())
    return tmp_path / "VQA_RAD"


def slake_record(number: int, name: str, **changes) -> dict:
    return {
        "img_id": 0,
        "img_name": f"{name}/source.jpg",
        "question": "What modality is used to take this image?",
        "answer": "MRI",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": number,
    } | changes


@pytest.fixture
def slake(put, tmp_path):
    for part, name in [("train", "xmlab0"), ("validate", "xmlab1"), ("test", "xmlab2")]:
        chinese = slake_record(1, name, q_lang="zh", question="图中有什么？", answer="肝脏")
        put(f"Slake1.0/{part}.json", json.dumps([slake_record(0, name), chinese]))
        put(f"Slake1.0/imgs/{name}/source.jpg", JPEG + name.encode())
        put(f"Slake1.0/imgs/{name}/mask.png", b"mask")
    return tmp_path / "Slake1.0"


def test_rad_has_one_sample_per_question_with_its_picture(rad):
    found = made(VQARad(), rad)
    assert Counter(split for split, _ in found) == {"train": 4, "validation": 1, "test": 1}
    samples = {sample["__key__"]: sample for _, sample in found}
    assert samples["0002_synpic2"] == {
        "__key__": "0002_synpic2",
        "jpg": JPEG + b"2",
        "json": {
            "question": "Are regions of the brain infarcted?",
            "answer": "Yes",
            "question_id": 2,
            "answer_type": "CLOSED",
            "question_type": "PRES",
            "phrase_type": "freeform",
            "organ": "HEAD",
            "image": "synpic2.jpg",
        },
    }


def test_rad_answers_are_text_also_where_they_are_numbers_and_the_test_part_is_the_original(rad):
    *_, (split, sample) = made(VQARad(), rad / "VQA_RAD Image Folder")
    assert (split, sample["__key__"], sample["json"]["answer"]) == ("test", "0005_synpic0", "3")


def test_rad_questions_that_cannot_be_used_are_counted(rad, put, caplog):
    records = [rad_record(0, "synpic0.jpg"), rad_record(1, "../../secret.jpg"), rad_record(2, "synpic1.jpg", answer="")]
    records += [{"qid": 3}, rad_record(4, "synpic2.jpg")]
    put("VQA_RAD/VQA_RAD Dataset Public.json", json.dumps(records))
    put("VQA_RAD/VQA_RAD Image Folder/synpic2.jpg", "<html>")
    put("secret.jpg", JPEG)
    assert [sample["__key__"] for _, sample in made(VQARad(), rad)] == ["0000_synpic0"]
    for reason in (
        "2 x question without its picture, first: ../../secret.jpg",
        "1 x question without an answer",
        "1 x record of VQA_RAD Dataset Public.json without image_name, question, phrase_type as expected",
        "1 x file that is no JPEG, PNG or WebP",
    ):
        assert reason in caplog.text


def test_lines_of_a_prompt_that_are_no_question_are_counted(put, tmp_path, caplog):
    lines = ['{"image": "a.jpg", "question": "q", "answer": "a"}', '{"image": 5, "question": "q", "answer": "a"}', "{"]
    put("few/fewshot.jsonl", "\n".join([*lines, '{"image": "a.jpg", "question": "q"}', "[]"]))
    put("few/images/a.jpg", JPEG)
    assert len(made(VQARad(), tmp_path / "few")) == 1
    assert "4 x line that is no object of image, question and answer" in caplog.text


def test_rad_without_any_picture_is_an_error(rad):
    (rad / "VQA_RAD Image Folder").rename(rad / ".images")
    with pytest.raises(ValueError, match=r"no question has its picture; expected VQA_RAD Dataset Public\.json"):
        made(VQARad(), rad)


def test_the_real_prompt_has_six_answered_questions_and_one_open(real_data):
    found = made(VQARad(), real_data / "vqa_rad_fewshot")
    assert Counter(split for split, _ in found) == {"train": 5, "validation": 1, "test": 1}
    assert found[-1] == (
        "test",
        {
            "__key__": "0006_synpic47964",
            "jpg": (real_data / "vqa_rad_fewshot/images/synpic47964.jpg").read_bytes(),
            "json": {
                "question": "Where is the largest mass located in the cerebellum?",
                "answer": None,
                "question_id": 6,
                "image": "synpic47964.jpg",
            },
        },
    )
    answers = {sample["__key__"]: sample["json"]["answer"] for _, sample in found}
    assert answers["0000_synpic50962"] == "pons"


def test_slake_has_one_sample_per_question_with_its_picture(slake):
    found = made(Slake(), slake / "imgs")
    assert [(split, sample["__key__"]) for split, sample in found] == [
        ("train", "train-00000"),
        ("validation", "validation-00000"),
        ("test", "test-00000"),
    ]
    assert found[1][1] == {
        "__key__": "validation-00000",
        "jpg": JPEG + b"xmlab1",
        "json": {
            "question": "What modality is used to take this image?",
            "answer": "MRI",
            "question_id": 0,
            "language": "en",
            "image": "xmlab1/source.jpg",
            "answer_type": "OPEN",
            "content_type": "Modality",
            "modality": "MRI",
            "location": "Abdomen",
            "base_type": "vqa",
        },
    }


@pytest.mark.parametrize(("language", "answers"), [("en", ["MRI"]), ("zh", ["肝脏"]), ("all", ["MRI", "肝脏"])])
def test_slake_takes_one_language_or_both(slake, language, answers):
    found = made(Slake(language), slake)
    assert [sample["json"]["answer"] for split, sample in found if split == "test"] == answers


def test_slake_has_another_name_for_validation(slake):
    (slake / "validate.json").rename(slake / "validation.json")
    assert len(made(Slake(), slake)) == 3


def test_slake_questions_that_cannot_be_used_are_counted(slake, put, caplog):
    records = [slake_record(0, "../../.."), slake_record(1, "xmlab0", answer=" "), slake_record(2, "xmlab0")]
    put("Slake1.0/train.json", json.dumps([*records, {"qid": "3"}]))
    assert [sample["__key__"] for split, sample in made(Slake(), slake) if split == "train"] == ["train-00002"]
    for reason in (
        "1 x question without its picture, first: train.json: ../../../source.jpg",
        "1 x question without an answer",
        "1 x record of train.json without img_name, question, answer, q_lang, qid as expected",
    ):
        assert reason in caplog.text


def test_slake_without_a_question_in_the_language_is_an_error(slake, put):
    for part in ("train", "validate", "test"):
        put(f"Slake1.0/{part}.json", json.dumps([slake_record(0, "xmlab0")]))
    with pytest.raises(ValueError, match=r"no question in language 'zh' has its picture; expected train\.json"):
        made(Slake("zh"), slake)


@pytest.mark.parametrize(("kind", "wanted"), [(VQARad, r"VQA_RAD Dataset Public\.json"), (Slake, r"train\.json")])
def test_a_folder_with_another_layout_is_an_error(kind, wanted, tmp_path):
    with pytest.raises(ValueError, match=rf"does not hold {wanted}"):
        made(kind(), tmp_path)
