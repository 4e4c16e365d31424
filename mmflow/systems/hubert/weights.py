"""HuBERT out of our own checkpoints, and in the layout of `transformers`, in and out, with every tensor accounted for.

Nothing is unpickled but tensors and plain containers. Tensors are renamed, never changed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mmflow.atomic import atomic_file, write_json
from mmflow.systems.hubert.model import KERNELS, SAMPLE_RATE, STRIDES, Hubert

_MASK = "masked_spec_embed"  # transformers leaves it out of models that never mask
_SINGLE = {
    "mask_embedding": _MASK,
    "input_norm.weight": "feature_projection.layer_norm.weight",
    "input_norm.bias": "feature_projection.layer_norm.bias",
    "input_projection.weight": "feature_projection.projection.weight",
    "input_projection.bias": "feature_projection.projection.bias",
    "positions.conv.bias": "encoder.pos_conv_embed.conv.bias",
    "positions.conv.parametrizations.weight.original0": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    "positions.conv.parametrizations.weight.original1": "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    "norm.weight": "encoder.layer_norm.weight",
    "norm.bias": "encoder.layer_norm.bias",
}
_IN_BLOCK = {
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.out": "attention.out_proj",
    "attention_norm": "layer_norm",
    "ffn.expand": "feed_forward.intermediate_dense",
    "ffn.contract": "feed_forward.output_dense",
    "ffn_norm": "final_layer_norm",
}
# Names of the weight norm's scale and direction before torch had parametrizations; most published files have these.
_OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


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
    kept = {key: value for key, value in state_dict.items() if not key.startswith(tuple(leave))}
    prefix = "hubert." if any(key.startswith("hubert.") for key in kept) else ""
    found = {_modern(key): value for key, value in kept.items()}
    names = _names(
        depth=_count(found, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."),
        layer_norm=f"{prefix}feature_extractor.conv_layers.1.layer_norm.weight" in found,
        bias=f"{prefix}feature_extractor.conv_layers.0.conv.bias" in found,
    )
    if not mask_embedding:
        del names["mask_embedding"]
    return _rename(found, {prefix + theirs: ours for ours, theirs in names.items()})


def to_transformers(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Rename the tensors of a Hubert for transformers: `prefix` "" for HubertModel, "hubert." for models around one.

    Raises ValueError naming each tensor that is missing or that a Hubert does not have."""
    names = _names(
        depth=_count(state_dict, r"blocks\.(\d+)\."),
        layer_norm="conv.norms.1.weight" in state_dict,
        bias="conv.convs.0.bias" in state_dict,
    )
    return _rename(state_dict, {ours: prefix + theirs for ours, theirs in names.items()})


def load_hubert(checkpoint: str) -> Hubert:
    """The Hubert inside a Lightning checkpoint whose module was built by the CLI and calls it `hubert`."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = saved.get("hyper_parameters", {}).get("hubert")
    if not isinstance(config, dict) or config.get("class_path") != f"{Hubert.__module__}.{Hubert.__qualname__}":
        raise ValueError(
            f"{checkpoint} does not say how to build its HuBERT (hyper_parameters.hubert is {config!r}); "
            f"give the checkpoint of a HuBERT training that the command line started"
        )
    hubert = Hubert(**config.get("init_args", {}))
    prefix = "hubert."
    weights = {name.removeprefix(prefix): w for name, w in saved["state_dict"].items() if name.startswith(prefix)}
    hubert.load_state_dict(weights)
    return hubert


def load_folder(folder: str | Path, leave: Sequence[str] = ()) -> Hubert:
    """Build the Hubert that a transformers model folder (config.json, model.safetensors) describes, in eval mode.

    Utterances are normalised if preprocessor_config.json says so, or, without that file, if every convolution has its
    norm, as in the published models. Where the folder says that the model never masks, the mask vector stays random.

    Args:
        folder: As written by `save_pretrained` or by `save_folder`.
        leave: Beginnings of tensor names to leave out on purpose, such as "lm_head.".

    Raises ValueError for a file that is missing, a setting that Hubert does not have, or a tensor too many or too few.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(
            f"{weights} is not there; pickled or sharded weights are not read: load the model with transformers and "
            f"call save_pretrained(folder, max_shard_size='100GB')"
        )
    arguments = _arguments(config)
    if (folder / "preprocessor_config.json").is_file():
        arguments["normalize"] = bool(_read_json(folder / "preprocessor_config.json").get("do_normalize", True))
    hubert = Hubert(**arguments)
    masks = config.get("mask_time_prob", 0.05) > 0 or config.get("mask_feature_prob", 0.0) > 0
    state_dict = from_transformers(load_file(weights), leave, mask_embedding=masks)
    if not masks:
        state_dict["mask_embedding"] = hubert.mask_embedding.detach()
    hubert.load_state_dict(state_dict)
    return hubert.eval()


