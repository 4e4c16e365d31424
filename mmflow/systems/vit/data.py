"""Pictures with a label, as classifiers take them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmflow.data.augmentation import Augmentation
from mmflow.data.errors import BadSample
from mmflow.data.fields import FieldData
from mmflow.data.transforms import Crop, Entry, Transform


class Label(Transform):
    """The class of a picture out of its JSON: `label`, its number, `class`, its name ("" where it is not told), and
    `unseen`, whether it is of a kind that training never shows (False where it is not told)."""

    kinds = ("json",)

    def __init__(self, path: str = "label") -> None:
        self.number = Entry(path)

    def __call__(self, value: Any, draw: np.random.Generator | None) -> dict[str, Any]:
        number = self.number(value, draw)
        if not isinstance(number, int) or number < 0:
            raise BadSample(f"{self.number.path!r} is {number!r}; classes are numbered from 0")
        told = value if isinstance(value, dict) else {}
        return {"label": number, "class": str(told.get("class", "")), "unseen": told.get("unseen") is True}

    def names(self, field: str) -> list[str]:  # noqa: ARG002
        return ["label", "class", "unseen"]


class LabelledPictures(FieldData):
    """Batches of `image` (B, 3, size, size), `label` (B,) int64, `unseen` (B,) bool and `class`, a list of names.

    Args:
        spec: path of a data spec with the fields `image` and `info`, or several to mix.
        size: pixels along each side.
        scale: least and largest share of the area that a crop has in training.
        ratio: least and largest ratio of width to height of it.
        flip: probability of a mirror image in training.
        crop_ratio: side of the square in the middle, that is evaluated, over the short side of the picture.
        label: where in the JSON the number of the class lies.
        augmentations: applied to the batch on the device in training, in this order; a mixing one comes last.
        shards: of `mmflow.data.datamodule.ShardData`.
    """

    def __init__(
        self,
        spec: str | list[str],
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        crop_ratio: float = 0.875,
        label: str = "label",
        augmentations: Sequence[Augmentation] = (),
        **shards: Any,
    ) -> None:
        transforms: dict[str, Transform] = {"image": Crop(size, scale, ratio, flip, crop_ratio), "info": Label(label)}
        super().__init__(spec, transforms, augmentations=augmentations, **shards)
