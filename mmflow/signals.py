"""Signals that ask a run to stop: taken before the heavy imports, acted on where nothing can be lost.

While a training loop runs, the first signal only sets a flag; the loop saves at the next step boundary and leaves. At
any other moment everything on disk is whole or absent, so the process leaves at once. The second signal always does.
"""

import signal
from types import FrameType

RESUMABLE = 75  # exit code after SIGTERM or SIGUSR1 (EX_TEMPFAIL): run the same command again to continue
INTERRUPTED = 130  # exit code after Ctrl-C, as shells give it

received = 0  # number of the first signal that came, 0 for none
deferring = False  # whether a training loop promises to look at `received` soon


def exit_code(number: int) -> int:
    """What the process leaves with after signal `number`."""
    return INTERRUPTED if number == signal.SIGINT else RESUMABLE


def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature is Python's)
    global received
    if received or not deferring:
        raise SystemExit(exit_code(number))
    received = number


def install() -> None:
    """Handle SIGTERM, SIGUSR1 and SIGINT in this process."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, _handle)
