"""CLIP and SigLIP in and out of files: our checkpoints, folders of transformers and open_clip, state dicts of OpenAI.

Every tensor of a file is accounted for: a missing or an extra one is an error that names it. Nothing is unpickled but
tensors and plain data. Tensors are renamed, and two of OpenAI's layout transposed.
"""

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmflow.nn.contrastive import Similarity
from mmflow.nn.layouts import Layout, from_layout, to_layout
from mmflow.nn.published import (
    ACTIVATIONS,
    image_processor,
    load_strictly,
    naming,
    read_json,
    read_normalisation,
    read_part,
    read_saved,
    read_tensors,
    state_dict,
    write_folder,
)
from mmflow.systems.clip.model import CLIP, MEAN, STD, TextTransformer
from mmflow.systems.clip.tokenizer import TextTokenizer
from mmflow.systems.vit.model import ViT


def _tower(ours: str, theirs: str) -> Layout:
    """A block of transformers."""
    block = f"{theirs}.encoder.layers.{{}}"
    return {
        f"{ours}.blocks.{{}}.attention.qkv": [f"{block}.self_attn.{part}_proj" for part in "qkv"],
        f"{ours}.blocks.{{}}.attention.out": f"{block}.self_attn.out_proj",
        f"{ours}.blocks.{{}}.attention_norm": f"{block}.layer_norm1",
        f"{ours}.blocks.{{}}.ffn": f"{block}.mlp",
        f"{ours}.blocks.{{}}.ffn.expand": f"{block}.mlp.fc1",
        f"{ours}.blocks.{{}}.ffn.contract": f"{block}.mlp.fc2",
        f"{ours}.blocks.{{}}.ffn_norm": f"{block}.layer_norm2",
    }


_BOTH: Layout = {
    "vision.patches": "vision_model.embeddings.patch_embedding",
    "vision.positions": "vision_model.embeddings.position_embedding.weight",
    "vision.norm": "vision_model.post_layernorm",
    "text.tokens": "text_model.embeddings.token_embedding",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm": "text_model.final_layer_norm",
    "similarity.log_scale": "logit_scale",
    **_tower("vision", "vision_model"),
    **_tower("text", "text_model"),
}
TRANSFORMERS_CLIP: Layout = {
    **_BOTH,
    "vision.class_token": "vision_model.embeddings.class_embedding",
    "vision.norm_before": "vision_model.pre_layrnorm",  # spelt so
    "image_projection": "visual_projection",
    "text_projection": "text_projection",
}
TRANSFORMERS_SIGLIP: Layout = {
    **_BOTH,
    "vision.attention_pool.query": "vision_model.head.probe",
    "vision.attention_pool.attention": "vision_model.head.attention",
    "vision.attention_pool.norm": "vision_model.head.layernorm",
    "vision.attention_pool.ffn.expand": "vision_model.head.mlp.fc1",
    "vision.attention_pool.ffn.contract": "vision_model.head.mlp.fc2",
    "text_projection": "text_model.head",
    "similarity.bias": "logit_bias",
}


def _resblocks(ours: str, theirs: str) -> Layout:
    """A block of OpenAI."""
    block = f"{theirs}.resblocks.{{}}"
    return {
        f"{ours}.blocks.{{}}.attention.qkv.weight": f"{block}.attn.in_proj_weight",
        f"{ours}.blocks.{{}}.attention.qkv.bias": f"{block}.attn.in_proj_bias",
        f"{ours}.blocks.{{}}.attention.out": f"{block}.attn.out_proj",
        f"{ours}.blocks.{{}}.attention_norm": f"{block}.ln_1",
        f"{ours}.blocks.{{}}.ffn.expand": f"{block}.mlp.c_fc",
        f"{ours}.blocks.{{}}.ffn.contract": f"{block}.mlp.c_proj",
        f"{ours}.blocks.{{}}.ffn_norm": f"{block}.ln_2",
    }


