"""Signals that ask a run to stop: taken before the heavy imports, acted on where nothing can be lost.

While a training loop runs, the first signal only sets a flag; the loop saves at the next step boundary and leaves. At
any other moment everything on disk is whole or absent, so the process leaves at once. The second signal always does.
Processes that the first one of the run has started only set the flag: it decides, and they end with it.
"""

import signal
from types import FrameType

from mmflow.processes import end_with_parent, is_spawned

RESUMABLE = 75  # exit code after SIGTERM or SIGUSR1 (EX_TEMPFAIL): run the same command again to continue
INTERRUPTED = 130  # exit code after Ctrl-C, as shells give it

received = 0  # number of the first signal that came, 0 for none
deferring = False  # whether a training loop promises to look at `received` soon


def exit_code(number: int) -> int:
    """What the process leaves with after signal `number`."""
    return INTERRUPTED if number == signal.SIGINT else RESUMABLE


def leave_if_asked() -> None:
    """Leave when a signal came that no training loop has acted upon."""
    if received and not is_spawned():
        raise SystemExit(exit_code(received))


def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature is Python's)
    global received
    again, received = bool(received), received or number
    if not is_spawned() and (again or not deferring):
        raise SystemExit(exit_code(number))


def install() -> None:
    """Handle SIGTERM, SIGUSR1 and SIGINT in this process."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, _handle)
    if is_spawned():
        end_with_parent()
