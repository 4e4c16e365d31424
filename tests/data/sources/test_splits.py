import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmflow.data.sources.items import Item
from mmflow.data.sources.splits import complete, cut


def recordings(**speakers_by_split: dict[str, int]) -> list[Item]:
    return [
        Item(f"{speaker}-{i}", split, speaker)
        for split, speakers in speakers_by_split.items()
        for speaker, count in speakers.items()
        for i in range(count)
    ]


def parts(found: list[Item]) -> dict[str, set[str]]:
    return {split: {r.group for r in found if r.split == split} for split in ("train", "validation", "test")}


def test_original_splits_stay_as_they_are_and_nothing_is_logged(caplog):
    given_splits = recordings(test={"c": 1}, train={"b": 2, "a": 1}, validation={"d": 1})
    found = complete(given_splits, "set")
    assert [(r.split, r.key) for r in found] == [
        ("train", "a-0"),
        ("train", "b-0"),
        ("train", "b-1"),
        ("validation", "d-0"),
        ("test", "c-0"),
    ]
    assert not caplog.records


def test_a_lone_test_part_of_ten_speakers_gives_eight_one_one(caplog):
    with caplog.at_level(logging.WARNING):
        found = complete(recordings(test={f"s{i}": 3 for i in range(10)}), "set")
    speakers = parts(found)
    assert {split: len(names) for split, names in speakers.items()} == {"train": 8, "validation": 1, "test": 1}
    assert not speakers["train"] & speakers["validation"]
    assert [r.message for r in caplog.records] == [
        "set has no part for train and validation; its part for test (30 utterances, 10 speakers) is cut by speaker: "
        "train 24, validation 3, test 3"
    ]


def test_a_missing_validation_part_comes_out_of_train_and_the_test_part_is_left_alone():
    found = complete(recordings(train={f"s{i}": 2 for i in range(20)}, test={"t": 5}), "set")
    speakers = parts(found)
    assert (len(speakers["train"]), len(speakers["validation"]), speakers["test"]) == (18, 2, {"t"})


def test_without_train_the_validation_part_becomes_train_and_keeps_a_tenth():
    found = complete(recordings(validation={f"s{i}": 2 for i in range(20)}, test={"t": 5}), "set")
    speakers = parts(found)
    assert (len(speakers["train"]), len(speakers["validation"]), speakers["test"]) == (18, 2, {"t"})


def test_one_speaker_is_cut_by_utterance(caplog):
    found = complete(recordings(train={"LJ": 20}), "set")
    assert Counter(r.split for r in found) == {"train": 16, "validation": 2, "test": 2}
    assert "cut by utterance, the same speakers in all parts" in caplog.text


def test_the_cut_depends_on_the_names_only():
    wide = complete(recordings(train={f"s{i}": 1 for i in range(50)}), "set")
    reversed_ = complete(recordings(train={f"s{i}": 1 for i in reversed(range(50))}), "set")
    assert wide == reversed_
    assert parts(wide)["validation"] == {"s39", "s23", "s25", "s7", "s8"}  # least SHA-256


def test_a_dominant_speaker_stays_in_train():
    found = complete(recordings(train={"big": 500, "a": 3, "b": 3, "c": 3}), "set")
    assert parts(found)["train"] == {"big"}


def test_a_single_recording_is_for_training():
    assert [r.split for r in complete(recordings(train={"a": 1}), "set")] == ["train"]


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 20), min_size=3, max_size=40))
def test_every_split_gets_a_group_and_every_group_one_split(sizes):
    place = cut([name for name, size in sizes.items() for _ in range(size)], ["validation", "test"])
    assert place.keys() == sizes.keys()
    assert set(place.values()) == {"train", "validation", "test"}


@pytest.mark.parametrize("held_out", [["validation"], ["validation", "test"]])
def test_equal_groups_give_a_tenth_each(held_out):
    counts = Counter(cut([str(i) for i in range(1000)], held_out).values())
    assert all(counts[split] == 100 for split in held_out)
