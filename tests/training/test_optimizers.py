import pytest
import torch
from lightning.pytorch import LightningModule

from mmflow.systems.swin.model import Swin
from mmflow.systems.vit.model import ViT
from mmflow.training.optimizers import adamw, decay_groups, is_decayed, layer_depths

MATRICES = ("attention.qkv", "attention.out", "ffn.expand", "ffn.contract")


class Scale(LightningModule):
    def __init__(self, precision):
        super().__init__()
        self.factor, self.fixed = torch.nn.Parameter(torch.tensor([2.0])), torch.nn.Parameter(torch.tensor([3.0]))
        self.fixed.requires_grad_(False)
        self._trainer = type("Trainer", (), {"precision": precision})()


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", False), ("16-mixed", False)])
def test_one_kernel_except_under_mixed_precision(precision, fused):
    optimizer = adamw(Scale(precision), lr=0.1, eps=1e-6, weight_decay=0.01)
    assert optimizer.defaults["fused"] is fused


def test_the_first_step_is_lr_in_the_direction_of_the_gradient_after_the_decay():
    module = Scale("32-true")
    optimizer = adamw(module, lr=0.1, eps=1e-6, weight_decay=0.01)
    (module.factor * module.fixed).sum().backward()
    optimizer.step()
    assert module.factor.item() == pytest.approx(2.0 * (1 - 0.1 * 0.01) - 0.1, abs=1e-5)
    assert module.fixed.item() == 3.0


def small(kind: str) -> torch.nn.Module:
    with torch.device("meta"):
        if kind == "vit":
            return ViT(32, 8, 16, 2, 2)
        return Swin(32, 2, 8, [2, 2], [2, 2], 4)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_matrices_decay_and_nothing_else(kind):
    encoder = small(kind)
    layers = {
        "vit": [f"blocks.{n}.{part}" for n in range(2) for part in MATRICES],
        "swin": [f"stages.{s}.blocks.{n}.{part}" for s in range(2) for n in range(2) for part in MATRICES]
        + ["stages.0.merging.reduction"],
    }[kind]
    expected = {f"{name}.weight" for name in [*layers, "patches"]}
    assert {name for name, parameter in encoder.named_parameters() if is_decayed(name, parameter)} == expected
    groups = decay_groups(encoder, lr=0.5, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    decayed, rest = ([names[id(p)] for p in group["params"]] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [group["lr"] for group in groups] == [0.5, 0.5]
    assert set(decayed) == expected
    assert len(decayed) + len(rest) == len(names)


def test_what_does_not_learn_is_in_no_group():
    with torch.device("meta"):
        encoder = ViT(32, 8, 16, 1, 2, positions="sincos")
    assert not any(p is encoder.positions for group in decay_groups(encoder, 1.0, 0.1) for p in group["params"])


def test_depth_counts_blocks_through_all_stages():
    depths = layer_depths(small("vit"))
    assert {depths[name] for name in ("class_token", "positions", "patches.weight")} == {0}
    assert (depths["blocks.0.ffn.expand.bias"], depths["blocks.1.attention_norm.weight"]) == (1, 2)
    assert depths["norm.weight"] == 3
    depths = layer_depths(small("swin"))
    assert (depths["patch_norm.bias"], depths["stages.0.blocks.1.attention.bias_table"]) == (0, 2)
    assert (depths["stages.0.merging.norm.weight"], depths["stages.1.blocks.0.ffn.expand.weight"]) == (2, 3)
    assert (depths["stages.1.blocks.1.attention.out.bias"], depths["norm.bias"]) == (4, 5)


def test_rates_fall_towards_the_input():
    encoder = small("vit")
    groups = decay_groups(encoder, 1.0, 0.1, layer_depths(encoder), layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(encoder.norm.weight)] == 1.0
    assert rates[id(encoder.blocks[1].ffn.expand.weight)] == 0.5
    assert rates[id(encoder.blocks[0].ffn.expand.bias)] == 0.25
    assert rates[id(encoder.positions)] == 0.125
    assert groups[0]["lr"] == 1.0  # which is logged
    with pytest.raises(ValueError, match=r"layer_decay=0 must be above 0 and at most 1, which is no decay"):
        decay_groups(encoder, 1.0, 0.1, layer_decay=0)
