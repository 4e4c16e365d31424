"""The encoder block against torch's own, and its parts."""

import pytest
import torch
from torch import nn

from mmflow.nn.attention import SelfAttention
from mmflow.nn.masking import valid_mask
from mmflow.nn.transformer import ACTIVATIONS, Block, FeedForward, init_linears


def pair(pre_norm: bool) -> tuple[Block, nn.TransformerEncoderLayer]:
    """Our block and torch's layer with the same random weights, biases and norms, in eval mode."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        24, 4, 48, dropout=0.1, activation="gelu", norm_first=pre_norm, batch_first=True
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    block = Block(24, 4, 48, pre_norm)
    attention = theirs.self_attn
    block.attention.qkv.load_state_dict({"weight": attention.in_proj_weight, "bias": attention.in_proj_bias})
    block.attention.out.load_state_dict(attention.out_proj.state_dict())
    block.attention_norm.load_state_dict(theirs.norm1.state_dict())
    block.ffn_norm.load_state_dict(theirs.norm2.state_dict())
    block.ffn.expand.load_state_dict(theirs.linear1.state_dict())
    block.ffn.contract.load_state_dict(theirs.linear2.state_dict())
    return block.eval(), theirs.eval()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_block_equals_torchs_encoder_layer(pre_norm):
    block, theirs = pair(pre_norm)
    x = torch.randn(3, 7, 24)
    assert torch.allclose(block(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_block_equals_torchs_encoder_layer_where_keys_are_hidden(pre_norm):
    block, theirs = pair(pre_norm)
    x, valid = torch.randn(2, 7, 24), valid_mask(torch.tensor([7, 4]), 7)
    ours = block(x, valid[:, None, None])
    assert torch.allclose(ours[valid], theirs(x, src_key_padding_mask=~valid)[valid], atol=1e-5)


def test_hidden_keys_have_no_influence_and_no_gradient():
    attention = SelfAttention(16, 2)
    x = torch.randn(1, 5, 16, requires_grad=True)
    valid = valid_mask(torch.tensor([3]), 5)
    attention(x, valid[:, None, None])[:, :3].sum().backward()
    assert x.grad is not None
    assert x.grad[0, 3:].abs().max() == 0


def test_the_block_learns_under_bf16_autocast():
    block = Block(16, 2, 32, dropout=0.1, attention_dropout=0.1, ffn_dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.randn(2, 5, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_dropout_acts_in_training_only():
    block, x = Block(16, 2, 32, dropout=0.5, attention_dropout=0.5, ffn_dropout=0.5), torch.randn(2, 5, 16)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_feed_forward_of_identity_layers_is_gelu():
    ffn = FeedForward(3, 3)
    for layer in (ffn.expand, ffn.contract):
        layer.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
    assert torch.allclose(ffn(torch.tensor([-1.0, 0.0, 2.0])), torch.tensor([-0.158655, 0.0, 1.954500]), atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("gelu", 1.954500), ("gelu_tanh", 1.954598), ("quick_gelu", 2 / (1 + 2.718281828 ** (-1.702 * 2)))],
)
def test_activations_have_their_values_at_two(activation, expected):
    assert ACTIVATIONS[activation](torch.tensor(2.0)).item() == pytest.approx(expected, abs=1e-6)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation='swish' is unknown; take one of gelu, gelu_tanh, quick_gelu"):
        FeedForward(4, 8, activation="swish")


@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # the second takes the way with dropout, and drops nothing
def test_causal_tokens_see_no_later_ones(dropout):
    attention, x = SelfAttention(16, 2, dropout), torch.randn(2, 5, 16)
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = attention(x, causal=True), attention(changed, causal=True)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-2)


def test_init_linears_draws_weights_and_clears_biases():
    block = Block(128, 4, 512)
    init_linears(block, std=0.02)
    assert block.ffn.expand.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attention.qkv.bias.abs().max() == 0
    assert block.attention_norm.weight.min() == 1


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim=10 is not divisible by num_heads=4; try num_heads=2 or dim=12"):
        SelfAttention(10, 4)
