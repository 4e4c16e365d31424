"""ESC-50: environmental sounds in 50 classes (Piczak, ACM Multimedia 2015; https://github.com/karolpiczak/ESC-50)."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import AUDIO_ENDINGS, as_sound, read_lines
from mmflow.data.sources.splits import listed

FOLDS = range(1, 6)
TABLE = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "target", "category", "src_file", "take")
WANTED = f"{TABLE} and a folder audio with the files that it names"
ORIGIN = "https://github.com/karolpiczak/ESC-50"


class ESC50:
    """`meta/esc50.csv` and `audio/<fold>-<recording>-<take>-<class>.wav`: clips of 5 s in 50 classes and 5 folds.

    Clips cut from one recording are always in one fold, so the folds make the splits: those named here are validation
    and test, the others train. The usual figure is the mean over the five folds as the test part. The label is the
    data set's own number of the class, 0 to 49, also where only some classes are there (ESC-10).

    Args:
        validation_folds: folds for validation.
        test_folds: folds for testing.

    Raises ValueError for folds that are not in 1 to 5, or in both.
    """

    def __init__(self, validation_folds: Sequence[int] = (4,), test_folds: Sequence[int] = (5,)) -> None:
        self.split_of = dict.fromkeys(validation_folds, "validation") | dict.fromkeys(test_folds, "test")
        named = [*validation_folds, *test_folds]
        if not set(named) <= set(FOLDS) or len(named) > len(self.split_of):
            raise ValueError(
                f"validation_folds={list(validation_folds)} and test_folds={list(test_folds)} must be different "
                f"numbers from 1 to 5, for example [4] and [5]"
            )

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no line has its sound."""
        folder = find_folder(root, _is_layout, WANTED, ORIGIN, inner=("audio", "meta"))
        left_out = LeftOut("ESC-50")
        return listed(
            self._items(folder, left_out),
            left_out,
            f"{folder}: no line of {TABLE} has its sound; expected {WANTED} ({ORIGIN})",
            one="clip",
            group="recording",
        )

    def _items(self, folder: Path, left_out: LeftOut) -> Iterator[Item]:
        sounds = {path.name: path for path in files(folder / "audio", AUDIO_ENDINGS, left_out)}
        used: set[str] = set()
        for row in read_table(folder / TABLE, COLUMNS):
            name, fold, label = row["filename"], row["fold"], row["target"]
            if name not in sounds:
                left_out.add(f"line of {TABLE} without its sound", name)
            elif name in used:
                left_out.add("second line for the same sound", name)
            elif not (fold.isdecimal() and label.isdecimal() and int(fold) in FOLDS):
                left_out.add("line without a fold from 1 to 5 and the number of a class", row)
            else:
                used.add(name)
                info = {"label": int(label), "class": row["category"], "fold": int(fold)}
                info |= {"recording": row["src_file"], "take": row["take"]}
                split = self.split_of.get(int(fold), "train")
                yield Item(Path(name).stem, split, row["src_file"], as_sound(sounds[name]), {"json": info})
        for name in sorted(sounds.keys() - used):
            left_out.add(f"sound without a line in {TABLE}", name)


def _is_layout(place: Path) -> bool:
    return real(place / "meta") and real(place / TABLE) and real(place / "audio")


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, column -> text. Raises ValueError when one of `columns` is not there."""
    try:
        table = csv.DictReader(read_lines(path), restval="", restkey="")
        missing = [column for column in columns if column not in (table.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has the columns {', '.join(table.fieldnames or ['(none)'])} and lacks {', '.join(missing)}; "
                f"its first line must name them"
            )
        return list(table)
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV table: {error}; download it again") from error
