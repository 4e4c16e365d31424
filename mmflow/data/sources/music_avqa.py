"""MUSIC-AVQA: questions about videos of music (Li et al., CVPR 2022; https://github.com/GeWu-Lab/MUSIC-AVQA)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmflow.data.sources.ave import videos_by_name
from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, find_folder, real
from mmflow.data.sources.splits import listed
from mmflow.data.sources.vqa import read_records

PARTS = {"avqa-train.json": "train", "avqa-val.json": "validation", "avqa-test.json": "test"}
NEEDED = {"video_id": str, "question_content": str, "templ_values": str, "type": str, "anser": str}
SLOT = re.compile(r"<[^<>]*>")
WANTED = f"a folder json with {', '.join(PARTS)}, or some of them, and the videos in a folder"
ORIGIN = "https://github.com/GeWu-Lab/MUSIC-AVQA"


class MusicAVQA:
    """`json/avqa-train.json`, `-val` and `-test`, and in any folder the videos `<video_id>.mp4` of 60 s.

    One sample per question, each with its video: there are about five questions to a video, and the shards are that
    much larger. The places such as `<Object>` of a question's template are filled in. As published, the parts share
    videos: they are parts of the questions.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no question has its video."""
        folder = find_folder(root, lambda place: bool(_parts(place)), WANTED, ORIGIN, inner=("json",))
        left_out = LeftOut("MUSIC-AVQA")
        return listed(
            _items(folder, left_out),
            left_out,
            f"{folder}: no question has its video; expected {WANTED} ({ORIGIN})",
            one="question",
            group="video",
        )


def _parts(folder: Path) -> dict[Path, str]:
    """The files with questions and their splits."""
    if not real(folder / "json"):
        return {}
    return {folder / "json" / name: split for name, split in PARTS.items() if real(folder / "json" / name)}


def _items(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    videos = videos_by_name(folder, left_out)
    for path, split in _parts(folder).items():
        for row, info in read_questions(path, left_out):
            if info["video"] in videos:
                files = videos[info["video"]]
                yield Item(f"{path.stem.removeprefix('avqa-')}-{row:05d}", split, info["video"], files, {"json": info})
            else:
                left_out.add("question without its video", f"{path.name}: {info['video']}")


def read_questions(path: Path, left_out: LeftOut) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place in the file, question as it goes into a sample's JSON) from a file such as `avqa-val.json`."""
    for row, record in read_records(path, NEEDED, left_out):
        template = record["question_content"]
        question_type, fillings = _texts(record["type"]), _texts(record["templ_values"])
        if question_type is None or fillings is None:
            left_out.add("question whose type or templ_values is no JSON list of texts", record)
        elif len(fillings) != len(SLOT.findall(template)):
            left_out.add("question with another number of templ_values than places", record)
        else:
            yield (
                row,
                {
                    "question": fill(template, fillings),
                    "answer": record["anser"],  # spelt so in the original
                    "question_type": question_type,
                    "question_id": record.get("question_id"),
                    "template": template,
                    "video": record["video_id"],
                },
            )


def _texts(value: str) -> list[str] | None:
    """The list of texts that `value` is the JSON of, None when it is not."""
    try:
        texts = json.loads(value)
    except ValueError:
        return None
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


def fill(template: str, fillings: list[str]) -> str:
    """The question with its places filled in from left to right: "Is the <Object> on the <LR> loud?"."""
    rest = iter(fillings)
    return SLOT.sub(lambda _: next(rest), template).strip()
