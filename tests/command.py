"""The command line as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path


class Command:
    """`python cli.py ...` in a process of its own, with the processes that it starts in its group."""

    def __init__(self, *words: str | Path) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "cli.py", *map(str, words)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, start: str) -> "Command":
        """Read what it prints up to a line that begins like this."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(start):
                return self
        raise AssertionError(f"it ended before {start!r}:\n{self.output}")

    def send(self, number: int) -> "Command":
        """A signal to the first process."""
        self.process.send_signal(number)
        return self

    def send_all(self, number: int) -> "Command":
        """A signal to all processes of the run, as a terminal sends Ctrl-C."""
        os.killpg(self.process.pid, number)
        return self

    def end(self, timeout_s: float = 180) -> int:
        """The exit code, when the first process has ended."""
        out, _ = self.process.communicate(timeout=timeout_s)
        self.lines += (out or "").splitlines(keepends=True)
        return self.process.returncode

    @property
    def output(self) -> str:
        return "".join(self.lines)
