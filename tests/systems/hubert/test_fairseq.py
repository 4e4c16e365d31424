"""Checkpoints of fairseq, which is not installed: files like its own, with classes that are gone when they are read."""

import argparse
import dataclasses
import enum
import os
import re
import sys
import types
import typing

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mmflow.data.text import Characters
from mmflow.systems.hubert import fairseq
from mmflow.systems.hubert.weights import load_ctc, load_hubert, load_units

os.environ["HF_HUB_OFFLINE"] = "1"
STYLES = [("default", False, False), ("layer_norm", True, False), ("layer_norm", True, True)]
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]  # dict.ltr.txt after the specials
FORMATS = pytest.mark.parametrize("zipped", [True, False])  # torch.save since 1.6 and before
# transformers' names, then fairseq's (specs/hubert.md, section 7)
TABLE = [
    (r"feature_extractor\.conv_layers\.(\d)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"feature_projection\.layer_norm\.", "layer_norm."),
    (r"feature_projection\.projection\.", "post_extract_proj."),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.bias", "encoder.pos_conv.0.bias"),
    (r"(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.feed_forward\.intermediate_dense\.", r"\1.fc1."),
    (r"(encoder\.layers\.\d+)\.feed_forward\.output_dense\.", r"\1.fc2."),
    ("masked_spec_embed", "mask_emb"),
]


class Mode(enum.Enum):
    default = "default"
    layer_norm = "layer_norm"


@dataclasses.dataclass
class ModelConfig:
    """Those of HubertConfig's fields that matter, and some of the kinds of values that the others have."""

    _name: str = "hubert"
    extractor_mode: Mode = Mode.default
    encoder_layers: int = 2
    encoder_attention_heads: int = 4
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.2
    activation_dropout: float = 0.3
    dropout_input: float = 0.4
    encoder_layerdrop: float = 0.05
    feature_grad_mult: float = 0.1
    logit_temp: float = 0.2
    conv_feature_layers: str = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    weights: typing.Optional[typing.List[float]] = None  # noqa: UP006, UP045
    extra: typing.Dict[str, typing.Any] = dataclasses.field(default_factory=lambda: {"a": [1, 2]})  # noqa: UP006


class Dictionary:
    def __init__(self, symbols: list[str]) -> None:
        self.symbols, self.count = symbols, [1] * len(symbols)
        self.indices = {symbol: number for number, symbol in enumerate(symbols)}
        self.bos_word, self.pad_word = "<s>", "<pad>"


class Trap:
    """Creates `path` when it is unpickled the ordinary way."""

    def __init__(self, function, *args: object) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def classes():
    """The classes above where fairseq has them, for as long as a file is written."""
    homes = {
        "fairseq": [],
        "fairseq.data": [],
        "fairseq.data.dictionary": [Dictionary],
        "fairseq.models.hubert.hubert": [ModelConfig, Mode],
    }
    before = {cls: cls.__module__ for found in homes.values() for cls in found}

    def enter() -> None:
        for name, found in homes.items():
            sys.modules[name] = types.ModuleType(name)
            for cls in found:
                cls.__module__ = name
                setattr(sys.modules[name], cls.__name__, cls)

    def leave() -> None:
        for name in homes:
            sys.modules.pop(name, None)
        for cls, module in before.items():
            cls.__module__ = module

    enter()
    yield leave
    leave()


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("mmflow.torchaudio_cpu", exc_type=ImportError)  # lets transformers see one that imports
    return pytest.importorskip("transformers", exc_type=ImportError)


def published(transformers, style, name: str) -> nn.Module:
    """A random model of transformers, in eval mode, with biases and norms that are random too."""
    mode, pre_norm, conv_bias = style
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=[16] * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=32, conv_bias=conv_bias,
        feat_extract_norm="group" if mode == "default" else "layer", do_stable_layer_norm=pre_norm,
    )  # fmt: skip
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def fairseq_names(model: nn.Module, style, prefix: str = "") -> dict[str, Tensor]:
    norm = r"feature_extractor.conv_layers.\1.2." + ("1." if style[0] == "layer_norm" else "")
    state = {}
    for key, value in model.state_dict().items():
        name = key.removeprefix("hubert.")
        for pattern, new in [(r"feature_extractor\.conv_layers\.(\d)\.layer_norm\.", norm), *TABLE]:
            name = re.sub(f"^{pattern}", new, name)
        state["w2v_encoder.proj." + name[8:] if name.startswith("lm_head.") else prefix + name] = value
    return state


