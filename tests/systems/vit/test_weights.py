"""ViTs of transformers, of timm and of our checkpoints, in and out: the same numbers to 1e-5, and every tensor."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmflow.systems.vit.model import ViT
from mmflow.systems.vit.weights import (
    from_timm,
    from_transformers,
    load_classifier,
    load_vit,
    save_folder,
    to_timm,
    to_transformers,
)
from tests.systems.shaken import shaken

os.environ["HF_HUB_OFFLINE"] = "1"
SHAPE = {"image_size": (16, 24), "patch_size": 8, "dim": 32, "depth": 2, "num_heads": 4, "ffn_dim": 48}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LABELS = ["circle", "square", "triangle", "cross", "ring"]


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip(
        "mmflow.torchaudio_cpu", exc_type=ImportError
    )  # lets transformers see a torchaudio that imports
    return pytest.importorskip("transformers", exc_type=ImportError)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", exc_type=ImportError)


def ours(**arguments) -> ViT:
    return shaken(ViT(**SHAPE | arguments))


def config(transformers, **options):
    return transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=[16, 24],
        patch_size=8,
        num_labels=5,
        **options,
    )


def pictures(*size: int) -> tuple[Tensor, Tensor]:
    """Pictures in [0, 1], and normalised."""
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
    return images, (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def far(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


# transformers


@pytest.mark.parametrize("pooler", [True, False])
def test_a_model_that_transformers_saved_computes_the_same(transformers, pooler, tmp_path):
    theirs = shaken(transformers.ViTModel(config(transformers), add_pooling_layer=pooler))
    theirs.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    vit = load_vit(tmp_path)
    assert not vit.training
    assert (vit.arguments["eps"], vit.arguments["pre_logits"]) == (1e-12, pooler)
    images, normalised = pictures(16, 24)
    found, expected = vit(images), theirs(normalised, output_hidden_states=True)
    assert far(found.last, expected.last_hidden_state) < 1e-5
    assert far(found.pooled, expected.pooler_output if pooler else expected.last_hidden_state[:, 0]) < 1e-5
    assert len(expected.hidden_states) == len(found.layers) == 3
    for layer, hidden in zip(found.layers.values(), expected.hidden_states, strict=True):
        assert far(layer, hidden) < 1e-5
    found.pooled.square().sum().backward()
    (expected.pooler_output if pooler else expected.last_hidden_state[:, 0]).square().sum().backward()
    state, other = gradients(vit), from_transformers(gradients(theirs))
    assert state.keys() == other.keys() == vit.state_dict().keys()
    assert all(far(state[name], other[name]) < 1e-5 * max(1, other[name].abs().max()) for name in state)


def test_a_classifier_that_transformers_saved_has_the_same_logits_loss_and_gradients(transformers, tmp_path):
    named = dict(enumerate(LABELS))
    theirs = shaken(transformers.ViTForImageClassification(config(transformers, id2label=named)))
    theirs.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    vit, head, labels = load_classifier(tmp_path)
    assert labels == LABELS
    (images, normalised), classes = pictures(16, 24), torch.tensor([0, 3, 4])
    logits, expected = head(vit(images).pooled), theirs(normalised, labels=classes)
    assert far(logits, expected.logits) < 1e-5
    loss = F.cross_entropy(logits, classes)
    assert far(loss, expected.loss) < 1e-5
    loss.backward()
    expected.loss.backward()
    state, other = gradients(vit), from_transformers(gradients(theirs), leave=["classifier."])
    assert all(far(state[name], other[name]) < 1e-5 for name in vit.state_dict())
    assert far(head.weight.grad, theirs.classifier.weight.grad) < 1e-5
    assert torch.equal(load_vit(tmp_path)(images).last, vit(images).last)


def test_another_size_of_picture_has_the_positions_of_transformers_and_of_timm(transformers, timm, tmp_path):
    settings = config(transformers)
    settings.image_size = 16
    theirs = shaken(transformers.ViTModel(settings, add_pooling_layer=False))
    theirs.save_pretrained(tmp_path)
    vit = load_vit(tmp_path, mean=MEAN, std=STD)
    images, normalised = pictures(32, 40)
    expected = theirs(normalised, interpolate_pos_encoding=True).last_hidden_state
    assert far(vit.resized((32, 40))(images).last, expected) < 1e-5
    other = timm.models.VisionTransformer(16, 8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5, num_classes=0)
    other.load_state_dict(to_timm(vit.state_dict()))
    other.set_input_size((32, 40))
    for norm in [module for module in other.modules() if isinstance(module, nn.LayerNorm)]:
        norm.eps = 1e-12
    expected = other.eval().forward_features(normalised)
    assert far(vit.resized((32, 40), "bicubic_antialias")(images).last, expected) < 1e-5
    assert far(vit.resized((32, 40))(images).last, expected) > 1e-3


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_transformers_opens_a_saved_folder_and_computes_the_same(transformers, activation, tmp_path):
    vit = ours(pre_logits=True, activation=activation, eps=1e-5, dropout=0.1, mean=MEAN, std=STD)
    save_folder(vit, tmp_path)
    theirs, report = transformers.ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, normalised = pictures(16, 24)
    found, expected = vit(images), theirs.eval()(normalised)
    assert far(found.last, expected.last_hidden_state) < 1e-5
    assert far(found.pooled, expected.pooler_output) < 1e-5
    assert theirs.config.hidden_dropout_prob == 0.1


def test_transformers_opens_a_saved_classifier_with_its_names_and_its_processor(transformers, tmp_path):
    vit, head = ours(mean=MEAN, std=STD), shaken(nn.Linear(32, 5))
    save_folder(vit, tmp_path, head, LABELS)
    theirs, report = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert theirs.config.label2id["ring"] == 4
    images, _ = pictures(16, 24)
    images = (images * 255).round() / 255  # whole bytes
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    prepared = processor((images * 255).byte(), return_tensors="pt")["pixel_values"]
    assert far(head(vit(images).pooled), theirs.eval()(prepared).logits) < 1e-5
    again, same_head, labels = load_classifier(tmp_path)
    assert labels == LABELS
    assert torch.equal(same_head(again(images).pooled), head(vit(images).pooled))


def test_a_folder_that_transformers_saved_again_is_the_same(transformers, tmp_path):
    vit = ours(pre_logits=True, mean=MEAN, std=STD)
    save_folder(vit, tmp_path / "one")
    transformers.ViTModel.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("options", [{"pre_logits": True}, {"dropout": 0.2, "eps": 1e-7, "activation": "gelu_tanh"}])
def test_a_saved_folder_loads_as_the_same_model(options, tmp_path):
    vit = ours(**options, mean=MEAN, std=STD)
    save_folder(vit, tmp_path)
    again = load_vit(tmp_path)
    assert {**again.arguments, "mean": None, "std": None} == {**vit.arguments, "mean": None, "std": None}
    assert again.arguments["mean"] == pytest.approx(MEAN)
    assert again.state_dict().keys() == vit.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in vit.state_dict().items())


def test_names_of_live_models_and_of_files_survive_the_way_out_and_back(transformers):
    state = ours(pre_logits=True).state_dict()
    on_disk = to_transformers(state)
    assert torch.equal(
        torch.cat([on_disk[f"encoder.layer.1.attention.attention.{part}.bias"] for part in ("query", "key", "value")]),
        state["blocks.1.attention.qkv.bias"],
    )
    assert "encoder.layer.0.attention.output.dense.weight" in on_disk
    assert "encoder.layer.0.output.dense.weight" in on_disk
    live = transformers.ViTModel(config(transformers)).state_dict()
    for tensors in (on_disk, to_transformers(state, "vit."), dict.fromkeys(live, torch.zeros(1))):
        assert from_transformers(tensors).keys() == state.keys()
    assert all(torch.equal(from_transformers(on_disk)[name], state[name]) for name in state)


def test_how_a_folder_scales_pictures_is_what_the_encoder_does(tmp_path):
    save_folder(ours(), tmp_path)

    def read(**settings) -> tuple[list[float], list[float]]:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        arguments = load_vit(tmp_path).arguments
        return pytest.approx(arguments["mean"]), pytest.approx(arguments["std"])

    assert read(image_mean=MEAN, image_std=STD) == (MEAN, STD)
    assert read(do_normalize=False) == ([0.0] * 3, [1.0] * 3)
    assert read(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3) == ([0.5] * 3, [0.5] * 3)
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_vit(tmp_path).arguments["mean"] == (0.5, 0.5, 0.5)


# timm


@pytest.mark.parametrize("class_token", [True, False])
def test_a_state_dict_of_timm_computes_the_same(timm, class_token, tmp_path):
    options = {} if class_token else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    theirs = timm.models.VisionTransformer(
        (16, 24), 8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5, num_classes=5, **options
    )
    shaken(theirs)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    told = {"image_size": (16, 24), "num_heads": 4, "mean": MEAN, "std": STD}
    vit, head, labels = load_classifier(tmp_path / "vit.safetensors", **told)
    assert labels is None
    assert vit.pool == ("class" if class_token else "mean")
    (images, normalised), classes = pictures(16, 24), torch.tensor([0, 3, 4])
    hidden: list[Tensor] = []
    for block in theirs.blocks:
        block.register_forward_hook(lambda _, __, result: hidden.append(result))
    found, expected = vit(images), theirs(normalised)
    assert far(head(found.pooled), expected) < 1e-5
    for layer, other in zip(list(found.layers.values())[1:], hidden, strict=True):
        assert far(layer, other) < 1e-5
    for logits in (head(found.pooled), expected):
        F.cross_entropy(logits, classes).backward()
    other = from_timm(gradients(theirs), leave=["head."])
    assert all(far(gradient, other[name]) < 1e-5 for name, gradient in gradients(vit).items())
    theirs.load_state_dict(to_timm(vit.state_dict()) | {f"head.{k}": v for k, v in head.state_dict().items()})
    assert far(theirs(normalised), expected) == 0


def test_a_folder_of_timm_says_how_pictures_are_normalised_and_what_classes_are_called(timm, tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=(16, 24), patch_size=8, num_classes=5)
    shaken(theirs)
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True, model_config={"label_names": LABELS})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["pretrained_cfg"] |= {"mean": MEAN, "std": STD}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    vit, head, labels = load_classifier(tmp_path)
    assert labels == LABELS
    assert vit.arguments["num_heads"] == 3
    images, normalised = pictures(16, 24)
    expected = theirs(normalised)
    assert far(head(vit(images).pooled), expected) < 1e-5 * expected.detach().abs().max()
    flat = {
        "architecture": "vit_tiny_patch16_224",
        "mean": MEAN,
        "std": STD,
        "input_size": [3, 16, 24],
    }  # of old versions
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert load_vit(tmp_path).arguments == vit.arguments
    settings["model_args"]["norm_layer"] = "rmsnorm"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"model_args \['norm_layer'\], which change the model"):
        load_vit(tmp_path)


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_a_torch_file_of_timm_shows_its_sizes(wrap, tmp_path):
    vit = ours(image_size=24, dim=192, num_heads=3)
    state = to_timm(vit.state_dict())
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "vit.pt")
    again = load_vit(tmp_path / "vit.pt", drop_path=0.1)
    assert again.arguments == {**vit.arguments, "drop_path": 0.1}
    images, _ = pictures(24, 24)
    assert torch.equal(again(images).last, vit(images).last)


# ours


def checkpoint(tmp_path: Path, **saved) -> Path:
    torch.save({"pytorch-lightning_version": "2.6.6", "hyper_parameters": {}, **saved}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize("path", ["mmflow.systems.vit.model.ViT", "mmflow.systems.vit.model.ViT.b16"])
@pytest.mark.parametrize("name", ["encoder", "vit"])
def test_our_checkpoints_are_read(path, name, tmp_path):
    vit, head = ours(), shaken(nn.Linear(32, 5))
    state = {f"{name}.{key}": value for key, value in vit.state_dict().items()}
    state |= {f"head.{key}": value for key, value in head.state_dict().items()}
    config = {"class_path": path, "init_args": vit.arguments}
    file = checkpoint(tmp_path, state_dict=state, hyper_parameters={name: config, "lr": 1e-3})
    again, same_head, labels = load_classifier(file, drop_path=0.2)
    assert labels is None
    assert again.arguments == {**vit.arguments, "drop_path": 0.2}
    assert not again.training
    images, _ = pictures(16, 24)
    assert torch.equal(same_head(again(images).pooled), head(vit(images).pooled))


def test_what_a_checkpoint_keeps_of_a_resized_encoder_comes_before_what_it_was_built_with(tmp_path):
    vit = ours().resized((24, 32))
    state = {f"encoder.{key}": value for key, value in vit.state_dict().items()}
    path = "mmflow.systems.vit.model.ViT"
    file = checkpoint(
        tmp_path,
        state_dict=state,
        hyper_parameters={"encoder": {"class_path": path, "init_args": SHAPE}},
        encoder={"class_path": path, "init_args": vit.arguments},
    )
    assert load_vit(file).image_size == (24, 32)


# errors


def test_every_missing_and_extra_tensor_is_named(tmp_path):
    save_folder(ours(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["encoder.layer.1.attention.attention.quarry.bias"] = state.pop(
        "encoder.layer.1.attention.attention.query.bias"
    )
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"missing \['encoder\.layer\.1\.\S+query\.bias'\], extra \['\S+quarry\.bias'\]"
    ):
        load_vit(tmp_path)
    state["decoder.weight"] = torch.zeros(1)
    state["encoder.layer.1.attention.attention.query.bias"] = state.pop(
        "encoder.layer.1.attention.attention.quarry.bias"
    )
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing \[\], extra \['decoder\.weight'\]; name the beginnings"):
        load_vit(tmp_path)
    assert load_vit(tmp_path, leave=["decoder."]).dim == 32


def test_tensors_of_another_shape_are_named(tmp_path):
    save_folder(ours(), tmp_path)
    with pytest.raises(ValueError, match=r"size mismatch for positions: .*\[1, 7, 32\].*\[1, 13, 32\]"):
        load_vit(tmp_path, image_size=(24, 32))


def test_a_pooler_that_the_head_passes_by_is_left_out_on_purpose(tmp_path):
    save_folder(ours(), tmp_path, shaken(nn.Linear(32, 5)))
    state = load_file(tmp_path / "model.safetensors")
    state |= {"vit.pooler.dense.weight": torch.zeros(32, 32), "vit.pooler.dense.bias": torch.zeros(32)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has a pooler, which the head .* leave out 'vit\.pooler\.'"):
        load_classifier(tmp_path)
    vit, _, labels = load_classifier(tmp_path, leave=["vit.pooler."])
    assert vit.pre_logits is None
    assert labels is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "deit"}, "model_type='deit'; ViT knows only 'vit'"),
        ({"qkv_bias": False}, "qkv_bias=False; ViT knows only True"),
        ({"num_channels": 1}, "num_channels=1; ViT knows only 3"),
        ({"hidden_act": "relu"}, "hidden_act='relu'; ViT knows gelu, gelu_pytorch_tanh, quick_gelu"),
        ({"patch_size": [8, 4]}, r"patch_size=\[8, 4\]; ViT has square patches"),
        ({"image_size": 20}, "image_size=20 is not divisible by patch_size=8"),
    ],
)
def test_settings_that_the_vit_does_not_have_are_errors(settings, message, tmp_path):
    save_folder(ours(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(ValueError, match=message):
        load_vit(tmp_path)


def test_what_tensors_of_timm_do_not_show_must_be_told(tmp_path):
    file = tmp_path / "vit.pt"
    torch.save(to_timm(ours().state_dict()), file)
    with pytest.raises(ValueError, match=r"no published model is 32 wide.*tell num_heads="):
        load_vit(file)
    with pytest.raises(ValueError, match=r"6 patches are no square; tell image_size=\(down, across\)"):
        load_vit(file, num_heads=4)
    assert load_vit(file, num_heads=4, image_size=(16, 24)).grid == (2, 3)


def test_a_model_of_timm_that_pools_before_its_norm_is_an_error(timm, tmp_path):
    theirs = timm.models.VisionTransformer(16, 8, embed_dim=192, depth=1, num_heads=3, num_classes=0, global_pool="avg")
    torch.save(theirs.state_dict(), tmp_path / "vit.pt")
    with pytest.raises(ValueError, match=r"missing \['norm.bias', 'norm.weight'\], extra \['fc_norm.bias'"):
        load_vit(tmp_path / "vit.pt")


@pytest.mark.parametrize(
    ("options", "head", "labels", "message"),
    [
        ({"pool": "mean"}, False, None, "this encoder has {'pool': 'mean'}"),
        ({"norm_before": True, "patch_bias": False}, False, None, "has {'norm_before': True, 'patch_bias': False}"),
        ({"pre_logits": True}, True, None, "pre_logits must be off"),
        ({}, True, LABELS[:2], "2 labels for a head of 5 outputs"),
    ],
)
def test_what_transformers_has_no_place_for_is_an_error(options, head, labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_folder(ours(**options), tmp_path, nn.Linear(32, 5) if head else None, labels)
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_vit_are_errors_that_name_them(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: there is no file or folder"):
        load_vit(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json is not there"):
        load_vit(tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: it holds tensors \['weight'\] without settings; give a checkpoint"):
        load_vit(tmp_path / "a.pt")
    file = checkpoint(tmp_path, state_dict={}, hyper_parameters={"lr": 1e-3})
    with pytest.raises(ValueError, match=r"does not say how to build its encoder or vit .*\['lr'\]"):
        load_vit(file)
    save_folder(ours(), tmp_path / "vit")
    with pytest.raises(ValueError, match=r"has no head of weight and bias over classes \(but none\)"):
        load_classifier(tmp_path / "vit")
