"""A classifier's loss, what it counts, and that its steps and shares are the same however a batch is dealt out."""

import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before Lightning, in each process that imports this file)

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mmflow.systems.swin.model import Swin
from mmflow.systems.vit.model import ViT
from mmflow.systems.vit.weights import load_vit
from mmflow.training.checkpoints import AtomicCheckpointIO, Checkpoints
from mmflow.training.classification import ClassCounts, ImageClassifier, shares
from mmflow.training.guard import FiniteSteps
from mmflow.training.lanes import Lanes
from tests.training.toy import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

CLASSES, ROWS = 7, 6


def classifier(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(ViT(16, 8, 16, 2, 2, drop_path=0.2), CLASSES, **options)


def alone(module: ImageClassifier, **trainer: Any) -> ImageClassifier:
    """The module with as much of a Trainer as a single step needs."""
    usual = {"accumulate_grad_batches": 1, "world_size": 1, "max_steps": 10, "precision": "32-true"}
    module._trainer = SimpleNamespace(**usual | trainer)  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def pictures(rows: int, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(rows, 3, 16, 16, generator=draw),
        "label": torch.randint(CLASSES, (rows,), generator=draw),
        "unseen": torch.rand(rows, generator=draw) < 0.5,
        "valid": torch.ones(rows, dtype=torch.bool),
    }


# -- the objective -----------------------------------------------------------------------------------------------------


def test_before_the_first_step_all_classes_are_alike():
    module, batch = alone(classifier()), pictures(5)
    assert torch.equal(module(batch["image"]), torch.zeros(5, CLASSES))
    assert float(module.training_step(batch, 0)) == pytest.approx(5 * math.log(CLASSES), rel=1e-6)
    assert float(module._items) == 5


def spoken(module: ImageClassifier) -> ImageClassifier:
    """With a head that says something."""
    torch.nn.init.normal_(module.head.weight, generator=torch.Generator().manual_seed(1))
    return alone(module.eval())


def test_labels_are_smoothed_and_mixed_targets_are_taken_as_they_are():
    module, batch = spoken(classifier(label_smoothing=0.1)), pictures(5)
    log_probs = module(batch["image"]).log_softmax(1)
    own = F.one_hot(batch["label"], CLASSES).float()
    smooth = -((0.9 * own + 0.1 / CLASSES) * log_probs).sum()
    assert float(module.training_step(batch, 0)) == pytest.approx(float(smooth), rel=1e-5)
    mixed = 0.3 * own + 0.7 * own.roll(1, 0)
    soft = module.training_step(batch | {"label": mixed}, 0)
    assert float(soft) == pytest.approx(float(-(mixed * log_probs).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"label": torch.tensor([0, 7])},
            r"labels go from 0 to 7, but model.num_classes=7 allows 0..6; set num_classes=8",
        ),
        ({"label": torch.tensor([-1, 2])}, r"labels go from -1 to 2"),
        ({"label": torch.rand(2, 9)}, r"targets of 9 classes meet model.num_classes=7"),
        ({"label": torch.tensor([1])}, r"a batch of 2 pictures has 1 labels; take data in which each picture has one"),
        (
            {"image": torch.rand(2, 3, 20, 16)},
            r"images have shape \(2, 3, 20, 16\); this encoder takes \(B, 3, 16, 16\)",
        ),
    ],
)
def test_a_batch_that_cannot_be_right_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        alone(classifier()).training_step(pictures(2) | change, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 is a share of the target; give at least 0, less than 1"),
        ({"schedule": "steps"}, r"schedule='steps' is unknown; take cosine or linear"),
        ({"schedule": "linear", "floor": 0.1}, r"floor=0.1 are for the cosine"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        classifier(**options)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes=1 leaves nothing to tell apart"):
        ImageClassifier(ViT(16, 8, 16, 1, 2), 1)


# -- optimisation ------------------------------------------------------------------------------------------------------


def test_the_head_learns_at_the_full_rate_and_the_input_at_the_lowest():
    module = alone(classifier(lr=0.4, warmup=0.0, layer_decay=0.5, weight_decay=0.2))
    found = module.configure_optimizers()
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in found["optimizer"].param_groups for p in g["params"]}
    assert len(rates) == len(list(module.parameters()))
    assert rates[id(module.head.weight)] == (0.4, 0.2)
    assert rates[id(module.head.bias)] == (0.4, 0.0)
    assert rates[id(module.encoder.blocks[1].attention.qkv.weight)] == (0.2, 0.2)
    assert rates[id(module.encoder.positions)] == (0.05, 0.0)
    assert type(found["optimizer"]).__name__ == "AdamW"
    assert found["optimizer"].defaults["betas"] == (0.9, 0.999)


def test_fine_tuning_as_published_is_sgd_with_momentum():
    optimizer = alone(classifier(lr=0.03, momentum=0.9, weight_decay=0.0)).configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.9, 0.0)}


