import json
from collections import Counter

import pytest

from mmflow.data.sources.layout import LeftOut
from mmflow.data.sources.music_avqa import MusicAVQA, fill, read_questions
from tests.data.sources.made import made


def record(video: str, **changes) -> dict:
    return {
        "video_id": video,
        "question_id": 10,
        "type": '["Audio", "Comparative"]',
        "question_content": "Is the <Object> on the <LR> louder than the <Object>? ",
        "templ_values": '["guzheng", "left", "electric_bass"]',
        "question_deleted": 0,
        "anser": "yes",
    } | changes


@pytest.fixture
def music(put, tmp_path):
    for part, videos in [("train", ("00000001", "va00000002")), ("val", ("00000001",)), ("test", ("00000003",))]:
        put(f"music/json/avqa-{part}.json", json.dumps([record(video) for video in videos]))
        for video in videos:
            put(f"music/MUSIC-AVQA-videos-Real/{video}.mp4", f"video {video}")
    return tmp_path / "music"


def test_one_sample_per_question_with_its_places_filled_in(music):
    found = made(MusicAVQA(), music)
    assert Counter(split for split, _ in found) == {"train": 2, "validation": 1, "test": 1}
    assert found[1] == (
        "train",
        {
            "__key__": "train-00001",
            "mp4": b"video va00000002",
            "json": {
                "question": "Is the guzheng on the left louder than the electric_bass?",
                "answer": "yes",
                "question_type": ["Audio", "Comparative"],
                "question_id": 10,
                "template": "Is the <Object> on the <LR> louder than the <Object>? ",
                "video": "va00000002",
            },
        },
    )


def test_places_are_filled_from_left_to_right_and_fillings_are_not_filled_again():
    assert fill("Is <A> <A> than <B>?", ["<B>", "x", r"\1"]) == r"Is <B> x than \1?"


def test_missing_parts_are_cut_out_by_video(music, put):
    for part in ("train", "val"):
        (music / "json" / f"avqa-{part}.json").unlink()
    videos = [f"{i:08d}" for i in range(10)]
    put("music/json/avqa-test.json", json.dumps([record(video) for video in videos for _ in range(3)]))
    for video in videos:
        put(f"music/videos/{video}.mp4")
    found = made(MusicAVQA(), music / "json")
    assert Counter(split for split, _ in found) == {"train": 24, "validation": 3, "test": 3}


def test_questions_that_cannot_be_used_are_counted(music, put, caplog):
    records = [
        record("00000001"),
        record("00000009"),
        record("../secret"),
        record("00000001", templ_values='["one"]'),
        record("00000001", templ_values="[1, 2, 3]"),
        record("00000001", type="Audio"),
        record("00000001", anser=None),
        "no object",
    ]
    put("secret.mp4")
    put("music/json/avqa-train.json", json.dumps(records))
    found = made(MusicAVQA(), music)
    assert [sample["__key__"] for split, sample in found if split == "train"] == ["train-00000"]
    for reason in (
        "2 x question without its video, first: avqa-train.json: 00000009",
        "1 x question with another number of templ_values than places",
        "2 x question whose type or templ_values is no JSON list of texts",
        "2 x record of avqa-train.json without video_id, question_content, templ_values, type, anser as expected",
    ):
        assert reason in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [("[", "avqa-val.json is not JSON: .*; download it again"), ("{}", "must hold a list; it is not the file that")],
)
def test_a_file_that_is_no_list_is_an_error(content, message, put):
    with pytest.raises(ValueError, match=message):
        list(read_questions(put("avqa-val.json", content), LeftOut("MUSIC-AVQA")))


def test_questions_without_any_video_are_an_error(real_data):
    with pytest.raises(ValueError, match=r"no question has its video; expected a folder json with avqa-train\.json"):
        made(MusicAVQA(), real_data / "music_avqa")


def test_a_folder_with_another_layout_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold a folder json with avqa-train\.json"):
        made(MusicAVQA(), tmp_path)


def test_the_real_questions_are_read_to_the_last_one(real_data):
    left_out = LeftOut("MUSIC-AVQA")
    found = list(read_questions(real_data / "music_avqa/json/avqa-val.json", left_out))
    assert not left_out.counts
    assert [row for row, _ in found] == list(range(4595))
    assert found[2][1] == {
        "question": "What is the instrument on the left of electric_bass?",
        "answer": "saxophone",
        "question_type": ["Visual", "Location"],
        "question_id": 11,
        "template": "What is the instrument on the <LR> of <Object>?",
        "video": "00000288",
    }
    assert not any("<" in info["question"] for _, info in found)
    assert len({info["template"] for _, info in found}) == 33
    assert len({info["answer"] for _, info in found}) == 41
    kinds = {tuple(info["question_type"]) for _, info in found}
    assert len(kinds) == 9
    assert {kind for modality, kind in kinds if modality == "Audio"} == {"Counting", "Comparative"}
