import base64
import contextlib
import email.utils
import errno
import hashlib
import http.server
import json
import logging
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mmflow.data import index as index_module
from mmflow.data import remote
from mmflow.data.corpus import Corpus
from mmflow.data.index import open_shard, open_shards
from mmflow.data.remote import cache_folder, fetch, is_remote, shown
from mmflow.data.spec import DataSpec
from tests.shards import write_data_set, write_spec

BIG = np.random.default_rng(0).bytes(300_000)  # more than fits the buffers on the way
MODIFIED = "Tue, 01 Oct 2024 08:00:00 GMT"


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on this machine as a good server does, but for the next requests as `answers` say.

    An answer may have: status (and nothing is sent), headers (None leaves one out), cut (bytes of the body that are
    sent), reset (the connection is), ranges and if_range (whether they are honoured), data (the body), hold (an event
    to wait for after the body), before (called first).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.answers: deque[dict[str, Any]] = deque()
        self.requests: Counter[str] = Counter()
        self.seen: list[Any] = []  # headers of the requests

    @property
    def ranges(self) -> list[str | None]:
        return [headers["Range"] for headers in self.seen]

    def handle_error(self, *_: Any) -> None:
        pass  # of clients that went away


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests[self.path] += 1
        server.seen.append(self.headers)
        how = server.answers.popleft() if server.answers else {}
        how.get("before", lambda: None)()
        path = server.folder / self.path.partition("?")[0].lstrip("/")
        status = how.get("status", 200 if path.is_file() else 404)
        data = how.get("data", path.read_bytes() if path.is_file() else b"")
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Last-Modified": MODIFIED} | how.get("headers", {})
        start = 0
        if status == 200 and "Range" in self.headers and how.get("ranges", True):
            word = self.headers["If-Range"]
            if word in (headers["ETag"], headers["Last-Modified"]) or not how.get("if_range", True):
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                status = 206 if start < len(data) else 416
                headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} | headers
        body = data[start:] if status < 300 else b""
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body)), "Date": self.date_time_string()} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: how.get("cut")])
        if "hold" in how:
            how["hold"].wait(60)
        if how.get("reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_data_set(tmp_path, {"train": [[0.1, 0.2], [0.3]]})
    (tmp_path / "toy" / "big").write_bytes(BIG)
    with serving(tmp_path / "toy") as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds between tries, which no test waits."""
    found: list[float] = []
    monkeypatch.setattr(remote, "sleep", found.append)
    return found


def copies() -> list[Path]:
    return list((cache_folder() / "shards").rglob("*.tar"))


def left() -> list[str]:
    """What the cache holds of the one shard that was asked for."""
    return sorted(path.name for path in (cache_folder() / "shards").glob("*/*"))


def read(url: str) -> bytes:
    with fetch(url) as file:
        return file.read()


def test_a_shard_is_fetched_once_and_then_read_from_the_cache(server, tmp_path):
    url = f"{server.url}/train-000000.tar"
    for _ in range(3):
        assert read(url) == (tmp_path / "toy" / "train-000000.tar").read_bytes()
    assert server.requests == {"/train-000000.tar": 1}
    assert left() == ["lock", "shard.tar"]


def test_processes_that_want_the_same_shard_fetch_it_once(server):
    both = threading.Event()
    server.answers.append({"data": BIG[:1000], "before": lambda: both.wait(60)})
    code = "import sys; from mmflow.data.remote import fetch; print(flush=True); print(len(fetch(sys.argv[1]).read()))"
    command = [sys.executable, "-c", code, f"{server.url}/big"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        process.stdout.readline()
    both.set()
    assert [process.communicate()[0] for process in processes] == [b"1000\n", b"1000\n"]
    assert server.requests == {"/big": 1}


# ---- transfers that break off


@pytest.mark.parametrize("cut", [1, 1000, 200_000])
def test_a_transfer_goes_on_where_it_broke_off(server, waits, caplog, cut):
    server.answers.append({"cut": cut})
    assert read(f"{server.url}/big") == BIG
    assert server.ranges == [None, f"bytes={cut}-"]
    assert server.seen[1]["If-Range"] == f'"{hashlib.sha256(BIG).hexdigest()}"'
    assert len(waits) == 1
    assert 0.5 <= waits[0] <= 1
    assert f"at byte {cut}, trying again in" in caplog.text
    assert left() == ["lock", "shard.tar"]


def test_a_connection_that_is_reset_is_made_again(server, waits):
    server.answers += [{"cut": 1000, "reset": True}] * 3
    assert read(f"{server.url}/big") == BIG
    assert len(waits) == 3


def test_a_chunked_transfer_that_breaks_off_is_noticed_and_goes_on(server, tmp_path):
    tar = (tmp_path / "toy" / "train-000001.tar").read_bytes()
    headers = {"Content-Length": None, "Transfer-Encoding": "chunked", "ETag": f'"{hashlib.sha256(tar).hexdigest()}"'}
    server.answers.append({"headers": headers, "data": b"%x\r\n%s\r\n" % (1500, tar[:1500])})
    assert read(f"{server.url}/train-000001.tar") == tar
    assert server.ranges == [None, "bytes=1500-"]


def test_a_server_without_ranges_sends_all_of_it_again(server):
    server.answers += [{"cut": 1000}, {"ranges": False}]
    assert read(f"{server.url}/big") == BIG
    assert server.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="If-Range is honoured"),
        pytest.param({"if_range": False}, id="only the tag tells"),
        pytest.param({"if_range": False, "headers": {"ETag": None, "Last-Modified": None}}, id="only the size tells"),
    ],
)
def test_a_file_that_changed_between_tries_is_fetched_from_its_start(server, changed):
    server.answers += [{"cut": 1000, "data": b"old" * 50_000}, changed]
    assert read(f"{server.url}/big") == BIG


def test_a_file_that_became_shorter_than_what_came_is_fetched_from_its_start(server, tmp_path):
    (tmp_path / "toy" / "a").write_bytes(b"A" * 50)
    server.answers += [{"cut": 1000, "data": BIG}, {"if_range": False}]
    assert read(f"{server.url}/a") == b"A" * 50
    assert server.ranges == [None, "bytes=1000-", None]


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"ETag": 'W/"weak"'}, MODIFIED),
        ({"ETag": None}, MODIFIED),
        ({"ETag": None, "Last-Modified": None}, None),
        ({"ETag": 'W/"weak"', "Date": MODIFIED}, None),  # it may have changed twice in that second
    ],
)
def test_a_transfer_goes_on_only_with_a_word_that_names_these_very_bytes(server, headers, word):
    server.answers += [{"cut": 1000, "headers": headers}, {"headers": headers}]
    assert read(f"{server.url}/big") == BIG
    assert server.seen[1]["If-Range"] == word
    assert server.ranges == [None, "bytes=1000-" if word else None]


def test_a_transfer_goes_on_after_its_process_was_killed(server):
    server.answers.append({"cut": 100_000, "hold": (killed := threading.Event())})
    code = "import sys; from mmflow.data.remote import fetch; fetch(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, f"{server.url}/big"])
    until = time.monotonic() + 60
    while sum(p.stat().st_size for p in cache_folder().rglob("*.part")) < 100_000 and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed.set()
    assert read(f"{server.url}/big") == BIG
    assert server.ranges == [None, "bytes=100000-"]


def test_what_was_whole_but_not_yet_published_is_not_fetched_again(server):
    url = f"{server.url}/big"
    assert read(url) == BIG
    (copy,) = copies()
    copy.rename(copy.with_name("shard.tar.part"))
    source = {"size": len(BIG), "version": '"x"', "digests": {"sha256": hashlib.sha256(BIG).hexdigest()}}
    copy.with_name("source.json").write_text(json.dumps(source))
    assert read(url) == BIG
    assert server.requests == {"/big": 1}


def test_notes_that_cannot_be_read_start_the_transfer_anew(server, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 1)
    server.answers.append({"cut": 1000})
    with pytest.raises(OSError, match="1000 bytes came, the server said 300000"):
        fetch(f"{server.url}/big")
    (notes,) = cache_folder().rglob("source.json")
    notes.write_text('{"size": 3')
    assert read(f"{server.url}/big") == BIG
    assert server.ranges == [None, None]


def test_tries_that_bring_something_do_not_count(server, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 2)
    monkeypatch.setattr(remote, "PROGRESS_BYTES", 10_000)
    server.answers += [{"cut": 10_000}] * 29
    assert read(f"{server.url}/big") == BIG
    assert len(server.seen) == 30


def test_a_server_that_starts_over_each_time_is_given_up(server, monkeypatch):
    monkeypatch.setattr(remote, "PROGRESS_BYTES", 10_000)
    server.answers += [{"cut": 20_000, "ranges": False}] * 100
    with pytest.raises(OSError, match="20000 bytes came, the server said 300000"):
        fetch(f"{server.url}/big")
    assert len(server.seen) == 8


# ---- what servers say


def test_the_waits_double_and_the_error_names_url_status_tries_and_fix(server, waits):
    server.answers += [{"status": 503}] * 20
    url = f"{server.url}/train-000000.tar"
    rule = r"cannot fetch the shard: HTTP 503 Service Unavailable \(the last of 8 tries without progress\); "
    with pytest.raises(OSError, match=rf"{rule}see that the server can be reached and start again.*'{url}'"):
        fetch(url)
    assert len(server.seen) == 8
    assert len(waits) == 7
    assert all(0.5 * full <= wait <= full for wait, full in zip(waits, [1, 2, 4, 8, 16, 32, 60], strict=True))
    assert left() == ["lock"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_tried_again(server, status):
    server.answers += [{"status": status}] * 2
    assert read(f"{server.url}/big") == BIG
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("status", "error", "fix"),
    [
        (400, OSError, "correct root and splits"),
        (401, PermissionError, "check that you may read it"),
        (403, PermissionError, "check that you may read it"),
        (404, FileNotFoundError, "correct root and splits in the data spec"),
        (410, FileNotFoundError, "correct root and splits"),
    ],
)
def test_a_status_that_stays_is_an_error_at_once(server, status, error, fix):
    server.answers.append({"status": status, "headers": {"WWW-Authenticate": "Bearer realm"}})
    with pytest.raises(error, match=rf"cannot fetch the shard: HTTP {status} [\w ]+; {fix}"):
        fetch(f"{server.url}/big")
    assert len(server.seen) == 1
    assert left() == ["lock"]


def test_a_server_is_not_asked_before_it_wants_to_be(server, waits):
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    for text in ("7", later, MODIFIED, "soon"):
        server.answers.append({"status": 503, "headers": {"Retry-After": text}})
    assert read(f"{server.url}/big") == BIG
    assert waits[0] == 7  # and not the usual 0.5 to 1
    assert 50 < waits[1] <= 100
    assert 2 <= waits[2] <= 4  # a date that is past and a word that says nothing leave the usual wait
    assert 4 <= waits[3] <= 8


def test_a_server_that_asks_for_hours_is_given_up(server, waits):
    server.answers.append({"status": 429, "headers": {"Retry-After": "3600"}})
    with pytest.raises(OSError, match="HTTP 429 Too Many Requests, and the server asks to wait 3600 s; see that"):
        fetch(f"{server.url}/big")
    assert waits == []


def test_a_length_that_is_too_large_is_an_error(server):
    server.answers += [{"headers": {"Content-Length": "300007"}, "ranges": False}] * 20
    with pytest.raises(OSError, match="300000 bytes came, the server said 300007"):
        fetch(f"{server.url}/big")


def test_a_part_that_is_longer_than_the_file_starts_anew(server):
    server.answers += [{"cut": 1000}, {"headers": {"Content-Length": None}, "data": BIG + b"more", "if_range": False}]
    server.answers[1]["headers"] |= {"Content-Range": f"bytes 1000-299999/{len(BIG)}", "ETag": None}
    assert read(f"{server.url}/big") == BIG
    assert server.ranges == [None, "bytes=1000-", None]


def test_without_a_length_the_end_of_the_tar_tells_whether_all_came(server, tmp_path):
    tar = (tmp_path / "toy" / "train-000000.tar").read_bytes()
    server.answers += [{"headers": {"Content-Length": None}, "cut": 3000}, {"headers": {"Content-Length": None}}]
    server.answers[1]["ranges"] = False
    assert read(f"{server.url}/train-000000.tar") == tar
    server.answers += [{"headers": {"Content-Length": None, "ETag": None}}] * 20
    with pytest.raises(OSError, match="the server does not say how long the file is, and its end is missing"):
        fetch(f"{server.url}/big")


def test_an_empty_file_is_an_error(server, tmp_path):
    (tmp_path / "toy" / "empty").touch()
    with pytest.raises(OSError, match=r"no bytes came; fetch or make the shard again at its source"):
        fetch(f"{server.url}/empty")
    assert len(server.seen) == 1


def digests(name: str) -> str:
    return base64.b64encode(hashlib.new(name, BIG).digest()).decode()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Repr-Digest", f"sha-512=:{digests('sha512')}:, sha-256=:{digests('sha256')}:"),
        ("Digest", f"SHA-256={digests('sha256')}"),
        ("Content-MD5", digests("md5")),
        ("x-goog-hash", f"crc32c=n03x6A==,md5={digests('md5')}"),
    ],
)
def test_the_digest_that_a_server_sends_is_compared(server, header, value):
    good = {"headers": {header: value}}
    server.answers += [good | {"data": BIG[:-1] + b"!"}, good]
    assert read(f"{server.url}/big") == BIG
    assert server.ranges == [None, None]
    server.answers += [good | {"data": BIG[:-1] + b"!"}] * 20
    with pytest.raises(OSError, match=r"the (sha512|sha256|md5) of what came is not the one that the server sent"):
        fetch(f"{server.url}/big?again")
    assert left() == ["lock", "lock", "shard.tar"]


def test_a_digest_of_the_first_answer_counts_for_what_comes_later(server):
    value = f"sha-256=:{digests('sha256')}:"
    server.answers += [{"cut": 1000, "headers": {"Repr-Digest": value}}, {"data": BIG[:-1] + b"!", "if_range": False}]
    server.answers[1]["headers"] = {"ETag": f'"{hashlib.sha256(BIG).hexdigest()}"'}
    assert read(f"{server.url}/big") == BIG
    assert server.ranges == [None, "bytes=1000-", None]


def test_an_encoded_body_is_refused(server):
    server.answers.append({"headers": {"Content-Encoding": "gzip"}})
    with pytest.raises(OSError, match="HTTP 200 with Content-Encoding gzip; let the server send the plain file"):
        fetch(f"{server.url}/big")


# ---- servers that are not there


def test_a_server_that_falls_silent_is_asked_again(server, monkeypatch, caplog):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.1)
    server.answers.append({"cut": 1000, "hold": (done := threading.Event())})
    assert read(f"{server.url}/big") == BIG
    done.set()
    assert "TimeoutError: timed out; at byte" in caplog.text


def test_a_refused_connection_is_tried_again_and_then_an_error(waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.tar"
        with pytest.raises(OSError, match=r"ConnectionRefusedError: .*\(the last of 8 tries"):
            fetch(url)
    assert len(waits) == 7


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no such name"), 1),
        (socket.gaierror(socket.EAI_AGAIN, "no answer"), 8),
        (ssl.SSLCertVerificationError(1, "unknown issuer"), 1),
        (ssl.SSLEOFError(8, "broke off"), 8),
        (OSError(errno.ENETUNREACH, "no way there"), 8),
    ],
)
def test_a_connection_that_cannot_be_made_is_tried_again_where_that_may_help(monkeypatch, waits, error, tries):
    def look_up(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(OSError, match=rf"cannot fetch the shard: {type(error).__name__}: .*{error.args[1]}"):
        fetch("http://nowhere.invalid/a.tar")
    assert len(waits) == tries - 1


@pytest.mark.parametrize("url", ["http://host:port/a.tar", "http:///a.tar", f"http://{'x' * 70}.invalid/a.tar"])
def test_a_url_that_is_none_is_an_error_at_once(url, waits):
    with pytest.raises(OSError, match=r"cannot fetch the shard: .*; correct root and splits in the data spec"):
        fetch(url)
    assert waits == []


def test_signs_that_a_url_may_not_hold_are_quoted(server, tmp_path):
    (tmp_path / "toy" / "%C3%A4%20b").write_bytes(b"A")
    assert read(f"{server.url}/ä b") == b"A"


@pytest.mark.parametrize("url", ["ftp://x/a.tar", "memory://x/a.tar", "simplecache::s3://x/a.tar", "file:///a.tar"])
def test_a_url_that_nobody_knows_how_to_open_is_refused(url):
    with pytest.raises(ValueError, match=r"cannot be fetched; shards are files or at http, https, s3, gs, "):
        fetch(url)


# ---- secrets


def test_what_a_url_knows_of_secrets_is_not_shown():
    assert shown("https://me:p@ss@host/a.tar?sig=abc&x=1") == "https://host/a.tar?"
    assert shown("pipe:curl 'https://me:pw@host/a?t=1' | cat") == "pipe:curl 'https://host/a?' | cat"
    assert shown("s3://bucket/a-000001.tar") == "s3://bucket/a-000001.tar"
    assert shown("/data/what?.tar") == "/data/what?.tar"


def test_a_password_is_sent_to_its_server_only_and_never_logged(server, tmp_path, caplog):
    login = "Basic " + base64.b64encode(b"me:s3cr@t").decode()
    url = f"{server.url}/big?token=hidden".replace("//", "//me:s3cr%40t@")
    with serving(tmp_path / "toy") as other, caplog.at_level(logging.INFO):
        server.answers.append({"status": 302, "headers": {"Location": f"{server.url}/other"}})
        server.answers.append({"status": 302, "headers": {"Location": f"{other.url}/big"}})
        other.answers += [{"cut": 1000}]
        assert read(url) == BIG
        assert [headers["Authorization"] for headers in server.seen] == [login, login, login]
        assert [headers["Authorization"] for headers in other.seen] == [None]
        server.answers.append({"status": 500})
        server.answers.append({"status": 403})
        with pytest.raises(OSError, match=rf"'{server.url}/big\?'") as caught:
            fetch(url.replace("hidden", "hidden2"))
    for text in (caplog.text, str(caught.value)):
        assert server.url in text
        assert "s3cr" not in text
        assert "hidden" not in text
    for path in cache_folder().rglob("*.json"):
        assert "s3cr" not in path.read_text()


# ---- the bound


def test_the_cache_stays_within_its_bound_and_forgets_what_was_used_longest_ago(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "KEEP_S", 0)
    for name in ("a", "b", "c", "d"):
        (tmp_path / "toy" / name).write_bytes(name.encode() * 1000)
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", "3000")
    for name in ("a", "b", "c", "a", "b"):  # now c is the one not used for longest
        fetch(f"{server.url}/{name}").close()
    fetch(f"{server.url}/d").close()
    assert sorted(path.read_bytes()[:1] for path in copies()) == [b"a", b"b", b"d"]
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", "1000")
    fetch(f"{server.url}/c").close()
    assert [path.read_bytes()[:1] for path in copies()] == [b"c"]  # the one that was asked for stays
    assert server.requests == {"/a": 1, "/b": 1, "/c": 2, "/d": 1}


def test_room_is_made_before_the_bytes_come(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "KEEP_S", 0)
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", str(len(BIG) + 10))
    (tmp_path / "toy" / "a").write_bytes(b"A" * 1000)
    fetch(f"{server.url}/a").close()
    held: list[int] = []
    write_json = remote.write_json
    monkeypatch.setattr(remote, "write_json", lambda *args: (held.append(len(copies())), write_json(*args)))
    check = remote._check
    monkeypatch.setattr(remote, "_check", lambda *args: (held.append(len(copies())), check(*args)))
    fetch(f"{server.url}/big").close()
    assert held == [1, 0]  # when the size is known, and when all is here


def test_a_copy_that_is_open_or_young_is_not_removed(server, tmp_path, monkeypatch, caplog):
    for name in ("a", "b", "c", "d"):
        (tmp_path / "toy" / name).write_bytes(name.encode() * 1000)
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", "1500")
    monkeypatch.setattr(remote, "KEEP_S", 1000)
    code = "import sys; from mmflow.data.remote import fetch; f = fetch(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", code, f"{server.url}/a"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    fetch(f"{server.url}/b").close()
    assert len(copies()) == 2  # both are young
    assert "the shards in use take 2000 bytes, more than the 1500" in caplog.text
    monkeypatch.setattr(remote, "KEEP_S", 0)
    with fetch(f"{server.url}/c"):
        fetch(f"{server.url}/d").close()
        assert sorted(path.read_bytes()[:1] for path in copies()) == [b"a", b"c", b"d"]
    child.communicate(b"\n")
    fetch(f"{server.url}/b").close()
    assert [path.read_bytes()[:1] for path in copies()] == [b"b"]


def test_a_beginning_counts_and_is_removed_like_a_copy(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "KEEP_S", 0)
    monkeypatch.setattr(remote, "TRIES", 1)
    server.answers.append({"cut": 1000})
    with pytest.raises(OSError, match="1000 bytes came"):
        fetch(f"{server.url}/big")
    assert left() == ["lock", "shard.tar.part", "source.json"]
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", "100")
    (tmp_path / "toy" / "a").write_bytes(b"A" * 100)
    fetch(f"{server.url}/a").close()
    assert list(cache_folder().rglob("*.part")) == []


def test_without_a_word_the_bound_leaves_a_tenth_of_the_free_disk(server, tmp_path, monkeypatch):
    disk = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert remote._bound(tmp_path, 9000) == 9000
    disk.free = 10**12
    assert remote._bound(tmp_path, 0) == 100 * 2**30
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", "12")
    assert remote._bound(tmp_path, 0) == 12
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", "100 GB")
    with pytest.raises(ValueError, match="MMFLOW_CACHE_BYTES is '100 GB', must be a whole number of bytes"):
        fetch(f"{server.url}/big")


def test_a_full_disk_is_told_from_a_broken_transfer(server, monkeypatch, waits):
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"cannot store .*/big: .*(full|space).*; free space, lower \$MMFLOW_CACHE_BYTES"):
        fetch(f"{server.url}/big")
    assert waits == []


# ---- stores


@pytest.fixture
def opened(monkeypatch) -> list[int]:
    """Where reading began, each time that the store memory:// was asked; it breaks off after 1000 bytes."""
    found: list[int] = []
    whole = MemoryFileSystem._open

    def open_flaky(*args: Any, **kwargs: Any) -> Any:
        file = whole(*args, **kwargs)
        end: list[int] = []

        def read(_: int) -> bytes:
            if end:
                raise OSError("the store went away")
            found.append(file.tell())
            end.append(file.tell() + 1000)
            return type(file).read(file, 1000)

        file.read = read
        return file

    monkeypatch.setitem(remote.STORES, "memory", "fsspec")
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "_open", open_flaky)
    return found


