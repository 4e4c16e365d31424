"""VQA v2, and other questions about COCO photos in its layout (Goyal et al., CVPR 2017; https://visualqa.org)."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmflow.data.sources.images import as_member, pictures_by_name
from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder
from mmflow.data.sources.splits import listed

SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}
PART = re.compile(r"_(?P<part>(?P<split>train|val|test)\d{4})_(?P<what>questions|annotations)\.json$")
TYPES = ("question_type", "answer_type")
WANTED = "files named *_train2014_questions.json, *_train2014_annotations.json (and val2014, test2015), and the photos"
ORIGIN = "https://visualqa.org/download.html, photos from https://cocodataset.org/#download"


class VQA:
    """`*_<part>_questions.json`, `*_<part>_annotations.json` and photos `COCO_<part>_<12 digits>.jpg`, in any folders.

    The parts are train2014, val2014 and test2015. One sample per question, each with its photo. "answer" is the most
    frequent of the ten "answers"; questions of test have no answers, theirs is None.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no question has its photo."""
        folder = find_folder(root, lambda place: bool(_parts(place, LeftOut("VQA"))), WANTED, ORIGIN, inner=())
        left_out = LeftOut("VQA")
        return listed(
            _items(folder, left_out),
            left_out,
            f"{folder}: no question has its answers and its photo; expected {WANTED} ({ORIGIN})",
            one="question",
            group="photo",
        )


def _parts(folder: Path, left_out: LeftOut) -> dict[str, list[Path]]:
    """The files with questions and annotations of each part, such as train2014."""
    parts: dict[str, list[Path]] = {}
    for path in files(folder, [".json"], left_out):
        if match := PART.search(path.name):
            parts.setdefault(match["part"], []).append(path)
        elif path.name.endswith("_questions.json"):
            left_out.add("file of questions that is not of a whole part, such as test-dev", path.name)
    return parts


def _items(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    photos = pictures_by_name(folder, left_out)
    for part, paths in _parts(folder, left_out).items():
        split = SPLIT_OF[part[:-4]]
        answers = dict(_answers(paths, left_out))
        members: dict[int, dict[str, str]] = {}  # of each photo, so that none is opened for each of its questions
        used: set[int] = set()
        for question in _records(paths, "questions", {"question": str, "image_id": int, "question_id": int}, left_out):
            number, photo = question["question_id"], question["image_id"]
            name = f"COCO_{part}_{photo:012d}.jpg"
            if number in used:
                left_out.add("second question of the same question_id", number)
            elif number not in answers and split != "test":
                left_out.add("question without answers", f"{part}: {number}")
            elif name not in photos:
                left_out.add("question without its photo", name)
            elif member := members.get(photo) or members.setdefault(photo, as_member(photos[name], left_out)):
                used.add(number)
                info = {"question": question["question"].strip(), "answer": None, "question_id": number}
                info |= {"image_id": photo} | answers.get(number, {})
                yield Item(f"{number:012d}", split, name, member, {"json": info})


def _answers(paths: list[Path], left_out: LeftOut) -> Iterator[tuple[int, dict[str, Any]]]:
    """(question_id, what a sample's JSON says of its answers)."""
    for annotation in _records(paths, "annotations", {"question_id": int, "answers": list}, left_out):
        if not annotation["answers"] or not all(_is_answer(answer) for answer in annotation["answers"]):
            left_out.add("annotation whose answers are not as expected", annotation["question_id"])
            continue
        answers = [answer["answer"] for answer in annotation["answers"]]
        answer = annotation.get("multiple_choice_answer") or Counter(answers).most_common(1)[0][0]
        about = {"answer": answer, "answers": answers}
        yield annotation["question_id"], about | {key: annotation[key] for key in TYPES if key in annotation}


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("answer"), str)


def _records(paths: list[Path], what: str, needed: Mapping[str, type], left_out: LeftOut) -> Iterator[dict[str, Any]]:
    for path in paths:
        if path.name.endswith(f"_{what}.json"):
            for _, record in read_records(path, needed, left_out, inside=what):
                yield record


def read_records(
    path: Path, needed: Mapping[str, type], left_out: LeftOut, inside: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, record) for the records of a JSON file that have what is needed; others are left out.

    Args:
        path: a file that holds a list of objects.
        needed: key -> type of its value.
        left_out: counts the others.
        inside: the list is the value of this key of an object.

    Raises ValueError for a file without such a list.
    """
    try:
        records = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; download it again") from error
    if inside is not None and isinstance(records, dict):
        records = records.get(inside)
    if not isinstance(records, list):
        where = f" under the key {inside!r}" if inside else ""
        raise ValueError(f"{path} must hold a list{where}; it is not the file that its name says")
    for row, record in enumerate(records):
        if isinstance(record, dict) and all(type(record.get(key)) is kind for key, kind in needed.items()):
            yield row, record
        else:
            left_out.add(f"record of {path.name} without {', '.join(needed)} as expected", f"{record!s:.200}")
