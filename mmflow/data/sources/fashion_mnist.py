"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), MNIST, and others in the four IDX files of these."""

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import find_folder, real
from mmflow.data.sources.splits import complete

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PARTS = {"train": "train", "t10k": "test"}
KINDS = (("images", 3), ("labels", 1))  # and the number of axes
MAX_BYTES = 2**30  # of an unpacked file; Fashion-MNIST's largest has 47 MB
UINT8 = 8  # what an IDX header calls it
WANTED = "train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or .gz, and the same for t10k"
ORIGIN = "https://github.com/zalandoresearch/fashion-mnist"
REPAIR = f"download it again ({ORIGIN})"


class FashionMNIST:
    """`train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same for t10k, plain or packed (`.gz`).

    The pictures become grey PNG files. The sample's JSON has "label", the number in the file, and "class", its name.
    Validation is cut out of train.

    Args:
        classes: names of the labels 0, 1, ...; for MNIST ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"].
    """

    def __init__(self, classes: Sequence[str] = CLASSES) -> None:
        self.classes = tuple(classes)

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`.

        Raises ValueError for files that are not whole, not IDX or do not belong together, and labels without a class.
        """
        folder = find_folder(root, lambda place: any(_is_part(place, part) for part in PARTS), WANTED, ORIGIN, inner=())
        items = [item for part in PARTS if _is_part(folder, part) for item in self._part(folder, part)]
        return complete(items, "Fashion-MNIST", one="picture", group="picture")

    def _part(self, folder: Path, part: str) -> Iterator[Item]:
        pictures, labels = (_read_idx(_candidates(folder, part, *kind)[0], kind[1]) for kind in KINDS)
        if len(pictures) != len(labels):
            raise ValueError(f"{folder}: {len(pictures)} pictures of {part}, but {len(labels)} labels; {REPAIR}")
        if labels.max() >= len(self.classes):
            raise ValueError(
                f"{folder}: {part} has the label {labels.max()}, but there are names for {len(self.classes)} classes; "
                "name all under make in the spec, `init_args: {classes: [...]}`"
            )
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            key, info = f"{part}-{number:05d}", {"label": int(label), "class": self.classes[label]}
            yield Pixels(key, PARTS[part], key, values={"json": info}, rows=len(picture), pixels=picture.tobytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels(Item):
    """A grey picture of so many rows of bytes, which becomes a PNG file."""

    rows: int
    pixels: bytes

    @property
    def size(self) -> int:
        """Bytes of the pixels, of which a PNG file takes about half."""
        return len(self.pixels)

    def sample(self) -> dict[str, Any]:
        """The sample; packs the picture."""
        buffer = io.BytesIO()
        Image.fromarray(np.frombuffer(self.pixels, np.uint8).reshape(self.rows, -1)).save(buffer, "PNG")
        return {"__key__": self.key, "png": buffer.getvalue(), **self.values}


def _is_part(place: Path, part: str) -> bool:
    return all(_candidates(place, part, *kind) for kind in KINDS)


def _candidates(place: Path, part: str, what: str, axes: int) -> list[Path]:
    """The files of one kind; some copies have a dot in the name where the original has a hyphen."""
    names = [f"{part}-{what}{mark}idx{axes}-ubyte{gz}" for gz in ("", ".gz") for mark in "-."]
    return [place / name for name in names if real(place / name)]


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """An array of bytes with so many axes; at most MAX_BYTES are unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            shape = np.frombuffer(head[4 : len(head) // 4 * 4], ">u4").tolist()
            size = math.prod(shape)
            if head[:4] != bytes([0, 0, UINT8, axes]) or len(shape) != axes or not 0 < size <= MAX_BYTES:
                raise ValueError(
                    f"{path} begins with {head!r}, which is no IDX header for {axes} axes and 1 to {MAX_BYTES} bytes; "
                    f"{REPAIR}"
                )
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REPAIR}") from error
    if len(data) != size:
        raise ValueError(f"{path} does not hold the {size} bytes of {shape} that its header promises; {REPAIR}")
    return np.frombuffer(data, np.uint8).reshape(shape)
