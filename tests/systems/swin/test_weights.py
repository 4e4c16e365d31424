"""Swins of transformers, of timm, of the original and of our checkpoints, in and out: the same numbers to 1e-5."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmflow.systems.swin.model import Swin, relative_index, shift_mask
from mmflow.systems.swin.weights import (
    from_original,
    from_timm,
    from_transformers,
    load_classifier,
    load_swin,
    save_folder,
    to_original,
    to_timm,
    to_transformers,
)
from tests.systems.shaken import shaken

os.environ["HF_HUB_OFFLINE"] = "1"
SHAPE = {"image_size": 64, "patch_size": 2, "dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window": 4}
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
    return pytest.importorskip("timm.models.swin_transformer", exc_type=ImportError)


def ours(**arguments) -> Swin:
    return shaken(Swin(**SHAPE | arguments))


def classifier(transformers, **options):
    """Of transformers, with the shape of `ours`."""
    sizes = {"image_size": 64, "patch_size": 2, "embed_dim": 16, "depths": [2, 2, 2], "num_heads": [1, 2, 4]}
    config = transformers.SwinConfig(**sizes, window_size=4, drop_path_rate=0.0, num_labels=5, **options)
    return shaken(transformers.SwinForImageClassification(config))


def timm_classifier(timm, **options):
    sizes = {"img_size": 64, "patch_size": 2, "embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}
    return shaken(timm.SwinTransformer(**sizes | {"window_size": 4, "num_classes": 5} | options))


def pictures(*size: int) -> tuple[Tensor, Tensor]:
    """Pictures in [0, 1], and normalised."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    return images, (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def far(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def heard(blocks: list[nn.Module]) -> list[Tensor]:
    """What blocks return from now on, in the order of their calls, as tokens row by row."""
    results: list[Tensor] = []

    def keep(_module, _inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        results.append(output.flatten(1, 2) if output.ndim == 4 else output)

    for block in blocks:
        block.register_forward_hook(keep)
    return results


# the same numbers


@pytest.mark.parametrize("size", [(64, 64), (61, 50), (37, 90)])
def test_transformers_computes_the_same_of_every_layer_loss_and_gradient(transformers, size, tmp_path):
    theirs = classifier(transformers)
    theirs.save_pretrained(tmp_path)
    model, head, labels = load_classifier(tmp_path)
    assert labels is None
    images, normalised = pictures(*size)
    blocks = [block for stage in theirs.swin.encoder.layers for block in stage.blocks]
    layers = heard([theirs.swin.embeddings.norm, *blocks])
    targets = torch.tensor([3, 1])
    output = theirs(normalised, output_hidden_states=True)
    found = model(images)
    assert len(layers) == len(found.layers) == 7
    assert all(far(found.layers[str(number)], layer) <= 1e-5 for number, layer in enumerate(layers))
    assert far(head(found.pooled), output.logits) <= 1e-5
    assert output.logits.abs().max() > 0.5
    fresh = classifier(transformers)  # theirs changes its windows once it has seen a small picture
    assert far(found.last, fresh.swin(normalised).last_hidden_state) <= 1e-5
    maps = theirs.swin.encoder(
        theirs.swin.embeddings(normalised)[0],
        model.grids(*size)[0],
        output_hidden_states=True,
        output_hidden_states_before_downsampling=True,
    ).reshaped_hidden_states[1:]
    assert all(far(mine, map_) <= 1e-5 for mine, map_ in zip(model.pyramid(images), maps, strict=True))

    loss, expected = F.cross_entropy(head(found.pooled), targets), F.cross_entropy(output.logits, targets)
    loss.backward()
    expected.backward()
    assert far(loss, expected) <= 1e-5
    mine, grads = gradients(model), from_transformers(gradients(theirs), ["classifier."])
    assert mine.keys() == grads.keys()
    assert all(far(mine[name], grads[name]) <= 1e-5 * max(1, float(grads[name].abs().max())) for name in mine)


@pytest.mark.parametrize("options", [{}, {"img_size": (64, 96)}, {"img_size": 16, "patch_size": 1, "window_size": 8}])
def test_timm_computes_the_same_of_every_layer_loss_and_gradient(timm, options, tmp_path):
    theirs = timm_classifier(timm, **options)  # the last one's windows are 8, 8 and 4
    save_file(theirs.state_dict(), tmp_path / "swin.safetensors")
    size = options.get("img_size", 64)
    size = size if isinstance(size, tuple) else (size, size)
    model, head, _ = load_classifier(tmp_path / "swin.safetensors", image_size=size)
    assert model.windows == [block.window_size[0] for block in (stage.blocks[0] for stage in theirs.layers)]
    images, normalised = pictures(*size)
    layers = heard([theirs.patch_embed, *(block for stage in theirs.layers for block in stage.blocks)])
    logits, found = theirs(normalised), model(images)
    assert all(far(found.layers[str(number)], layer) <= 1e-5 for number, layer in enumerate(layers))
    assert len(layers) == 7
    assert far(found.last, theirs.forward_features(normalised).flatten(1, 2)) <= 1e-5
    assert far(head(found.pooled), logits) <= 1e-5

    targets = torch.tensor([3, 1])
    F.cross_entropy(head(found.pooled), targets).backward()
    F.cross_entropy(logits, targets).backward()
    mine, grads = gradients(model), from_timm(gradients(theirs), ["head."])
    assert all(far(mine[name], grads[name]) <= 1e-5 * max(1, float(grads[name].abs().max())) for name in mine)


def test_the_published_tiny_size_computes_as_transformers(transformers):
    theirs = transformers.SwinModel(transformers.SwinConfig())
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.05)
    model = Swin.t().eval()
    model.load_state_dict(from_transformers(theirs.state_dict()))
    images, normalised = pictures(224, 224)
    with torch.no_grad():
        assert far(model(images[:1]).last, theirs.eval()(normalised[:1]).last_hidden_state) <= 1e-5


