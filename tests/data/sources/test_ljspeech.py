from collections import Counter

import pytest

from mmflow.data.sources.ljspeech import LJSpeech
from tests.data.sources.made import made


@pytest.fixture
def lj(put, tmp_path):
    for i in range(3):
        put(f"LJSpeech-1.1/wavs/LJ001-{i}.wav", f"audio {i}")
    put("LJSpeech-1.1/metadata.csv", '\ufeffLJ001-0|In 1862|In "eighteen\r\nLJ001-1|same|\r\nLJ001-2|only one')
    return tmp_path / "LJSpeech-1.1"


def test_the_normalised_text_is_taken_where_there_is_one(lj):
    samples = {sample["__key__"]: sample for _, sample in made(LJSpeech(), lj)}
    assert {key: sample["txt"] for key, sample in samples.items()} == {
        "LJ001-0": 'In "eighteen',
        "LJ001-1": "same",
        "LJ001-2": "only one",
    }
    assert samples["LJ001-0"] == {
        "__key__": "LJ001-0",
        "wav": b"audio 0",
        "txt": 'In "eighteen',
        "json": {"speaker": "LJ"},
    }


def test_three_clips_give_one_to_each_split(lj):
    assert Counter(split for split, _ in made(LJSpeech(), lj / "wavs")) == {"train": 1, "validation": 1, "test": 1}


def test_lines_and_files_without_their_other_half_are_counted(lj, put, caplog):
    put("LJSpeech-1.1/wavs/LJ009-9.wav")
    put("LJSpeech-1.1/metadata.csv", "LJ001-0|a|b\nLJ001-0|c|d\nLJ001-1\nLJ001-7|e|f\nLJ001-2||")
    assert [sample["txt"] for _, sample in made(LJSpeech(), lj)] == ["b"]
    for reason in (
        "1 x second line for the same id",
        "2 x line of metadata.csv without text, first: LJ001-1",
        "1 x line of metadata.csv without an audio file, first: LJ001-7",
        "3 x audio file without a line in metadata.csv",
    ):
        assert reason in caplog.text


def test_a_folder_without_metadata_is_an_error(lj):
    (lj / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"does not hold metadata\.csv and a folder wavs"):
        made(LJSpeech(), lj)


def test_metadata_that_names_no_file_is_an_error(lj, put):
    put("LJSpeech-1.1/metadata.csv", "LJ050-1|a|b")
    with pytest.raises(ValueError, match=r"no line of metadata\.csv has its audio file"):
        made(LJSpeech(), lj)


def test_a_link_to_wavs_elsewhere_is_not_followed(lj, tmp_path):
    (lj / "wavs").rename(tmp_path / "elsewhere")
    (lj / "wavs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="links are not followed"):
        made(LJSpeech(), lj)


def test_the_real_copy_has_24_clips(real_data):
    found = made(LJSpeech(), real_data / "LJSpeech-1.1")
    assert Counter(split for split, _ in found) == {"train": 20, "validation": 2, "test": 2}
    samples = {sample["__key__"]: sample for _, sample in found}
    assert samples["LJ001-0002"]["txt"] == "in being comparatively modern."
    assert samples["LJ001-0002"]["wav"] == (real_data / "LJSpeech-1.1/wavs/LJ001-0002.wav").read_bytes()
