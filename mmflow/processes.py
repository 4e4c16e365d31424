"""Which process of a run this one is, and how the others end with the first."""

import multiprocessing
import os
import signal
import threading
import time


def rank() -> int:
    """0 in the first process of a run and another number in the others, as launchers tell it."""
    told = os.environ
    if "RANK" in told:
        return int(told["RANK"])
    if "LOCAL_RANK" in told or "NODE_RANK" in told:  # Lightning's own launcher
        return int(told.get("NODE_RANK", 0)) + int(told.get("LOCAL_RANK", 0))
    return int(told.get("SLURM_PROCID", 0))


def is_spawned() -> bool:
    """Whether the first process of the run started this one, as Lightning does without a cluster's launcher."""
    return "RANK" not in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0


def end_with_parent() -> None:
    """End this process soon after the one that started it, however that ends. Python tells nobody."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait_for_parent() -> None:
    """In a spawned process: wait for the first one to end the run, for that decides on the exit code.

    Lightning kills the first process within seconds of seeing another leave with anything but 0.
    """
    while is_spawned():
        time.sleep(1)


def end_children() -> None:
    """At the very end: data workers ignore SIGTERM, with which Python would ask them to end and then wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error when a worker is killed
    for child in multiprocessing.active_children():
        child.kill()
