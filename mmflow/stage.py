"""One stage: a LightningCLI config, run with what every Trainer of mmflow gets."""

import argparse
import importlib
import inspect
import logging
import pkgutil
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse import ArgumentError, ArgumentParser

import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before Lightning)
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mmflow.atomic import atomic_file
from mmflow.evaluation.pictures import loss_curves
from mmflow.pipeline import Pipeline, Stage, unknown
from mmflow.processes import rank
from mmflow.training.checkpoints import AtomicCheckpointIO, Checkpoints, newest_whole
from mmflow.training.guard import FiniteSteps
from mmflow.training.lanes import Lanes
from mmflow.training.meters import Meters, StepBar
from mmflow.training.patience import Patience
from mmflow.training.preemption import Preemption

log = logging.getLogger(__name__)

for noisy in ("lightning.pytorch", "lightning.fabric"):  # Lightning sets its level when it is imported
    logging.getLogger(noisy).setLevel(logging.WARNING)
# says that a process died, before it kills the others
logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
for message in (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
    "You passed in a `val_dataloader` but have no `validation_step`",  # k-means has nothing to validate
    "Couldn't infer the batch indices",  # our batches carry their keys
    "It is recommended to use `self.log",  # what is logged per epoch was reduced by torchmetrics
    "predict returned None",  # what is predicted for plain files is written at once
    "`max_epochs` was not set",  # training without max_steps is refused
    "Be aware that when using `ckpt_path`, callbacks",  # tests and predictions need none of those of training
):
    warnings.filterwarnings("ignore", message)


class StageCLI(LightningCLI):
    """LightningCLI for one subcommand, with mmflow's Trainer.

    Args:
        run: fit, validate, test or predict.
        config: of that subcommand.
        folder: the Trainer's default_root_dir; the config with all defaults is saved in it.
        resume: a checkpoint of this stage's own, which goes before the one that the config may name.
    """

    def __init__(self, run: str, config: dict[str, Any], folder: Path, resume: Path | None = None) -> None:
        self.folder, self.resume = folder, resume
        quiet = {"exit_on_error": False}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            super().__init__(
                args={"subcommand": run, run: config},
                seed_everything_default=0,
                save_config_callback=None,
                parser_kwargs=quiet | dict.fromkeys(self.subcommands(), quiet),
                trainer_defaults={
                    "use_distributed_sampler": False,  # the plan deals batches to ranks
                    "check_val_every_n_epoch": None,  # training is counted in steps; the order has no end
                    "num_sanity_val_steps": 0,
                    "enable_model_summary": False,
                },
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(FiniteSteps, "guard")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # jsonargparse drops unknown names at this level without a word
        run = args["subcommand"]
        known = {action.dest.split(".")[0] for action in self._parser(run)._actions}
        for name in args[run]:
            if name not in known:
                ours = {"run", "stages", "name", "folder"} | known - {"help", "config", "print_config"}
                raise ValueError(f"stage {self.folder.name!r}: {unknown(name, sorted(ours))}")
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """The config rules, not the hyperparameters in a checkpoint: command line beats file beats checkpoint."""

    def before_instantiate_classes(self) -> None:
        if rank() == 0:
            run = self.config["subcommand"]
            text = self._parser(run).dump(self.config[run], skip_none=False)
            with atomic_file(self.folder / "config.yaml") as file:
                file.write(f"run: {run}\n{text}".encode())

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer", default={})
        callbacks: list[Callback] = [Lanes(), Meters(), Preemption()]
        bar = sys.stdout.isatty() and given["enable_progress_bar"] is not False
        if bar:
            callbacks.append(StepBar(leave=True))
        plugins: list[Any] = [AtomicCheckpointIO()]
        if SLURMEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # Lightning's own requeueing can deadlock
        root = str(self.folder)
        # CSVLogger begins each start with an empty folder, so every start gets one of its own: logs/version_N
        loggers = [CSVLogger(root, name="logs"), TensorBoardLogger(root, name="logs", version="")]
        kwargs |= {
            "default_root_dir": root,
            "callbacks": [Patience(), *(given["callbacks"] or []), *callbacks],
            "plugins": [*(given["plugins"] or []), *plugins],
            "logger": loggers if given["logger"] is None else given["logger"],
            "enable_progress_bar": bar,
        }
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        needed = self.trainer.world_size
        started = dist.get_world_size() if dist.is_available() and dist.is_initialized() else None
        if rank() >= needed or started not in (None, needed):
            raise ValueError(
                f"stage {self.folder.name!r} needs {needed} processes, but {started or f'at least {rank() + 1}'} are "
                f"running; give all stages of a start the same trainer.devices, or start this one again by itself"
            )
        super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given = super()._prepare_subcommand_kwargs(subcommand)
        return given | {"ckpt_path": str(self.resume)} if self.resume else given


def explain(message: str) -> str:
    """jsonargparse's message in a line, led by the nearest right name where a name is not known."""
    if found := re.search(r"does not accept option '(trainer|checkpoints|guard)\.(\w+)'", message):
        group = {"trainer": Trainer, "checkpoints": Checkpoints, "guard": FiniteSteps}[found[1]]
        return f"{found[1]}: {unknown(found[2], parameters(group))}"
    if found := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        module, _, name = found[1].rpartition(".")
        return f"{name}: {unknown(found[2], parameters(getattr(importlib.import_module(module), name)))}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return f"{found[1]}: {unknown(found[2], contents(importlib.import_module(found[1])))}"
    said = [line.strip(" -") for line in message.splitlines()]
    idle = ("Does not validate", "Subtypes", "Errors:", "Expected a <class 'NoneType'>", "Given value", "Not a valid")
    return " ".join(line for line in said if line and not line.startswith(idle))


def parameters(kind: type) -> list[str]:
    """What a class and those that it passes its keywords on to can be given."""
    found = [p for base in kind.__mro__[:-1] for p in inspect.signature(base).parameters.values()]
    return sorted({p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)})


