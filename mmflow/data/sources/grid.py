"""GRID: six-word sentences spoken to a camera (Cooke et al., JASA 2006; https://zenodo.org/records/3625687)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmflow.data.sources.ave import VIDEO_ENDINGS
from mmflow.data.sources.esc50 import read_table
from mmflow.data.sources.fsdd import WORDS
from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, real
from mmflow.data.sources.recordings import read_lines
from mmflow.data.sources.splits import listed

# what the letters of a file's name stand for, place by place: command, colour, preposition, letter, digit, adverb
CODE = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},  # no w, whose name is longer than one syllable
    dict(zip("z123456789", WORDS, strict=True)),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)
SPEAKER = re.compile(r"s\d+")  # folders of speakers: s1 to s34
TICKS = 25_000  # of an alignment in a second; a frame of video has 1000
SILENCES = ("sil", "sp")
TABLE = "transcripts.csv"
WANTED = "videos named by their six letters, such as s1/bbaf2n.mpg or video/bbaf2n.mpg"
ORIGIN = "https://zenodo.org/records/3625687"


class Grid:
    """Videos `<code>.mpg`, alignments `<code>.align`, and perhaps a table `transcripts.csv`, in any folders.

    The six letters of the code spell the sentence: bbaf2n is "bin blue at f two now". A line for the file in the table
    (`file,transcript`) comes before it, and the words of an alignment do where there is no line. The words of the
    alignment go into the JSON as [start s, end s, word], without silences. The speaker is the folder s1 to s34 around
    the file; the splits are cut out by speaker.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the folder `root`. Raises ValueError when it is none or has no such video."""
        root = root.resolve()
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder; expected one with {WANTED} ({ORIGIN})")
        left_out = LeftOut("GRID")
        return listed(
            _items(root, left_out), left_out, f"{root} holds no video that can be used; expected {WANTED} ({ORIGIN})"
        )


def _items(root: Path, left_out: LeftOut) -> Iterator[Item]:
    texts = {}
    if real(root / TABLE):
        texts = {row["file"]: row["transcript"].strip() for row in read_table(root / TABLE, ("file", "transcript"))}
    words = {_place(path, root): read_alignment(path, left_out) for path in files(root, [".align"], left_out)}
    used: set[tuple[str, str]] = set()
    for path in files(root, VIDEO_ENDINGS, left_out):
        speaker, code = place = _place(path, root)
        spelt = sentence(code)
        if spelt is None:
            left_out.add("video not named by six letters such as bbaf2n", path)
        elif place in used:
            left_out.add("second video of the same speaker and name", path)
        else:
            used.add(place)
            aligned = words.get(place, [])
            text = texts.get(path.relative_to(root).as_posix()) or " ".join(word for *_, word in aligned) or spelt
            info: dict[str, Any] = {"speaker": speaker} | ({"words": aligned} if aligned else {})
            key = f"{speaker}-{code}"
            yield Item(key, "train", speaker, {VIDEO_ENDINGS[path.suffix.lower()]: path}, {"txt": text, "json": info})
    for speaker, code in sorted(words.keys() - used):
        left_out.add("alignment without its video", f"{speaker}-{code}")


def _place(path: Path, root: Path) -> tuple[str, str]:
    """(speaker, code) of a file: the innermost folder like s1 is the speaker's, and may be the root itself."""
    speakers = [folder for folder in path.relative_to(root.parent).parts[:-1] if SPEAKER.fullmatch(folder)]
    return (speakers[-1] if speakers else "unknown"), path.stem


def sentence(code: str) -> str | None:
    """The sentence that a file's name spells, None for other names. "swwp2s" is "set white with p two soon"."""
    if len(code) != len(CODE) or any(letter not in words for letter, words in zip(code, CODE, strict=True)):
        return None
    return " ".join(words[letter] for letter, words in zip(code, CODE, strict=True))


def read_alignment(path: Path, left_out: LeftOut) -> list[list[Any]]:
    """[start s, end s, word] from lines `start end word` in units of 1/25000 s, silences left out."""
    words = []
    for line in read_lines(path):
        start, end, word = [*line.split(), "", "", ""][:3]
        if not (start.isdecimal() and end.isdecimal() and word and int(start) < int(end)):
            left_out.add("line of an alignment that is not `start end word`", f"{path.name}: {line}")
        elif word not in SILENCES:
            words.append([int(start) / TICKS, int(end) / TICKS, word])
    return words
