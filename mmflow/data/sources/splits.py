"""A train, a validation and a test part for every data set, the original ones where there are any."""

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace

from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SPLIT_OF = {  # what folders and files of a part are called
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
HELD_OUT = 0.1  # share of the samples for each part that has to be cut out of another
MIN_GROUPS = 3  # with fewer, a cut by group could not fill three parts


def complete(items: list[Item], source: str, one: str = "utterance", group: str = "speaker") -> list[Item]:
    """The same items, sorted by split and key, with the missing splits cut out of what there is.

    The part that gives is train, or where that is missing too validation, or test; what remains of it is train. The
    cut follows the groups, so that no speaker, no photo is in two parts of it, unless there are fewer than three. It
    depends on the names of the groups only, and is said in one logged line.

    Args:
        items: what there is.
        source: the data set, for the log.
        one: what a sample is, for the log.
        group: what a group is, for the log.
    """
    present = [split for split in SPLITS if any(item.split == split for item in items)]
    missing = [split for split in SPLITS if split not in present]
    if missing:
        giver = present[0]
        pool = [item for item in items if item.split == giver]
        held_out: list[str] = [split for split in SPLITS[1:] if split in missing or split == giver]
        groups = {item.group for item in pool}
        by_group = len(groups) >= MIN_GROUPS
        place = cut([item.group if by_group else item.key for item in pool], held_out)
        assigned = [replace(item, split=place[item.group if by_group else item.key]) for item in pool]
        counts = Counter(item.split for item in assigned)
        log.warning(
            "%s has no part for %s; its part for %s (%d %ss, %d %ss) is cut by %s: %s",
            source,
            " and ".join(missing),
            giver,
            len(pool),
            one,
            len(groups),
            group,
            group if by_group else f"{one}, the same {group}s in all parts",
            ", ".join(f"{split} {counts[split]}" for split in ("train", *held_out)),
        )
        items = assigned + [item for item in items if item.split != giver]
    return sorted(items, key=lambda item: (SPLITS.index(item.split), item.key))


def listed(
    items: Iterable[Item], left_out: LeftOut, nothing: str, one: str = "utterance", group: str = "speaker"
) -> list[Item]:
    """What a converter lists: the items with splits as `complete` makes them; what was left out is logged.

    Raises ValueError saying `nothing` when there is no item.
    """
    found = list(items)
    left_out.report()
    if not found:
        raise ValueError(nothing)
    return complete(found, left_out.source, one, group)


def cut(groups: list[str], held_out: list[str]) -> dict[str, str]:
    """Which group goes to which split: each of `held_out` gets about a tenth of the members, "train" the rest.

    groups: the group of each member. A split gets at least one group while there are enough for every split. The
    order in which groups are taken is that of their hashes, so it is the same everywhere; a group of more than twice
    the mean size comes last, so that a dominant one stays in train.
    """
    sizes = Counter(groups)
    mean = len(groups) / len(sizes)
    by_hash = sorted(sizes, key=lambda g: (sizes[g] > 2 * mean, hashlib.sha256(g.encode(errors="replace")).digest()))
    waiting = deque(by_hash)
    place: dict[str, str] = {}
    for position, split in enumerate(held_out):
        others = len(held_out) - position  # splits that still need one group each, train among them
        held = 0
        while len(waiting) > others and (held == 0 or held + sizes[waiting[0]] / 2 <= HELD_OUT * len(groups)):
            held += sizes[waiting[0]]
            place[waiting.popleft()] = split
    return place | dict.fromkeys(waiting, "train")
