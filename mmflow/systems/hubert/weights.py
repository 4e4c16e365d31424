"""HuBERT in and out of files: our checkpoints, transformers folders, fairseq checkpoints, torchaudio state dicts.

Every tensor of a file is accounted for: a missing or an extra one is an error that names it. Nothing is unpickled but
tensors and plain containers. Tensors are renamed, never changed; only rows of special tokens come and go.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmflow.data.text import Characters
from mmflow.nn.layouts import below
from mmflow.systems.hubert import fairseq
from mmflow.systems.hubert.folder import hubert_arguments, read_folder, save_folder
from mmflow.systems.hubert.model import CTCHead, Hubert, HubertPretrainingHead
from mmflow.systems.hubert.names import (
    TORCHAUDIO,
    Found,
    conv_norm_of,
    current,
    encoder_state,
    from_transformers,
    prefix_of,
    sizes_of,
    take,
    to_transformers,
)

__all__ = [
    "from_transformers",
    "hubert_arguments",
    "load_ctc",
    "load_hubert",
    "load_units",
    "save_folder",
    "to_transformers",
]

# Rows of Characters that never win: torchaudio's recognisers do without them.
_UNUSED = ("<pad>", "</s>", "<unk>")
_SPECIALS = ("<s>", *_UNUSED)


def load_hubert(path: str | Path, leave: Sequence[str] = ()) -> Hubert:
    """The Hubert in a file or folder of weights, in eval mode; the head of a file that has one is left aside.

    Read are, told apart by what they hold:
    - a Lightning checkpoint of ours, of any module that calls its Hubert `hubert`;
    - a folder of transformers' `save_pretrained` or of `save_folder` (HubertModel, HubertForCTC), with
      model.safetensors or pytorch_model.bin;
    - a fairseq checkpoint, pretrained or fine-tuned with CTC;
    - a file of `torch.save(model.state_dict(), file)` of a torchaudio HuBERT, such as `HUBERT_BASE.get_model()`. It
      holds no settings: blocks are pre-norm and audio is normalised if every convolution has its norm, as in Large and
      X-Large; heads have 64 channels, but 80 (16 heads) at width 1280.
    Where a file has no mask vector (models that never mask), it is drawn as in a new model.

    Args:
        path: The file or folder.
        leave: Beginnings of tensor names to leave out on purpose, such as "classifier.".

    Raises ValueError for a file that is none of these, a class that is no plain data, a setting that Hubert does not
    have, and each tensor missing or extra.
    """
    return _encoder(_read(Path(path), leave), path)


def load_ctc(path: str | Path) -> tuple[Hubert, CTCHead, tuple[str, ...]]:
    """The recogniser in a file that `load_hubert` reads: encoder and CTC head in eval mode, and the head's tokens.

    The tokens are those of `Characters`, which the English recognisers of all three libraries share. A file without a
    vocabulary is taken to have it if it has 32 outputs, or the 29 of torchaudio's recognisers, which do without
    padding, end and unknown: these get rows that never win.

    Raises ValueError as `load_hubert` does, for a file without a CTC head, and for another vocabulary.
    """
    found = _read(Path(path))
    if not found.ctc:
        raise ValueError(f"{path} has no CTC head; give a fine-tuned model, or take its encoder with load_hubert")
    state = _of_characters(found.ctc, found.tokens, path)
    head = CTCHead(state["weight"].shape[1], len(Characters.tokens))
    head.projection.load_state_dict(state)
    return _encoder(found, path), head.eval(), Characters.tokens


def load_units(path: str | Path) -> tuple[Hubert, HubertPretrainingHead]:
    """The pretrained model in a file that `load_hubert` reads: encoder and head in eval mode.

    Class c is k-means cluster c in each format; the rows of fairseq's special tokens are left out.

    Raises ValueError as `load_hubert` does, and for a file without this head (transformers folders have none).
    """
    found = _read(Path(path))
    if not found.units:
        raise ValueError(f"{path} has no head over units; give a pretrained model of fairseq, torchaudio or mmflow")
    hubert = _encoder(found, path)
    classes, unit_dim = found.units["units.0"].shape
    head = HubertPretrainingHead(hubert.dim, [classes], unit_dim, found.temperature)
    head.load_state_dict(found.units)
    return hubert, head.eval()


# what each kind of file holds


def _read(path: Path, leave: Sequence[str] = ()) -> Found:
    try:
        if path.is_dir():
            return read_folder(path, leave)
        if not path.is_file():
            raise ValueError("there is no file or folder of this name")
        saved = fairseq.restricted_load(path)
        if isinstance(saved, dict):
            if isinstance(saved.get("state_dict"), dict):
                return _read_ours(saved)
            if isinstance(saved.get("model"), dict) and ("cfg" in saved or "args" in saved):
                return _read_fairseq(saved, leave)
            if any("encoder.transformer." in str(key) for key in saved):
                return _read_torchaudio(saved, leave)
        holds = f"a dict of {sorted(map(str, saved))[:4]}" if isinstance(saved, dict) else f"a {type(saved).__name__}"
        raise ValueError(
            f"it holds {holds}; give a checkpoint of ours, a fairseq checkpoint (with 'model' and 'cfg' or 'args'), "
            f"the state dict of a torchaudio HuBERT, or the folder of a transformers model with its config.json"
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_ours(saved: Mapping[str, Any]) -> Found:
    """Written by a module that the command line built with a `hubert`, or that keeps `hubert_arguments` in its file."""
    arguments = saved.get("hubert")
    if arguments is None:
        config = saved.get("hyper_parameters", {}).get("hubert")
        if not isinstance(config, dict) or config.get("class_path") != f"{Hubert.__module__}.{Hubert.__qualname__}":
            raise ValueError(
                f"the checkpoint does not say how to build its HuBERT (hyper_parameters.hubert is {config!r}); "
                f"give the checkpoint of a HuBERT training that the command line started"
            )
        arguments = config.get("init_args", {})
    hubert, head = (below(saved["state_dict"], prefix) for prefix in ("hubert.", "head."))
    units = head if "units.0" in head else {}
    ctc = {} if units else below(head, "projection.")
    return Found(arguments, hubert, ctc, Characters.tokens, units)


def _read_fairseq(saved: Mapping[str, Any], leave: Sequence[str]) -> Found:
    found = current(saved["model"], leave)
    prefix = prefix_of(found, fairseq.FINE_TUNED)
    ctc = take(found, {leaf: f"w2v_encoder.proj.{leaf}" for leaf in ("weight", "bias")})
    if ctc:  # fine-tuning drops the projection to the units' space but keeps the units
        found.pop(f"{prefix}label_embs_concat", None)
    named = {f"projection.{leaf}": f"final_proj.{leaf}" for leaf in ("weight", "bias")}
    units = take(found, named | {"units.0": "label_embs_concat"})
    if units:
        units["units.0"] = units["units.0"][fairseq.SPECIALS :]
        sets = fairseq.dictionaries(saved, "dictionaries")
        clusters = [str(cluster) for cluster in range(len(units["units.0"]))]
        if sets and [names[fairseq.SPECIALS :] for names in sets] != [clusters]:
            raise ValueError(
                f"it has {len(sets)} dictionaries of units of sizes {[len(names) for names in sets]}; only one set of "
                f"units is read, whose {len(clusters)} names are the numbers from 0 on; for the encoder alone, leave "
                f"out 'final_proj.' and 'label_embs_concat'"
            )
    arguments = fairseq.arguments(saved)
    layout = {**fairseq.NAMES, **fairseq.CONV_NORM[conv_norm_of(found)]}
    hubert = encoder_state(found, layout, prefix, arguments["depth"])
    tokens = next(iter(fairseq.dictionaries(saved, "target_dictionary")), None)
    return Found(sizes_of(hubert) | arguments, hubert, ctc, tokens, units, fairseq.temperature(saved))


def _read_torchaudio(saved: Mapping[str, Any], leave: Sequence[str]) -> Found:
    wrapped = all(str(key).startswith("model.") for key in saved)  # around models of normalised audio
    found = current(below(saved, "model.") if wrapped else saved, leave)
    prefix = prefix_of(found, "wav2vec2.")
    ctc = take(found, {leaf: f"{prefix}aux.{leaf}" for leaf in ("weight", "bias")})
    named = {f"projection.{leaf}": f"logit_generator.final_proj.{leaf}" for leaf in ("weight", "bias")}
    units = take(found, named | {"units.0": "logit_generator.label_embeddings"})
    mask = take(found, {"mask_embedding": "mask_generator.mask_embedding"})
    if units and not mask:
        raise ValueError("missing ['mask_generator.mask_embedding'], which a pretrained model with its head has")
    hubert = encoder_state(found, TORCHAUDIO, prefix, mask_embedding=False)
    sizes = sizes_of(hubert)
    hubert |= mask or {"mask_embedding": torch.rand(sizes["dim"])}
    num_heads = 16 if sizes["dim"] == 1280 else sizes["dim"] // 64
    if sizes["dim"] % 64:
        raise ValueError(f"no published model is {sizes['dim']} wide, so the file does not show its number of heads")
    arguments = sizes | {"num_heads": num_heads, "pre_norm": False}
    if sizes["conv_norm"] == "layer":
        arguments |= {"pre_norm": True, "normalize": True, "feature_grad_mult": 1.0, "layer_drop": 0.0}
        arguments |= dict.fromkeys(("dropout", "attention_dropout", "ffn_dropout", "input_dropout"), 0.0)
    return Found(arguments, hubert, ctc, None, units)


# out of what was found


def _encoder(found: Found, path: str | Path) -> Hubert:
    hubert = Hubert(**found.arguments)
    try:
        hubert.load_state_dict(found.hubert)
    except RuntimeError as error:  # names each tensor that is missing, extra or of another shape
        raise ValueError(f"{path}: {error}") from None
    return hubert.eval()


def _of_characters(ctc: dict[str, Tensor], tokens: Sequence[str] | None, path: str | Path) -> dict[str, Tensor]:
    """The linear layer over the tokens of Characters, of one over `tokens`."""
    known, outputs = Characters.tokens, len(ctc["weight"])
    if tokens is None and outputs == len(known):
        return ctc
    if tokens is None and outputs == len(known) - len(_UNUSED):
        kept = torch.tensor([number for number, token in enumerate(known) if token not in _UNUSED])
        weight, bias = torch.zeros(len(known), ctc["weight"].shape[1]), torch.full((len(known),), -1e4)
        weight[kept], bias[kept] = ctc["weight"].float(), ctc["bias"].float()
        return {"weight": weight, "bias": bias}
    if tokens is None:
        differences = [f"there are {outputs}, not {len(known)}"]
    else:
        differences = [
            f"number {n} is {theirs!r}, not {ours!r}"
            for n, (theirs, ours) in enumerate(zip_longest(tokens, known))
            if theirs != ours and not (n < 4 and theirs in _SPECIALS)  # fairseq and transformers swap <s> and <pad>
        ]
    if differences:
        raise ValueError(
            f"{path}: the outputs of its CTC head are not the tokens of Characters: {', '.join(differences[:4])} "
            f"({len(differences)} in all); take the encoder with load_hubert and train a new head"
        )
    return ctc
