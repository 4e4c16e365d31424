"""AVE: audio-visual events in videos of 10 s (Tian et al., ECCV 2018; https://github.com/YapengTian/AVE-ECCV18)."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import read_lines
from mmflow.data.sources.splits import listed

log = logging.getLogger(__name__)

ANNOTATIONS = "Annotations.txt"
PARTS = {"trainSet.txt": "train", "valSet.txt": "validation", "testSet.txt": "test"}
SECONDS = 10
WANTED = f"{ANNOTATIONS} and a folder AVE with <video>.mp4 in it"
ORIGIN = "https://github.com/YapengTian/AVE-ECCV18, AVE_Dataset.zip"
VIDEO_ENDINGS = {
    **{f".{extension}": extension for extension in ("mp4", "webm", "mkv", "mpg", "avi", "mov", "ts", "ogv")},
    ".mpeg": "mpg",
}


class Event(NamedTuple):
    """One line of the annotations: `category` is seen and heard in `video` from `start` to `end`, in whole seconds."""

    row: int
    category: str
    video: str
    quality: str
    start: int
    end: int


class AVE:
    """`Annotations.txt` with lines `category&video&quality&start&end`, and the videos by their YouTube names.

    One sample per line, as the published figures count: the few videos with two lines, mostly of a man and a woman
    speaking, come twice. Second t is of the class where start <= t < end, all others are background. The label is the
    place of the class in the order of the file, 0 to 27, as in the published label arrays. `trainSet.txt`,
    `valSet.txt` and `testSet.txt` make the splits; without them validation and test are cut out by video.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no line has its video."""
        folder = find_folder(root, lambda place: real(place / ANNOTATIONS), WANTED, ORIGIN, inner=("AVE",))
        left_out = LeftOut("AVE")
        return listed(
            _items(folder, left_out),
            left_out,
            f"{folder}: no line of {ANNOTATIONS} has its video; expected {WANTED} ({ORIGIN})",
            one="clip",
            group="video",
        )


def _items(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    videos = videos_by_name(folder, left_out)
    events = read_events(folder / ANNOTATIONS, left_out)
    labels = {category: label for label, category in enumerate(dict.fromkeys(event.category for event in events))}
    splits = _splits(folder, left_out)
    for event in events:
        split = splits.get((event.category, event.video)) if splits else "train"
        if event.video not in videos:
            left_out.add(f"line of {ANNOTATIONS} without its video", event.video)
        elif split is None:
            left_out.add(f"line of {ANNOTATIONS} that is in none of {', '.join(PARTS)}", event.video)
        else:
            info = {
                "label": labels[event.category],
                "class": event.category,
                "events": [[event.start, event.end, event.category]] if event.start < event.end else [],
                "video": event.video,
                "quality": event.quality,
            }
            yield Item(f"{event.row:04d}_{event.video}", split, event.video, videos[event.video], {"json": info})


def read_events(path: Path, left_out: LeftOut) -> list[Event]:
    """The lines of a file such as `Annotations.txt`, with or without a header; `row` counts them from 0."""
    lines = [line for line in read_lines(path) if not line.startswith("Category&VideoID&")]
    events = []
    for row, line in enumerate(lines):
        category, video, quality, start, end = [*line.split("&"), *[""] * 5][:5]
        if line.count("&") == 4 and start.isdecimal() and end.isdecimal() and int(start) <= int(end) <= SECONDS:
            events.append(Event(row, category, video, quality, int(start), int(end)))
        else:
            left_out.add("line that is not category&video&quality&start&end with seconds from 0 to 10", line)
    return events


def _splits(folder: Path, left_out: LeftOut) -> dict[tuple[str, str], str]:
    """(category, video) -> split, empty without the lists."""
    splits: dict[tuple[str, str], str] = {}
    parts_of: dict[str, set[str]] = defaultdict(set)
    for name, split in PARTS.items():
        if real(folder / name):
            for event in read_events(folder / name, left_out):
                splits[event.category, event.video] = split
                parts_of[event.video].add(split)
    shared = [video for video, parts in parts_of.items() if len(parts) > 1]
    if shared:
        log.warning("AVE: %d videos are in more than one part, as the lists have it, first: %s", len(shared), shared[0])
    return splits


def videos_by_name(folder: Path, left_out: LeftOut) -> dict[str, dict[str, Path]]:
    """All videos below `folder` as name without ending -> {extension: file}; of two of one name the first."""
    found: dict[str, dict[str, Path]] = {}
    for path in files(folder, VIDEO_ENDINGS, left_out):
        if path.stem in found:
            left_out.add("second video of the same name", path)
        found.setdefault(path.stem, {VIDEO_ENDINGS[path.suffix.lower()]: path})
    return found
