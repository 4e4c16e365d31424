"""Attention rollout against plain loops, and on models whose answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmflow.systems.vit.model import ViT
from mmflow.systems.vit.rollout import attention_rollout, rollout_pictures

TINY = {"image_size": (16, 24), "patch_size": 8, "dim": 8, "depth": 2, "num_heads": 2}


def vit(**arguments) -> ViT:
    torch.manual_seed(0)
    model = ViT(**TINY | arguments).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model


@torch.no_grad()
def in_loops(model: ViT, images: torch.Tensor) -> torch.Tensor:
    """(B, N, N) by the definition: attention averaged over heads, with the identity, normed, multiplied over blocks."""
    layers, result = model(images).layers, []
    for picture in range(len(images)):
        product = None
        for number, block in enumerate(model.blocks):
            x = block.attention_norm(layers[str(number)][picture])
            query, key, _ = block.attention.qkv(x).split(8, dim=-1)
            tokens = len(x)
            step = torch.zeros(tokens, tokens)
            for head in (slice(0, 4), slice(4, 8)):
                for i in range(tokens):
                    scores = torch.tensor([float(query[i, head] @ key[j, head]) / 2 for j in range(tokens)])
                    step[i] += scores.softmax(0) / 2
            step += torch.eye(tokens)
            step /= step.sum(1, keepdim=True)
            product = step if product is None else step @ product
        result.append(product)
    return torch.stack(result)


@pytest.mark.parametrize("pool", ["class", "mean", "attention"])
def test_the_rollout_is_the_product_of_all_attentions(pool):
    model, images = vit(pool=pool), torch.rand(2, 3, 16, 24)
    expected = in_loops(model, images)
    if pool == "class":
        expected = expected[:, 0, 1:]
    elif pool == "mean":
        expected = expected.mean(1)
    else:
        pooling, last = model.attention_pool.attention, model(images).last
        query, key, _ = pooling.in_proj_weight.chunk(3)
        bias_of_query, bias_of_key, _ = pooling.in_proj_bias.chunk(3)
        q, k = model.attention_pool.query[0] @ query.T + bias_of_query, last @ key.T + bias_of_key
        looks = [(q[:, head] @ k[:, :, head].transpose(1, 2) / 2).softmax(-1) for head in (slice(0, 4), slice(4, 8))]
        expected = (sum(looks) / 2 @ expected)[:, 0]
    maps = attention_rollout(model, images)
    assert maps.shape == (2, 2, 3)
    assert not maps.requires_grad
    assert torch.allclose(maps.flatten(1), expected, atol=1e-5)
    if pool != "class":
        assert maps.sum((1, 2)).tolist() == pytest.approx([1.0, 1.0])


def test_a_model_that_looks_nowhere_in_particular_looks_everywhere():
    model = vit(depth=1)
    nn.init.zeros_(model.blocks[0].attention.qkv.weight)
    nn.init.zeros_(model.blocks[0].attention.qkv.bias)
    maps = attention_rollout(model, torch.rand(1, 3, 16, 24))
    assert maps.flatten().tolist() == pytest.approx([0.5 / 7] * 6)  # half stays with the class token, 7 share the rest


def test_a_model_that_looks_at_bright_patches_has_them_in_its_map():
    """Keys are the brightness of a patch times a large number, and queries are one: all heads look at white."""
    model = vit(depth=1, eps=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patches.weight[0] = 100 / model.patches.weight[0].numel()  # white: 100 in the first dimension
        block = model.blocks[0]
        block.attention_norm.weight.fill_(1.0)
        query, key, _ = block.attention.qkv.weight.chunk(3)
        for head in (0, 4):
            block.attention.qkv.bias[head] = 10.0
            key[head, 0] = 10.0
        assert query.abs().max() == 0
    image = torch.full((1, 3, 16, 24), 0.5)  # normalised to 0
    image[:, :, 8:, 8:16] = 1.0  # row 1, column 1
    maps = attention_rollout(model, image)[0]
    assert maps[1, 1].item() == pytest.approx(0.5, abs=1e-4)
    maps[1, 1] = 0
    assert maps.abs().max() < 1e-4


def test_pictures_are_drawn_beside_their_maps(tmp_path):
    model = vit()
    rollout_pictures(model, torch.rand(2, 3, 16, 24), tmp_path / "few.png")
    rollout_pictures(model, torch.rand(9, 3, 16, 24), tmp_path / "many.png")
    few, many = (Image.open(tmp_path / f"{name}.png") for name in ("few", "many"))
    assert few.format == many.format == "PNG"
    assert many.height > 1.7 * few.height
    assert len(few.convert("RGB").getcolors(2**24)) > 500  # not blank
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.png", "many.png"]


def test_photographs_have_maps_of_their_own(real_data, tmp_path):
    torch.manual_seed(0)
    files = sorted((real_data / "flickr8k" / "Images").glob("*.jpg"))[:2]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    model = ViT.ti16(drop_path=0.1).eval()
    one, other = attention_rollout(model, images)
    assert one.shape == (14, 14)
    assert 0 < one.sum() < 1
    assert (one - other).abs().max() > 0
    rollout_pictures(model, images, tmp_path / "photographs.png")
    assert Image.open(tmp_path / "photographs.png").height > 500
