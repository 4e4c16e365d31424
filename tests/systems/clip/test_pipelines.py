"""The published recipes of CLIP say what the papers say. Nothing here takes memory."""

import sys

import pytest
import torch

from mmflow.systems.clip.tokenizer import BytePairTokenizer, SentencePieceTokenizer
from mmflow.systems.clip.training import ClipTraining
from tests.test_paper_pipelines import Built, resolved

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

RECIPES = {  # parameters, peak rate, steps
    "clip_vit_b32": (151_277_313, 5e-4, 390_625),
    "clip_vit_b16": (149_620_737, 5e-4, 390_625),
    "clip_vit_l14": (427_616_513, 4e-4, 390_625),
    "siglip_b16": (203_155_970, 1e-3, 274_658),
}


@pytest.fixture
def without_vocabularies(monkeypatch):
    """Users bring them."""
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    for kind in (BytePairTokenizer, SentencePieceTokenizer):
        monkeypatch.setattr(kind, "__init__", lambda self, path, context=0, repair=False: None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_papers_size_batch_and_schedule(recipe, tmp_path, without_vocabularies):
    name = "siglip" if recipe == "siglip_b16" else "clip"
    cli = Built(*resolved(f"pipelines/paper/{recipe}.yaml", name), tmp_path)
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    assert isinstance(module, ClipTraining)
    parameters, lr, steps = RECIPES[recipe]
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert module.similarity.objective == ("sigmoid" if name == "siglip" else "info_nce")
    assert (module.lr, trainer.max_steps, trainer.precision) == (lr, steps, "bf16-mixed")
    assert data.lanes * data.rule.size == 32_768
    if name == "clip":
        assert (module.betas, module.eps, module.weight_decay) == ((0.9, 0.98), 1e-6, 0.2)
        assert round(module.warmup * steps) == 2000
        assert steps * 32_768 == 32 * 400_000_000
    images = torch.empty(2, 3, 224, 224, device="meta")
    tokens = torch.empty(2, module.clip.text.context, dtype=torch.int64, device="meta")
    assert module.clip.image_features(images).shape == (2, module.clip.embed_dim)
    assert module.clip.text(tokens).last.shape == (2, module.clip.text.context, module.clip.text.dim)
