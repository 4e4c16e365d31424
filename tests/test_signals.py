"""Which signal ends a process, when, and with what exit code."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from mmflow import signals

pytestmark = pytest.mark.usefixtures("handled")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_outside_of_training_the_process_leaves_at_once(number, code):
    with pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), number)
    assert left.value.code == code


def test_in_training_the_first_signal_waits_and_the_second_does_not():
    signals.deferring = True
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    with pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), signal.SIGINT)
    assert left.value.code == 130
    assert signals.received == signal.SIGTERM


def test_a_signal_that_a_library_swallowed_is_acted_upon_later():
    with contextlib.suppress(SystemExit):
        os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(SystemExit) as left:
        signals.leave_if_asked()
    assert left.value.code == 75


def test_a_process_that_the_first_one_started_leaves_the_decision_to_it(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    signals.leave_if_asked()
    assert signals.received == signal.SIGTERM  # for the ranks to agree upon


def test_a_signal_during_the_imports_ends_the_run_without_a_traceback():
    program = "import os, signal; from mmflow import signals; signals.install(); os.kill(os.getpid(), signal.SIGTERM)"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (child.returncode, child.stdout, child.stderr) == (75, "", "")
