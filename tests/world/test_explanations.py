import itertools
import re

import numpy as np
import pytest

from mmflow.world.explanations import follows
from mmflow.world.questions import REASONING_KINDS, draw_question
from mmflow.world.scene import Scene, SceneOptions, Thing

# A big red circle at the top left, a small blue circle below it, a small red square on the right.
SCENE = Scene(
    (
        Thing("circle", "red", "big", 0.2, 0.2, 0.15),
        Thing("circle", "blue", "small", 0.25, 0.8, 0.09),
        Thing("square", "red", "small", 0.8, 0.5, 0.09),
    )
)
ROW = "From left to right there are a big red circle, a small blue circle and a small red square. "


def drawn(count, split, kinds):
    return [draw_question(np.random.default_rng([7, i]), split, kinds, SceneOptions()) for i in range(count)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_explanations_follow(split):
    kinds = set()
    for scene, asked in drawn(800, split, REASONING_KINDS):
        explanation = asked["explanation"]
        assert follows(explanation, scene), explanation
        assert explanation.endswith(f"So the answer is {asked['answer']}.")
        assert 2 <= len(re.findall(r"\.(?= |$)", explanation)) - 1 <= 4
        kinds.add(asked["question_type"])
    assert kinds == set(REASONING_KINDS)


def test_an_explanation_of_another_scene_does_not_follow():
    several = drawn(300, "train", REASONING_KINDS)
    wrong = [follows(asked["explanation"], other) for (_, asked), (other, _) in itertools.pairwise(several)]
    assert np.mean(wrong) < 0.15  # zero counts are often the same


@pytest.mark.parametrize(
    ("explanation", "right"),
    [
        ("There are 2 red shapes. There is 1 blue shape. 2 is more than 1. So the answer is yes.", True),
        ("There are 2 red shapes. There is 1 blue shape. 2 is more than 1. So the answer is no.", False),
        ("There are 3 red shapes. There is 1 blue shape. 3 is more than 1. So the answer is yes.", False),
        ("There are 2 red shapes. There is 1 blue shape. 2 is not more than 1. So the answer is no.", False),
        ("There are 3 shapes. There are 2 circles. 3 - 2 = 1. So the answer is 1.", True),
        ("There are 3 shapes. There are 2 circles. 3 - 2 = 2. So the answer is 2.", False),
        ("There are 2 circles. There are 2 red shapes. There is 1 red circle. 2 + 2 - 1 = 3. So the answer is 3.",
         True),
        (ROW + "The shape furthest left is the big red circle. Its colour is red. So the answer is red.", True),
        ("From left to right there are a small blue circle, a big red circle and a small red square. "
         "The shape furthest left is the big red circle. Its colour is red. So the answer is red.", False),
        ("From left to right there are a big red circle and a small red square. Its colour is red. "
         "So the answer is red.",
         False),
        ("From the small red square it is 0.63 to the small blue circle and 0.67 to the big red circle. "
         "The shape nearest to the small red square is the small blue circle. Its colour is blue. "
         "So the answer is blue.", True),
        ("From the small red square it is 0.53 to the small blue circle and 0.67 to the big red circle. "
         "The shape nearest to the small red square is the small blue circle. Its colour is blue. "
         "So the answer is blue.", False),
        ("The shape nearest to the small red square is the big red circle. Its colour is red. So the answer is red.",
         False),
        ("The square is red. There are 2 red shapes. 2 is more than 1. So the answer is yes.", True),
        ("The circle is red. There are 2 red shapes. 2 is more than 1. So the answer is yes.", False),
        ("There are 2 pink shapes. So the answer is 2.", False),
        ("From the square it is far to the circle. So the answer is 2.", False),
        ("The shape nearest to the moon is the square. So the answer is red.", False),
        ("I do not know. So the answer is 2.", False),
        ("So the answer is 2.", False),
        ("There are 2 circles.", False),
        ("", False),
    ],
)  # fmt: skip
def test_each_step_is_checked(explanation, right):
    assert follows(explanation, SCENE) == right
