"""HuBERT's modules against transformers, torchaudio and closed forms."""

import itertools
import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmflow.nn.encoders import AudioEncoder
from mmflow.nn.masking import span_mask, valid_mask
from mmflow.systems.hubert.model import (
    FRAME_RATE,
    HOP,
    KERNELS,
    RECEPTIVE_FIELD,
    STRIDES,
    ConvEncoder,
    ConvPositions,
    CTCHead,
    Hubert,
    HubertPretrainingHead,
    masked_prediction_loss,
    normalize_utterance,
    num_frames,
)
from mmflow.systems.hubert.weights import from_transformers, to_transformers

os.environ["HF_HUB_OFFLINE"] = "1"
STYLES = [("group", False), ("layer", True)]  # Base; Large and X-Large


def tiny(conv_norm: str = "group", pre_norm: bool = False, **options) -> Hubert:
    """A small Hubert without dropout whose biases and norms are random too, in eval mode."""
    torch.manual_seed(0)
    quiet = dict.fromkeys(("dropout", "attention_dropout", "input_dropout", "layer_drop"), 0.0)
    shape = {"dim": 64, "depth": 4, "num_heads": 4, "ffn_dim": 96, "conv_dim": 32}
    shape |= {"position_kernel": 16, "position_groups": 4, "feature_grad_mult": 1.0}
    hubert = Hubert(**(shape | quiet | {"conv_norm": conv_norm, "pre_norm": pre_norm} | options))
    return shaken(hubert).eval()


def shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip(
        "mmflow.torchaudio_cpu", exc_type=ImportError
    )  # lets transformers see a torchaudio that imports
    return pytest.importorskip("transformers", exc_type=ImportError)


def their_config(transformers, hubert: Hubert, **options):
    return transformers.HubertConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=hubert.conv.norm,
        do_stable_layer_norm=hubert.pre_norm,
        feat_proj_dropout=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        attn_implementation="eager",
        **options,
    )


def theirs(transformers, hubert: Hubert) -> nn.Module:
    model = transformers.HubertModel(their_config(transformers, hubert))
    model.load_state_dict(to_transformers(hubert.state_dict()))
    return model.eval()


# shapes and sizes


def test_constants_follow_from_the_convolutions():
    assert (HOP, RECEPTIVE_FIELD, FRAME_RATE) == (320, 400, 50)


def test_frames_of_known_lengths():
    assert [num_frames(n) for n in (0, 399, 400, 719, 720, 16_000, 250_000)] == [0, 0, 1, 1, 2, 49, 781]
    assert num_frames(torch.tensor([0, 399, 400, 480_000])).tolist() == [0, 0, 1, 1499]


def test_frames_equal_the_recursion_through_the_seven_layers_at_every_length():
    for samples in range(400, 6000):
        frames = samples
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            frames = (frames - kernel) // stride + 1
        assert num_frames(samples) == frames


@pytest.mark.parametrize(
    ("size", "backbone", "unit_dim", "with_head"),
    [
        ("base", 94_371_712, 256, 94_697_600),
        ("large", 315_435_136, 768, 316_609_408),
        ("xlarge", 962_493_824, 1024, 964_321_664),
    ],
)
def test_the_sizes_have_the_published_numbers_of_parameters(size, backbone, unit_dim, with_head):
    with torch.device("meta"):
        hubert = getattr(Hubert, size)()
        head = HubertPretrainingHead(hubert.dim, [504], unit_dim)
    count = sum(p.numel() for p in hubert.parameters())
    assert count == backbone
    assert count + sum(p.numel() for p in head.parameters()) == with_head


@pytest.mark.parametrize(("norm", "count"), [("group", 4_200_448), ("layer", 4_206_592)])
def test_the_conv_encoders_have_the_published_numbers_of_parameters(norm, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in ConvEncoder(512, norm).parameters()) == count


@pytest.mark.parametrize(("dim", "count"), [(768, 4_719_488), (1024, 8_389_760), (1280, 13_108_608)])
def test_the_positional_convolutions_have_the_published_numbers_of_parameters(dim, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in ConvPositions(dim).parameters()) == count


