from collections import Counter

import pytest

from mmflow.data.sources.fsdd import FreeSpokenDigits
from tests.data.sources.made import made


@pytest.fixture
def digits(put, tmp_path):
    for speaker in ("ann", "bob", "cid"):
        for take in (0, 4, 5, 6):
            put(f"fsdd/recordings/7_{speaker}_{take}.wav", f"{speaker} {take}")
    return tmp_path / "fsdd"


def test_takes_up_to_four_are_test_and_one_speaker_of_train_is_validation(digits):
    found = made(FreeSpokenDigits(), digits)
    assert Counter(split for split, _ in found) == {"train": 4, "validation": 2, "test": 6}
    assert {sample["json"]["take"] for split, sample in found if split == "test"} == {0, 4}
    assert len({sample["json"]["speaker"] for split, sample in found if split == "validation"}) == 1
    assert found[-1] == (
        "test",
        {
            "__key__": "7_cid_4",
            "wav": b"cid 4",
            "txt": "seven",
            "json": {"speaker": "cid", "digit": 7, "take": 4},
        },
    )


def test_the_recordings_folder_may_be_named_and_other_files_are_counted(digits, put, caplog):
    put("fsdd/recordings/hello.wav")
    assert len(made(FreeSpokenDigits(), digits / "recordings")) == 12
    assert "1 x file not named <digit>_<speaker>_<take>.wav" in caplog.text


def test_an_empty_recordings_folder_is_an_error(tmp_path):
    (tmp_path / "recordings").mkdir()
    with pytest.raises(ValueError, match="no recording can be used; expected a folder recordings"):
        made(FreeSpokenDigits(), tmp_path)


def test_the_real_copy_has_600_200_200(real_data):
    found = made(FreeSpokenDigits(), real_data / "free-spoken-digit-dataset")
    assert Counter(split for split, _ in found) == {"train": 600, "validation": 200, "test": 200}
    assert Counter(sample["txt"] for _, sample in found) == dict.fromkeys(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], 100
    )
    speakers = {split: {s["json"]["speaker"] for at, s in found if at == split} for split in ("train", "validation")}
    assert not speakers["train"] & speakers["validation"]
