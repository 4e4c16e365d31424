"""Fair timing of one thing against others: in one process, on the same threads, one run of each in turn."""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # of this process, all threads


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1, help="threads of every contestant")
    options.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that warms up")
    options.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that others use too")
    options.add_argument("--quick", action="store_true", help="sizes that only show that it runs")
    return options


def threads_from(arguments: list[str]) -> str:
    """`--threads` of a command line that cannot be parsed yet, because the libraries read the environment on import."""
    options, _ = parser(None).parse_known_args([argument for argument in arguments if argument not in ("-h", "--help")])
    return str(options.threads)


def stepper(model: nn.Module, batch: dict[str, Tensor], clip: float = 1.0, **adamw: Any) -> Callable[[], None]:
    """A function that makes one optimiser step on the batch, with the loss that the model makes of it; on a GPU
    compiled and under bf16 autocast."""
    device = next(iter(batch.values())).device
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **adamw)
    cuda = device.type == "cuda"
    loss_of = torch.compile(model) if cuda else model

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_bytes(name: str, options: argparse.Namespace) -> int:
    """Peak memory of one contestant alone: of the script that runs now, started again with `--peak NAME`."""
    command = [sys.executable, sys.argv[0], f"--peak={name}"]
    for option, value in vars(options).items():
        if option != "peak" and value not in (None, False):
            command.append(f"--{option}" if value is True else f"--{option}={value}")
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(run: Callable[[], Any]) -> None:
    """Run twice, then print the most bytes there were: of the device, or of this process, with what it imported."""
    run()
    run()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated())
    else:  # not getrusage, which starts from the peak of the process that started this one
        print(1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]))


def alternate(contestants: dict[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each, one of each in turn, so that what slows the machine slows all of them."""
    clock = CLOCKS[options.clock]
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.repeats):
        for name, run in contestants.items():
            synchronize()
            start = clock()
            run()
            synchronize()
            seconds[name].append(clock() - start)
    return seconds


def synchronize() -> None:
    """Wait for the device, which otherwise works on while the clock is read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(title: str, seconds: dict[str, list[float]], extra: dict[str, dict[str, Any]] | None = None) -> None:
    """Print a table and one line of JSON: the median and the spread of each, and how many times faster the first is.

    extra: further columns of some contestants."""
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    ours, rows = next(iter(medians)), []
    for name, runs in seconds.items():
        row = {"what": name, "median_s": medians[name], "min_s": min(runs), "max_s": max(runs)}
        rows.append(row | {f"{ours}_is_faster": medians[name] / medians[ours]} | (extra or {}).get(name, {}))
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"\n{title}  ({torch.get_num_threads()} threads, {machine}, torch {torch.__version__})")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns] + [[show(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(json.dumps({"benchmark": title, "threads": torch.get_num_threads(), "machine": machine, "rows": rows}))


def show(value: Any) -> str:
    """A cell of the table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
