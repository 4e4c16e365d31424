"""Questions about medical pictures: VQA-RAD (Lau et al., Scientific Data 2018) and SLAKE (Liu et al., ISBI 2021)."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mmflow.data.sources.images import PICTURE_ENDINGS, as_member, pictures_by_name
from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import read_lines
from mmflow.data.sources.splits import listed
from mmflow.data.sources.vqa import read_records

RAD_QUESTIONS, FEW_SHOT = "VQA_RAD Dataset Public.json", "fewshot.jsonl"
RAD_WANTED = f"{RAD_QUESTIONS} (or {FEW_SHOT}) and the pictures in a folder"
RAD_ORIGIN = "https://osf.io/89kps"
RAD_INFO = ("answer_type", "question_type", "phrase_type")

SLAKE_PARTS = {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)}
SLAKE_WANTED = "train.json, validate.json and test.json, or some of them, beside imgs/<name>/source.jpg"
SLAKE_ORIGIN = "https://www.med-vqa.com/slake"
SLAKE_INFO = ("answer_type", "content_type", "modality", "location", "base_type")


class VQARad:
    """`VQA_RAD Dataset Public.json` and the pictures it names, in any folder below.

    Questions whose phrase_type begins with "test" are the test part. Pictures of test are in train too, as published;
    validation is cut out of train by picture.

    Instead there may be a prompt `fewshot.jsonl` with an object of image, question and answer on each line. Those
    without an answer, the questions that the prompt asks, are its test part.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no question has its picture."""
        folder = find_folder(root, _is_rad, RAD_WANTED, RAD_ORIGIN, inner=("VQA_RAD Image Folder", "images"))
        left_out = LeftOut("VQA-RAD")
        return listed(
            _rad(folder, left_out),
            left_out,
            f"{folder}: no question has its picture; expected {RAD_WANTED} ({RAD_ORIGIN})",
            one="question",
            group="picture",
        )


def _is_rad(place: Path) -> bool:
    return real(place / RAD_QUESTIONS) or real(place / FEW_SHOT)


def _rad(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    pictures = {name: as_member(path, left_out) for name, path in pictures_by_name(folder, left_out).items()}
    for row, name, split, info in _rad_questions(folder, left_out):
        if pictures.get(name):
            key = f"{row:04d}_{PurePosixPath(name).stem}"
            yield Item(key, split, name, pictures[name], {"json": info | {"image": name}})
        else:
            left_out.add("question without its picture", name)


def _rad_questions(folder: Path, left_out: LeftOut) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
    """(place in the file, name of the picture, split, what a sample's JSON says of the question)."""
    if not real(folder / RAD_QUESTIONS):
        yield from _few_shot(folder / FEW_SHOT, left_out)
        return
    needed = {"image_name": str, "question": str, "phrase_type": str}
    for row, record in read_records(folder / RAD_QUESTIONS, needed, left_out):
        answer = str(record.get("answer", "")).strip()  # numbers are not quoted everywhere
        if not answer:
            left_out.add("question without an answer", record["question"])
            continue
        split = "test" if record["phrase_type"].startswith("test") else "train"
        info = {"question": record["question"].strip(), "answer": answer, "question_id": record.get("qid", row)}
        info |= {key: str(record[key]).strip() for key in RAD_INFO if key in record}
        info |= {"organ": record["image_organ"]} if "image_organ" in record else {}
        yield row, record["image_name"], split, info


def _few_shot(path: Path, left_out: LeftOut) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
    for row, line in enumerate(read_lines(path)):
        try:
            record = json.loads(line)
            image, question, answer = (record[key] for key in ("image", "question", "answer"))
            name = PurePosixPath(image).name
        except (ValueError, TypeError, KeyError, RecursionError):
            left_out.add("line that is no object of image, question and answer", line)
            continue
        info = {"question": question, "answer": answer, "question_id": row}
        yield row, name, "test" if answer is None else "train", info


class Slake:
    """`train.json`, `validate.json`, `test.json` and pictures `imgs/<name>/source.jpg`; questions in two languages.

    Args:
        language: en or zh; "all" takes both.
    """

    def __init__(self, language: Literal["en", "zh", "all"] = "en") -> None:
        self.language = language

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no question can be used."""
        folder = find_folder(root, _is_slake, SLAKE_WANTED, SLAKE_ORIGIN, inner=("imgs",))
        left_out = LeftOut("SLAKE")
        return listed(
            self._items(folder, left_out),
            left_out,
            f"{folder}: no question in language {self.language!r} has its picture; expected {SLAKE_WANTED} "
            f"({SLAKE_ORIGIN})",
            one="question",
            group="picture",
        )

    def _items(self, folder: Path, left_out: LeftOut) -> Iterator[Item]:
        imgs = folder / "imgs"
        pictures = {
            path.relative_to(imgs).as_posix(): as_member(path, left_out)
            for path in files(imgs, PICTURE_ENDINGS, left_out)
            if path.stem == "source"  # beside masks
        }
        needed = {"img_name": str, "question": str, "answer": str, "q_lang": str, "qid": int}
        for split, path in _slake_parts(folder).items():
            for row, record in read_records(path, needed, left_out):
                name, answer = record["img_name"], record["answer"].strip()
                if self.language not in (record["q_lang"], "all"):
                    continue  # not wanted
                if not answer:
                    left_out.add("question without an answer", f"{path.name}: {record['question']}")
                elif not pictures.get(name):
                    left_out.add("question without its picture", f"{path.name}: {name}")
                else:
                    info = {"question": record["question"].strip(), "answer": answer, "question_id": record["qid"]}
                    info |= {"language": record["q_lang"], "image": name}
                    info |= {key: record[key] for key in SLAKE_INFO if key in record}
                    yield Item(f"{split}-{row:05d}", split, name, pictures[name], {"json": info})


def _is_slake(place: Path) -> bool:
    return real(place / "imgs") and bool(_slake_parts(place))


def _slake_parts(folder: Path) -> dict[str, Path]:
    """split -> the file with its questions; validation is named in two ways."""
    return {s: folder / name for s, names in SLAKE_PARTS.items() for name in names[::-1] if real(folder / name)}
