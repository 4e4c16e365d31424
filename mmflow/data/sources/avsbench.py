"""AVSBench-object: masks of what sounds in a video (Zhou et al., ECCV 2022; https://github.com/OpenNLPLab/AVSBench)."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mmflow.data.sources.ave import VIDEO_ENDINGS
from mmflow.data.sources.esc50 import read_table
from mmflow.data.sources.images import PICTURE_ENDINGS, as_member
from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import AUDIO_ENDINGS, as_sound
from mmflow.data.sources.splits import listed

SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}
NUMBER = re.compile(r"_([1-9]\d?)$")  # of a frame or mask at the end of its name, counted from 1
FRAMES, MASKS, SOUNDS, PICKLES, VIDEOS = "visual_frames", "gt_masks", "audio_wav", "audio_log_mel", "raw_videos"
ENDINGS = {
    FRAMES: PICTURE_ENDINGS,
    MASKS: PICTURE_ENDINGS,
    SOUNDS: AUDIO_ENDINGS,
    PICKLES: (".pkl",),
    VIDEOS: tuple(VIDEO_ENDINGS),
}
ONLY_PICKLES = (
    f"clip whose sound is there only as a pickle in {PICKLES}, which could run code and is never read; "
    f"get the .wav in {SOUNDS}, or the .mp4 in {VIDEOS}"
)
ORIGIN = "on request, see https://github.com/OpenNLPLab/AVSBench"


class AVSBench:
    """Clips of 5 s with a frame and mostly a mask for each second, and the sound.

    `<subset>_meta_data.csv` beside `<subset>_data`, which holds the frames `visual_frames/.../<clip>_<1 to 5>.png`,
    the masks `gt_masks/.../<clip>_<1 to 5>.png` and the sound `audio_wav/.../<clip>.wav`. The frame of second t
    becomes the member `<t>.png` and its mask `<t>.mask.png`, with t from 0. In S4 one object sounds, and train has a
    mask for second 0 only; in MS3 several may.

    A clip without frames or without sound is taken as `raw_videos/.../<clip>.mp4` where that is there. The published
    spectrograms in `audio_log_mel` are pickles, which could run code: they are never read.

    Args:
        subset: s4 (single source) or ms3 (multiple sources).
    """

    def __init__(self, subset: Literal["s4", "ms3"]) -> None:
        self.subset = subset
        self.table, self.data = f"{subset}_meta_data.csv", f"{subset}_data"

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when no clip is whole."""
        wanted = f"{self.table} beside {self.data} with the folders {FRAMES}, {MASKS} and {SOUNDS}"
        folder = find_folder(root, self._is_layout, wanted, ORIGIN, inner=(self.data,))
        left_out = LeftOut(f"AVSBench {self.subset}")
        items = list(self._items(folder, left_out))
        reasons = "; ".join(f"{count} x {reason}" for reason, count in left_out.counts.items()) or "an empty table"
        return listed(
            items,
            left_out,
            f"{folder}: no clip is whole ({reasons}); expected {wanted} ({ORIGIN})",
            one="clip",
            group="clip",
        )

    def _is_layout(self, place: Path) -> bool:
        return real(place / self.table) and real(place / self.data)

    def _items(self, folder: Path, left_out: LeftOut) -> Iterator[Item]:
        single = self.subset == "s4"
        rows = read_table(folder / self.table, ("name", "split", "category") if single else ("name", "split"))
        classes = sorted({row["category"] for row in rows}) if single else []
        clips = _clips(folder / self.data, left_out)
        used: set[str] = set()
        for row in rows:
            name, split = row["name"], row["split"]
            key = f"{row['category'] if single else self.subset}-{name}"
            # MS3 has no folders of categories, and those of the splits not around frames and videos
            clip = f"{split}/{row['category']}/{name}" if single else f"{split}/{name}"
            pictures, drawn, sounds, videos = (
                clips.get((kind, clip)) or clips.get((kind, name), []) for kind in (FRAMES, MASKS, SOUNDS, VIDEOS)
            )
            frames, masks = _numbered(pictures, "", left_out), _numbered(drawn, "mask.", left_out)
            sound = as_sound(sounds[0]) if sounds else {}
            video = {VIDEO_ENDINGS[videos[0].suffix.lower()]: videos[0]} if videos else {}
            if split not in SPLIT_OF:
                left_out.add("line whose split is not train, val or test", row)
            elif key in used:
                left_out.add("second line for the same clip", key)
            elif not masks:
                left_out.add(f"clip without masks in {MASKS}", clip)
            elif not (frames or video):
                left_out.add(f"clip without frames in {FRAMES} and without its video in {VIDEOS}", clip)
            elif not (sound or video):
                pickled = (PICKLES, clip) in clips
                left_out.add(ONLY_PICKLES if pickled else f"clip without sound in {SOUNDS}", clip)
            else:
                used.add(key)
                members = frames | masks | sound | ({} if frames and sound else video)
                info: dict[str, Any] = {"video": name}
                if single:
                    info |= {"label": classes.index(row["category"]), "class": row["category"]}
                yield Item(key, SPLIT_OF[split], name, members, {"json": info})


def _clips(data: Path, left_out: LeftOut) -> dict[tuple[str, str], list[Path]]:
    """(kind, clip) -> files: kind is a folder such as gt_masks, clip the path below it such as "test/dog/abc"."""
    clips: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for kind, endings in ENDINGS.items():
        found = files(data / kind, endings, left_out) if real(data / kind) else []
        for path in found:
            place = path.relative_to(data / kind)
            # the frames and masks of a clip are in a folder of its name
            clip = place.parent if kind in (FRAMES, MASKS) else place.with_suffix("")
            clips[kind, clip.as_posix()].append(path)
    return clips


def _numbered(pictures: list[Path], what: str, left_out: LeftOut) -> dict[str, Path]:
    """Frames or masks as members: `abc_1.png` as "0.png" or, where `what` is "mask.", as "0.mask.png"."""
    members: dict[str, Path] = {}
    for path in pictures:
        if match := NUMBER.search(path.stem):
            member = as_member(path, left_out)
            members |= {f"{int(match[1]) - 1}.{what}{extension}": path for extension in member}
        else:
            left_out.add("picture whose name does not end in the number of a frame", path)
    return members
