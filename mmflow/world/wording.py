"""What questions, dialogues, instructions and reports have in common: words for things, and templates by split."""

from collections.abc import Sequence

import numpy as np

from mmflow.world.scene import SPLITS, Scene, Thing, choose

# ---- words


def describe(thing: Thing) -> str:
    """All that is said of a thing: "big red circle"."""
    return f"{thing.size} {thing.colour} {thing.shape}"


def article(words: str) -> str:
    """With "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def listed(words: Sequence[str]) -> str:
    """ "x, y and z"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(word: str) -> str:
    """Of a shape, or of "shape"."""
    return f"{word}es" if word.endswith("s") else f"{word}s"


def name(thing: Thing, scene: Scene, hidden: str = "") -> str | None:
    """The shortest phrase that names a thing uniquely without its place and its `hidden` "shape", "colour" or "size",
    if any does."""
    for words in (("shape",), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape")):
        said = [word for word in words if word != hidden]
        if said and alone(thing, scene, said):
            return f"the {' '.join(getattr(thing, word) for word in said)}{' shape' if hidden == 'shape' else ''}"
    return None


def alone(thing: Thing, scene: Scene, words: Sequence[str]) -> bool:
    """Whether no other thing is the same in these attributes."""
    return sum(all(getattr(other, word) == getattr(thing, word) for word in words) for other in scene.things) == 1


def counted(number: int, words: str) -> str:
    """ "There are 2 red shapes." for 2 and "red shape"."""
    return f"There is 1 {words}." if number == 1 else f"There are {number} {plural(words)}."


def group(attribute: str, word: str) -> str:
    """Things that share a colour or shape, in one word or two."""
    return f"{word} shapes" if attribute == "colour" else plural(word)


def one_of(attribute: str, word: str) -> str:
    """One of such things."""
    return f"{word} shape" if attribute == "colour" else word


# ---- templates


def draw_new(draw: np.random.Generator, split: str) -> bool:
    """Whether a template is to be one that training never has: half of the time in validation and test."""
    return split != "train" and bool(draw.random() < 0.5)


def template(draw: np.random.Generator, templates: Sequence[str], split: str, new: bool) -> str:
    """One of the templates for a split: the last one is the test's own, the one before validation's."""
    return templates[{"validation": -2, "test": -1}[split]] if new else choose(draw, templates[:-2])


def check_split(split: str) -> None:
    """Raise ValueError for a part that there is not."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
