import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmflow.atomic import atomic_file, locked, remove_parts, write_json


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def interrupted(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_names_the_file_and_publishes_nothing(tmp_path):
    path = tmp_path / "file"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # like a disk with so much room
    try:
        with (
            pytest.raises(OSError, match=f"writing failed: .*nothing was published: '{path}'") as caught,
            atomic_file(path) as file,
        ):
            file.write(bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_something_else_inside_the_block_keeps_its_words(tmp_path):
    with pytest.raises(OSError, match=r"^the transfer broke$"), atomic_file(tmp_path / "file"):
        raise OSError("the transfer broke")


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    with atomic_file(tmp_path / "file") as one, atomic_file(tmp_path / "file") as two:
        one.write(b"one")
        two.write(b"two")
    assert (tmp_path / "file").read_bytes() == b"one"  # the outer block ends last


def test_json_is_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2.5]})
    assert (tmp_path / "a.json").read_text() == '{\n  "é": [\n    1,\n    2.5\n  ]\n}\n'


def test_what_a_killed_writer_left_is_removed(tmp_path):
    code = (
        "import sys, os; from pathlib import Path; from mmflow.atomic import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file: file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "sub" / "file"], check=False)
    (tmp_path / ".folder.part").mkdir()
    assert len(list((tmp_path / "sub").iterdir())) == 1
    remove_parts(tmp_path)
    assert list((tmp_path / "sub").iterdir()) == []
    assert (tmp_path / ".folder.part").is_dir()


def test_a_lock_that_is_held_tells_by_whom(tmp_path):
    with (
        locked(tmp_path / "lock"),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()}"),
        locked(tmp_path / "lock", wait=False),
    ):
        pass
    with locked(tmp_path / "lock", wait=False):
        pass


def test_a_lock_is_free_after_its_holder_was_killed_even_while_its_workers_live(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from mmflow.atomic import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    worker = os.fork()\n"
        "    if worker: print(worker, flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(BlockingIOError, match=f"process {holder.pid}"), locked(tmp_path / "lock", wait=False):
            pass
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it lives
        for _ in range(100):  # the worker may not have run yet
            with contextlib.suppress(BlockingIOError), locked(tmp_path / "lock", wait=False):
                break
            time.sleep(0.05)
        else:
            pytest.fail("the worker keeps the lock")
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.kill()


def test_a_forked_child_that_ends_leaves_the_lock_with_its_parent(tmp_path):
    with locked(Path(tmp_path / "lock")):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(BlockingIOError, match="process"), locked(tmp_path / "lock", wait=False):
            pass
