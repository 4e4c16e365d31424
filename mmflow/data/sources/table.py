"""Tables with columns of text, categories and numbers, as CSV files."""

import csv
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, find_folder, real
from mmflow.data.sources.splits import SPLIT_OF, SPLITS, complete

log = logging.getLogger(__name__)

MISSING = ("", "nan", "NaN", "NA", "N/A", "null", "NULL", "None")
INTEGER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|infinity)", re.IGNORECASE)
MAX_INTEGER = 2**53  # from here on floats, which readers of JSON may use, skip integers
ROW_NUMBERS = re.compile(r"(Unnamed: \d+)?")  # the name of an index that pandas wrote, and what it reads there
KINDS = {"text": "text_cols", "categorical": "cat_cols", "numerical": "num_cols"}  # names in column_info.json
INFO = "column_info.json"
WANTED = "train.csv, val.csv and test.csv, or one .csv file"
ORIGIN = "your own; for example https://github.com/georgian-io/Multimodal-Toolkit"


@dataclass(frozen=True)
class Row:
    """One row: where it stands, and its cells by column."""

    where: str
    cells: dict[str, str]


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are; see `Table`. `kinds` has the keys of KINDS."""

    kinds: dict[str, list[str]]
    label: str | None
    classes: list[str]
    group: str | None
    missing: frozenset[str]

    def cell(self, row: Row, name: str) -> str | None:
        """The text of a cell, None for a missing one."""
        if name not in row.cells:
            raise ValueError(f"{row.where}: there is no column {name!r}, only {list(row.cells)}; correct the name")
        cell = row.cells[name].strip()
        return None if cell in self.missing else cell

    def number(self, row: Row, name: str) -> float | None:
        """The number in a cell, an int where it is one, None for a missing or infinite one."""
        cell = self.cell(row, name)
        if cell is None:
            return None
        if not NUMBER.fullmatch(cell):
            raise ValueError(
                f"{row.where}: {cell!r} in column {name!r} is no number; correct it, add it to `missing`, or name the "
                f"column under categorical or text"
            )
        value = float(cell)
        if not math.isfinite(value):
            return None
        return int(cell) if INTEGER.fullmatch(cell) and abs(value) < MAX_INTEGER else value

    def labels(self, row: Row) -> dict[str, Any]:
        """The label, with the name of its class if it is one."""
        if self.label is None or (cell := self.cell(row, self.label)) is None:
            return {"label": None}
        if not self.classes:
            return {"label": self.number(row, self.label)}
        if cell in self.classes:
            return {"label": self.classes.index(cell), "class": cell}
        number = float(cell) if NUMBER.fullmatch(cell) else -1
        if number not in range(len(self.classes)):
            raise ValueError(
                f"{row.where}: the label {cell!r} in column {self.label!r} is neither one of the classes "
                f"{self.classes} nor the number of one; correct it or the classes"
            )
        return {"label": int(number), "class": self.classes[int(number)]}

    def item(self, key: str, split: str, row: Row) -> Item:
        """The sample of one row."""
        texts, categories, numbers = self.kinds.values()
        values: dict[str, Any] = {name: self.cell(row, name) for name in (*texts, *categories)}
        said = [f"{name}: {values[name]}" for name in texts if values[name] is not None]
        values |= {name: self.number(row, name) for name in numbers}
        group = {"group": self.cell(row, self.group)} if self.group else {}
        members: dict[str, Any] = {"txt": "\n".join(said)} if texts else {}
        members["json"] = {"row": values} | self.labels(row) | group
        return Item(key, split, group.get("group") or key, values=members)


class Table:
    """CSV files with a header line, one sample per row: `train.csv`, `val.csv` and `test.csv`, or a single file.

    A sample's JSON is `{"row": {column: value}, "label": ...}`, with numbers for numerical columns, text for the others
    and null for missing cells. Its text has a line "column: value" for each cell of a text column that is not missing.
    Nothing is encoded, and nothing is fitted to the values.

    Columns have the kinds given here, or else those in a `column_info.json` beside the files (text_cols, cat_cols,
    num_cols, label_col, label_list). Or else they are guessed from the rows of train, and logged:
    - numerical: all cells are numbers; so are codes of categories, which only you can tell apart.
    - text: more than half of the cells differ, and they have more than two words or 40 characters on average.
    - left out: no cell at all; identifiers, which are one word and differ in all rows; columns without a name, which
      hold row numbers.
    - categorical: everything else.

    A label stays the number that it is. Where names of classes are given, or some label is not a number, "label" is the
    number of the class and "class" its name; without given names those are the labels in alphabetical order.

    Args:
        text: columns with text. When any of these three is given, columns in none of them are not used.
        categorical: columns with categories.
        numerical: columns with numbers.
        label: the column to predict; without one all labels are null.
        classes: names of the classes 0, 1, ...; the label column holds the numbers or the names.
        group: a column of which no value may be in two parts, such as the owner of several rows; becomes "group" in
            the JSON. Files that share one are put together and cut anew.
        missing: cells that stand for no value, apart from white space around them. Infinity always does.
    """

    def __init__(
        self,
        text: Sequence[str] = (),
        categorical: Sequence[str] = (),
        numerical: Sequence[str] = (),
        label: str | None = None,
        classes: Sequence[str] = (),
        group: str | None = None,
        missing: Sequence[str] = MISSING,
    ) -> None:
        kinds = {"text": list(text), "categorical": list(categorical), "numerical": list(numerical)}
        self.columns = Columns(kinds, label, list(classes), group, frozenset(missing))

    def items(self, root: Path) -> list[Item]:
        """The samples of the folder or the CSV file `root`.

        Raises ValueError for files that are not UTF-8 or not CSV, without rows, without a column that is named, for a
        column with two roles, a cell of a numerical column that is no number and a label that is no class.
        """
        left_out = LeftOut(root.resolve().name)
        paths = _csv_files(root, left_out)
        parts = {split: list(_rows(path, left_out)) for split, path in paths.items()}
        rows = [(split, number, row) for split in parts for number, row in enumerate(parts[split])]
        left_out.report()
        if not rows:
            raise ValueError(f"{', '.join(map(str, paths.values()))}: no row below the header")
        info = next(iter(paths.values())).with_name(INFO)
        columns = _stated(self.columns, info) if real(info) else self.columns
        columns = _checked(_guessed(columns, next(filter(None, parts.values()))))
        columns = _with_classes(columns, [row for _, _, row in rows])
        name = "{}-{:07d}" if len(paths) > 1 else "row-{1:07d}"
        items = [columns.item(name.format(split, number), split, row) for split, number, row in rows]
        return complete(_regrouped(items, columns.group), left_out.source, "row", columns.group or "row")


def _stated(columns: Columns, path: Path) -> Columns:
    """The same, and what was not given as `column_info.json` has it."""
    try:
        info = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for name in (*KINDS.values(), "label_list"):
        names = info.get(name, []) if isinstance(info, dict) else None
        if not isinstance(names, list) or not all(isinstance(column, str) for column in names):
            raise ValueError(f"{path}: {name} must be a list of names, not {names!r:.80}")
    if not isinstance(info.get("label_col"), str | None):
        raise ValueError(f"{path}: label_col must be the name of a column, not {info['label_col']!r:.80}")
    if not any(columns.kinds.values()):
        columns = replace(columns, kinds={kind: info.get(name, []) for kind, name in KINDS.items()})
    if columns.label in (None, info.get("label_col")):
        classes = columns.classes or info.get("label_list", [])
        columns = replace(columns, label=info.get("label_col"), classes=classes)
    return columns


def _guessed(columns: Columns, rows: list[Row]) -> Columns:
    """The same, with kinds as the cells look where none were given."""
    if any(columns.kinds.values()):
        return columns
    kinds: dict[str, list[str]] = {kind: [] for kind in (*KINDS, "left out")}
    for name in rows[0].cells:
        if name not in (columns.label, columns.group):
            cells = [cell for row in rows if (cell := columns.cell(row, name)) is not None]
            kinds[_kind(name, cells)].append(name)
    log.warning("the columns were guessed to be %s; name them under make.init_args if that is wrong", kinds)
    return replace(columns, kinds={kind: kinds[kind] for kind in KINDS})


def _kind(name: str, cells: list[str]) -> str:
    """What a column is by its name and its cells that are not missing; the rules are in the docstring of Table."""
    if ROW_NUMBERS.fullmatch(name) or not cells:
        return "left out"
    if all(map(NUMBER.fullmatch, cells)):
        return "numerical"
    different = len(set(cells)) / len(cells)
    words, characters = (sum(map(len, counted)) / len(cells) for counted in (map(str.split, cells), cells))
    if different > 0.5 and (words > 2 or characters > 40):
        return "text"
    return "left out" if different == words == 1 else "categorical"


def _checked(columns: Columns) -> Columns:
    """The same, every column named once. Raises ValueError for one with two roles, or none to learn from."""
    for kind, names in columns.kinds.items():
        for name, times in Counter(names).items():
            if times > 1:
                log.warning("%s column %r is named %d times; it is used once", kind, name, times)
    columns = replace(columns, kinds={kind: list(dict.fromkeys(names)) for kind, names in columns.kinds.items()})
    roles = Counter(name for names in columns.kinds.values() for name in names)
    if not roles:
        raise ValueError("there is no column to learn from; name some under text, categorical or numerical")
    roles.update([columns.label] if columns.label else [])
    for name, times in roles.items():
        if times > 1:
            raise ValueError(f"column {name!r} is {times} of text, categorical, numerical and label; name it once")
    return columns


def _with_classes(columns: Columns, rows: list[Row]) -> Columns:
    """The same; where no classes are given, the labels are taken for their names unless all are numbers."""
    if columns.label is None or columns.classes:
        return columns
    labels = {cell for row in rows if (cell := columns.cell(row, columns.label)) is not None}
    if all(map(NUMBER.fullmatch, labels)):
        return columns
    log.warning("the labels in column %r are taken for the names of %d classes", columns.label, len(labels))
    return replace(columns, classes=sorted(labels))


def _regrouped(items: list[Item], group: str | None) -> list[Item]:
    """The same, but all in train if a group is in two splits."""
    splits: dict[str, set[str]] = {}
    for item in items:
        splits.setdefault(item.group, set()).add(item.split)
    shared = sum(len(found) > 1 for found in splits.values())
    if not shared:
        return items
    text = "%d of %d values of %s are in more than one file, so the files are put together and cut by it"
    log.warning(text, shared, len(splits), group)
    return [replace(item, split="train") for item in items]


def _csv_files(root: Path, left_out: LeftOut) -> dict[str, Path]:
    """Split -> file, in the order of the splits; a single file is all train."""
    if root.is_file():
        return {"train": root.resolve()}
    folder = find_folder(root, lambda place: bool(_csvs(place)), WANTED, ORIGIN, inner=())
    paths = _csvs(folder)
    named: dict[str, Path] = {}
    for path in paths:
        split = SPLIT_OF.get(path.stem.lower())
        if split in named:
            raise ValueError(f"{path} and {named[split]} are both {split}; remove or rename one")
        if split:
            named[split] = path
        elif len(paths) > 1:
            left_out.add("CSV file that is not named for a part", path)
    if not named and len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"{folder} holds several CSV files ({names}) and no train.csv; name one of them with --root")
    named = named or {"train": paths[0]}
    return {split: named[split] for split in SPLITS if split in named}


def _csvs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*.[cC][sS][vV]") if real(path) and path.is_file())


def _rows(path: Path, left_out: LeftOut) -> Iterator[Row]:
    """The rows of one CSV file that has its columns named in the first line."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)  # or a quotation mark that nobody closes would swallow rows
            header = [name.strip() for name in next(reader, [])]
            twice = [name for name, times in Counter(header).items() if times > 1 and name]
            if twice:
                raise ValueError(f"{path} has two columns named {twice[0]!r}; rename one")
            for cells in reader:
                where = f"{path} line {(line := reader.line_num)}"
                if len(cells) == len(header):
                    yield Row(where, dict(zip(header, cells, strict=True)))
                elif cells:
                    left_out.add(f"row without {len(header)} cells", where)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text; convert it, for example with `iconv -f latin1 -t utf-8`, "
            f"if Latin-1 is what it is"
        ) from error
    except csv.Error as error:
        raise ValueError(
            f"{path}: not CSV after line {line}: {error}; "
            f'a cell with commas, line breaks or quotation marks is written "like ""this"""'
        ) from error
