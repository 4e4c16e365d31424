"""Recall at k of pictures and texts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmflow.evaluation import retrieval
from mmflow.evaluation.retrieval import ALONE, ranks, recalls


def pairs_with(similarity: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Pictures and texts with these products: pictures are the axes."""
    scores = torch.tensor(similarity)  # (I, T)
    return torch.eye(len(scores)), scores.T.contiguous()


# Two pictures with two texts each; rows are pictures.
SIMILARITY = [[0.1, 0.5, 0.9, 0.2], [0.3, 0.6, 0.7, 0.8]]
OWNERS = torch.tensor([0, 0, 1, 1])


def brute_force(scores: Tensor, owners: Tensor) -> tuple[list[int], list[int]]:
    """Ranks by sorting whole rows and columns of scores (I, T); Python's sort keeps equal ones in their order."""
    of_texts = []
    for image, row in enumerate(scores.tolist()):
        order = sorted(range(len(row)), key=lambda text: -row[text])
        places = [place for place, text in enumerate(order) if owners[text] == image]
        of_texts.append(places[0] if places else ALONE)
    of_images = []
    for text, column in enumerate(scores.T.tolist()):
        order = sorted(range(len(column)), key=lambda image: -column[image])
        of_images.append(order.index(int(owners[text])))
    return of_texts, of_images


def test_two_pictures_with_two_texts_each():
    # picture 0 prefers text 2, then its own 1; picture 1 prefers its own 3.
    # texts 0, 1 prefer picture 1, text 2 prefers picture 0, text 3 its own picture 1.
    images, texts = pairs_with(SIMILARITY)
    assert [of.tolist() for of in ranks(images, texts, OWNERS)] == [[1, 0], [1, 1, 1, 0]]
    assert recalls(images, texts, OWNERS, ks=(1, 2)) == {
        "image_to_text_r1": 0.5,
        "image_to_text_r2": 1.0,
        "text_to_image_r1": 0.25,
        "text_to_image_r2": 1.0,
    }


def test_of_equal_ones_the_first_is_preferred():
    images, texts = torch.ones(3, 1), torch.ones(4, 1)
    of_texts, of_images = ranks(images, texts, torch.tensor([1, 2, 1, 0]))
    assert of_texts.tolist() == [3, 0, 1]
    assert of_images.tolist() == [1, 2, 1, 0]


def test_a_picture_without_a_text_asks_nothing_but_may_be_found():
    images, texts = pairs_with([[0.1], [0.9]])
    of_texts, of_images = ranks(images, texts, torch.tensor([0]))
    assert (of_texts.tolist(), of_images.tolist()) == ([0, ALONE], [1])
    found = recalls(images, texts, torch.tensor([0]), ks=(1,))
    assert found == {"image_to_text_r1": 1.0, "text_to_image_r1": 0.0}


@pytest.mark.parametrize("coarse", [False, True])
def test_agrees_with_sorting_over_blocks_with_ties_and_several_texts(coarse, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 16)
    draw = torch.Generator().manual_seed(0)
    images, texts = torch.randn(50, 8, generator=draw), torch.randn(131, 8, generator=draw)
    if coarse:  # whole numbers, so that many products are equal
        images, texts = images.round().clamp(-1, 1), texts.round().clamp(-1, 1)
    owners = torch.randint(0, 45, (131,), generator=draw)  # the last five have none
    expected = brute_force((images.double() @ texts.double().T).float(), owners)
    assert [of.tolist() for of in ranks(images, texts, owners)] == list(expected)


def test_equal_embeddings_tie_wherever_they_stand(monkeypatch):
    # 37 times the same picture and text: the first wins, whatever the order of sums in a matrix product is.
    monkeypatch.setattr(retrieval, "BLOCK", 10)
    row = F.normalize(torch.randn(1, 511, generator=torch.Generator().manual_seed(1)), dim=1)
    of_texts, of_images = ranks(row.expand(37, -1), row.expand(37, -1), torch.arange(37))
    assert of_texts.tolist() == of_images.tolist() == list(range(37))


def test_memory_is_linear():
    sizes = []
    original = torch.Tensor.__matmul__

    def counted(a, b):
        sizes.append(a.shape[0] * b.shape[1])
        return original(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", counted)
        patch.setattr(retrieval, "BLOCK", 128)
        recalls(torch.ones(1000, 2), torch.ones(1500, 2), torch.arange(1500) % 1000)
    assert max(sizes) == 128**2


@pytest.mark.parametrize(
    ("images", "texts", "owners", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), [0, 1], r"pictures \(2, 3\) and texts \(2, 4\) .* one width"),
        (torch.ones(2, 3), torch.ones(0, 3), [], r"each of 0 texts"),
        (torch.ones(2, 3), torch.ones(2, 3), [0], r"owners \(1,\) must name the picture of each of 2 texts"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, 2], r"owners are in 0\.\.2, but there are 2 pictures"),
        (torch.ones(2, 3) / 0, torch.ones(2, 3), [0, 1], r"2 of 2 embeddings of pictures are not finite, first .* 0"),
        (torch.ones(2, 3), torch.tensor([[1.0], [torch.nan]]).expand(2, 3), [0, 1], r"1 of 2 .* texts .* number 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(images, texts, owners, message):
    with pytest.raises(ValueError, match=message):
        recalls(images, texts, torch.tensor(owners, dtype=torch.int64))


@pytest.mark.parametrize("ks", [(), (0, 1)])
def test_ks_are_counts(ks):
    with pytest.raises(ValueError, match="must be counts of answers"):
        recalls(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([0]), ks)
