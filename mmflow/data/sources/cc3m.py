"""Conceptual Captions (Sharma et al., ACL 2018) and other tables of captions and URLs, with the pictures downloaded."""

import logging
import re
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmflow.data.sources.images import PICTURE_ENDINGS, as_member
from mmflow.data.sources.items import Item, unique_keys
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import read_lines
from mmflow.data.sources.splits import SPLIT_OF, listed

log = logging.getLogger(__name__)

WANTED = "a table such as Train_GCC-training.tsv, with the downloaded pictures in a folder beside it"
ORIGIN = "https://ai.google.com/research/ConceptualCaptions/download"


@dataclass(frozen=True)
class Line:
    """A line of a table: `number` counts from 0 without a header, `name` is the third of three columns."""

    number: int
    caption: str
    url: str
    name: str | None


class CC3M:
    """Tables `*.tsv` with lines `caption<TAB>url` or `url<TAB>caption`, as published, and folders of pictures.

    A table is train, validation or test by such a word in its name, or else train. Its pictures are anywhere in the
    folder with the same name as the table, or in one named for its part, such as `training` or `val`, or, if it is the
    only table, anywhere beside it. A line finds its picture by its name without folder and ending:
    - Where lines have a third column and none has more, that column names the picture.
    - Or pictures are named by the number of the line, from 0 and with zeros before it or not (`000000012.jpg`). A line
      with the names of the columns at the top is not counted, nor are empty lines. img2dataset names them so.
    - Or by the CRC-32 of the URL as a decimal number, without an ending, as older download scripts did.
    Of the last two, that which finds more pictures holds for the whole table; this is logged.

    The URL is in the sample's JSON. Lines whose picture could not be downloaded are counted. Where a part is cut out of
    another, lines with the same URL stay together.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the folder `root`. Raises ValueError when no line has its picture."""
        folder = find_folder(root, lambda place: bool(_tables(place)), WANTED, ORIGIN, inner=tuple(SPLIT_OF))
        left_out = LeftOut("CC3M")
        return listed(
            (item for table in _tables(folder) for item in _items(folder, table, left_out)),
            left_out,
            f"{folder}: no line of a table has its picture; see how they are named in {__name__}.CC3M",
            one="picture",
            group="URL",
        )


def _tables(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("[!.]*.tsv") if path.is_file() and real(path))


def _split(table: Path) -> str:
    words = re.split(r"[^a-z]+", table.stem.lower())
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")


def _items(folder: Path, table: Path, left_out: LeftOut) -> Iterator[Item]:
    lines = list(_lines(table, left_out))
    pictures = _pictures(_place(folder, table), left_out)
    keys = unique_keys([f"{table.stem}/{line.number:09d}.tsv" for line in lines])
    used = set()
    for key, line, name in zip(keys, lines, _names(table, lines, pictures), strict=True):
        if name not in pictures:
            left_out.add("line whose picture is not there", f"{table}: {line.url}")
        elif name in used:
            left_out.add("second line for the same picture", f"{table}: {line.url}")
        elif member := as_member(pictures[name], left_out):
            used.add(name)
            yield Item(key, _split(table), line.url, member, {"txt": line.caption, "json": {"url": line.url}})


def _lines(table: Path, left_out: LeftOut) -> Iterator[Line]:
    rows = [[field.strip() for field in line.split("\t")] for line in read_lines(table)]
    if rows and sorted(rows[0][:2]) == ["caption", "url"]:
        del rows[0]
    named = max(map(len, rows), default=0) == 3
    for number, row in enumerate(rows):
        first, second, third = (*row, "", "", "")[:3]
        caption, url = (second, first) if _is_url(first) and not _is_url(second) else (first, second)
        if caption and _is_url(url):
            yield Line(number, caption, url, third if named else None)
        else:
            left_out.add("line without a caption and a URL", f"{table}: {row}")


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _place(folder: Path, table: Path) -> Path:
    """The folder with the pictures of a table."""
    same = folder / table.stem
    if same.is_dir() and real(same):
        return same
    split, tables = _split(table), _tables(folder)
    children = (child for child in sorted(folder.iterdir()) if child.is_dir() and real(child))
    of_part = [child for child in children if SPLIT_OF.get(child.name.lower()) == split]
    if len(of_part) == 1 and sum(_split(other) == split for other in tables) == 1:
        return of_part[0]
    if len(tables) == 1:
        return folder
    raise ValueError(
        f"{table}: which folder holds its pictures? Name it {table.stem}, or give each table its own --root"
    )


def _pictures(place: Path, left_out: LeftOut) -> dict[str, Path]:
    """The files below `place` that may be pictures, by the names that lines find them by; an ending is not needed."""
    paths = files(place, PICTURE_ENDINGS, left_out)
    pictures: dict[str, Path] = {}
    for path in paths or [path for path in files(place, ("",), left_out) if not path.suffix]:
        if _name(path.name) in pictures:
            left_out.add("second picture of the same name", path)
        pictures.setdefault(_name(path.name), path)
    return pictures


def _name(name: str) -> str:
    """A name without folder, ending and zeros at the front of a number."""
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in PICTURE_ENDINGS else path.name
    return (stem.lstrip("0") or "0") if stem.isdecimal() else stem


def _names(table: Path, lines: list[Line], pictures: Container[str]) -> list[str]:
    """The name of the picture of each line."""
    if any(line.name is not None for line in lines):
        return [_name(line.name or "") for line in lines]
    ways = {
        "the number of the line": [str(line.number) for line in lines],
        "the CRC-32 of the URL": [str(zlib.crc32(line.url.encode())) for line in lines],
    }
    counts = {way: sum(name in pictures for name in names) for way, names in ways.items()}
    best = max(counts, key=lambda way: counts[way])
    log.info("CC3M: the pictures of %s are named by %s: %d of %d", table.name, best, counts[best], len(lines))
    return ways[best]
