"""Pipelines: named stages in order, each run once, resumed where it stopped, never mixed with another's settings.

A pipeline file is a YAML mapping. `stages` names the stages in order; every other key (`model`, `data`, `trainer`,
`seed_everything`) is a default of all of them. A stage says what it does under `run` (fit, predict, test or validate)
and is otherwise the config of that LightningCLI subcommand. `${stages.NAME.checkpoint}`, `.shards` and `.folder` refer
to what an earlier stage left, `${stages.NAME.model}` to a part of its config. A file without `stages` is a pipeline of
one.

`runs/<pipeline>/<stage>/` holds `settings.json` (what the stage was started with), `config.yaml` (the same with all
defaults, for LightningCLI), `checkpoints/`, `logs/`, outputs, and, last of all, `done.json`.
"""

import difflib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmflow.atomic import write_json
from mmflow.data.spec import DataSpec

RUNS = ("fit", "validate", "test", "predict")
DONE, SETTINGS, RERUN = "done.json", "settings.json", "rerun.json"
OUTPUTS = ("folder", "shards", "checkpoint")  # what later stages can refer to

# Where and how something runs, not what comes out of it: may change between two starts of one stage.
PLACE = (
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
    "checkpoints.every_steps",
    "checkpoints.every_minutes",
    "checkpoints.keep",
    "guard.max_skipped",  # a run that was stopped by a bad batch may go on
)
OPTIONS = ("config", "workdir", "rerun", "help")  # of the commands, which a misspelt option may mean


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
        places = tuple(f"{place}." for place in PLACE)
        return {name: value for name, value in flat.items() if not f"{name}.".startswith(places)}

    def done(self) -> dict[str, Any] | None:
        """What it left when it finished, or None."""
        path = self.folder / DONE
        return json.loads(path.read_text()) if path.exists() else None

    def goes_on(self) -> bool:
        """Whether it has finished with a folder of plain files, of which some are new or have changed since."""
        done = self.done()
        return done is not None and "folder" in data_options(self.config) and done["data"] != data_identity(self.config)

    def outputs(self) -> dict[str, str]:
        """What it left, for the stages that refer to it."""
        places = {"folder": str(self.folder), "shards": str(self.folder / "shards")}
        checkpoint = (self.done() or {}).get("checkpoint", f"(stage {self.name} left no checkpoint)")
        return places | {"checkpoint": str(self.folder / checkpoint)}


def unknown(name: str, known: Iterable[str]) -> str:
    """A message for a name that is not known, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{name!r} is not known; " + (f"did you mean {near[0]!r}? Known: {', '.join(known)}" if near else "none is")


def read_yaml(path: Path) -> dict[str, Any]:
    """A pipeline file. Raises ValueError when it is absent, no YAML mapping, or names something twice."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "pipelines/ holds those of mmflow"
        raise ValueError(f"there is no config {path}; {hint}")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{path} holds no mapping; a pipeline has `stages:`, or `model:`, `data:` and `trainer:`")
    return tree  # type: ignore[return-value]


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
        if near := difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.75):
            raise ValueError(f"there is no option --{name}; did you mean --{near[0]}?")
        if not equals:
            if not words:
                raise ValueError(f"option --{name} needs a value")
            text = words.pop(0)
        try:
            pairs.append((name, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]))  # type: ignore
        except yaml.YAMLError as error:
            raise ValueError(f"--{name}: {text!r} is not YAML; put it in quotes") from error
    return pairs


