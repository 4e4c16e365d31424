"""Speech with exact phone times from eSpeak NG (the library and its data come with the PyPI package espeakng-loader).

`speak` is a pure function: the same arguments give the same samples whatever was spoken before and in whichever
process. eSpeak keeps hidden state between utterances (oscillator phase, flutter) that neither a new voice nor
`espeak_Terminate` resets, so the library is loaded afresh for each utterance (0.6 ms) and its two random number
generators are seeded. One utterance at a time per process: the library is global state, and a thread lock guards it.

A voice is the text of an eSpeak variant file (pitch, formants, breath, tone...; docs/voices.md of eSpeak NG), so a
speaker need not be one of the hundred that come with it.
"""

import ctypes
import difflib
import os
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

ESPEAK_RATE = 22_050  # Hz, of everything that eSpeak synthesises
ACCENTS = (
    "en",  # Great Britain
    "en-029",  # Caribbean
    "en-gb-scotland",
    "en-gb-x-gbclan",  # Lancaster
    "en-gb-x-gbcwmd",  # West Midlands
    "en-gb-x-rp",  # received pronunciation
    "en-us",
    "en-us-nyc",
)
VOICES = {  # language -> its accents
    "en": ACCENTS,
    "de": ("de",),
    "fr": ("fr", "fr-be", "fr-ch"),
    "es": ("es", "es-419"),  # Spain, Latin America
    "it": ("it",),
    "nl": ("nl",),
}

# eSpeak's English phones, of all accents, folded onto the 39 of the CMU dictionary (without stress) and silence.
# A vowel that eSpeak speaks together with a following r ("A@", "O@") stays one phone.
_MNEMONICS = {
    "AA": "0 A: A@ O2", "AE": "a aa", "AH": "V @ @- @2 @5 a#", "AO": "O: O@ o@", "AW": "aU", "AY": "aI aI2 aI3 aI@",
    "EH": "E e@", "ER": "3 3: IR VR", "EY": "eI", "IH": "I I2 I# i@ i@3", "IY": "i i:", "OW": "oU", "OY": "OI",
    "UH": "U U@", "UW": "u:", "B": "b", "CH": "tS", "D": "d", "DH": "D", "F": "f", "G": "g", "HH": "h", "JH": "dZ",
    "K": "k", "L": "l @L", "M": "m", "N": "n n-", "NG": "N", "P": "p", "R": "r r-", "S": "s", "SH": "S",
    "T": "t t# t2 t[ ?", "TH": "T", "V": "v", "W": "w w#", "Y": "j ;", "Z": "z", "ZH": "Z", "SIL": "_ _: _! _|",
}  # fmt: skip
PHONES = tuple(_MNEMONICS)
_PHONE = {mnemonic: phone for phone, mnemonics in _MNEMONICS.items() for mnemonic in mnemonics.split()}
_STRESS = "',=%|"  # marks that may precede a mnemonic in an event
_LIQUID_SHARE = 0.4  # of a vowel with an l or r after it in the same syllable
_SILENT = 8  # of 32768; between sounds eSpeak's samples are zero, sometimes with a little rounding

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: espeak_Synth returns when the callback has had everything
_PHONEME_EVENTS, _DO_NOT_EXIT = 1 << 0, 1 << 15  # options of espeak_Initialize
_UTF8 = 1  # flag of espeak_Synth
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_VOLUME_PERCENT = 40  # of eSpeak's scale; at its default 100 loud variants are clipped inside the library
_END, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE
_DATA_FILES = ("en_dict", "intonations", "lang", "phondata", "phonindex", "phontab")  # what eSpeak starts with
_VOICE_FILE = "speaker"


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; `sample` is exact where `audio_position` is rounded to milliseconds."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Spoken(NamedTuple):
    """One utterance as eSpeak made it; spans are (first sample, one past the last sample, name).

    wav: (S,) int16 at `ESPEAK_RATE`. phones: names in `PHONES`, in other languages than English eSpeak's own names and
    SIL (docs/phonemes.md of eSpeak NG), following each other without gaps from 0 to S.
    words: pieces of the text in order, without the pauses between them; eSpeak speaks a few pairs ("of the") as one."""

    wav: NDArray[np.int16]
    phones: list[tuple[int, int, str]]
    words: list[tuple[int, int, str]]


