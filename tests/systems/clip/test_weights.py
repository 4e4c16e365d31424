"""CLIP in and out of files of transformers, open_clip and OpenAI: the same numbers, and every tensor."""

import copy
import json
from functools import partial

import pytest
import torch

from mmflow.nn.contrastive import Similarity
from mmflow.systems.clip.model import CLIP, TextTransformer
from mmflow.systems.clip.tokenizer import BytePairTokenizer
from mmflow.systems.clip.weights import load_clip, save_folder, to_open_clip, to_transformers
from mmflow.systems.vit.model import ViT

pytest.importorskip("mmflow.torchaudio_cpu", exc_type=ImportError)  # lets transformers see one that imports
transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4} | {
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2} | {
    "vocab_size": 99,
    "max_position_embeddings": 12,
}
# captions of different lengths: 97 begins them, 98 ends them, whatever follows
TOKENS = torch.tensor(
    [
        [97, 5, 98, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [97, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 98],
        [97, 3, 3, 1, 2, 98, 98, 98, 98, 98, 98, 98],
        [97, 98, 50, 60, 98, 0, 0, 0, 0, 0, 0, 0],
    ]
)


def randomised(module, seed=0):
    """Each tensor drawn anew, so that none of a kind is at its usual 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            usual = {"logit_scale": 1.5, "logit_bias": -3.0}.get(name, 1.0 if "norm.weight" in name else 0.0)
            parameter.copy_(usual + 0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def clip_model(hidden_act="quick_gelu", projection_dim=24, vision=VISION, text=TEXT, eos_token_id=98):
    config = transformers.CLIPConfig(
        vision_config={**vision, "hidden_act": hidden_act, "projection_dim": projection_dim},
        text_config={**text, "hidden_act": hidden_act, "projection_dim": projection_dim, "eos_token_id": eos_token_id},
        projection_dim=projection_dim,
    )
    return randomised(transformers.CLIPModel(config))


def siglip_model(**text):
    return randomised(
        transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config={**TEXT, **text}))
    )


def pictures(seed=1):
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def with_gradients(clip):
    """The same model with each tensor's gradient in its place."""
    graded = copy.deepcopy(clip)
    with torch.no_grad():
        for gradient, parameter in zip(graded.parameters(), clip.parameters(), strict=True):
            gradient.copy_(parameter.grad)
    return graded


def our_loss(clip, images, tokens):
    u, v = clip.encode_image(images), clip.encode_text(tokens)
    return clip.similarity.loss_sum(u, v, u, v, 0) / len(u)


close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


def assert_same_gradients(ours, theirs):
    for name, parameter in theirs.named_parameters():
        gradient = ours.pop(name.removeprefix("text."))
        close(gradient, parameter.grad)
        if not name.endswith("k_proj.bias"):  # a constant of all scores, which no softmax sees
            assert (gradient - parameter.grad).norm() < 1e-4 * parameter.grad.norm(), name
    assert not ours


def assert_like_transformers(clip, theirs):
    images = pictures()
    normalised = (images - clip.vision.mean) / clip.vision.std
    other = theirs(pixel_values=normalised, input_ids=TOKENS, return_loss=True)
    vision = theirs.vision_model(normalised, output_hidden_states=True)
    text = theirs.text_model(TOKENS, output_hidden_states=True)
    ours = clip.vision(images), clip.text(TOKENS)
    for output, layers in zip(ours, (vision.hidden_states, text.hidden_states), strict=True):
        assert len(output.layers) == len(layers) == 4
        for number, layer in enumerate(layers):
            close(output.layers[str(number)], layer)
    close(ours[1].last, text.last_hidden_state)
    close(ours[0].pooled, vision.pooler_output)
    close(clip.encode_image(images), other.image_embeds)
    close(clip.encode_text(TOKENS), other.text_embeds)
    close(clip(images, TOKENS), other.logits_per_image)
    loss = our_loss(clip, images, TOKENS)
    close(loss, other.loss)
    loss.backward()
    other.loss.backward()
    assert_same_gradients(to_transformers(with_gradients(clip)), theirs)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_all_layers_loss_and_gradients_are_those_of_clip_model(tmp_path, hidden_act):
    theirs = clip_model(hidden_act)
    theirs.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    assert not clip.training
    assert_like_transformers(clip, theirs)


def test_projections_are_the_right_way_round_where_widths_are_equal(tmp_path):
    theirs = clip_model(projection_dim=48, text={**TEXT, "hidden_size": 48})
    theirs.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    assert clip.image_projection.weight.shape == clip.text_projection.weight.shape == (48, 48)
    assert_like_transformers(clip, theirs)
    other = load_clip(to_open_clip(clip), "quick_gelu", {"num_heads": 4}, {"num_heads": 2})
    assert torch.equal(other(pictures(), TOKENS), clip(pictures(), TOKENS))


@pytest.mark.parametrize("text_width", [48, 32], ids=["one width", "texts are narrower"])
def test_all_layers_loss_and_gradients_are_those_of_siglip_model(tmp_path, text_width):
    theirs = siglip_model(hidden_size=text_width, projection_size=48)
    theirs.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    assert_like_transformers(clip, theirs)
    assert theirs.logit_scale.shape == (1,)
    assert clip.similarity.log_scale.shape == ()


def test_the_activation_is_visible():
    quick, exact = (
        load_clip(open_clip_state(open_clip_model()), activation, {"num_heads": 3}, {"num_heads": 2})
        for activation in ("quick_gelu", "gelu")
    )
    assert (quick(pictures(), TOKENS) - exact(pictures(), TOKENS)).abs().max() > 1e-3


@pytest.mark.parametrize("make", [clip_model, partial(siglip_model, hidden_size=48)], ids=["clip", "siglip"])
def test_a_saved_folder_is_transformers_and_comes_back_bit_by_bit(tmp_path, make):
    theirs = make()
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    clip = load_clip(tmp_path / "theirs")
    assert clip.vision.arguments["mean"] == [0.1, 0.2, 0.3]
    save_folder(clip, tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    ours = load_clip(tmp_path / "ours")
    for name, value in clip.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert ours.vision.arguments == clip.vision.arguments
    assert ours.text.arguments == clip.text.arguments
    assert ours.text.end_id == (98 if make is clip_model else 1)
    normalised = (pictures() - ours.vision.mean) / ours.vision.std
    close(ours(pictures(), TOKENS), again(pixel_values=normalised, input_ids=TOKENS).logits_per_image)


def test_settings_that_old_files_have_are_understood(tmp_path):
    """The end of texts was misnamed 2, and a vector of positions was saved along."""
    theirs = clip_model(eos_token_id=2)
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    (tmp_path / "model.safetensors").unlink()
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(9)[None].half() for tower in ("vision", "text")}
    torch.save(theirs.state_dict() | positions, tmp_path / "pytorch_model.bin")
    clip = load_clip(tmp_path)
    assert clip.text.end_id == 98
    assert_like_transformers(clip, theirs)


# open_clip and OpenAI


def open_clip_model(quick_gelu=True, own_text=False, init_logit_bias=None, **changes):
    kind = open_clip.model.CustomTextCLIP if own_text else open_clip.CLIP
    vision = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 48, "head_width": 16, "mlp_ratio": 2.0}
    text = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 2, "layers": 3}
    model = kind(24, vision | changes, text, quick_gelu=quick_gelu, init_logit_bias=init_logit_bias, output_dict=True)
    return randomised(model)