def save_folder(hubert: Hubert, folder: str | Path) -> None:
    """Write `hubert` as a folder that `transformers.HubertModel.from_pretrained` and `load_folder` read."""
    folder = Path(folder)
    state_dict = {key: value.contiguous().cpu() for key, value in to_transformers(hubert.state_dict()).items()}
    with atomic_file(folder / "model.safetensors") as file:
        file.write(save(state_dict, metadata={"format": "pt"}))
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": hubert.normalize,
        # transformers cannot keep padding out of Base's group norm, and advises against the mask there.
        "return_attention_mask": hubert.conv.norm == "layer",
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "config.json", _config(hubert))


def _names(depth: int, layer_norm: bool, bias: bool) -> dict[str, str]:
    """Our name -> transformers' name, for a model of this shape."""
    leaves = ("weight", "bias")
    names = dict(_SINGLE)
    for i in range(len(KERNELS)):
        theirs = f"feature_extractor.conv_layers.{i}"
        names |= {f"conv.convs.{i}.{leaf}": f"{theirs}.conv.{leaf}" for leaf in leaves[: 1 + bias]}
        if layer_norm or i == 0:
            names |= {f"conv.norms.{i}.{leaf}": f"{theirs}.layer_norm.{leaf}" for leaf in leaves}
    for i in range(depth):
        for ours, theirs in _IN_BLOCK.items():
            names |= {f"blocks.{i}.{ours}.{leaf}": f"encoder.layers.{i}.{theirs}.{leaf}" for leaf in leaves}
    return names


def _rename(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    missing, extra = sorted(names.keys() - state_dict.keys()), sorted(state_dict.keys() - names.keys())
    if missing or extra:
        raise ValueError(
            f"this state dict does not hold exactly one HuBERT encoder: missing {missing}, extra {extra}; "
            f"name the beginnings of tensors to leave out on purpose"
        )
    return {new: state_dict[old] for old, new in names.items()}


def _modern(key: str) -> str:
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.{_OLD_WEIGHT_NORM[leaf]}" if leaf in _OLD_WEIGHT_NORM else key


def _count(keys: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest index that `pattern` finds in the keys, so that a gap shows as missing tensors."""
    return 1 + max((int(match[1]) for key in keys if (match := re.match(pattern, key))), default=-1)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is not there; give a folder written by transformers' save_pretrained")
    return json.loads(path.read_text())


def _config(hubert: Hubert) -> dict[str, Any]:
    """The transformers HubertConfig of `hubert`."""
    block: Any = hubert.blocks[0]
    conv_dim = hubert.input_norm.normalized_shape[0]
    return {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "hidden_size": hubert.dim,
        "num_hidden_layers": len(hubert.blocks),
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": block.ffn.expand.out_features,
        "conv_dim": [conv_dim] * len(KERNELS),
        "feat_extract_norm": hubert.conv.norm,
        "conv_bias": "conv.convs.0.bias" in hubert.state_dict(),
        "do_stable_layer_norm": hubert.pre_norm,
        "num_conv_pos_embeddings": hubert.positions.conv.kernel_size[0],
        "num_conv_pos_embedding_groups": hubert.positions.conv.groups,
        "hidden_dropout": hubert.dropout.p,
        "attention_dropout": block.attention.dropout,
        "activation_dropout": block.ffn.dropout.p,
        "feat_proj_dropout": hubert.input_dropout.p,
        "layerdrop": hubert.layer_drop,
        "mask_time_prob": 0.05,  # transformers' own default; above 0, so that the mask vector is part of the model
        **_FIXED,
    }


_FIXED = {  # settings of HubertConfig that Hubert has one value for
    "conv_kernel": list(KERNELS),
    "conv_stride": list(STRIDES),
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "layer_norm_eps": 1e-5,
}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hubert's constructor arguments from a HubertConfig; a setting that is left out has HubertConfig's default."""
    if config.get("model_type") != "hubert":
        raise ValueError(f"config.json has model_type {config.get('model_type')!r}; only 'hubert' can be read here")
    for key, only in _FIXED.items():
        if config.get(key, only) != only:
            raise ValueError(f"config.json has {key}={config[key]!r}; Hubert knows only {only!r}")
    widths = config.get("conv_dim", [512] * len(KERNELS))
    if len(set(widths)) != 1 or len(widths) != len(KERNELS):
        raise ValueError(f"config.json has conv_dim={widths}; Hubert knows only {len(KERNELS)} layers of one width")
    conv_norm = config.get("feat_extract_norm", "group")
    return {
        "dim": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "ffn_dim": config.get("intermediate_size", 3072),
        "conv_dim": widths[0],
        "conv_norm": conv_norm,
        "conv_bias": config.get("conv_bias", False),
        "pre_norm": config.get("do_stable_layer_norm", False),
        "position_kernel": config.get("num_conv_pos_embeddings", 128),
        "position_groups": config.get("num_conv_pos_embedding_groups", 16),
        "dropout": config.get("hidden_dropout", 0.1),
        "attention_dropout": config.get("attention_dropout", 0.1),
        "ffn_dropout": config.get("activation_dropout", 0.1),
        "input_dropout": config.get("feat_proj_dropout", 0.0),
        "layer_drop": config.get("layerdrop", 0.1),
        "feature_grad_mult": 1.0,
        "normalize": conv_norm == "layer",
    }
