from collections import Counter

import pytest

from mmflow.data.sources.esc50 import ESC50
from tests.data.sources.made import made

HEADER = "filename,fold,target,category,esc10,src_file,take"


@pytest.fixture
def esc(put, tmp_path, audio_bytes):
    wav = audio_bytes("WAV")
    lines = [HEADER]
    for fold in range(1, 6):
        for take in "AB":
            name = f"{fold}-10{fold}-{take}-7.wav"
            put(f"ESC-50-master/audio/{name}", wav)
            lines.append(f"{name},{fold},7,rooster,False,10{fold},{take}")
    put("ESC-50-master/meta/esc50.csv", "\r\n".join(lines))
    return tmp_path / "ESC-50-master"


def folds(esc, **options):
    """split -> folds in it."""
    found = made(ESC50(**options), esc)
    return {split: {s["json"]["fold"] for at, s in found if at == split} for split, _ in found}


def test_folds_make_the_splits(esc):
    assert folds(esc) == {"train": {1, 2, 3}, "validation": {4}, "test": {5}}
    assert folds(esc, validation_folds=[1], test_folds=[3, 2]) == {"train": {4, 5}, "validation": {1}, "test": {2, 3}}


def test_a_sample_is_the_file_and_its_line(esc, audio_bytes):
    assert made(ESC50(), esc / "audio")[0] == (
        "train",
        {
            "__key__": "1-101-A-7",
            "wav": audio_bytes("WAV"),
            "json": {"label": 7, "class": "rooster", "fold": 1, "recording": "101", "take": "A"},
        },
    )


def test_without_folds_for_validation_they_are_cut_out_by_recording(esc, caplog):
    found = made(ESC50(validation_folds=[]), esc)
    held = {s["json"]["recording"] for split, s in found if split == "validation"}
    assert len(held) == 1
    assert not held & {s["json"]["recording"] for split, s in found if split != "validation"}
    assert "ESC-50 has no part for validation; its part for train (8 clips, 4 recordings) is cut by" in caplog.text


def test_the_extension_is_that_of_the_bytes(esc, put, audio_bytes):
    put("ESC-50-master/audio/1-101-A-7.wav", audio_bytes("FLAC"))
    samples = {sample["__key__"]: sample for _, sample in made(ESC50(), esc)}
    assert samples["1-101-A-7"].keys() == {"__key__", "flac", "json"}
    assert samples["1-101-B-7"].keys() == {"__key__", "wav", "json"}


def test_lines_and_files_without_their_other_half_are_counted(esc, put, caplog):
    lines = ["1-101-A-7.wav,1,7,rooster,False,101,A"] * 2
    lines += ["../1-101-B-7.wav,1,7,rooster,False,101,B", "1-101-B-7.wav,6,7,rooster,False,101,B"]
    put("ESC-50-master/meta/esc50.csv", "\n".join([HEADER, *lines, "2-102-A-7.wav,2,rooster"]))
    assert [sample["__key__"] for _, sample in made(ESC50(), esc)] == ["1-101-A-7"]
    for reason in (
        "1 x second line for the same sound",
        "1 x line of meta/esc50.csv without its sound, first: ../1-101-B-7.wav",
        "2 x line without a fold from 1 to 5 and the number of a class",
        "9 x sound without a line in meta/esc50.csv, first: 1-101-B-7.wav",
    ):
        assert reason in caplog.text


@pytest.mark.parametrize("options", [{"validation_folds": [5]}, {"test_folds": [6]}, {"test_folds": [1, 1]}])
def test_folds_that_are_not_there_or_in_two_splits_are_an_error(options):
    with pytest.raises(ValueError, match=r"validation_folds=.* must be different numbers from 1 to 5"):
        ESC50(**options)


def test_a_table_without_a_column_is_an_error(esc, put):
    put("ESC-50-master/meta/esc50.csv", "filename,fold\n1-101-A-7.wav,1")
    with pytest.raises(ValueError, match=r"has the columns filename, fold and lacks target, category, src_file, take"):
        made(ESC50(), esc)


def test_a_table_that_names_no_file_is_an_error(esc, put):
    put("ESC-50-master/meta/esc50.csv", f"{HEADER}\nx.wav,1,7,rooster,False,101,A")
    with pytest.raises(ValueError, match=r"no line of meta/esc50\.csv has its sound; expected meta/esc50\.csv and a"):
        made(ESC50(), esc)


def test_a_folder_with_another_layout_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold meta/esc50\.csv and a folder audio"):
        made(ESC50(), tmp_path)


def test_the_real_copy_has_four_folds_of_80_clips_in_10_classes(real_data, caplog):
    found = made(ESC50(validation_folds=[3], test_folds=[4]), real_data / "ESC-10")
    assert Counter(split for split, _ in found) == {"train": 160, "validation": 80, "test": 80}
    assert not caplog.records
    assert set(Counter(sample["json"]["label"] for _, sample in found).values()) == {32}
    classes = {sample["json"]["label"]: sample["json"]["class"] for _, sample in found}
    assert classes[0] == "dog"
    assert classes[41] == "chainsaw"
    sample = {sample["__key__"]: sample for _, sample in found}["1-100032-A-0"]
    assert sample["ogg"] == (real_data / "ESC-10/audio/1-100032-A-0.ogg").read_bytes()
    assert sample["json"] == {"label": 0, "class": "dog", "fold": 1, "recording": "100032", "take": "A"}


def test_with_the_usual_folds_the_test_part_of_the_real_copy_is_cut_out_of_train(real_data):
    found = made(ESC50(), real_data / "ESC-10")
    counts = Counter(split for split, _ in found)
    assert counts["validation"] == 80
    assert counts["train"] + counts["test"] == 240
    assert 12 <= counts["test"] <= 36  # about a tenth of 240, by recording
    recordings = {split: {s["json"]["recording"] for at, s in found if at == split} for split in counts}
    assert not recordings["train"] & recordings["test"]
