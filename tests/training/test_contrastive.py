"""The loss over all pairs of a step and its gradient are those of the whole batch, however it is dealt out."""

import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before Lightning, in each process that imports this file)

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mmflow.data.plan import BatchRule
from mmflow.nn.contrastive import Similarity
from mmflow.training.checkpoints import AtomicCheckpointIO, Checkpoints
from mmflow.training.contrastive import Contrastive, in_batch
from mmflow.training.guard import FiniteSteps
from mmflow.training.lanes import Lanes, device_seed
from mmflow.training.meters import Meters
from tests.training.toy import on_ranks

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

SEED, PAIRS = 7, 8
Objective = Literal["info_nce", "sigmoid"]


def pairs_of(step: int) -> tuple[Tensor, Tensor]:
    """The whole batch of a step: (8, 5) and (8, 5), alike but for noise."""
    draw = torch.Generator().manual_seed(step)
    images = torch.randn(PAIRS, 5, generator=draw)
    return images, images + 0.3 * torch.randn(PAIRS, 5, generator=draw)


class Steps(IterableDataset):
    """All that a rank has of each step: rows lane, lane + lanes, ... for each of its lanes."""

    def __init__(self, lanes: int, step: int, rank: int, world: int) -> None:
        self.lanes, self.step, self.rank, self.world = lanes, step, rank, world

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        step = self.step
        while True:
            images, texts = pairs_of(step)
            yield [
                {"image": images[lane :: self.lanes], "text": texts[lane :: self.lanes]}
                | {"__step__": step, "__lane__": lane, "__key__": [f"{step}-{lane}"], "__shard__": ["s"]}
                for lane in range(self.rank, self.lanes, self.world)
            ]
            step += 1


class Pairs(LightningDataModule):
    seed = SEED
    rule = BatchRule(size=2)

    def __init__(self, lanes: int) -> None:
        super().__init__()
        self.lanes, self.joins_lanes = lanes, False

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        assert self.joins_lanes
        trainer = self.trainer
        steps = Steps(self.lanes, trainer.global_step, trainer.global_rank, trainer.world_size)
        return DataLoader(steps, batch_size=None)


class Towers(Contrastive):
    """Two small networks; notes the loss and the gradients of each step, and what dropout left of ones."""

    def __init__(self, objective: Objective, dropout: float = 0.0, lr: float = 0.1, scale: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Sequential(nn.Linear(5, 6), nn.Dropout(dropout), nn.Linear(6, 4)) for _ in "it")
        self.scores, self.lr = Similarity(objective, scale), lr
        self.losses: list[Tensor] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.calls: list[int] = []  # lanes in the order that their features were computed

    @property
    def similarity(self) -> Similarity:
        return self.scores

    def features(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        self.calls.append(batch["__lane__"])
        return self.image(batch["image"]), self.text(batch["text"])

    def training_step(self, batch: list[dict[str, Any]], batch_idx: int) -> Tensor:
        scaled = super().training_step(batch, batch_idx)
        self.losses.append(scaled.detach() / self.trainer.world_size / sum(len(micro["image"]) for micro in batch))
        return scaled

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, foreach=True)


