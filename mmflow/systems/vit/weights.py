"""ViT in and out of files: our checkpoints, folders of transformers, state dicts and folders of timm.

Every tensor of a file is accounted for: a missing or an extra one is an error that names it. Nothing is unpickled but
tensors and plain data. Tensors are renamed, never changed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmflow.nn.layouts import Layout, below, check, from_layout, prefixed, to_layout, without
from mmflow.nn.published import (
    ACTIVATIONS,
    check_settings,
    image_processor,
    label_settings,
    load_head,
    load_strictly,
    naming,
    picture_sizes,
    read_json,
    read_labels,
    read_normalisation,
    read_part,
    read_saved,
    read_tensors,
    state_dict,
    write_folder,
)
from mmflow.systems.vit.model import ViT

TRANSFORMERS: Layout = {  # as modules are called since transformers 5
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patches": "embeddings.patch_embeddings.projection",
    "blocks.{}.attention_norm": "layers.{}.layernorm_before",
    "blocks.{}.attention.qkv": [f"layers.{{}}.attention.{part}_proj" for part in "qkv"],
    "blocks.{}.attention.out": "layers.{}.attention.o_proj",
    "blocks.{}.ffn_norm": "layers.{}.layernorm_after",
    "blocks.{}.ffn.expand": "layers.{}.mlp.fc1",
    "blocks.{}.ffn.contract": "layers.{}.mlp.fc2",
    "norm": "layernorm",
    "pre_logits": "pooler.dense",
}
TRANSFORMERS_FILES: Layout = {  # as they were before, and are in files of all versions
    **TRANSFORMERS,
    "blocks.{}.attention_norm": "encoder.layer.{}.layernorm_before",
    "blocks.{}.attention.qkv": [f"encoder.layer.{{}}.attention.attention.{part}" for part in ("query", "key", "value")],
    "blocks.{}.attention.out": "encoder.layer.{}.attention.output.dense",
    "blocks.{}.ffn_norm": "encoder.layer.{}.layernorm_after",
    "blocks.{}.ffn.expand": "encoder.layer.{}.intermediate.dense",
    "blocks.{}.ffn.contract": "encoder.layer.{}.output.dense",
}
TIMM: Layout = {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patches": "patch_embed.proj",
    "blocks.{}.attention_norm": "blocks.{}.norm1",
    "blocks.{}.attention.qkv": "blocks.{}.attn.qkv",
    "blocks.{}.attention.out": "blocks.{}.attn.proj",
    "blocks.{}.ffn_norm": "blocks.{}.norm2",
    "blocks.{}.ffn.expand": "blocks.{}.mlp.fc1",
    "blocks.{}.ffn.contract": "blocks.{}.mlp.fc2",
    "norm": "norm",
}
_FIXED = {  # settings of ViTConfig that ViT has one value for
    "model_type": "vit",
    "num_channels": 3,
    "qkv_bias": True,
    "pooler_act": "tanh",
}
_HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}  # by width, as published
_TIMM_CODE = ("norm_layer", "embed_layer", "block_fn", "mlp_layer", "attn_layer")  # arguments that change the maths


class Found(NamedTuple):
    """What a file holds, under our names."""

    vit: ViT
    head: dict[str, Tensor]  # of a linear layer; empty without one
    labels: list[str] | None  # what its outputs mean, None where the file does not say


def load_vit(path: str | Path, leave: Sequence[str] = (), **arguments: Any) -> ViT:
    """The ViT in a file or folder of weights, in eval mode; the head of a file that has one is left aside.

    Read are, told apart by what they hold:
    - a Lightning checkpoint of ours, of any module that calls its ViT `encoder` or `vit`;
    - a folder of transformers' `save_pretrained` or of `save_folder` (ViTModel, whose pooler becomes `pre_logits`, and
      ViTForImageClassification);
    - a folder of timm with its config.json, or the state dict of a timm VisionTransformer alone (safetensors or
      torch.save). A state dict does not show the number of heads, which is that of the published model of its width,
      nor how pictures are normalised (default 0.5 and 0.5), and shows square pictures only.

    Args:
        path: The file or folder.
        leave: Beginnings of tensor names to leave out on purpose, such as "decoder.".
        arguments: Of ViT, instead of what the file says or does not say: `num_heads`, `mean`, `std`, or `drop_path` to
            train on. For another size of picture call `resized` on the result.

    Raises ValueError for a file that is none of these, a class that is no plain data, a setting that ViT does not have,
    and each tensor missing or extra.
    """
    return _read(Path(path), leave, arguments).vit


def load_classifier(
    path: str | Path, leave: Sequence[str] = (), **arguments: Any
) -> tuple[ViT, nn.Linear, list[str] | None]:
    """The classifier in a file that `load_vit` reads: encoder and head in eval mode, and the names of the classes.

    The names are None where the file does not say them. Raises ValueError as `load_vit` does, and without a head.
    """
    found = _read(Path(path), leave, arguments)
    return found.vit, load_head(found.head, found.labels, path), found.labels


def save_folder(
    vit: ViT, folder: str | Path, head: nn.Linear | None = None, labels: Sequence[str] | None = None
) -> None:
    """Write a folder for transformers' `from_pretrained` and `load_vit`.

    It is one for ViTForImageClassification with a head, else for ViTModel (`add_pooling_layer=False` without
    `pre_logits`). What only training knows (`drop_path`) is not in it.

    Args:
        vit: With a class token and nothing that ViTModel does not have.
        folder: Made where it is not there.
        head: Linear layer on `pooled`.
        labels: Names of the head's classes.

    Raises ValueError for an encoder, or a number of names, that the format has no place for.
    """
    arguments = vit.arguments
    wanted = {"pool": "class", "norm_before": False, "patch_bias": True}
    if other := {name: arguments[name] for name, only in wanted.items() if arguments[name] != only}:
        raise ValueError(f"transformers' ViTModel knows only {wanted}; this encoder has {other}")
    if head is not None and arguments["pre_logits"]:
        raise ValueError("transformers' ViTForImageClassification has no layer before its head; pre_logits must be off")
    config: dict[str, Any] = {
        "architectures": ["ViTModel" if head is None else "ViTForImageClassification"],
        "hidden_size": vit.dim,
        "num_hidden_layers": arguments["depth"],
        "num_attention_heads": arguments["num_heads"],
        "intermediate_size": arguments["ffn_dim"] or 4 * vit.dim,
        "hidden_act": ACTIVATIONS[arguments["activation"]],
        "hidden_dropout_prob": arguments["dropout"],
        "layer_norm_eps": arguments["eps"],
        "image_size": vit.image_size[0] if vit.image_size[0] == vit.image_size[1] else list(vit.image_size),
        "patch_size": vit.patch_size,
        **_FIXED,
    }
    tensors = to_transformers(vit.state_dict(), prefix="" if head is None else "vit.")
    if head is not None:
        tensors |= {f"classifier.{leaf}": value for leaf, value in head.state_dict().items()}
        config |= label_settings(head, labels)
    write_folder(folder, config, tensors, image_processor(vit.image_size, arguments["mean"], arguments["std"]))


# names of tensors


def from_transformers(tensors: Mapping[str, Tensor], leave: Sequence[str] = ()) -> dict[str, Tensor]:
    """Rename the tensors of a transformers ViTModel, or of a model that holds one as `vit.`, for ViT.

    Args:
        tensors: Of a file, or of a live model of version 4 or 5.
        leave: Beginnings of names to leave out on purpose, such as "classifier.".

    Raises ValueError naming each tensor that is missing or that ViT has no place for.
    """
    prefix = "vit." if any(name.startswith("vit.") for name in tensors) else ""
    old = any(name.startswith(f"{prefix}encoder.layer.") for name in tensors)
    return _renamed(tensors, prefixed(TRANSFORMERS_FILES if old else TRANSFORMERS, prefix), leave)


def to_transformers(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Rename the tensors of a ViT as in files of transformers: `prefix` "" for ViTModel, "vit." for models around one.

    Raises ValueError naming each tensor that is missing or that a ViTModel does not have."""
    return _renamed_for(tensors, prefixed(TRANSFORMERS_FILES, prefix), "transformers ViTModel")


