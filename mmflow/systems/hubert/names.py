"""The names of HuBERT's tensors in our modules and in the files of transformers, torchaudio and fairseq, in and out.

Every tensor is accounted for: a missing or an extra one is an error that names it as the file does.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mmflow.nn.layouts import Layout, check, from_layout, prefixed, to_layout
from mmflow.systems.hubert.model import KERNELS

TRANSFORMERS: Layout = {
    "mask_embedding": "masked_spec_embed",  # left out of models that never mask
    "conv.convs.{}": "feature_extractor.conv_layers.{}.conv",
    "conv.norms.{}": "feature_extractor.conv_layers.{}.layer_norm",
    "input_norm": "feature_projection.layer_norm",
    "input_projection": "feature_projection.projection",
    "positions.conv": "encoder.pos_conv_embed.conv",
    "norm": "encoder.layer_norm",
    "blocks.{}.attention.qkv": [f"encoder.layers.{{}}.attention.{part}_proj" for part in "qkv"],
    "blocks.{}.attention.out": "encoder.layers.{}.attention.out_proj",
    "blocks.{}.attention_norm": "encoder.layers.{}.layer_norm",
    "blocks.{}.ffn.expand": "encoder.layers.{}.feed_forward.intermediate_dense",
    "blocks.{}.ffn.contract": "encoder.layers.{}.feed_forward.output_dense",
    "blocks.{}.ffn_norm": "encoder.layers.{}.final_layer_norm",
}


def _torchaudio(name: str) -> str:
    return re.sub("^feature_projection", "encoder.feature_projection", re.sub("^encoder", "encoder.transformer", name))


TORCHAUDIO: Layout = {
    ours: _torchaudio(theirs) if isinstance(theirs, str) else [_torchaudio(name) for name in theirs]
    for ours, theirs in TRANSFORMERS.items()
}
_WEIGHT_NORM = "parametrizations.weight.original"
# Names of the weight norm's scale and direction before torch had parametrizations; most published files have these.
_OLD_WEIGHT_NORM = {"weight_g": f"{_WEIGHT_NORM}0", "weight_v": f"{_WEIGHT_NORM}1"}


class Found(NamedTuple):
    """What a file holds, under our names."""

    arguments: dict[str, Any]  # of Hubert
    hubert: dict[str, Tensor]
    ctc: dict[str, Tensor]  # of a linear layer; empty without a CTC head
    tokens: Sequence[str] | None  # what the CTC head's outputs mean, None where the file does not say
    units: dict[str, Tensor]  # of a HubertPretrainingHead; empty without one
    temperature: float = 0.1


def from_transformers(
    state_dict: Mapping[str, Tensor], leave: Sequence[str] = (), mask_embedding: bool = True
) -> dict[str, Tensor]:
    """Rename the tensors of a transformers HubertModel, or of a model that holds one as `hubert.`, for Hubert.

    Args:
        state_dict: Names with or without the prefix "hubert.", the weight norm in its old or new form.
        leave: Beginnings of names to leave out on purpose, such as "lm_head.".
        mask_embedding: Whether the file holds `masked_spec_embed`, which transformers omits from models whose masking
            probabilities are both 0.

    Raises ValueError naming each tensor that is missing or that Hubert has no place for.
    """
    found = current(state_dict, leave)
    return encoder_state(found, TRANSFORMERS, prefix_of(found, "hubert."), mask_embedding=mask_embedding)


def to_transformers(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Rename the tensors of a Hubert for transformers: `prefix` "" for HubertModel, "hubert." for models around one.

    Raises ValueError naming each tensor that is missing or that a Hubert does not have."""
    depth = _count(state_dict, r"blocks\.(\d+)\.")
    norm = "layer" if "conv.norms.1.weight" in state_dict else "group"
    check(_keys(TRANSFORMERS, depth, norm, bias="conv.convs.0.bias" in state_dict), state_dict, "HuBERT encoder")
    return to_layout(state_dict, prefixed(TRANSFORMERS, prefix))


