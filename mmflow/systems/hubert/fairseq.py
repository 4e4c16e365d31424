"""What is particular to fairseq's HuBERT checkpoints: their classes, their config and the names of their tensors.

A fairseq file is a pickle of tensors among objects of fairseq, omegaconf and argparse. None of these packages is needed
or imported: torch's weights-only unpickler builds an inert record in the place of each such object and refuses every
other class. The names follow fairseq's models/hubert/{hubert,hubert_asr}.py and the data it keeps with them.
"""

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mmflow.nn.layouts import Layout
from mmflow.nn.published import unpickling

FINE_TUNED = "w2v_encoder.w2v_model."  # before the encoder's names in files with a CTC layer
SPECIALS = 4  # <s>, <pad>, </s>, <unk> come first in every fairseq dictionary, also in that of the k-means units
NAMES: Layout = {
    "mask_embedding": "mask_emb",
    "conv.convs.{}": "feature_extractor.conv_layers.{}.0",
    "input_norm": "layer_norm",
    "input_projection": "post_extract_proj",
    "positions.conv": "encoder.pos_conv.0",
    "norm": "encoder.layer_norm",
    "blocks.{}.attention.qkv": [f"encoder.layers.{{}}.self_attn.{part}_proj" for part in "qkv"],
    "blocks.{}.attention.out": "encoder.layers.{}.self_attn.out_proj",
    "blocks.{}.attention_norm": "encoder.layers.{}.self_attn_layer_norm",
    "blocks.{}.ffn.expand": "encoder.layers.{}.fc1",
    "blocks.{}.ffn.contract": "encoder.layers.{}.fc2",
    "blocks.{}.ffn_norm": "encoder.layers.{}.final_layer_norm",
}
CONV_NORM: Mapping[str, Layout] = {  # the norm sits between two transpositions in the layer variant
    "group": {"conv.norms.{}": "feature_extractor.conv_layers.{}.2"},
    "layer": {"conv.norms.{}": "feature_extractor.conv_layers.{}.2.1"},
}

# Classes of these are replaced by Inert, as are the types that omegaconf notes of its values; everything else but plain
# data is refused.
_REPLACED = re.compile(
    r"(fairseq|omegaconf|examples\.hubert|typing|pathlib)(\.\w+)+"
    r"|argparse\.Namespace|_operator\.getitem|collections\.defaultdict"
)
_TYPES = [f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple", "type")]


class Inert:
    """Stands where a file has an object of a foreign class, and keeps what it was made of: no code of that class."""

    contents: Any  # the arguments it was called with, or the state that was set later

    def __new__(cls, *args: Any) -> "Inert":
        self = super().__new__(cls)
        self.contents = args
        return self

    def __setstate__(self, state: Any) -> None:
        self.contents = state


def restricted_load(path: Path) -> Any:
    """What `torch.save` wrote to `path` in its zip or its older format, on the CPU; foreign objects become Inert.

    Raises ValueError naming a class that is neither plain data nor fairseq's, and for a file that is not torch's.
    """
    with unpickling():
        names = [*_TYPES, *(name for name in _global_names(path) if _REPLACED.fullmatch(name))]
        replaced: list[Any] = [(Inert, name) for name in names]
        with torch.serialization.safe_globals(replaced):
            return torch.load(path, map_location="cpu", weights_only=True)


def _global_names(path: Path) -> set[str]:
    """Names of all classes and functions that the pickles of a torch file ask for, found without running them."""
    names: set[str] = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith("/data.pkl"):
                    with archive.open(member) as file:
                        names |= _names_in_pickle(file)  # type: ignore[arg-type]
        return names
    with path.open("rb") as file:
        for _ in range(4):  # magic number, protocol, system, and the object; the storages follow
            names |= _names_in_pickle(file)
    return names


def _names_in_pickle(file: BinaryIO) -> set[str]:
    return {str(arg).replace(" ", ".") for code, arg, _ in pickletools.genops(file) if code.name == "GLOBAL"}


def plain(value: Any) -> Any:
    """`value` with each Inert turned into the dict, list or scalar that it stood for."""
    if isinstance(value, Inert):
        state = value.contents
        if isinstance(state, Mapping):
            for key in ("_content", "_val"):  # omegaconf's containers and leaves
                if key in state:
                    return plain(state[key])
            return plain(state)  # an object with attributes: Namespace, Dictionary
        return plain(state[0]) if isinstance(state, tuple) and len(state) == 1 else plain(state)  # an enum's value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def arguments(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Hubert's constructor arguments that a fairseq file keeps in its config, not in the shape of its tensors.

    A fine-tuned model keeps the config it was pretrained with inside its own. Raises ValueError for an activation that
    Hubert does not have and for settings without which the tensors cannot be used.
    """
    config = plain(saved.get("cfg") or saved.get("args") or {})
    inner = _section(config, "model").get("w2v_args")
    if isinstance(inner, dict):
        config = inner
    model, task = _section(config, "model"), _section(config, "task")
    needed = ("encoder_layers", "encoder_attention_heads", "layer_norm_first")
    if missing := [key for key in needed if not isinstance(model.get(key), int)]:
        raise ValueError(f"its config does not say {missing}, which the tensors do not show; it is no HuBERT")
    if model.get("activation_fn", "gelu") != "gelu":
        raise ValueError(f"its config has activation_fn={model['activation_fn']!r}; Hubert knows only 'gelu'")
    return {
        "depth": model["encoder_layers"],
        "num_heads": model["encoder_attention_heads"],
        "pre_norm": model["layer_norm_first"],
        "dropout": model.get("dropout", 0.1),
        "attention_dropout": model.get("attention_dropout", 0.1),
        "ffn_dropout": model.get("activation_dropout", 0.0),
        "input_dropout": model.get("dropout_input", 0.0),
        "layer_drop": model.get("encoder_layerdrop", 0.0),
        "feature_grad_mult": model.get("feature_grad_mult", 1.0),
        "normalize": bool(task.get("normalize", False)),
    }


def temperature(saved: Mapping[str, Any]) -> float:
    """What a pretrained file divides the cosines by."""
    return float(_section(plain(saved.get("cfg") or saved.get("args") or {}), "model").get("logit_temp", 0.1))


def dictionaries(saved: Mapping[str, Any], key: str) -> list[list[str]]:
    """The symbols by number of each dictionary that the file keeps as `key`; empty where it keeps none."""
    found = plain((saved.get("task_state") or {}).get(key)) or []
    return [entry["symbols"] for entry in ([found] if isinstance(found, dict) else found) if entry]


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a config, or all of it where the settings stand side by side as older files have them."""
    section = config.get(name)
    return section if isinstance(section, dict) else config
