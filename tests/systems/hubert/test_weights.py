"""Checkpoints in the layout of transformers, in and out."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmflow.systems.hubert.model import Hubert
from mmflow.systems.hubert.weights import from_transformers, load_folder, save_folder, to_transformers

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
    model = Hubert(**(SHAPE | {"conv_norm": conv_norm, "pre_norm": pre_norm, "conv_bias": conv_bias} | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


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
    model = load_folder(tmp_path)
    assert not model.training
    audio = torch.randn(1, 4000)
    with torch.no_grad():
        ours = model(audio, normalized=True).last
        assert (ours - theirs(audio).last_hidden_state).abs().max() < 1e-5


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_folder_loads_as_the_same_model(style, tmp_path):
    model = hubert(*style, normalize=style[0] == "layer", dropout=0.2, ffn_dropout=0.3, input_dropout=0.4)
    save_folder(model, tmp_path)
    again = load_folder(tmp_path)
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
    model = load_folder(tmp_path)
    assert 0 <= model.mask_embedding.min() < model.mask_embedding.max() <= 1
    with pytest.raises(ValueError, match=r"missing \['masked_spec_embed'\]"):
        from_transformers(theirs.state_dict())


def test_a_fine_tuned_folder_loads_when_its_head_is_left_out(transformers, tmp_path):
    transformers.HubertForCTC(config(transformers, vocab_size=7)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"extra \['lm_head\.bias', 'lm_head\.weight'\]"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, leave=["lm_head."]).dim == 32


def test_whether_to_normalise_is_read_from_the_preprocessor_or_follows_the_conv_norm(tmp_path):
    save_folder(hubert("layer", True, normalize=False), tmp_path)
    assert load_folder(tmp_path).normalize is False
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_folder(tmp_path).normalize is True


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
        load_folder(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is not there; give a folder written by"):
        load_folder(tmp_path)
    save_folder(hubert(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is not there; pickled or sharded weights are not read"):
        load_folder(tmp_path)


def test_a_truncated_folder_names_what_it_lacks(tmp_path):
    save_folder(hubert(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: value for key, value in state.items() if ".layers.0." not in key}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing \['encoder\.layers\.0\.attention"):
        load_folder(tmp_path)