def test_a_shard_in_a_store_is_fetched_with_its_library_and_goes_on_where_it_broke_off(opened):
    fsspec.filesystem("memory").pipe_file("/bucket/a.tar", BIG[:3000])
    assert read("memory://bucket/a.tar") == BIG[:3000]
    assert opened == [0, 1000, 2000]


def test_an_object_that_changed_is_fetched_from_its_start(opened, monkeypatch):
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/a.tar", BIG[:3000])
    monkeypatch.setattr(remote, "sleep", lambda _: system.pipe_file("/bucket/a.tar", b"new"))
    assert read("memory://bucket/a.tar") == b"new"
    assert opened == [0, 0]


def test_an_object_that_is_not_there_is_named(opened):
    with pytest.raises(
        FileNotFoundError, match=r"there is no such object; correct root and splits.*'memory://b/a\.tar'"
    ):
        fetch("memory://b/a.tar")


def test_errors_that_only_a_store_knows_are_named(opened, monkeypatch, waits):
    def info(*_: Any) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    with pytest.raises(OSError, match=r"RuntimeError: no credentials; check that you may read it.*'memory://b/a\.tar'"):
        fetch("memory://b/a.tar")
    assert waits == []


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/a.tar", "s3fs"), ("gs://bucket/a.tar", "gcsfs")])
def test_the_package_that_a_store_needs_is_named(url, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(OSError, match=rf"needs the package {package}, which is not installed.*; pip install {package}"):
        fetch(url)


# ---- commands


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


def test_a_command_that_fails_is_named(waits):
    with pytest.raises(
        OSError, match=r"the transfer ended with exit 3; run the command by hand.*: 'pipe:echo a; exit 3'"
    ):
        fetch("pipe:echo a; exit 3", allow_pipe=True)
    with pytest.raises(OSError, match=r"cannot fetch the shard: no bytes came"):
        fetch("pipe:true", allow_pipe=True)
    assert left() == ["lock", "lock"]
    assert waits == []


# ---- indexes and data sets


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


def test_a_data_set_reads_over_http_as_it_does_from_the_disk(server, tmp_path):
    server.answers += [{"cut": 700}, {"status": 503}, {"cut": 5, "reset": True}, {"cut": 3000}]
    splits = {"train": "train-{000000..000001}.tar"}
    near, far = (
        Corpus([DataSpec.read(write_spec(root, tmp_path, splits=splits))], "train", ["audio", "text"])
        for root in (tmp_path / "toy", server.url)
    )
    assert len(server.seen) == 6
    assert len(far) == len(near) == 3
    assert far.identity == near.identity
    assert far.seconds.tolist() == near.seconds.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert far.name(2) == (f"{server.url}/train-000001.tar", "train-1-0")
    for number in range(3):
        ours, theirs = near.read(number), far.read(number)
        assert ours["audio"].equal(theirs["audio"])
        assert (ours["text"], ours["__key__"]) == (theirs["text"], theirs["__key__"])


def test_a_path_is_opened_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"A")
    assert fetch(str(tmp_path / "a")).read() == b"A"
    assert not is_remote("data/train-000000.tar")
