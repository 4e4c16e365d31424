from collections import Counter

import pytest

from mmflow.data.sources.librispeech import LibriSpeech
from tests.data.sources.made import made


@pytest.fixture
def libri(put, tmp_path):
    """A copy with all three splits."""
    for part, speaker in [("train-clean-100", 1), ("train-other-500", 2), ("dev-clean", 3), ("test-other", 4)]:
        chapter = f"LibriSpeech/{part}/{speaker}/10/{speaker}-10"
        put(f"{chapter}-0000.flac", f"audio {speaker}")
        put(f"{chapter}-0001.flac")
        put(f"{chapter}.trans.txt", f"{speaker}-10-0000 HELLO WORLD\n{speaker}-10-0001 BYE")
    return tmp_path / "LibriSpeech"


def test_the_parts_become_the_splits(libri, caplog):
    found = made(LibriSpeech(), libri)
    assert Counter(split for split, _ in found) == {"train": 4, "validation": 2, "test": 2}
    assert found[0] == (
        "train",
        {
            "__key__": "1-10-0000",
            "flac": b"audio 1",
            "txt": "HELLO WORLD",
            "json": {"speaker": "1", "chapter": "10", "part": "train-clean-100"},
        },
    )
    assert not caplog.records


def test_the_folder_above_gives_the_same_and_a_single_part_only_itself(libri):
    assert made(LibriSpeech(), libri.parent) == made(LibriSpeech(), libri)
    assert {sample["json"]["speaker"] for _, sample in made(LibriSpeech(), libri / "dev-clean")} == {"3"}


def test_missing_audio_and_missing_lines_are_counted_and_left_out(libri, put, caplog):
    (libri / "dev-clean/3/10/3-10-0000.flac").unlink()
    put("LibriSpeech/test-other/4/10/4-10-0002.flac")
    put("LibriSpeech/test-other/stray.flac")
    assert Counter(split for split, _ in made(LibriSpeech(), libri)) == {"train": 4, "validation": 1, "test": 2}
    assert [r.message.split(", first")[0] for r in caplog.records] == [
        "LibriSpeech: 1 x transcript line without an audio file",
        "LibriSpeech: 1 x audio file without a transcript line",
        "LibriSpeech: 1 x audio file outside <speaker>/<chapter>/",
    ]


def test_a_part_that_is_a_link_is_named_in_the_log(libri, tmp_path, caplog):
    (libri / "dev-clean").rename(tmp_path / "elsewhere")
    (libri / "dev-clean").symlink_to(tmp_path / "elsewhere")
    assert "3" not in {sample["json"]["speaker"] for _, sample in made(LibriSpeech(), libri)}
    assert "1 x link to a folder, not followed" in caplog.text


def test_a_folder_with_another_layout_names_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold folders named train-\*, dev-\* or test-\*"):
        made(LibriSpeech(), tmp_path)


def test_parts_without_audio_are_an_error(put, tmp_path):
    put("train-clean-100/notes.txt")
    with pytest.raises(ValueError, match="no utterance can be used; expected folders named train"):
        made(LibriSpeech(), tmp_path)


def test_the_real_test_other_is_cut_into_three_by_speaker(real_data):
    found = made(LibriSpeech(), real_data / "librispeech")
    assert Counter(split for split, _ in found) == {"train": 30, "validation": 10, "test": 10}
    speakers = Counter((split, sample["json"]["speaker"]) for split, sample in found)
    assert len(speakers) == 5
    assert set(speakers.values()) == {10}
    samples = {sample["__key__"]: sample for _, sample in found}
    original = real_data / "librispeech/LibriSpeech/test-other/1688/142285/1688-142285-0009.flac"
    assert samples["1688-142285-0009"]["flac"] == original.read_bytes()
    assert samples["1688-142285-0009"]["txt"] == "WHY IT MIGHT HAVE BEEN IN THE WORKHOUSE"


def test_the_real_untranscribed_copy_comes_without_text(real_data):
    found = made(LibriSpeech(), real_data / "librispeech_untranscribed")
    assert Counter(split for split, _ in found) == {"train": 153, "validation": 19, "test": 19}
    assert all(sample.keys() == {"__key__", "ogg", "json"} for _, sample in found)
    assert len({sample["json"]["speaker"] for _, sample in found}) == 191
