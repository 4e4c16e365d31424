"""Shards at URLs, copied whole into a cache that all processes of a machine share and that stays within a bound.

http(s) goes through the standard library, s3, gs and other stores through fsspec and the package it needs; no shell is
involved (but for `pipe:`, where a data spec allows it). A transfer that breaks off is tried again and goes on from the
last byte written, also after the process was killed, as long as the server says that the file is still the same one.

$MMFLOW_CACHE: folder of the cache; ~/.cache/mmflow when unset.
$MMFLOW_CACHE_BYTES: bound on the copies; 100 GiB when unset, or less where the disk has less than that to give.
"""

import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import BaseHandler, HTTPRedirectHandler, Request, build_opener

from mmflow.atomic import PART, locked, sync_folder, write_json

log = logging.getLogger(__name__)

CACHE_BYTES = 100 * 2**30
KEEP_S = 60  # a copy used this lately stays: whoever had it indexed is about to read it

TRIES = 8  # that bring less than PROGRESS_BYTES; with the waits between them a minute and a half
PROGRESS_BYTES = 2**20
WAIT_S, MAX_WAIT_S = 1.0, 60.0  # before the second try, twice as long before each further one, at most
MAX_ASKED_S = 600.0  # a server that asks for a longer pause is given up
TIMEOUT_S = 30.0  # without a byte
HTTP_BYTES, STORE_BYTES = 2**20, 2**24  # asked for at a time; each call to a store is a request of its own

STORES = {  # scheme -> package that fsspec needs for it
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
}
SECRET = re.compile(r"(?<=://)[^/?\s]*@|(?<=\?)[^\s'\"]+")  # name and password of a URL, or its query

ABSENT_FIX = "correct root and splits in the data spec"
ACCESS_FIX = "check that you may read it and that the credentials or the signature of the URL are still good"
LATER_FIX = "see that the server can be reached and start again, what came is kept"


