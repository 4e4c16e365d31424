"""CLIP: published sizes, where texts are pooled, and what its two towers share."""

import math

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser

from mmflow.nn.contrastive import Similarity
from mmflow.systems.clip.model import CLIP, TextTransformer, init_vision
from mmflow.systems.vit.model import ViT

END = 98


def text_tower(**changes):
    return TextTransformer(
        **{"vocab_size": 99, "context": 12, "dim": 32, "depth": 2, "num_heads": 2, "end_id": END, **changes}
    )


def tiny(**changes):
    torch.manual_seed(0)
    vision = ViT(16, 8, 24, 1, 2, norm_before=True, patch_bias=False)
    return CLIP(vision, text_tower(), **{"embed_dim": 20, **changes})


@pytest.mark.parametrize(
    ("name", "total", "vision"),
    [
        ("vit_b32", 151_277_313, 87_849_216),
        ("vit_b16", 149_620_737, 86_192_640),
        ("vit_l14", 427_616_513, 303_966_208),
        ("vit_l14_336", 427_944_193, 304_293_888),
        ("siglip_b16", 203_155_970, 92_884_224),
    ],
)
def test_published_sizes(name, total, vision):
    with torch.device("meta"):
        clip = getattr(CLIP, name)()
    of_vision = [*clip.vision.parameters(), *clip.image_projection.parameters()]
    assert sum(p.numel() for p in clip.parameters()) == total
    assert sum(p.numel() for p in of_vision) == vision
    activations = {tower.arguments["activation"] for tower in (clip.vision, clip.text)}
    assert activations == {"gelu_tanh" if name == "siglip_b16" else "quick_gelu"}


def test_multiplications_are_those_of_the_paper_s_towers():
    with torch.device("meta"):
        clip = CLIP.vit_b32()
    assert clip.vision.macs + 768 * 512 == pytest.approx(4.41e9, rel=2e-3)
    assert clip.text.macs + 512 * 512 == pytest.approx(2.98e9, rel=2e-3)


def test_published_sizes_take_what_differs_between_checkpoints():
    vision, text = {"image_size": 64, "drop_path": 0.1}, {"vocab_size": 600, "context": 20, "end_id": 599}
    with torch.device("meta"):
        clip = CLIP.vit_b32("gelu", vision, text, Similarity("sigmoid"))
    assert clip.text.arguments["activation"] == clip.vision.arguments["activation"] == "gelu"
    assert clip.vision.grid == (2, 2)
    assert clip.text.positions.shape == (20, 512)
    assert clip.vision.arguments["drop_path"] == 0.1
    assert clip.similarity.objective == "sigmoid"
    with torch.device("meta"), pytest.raises(ValueError, match="end_id=49407 is no token of a vocabulary of 600"):
        CLIP.vit_b32(text={"vocab_size": 600})


def test_published_sizes_can_be_named_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--clip", type=CLIP)
    settings = {"activation": "gelu", "text": {"vocab_size": 600, "end_id": 599}}
    config = {"class_path": "mmflow.systems.clip.model.CLIP.vit_b32", "init_args": settings}
    with torch.device("meta"):
        clip = parser.instantiate_classes(parser.parse_object({"clip": config})).clip
    assert clip.text.tokens.weight.shape == (600, 512)


def test_initial_weights_have_the_sizes_of_openai_s_code():
    torch.manual_seed(0)
    tower = text_tower(dim=256, depth=4, num_heads=4)
    block = tower.blocks[1]
    residual = 256**-0.5 * 8**-0.5
    expected = {
        tower.tokens.weight: 0.02,
        tower.positions: 0.01,
        block.attention.qkv.weight: 256**-0.5,
        block.attention.out.weight: residual,
        block.ffn.expand.weight: 512**-0.5,
        block.ffn.contract.weight: residual,
    }
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert not block.ffn.expand.bias.any()
    vision = ViT(64, 8, 256, 4, 4)
    init_vision(vision)
    for weight, std in {
        vision.class_token: 256**-0.5,
        vision.positions: 256**-0.5,
        vision.blocks[0].attention.out.weight: residual,
    }.items():
        assert weight.std().item() == pytest.approx(std, rel=0.15)
    clip = CLIP(vision, tower, 64)
    for projection in (clip.image_projection, clip.text_projection):
        assert projection.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)


# texts


