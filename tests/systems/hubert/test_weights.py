"""Our checkpoints, transformers folders and torchaudio state dicts, in and out."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmflow.data.text import Characters
from mmflow.systems.hubert.model import KERNELS, STRIDES, CTCHead, Hubert, HubertPretrainingHead
from mmflow.systems.hubert.weights import (
    from_transformers,
    hubert_arguments,
    load_ctc,
    load_hubert,
    load_units,
    save_folder,
    to_transformers,
)

os.environ["HF_HUB_OFFLINE"] = "1"
SHAPE = {"dim": 32, "depth": 2, "num_heads": 4, "ffn_dim": 48, "conv_dim": 16}
SHAPE |= {"position_kernel": 8, "position_groups": 2}
STYLES = [("group", False, False), ("layer", True, False), ("layer", True, True)]


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip(
        "mmflow.torchaudio_cpu", exc_type=ImportError
    )  # lets transformers see a torchaudio that imports
    return pytest.importorskip("transformers", exc_type=ImportError)


def hubert(conv_norm: str = "group", pre_norm: bool = False, conv_bias: bool = False, **options) -> Hubert:
    torch.manual_seed(0)
    return shaken(Hubert(**(SHAPE | {"conv_norm": conv_norm, "pre_norm": pre_norm, "conv_bias": conv_bias} | options)))


def shaken(module: nn.Module) -> nn.Module:
    """`module` in eval mode, with biases and norms that are random too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module.eval()


def recogniser(style=STYLES[0]) -> tuple[Hubert, CTCHead]:
    return hubert(*style), shaken(CTCHead(32, 32))


def config(transformers, **options):
    return transformers.HubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        **options,
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("prefix", ["", "hubert."])
def test_names_survive_the_way_out_and_back(style, prefix):
    state = hubert(*style).state_dict()
    back = from_transformers(to_transformers(state, prefix))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("style", STYLES)
def test_transformers_opens_a_saved_folder_and_computes_the_same(transformers, style, tmp_path):
    model = hubert(*style)
    save_folder(model, tmp_path)
    theirs, report = transformers.HubertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    audio = torch.randn(1, 4000)
    with torch.no_grad():
        assert (model(audio).last - theirs.eval()(audio).last_hidden_state).abs().max() < 1e-5
    assert theirs.config.hidden_dropout == 0.1
    assert theirs.config.layerdrop == 0.05


@pytest.mark.parametrize("style", STYLES)
def test_a_folder_that_transformers_saved_opens_and_computes_the_same(transformers, style, tmp_path):
    conv_norm, pre_norm, conv_bias = style
    theirs = transformers.HubertModel(
        config(transformers, feat_extract_norm=conv_norm, do_stable_layer_norm=pre_norm, conv_bias=conv_bias)
    ).eval()
    theirs.save_pretrained(tmp_path)
    model = load_hubert(tmp_path)
    assert not model.training
    audio = torch.randn(1, 4000)
    with torch.no_grad():
        ours = model(audio, normalized=True).last
        assert (ours - theirs(audio).last_hidden_state).abs().max() < 1e-5


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_folder_loads_as_the_same_model(style, tmp_path):
    model = hubert(*style, normalize=style[0] == "layer", dropout=0.2, ffn_dropout=0.3, input_dropout=0.4)
    save_folder(model, tmp_path)
    again = load_hubert(tmp_path)
    assert str(again) == str(model)  # shapes, dropouts
    assert (again.normalize, again.layer_drop) == (model.normalize, model.layer_drop)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def test_published_files_with_the_old_names_of_the_weight_norm_are_read():
    state = hubert().state_dict()
    theirs = to_transformers(state)
    stem = "encoder.pos_conv_embed.conv."
    theirs[stem + "weight_g"] = theirs.pop(stem + "parametrizations.weight.original0")
    theirs[stem + "weight_v"] = theirs.pop(stem + "parametrizations.weight.original1")
    back = from_transformers(theirs)
    assert torch.equal(
        back["positions.conv.parametrizations.weight.original1"],
        state["positions.conv.parametrizations.weight.original1"],
    )


def test_a_missing_tensor_is_named():
    theirs = to_transformers(hubert().state_dict())
    del theirs["encoder.layers.0.attention.k_proj.bias"]
    with pytest.raises(ValueError, match=r"missing \['encoder\.layers\.0\.attention\.k_proj\.bias'\], extra \[\]"):
        from_transformers(theirs)


