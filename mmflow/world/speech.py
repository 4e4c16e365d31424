"""The world's speech corpus: many eSpeak speakers in many rooms, with transcripts and exact phone and word times.

Made about as hard for a clustering of MFCCs as read English is: on LibriSpeech, 100 clusters have a phone-normalised
mutual information of 0.255 (HuBERT, Hsu et al. 2021, arXiv:2106.07447); here 0.27 on the hour of training and 0.32 on
the ten minutes of the test. One clean eSpeak voice would give 0.72; eSpeak's own variants and accents 0.47; formants,
vocal tracts and wandering speed of each speaker's own 0.39; rooms (most of the rest), microphones and a little noise do
the remainder, so that speech stays intelligible throughout.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from mmflow.data.sources.items import Item
from mmflow.data.workers import processors, worker_pool
from mmflow.world import acoustics, espeak
from mmflow.world.acoustics import SAMPLE_RATE, Signal
from mmflow.world.sentences import Sentence, sentence

SPEAKERS = {"train": 160, "validation": 32, "test": 32}
_VARIANT_SHARE = {"train": 0.7, "validation": 0.15, "test": 0.15}  # of eSpeak's variants, none in two splits

# Variants that no person sounds like. First those with a formant (1 to 3) below 70 or above 140 percent of an adult's;
# then robots, whispers, creaks, odd intonation and one that switches to a fixed accent.
_UNNATURAL = {
    "Alicia", "Andy", "AnxiousAndy", "Jacky", "Lee", "Michael", "Tweaky", "UniRobot", "boris", "gustave", "kaukovalta",
    "marcelo", "travis", "zac",
    "Demonic", "Marco", "RicishayMax", "RicishayMax2", "RicishayMax3", "Storm", "anikaRobot", "croak", "fast",
    "robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5", "robosoft6", "robosoft7", "robosoft8",
    "whisper", "whisperf",
}  # fmt: skip

# The spreads below were chosen together for the figures above.
_FORMANT_SPREAD = np.array([0.07, 0.2, 0.2])  # of a speaker's formants: log of frequency, height and width
_TRACT_SPREAD = 0.15  # speakers' vocal tracts are this much longer or shorter than their variant's, in log
_TILT_DB = 1.5  # per octave, between speakers
_WOBBLE, _WOBBLE_PERIOD_S = 0.06, 0.15  # speed within an utterance; about one change per two phones
_SILENCE_S = (0.05, 0.25)  # before and after the speech
_EQUALISER_DB = 3.5
_ROOM_SHARE, _T60_S, _DIRECT_DB = 0.65, (0.15, 0.4), (4, 16)
_SNR_DB = (18, 40)
_BAND_SHARE = 0.1
_LEVEL_DB = (-32, -18)  # full scale is 0

_SPEAKER, _UTTERANCE, _VARIANTS = range(3)  # what a generator is for
_MEAN_S = 4.7  # length of an utterance
_TASK_UTTERANCES = 16  # whose lengths a process finds at a time, in some 0.2 s
_SERIAL_MINUTES = 5  # lengths of less are found before processes would have started
_BYTES_PER_S = 20_000  # of FLAC


class Speaker(NamedTuple):
    """What stays the same in all that one speaker says."""

    name: str
    accent: str
    variant: str  # eSpeak's variant that `voice` was made from
    voice: str  # definition of the voice, with the speaker's own formants
    tract: float  # length of the vocal tract relative to the variant's
    tilt: float  # dB per octave
    rate: float  # words per minute
    pitch: int  # eSpeak's scale, 0 to 99
    pitch_range: int  # eSpeak's scale, 0 to 99


class WorldSpeech:
    """English sentences spoken by synthetic speakers: a corpus of any size from a seed, the same on every run.

    Args:
        train_minutes: audio for training; 160 speakers.
        validation_minutes: audio for validation; 32 other speakers, made from other eSpeak variants.
        test_minutes: audio for the test; 32 more speakers, again from other variants.
        seed: another seed gives other speakers, sentences and rooms.
        workers: processes that find out how long the utterances are, which takes a quarter of the time of making them;
            by default as many as the processors this process may use. The corpus does not depend on it.
    """

    def __init__(
        self,
        train_minutes: float = 60,
        validation_minutes: float = 10,
        test_minutes: float = 10,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        self.minutes = {"train": train_minutes, "validation": validation_minutes, "test": test_minutes}
        for split, minutes in self.minutes.items():
            if not 0 <= minutes < math.inf:
                raise ValueError(f"{split}_minutes={minutes} must be 0 (no such split) or more")
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or more")
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers} must be 1 or more, or null for one per processor")
        self.seed = seed
        self.workers = workers or processors()

    def items(self, root: Path | None = None) -> list[Item]:  # noqa: ARG002  (made, not read)
        """The utterances, split by split in order; `root` is not used, for nothing is read.

        A split ends with the utterance that fills its minutes. "json" has the speaker, the settings of voice and room,
        and "phones" and "words" as [start_s, end_s, name]; phones follow each other without gaps through the audio."""
        if self.workers == 1 or sum(self.minutes.values()) < _SERIAL_MINUTES:
            return [item for split in self.minutes for item in self._split(split, map)]
        with worker_pool(self.workers) as pool:
            spread = partial(pool.map, chunksize=_TASK_UTTERANCES)
            return [item for split in self.minutes for item in self._split(split, spread)]

    def _split(self, split: str, spread: Callable[..., Iterator[float]]) -> Iterator[Item]:
        """A split's utterances in order until their audio fills its minutes; `spread` works like `map`."""
        left_s, start = 60.0 * self.minutes[split], 0
        while left_s > 0:
            ahead = range(start, start + math.ceil(left_s / _MEAN_S))
            for index, seconds in zip(ahead, spread(partial(duration, self.seed, split), ahead), strict=True):
                if left_s > 0:
                    yield Utterance(f"{split}-{index:06d}", split, split, seed=self.seed, index=index, seconds=seconds)
                    left_s -= seconds
            start = ahead.stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance(Item):
    """An utterance that is synthesised when it is asked for."""

    seed: int
    index: int
    seconds: float

    @property
    def size(self) -> int:
        """About the bytes of its FLAC file."""
        return round(_BYTES_PER_S * self.seconds)

    def sample(self) -> dict[str, Any]:
        """The sample; makes it."""
        return utterance(self.seed, self.split, self.index)


