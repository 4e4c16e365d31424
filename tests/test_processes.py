"""Which process of a run this one is, and how processes end together."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from mmflow.processes import is_spawned, rank, wait_for_parent


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("told", "number", "spawned"),
    [
        ({}, 0, False),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3, False),  # torchrun
        ({"SLURM_PROCID": "2"}, 2, False),  # srun
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, 0, False),  # the first process, after it has started the others
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, 1, True),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1, True),  # started by one in an interactive job
        ({"NODE_RANK": "1"}, 1, False),  # the first one of a second machine
    ],
)
def test_launchers_tell_the_rank(monkeypatch, told, number, spawned):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert rank() == number
    assert is_spawned() is spawned


def test_the_first_process_waits_for_nobody():
    wait_for_parent()


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""
CHILD = "import time; from mmflow.processes import end_with_parent; end_with_parent(); time.sleep(60)"


def test_a_process_ends_when_the_one_that_started_it_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(1)
        assert is_running(child)
        parent.kill()
    for _ in range(100):
        if not is_running(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it lived on")


def is_running(pid: int) -> bool:
    """Whether a process is there and more than an entry that nobody has collected."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


STUBBORN = """
import multiprocessing, signal, time
from mmflow.processes import end_children
def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
multiprocessing.set_start_method("fork")
multiprocessing.Process(target=work, daemon=True).start()
time.sleep(0.2)
end_children()
"""


def test_workers_that_ignore_being_asked_do_not_keep_a_run_from_ending():
    assert "fork" in multiprocessing.get_all_start_methods()
    assert subprocess.run([sys.executable, "-c", STUBBORN], timeout=30).returncode == 0
