"""Swin in and out of files: our checkpoints, folders of transformers and timm, state dicts of timm and of the original.

Every tensor of a file is accounted for: a missing or an extra one is an error that names it. Nothing is unpickled but
tensors and plain data. Tensors are renamed, never changed. What follows from sizes alone (indices and masks, which old
files hold) is compared with ours and left out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmflow.nn.layouts import Layout, below, check, from_layout, names, prefixed, to_layout, without
from mmflow.nn.published import (
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
from mmflow.systems.swin.model import Swin, fit, relative_index, shift_mask

_BLOCK = "stages.{}.blocks.{}"
_THERE = "encoder.layers.{}.blocks.{}"
TRANSFORMERS: Layout = {  # as modules are called since transformers 5
    "patches": "embeddings.patch_embeddings.projection",
    "patch_norm": "embeddings.norm",
    f"{_BLOCK}.attention_norm": f"{_THERE}.layernorm_before",
    f"{_BLOCK}.attention.qkv": [f"{_THERE}.attention.{part}_proj" for part in "qkv"],
    f"{_BLOCK}.attention.out": f"{_THERE}.attention.o_proj",
    f"{_BLOCK}.attention.bias_table": f"{_THERE}.attention.relative_position_bias.relative_position_bias_table",
    f"{_BLOCK}.ffn_norm": f"{_THERE}.layernorm_after",
    f"{_BLOCK}.ffn.expand": f"{_THERE}.mlp.fc1",
    f"{_BLOCK}.ffn.contract": f"{_THERE}.mlp.fc2",
    "stages.{}.merging": "encoder.layers.{}.downsample",
    "norm": "layernorm",
}
TRANSFORMERS_FILES: Layout = {  # as they were before, and are in files of all versions
    **TRANSFORMERS,
    f"{_BLOCK}.attention.qkv": [f"{_THERE}.attention.self.{part}" for part in ("query", "key", "value")],
    f"{_BLOCK}.attention.out": f"{_THERE}.attention.output.dense",
    f"{_BLOCK}.attention.bias_table": f"{_THERE}.attention.self.relative_position_bias_table",
    f"{_BLOCK}.ffn.expand": f"{_THERE}.intermediate.dense",
    f"{_BLOCK}.ffn.contract": f"{_THERE}.output.dense",
}
ORIGINAL: Layout = {
    "patches": "patch_embed.proj",
    "patch_norm": "patch_embed.norm",
    f"{_BLOCK}.attention_norm": "layers.{}.blocks.{}.norm1",
    f"{_BLOCK}.attention.qkv": "layers.{}.blocks.{}.attn.qkv",
    f"{_BLOCK}.attention.out": "layers.{}.blocks.{}.attn.proj",
    f"{_BLOCK}.attention.bias_table": "layers.{}.blocks.{}.attn.relative_position_bias_table",
    f"{_BLOCK}.ffn_norm": "layers.{}.blocks.{}.norm2",
    f"{_BLOCK}.ffn.expand": "layers.{}.blocks.{}.mlp.fc1",
    f"{_BLOCK}.ffn.contract": "layers.{}.blocks.{}.mlp.fc2",
    "stages.{}.merging": "layers.{}.downsample",
    "norm": "norm",
}
_FIXED = {  # settings of SwinConfig that Swin has one value for
    "model_type": "swin",
    "num_channels": 3,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "use_absolute_embeddings": False,
}
_TIMM_CODE = ("norm_layer", "embed_layer", "head_dim", "mlp_ratio", "qkv_bias", "always_partition")  # change the maths
_COMPUTED = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\..*?(relative_position_index|attn_mask)$")
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")


class Found(NamedTuple):
    """What a file holds, under our names."""

    swin: Swin
    head: dict[str, Tensor]  # of a linear layer; empty without one
    labels: list[str] | None  # what its outputs mean, None where the file does not say


def load_swin(path: str | Path, leave: Sequence[str] = (), **arguments: Any) -> Swin:
    """The Swin in a file or folder of weights, in eval mode; the head of a file that has one is left aside.

    Read are, told apart by what they hold:
    - a Lightning checkpoint of ours, of any module that calls its Swin `encoder` or `swin`;
    - a folder of transformers' `save_pretrained` or of `save_folder` (SwinModel, SwinForImageClassification);
    - a folder of timm with its config.json, or the state dict of a timm SwinTransformer alone (safetensors or
      torch.save);
    - a checkpoint of the original, {"model": state dict}.
    A state dict alone does not show how pictures are normalised (default: ImageNet), and their size only as far as the
    windows do: its last stage is taken for one window, as in all that were published.

    Args:
        path: The file or folder.
        leave: Beginnings of tensor names to leave out on purpose, such as "decoder.".
        arguments: Of Swin, instead of what the file says or does not say: `image_size`, `mean`, `std`, or `drop_path`
            to train on. For other windows call `resized` on the result.

    Raises ValueError for a file that is none of these, a class that is no plain data, a setting that Swin does not
    have, each tensor missing or extra, and indices or masks that are not ours.
    """
    return _read(Path(path), leave, arguments).swin


def load_classifier(
    path: str | Path, leave: Sequence[str] = (), **arguments: Any
) -> tuple[Swin, nn.Linear, list[str] | None]:
    """The classifier in a file that `load_swin` reads: encoder and head in eval mode, and the names of the classes.

    The names are None where the file does not say them. Raises ValueError as `load_swin` does, and without a head.
    """
    found = _read(Path(path), leave, arguments)
    return found.swin, load_head(found.head, found.labels, path), found.labels


def save_folder(
    swin: Swin, folder: str | Path, head: nn.Linear | None = None, labels: Sequence[str] | None = None
) -> None:
    """Write a folder for transformers' `from_pretrained` and `load_swin`.

    It is one for SwinForImageClassification with a head, else for SwinModel.

    Args:
        swin: Whose windows are equal in all stages.
        folder: Made where it is not there.
        head: Linear layer on `pooled`.
        labels: Names of its classes.

    Raises ValueError for an encoder, or a number of names, that the format has no place for.
    """
    arguments = swin.arguments
    _check_windows(swin)
    config: dict[str, Any] = {
        "architectures": ["SwinModel" if head is None else "SwinForImageClassification"],
        "image_size": swin.image_size[0] if swin.image_size[0] == swin.image_size[1] else list(swin.image_size),
        "patch_size": swin.patch_size,
        "embed_dim": arguments["dim"],
        "depths": list(arguments["depths"]),
        "num_heads": list(arguments["num_heads"]),
        "window_size": arguments["window"],
        "drop_path_rate": arguments["drop_path"],
        **_FIXED,
    }
    tensors = to_transformers(swin.state_dict(), prefix="" if head is None else "swin.")
    if head is not None:
        tensors |= {f"classifier.{leaf}": value for leaf, value in head.state_dict().items()}
        config |= label_settings(head, labels)
    write_folder(folder, config, tensors, image_processor(swin.image_size, arguments["mean"], arguments["std"]))


# names of tensors


def from_transformers(tensors: Mapping[str, Tensor], leave: Sequence[str] = ()) -> dict[str, Tensor]:
    """Rename the tensors of a transformers SwinModel, or of a model that holds one as `swin.`, for Swin.

    Args:
        tensors: Of a file, or of a live model of version 4 or 5. Indices are left out.
        leave: Beginnings of names to leave out on purpose, such as "classifier.".

    Raises ValueError naming each tensor that is missing or that Swin has no place for.
    """
    prefix = "swin." if any(name.startswith("swin.") for name in tensors) else ""
    old = any(".attention.self." in name for name in tensors)
    return _renamed(tensors, prefixed(TRANSFORMERS_FILES if old else TRANSFORMERS, prefix), leave)


def to_transformers(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Rename the tensors of a Swin as in files of transformers: `prefix` "" for SwinModel, "swin." for models around
    one. Raises ValueError naming each tensor that is missing or that a SwinModel does not have."""
    return _renamed_for(tensors, prefixed(TRANSFORMERS_FILES, prefix), "transformers SwinModel")


