"""Files of published weights: folders of config.json and tensors, state dicts, and the models in our checkpoints.

Nothing is unpickled but tensors and plain data, and nothing outside a folder is read because of a name inside it.
"""

import contextlib
import hashlib
import importlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmflow.atomic import atomic_file, write_json
from mmflow.nn.layouts import below

# What libraries call the weights in a folder, in order of preference.
FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")

# Our names of activations, and those of transformers.
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}

_MODEL = re.compile(r"(mmflow\.(?:systems\.\w+\.model|nn\.\w+))\.(\w+)(?:\.(\w+))?")  # module, class, class method

Module = TypeVar("Module", bound=nn.Module)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts `path` before the message of a ValueError that does not have it yet."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; give a folder that holds the weights with their {path.name}")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; it should be an object of settings")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file (safetensors or torch.save) or in a folder of weights, on the CPU.

    Raises ValueError for anything but a state dict, naming what is there."""
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        if found is None and (path / "model.safetensors.index.json").is_file():
            return _read_parts(path)
        if found is None:
            raise ValueError(f"{path} holds none of {', '.join(FILES)}; give a folder that save_pretrained wrote")
        path = found
    return state_dict(read_saved(path), path)


def state_dict(value: Any, path: Path) -> dict[str, Tensor]:
    """What was found in `path`, if it has names and tensors only; else ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, where a state dict has names and tensors")
    if other := [key for key, item in value.items() if not isinstance(key, str) or not isinstance(item, Tensor)]:
        raise ValueError(f"{path} holds {other[:4]}, where a state dict has names and tensors only")
    return value


def read_normalisation(folder: Path) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation by channel of pictures in [0, 1], from preprocessor_config.json; None without one."""
    if not (folder / "preprocessor_config.json").is_file():
        return None
    settings = read_json(folder / "preprocessor_config.json")
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    mean, std = settings.get("image_mean", (0.5,) * 3), settings.get("image_std", (0.5,) * 3)
    if not settings.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    return [value / scale for value in mean], [value / scale for value in std]


def image_processor(image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """preprocessor_config.json for pictures of `image_size`, down and across, and normalisation of values in [0, 1]."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size[0], "width": image_size[1]},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def check_settings(config: Mapping[str, Any], fixed: Mapping[str, Any], what: str) -> None:
    """Raise ValueError for a setting of config.json that `what` has one other value for.

    What is left out has that value, but `model_type` must be there."""
    for key, only in fixed.items():
        if config.get(key, None if key == "model_type" else only) != only:
            raise ValueError(f"config.json has {key}={config.get(key)!r}; {what} knows only {only!r}")


def picture_sizes(config: Mapping[str, Any], patch_size: int, what: str) -> dict[str, Any]:
    """`image_size` and `patch_size` of `what`, out of config.json of transformers, which may have lists.

    patch_size: where it says none. Raises ValueError for patches that are not square."""
    size, patch = config.get("image_size", 224), config.get("patch_size", patch_size)
    if isinstance(patch, list):
        if len(set(patch)) != 1:
            raise ValueError(f"config.json has patch_size={patch}; {what} has square patches")
        patch = patch[0]
    return {"image_size": tuple(size) if isinstance(size, list) else size, "patch_size": patch}


def read_labels(config: Mapping[str, Any]) -> list[str] | None:
    """Names of a classifier's classes in order, from config.json of transformers or timm; None where it has none."""
    named = config.get("id2label") or config.get("label_names") or []
    labels = named if isinstance(named, list) else [named[key] for key in sorted(named, key=int)]
    return None if labels == _unnamed(len(labels)) else labels


def label_settings(head: nn.Linear, labels: Sequence[str] | None) -> dict[str, Any]:
    """What config.json of transformers says of a head's classes. Raises ValueError for too many or too few labels."""
    named = _unnamed(head.out_features) if labels is None else labels
    if len(named) != head.out_features:
        raise ValueError(f"{len(named)} labels for a head of {head.out_features} outputs; give one name for each")
    return {
        "id2label": {str(number): name for number, name in enumerate(named)},
        "label2id": {name: number for number, name in enumerate(named)},
    }


def _unnamed(classes: int) -> list[str]:
    """What transformers calls classes that nobody has named."""
    return [f"LABEL_{number}" for number in range(classes)]


def load_head(tensors: Mapping[str, Tensor], labels: Sequence[str] | None, path: str | Path) -> nn.Linear:
    """The linear layer over classes that was found in `path`, in eval mode; `labels` must be as many.

    Raises ValueError where there is none, or another kind of head."""
    if tensors.keys() != {"weight", "bias"}:
        raise ValueError(
            f"{path} has no head of weight and bias over classes (but {sorted(tensors) or 'none'}); give a "
            f"classifier, or load the encoder alone"
        )
    outputs, dim = tensors["weight"].shape
    if labels is not None and len(labels) != outputs:
        raise ValueError(f"{path}: the head has {outputs} outputs, but there are names for {len(labels)} classes")
    head = nn.Linear(dim, outputs)
    load_strictly(head, tensors)
    return head


