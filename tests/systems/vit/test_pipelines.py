"""The recipes of the papers of ViT, DeiT and Swin: their sizes, batches, steps and rates. Nothing here takes memory."""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from mmflow.data.augmentation import MixupOrCutMix, RandAugment, RandomErasing
from mmflow.systems.swin.model import Swin
from mmflow.systems.vit.model import ViT
from mmflow.training.ema import WeightEMA
from tests.test_paper_pipelines import Built, resolved

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

ENCODERS = {
    "vit_b16_in1k": 85_798_656, "vit_b16_in21k": 85_798_656, "vit_deit_s16": 21_665_664, "vit_deit_b16": 85_798_656,
    "swin_t": 27_519_354, "swin_s": 48_837_258, "swin_b": 86_743_224,
}  # fmt: skip
IMAGENET = 1_281_167  # photos to train on


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[[str, str], Any]:
    """Makes a stage of a recipe once; the checkpoint that it reads holds a Base."""
    folder = tmp_path_factory.mktemp("build")

    @cache
    def make(recipe: str, name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["cli.py"])
            return Built(*with_a_base(recipe, name), folder)

    return make


def with_a_base(recipe: str, name: str) -> tuple[str, dict[str, Any]]:
    run, config = resolved(f"pipelines/paper/{recipe}.yaml", name)
    given = config["model"]["init_args"]["encoder"]
    if given["class_path"].endswith(("load_vit", "load_swin")):
        kind, made = (ViT, "ViT.b16") if given["class_path"].endswith("load_vit") else (Swin, "Swin.b")
        config["model"]["init_args"]["encoder"] = {
            "class_path": f"{kind.__module__}.{made}", "dict_kwargs": given.get("dict_kwargs", {})
        }  # fmt: skip
    return run, config


@pytest.mark.parametrize("recipe", ENCODERS)
def test_a_training_has_the_papers_size_batch_and_epochs(build, recipe):
    cli = build(recipe, "train")
    module, data = cli.model, cli.datamodule
    assert sum(p.numel() for p in module.encoder.parameters()) == ENCODERS[recipe]
    classes = 21_843 if recipe == "vit_b16_in21k" else 1000
    assert module.head.weight.shape == (classes, module.encoder.dim)
    batch = data.lanes * data.rule.size
    assert batch == (4096 if recipe.startswith("vit_b16") else 1024)
    epochs = cli.trainer.max_steps * batch / IMAGENET
    if recipe == "vit_b16_in21k":
        assert epochs * IMAGENET / 14_197_122 == pytest.approx(90, rel=1e-3)
    else:
        assert epochs == pytest.approx(300, rel=1e-3)
    assert cli.trainer.precision == "bf16-mixed"
    logits = module(torch.empty(2, 3, 224, 224, device="meta"))
    assert logits.shape == (2, classes)


@pytest.mark.parametrize(
    ("recipe", "lr", "decay", "warmup_steps", "clip"),
    [("vit_b16_in1k", 3e-3, 0.3, 10_000, 1.0), ("vit_b16_in21k", 1e-3, 0.03, 10_000, 1.0)]
    + [(f"vit_deit_{size}", 1e-3, 0.05, 5 * 1251, None) for size in ("s16", "b16")]
    + [(f"swin_{size}", 1e-3, 0.05, 20 * 1251, 5.0) for size in "tsb"],
)
def test_a_training_has_the_papers_rates(build, recipe, lr, decay, warmup_steps, clip):
    cli = build(recipe, "train")
    module, trainer = cli.model, cli.trainer
    assert (module.lr, module.weight_decay, module.betas) == (lr, decay, (0.9, 0.999))
    assert module.warmup * trainer.max_steps == pytest.approx(warmup_steps, rel=1e-3)
    assert trainer.gradient_clip_val == clip
    assert module.schedule == ("linear" if recipe == "vit_b16_in21k" else "cosine")
    if not recipe.startswith("vit_b16"):
        assert (module.start * lr, module.floor * lr) == pytest.approx((1e-6, 1e-5))
        augment, erase, mix = cli.datamodule.augmentations
        assert isinstance(augment, RandAugment)
        assert (augment.n, augment.m, augment.m_std) == (2, 9.0, 0.5)
        assert isinstance(erase, RandomErasing)
        assert erase.probability == 0.25
        assert isinstance(mix, MixupOrCutMix)
        assert (mix.mixup.alpha, mix.cutmix.alpha, mix.mixup.label_smoothing) == (0.8, 1.0, 0.1)
    depths = {"swin_t": 0.2, "swin_s": 0.3, "swin_b": 0.5, "vit_deit_s16": 0.1, "vit_deit_b16": 0.1}
    assert module.encoder.arguments["drop_path"] == depths.get(recipe, 0.0)
    averaged = [callback for callback in trainer.callbacks if isinstance(callback, WeightEMA)]
    assert len(averaged) == ("deit" in recipe)


@pytest.mark.parametrize("recipe", ["vit_b16_in1k", "vit_b16_in21k", "swin_b"])
def test_fine_tuning_is_at_384_pixels_as_published(build, recipe):
    cli = build(recipe, "tune")
    module, data = cli.model, cli.datamodule
    module(torch.empty(1, 3, 384, 384, device="meta"))
    if recipe == "swin_b":
        assert sum(p.numel() for p in module.encoder.parameters()) == 86_878_584
        assert (data.lanes * data.rule.size, module.lr, module.weight_decay) == (1024, 4e-5, 1e-8)
        assert cli.trainer.max_steps * 1024 == pytest.approx(30 * IMAGENET, rel=1e-3)
        assert module.encoder.arguments["drop_path"] == 0.1
    else:
        assert sum(p.numel() for p in module.encoder.parameters()) == 85_798_656 + 768 * (24**2 - 14**2)
        assert (data.lanes * data.rule.size, module.momentum, module.weight_decay) == (512, 0.9, 0.0)
        assert (cli.trainer.max_steps, module.warmup * cli.trainer.max_steps) == (20_000, 500)


@pytest.mark.parametrize(("name", "parameters"), [("vit", 207_296), ("swin", 77_700)])
def test_the_small_pipelines_build(name, parameters, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    cli = Built(*resolved(f"pipelines/{name}.yaml", "train"), tmp_path)
    assert sum(p.numel() for p in cli.model.encoder.parameters()) == pytest.approx(parameters, rel=0.1)
    assert cli.model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 6)