OPEN_CLIP: Layout = {  # and OpenAI's
    "vision.patches": "visual.conv1",
    "vision.class_token": "visual.class_embedding",
    "vision.positions": "visual.positional_embedding",
    "vision.norm_before": "visual.ln_pre",
    "vision.norm": "visual.ln_post",
    "image_projection.weight": "visual.proj",
    "text.tokens": "token_embedding",
    "text.positions": "positional_embedding",
    "text.norm": "ln_final",
    "text_projection.weight": "text_projection",
    "similarity.log_scale": "logit_scale",
    "similarity.bias": "logit_bias",
    **_resblocks("vision", "visual.transformer"),
    **_resblocks("text", "transformer"),
}
_CLIP_MODEL = {  # settings that its towers have
    "vision.pool": "class",
    "vision.norm_before": True,
    "vision.patch_bias": False,
    "vision.pre_logits": False,
    "text.pool": "end",
    "text.causal": True,
    "images projected": True,
    "objective": "info_nce",
}
_SIGLIP_MODEL = {
    "vision.pool": "attention",
    "vision.norm_before": False,
    "vision.patch_bias": True,
    "vision.pre_logits": False,
    "text.pool": "last",
    "text.causal": False,
    "images projected": False,
    "objective": "sigmoid",
}
_OPEN_CLIP_MODEL = {name: only for name, only in _CLIP_MODEL.items() if name not in ("vision.norm_before", "objective")}
_TRANSPOSED = ("visual.proj", "text_projection")  # there a row is what goes in
_SIZES = ("visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight", "positional_embedding",
          "text_projection")  # fmt: skip
_OTHER_TOWERS = ("visual.layer", "visual.attnpool", "visual.trunk", "visual.head", "visual.attn_pool")
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's files
_HEADS = {1280: 16, 1408: 16, 1664: 16}  # of picture towers whose heads are not 64 wide, by width

# Settings of open_clip that are read or do not change what a trained model computes, and those of one known value.
_OPEN_CLIP_VISION = {"image_size", "patch_size", "layers", "width", "head_width", "mlp_ratio", "no_ln_pre", "pool_type"}
_OPEN_CLIP_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id"}
_OPEN_CLIP_FREE = {"patch_dropout", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "pad_id"}
_OPEN_CLIP_ONLY = {"pos_embed_type": "learnable", "proj_type": "linear", "final_ln_after_pool": True}


class Found(NamedTuple):
    """What a file holds."""

    vision: dict[str, Any]  # arguments of ViT
    text: dict[str, Any]  # arguments of TextTransformer
    embed_dim: int | None
    objective: Any  # of Similarity
    tensors: Mapping[str, Tensor]  # under their names
    layout: Layout


