"""CLIP in training: what it learns and reports, what stays locked, and which vocabulary it goes on with."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from mmflow.cli import main
from mmflow.evaluation.retrieval import recalls
from mmflow.nn.contrastive import Similarity
from mmflow.systems.clip import training
from mmflow.systems.clip.model import CLIP, TextTransformer
from mmflow.systems.clip.tokenizer import BytePairTokenizer
from mmflow.systems.clip.training import (
    ClipTraining,
    Found,
    accuracies,
    check_vocabulary,
    description,
    gather,
    mean_cosines,
)
from mmflow.systems.clip.weights import load_clip
from mmflow.systems.vit.model import ViT
from tests.shards import encoded, write_data_set
from tests.systems.clip.pairs import COLOURS, CONTEXT, GROUNDS, TEXTS, VOCAB_SIZE, write_pairs

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

END = VOCAB_SIZE - 1
VISION: dict[str, Any] = {"image_size": 16, "patch_size": 8, "dim": 32, "depth": 1, "num_heads": 2, "pool": "mean"}
TEXT: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "context": CONTEXT, "dim": 32, "depth": 1, "num_heads": 2}
TEXT |= {"end_id": END, "activation": "gelu"}
CLASSES = [f"{colour} bar on {ground}" for colour in COLOURS for ground in GROUNDS]


def model_of(vision: dict[str, Any] = VISION, **changes: Any) -> dict[str, Any]:
    towers = {
        "vision": {"class_path": "mmflow.systems.vit.model.ViT", "init_args": vision},
        "text": {"class_path": "mmflow.systems.clip.model.TextTransformer", "init_args": TEXT},
        "embed_dim": 16,
    }
    clip = {"class_path": "mmflow.systems.clip.model.CLIP", "init_args": towers | changes.pop("clip", {})}
    options = {"clip": clip, "lr": 5e-3, "warmup": 0.1, "weight_decay": 0.1} | changes
    return {"class_path": "mmflow.systems.clip.training.ClipTraining", "init_args": options}


def tokenizer_at(path: str) -> dict[str, Any]:
    init = {"path": path, "context": CONTEXT}
    return {"class_path": "mmflow.systems.clip.tokenizer.BytePairTokenizer", "init_args": init}


def data_of(spec: Path, tokenizer: str, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"spec": str(spec), "tokenizer": tokenizer_at(tokenizer), "size": 16, "batch_size": 4}
    options |= {"captions": "captions", "evaluated": -1, "class_name": "{colour} bar on {ground}", "lanes": 2}
    options |= {"num_workers": 0, "scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
    return {"class_path": "mmflow.systems.clip.data.PicturesAndTexts", "init_args": options | changes}


def pipeline(folder: Path, spec: Path, steps: int = 80, **changes: Any) -> Path:
    """Tokenizer and training."""
    texts = {"class_path": "mmflow.data.transforms.OneOf"}
    told = {"spec": str(spec), "transforms": {"info": texts}, "batch_size": 1, "num_workers": 0}
    tokens = {"vocab_size": VOCAB_SIZE, "captions": "captions", "context": CONTEXT}
    model = model_of(classes=CLASSES, templates=["there is a {}", "a {}"], **changes)
    tree = {
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 1},
        "stages": {
            "tokenizer": {
                "run": "fit",
                "model": {"class_path": "mmflow.systems.clip.training.TokenizerTraining", "init_args": tokens},
                "data": {"class_path": "mmflow.data.fields.FieldData", "init_args": told},
                "trainer": {"max_steps": 1, "limit_val_batches": 0},
            },
            "clip": {
                "run": "fit",
                "model": model,
                "data": data_of(spec, "${stages.tokenizer.folder}/tokenizer.json"),
                "trainer": {"max_steps": steps, "val_check_interval": steps // 2},
                "checkpoints": {"every_steps": steps // 4, "keep": 99},
            },
        },
    }
    (folder / "clip.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "clip.yaml"


def run(config: Path, work: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), "--workdir", str(work), *more])


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The pipeline and its work folder. Only to be copied and read."""
    folder = tmp_path_factory.mktemp("trained")
    config = pipeline(folder, write_pairs(folder, train=16, validation=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cli.py"])
        assert run(config, folder / "work") == 0
    return config, folder / "work"


def metrics(work: Path, stage: str) -> dict[str, float]:
    return json.loads((work / stage / "done.json").read_text())["metrics"]


def saved(work: Path, stage: str, step: int) -> dict[str, Any]:
    return torch.load(work / stage / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)


# -- learning ----------------------------------------------------------------------------------------------------------


def test_eight_kinds_of_pictures_are_told_apart_by_their_captions_and_by_classes(trained):
    _, work = trained
    found = metrics(work, "clip")
    assert found["val/acc"] == found["val/acc5"] == 1
    assert found["val/image_to_text_r1"] == found["val/text_to_image_r1"] == 1
    assert (found["val/acc_seen"], found["val/acc_unseen"]) == (1, 1)
    assert found["val/cosine"] > found["val/cosine_others"] + 0.2
    assert found["train/scale"] > 1
    assert found["train/cosine"] > found["train/cosine_others"]


def test_a_run_that_is_resumed_ends_with_the_same_bits(trained, tmp_path):
    config, work = trained
    for stage in ("tokenizer", "clip"):
        (tmp_path / stage / "checkpoints").mkdir(parents=True)
    for path in work.rglob("*"):  # as if the run had ended at step 40
        place = tmp_path / path.relative_to(work)
        late = path.parent.name == "checkpoints" and ("00000060" in path.name or "00000080" in path.name)
        if path.is_file() and not late and "clip/done" not in str(path):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes().replace(str(work).encode(), str(tmp_path).encode()))
    assert run(config, tmp_path) == 0
    once, again = (saved(folder, "clip", 80)["state_dict"] for folder in (work, tmp_path))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_sixteen_sounds_are_told_apart_by_their_captions(tmp_path):
    words = [f"{colour} {number}" for colour in COLOURS for number in (1, 2, 3, 4)]

    def sound(number: int) -> dict[str, Any]:
        at = np.arange(6400) / 16_000
        low, high = 250 * 2 ** (number % 4 / 2), 1500 * 2 ** (number // 4 / 2)  # Hz
        wave = 8000 * (np.sin(2 * np.pi * low * at) + np.sin(2 * np.pi * high * at))
        return {"flac": encoded(wave.astype(np.int16)), "txt": words[number]}

    samples: list[Any] = [sound(n) for n in range(16)]
    spec = write_data_set(tmp_path, {part: [samples] for part in ("train", "validation", "test")}, "sounds")
    BytePairTokenizer.train([*TEXTS, *words], VOCAB_SIZE, CONTEXT).save(tmp_path / "tokenizer.json")
    data = {"spec": str(spec), "tokenizer": tokenizer_at(str(tmp_path / "tokenizer.json")), "batch_size": 16}
    data |= {"seconds": 0.4, "mels": 32, "hop": 400, "lanes": 1, "num_workers": 0}
    tree = {
        "model": model_of(VISION | {"image_size": [32, 16], "patch_size": 16}),
        "data": {"class_path": "mmflow.systems.clip.data.AudioTextPairs", "init_args": data},
        "trainer": {"accelerator": "cpu", "max_steps": 60, "val_check_interval": 60, "log_every_n_steps": 10},
    }
    (tmp_path / "audio.yaml").write_text(yaml.safe_dump(tree))
    assert run(tmp_path / "audio.yaml", tmp_path / "work") == 0
    found = metrics(tmp_path / "work", "audio")
    assert found["val/text_to_image_r1"] == found["val/image_to_text_r1"] == 1


def test_sigmoid_of_pairs_learns_too(trained, tmp_path):
    config, _ = trained
    tree = yaml.safe_load(config.read_text())
    clip = tree["stages"]["clip"]["model"]["init_args"]["clip"]["init_args"]
    clip["similarity"] = {"class_path": "mmflow.nn.contrastive.Similarity", "init_args": {"objective": "sigmoid"}}
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert run(tmp_path / "clip.yaml", tmp_path / "work", "--stages.clip.trainer.max_steps", "80") == 0
    assert metrics(tmp_path / "work", "clip")["val/text_to_image_r5"] == 1
    assert saved(tmp_path / "work", "clip", 80)["clip"]["init_args"]["similarity"]["init_args"] == {
        "objective": "sigmoid"
    }


# -- a locked tower ----------------------------------------------------------------------------------------------------


def test_a_locked_picture_tower_neither_learns_nor_drops(trained, tmp_path):
    config, _ = trained
    tree = yaml.safe_load(config.read_text())
    options = tree["stages"]["clip"]["model"]["init_args"]
    options["lock_image"] = True
    options["clip"]["init_args"]["vision"]["init_args"] |= {"dropout": 0.5}
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert run(tmp_path / "clip.yaml", tmp_path / "work", "--stages.clip.trainer.max_steps", "40") == 0
    before, after = (saved(tmp_path / "work", "clip", step)["state_dict"] for step in (20, 40))
    vision = [name for name in before if name.startswith("clip.vision.")]
    assert all(torch.equal(before[name], after[name]) for name in vision)
    assert not torch.equal(before["clip.image_projection.weight"], after["clip.image_projection.weight"])
    assert not torch.equal(before["clip.text.tokens.weight"], after["clip.text.tokens.weight"])


def test_lock_image_keeps_evaluation_mode():
    module = ClipTraining(CLIP(ViT(**VISION, dropout=0.5), TextTransformer(**TEXT), 16), lock_image=True)
    module.train()
    assert not any(part.training for part in module.clip.vision.modules())
    assert module.clip.text.training
    assert not any(p.requires_grad for p in module.clip.vision.parameters())
    free = ClipTraining(CLIP(ViT(**VISION), TextTransformer(**TEXT), 16).eval())
    assert free.clip.vision.training  # although read from a file


def test_the_picture_tower_may_go_on_at_another_size():
    clip = CLIP(ViT(**VISION), TextTransformer(**TEXT), 16)
    module = ClipTraining(clip, resized={"image_size": 32})
    assert module.features({"image": torch.rand(2, 3, 32, 32), "tokens": torch.full((2, 3), END)})[0].shape == (2, 16)
    assert description(module.clip)["init_args"]["vision"]["init_args"]["image_size"] == 32


# -- checkpoints and vocabularies --------------------------------------------------------------------------------------


def test_a_checkpoint_tells_how_to_build_the_model(trained):
    _, work = trained
    path = work / "clip" / "checkpoints" / "step-00000080.ckpt"
    clip = load_clip(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(state[f"clip.{name}"], value) for name, value in clip.state_dict().items())


def test_a_description_holds_what_is_not_projected():
    clip = CLIP(ViT(**VISION), TextTransformer(**TEXT), None, Similarity("sigmoid"))
    told = description(clip)["init_args"]
    assert told["embed_dim"] is None
    assert told["similarity"]["init_args"] == {"objective": "sigmoid"}
    assert told["vision"]["init_args"]["dim"] == 32


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    tokenizer = BytePairTokenizer.train(TEXTS, VOCAB_SIZE, CONTEXT)
    clip = CLIP(ViT(**VISION), TextTransformer(**TEXT), 16)
    check_vocabulary(tokenizer, clip)
    with pytest.raises(ValueError, match=r"the tokenizer has vocab_size=530, but the text tower of the model 534"):
        check_vocabulary(BytePairTokenizer.train(TEXTS, 530, CONTEXT), clip)
    with pytest.raises(ValueError, match=r"context=30 tokens, but the text tower takes no more than 24"):
        check_vocabulary(BytePairTokenizer.train(TEXTS, VOCAB_SIZE, 30), clip)
    other = CLIP(ViT(**VISION), TextTransformer(**TEXT | {"end_id": 3}), 16)
    with pytest.raises(ValueError, match=r"end_id=533, but the text tower of the model 3"):
        check_vocabulary(tokenizer, other)


def test_a_checkpoint_does_not_go_on_with_another_vocabulary(trained, tmp_path, capsys):
    config, work = trained
    other = BytePairTokenizer.train([text.replace("bar", "rod") for text in TEXTS], VOCAB_SIZE, CONTEXT)
    other.save(tmp_path / "tokenizer.json")
    tree = yaml.safe_load(config.read_text())["stages"]
    stage = {"ckpt_path": str(work / "clip" / "checkpoints" / "step-00000080.ckpt"), "model": tree["clip"]["model"]}
    stage |= {"data": tree["clip"]["data"], "trainer": {"accelerator": "cpu"}}
    stage["data"]["init_args"]["tokenizer"] = tokenizer_at(str(tmp_path / "tokenizer.json"))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(stage))
    assert main(["validate", "--config", str(tmp_path / "test.yaml"), "--workdir", str(tmp_path / "work")]) == 2
    assert "tokenizer of another vocabulary than the checkpoint's" in capsys.readouterr().err


def test_data_without_tokens_are_refused():
    module = ClipTraining(CLIP(ViT(**VISION), TextTransformer(**TEXT), 16))
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=None))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"set data to mmflow.systems.clip.data.PicturesAndTexts"):
        module.setup("test")


