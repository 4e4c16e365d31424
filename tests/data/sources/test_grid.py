from collections import Counter

import pytest

from mmflow.data.sources.grid import Grid, read_alignment, sentence
from mmflow.data.sources.layout import LeftOut
from tests.data.sources.made import made

ALIGNMENT = "0 12500 sil\n12500 25000 bin\n25000 30000 sp\n30000 35000 blue\n35000 74500 sil\n"


@pytest.fixture
def grid(put, tmp_path):
    for speaker in ("s1", "s2", "s34"):
        for code in ("bbaf2n", "lgwz9a"):
            put(f"grid/{speaker}/video/mpg_6000/{code}.mpg", f"{speaker} {code}")
    put("grid/alignments/s2/align/bbaf2n.align", ALIGNMENT)
    return tmp_path / "grid"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("bbaf2n", "bin blue at f two now"),
        ("lgbzzs", "lay green by z zero soon"),
        ("prix1p", "place red in x one please"),
        ("swwa9a", "set white with a nine again"),
        ("bbaw2n", None),  # there is no letter w
        ("bbaf0n", None),
        ("bbaf2", None),
        ("bbaf2nn", None),
        ("BBAF2N", None),
    ],
)
def test_six_letters_spell_a_sentence(code, text):
    assert sentence(code) == text


def test_speakers_are_the_splits(grid, caplog):
    found = made(Grid(), grid)
    assert Counter(split for split, _ in found) == {"train": 2, "validation": 2, "test": 2}
    assert all(len({s["json"]["speaker"] for at, s in found if at == split}) == 1 for split, _ in found)
    samples = {sample["__key__"]: sample for _, sample in found}
    assert samples["s34-lgwz9a"] == {
        "__key__": "s34-lgwz9a",
        "mpg": b"s34 lgwz9a",
        "txt": "lay green with z nine again",
        "json": {"speaker": "s34"},
    }


def test_an_alignment_gives_words_with_their_seconds_and_the_text(grid):
    samples = {sample["__key__"]: sample for _, sample in made(Grid(), grid)}
    assert samples["s2-bbaf2n"]["json"]["words"] == [[0.5, 1.0, "bin"], [1.2, 1.4, "blue"]]
    assert samples["s2-bbaf2n"]["txt"] == "bin blue"
    assert "words" not in samples["s1-bbaf2n"]["json"]


def test_a_transcript_comes_before_alignment_and_letters(grid, put):
    put("grid/transcripts.csv", "file,transcript\ns2/video/mpg_6000/bbaf2n.mpg,bin blue at f three\n../x.mpg,secret")
    texts = {sample["__key__"]: sample["txt"] for _, sample in made(Grid(), grid)}
    assert texts["s2-bbaf2n"] == "bin blue at f three"
    assert texts["s1-bbaf2n"] == "bin blue at f two now"


def test_the_folder_of_one_speaker_may_be_named(grid):
    assert {sample["__key__"] for _, sample in made(Grid(), grid / "s34")} == {"s34-bbaf2n", "s34-lgwz9a"}


def test_what_cannot_be_used_is_counted(grid, put, caplog):
    put("grid/s1/intro.mpg")
    put("grid/s1/video/mpg_vcd/bbaf2n.mpg")
    put("grid/alignments/s9/bbaf2n.align", "0 a bin\n5 5 blue\n0 1")
    assert len(made(Grid(), grid)) == 6
    for reason in (
        "1 x video not named by six letters such as bbaf2n",
        "1 x second video of the same speaker and name",
        "1 x alignment without its video, first: s9-bbaf2n",
        "3 x line of an alignment that is not `start end word`, first: bbaf2n.align: 0 a bin",
    ):
        assert reason in caplog.text


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no video that can be used; expected videos named by their six letters"):
        made(Grid(), tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none is not a folder; expected one with videos"):
        made(Grid(), tmp_path / "none")


def test_the_letters_spell_the_real_transcripts(real_data):
    lines = (real_data / "grid_av/transcripts.csv").read_text().splitlines()[1:]
    assert len(lines) == 7
    for line in lines:
        file, text = line.split(",")
        assert sentence(file[len("video/") : -len(".mpg")]) == text


def test_the_real_alignment_has_six_words(real_data):
    left_out = LeftOut("GRID")
    words = read_alignment(real_data / "grid_av/align/swwp2s.align", left_out)
    assert [word for *_, word in words] == ["set", "white", "with", "p", "two", "soon"]
    assert words[0] == [0.49, 0.77, "set"]  # 12250 to 19250 of 25000 in a second
    assert words[-1][1] == 2.21
    assert not left_out.counts


def test_the_real_copy_has_seven_clips(real_data, caplog):
    found = made(Grid(), real_data / "grid_av")
    assert Counter(split for split, _ in found) == {"train": 5, "validation": 1, "test": 1}
    samples = {sample["__key__"]: sample for _, sample in found}
    assert samples["unknown-lrwp9a"]["txt"] == "lay red with p nine again"
    assert samples["unknown-lrwp9a"]["mpg"] == (real_data / "grid_av/video/lrwp9a.mpg").read_bytes()
    assert [key for key, sample in samples.items() if "words" in sample["json"]] == ["unknown-swwp2s"]
    assert "cut by utterance, the same speakers in all parts" in caplog.text
