"""Any file, or folder of files, as bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files
from mmflow.data.sources.splits import HELD_OUT, SPLIT_OF, listed


class ByteFiles:
    """Files of any kind, untouched, in pieces of at most `max_bytes` that end at line ends where there are any.

    A folder is split by file. Files named train, valid (or val, dev, validation) or test, such as `wiki.test.tokens`,
    or below a folder of that name at the top, keep that part; missing parts are cut out of the others. A file with the
    same bytes as one before it is left out, so that none is in two parts. A single file is split in its own order: the
    last tenth is test, the tenth before it validation.

    The pieces of a file, in the order of their keys, are the file again. A sample's JSON has the "path" of the file,
    its "num_bytes" and "sha256", and the "offset" of the piece in it.

    Args:
        max_bytes: length of the longest piece.
        endings: what the names of the files must end in, such as `.txt`; by default anything.

    Raises ValueError unless `max_bytes` is positive.
    """

    def __init__(self, max_bytes: int = 65_536, endings: Sequence[str] = ()) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes} must be at least 1, for example 65536")
        self.max_bytes, self.endings = max_bytes, [ending.lower() for ending in endings]

    def items(self, root: Path) -> list[Item]:
        """The samples of the file or folder `root`. Raises ValueError when no file has any bytes."""
        root = root.resolve()
        if not root.exists():
            raise ValueError(f"there is no file or folder {root}; name one with --root")
        left_out = LeftOut(root.name)
        found = _different(files(root, self.endings or [""], left_out) if root.is_dir() else [root], left_out)
        return listed(
            self._items(root if root.is_dir() else root.parent, found),
            left_out,
            f"{root} holds no file with any bytes in it, with a name in {self.endings or 'anything'}",
            one="piece",
            group="file",
        )

    def _items(self, folder: Path, found: dict[Path, str]) -> Iterator[Item]:
        for number, (path, digest) in enumerate(found.items()):
            name, size = path.relative_to(folder).as_posix(), path.stat().st_size
            parts = _tenths(path, size, self.max_bytes) if len(found) == 1 else {_split(name): (0, size)}
            for order, (split, start, end) in enumerate(_pieces(path, parts, self.max_bytes)):
                info = {"path": name, "num_bytes": size, "sha256": digest, "offset": start}
                yield Piece(f"{number:06d}-{order:06d}", split, name, {"bin": path}, {"json": info}, end=end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece(Item):
    """Bytes of the file from the "offset" in the JSON to `end`."""

    end: int

    @property
    def size(self) -> int:
        """Bytes of the piece."""
        return self.end - self.values["json"]["offset"]

    def sample(self) -> dict[str, Any]:
        """The sample; reads the piece."""
        piece = _read(Path(self.files["bin"]), self.values["json"]["offset"], self.end)
        return {"__key__": self.key, "bin": piece, **self.values}


def _different(paths: list[Path], left_out: LeftOut) -> dict[Path, str]:
    """Files with SHA-256 of their bytes; of those with the same bytes the first."""
    found: dict[str, Path] = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if path.stat().st_size == 0:
            left_out.add("empty file", path)
        elif digest in found:
            left_out.add("file with the same bytes as another", f"{path} as {found[digest]}")
        else:
            found[digest] = path
    return {path: digest for digest, path in found.items()}


def _split(name: str) -> str:
    """The part that the name of a file or its first folder says, train if it says none."""
    first, *below = name.lower().split("/")
    words = [first, *below[-1].split(".")] if below else first.split(".")
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")


def _tenths(path: Path, size: int, window: int) -> dict[str, tuple[int, int]]:
    """Split -> (start, end) for one file; ends are moved back to a line end, by at most `window` bytes."""
    held_out = round(HELD_OUT * size)
    validation = _line_end(path, max(0, size - 2 * held_out - window), size - 2 * held_out)
    test = _line_end(path, max(validation, size - held_out - window), size - held_out)
    return {"train": (0, validation), "validation": (validation, test), "test": (test, size)}


def _pieces(path: Path, parts: dict[str, tuple[int, int]], max_bytes: int) -> Iterator[tuple[str, int, int]]:
    """(split, start, end) of the pieces of one file, in order."""
    for split, (start, last) in parts.items():
        while start < last:
            end = min(start + max_bytes, last)
            end = _line_end(path, start, end) if end < last else last
            yield split, start, end
            start = end


def _line_end(path: Path, start: int, end: int) -> int:
    """Where the last line that ends between `start` and `end` does, `end` if none does."""
    place = _read(path, start, end).rfind(b"\n")
    return end if place < 0 else start + place + 1


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)
