"""Folders and files of weights, and parts of our checkpoints."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmflow.nn.published import (
    FILES,
    build,
    image_processor,
    label_settings,
    load_head,
    read_json,
    read_labels,
    read_normalisation,
    read_part,
    read_saved,
    read_tensors,
    write_folder,
)
from mmflow.systems.vit.model import ViT

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
TINY = {"image_size": 8, "patch_size": 4, "dim": 8, "depth": 1, "num_heads": 2}
VIT = "mmflow.systems.vit.model.ViT"


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_is_written_and_read(tmp_path):
    parts = torch.arange(12.0).view(4, 3)
    tensors = {"q": parts[:2], "k": parts[2:], "t": parts.T}
    write_folder(
        tmp_path / "new", {"model_type": "vit"}, tensors, image_processor((16, 24), (0.1, 0.2, 0.3), (1, 1, 1))
    )
    assert same(read_tensors(tmp_path / "new"), tensors)
    assert read_json(tmp_path / "new" / "config.json") == {"model_type": "vit"}
    assert read_json(tmp_path / "new" / "preprocessor_config.json")["size"] == {"height": 16, "width": 24}
    mean, std = read_normalisation(tmp_path / "new")
    assert mean == pytest.approx([0.1, 0.2, 0.3])
    assert std == pytest.approx([1, 1, 1])
    write_folder(tmp_path / "bare", {}, tensors)
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["config.json", "model.safetensors"]
    assert read_normalisation(tmp_path / "bare") is None


@pytest.mark.parametrize("name", [*FILES, "alone.pt"])
def test_files_of_every_library_are_read(name, tmp_path):
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save(STATE, path)
    assert same(read_tensors(path if name == "alone.pt" else tmp_path), STATE)


def test_weights_in_several_files_are_read_by_their_index_and_from_this_folder_only(tmp_path):
    for number, (name, value) in enumerate(STATE.items()):
        save_file({name: value}, tmp_path / f"model-{number}.safetensors")
    where = {name: f"model-{number}.safetensors" for number, name in enumerate(STATE)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert same(read_tensors(tmp_path), STATE)
    for outside in ("../model-0.safetensors", "/etc/model.safetensors", "model.bin"):
        index.write_text(json.dumps({"weight_map": where | {"b": outside}}))
        with pytest.raises(
            ValueError, match=r"the index names \['\S+'\], which are no safetensors files of this folder"
        ):
            read_tensors(tmp_path)


def test_nothing_is_unpickled_but_plain_data(tmp_path):
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt asks for \S*system, .*nothing of it was run"):
        read_saved(tmp_path / "evil.pt")


def test_damaged_and_other_files_are_errors_that_name_them(tmp_path):
    torch.save(STATE, tmp_path / "whole.pt")
    for name, content in {
        "half.pt": (tmp_path / "whole.pt").read_bytes()[:300],
        "text.pt": b"no weights at all",
        "empty.pt": b"",
        "text.safetensors": b"no weights at all",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}:? (cannot|torch cannot)"):
            read_saved(tmp_path / name)
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match=r"holds \['model', 'epoch'\], where a state dict has names and tensors only"):
        read_tensors(tmp_path / "nested.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, where a state dict"):
        read_tensors(tmp_path / "list.pt")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none holds none of model\.safetensors, open_clip"):
        read_tensors(tmp_path / "none")
    for content, message in {"{": "is not JSON", "[]": "holds a list"}.items():
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=rf"config\.json {message}"):
            read_json(tmp_path / "config.json")


def test_names_of_classes_are_in_order_and_placeholders_are_no_names():
    names = [f"class {number}" for number in range(11)]
    assert read_labels(label_settings(nn.Linear(2, 11), names)) == names
    assert label_settings(nn.Linear(2, 11), names)["label2id"]["class 10"] == 10
    assert read_labels({"label_names": names}) == names
    assert read_labels({"label_names": {"1": "b", "0": "a"}}) == ["a", "b"]
    assert read_labels({}) is None
    assert read_labels(label_settings(nn.Linear(2, 11), None)) is None
    with pytest.raises(ValueError, match="11 labels for a head of 3 outputs; give one name for each"):
        label_settings(nn.Linear(2, 3), names)


def test_a_head_is_a_linear_layer_with_as_many_names_as_outputs():
    tensors = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    head = load_head(tensors, ["a", "b", "c"], "file")
    assert same(head.state_dict(), tensors)
    assert not head.training
    with pytest.raises(ValueError, match="file: the head has 3 outputs, but there are names for 2 classes"):
        load_head(tensors, ["a", "b"], "file")
    with pytest.raises(ValueError, match=r"file has no head of weight and bias over classes \(but \['units'\]\)"):
        load_head({"units": torch.zeros(1)}, None, "file")


def test_a_model_is_built_with_the_models_among_its_arguments():
    vit = build({"class_path": VIT, "init_args": TINY}, ViT)
    assert (type(vit), vit.arguments["dim"]) == (ViT, 8)
    assert build({"class_path": f"{VIT}.ti16", "init_args": {"depth": 1}}, ViT).dim == 192
    vision = {"class_path": VIT, "init_args": TINY}
    text = {"class_path": "mmflow.systems.clip.model.TextTransformer"}
    text["init_args"] = {"vocab_size": 20, "end_id": 1, "context": 6, "dim": 8, "depth": 1, "num_heads": 2}
    similarity = {"class_path": "mmflow.nn.contrastive.Similarity", "init_args": {"objective": "sigmoid"}}
    clip = build(
        {
            "class_path": "mmflow.systems.clip.model.CLIP",
            "init_args": {"vision": vision, "text": text, "embed_dim": 4},
            "dict_kwargs": {"similarity": similarity},
        },
        nn.Module,
    )
    assert isinstance(clip.vision, ViT)
    assert (clip.embed_dim, clip.similarity.objective) == (4, "sigmoid")


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "torch.nn.Linear",
        "mmflow.systems.vit.model.torch.load",
        "mmflow.systems.vit.model.Block",
        "mmflow.systems.vit.model.AttentionPool",
        "mmflow.systems.nothing.model.ViT",
        "mmflow.systems.vit.weights.load_vit",
    ],
)
def test_nothing_else_is_built(path):
    with pytest.raises(ValueError, match="is no ViT of mmflow; only these are built from a file"):
        build({"class_path": path, "init_args": {}}, ViT)


@pytest.mark.parametrize("method", ["forward", "load_state_dict", "__init__", "nothing"])
def test_no_other_method_is_called(method):
    with pytest.raises(ValueError, match="is no published size of ViT"):
        build({"class_path": f"{VIT}.{method}", "init_args": {}}, ViT)


def test_a_part_of_a_checkpoint_is_read_strictly():
    vit = ViT(**TINY)
    state = {f"encoder.{name}": value for name, value in vit.state_dict().items()} | {"head.weight": torch.ones(1)}
    saved = {"state_dict": state, "hyper_parameters": {"encoder": {"class_path": VIT, "init_args": TINY}}}
    part = read_part(saved, ViT, ["tower", "encoder"])
    assert not part.training
    assert same(part.state_dict(), vit.state_dict())
    assert read_part(saved, ViT, ["encoder"], {"drop_path": 0.1}).arguments["drop_path"] == 0.1
    del state["encoder.norm.bias"]
    with pytest.raises(ValueError, match=r'Missing key.*"norm\.bias"'):
        read_part(saved, ViT, ["encoder"])
    with pytest.raises(ValueError, match=r"how to build its tower \(its hyper_parameters name \['encoder'\]\)"):
        read_part(saved, ViT, ["tower"])


def test_weights_stay_what_they_are_in_half_precision(tmp_path):
    write_folder(tmp_path, {}, {"a": torch.ones(3, dtype=torch.bfloat16, requires_grad=True)})
    assert load_file(tmp_path / "model.safetensors")["a"].dtype == torch.bfloat16
