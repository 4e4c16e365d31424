"""Recordings on their way into shards: audio bytes as they are, under the extension that is true of them."""

from pathlib import Path
from typing import Any

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aiff", ".aif", ".aifc")
EXTENSIONS = {".oga": "ogg", ".aif": "aiff", ".aifc": "aiff"}  # other spellings of the same format
HEAD = 64 * 2**10  # bytes that tell the format of a sound, also behind a tag of usual size


class Recording(Item):
    """One utterance: its file becomes the member whose extension is true of the bytes, which are read for that."""

    __slots__ = ()

    def sample(self) -> dict[str, Any]:
        (path,) = map(Path, self.files.values())
        audio = path.read_bytes()
        return {"__key__": self.key, audio_extension(audio, path.name): audio} | self.values


def recording(
    key: str, split: str, speaker: str, path: Path, text: str | None = None, info: dict[str, Any] | None = None
) -> Item:
    """The item of an audio file.

    Args:
        key: unique in the data set, without "." and "/".
        split: train, validation or test, as the original has it.
        speaker: who speaks, or what else is known to belong together.
        path: the audio file.
        text: the transcript, None when there is none.
        info: more about it, becomes part of the sample's JSON.
    """
    known = {} if text is None else {"txt": text}
    return Recording(key, split, speaker, {"audio": str(path)}, {**known, "json": {"speaker": speaker, **(info or {})}})


def audio_extension(data: bytes, name: str) -> str:
    """The extension that says what `data` is, such as "flac", or the one in `name` when the bytes do not tell."""
    ending = Path(name).suffix.lower()
    return _sniffed(data) or EXTENSIONS.get(ending, ending.removeprefix("."))


def _sniffed(data: bytes) -> str | None:
    """The format by its first bytes, None when they are of no audio format known here."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"fLaC":
        return "flac"
    if data[:4] == b"OggS":
        return "opus" if data[28:36] == b"OpusHead" else "ogg"  # 27 bytes of page header and one segment size
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if data[4:8] == b"ftyp":
        return "m4a"
    if data[:3] == b"ID3" and len(data) >= 10:  # a tag, with its length in four 7-bit bytes; mostly before MP3
        tag = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        return "flac" if data[tag : tag + 4] == b"fLaC" else "mp3"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06:  # layer bits 00 are AAC
        return "mp3"
    return None


def as_sound(path: Path) -> dict[str, Path]:
    """{extension: path}, as `Item.files` takes it, for a file of sound; the extension says what its bytes are."""
    with path.open("rb") as file:
        return {audio_extension(file.read(HEAD), path.name): path}


def by_stem(paths: list[Path], left_out: LeftOut) -> dict[str, Path]:
    """Paths by name without ending, in the given order; of files with the same stem the first."""
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            left_out.add("second audio file of the same name", path)
        found.setdefault(path.stem, path)
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text that hold anything, stripped; a byte order mark and any kind of line end will do.

    Raises ValueError for other encodings.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it, for example with "
            f"`iconv -f latin1 -t utf-8`, if Latin-1 is what it is"
        ) from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_pairs(path: Path, left_out: LeftOut) -> dict[str, str]:
    """Lines of `name value with spaces` as a dict; a name without a value, or named again, is left out."""
    pairs: dict[str, str] = {}
    for line in read_lines(path):
        name, *rest = line.split(maxsplit=1)
        if not rest:
            left_out.add("line with nothing after the name", f"{path}: {line}")
        elif name in pairs:
            left_out.add("second line for the same name", f"{path}: {line}")
        else:
            pairs[name] = rest[0]
    return pairs