def test_shapes_are_known_on_the_meta_device():
    with torch.device("meta"):
        out = Hubert.base()(torch.empty(2, 16_000))
        logits = HubertPretrainingHead(768, [504])(out.last)[0]
    assert out.last.shape == (2, 49, 768)
    assert logits.shape == (2, 49, 504)
    assert list(out.layers) == [str(k) for k in range(13)]


def test_the_initial_weights_have_the_published_spread():
    hubert = Hubert(depth=1)
    taps = hubert.positions.conv.parametrizations.weight
    assert taps.original0.shape == (1, 1, 128)
    assert taps.original1.shape == (768, 48, 128)
    assert taps.original1.std().item() == pytest.approx(math.sqrt(4 / (128 * 768)), rel=0.01)
    assert hubert.conv.convs[1].weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 3)), rel=0.01)
    assert hubert.blocks[0].ffn.expand.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert 0 <= hubert.mask_embedding.min() < 0.1 < 0.9 < hubert.mask_embedding.max() <= 1


def test_hubert_keeps_the_promise_of_an_audio_encoder():
    encoder: AudioEncoder = tiny()
    encoding = encoder(torch.randn(2, 4000), torch.tensor([4000, 2000]))
    assert encoding.last.shape == (2, 12, encoder.dim)
    assert encoding.frame_lengths.tolist() == [12, 6]
    assert encoding.layers["2"].shape == (2, 12, encoder.dim)


# agreement with other implementations


@pytest.mark.parametrize(("conv_norm", "pre_norm"), STYLES)
def test_every_layer_equals_transformers(transformers, conv_norm, pre_norm):
    hubert = tiny(conv_norm, pre_norm)
    audio = torch.randn(2, 8000)
    with torch.no_grad():
        ours, other = hubert(audio), theirs(transformers, hubert)(audio, output_hidden_states=True)
    assert len(ours.layers) == len(other.hidden_states) == 5
    for k, hidden in enumerate(other.hidden_states):
        assert (ours.layers[str(k)] - hidden).abs().max() < 1e-5
    assert (ours.last - other.last_hidden_state).abs().max() < 1e-5
    assert ours.last.abs().mean() > 0.3


@pytest.mark.parametrize(("conv_norm", "pre_norm"), STYLES)
def test_in_double_precision_nothing_but_rounding_is_left_between_us_and_transformers(
    transformers, conv_norm, pre_norm
):
    hubert = tiny(conv_norm, pre_norm)
    other, audio = theirs(transformers, hubert).double(), torch.randn(2, 8000).double()
    with torch.no_grad():
        ours, expected = hubert.double()(audio), other(audio, output_hidden_states=True)
    for k, hidden in enumerate(expected.hidden_states):
        assert (ours.layers[str(k)] - hidden).abs().max() < 1e-12


def test_every_layer_of_a_padded_batch_equals_transformers_with_its_attention_mask(transformers):
    hubert = tiny("layer", True)
    lengths = torch.tensor([9000, 5300, 401])
    audio = torch.randn(3, 9000) * valid_mask(lengths, 9000)
    valid = valid_mask(num_frames(lengths), num_frames(9000))
    with torch.no_grad():
        ours = hubert(audio, lengths)
        other = theirs(transformers, hubert)(
            audio, attention_mask=valid_mask(lengths, 9000).long(), output_hidden_states=True
        )
    for k, hidden in enumerate(other.hidden_states):
        assert (ours.layers[str(k)] - hidden)[valid].abs().max() < 1e-5


@pytest.mark.parametrize(("conv_norm", "pre_norm"), STYLES)
def test_gradients_of_inputs_and_parameters_equal_transformers(transformers, conv_norm, pre_norm):
    hubert = tiny(conv_norm, pre_norm)
    other = theirs(transformers, hubert)
    audio = torch.randn(2, 6000)
    weights = torch.randn(2, num_frames(6000), 64)  # a loss that treats every output differently
    mask = span_mask(torch.full((2,), num_frames(6000)), span=3, generator=torch.Generator().manual_seed(0))
    grads = []
    for model, options, last in (
        (hubert, {"mask": mask}, lambda out: out.last),
        (other, {"mask_time_indices": mask}, lambda out: out.last_hidden_state),
    ):
        x = audio.clone().requires_grad_()
        (last(model(x, **options)) * weights).sum().backward()
        grads.append((x.grad, gradients(model)))
    (our_input, ours), (their_input, their_grads) = grads
    assert (our_input - their_input).abs().max() < 1e-5 * their_input.abs().max().clamp(min=1)
    their_grads = from_transformers(their_grads)
    for name, grad in ours.items():
        assert (grad - their_grads[name]).abs().max() < 2e-5 * grad.abs().max().clamp(min=1), name