def speaker(seed: int, split: str, number: int) -> Speaker:
    """The split's speaker `number` (0 to SPEAKERS[split] - 1) in the corpus with this seed."""
    generator = np.random.default_rng([seed, _stream(split), _SPEAKER, number])
    choices = _variants(seed, split)
    variant = choices[number % len(choices)]
    return Speaker(
        name=f"{split}{number:03d}",
        accent=str(generator.choice(espeak.ACCENTS)),
        variant=variant,
        voice=_individual(espeak.variant(variant), generator),
        tract=float(np.exp(generator.uniform(-_TRACT_SPREAD, _TRACT_SPREAD))),
        tilt=float(_TILT_DB * generator.standard_normal()),
        rate=float(generator.uniform(150, 220)),
        pitch=int(generator.integers(30, 71)),
        pitch_range=int(generator.integers(30, 81)),
    )


def utterance(seed: int, split: str, index: int) -> dict[str, Any]:
    """One sample of the corpus, a pure function of its arguments: keys "__key__", "flac", "txt" and "json"."""
    generator = np.random.default_rng([seed, _stream(split), _UTTERANCE, index])
    who, text, said = _say(seed, split, index, generator)
    flac, info = record(who, said, generator)
    info["words"] = [[start, end, word.upper()] for start, end, word in info["words"]]
    return {"__key__": f"{split}-{index:06d}", "flac": flac, "txt": text.upper(), "json": info}


