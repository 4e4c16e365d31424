"""The ViT by itself: sizes, shapes, order of patches, pools, other sizes of picture, and errors."""

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from mmflow.nn.attention import SelfAttention
from mmflow.nn.positions import sincos_2d
from mmflow.systems.vit.model import ViT

TINY = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 3, "num_heads": 2}
# Name -> parameters with a linear head over 1000 classes at 224 pixels, and 10^9 multiply-adds with that head.
PUBLISHED = {
    "ti16": (5_717_416, 1.25),
    "s32": (22_878_952, 1.14),
    "s16": (22_050_664, 4.60),
    "b32": (88_224_232, 4.41),
    "b16": (86_567_656, 17.56),
    "b8": (86_576_872, 78.15),
    "l32": (306_535_400, 15.38),
    "l16": (304_326_632, 61.56),
    "h14": (632_045_800, 167.30),
}


def tiny(**arguments) -> ViT:
    torch.manual_seed(0)
    return ViT(**TINY | arguments).eval()


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    with torch.device("meta"):
        vit = getattr(ViT, name)()
    parameters, gmacs = PUBLISHED[name]
    dim, depth, patch, patches = vit.dim, len(vit.blocks), vit.patch_size, vit.grid[0] * vit.grid[1]
    closed_form = 3 * patch**2 * dim + 2 * dim + (patches + 1) * dim + depth * (12 * dim**2 + 13 * dim) + 2 * dim
    assert size(vit) == closed_form == parameters - 1000 * (dim + 1)
    assert f"{size(vit):,} parameters" in getattr(ViT, name).__doc__
    assert (vit.macs + 1000 * dim) / 1e9 == pytest.approx(gmacs, abs=0.006)


@pytest.mark.parametrize(("name", "parameters", "gmacs"), [("b16", 86_859_496, 55.48), ("l16", 304_715_752, 191.07)])
def test_published_sizes_at_384_pixels(name, parameters, gmacs):
    with torch.device("meta"):
        vit = getattr(ViT, name)(image_size=384)
    assert size(vit) + 1000 * (vit.dim + 1) == parameters
    assert (vit.macs + 1000 * vit.dim) / 1e9 == pytest.approx(gmacs, abs=0.006)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_and_their_arguments_can_be_named_in_a_config(name):
    parser = ArgumentParser()
    parser.add_argument("--encoder", type=nn.Module)
    path, arguments = f"mmflow.systems.vit.model.ViT.{name}", {"image_size": [224, 448], "drop_path": 0.1}
    with torch.device("meta"):
        vit = parser.instantiate(parser.parse_object({"encoder": {"class_path": path, "init_args": arguments}})).encoder
    assert (vit.image_size, vit.arguments["drop_path"]) == ((224, 448), 0.1)
    with torch.device("meta"):
        assert (vit.dim, vit.patch_size) == (getattr(ViT, name)().dim, getattr(ViT, name)().patch_size)


@pytest.mark.parametrize(("pool", "tokens"), [("class", 17), ("mean", 16), ("attention", 16)])
def test_every_layer_comes_by_name(pool, tokens):
    vit = tiny(pool=pool)
    last, pooled, layers = vit(torch.rand(2, 3, 32, 32))
    assert last.shape == (2, tokens, 16)
    assert pooled.shape == (2, 16)
    assert list(layers) == ["0", "1", "2", "3"]
    assert all(layer.shape == last.shape for layer in layers.values())
    assert torch.equal(vit.norm(layers["3"]), last)
    assert torch.equal(vit.blocks[1](layers["1"]), layers["2"])
    if pool == "class":
        assert torch.equal(pooled, last[:, 0])
    if pool == "mean":
        assert torch.equal(pooled, last.mean(1))


def test_patches_are_embedded_row_by_row_with_their_own_position_after_the_class_token():
    vit = tiny(image_size=(16, 24), depth=1)
    assert (vit.grid, vit.positions.shape) == ((2, 3), (1, 7, 16))
    image = torch.zeros(1, 3, 16, 24)
    image[:, :, 8:16, 8:16] = 1.0  # row 1, column 1
    change = (vit(image).layers["0"] - vit(torch.zeros(1, 3, 16, 24)).layers["0"]).abs().sum(-1)[0]
    assert change.nonzero().tolist() == [[1 + 1 * 3 + 1]]
    tokens = vit(image).layers["0"]
    patch = vit.patches.weight.sum((1, 2, 3)) + vit.patches.bias  # of ones, which is what white is normalised to
    assert torch.allclose(tokens[0, 5], patch + vit.positions[0, 5], atol=1e-5)
    assert torch.allclose(tokens[0, 0], vit.class_token[0, 0] + vit.positions[0, 0])


