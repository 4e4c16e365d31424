"""Shards at URLs, copied whole into a cache that all processes of a machine share and that stays within a bound."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from mmflow.atomic import atomic_file, locked

log = logging.getLogger(__name__)

CACHE_BYTES = 100 * 2**30  # bound on the copies, unless $MMFLOW_CACHE_BYTES says otherwise


def cache_folder() -> Path:
    """The user's cache: $MMFLOW_CACHE, else mmflow/ in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MMFLOW_CACHE") or Path(base) / "mmflow")


def is_remote(shard: str) -> bool:
    """Whether `shard` is a URL or a `pipe:` command rather than a path."""
    return "://" in shard or shard.startswith("pipe:")


def fetch(shard: str) -> Path:
    """A local file with the bytes of `shard`: the path itself, or the cached copy of a URL.

    Raises OSError naming the URL when it cannot be read to its end.
    """
    if not is_remote(shard):
        return Path(shard)
    folder = cache_folder() / "shards"
    copy = folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:24]}.tar"
    with locked(copy.with_suffix(".lock")):  # one process fetches, the others of this machine wait for it
        if not copy.exists():
            _download(shard, copy)
            _evict(folder, keep=copy)
        os.utime(copy)  # the eviction order is by last use
    return copy


def _download(url: str, copy: Path) -> None:
    import webdataset  # here, because it imports torch, which specs and `--help` do without

    log.info("fetching %s", url)
    try:
        with webdataset.gopen(url) as stream, atomic_file(copy) as file:
            shutil.copyfileobj(stream, file, 2**20)
            if file.tell() == 0:
                raise OSError("no bytes came")
            if hasattr(stream, "wait_for_child"):  # curl's exit status tells a cut-off transfer from a whole one
                stream.wait_for_child()
    except OSError as error:
        raise OSError(error.errno or 5, f"cannot fetch the shard: {error}", url) from error


def _evict(folder: Path, keep: Path) -> None:
    """Delete the copies used longest ago until the rest fits the bound. Open files stay readable until closed."""
    bound = int(os.environ.get("MMFLOW_CACHE_BYTES", CACHE_BYTES))
    copies = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in copies)
    for path in copies:
        if total > bound and path != keep:
            total -= path.stat().st_size
            path.unlink()