def load_clip(
    source: str | Path | Mapping[str, Tensor],
    activation: str | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> CLIP:
    """The CLIP or SigLIP in a file or folder of weights, in eval mode and fp32.

    Read are, told apart by what they hold:
    - a Lightning checkpoint of ours, of any module that calls its CLIP `clip`;
    - a folder of transformers' `save_pretrained` or of `save_folder` (CLIPModel, SiglipModel);
    - a folder of open_clip with its open_clip_config.json;
    - a state dict of open_clip, of a model with or without text tower of its own, or of OpenAI; the file of one
      (safetensors, or torch.save, of the weights alone or of a training), or the dict itself. It does not show the
      activation, which must be told, nor heads, taken to be those of the published model of this width, nor how
      pictures are normalised, taken to be as OpenAI does; square pictures only.
    OpenAI publishes archives of TorchScript, which are programs and therefore not read; the error tells the way out.

    Args:
        source: The file or folder, or tensors by their names in open_clip.
        activation: Of both towers, instead of what the file says or does not say: quick_gelu for OpenAI's weights and
            those of open_clip that have it in their name, gelu for its others.
        vision, text: Arguments of ViT and of TextTransformer, instead of what the file says or does not say, such as
            `num_heads`, `mean`, `end_id`, or `drop_path` to train on.

    Raises ValueError for a file that is none of these, a setting that the towers do not have, an activation that nobody
    told, and each tensor missing or extra.
    """
    told = {} if activation is None else {"activation": activation}
    towers = (told | dict(vision or {}), told | dict(text or {}))
    if isinstance(source, Mapping):
        return _built(_read_open_clip(source, {}), *towers)
    path = Path(source)
    with naming(path):
        if path.is_dir():
            return _built(_read_folder(path), *towers)
        _refuse_programs(path)
        saved = read_saved(path)
        if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
            if isinstance(saved.get("hyper_parameters"), dict):
                if any(towers):
                    raise ValueError("it is a checkpoint of ours, which tells all of its settings; give none")
                return read_part(saved, CLIP, ("clip",))
            saved = saved["state_dict"]  # a training of open_clip
        return _built(_read_open_clip(state_dict(saved, path), {}), *towers)


def save_folder(clip: CLIP, folder: str | Path, tokenizer: TextTokenizer | None = None) -> None:
    """Write a folder for transformers' CLIPModel or SiglipModel, whichever the towers are, and for `load_clip`.

    What only training knows (dropout) is not in it.

    Args:
        clip: With a ViT, and otherwise as one of the two is.
        folder: Made where it is not there.
        tokenizer: Written as well, as tokenizer.json.

    Raises ValueError for towers that neither has a place for, naming what is different."""
    tensors = to_transformers(clip)
    siglip, vision = clip.text.pool == "last", clip.vision
    assert isinstance(vision, ViT)
    if clip.text.end_id == 2 and not siglip:
        raise ValueError("end_id=2 is 'the highest token' to transformers; take a tokenizer with another end")
    write_folder(folder, _config(clip, vision, siglip), tensors, _processor(vision, siglip))
    if tokenizer is not None:
        tokenizer.save(Path(folder) / "tokenizer.json")


def to_transformers(clip: CLIP) -> dict[str, Tensor]:
    """The tensors of a CLIP as in files of transformers: of SiglipModel where texts pool the last token, else of
    CLIPModel. Raises ValueError for towers that the model does not have, naming what is different."""
    if clip.text.pool == "last":
        _require(clip, "transformers' SiglipModel", _SIGLIP_MODEL)
        return to_layout(_flat(clip), TRANSFORMERS_SIGLIP)
    _require(clip, "transformers' CLIPModel", _CLIP_MODEL)
    return {name: _scalar(name, value) for name, value in to_layout(_flat(clip), TRANSFORMERS_CLIP).items()}


def to_open_clip(clip: CLIP) -> dict[str, Tensor]:
    """The tensors of a CLIP as in open_clip's and OpenAI's.

    Raises ValueError for towers that these do not have, naming what is different."""
    _require(clip, "open_clip's CLIP", _OPEN_CLIP_MODEL)
    tensors = {name: _scalar(name, value) for name, value in to_layout(_flat(clip), OPEN_CLIP).items()}
    return {name: value.T.contiguous() if name in _TRANSPOSED else value for name, value in tensors.items()}


def _require(clip: CLIP, model: str, wanted: Mapping[str, Any]) -> None:
    if not isinstance(clip.vision, ViT):
        raise ValueError(f"{model} has a ViT; this CLIP has a {type(clip.vision).__name__}")
    settings = {
        **{f"vision.{name}": value for name, value in clip.vision.arguments.items()},
        **{f"text.{name}": value for name, value in clip.text.arguments.items()},
        "objective": clip.similarity.objective,
        "images projected": isinstance(clip.image_projection, nn.Linear),
    }
    if other := {name: settings[name] for name, only in wanted.items() if settings[name] != only}:
        raise ValueError(f"{model} has {wanted}; this CLIP has {other}")


def _flat(clip: CLIP) -> dict[str, Tensor]:
    """The tensors, those of tokens without the dimension that is 1 for the batch, and numbers as vectors."""
    state = clip.state_dict()
    state["vision.positions"] = state["vision.positions"][0]
    if "vision.class_token" in state:
        state["vision.class_token"] = state["vision.class_token"][0, 0]
    return {name: value.view(1) if value.ndim == 0 else value for name, value in state.items()}


def _scalar(name: str, value: Tensor) -> Tensor:
    return value.view(()) if name in ("logit_scale", "logit_bias") else value


# folders of transformers


def _read_folder(folder: Path) -> Found:
    if (folder / "open_clip_config.json").is_file():
        return _read_open_clip(read_tensors(folder), read_json(folder / "open_clip_config.json"))
    config = read_json(folder / "config.json")
    if config.get("model_type") not in ("clip", "siglip"):
        raise ValueError(
            f"config.json has model_type {config.get('model_type')!r}; only 'clip', 'siglip' and open_clip are read"
        )
    siglip = config["model_type"] == "siglip"
    # old files have settings that hold under another name, and an unused vector
    images, texts = (
        config.get(f"{name}_config_dict") or config.get(f"{name}_config") or {} for name in ("vision", "text")
    )
    tensors = {name: value for name, value in read_tensors(folder).items() if not name.endswith(".position_ids")}
    vision = _arguments(images, 768, 12, siglip) | {
        "image_size": _pair(images.get("image_size", 224)),
        "patch_size": _square(images.get("patch_size", 16 if siglip else 32)),
        "pool": "attention" if siglip else "class",
        "norm_before": not siglip,
        "patch_bias": siglip,
    }
    vision["mean"], vision["std"] = read_normalisation(folder) or ([(0.5,) * 3] * 2 if siglip else (MEAN, STD))
    vocab_size, end_id = texts.get("vocab_size", 32_000 if siglip else 49_408), texts.get("eos_token_id", 49_407)
    if siglip and end_id >= vocab_size:
        end_id = 1  # it does not look for an end, and published files name another model's
    elif (
        not siglip and end_id == 2
    ):  # CLIPModel takes the highest token of a text then, which is the end in published files
        end_id = vocab_size - 1
    text = (_arguments(texts, 768, 12, siglip) if siglip else _arguments(texts, 512, 8, siglip)) | {
        "vocab_size": vocab_size,
        "context": texts.get("max_position_embeddings", 64 if siglip else 77),
        "causal": not siglip,
        "pool": "last" if siglip else "end",
        "end_id": end_id,
    }
    if siglip:
        return Found(vision, text, None, "sigmoid", tensors, TRANSFORMERS_SIGLIP)
    return Found(vision, text, config.get("projection_dim", 512), "info_nce", tensors, TRANSFORMERS_CLIP)


def _arguments(config: Mapping[str, Any], dim: int, num_heads: int, siglip: bool) -> dict[str, Any]:
    """What both towers have; a setting that is left out has the default of transformers."""
    activation = config.get("hidden_act", "gelu_pytorch_tanh" if siglip else "quick_gelu")
    ours = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    if activation not in ours:
        raise ValueError(f"config.json has hidden_act={activation!r}; the towers know {', '.join(ours)}")
    return {
        "dim": config.get("hidden_size", dim),
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", num_heads),
        "ffn_dim": config.get("intermediate_size", 4 * dim),
        "activation": ours[activation],
        "eps": config.get("layer_norm_eps", 1e-6 if siglip else 1e-5),
    }


def _pair(size: int | Sequence[int]) -> int | tuple[int, int]:
    return size if isinstance(size, int) else (size[0], size[1])


def _square(patch: int | Sequence[int]) -> int:
    sides = {patch} if isinstance(patch, int) else set(patch)
    if len(sides) != 1:
        raise ValueError(f"the settings have patch_size={patch}; ViT has square patches")
    return sides.pop()


def _config(clip: CLIP, vision: ViT, siglip: bool) -> dict[str, Any]:
    towers: dict[str, Any] = {}
    for name, tower in (("vision", vision), ("text", clip.text)):
        arguments = tower.arguments
        towers[f"{name}_config"] = {
            "model_type": f"{'siglip' if siglip else 'clip'}_{name}_model",
            "hidden_size": tower.dim,
            "intermediate_size": arguments["ffn_dim"] or 4 * tower.dim,
            "num_hidden_layers": arguments["depth"],
            "num_attention_heads": arguments["num_heads"],
            "hidden_act": ACTIVATIONS[arguments["activation"]],
            "layer_norm_eps": arguments["eps"],
            "projection_dim": clip.embed_dim,  # each tower alone looks for it here
        }
    down, across = vision.image_size
    towers["vision_config"] |= {
        "image_size": down if down == across else [down, across],
        "patch_size": vision.patch_size,
    }
    towers["text_config"] |= {
        "vocab_size": clip.text.vocab_size,
        "max_position_embeddings": clip.text.context,
        "eos_token_id": clip.text.end_id,
        **({"projection_size": clip.embed_dim} if siglip else {}),
    }
    return {
        "model_type": "siglip" if siglip else "clip",
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "projection_dim": clip.embed_dim,
        **towers,
    }


def _processor(vision: ViT, siglip: bool) -> dict[str, Any]:
    processor = image_processor(vision.image_size, vision.arguments["mean"], vision.arguments["std"])
    if siglip:
        return processor | {"image_processor_type": "SiglipImageProcessor"}
    crop = processor["size"]
    return processor | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": max(vision.image_size)},
        "do_center_crop": True,
        "crop_size": crop,
        "do_convert_rgb": True,
    }