# -- counts ------------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_each_class():
    logits = torch.eye(CLASSES)[[0, 0, 3, 4, 6]] * torch.arange(
        1.0, 8.0
    )  # each sure of one class, or of its neighbours
    labels = torch.tensor([0, 0, 3, 5, 6])
    counts = ClassCounts(CLASSES)
    counts.update(logits[:2], labels[:2])
    counts.update(logits[2:], labels[2:])
    table = counts.compute()
    assert table[:, 0].tolist() == [2, 0, 0, 1, 0, 1, 1]
    assert table[:, 1].tolist() == [2, 0, 0, 1, 0, 0, 1]
    found = shares(table)
    assert (found["pictures"], found["acc"]) == (5, 0.8)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert "acc5" not in shares(table[:4])


def test_the_highest_five_count():
    logits = -torch.arange(7.0).expand(7, 7)
    counts = ClassCounts(CLASSES)
    counts.update(logits, torch.arange(7))
    assert shares(counts.compute())["acc5"] == pytest.approx(5 / 7)


def test_padding_rows_do_not_count_and_the_unseen_are_told_apart():
    module, batch = spoken(classifier()), pictures(9)
    batch["valid"][6:] = False
    module.validation_step(batch, 0)
    module.validation_step(batch | {"valid": torch.zeros(9, dtype=torch.bool)}, 1)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[method-assign]
    module.on_validation_epoch_end()
    hits = (module(batch["image"]).argmax(1) == batch["label"])[:6].float()
    new = batch["unseen"][:6]
    assert 0 < int(new.sum()) < 6
    assert logged["val/acc"] == pytest.approx(float(hits.mean()))
    assert logged["val/acc_unseen"] == pytest.approx(float(hits[new].mean()))
    assert logged["val/acc_seen"] == pytest.approx(float(hits[~new].mean()))
    assert int(module.seen.table.sum()) == 0  # begins anew


# -- processes ---------------------------------------------------------------------------------------------------------


class Order(IterableDataset):
    """Micro-batches of 1 to 3 pictures, dealt to the ranks as ShardData deals them."""

    def __init__(self, lanes: int, rank: int, world: int) -> None:
        self.lanes, self.rank, self.world = lanes, rank, world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = 0
        while True:
            for lane in range(self.rank, self.lanes, self.world):
                yield pictures(1 + lane % 3, 10 * step + lane) | {"__step__": step, "__lane__": lane}
            step += 1