def cache_folder() -> Path:
    """The user's cache: $MMFLOW_CACHE, else mmflow/ in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MMFLOW_CACHE") or Path(base) / "mmflow")


def is_remote(shard: str) -> bool:
    """Whether `shard` is a URL or a `pipe:` command rather than a path."""
    return "://" in shard or shard.startswith("pipe:")


def shown(shard: str) -> str:
    """`shard` as logs and errors may show it: without the password, token or signature that a URL carries."""
    return SECRET.sub("", shard) if is_remote(shard) else shard


def fetch(shard: str, allow_pipe: bool = False) -> BinaryIO:
    """An open local file with the bytes of `shard`: the file itself, or the cached copy of a URL.

    A copy is not evicted while a process has it open. Two processes that want the same shard fetch it once. A shard at
    a URL is taken never to change once it is here whole.

    Raises ValueError for a `pipe:` command without `allow_pipe` and for a URL that no one can open; OSError naming the
    URL, what went wrong, the tries and the fix when it cannot be read to its end.
    """
    if not is_remote(shard):
        return Path(shard).open("rb")
    scheme = urlsplit(shard).scheme  # lower case, so that "PIPE:" does not slip through
    if scheme == "pipe" and not allow_pipe:
        raise ValueError(f"{shard!r} would run a shell command; set allow_pipe: true in the data spec if you trust it")
    if scheme not in ("pipe", "http", "https", *STORES):
        raise ValueError(f"{shown(shard)!r} cannot be fetched; shards are files or at http, https, {', '.join(STORES)}")
    copy = cache_folder() / "shards" / hashlib.sha256(shard.encode()).hexdigest()[:24] / "shard.tar"
    with contextlib.suppress(FileNotFoundError):
        return _open_copy(copy)  # without the lock, whose file would be written each time
    with locked(copy.with_name("lock")):
        if not copy.exists():  # else another process has fetched it meanwhile
            _download(shard, scheme, copy)
        file = _open_copy(copy)  # while nobody may evict it
    _make_room(copy.parents[1], 0)
    return file


def _open_copy(copy: Path) -> BinaryIO:
    """Open a copy and mark it as used."""
    file = copy.open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)  # for as long as it is open: eviction asks for the exclusive one
    now = time.time_ns()  # the system's own stamps are some milliseconds coarse
    with contextlib.suppress(PermissionError):  # another user's copy, which then looks older than it is
        os.utime(file.fileno(), ns=(now, now))  # the order of eviction is that of last use
    return file


@dataclass(frozen=True)
class _Source:
    """What a server says of a shard.

    Attributes:
        size: bytes, None when it does not say.
        version: the same for the same bytes; None when there is no such word, and a transfer cannot go on.
        digests: name of the hash -> hexadecimal digest of the whole.
    """

    size: int | None = None
    version: str | None = None
    digests: dict[str, str] = field(default_factory=dict)


class _Failure(Exception):
    """A try that failed.

    Args:
        reason: for the user, without the URL.
        fix: what the user can do when no try succeeds.
        number: errno of the error that the user sees.
        again: whether another try may succeed.
        restart: whether what came so far is of no use.
        asked_s: seconds that the server asks to wait.
    """

    def __init__(
        self,
        reason: str,
        fix: str = LATER_FIX,
        number: int = errno.EIO,
        again: bool = True,
        restart: bool = False,
        asked_s: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.reason, self.fix, self.number = reason, fix, number
        self.again, self.restart, self.asked_s = again and asked_s <= MAX_ASKED_S, restart, asked_s


def _download(url: str, scheme: str, copy: Path) -> None:
    """Fetch `url`, with as many tries as it takes, and publish it as `copy`; the caller holds its lock."""
    part, notes = copy.with_name(copy.name + PART), copy.with_name("source.json")
    log.info("fetching %s", shown(url))
    try:
        with part.open("ab") as file:
            _try_until_whole(url, scheme, file, notes)
            os.fsync(file.fileno())
        part.replace(copy)
    except _Failure as failure:
        if part.stat().st_size == 0:
            part.unlink()
            notes.unlink(missing_ok=True)
        reason = SECRET.sub("", failure.reason)
        raise OSError(failure.number, f"cannot fetch the shard: {reason}; {failure.fix}", shown(url)) from failure
    except OSError as error:
        fix = f"free space, lower $MMFLOW_CACHE_BYTES or let $MMFLOW_CACHE name another disk than {cache_folder()}"
        raise OSError(error.errno, f"cannot store {shown(url)}: {error.strerror}; {fix}", str(part)) from error
    sync_folder(copy.parent)
    notes.unlink(missing_ok=True)


def _try_until_whole(url: str, scheme: str, file: BinaryIO, notes: Path) -> None:
    """Append to `file` until it holds all of `url`. Raises the last _Failure, which then names the tries."""
    failures, furthest = 0, file.tell()
    while True:
        try:
            if scheme == "pipe":
                _run(url.partition(":")[2], file)
            else:
                _receive(url, scheme, file, notes)
            return
        except _Failure as failure:
            if failure.restart:
                file.truncate(0)
            if file.seek(0, os.SEEK_END) >= furthest + PROGRESS_BYTES:
                failures, furthest = 0, file.tell()
            failures += 1
            if not failure.again or failures == TRIES:
                if failures > 1:
                    failure.reason += f" (the last of {failures} tries without progress)"
                raise
            wait_s = max(failure.asked_s, min(WAIT_S * 2 ** (failures - 1), MAX_WAIT_S) * _jitter())
            text = "%s: %s; at byte %d, trying again in %.1f s (%d of %d)"
            log.warning(text, shown(url), SECRET.sub("", failure.reason), file.tell(), wait_s, failures + 1, TRIES)
        sleep(wait_s)


def _jitter() -> float:
    """0.5 to 1, so that processes that failed together do not come back together; not from a seeded generator."""
    return random.SystemRandom().uniform(0.5, 1.0)


def _run(command: str, file: BinaryIO) -> None:
    """Fill `file` with what a shell command writes. Tried once: what it does is its own business."""
    file.truncate(0)
    status = subprocess.run(command, shell=True, stdout=file, check=False).returncode
    if status:
        reason = f"the transfer ended with exit {status}"
    elif not file.seek(0, os.SEEK_END):
        reason = "no bytes came"
    else:
        return
    raise _Failure(reason, "run the command by hand to see why", again=False, restart=True)


def _receive(url: str, scheme: str, file: BinaryIO, notes: Path) -> None:
    """One try: ask for what `file` lacks and append it; then check all of it."""
    source, at = _noted(notes), file.seek(0, os.SEEK_END)
    if source.version is None:
        at = 0
    if at == 0 or at != source.size:  # else it was killed just before the end
        start, source, chunks = (_open_store if scheme in STORES else _open_http)(url, at, source)
        folder = notes.parents[1]
        most = _bound(folder, sum(status.st_size for status in _copies(folder).values()))
        _check_room(source.size or 0, most)
        if start == 0:
            file.truncate(0)
            write_json(notes, asdict(source))
            _make_room(folder, source.size or 0)
        for chunk in chunks:
            file.write(chunk)
            file.flush()  # what has come survives a killed process
            _check_room(file.tell(), most)  # a server need not say how long the file is, or may have lied
    _check(file, source)


def _check_room(num_bytes: int, most: int) -> None:
    """Raise _Failure if a copy of so many bytes is more than the whole cache may take."""
    if num_bytes > most:
        reason = f"it has {num_bytes} bytes or more, and the whole cache may have {most}"
        raise _Failure(reason, "raise $MMFLOW_CACHE_BYTES, or make the shards smaller", errno.EFBIG, False, True)


def _noted(notes: Path) -> _Source:
    """What was said when the transfer that is not finished began."""
    try:
        return _Source(**json.loads(notes.read_bytes()))
    except (OSError, ValueError, TypeError):
        return _Source()


def _check(file: BinaryIO, source: _Source) -> None:
    """Raise _Failure unless `file` is what `source` says."""
    found = file.seek(0, os.SEEK_END)
    with Path(file.name).open("rb") as written:
        if source.size is not None and found != source.size:
            reason = f"{found} bytes came, the server said {source.size}"
            raise _Failure(reason, restart=found > source.size)
        if source.size is None and not source.digests:
            written.seek(max(0, found - 1024))
            if written.read() != bytes(1024):  # as every tar ends
                raise _Failure("the server does not say how long the file is, and its end is missing", restart=True)
        if found == 0:
            raise _Failure("no bytes came", "fetch or make the shard again at its source", again=False)
        for name, digest in source.digests.items():
            written.seek(0)
            if hashlib.file_digest(written, name).hexdigest() != digest:
                fix = "the file at the server or the way to it is damaged; put it there again"
                raise _Failure(f"the {name} of what came is not the one that the server sent", fix, restart=True)


Answer = tuple[int, _Source, Iterator[bytes]]  # first byte, what was said, the bytes from there


def _open_http(url: str, at: int, known: _Source) -> Answer:
    """Ask a web server for the bytes from `at` if the file is still `known`, else for all of them."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    plain = quote(urlunsplit(parts._replace(netloc=host)), safe="%/:=&?~#+!$,;'@()*[]")
    headers = {"User-Agent": "mmflow"}
    if at:
        headers |= {"Range": f"bytes={at}-", "If-Range": str(known.version)}
    try:
        request = Request(plain, headers=headers)
        response = build_opener(_Login(request, login), _Redirects).open(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        with error:
            raise _refusal(error) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _broken(error) from error
    said = response.headers
    encoding, version = said.get("Content-Encoding", "identity"), _version(said)
    if encoding != "identity" or response.status not in (200, 206):
        fix = "let the server send the plain file"
        raise _Failure(f"HTTP {response.status} with Content-Encoding {encoding}", fix, again=False)
    if response.status == 200:
        return 0, _Source(response.length, version, _digests(said)), _http_chunks(response)
    span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", said.get("Content-Range", ""))
    size = int(span[2]) if span and span[2] != "*" else known.size
    same = version in (None, known.version) and known.size in (None, size)  # a date may be left out
    if span is None or int(span[1]) != at or not same:
        response.close()
        raise _Failure("the file at the server changed during the transfer", restart=True)
    return at, replace(known, size=size), _http_chunks(response)


class _Redirects(HTTPRedirectHandler):
    """Follows a server to other web servers only; urllib would go to ftp:// as well."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(newurl, code, f"{msg}, a redirection to {newurl}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Login(BaseHandler):
    """Gives name and password of a URL to its own server only, not to one that it redirects to."""

    def __init__(self, first: Request, login: str) -> None:
        self.origin, self.login = (first.type, first.host), unquote(login)

    def http_request(self, request: Request) -> Request:
        if self.login and (request.type, request.host) == self.origin:
            word = base64.b64encode(self.login.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {word}")
        return request

    https_request = http_request


def _version(headers: Message) -> str | None:
    """The validator that If-Range may name; a weak tag is the same for files that differ in their bytes."""
    tag, modified = headers.get("ETag", ""), headers.get("Last-Modified")
    if tag.startswith('"'):
        return tag
    return modified if modified != headers.get("Date") else None  # it may change again within this second


def _digests(headers: Message) -> dict[str, str]:
    """Digests of the whole file: Repr-Digest (RFC 9530), Digest (RFC 3230), Content-MD5, x-goog-hash."""
    sent = [value for name in ("Repr-Digest", "Digest", "x-goog-hash") for value in headers.get_all(name, [])]
    sent += [f"md5={value}" for value in headers.get_all("Content-MD5", [])]
    found = {}
    for name, value in re.findall(r"\b(sha-512|sha-256|md5)=:?([A-Za-z0-9+/]+=*)", ",".join(sent), re.I):
        with contextlib.suppress(binascii.Error):
            found[name.lower().replace("-", "")] = base64.b64decode(value).hex()
    return found


def _http_chunks(response: HTTPResponse) -> Iterator[bytes]:
    with response:
        try:
            while chunk := response.read1(HTTP_BYTES):  # unlike read, it gives what came before the connection broke
                yield chunk
        except (OSError, HTTPException) as error:
            raise _broken(error) from error


def _refusal(error: HTTPError) -> _Failure:
    """What an HTTP status means."""
    reason = f"HTTP {error.code} {error.reason}"
    if error.code in (404, 410):
        return _Failure(reason, ABSENT_FIX, errno.ENOENT, again=False)
    if error.code in (401, 403, 407):
        return _Failure(reason, ACCESS_FIX, errno.EACCES, again=False)
    if error.code == 416:  # the file is shorter than what came
        return _Failure(reason, restart=True)
    asked_s = _asked_s(error.headers.get("Retry-After", ""))
    if asked_s > MAX_ASKED_S:
        reason += f", and the server asks to wait {asked_s:.0f} s"
    again = error.code in (408, 425, 429) or error.code >= 500
    return _Failure(reason, LATER_FIX if again else ABSENT_FIX, again=again, asked_s=asked_s)


def _asked_s(text: str) -> float:
    """Seconds of a Retry-After, which holds seconds or a date."""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _broken(error: Exception) -> _Failure:
    """What an error of the connection, or of the URL, means."""
    cause: Any = error.reason if isinstance(error, URLError) else error
    reason = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _Failure(reason, "let the server show a certificate that this machine trusts", again=False)
    if isinstance(cause, (str, InvalidURL, ValueError)) or (
        isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    ):
        return _Failure(reason, ABSENT_FIX, again=False)
    return _Failure(reason)


def _open_store(url: str, at: int, known: _Source) -> Answer:
    """Ask a store for the bytes from `at` if the object is still `known`, else for all of them."""
    scheme = urlsplit(url).scheme
    with _store_errors():
        import fsspec  # here, because few shards need it

        try:
            system, path = fsspec.url_to_fs(url)
        except ImportError as error:
            package = STORES[scheme]
            reason = f"{scheme}:// needs the package {package}, which is not installed or not complete ({error})"
            raise _Failure(reason, f"pip install {package}", again=False) from error
        info = system.info(path)
        md5 = {"md5": base64.b64decode(info["md5Hash"]).hex()} if "md5Hash" in info else {}  # Google's word
        said = _Source(info.get("size"), system.ukey(path), md5)
    start = at if said == known else 0
    return start, said, _store_chunks(system, path, start)


def _store_chunks(system: Any, path: str, start: int) -> Iterator[bytes]:
    with _store_errors(), system.open(path, "rb", cache_type="none") as file:
        file.seek(start)
        while chunk := file.read(STORE_BYTES):
            yield chunk


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """Turn what a store raises into _Failure; its own library has tried again where it knows that this may help."""
    try:
        yield
    except _Failure:
        raise
    except FileNotFoundError as error:
        raise _Failure("there is no such object", ABSENT_FIX, errno.ENOENT, again=False) from error
    except PermissionError as error:
        raise _Failure(f"access denied: {error}", ACCESS_FIX, errno.EACCES, again=False) from error
    except OSError as error:
        raise _Failure(f"{type(error).__name__}: {error}") from error
    except Exception as error:  # each store has errors of its own, such as for absent credentials
        raise _Failure(f"{type(error).__name__}: {error}", ACCESS_FIX, again=False) from error


def _make_room(folder: Path, num_bytes: int) -> None:
    """Delete the copies, and the beginnings of copies, used longest ago until `num_bytes` more fit the bound."""
    with locked(folder / "eviction.lock"):
        found = _copies(folder)
        total = sum(status.st_size for status in found.values())
        bound = _bound(folder, total)
        for path in sorted(found, key=lambda path: found[path].st_mtime_ns):
            if total + num_bytes <= bound or found[path].st_mtime > time.time() - KEEP_S:
                break
            if _evict(path):
                total -= found[path].st_size
    if total + num_bytes > bound:
        text = "the shards in use take %d bytes, more than the %d that the cache may have; raise $MMFLOW_CACHE_BYTES"
        log.warning(text, total + num_bytes, bound)


def _copies(folder: Path) -> dict[Path, os.stat_result]:
    """The copies and the beginnings of copies."""
    found = {}
    for path in folder.glob("*/shard.tar*"):
        with contextlib.suppress(FileNotFoundError):  # it was just published
            found[path] = path.stat()
    return found


def _bound(folder: Path, cached: int) -> int:
    """Bytes that the copies may take when they take `cached` now."""
    text = os.environ.get("MMFLOW_CACHE_BYTES")
    if text is None:
        return min(CACHE_BYTES, (shutil.disk_usage(folder).free + cached) * 9 // 10)
    if not text.isdecimal():
        raise ValueError(f"MMFLOW_CACHE_BYTES is {text!r}, must be a whole number of bytes such as {CACHE_BYTES}")
    return int(text)


def _evict(path: Path) -> bool:
    """Delete `path` unless a process fetches it or has it open."""
    try:
        with locked(path.with_name("lock"), wait=False), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False
    return True