def fit(folder: Path, towers: Towers, lanes: int, steps: int = 2, ckpt_path: Path | None = None, **options: Any) -> Any:
    given: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_steps": steps} | options
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[Lanes(), Meters(), FiniteSteps(), Checkpoints(every_steps=1, keep=99)],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        **given,
    )
    trainer.fit(towers, datamodule=Pairs(lanes), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def plain(objective: Objective, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """The paper's loss of the whole batch with the initial weights, and its gradients."""
    towers = Towers(objective)
    images, texts = (
        F.normalize(tower(x), dim=1) for tower, x in zip((towers.image, towers.text), pairs_of(step), strict=True)
    )
    logits = towers.scores.log_scale.exp() * images @ texts.T
    if objective == "sigmoid":
        signs = 2 * torch.eye(PAIRS) - 1
        loss = -F.logsigmoid(signs * (logits + towers.scores.bias)).sum() / PAIRS
    else:
        right = torch.arange(PAIRS)
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4, f"{name} tells nothing"
        assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize("objective", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_one_process_has_the_papers_loss_and_gradient(tmp_path, objective, lanes):
    towers = Towers(objective)
    trainer = fit(tmp_path, towers, lanes, steps=1)
    loss, gradients = plain(objective)
    assert towers.losses[0] == pytest.approx(float(loss), abs=1e-5)
    assert trainer.callback_metrics["train/loss"] == pytest.approx(float(loss), abs=1e-5)
    assert_alike(towers.gradients[0], gradients)


def test_micro_batches_are_computed_again_one_at_a_time_and_drop_the_same(tmp_path):
    towers = Towers("info_nce", dropout=0.5)
    fit(tmp_path, towers, lanes=4, steps=1)
    assert sorted(towers.calls[:4]) == [0, 1, 2, 3]
    assert sorted(towers.calls[4:]) == [0, 1, 2, 3]
    alone = Towers("info_nce", dropout=0.5)
    images, texts = pairs_of(0)
    sides = []
    for lane in range(4):  # kept, without recomputation
        torch.manual_seed(device_seed(SEED, 0, lane))
        sides.append((alone.image(images[lane::4]), alone.text(texts[lane::4])))
    u, v = (F.normalize(torch.cat(side), dim=1) for side in zip(*sides, strict=True))
    (alone.scores.loss_sum(u, v, u, v, 0) / PAIRS).backward()
    expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    assert_alike(towers.gradients[0], expected)


def test_negatives_of_a_micro_batch_alone_would_be_another_loss():
    towers = Towers("info_nce")
    images, texts = (
        F.normalize(tower(x), dim=1) for tower, x in zip((towers.image, towers.text), pairs_of(0), strict=True)
    )
    parts = [(images[lane::4], texts[lane::4]) for lane in range(4)]
    alone = sum(towers.scores.loss_sum(u, v, u, v, 0) for u, v in parts) / PAIRS
    assert float(plain("info_nce")[0] - alone) > 0.5


def test_the_largest_activations_are_those_of_one_micro_batch(tmp_path):
    """What autograd keeps of a tower's hidden layers, counted where it is kept."""

    class Wide(Towers):
        def __init__(self) -> None:
            super().__init__("info_nce")
            self.image, self.text = (nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.Linear(64, 4)) for _ in "it")

    kept: dict[int, int] = {}
    for lanes in (1, 4):
        live, most = [0], [0]

        class Handle:
            def __init__(self, tensor: Tensor, live: list[int] = live, most: list[int] = most) -> None:
                self.tensor, self.rows, self.live = tensor, len(tensor) if tensor.shape[-1:] == (64,) else 0, live
                live[0] += self.rows
                most[0] = max(most[0], live[0])

            def __del__(self) -> None:
                self.live[0] -= self.rows

        with torch.autograd.graph.saved_tensors_hooks(Handle, lambda handle: handle.tensor):
            fit(tmp_path / str(lanes), Wide(), lanes, steps=1)
        kept[lanes] = most[0]
    assert kept[1] >= 2 * PAIRS  # both towers
    assert kept[4] <= kept[1] / 4


# -- the temperature ---------------------------------------------------------------------------------------------------


def test_the_scale_is_clamped_after_the_step_and_still_learns(tmp_path):
    towers = Towers("info_nce", lr=50.0)
    fit(tmp_path, towers, lanes=1, steps=3)
    assert 0 <= float(towers.scores.log_scale) <= math.log(100) + 1e-6
    assert float(towers.scores.log_scale) in (0.0, pytest.approx(math.log(100)))  # a step of 50 leads to an end
    assert all(step["scores.log_scale"].abs() > 0 for step in towers.gradients[:1])


def test_a_checkpoint_holds_the_clamped_scale(tmp_path):
    fit(tmp_path, Towers("info_nce", lr=50.0), lanes=1, steps=1)
    saved = torch.load(tmp_path / "checkpoints" / "step-00000001.ckpt", weights_only=True)["state_dict"]
    assert 0 <= float(saved["scores.log_scale"]) <= math.log(100) + 1e-6


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_run_that_is_resumed_in_the_middle_ends_with_the_same_bits(tmp_path, lanes):
    def towers() -> Towers:
        return Towers("info_nce", dropout=0.5, scale=100.0)  # the clamp is at work

    whole = towers()
    fit(tmp_path / "whole", whole, lanes, steps=5)
    resumed = towers()
    fit(tmp_path / "resumed", resumed, lanes, 5, ckpt_path=tmp_path / "whole" / "checkpoints" / "step-00000003.ckpt")
    assert len(resumed.losses) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [float(loss) for loss in whole.losses[3:]] == [float(loss) for loss in resumed.losses]


# -- what is logged, what is refused -----------------------------------------------------------------------------------


def test_in_batch_figures_of_a_known_matrix():
    images = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    texts = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), dim=1)
    found = in_batch(images, texts)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.cosine == pytest.approx(2 / 3)
    half = 0.5**0.5
    assert found.cosine_others == pytest.approx((1 + half + 0 + half + half + half) / 6)


def test_cosines_are_compared_in_full_precision():
    images = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.001]]), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert in_batch(images, images).accuracy == 1


def test_batches_of_differing_size_are_refused(tmp_path):
    class Uneven(Pairs):
        rule = BatchRule(length=8.0)

    trainer = Trainer(logger=False, max_steps=1, accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"batch_seconds=8 makes batches of differing size.*give batch_size"):
        trainer.fit(Towers("info_nce"), datamodule=Uneven(1))


# -- several processes -------------------------------------------------------------------------------------------------


def on_rank(rank: int, world: int, folder: Path, port: int) -> None:
    """One of several processes: a step of each objective."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result: dict[str, Any] = {}
    for objective in ("info_nce", "sigmoid"):
        towers = Towers(objective, dropout=0.5)  # type: ignore[arg-type]
        fit(folder / objective, towers, lanes=4, devices=world, strategy="ddp", gradient_clip_val=0.5)
        result[objective] = {"losses": towers.losses, "gradients": towers.gradients}
    perfect = F.normalize(torch.eye(PAIRS)[rank * PAIRS // world :][: PAIRS // world], dim=1)
    everything = towers.gathered(perfect)
    loss = Similarity(scale=100.0).loss_sum(perfect, perfect, everything, everything, rank * PAIRS // world)
    torch.save(result | {"perfect": loss.detach()}, folder / f"rank{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_have_the_loss_and_gradient_of_one(tmp_path, world):
    on_ranks(world, on_rank, world, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
    assert all(rank["perfect"] < 1e-6 for rank in ranks)  # labels count from the rank's own rows
    for objective in ("info_nce", "sigmoid"):
        alone = Towers(objective, dropout=0.5)
        fit(tmp_path / "alone" / objective, alone, lanes=4, gradient_clip_val=0.5)
        for step in range(2):
            losses = [rank[objective]["losses"][step] for rank in ranks]
            assert float(torch.stack(losses).mean()) == pytest.approx(float(alone.losses[step]), abs=1e-5)
            for rank in ranks:
                assert_alike(rank[objective]["gradients"][step], alone.gradients[step])
