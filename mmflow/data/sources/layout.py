"""Finding the files of an original data set, whichever folder of it was named, and counting what is left out."""

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER_LINK = "link to a folder, not followed; name its target with --root, or make a copy with `cp -rL`"


class LeftOut:
    """What a converter does not use, counted by reason.

    Args:
        source: the data set, for the log.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, example: object) -> None:
        """Count one more; the first example of a reason is kept for the log."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._first.setdefault(reason, str(example))

    def report(self) -> None:
        """Log one line per reason."""
        for reason, count in self.counts.items():
            log.warning("%s: %d x %s, first: %s", self.source, count, reason, self._first[reason])


def files(root: Path, endings: Collection[str], left_out: LeftOut) -> list[Path]:
    """All regular files below `root` whose name ends in one of `endings` (lower case), sorted.

    Hidden files and folders are passed over. Links are not followed out of `root`, nor to folders: a downloaded data
    set must not be able to copy other files of the machine into its shards. Raises OSError for an unreadable folder.
    """
    root = root.resolve()
    found = []
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        for link in [path for name in sorted(subfolders) if (path := Path(folder, name)).is_symlink()]:
            left_out.add(FOLDER_LINK, link)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or not name.lower().endswith(tuple(endings)):
                continue
            if not path.is_file():  # opening a named pipe would wait for ever
                left_out.add("dead link or no regular file", path)
            elif path.is_symlink() and not path.resolve().is_relative_to(root):
                left_out.add("link out of the folder, not followed; `cp -rL` makes a copy without links", path)
            else:
                found.append(path)
    return sorted(found)


def real(path: Path) -> bool:
    """Whether `path` is there, and is no link."""
    return path.exists() and not path.is_symlink()


def _raise(error: OSError) -> None:
    raise error


def find_folder(
    root: Path, is_layout: Callable[[Path], bool], wanted: str, origin: str, inner: Collection[str]
) -> Path:
    """The folder of a data set, given that folder, the one above it, or one inside it.

    Args:
        root: what the user named.
        is_layout: whether a folder is laid out like the data set.
        wanted: what `is_layout` looks for, in words.
        origin: where the data set can be had.
        inner: names of the folders inside the data set from which the way leads one up.

    Raises ValueError when there is no such folder, or more than one.
    """
    root = root.resolve()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; expected {wanted}; name the unpacked data set ({origin})")
    if is_layout(root):
        return root
    if root.name in inner and is_layout(root.parent):
        return root.parent
    found = sorted(child for child in root.iterdir() if child.is_dir() and real(child) and is_layout(child))
    if not found:
        raise ValueError(
            f"{root} does not hold {wanted}, nor does a folder directly inside it (links are not followed); "
            f"name the unpacked data set with --root ({origin})"
        )
    if len(found) > 1:
        raise ValueError(f"{root} holds several data sets: {', '.join(p.name for p in found)}; name one with --root")
    return found[0]
