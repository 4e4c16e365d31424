"""COCO (Lin et al., ECCV 2014, arXiv:1405.0312; https://cocodataset.org): captions and objects of photos."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mmflow.data.sources.images import as_member, one_line, pictures_by_name
from mmflow.data.sources.items import Item, unique_keys
from mmflow.data.sources.layout import LeftOut, find_folder, real
from mmflow.data.sources.splits import listed

SPLIT_OF = {"train": "train", "val": "validation"}
INNER = ("annotations", "images", "train2017", "val2017", "train2014", "val2014")
ORIGIN = "https://cocodataset.org/#download"
REPAIR = f"take the annotations from {ORIGIN}, or write your own in that form"


class CocoCaptions:
    """`annotations/captions_train2017.json`, or val or another year, and the photos in `train2017`, `images` or not.

    All captions of a photo are in the sample's JSON as "captions", the first one is its text; a photo without any is
    left out. "id", "width", "height" and "licence" (a URL) are those of the photo.

    Args:
        year: which annotations to take, where there are those of several years.
    """

    def __init__(self, year: int | None = None) -> None:
        self.year = year

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError for annotations of another form."""
        return _listed(root, "captions", self.year, _captions)


class CocoInstances:
    """`annotations/instances_train2017.json`, or val or another year, and the photos in `train2017`, `images` or not.

    The sample's JSON has "objects", a list of {"class": name, "label": number of the class in the data set, "box":
    [x, y, width, height] in pixels from the upper left corner, "area" in square pixels, "iscrowd", "segmentation"}.
    All is as in the file: a box may have a side of 0, and a segmentation is a list of polygons [x, y, x, y, ...], or
    for a crowd a run-length code. The list is empty for a photo without objects. "id", "width", "height" and "licence"
    are those of the photo.

    Args:
        year: which annotations to take, where there are those of several years.
    """

    def __init__(self, year: int | None = None) -> None:
        self.year = year

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError for annotations of another form."""
        return _listed(root, "instances", self.year, _objects)


Infos = dict[int | str, dict[str, Any]]  # the JSON of each photo, by its id


def _captions(path: Path, content: dict[str, Any]) -> Infos:
    captions: dict[int | str, list[str]] = {}
    for entry in _entries(path, content, "annotations", {"image_id": int | str, "caption": str}):
        if caption := one_line(entry["caption"]):
            captions.setdefault(entry["image_id"], []).append(caption)
    return {number: {"captions": found} for number, found in captions.items()}


def _objects(path: Path, content: dict[str, Any]) -> Infos:
    classes = {e["id"]: e["name"] for e in _entries(path, content, "categories", {"id": int, "name": str})}
    objects: dict[int | str, list[dict[str, Any]]] = {photo["id"]: [] for photo in _photos(path, content)}
    for entry in _entries(path, content, "annotations", {"image_id": int | str, "category_id": int, "bbox": list}):
        label = entry["category_id"]
        if label not in classes:
            raise ValueError(f"{path}: category_id {label} of {str(entry)[:100]} is not among the categories; {REPAIR}")
        known = {key: entry[key] for key in ("area", "iscrowd", "segmentation") if key in entry}
        box = {"class": classes[label], "label": label, "box": entry["bbox"]}
        objects.setdefault(entry["image_id"], []).append(box | known)
    return {number: {"objects": found} for number, found in objects.items()}


def _listed(root: Path, kind: str, year: int | None, describe: Callable[[Path, dict[str, Any]], Infos]) -> list[Item]:
    wanted = f"annotations/{kind}_train{year or 2017}.json or {kind}_val{year or 2017}.json beside folders of photos"
    folder = find_folder(root, lambda place: bool(_parts(place, kind, year)), wanted, ORIGIN, INNER)
    parts = _parts(folder, kind, year)
    years = sorted({part[-4:] for part in parts})
    if len(years) > 1:
        raise ValueError(
            f"{folder} holds {kind} of {' and '.join(years)}, which share photos; choose with "
            f"`init_args: {{year: {years[-1]}}}` under make in the spec"
        )
    left_out = LeftOut(f"COCO {kind}")
    return listed(
        (item for part, path in parts.items() for item in _items(folder, part, path, describe, left_out)),
        left_out,
        f"{folder}: none of the photos with {kind} is there; expected {wanted} ({ORIGIN})",
        one="photo",
        group="photo",
    )


def _parts(place: Path, kind: str, year: int | None) -> dict[str, Path]:
    """The file of annotations of each part, such as train2017."""
    if not real(place / "annotations"):
        return {}
    name = re.compile(rf"{kind}_((?:{'|'.join(SPLIT_OF)}){year or '[0-9]{4}'})\.json")
    found = ((name.fullmatch(path.name), path) for path in sorted((place / "annotations").iterdir()) if real(path))
    return {match[1]: path for match, path in found if match}


def _items(
    folder: Path, part: str, path: Path, describe: Callable[[Path, dict[str, Any]], Infos], left_out: LeftOut
) -> Iterator[Item]:
    content = _read(path)
    infos = describe(path, content)
    content.setdefault("licenses", [])
    licences = {e["id"]: e["url"] for e in _entries(path, content, "licenses", {"id": int, "url": str})}
    pictures = _pictures(folder, part, left_out)
    keys = dict(zip(pictures, unique_keys([f"{part}/{name}" for name in pictures]), strict=True))
    split = SPLIT_OF[part[:-4]]
    listed = set()
    for photo in _photos(path, content):
        name = PurePosixPath(photo["file_name"]).name
        info = infos.pop(photo["id"], None)
        if name in listed:
            left_out.add("photo that is listed again", f"{part}/{name}")
        elif name not in pictures:
            left_out.add("listed photo that is not there", f"{part}/{name}")
        elif info is None:
            left_out.add("photo without a caption", pictures[name])
        elif files := as_member(pictures[name], left_out):
            about = {key: photo[key] for key in ("id", "width", "height") if key in photo}
            licence = {"licence": licences[photo["license"]]} if photo.get("license") in licences else {}
            text = {"txt": info["captions"][0]} if "captions" in info else {}
            yield Item(keys[name], split, keys[name], files, {**text, "json": info | about | licence})
        listed.add(name)
    for number in infos:
        left_out.add("annotated photo that the file does not list", f"{path}: {number}")
    for name in sorted(pictures.keys() - listed):
        left_out.add("photo that the annotations do not list", pictures[name])


def _pictures(folder: Path, part: str, left_out: LeftOut) -> dict[str, Path]:
    for parent in (folder, folder / "images"):
        if real(parent) and real(parent / part):
            return pictures_by_name(parent / part, left_out)
    left_out.add("missing folder of photos", folder / part)
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {REPAIR}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object with lists; {REPAIR}")
    return content


def _photos(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    return _entries(path, content, "images", {"id": int | str, "file_name": str})


def _entries(path: Path, content: dict[str, Any], table: str, kinds: dict[str, Any]) -> list[dict[str, Any]]:
    """A list of `content`, each entry of which has all keys of `kinds` with values of these types."""
    entries = content.get(table)
    if not isinstance(entries, list):
        raise ValueError(f"{path} has no list {table!r}; {REPAIR}")
    for entry in entries:
        for key, kind in kinds.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise ValueError(f"{path}: {str(entry)[:100]} in {table!r} has no right {key!r}; {REPAIR}")
    return entries