def test_the_place_of_a_patch_matters():
    vit, image = tiny(), torch.rand(1, 3, 32, 32)
    assert (vit(image).pooled - vit(image.roll(8, dims=3)).pooled).abs().max() > 1e-3
    nn.init.zeros_(vit.positions)
    assert (vit(image).pooled - vit(image.roll(8, dims=3)).pooled).abs().max() < 1e-5


def test_pictures_are_normalised_by_the_encoder():
    grey = torch.full((1, 3, 32, 32), 127 / 255)
    vit = tiny(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    seen = []
    vit.patches.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, :, 0, 0].tolist()))
    vit(grey)
    assert seen[0] == pytest.approx([0.0569, 0.1877, 0.4091], abs=1e-4)
    assert not {"mean", "std"} & vit.state_dict().keys()


def test_the_attention_pool_is_a_query_to_all_tokens_and_a_layer():
    vit = tiny(pool="attention")
    pool, x = vit.attention_pool, torch.randn(2, 16, 16)
    query, key, value = pool.attention.in_proj_weight.chunk(3)
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        scores = (pool.query[0] @ query.T)[:, head] @ (x @ key.T)[:, :, head].transpose(1, 2) / 8**0.5
        heads.append(scores.softmax(-1) @ (x @ value.T)[:, :, head])
    mixed = pool.attention.out_proj(torch.cat(heads, -1))
    assert torch.allclose(pool(x), (mixed + pool.ffn(pool.norm(mixed)))[:, 0], atol=1e-5)


def test_pre_logits_and_a_norm_before_the_blocks():
    vit, images = tiny(pre_logits=True, norm_before=True, patch_bias=False), torch.rand(2, 3, 32, 32)
    last, pooled, layers = vit(images)
    assert torch.allclose(pooled, vit.pre_logits(last[:, 0]).tanh())
    assert torch.allclose(layers["0"].mean(-1), torch.zeros(2, 17), atol=1e-6)  # as normed with a fresh scale
    assert vit.patches.bias is None


def test_queries_keys_and_values_are_drawn_one_by_one():
    vit = tiny(dim=256, depth=1)
    bound = (6 / 512) ** 0.5
    for part in vit.blocks[0].attention.qkv.weight.chunk(3):
        assert part.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert vit.blocks[0].ffn.expand.weight.abs().max().item() == pytest.approx((6 / 1280) ** 0.5, rel=1e-3)
    assert vit.patches.weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.03)
    assert vit.class_token.abs().max() == vit.patches.bias.abs().max() == 0
    assert 0 < vit.blocks[0].ffn.expand.bias.abs().max() < 1e-5
    assert vit.positions.std().item() == pytest.approx(0.02, rel=0.05)


def test_drop_path_rises_linearly_and_keeps_the_mean_of_each_sample():
    vit = tiny(drop_path=0.3)
    assert [block.drop_path.p for block in vit.blocks] == pytest.approx([0.0, 0.15, 0.3])
    branch = vit.blocks[2].drop_path.train()
    draws = torch.stack([branch(torch.ones(8, 4, 4)) for _ in range(2000)])  # (2000, B, 4, 4)
    assert draws.mean().item() == pytest.approx(1.0, rel=0.02)
    assert torch.equal(draws[:, :, :1, :1].expand_as(draws), draws)  # all of a sample together
    assert (draws[..., 0, 0].var(1) > 0).float().mean() > 0.9  # and samples of a batch apart
    assert draws.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


def test_dropout_acts_in_training_only():
    vit, images = tiny(dropout=0.5), torch.rand(2, 3, 32, 32)
    assert torch.equal(vit(images).pooled, vit(images).pooled)
    vit.train()
    assert not torch.equal(vit(images).pooled, vit(images).pooled)


