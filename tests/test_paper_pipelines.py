"""Every pipeline file fits the classes it names, and the paper's say what the paper says. Nothing here takes memory."""

import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mmflow.cli import build_parser
from mmflow.pipeline import Pipeline, parse_overrides
from mmflow.stage import StageCLI
from mmflow.systems.hubert.model import Hubert, num_frames
from mmflow.systems.hubert.training import HubertPretraining

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

SIZES = {"hubert_base": Hubert.base, "hubert_large": Hubert.large, "hubert_xlarge": Hubert.xlarge}
BACKBONES = {"hubert_base": 94_371_712, "hubert_large": 315_435_136, "hubert_xlarge": 962_493_824}
WIDTHS = {"hubert_base": (768, 256), "hubert_large": (1024, 768), "hubert_xlarge": (1280, 1024)}  # of model and units
EFFECTIVE_S = {"hubert_base": 32 * 87.5, "hubert_large": 128 * 56.25, "hubert_xlarge": 256 * 22.5}  # audio in a step
ROUNDS = [("hubert_base", "round_1"), ("hubert_base", "round_2"), ("hubert_large", "round_3")]
ROUNDS += [("hubert_xlarge", "round_3")]


def pipeline_of(path: Path) -> Pipeline:
    """The pipeline as the command in the file's header gives it."""
    found = re.search(r"^# Run: +python cli.py (.+(?:\n# +--.+)*)", path.read_text(), re.MULTILINE)
    assert found, f"{path} does not tell how it is run"
    options, rest = build_parser().parse_known_args(shlex.split(found[1].replace("#", "")))
    assert options.config == path
    return Pipeline(path, parse_overrides(rest), run=options.command)


PIPELINES = {str(path): pipeline_of(path) for path in sorted(Path("pipelines").rglob("*.yaml"))}
STAGES = [(path, name) for path, pipeline in PIPELINES.items() for name in pipeline.stages]


class Built(StageCLI):
    """A stage up to the point at which it would run, with model, data and Trainer; its weights take no memory."""

    def before_instantiate_classes(self) -> None:
        """Its config is not saved."""

    def instantiate_classes(self) -> None:
        with torch.device("meta"):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""


class Parsed(Built):
    """A stage of which nothing is made."""

    def instantiate_classes(self) -> None:
        self.trainer: Any = None


def resolved(path: str, name: str) -> tuple[str, dict[str, Any]]:
    """What the stage runs, and its config."""
    stage = PIPELINES[path].stages[name]
    return stage.run, PIPELINES[path].resolved(stage)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Makes a stage of a paper's pipeline once; the checkpoint that it names holds a Base."""
    folder = tmp_path_factory.mktemp("build")

    @cache
    def make(recipe: str, name: str) -> Built:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["cli.py"])
            patch.setattr(Hubert, "state_dict", lambda _: {})  # the fingerprint of features needs numbers
            for module in [m for key, m in sys.modules.items() if key.startswith("mmflow.systems.hubert.")]:
                if hasattr(module, "load_hubert"):
                    patch.setattr(module, "load_hubert", lambda _: Hubert.base().eval())
            return Built(*resolved(f"pipelines/paper/{recipe}.yaml", name), folder)

    return make


