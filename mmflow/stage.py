"""One stage: a LightningCLI config, run with what every Trainer of mmflow gets."""

import argparse
import difflib
import importlib
import inspect
import logging
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mmflow.atomic import atomic_file
from mmflow.evaluation.pictures import loss_curves
from mmflow.pipeline import Pipeline, Stage
from mmflow.training.checkpoints import AtomicCheckpointIO, Checkpoints, newest_whole
from mmflow.training.guard import FiniteLoss
from mmflow.training.lanes import Lanes
from mmflow.training.meters import Meters
from mmflow.training.preemption import Preemption

log = logging.getLogger(__name__)

for noisy in ("lightning.pytorch", "lightning.fabric"):  # Lightning sets its level when it is imported
    logging.getLogger(noisy).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")


class StageCLI(LightningCLI):
    """LightningCLI for one subcommand, with mmflow's Trainer.

    Args:
        run: fit, validate, test or predict.
        config: of that subcommand.
        folder: the Trainer's default_root_dir; the config with all defaults is saved in it.
    """

    def __init__(self, run: str, config: dict[str, Any], folder: Path) -> None:
        self.folder = folder
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # jsonargparse drops unknown names at this level without a word
        run = args["subcommand"]
        known = {action.dest.split(".")[0] for action in self._parser(run)._actions} - {"help", "config"}
        for name in args[run]:
            if name not in known:
                raise ValueError(unknown(name, sorted(known)))
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """The config rules, not the hyperparameters in a checkpoint: command line beats file beats checkpoint."""

    def before_instantiate_classes(self) -> None:
        if "LOCAL_RANK" not in os.environ or os.environ["LOCAL_RANK"] == "0":
            run = self.config["subcommand"]
            text = self._parser(run).dump(self.config[run], skip_none=False)
            with atomic_file(self.folder / "config.yaml") as file:
                file.write(f"run: {run}\n{text}".encode())

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer", default={})
        callbacks: list[Callback] = [Lanes(), FiniteLoss(), Meters(), Preemption()]
        if sys.stdout.isatty():
            callbacks.append(RichProgressBar(leave=True))
        plugins: list[Any] = [AtomicCheckpointIO()]
        if SLURMEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # Lightning's own requeueing can deadlock
        root = str(self.folder)
        loggers = [CSVLogger(root, name="logs", version=""), TensorBoardLogger(root, name="logs", version="")]
        kwargs |= {
            "default_root_dir": root,
            "callbacks": [*(given.get("callbacks") or []), *callbacks],
            "plugins": [*(given.get("plugins") or []), *plugins],
            "logger": loggers if given.get("logger") is None else given["logger"],
            "enable_progress_bar": sys.stdout.isatty(),
        }
        return super().instantiate_trainer(**kwargs)


def unknown(name: str, known: list[str]) -> str:
    """A message for a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown key {name!r}; did you mean {near[0]!r}? Known: {', '.join(known)}"


def explain(message: str) -> str:
    """jsonargparse's message, led by the nearest right name where a key of the Trainer or of a class is not known."""
    if found := re.search(r"does not accept option 'trainer\.(\w+)'", message):
        return "trainer: " + unknown(found[1], sorted(inspect.signature(Trainer).parameters))
    found = re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message)
    if not found:
        return message
    module, _, name = found[1].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    known = {p for base in kind.__mro__[:-1] for p in inspect.signature(base.__init__).parameters} - {"self", "kwargs"}
    return f"{name}: " + unknown(found[2], sorted(known))


def execute(pipeline: Pipeline, stage: Stage) -> None:
    """Run one stage to its end, from its newest whole checkpoint if it has one, and declare it done.

    Raises ValueError for a config that does not fit the classes it names.
    """
    config, started_at = pipeline.resolved(stage), time.time()
    if stage.run == "fit" and (checkpoint := newest_whole(stage.folder / "checkpoints")) is not None:
        print(f"{stage.name} continues from {checkpoint}", flush=True)
        config = config | {"ckpt_path": str(checkpoint)}
    try:
        cli = StageCLI(stage.run, config, stage.folder)
    except ArgumentError as error:
        raise ValueError(f"stage {stage.name!r}: {explain(str(error))}") from error
    cli.trainer.strategy.barrier()
    if cli.trainer.is_global_zero:
        curves = stage.folder / "logs" / "metrics.csv"
        if stage.run == "fit" and curves.exists():
            loss_curves(curves, stage.folder / "curves.png")
        pipeline.finish(stage, started_at, results(stage, cli.trainer))
    cli.trainer.strategy.barrier()


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
    found: dict[str, Any] = {"step": trainer.global_step, "metrics": metrics}
    if stage.run == "fit":
        keeper = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
        best = sorted(keeper.folder(trainer).glob("best-*.ckpt"))
        found["checkpoint"] = str(best[-1] if best else newest_whole(keeper.folder(trainer)))
        if keeper.monitor:
            found["best"] = [keeper.monitor, keeper.best_score]
    return found
