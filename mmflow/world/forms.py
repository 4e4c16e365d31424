"""What a form of question is.

The forms about what a still shows are in `still_forms`, those about what takes time in `clip_forms`. To add one, write
its `find` there and an entry of FORMS; to add a kind, name it in `mmflow.world.questions` too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmflow.world.scene import Scene, SceneOptions

MOST = 3  # highest answer where things of one colour or shape, or sounds, are counted
YES_NO = ("yes", "no")
NEEDS = ("picture", "sound", "both")


class Possible(NamedTuple):
    """What a form can ask of a scene.

    Attributes:
        answer: the right one.
        about: words for the places of the template.
        steps: sentences that the answer follows from.
        unseen: whether it is about a pair of colour and shape that the training part never shows.
    """

    answer: str
    about: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    unseen: bool = False


Answers = Callable[[SceneOptions, str], Sequence[str]]
Find = Callable[[Scene, np.random.Generator, str, SceneOptions], Iterator[Possible]]


@dataclass(frozen=True)
class Form:
    """One thing that can be asked.

    Attributes:
        kind: one of `mmflow.world.questions.KINDS`.
        templates: the last one is the test's own, the one before validation's; training has the rest.
        answers: those that scenes with such options may have; fewer than two where the form makes no sense.
        find: all that can be asked of a scene (its generator, split, options).
        alike: "colour" or "shape", where scenes are wanted in which many things share it.
        needs: what has to be known for the answer, besides the question: one of NEEDS.
    """

    kind: str
    templates: tuple[str, ...]
    answers: Answers
    find: Find
    alike: str = ""
    needs: str = "picture"


def shown(options: SceneOptions, split: str, attribute: str) -> list[str]:
    """The colours or shapes that a split shows."""
    words = {pair[attribute == "shape"] for pair in options.pairs(split)}
    return [word for word in getattr(options, f"{attribute}s") if word in words]