def test_an_extra_tensor_is_named_and_can_be_left_out_on_purpose():
    theirs = to_transformers(hubert().state_dict(), prefix="hubert.")
    theirs["lm_head.weight"] = torch.zeros(5, 32)
    with pytest.raises(ValueError, match=r"missing \[\], extra \['lm_head\.weight'\]"):
        from_transformers(theirs)
    assert from_transformers(theirs, leave=["lm_head."]).keys() == hubert().state_dict().keys()


def test_a_plain_positional_weight_is_refused():
    theirs = to_transformers(hubert().state_dict())
    theirs["encoder.pos_conv_embed.conv.weight"] = torch.zeros(32, 16, 8)
    with pytest.raises(ValueError, match=r"extra \['encoder\.pos_conv_embed\.conv\.weight'\]"):
        from_transformers(theirs)


def test_a_state_dict_of_something_else_is_refused_on_the_way_out():
    state = hubert().state_dict() | {"head.weight": torch.zeros(1)}
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"missing \['norm\.bias'\], extra \['head\.weight'\]"):
        to_transformers(state)


def test_a_model_that_never_masks_loads_without_a_mask_vector(transformers, tmp_path):
    theirs = transformers.HubertModel(config(transformers, mask_time_prob=0.0))
    assert "masked_spec_embed" not in theirs.state_dict()
    theirs.save_pretrained(tmp_path)
    model = load_hubert(tmp_path)
    assert 0 <= model.mask_embedding.min() < model.mask_embedding.max() <= 1
    with pytest.raises(ValueError, match=r"missing \['masked_spec_embed'\]"):
        from_transformers(theirs.state_dict())


def test_the_encoder_of_a_recogniser_of_anything_loads(transformers, tmp_path):
    transformers.HubertForCTC(config(transformers, vocab_size=7)).save_pretrained(tmp_path)
    assert load_hubert(tmp_path).dim == 32
    with pytest.raises(ValueError, match=r"not the tokens of Characters: there are 7, not 32 \(1 in all\)"):
        load_ctc(tmp_path)


