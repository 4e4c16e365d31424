"""The free spoken digit data set (https://github.com/Jakobovski/free-spoken-digit-dataset)."""

import re
from collections.abc import Iterator
from pathlib import Path

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files, find_folder, real
from mmflow.data.sources.recordings import by_stem, recording
from mmflow.data.sources.splits import listed

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<take>\d+)")
TEST_TAKES = 5  # takes 0 to 4 of each digit and speaker are the original's test part
WANTED = "a folder recordings with <digit>_<speaker>_<take>.wav in it"
ORIGIN = "https://github.com/Jakobovski/free-spoken-digit-dataset"


class FreeSpokenDigits:
    """`recordings/<digit>_<speaker>_<take>.wav`, one digit each; the text is its name in lower case.

    Takes 0 to 4 are test, the others train; validation is cut out of train.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the data set at `root`. Raises ValueError when there are no recordings."""
        folder = find_folder(root, lambda place: real(place / "recordings"), WANTED, ORIGIN, inner=("recordings",))
        left_out = LeftOut("free spoken digits")
        return listed(
            _recordings(folder / "recordings", left_out),
            left_out,
            f"{folder}: no recording can be used; expected {WANTED} ({ORIGIN})",
        )


def _recordings(folder: Path, left_out: LeftOut) -> Iterator[Item]:
    for key, path in by_stem(files(folder, [".wav"], left_out), left_out).items():
        match = NAME.fullmatch(key)
        if match is None:
            left_out.add("file not named <digit>_<speaker>_<take>.wav", path)
            continue
        digit, take = int(match["digit"]), int(match["take"])
        split = "test" if take < TEST_TAKES else "train"
        yield recording(key, split, match["speaker"], path, WORDS[digit], {"digit": digit, "take": take})