# state dicts of open_clip and OpenAI


def _refuse_programs(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise ValueError(
                    "it is an archive of TorchScript, as OpenAI publishes them: a program, which is not run here. "
                    "Where you trust it, take the weights out of it and give those, "
                    "torch.save(torch.jit.load(path).state_dict(), 'clip.pt'), or take a folder of transformers"
                )


def _read_open_clip(given: Mapping[str, Tensor], config: Mapping[str, Any]) -> Found:
    """config: what open_clip_config.json says; empty for tensors alone."""
    tensors = {}
    for name, value in given.items():
        name = name.removeprefix("module.").removeprefix("text.")  # trained by DDP; with a text tower of its own
        if name not in _NO_WEIGHTS:
            tensors[name] = value.T if name in _TRANSPOSED else value
    if other := sorted({".".join(name.split(".")[:2]) for name in tensors if name.startswith(_OTHER_TOWERS)}):
        raise ValueError(f"its picture tower has {other}, so it is no ViT of OpenAI's shape; only that is read here")
    if missing := [name for name in _SIZES if name not in tensors]:
        raise ValueError(
            f"these are no tensors of open_clip or OpenAI: {missing} are not among {sorted(tensors)[:4]}...; "
            f"give a folder of transformers whole, with its config.json"
        )
    images, texts, trained = _open_clip_settings(config)
    dim, _, patch_size, _ = tensors["visual.conv1.weight"].shape
    patches = len(tensors["visual.positional_embedding"]) - 1
    vision: dict[str, Any] = {
        **_shown(tensors, "visual.transformer."),
        "image_size": math.isqrt(patches) * patch_size,
        "patch_size": patch_size,
        "norm_before": "visual.ln_pre.weight" in tensors,
        "patch_bias": False,
        "mean": trained.get("mean") or MEAN,
        "std": trained.get("std") or STD,
    }
    vocab_size, width = tensors["token_embedding.weight"].shape
    text: dict[str, Any] = {
        **_shown(tensors, "transformer."),
        "vocab_size": vocab_size,
        "context": len(tensors["positional_embedding"]),
        "end_id": vocab_size - 1,  # the highest token is pooled there
    }
    if dim % 64 == 0:
        vision["num_heads"] = _HEADS.get(dim, dim // 64)
    if width % 64 == 0:
        text["num_heads"] = width // 64
    if config:
        vision["activation"] = text["activation"] = "quick_gelu" if config["model_cfg"].get("quick_gelu") else "gelu"
        vision["num_heads"] = dim // images.get("head_width", 64)
        vision["image_size"] = _pair(images.get("image_size", 224))
        text["num_heads"] = texts.get("heads", 8)
        if texts.get("pool_type") == "eos":
            text["end_id"] = texts.get("eos_id", 2)
    objective = "sigmoid" if "logit_bias" in tensors else "info_nce"
    return Found(vision, text, len(tensors["text_projection"]), objective, tensors, OPEN_CLIP)


def _shown(tensors: Mapping[str, Tensor], tower: str) -> dict[str, Any]:
    """What the tensors of the blocks of a tower show of it."""
    expand = re.compile(re.escape(tower) + r"resblocks\.(\d+)\.mlp\.c_fc\.weight")
    found = {int(match[1]): value for name, value in tensors.items() if (match := expand.fullmatch(name))}
    if not found:
        raise ValueError(f"there are no tensors {tower}resblocks.*, the blocks of a tower")
    ffn_dim, dim = next(iter(found.values())).shape
    return {"dim": dim, "depth": 1 + max(found), "ffn_dim": ffn_dim, "eps": 1e-5}


def _open_clip_settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Those of the picture tower, of the text tower, and of the pictures that it was trained with.

    Raises ValueError for a setting that changes what a model computes in a way that our towers do not have."""
    model = config.get("model_cfg", {}) if config else {}
    images, texts = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for settings, read in ((images, _OPEN_CLIP_VISION), (texts, _OPEN_CLIP_TEXT)):
        other = {name: value for name, value in settings.items() if name not in read | _OPEN_CLIP_FREE and value}
        if other := {name: value for name, value in other.items() if _OPEN_CLIP_ONLY.get(name) != value}:
            raise ValueError(f"open_clip_config.json has {other}, which the towers here do not have")
    if images.get("pool_type", "tok") != "tok" or texts.get("pool_type", "argmax") not in ("argmax", "eos"):
        raise ValueError(f"open_clip_config.json has pool_type {images.get('pool_type')!r} of pictures and "
                         f"{texts.get('pool_type')!r} of texts; CLIP knows 'tok', and 'argmax' or 'eos'")  # fmt: skip
    return images, texts, config.get("preprocess_cfg", {})


# what was found, as a model


def _built(found: Found, vision: Mapping[str, Any], text: Mapping[str, Any]) -> CLIP:
    towers = {"vision": {**found.vision, **vision}, "text": {**found.text, **text}}
    for name, arguments in towers.items():
        if "activation" not in arguments:
            raise ValueError(
                "tensors alone do not show the activation, and with the wrong one a model is wrong by a little; tell "
                "activation='quick_gelu' for OpenAI's weights, or 'gelu' for most of open_clip"
            )
        if "num_heads" not in arguments:
            raise ValueError(f"no published tower is {arguments['dim']} wide, so the tensors do not show its heads; "
                             f"tell {name}={{'num_heads': ...}}")  # fmt: skip
    clip = CLIP(
        ViT(**towers["vision"]), TextTransformer(**towers["text"]), found.embed_dim, Similarity(found.objective)
    )
    state = clip.state_dict()
    tensors = from_layout(found.tensors, state, found.layout, "CLIP")
    load_strictly(clip, {name: _with_ones(value.float(), state[name].shape) for name, value in tensors.items()})
    return clip


def _with_ones(value: Tensor, shape: torch.Size) -> Tensor:
    """In the shape of ours where only dimensions of 1 come and go."""
    return value.reshape(shape) if value.squeeze().shape == torch.Size(n for n in shape if n != 1) else value
