import random

import numpy as np
import pytest

from mmflow.world.espeak import ACCENTS, ESPEAK_RATE, PHONES, speak, variant, variants
from mmflow.world.sentences import vocabulary


def names(spoken):
    return [name for _, _, name in spoken.phones if name != "SIL"]


def test_a_sentence_is_spoken_with_the_phones_of_the_cmu_dictionary():
    spoken = speak("she sells cheap fish")
    assert names(spoken) == ["SH", "IY", "S", "EH", "L", "Z", "CH", "IY", "P", "F", "IH", "SH"]
    assert [word for _, _, word in spoken.words] == ["she", "sells", "cheap", "fish"]


def test_phones_follow_each_other_without_gaps_through_the_whole_waveform():
    spoken = speak("the old captain, who was tired, slept. did he dream?", voice=variant("m3"))
    starts, ends, _ = zip(*spoken.phones, strict=True)
    assert starts[0] == 0
    assert ends[-1] == len(spoken.wav)
    assert starts[1:] == ends[:-1]
    assert all(end > start for start, end, _ in spoken.phones)


def test_words_are_spans_of_whole_phones_and_punctuation_makes_silence_between_them():
    spoken = speak("when it rained, the dog slept")
    starts, ends = {start for start, *_ in spoken.phones}, {end for _, end, _ in spoken.phones}
    assert all(start in starts and end in ends for start, end, _ in spoken.words)
    rained, the = spoken.words[2], spoken.words[3]
    assert (rained[1], the[0], "SIL") in spoken.phones


def test_the_closure_before_a_stop_belongs_to_the_stop():
    spoken = speak("a happy pet took a big cup")
    vowel, stop = next(pair for pair in zip(spoken.phones, spoken.phones[1:], strict=False) if pair[1][2] == "P")
    assert vowel[2] == "AE"
    closure = spoken.wav[stop[0] : stop[0] + ESPEAK_RATE // 50]  # 20 ms
    assert np.abs(closure).max() <= 8
    assert np.abs(spoken.wav[vowel[0] : vowel[1]]).max() > 1000
    assert stop[1] - stop[0] > 0.06 * ESPEAK_RATE  # closure and burst


def test_an_l_or_r_at_the_end_of_a_syllable_has_its_share_of_the_vowel_it_colours():
    (vowel, liquid), *_ = [
        pair for pair in zip(speak("a bell").phones, speak("a bell").phones[1:], strict=False) if pair[1][2] == "L"
    ]
    assert vowel[2] == "EH"
    assert (liquid[1] - liquid[0]) / (liquid[1] - vowel[0]) == pytest.approx(0.4, abs=0.001)
    assert names(speak("a hard storm", "en-gb-scotland"))[1:] == ["HH", "AA", "R", "D", "S", "T", "AO", "R", "M"]


def test_vowels_are_loud_fricatives_are_high_and_silence_is_silent():
    spoken = speak("see the sister's shoes, she saw such a fast horse, so she sat", rate=150)
    energy, high = {}, {}
    for start, end, name in spoken.phones:
        piece = spoken.wav[start:end].astype(float)
        power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)))) ** 2
        hertz = np.fft.rfftfreq(len(piece), 1 / ESPEAK_RATE)
        energy.setdefault(name, []).append(np.mean(piece**2))
        high.setdefault(name, []).append(power[hertz > 2500].sum() / max(power.sum(), 1))
    assert all(np.mean(high[name]) > 0.7 for name in ("S", "SH"))
    assert all(np.mean(high[name]) < 0.3 for name in ("IY", "AO", "AE"))
    assert np.mean(energy["SIL"]) < 0.001 * np.mean(energy["IY"])


def test_the_same_words_give_the_same_samples_whatever_was_spoken_before():
    voices = random.Random(0).sample(variants(), 12)
    first = {name: speak("hello old world", "en", variant(name)) for name in voices}
    for name in reversed(voices):
        speak("something else to leave its state behind", "en-us", variant(name), pitch=70)
        again = speak("hello old world", "en", variant(name))
        assert np.array_equal(again.wav, first[name].wav)
        assert again[1:] == first[name][1:]


def test_every_word_of_the_world_has_known_phones_in_every_accent():
    heard = set()
    for accent in ACCENTS:
        for start in range(0, len(vocabulary()), 100):
            heard.update(names(speak(" ".join(vocabulary()[start : start + 100]), accent, rate=400)))
    assert heard == set(PHONES) - {"SIL"}
    assert len(PHONES) == 40


def test_rate_pitch_and_variant_do_what_they_say():
    slow, fast = speak("a long day at sea", rate=120), speak("a long day at sea", rate=240)
    assert 1.7 < len(slow.wav) / len(fast.wav) < 2.7  # short pauses and bursts do not scale
    low, high = speak("aaah", voice=variant("m3"), pitch=20), speak("aaah", voice=variant("f2"), pitch=80)
    assert fundamental_hz(high.wav) > 2 * fundamental_hz(low.wav)


def fundamental_hz(wav):
    middle = wav[len(wav) // 3 : 2 * len(wav) // 3].astype(float)
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    shortest, longest = ESPEAK_RATE // 500, ESPEAK_RATE // 50
    return ESPEAK_RATE / (shortest + np.argmax(correlation[shortest:longest]))


def test_nothing_is_clipped_or_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert np.abs(speak("aha, a loud voice", voice=variant("antonio")).wav.astype(int)).max() < 32767
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_accent_or_variant_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="accent='en-uss' is not spoken here; the nearest are 'en-us'"):
        speak("hello", accent="en-uss")
    with pytest.raises(ValueError, match="name='F2' is not one of eSpeak's variants; the nearest are 'm2', 'f2'"):
        variant("F2")


@pytest.mark.parametrize(("name", "value"), [("rate", 20), ("rate", 500), ("pitch", 100), ("pitch_range", -1)])
def test_a_setting_out_of_range_is_an_error(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be from"):
        speak("hello", **{name: value})


@pytest.mark.parametrize("text", ["", " ", "...,,"])
def test_text_without_words_is_an_error(text):
    with pytest.raises(ValueError, match="found nothing to say"):
        speak(text)


def test_a_temporary_folder_too_deep_for_espeak_is_an_error_that_says_so(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 150)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(RuntimeError, match="set TMPDIR to a folder with a shorter name"):
        speak("hello")