def settings(style) -> ModelConfig:
    mode, pre_norm, _ = style
    return ModelConfig(extractor_mode=Mode(mode), layer_norm_first=pre_norm)


def pretrained(transformers, style, **more) -> tuple[dict, nn.Module]:
    """A file as fairseq writes it after pretraining on 500 units, but for the config, and the model that it holds."""
    model = published(transformers, style, "HubertModel")
    state = fairseq_names(model, style)
    state |= {"final_proj.weight": torch.randn(24, 32), "final_proj.bias": torch.randn(24)}
    state["label_embs_concat"] = torch.randn(504, 24)
    units = Dictionary(["<s>", "<pad>", "</s>", "<unk>", *map(str, range(500))])
    return {
        "args": None,
        "cfg": {"model": vars(settings(style)) | {"extractor_mode": style[0]}, "task": {"normalize": style[1]}},
        "model": state,
        "criterion": None,
        "optimizer_history": [{"criterion_name": "HubertCriterion", "num_updates": 400_000, "best": 3.2}],
        "task_state": {"dictionaries": [units]},
        "extra_state": {"epoch": 7, "val_loss": 3.2, "previous_training_time": 1.5},
    } | more, model


def fine_tuned(transformers, style, **more) -> tuple[dict, nn.Module]:
    """The same after fine-tuning on letters, with the config of the pretraining inside its own."""
    model = published(transformers, style, "HubertForCTC")
    state = fairseq_names(model, style, "w2v_encoder.w2v_model.")
    state["w2v_encoder.w2v_model.label_embs_concat"] = torch.randn(504, 24)
    inner = {"model": vars(settings(style)) | {"extractor_mode": style[0]}, "task": {"normalize": style[1]}}
    return {
        "args": None,
        "cfg": {"model": {"_name": "hubert_ctc", "dropout": 0.9, "w2v_args": inner}, "task": {"fine_tuning": True}},
        "model": state,
        "optimizer_history": [],
        "task_state": {"target_dictionary": Dictionary(LETTERS)},
    } | more, model


def save(content, path, zipped: bool = True) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


@FORMATS
@pytest.mark.parametrize("style", STYLES)
def test_a_pretrained_file_gives_the_layers_of_transformers(transformers, classes, style, zipped, tmp_path):
    content, theirs = pretrained(transformers, style)
    save(content, tmp_path / "hubert.pt", zipped)
    classes()
    model = load_hubert(tmp_path / "hubert.pt")
    assert not [name for name in sys.modules if name.startswith("fairseq")]
    assert not model.training
    assert model.normalize is style[1]
    audio = torch.randn(2, 6000)
    with torch.no_grad():
        ours, other = model(audio, normalized=True), theirs(audio, output_hidden_states=True)
    for k, hidden in enumerate(other.hidden_states):
        assert (ours.layers[str(k)] - hidden).abs().max() < 1e-5
    assert (ours.last - other.last_hidden_state).abs().max() < 1e-5
    assert torch.equal(model.mask_embedding, theirs.masked_spec_embed)


