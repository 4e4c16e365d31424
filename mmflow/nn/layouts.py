"""Tensors of a model under the names of another library's: renamed, joined and cut, and every one accounted for."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# The beginning of a name of ours -> that of theirs, or of several of theirs that are ours cut along the first
# dimension. "{}" stands for a number, in the same order on both sides. What follows the beginning is the same.
Layout = Mapping[str, str | Sequence[str]]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def prefixed(layout: Layout, prefix: str) -> Layout:
    """The layout of a model that is a part of another one there."""
    return {
        ours: prefix + theirs if isinstance(theirs, str) else [prefix + name for name in theirs]
        for ours, theirs in layout.items()
    }


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def names(keys: Iterable[str], layout: Layout) -> dict[str, tuple[str, ...]]:
    """What each tensor of ours is called there, by the longest beginning that `layout` has.

    Raises KeyError for a tensor of ours that the layout does not have."""
    found = {}
    for key in keys:
        numbers, parts = _NUMBER.findall(key), _NUMBER.sub("{}", key).split(".")
        size = next(n for n in range(len(parts), -1, -1) if ".".join(parts[:n]) in layout or not n)
        if not size:
            raise KeyError(f"the layout has no name for {key}")
        begin, rest = ".".join(parts[:size]), parts[size:]
        theirs = layout[begin]
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        found[key] = tuple(".".join([name, *rest]).format(*numbers) for name in theirs)
    return found


def from_layout(tensors: Mapping[str, Tensor], keys: Iterable[str], layout: Layout, what: str) -> dict[str, Tensor]:
    """The tensors that we call `keys`, out of all those of a file.

    what: what the file should hold, for the error.

    Raises ValueError naming each tensor that is missing, and each that is there and has no place."""
    known = names(keys, layout)
    check([name for theirs in known.values() for name in theirs], tensors, what)
    return {ours: torch.cat([tensors[name] for name in theirs]) if len(theirs) > 1 else tensors[theirs[0]]
            for ours, theirs in known.items()}  # fmt: skip


def to_layout(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our tensors under their names."""
    renamed: dict[str, Tensor] = {}
    for ours, theirs in names(tensors, layout).items():
        parts = tensors[ours].chunk(len(theirs)) if len(theirs) > 1 else (tensors[ours],)
        renamed |= dict(zip(theirs, parts, strict=True))
    return renamed


def without(tensors: Mapping[str, Tensor], leave: Sequence[str]) -> dict[str, Tensor]:
    """The tensors whose names have none of these beginnings."""
    return {name: value for name, value in tensors.items() if not name.startswith(tuple(leave))}


def check(expected: Iterable[str], there: Iterable[str], what: str) -> None:
    """Raise ValueError where tensors are missing or have no place."""
    missing, extra = sorted(set(expected) - set(there)), sorted(set(there) - set(expected))
    if missing or extra:
        raise ValueError(f"this state dict does not hold exactly one {what}: missing {missing}, extra {extra}; "
                         f"name the beginnings of tensors to leave out on purpose")  # fmt: skip