@pytest.mark.parametrize("bias", [False, True])
def test_the_folded_group_norm_equals_torchs_even_for_weak_high_frequencies_beside_a_loud_hum(bias):
    torch.manual_seed(0)
    ours = shaken(ConvEncoder(8, "group", bias))
    with torch.no_grad():  # one kernel takes second differences, to which the hum is almost silent
        ours.convs[0].weight[0, 0] = torch.tensor([0.0] * 3 + [1.0, -2.0, 1.0] + [0.0] * 4)
    hum = 0.5 * torch.sin(2 * math.pi * 60 * torch.arange(8000) / 16_000)
    audio = (0.3 + hum + 1e-3 * torch.randn(2, 8000)).requires_grad_()
    conv, norm = ours.convs[0], ours.norms[0]
    bias_of = None if conv.bias is None else conv.bias.double()
    expected = F.group_norm(
        F.conv1d(audio[:, None].double(), conv.weight.double(), bias_of, 5),
        8, norm.weight.double(), norm.bias.double(),
    ).transpose(1, 2)  # fmt: skip
    folded = ours._convolve_and_norm(audio, None)
    assert (folded - expected).abs().max() < 5e-5  # what fp32 keeps of the hum's second difference
    weights = torch.randn_like(folded)
    parameters = [audio, conv.weight, norm.weight, norm.bias, *([conv.bias] if bias else [])]
    ours_grads = torch.autograd.grad((folded * weights).sum(), parameters)
    for got, wanted in zip(ours_grads, torch.autograd.grad((expected * weights).sum(), parameters), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-3 * max(1.0, wanted.abs().max().item()))


def test_ctc_logits_equal_transformers(transformers):
    hubert, head = tiny(), shaken(CTCHead(64, 32, dropout=0.5)).eval()
    other = transformers.HubertForCTC(their_config(transformers, hubert, vocab_size=32)).eval()
    state = to_transformers(hubert.state_dict(), prefix="hubert.")
    state |= {f"lm_head.{leaf}": value for leaf, value in head.projection.state_dict().items()}
    other.load_state_dict(state)
    audio = torch.randn(2, 6000)
    with torch.no_grad():
        assert (head(hubert(audio).last) - other(audio).logits).abs().max() < 1e-5


