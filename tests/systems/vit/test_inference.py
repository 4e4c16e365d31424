"""Classes and features of pictures, called and by `predict`."""

from typing import Any

import numpy as np
import pytest
import torch

from mmflow.systems.vit.inference import PictureClasses, PictureFeatures
from mmflow.systems.vit.model import ViT
from mmflow.systems.vit.weights import save_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """A published classifier of three classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit"
    save_folder(ViT(16, 8, 16, 2, 2), path, torch.nn.Linear(16, 3), ["cat", "dog", "fox"])
    return path


def batch() -> dict[str, Any]:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"image": images, "valid": torch.tensor([True, False, True])}


def test_the_likeliest_classes_are_told_by_name(folder):
    model = PictureClasses(str(folder), k=2)
    images = batch()["image"]
    shares = model.head(model.encoder(images).pooled).softmax(1)
    for guesses, row in zip(model.classes(images), shares, strict=True):
        order = row.argsort(descending=True).tolist()[:2]
        assert [guess.name for guess in guesses] == [["cat", "dog", "fox"][number] for number in order]
        assert [guess.probability for guess in guesses] == pytest.approx(row[order].tolist())


def test_predict_gives_logits_and_classes_of_the_valid_rows(folder):
    model, given = PictureClasses(str(folder), k=2), batch()
    made = model.predict_step(given, 0)
    expected = model(given["image"][[0, 2]]).numpy()
    assert np.array_equal(np.stack(made["logits"]), expected)
    assert [row.tolist() for row in made["classes"]] == (-expected).argsort(1)[:, :2].tolist()
    assert model.sidecar_meta["labels"] == ["cat", "dog", "fox"]
    other = ViT(16, 8, 16, 2, 2)
    assert model.sidecar_meta["fingerprint"] != PictureFeatures(other).sidecar_meta["fingerprint"]


@pytest.mark.parametrize(
    ("layer", "tokens", "shape"), [(None, False, (16,)), ("1", False, (16,)), ("0", True, (5, 16))]
)
def test_features_are_those_of_the_layer(layer, tokens, shape):
    encoder, given = ViT(16, 8, 16, 2, 2).eval(), batch()
    model = PictureFeatures(encoder, layer, tokens, "float16")
    rows = model.predict_step(given, 0)["features"]
    assert [(row.shape, row.dtype) for row in rows] == [(shape, np.float16)] * 2
    out = encoder(given["image"])
    expected = out.pooled if layer is None else out.layers[layer] if tokens else out.layers[layer].mean(1)
    assert np.abs(rows[1] - expected[2].detach().numpy()).max() < 1e-2


def test_what_is_not_there_is_refused(folder):
    with pytest.raises(ValueError, match="k=4 of 3 classes; give at least 1 and at most all"):
        PictureClasses(str(folder), k=4)
    with pytest.raises(ValueError, match="layer='7' is none of this encoder's: 0, 1, 2"):
        PictureFeatures(ViT(16, 8, 16, 2, 2), "7")(batch()["image"])
    with pytest.raises(ValueError, match="tokens are those of a layer; name one"):
        PictureFeatures(ViT(16, 8, 16, 2, 2), tokens=True)
    with pytest.raises(ValueError, match="dtype='int8' must be float32 or float16"):
        PictureFeatures(ViT(16, 8, 16, 2, 2), dtype="int8")
