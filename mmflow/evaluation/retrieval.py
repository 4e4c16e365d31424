"""Do pictures find their texts, and texts their pictures? Recall at k both ways, exact, in memory linear in both.

Letters: I pictures, T texts, E width. Embeddings are compared by their cosine, so they are given with length 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2048  # pictures and texts that are compared at once: 100 MB
ALONE = -1  # rank of a picture that has no text


class Ranks(NamedTuple):
    """How many others were preferred to the right one, of each query; 0 is a hit at 1.

    Attributes:
        of_texts: (I,) int64, from a picture to the best of its texts; ALONE for a picture without any.
        of_images: (T,) int64, from a text to its picture.
    """

    of_texts: Tensor
    of_images: Tensor


def recalls(images: Tensor, texts: Tensor, owners: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of queries with a right answer among the first k, as `image_to_text_r<k>` and `text_to_image_r<k>`.

    A picture counts once, however many texts it has; any of them will do. Pictures without a text ask nothing, but can
    be found instead of the right one. See `ranks` for arguments, ties and errors.
    """
    return recalls_of(ranks(images, texts, owners), ks)


def recalls_of(found: Ranks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """As `recalls`, of ranks that are known, such as those of some of the queries.

    Raises ValueError for a k below 1."""
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)} must be counts of answers, at least one of them and each at least 1")
    of_texts = found.of_texts[found.of_texts != ALONE]
    shares = {f"image_to_text_r{k}": float((of_texts < k).double().mean()) for k in ks}
    return shares | {f"text_to_image_r{k}": float((found.of_images < k).double().mean()) for k in ks}


def ranks(images: Tensor, texts: Tensor, owners: Tensor) -> Ranks:
    """The rank of the right answer, for each picture and for each text.

    It is the number of candidates that are strictly better, or equal and of a smaller number. Cosines are summed in
    float64 and rounded to float32, so that equal embeddings tie wherever they stand.

    Args:
        images: (I, E).
        texts: (T, E).
        owners: (T,) int64, the number of each text's picture; several texts may have one.

    Raises:
        ValueError: widths that differ, no texts, an owner that is no picture, embeddings that are not finite.
    """
    _check(images, texts, owners)
    own = torch.cat([_cosines(images[owners[part]], texts[part]) for part in _parts(len(texts))])  # (T,)
    best = _best_texts(own, owners, len(images))  # (I,)
    best_cosine = torch.where(best != ALONE, own[best], torch.inf)
    of_texts, of_images = torch.zeros_like(best), torch.zeros_like(owners)
    numbers, text_numbers = torch.arange(len(images), device=images.device), torch.arange(len(texts), device=own.device)
    for rows in _parts(len(images)):
        for columns in _parts(len(texts)):
            scores = (images[rows].double() @ texts[columns].double().T).float()
            others = numbers[rows, None] != owners[columns]
            # from pictures, each against its best text
            right, right_number = best_cosine[rows, None], best[rows, None]
            preferred = (scores > right) | ((scores == right) & (text_numbers[columns] < right_number))
            of_texts[rows] += (preferred & others).sum(1)
            # from texts, each against its picture
            right, right_number = own[columns], owners[columns]
            preferred = (scores > right) | ((scores == right) & (numbers[rows, None] < right_number))
            of_images[columns] += (preferred & others).sum(0)
    of_texts[best == ALONE] = ALONE
    return Ranks(of_texts, of_images)


def require_finite(embeddings: Tensor, what: str) -> None:
    """Raise ValueError if a row of embeddings (N, E) holds a NaN or an infinity."""
    bad = (~embeddings.isfinite().all(1)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(embeddings)} embeddings of {what} are not finite, first number {int(bad[0])}; the "
            f"checkpoint is broken or its training diverged: take an earlier one"
        )


def _check(images: Tensor, texts: Tensor, owners: Tensor) -> None:
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"pictures {tuple(images.shape)} and texts {tuple(texts.shape)} must be rows of one width; take both from "
            f"one model"
        )
    if not len(texts) or owners.shape != texts.shape[:1]:
        raise ValueError(
            f"owners {tuple(owners.shape)} must name the picture of each of {len(texts)} texts, and there must be one"
        )
    if int(owners.min()) < 0 or int(owners.max()) >= len(images):
        raise ValueError(
            f"owners are in {int(owners.min())}..{int(owners.max())}, but there are {len(images)} pictures; "
            f"number them from 0"
        )
    require_finite(images, "pictures")
    require_finite(texts, "texts")


def _parts(length: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, length, BLOCK)]


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum(1).float()


def _best_texts(own: Tensor, owners: Tensor, num_images: int) -> Tensor:
    """The number (I,) of each picture's text with the highest cosine, the first of equal ones; ALONE without any."""
    highest = own.new_full((num_images,), -torch.inf).scatter_reduce(0, owners, own, "amax")
    is_best = own == highest[owners]
    first = torch.full((num_images,), len(own), device=own.device)
    first.scatter_reduce_(0, owners[is_best], is_best.nonzero()[:, 0], "amin")
    return torch.where(first < len(own), first, ALONE)
