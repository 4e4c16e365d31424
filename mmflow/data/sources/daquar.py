"""DAQUAR: questions about photos of indoor scenes (Malinowski and Fritz, NeurIPS 2014, arXiv:1410.0210)."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmflow.data.sources.images import as_member, pictures_by_name
from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, find_folder, real
from mmflow.data.sources.recordings import read_lines
from mmflow.data.sources.splits import listed

# the first that are there are read: those with all answers, those with 37 answers, those of a copy in one file
QUESTIONS = (
    ("qa.894.raw.train.txt", "qa.894.raw.test.txt"),
    ("qa.894.raw.txt",),
    ("qa.37.raw.train.txt", "qa.37.raw.test.txt"),
    ("all_qa_pairs.txt",),
)
LISTS = {
    "train.txt": "train",
    "test.txt": "test",
    "train_images_list.txt": "train",
    "test_images_list.txt": "test",
}
PHOTO = re.compile(r"\bimage\d+\b")
WANTED = "qa.894.raw.train.txt and qa.894.raw.test.txt, or all_qa_pairs.txt, with the photos image<number> in a folder"
ORIGIN = "https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning, Visual Turing Challenge"


class Daquar:
    """Lines of a question and its answer in turn, `... in the image5 ?` and `desk`, and photos `image5.png`.

    "image5" becomes "image" in the question. An answer may be a list, `book, scissor`: then "answer" is that line, and
    "answer_list" the things in it, which are the answer together. The lists `train.txt` and `test.txt` of photos (or
    `train_images_list.txt`, `test_images_list.txt`) make the splits; without them the names of the files with the
    questions do. Validation is cut out of train.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no question has its photo."""
        folder = find_folder(
            root, lambda place: bool(_questions(place)), WANTED, ORIGIN, inner=("images", "nyu_depth_images")
        )
        left_out = LeftOut("DAQUAR")
        return listed(
            _items(folder, left_out),
            left_out,
            f"{folder}: no question has its photo; expected {WANTED} ({ORIGIN})",
            one="question",
            group="photo",
        )


def _questions(folder: Path) -> list[Path]:
    """The files with questions that are read."""
    for names in QUESTIONS:
        if there := [folder / name for name in names if real(folder / name)]:
            return there
    return []


def _items(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    photos = {path.stem: as_member(path, left_out) for path in pictures_by_name(folder, left_out).values()}
    listed = {
        photo: split
        for name, split in LISTS.items()
        if real(folder / name)
        for line in read_lines(folder / name)
        for photo in PHOTO.findall(line)
    }
    numbers: Counter[str] = Counter()  # of the questions so far about each photo
    for path in _questions(folder):
        named = "test" if ".test." in path.name else "train"
        for question, answer in _pairs(path, left_out):
            photo = PHOTO.findall(question)[-1]
            split = listed.get(photo) if listed else named
            numbers[photo] += 1
            if not photos.get(photo):
                left_out.add("question without its photo", f"{path.name}: {question}")
            elif split is None:
                left_out.add("question about a photo that is in no list", f"{path.name}: {question}")
            else:
                info = {
                    "question": PHOTO.sub("image", question).replace(" ?", "?"),
                    "answer": answer,
                    "answer_list": [thing.strip() for thing in answer.split(",")],
                    "image": photo,
                }
                yield Item(f"{photo}-{numbers[photo]:03d}", split, photo, photos[photo], {"json": info})


def _pairs(path: Path, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """(question, answer): a line that ends in a question mark and names a photo, and the line after it."""
    question: str | None = None
    for line in read_lines(path):
        if line.endswith("?") and PHOTO.search(line):
            if question is not None:
                left_out.add("question without an answer", f"{path.name}: {question}")
            question = line
        elif question is None:
            left_out.add("line that is no question about an image and no answer", f"{path.name}: {line}")
        else:
            yield question, line
            question = None
    if question is not None:
        left_out.add("question without an answer", f"{path.name}: {question}")