def variants() -> tuple[str, ...]:
    """The names of eSpeak's own voice variants, sorted."""
    return tuple(sorted(path.name for path in _variant_folder().iterdir()))


@cache
def variant(name: str) -> str:
    """The definition of one of eSpeak's own variants, to be spoken with as it is or changed. ValueError if unknown."""
    if name not in variants():
        raise ValueError(f"name={name!r} is not one of eSpeak's variants; {_nearest(name, variants())}")
    return (_variant_folder() / name).read_text(encoding="utf-8")


def speak(
    text: str, accent: str = "en-us", voice: str = "", rate: float = 175, pitch: int = 50, pitch_range: int = 50
) -> Spoken:
    """Speak `text` and report when each phone and word began.

    Args:
        text: in the language of the accent; punctuation makes pauses and intonation.
        accent: one of `VOICES`.
        voice: an eSpeak variant definition such as `variant("f2")`, or "" for the accent's own voice.
        rate: words per minute, 80 to 440. (From 450 eSpeak squeezes what it made, and its phone times no longer fit.)
        pitch: 0 to 99 around the voice's own pitch at 50.
        pitch_range: 0 (monotone) to 99; 50 is the voice's own.

    Raises ValueError for an unknown accent, for settings out of range, and for text that gives no sound.
    """
    languages = {known: language for language, accents in VOICES.items() for known in accents}
    if accent not in languages:
        raise ValueError(f"accent={accent!r} is not spoken here; {_nearest(accent, tuple(languages))}")
    language = languages[accent]
    for name, number, low, high in (
        ("rate", rate, 80, 440),
        ("pitch", pitch, 0, 99),
        ("pitch_range", pitch_range, 0, 99),
    ):
        if not low <= number <= high:
            raise ValueError(f"{name}={number} must be from {low} to {high}; eSpeak would change it silently")
    parameters = {_RATE: round(rate), _VOLUME: _VOLUME_PERCENT, _PITCH: pitch, _RANGE: pitch_range}
    with _LOCK, tempfile.TemporaryDirectory(prefix="espeak") as folder:
        _lay_data(Path(folder), language, voice)
        heard = _synthesise(text, f"{accent}+{_VOICE_FILE}" if voice else accent, parameters, Path(folder))
    if not heard.words:
        raise ValueError(f"eSpeak found nothing to say in text={text!r}; give it at least one word")
    return _spans(text, language, heard)


_LOCK = threading.Lock()


def _variant_folder() -> Path:
    return Path(espeakng_loader.get_data_path()) / "voices" / "!v"


def _nearest(name: str, known: tuple[str, ...]) -> str:
    return "the nearest are " + ", ".join(map(repr, difflib.get_close_matches(name, known, n=3, cutoff=0.0)))


def _lay_data(folder: Path, language: str, voice: str) -> None:
    """eSpeak reads voices from its data folder only, so each utterance gets a folder of links with its voice in it.

    That also keeps the path short: eSpeak holds it in 160 bytes, and a virtual environment may lie deep."""
    data = espeakng_loader.get_data_path()
    for name in dict.fromkeys((*_DATA_FILES, f"{language}_dict")):
        os.symlink(f"{data}/{name}", f"{folder}/{name}")  # noqa: PTH211  (a third of the time of Path's)
    (folder / "voices" / "!v").mkdir(parents=True)
    (folder / "voices" / "!v" / _VOICE_FILE).write_text(voice, encoding="utf-8")


class _Heard(NamedTuple):
    """What the callback was given: phones as (first sample, mnemonic), words as (first sample, first character)."""

    wav: NDArray[np.int16]
    phones: list[tuple[int, str]]
    words: list[tuple[int, int]]


