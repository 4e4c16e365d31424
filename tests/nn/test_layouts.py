"""Names of tensors in and out of another library's layout."""

import pytest
import torch

from mmflow.nn.layouts import check, from_layout, names, prefixed, to_layout

LAYOUT = {
    "blocks.{}.qkv": ["layer.{}.q", "layer.{}.k", "layer.{}.v"],
    "blocks.{}.mlp": "layer.{}.ffn.dense",
    "blocks.{}": "layer.{}.rest",
    "token": "embeddings.cls_token",
}


def test_the_longest_beginning_names_a_tensor_and_numbers_go_along():
    found = names(["blocks.12.qkv.bias", "blocks.3.mlp.weight", "blocks.3.norm.weight", "token"], LAYOUT)
    assert found == {
        "blocks.12.qkv.bias": ("layer.12.q.bias", "layer.12.k.bias", "layer.12.v.bias"),
        "blocks.3.mlp.weight": ("layer.3.ffn.dense.weight",),
        "blocks.3.norm.weight": ("layer.3.rest.norm.weight",),
        "token": ("embeddings.cls_token",),
    }


def test_a_tensor_without_a_name_is_an_error():
    with pytest.raises(KeyError, match=r"no name for head\.weight"):
        names(["head.weight"], LAYOUT)


def test_tensors_are_joined_on_the_way_in_and_cut_on_the_way_out():
    ours = {"blocks.0.qkv.weight": torch.arange(12.0).view(6, 2), "token": torch.ones(1, 1, 2)}
    theirs = to_layout(ours, prefixed(LAYOUT, "vit."))
    assert sorted(theirs) == [
        "vit.embeddings.cls_token",
        "vit.layer.0.k.weight",
        "vit.layer.0.q.weight",
        "vit.layer.0.v.weight",
    ]
    assert theirs["vit.layer.0.k.weight"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    back = from_layout(theirs, ours, prefixed(LAYOUT, "vit."), "ViT")
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_missing_and_extra_tensors_are_named_as_the_file_does():
    with pytest.raises(ValueError, match=r"exactly one ViT: missing \['layer\.0\.v\.bias'\], extra \['head'\]"):
        from_layout(dict.fromkeys(["layer.0.q.bias", "layer.0.k.bias", "head"]), ["blocks.0.qkv.bias"], LAYOUT, "ViT")
    check(["a"], ["a"], "ViT")