def open_clip_state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


HEADS = {"vision": {"num_heads": 3}, "text": {"num_heads": 2}}


@pytest.mark.parametrize("own_text", [False, True], ids=["one module", "a text tower of its own"])
@pytest.mark.parametrize("bias", [None, -5.0], ids=["softmax", "sigmoid"])
def test_embeddings_loss_and_gradients_are_those_of_open_clip(own_text, bias):
    theirs = open_clip_model(quick_gelu=bias is None, own_text=own_text, init_logit_bias=bias)
    clip = load_clip(open_clip_state(theirs), "gelu" if bias else "quick_gelu", **HEADS)
    images = pictures()
    normalised = (images - clip.vision.mean) / clip.vision.std
    close(clip.image_features(images), theirs.encode_image(normalised))
    close(clip.text_features(TOKENS), theirs.encode_text(TOKENS))
    close(clip(images, TOKENS), theirs.get_logits(normalised, TOKENS)[0])
    for tower, prefix in ((clip.vision(images), "image"), (clip.text(TOKENS), "text")):
        if own_text and prefix == "text":
            continue  # it returns no layers
        layers = theirs.forward_intermediates(
            normalised, TOKENS, normalize=False, image_output_fmt="NLC", image_output_extra_tokens=True
        )
        for number, layer in enumerate(layers[f"{prefix}_intermediates"], 1):
            ours = tower.layers[str(number)]
            close(ours[:, 1:] if prefix == "image" else ours, layer)
    loss = our_loss(clip, images, TOKENS)
    other = (open_clip.loss.SigLipLoss() if bias else open_clip.loss.ClipLoss())(**theirs(normalised, TOKENS))
    close(loss, other)
    loss.backward()
    other.backward()
    assert_same_gradients(to_open_clip(with_gradients(clip)), theirs)


