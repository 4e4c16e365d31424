"""Flickr8k (Hodosh, Young and Hockenmaier, JAIR 2013; five captions for each of 8,091 photos)."""

import csv
from collections.abc import Container, Iterator
from pathlib import Path

from mmflow.data.sources.images import PICTURE_ENDINGS, as_member, one_line, pictures_by_name
from mmflow.data.sources.items import Item, unique_keys
from mmflow.data.sources.layout import LeftOut, find_folder, real
from mmflow.data.sources.recordings import read_lines
from mmflow.data.sources.splits import listed

TOKENS, TABLE = "Flickr8k.token.txt", "captions.txt"
LISTS = {
    "Flickr_8k.trainImages.txt": "train",
    "Flickr_8k.devImages.txt": "validation",
    "Flickr_8k.testImages.txt": "test",
}
TEXTS = "Flickr8k_text"  # the folder of Flickr8k_text.zip, where one was made for it
WANTED = f"{TOKENS}, in a folder {TEXTS} or not, or {TABLE}, and the photos in a folder"
ORIGIN = "https://www.kaggle.com/datasets/adityajn105/flickr8k"


class Flickr8k:
    """`Flickr8k.token.txt` with lines `photo#number<TAB>caption`, or `captions.txt`, a CSV with `image,caption`.

    The photos may be in any folders below; they are found by name. Where the lists of the original parts are there,
    `Flickr_8k.trainImages.txt` and those for dev and test, they make the splits and photos on none are left out. All
    captions of a photo are in the sample's JSON as "captions", the first one is its text.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no photo has a caption."""
        folder = find_folder(root, _is_layout, WANTED, ORIGIN, inner=("Images", "Flicker8k_Dataset"))
        left_out = LeftOut("Flickr8k")
        return listed(
            _items(folder, left_out),
            left_out,
            f"{folder}: no photo has a caption; expected {WANTED} ({ORIGIN})",
            one="photo",
            group="photo",
        )


def _is_layout(place: Path) -> bool:
    return real(place / TABLE) or _has_tokens(place) or _has_tokens(place / TEXTS)


def _has_tokens(place: Path) -> bool:
    return real(place) and real(place / TOKENS)


def _items(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    texts = folder / TEXTS if _has_tokens(folder / TEXTS) else folder
    pairs = _read_tokens(texts / TOKENS, left_out) if _has_tokens(texts) else _read_table(folder / TABLE)
    pictures = pictures_by_name(folder, left_out)
    captions = _by_photo(pairs, pictures, left_out)
    lists = {split: read_lines(texts / name) for name, split in LISTS.items() if real(texts / name)}
    part_of = {photo: split for split, photos in lists.items() for photo in photos}
    for photo in part_of:
        if photo not in pictures:
            left_out.add("listed photo that is not there", photo)
    for key, (photo, path) in zip(unique_keys(list(pictures)), pictures.items(), strict=True):
        if photo not in captions:
            left_out.add("photo without a caption", path)
        elif lists and photo not in part_of:
            left_out.add("photo on none of the lists of the parts", path)
        elif files := as_member(path, left_out):
            values = {"txt": captions[photo][0], "json": {"captions": captions[photo]}}
            yield Item(key, part_of.get(photo, "train"), key, files, values)


def _by_photo(pairs: list[tuple[str, str]], pictures: Container[str], left_out: LeftOut) -> dict[str, list[str]]:
    """The captions of each photo that is there, each once and on one line, in the order of the file."""
    captions: dict[str, list[str]] = {}
    for photo, text in pairs:
        caption = one_line(text)
        if not caption:
            left_out.add("line without a caption", photo)
        elif photo not in pictures:
            left_out.add("caption of a photo that is not there", photo)
        elif caption in captions.setdefault(photo, []):
            left_out.add("caption that its photo already has", f"{photo}: {caption}")
        else:
            captions[photo].append(caption)
    return captions


def _read_tokens(path: Path, left_out: LeftOut) -> list[tuple[str, str]]:
    """(photo, caption) from lines `photo#number<TAB>caption`."""
    pairs = []
    for line in read_lines(path):
        place, _, caption = line.partition("\t")
        photo, mark, _ = place.rpartition("#")
        if mark:
            pairs.append((photo, caption))
        else:
            left_out.add("line that does not begin with `photo#number`", f"{path}: {line}")
    return pairs


def _read_table(path: Path) -> list[tuple[str, str]]:
    """(photo, caption) from a CSV with the header `image,caption`; commas in a caption need no quotation marks."""
    lines = [f"{line}\n" for line in read_lines(path)]
    if lines[:1] != ["image,caption\n"]:
        raise ValueError(f"{path} begins with {''.join(lines[:1])[:60]!r}; its first line must be `image,caption`")
    try:
        rows = list(csv.reader(lines[1:]))
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV: {error}; close each quotation mark that opens a caption") from error
    for photo, *caption in rows:
        for line in ",".join(caption).split("\n")[1:]:
            if line.partition(",")[0].lower().endswith(PICTURE_ENDINGS):
                raise ValueError(
                    f"{path}: a caption of {photo} opens with a quotation mark that is not closed before the line "
                    f'{line[:60]!r}; close it, and write marks inside a quoted caption twice, as in "a ""big"" dog"'
                )
    return [(photo, ",".join(caption)) for photo, *caption in rows]