def from_timm(tensors: Mapping[str, Tensor], leave: Sequence[str] = ()) -> dict[str, Tensor]:
    """Rename the tensors of a timm VisionTransformer for ViT; leave out "head." where there is one.

    Raises ValueError naming each tensor that is missing or that ViT has no place for."""
    return _renamed(tensors, TIMM, leave)


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ViT for a timm VisionTransformer without a head.

    Raises ValueError naming each tensor that is missing or that a VisionTransformer does not have."""
    return _renamed_for(tensors, TIMM, "timm VisionTransformer")


def _renamed(tensors: Mapping[str, Tensor], layout: Layout, leave: Sequence[str]) -> dict[str, Tensor]:
    found = without(tensors, leave)
    class_token, pre_logits = layout["class_token"] in found, f"{layout.get('pre_logits')}.weight" in found
    block = re.compile(re.escape(str(layout["blocks.{}.ffn_norm"])).replace(r"\{\}", r"(\d+)") + r"\.")
    depth = 1 + max((int(match[1]) for name in found if (match := block.match(name))), default=0)
    return from_layout(found, _keys(depth, class_token, pre_logits), layout, "ViT encoder")


def _renamed_for(tensors: Mapping[str, Tensor], layout: Layout, what: str) -> dict[str, Tensor]:
    depth = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=0)
    pre_logits = "pre_logits" in layout and "pre_logits.weight" in tensors
    check(_keys(depth, "class_token" in tensors, pre_logits), tensors, what)
    return to_layout(tensors, layout)


def _keys(depth: int, class_token: bool, pre_logits: bool) -> list[str]:
    """Our names of the tensors of a model of this shape."""
    with torch.device("meta"):
        vit = ViT(1, 1, 8, depth, 1, pool="class" if class_token else "mean", pre_logits=pre_logits)
    return list(vit.state_dict())


# what each kind of file holds


def _read(path: Path, leave: Sequence[str], told: Mapping[str, Any]) -> Found:
    with naming(path):
        if path.is_dir():
            config = read_json(path / "config.json")
            if "architecture" in config:
                return _read_timm(read_tensors(path), config, leave, told)
            return _read_transformers(path, config, leave, told)
        saved = read_saved(path)
        if isinstance(saved, dict):
            if isinstance(saved.get("hyper_parameters"), dict) and isinstance(saved.get("state_dict"), dict):
                return _read_ours(saved, told)
            for key in ("state_dict", "model"):  # training scripts of timm and DeiT wrap the weights
                saved = saved[key] if isinstance(saved.get(key), dict) else saved
        tensors = state_dict(saved, path)
        if any(name.startswith("blocks.0.attn.") for name in tensors):
            return _read_timm(tensors, {}, leave, told)
        raise ValueError(
            f"it holds tensors {sorted(tensors)[:4]} without settings; give a checkpoint of ours, the state dict of a "
            f"timm VisionTransformer, or the folder of a transformers or timm model with its config.json"
        )


def _read_ours(saved: Mapping[str, Any], told: Mapping[str, Any]) -> Found:
    return Found(read_part(saved, ViT, ("encoder", "vit"), told), below(saved["state_dict"], "head."), None)


def _read_transformers(folder: Path, config: Mapping[str, Any], leave: Sequence[str], told: Mapping[str, Any]) -> Found:
    tensors = read_tensors(folder)
    head = below(tensors, "classifier.")
    state = from_transformers(tensors, (*leave, "classifier."))
    arguments = _arguments(config) | {"pre_logits": "pre_logits.weight" in state}
    if head and arguments["pre_logits"]:
        raise ValueError(
            "it has a pooler, which the head of ViTForImageClassification passes by; leave out 'vit.pooler.'"
        )
    if normalisation := read_normalisation(folder):
        arguments["mean"], arguments["std"] = normalisation
    return Found(_built(arguments, told, state), head, read_labels(config))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """ViT's constructor arguments from a ViTConfig; a setting that is left out has ViTConfig's default.

    Dropout of attention weights, a matter of training that ViT does without, is left out."""
    check_settings(config, _FIXED, "ViT")
    activations = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activation = config.get("hidden_act", "gelu")
    if activation not in activations:
        raise ValueError(f"config.json has hidden_act={activation!r}; ViT knows {', '.join(activations)}")
    return {
        **picture_sizes(config, patch_size=16, what="ViT"),
        "dim": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "ffn_dim": config.get("intermediate_size", 3072),
        "activation": activations[activation],
        "eps": config.get("layer_norm_eps", 1e-12),
        "dropout": config.get("hidden_dropout_prob", 0.0),
    }


def _read_timm(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], leave: Sequence[str], told: Mapping[str, Any]
) -> Found:
    state = from_timm(tensors, (*leave, "head."))
    settings, trained = config.get("model_args", {}), config.get("pretrained_cfg", config)
    if code := sorted({name for name in _TIMM_CODE if settings.get(name) is not None}):
        raise ValueError(f"config.json has model_args {code}, which change the model in a way that its tensors hide")
    pool = config.get("global_pool", "token" if "class_token" in state else "avg")
    if pool != ("token" if "class_token" in state else "avg"):
        raise ValueError(f"config.json has global_pool={pool!r}; ViT knows 'token', and 'avg' without a class token")
    arguments: dict[str, Any] = {"mean": trained.get("mean", (0.5,) * 3), "std": trained.get("std", (0.5,) * 3)}
    if "num_heads" in settings:
        arguments["num_heads"] = settings["num_heads"]
    if settings.get("act_layer") is not None:
        arguments["activation"] = settings["act_layer"]
    size = settings.get("img_size") or trained.get("input_size", (3,))[1:]
    if size:
        arguments["image_size"] = (size, size) if isinstance(size, int) else tuple(size)
    arguments = _sizes(state, {**arguments, **told}) | arguments
    return Found(_built(arguments, told, state), below(tensors, "head."), read_labels(config))


def _sizes(state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ViT's arguments that the shapes of its tensors show, and what must be guessed unless it is known."""
    dim, _, patch_size, _ = state["patches.weight"].shape
    class_token = "class_token" in state
    sizes = {
        "patch_size": patch_size,
        "dim": dim,
        "depth": sum(name.endswith("ffn.expand.weight") for name in state),
        "ffn_dim": len(state["blocks.0.ffn.expand.weight"]),
        "pool": "class" if class_token else "mean",
    }
    if "num_heads" not in known:
        if dim not in _HEADS:
            raise ValueError(f"no published model is {dim} wide, so the tensors do not show its heads; tell num_heads=")
        sizes["num_heads"] = _HEADS[dim]
    if "image_size" not in known:
        patches = state["positions"].shape[1] - class_token
        if math.isqrt(patches) ** 2 != patches:
            raise ValueError(f"{patches} patches are no square; tell image_size=(down, across)")
        sizes["image_size"] = math.isqrt(patches) * patch_size
    return sizes


def _built(arguments: Mapping[str, Any], told: Mapping[str, Any], state: Mapping[str, Tensor]) -> ViT:
    vit = ViT(**{**arguments, **told})
    load_strictly(vit, state)
    return vit
