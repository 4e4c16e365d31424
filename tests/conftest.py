"""Fixtures that every test folder shares."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mmflow.torchvision_cpu  # noqa: F401  before anything imports torchvision
from mmflow import signals
from tests.command import Command
from tests.tiny_speech import write_tiny_speech


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Without paths two processes of pytest-xdist share the tests, file by file: those of a file share its fixtures.

    With paths, or with `-n` or `-p no:xdist`, it is as the command line says: one file starts sooner in one process.
    """
    if hasattr(config, "workerinput"):  # a worker, which must not start others
        return
    shared = config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.pluginmanager.hasplugin("xdist")
    if shared and config.option.numprocesses is None and not config.option.usepdb:
        config.option.numprocesses, config.option.dist = 2, "loadfile"
        config.option.loadscopereorder = False  # else the files of few tests, which are the longest, come last
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder shared/data with small real data sets is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_speech(tmp_path_factory) -> Path:
    """The spec of 59 hummed utterances of 1 to 2 s, with the times of their phones and a transcript."""
    return write_tiny_speech(tmp_path_factory.mktemp("tiny_speech"))


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


@pytest.fixture
def handled() -> Iterator[None]:
    """The handlers of a run, and those of pytest again after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    signals.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals.received, signals.deferring = 0, False