def test_classes_need_prompts():
    clip = CLIP(ViT(**VISION), TextTransformer(**TEXT), 16)
    with pytest.raises(ValueError, match=r"templates=\[\] leaves the classes without a prompt"):
        ClipTraining(clip, classes=["red"], templates=[])
    with pytest.raises(ValueError, match=r"classes\[1\]=' ' has no name"):
        ClipTraining(clip, classes=["red", " "])


# -- evaluation --------------------------------------------------------------------------------------------------------


def found(numbers: list[int]) -> Found:
    """Some pictures, the number of whose texts is 1 + number % 3."""

    def made(number: int, count: int) -> torch.Tensor:
        return F.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(number)), dim=1)

    counts = torch.tensor([1 + number % 3 for number in numbers])
    return Found(
        names=[("shard", f"{number:03d}") for number in numbers],
        images=torch.cat([made(number, 1) for number in numbers]),
        texts=torch.cat([made(100 + number, int(count)) for number, count in zip(numbers, counts, strict=True)]),
        counts=counts,
        classes=[f"class {number}" for number in numbers],
        unseen=torch.tensor([number % 2 == 0 for number in numbers]),
    )


def test_what_ranks_found_is_put_together_in_one_order(monkeypatch):
    alone = gather([found([0, 1, 2, 3, 4, 5, 6])], 1)

    def gathered(everywhere: list[Any], parts: list[Found]) -> None:
        everywhere[:] = [parts, [found([1, 3]), found([5])]]

    monkeypatch.setattr(training.torch.distributed, "all_gather_object", gathered)
    both = gather([found([6, 0, 2]), found([4])], 2)
    assert both.names == alone.names
    assert both.classes == alone.classes == [f"class {n}" for n in range(7)]
    for one, other in zip(both, alone, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    owners = torch.arange(7).repeat_interleave(both.counts)
    assert len(owners) == len(both.texts)
    assert recalls(both.images, both.texts, owners)["text_to_image_r10"] == 1


def test_a_split_without_pairs_is_refused():
    with pytest.raises(ValueError, match="there is no pair to evaluate"):
        gather([], 1)


def test_mean_cosines_are_those_of_the_whole_matrix():
    own = found([0, 1, 2, 3])
    owners = torch.arange(4).repeat_interleave(own.counts)
    matrix, right = own.images @ own.texts.T, F.one_hot(owners, 4).T.bool()
    told = mean_cosines(own.images, own.texts, owners)
    assert told["cosine"] == pytest.approx(float(matrix[right].mean()), abs=1e-6)
    assert told["cosine_others"] == pytest.approx(float(matrix[~right].mean()), abs=1e-6)
    assert mean_cosines(own.images[:1], own.texts[:1], owners[:1]).keys() == {"cosine"}


def test_accuracies_of_known_ranks():
    ranks, unseen = torch.tensor([0, 3, 0, 7]), torch.tensor([False, False, True, True])
    assert accuracies(ranks, unseen, 8) == {"acc": 0.5, "acc5": 0.75, "acc_seen": 0.5, "acc_unseen": 0.5}
    assert accuracies(ranks[:3], unseen[:2].repeat(2)[:3], 4) == {"acc": pytest.approx(2 / 3)}


def test_a_picture_of_no_class_is_named(trained, tmp_path, capsys):
    config, _ = trained
    more = ["--stages.clip.trainer.max_steps", "2", "--stages.clip.trainer.val_check_interval", "2"]
    more += ["--stages.clip.model.classes", "[red bar on grey, blue bar on grey]"]
    assert run(config, tmp_path, *more) == 2
    said = capsys.readouterr().err
    assert "the class of validation-0-1 in" in said
    assert "is 'green bar on grey', and model.classes does not name it" in said


def test_truncated_captions_are_told(trained, tmp_path, caplog):
    config, _ = trained
    more = ["--stages.clip.trainer.max_steps", "2", "--stages.clip.trainer.val_check_interval", "2"]
    more += ["--stages.clip.data.tokenizer.context", "8", "--stages.clip.data.evaluated", "null"]
    assert run(config, tmp_path, *more) == 0
    told = [record.getMessage() for record in caplog.records if "lost their last words" in record.getMessage()]
    assert "val: 8 of 16 captions were longer than 8 tokens and lost their last words" in told
    assert any(message.startswith("train: ") and " of 16 captions" in message for message in told)


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_learnt_from_the_training_captions(trained, tmp_path):
    config, work = trained
    learnt = BytePairTokenizer(work / "tokenizer" / "tokenizer.json", CONTEXT)
    assert learnt.vocab_size == VOCAB_SIZE
    assert metrics(work, "tokenizer")["val/truncated"] == 0
    assert 4 <= metrics(work, "tokenizer")["val/tokens"] <= 14
    assert run(config, tmp_path, "--stages.clip.trainer.max_steps", "1") == 0
    again = tmp_path / "tokenizer" / "tokenizer.json"
    assert again.read_bytes() == (work / "tokenizer" / "tokenizer.json").read_bytes()
