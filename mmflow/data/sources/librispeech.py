"""LibriSpeech, and other data in its layout (Panayotov et al., ICASSP 2015; https://www.openslr.org/12)."""

import re
from collections.abc import Iterator
from pathlib import Path

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import FOLDER_LINK, LeftOut, files, find_folder
from mmflow.data.sources.recordings import AUDIO_ENDINGS, by_stem, read_pairs, recording
from mmflow.data.sources.splits import listed

SPLIT_OF = {"train": "train", "dev": "validation", "test": "test"}
PART = re.compile(r"(train|dev|test)-.+")
WANTED = "folders named train-*, dev-* or test-* with <speaker>/<chapter>/<utterance>.flac in them"
ORIGIN = "https://www.openslr.org/12"


class LibriSpeech:
    """`<part>/<speaker>/<chapter>/<utterance>.flac` with `<speaker>-<chapter>.trans.txt` beside them.

    Parts named train-*, dev-* and test-* become train, validation and test. A part without any transcript file is
    taken without text; in the others an utterance without its line is left out.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`, which may also be a single part of it.

        Raises ValueError when there is no such part, or no audio in any.
        """
        left_out = LeftOut("LibriSpeech")
        return listed(
            (r for part in _parts(root, left_out) for r in _recordings(part, left_out)),
            left_out,
            f"{root}: no utterance can be used; expected {WANTED} ({ORIGIN})",
        )


def _parts(root: Path, left_out: LeftOut) -> list[Path]:
    root = root.resolve()
    if root.is_dir() and PART.fullmatch(root.name):
        return [root]
    parts = _parts_in(find_folder(root, lambda place: bool(_parts_in(place)), WANTED, ORIGIN, inner=()))
    for link in filter(Path.is_symlink, parts):
        left_out.add(FOLDER_LINK, link)
    return [part for part in parts if not part.is_symlink()]


def _parts_in(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if PART.fullmatch(child.name) and child.is_dir())


def _recordings(part: Path, left_out: LeftOut) -> Iterator[Item]:
    split = SPLIT_OF[part.name.split("-")[0]]
    found = files(part, (".trans.txt", *AUDIO_ENDINGS), left_out)
    transcripts = [path for path in found if path.suffix == ".txt"]
    texts = {name: text for path in transcripts for name, text in read_pairs(path, left_out).items()}
    audio = by_stem([path for path in found if path.suffix != ".txt"], left_out)
    for name in sorted(texts.keys() - audio.keys()):
        left_out.add("transcript line without an audio file", f"{part.name}/{name}")
    for name, path in audio.items():
        folders = path.relative_to(part).parts[:-1]
        if len(folders) != 2:
            left_out.add("audio file outside <speaker>/<chapter>/", path)
        elif transcripts and name not in texts:
            left_out.add("audio file without a transcript line", path)
        else:
            speaker, chapter = folders
            info = {"chapter": chapter, "part": part.name}
            yield recording(name, split, speaker, path, texts.get(name), info)