def test_real_pictures_as_they_are_have_the_same_features(transformers, real_data):
    theirs, model = classifier(transformers).swin, Swin(**SHAPE).eval()
    model.load_state_dict(from_transformers(theirs.state_dict()))
    for path in sorted((real_data / "flickr8k" / "Images").glob("*.jpg"))[:3]:
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((150, 150))  # sides of all lengths
        images = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*picture.size[::-1], 3)
        images = images.permute(2, 0, 1)[None] / 255
        normalised = (images - model.mean) / model.std
        with torch.no_grad():
            assert far(model(images).last, theirs(normalised).last_hidden_state) <= 1e-5


# in and out


@pytest.mark.parametrize("prefix", ["", "swin."])
def test_names_survive_the_way_out_and_back(prefix):
    state = ours().state_dict()
    for there, back in [
        (to_transformers(state, prefix), from_transformers),
        (to_timm(state), from_timm),
        (to_original(state), from_original),
    ]:
        again = back(there)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[name], state[name]) for name in state)


def test_live_models_and_files_of_transformers_have_other_names_for_the_same(transformers, tmp_path):
    theirs = classifier(transformers)
    theirs.save_pretrained(tmp_path)
    live = from_transformers(theirs.state_dict(), ["classifier."])
    saved = from_transformers(load_file(tmp_path / "model.safetensors"), ["classifier."])
    assert any("self.query" in name for name in load_file(tmp_path / "model.safetensors"))
    assert any("q_proj" in name for name in theirs.state_dict())
    assert live.keys() == saved.keys() == ours().state_dict().keys()
    assert all(torch.equal(live[name], saved[name]) for name in live)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_saved_folder_is_one_for_transformers_and_for_us(transformers, labels, tmp_path):
    model, head = ours(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), drop_path=0.2), shaken(nn.Linear(64, 5))
    save_folder(model, tmp_path, head, labels)
    theirs, report = transformers.SwinForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.rand(2, 3, 64, 64)
    expected = head(model(images).pooled)
    assert far(theirs.eval()((images - model.mean) / model.std).logits, expected) <= 1e-5
    again, head, named = load_classifier(tmp_path)
    assert {**again.arguments, "image_size": 64} == {
        **model.arguments,
        "depths": [2, 2, 2],
        "num_heads": [1, 2, 4],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    assert named == labels
    assert torch.equal(head(again(images).pooled), expected)
    assert not again.training


def test_a_saved_encoder_is_a_swin_model(transformers, tmp_path):
    model = ours(image_size=(64, 96))
    save_folder(model, tmp_path)
    theirs, report = transformers.SwinModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, normalised = pictures(64, 96)
    assert far(theirs.eval()(normalised).pooler_output, model(images).pooled) <= 1e-5
    assert load_swin(tmp_path).image_size == (64, 96)
    with pytest.raises(ValueError, match=r"has no head of weight and bias over classes \(but none\)"):
        load_classifier(tmp_path)


def test_timm_opens_what_we_name_for_it(timm):
    model, theirs = ours(), timm_classifier(timm, num_classes=0)
    theirs.load_state_dict(to_timm(model.state_dict()))
    images, normalised = pictures(64, 64)
    assert far(theirs(normalised), model(images).pooled) <= 1e-5


def test_a_folder_of_timm_says_how_pictures_are_normalised(timm, tmp_path):
    theirs = timm_classifier(timm, img_size=(64, 96))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "swin_tiny_patch4_window7_224",
        "global_pool": "avg",
        "model_args": {"img_size": [64, 96]},
        "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
        "label_names": LABELS,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, head, labels = load_classifier(tmp_path)
    assert (model.image_size, labels) == ((64, 96), LABELS)
    images = torch.rand(2, 3, 64, 96)
    assert far(head(model(images).pooled), theirs((images - model.mean) / model.std)) <= 1e-5
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    for key, value, message in [
        ("global_pool", "max", "global_pool='max'; Swin knows only 'avg'"),
        ("model_args", {"mlp_ratio": 2}, r"model_args \['mlp_ratio'\], which change the model"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=message):
            load_swin(tmp_path)


def original(model: Swin, head: nn.Linear) -> dict[str, Tensor]:
    """With the indices and masks that files of the original hold."""
    tensors = to_original(model.state_dict()) | {f"head.{leaf}": value for leaf, value in head.state_dict().items()}
    for stage, (window, grid) in enumerate(zip(model.windows, model.grids(*model.image_size), strict=True)):
        for block in range(2):
            index = relative_index(window, window, torch.device("cpu"))
            tensors[f"layers.{stage}.blocks.{block}.attn.relative_position_index"] = index
        if min(grid) > window:
            mask = shift_mask(*grid, window, window // 2, torch.device("cpu"))
            tensors[f"layers.{stage}.blocks.1.attn_mask"] = mask.clamp(min=-100)
    return tensors


def test_checkpoints_of_the_original_are_read_and_their_indices_and_masks_compared(tmp_path):
    model, head, file = ours(image_size=32), shaken(nn.Linear(64, 5)), tmp_path / "swin.pth"
    assert model.windows == [4, 4, 4]
    tensors = original(model, head)
    assert "layers.1.blocks.1.attn_mask" in tensors
    assert "layers.2.blocks.1.attn_mask" not in tensors  # 4 x 4 tokens are one window
    torch.save({"model": tensors}, file)
    again, head_again, _ = load_classifier(file)
    assert again.arguments["num_heads"] == [1, 2, 4]
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(head_again(again(images).pooled), head(model(images).pooled))

    index, mask = "layers.0.blocks.0.attn.relative_position_index", "layers.0.blocks.1.attn_mask"
    for name in (index, mask):
        torch.save({"model": tensors | {name: tensors[name].flip(0)}}, file)
        with pytest.raises(ValueError, match=f"{re.escape(name)} is not what windows of 4 shifted by . have"):
            load_swin(file)
        load_swin(file, leave=[name])
    torch.save({"model": tensors}, file)
    with pytest.raises(ValueError, match=r"attn_mask is not .* pictures of 64 x 64; tell another image_size"):
        load_swin(file, image_size=64)


def test_indices_in_old_files_of_transformers_are_compared(transformers, tmp_path):
    classifier(transformers).save_pretrained(tmp_path)
    tensors, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    name = "swin.encoder.layers.2.blocks.1.attention.self.relative_position_index"
    index = relative_index(4, 4, torch.device("cpu"))
    save_file(tensors | {name: index}, file)
    load_swin(tmp_path)
    save_file(tensors | {name: index.T.contiguous()}, file)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is not what windows of 4"):
        load_swin(tmp_path)


def test_our_checkpoints_are_read(tmp_path):
    model, head, file = ours(), shaken(nn.Linear(64, 5)), tmp_path / "last.ckpt"
    state = {f"encoder.{name}": value for name, value in model.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    built = {"class_path": "mmflow.systems.swin.model.Swin.s", "init_args": {**SHAPE}}
    torch.save({"state_dict": state, "hyper_parameters": {"encoder": built}}, file)
    again, head_again, labels = load_classifier(file, drop_path=0.5)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(head_again(again(images).pooled), head(model(images).pooled))
    assert (again.arguments["drop_path"], labels) == (0.5, None)


def test_weights_of_one_size_go_to_another_and_back_to_a_file(transformers, tmp_path):
    save_folder(ours(), tmp_path / "small")
    model = load_swin(tmp_path / "small").resized(96, window=6)
    save_folder(model, tmp_path / "large")
    theirs = transformers.SwinModel.from_pretrained(tmp_path / "large").eval()
    images, normalised = pictures(96, 96)
    assert far(theirs(normalised).last_hidden_state, model(images).last) <= 1e-5


# errors


def test_each_tensor_is_accounted_for(tmp_path):
    state = to_transformers(ours().state_dict())
    missing = "encoder.layers.1.blocks.0.attention.self.key.bias"
    with pytest.raises(ValueError, match=rf"missing \['{re.escape(missing)}'\], extra \['decoder\.0\.bias'\]"):
        from_transformers({n: v for n, v in state.items() if n != missing} | {"decoder.0.bias": torch.ones(1)})
    from_transformers(state | {"decoder.0.bias": torch.ones(1)}, leave=["decoder."])
    with pytest.raises(ValueError, match=r"missing \['layers\.1\.downsample\.norm\.bias'\], extra \[\]"):
        from_timm({n: v for n, v in to_timm(ours().state_dict()).items() if n != "layers.1.downsample.norm.bias"})
    with pytest.raises(ValueError, match=r"missing \['layers\.0\.blocks\.1\.mlp\.fc1\.bias'\], extra \[\]"):
        from_original({n: v for n, v in to_original(ours().state_dict()).items() if "0.blocks.1.mlp.fc1.b" not in n})
    with pytest.raises(ValueError, match=r"exactly one transformers SwinModel: missing \[\], extra \['token'\]"):
        to_transformers(ours().state_dict() | {"token": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing \['norm\.bias', 'norm\.weight'\]"):
        to_timm({name: v for name, v in ours().state_dict().items() if not name.startswith("norm.")})
    save_file(to_timm(ours().state_dict()) | {"norm.weight": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"size mismatch for norm\.weight"):
        load_swin(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "swinv2"}, "model_type='swinv2'; Swin knows only 'swin'"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=2.0; Swin knows only 4.0"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings=True; Swin knows only False"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"patch_size": [2, 4]}, r"patch_size=\[2, 4\]; Swin has square patches"),
        ({"image_size": 16}, r"16 x 16 pixels leave windows of \[4, 4, 2\] .* give image_size=32 or more"),
        ({"window_size": 8}, "size mismatch for stages.0.blocks.0.attention.bias_table"),
        ({"id2label": {"0": "a"}}, "the head has 5 outputs, but there are names for 1 classes"),
    ],
)
def test_settings_that_swin_does_not_have_are_named(changes, message, tmp_path):
    save_folder(ours(), tmp_path, nn.Linear(64, 5), LABELS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path)


def test_a_picture_size_can_be_told_where_the_file_says_a_small_one(tmp_path):
    save_folder(ours(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_size": 16}))
    assert load_swin(tmp_path, image_size=48).image_size == (48, 48)


def test_what_transformers_has_no_place_for_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"leave windows of \[4, 4, 2\] in the stages, where transformers has 4"):
        save_folder(ours(image_size=16), tmp_path / "small")
    with pytest.raises(ValueError, match="5 labels for a head of 4 outputs"):
        save_folder(ours(), tmp_path / "labels", nn.Linear(64, 4), LABELS)
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_swin_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no file or folder of this name"):
        load_swin(tmp_path / "nothing")
    save_file({"blocks.0.attn.qkv.weight": torch.ones(1)}, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"vit\.safetensors: it holds tensors \['blocks\.0\.attn\.qkv\.weight'\]"):
        load_swin(tmp_path / "vit.safetensors")
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"holds \['model'\], where a state dict has names and tensors only"):
        load_swin(tmp_path / "list.pth")