def contents(module: Any) -> list[str]:
    """The classes of a module, or the modules of a package."""
    classes = {name for name, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__}
    return sorted(classes | {inside.name for inside in pkgutil.iter_modules(getattr(module, "__path__", []))})


def execute(pipeline: Pipeline, stage: Stage) -> None:
    """Run one stage to its end, from its newest whole checkpoint if it has one, and declare it done.

    Raises ValueError for a config that does not fit the classes it names.
    """
    config, started_at = pipeline.resolved(stage), time.time()
    checkpoint = newest_whole(stage.folder / "checkpoints") if stage.run == "fit" else None
    if checkpoint is not None and rank() == 0:
        print(f"{stage.name} continues from {checkpoint}", flush=True)
    if stage.run in ("validate", "test"):
        config = {"verbose": False} | config  # the pipeline prints the results
    try:
        cli = StageCLI(stage.run, config, stage.folder, checkpoint)
    except (ArgumentError, ValueError) as error:
        # as jsonargparse says what the constructor of a model or its data raised; other errors are the run's own
        if isinstance(error, ValueError) and not str(error).startswith("Does not validate"):
            raise
        raise ValueError(f"stage {stage.name!r}: {explain(str(error))}") from error
    except MisconfigurationException as error:
        raise ValueError(f"stage {stage.name!r}: {error}") from error
    cli.trainer.strategy.barrier()
    if rank() == 0:
        publish(pipeline, stage, cli.trainer, started_at)
    cli.trainer.strategy.barrier()
    while stage.done() is None:  # a network file system may show it later on other machines
        time.sleep(0.2)


def publish(pipeline: Pipeline, stage: Stage, trainer: Trainer, started_at: float) -> None:
    """Draw the curves of a fit that has ended and declare the stage done."""
    logs = sorted(stage.folder.glob("logs/*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if stage.run == "fit" and logs:
        try:
            loss_curves(logs, stage.folder / "curves.png")
        except ValueError as error:  # a run of a few steps logged nothing; days of training must not end in this
            log.info("no curves: %s", error)
    pipeline.finish(stage, started_at, results(stage, trainer))


def build_data(config: dict[str, Any]) -> Any:
    """The datamodule that a stage's config describes, outside a Trainer."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    try:
        return parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    except ArgumentError as error:
        raise ValueError(explain(str(error))) from error


def trainer_help() -> str:
    """The options under `--trainer`."""
    parser = ArgumentParser(prog="", usage=argparse.SUPPRESS)
    parser.add_class_arguments(Trainer, "trainer", skip={"callbacks", "plugins", "strategy", "logger"})
    return parser.format_help()


def results(stage: Stage, trainer: Trainer) -> dict[str, Any]:
    """Step, metrics and checkpoint of a stage that has run."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if stage.run != "fit":
        return {"metrics": metrics}
    keeper = Checkpoints.of(trainer)
    folder = stage.folder / "checkpoints"
    best = sorted(folder.glob("best-step-*.ckpt"))
    checkpoint = best[-1] if best else newest_whole(folder)
    found: dict[str, Any] = {
        "step": trainer.global_step,
        "metrics": keeper.metrics | metrics,  # those of a validation before the last start, too
        # one that was given and had no step left to train stands elsewhere
        "checkpoint": str(
            checkpoint.relative_to(stage.folder) if checkpoint else Path(str(trainer.ckpt_path)).resolve()
        ),
    }
    return found | ({"best": [keeper.monitor, keeper.best_score]} if keeper.monitor else {})