# other sizes of picture


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_resized_encodes_another_size_and_survives_a_save(pool, tmp_path):
    vit = tiny(pool=pool)
    for other_size in (48, (24, 40)):
        other = vit.resized(other_size)
        assert not other.training
        down, across = other.image_size
        images = torch.rand(2, 3, down, across)
        torch.save(other.state_dict(), tmp_path / "vit.pt")
        again = ViT(**other.arguments).eval()
        again.load_state_dict(torch.load(tmp_path / "vit.pt"))
        assert torch.equal(again(images).pooled, other(images).pooled)
        assert torch.equal(other.patches.weight, vit.patches.weight)
        if pool == "class":
            assert torch.equal(other.positions[:, 0], vit.positions[:, 0])


def test_resized_to_the_same_size_is_a_copy():
    vit, images = tiny(), torch.rand(2, 3, 32, 32)
    other = vit.resized(32)
    assert torch.equal(vit(images).pooled, other(images).pooled)
    with torch.no_grad():
        other.positions.zero_()
    assert vit.positions.abs().max() > 0


def test_fixed_positions_are_computed_anew_for_another_size_and_not_trained():
    vit = tiny(positions="sincos")
    other = vit.resized((16, 40))
    assert torch.equal(other.positions[0, 1:], sincos_2d(2, 5, 16))
    assert other.positions[0, 0].abs().max() == 0
    other(torch.rand(1, 3, 16, 40)).pooled.sum().backward()
    assert other.positions.grad is None
    assert other.class_token.grad is not None


def test_resized_keeps_type_and_mode():
    other = tiny().train().bfloat16().resized(16)
    assert other.training
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}


# where it runs


def test_it_trains_under_bf16_autocast():
    vit = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        last, pooled, _ = vit(torch.rand(2, 3, 32, 32))
        pooled.square().mean().backward()
    assert last.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in vit.parameters())


def test_an_empty_batch_passes():
    assert tiny()(torch.rand(0, 3, 32, 32)).last.shape == (0, 17, 16)


@pytest.mark.parametrize("pool", ["class", "attention"])
def test_it_compiles_as_one_graph(pool):
    vit, images = tiny(pool=pool, depth=1), torch.rand(2, 3, 32, 32)
    compiled = torch.compile(vit, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(images).pooled, vit(images).pooled, atol=1e-5)


def test_attention_weights_are_those_that_forward_uses():
    torch.manual_seed(0)
    attention, x = SelfAttention(16, 2), torch.randn(2, 5, 16)
    weights = attention.weights(x)
    assert weights.shape == (2, 2, 5, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 5))
    value = attention.qkv(x)[:, :, 32:].view(2, 5, 2, 8).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).reshape(2, 5, 16)
    assert torch.allclose(attention.out(mixed), attention(x), atol=1e-6)


# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, r"image_size=30 is not divisible by patch_size=8; take pictures of 32 x 32 pixels"),
        ({"image_size": (32, 20)}, r"image_size=\(32, 20\) .* take pictures of 32 x 16 pixels"),
        ({"image_size": 4}, "take pictures of 8 x 8 pixels"),
        ({"pool": "max"}, "pool='max' is unknown; take one of class, mean, attention"),
        ({"positions": "rotary"}, "positions='rotary' is unknown; take learned or sincos"),
        ({"num_heads": 3}, "dim=16 is not divisible by num_heads=3"),
        ({"activation": "relu"}, "activation='relu' is unknown; take one of gelu"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\), .* give three numbers each"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"drop_path": 1.0}, "drop_path=1.0 is a probability"),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViT(**TINY | arguments)


@pytest.mark.parametrize("shape", [(1, 3, 32, 40), (1, 1, 32, 32), (3, 32, 32), (1, 32, 32, 3)])
def test_pictures_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"this encoder takes \(B, 3, 32, 32\)"):
        tiny()(torch.zeros(shape))


def test_bytes_are_an_error():
    with pytest.raises(ValueError, match=r"images are torch.uint8; give floating-point RGB in \[0, 1\]"):
        tiny()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_resized_to_a_size_that_no_patch_divides_is_an_error():
    with pytest.raises(ValueError, match="image_size=36 is not divisible by patch_size=8"):
        tiny().resized(36)