class Pipeline:
    """A pipeline file with its overrides applied.

    Args:
        path: the YAML file.
        overrides: (dotted name, value); one that starts with `stages.NAME.` is for that stage, others are for all.
        folder: where the stages leave things; by default `runs/<name>`.
        run: what a file without stages is for: `fit` leaves that to the file, anything else overrules it.
    """

    def __init__(
        self,
        path: Path,
        overrides: list[tuple[str, Any]] | None = None,
        folder: Path | None = None,
        run: str = "fit",
    ) -> None:
        tree = read_yaml(path)
        self.path, self.name = path, str(tree.pop("name", path.stem))
        default_folder = Path(tree.pop("folder", Path("runs") / self.name))
        self.folder, self.run = folder or default_folder, run
        several, parts = "stages" in tree, tree.pop("stages", {self.name: None})
        if several and run != "fit":
            raise ValueError(f"{path} has stages, which `fit` runs in order; `{run}` takes a config of one stage")
        if not isinstance(parts, dict) or not parts:
            raise ValueError(f"{path}: stages is {parts!r:.80}; it must map the name of each stage to its config")
        self.stages: dict[str, Stage] = {}
        for name, own in parts.items():
            if several and not (re.fullmatch(r"\w+", str(name)) and isinstance(own, dict | None)):
                raise ValueError(
                    f"{path}: stage {name!r} holds {own!r:.80}; the name of a stage is made of letters, digits and _, "
                    f"and it holds a mapping with run, model, data and trainer"
                )
            self.stages[str(name)] = self._stage(str(name), [tree, own or {}], overrides or [])
        for dotted, _ in overrides or []:
            first, *rest = dotted.split(".")
            if first == "stages" and (not rest or rest[0] not in self.stages):
                raise ValueError(f"--{dotted}: stage {unknown(''.join(rest[:1]), self.stages)}")
            if first == "stages" and len(rest) == 1:
                raise ValueError(f"--{dotted} names no key of that stage; try --{dotted}.trainer.max_steps")

    def _stage(self, name: str, parts: list[dict[str, Any]], overrides: list[tuple[str, Any]]) -> Stage:
        """Fill in references to configs of earlier stages, keep those to their outputs, then apply overrides."""
        outputs = {e: {o: f"@{{{e}.{o}}}" for o in OUTPUTS} for e in self.stages}
        earlier = {e: stage.config | outputs[e] for e, stage in self.stages.items()}
        try:
            tree = OmegaConf.create({"stages": earlier, "this": OmegaConf.merge(*parts)})
            config: Any = OmegaConf.to_container(tree.this, resolve=True)
        except OmegaConfBaseException as error:
            raise ValueError(f"stage {name!r} in {self.path}: {explain_reference(str(error), earlier)}") from error
        for dotted, value in overrides:
            if dotted.startswith(f"stages.{name}.") or not dotted.startswith("stages."):
                apply_override(config, dotted.removeprefix(f"stages.{name}."), value)
        said = config.pop("run", "fit")
        run = said if self.run == "fit" else self.run
        if run not in RUNS:
            raise ValueError(f"stage {name!r} in {self.path}: run: {unknown(str(run), RUNS)}")
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
            f"  {name}: {then['settings'].get(name, '(not set)')!r} -> {now.get(name, '(not set)')!r}"
            for name in sorted(then["settings"].keys() | now.keys())
            if name not in then["settings"] or name not in now or then["settings"][name] != now[name]
        ]
        if not changes and then["fingerprint"] != self.fingerprint(stage):
            changes = [f"  one of the stages it uses ({', '.join(stage.needs)}) has other settings now"]
        done = stage.done()
        if not changes and done and not stage.goes_on() and done["data"] != (identity := data_identity(stage.config)):
            changes = [f"  the data: {done['data']} -> {identity}"]
        if changes:
            raise ValueError(
                f"stage {stage.name!r} in {self.folder} was run with other settings:\n"
                + "\n".join(changes)
                + f"\nEither choose another folder (--workdir DIR), or run it and what depends on it again "
                f"(--rerun {stage.name})"
            )

    def dependents(self, names: Iterable[str]) -> list[str]:
        """These stages and all that use them, directly or not, in order."""
        found: list[str] = []
        for stage in self.stages.values():
            if stage.name in names or set(stage.needs) & set(found):
                found.append(stage.name)
        return found

    def forget(self, names: list[str]) -> list[str]:
        """Delete what these stages and their dependents left, so that they run again. Returns the names of all.

        The same request once more deletes nothing until all stages have finished: the command of an interrupted job
        is given again, and goes on.
        """
        if self.was_forgotten(names):
            return []
        found = self.dependents(names)
        for name in found:
            folder = self.stages[name].folder
            (folder / DONE).unlink(missing_ok=True)  # first, so that half a removal is not taken for a finished stage
            if folder.exists():
                shutil.rmtree(folder)
        write_json(self.folder / RERUN, self._request(names))
        return found

    def was_forgotten(self, names: list[str]) -> bool:
        """Whether the stages were deleted to be run again, and not all stages have finished since."""
        note = self.folder / RERUN
        return note.exists() and json.loads(note.read_text()) == self._request(names)

    def _request(self, names: list[str]) -> dict[str, str]:
        for name in names:
            if name not in self.stages:
                raise ValueError(f"--rerun {name}: stage {unknown(name, self.stages)}")
        return {name: self.fingerprint(self.stages[name]) for name in names}

    def pending(self) -> Iterator[Stage]:
        """Stages to run, in order. Raises ValueError before the first one if the settings of any have changed."""
        for stage in self.stages.values():
            self.check_unchanged(stage)
        for stage in self.stages.values():
            if stage.done() is None or stage.goes_on():
                yield stage

    def finish_all(self) -> None:
        """Every stage is done: the next request to run some again is a new one."""
        (self.folder / RERUN).unlink(missing_ok=True)

    def begin(self, stage: Stage) -> None:
        """Note what the stage is started with."""
        (stage.folder / DONE).unlink(missing_ok=True)
        if not (stage.folder / SETTINGS).exists():
            note = {"settings": stage.settings(), "fingerprint": self.fingerprint(stage), "needs": stage.needs}
            write_json(stage.folder / SETTINGS, note)

    def withdraw(self, stage: Stage) -> None:
        """Forget what the stage was started with if it failed before it left anything, so that it can be mended."""
        if {path.name for path in stage.folder.iterdir()} <= {SETTINGS, "config.yaml"}:
            (stage.folder / SETTINGS).unlink(missing_ok=True)

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


def explain_reference(message: str, earlier: dict[str, Any]) -> str:
    """What is wrong with a `${...}`, led by the nearest right name."""
    found = re.search(r"'stages\.(\w+)(?:\.(\w+))?", message)
    if found and found[1] not in earlier:
        return f"it refers to a stage that does not stand before it: {unknown(found[1], earlier)}"
    if found and found[2]:
        return f"${{stages.{found[1]}.{found[2]}}}: {unknown(found[2], earlier[found[1]])}"
    return message.splitlines()[0]


def data_options(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a stage's data."""
    data = config.get("data", {})
    return data.get("init_args", data)


def data_identity(config: dict[str, Any]) -> str:
    """Names and sizes of all shards that a stage's data specs name, or names, sizes and times of the plain files in its
    folder; tells changed data from unchanged."""
    options = data_options(config)
    listing: list[Any] = []
    if "folder" in options:
        files = [(str(path), path.stat()) for path in Path(options["folder"]).rglob("*") if path.is_file()]
        listing = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in files)
    paths = options.get("spec", [])
    for path in [paths] if isinstance(paths, str) else paths:
        spec = DataSpec.read(Path(path))
        spec = spec if options.get("root") is None else spec.with_root(options["root"])
        for split in spec.splits:
            try:
                shards = [Path(shard) for shard in spec.shards(split)]
            except ValueError:  # a split that is not there
                shards = []
            listing += [(spec.name, shard.name, shard.stat().st_size if shard.exists() else None) for shard in shards]
    return f"{len(listing)} shards, {hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]}"