def from_timm(tensors: Mapping[str, Tensor], leave: Sequence[str] = ()) -> dict[str, Tensor]:
    """Rename the tensors of a timm SwinTransformer for Swin; leave out "head." where there is one.

    Merging belongs to the stage after it, as timm has it since its version 0.9; it had it as the original before.
    Raises ValueError naming each tensor that is missing or that Swin has no place for."""
    return _renamed(tensors, ORIGINAL, leave, later=1)


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a Swin for a timm SwinTransformer without a head.

    Raises ValueError naming each tensor that is missing or that a SwinTransformer does not have."""
    return _moved(_renamed_for(tensors, ORIGINAL, "timm SwinTransformer"), later=1)


def from_original(tensors: Mapping[str, Tensor], leave: Sequence[str] = ()) -> dict[str, Tensor]:
    """Rename the tensors of the original, which are in its files under "model", for Swin; leave out "head.".

    Indices and masks are left out. Raises ValueError naming each tensor that is missing or has no place in Swin."""
    return _renamed(tensors, ORIGINAL, leave)


def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a Swin for the original, without a head, indices and masks.

    Raises ValueError naming each tensor that is missing or that the original does not have."""
    return _renamed_for(tensors, ORIGINAL, "original Swin")


def _moved(tensors: Mapping[str, Any], later: int) -> dict[str, Any]:
    """With the merging of tokens in the stage that comes `later`."""
    return {
        _DOWNSAMPLE.sub(lambda match: f"layers.{int(match[1]) + later}.downsample.", name): value
        for name, value in tensors.items()
    }


