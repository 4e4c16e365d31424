"""Shards at URLs, copied whole into a cache that all processes of a machine share and that stays within a bound."""

import errno
import hashlib
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from mmflow.atomic import atomic_file, locked, remove_parts

log = logging.getLogger(__name__)

CACHE_BYTES = 100 * 2**30  # bound on the copies, unless $MMFLOW_CACHE_BYTES says otherwise


def cache_folder() -> Path:
    """The user's cache: $MMFLOW_CACHE, else mmflow/ in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MMFLOW_CACHE") or Path(base) / "mmflow")


def is_remote(shard: str) -> bool:
    """Whether `shard` is a URL or a `pipe:` command rather than a path."""
    return "://" in shard or shard.startswith("pipe:")


def fetch(shard: str, allow_pipe: bool = False) -> BinaryIO:
    """An open local file with the bytes of `shard`: the file itself, or the cached copy of a URL.

    What is open stays readable when the copy is evicted. Two processes that want the same shard fetch it once.
    A shard at a URL is taken never to change.

    Raises ValueError for a `pipe:` command without `allow_pipe`; OSError naming the URL when it cannot be read to its
    end.
    """
    if not is_remote(shard):
        return Path(shard).open("rb")
    if urlsplit(shard).scheme == "pipe" and not allow_pipe:  # found as WebDataset finds it
        raise ValueError(f"{shard!r} would run a shell command; set allow_pipe: true in the data spec if you trust it")
    copy = cache_folder() / "shards" / hashlib.sha256(shard.encode()).hexdigest()[:24] / "shard.tar"
    file: BinaryIO
    with locked(copy.with_name("lock")):
        try:
            file, is_new = copy.open("rb"), False
        except FileNotFoundError:
            remove_parts(copy.parent)  # of a process that was killed while it fetched
            file, is_new = _download(shard, copy), True
    now = time.time_ns()  # the system's own stamps are some milliseconds coarse
    os.utime(file.fileno(), ns=(now, now))  # the order of eviction is that of last use
    if is_new:
        _evict(copy.parents[1], keep=copy)
    return file


def _download(url: str, copy: Path) -> BinaryIO:
    import webdataset  # here, because it imports torch, which specs and `--help` do without

    log.info("fetching %s", url)
    try:
        with webdataset.gopen(url) as stream, atomic_file(copy) as file:
            shutil.copyfileobj(stream, file, 2**20)
            if hasattr(stream, "wait_for_child"):  # curl's exit status tells a cut-off transfer from a whole one
                stream.wait_for_child()
            if file.tell() == 0:
                raise OSError(errno.EIO, "no bytes came")
            return Path(file.name).open("rb")  # before it gets its name, under which another process may evict it
    except OSError as error:
        reason = re.sub(r".*(exit -?\d+).*", r"the transfer ended with \1", str(error), flags=re.S)
        raise OSError(error.errno or errno.EIO, f"cannot fetch the shard: {reason}", url) from error


def _evict(folder: Path, keep: Path) -> None:
    """Delete the copies used longest ago until the rest fits the bound."""
    bound = int(os.environ.get("MMFLOW_CACHE_BYTES", CACHE_BYTES))
    with locked(folder / "eviction.lock"):
        copies = {path: path.stat() for path in folder.glob("*/*.tar")}
        total = sum(status.st_size for status in copies.values())
        for path in sorted(copies, key=lambda path: copies[path].st_mtime_ns):
            if total > bound and path != keep:
                total -= copies[path].st_size
                path.unlink()