def torchaudio_names(hubert: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of torchaudio's HuBERTPretrainModel."""
    state = {f"wav2vec2.{key}": value for key, value in to_transformers(hubert).items()}
    state = {key.replace("2.encoder.", "2.encoder.transformer."): value for key, value in state.items()}
    state = {key.replace("2.feature_proj", "2.encoder.feature_proj"): value for key, value in state.items()}
    state["mask_generator.mask_embedding"] = state.pop("wav2vec2.masked_spec_embed")
    state["logit_generator.label_embeddings"] = head["units.0"]
    state["logit_generator.final_proj.weight"] = head["projection.weight"]
    state["logit_generator.final_proj.bias"] = head["projection.bias"]
    return state


@pytest.mark.parametrize(("conv_norm", "pre_norm"), STYLES)
def test_pretraining_loss_penalty_and_gradients_equal_torchaudio(conv_norm, pre_norm):
    torchaudio = pytest.importorskip("mmflow.torchaudio_cpu", exc_type=ImportError).torchaudio
    hubert, head = tiny(conv_norm, pre_norm, feature_grad_mult=0.1), shaken(HubertPretrainingHead(64, [20], 24))
    layers = [(32, kernel, stride) for kernel, stride in zip(KERNELS, STRIDES, strict=True)]
    their_masks = (0.8, "static", 0.0, 10, False, 1, 0.0, "static", 0.0, 10, False, 1)  # replaced by ours below
    other = torchaudio.models.hubert_pretrain_model(
        f"{conv_norm}_norm", layers, False, 64, 0.0, 16, 4, 4, 4, 0.0, 96, 0.0, 0.0, pre_norm, 0.0,
        *their_masks, False, False, 20, 24, 0.1,
    ).eval()  # fmt: skip
    other.load_state_dict(torchaudio_names(hubert.state_dict(), head.state_dict()))

    frames = num_frames(9000)
    audio, labels = torch.randn(3, 9000), torch.randint(20, (3, frames))
    mask = span_mask(torch.full((3,), frames), span=4, generator=torch.Generator().manual_seed(0))
    their_vector = other.mask_generator.mask_embedding
    other.mask_generator.forward = lambda x, padding: (torch.where(mask[..., None], their_vector, x), mask)
    logits_masked, logits_unmasked, their_penalty = other(audio, labels)
    # Column 0 of their logits is the label's own, so their targets are all 0.
    their_masked, their_unmasked = (
        F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")
        for logits in (logits_masked, logits_unmasked)
    )
    out = hubert(audio, mask=mask)
    sums = masked_prediction_loss(head(out.last)[0], labels, mask)
    penalty = out.feature_penalty / out.frame_lengths.sum()
    assert (sums.masked_count, sums.unmasked_count) == (len(logits_masked), len(logits_unmasked))
    assert sums.masked_nll.item() == pytest.approx(their_masked.item(), rel=1e-5)
    assert sums.unmasked_nll.item() == pytest.approx(their_unmasked.item(), rel=1e-5)
    assert penalty.item() == pytest.approx(their_penalty.item(), rel=1e-5)

    (sums.masked_nll + 10 * penalty * sums.masked_count).backward()
    (their_masked + 10 * their_penalty * len(logits_masked)).backward()
    ours, theirs = torchaudio_names(gradients(hubert), gradients(head)), gradients(other)
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        assert (grad - theirs[name]).abs().max() < 2e-5 * grad.abs().max().clamp(min=1), name


# padding, normalisation, eval mode: what silently spoils features


@pytest.mark.parametrize(("conv_norm", "pre_norm"), STYLES)
def test_a_padded_utterance_gives_what_it_gives_alone(conv_norm, pre_norm):
    hubert = tiny(conv_norm, pre_norm, normalize=True)
    lengths = torch.tensor([16_000, 9000, 9319])
    audio = torch.randn(3, 16_000) * valid_mask(lengths, 16_000)
    with torch.no_grad():
        together = hubert(audio, lengths)
        for row, samples in enumerate(lengths.tolist()):
            alone = hubert(audio[row : row + 1, :samples])
            frames = num_frames(samples)
            assert together.frame_lengths[row] == alone.frame_lengths[0] == frames
            for name, layer in alone.layers.items():
                assert (together.layers[name][row, :frames] - layer[0]).abs().max() < 1e-5


@pytest.mark.parametrize(("conv_norm", "pre_norm"), STYLES)
def test_what_stands_in_the_padding_has_no_influence(conv_norm, pre_norm):
    hubert = tiny(conv_norm, pre_norm, normalize=True)
    lengths, audio = torch.tensor([8000, 5000]), torch.randn(2, 8000)
    noisy = audio.masked_fill(~valid_mask(lengths, 8000), 1e4)
    with torch.no_grad():
        clean, dirty = hubert(audio, lengths), hubert(noisy, lengths)
    assert torch.equal(clean.last[1, : num_frames(5000)], dirty.last[1, : num_frames(5000)])
    assert torch.equal(clean.feature_penalty, dirty.feature_penalty)
    assert dirty.last.isfinite().all()


def test_lengths_that_pad_nothing_change_nothing():
    hubert, audio = tiny(), torch.randn(2, 5000)
    with torch.no_grad():
        assert torch.equal(hubert(audio).last, hubert(audio, torch.tensor([5000, 5000])).last)


def test_features_in_eval_mode_are_the_same_bits_every_time():
    hubert = Hubert(64, 2, 4, 96, 32, position_kernel=16, position_groups=4, layer_drop=0.5)
    audio = torch.randn(1, 4000)
    assert not torch.equal(hubert(audio).last, hubert(audio).last)
    hubert.eval()
    assert torch.equal(hubert(audio).last, hubert(audio).last)


def test_normalising_makes_the_level_and_the_offset_of_a_recording_irrelevant():
    audio = torch.randn(1, 8000)
    normalising, plain = tiny("layer", True, normalize=True), tiny("layer", True)
    with torch.no_grad():
        assert torch.allclose(normalising(audio).last, normalising(0.5 * audio + 0.2).last, atol=1e-4)
        assert not torch.allclose(plain(audio).last, plain(0.5 * audio + 0.2).last, atol=1e-2)
        assert torch.allclose(normalising(audio).last, plain(normalize_utterance(audio)).last, atol=1e-6)


def test_only_the_sizes_above_base_normalise():
    with torch.device("meta"):
        assert [Hubert.base().normalize, Hubert.large().normalize, Hubert.xlarge().normalize] == [False, True, True]


def test_a_crop_of_a_normalised_utterance_is_not_normalised_again():
    audio = torch.cat([torch.randn(1, 8000), 0.1 * torch.randn(1, 8000)], 1)  # loud, then quiet
    crop_last = normalize_utterance(audio)[:, 8000:]
    assert not torch.allclose(crop_last, normalize_utterance(audio[:, 8000:]), atol=0.1)
    hubert = tiny("layer", True, normalize=True)
    with torch.no_grad():
        kept, again = hubert(crop_last, normalized=True).last, hubert(crop_last).last
        hubert.normalize = False
        assert torch.equal(kept, hubert(crop_last).last)
    assert not torch.allclose(kept, again, atol=1e-2)


def test_normalised_utterances_have_zero_mean_and_unit_variance_over_their_own_samples():
    lengths, audio = torch.tensor([1000, 600]), 3 + 2 * torch.randn(2, 1000)
    y = normalize_utterance(audio, lengths)
    assert torch.allclose(y[1, :600].mean(), torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(y[1, :600].var(correction=0), torch.tensor(1.0), atol=1e-4)
    assert y[1, 600:].abs().max() == 0
    assert torch.allclose(y[0], normalize_utterance(audio)[0], atol=1e-5)


def test_an_utterance_without_a_frame_is_refused_by_its_length():
    with pytest.raises(ValueError, match="an utterance of 399 samples is shorter than the 400"):
        tiny()(torch.randn(1, 399))
    with pytest.raises(ValueError, match="an utterance of 120 samples is shorter than the 400"):
        tiny()(torch.randn(2, 5000), torch.tensor([5000, 120]))


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match=r"audio has shape \(2, 1, 5000\); give mono waveforms"):
        tiny()(torch.randn(2, 1, 5000))
    with pytest.raises(ValueError, match="lengths name 6000 samples but audio holds 5000"):
        tiny()(torch.randn(2, 5000), torch.tensor([6000, 5000]))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 14\) where this batch needs \(2, 15\)"):
        tiny()(torch.randn(2, 5000), mask=torch.zeros(2, 14, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"channel_mask has shape \(2, 15\) where this batch needs \(2, 64\)"):
        tiny()(torch.randn(2, 5000), channel_mask=torch.zeros(2, 15, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_norm": "batch"}, "conv norm 'batch' is neither \"group\""),
        ({"position_groups": 5}, "dim=64 is not divisible by position_groups=5; try 1 groups"),
        ({"layer_drop": 1.0}, r"layer_drop=1\.0 is a probability; give at least 0 and less than 1"),
        ({"feature_grad_mult": -1.0}, r"feature_grad_mult=-1\.0 would climb the loss"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


# training


def test_the_penalty_is_the_mean_square_of_the_conv_output_before_any_norm_after_the_convolutions():
    hubert, audio = tiny(), torch.randn(2, 6000)
    out = hubert(audio)
    features = hubert.conv(audio)
    assert out.feature_penalty.item() / out.frame_lengths.sum().item() == pytest.approx(
        features.square().mean().item(), rel=1e-5
    )
    with torch.no_grad():
        hubert.conv.convs[-1].weight *= 2
    assert hubert(audio).feature_penalty > 1.5 * out.feature_penalty


def test_the_penalty_of_a_padded_batch_is_the_sum_of_those_of_its_utterances():
    hubert, lengths = tiny(), torch.tensor([6000, 3000])
    audio = torch.randn(2, 6000)
    alone = hubert(audio[:1]).feature_penalty + hubert(audio[1:, :3000]).feature_penalty
    assert hubert(audio, lengths).feature_penalty.item() == pytest.approx(alone.item(), rel=1e-5)


def test_masked_frames_carry_the_mask_vector_and_nothing_of_the_audio():
    hubert, frames = tiny(), num_frames(6000)
    everything = torch.ones(1, frames, dtype=torch.bool)
    first, second = (hubert(torch.randn(1, 6000), mask=everything) for _ in range(2))
    assert torch.equal(first.last, second.last)
    first.last.square().sum().backward()
    assert hubert.mask_embedding.grad is not None
    assert hubert.mask_embedding.grad.abs().max() > 0


def test_channel_masks_silence_channels_before_positions_are_added():
    hubert, channels = tiny("layer", True), torch.zeros(1, 64, dtype=torch.bool)
    channels[0, ::2] = True
    with torch.no_grad():
        hubert.positions.conv.parametrizations.weight.original0.zero_()
        hubert.positions.conv.bias.zero_()
        x = hubert(torch.randn(1, 6000), channel_mask=channels).layers["0"]
    assert x[..., ::2].abs().max() == 0
    assert x[..., 1::2].abs().min() > 0


def test_the_gradient_of_the_convolutions_is_scaled_and_no_other():
    audio, grads = torch.randn(1, 4000), {}
    for scale in (1.0, 0.1):
        hubert = tiny(feature_grad_mult=scale)
        hubert(audio).last.square().sum().backward()
        grads[scale] = [hubert.conv.convs[3].weight.grad, hubert.input_projection.weight.grad]
    assert torch.allclose(grads[0.1][0], 0.1 * grads[1.0][0], atol=1e-5)
    assert torch.equal(grads[0.1][1], grads[1.0][1])


def test_a_gradient_scale_of_zero_leaves_the_convolutions_out_of_the_graph():
    hubert = tiny(feature_grad_mult=0.0)
    hubert(torch.randn(1, 4000)).last.sum().backward()
    assert all(p.grad is None for p in hubert.conv.parameters())
    assert hubert.input_projection.weight.grad is not None


def test_a_dropped_block_changes_nothing_and_its_parameters_still_get_a_gradient():
    hubert = tiny(layer_drop=0.999_999).train()
    out = hubert(torch.randn(1, 4000))
    assert all(torch.equal(layer, out.layers["0"]) for layer in out.layers.values())
    out.last.sum().backward()
    for block in hubert.blocks:
        assert all(p.grad is not None and p.grad.abs().max() == 0 for p in block.parameters())


def test_blocks_are_dropped_as_often_as_asked_and_as_the_seed_says():
    hubert, audio = tiny(layer_drop=0.25).train(), torch.randn(1, 800)

    def dropped(seed: int) -> list[bool]:
        torch.manual_seed(seed)
        layers = list(hubert(audio).layers.values())
        return [torch.equal(before, after) for before, after in itertools.pairwise(layers)]

    with torch.no_grad():
        draws = [dropped(seed) for seed in range(100)]
        assert dropped(7) == draws[7]
    assert sum(map(sum, draws)) / 400 == pytest.approx(0.25, abs=0.06)
    with torch.no_grad():
        hubert.eval()
        assert not any(dropped(7))


@pytest.mark.parametrize(("conv_norm", "pre_norm"), STYLES)
def test_pretraining_under_bf16_autocast_gives_fp32_logits_and_finite_gradients(conv_norm, pre_norm):
    hubert, head = tiny(conv_norm, pre_norm), HubertPretrainingHead(64, [20], 24)
    audio, frames = torch.randn(2, 6000), num_frames(6000)
    labels, mask = torch.randint(20, (2, frames)), span_mask(torch.full((2,), frames), span=3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(hubert(audio, mask=mask).last)[0]
    exact = head(hubert(audio, mask=mask).last)[0]
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().mean() < 0.1  # of a range of 20; what bf16 hidden states cost
    masked_prediction_loss(logits, labels, mask).masked_nll.backward()
    parts = [*hubert.named_parameters(), *head.named_parameters()]
    assert not [name for name, p in parts if p.grad is None or not p.grad.isfinite().all()]


def test_a_pretraining_step_compiles_into_one_graph():
    hubert = tiny(dropout=0.1, attention_dropout=0.1, layer_drop=0.1, feature_grad_mult=0.1).train()
    head = HubertPretrainingHead(64, [20], 24)
    audio, frames = torch.randn(2, 4000), num_frames(4000)
    labels, mask = torch.randint(20, (2, frames)), span_mask(torch.full((2,), frames), span=3)

    @torch.compile(backend="eager", fullgraph=True)
    def step() -> Tensor:
        out = hubert(audio, mask=mask)
        sums = masked_prediction_loss(head(out.last)[0], labels, mask)
        return sums.masked_nll / sums.masked_count + 10 * out.feature_penalty / out.frame_lengths.sum()

    step().backward()
    assert all(p.grad is not None for p in hubert.parameters())


# heads and loss


def test_logits_are_cosines_divided_by_the_temperature():
    head = HubertPretrainingHead(2, [3], unit_dim=2)
    head.projection.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    with torch.no_grad():
        head.units[0].copy_(torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, -1.0]]))
    logits = head(torch.tensor([[3.0, 0.0]]))[0]
    assert torch.allclose(logits, torch.tensor([[10.0, 0.0, -10 / math.sqrt(2)]]))


def test_several_label_sets_share_one_projection_and_have_their_own_units():
    head = HubertPretrainingHead(8, [5, 7], unit_dim=4)
    hidden = torch.randn(2, 3, 8)
    first, second = head(hidden)
    assert (first.shape, second.shape) == ((2, 3, 5), (2, 3, 7))
    alone = HubertPretrainingHead(8, [7], unit_dim=4)
    state = {"weight": head.projection.weight[4:], "bias": head.projection.bias[4:]}
    alone.projection.load_state_dict(state)
    alone.units[0].data = head.units[1].data
    assert torch.allclose(second, alone(hidden)[0], atol=1e-6)


def test_a_head_without_units_is_refused():
    with pytest.raises(ValueError, match=r"num_classes=\[\]; give one number of units, at least 2, per label set"):
        HubertPretrainingHead(8, [])


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_number_of_units_per_frame():
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])
    sums = masked_prediction_loss(torch.zeros(2, 4, 50), torch.zeros(2, 4, dtype=torch.long), mask)
    assert sums.masked_nll.item() == pytest.approx(4 * math.log(50))
    assert sums.unmasked_nll.item() == pytest.approx(4 * math.log(50))
    assert (sums.masked_count, sums.unmasked_count) == (4, 4)