class Pictures(LightningDataModule):
    seed, lanes = 3, 4

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(Order(self.lanes, self.trainer.global_rank, self.trainer.world_size), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Five pictures; a process has one row of padding."""
        assert self.trainer is not None
        whole = pictures(ROWS, 99)
        whole["valid"][-1] = False
        part = slice(self.trainer.global_rank, None, self.trainer.world_size)
        return DataLoader([{name: value[part] for name, value in whole.items()}], batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


class Noting(ImageClassifier):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients = [p.grad.clone() for p in self.parameters() if p.grad is not None]


def fit(folder: Path, **options: Any) -> dict[str, Any]:
    """Two steps, validated and tested after them: gradients, weights and what was counted."""
    given: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_steps": 2, "val_check_interval": 2} | options
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[Lanes(), FiniteSteps(), Checkpoints()],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
        **given,
    )
    torch.manual_seed(0)
    module, data = Noting(ViT(16, 8, 16, 2, 2, drop_path=0.3), CLASSES, warmup=0.5, label_smoothing=0.1), Pictures()
    trainer.fit(module, datamodule=data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    trainer.test(module, datamodule=data, verbose=False)
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    return {"gradients": module.gradients, "weights": weights, "val": found}


def on_rank(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(fit(folder / "two", devices=2, strategy="ddp"), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_have_the_gradients_and_shares_of_one(tmp_path):
    one = fit(tmp_path / "one")
    on_two_ranks(on_rank, tmp_path)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for mine, expected in zip(two["gradients"], one["gradients"], strict=True):
            assert torch.allclose(mine, expected, atol=1e-6, rtol=1e-4)
        assert torch.allclose(two["weights"], one["weights"], atol=1e-5)
        assert two["val"] == {name: pytest.approx(value, abs=1e-5) for name, value in one["val"].items()}
    assert {"val/acc", "val/acc5", "val/acc_seen", "val/acc_unseen", "val/loss"} <= one["val"].keys()
    reports = [json.loads((tmp_path / name / "classes.json").read_text()) for name in ("one", "two")]
    assert reports[0]["pictures"] == reports[1]["pictures"] == ROWS - 1
    assert [row["pictures"] for row in reports[0]["classes"]] == [row["pictures"] for row in reports[1]["classes"]]


def test_micro_batches_count_by_their_pictures():
    """The gradient of a step is that of the mean over all its pictures, not of means over micro-batches."""
    module = alone(spoken(classifier()).eval(), accumulate_grad_batches=2)
    parts = [pictures(1, 4), pictures(3, 5)]
    for part in parts:
        (module.training_step(part, 0) / 2).backward()  # as Lightning does
        module.on_after_backward()
    found = module.head.weight.grad.clone()
    module.zero_grad()
    whole = {name: torch.cat([part[name] for part in parts]) for name in ("image", "label")}
    F.cross_entropy(module(whole["image"]), whole["label"]).backward()
    assert torch.allclose(found, module.head.weight.grad, atol=1e-6)


# -- encoders ----------------------------------------------------------------------------------------------------------


def saved(module: ImageClassifier, path: Path) -> Path:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def test_a_checkpoint_tells_how_to_build_the_encoder_as_it_is(tmp_path):
    module = classifier(resized={"image_size": 32})
    assert module.encoder.image_size == (32, 32)
    again = load_vit(saved(module, tmp_path / "one.ckpt"))
    images: Tensor = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images).pooled, module.eval().encoder(images).pooled)
    assert again.arguments["drop_path"] == 0.2


def test_a_read_encoder_trains_again(tmp_path):
    encoder = load_vit(saved(classifier(), tmp_path / "one.ckpt"), drop_path=0.5)
    assert not encoder.training
    module = ImageClassifier(encoder, 3)
    assert module.encoder.training
    assert [block.drop_path.p for block in module.encoder.blocks] == [0.0, 0.5]


def test_any_vision_encoder_will_do():
    module = spoken(
        ImageClassifier(Swin(16, 2, 8, [1, 1], [2, 2], 4), CLASSES, resized={"image_size": 24, "window": 6})
    )
    assert module(torch.rand(2, 3, 24, 24)).shape == (2, CLASSES)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    built = checkpoint["hyper_parameters"]["encoder"]
    assert built["class_path"] == "mmflow.systems.swin.model.Swin"
    assert (built["init_args"]["image_size"], built["init_args"]["window"]) == (24, 6)