@FORMATS
@pytest.mark.parametrize("style", STYLES)
def test_a_fine_tuned_file_gives_the_logits_of_transformers(transformers, classes, style, zipped, tmp_path):
    content, theirs = fine_tuned(transformers, style)
    save(content, tmp_path / "hubert.pt", zipped)
    classes()
    model, head, tokens = load_ctc(tmp_path / "hubert.pt")
    assert tokens == Characters.tokens
    audio = torch.randn(2, 6000)
    with torch.no_grad():
        assert (head(model(audio, normalized=True).last) - theirs(audio).logits).abs().max() < 1e-5
    assert (model.dropout.p, model.normalize) == (0.1, style[1])


@pytest.mark.parametrize("kind", ["omegaconf", "namespace", "nested namespace"])
def test_every_form_of_the_config_is_read(transformers, classes, kind, tmp_path):
    style = STYLES[1]
    flat = argparse.Namespace(task="hubert", arch="hubert", normalize=True, **vars(settings(style)))
    if kind == "omegaconf":
        config = OmegaConf.create({"model": OmegaConf.structured(settings(style)), "task": {"normalize": True}})
        content, _ = pretrained(transformers, style, cfg=config)
    elif kind == "namespace":
        content, _ = pretrained(transformers, style, args=flat, cfg=None)
    else:
        content, _ = fine_tuned(
            transformers, style, args=argparse.Namespace(arch="hubert_ctc", w2v_args=flat), cfg=None
        )
    save(content, tmp_path / "hubert.pt")
    classes()
    model = load_hubert(tmp_path / "hubert.pt")
    block = model.blocks[0]
    assert (block.attention.num_heads, model.pre_norm, model.normalize) == (4, True, True)
    assert (model.dropout.p, block.attention.dropout, block.ffn.dropout.p) == (0.1, 0.2, 0.3)
    assert (model.input_dropout.p, model.layer_drop, model.feature_grad_mult) == (0.4, 0.05, 0.1)


def test_cluster_c_is_row_c_plus_4(transformers, classes, tmp_path):
    content, _ = pretrained(transformers, STYLES[0])
    save(content, tmp_path / "hubert.pt")
    classes()
    _, head = load_units(tmp_path / "hubert.pt")
    assert head.units[0].shape == (500, 24)
    assert torch.equal(head.units[0][7], content["model"]["label_embs_concat"][11])
    hidden = torch.randn(3, 32)
    frames = hidden @ content["model"]["final_proj.weight"].T + content["model"]["final_proj.bias"]
    with torch.no_grad():
        cosine = torch.cosine_similarity(frames, content["model"]["label_embs_concat"][11], dim=-1)
        assert (head(hidden)[0][:, 7] - cosine / 0.2).abs().max() < 1e-5


def test_several_sets_of_units_are_refused(transformers, classes, tmp_path):
    content, _ = pretrained(transformers, STYLES[0])
    save(content | {"task_state": {"dictionaries": [Dictionary(LETTERS), Dictionary(LETTERS)]}}, tmp_path / "hubert.pt")
    classes()
    with pytest.raises(ValueError, match=r"2 dictionaries of units of sizes \[32, 32\]; only one set of units is read"):
        load_units(tmp_path / "hubert.pt")
    assert load_hubert(tmp_path / "hubert.pt", leave=["final_proj.", "label_embs_concat"]).dim == 32


def test_a_recogniser_of_other_letters_is_refused(transformers, classes, tmp_path):
    letters = [*LETTERS[:5], "A", *LETTERS[6:]]
    content, _ = fine_tuned(transformers, STYLES[0], task_state={"target_dictionary": Dictionary(letters)})
    save(content, tmp_path / "hubert.pt")
    classes()
    with pytest.raises(
        ValueError, match=r"hubert\.pt: the outputs of its CTC head are .*: number 5 is 'A', not 'E' \(1"
    ):
        load_ctc(tmp_path / "hubert.pt")
    assert load_hubert(tmp_path / "hubert.pt").dim == 32