def duration(seed: int, split: str, index: int) -> float:
    """Seconds of audio that `utterance` has for the same arguments, to 0.1 ms, without making it."""
    generator = np.random.default_rng([seed, _stream(split), _UTTERANCE, index])
    who, _, said = _say(seed, split, index, generator)
    size = round(len(said.spoken.wav) * _ratio(who.tract))
    generator.standard_normal(acoustics.wobble_knots(size, _WOBBLE_PERIOD_S))  # as `_perform` does before the silences
    return round((size + sum(_silences(generator))) / SAMPLE_RATE, 4)


class Said(NamedTuple):
    """What eSpeak made of a text, and how it was told to."""

    rate: float  # words per minute
    pitch: int
    spoken: espeak.Spoken


def pronounce(who: Speaker, text: str, generator: np.random.Generator) -> Said:
    """A speaker's text from eSpeak, about as fast and as high as the speaker mostly speaks."""
    rate = float(np.clip(who.rate * np.exp(0.1 * generator.standard_normal()) * who.tract, 90, 400))
    pitch = int(np.clip(who.pitch + 6 * generator.standard_normal(), 0, 99))
    return Said(rate, pitch, espeak.speak(text, who.accent, who.voice, rate, pitch, who.pitch_range))


def record(who: Speaker, said: Said, generator: np.random.Generator) -> tuple[bytes, dict[str, Any]]:
    """What was said as heard in some room: a FLAC file, and the speaker, the settings, "phones" and "words"."""
    audio, seconds = _perform(said.spoken.wav, who.tract, generator)
    audio, room = _record(acoustics.tilt(audio, who.tilt), generator)
    file = io.BytesIO()
    soundfile.write(file, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue(), {
        "speaker": who.name,
        "accent": who.accent,
        "variant": who.variant,
        "vocal_tract": round(who.tract, 3),
        "rate_wpm": round(said.rate),
        "pitch": said.pitch,
        **room,
        "phones": _timeline(said.spoken.phones, seconds, len(audio) / SAMPLE_RATE),
        "words": _placed(said.spoken.words, seconds),
    }


def _say(seed: int, split: str, index: int, generator: np.random.Generator) -> tuple[Speaker, str, Said]:
    """Who says what in an utterance, and eSpeak saying it."""
    who = speaker(seed, split, index % SPEAKERS[split])
    sentences = _sentences(generator)
    said = pronounce(who, " ".join(sentence.spoken for sentence in sentences), generator)
    return who, " ".join(sentence.text for sentence in sentences), said


def _stream(split: str) -> int:
    return list(SPEAKERS).index(split)


def _variants(seed: int, split: str) -> list[str]:
    """The eSpeak variants that the split's speakers are made from."""
    natural = [name for name in espeak.variants() if name not in _UNNATURAL]
    shuffled = np.random.default_rng([seed, _VARIANTS]).permutation(natural).tolist()
    bounds = np.cumsum([0, *_VARIANT_SHARE.values()]) * len(natural)
    return shuffled[round(bounds[_stream(split)]) : round(bounds[_stream(split) + 1])]


def _individual(definition: str, generator: np.random.Generator) -> str:
    """The variant with formants of its own (frequency, height, width) and without echo, for rooms are added later."""
    settings = [line.split() for line in definition.splitlines() if line.strip()]
    given = {fields[1]: fields[2:] for fields in settings if fields[0] == "formant"}
    lines = [" ".join(fields) for fields in settings if fields[0] not in ("formant", "echo")]
    for number in "12345678":
        fields = given.get(number, ["100"])  # eSpeak takes what is not given as 100
        percent = np.array([float(field) for field in [*fields, "100", "100"][:3]])
        percent *= np.exp(_FORMANT_SPREAD * generator.standard_normal(3))
        lines.append(" ".join(["formant", number, *(str(round(value)) for value in percent), *fields[3:]]))
    return "\n".join(lines) + "\n"


def _sentences(generator: np.random.Generator) -> list[Sentence]:
    """Sentences up to a random number of words, so that short ones do not make short utterances only."""
    wanted = int(generator.integers(6, 17))
    chosen = [sentence(generator)]
    while sum(len(one.text.split()) for one in chosen) < wanted:
        chosen.append(sentence(generator))
    return chosen


def _perform(
    wav: NDArray[np.int16], tract: float, generator: np.random.Generator
) -> tuple[Signal, Callable[[Any], NDArray[np.float64]]]:
    """Speech at 16 kHz through a vocal tract, with wandering speed, between two silences; and the map of its times.

    The map takes sample positions in `wav` to seconds in the result."""
    ratio = _ratio(tract)
    audio, times = acoustics.wobble(acoustics.resample(wav / 32768, ratio), _WOBBLE, _WOBBLE_PERIOD_S, generator)
    before, after = _silences(generator)
    numbers = np.arange(len(times), dtype=float)

    def seconds(samples: Any) -> NDArray[np.float64]:
        moved = np.interp(np.asarray(samples) * ratio, times, numbers)
        return np.round((before + moved) / SAMPLE_RATE, 4)

    return np.pad(audio, (before, after)), seconds


def _ratio(tract: float) -> float:
    """Samples of an utterance to one of eSpeak's."""
    return tract * SAMPLE_RATE / espeak.ESPEAK_RATE


def _silences(generator: np.random.Generator) -> tuple[int, int]:
    """Samples before and after the speech."""
    before, after = (int(generator.uniform(*_SILENCE_S) * SAMPLE_RATE) for _ in range(2))
    return before, after


def _record(audio: Signal, generator: np.random.Generator) -> tuple[Signal, dict[str, float]]:
    """The speech as a microphone in some room hears it, and what room that was."""
    room: dict[str, float] = {}
    audio = acoustics.equalise(audio, _EQUALISER_DB, 8, generator)
    if generator.random() < _ROOM_SHARE:
        room["t60_s"], room["direct_db"] = generator.uniform(*_T60_S), generator.uniform(*_DIRECT_DB)
        audio = acoustics.reverberate(audio, room["t60_s"], room["direct_db"], generator)
    room["snr_db"] = generator.uniform(*_SNR_DB)
    audio = acoustics.add_noise(audio, room["snr_db"], generator.uniform(0, 2), generator)
    if generator.random() < _BAND_SHARE:
        room["low_hz"], room["high_hz"] = generator.uniform(50, 300), generator.uniform(3400, 7000)
        audio = acoustics.band_limit(audio, room["low_hz"], room["high_hz"])
    room["level_db"] = generator.uniform(*_LEVEL_DB)
    return acoustics.set_level(audio, room["level_db"]), {name: round(value, 2) for name, value in room.items()}


def _timeline(
    spans: list[tuple[int, int, str]], seconds: Callable[[Any], NDArray[np.float64]], duration_s: float
) -> list[list[Any]]:
    """[start_s, end_s, phone] without gaps from 0 to the duration, beginning and ending with silence."""
    sounding = _placed(spans, seconds)
    if sounding[0][2] == "SIL":
        sounding = sounding[1:]
    if sounding[-1][2] == "SIL":
        sounding = sounding[:-1]
    return [[0.0, sounding[0][0], "SIL"], *sounding, [sounding[-1][1], round(duration_s, 4), "SIL"]]


def _placed(spans: list[tuple[int, int, str]], seconds: Callable[[Any], NDArray[np.float64]]) -> list[list[Any]]:
    times = seconds([span[:2] for span in spans]).tolist()  # (spans, 2)
    return [[start, end, name] for (start, end), (*_, name) in zip(times, spans, strict=True)]
