"""Pipelines: named stages in order, each run once, resumed where it stopped, never mixed with another's settings.

A pipeline file is a YAML mapping. `stages` names the stages in order; every other key (`model`, `data`, `trainer`,
`seed_everything`) is a default of all of them. A stage says what it does under `run` (fit, predict, test or validate)
and is otherwise the config of that LightningCLI subcommand. `${stages.NAME.checkpoint}`, `.shards` and `.folder` refer
to what an earlier stage left, `${stages.NAME.model}` to a part of its config. A file without `stages` is a pipeline of
one.

`runs/<pipeline>/<stage>/` holds `settings.json` (what the stage was started with), `config.yaml` (the same with all
defaults, for LightningCLI), `checkpoints/`, `logs/`, outputs, and, last of all, `done.json`.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmflow.atomic import write_json
from mmflow.data.spec import DataSpec

RUNS = ("fit", "validate", "test", "predict")
DONE, SETTINGS = "done.json", "settings.json"
OUTPUTS = ("folder", "shards", "checkpoint")  # what later stages can refer to

# Where and how something runs, not what comes out of it: may change between two starts of one stage.
PLACE = {
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
    "data.init_args.num_workers",
}


@dataclass
class Stage:
    """One step of a pipeline.

    Attributes:
        name: its key in the file.
        run: the subcommand: fit, validate, test or predict.
        config: everything else it says, merged with the defaults; references are not resolved.
        folder: where it leaves things.
        needs: stages that it refers to.
    """

    name: str
    run: str
    config: dict[str, Any]
    folder: Path
    needs: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        """What decides the outcome, flat: dotted name -> value."""
        flat = {"run": self.run, **flatten(self.config)}
        return {name: value for name, value in flat.items() if name not in PLACE}

    def done(self) -> dict[str, Any] | None:
        """What it left when it finished, or None."""
        path = self.folder / DONE
        return json.loads(path.read_text()) if path.exists() else None

    def outputs(self) -> dict[str, str]:
        """What it left, for the stages that refer to it."""
        places = {"folder": str(self.folder), "shards": str(self.folder / "shards")}
        return places | {"checkpoint": (self.done() or {}).get("checkpoint", f"no checkpoint of stage {self.name}")}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names. Lists stay values."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for name, part in value.items() for k, v in flatten(part, f"{prefix}.{name}" if prefix else name).items()
    }


def apply_override(config: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in a stage config. `data.spec` finds `data.init_args.spec`: init_args need not be spelled."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        implicit = position > 0 and ("class_path" in config or "init_args" in config)
        if implicit and part not in ("class_path", "init_args", "dict_kwargs"):
            config = config.setdefault("init_args", {})
        if position == len(parts) - 1:
            config[part] = value
        elif not isinstance(config.get(part), dict):
            config[part] = {}
        config = config[part] if position < len(parts) - 1 else config


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`--a.b 1 --c=x` as [("a.b", 1), ("c", "x")]; values are YAML. Raises ValueError for anything else."""
    pairs, words = [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ValueError(f"unexpected word {word!r}; options are --name value or --name=value")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise ValueError(f"option --{name} needs a value")
            text = words.pop(0)
        pairs.append((name, yaml.safe_load(text)))
    return pairs


class Pipeline:
    """A pipeline file with its overrides applied.

    Args:
        path: the YAML file.
        overrides: (dotted name, value); one that starts with `stages.NAME.` is for that stage, others are for all.
        folder: where the stages leave things; by default `runs/<name>`.
        run: what a file without stages is for, unless it says so itself.
    """

    def __init__(
        self,
        path: Path,
        overrides: list[tuple[str, Any]] | None = None,
        folder: Path | None = None,
        run: str = "fit",
    ) -> None:
        if not path.is_file():
            raise ValueError(f"there is no config {path}; pipelines/ holds those of mmflow")
        tree = yaml.safe_load(path.read_text())
        if not isinstance(tree, dict):
            raise ValueError(f"{path} holds no mapping; a pipeline has `stages:`, or `model:`, `data:` and `trainer:`")
        self.path, self.name = path, str(tree.pop("name", path.stem))
        self.folder = folder or Path(tree.pop("folder", Path("runs") / self.name))
        named = tree.pop("stages", None)
        defaults, parts = tree, named if named is not None else {self.name: {}}
        if named is not None and run != "fit":
            raise ValueError(f"{path} has stages, which `fit` runs in order; `{run}` takes a config of one stage")
        self.run = run
        self.stages: dict[str, Stage] = {}
        for name, own in parts.items():
            self.stages[name] = self._stage(name, OmegaConf.merge(defaults, own or {}), overrides or [])
        for name, _ in overrides or []:
            if name.startswith("stages.") and name.split(".")[1] not in self.stages:
                raise ValueError(f"--{name}: there is no stage {name.split('.')[1]!r}; there are {list(self.stages)}")

    def _stage(self, name: str, merged: Any, overrides: list[tuple[str, Any]]) -> Stage:
        """Fill in references to configs of earlier stages, keep those to their outputs, then apply overrides."""
        outputs = {e: {o: f"@{{{e}.{o}}}" for o in OUTPUTS} for e in self.stages}
        earlier = {e: stage.config | outputs[e] for e, stage in self.stages.items()}
        try:
            tree = OmegaConf.create({"stages": earlier, "this": merged})
            config: Any = OmegaConf.to_container(tree.this, resolve=True)
        except OmegaConfBaseException as error:
            raise ValueError(
                f"stage {name!r} in {self.path}: {str(error).splitlines()[0]}; it can refer to parts of the configs of "
                f"{list(self.stages)} and to their {', '.join(OUTPUTS)}"
            ) from error
        for dotted, value in overrides:
            own, mine = dotted.startswith("stages."), dotted.startswith(f"stages.{name}.")
            if mine or not own:
                apply_override(config, dotted.removeprefix(f"stages.{name}."), value)
        run = config.pop("run", self.run)
        if run not in RUNS:
            raise ValueError(f"stage {name!r} in {self.path} has run: {run!r}; it must be one of {RUNS}")
        needs = [earlier for earlier in self.stages if f"@{{{earlier}." in json.dumps(config)]
        return Stage(name, run, config, self.folder / name, needs)

    def resolved(self, stage: Stage) -> dict[str, Any]:
        """The stage's config with what earlier stages left filled in."""

        def fill(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: fill(part) for name, part in value.items()}
            if isinstance(value, list):
                return [fill(part) for part in value]
            if isinstance(value, str):
                return re.sub(r"@\{(\w+)\.(\w+)\}", lambda found: self.stages[found[1]].outputs()[found[2]], value)
            return value

        return fill(stage.config)

    def fingerprint(self, stage: Stage) -> str:
        """Of the stage's settings and, through those, of everything before it."""
        inputs = {need: self.fingerprint(self.stages[need]) for need in stage.needs}
        text = json.dumps({"settings": stage.settings(), "inputs": inputs}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def check_unchanged(self, stage: Stage) -> None:
        """Raise ValueError when the stage was started or finished with other settings, inputs or data."""
        path = stage.folder / SETTINGS
        if not path.exists():
            return
        then, now = json.loads(path.read_text()), stage.settings()
        changes = [
            f"  {name}: {then['settings'].get(name)!r} -> {now.get(name)!r}"
            for name in sorted(then["settings"].keys() | now.keys())
            if then["settings"].get(name) != now.get(name)
        ]
        if not changes and then["fingerprint"] != self.fingerprint(stage):
            changes = [f"  one of the stages it uses ({', '.join(stage.needs)}) has other settings now"]
        done = stage.done()
        if not changes and done and done["data"] != (identity := data_identity(stage.config)):
            changes = [f"  the data: {done['data']} -> {identity}"]
        if changes:
            raise ValueError(
                f"stage {stage.name!r} in {self.folder} was run with other settings:\n"
                + "\n".join(changes)
                + f"\nEither choose another folder (--workdir DIR), or run it and what depends on it again "
                f"(--rerun {stage.name})"
            )

    def dependents(self, name: str) -> list[str]:
        """The stage and all that use it, directly or not."""
        found = [name]
        for stage in self.stages.values():
            if set(stage.needs) & set(found):
                found.append(stage.name)
        return found

    def forget(self, name: str) -> list[str]:
        """Delete what a stage and its dependents left, so that they run again. Returns their names."""
        if name not in self.stages:
            raise ValueError(f"--rerun {name}: there is no such stage; there are {list(self.stages)}")
        found = self.dependents(name)
        for dependent in found:
            folder = self.stages[dependent].folder
            (folder / DONE).unlink(missing_ok=True)  # first, so that half a removal is not taken for a finished stage
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def pending(self) -> Iterator[Stage]:
        """Stages to run, in order; a finished one is skipped after its settings were compared."""
        for stage in self.stages.values():
            self.check_unchanged(stage)
            if stage.done() is None:
                yield stage

    def begin(self, stage: Stage) -> None:
        """Note what the stage is started with."""
        if not (stage.folder / SETTINGS).exists():
            note = {"settings": stage.settings(), "fingerprint": self.fingerprint(stage), "needs": stage.needs}
            write_json(stage.folder / SETTINGS, note)

    def finish(self, stage: Stage, started_at: float, results: dict[str, Any]) -> None:
        """Declare the stage done: written last, so its existence means that all else is there."""
        note = {
            "fingerprint": self.fingerprint(stage),
            "data": data_identity(stage.config),
            "finished_at": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(time.time() - started_at, 1),
            **results,
        }
        write_json(stage.folder / DONE, note)


def data_identity(config: dict[str, Any]) -> str:
    """Names and sizes of all shards that a stage's data specs name; tells changed data from unchanged."""
    data = config.get("data", {})
    specs = data.get("init_args", data).get("spec", [])
    listing: list[Any] = []
    for path in [specs] if isinstance(specs, str) else specs:
        spec = DataSpec.read(Path(path))
        root = Path(spec.root)
        listing += (
            sorted((shard.name, shard.stat().st_size) for shard in root.glob("*.tar")) if root.is_dir() else [path]
        )
    return f"{len(listing)} shards, {hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]}"
