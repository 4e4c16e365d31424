import io
from collections import Counter

import pytest
from PIL import Image

from mmflow.data.make import make
from mmflow.data.sources.avsbench import AVSBench
from mmflow.data.spec import DataSpec
from tests.data.sources.made import made

S4, MS3 = "Single-source/s4_data", "Multi-sources/ms3_data"


def picture(shade: int) -> bytes:
    """A PNG of 8 x 8 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def s4(put, tmp_path, audio_bytes):
    lines = ["name,start,category,split"]
    for split, category, name, masks in [
        ("train", "dog_barking", "__abc_1", 1),
        ("train", "cat_meowing", "__abc_1", 1),
        ("val", "dog_barking", "def_2", 5),
        ("test", "helicopter", "ghi_3", 5),
    ]:
        lines.append(f"{name},3,{category},{split}")
        place = f"{split}/{category}/{name}"
        for i in range(1, 6):
            put(f"{S4}/visual_frames/{place}/{name}_{i}.png", picture(i))
        for i in range(1, masks + 1):
            put(f"{S4}/gt_masks/{place}/{name}_{i}.png", picture(100 + i))
        put(f"{S4}/audio_wav/{place}.wav", audio_bytes("WAV"))
        put(f"{S4}/audio_log_mel/{place}.pkl", b"\x80\x04.")
    put("Single-source/s4_meta_data.csv", "\n".join(lines))
    return tmp_path / "Single-source"


@pytest.fixture
def ms3(put, tmp_path, audio_bytes):
    for split, name in [("train", "a_1"), ("val", "b_2"), ("test", "c_3")]:
        for i in range(1, 6):
            put(f"{MS3}/visual_frames/{name}/{name}.mp4_{i}.png", picture(i))
            put(f"{MS3}/gt_masks/{split}/{name}/{name}_{i}.png", picture(100 + i))
        put(f"{MS3}/audio_wav/{split}/{name}.wav", audio_bytes("WAV"))
    put("Multi-sources/ms3_meta_data.csv", "name,split\na_1,train\nb_2,val\nc_3,test")
    return tmp_path / "Multi-sources"


def members(name: str, count: int, first: int) -> dict[str, bytes]:
    return {name.format(t): picture(first + t) for t in range(count)}


def test_a_train_clip_of_s4_has_five_frames_one_mask_and_its_sound(s4, audio_bytes):
    found = made(AVSBench("s4"), s4)
    assert Counter(split for split, _ in found) == {"train": 2, "validation": 1, "test": 1}
    assert found[1] == (
        "train",
        {
            "__key__": "dog_barking-__abc_1",
            **members("{}.png", 5, 1),
            "0.mask.png": picture(101),
            "wav": audio_bytes("WAV"),
            "json": {"video": "__abc_1", "label": 1, "class": "dog_barking"},
        },
    )


def test_a_test_clip_of_s4_has_five_masks(s4):
    *_, (split, sample) = made(AVSBench("s4"), s4.parent / S4)
    assert split == "test"
    assert {e: data for e, data in sample.items() if "mask" in e} == members("{}.mask.png", 5, 101)


def test_ms3_has_five_masks_everywhere_and_no_class(ms3, audio_bytes):
    found = made(AVSBench("ms3"), ms3)
    assert [split for split, _ in found] == ["train", "validation", "test"]
    assert found[0][1] == {
        "__key__": "ms3-a_1",
        **members("{}.png", 5, 1),
        **members("{}.mask.png", 5, 101),
        "wav": audio_bytes("WAV"),
        "json": {"video": "a_1"},
    }


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_the_shards_are_made_as_the_spec_of_the_project_says(subset, s4, ms3, request, tmp_path):
    spec = DataSpec.read(request.config.rootpath / f"data_specs/avsbench_{subset}.yaml")
    counts = make(spec, s4 if subset == "s4" else ms3, tmp_path / "out")
    assert counts == {"train": 2 if subset == "s4" else 1, "validation": 1, "test": 1}


def test_a_clip_without_frames_or_sound_is_taken_as_its_video(ms3, put):
    put(f"{MS3}/raw_videos/a_1.mp4", "video a")
    put(f"{MS3}/raw_videos/b_2.mp4", "video b")
    put(f"{MS3}/raw_videos/c_3.mp4", "video c")
    for path in (ms3.parent / MS3 / "visual_frames" / "a_1").iterdir():
        path.unlink()
    (ms3.parent / MS3 / "audio_wav/val/b_2.wav").unlink()
    without_frames, without_sound, whole = (sample for _, sample in made(AVSBench("ms3"), ms3))
    assert without_frames.keys() == {"__key__", *members("{}.mask.png", 5, 0), "wav", "mp4", "json"}
    assert without_frames["mp4"] == b"video a"
    assert without_sound.keys() == {"__key__", *members("{}.mask.png", 5, 0), *members("{}.png", 5, 0), "mp4", "json"}
    assert "mp4" not in whole


def test_pickles_are_never_read_and_the_error_says_what_is_needed(s4, put):
    for path in (s4.parent / S4 / "audio_wav").rglob("*.wav"):
        path.unlink()
    put(f"{S4}/audio_log_mel/train/dog_barking/__abc_1.pkl", b"cos\nsystem\n(S'touch ran'\ntR.")
    says = (
        r"no clip is whole \(4 x clip whose sound is there only as a pickle in audio_log_mel, which could run code and "
        r"is never read; get the \.wav in audio_wav, or the \.mp4 in raw_videos\)"
    )
    with pytest.raises(ValueError, match=says):
        made(AVSBench("s4"), s4)


def test_clips_that_are_not_whole_are_counted(ms3, put, caplog):
    lines = ["a_1,train", "a_1,train", "b_2,dev", "c_3,train", "d,test", "../../secret,test"]
    put("Multi-sources/ms3_meta_data.csv", "\n".join(["name,split", *lines]))
    put(f"{MS3}/gt_masks/test/d/d_1.png", picture(1))
    put(f"{MS3}/gt_masks/train/a_1/cover.png", picture(1))
    put("secret/secret_1.png", picture(1))
    assert [sample["__key__"] for _, sample in made(AVSBench("ms3"), ms3)] == ["ms3-a_1"]
    for reason in (
        "1 x second line for the same clip, first: ms3-a_1",
        "1 x line whose split is not train, val or test",
        "2 x clip without masks in gt_masks, first: train/c_3",
        "1 x clip without frames in visual_frames and without its video in raw_videos, first: test/d",
        "picture whose name does not end in the number of a frame",
    ):
        assert reason in caplog.text


def test_a_frame_that_is_no_picture_is_left_out(ms3, put, caplog):
    put(f"{MS3}/visual_frames/a_1/a_1.mp4_2.png", "<html>")
    sample = made(AVSBench("ms3"), ms3)[0][1]
    assert {"0.png", "2.png"} <= sample.keys()
    assert "1.png" not in sample
    assert "1 x file that is no JPEG, PNG or WebP" in caplog.text


def test_the_other_subset_is_another_data_set(s4):
    with pytest.raises(ValueError, match=r"does not hold ms3_meta_data\.csv beside ms3_data"):
        made(AVSBench("ms3"), s4)
