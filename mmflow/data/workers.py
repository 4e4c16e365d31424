"""Worker processes that end with the one that started them."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from mmflow.processes import end_with_parent


def worker_pool(workers: int, initializer: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C to this one and end when it does, however it ends.

    They are spawned, not forked: this one may run threads (torch), whose locks a child would inherit in mid-step.

    Args:
        workers: how many.
        initializer: called with `arguments` at the start of each.
        arguments: for the initializer; shared memory of `multiprocessing` may be among them.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(initializer, arguments))


def processors() -> int:
    """Processors that this process may use, fewer than the machine has under SLURM or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()  # or it would wait for tasks for ever
    if initializer is not None:
        initializer(*arguments)