@pytest.mark.parametrize(("path", "name"), STAGES, ids=[f"{Path(path).stem}-{name}" for path, name in STAGES])
def test_every_stage_of_every_pipeline_parses(path, name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    run, config = resolved(path, name)
    assert Parsed(run, config, tmp_path).subcommand == run


@pytest.mark.parametrize(("recipe", "name"), ROUNDS)
def test_a_pretraining_has_the_papers_size_batch_and_schedule(build, recipe, name):
    cli = build(recipe, name)
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    assert isinstance(module, HubertPretraining)
    assert sum(p.numel() for p in module.hubert.parameters()) == BACKBONES[recipe]
    units = 100 if name == "round_1" else 500
    dim, unit_dim = WIDTHS[recipe]
    head = dim * unit_dim + unit_dim + units * unit_dim
    assert sum(p.numel() for p in module.parameters()) == BACKBONES[recipe] + head
    with torch.device("meta"):
        reference = SIZES[recipe]()  # what published weights are held against
    assert module.hubert.layer_drop == reference.layer_drop
    assert [str(a) for a in module.hubert.modules()] == [str(b) for b in reference.modules()]  # dropout, too
    assert module.hubert.feature_grad_mult == reference.feature_grad_mult
    assert module.hubert.normalize == data.normalize == (recipe != "hubert_base")

    assert data.lanes * data.rule.length == EFFECTIVE_S[recipe]
    assert (data.min_seconds, data.max_seconds * 16_000) == (2.0, 250_000)
    assert (data.mask_prob, data.mask_span) == (0.8, 10)
    lr, clip = {"hubert_base": (5e-4, 10), "hubert_large": (1.5e-3, 1), "hubert_xlarge": (3e-3, 1)}[recipe]
    assert (module.lr, trainer.gradient_clip_val, trainer.precision) == (lr, clip, "bf16-mixed")
    assert (module.warmup, module.weight_decay, module.penalty, module.visible_share) == (0.08, 0.01, 10.0, 0.0)
    assert trainer.max_steps == (250_000 if name == "round_1" else 400_000)


@pytest.mark.parametrize(("recipe", "name"), ROUNDS)
def test_a_pretraining_runs_forward_on_a_batch_of_its_seconds(build, recipe, name):
    cli = build(recipe, name)
    rows = int(cli.datamodule.rule.length // cli.datamodule.max_seconds)
    size = int(cli.datamodule.max_seconds * 16_000)
    frames = num_frames(size)
    assert frames == 781
    batch = {
        "audio": torch.empty(rows, size, device="meta"),
        "mask": torch.empty(rows, frames, dtype=torch.bool, device="meta"),
    }
    out = cli.model.hubert(batch["audio"], mask=batch["mask"], normalized=True)
    assert out.last.shape == (rows, 781, WIDTHS[recipe][0])
    assert len(out.layers) == {"hubert_base": 12, "hubert_large": 24, "hubert_xlarge": 48}[recipe] + 1
    (logits,) = cli.model.head(out.last)
    assert logits.shape == (rows, 781, cli.model.num_classes)


CLUSTERINGS = [
    ("hubert_base", "kmeans_1", 100, "mfcc"),
    ("hubert_base", "kmeans_2", 500, 6),
    ("hubert_large", "kmeans_3", 500, 9),
    ("hubert_xlarge", "kmeans_3", 500, 9),
]


@pytest.mark.parametrize(("recipe", "name", "clusters", "layer"), CLUSTERINGS)
def test_units_are_the_papers_clusters(build, recipe, name, clusters, layer):
    cli = build(recipe, name)
    assert cli.model.num_clusters == clusters
    hours = 960 if recipe == "hubert_base" else 60_000
    assert cli.datamodule.fit_fraction * hours == pytest.approx(96)
    assert cli.model.max_frames > 96 * 3600 * 50  # all that are offered
    if layer == "mfcc":
        assert cli.model.features.dim == 39
    else:
        assert (cli.model.features.layer, cli.model.features.dim) == (layer, 768)


def test_large_and_xlarge_take_their_units_from_a_finished_base():
    """Its last checkpoint stands where the second round of Base leaves it, for that keeps no best one."""
    base = PIPELINES["pipelines/paper/hubert_base.yaml"].stages["round_2"]
    assert "monitor" not in base.config["checkpoints"]
    last = base.folder / "checkpoints" / f"step-{base.config['trainer']['max_steps']:08d}.ckpt"
    for recipe in ("hubert_large", "hubert_xlarge"):
        _, config = resolved(f"pipelines/paper/{recipe}.yaml", "kmeans_3")
        assert config["model"]["init_args"]["features"]["init_args"]["checkpoint"] == str(last)
    for recipe in ("hubert_ctc_10h", "hubert_ctc_100h"):
        _, config = resolved(f"pipelines/paper/{recipe}.yaml", "ctc")
        assert config["model"]["init_args"]["checkpoint"] == str(last)


@pytest.mark.parametrize(
    ("recipe", "lr", "steps", "minutes"),
    [("hubert_ctc_10h", 2e-5, 25_000, 600), ("hubert_ctc_100h", 3e-5, 80_000, None)],
)
def test_fine_tuning_has_the_papers_size_batch_and_freezing(build, recipe, lr, steps, minutes):
    cli = build(recipe, "ctc")
    module, data = cli.model, cli.datamodule
    vocabulary = len(module.characters)
    assert sum(p.numel() for p in module.parameters()) == 94_371_712 + vocabulary * 768 + vocabulary
    assert data.lanes * data.rule.length == 8 * 200
    assert (data.mask_prob, data.mask_span, data.labelled_minutes) == (0.75, 10, minutes)
    assert (module.channel_mask_prob, module.channel_mask_span) == (0.5, 64)
    assert (module.hubert.layer_drop, module.lr, module.freeze_steps) == (0.1, lr, 10_000)
    assert {block.ffn.dropout.p for block in module.hubert.blocks} == {0.1}
    assert not any(p.requires_grad for p in module.hubert.conv.parameters())
    assert (cli.trainer.max_steps, cli.trainer.precision) == (steps, "bf16-mixed")
    batch = {"audio": torch.empty(2, 32_000, device="meta"), "lengths": None}
    log_probs, _ = module.eval()(batch)
    assert log_probs.shape == (2, 99, vocabulary)