def test_what_follows_the_end_of_a_text_does_not_matter():
    tower = text_tower().eval()
    text = torch.tensor([[97, 5, 6, END]])
    alone = tower(text).pooled
    for pad in (0, END, 42):
        padded = torch.cat([text, torch.full((1, 8), pad)], dim=1)
        torch.testing.assert_close(tower(padded).pooled, alone, atol=1e-6, rtol=0)


def test_each_text_is_pooled_at_its_own_first_end():
    tower = text_tower().eval()
    texts = torch.tensor([[97, END, 5, END, 0], [97, 1, 2, 3, END]])
    output = tower(texts)
    assert torch.equal(output.pooled, torch.stack([output.last[0, 1], output.last[1, 4]]))
    assert list(output.layers) == ["0", "1", "2"]
    assert torch.equal(tower.norm(output.layers["2"]), output.last)


def test_a_token_sees_only_those_before_it_unless_told():
    for causal in (True, False):
        tower = text_tower(causal=causal).eval()
        texts = torch.tensor([[97, 1, 2, END], [97, 1, 3, END]])
        last = tower(texts).last
        assert torch.allclose(last[0, :2], last[1, :2], atol=1e-6) == causal
        assert not torch.allclose(last[0, 2:], last[1, 2:], atol=1e-3)


def test_siglip_pools_the_last_token_and_wants_it_there():
    tower = text_tower(causal=False, pool="last").eval()
    full = torch.randint(0, 97, (2, 12))
    output = tower(full)
    assert torch.equal(output.pooled, output.last[:, -1])
    with pytest.raises(ValueError, match="texts of 5 tokens must be padded to context=12"):
        tower(full[:, :5])


def test_texts_and_settings_that_cannot_be():
    with pytest.raises(ValueError, match="texts of 13 tokens are longer than context=12; truncate them"):
        text_tower()(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="pool='mean' is unknown; take one of end, last"):
        text_tower(pool="mean")
    with pytest.raises(ValueError, match="end_id=99 is no token of a vocabulary of 99"):
        text_tower(end_id=99)


# both


def test_embeddings_have_length_1_and_logits_are_scaled_cosines():
    clip = tiny().eval()
    images, texts = torch.rand(3, 3, 16, 16), torch.tensor([[97, 1, END], [97, 2, END]])
    u, v = clip.encode_image(images), clip.encode_text(texts)
    assert u.shape == (3, 20)
    assert torch.allclose(u.norm(dim=1), torch.ones(3))
    assert torch.allclose(u, F.normalize(clip.image_features(images), dim=1))
    torch.testing.assert_close(clip(images, texts), u @ v.T / 0.07)


def test_embeddings_are_normalised_in_fp32_under_autocast():
    clip = tiny().eval()
    images, texts = torch.rand(3, 3, 16, 16), torch.tensor([[97, 1, END], [97, 2, END]])
    with torch.autocast("cpu", torch.bfloat16):
        assert clip.image_features(images).dtype == torch.bfloat16
        u, logits = clip.encode_image(images), clip(images, texts)
    assert u.dtype == logits.dtype == torch.float32
    assert torch.allclose(u.norm(dim=1), torch.ones(3), atol=1e-6)


def test_without_a_common_width_pictures_stay_as_wide_as_they_are():
    clip = tiny(embed_dim=None, similarity=Similarity("sigmoid"))
    assert clip.embed_dim == 24
    assert clip.text_projection.weight.shape == (24, 32)
    assert not clip.text_projection.bias.any()
    assert clip.image_features(torch.rand(2, 3, 16, 16)).shape == (2, 24)


@pytest.mark.parametrize(("objective", "scale"), [("info_nce", 1 / 0.07), ("sigmoid", 10.0)])
def test_32_pairs_are_told_apart_in_some_steps(objective, scale):
    torch.manual_seed(0)
    clip = CLIP(ViT(16, 8, 32, 1, 2, norm_before=True), text_tower(), 32, Similarity(objective))
    images = torch.rand(32, 3, 16, 16)
    texts = torch.stack([torch.tensor([97, n, 32 - n, END]) for n in range(32)])
    assert clip.similarity.log_scale.exp().item() == pytest.approx(scale, rel=1e-6)
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        u, v = clip.encode_image(images), clip.encode_text(texts)
        loss = clip.similarity.loss_sum(u, v, u, v, 0) / 32
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip.similarity.clamp()
    if objective == "info_nce":
        assert losses[0] == pytest.approx(math.log(32), abs=1.5)
    assert losses[-1] < losses[0] / 8
    assert ((u @ v.T).argmax(1) == torch.arange(32)).float().mean() == 1