def _synthesise(text: str, voice: str, parameters: dict[int, int], folder: Path) -> _Heard:
    pieces: list[bytes] = []
    phones: list[tuple[int, str]] = []
    words: list[tuple[int, int]] = []

    def receive(wav, count, events) -> int:
        if count > 0:
            pieces.append(ctypes.string_at(wav, 2 * count))  # a copy, for eSpeak reuses the buffer
        index = 0
        while events[index].type != _END:
            event = events[index]
            if event.type == _PHONEME:
                phones.append((event.sample, event.id.string.decode()))
            elif event.type == _WORD:
                words.append((event.sample, event.text_position - 1))
            index += 1
        return 0

    process = ctypes.CDLL(None)  # the C library this process already has
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), _PHONEME_EVENTS | _DO_NOT_EXIT)
        if rate != ESPEAK_RATE:
            raise RuntimeError(
                f"eSpeak did not start with its data in {str(folder)!r}; where that is longer than 150 bytes, "
                f"set TMPDIR to a folder with a shorter name"
            )
        callback = _SynthCallback(receive)
        library.espeak_SetSynthCallback(callback)
        process.srand(1)  # the Klatt voices' noise
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # everything else
        status = library.espeak_SetVoiceByName(voice.encode())
        for parameter, value in parameters.items():
            status |= library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        status |= library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        if status:
            raise RuntimeError(f"eSpeak failed with status {status} for voice {voice!r} and parameters {parameters}")
        library.espeak_Terminate()
    finally:
        process.dlclose(ctypes.c_void_p(library._handle))  # unload, so that the next utterance starts from nothing
    return _Heard(np.frombuffer(b"".join(pieces), np.int16), phones, words)


def _spans(text: str, language: str, heard: _Heard) -> Spoken:
    names = ["SIL"] + [_named(mnemonic.lstrip(_STRESS), language) for _, mnemonic in heard.phones]
    events = [0] + [sample for sample, _ in heard.phones]
    ends = _ends(heard.wav, names, [*events[1:], len(heard.wav)])
    if language == "en":
        _move_liquids(names, ends)
    starts = [0, *ends[:-1]]
    phones: list[tuple[int, int, str]] = []
    for start, end, name in zip(starts, ends, names, strict=True):
        if name == "SIL" and phones and phones[-1][2] == "SIL":
            phones[-1] = (phones[-1][0], end, name)
        elif end > start:
            phones.append((start, end, name))
    first = [int(np.searchsorted(events, sample)) for sample, _ in heard.words]  # of each word, its first phone
    words = []
    for index, (_, position) in enumerate(heard.words):
        last_word = index + 1 == len(heard.words)
        until = len(text) if last_word else heard.words[index + 1][1]
        sounding = [k for k in range(first[index], len(names) if last_word else first[index + 1]) if names[k] != "SIL"]
        words.append((starts[sounding[0]], ends[sounding[-1]], text[position:until].strip(" ,.;:?!")))
    return Spoken(heard.wav, phones, words)


def _named(mnemonic: str, language: str) -> str:
    if language == "en":
        return _PHONE[mnemonic]
    return "SIL" if mnemonic.startswith("_") else mnemonic


def _ends(wav: NDArray[np.int16], names: list[str], ends: list[int]) -> list[int]:
    """eSpeak counts the closure before a stop to the phone before it; it belongs to the stop, as in hand alignments."""
    loud = np.flatnonzero((wav > _SILENT) | (wav < -_SILENT))
    last = np.append(-1, loud)[np.searchsorted(loud, ends)].tolist()  # before each end, the last loud sample
    return ends[:1] + [
        end if name == "SIL" else max(start, sample + 1)
        for start, end, sample, name in zip(ends, ends[1:], last[1:], names[1:], strict=False)
    ]


def _move_liquids(names: list[str], ends: list[int]) -> None:
    """Give an l or r that eSpeak spoke as the ending of the vowel before it (its own span is nearly empty) that ending.

    Spectrograms of "bell", "feel", "old" and others show the change after 55 to 68 percent of the vowel's span."""
    for index in range(2, len(names)):
        if names[index] in ("L", "R") and ends[index] - ends[index - 1] < ESPEAK_RATE // 100:
            ends[index - 1] -= round(_LIQUID_SHARE * (ends[index - 1] - ends[index - 2]))
