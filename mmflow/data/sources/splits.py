"""A train, a validation and a test part for every data set, the original ones where there are any."""

import hashlib
import logging
from collections import Counter
from dataclasses import replace

from mmflow.data.sources.recordings import Recording

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1  # share of the utterances for each part that has to be cut out of another
MIN_SPEAKERS = 3  # with fewer, a cut by speaker could not fill three parts


def complete(recordings: list[Recording], source: str) -> list[Recording]:
    """The same recordings, sorted by split and key, with the missing splits cut out of what there is.

    The part that gives is train, or where that is missing too validation, or test; what remains of it is train. The
    cut follows speakers, so that nobody is heard in two parts of it, unless there are fewer than three. It depends on
    the names of the speakers only, and is said in one logged line.
    """
    present = [split for split in SPLITS if any(r.split == split for r in recordings)]
    missing = [split for split in SPLITS if split not in present]
    if missing:
        giver = present[0]
        pool = [r for r in recordings if r.split == giver]
        held_out = [split for split in SPLITS[1:] if split in missing or split == giver]
        speakers = {r.speaker for r in pool}
        by_speaker = len(speakers) >= MIN_SPEAKERS
        place = cut([r.speaker if by_speaker else r.key for r in pool], held_out)
        assigned = [replace(r, split=place[r.speaker if by_speaker else r.key]) for r in pool]
        counts = Counter(r.split for r in assigned)
        log.warning(
            "%s has no part for %s; its part for %s (%d utterances, %d speakers) is cut by %s: %s",
            source,
            " and ".join(missing),
            giver,
            len(pool),
            len(speakers),
            "speaker" if by_speaker else "utterance, the same speakers in all parts",
            ", ".join(f"{split} {counts[split]}" for split in ("train", *held_out)),
        )
        recordings = assigned + [r for r in recordings if r.split != giver]
    return sorted(recordings, key=lambda r: (SPLITS.index(r.split), r.key))


def cut(groups: list[str], held_out: list[str]) -> dict[str, str]:
    """Which group goes to which split: each of `held_out` gets about a tenth of the members, "train" the rest.

    groups: the group of each member. A split gets at least one group while there are enough for every split. The
    order in which groups are taken is that of their hashes, so it is the same everywhere; a group of more than twice
    the mean size comes last, so that a dominant one stays in train.
    """
    sizes = Counter(groups)
    mean = len(groups) / len(sizes)
    waiting = sorted(sizes, key=lambda g: (sizes[g] > 2 * mean, hashlib.sha256(g.encode(errors="replace")).digest()))
    place: dict[str, str] = {}
    for position, split in enumerate(held_out):
        others = len(held_out) - position  # splits that still need one group each, train among them
        held = 0
        while len(waiting) > others and (held == 0 or held + sizes[waiting[0]] / 2 <= HELD_OUT * len(groups)):
            held += sizes[waiting[0]]
            place[waiting.pop(0)] = split
    return place | dict.fromkeys(waiting, "train")
