"""HuBERT as a folder of transformers: config.json, weights, preprocessor, and the vocabulary of a recogniser."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from mmflow.atomic import atomic_file, write_json
from mmflow.data.text import Characters
from mmflow.systems.hubert import fairseq
from mmflow.systems.hubert.model import KERNELS, SAMPLE_RATE, STRIDES, CTCHead, Hubert
from mmflow.systems.hubert.names import (
    TRANSFORMERS,
    Found,
    current,
    encoder_state,
    has_conv_bias,
    prefix_of,
    take,
    to_transformers,
)

_FIXED = {  # settings of HubertConfig that Hubert has one value for
    "conv_kernel": list(KERNELS),
    "conv_stride": list(STRIDES),
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "layer_norm_eps": 1e-5,
}


_VOCABULARY = ("<pad>", "<s>", *Characters.tokens[2:])  # the blank comes first, under transformers' name for it
_PROCESSOR = "Wav2Vec2Processor"
_TOKENIZER = {
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
    "processor_class": _PROCESSOR,
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "word_delimiter_token": "|",
    "do_lower_case": False,
}


def read_folder(folder: Path, leave: Sequence[str]) -> Found:
    """What a folder of `save_pretrained` or `save_folder` holds.

    Audio is normalised if preprocessor_config.json says so, or, without that file, if every convolution has a norm.
    """
    config = _read_json(folder / "config.json")
    arguments = _arguments(config)
    if (folder / "preprocessor_config.json").is_file():
        arguments["normalize"] = bool(_read_json(folder / "preprocessor_config.json").get("do_normalize", True))
    if (folder / "model.safetensors").is_file():
        tensors = load_file(folder / "model.safetensors")
    elif (folder / "pytorch_model.bin").is_file():
        tensors = fairseq.restricted_load(folder / "pytorch_model.bin")
    else:
        raise ValueError(
            "neither model.safetensors nor pytorch_model.bin is there; weights in several files are not read: load the "
            "model with transformers and call save_pretrained(folder, max_shard_size='100GB')"
        )
    found = current(tensors, leave)
    ctc = take(found, {"weight": "lm_head.weight", "bias": "lm_head.bias"})
    prefix = prefix_of(found, "hubert.")
    masks = config.get("mask_time_prob", 0.05) > 0 or config.get("mask_feature_prob", 0.0) > 0
    masks = masks or f"{prefix}masked_spec_embed" in found  # some files keep a vector that is not used
    arguments["conv_bias"] = has_conv_bias(found)  # configs and published files differ here
    hubert = encoder_state(found, TRANSFORMERS, prefix, arguments["depth"], masks)
    if not masks:
        hubert["mask_embedding"] = torch.rand(arguments["dim"])
    tokens = None
    if ctc and (folder / "vocab.json").is_file():
        named = {number: token for token, number in _read_json(folder / "vocab.json").items()}
        named[config.get("pad_token_id", 0)] = Characters.tokens[Characters.blank]  # transformers' CTC takes it so
        tokens = [named.get(number, "") for number in range(len(ctc["weight"]))]
    return Found(arguments, hubert, ctc, tokens, {})


def save_folder(hubert: Hubert, folder: str | Path, head: CTCHead | None = None) -> None:
    """Write a folder for `transformers.HubertModel.from_pretrained` and `load_hubert`.

    With the head of a recogniser over `Characters` it is one for `HubertForCTC`, `Wav2Vec2Processor` and `load_ctc`.
    """
    folder = Path(folder)
    state_dict = to_transformers(hubert.state_dict(), prefix="hubert." if head else "")
    if head:
        if head.projection.out_features != len(Characters.tokens):
            raise ValueError(
                f"the head has {head.projection.out_features} outputs, but Characters has {len(Characters.tokens)} "
                f"tokens; save a head over Characters"
            )
        state_dict |= {f"lm_head.{leaf}": value for leaf, value in head.projection.state_dict().items()}
        write_json(folder / "vocab.json", {token: number for number, token in enumerate(_VOCABULARY)})
        write_json(folder / "tokenizer_config.json", _TOKENIZER)
    with atomic_file(folder / "model.safetensors") as file:
        file.write(save({key: value.contiguous().cpu() for key, value in state_dict.items()}, {"format": "pt"}))
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
    ctc = {
        "architectures": ["HubertForCTC"],
        "vocab_size": len(Characters.tokens),
        "pad_token_id": Characters.blank,  # transformers' CTC takes the padding for the blank
        "bos_token_id": 1,
        "eos_token_id": 2,
        "ctc_zero_infinity": True,
        "final_dropout": head.dropout.p if head else 0.0,
    }
    write_json(folder / "preprocessor_config.json", preprocessor | ({"processor_class": _PROCESSOR} if head else {}))
    write_json(folder / "config.json", _config(hubert) | (ctc if head else {}))


def hubert_arguments(hubert: Hubert) -> dict[str, Any]:
    """Constructor arguments: `Hubert(**hubert_arguments(hubert))` is like `hubert`, with other weights.

    Numbers and strings only. The scale of the convolutions' gradient, a matter of training, is 1."""
    return _arguments(_config(hubert)) | {"normalize": hubert.normalize}


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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.name} is not there; give a folder written by transformers' save_pretrained")
    return json.loads(path.read_text())
