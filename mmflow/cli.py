"""The command line: pipelines, their status, and data.

Heavy imports (torch, Lightning) stand inside the commands that need them, so that help, typing errors, `status` and a
finished pipeline answer at once.
"""

import argparse
import contextlib
import itertools
import json
import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from mmflow.atomic import locked, remove_parts
from mmflow.data.spec import DataSpec
from mmflow.pipeline import RUNS, SETTINGS, Pipeline, Stage, parse_overrides, unknown
from mmflow.processes import rank, wait_for_parent
from mmflow.signals import leave_if_asked

# what torch.distributed says when another process of a run has ended
PEER_LOST = re.compile(r"gloo/transport|ncclRemoteError|remote process exit|Connection (closed|reset) by peer")
OVERRIDES = """Any other option changes the config: `--trainer.max_steps 10` in every stage,
`--stages.NAME.trainer.max_steps 10` in one, `--data.spec data_specs/librispeech.yaml`, and so on."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cli.py", description="Modular multimodal pretraining.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=version("mmflow"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = {
        "fit": "run a pipeline, or train one config; the same command again continues",
        "validate": "validate one config",
        "test": "test one config",
        "predict": "predict with one config",
        "status": "where a pipeline stands",
    }
    for name, text in about.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text.capitalize()}. {OVERRIDES}",
            allow_abbrev=False,
            add_help=name not in RUNS,
        )
        command.add_argument("--config", required=True, type=Path, help="pipeline or LightningCLI config (YAML)")
        command.add_argument("--workdir", type=Path, help="where its stages leave things; by default runs/<name>")
        if name in RUNS:
            command.add_argument("--rerun", action="append", default=[], metavar="STAGE", help="run a stage again")
            command.add_argument("-h", "--help", action=FullHelp, nargs=0, help="show this and the Trainer's options")
    add_data_commands(commands.add_parser("data", help="make and look at shards", allow_abbrev=False))
    return parser


def add_data_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    spec = argparse.ArgumentParser(add_help=False)
    spec.add_argument("--spec", required=True, type=Path, help="data spec (YAML)")
    make = commands.add_parser("make", parents=[spec], help="write shards from the original layout of a data set")
    make.add_argument("--root", type=Path, help="folder of the original")
    make.add_argument("--out", type=Path, help="folder for the shards; by default the one in the spec")
    made = argparse.ArgumentParser(add_help=False, parents=[spec])
    made.add_argument("--root", type=Path, help="folder of the shards; by default the one in the spec")
    check = commands.add_parser("check", parents=[made], help="read every sample and list the broken ones")
    stats = commands.add_parser("stats", parents=[made], help="count what is in the shards, with histograms")
    stats.add_argument("--split", action="append", help="only this one; may be given several times")
    stats.add_argument("--out", type=Path, help="write the numbers as JSON too")
    for command in (make, check, stats):
        command.add_argument("--workers", type=int, help="processes; by default one for each core")
    show = commands.add_parser("show", help="write a page to look at samples and hear them, or draw them as a picture")
    show.add_argument("--spec", required=True, type=Path, nargs="+", help="data specs (YAML)")
    show.add_argument("--root", type=Path, help="folder of the shards of the only spec; by default the one in the spec")
    show.add_argument("--split", default="train")
    show.add_argument(
        "--count",
        type=int,
        nargs="+",
        help="samples of all specs, or of each; by default 12 of one, 1 of each of several",
    )
    show.add_argument("--units", type=Path, help="folder of a units sidecar of the only spec, to show too")
    show.add_argument("--out", type=Path, help="page.html or picture.png; by default runs/show/<spec>-<split>.html")
    floors = commands.add_parser("floors", parents=[made], help="what can be reached without understanding")
    floors.add_argument("--split", default="test", help="the part that is guessed, by what train tells")
    trace = commands.add_parser("trace", help="print spec, shard and key of every sample of a training step")
    trace.add_argument("--config", required=True, type=Path, help="the pipeline")
    trace.add_argument("--workdir", type=Path, help="where its stages leave things; by default runs/<name>")
    trace.add_argument("--stage", help="the fit stage; not needed when there is one only")
    trace.add_argument("--step", type=int, required=True, help="step, counted from 0")


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code. What a user can get wrong ends in one line, not in a traceback."""
    parser = build_parser()
    check_commands(parser, arguments)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "data" and options.data_command != "trace" and rest:
        parser.error(f"unknown option {rest[0]}")
    logging.basicConfig(level=logging.INFO if rank() == 0 else logging.WARNING, format="%(levelname)s: %(message)s")
    for noisy in ("matplotlib", "fsspec", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if rank() > 0:
        warnings.simplefilter("ignore")  # the first process shows the same ones
    try:
        return COMMANDS[options.command](options, rest)
    except SystemExit:
        wait_for_parent()
        raise
    except Exception as error:
        return report(error, work_folder(options) if "config" in options else None)


def check_commands(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Leave with a message for a misspelt command; argparse names all of them but not the nearest."""
    for known, given in zip((COMMANDS, DATA_COMMANDS), arguments, strict=False):
        if given not in known and not given.startswith("-"):
            parser.error(f"command {unknown(given, known)}")
        if given != "data":
            return


def work_folder(options: argparse.Namespace) -> Path:
    """Where a pipeline leaves things unless its file says otherwise."""
    return options.workdir or Path("runs") / options.config.stem


def report(error: Exception, folder: Path | None) -> int:
    """Print why the run failed, keep the traceback in its folder; returns the exit code.

    2 for what the user can mend, said in a line; 1 for anything else. Of several processes that fail for one reason
    only the first says so.
    """
    trace = None
    if folder is not None and folder.is_dir():
        trace = folder / ("error.log" if rank() == 0 else f"error-rank{rank()}.log")
        with contextlib.suppress(OSError):  # the disk may be full
            trace.write_text("".join(traceback.format_exception(error)))
    if rank() > 0 and folder is not None:
        time.sleep(3)  # and by then the first process has ended this one, if that started it
        first = folder / "error.log"
        if first.exists() and traceback.format_exception_only(error)[-1] in first.read_text():
            return 1
    if isinstance(error, RuntimeError) and PEER_LOST.search(str(error)):
        told = f" (what this one saw: {trace})" if trace else ""
        print(
            f"error: another process of this run has ended or does not answer; what it said stands above{told}",
            file=sys.stderr,
        )
        return 1
    if not isinstance(error, ValueError | OSError | FloatingPointError):
        traceback.print_exception(error)
        return 1
    print(f"error: {error}", file=sys.stderr)
    if trace is not None:
        print(f"(where it came from: {trace})", file=sys.stderr)
    return 2


class FullHelp(argparse.Action):
    """Our options, then the Trainer's."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.print_help()
        from mmflow.stage import trainer_help  # Lightning

        print("\n" + trainer_help())
        parser.exit()


def run_pipeline(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the stages that are not done yet, in order."""
    pipeline = Pipeline(options.config, parse_overrides(rest), options.workdir, options.command)
    with exclusive(pipeline.folder):
        if options.rerun:
            forget(pipeline, options.rerun)
        for stage in pipeline.pending():
            leave_if_asked()
            from mmflow.stage import execute  # torch and Lightning

            if rank() == 0:
                number = list(pipeline.stages).index(stage.name) + 1
                print(f"── {stage.name} ({number} of {len(pipeline.stages)}): {stage.run}", flush=True)
                pipeline.begin(stage)
            try:
                execute(pipeline, stage)
            except Exception:
                if rank() == 0:
                    pipeline.withdraw(stage)
                raise
            if rank() == 0:
                _, result, spent = outcome(stage)
                print(f"── {stage.name} done in {spent}  {result}", flush=True)
        leave_if_asked()
        if rank() == 0:
            pipeline.finish_all()
    if rank() == 0:
        rich.print(table(pipeline))
    return 0


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Be the only run in a work folder. Other processes than the first belong to the one that holds it."""
    if rank() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError as error:
            raise ValueError(
                f"{folder} is in use by another run ({error.strerror}); wait for it, or choose another --workdir"
            ) from None
        remove_parts(folder)
        for log in folder.glob("error*.log"):
            log.unlink()
        yield


def forget(pipeline: Pipeline, names: list[str]) -> None:
    """The first process deletes what the stages and their dependents left; the others wait until it did."""
    if rank() == 0 and (gone := pipeline.forget(names)):
        print(f"running again: {', '.join(gone)}", flush=True)
    while not pipeline.was_forgotten(names):
        time.sleep(0.1)


def show_status(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the table of stages."""
    rich.print(table(Pipeline(options.config, parse_overrides(rest), options.workdir)))
    return 0


def table(pipeline: Pipeline) -> Table:
    """Stage, state, step, main result, time and size of each stage."""
    running = is_locked(pipeline.folder)
    shown = Table(
        "stage", "run", "state", "step", "result", "time", "size", title=f"{pipeline.name} in {pipeline.folder}"
    )
    for stage in pipeline.stages.values():
        size = sum(path.stat().st_size for path in stage.folder.rglob("*") if path.is_file())
        step, result, spent = outcome(stage)
        state = progress(stage, running)
        shown.add_row(stage.name, stage.run, state, step, result, spent, f"{size / 1e6:.1f} MB" if size else "")
    return shown


def outcome(stage: Stage) -> tuple[str, str, str]:
    """Step, main result and time of a stage, as far as it has come."""
    done = stage.done()
    if done is None:
        checkpoints = sorted(stage.folder.glob("checkpoints/step-*.ckpt"))
        return f"{int(checkpoints[-1].stem.removeprefix('step-')):,}" if checkpoints else "", "", ""
    metrics = {name: value for name, value in done["metrics"].items() if not name.startswith("speed/")}
    if done.get("best"):
        metrics = dict([done["best"]])
    elif measured := {name: value for name, value in metrics.items() if not name.startswith("train/")}:
        metrics = measured
    else:
        metrics = dict(itertools.islice(metrics.items(), 2))
    result = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
    return f"{done['step']:,}" if "step" in done else "", result, f"{done['seconds']:.0f} s"


def progress(stage: Stage, running: bool) -> str:
    """State of a stage in a word."""
    if stage.done():
        return "done"
    if not (stage.folder / SETTINGS).exists():
        return "waiting"
    return "running" if running else "interrupted"


def is_locked(folder: Path) -> bool:
    """Whether a run holds the work folder, this one apart."""
    if not (folder / ".lock").exists():
        return False
    try:
        with locked(folder / ".lock", wait=False):
            return False
    except BlockingIOError:
        return True
    except OSError:  # somebody else's folder
        return False


def data_make(options: argparse.Namespace, rest: list[str]) -> int:  # noqa: ARG001 (the signature of every command)
    """Write shards."""
    from mmflow.data.make import make  # reads torch

    counts = make(DataSpec.read(options.spec), options.root, options.out, options.workers)
    print("  ".join(f"{split} {count}" for split, count in counts.items()))
    return 0


def spec_of(options: argparse.Namespace) -> DataSpec:
    """The spec an option names, for the shards that another option may name."""
    spec = DataSpec.read(options.spec)
    return spec.with_root(options.root) if options.root else spec


def data_check(options: argparse.Namespace, rest: list[str]) -> int:  # noqa: ARG001
    """Read everything; exit code 1 when something is broken."""
    from mmflow.data.inspection import check  # reads torch

    counts, faults = check(spec_of(options), options.workers)
    shown = Table("split", "shards", "samples", "hours", "mean s", "broken", title=str(options.spec))
    for split, row in counts.items():
        hours, mean_s = f"{row['hours']:.2f}", f"{row['mean_s']:.2f}"
        shown.add_row(split, str(row["shards"]), str(row["samples"]), hours, mean_s, str(row["broken"]))
    rich.print(shown)
    for shard, key, reason in faults:
        print(f"{shard}  {key}: {reason}" if key else f"{shard}: {reason}")
    return 1 if faults else 0


def data_stats(options: argparse.Namespace, rest: list[str]) -> int:  # noqa: ARG001
    """Count what is in the shards."""
    from mmflow.data.statistics import statistics, tables  # reads torch

    found = statistics(spec_of(options), options.split, options.workers)
    rich.print(tables(found))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8", errors="replace")
    return 0


def data_show(options: argparse.Namespace, rest: list[str]) -> int:  # noqa: ARG001
    """Write a page with samples, or a picture of them."""
    from mmflow.data.gallery import show_gallery
    from mmflow.data.inspection import pick  # reads torch
    from mmflow.data.show import show_page

    specs = [DataSpec.read(path) for path in options.spec]
    if len(specs) > 1 and (options.root or options.units):
        raise ValueError(f"--root and --units are for one spec, not for {len(specs)}; show that one alone")
    specs = [spec.with_root(options.root) if options.root else spec for spec in specs]
    counts = options.count or [12 if len(specs) == 1 else 1]
    counts = counts * len(specs) if len(counts) == 1 else counts
    if len(counts) != len(specs) or min(counts) < 1:
        raise ValueError(
            f"--count {' '.join(map(str, options.count))} for {len(specs)} specs: "
            "give one number from 1 on, or one for each"
        )
    name = specs[0].name if len(specs) == 1 else f"{specs[0].name}-and-{len(specs) - 1}-more"
    out = options.out or Path("runs/show") / f"{name}-{options.split}.html"
    if out.suffix not in (".html", ".png"):
        raise ValueError(f"--out {out} ends in {out.suffix!r}, must be .html for a page or .png for a picture")
    samples = (
        sample
        for spec, count in zip(specs, counts, strict=True)
        for sample in pick(spec, options.split, count, options.units)
    )
    if out.suffix == ".png":
        print(f"look at {show_gallery(samples, out)}")
    else:
        title = f"{specs[0].name if len(specs) == 1 else f'{len(specs)} data sets'}: {options.split}"
        print(f"open {show_page(samples, title, out)} in a browser")
    return 0


def data_floors(options: argparse.Namespace, rest: list[str]) -> int:  # noqa: ARG001
    """Print what guessers reach, and what is possible at best where it is known."""
    from mmflow.world.floors import floors  # reads torch

    spec = spec_of(options)
    by_task: dict[str, list[str]] = {}
    for name, value in floors(spec, options.split).items():
        task, _, who = name.rpartition("/")
        by_task.setdefault(task, []).append(f"{who} {value:.3f}")
    shown = Table("task", "who reaches what", title=f"{spec.name}: {options.split}")
    for task, reached in by_task.items():
        shown.add_row(task, "   ".join(reached))
    rich.print(shown)
    return 0


def data_trace(options: argparse.Namespace, rest: list[str]) -> int:
    """Print what a step of a fit stage reads."""
    from mmflow.data.datamodule import ShardData  # Lightning
    from mmflow.stage import build_data

    pipeline = Pipeline(options.config, parse_overrides(rest), options.workdir)
    fits = [
        stage.name
        for stage in pipeline.stages.values()
        if stage.run == "fit" and "max_steps" in stage.config["trainer"]
    ]
    name = options.stage or (fits[0] if len(fits) == 1 else None)
    if name not in pipeline.stages:
        raise ValueError(f"--stage {name}: choose one of the training stages {fits}")
    module = build_data(pipeline.resolved(pipeline.stages[name]))
    if not isinstance(module, ShardData):
        raise ValueError(f"the data of stage {name!r} is a {type(module).__name__}, which has no plan to trace")
    if options.step < 0:
        raise ValueError(f"--step {options.step} must be 0 or more")
    plan, corpus = module.plan(), module.corpus("train")
    for micro in itertools.islice(plan.micro_batches(options.step), plan.lanes):
        for number in micro.ids:
            shard, key = corpus.name(number)
            spec = corpus.spec_of[corpus.place(number)[0]].name
            print(f"epoch {micro.epoch}  lane {micro.lane}  {spec}  {shard}  {key}")
    return 0


def data(options: argparse.Namespace, rest: list[str]) -> int:
    """Run one of the `data` commands."""
    return DATA_COMMANDS[options.data_command](options, rest)


DATA_COMMANDS = {
    "make": data_make, "check": data_check, "stats": data_stats, "show": data_show, "floors": data_floors,
    "trace": data_trace,
}  # fmt: skip
COMMANDS = {**dict.fromkeys(RUNS, run_pipeline), "status": show_status, "data": data}
