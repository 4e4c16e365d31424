"""LJ Speech (Ito and Johnson, https://keithito.com/LJ-Speech-Dataset)."""

from collections.abc import Iterator
from pathlib import Path

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import AUDIO_ENDINGS, by_stem, read_lines, recording
from mmflow.data.sources.splits import listed

WANTED = "metadata.csv and a folder wavs with <id>.wav in it"
ORIGIN = "https://keithito.com/LJ-Speech-Dataset"


class LJSpeech:
    """`metadata.csv` with lines `id|text|normalised text` and `wavs/<id>.wav`; one speaker, 22.05 kHz.

    The normalised text is taken, in which numbers and abbreviations are written out.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no line has its audio file."""
        folder = find_folder(root, _is_layout, WANTED, ORIGIN, inner=("wavs",))
        left_out = LeftOut("LJ Speech")
        return listed(
            _recordings(folder, left_out),
            left_out,
            f"{folder}: no line of metadata.csv has its audio file; expected {WANTED} ({ORIGIN})",
        )


def _is_layout(place: Path) -> bool:
    return real(place / "metadata.csv") and real(place / "wavs")


def _recordings(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    audio = by_stem(files(folder / "wavs", AUDIO_ENDINGS, left_out), left_out)
    texts: dict[str, str] = {}
    for line in read_lines(folder / "metadata.csv"):
        key, *versions = (field.strip() for field in line.split("|"))  # not CSV: quotation marks are text
        text = next((version for version in reversed(versions[:2]) if version), None)
        if text is None:
            left_out.add("line of metadata.csv without text", line)
        elif key not in audio:
            left_out.add("line of metadata.csv without an audio file", key)
        elif key in texts:
            left_out.add("second line for the same id", line)
        else:
            texts[key] = text
    for key, path in audio.items():
        if key in texts:
            yield recording(key, "train", "LJ", path, texts[key])
        else:
            left_out.add("audio file without a line in metadata.csv", path)
