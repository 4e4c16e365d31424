import io
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from mmflow.world import espeak, language, speech
from mmflow.world.language import read, score
from mmflow.world.scene import SPLITS, Scene
from mmflow.world.spoken import LANGUAGES, WorldSpokenCaptions


@pytest.fixture(scope="module")
def samples():
    """Two of each language and split, and one long caption of each language."""
    source = WorldSpokenCaptions(seconds=2.0)
    short = [(split, source.sample(split, number)) for split in SPLITS for number in range(2 * len(LANGUAGES))]
    long = WorldSpokenCaptions(long_share=1.0, things=(2, 3))
    return short + [("train", long.sample("train", number)) for number in range(len(LANGUAGES))]


def audio(sample):
    return soundfile.read(io.BytesIO(sample["flac"]))[0]


def test_items_are_the_samples_split_by_split():
    items = WorldSpokenCaptions(3, 1, 2, seed=5).items()
    assert [item.key for item in items] == [
        "train-000000", "train-000001", "train-000002", "validation-000000", "test-000000", "test-000001"
    ]  # fmt: skip
    once, again = items[1].sample(), WorldSpokenCaptions(2, 0, 0, seed=5).items()[1].sample()
    assert once == again
    assert set(once) == {"__key__", "flac", "txt", "json"}
    assert WorldSpokenCaptions(seed=6).sample("train", 1)["txt"] != once["txt"]


def test_sizes_are_about_right(samples):
    assert np.mean([len(s["flac"]) for _, s in samples[: -len(LANGUAGES)]]) == pytest.approx(
        WorldSpokenCaptions().items()[0].size, rel=0.3
    )


def test_languages_take_turns(samples):
    assert len(LANGUAGES) == 6
    assert Counter(sample["json"]["language"] for _, sample in samples) == dict.fromkeys(LANGUAGES, 7)
    assert [WorldSpokenCaptions(languages=["fr", "de"]).sample("test", n)["json"]["language"] for n in (0, 1, 2)] == [
        "fr", "de", "fr"
    ]  # fmt: skip


def test_captions_and_translations_are_true_of_the_scene(samples):
    for _, sample in samples:
        told = sample["json"]
        scene = Scene.from_json(told["scene"])
        for text, name in ((sample["txt"], told["language"]), (told["translation"], "en")):
            result = score(text, scene, name)
            assert (result["right"], result["invented"], result["unknown"]) == (1, 0, []), text
        assert len(read(sample["txt"], told["language"]).things) == len(read(told["translation"]).things)
        assert (sample["txt"] == told["translation"]) == (told["language"] == "en")


def test_words_are_the_text_in_order_and_phones_fill_the_audio(samples):
    for _, sample in samples:
        told = sample["json"]
        said = " ".join(word for _, _, word in told["words"])
        assert re.sub("[.,]", "", said) == re.sub("[.,]", "", sample["txt"])
        assert told["phones"][0][0] == 0
        assert told["phones"][-1][1] == pytest.approx(len(audio(sample)) / 16_000, abs=1e-4)
        assert all(one[1] == two[0] for one, two in pairwise(told["phones"]))
        assert told["phones"][0][2] == told["phones"][-1][2] == "SIL"
        assert {start for start, *_ in told["words"]} <= {start for start, *_ in told["phones"]}


def test_speech_is_as_loud_and_fast_as_people_speak(samples):
    for _, sample in samples:
        level_db = 20 * np.log10(np.std(audio(sample)))
        assert -33 < level_db < -17
        assert np.abs(audio(sample)).max() < 0.96
        phones = sample["json"]["phones"]
        seconds = phones[-1][0] - phones[0][1]
        assert 2 < len(sample["txt"].split()) / seconds < 10
        assert 9 < len(phones) / seconds < 24


def test_speech_stands_out_from_silence(samples):
    for _, sample in samples:
        wav = audio(sample)
        phones = sample["json"]["phones"]
        first = wav[: round(16_000 * phones[0][1])]
        speech_part = wav[round(16_000 * phones[0][1]) : round(16_000 * phones[-1][0])]
        assert np.std(speech_part) > 5 * np.std(first)


def test_voices_of_a_split_are_in_no_other(samples):
    seen = {
        split: {(s["json"]["speaker"], s["json"]["variant"]) for part, s in samples if part == split}
        for split in SPLITS
    }
    for one, two in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not {variant for _, variant in seen[one]} & {variant for _, variant in seen[two]}
    assert all(name.startswith(split) for split in SPLITS for name, _ in seen[split])
    few = WorldSpokenCaptions(voices={"test": 1})
    assert {few.sample("test", number)["json"]["speaker"] for number in range(4)} == {"test000"}


def test_unseen_tells_pairs_and_sentences_that_training_never_has():
    source = WorldSpokenCaptions(languages=["en"])
    for split in SPLITS:
        told = [source.sample(split, number)["json"] for number in range(24)]
        assert all(one["unseen"] for one in told if one["scene"]["unseen"])
        assert any(one["unseen"] for one in told) == (split != "train")
        assert not all(one["unseen"] for one in told)


def test_every_language_of_captions_has_a_voice():
    assert set(LANGUAGES) == set(language.LANGUAGES)
    for name in LANGUAGES:
        for accent in espeak.VOICES[name]:
            spoken = espeak.speak(" ".join(language.words(name)), accent, espeak.variant("f2"))
            assert len(spoken.words) > 0.8 * len(language.words(name))


def test_the_spec_names_this_source_and_its_arguments():
    spec = yaml.safe_load((Path(__file__).parents[2] / "data_specs" / "world_spoken.yaml").read_text())
    assert spec["make"]["class_path"] == "mmflow.world.spoken.WorldSpokenCaptions"
    source = WorldSpokenCaptions(**spec["make"]["init_args"])
    assert source.counts == {"train": 2000, "validation": 200, "test": 200}
    assert source.voices == speech.SPEAKERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": -1}, "train=-1 must be in 0..10,000,000"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"languages": ["en", "xx"]}, r"languages=\['en', 'xx'\] must be one or more of en, de, fr, es, it, nl"),
        ({"languages": []}, r"languages=\[\] must be one or more of"),
        ({"languages": ["en", "en"]}, "each once"),
        ({"voices": {"train": 0}}, "voices=0 for train must be 1 to 160"),
        ({"voices": {"test": 33}}, "voices=33 for test must be 1 to 32"),
        ({"voices": {"val": 3}}, "voices are of split 'val'; name train, validation, test"),
        ({"long_share": 1.5}, "long_share=1.5 is a share"),
        ({"things": (1, 10)}, "must be from at least 1 to at most 9"),
        ({"seconds": -1}, "seconds=-1 must be 0"),
    ],
)
def test_impossible_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        WorldSpokenCaptions(**arguments)