def test_correct_frames_are_counted_where_hidden_and_where_visible():
    labels = torch.tensor([[0, 1, 2, 0]])
    logits = F.one_hot(torch.tensor([[0, 1, 0, 1]]), 3).float()
    sums = masked_prediction_loss(logits, labels, torch.tensor([[True, False, True, False]]))
    assert (sums.masked_correct, sums.masked_count) == (1, 2)
    assert (sums.unmasked_correct, sums.unmasked_count) == (1, 2)


def test_padding_is_neither_hidden_nor_visible_whatever_its_labels():
    labels = torch.tensor([[1, 2, -1, 999]])
    mask = torch.tensor([[True, False, True, False]])
    sums = masked_prediction_loss(torch.zeros(1, 4, 3), labels, mask, frame_lengths=torch.tensor([2]))
    assert (sums.masked_count, sums.unmasked_count) == (1, 1)
    assert sums.unmasked_nll.item() == pytest.approx(math.log(3))


def test_sums_of_parts_are_the_sums_of_the_whole():
    logits, labels = torch.randn(4, 9, 6), torch.randint(6, (4, 9))
    mask = torch.rand(4, 9) < 0.5
    parts = [masked_prediction_loss(logits[i], labels[i], mask[i]) for i in (slice(0, 1), slice(1, 4))]
    whole = masked_prediction_loss(logits, labels, mask)
    for name, total in whole._asdict().items():
        assert torch.allclose(total, sum(getattr(part, name) for part in parts)), name


def test_visible_frames_have_no_gradient_when_only_the_masked_loss_is_used():
    logits = torch.randn(1, 6, 4, requires_grad=True)
    mask = torch.tensor([[True, False, True, False, False, True]])
    masked_prediction_loss(logits, torch.zeros(1, 6, dtype=torch.long), mask).masked_nll.backward()
    assert logits.grad is not None
    assert logits.grad[~mask].abs().max() == 0
    assert logits.grad[mask].abs().min() > 0


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"labels \(1, 5\) and mask \(1, 4\) do not share their \(batch, frames\)"):
        masked_prediction_loss(torch.zeros(1, 4, 3), torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 4).bool())
