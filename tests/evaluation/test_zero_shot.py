"""Classifiers made of prompts."""

import math

import pytest
import torch
from torch import Tensor

from mmflow.evaluation import zero_shot
from mmflow.evaluation.zero_shot import class_prompts, class_ranks, zero_shot_weights

VECTORS = {
    "a cat.": [2.0, 0.0],  # twice as long as the other, which must not count
    "one cat.": [0.0, 1.0],
    "a dog.": [-3.0, 0.0],
    "one dog.": [-1.0, 0.0],
}


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[list(VECTORS).index(text)] for text in texts])


def encode_text(tokens: Tensor) -> Tensor:
    return torch.tensor(list(VECTORS.values()))[tokens[:, 0]]


def test_prompts_are_brought_to_length_1_before_and_after_the_mean():
    weights = zero_shot_weights(encode_text, tokenize, ["cat", "dog"], ["a {}.", "one {}."])
    half = math.sqrt(0.5)
    torch.testing.assert_close(weights, torch.tensor([[half, -1.0], [half, 0.0]]))


def test_many_prompts_come_in_batches(monkeypatch):
    monkeypatch.setattr(zero_shot, "TEXTS", 3)
    sizes = []

    def encode(tokens):
        sizes.append(len(tokens))
        return encode_text(tokens)

    weights = zero_shot_weights(encode, tokenize, ["dog", "cat"], ["a {}.", "one {}."])
    assert sizes == [3, 1]
    torch.testing.assert_close(weights[:, 0], torch.tensor([-1.0, 0.0]))


def test_prompts_of_each_class():
    assert class_prompts(["a", "{}"], ["x {}", "{} and {}"]) == {"a": ["x a", "a and a"], "{}": ["x {}", "{} and {}"]}


def test_ranks_count_better_classes_and_earlier_equal_ones():
    weights = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # classes 0 and 2 are the same
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert class_ranks(images, weights, torch.tensor([0, 1, 2, 1])).tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], ["a {}"], r"classes=\[\] leaves nothing"),
        (["cat"], [], r"templates=\[\] leaves the classes without a prompt"),
        (["cat", " "], ["a {}"], r"classes\[1\]=' ' has no name, so there is no prompt for it"),
        (["cat", "dog", "cat"], ["a {}"], r"classes\[0\] and classes\[2\] are both 'cat'"),
        (["cat"], ["a {}", "a {name}"], r"templates\[1\]='a {name}' has no {} for the class"),
    ],
)
def test_classes_without_a_prompt_are_refused(classes, templates, message):
    with pytest.raises(ValueError, match=message):
        zero_shot_weights(encode_text, tokenize, classes, templates)


def test_embeddings_that_are_not_finite_are_refused():
    def broken(tokens):
        return torch.full((len(tokens), 2), torch.nan)

    with pytest.raises(ValueError, match="4 of 4 embeddings of prompts are not finite"):
        zero_shot_weights(broken, tokenize, ["cat", "dog"], ["a {}.", "one {}."])
    with pytest.raises(ValueError, match="1 of 1 embeddings of pictures"):
        class_ranks(torch.tensor([[torch.inf]]), torch.ones(1, 2), torch.tensor([0]))
