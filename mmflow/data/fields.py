"""The DataModule for any fields: which ones are read and what becomes of each is said in the config.

data:
  class_path: mmflow.data.fields.FieldData
  init_args:
    spec: [data_specs/flickr8k.yaml, data_specs/grid.yaml]
    weights: [1, 1]
    transforms:
      image: {class_path: mmflow.data.transforms.Crop, init_args: {size: 224}}
      video: {class_path: mmflow.data.transforms.Clip, init_args: {seconds: 2, rate: 25, size: [96, 120], sound: audio}}
      text: {class_path: mmflow.data.transforms.Text}
    augmentations: [{class_path: mmflow.data.augmentation.ColourJitter}]
    batch_size: 32

B batch, T pictures of a clip.
"""

import difflib
import functools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from mmflow.data.augmentation import Augmentation
from mmflow.data.datamodule import ShardData
from mmflow.data.errors import BadSample
from mmflow.data.loader import Collate, Prepare, Sample
from mmflow.data.spec import DataSpec
from mmflow.data.transforms import Transform

BySpec = dict[str, dict[str, Transform]]  # spec name -> field -> transform


def prepare(sample: Sample, draw: np.random.Generator, transforms: BySpec, training: bool) -> Sample:
    """Transform the fields that a sample has, and add the seconds it took to `__seconds__`.

    Raises BadSample for what cannot be used.
    """
    made = {name: value for name, value in sample.items() if name.startswith("__")}
    seconds = made.setdefault("__seconds__", {})
    for field, transform in transforms[sample["__spec__"]].items():
        began = time.perf_counter()
        try:
            made |= transform.named(field, sample[field], draw if training else None)
        except BadSample as error:
            raise BadSample(f"{field}: {error}") from error
        seconds[field] = seconds.get(field, 0.0) + time.perf_counter() - began
    return made


def collate(samples: list[Sample], draw: np.random.Generator) -> dict[str, Any]:  # noqa: ARG001
    """A batch by name: see `FieldData`."""
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample if not name.startswith("__")):
        rows = [row for row, sample in enumerate(samples) if name in sample]
        values = [samples[row][name] for row in rows]
        batch[name] = stacked(values)
        if isinstance(values[0], Tensor) and isinstance(batch[name], Tensor) and has_length(values[0]):
            batch[f"{name}_lengths"] = torch.tensor([len(value) for value in values])
        if len(rows) < len(samples):
            batch[f"{name}_rows"] = torch.tensor(rows)
    return batch


def stacked(values: list[Any]) -> Any:
    """Numbers as (B,); tensors as (B, ...), padded with zeros where their first sizes differ; else the list itself."""
    if all(isinstance(value, int | float) for value in values):
        return torch.tensor(values)
    if not all(isinstance(value, Tensor) for value in values):
        return values
    shapes = {value.shape for value in values}
    if len(shapes) == 1:
        return torch.stack(values)
    alike = len({shape[1:] for shape in shapes}) == 1 and all(shapes)
    return pad_sequence(values, batch_first=True) if alike else values


def has_length(value: Tensor) -> bool:
    """Whether the first size of a tensor is a length: not that of a number (), and not that of a picture (3, H, W)."""
    return value.ndim > 0 and not (value.ndim == 3 and is_pictures(value[None]))


def is_pictures(value: Any) -> bool:
    """Whether a value is stacked pictures (B, 3, H, W) or clips (B, T, 3, H, W) as they are decoded."""
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim in (4, 5) and value.shape[-3] == 3


