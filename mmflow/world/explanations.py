"""Whether an explanation of an answer (`mmflow.world.questions.WorldReasoning`) is right, step by step."""

import math
import re

from mmflow.world.forms import YES_NO
from mmflow.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing
from mmflow.world.still_forms import ORDERS, in_order
from mmflow.world.wording import plural


def follows(explanation: str, scene: Scene) -> bool:
    """Whether each step of an explanation is true of the scene, and its answer follows from the last step."""
    *steps, end = re.split(r"(?<=[.])\s+(?=[A-Z0-9])", explanation.strip())
    concluded = re.fullmatch(r"So the answer is (\w+)\.", end)
    if not steps or not concluded:
        return False
    it: Thing | None = None
    answer: str | None = None
    for step in steps:
        true, it, answer = _read(step, scene, it)
        if not true:
            return False
    return concluded[1] == answer


def _read(step: str, scene: Scene, it: Thing | None) -> tuple[bool, Thing | None, str | None]:
    """Whether a step is true, what "its" means after it, and the answer it gives."""
    if match := re.fullmatch(r"There (?:is|are) (\d+) (.+)\.", step):
        group = _meant(match[2], scene)
        return group is not None and len(group) == int(match[1]), it, match[1]
    if match := re.fullmatch(r"(\d+) is (not )?more than (\d+)\.", step):
        more = match[2] is None
        return (int(match[1]) > int(match[3])) == more, it, YES_NO[not more]
    if match := re.fullmatch(r"(\d+)((?: [-+] \d+)+) = (-?\d+)\.", step):
        total = int(match[1]) + sum(int(sign + n) for sign, n in re.findall(r"([-+]) (\d+)", match[2]))
        return total == int(match[3]), it, match[3]
    if match := re.fullmatch(r"From (\w+ to \w+) there are (.+)\.", step):
        order = [_only(words, scene) for words in re.split(r", | and ", match[2])]
        return any(order == in_order(scene, side) for side, words in ORDERS.items() if words == match[1]), it, None
    if match := re.fullmatch(r"The shape furthest (left|right|up|down) is (.+)\.", step):
        it = _only(match[2], scene)
        return it == in_order(scene, match[1])[0], it, None
    if match := re.fullmatch(r"From (the .+) it is (.+)\.", step):
        start, far = _only(match[1], scene), re.split(r", | and ", match[2])
        return start is not None and all(_is_far(start, part, scene) for part in far), it, None
    if match := re.fullmatch(r"The shape nearest to (.+) is (.+)\.", step):
        start, it = _only(match[1], scene), _only(match[2], scene)
        others = [thing for thing in scene.things if thing != start]
        return (
            start is not None and it == min(others, key=lambda t: math.dist((t.x, t.y), (start.x, start.y))), it, None
        )  # fmt: skip
    if match := re.fullmatch(r"Its colour is (\w+)\.", step):
        return it is not None and it.colour == match[1], it, match[1]
    if match := re.fullmatch(r"(The .+) is (\w+)\.", step):
        it = _only(match[1], scene)
        return it is not None and it.colour == match[2], it, match[2]
    return False, it, None


def _meant(words: str, scene: Scene) -> list[Thing] | None:
    """The things that words such as "big red circles", "the ring" or "red shapes" fit; None where one is unknown."""
    group = list(scene.things)
    for word in re.sub(r"^(an?|the) ", "", words.lower()).split():
        one = {plural(shape): shape for shape in (*SHAPES, "shape")}.get(word, word)
        if one not in (*SHAPES, *COLOURS, *SIZES, "shape"):
            return None
        group = [thing for thing in group if one in (thing.shape, thing.colour, thing.size, "shape")]
    return group


def _only(words: str, scene: Scene) -> Thing | None:
    group = _meant(words, scene)
    return group[0] if group is not None and len(group) == 1 else None


def _is_far(start: Thing, told: str, scene: Scene) -> bool:
    """Whether something like "0.31 to the small red ring" is true."""
    distance, _, words = told.partition(" to ")
    other = _only(words, scene)
    far = None if other is None else math.dist((start.x, start.y), (other.x, other.y))
    return far is not None and re.fullmatch(r"\d+\.\d+", distance) is not None and abs(far - float(distance)) < 0.006