def test_a_state_dict_of_open_clip_comes_back_bit_by_bit():
    state = open_clip_state(open_clip_model())
    back = to_open_clip(load_clip(state, "quick_gelu", **HEADS))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) and back[name].shape == value.shape for name, value in state.items())
    assert load_clip(state, "quick_gelu", **HEADS).similarity.log_scale == state["logit_scale"]


def test_pictures_without_the_norm_before_are_seen():
    theirs = open_clip_model(no_ln_pre=True)
    clip = load_clip(open_clip_state(theirs), "quick_gelu", **HEADS)
    normalised = (pictures() - clip.vision.mean) / clip.vision.std
    close(clip.image_features(pictures()), theirs.encode_image(normalised))
    assert to_open_clip(clip).keys() == theirs.state_dict().keys()


def test_a_folder_of_open_clip_tells_its_settings(tmp_path):
    theirs = open_clip_model(quick_gelu=False)
    settings = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {
                "image_size": 32,
                "layers": 3,
                "width": 48,
                "head_width": 16,
                "patch_size": 8,
                "mlp_ratio": 2.0,
            },
            "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 2, "layers": 3},
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    clip = load_clip(tmp_path)
    normalised = (pictures() - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    close(clip(pictures(), TOKENS), theirs.get_logits(normalised, TOKENS)[0])
    settings["model_cfg"]["text_cfg"]["no_causal_mask"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"\{'no_causal_mask': True\}, which the towers here do not have"):
        load_clip(tmp_path)


def test_a_training_of_open_clip_and_its_parallel_names(tmp_path):
    state = open_clip_state(open_clip_model())
    parallel = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": parallel, "optimizer": {}}, tmp_path / "epoch_3.pt")
    clip = load_clip(tmp_path / "epoch_3.pt", "quick_gelu", **HEADS)
    assert torch.equal(to_open_clip(clip)["visual.proj"], state["visual.proj"])


def test_openai_weights_are_halves_with_three_numbers_beside_them(tmp_path):
    theirs = open_clip.CLIP(
        64,
        {"image_size": 32, "patch_size": 16, "layers": 2, "width": 128},
        {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    )
    state = {name: value.half() for name, value in randomised(theirs).state_dict().items()}
    theirs.load_state_dict(state)
    extra = {"input_resolution": 32, "context_length": 12, "vocab_size": 99}
    torch.save(state | {name: torch.tensor(value) for name, value in extra.items()}, tmp_path / "openai.pt")
    clip = load_clip(tmp_path / "openai.pt", activation="quick_gelu")
    assert clip.vision.arguments["num_heads"] == 2  # 64 wide each
    assert clip.vision.image_size == (32, 32)
    assert {value.dtype for value in clip.state_dict().values()} == {torch.float32}
    normalised = (pictures() - clip.vision.mean) / clip.vision.std
    close(clip.encode_image(pictures()), theirs.encode_image(normalised, normalize=True))
    close(clip.encode_text(TOKENS), theirs.encode_text(TOKENS, normalize=True))


def test_programs_are_not_run(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "ViT-B-32.pt")
    with pytest.raises(ValueError, match=r"ViT-B-32\.pt: it is an archive of TorchScript.*state_dict\(\), 'clip\.pt'"):
        load_clip(tmp_path / "ViT-B-32.pt")


# what is refused


def test_the_activation_must_be_told():
    state = open_clip_state(open_clip_model())
    with pytest.raises(ValueError, match=r"do not show the activation.*activation='quick_gelu' for OpenAI"):
        load_clip(state, **HEADS)
    with pytest.raises(ValueError, match="activation='swish' is unknown"):
        load_clip(state, "swish", **HEADS)


def test_heads_that_cannot_be_guessed_must_be_told():
    with pytest.raises(ValueError, match=r"no published tower is 48 wide.*vision=\{'num_heads': \.\.\.\}"):
        load_clip(open_clip_state(open_clip_model()), "gelu")


def test_missing_and_extra_tensors_are_named():
    state = open_clip_state(open_clip_model())
    state["visual.transformer.resblocks.1.ls_1.gamma"] = state.pop("visual.transformer.resblocks.1.ln_1.bias")
    with pytest.raises(
        ValueError, match=r"missing \['visual.*resblocks\.1\.ln_1\.bias'\], extra \['visual.*ls_1\.gamma"
    ):
        load_clip(state, "gelu", **HEADS)
    state = open_clip_state(open_clip_model())
    state["ln_final.weight"] = torch.ones(31)
    with pytest.raises(ValueError, match=r"text\.norm\.weight: copying a param with shape torch\.Size\(\[31\]\)"):
        load_clip(state, "gelu", **HEADS)


def test_other_models_are_refused_by_what_they_have(tmp_path):
    with pytest.raises(ValueError, match=r"picture tower has \['visual\.layer1'\], so it is no ViT"):
        load_clip({"visual.layer1.0.conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"no tensors of open_clip or OpenAI.*a folder of transformers whole"):
        load_clip(clip_model().state_dict(), "gelu")
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match="model_type 'blip'; only 'clip', 'siglip' and open_clip are read"):
        load_clip(tmp_path)
    clip_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="hidden_act='relu'; the towers know gelu, gelu_pytorch_tanh, quick_gelu"):
        load_clip(tmp_path)
    with pytest.raises(ValueError, match="no file or folder of this name"):
        load_clip(tmp_path / "absent.pt")


def tiny(objective="info_nce", end_id=98, **vision):
    picture = ViT(32, 8, 16, 1, 2, **{"norm_before": True, "patch_bias": False, **vision})
    return CLIP(picture, TextTransformer(99, 12, 16, 1, 2, end_id=end_id), 8, Similarity(objective))


@pytest.mark.parametrize(
    ("clip", "what"),
    [
        (tiny(pool="mean"), r"this CLIP has \{'vision.pool': 'mean'\}"),
        (tiny(patch_bias=True), r"\{'vision.patch_bias': True\}"),
        (tiny("sigmoid"), r"\{'objective': 'sigmoid'\}"),
        (tiny(end_id=2), "end_id=2 is 'the highest token'"),
    ],
)
def test_towers_that_transformers_does_not_have_are_not_saved(tmp_path, clip, what):
    with pytest.raises(ValueError, match=what):
        save_folder(clip, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_open_clip_takes_the_sigmoid_but_no_other_pooling():
    assert "logit_bias" in to_open_clip(tiny("sigmoid"))
    with pytest.raises(ValueError, match=r"open_clip's CLIP has .*this CLIP has \{'vision.pool': 'mean'\}"):
        to_open_clip(tiny(pool="mean"))


# ours


def test_the_tokenizer_goes_along(tmp_path):
    tokenizer = BytePairTokenizer.train(["a red ball", "a blue box"], 520, context=12)
    clip = CLIP(tiny().vision, TextTransformer(520, 12, 16, 1, 2, end_id=tokenizer.end_id), 8)
    save_folder(clip, tmp_path, tokenizer)
    again = BytePairTokenizer(tmp_path, context=12)
    again.check(tokenizer.fingerprint)
    assert load_clip(tmp_path).text.end_id == again.end_id == 519


def test_a_checkpoint_of_ours_tells_all(tmp_path):
    clip = randomised(tiny())
    towers = {
        "vision": {"class_path": "mmflow.systems.vit.model.ViT", "init_args": clip.vision.arguments},
        "text": {"class_path": "mmflow.systems.clip.model.TextTransformer", "init_args": clip.text.arguments},
    }
    built = {"class_path": "mmflow.systems.clip.model.CLIP", "init_args": {**towers, "embed_dim": 8}}
    state = {f"clip.{name}": value for name, value in clip.state_dict().items()}
    torch.save({"hyper_parameters": {"clip": built}, "state_dict": state}, tmp_path / "last.ckpt")
    again = load_clip(tmp_path / "last.ckpt")
    assert torch.equal(again(pictures(), TOKENS), clip(pictures(), TOKENS))
    with pytest.raises(ValueError, match=r"last\.ckpt: it is a checkpoint of ours, which tells all of its settings"):
        load_clip(tmp_path / "last.ckpt", "gelu")
