"""A classifier made of sentences: each class is the mean of what a text tower makes of some prompts with its name.

Radford et al. 2021 (arXiv:2103.00020), section 3.1.4. Letters: C classes, E width, I pictures.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmflow.evaluation.retrieval import require_finite

TEMPLATES = ("a photo of a {}.",)
TEXTS = 512  # that are encoded at once


@torch.no_grad()
def zero_shot_weights(
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """The weights (E, C) of a linear classifier without bias, whose columns have length 1.

    A column is the mean over templates of embeddings of length 1, brought to length 1 again.

    Args:
        encode_text: tokens (B, T) to embeddings (B, E) of any length.
        tokenize: B texts to tokens (B, T), on the device of the text tower.
        classes: C different names.
        templates: sentences, in each of which {} stands for the name.

    Raises:
        ValueError: no classes or one twice, a class without a name, no templates or one without {}, embeddings that
            are not finite.
    """
    prompts = [prompt for of_class in class_prompts(classes, templates).values() for prompt in of_class]
    parts = [encode_text(tokenize(prompts[start : start + TEXTS])) for start in range(0, len(prompts), TEXTS)]
    embeddings = torch.cat(parts).float()  # (C * templates, E)
    require_finite(embeddings, "prompts")
    means = F.normalize(embeddings, dim=1).view(len(classes), len(templates), -1).mean(1)  # (C, E)
    return F.normalize(means, dim=1).T


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> dict[str, list[str]]:
    """Class -> its prompts, one per template; errors as `zero_shot_weights` has them."""
    if not classes:
        raise ValueError("classes=[] leaves nothing to choose from; name at least one class")
    if not templates:
        raise ValueError(f"templates=[] leaves the classes without a prompt; give one, such as {TEMPLATES[0]!r}")
    for number, template in enumerate(templates):
        if "{}" not in template:
            raise ValueError(
                f"templates[{number}]={template!r} has no {{}} for the class, so all classes would have one prompt; "
                f"write it like {TEMPLATES[0]!r}"
            )
    seen: dict[str, int] = {}
    for number, name in enumerate(classes):
        if not name.strip():
            raise ValueError(f"classes[{number}]={name!r} has no name, so there is no prompt for it; name it")
        if name in seen:
            raise ValueError(f"classes[{seen[name]}] and classes[{number}] are both {name!r}; remove one of them")
        seen[name] = number
    return {name: [template.replace("{}", name) for template in templates] for name in classes}


def class_ranks(images: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
    """How many classes are preferred to the right one (I,): below k is a hit at k. Of equal ones the first counts.

    Args:
        images: (I, E) embeddings of any length.
        weights: (E, C).
        labels: (I,) int64 numbers of classes.
    """
    require_finite(images, "pictures")
    scores = images.float() @ weights  # (I, C)
    right = scores.gather(1, labels[:, None])
    earlier = torch.arange(weights.shape[1], device=labels.device) < labels[:, None]
    return ((scores > right) | ((scores == right) & earlier)).sum(1)