def test_missing_and_extra_tensors_are_named_as_in_the_file(transformers, classes, tmp_path):
    content, _ = fine_tuned(transformers, STYLES[1])
    stem = "w2v_encoder.w2v_model.encoder.layers.1."
    content["model"][f"{stem}fc3.weight"] = content["model"].pop(f"{stem}fc2.weight")
    save(content, tmp_path / "hubert.pt")
    classes()
    with pytest.raises(ValueError, match=rf"missing \['{stem}fc2\.weight'\], extra \['{stem}fc3\.weight'\]"):
        load_hubert(tmp_path / "hubert.pt")
    with pytest.raises(ValueError, match=rf"missing \['{stem}fc2\.weight'\], extra \[\]"):
        load_hubert(tmp_path / "hubert.pt", leave=[f"{stem}fc3."])


def test_a_file_with_fewer_blocks_than_its_config_says_is_refused(transformers, classes, tmp_path):
    content, _ = pretrained(transformers, STYLES[0])
    content["cfg"]["model"]["encoder_layers"] = 3
    save(content, tmp_path / "hubert.pt")
    classes()
    with pytest.raises(ValueError, match=r"missing \['encoder\.layers\.2\.fc1\.bias', "):
        load_hubert(tmp_path / "hubert.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_attention_heads": None},
            r"config does not say \['encoder_attention_heads'\], which the tensors do n",
        ),
        ({"activation_fn": "relu"}, "its config has activation_fn='relu'; Hubert knows only 'gelu'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(transformers, classes, change, message, tmp_path):
    content, _ = pretrained(transformers, STYLES[0])
    content["cfg"]["model"] |= change
    save(content, tmp_path / "hubert.pt")
    classes()
    with pytest.raises(ValueError, match=message):
        load_hubert(tmp_path / "hubert.pt")


@FORMATS
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.mkdir, r"posix\.mkdir"), (eval, "eval"), (getattr, "getattr"), (torch.hub.load, r"torch\.hub\.load")],
)
def test_a_file_that_would_run_something_is_refused_by_name_and_runs_nothing(function, named, zipped, tmp_path):
    target = tmp_path / "made"
    argument = f"__import__('os').mkdir({str(target)!r})" if function is eval else str(target)
    save({"cfg": Trap(function, argument), "model": {}}, tmp_path / "evil.pt", zipped)
    with pytest.raises(
        ValueError, match=rf"evil\.pt: it asks for {named}, which is no part of a checkpoint; nothing of"
    ):
        load_hubert(tmp_path / "evil.pt")
    assert not target.exists()


@FORMATS
def test_code_that_borrows_the_name_of_a_known_package_is_not_run_either(zipped, tmp_path, monkeypatch):
    ran = []

    def attack(word: str) -> None:
        ran.append(word)

    attack.__module__, attack.__qualname__ = "fairseq.attack", "attack"
    module = types.ModuleType("fairseq.attack")
    module.attack = attack
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.attack", module)  # installed, and still there when the file is read
    save({"cfg": Trap(attack, "boo"), "typed": Trap(dict, [("a", 1)])}, tmp_path / "evil.pt", zipped)
    loaded = fairseq.restricted_load(tmp_path / "evil.pt")
    assert ran == []
    assert type(loaded["cfg"]) is type(loaded["typed"]) is fairseq.Inert
    assert fairseq.plain(loaded["cfg"]) == "boo"


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short", b"\x80\x02}q\x00.", b"\x80\x02h\x05."])
def test_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt: torch cannot read it"):
        load_hubert(tmp_path / "file.pt")


@FORMATS
def test_a_file_cut_short_is_refused(transformers, classes, zipped, tmp_path):
    content, _ = pretrained(transformers, STYLES[0])
    save(content, tmp_path / "hubert.pt", zipped)
    classes()
    data = (tmp_path / "hubert.pt").read_bytes()
    (tmp_path / "hubert.pt").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=r"hubert\.pt: torch cannot read it"):
        load_hubert(tmp_path / "hubert.pt")
