"""Any folder of audio files."""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from mmflow.data.sources.items import Item, unique_keys
from mmflow.data.sources.layout import LeftOut, files
from mmflow.data.sources.recordings import AUDIO_ENDINGS, read_lines, recording
from mmflow.data.sources.splits import SPLIT_OF, listed


class AudioFolder:
    """A folder tree of audio files, each with its transcript in a `.txt` of the same name beside it, or without one.

    The first level of folders at which the tree branches is taken for the speakers. Where that level consists of
    folders named train, validation (or dev, valid) and test, these are the splits and the speakers are below.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the folder `root`. Raises ValueError when there is no audio file in it."""
        root = root.resolve()
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder; name one with audio files in it")
        left_out = LeftOut(root.name)
        found = files(root, (".txt", *AUDIO_ENDINGS), left_out)
        paths = [path for path in found if path.suffix.lower() != ".txt"]
        return listed(
            _recordings(root, paths, set(found), left_out),
            left_out,
            f"{root} holds no audio files; expected names that end in {', '.join(AUDIO_ENDINGS)}, at any depth",
        )


def _recordings(root: Path, paths: list[Path], found: set[Path], left_out: LeftOut) -> Iterator[Item]:
    names = [path.relative_to(root).as_posix() for path in paths]
    branches = _branches([name.split("/")[:-1] for name in names])
    for name, key, path, (split, speaker) in zip(names, unique_keys(names), paths, branches, strict=True):
        yield recording(key, split, speaker, path, _text(path, found, left_out), {"path": name})


def _branches(folders: list[list[str]]) -> list[tuple[str, str]]:
    """(split, speaker) for the folders below the root that lead to each file."""
    below = _without_common(folders)
    if any(first and first[0].lower() in SPLIT_OF for first in below):
        splits = [SPLIT_OF.get(first[0].lower(), "train") if first else "train" for first in below]
        below = _without_common([first[1:] if first and first[0].lower() in SPLIT_OF else first for first in below])
    else:
        splits = ["train"] * len(below)
    return [(split, rest[0] if rest else "unknown") for split, rest in zip(splits, below, strict=True)]


def _without_common(folders: list[list[str]]) -> list[list[str]]:
    """The folders without those that all of them start with."""
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    return [folder[common:] for folder in folders]


def _text(path: Path, found: set[Path], left_out: LeftOut) -> str | None:
    """The transcript beside an audio file on one line, or None."""
    beside = path.with_suffix(".txt")
    if beside not in found:
        left_out.add("audio file without a .txt, kept without text", path)
        return None
    try:
        text = " ".join(read_lines(beside))
    except ValueError:
        left_out.add("text that is not UTF-8, audio kept without it", beside)
        return None
    if not text:
        left_out.add("empty text, audio kept without it", beside)
        return None
    return text