def test_a_head_of_another_kind_is_left_out_on_purpose_only(transformers, tmp_path):
    transformers.HubertForSequenceClassification(config(transformers)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing \[\], extra \['classifier\.bias', 'classifier\.weight', 'projector"):
        load_hubert(tmp_path)
    assert load_hubert(tmp_path, leave=["classifier.", "projector."]).dim == 32


def test_whether_to_normalise_is_read_from_the_preprocessor_or_follows_the_conv_norm(tmp_path):
    save_folder(hubert("layer", True, normalize=False), tmp_path)
    assert load_hubert(tmp_path).normalize is False
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_hubert(tmp_path).normalize is True


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "wav2vec2", "model_type 'wav2vec2'; only 'hubert'"),
        ("hidden_act", "relu", "hidden_act='relu'; Hubert knows only 'gelu'"),
        ("conv_pos_batch_norm", True, "conv_pos_batch_norm=True; Hubert knows only False"),
        ("conv_stride", [5, 2], r"conv_stride=\[5, 2\]; Hubert knows only \[5, 2, 2, 2, 2, 2, 2\]"),
        ("conv_dim", [16, 32], r"conv_dim=\[16, 32\]; Hubert knows only 7 layers of one width"),
    ],
)
def test_settings_that_hubert_does_not_have_are_refused(tmp_path, key, value, message):
    save_folder(hubert(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=message):
        load_hubert(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is not there; give a folder written by"):
        load_hubert(tmp_path)
    save_folder(hubert(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin is there; weights in s"):
        load_hubert(tmp_path)


def test_a_truncated_folder_names_what_it_lacks(tmp_path):
    save_folder(hubert(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: value for key, value in state.items() if ".layers.0." not in key}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing \['encoder\.layers\.0\.attention"):
        load_hubert(tmp_path)


# recognisers of transformers

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]  # facebook/hubert-large-ls960-ft


def save_vocabulary(folder, tokens: list[str]) -> None:
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pickled", [False, True])
def test_a_published_recogniser_gives_the_same_layers_and_logits(transformers, style, pickled, tmp_path):
    conv_norm, pre_norm, conv_bias = style
    options = {"feat_extract_norm": conv_norm, "do_stable_layer_norm": pre_norm, "conv_bias": conv_bias}
    torch.manual_seed(0)
    theirs = shaken(transformers.HubertForCTC(config(transformers, vocab_size=32, **options)))
    theirs.save_pretrained(tmp_path)
    save_vocabulary(tmp_path, VOCABULARY)
    if pickled:  # as older folders have it, with the old names of the weight norm
        state = {
            key.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): value
            for key, value in theirs.state_dict().items()
        }
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    model, head, tokens = load_ctc(tmp_path)
    assert not model.training
    assert not head.training
    assert tokens == Characters.tokens
    audio = torch.randn(2, 6000)
    with torch.no_grad():
        ours, other = model(audio, normalized=True), theirs(audio, output_hidden_states=True)
        assert (head(ours.last) - other.logits).abs().max() < 1e-5
    for k, hidden in enumerate(other.hidden_states):
        assert (ours.layers[str(k)] - hidden).abs().max() < 1e-5
    assert other.logits.std() > 0.1
    alone = load_hubert(tmp_path).state_dict()
    assert all(torch.equal(alone[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("style", STYLES)
def test_transformers_opens_a_saved_recogniser_with_its_processor(transformers, style, tmp_path):
    model, head = recogniser(style)
    save_folder(model, tmp_path, head)
    theirs, report = transformers.HubertForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "Wav2Vec2Processor"
    assert processor.feature_extractor.do_normalize is model.normalize
    audio = torch.randn(6000)
    values = processor(audio.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        assert (head(model(audio[None]).last) - theirs.eval()(values).logits).abs().max() < 1e-5
    path = torch.tensor([0, 5, 5, 0, 8, 10, 4, 4, 0, 27, 0, 6, 6, 31])  # blanks, repeats and two words
    assert processor.decode(path) == Characters().collapse(path) == "EOI 'TZ"
    assert processor.tokenizer("IT'S").input_ids == Characters().encode("it's")[:-1].tolist()


def test_a_saved_recogniser_loads_as_the_same_model(tmp_path):
    model, head = recogniser()
    save_folder(model, tmp_path, head)
    again, same, _ = load_ctc(tmp_path)
    for ours, theirs in ((model, again), (head, same)):
        assert all(torch.equal(theirs.state_dict()[key], value) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("tokens", "blank", "message"),
    [
        ([*VOCABULARY[:6], "A", "T", *VOCABULARY[8:]], 0, r"number 6 is 'A', not 'T', number 7 is 'T', not 'A' \(2 in"),
        ([token.lower() for token in VOCABULARY], 0, r"number 5 is 'e', not 'E', .* \(26 in all\)"),
        ([*VOCABULARY[1:], "<pad>"], 31, r"number 3 is '|', not '<unk>', .* number 31 is '<blank>', not 'Z'"),
        (VOCABULARY, 1, r"Characters: number 1 is '<blank>', not '<pad>' \(1 in all\)"),
        (VOCABULARY[:31], 0, r"number 31 is '', not 'Z' \(1 in all\)"),
    ],
)
def test_another_vocabulary_is_refused_naming_the_difference(tmp_path, tokens, blank, message):
    save_folder(*recogniser()[:1], tmp_path, recogniser()[1])
    save_vocabulary(tmp_path, tokens)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": blank}))
    with pytest.raises(ValueError, match=message):
        load_ctc(tmp_path)
    assert load_hubert(tmp_path).dim == 32


def test_what_is_no_recogniser_or_no_pretrained_model_says_so(tmp_path):
    save_folder(hubert(), tmp_path)
    with pytest.raises(ValueError, match="has no CTC head; give a fine-tuned model, or take its encoder with load_hub"):
        load_ctc(tmp_path)
    with pytest.raises(ValueError, match="has no head over units; give a pretrained model of fairseq, torchaudio or m"):
        load_units(tmp_path)
    with pytest.raises(ValueError, match="the head has 7 outputs, but Characters has 32 tokens"):
        save_folder(hubert(), tmp_path, CTCHead(32, 7))


def test_half_a_head_is_refused(tmp_path):
    save_folder(recogniser()[0], tmp_path, recogniser()[1])
    state = load_file(tmp_path / "model.safetensors")
    del state["lm_head.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"a head is incomplete: missing \['lm_head\.bias'\]"):
        load_hubert(tmp_path)


# torchaudio


@pytest.fixture(scope="module")
def torchaudio():
    return pytest.importorskip("mmflow.torchaudio_cpu", exc_type=ImportError).torchaudio


LAYERS = [(16, kernel, stride) for kernel, stride in zip(KERNELS, STRIDES, strict=True)]


def of_torchaudio(torchaudio, style, aux: int | None = None, dim: int = 128, heads: int = 2) -> nn.Module:
    conv_norm, pre_norm, conv_bias = style
    torch.manual_seed(0)
    return shaken(
        torchaudio.models.wav2vec2_model(
            f"{conv_norm}_norm", LAYERS, conv_bias, dim, 0.1, 8, 2, 2, heads, 0.1, 48, 0.1, 0.1, pre_norm, 0.1, aux
        )
    )


@pytest.mark.parametrize("style", STYLES)
def test_a_torchaudio_model_gives_the_same_layers(torchaudio, style, tmp_path):
    theirs = of_torchaudio(torchaudio, style)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    model = load_hubert(tmp_path / "model.pth")
    assert not model.training
    assert model.normalize is (style[0] == "layer")
    audio = torch.randn(2, 6000)
    with torch.no_grad():
        ours, (layers, _) = model(audio, normalized=True), theirs.extract_features(audio)
        assert (ours.last - theirs(audio)[0]).abs().max() < 1e-5
    assert len(layers) == 2
    for k, hidden in enumerate(layers, 1):
        assert (ours.layers[str(k)] - hidden).abs().max() < 1e-5


@pytest.mark.parametrize("outputs", [29, 32])
def test_a_torchaudio_recogniser_of_normalised_audio_gives_the_same_log_probabilities(torchaudio, outputs, tmp_path):
    from torchaudio.pipelines._wav2vec2.utils import _extend_model, _get_en_labels

    theirs = _extend_model(of_torchaudio(torchaudio, STYLES[1], aux=outputs), normalize_waveform=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    model, head, tokens = load_ctc(tmp_path / "model.pth")
    assert all(key.startswith("model.") for key in theirs.state_dict())
    audio = 0.1 * torch.randn(1, 6000) + 0.02
    with torch.no_grad():
        ours, other = head(model(audio).last).log_softmax(-1), theirs(audio)[0].log_softmax(-1)
    labels = ("<blank>", *_get_en_labels()) if outputs == 29 else tokens
    assert len(labels) == outputs
    kept = ours[..., [tokens.index(label) for label in labels]]
    assert (kept - other).abs().max() < 1e-5
    assert ours.exp().sum(-1).allclose(kept.exp().sum(-1))  # nothing is left for the others


def test_a_torchaudio_head_with_other_outputs_is_refused(torchaudio, tmp_path):
    torch.save(of_torchaudio(torchaudio, STYLES[0], aux=30).state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth: the outputs of its CTC .*: there are 30, not 32"):
        load_ctc(tmp_path / "model.pth")


def test_the_head_of_a_torchaudio_pretraining_model_is_not_lost(torchaudio, tmp_path):
    masks = (0.8, "static", 0.0, 10, False, 1, 0.0, "static", 0.0, 10, False, 1)
    theirs = torchaudio.models.hubert_pretrain_model(
        "group_norm", LAYERS, False, 128, 0.0, 8, 2, 2, 2, 0.0, 48, 0.0, 0.0, False, 0.0, *masks, False, False, 20, 24,
        0.1,
    )  # fmt: skip
    state = shaken(theirs).state_dict()
    torch.save(state, tmp_path / "model.pth")
    model, head = load_units(tmp_path / "model.pth")
    assert torch.equal(model.mask_embedding, state["mask_generator.mask_embedding"])
    assert torch.equal(head.units[0], state["logit_generator.label_embeddings"])
    assert torch.equal(head.projection.weight, state["logit_generator.final_proj.weight"])
    hidden, labels, every = torch.randn(1, 20, 128), torch.arange(20)[None], torch.ones(1, 20, dtype=torch.bool)
    with torch.no_grad():  # column 0 of their logits is the cosine with the label's own vector
        expected, _ = theirs.logit_generator(hidden, labels, every, ~every)
        assert (head(hidden)[0][0].diagonal() - expected[:, 0]).abs().max() < 1e-4
    del state["mask_generator.mask_embedding"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"missing \['mask_generator\.mask_embedding'\]"):
        load_hubert(tmp_path / "model.pth")


def test_the_number_of_heads_of_torchaudios_models_follows_from_their_width(torchaudio, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(of_torchaudio(torchaudio, STYLES[1], dim=1280, heads=16).state_dict(), path)
    assert load_hubert(path).blocks[0].attention.num_heads == 16
    torch.save(of_torchaudio(torchaudio, STYLES[0], dim=96, heads=2).state_dict(), path)
    with pytest.raises(ValueError, match="no published model is 96 wide, so the file does not show its"):
        load_hubert(path)


def test_missing_and_extra_tensors_of_a_torchaudio_file_are_named(torchaudio, tmp_path):
    state = of_torchaudio(torchaudio, STYLES[0]).state_dict()
    path, name = tmp_path / "model.pth", "encoder.transformer.layers.1.attention.k_proj.bias"
    torch.save(state | {"decoder.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"model\.pth: this state dict .* missing \[\], extra \['decoder\.weight'\]"):
        load_hubert(path)
    assert load_hubert(path, leave=["decoder."]).dim == 128
    del state[name]
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"missing \['{name}'\], extra \[\]"):
        load_hubert(path)


# our own checkpoints, and files of something else


def checkpoint(path, model: Hubert, head: nn.Module, **more) -> None:
    state = {f"hubert.{key}": value for key, value in model.state_dict().items()}
    state |= {f"head.{key}": value for key, value in head.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"checkpoint": "round_2.ckpt", "hubert": None}} | more, path)


def test_arguments_build_a_hubert_of_the_same_shape_and_settings():
    model = hubert("layer", True, True, normalize=False, dropout=0.2, ffn_dropout=0.3, layer_drop=0.4)
    again = Hubert(**hubert_arguments(model))
    assert str(again) == str(model)
    assert (again.normalize, again.layer_drop, again.pre_norm) == (False, 0.4, True)


def test_a_checkpoint_of_fine_tuning_that_keeps_the_arguments_is_a_recogniser(tmp_path):
    (model, head), path = recogniser(STYLES[1]), tmp_path / "last.ckpt"
    checkpoint(path, model, head, hubert=hubert_arguments(model))
    again, same, tokens = load_ctc(path)
    assert not again.training
    assert tokens == Characters.tokens
    audio = torch.randn(1, 4000)
    with torch.no_grad():
        assert torch.equal(same(again(audio).last), head(model(audio).last))


def test_a_checkpoint_of_pretraining_keeps_its_head(tmp_path):
    model, head, path = hubert(), shaken(HubertPretrainingHead(32, [20], 24)), tmp_path / "last.ckpt"
    config = {"class_path": "mmflow.systems.hubert.model.Hubert", "init_args": SHAPE}
    checkpoint(path, model, head, hyper_parameters={"hubert": config})
    again, same = load_units(path)
    hidden = torch.randn(1, 3, 32)
    with torch.no_grad():
        assert torch.equal(same(hidden)[0], head(hidden)[0])
    assert torch.equal(again.state_dict()["norm.bias"], model.state_dict()["norm.bias"])
    with pytest.raises(ValueError, match="has no CTC head"):
        load_ctc(path)


def test_a_checkpoint_lacking_a_tensor_or_its_arguments_says_which(tmp_path):
    model, path = hubert(), tmp_path / "last.ckpt"
    checkpoint(path, model, nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"last\.ckpt: the checkpoint does not say how to build its HuBERT"):
        load_hubert(path)
    checkpoint(path, model, nn.Linear(1, 1), hubert=hubert_arguments(model) | {"depth": 3})
    with pytest.raises(ValueError, match=r"(?s)last\.ckpt: .*Missing key.*blocks\.2\.attention\.qkv\.weight"):
        load_hubert(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it holds a list; give a checkpoint of ours, a fairseq checkpoint"),
        ({"b": 1, "a": 2}, r"it holds a dict of \['a', 'b'\]; give a checkpoint of ours"),
        ({"encoder.transformer.x": 3}, "'encoder.transformer.x' is a int, where a state dict has a name and a tensor"),
    ],
)
def test_a_file_of_something_else_says_what_it_holds_and_what_can_be_read(tmp_path, content, message):
    torch.save(content, tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        load_hubert(tmp_path / "file")


def test_the_weights_of_a_folder_alone_and_a_wrong_path_are_refused(tmp_path):
    torch.save(to_transformers(hubert().state_dict()), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="or the folder of a transformers model"):
        load_hubert(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"none: there is no file or folder of this name"):
        load_hubert(tmp_path / "none")
