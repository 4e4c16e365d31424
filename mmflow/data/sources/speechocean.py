"""speechocean762 (Zhang et al., Interspeech 2021, arXiv:2104.01378; https://www.openslr.org/101)."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import AUDIO_ENDINGS, read_pairs, recording
from mmflow.data.sources.splits import listed

PARTS = ("train", "test")
TABLES = ("wav.scp", "text", "utt2spk")
WANTED = f"a folder train or test with {', '.join(TABLES)}, beside a folder WAVE"
ORIGIN = "https://www.openslr.org/101"
PLACE_IN_WORD = re.compile(r"_[BIES]$")


class SpeechOcean762:
    """Kaldi tables in `train` and `test`, audio in `WAVE`, the phones of each word in `resource/text-phone`.

    The phones go into the sample's JSON as "phone_sequence", with stress but without their place in the word; the data
    set gives no times for them. Validation is cut out of train.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no utterance is whole."""
        folder = find_folder(root, _is_layout, WANTED, ORIGIN, inner=(*PARTS, "WAVE", "resource"))
        left_out = LeftOut("speechocean762")
        return listed(
            _recordings(folder, left_out),
            left_out,
            f"{folder}: no utterance has audio, text and speaker; expected {WANTED} ({ORIGIN})",
        )


def _is_layout(place: Path) -> bool:
    return real(place / "WAVE") and any(_has_tables(place / part) for part in PARTS)


def _has_tables(part: Path) -> bool:
    return real(part) and all(real(part / table) for table in TABLES)


def _recordings(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    audio = {path.relative_to(folder).as_posix(): path for path in files(folder / "WAVE", AUDIO_ENDINGS, left_out)}
    phones = _phones(folder / "resource" / "text-phone", left_out)
    listed: set[str] = set()
    for part in (part for part in PARTS if _has_tables(folder / part)):
        places, texts, speakers = (read_pairs(folder / part / table, left_out) for table in TABLES)
        listed.update(places.values())
        for name in sorted(texts.keys() - places.keys()):
            left_out.add("line of text without one in wav.scp", f"{part}: {name}")
        for key, place in places.items():
            if place not in audio:  # also where wav.scp holds a command or a path elsewhere, as Kaldi allows
                left_out.add("line of wav.scp without an audio file", f"{part}: {key} {place}")
            elif key not in texts or key not in speakers:
                left_out.add("audio file without text or speaker", f"{part}: {key}")
            else:
                info = {"phone_sequence": phones[key]} if key in phones else {}
                yield recording(key, part, speakers[key], audio[place], texts[key], info)
    for place in sorted(audio.keys() - listed):
        left_out.add("audio file that no wav.scp names", place)


def _phones(table: Path, left_out: LeftOut) -> dict[str, list[str]]:
    """Phones of each utterance, from lines `<utterance>.<index of the word> AH0_B T_E`."""
    if not real(table):
        left_out.add("missing table of phones", table)
        return {}
    words: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for name, line in read_pairs(table, left_out).items():
        utterance, _, index = name.rpartition(".")
        if index.isdecimal():
            words[utterance][int(index)] = [PLACE_IN_WORD.sub("", phone) for phone in line.split()]
        else:
            left_out.add("line of text-phone without the index of a word", name)
    return {key: [phone for index in sorted(word) for phone in word[index]] for key, word in words.items()}