def _renamed(tensors: Mapping[str, Tensor], layout: Layout, leave: Sequence[str], later: int = 0) -> dict[str, Tensor]:
    found = {name: value for name, value in without(tensors, leave).items() if not _COMPUTED.search(name)}
    keys = _keys(_depths(found, re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")))
    theirs = dict.fromkeys(name for of_one in names(keys, layout).values() for name in of_one)
    check(_moved(theirs, later), found, "Swin encoder")
    return from_layout(_moved(found, -later), keys, layout, "Swin encoder")


def _renamed_for(tensors: Mapping[str, Tensor], layout: Layout, what: str) -> dict[str, Tensor]:
    check(_keys(_depths(tensors, re.compile(r"stages\.(\d+)\.blocks\.(\d+)\."))), tensors, what)
    return to_layout(tensors, layout)


def _depths(tensors: Mapping[str, Tensor], block: re.Pattern[str]) -> list[int]:
    """Blocks of each stage: one more than the highest number, so that a gap shows as missing tensors."""
    places = {(int(match[1]), int(match[2])) for name in tensors if (match := block.search(name))}
    stages = 1 + max((stage for stage, _ in places), default=0)
    return [1 + max((number for at, number in places if at == stage), default=0) for stage in range(stages)]


def _keys(depths: Sequence[int]) -> list[str]:
    """Our names of the tensors of a model with so many blocks."""
    with torch.device("meta"):
        swin = Swin(1, 1, 1, depths, [1] * len(depths), 1)
    return list(swin.state_dict())


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
                return Found(
                    read_part(saved, Swin, ("encoder", "swin"), told), below(saved["state_dict"], "head."), None
                )
            for key in ("state_dict", "model"):  # training scripts of timm and of the original wrap the weights
                saved = saved[key] if isinstance(saved.get(key), dict) else saved
        tensors = state_dict(saved, path)
        if any(name.startswith("layers.0.blocks.0.attn.") for name in tensors):
            return _read_timm(tensors, {}, leave, told)
        raise ValueError(
            f"it holds tensors {sorted(tensors)[:4]} without settings; give a checkpoint of ours or of the original, "
            f"the state dict of a timm SwinTransformer, or the folder of a transformers or timm model with its "
            f"config.json"
        )


def _read_transformers(folder: Path, config: Mapping[str, Any], leave: Sequence[str], told: Mapping[str, Any]) -> Found:
    tensors = without(read_tensors(folder), leave)
    state = from_transformers(tensors, ["classifier."])
    arguments = _arguments(config)
    if normalisation := read_normalisation(folder):
        arguments["mean"], arguments["std"] = normalisation
    swin = Swin(**{**arguments, **told})
    _check_windows(swin)
    load_strictly(swin, state)
    _check_computed(tensors, swin)
    return Found(swin, below(tensors, "classifier."), read_labels(config))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Swin's constructor arguments from a SwinConfig; a setting that is left out has SwinConfig's default.

    Dropout, a matter of training that Swin does without, is left out."""
    check_settings(config, _FIXED, "Swin")
    return {
        **picture_sizes(config, patch_size=4, what="Swin"),
        "dim": config.get("embed_dim", 96),
        "depths": config.get("depths", [2, 2, 6, 2]),
        "num_heads": config.get("num_heads", [3, 6, 12, 24]),
        "window": config.get("window_size", 7),
        "drop_path": config.get("drop_path_rate", 0.1),
    }


def _check_windows(swin: Swin) -> None:
    """Raise ValueError where a stage has smaller windows, as transformers has one size of table for all stages."""
    windows = swin.windows
    if set(windows) != {swin.arguments["window"]}:
        needed = swin.arguments["window"] * swin.patch_size * 2 ** (len(windows) - 1)
        raise ValueError(
            f"pictures of {swin.image_size[0]} x {swin.image_size[1]} pixels leave windows of {windows} in the stages, "
            f"where transformers has {swin.arguments['window']} in all of them; give image_size={needed} or more"
        )


def _read_timm(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], leave: Sequence[str], told: Mapping[str, Any]
) -> Found:
    tensors = without(tensors, leave)
    original = any(name.startswith("layers.0.downsample.") for name in tensors)
    state = (from_original if original else from_timm)(tensors, ["head."])
    settings, trained = config.get("model_args", {}), config.get("pretrained_cfg", {})
    if code := sorted({name for name in _TIMM_CODE if settings.get(name) is not None}):
        raise ValueError(f"config.json has model_args {code}, which change the model in a way that its tensors hide")
    if config.get("global_pool", "avg") != "avg":
        raise ValueError(f"config.json has global_pool={config['global_pool']!r}; Swin knows only 'avg'")
    arguments = _sizes(state)
    arguments |= {name: tuple(trained[name]) for name in ("mean", "std") if name in trained}
    if size := settings.get("img_size") or trained.get("input_size", (3,))[1:]:
        arguments["image_size"] = size if isinstance(size, int) else tuple(size)
    swin = Swin(**{**arguments, **told})
    load_strictly(swin, state)
    _check_computed(tensors, swin)
    return Found(swin, below(tensors, "head." if "head.weight" in tensors else "head.fc."), read_labels(config))


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those of Swin's arguments that the shapes of its tensors show."""
    dim, _, patch_size, _ = state["patches.weight"].shape
    depths = _depths(state, re.compile(r"stages\.(\d+)\.blocks\.(\d+)\."))
    tables = [state[f"stages.{stage}.blocks.0.attention.bias_table"] for stage in range(len(depths))]
    windows = [(math.isqrt(len(table)) + 1) // 2 for table in tables]
    return {
        "image_size": windows[-1] * patch_size * 2 ** (len(depths) - 1),
        "patch_size": patch_size,
        "dim": dim,
        "depths": depths,
        "num_heads": [table.shape[1] for table in tables],
        "window": windows[0],
    }


def _check_computed(tensors: Mapping[str, Tensor], swin: Swin) -> None:
    """Raise ValueError where a file's indices or masks are not those that `swin` computes."""
    grids = swin.grids(*swin.image_size)
    for name, value in tensors.items():
        if match := _COMPUTED.search(name):
            stage, number = int(match[1]), int(match[2])
            window, shift = fit(*grids[stage], swin.windows[stage], number % 2 == 1)
            if match[3] == "relative_position_index":
                same = torch.equal(value, relative_index(window, swin.windows[stage], value.device))
            else:
                down, across = (-(-side // window) * window for side in grids[stage])
                same = torch.equal(value != 0, shift_mask(down, across, window, shift, value.device) != 0)
            if not same:
                raise ValueError(
                    f"{name} is not what windows of {window} shifted by {shift} have in pictures of "
                    f"{swin.image_size[0]} x {swin.image_size[1]}; tell another image_size, or leave it out on purpose"
                )
