from collections import Counter

import pytest

from mmflow.data.sources.audio_folder import AudioFolder
from tests.data.sources.made import made


def samples(root):
    return {sample["json"]["path"]: (split, sample) for split, sample in made(AudioFolder(), root)}


def test_text_beside_the_audio_is_taken_on_one_line_and_may_be_absent(put, tmp_path, caplog):
    put("a.wav")
    put("a.txt", "\ufeff hello\r\nworld \n")
    put("b.wav")
    put("c.wav")
    put("c.txt", "\n")
    put("d.wav")
    put("d.txt", bytes(range(256)))
    found = samples(tmp_path)
    assert {path: sample.get("txt") for path, (_, sample) in found.items()} == {
        "a.wav": "hello world",
        "b.wav": None,
        "c.wav": None,
        "d.wav": None,
    }
    for reason in ("without a .txt, kept without text", "empty text", "text that is not UTF-8"):
        assert f"1 x {reason}" in caplog.text or f"1 x audio file {reason}" in caplog.text


def test_the_first_branching_folders_are_the_speakers(put, tmp_path):
    for speaker in "abcdefghij":
        for i in range(3):
            put(f"data/audio/{speaker}/chapter/{i}.flac")
    found = samples(tmp_path)
    assert Counter(split for split, _ in found.values()) == {"train": 24, "validation": 3, "test": 3}
    assert found["data/audio/c/chapter/1.flac"][1] == {
        "__key__": "data-audio-c-chapter-1",
        "flac": b"audio",
        "json": {"speaker": "c", "path": "data/audio/c/chapter/1.flac"},
    }


def test_folders_named_for_splits_are_kept(put, tmp_path, caplog):
    for split in ("train", "dev", "test"):
        put(f"mine/{split}/{split}speaker/a.wav")
        put(f"mine/{split}/{split}speaker/a.txt", "hi")
    found = samples(tmp_path / "mine")
    assert {path: (split, sample["json"]["speaker"]) for path, (split, sample) in found.items()} == {
        "train/trainspeaker/a.wav": ("train", "trainspeaker"),
        "dev/devspeaker/a.wav": ("validation", "devspeaker"),
        "test/testspeaker/a.wav": ("test", "testspeaker"),
    }
    assert not caplog.records


def test_keys_are_unique_and_free_of_dots_and_slashes(put, tmp_path):
    names = ["a/b.wav", "a-b.wav", "x.wav", "x.flac", "My file (1).v2.wav", "__init.wav", "höhe.wav", "....wav"]
    for name in names:
        put(name)
    found = samples(tmp_path)
    keys = {path: sample["__key__"] for path, (_, sample) in found.items()}
    assert keys["My file (1).v2.wav"] == "My_file__1__v2"
    assert keys["__init.wav"] == "init"
    assert keys["höhe.wav"] == "höhe"
    assert keys["x.wav"].startswith("x-")
    assert len(set(keys.values())) == len(keys) == 7  # the hidden one is passed over
    assert not any(set("./") & set(key) for key in keys.values())


def test_keys_of_long_paths_fit_a_plain_tar(put, tmp_path):
    for folder in ("a", "b"):
        put(f"{folder}/{'深い' * 20}/{'x' * 120}.flac")
    keys = {sample["__key__"] for _, sample in samples(tmp_path).values()}
    assert len(keys) == 2
    assert {len(key) for key in keys} == {51}


def test_a_folder_without_audio_is_an_error(put, tmp_path):
    put("readme.txt")
    with pytest.raises(ValueError, match=r"holds no audio files; expected names that end in \.wav, \.flac"):
        samples(tmp_path)


def test_a_root_that_is_no_folder_is_an_error(put):
    with pytest.raises(ValueError, match=r"a\.wav is not a folder"):
        samples(put("a.wav"))


def test_the_real_recording_with_its_text(real_data):
    (found,) = made(AudioFolder(), real_data / "jfk")
    split, sample = found
    assert (split, sample["__key__"], len(sample["flac"])) == ("train", "jfk", 1_152_693)
    assert sample["txt"].startswith("And so my fellow Americans, ask not")


def test_all_odd_files_pass_through_bit_for_bit_under_their_true_extension(real_data):
    folder = real_data / "odd" / "audio"
    found = samples(folder)
    assert sorted(found) == sorted(path.name for path in folder.iterdir())
    extensions = {}
    for name, (_, sample) in found.items():
        (extension,) = sample.keys() - {"__key__", "json"}
        assert sample[extension] == (folder / name).read_bytes()
        extensions[name] = extension
    assert Counter(extensions.values()) == {"wav": 17, "flac": 4, "mp3": 2, "ogg": 1, "opus": 1, "m4a": 1, "aiff": 1}
    assert extensions["flac_named.wav"] == "flac"
    assert extensions["empty.wav"] == "wav"
