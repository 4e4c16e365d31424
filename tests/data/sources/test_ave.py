from collections import Counter

import pytest

from mmflow.data.sources.ave import AVE, Event, read_events
from mmflow.data.sources.layout import LeftOut
from tests.data.sources.made import made

LINES = [
    "Church bell&__aaaaaaaa1&good&0&10",
    "Male speech, man speaking&bbbbbbbbbb2&good&6&8",
    "Bark&ccccccccc-3&good&0&0",
    "Female speech, woman speaking&bbbbbbbbbb2&good&1&3",
    "Church bell&dddddddddd4&good&2&10",
]


@pytest.fixture
def ave(put, tmp_path):
    put("AVE_Dataset/Annotations.txt", "Category&VideoID&Quality&StartTime&EndTime\n" + "\r\n".join(LINES))
    for line in LINES:
        put(f"AVE_Dataset/AVE/{line.split('&')[1]}.mp4", line.split("&")[1])
    return tmp_path / "AVE_Dataset"


@pytest.fixture
def listed(ave, put):
    put("AVE_Dataset/trainSet.txt", "\n".join(LINES[:2]))
    put("AVE_Dataset/valSet.txt", LINES[2] + "\n")
    put("AVE_Dataset/testSet.txt", "\n".join(LINES[3:]))
    return ave


def test_a_sample_is_a_line_and_its_video(listed):
    found = made(AVE(), listed)
    assert Counter(split for split, _ in found) == {"train": 2, "validation": 1, "test": 2}
    assert found[1] == (
        "train",
        {
            "__key__": "0001_bbbbbbbbbb2",
            "mp4": b"bbbbbbbbbb2",
            "json": {
                "label": 1,
                "class": "Male speech, man speaking",
                "events": [[6, 8, "Male speech, man speaking"]],
                "video": "bbbbbbbbbb2",
                "quality": "good",
            },
        },
    )


def test_labels_count_the_classes_in_the_order_of_the_file(listed):
    assert [sample["json"]["label"] for _, sample in made(AVE(), listed)] == [0, 1, 2, 3, 0]


def test_an_event_without_length_is_none(listed):
    assert {s["__key__"]: s["json"]["events"] for _, s in made(AVE(), listed)}["0002_ccccccccc-3"] == []


def test_a_video_in_two_lists_is_said(listed, caplog):
    made(AVE(), listed)
    assert "AVE: 1 videos are in more than one part, as the lists have it, first: bbbbbbbbbb2" in caplog.text


def test_without_lists_the_lines_of_a_video_stay_together(ave, caplog):
    found = made(AVE(), ave / "AVE")
    assert {split for split, _ in found} == {"train", "validation", "test"}
    assert len({split for split, sample in found if sample["json"]["video"] == "bbbbbbbbbb2"}) == 1
    assert "AVE has no part for validation and test; its part for train (5 clips, 4 videos) is cut by" in caplog.text


def test_a_line_without_its_video_is_counted(listed, caplog):
    (listed / "AVE" / "dddddddddd4.mp4").rename(listed / "AVE" / "dddddddddd4.mp4.part")
    assert len(made(AVE(), listed)) == 4
    assert "1 x line of Annotations.txt without its video, first: dddddddddd4" in caplog.text


def test_a_line_in_no_list_is_counted(listed, put, caplog):
    put("AVE_Dataset/testSet.txt", LINES[3])
    assert len(made(AVE(), listed)) == 4
    assert "1 x line of Annotations.txt that is in none of trainSet.txt, valSet.txt, testSet.txt" in caplog.text


def test_names_in_the_annotations_never_lead_out_of_the_folder(ave, put, caplog):
    put("secret.mp4", "secret")
    put("AVE_Dataset/Annotations.txt", "Bark&../../secret&good&0&10\nBark&bbbbbbbbbb2&good&0&10")
    assert [sample["mp4"] for _, sample in made(AVE(), ave)] == [b"bbbbbbbbbb2"]
    assert "without its video, first: ../../secret" in caplog.text


def test_lines_of_another_form_are_counted_and_keep_their_row(put):
    left_out = LeftOut("AVE")
    path = put("a.txt", "Bark&a&good&0&11\nBark&b&good&5&4\nBark&c&good&0\nBark&d&good&0.5&1\nBark&e&bad&0&10")
    assert read_events(path, left_out) == [Event(4, "Bark", "e", "bad", 0, 10)]
    assert list(left_out.counts.values()) == [4]


def test_other_containers_are_taken_and_a_second_video_is_counted(listed, put, caplog):
    put("AVE_Dataset/AVE/more/bbbbbbbbbb2.webm", "again")
    (listed / "AVE" / "dddddddddd4.mp4").rename(listed / "AVE" / "dddddddddd4.MKV")
    samples = {sample["__key__"]: sample for _, sample in made(AVE(), listed)}
    assert samples["0004_dddddddddd4"]["mkv"] == b"dddddddddd4"
    assert samples["0001_bbbbbbbbbb2"]["mp4"] == b"bbbbbbbbbb2"
    assert "1 x second video of the same name" in caplog.text


def test_no_video_at_all_is_an_error(real_data):
    with pytest.raises(ValueError, match=r"no line of Annotations\.txt has its video; expected Annotations\.txt and a"):
        made(AVE(), real_data / "ave")


def test_a_folder_without_annotations_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold Annotations\.txt and a folder AVE"):
        made(AVE(), tmp_path)


def test_the_real_annotations_are_read_to_the_last_line(real_data):
    left_out = LeftOut("AVE")
    events = read_events(real_data / "ave" / "Annotations.txt", left_out)
    assert not left_out.counts
    assert [event.row for event in events] == list(range(4143))
    assert events[1] == Event(1, "Church bell", "MH3m4AwEcRY", "good", 6, 8)
    classes = list(dict.fromkeys(event.category for event in events))
    assert len(classes) == 28
    assert [classes.index(name) for name in ("Church bell", "Bark", "Frying (food)", "Mandolin")] == [0, 2, 10, 27]
    seconds = sum(event.end - event.start for event in events)
    assert round(1 - seconds / 41430, 3) == 0.171  # share of background


def test_every_line_of_the_real_annotations_gives_a_sample_that_a_shard_takes(real_data, put, tmp_path):
    put("Annotations.txt", (real_data / "ave" / "Annotations.txt").read_bytes())
    for event in read_events(tmp_path / "Annotations.txt", LeftOut("AVE"))[::40]:
        put(f"AVE/{event.video}.mp4")
    found = made(AVE(), tmp_path)
    assert len(found) >= 104
    assert len({sample["__key__"] for _, sample in found}) == len(found)