def read_saved(path: Path) -> Any:
    """What is in a safetensors file, or what torch.save wrote of tensors and plain data, on the CPU.

    Raises ValueError naming a class that is no plain data, and for a file that is damaged or neither of the two."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no file or folder of this name")
    with naming(path), unpickling(str(path)):
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def unpickling(subject: str = "it") -> Iterator[None]:
    """Turns what torch raises for a file that it does not read into a ValueError that says what to do.

    subject: what a message calls a file that asks for more than plain data."""
    try:
        yield
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{subject} asks for {found[1]}, which is no part of a checkpoint; nothing of it was run. Get it from "
                f"its authors as safetensors, or save the state dict alone"
            ) from None
        raise ValueError(f"torch cannot read it as weights ({str(error).splitlines()[-1][:200]})") from None
    except OSError:
        raise
    except Exception as error:  # damaged bytes end in whatever error they lead to
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"torch cannot read it ({reason}); is it whole, and written by torch.save?") from error


def _read_parts(folder: Path) -> dict[str, Tensor]:
    """Weights in several files, which an index names."""
    names = sorted(set(read_json(folder / "model.safetensors.index.json").get("weight_map", {}).values()))
    if wrong := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ValueError(f"{folder}: the index names {wrong}, which are no safetensors files of this folder")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_saved(folder / name)
    return tensors


def write_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    preprocessor: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json, which `from_pretrained` of transformers reads.

    config.json comes last, so a folder that has one is whole."""
    folder = Path(folder)
    with atomic_file(folder / "model.safetensors") as file:
        file.write(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"format": "pt"}))
    if preprocessor is not None:
        write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "config.json", config)


def read_part(
    saved: Mapping[str, Any], kind: type[Module], names: Sequence[str], arguments: Mapping[str, Any] | None = None
) -> Module:
    """A part of the module in a Lightning checkpoint, in eval mode.

    The command line keeps how it built the part in `hyper_parameters`. Where that is not how the part is now (it was
    resized, or loaded from a file), the module keeps it as `checkpoint[name]`, in the same form: `class_path` and
    `init_args`.

    Args:
        saved: What `read_saved` returns of the checkpoint.
        kind: Class of the part.
        names: What modules call it, such as "encoder"; the first that is there is read.
        arguments: To build it with instead of those it was built with.

    Raises ValueError for a checkpoint that does not say how to build it, and each tensor missing or extra.
    """
    built = saved.get("hyper_parameters", {})
    for name in names:
        config = saved.get(name, built.get(name))
        if isinstance(config, dict):
            part = build({**config, "init_args": {**config.get("init_args", {}), **(arguments or {})}}, kind)
            load_strictly(part, below(saved["state_dict"], f"{name}."))
            return part
    raise ValueError(
        f"the checkpoint does not say how to build its {' or '.join(names)} (its hyper_parameters name "
        f"{sorted(key for key in built if not key.startswith('_'))}); give one of a training that the command line "
        f"started"
    )


def build(config: Mapping[str, Any], kind: type[Module]) -> Module:
    """The module of `class_path` and `init_args` as the command line writes them, and the modules among its arguments.

    Only what a `model.py` of a system or a file of `mmflow.nn` defines is built: a module, by its class or a class
    method of it.

    Raises ValueError for anything else."""
    path = str(config.get("class_path"))
    found = _MODEL.fullmatch(path)
    model = None
    if found:
        with contextlib.suppress(ModuleNotFoundError):
            model = vars(importlib.import_module(found[1])).get(found[2])
    if found is None or not isinstance(model, type) or not issubclass(model, kind) or model.__module__ != found[1]:
        raise ValueError(f"class_path {path!r} is no {kind.__name__} of mmflow; only these are built from a file")
    make: Any = model
    if found[3]:
        if not isinstance(vars(model).get(found[3]), classmethod):
            raise ValueError(f"class_path {path!r} is no published size of {found[2]}")
        make = getattr(model, found[3])
    arguments = {
        name: build(value, nn.Module) if isinstance(value, dict) and "class_path" in value else value
        for name, value in {**config.get("init_args", {}), **config.get("dict_kwargs", {})}.items()
    }
    return make(**arguments)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put all tensors into the module and set it to eval mode.

    Raises ValueError naming each tensor that is missing, extra or of another shape."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    module.eval()


def weights_fingerprint(weights: Mapping[str, Tensor], title: str) -> str:
    """16 hexadecimal digits that name these weights, which `title` describes."""
    digest = hashlib.sha256(title.encode())
    for name, weight in weights.items():
        digest.update(name.encode() + weight.float().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:16]
