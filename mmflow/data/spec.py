"""Data specs: one YAML file per data set that says where its shards are and which field holds what.

name: librispeech
licence: CC BY 4.0
root: data/librispeech                    # folder of the shards, relative to the working directory, or a URL
splits: {train: "train-*.tar"}            # a glob, a range such as "train-{000000..000131}.tar", or a list of them
fields: {audio: [flac, wav], text: [txt]} # extensions that may hold the field; the first one present is taken
make: {class_path: mmflow.data.sources.librispeech.LibriSpeech, init_args: {}}  # how `data make` makes the shards,
                                          # and perhaps samples_per_shard, by default 256
allow_pipe: false                         # whether `pipe:` entries, which run a shell command, are allowed
"""

import difflib
import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from braceexpand import braceexpand

from mmflow.data.remote import is_remote

SEARCHED = re.compile(r"[*?[]")  # what makes a name a glob
REQUIRED = ("name", "licence", "root", "splits", "fields")


class _Plain(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can stand for more than fits the memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "found an alias; write what it stands for", mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class DataSpec:
    """A data set as shards.

    Attributes:
        name: of the data set.
        licence: of the data.
        root: folder or URL of the shards.
        splits: split -> glob or brace pattern below `root` (or absolute, or a URL), or a list of them.
        fields: field -> extensions that may hold it.
        make: class_path and init_args of the converter that makes the shards, and perhaps samples_per_shard; None when
            there is none.
        allow_pipe: whether `pipe:` entries, which run a shell command, are allowed.
        path: the file the spec was read from.

    Raises ValueError for values of the wrong kind.
    """

    name: str
    licence: str
    root: str
    splits: dict[str, str | list[str]]
    fields: dict[str, list[str]]
    make: dict[str, Any] | None = None
    allow_pipe: bool = False
    path: Path = field(default=Path("(no file)"))

    def __post_init__(self) -> None:
        for key in ("name", "licence", "root"):
            value = getattr(self, key)
            self._require(isinstance(value, str) and value, key, value, "text")
        self._require(isinstance(self.splits, dict) and self.splits, "splits", self.splits, "split: pattern")
        for split, patterns in self.splits.items():
            valid = isinstance(patterns, str) or _is_texts(patterns)
            self._require(valid and patterns, f"splits.{split}", patterns, "a pattern or a list of patterns")
        self._require(isinstance(self.fields, dict) and self.fields, "fields", self.fields, "field: extensions")
        for name, extensions in self.fields.items():
            valid = _is_texts(extensions) and all(e == e.lower().lstrip(".") for e in extensions)
            self._require(valid and extensions, f"fields.{name}", extensions, "extensions such as [flac, wav]")
        if self.make is not None:
            self._require(isinstance(self.make, dict), "make", self.make, "a mapping of class_path and init_args")
            _check_keys(self.make, ("class_path", "init_args", "samples_per_shard"), f"{self.path}: make")
            class_path, init_args = self.make.get("class_path"), self.make.get("init_args", {})
            self._require(isinstance(class_path, str), "make.class_path", class_path, "the import path of a class")
            self._require(isinstance(init_args, dict), "make.init_args", init_args, "a mapping of option to value")
            count = self.make.get("samples_per_shard", 1)
            self._require(type(count) is int and count > 0, "make.samples_per_shard", count, "a number from 1 up")
        self._require(isinstance(self.allow_pipe, bool), "allow_pipe", self.allow_pipe, "true or false")

    def _require(self, valid: object, key: str, value: object, rule: str) -> None:
        if not valid:
            raise ValueError(f"{self.path}: {key} is {value!r}, must be {rule}")

    @classmethod
    def read(cls, path: str | Path) -> "DataSpec":
        """Read a spec file. Raises ValueError when it is absent, not YAML, or not a spec."""
        path = Path(path)
        if not path.is_file():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "data_specs/ holds those of mmflow"
            raise ValueError(f"there is no data spec {path}; {hint}")
        try:
            content = yaml.load(path.read_text("utf-8-sig"), _Plain)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # some values raise errors of their own
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} must be a mapping with the keys {', '.join(REQUIRED)}, not {content!r:.80}")
        allowed = [f.name for f in fields(cls) if f.name != "path"]
        _check_keys(content, allowed, str(path))
        missing = [key for key in REQUIRED if key not in content]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; a spec has {', '.join(REQUIRED)}")
        return cls(**content, path=path)

    def with_root(self, root: str | Path) -> "DataSpec":
        """The same spec for shards that are elsewhere."""
        return replace(self, root=str(root))

    def shards(self, split: str) -> list[str]:
        """Sorted paths or URLs of the shards of a split; globs are expanded in local folders only.

        Raises ValueError when the spec has no such split, nothing matches, a shard of a brace range is absent, or an
        entry would run a command without `allow_pipe`.
        """
        if split not in self.splits:
            raise ValueError(
                f"{self.path} has no split {split!r}, only {', '.join(self.splits)}; "
                f'add it under splits, for example {split}: "{split}-*.tar"'
            )
        patterns = self.splits[split]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        shards = sorted({shard for pattern in patterns for shard in self._expand(pattern, split)})
        if not shards:
            raise ValueError(
                f"{self.path}: no shards of split {split!r} match {' or '.join(patterns)} in {self.root}"
                f"{self._absent_root()}; {self._how_to_make()}"
            )
        return shards

    def _expand(self, pattern: str, split: str) -> list[str]:
        """Paths or URLs for one pattern."""
        try:
            names = list(braceexpand(pattern))
        except ValueError as error:
            raise ValueError(f"{self.path}: split {split!r}: {error}; close every brace that is opened") from error
        if is_remote(pattern):
            return self._remote(names, split)
        if is_remote(self.root) and not Path(pattern).is_absolute():
            return self._remote([f"{self.root.rstrip('/')}/{name}" for name in names], split)
        folder = Path(self.root).expanduser()
        absent = [name for name in names if not SEARCHED.search(name) and not (folder / name).is_file()]
        if 0 < len(absent) < len(names):  # when all are absent so is the data set, and the caller says so
            raise ValueError(
                f"{self.path}: {len(absent)} of {len(names)} shards of split {split!r} are absent, "
                f"first {folder / absent[0]}; fetch them or correct the range"
            )
        found = [name for pattern in names for name in _matches(pattern, folder)]
        return [str(folder / name) for name in found if (folder / name).is_file()]

    def _remote(self, urls: list[str], split: str) -> list[str]:
        """The same URLs, checked."""
        for url in urls:
            piped = urlsplit(url).scheme == "pipe"  # as WebDataset finds it, so that "PIPE://" does not slip through
            if piped and not self.allow_pipe:
                raise ValueError(
                    f"{self.path}: split {split!r}: {url!r} would run a shell command; set allow_pipe: true in the "
                    f"spec if you trust it, or name a file or URL"
                )
            if "*" in url and not piped:
                raise ValueError(
                    f"{self.path}: split {split!r}: the URL {url!r} cannot be searched with '*'; "
                    f"write a range such as {split}-{{000000..000131}}.tar"
                )
        return urls

    def _absent_root(self) -> str:
        absent = not is_remote(self.root) and not Path(self.root).expanduser().is_dir()
        return f" (the folder {self.root} does not exist)" if absent else ""

    def _how_to_make(self) -> str:
        if self.make is None:
            return "correct root and splits in the spec"
        return f"make them with `python cli.py data make --spec {self.path} --root ORIGINAL --out {self.root}`"


def _matches(pattern: str, folder: Path) -> list[str]:
    # unlike Path.glob, glob passes over hidden files, which may be half written
    return glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)


def _check_keys(content: dict[Any, Any], allowed: Iterable[str], where: str) -> None:
    """Raise ValueError for a key outside `allowed`, naming the one most like it."""
    for key in content:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed := list(allowed), n=1, cutoff=0.0)[0]
            raise ValueError(f"{where} has an unknown key {key!r}; did you mean {near!r}? Known: {', '.join(allowed)}")