def current(state_dict: Mapping[str, Tensor], leave: Sequence[str]) -> dict[str, Tensor]:
    """The tensors that are not left out, the weight norm under its newer names."""
    found = {}
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{key!r} is a {type(value).__name__}, where a state dict has a name and a tensor")
        stem, _, leaf = key.rpartition(".")
        if not key.startswith(tuple(leave)):
            found[f"{stem}.{_OLD_WEIGHT_NORM[leaf]}" if leaf in _OLD_WEIGHT_NORM else key] = value
    return found


def encoder_state(
    found: Mapping[str, Tensor],
    layout: Layout,
    prefix: str,
    depth: int | None = None,
    mask_embedding: bool = True,
) -> dict[str, Tensor]:
    """The tensors of a Hubert, which must be all that is left in `found`, under our names.

    depth: how many blocks there must be, None = as many as are named."""
    if depth is None:
        block = re.escape(str(layout["blocks.{}.ffn_norm"]).partition("{}")[0])
        depth = max(1, _count(found, rf"{re.escape(prefix)}{block}(\d+)\."))
    keys = _keys(layout, depth, conv_norm_of(found), has_conv_bias(found))
    if not mask_embedding:
        keys.remove("mask_embedding")
    return from_layout(found, keys, prefixed(layout, prefix), "HuBERT encoder")


def _keys(layout: Layout, depth: int, conv_norm: str, bias: bool) -> list[str]:
    """Our names of the tensors of a model of this shape."""
    norms = len(KERNELS) if conv_norm == "layer" else 1
    counts = {"conv.convs.{}": len(KERNELS), "conv.norms.{}": norms}
    keys = []
    for ours in layout:
        leaves = ["weight", "bias"]
        if ours == "mask_embedding":
            keys.append(ours)
            continue
        if ours == "conv.convs.{}" and not bias:
            leaves = ["weight"]
        if ours == "positions.conv":
            leaves = ["bias", *_OLD_WEIGHT_NORM.values()]
        for i in range(counts.get(ours, depth) if "{}" in ours else 1):
            keys += [f"{ours.format(i)}.{leaf}" for leaf in leaves]
    return keys


def take(found: dict[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Remove a head (our name -> theirs) from `found`: all of it, or {} where nothing of it is there."""
    if not any(theirs in found for theirs in names.values()):
        return {}
    if missing := [theirs for theirs in names.values() if theirs not in found]:
        raise ValueError(f"a head is incomplete: missing {missing}")
    return {ours: found.pop(theirs) for ours, theirs in names.items()}


def prefix_of(found: Mapping[str, Tensor], prefix: str) -> str:
    """`prefix` where any name begins with it, else nothing."""
    return prefix if any(key.startswith(prefix) for key in found) else ""


def conv_norm_of(found: Mapping[str, Tensor]) -> str:
    """Hubert's `conv_norm`, from names of any of the three layouts."""
    every = re.compile(r"feature_extractor\.conv_layers\.1\.(layer_norm|2\.1)\.")
    return "layer" if any(every.search(key) for key in found) else "group"


def has_conv_bias(found: Mapping[str, Tensor]) -> bool:
    """Hubert's `conv_bias`, from names of any of the three layouts."""
    bias = re.compile(r"feature_extractor\.conv_layers\.0\.(conv|0)\.bias$")
    return any(bias.search(key) for key in found)


def _count(keys: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest index that `pattern` finds in the keys, so that a gap shows as missing tensors."""
    return 1 + max((int(match[1]) for key in keys if (match := re.match(pattern, key))), default=-1)


def sizes_of(hubert: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those of Hubert's arguments that the shapes of its tensors show."""
    dim, conv_dim = hubert["input_projection.weight"].shape
    taps = hubert[f"positions.conv.{_WEIGHT_NORM}1"]  # (D, D / groups, kernel)
    return {
        "dim": dim,
        "depth": _count(hubert, r"blocks\.(\d+)\."),
        "ffn_dim": len(hubert["blocks.0.ffn.expand.weight"]),
        "conv_dim": conv_dim,
        "conv_norm": "layer" if "conv.norms.1.weight" in hubert else "group",
        "conv_bias": "conv.convs.0.bias" in hubert,
        "position_kernel": taps.shape[2],
        "position_groups": dim // taps.shape[1],
    }
