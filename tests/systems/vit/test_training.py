"""ViT through the command line: trained, fine-tuned at another size, tested, probed, and asked for classes."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mmflow.cli import main
from mmflow.data.index import open_shard
from mmflow.systems.vit.weights import load_classifier, load_vit
from tests.data.test_pictures import photo, saved
from tests.shards import write_data_set
from tests.systems.vit.test_data import data_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

NAMES = ["ring", "cross", "disc"]
CLASSIFIER = "mmflow.training.classification.ImageClassifier"
READER = "mmflow.systems.vit.weights.load_vit"


def pictures(split: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "jpg": saved(photo(20, 16, n + (100 if split == "test" else 0)), "JPEG"),
            "json": {"label": n % 3, "class": NAMES[n % 3], "unseen": split == "test" and n % 2 == 0},
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    splits = {split: [pictures(split, count)] for split, count in (("train", 24), ("validation", 7), ("test", 7))}
    spec = write_data_set(folder, splits, "pictures", fields={"image": ["jpg"], "info": ["json"]})
    encoder = {"image_size": 16, "patch_size": 8, "dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.2}
    mixing = {"class_path": "mmflow.data.augmentation.MixupOrCutMix", "init_args": {"num_classes": 3}}
    average = {"class_path": "mmflow.training.ema.WeightEMA", "init_args": {"decay": 0.5}}
    read = {"class_path": READER, "init_args": {"path": "${stages.train.checkpoint}"}}
    tree = {
        "trainer": {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
        "data": {
            "class_path": "mmflow.systems.vit.data.LabelledPictures",
            "init_args": {"spec": str(spec), "size": 16, "batch_size": 4, "lanes": 2, "num_workers": 0},
        },
        "stages": {
            "train": {
                "model": {
                    "class_path": CLASSIFIER,
                    "init_args": {
                        "encoder": {"class_path": "mmflow.systems.vit.model.ViT", "init_args": encoder},
                        "num_classes": 3,
                    },
                },
                "data": {"init_args": {"augmentations": [mixing]}},
                "trainer": {"max_steps": 4, "val_check_interval": 2, "callbacks": [average]},
                "checkpoints": {"every_steps": 1, "keep": 9, "monitor": "val/acc", "mode": "max"},
            },
            "tune": {
                "model": {
                    "class_path": CLASSIFIER,
                    "init_args": {
                        "encoder": read | {"dict_kwargs": {"drop_path": 0.0}},
                        "num_classes": 3,
                        "resized": {"image_size": 24},
                        "momentum": 0.9,
                    },
                },
                "data": {"init_args": {"size": 24}},
                "trainer": {"max_steps": 2, "val_check_interval": 2},
            },
            "test": {
                "run": "test",
                "ckpt_path": "${stages.tune.checkpoint}",
                "model": "${stages.tune.model}",
                "data": "${stages.tune.data}",
            },
            "probe": {
                "run": "test",
                "model": {
                    "class_path": "mmflow.evaluation.probing.FeatureProbe",
                    "init_args": {
                        "encoder": read,
                        "num_classes": 3,
                        "max_train": 21,
                        "shots": 2,
                        "strengths": [0.1, 1.0],
                    },
                },
            },
            "classes": {
                "run": "predict",
                "model": {
                    "class_path": "mmflow.systems.vit.inference.PictureClasses",
                    "init_args": {"checkpoint": "${stages.train.checkpoint}", "k": 2},
                },
                "trainer": {
                    "callbacks": [
                        {"class_path": "mmflow.data.sidecar.SidecarWriter", "init_args": {"field": "classes"}}
                    ]
                },
            },
            "features": {
                "run": "predict",
                "model": {
                    "class_path": "mmflow.systems.vit.inference.PictureFeatures",
                    "init_args": {"encoder": read, "layer": "1"},
                },
                "trainer": {
                    "callbacks": [
                        {"class_path": "mmflow.data.sidecar.SidecarWriter", "init_args": {"field": "features"}}
                    ]
                },
            },
        },
    }
    (folder / "vit.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "vit.yaml"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config) -> Path:
    """The work folder of all stages. Only to be copied and read."""
    work = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cli.py"])
        assert main(["fit", "--config", str(config), "--workdir", str(work)]) == 0
    return work


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_a_resumed_training_ends_with_the_same_bits(config, trained, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(trained / "train", work / "train")
    (work / "train" / "done.json").unlink()
    for path in (work / "train" / "checkpoints").glob("*-00000004.*"):
        path.unlink()
    stages = yaml.safe_load(config.read_text())
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(stages | {"stages": {"train": stages["stages"]["train"]}}))
    assert main(["fit", "--config", str(tmp_path / "one.yaml"), "--workdir", str(work)]) == 0
    first, again = (load(path / "train" / "checkpoints" / "step-00000004.ckpt") for path in (trained, work))
    for part in ("state_dict", "current_model_state"):
        assert first[part].keys() == again[part].keys()
        assert all(torch.equal(value, again[part][name]) for name, value in first[part].items())
    kernel = "encoder.patches.weight"
    assert not torch.equal(first["state_dict"][kernel], first["current_model_state"][kernel])


def test_fine_tuning_begins_with_the_weights_of_before_at_another_size(trained):
    before = load_vit(next((trained / "train" / "checkpoints").glob("best-*.ckpt")))
    after = load_vit(trained / "tune" / "checkpoints" / "step-00000002.ckpt")
    assert (before.image_size, after.image_size) == ((16, 16), (24, 24))
    assert [block.drop_path.p for block in after.blocks] == [0.0, 0.0]
    assert after.positions.shape == (1, 1 + 9, 16)
    assert (before.patches.weight - after.patches.weight).abs().max() < 1e-2
    assert load(trained / "tune" / "checkpoints" / "step-00000002.ckpt")["state_dict"]["head.weight"].abs().max() > 0


def test_a_test_tells_each_class_and_the_unseen(trained):
    report = json.loads((trained / "test" / "classes.json").read_text())
    assert (report["pictures"], report["unseen"]["pictures"], report["seen"]["pictures"]) == (7, 4, 3)
    assert [(row["class"], row["pictures"]) for row in report["classes"]] == [("ring", 3), ("cross", 2), ("disc", 2)]
    assert report["acc"] == pytest.approx(sum(row["acc"] * row["pictures"] for row in report["classes"]) / 7)
    logged = json.loads((trained / "test" / "done.json").read_text())["metrics"]
    assert logged["test/acc"] == pytest.approx(report["acc"])
    assert logged["test/acc_unseen"] == pytest.approx(report["unseen"]["acc"])


def test_probes_of_every_layer_stand_beside_those_of_an_untrained_encoder_and_of_pixels(trained):
    report = json.loads((trained / "probe" / "probes.json").read_text())
    layers = {"0", "1", "2", "pooled"}
    assert {name: set(found) for name, found in report.items()} == {
        "trained": layers, "untrained": layers, "pixels": {"raw"},
    }  # fmt: skip
    assert set(report["trained"]["1"]) == {"linear", "knn", "few_shot"}
    assert list(report["pixels"]["raw"]["knn"]) == ["10", "20"]  # of 21 pictures
    assert report["trained"]["pooled"] != report["untrained"]["pooled"]


def test_sidecars_hold_what_the_model_says(config, trained):
    vit, head, _ = load_classifier(next((trained / "train" / "checkpoints").glob("best-*.ckpt")))
    data = data_of(yaml.safe_load(config.read_text())["data"]["init_args"]["spec"], batch_size=7)
    data.corpus("validation")
    (batch,) = [data.on_after_batch_transfer(read, 0) for read in data.val_dataloader()]
    with torch.no_grad():
        out = vit(batch["image"])
    expected = {"features": out.layers["1"].mean(1), "classes": head(out.pooled).topk(2).indices}
    for field, values in expected.items():
        shard = open_shard(str(trained / field / "shards" / "pictures" / "validation-000000.tar"))
        rows = {key: np.load(io.BytesIO(shard.read(row, f"{field}.npy"))) for row, key in enumerate(shard.keys)}
        assert rows.keys() == set(batch["__key__"])
        for key, value in zip(batch["__key__"], values, strict=True):
            assert np.allclose(rows[key], value.numpy(), atol=1e-5)
