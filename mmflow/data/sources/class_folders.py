"""Pictures in one folder per class, with or without folders for the parts: ImageNet, CIFAR-10 folders, your own."""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from mmflow.data.sources.images import PICTURE_ENDINGS, as_member
from mmflow.data.sources.items import Item, unique_keys
from mmflow.data.sources.layout import LeftOut, files, real
from mmflow.data.sources.recordings import read_lines, read_pairs
from mmflow.data.sources.splits import SPLIT_OF, listed


class ClassFolders:
    """`train/<class>/*` and `val/<class>/*` (or validation, dev, test), or only `<class>/*`, in folders above or not.

    Folders below that of a class belong to it. The sample's JSON has "label", the number of the class in the
    alphabetical order of the folders of all parts, "class", its name, "folder", that of the class, and "path".

    Args:
        names: a text file in the data set with lines `<folder> <name of the class>`, such as ImageNet's
            LOC_synset_mapping.txt; classes get these names, and numbers even where their folder is missing.
        labels: a text file in the data set with lines `<picture> <folder>` or `<picture>,<folder>` and maybe more, such
            as ImageNet's LOC_val_solution.csv; the classes of pictures that are in no folder of a class.
    """

    def __init__(self, names: str | None = None, labels: str | None = None) -> None:
        self.names, self.labels = names, labels

    def items(self, root: Path) -> list[Item]:
        """The samples of the folder `root`. Raises ValueError when no picture has a class."""
        root = root.resolve()
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder; name one that has a folder of pictures for each class")
        left_out = LeftOut(root.name)
        names = read_pairs(path, left_out) if (path := _text(root, self.names, left_out)) else {}
        labels = _read_labels(path) if (path := _text(root, self.labels, left_out)) else {}
        return listed(
            _items(root, names, labels, left_out),
            left_out,
            f"{root}: no picture has a class; expected train/CLASS/PICTURE or CLASS/PICTURE in it",
            one="picture",
            group="picture",
        )


def _text(root: Path, name: str | None, left_out: LeftOut) -> Path | None:
    if name is None:
        return None
    if real(root / name):
        return root / name
    left_out.add("missing file of classes, done without it", root / name)
    return None


def _read_labels(path: Path) -> dict[str, str]:
    """The folder of the class of each picture, by its name without ending."""
    rows = [re.split(r"[,\s]+", line) for line in read_lines(path)]
    return {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}


def _items(root: Path, names: dict[str, str], labels: dict[str, str], left_out: LeftOut) -> Iterator[Item]:
    places = _places(root, bool(labels), left_out)
    folders = {folder for _, folder, _ in places.values() if folder} | names.keys()
    numbers = {folder: number for number, folder in enumerate(sorted(folders or set(labels.values())))}
    keys = unique_keys([name for _, _, name in places.values()])
    for key, (place, (split, own, _)) in zip(keys, places.items(), strict=True):
        path = Path(place)
        folder = own or labels.get(path.stem)
        if folder is None:
            left_out.add("picture in no folder of a class", path)
        elif folder not in numbers:
            left_out.add("picture whose label is no class", f"{path}: {folder}")
        elif member := as_member(place, left_out):
            info = {"label": numbers[folder], "class": names.get(folder, folder), "folder": folder}
            yield Item(key, split, key, member, {"json": info | {"path": path.relative_to(root).as_posix()}})


def _places(root: Path, flat: bool, left_out: LeftOut) -> dict[str, tuple[str, str | None, str]]:
    """Split, folder of the class and path below the folders that all share, for each picture by its path.

    flat: whether the pictures of a part may be in none of its folders.
    """
    paths = files(root, PICTURE_ENDINGS, left_out)  # ImageNet has 1.3 million: what is kept of them is small
    folders = [path.relative_to(root).parts[:-1] for path in paths]
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    shared = max(0, min([shared, *(len(folder) - 1 for folder in folders)]))  # the last folder may be that of a class
    below = [folder[shared:] for folder in folders]
    with_parts = any(folder and folder[0].lower() in SPLIT_OF and (len(folder) > 1 or flat) for folder in below)
    places = {}
    for path, folder in zip(paths, below, strict=True):
        name = "/".join((*folder, path.name))
        if not with_parts:
            places[str(path)] = ("train", next(iter(folder), None), name)
        elif folder and folder[0].lower() in SPLIT_OF:
            places[str(path)] = (SPLIT_OF[folder[0].lower()], next(iter(folder[1:]), None), name)
        else:
            left_out.add("picture outside the folders of the parts", path)
    return places