class FieldData(ShardData):
    """Batches of any fields, with a transform for each.

    In a batch numbers are (B,), int64 or float32, and tensors of one shape are stacked. Those that differ only in their
    first size are padded with zeros along it, and `<name>_lengths` (B,) tells what each had; it is there for all but
    numbers and single pictures. Anything else is a list. Of a name that some samples of a batch lack, there are only
    the rows of those that have it, and `<name>_rows` tells which they are. On the device pictures (B, 3, H, W) and
    clips (B, T, 3, H, W) of uint8 become float32 in [0, 1].

    Args:
        spec: path of a data spec, or several to mix; each needs only some of the fields.
        transforms: field -> what becomes of it (see `mmflow.data.transforms`).
        spec_transforms: spec name -> field -> another transform for that spec.
        augmentations: applied to the batch on the device in training, in this order; those whose fields no sample of a
            batch has are passed over.
    """

    partial = True

    def __init__(
        self,
        spec: str | list[str],
        transforms: dict[str, Transform],
        spec_transforms: dict[str, dict[str, Transform]] | None = None,
        augmentations: Sequence[Augmentation] = (),
        **shards: Any,
    ) -> None:
        super().__init__(spec, **shards)
        if not transforms:
            raise ValueError("transforms={} reads nothing; name at least one field and its transform")
        self.fields = tuple(transforms)
        self.augmentations = tuple(augmentations)
        self._check_fields(spec_transforms or {})
        self.by_spec: BySpec = {}
        for opened in self.specs:
            chosen = transforms | (spec_transforms or {}).get(opened.name, {})
            self.by_spec[opened.name] = {field: chosen[field] for field in chosen if field in self._held(opened)}
            self._check_kinds(opened)
        self._check_names()

    def _held(self, spec: DataSpec) -> dict[str, list[str]]:
        """Field -> extensions, for all that samples of a spec have."""
        return spec.fields | {field: ["npy"] for field in self.sidecars}

    def _check_fields(self, spec_transforms: BySpec) -> None:
        """Raise ValueError for specs and fields that are not there."""
        held = {spec.name: self._held(spec) for spec in self.specs}
        for field in self.fields:
            _require(field, {field for fields in held.values() for field in fields}, f"no spec has a field {field!r}")
        for field in self.sidecars:
            _require(field, self.fields, f"the sidecar {field!r} is not among transforms")
        for name, changed in spec_transforms.items():
            _require(name, held, f"spec_transforms: no spec is named {name!r}")
            for field in changed:
                _require(field, held[name], f"spec_transforms.{name}: that spec has no field {field!r}")
                _require(field, self.fields, f"spec_transforms.{name}: field {field!r} is not among transforms")

    def _check_kinds(self, spec: DataSpec) -> None:
        """Raise ValueError for a transform that cannot take its field."""
        for field, transform in self.by_spec[spec.name].items():
            if extension := transform.refused(self._held(spec)[field]):
                members = "several members" if transform.several else "one member"
                raise ValueError(
                    f"{spec.path}: field {field!r} may be .{extension}, which {type(transform).__name__} does not "
                    f"take; it takes {members} of {', '.join(transform.kinds)}. Choose another transform, or correct "
                    f"`fields:` in the spec"
                )

    def _check_names(self) -> None:
        """Raise ValueError when two fields make one name, or an augmentation reads one that no field makes."""
        known = {"valid"}
        for spec, transforms in self.by_spec.items():
            makers: dict[str, str] = {}
            for field, transform in transforms.items():
                for name in transform.names(field):
                    if name in makers:
                        raise ValueError(
                            f"spec {spec!r}: fields {makers[name]!r} and {field!r} both make {name!r}; give one of "
                            f"them another name"
                        )
                    makers[name] = field
                    known |= {name, f"{name}_lengths", f"{name}_rows"}
        for augmentation in self.augmentations:
            for name in augmentation.reads:
                _require(name, known, f"{type(augmentation).__name__} reads {name!r}, which no field makes")

    @override
    def transforms(self, training: bool) -> tuple[Prepare, Collate]:
        return functools.partial(prepare, transforms=self.by_spec, training=training), collate

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        if isinstance(batch, list):  # the micro-batches of a step
            return [self.on_after_batch_transfer(micro, dataloader_idx) for micro in batch]
        batch = {name: value.float().div_(255) if is_pictures(value) else value for name, value in batch.items()}
        for augmentation in self.augmentations if self.trainer.training else ():
            if batch.keys() >= set(augmentation.reads):  # none of its samples may have had the field
                batch = augmentation(batch, self.seed)
        return batch


def _require(name: str, known: Iterable[str], what: str) -> None:
    """Raise ValueError for a name that is not known, with the nearest one that is."""
    if name not in (known := sorted(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{what}; {hint}There are: {', '.join(known)}")
