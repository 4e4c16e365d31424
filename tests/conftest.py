"""Fixtures that every test folder shares."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmflow.data.writer import ShardWriter


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder shared/data with small real data sets is not beside this checkout")
    return folder


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


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Command]]:
    """Starts commands; what is left of them is ended after the tests of the module."""
    commands: list[Command] = []

    def begin(*words: str | Path) -> Command:
        commands.append(Command(*words))
        return commands[-1]

    yield begin
    for command in commands:
        if command.process.poll() is None:
            command.send_all(signal.SIGKILL)


@pytest.fixture(scope="session")
def tiny_speech(tmp_path_factory) -> Path:
    """A data spec for something like speech: 1 to 2 s of five hummed phones, with their times and a transcript."""
    folder = tmp_path_factory.mktemp("tiny_speech")
    for split, count in (("train", 36), ("validation", 11), ("test", 12)):
        with ShardWriter(folder / "shards", split, max_samples=6) as writer:
            for number in range(count):
                writer.write(hum(f"{split}{number:02d}"))
    (folder / "tiny_speech.yaml").write_text(
        f"name: tiny_speech\nlicence: none\nroot: {folder / 'shards'}\n"
        'splits: {train: "train-*.tar", validation: "validation-*.tar", test: "test-*.tar"}\n'
        "fields: {audio: [flac], text: [txt], info: [json]}\n"
    )
    return folder / "tiny_speech.yaml"


def hum(key: str) -> dict[str, Any]:
    """One utterance: a pitch of its own, and each phone of about 80 ms with the overtones that it lets through."""
    draw = np.random.default_rng(list(key.encode()))
    formants = {"A": (700, 1200), "E": (500, 2000), "I": (300, 2400), "O": (500, 900), "S": (3500, 6000)}
    pitch, pieces, phones, at = draw.uniform(90, 220), [], [], 0
    for name in draw.choice(list(formants), size=draw.integers(13, 24)):
        size = int(draw.uniform(0.06, 0.1) * 16_000)
        phones.append([at / 16_000, (at + size) / 16_000, str(name)])
        overtones = pitch * np.arange(1, 36)
        loud = sum(np.exp(-(((overtones - formant) / 200) ** 2)) for formant in formants[name])
        time = np.arange(at, at + size) / 16_000
        pieces.append((loud[:, None] * np.sin(2 * np.pi * overtones[:, None] * time)).sum(0))
        at += size
    audio = 0.1 * np.concatenate(pieces) + draw.normal(0, 0.01, at)
    flac = io.BytesIO()
    soundfile.write(flac, audio.clip(-1, 1), 16_000, format="FLAC")
    text = " ".join("".join(name for _, _, name in phones[i : i + 3]) for i in range(0, len(phones), 3))
    return {"__key__": key, "flac": flac.getvalue(), "txt": text, "json": {"speaker": key, "phones": phones}}
