import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from mmflow.world.espeak import PHONES
from mmflow.world.speech import SPEAKERS, WorldSpeech, duration, speaker, utterance

VOWELS = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}


@pytest.fixture(scope="module")
def utterances():
    return [utterance(0, split, index) for split in SPEAKERS for index in range(20)]


def audio(sample):
    return soundfile.read(io.BytesIO(sample["flac"]))[0]


def test_the_corpus_is_the_same_for_any_number_of_workers(monkeypatch):
    monkeypatch.setattr("mmflow.world.speech._SERIAL_MINUTES", 0)
    one = WorldSpeech(0.7, 0.1, 0.05, seed=3, workers=1).items()
    two = WorldSpeech(0.7, 0.1, 0.05, seed=3, workers=2).items()
    assert one == two
    assert [split for split, _ in itertools.groupby(item.split for item in one)] == ["train", "validation", "test"]
    assert one[0].sample() == utterance(3, "train", 0)


def test_a_split_ends_with_the_utterance_that_fills_its_minutes():
    items = WorldSpeech(0.5, 0, 0).items()
    samples = [item.sample() for item in items]
    seconds = [len(audio(sample)) / 16_000 for sample in samples]
    assert sum(seconds[:-1]) < 30 <= sum(seconds)
    assert [sample["__key__"] for sample in samples] == [f"train-{index:06d}" for index in range(len(samples))]
    assert sum(len(sample["flac"]) for sample in samples) == pytest.approx(sum(item.size for item in items), rel=0.3)


def test_the_length_is_known_without_making_the_audio(utterances):
    expected = [sample["json"]["phones"][-1][1] for sample in utterances]
    assert [duration(0, split, index) for split in SPEAKERS for index in range(20)] == expected


def test_another_seed_gives_other_speakers_and_sentences(utterances):
    other = utterance(1, "train", 0)
    assert other["txt"] != utterances[0]["txt"]
    assert speaker(1, "train", 0) != speaker(0, "train", 0)


def test_audio_is_16_khz_mono_16_bit_flac_and_never_clips(utterances):
    for sample in utterances:
        info = soundfile.info(io.BytesIO(sample["flac"]))
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
        assert np.abs(audio(sample)).max() < 0.96


def test_levels_and_lengths_vary_as_in_recordings(utterances):
    levels_db = [20 * np.log10(np.std(audio(sample))) for sample in utterances]
    assert -33 < min(levels_db) < -27
    assert -24 < max(levels_db) < -17
    seconds = np.array([len(audio(sample)) / 16_000 for sample in utterances])
    assert np.mean((seconds > 2) & (seconds < 8)) > 0.85
    assert 4 < seconds.mean() < 6
    assert seconds.max() < 14


def test_phones_cover_the_audio_without_gaps_between_short_silences(utterances):
    for sample in utterances:
        starts, ends, names = zip(*sample["json"]["phones"], strict=True)
        assert starts[0] == 0
        assert ends[-1] == pytest.approx(len(audio(sample)) / 16_000, abs=1e-4)
        assert starts[1:] == ends[:-1]
        assert all(end > start for start, end in zip(starts, ends, strict=True))
        assert names[0] == names[-1] == "SIL"
        assert ends[0] < 0.32
        assert ends[-1] - starts[-1] < 0.32
        assert set(names) <= set(PHONES)


def test_words_are_the_transcript_in_order_at_boundaries_of_phones(utterances):
    for sample in utterances:
        starts, ends, words = zip(*sample["json"]["words"], strict=True)
        assert " ".join(words) == sample["txt"]
        assert re.fullmatch(r"[A-Z']+( [A-Z']+)*", sample["txt"])
        assert set(starts) <= {start for start, *_ in sample["json"]["phones"]}
        assert set(ends) <= {end for _, end, _ in sample["json"]["phones"]}


def test_phones_last_as_long_as_in_natural_speech(utterances):
    durations = {}
    for start, end, name in (phone for sample in utterances for phone in sample["json"]["phones"]):
        durations.setdefault(name, []).append(end - start)
    assert set(durations) == set(PHONES)
    assert all(0.04 < np.mean(durations[name]) < 0.2 for name in PHONES)
    assert 0.07 < np.mean([one for name in PHONES if name != "SIL" for one in durations[name]]) < 0.1


def test_the_sound_between_two_times_is_the_phone_named(utterances):
    energy, high = {}, {}
    for sample in utterances:
        wav = audio(sample) / np.std(audio(sample))
        for start, end, name in sample["json"]["phones"]:
            piece = wav[round(16_000 * start) : round(16_000 * end)]
            power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)))) ** 2
            energy.setdefault(name, []).append(np.mean(piece**2))
            high.setdefault(name, []).append(power[len(power) // 3 :].sum() / power.sum())  # above 2.7 kHz
    assert np.median(energy["SIL"]) < 0.03 * min(np.median(energy[name]) for name in VOWELS)
    assert min(np.median(high[name]) for name in ("S", "SH", "Z")) > 3 * max(np.median(high[name]) for name in VOWELS)


def test_no_speaker_or_espeak_variant_is_in_two_splits():
    speakers = {split: [speaker(0, split, number) for number in range(count)] for split, count in SPEAKERS.items()}
    for first, second in itertools.combinations(speakers, 2):
        for field in ("name", "voice", "variant"):
            assert not {getattr(one, field) for one in speakers[first]} & {
                getattr(one, field) for one in speakers[second]
            }
    assert len({one.voice for one in speakers["train"]}) == 160


def test_a_speaker_keeps_the_voice_and_varies_rate_room_and_level_between_utterances():
    first, second = utterance(0, "train", 7)["json"], utterance(0, "train", 167)["json"]
    assert all(first[name] == second[name] for name in ("speaker", "accent", "variant", "vocal_tract"))
    assert all(first[name] != second[name] for name in ("rate_wpm", "snr_db", "level_db"))


def test_workers_need_not_import_torch():
    code = "import sys, mmflow.world.speech; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_spec_names_this_source_and_its_arguments():
    spec = yaml.safe_load((Path(__file__).parents[2] / "data_specs" / "world_speech.yaml").read_text())
    assert spec["make"]["class_path"] == "mmflow.world.speech.WorldSpeech"
    assert WorldSpeech(**spec["make"]["init_args"]).minutes == {"train": 60, "validation": 10, "test": 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_minutes": -1}, "train_minutes=-1 must be 0"),
        ({"test_minutes": float("nan")}, "test_minutes=nan must be 0"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"workers": 0}, "workers=0 must be 1 or more"),
    ],
)
def test_impossible_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        WorldSpeech(**arguments)
