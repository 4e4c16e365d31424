import http.server
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmflow.data import index as index_module
from mmflow.data.corpus import Corpus
from mmflow.data.index import open_shard, open_shards
from mmflow.data.remote import cache_folder, fetch, is_remote
from mmflow.data.spec import DataSpec
from tests.shards import write_data_set, write_spec


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on this machine; `/cut/NAME` breaks the transfer off half way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.requests, self.url = folder, Counter[str](), f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        path = self.server.folder / self.path.rpartition("/")[2]
        if not path.exists():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if "/cut/" in self.path else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    write_data_set(tmp_path, {"train": [[0.1, 0.2], [0.3]]})
    for name in ("NO_PROXY", "no_proxy"):
        os.environ.setdefault(name, "127.0.0.1")
    with Server(tmp_path / "toy") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def copies() -> list[Path]:
    return list((cache_folder() / "shards").rglob("*.tar"))


def test_a_shard_is_fetched_once_and_then_read_from_the_cache(server, tmp_path):
    url = f"{server.url}/train-000000.tar"
    for _ in range(3):
        with fetch(url) as file:
            assert file.read() == (tmp_path / "toy" / "train-000000.tar").read_bytes()
    assert server.requests == {"/train-000000.tar": 1}
    assert len(copies()) == 1


def test_processes_that_want_the_same_shard_fetch_it_once(server):
    url = f"{server.url}/train-000000.tar"
    code = "import sys; from mmflow.data.remote import fetch; print(len(fetch(sys.argv[1]).read()))"
    processes = [subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE) for _ in range(2)]
    sizes = {process.communicate()[0] for process in processes}
    assert len(sizes) == 1
    assert server.requests == {"/train-000000.tar": 1}


def test_the_cache_stays_within_its_bound_and_forgets_what_was_used_longest_ago(server, tmp_path, monkeypatch):
    for name in ("a", "b", "c", "d"):
        (tmp_path / "toy" / name).write_bytes(name.encode() * 1000)
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", "3000")
    for name in ("a", "b", "c"):
        fetch(f"{server.url}/{name}").close()
    with fetch(f"{server.url}/a"), fetch(f"{server.url}/b") as still_open:  # now c is the one not used for longest
        fetch(f"{server.url}/d").close()
        assert sorted(path.read_bytes()[:1] for path in copies()) == [b"a", b"b", b"d"]
        monkeypatch.setenv("MMFLOW_CACHE_BYTES", "10")
        fetch(f"{server.url}/c").close()
        assert [path.read_bytes()[:1] for path in copies()] == [b"c"]  # the one that was asked for stays
        assert still_open.read() == b"b" * 1000
    assert server.requests == {"/a": 1, "/b": 1, "/c": 2, "/d": 1}


def test_a_transfer_that_is_cut_off_is_an_error_and_leaves_nothing(server):
    url = f"{server.url}/cut/train-000000.tar"
    with pytest.raises(OSError, match=f"cannot fetch the shard: the transfer ended with exit 18: '{url}'"):
        fetch(url)
    assert [path.name for path in (cache_folder() / "shards").rglob("*") if path.is_file()] == ["lock"]


def test_a_url_that_is_not_there_is_named(server):
    with pytest.raises(
        OSError, match=f"cannot fetch the shard: the transfer ended with exit 22: '{server.url}/absent.tar'"
    ):
        fetch(f"{server.url}/absent.tar")
    assert copies() == []


def test_what_a_killed_process_left_of_a_transfer_is_removed(server):
    url = f"{server.url}/train-000000.tar"
    fetch(url).close()
    (copy,) = copies()
    copy.rename(copy.with_name(".shard.tar.0123.part"))
    fetch(url).close()
    assert sorted(path.name for path in copy.parent.iterdir()) == ["lock", "shard.tar"]


@pytest.mark.parametrize(
    "shard", ["pipe:touch ran", "pipe://x; touch ran", "PIPE://x; touch ran", " pipe://x; touch ran"]
)
def test_a_command_is_never_run_without_permission(shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_remote(shard)
    for opened in (fetch, open_shard, lambda shard: open_shards([shard])):
        with pytest.raises(ValueError, match="would run a shell command; set allow_pipe: true in the data spec"):
            opened(shard)
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_run_with_permission(tmp_path):
    write_data_set(tmp_path, {"train": [[0.1, 0.2]]})
    command = f"pipe:cat {tmp_path / 'toy' / 'train-000000.tar'}"
    corpus = Corpus(
        [DataSpec.read(write_spec("unused", tmp_path, splits={"train": command}, allow_pipe=True))], "train", ["audio"]
    )
    assert [len(corpus.read(number)["audio"]) for number in range(2)] == [1600, 3200]


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(OSError, match="the transfer ended with exit 3: 'pipe:echo part; exit 3'"):
        fetch("pipe:echo part; exit 3", allow_pipe=True)
    with pytest.raises(OSError, match=r"cannot fetch the shard: .*no bytes came"):
        fetch("pipe:true", allow_pipe=True)
    assert copies() == []


def test_a_url_that_nobody_knows_how_to_open_is_refused():
    with pytest.raises(ValueError, match=r"ftp://x/a\.tar: no gopen handler defined"):
        fetch("ftp://x/a.tar")


def test_the_index_of_a_remote_shard_needs_no_second_transfer(server, monkeypatch):
    urls = [f"{server.url}/train-{i:06d}.tar" for i in range(2)]
    first = open_shards(urls)
    assert [index.keys for index in first] == [["train-0-0", "train-0-1"], ["train-1-0"]]
    for path in copies():
        path.unlink()
    monkeypatch.setattr(index_module, "build", lambda *_: pytest.fail("built again"))
    again = open_shards(urls)
    assert [index.frames["flac"].tolist() for index in again] == [[1600, 3200], [4800]]
    assert sum(server.requests.values()) == 2
    index_module._open.cache_clear()
    assert again[1].read(0, "txt") == b"HELLO"
    assert server.requests == {"/train-000000.tar": 1, "/train-000001.tar": 2}


def test_a_spec_whose_root_is_a_url_is_read_like_any_other(server, tmp_path):
    spec = DataSpec.read(write_spec(server.url, tmp_path, splits={"train": "train-{000000..000001}.tar"}))
    corpus = Corpus([spec], "train", ["audio", "text"])
    assert len(corpus) == 3
    assert corpus.seconds.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert corpus.name(2) == (f"{server.url}/train-000001.tar", "train-1-0")
    assert corpus.read(2)["audio"].shape == (4800,)


def test_a_path_is_opened_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"A")
    assert fetch(str(tmp_path / "a")).read() == b"A"
    assert not is_remote("data/train-000000.tar")
