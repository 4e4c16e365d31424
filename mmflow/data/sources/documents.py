"""Interleaved documents as JSON lines, those of MMC4 (Zhu et al., 2023, arXiv:2304.06939) or plain lists of parts."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmflow.data.documents import EXTENSION, KINDS
from mmflow.data.sources.images import PICTURE_ENDINGS, as_member
from mmflow.data.sources.items import Item
from mmflow.data.sources.layout import LeftOut, files
from mmflow.data.sources.recordings import AUDIO_ENDINGS, as_sound, read_lines
from mmflow.data.sources.splits import listed

MEDIA_ENDINGS = (*PICTURE_ENDINGS, *AUDIO_ENDINGS, *(f".{extension}" for extension in KINDS["video"]))
WANTED = "files .jsonl (unpacked) and the pictures they name, in any folders beside or below them"
ORIGIN = "https://github.com/allenai/mmc4"


class Documents:
    """A folder with files `.jsonl`, one document per line, and the pictures, videos and sounds that they name.

    A line is `{"text_list": [...], "image_info": [{"image_name": ..., "matched_text_index": ...}]}` as in MMC4, where a
    picture then stands before the text it is matched to, or `{"content": [{"type": "text", "text": ...},
    {"type": "image", "image": ...}]}`, also with video and audio. Files are found by their path from the .jsonl or from
    the root, or by their name alone, the first one that has it.

    A sample has `doc.json` (see mmflow.data.documents), the files `0.jpg`, `1.png`, ..., and in its JSON where the
    document comes from. Blank texts are dropped, and files that are not there or no picture: MMC4 is made of links of
    which many are dead. A document that names files, none of which can be had, is left out.
    """

    def items(self, root: Path) -> list[Item]:
        """The samples of the folder `root`. Raises ValueError when no document can be used."""
        root = root.resolve()
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder; name one with {WANTED} ({ORIGIN})")
        left_out = LeftOut(root.name)
        return listed(
            _items(root, left_out),
            left_out,
            f"{root} holds no document that can be used; expected {WANTED} ({ORIGIN})",
            one="document",
            group="document",
        )


def _items(root: Path, left_out: LeftOut) -> Iterator[Item]:
    media = files(root, MEDIA_ENDINGS, left_out)
    known = {path.relative_to(root).as_posix(): path for path in media}
    for path in media:
        known.setdefault(path.name, path)
    for number, path in enumerate(files(root, (".jsonl",), left_out)):
        name = path.relative_to(root).as_posix()
        for line, text in enumerate(read_lines(path)):
            try:
                value = json.loads(text)
                parts = _parts(value)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                left_out.add("line that is no document", f"{name}, line {line + 1}: {error!r}")
                continue
            document, found = _resolved(parts, name.rpartition("/")[0], known, left_out)
            if document and (found or all(kind == "text" for kind, _ in parts)):
                key = f"{number:06d}-{line:07d}"
                info = {"path": name} | {word: value[word] for word in ("id", "url") if word in value}
                yield Item(key, "train", str(value.get("url", key)), found, {EXTENSION: document, "json": info})
            else:
                left_out.add("document without text, or without any of its files", f"{name}, line {line + 1}")


def _parts(value: dict[str, Any]) -> list[tuple[str, str]]:
    """(kind, text or name of a file) for each part of a document. Raises what a wrong layout raises."""
    if "content" in value:
        parts = [(part["type"], part[part["type"]]) for part in value["content"]]
    else:
        texts, pictures = value["text_list"], defaultdict(list)
        for picture in value["image_info"]:
            if picture["matched_text_index"] not in range(len(texts)):
                raise ValueError(f"a picture is matched to text {picture['matched_text_index']} of {len(texts)}")
            pictures[picture["matched_text_index"]].append(("image", picture["image_name"]))
        parts = [part for number, text in enumerate(texts) for part in (*pictures[number], ("text", text))]
    wrong = [part for part in parts if part[0] not in ("text", *KINDS) or not isinstance(part[1], str)]
    if wrong:
        raise ValueError(f"{wrong[0]!r:.80} is not one of text, {', '.join(KINDS)} and its content")
    return parts


def _resolved(
    parts: list[tuple[str, str]], folder: str, known: dict[str, Path], left_out: LeftOut
) -> tuple[list[dict[str, str]], dict[str, Path]]:
    """The content of `doc.json`, and the files under the names that it has for them."""
    document: list[dict[str, str]] = []
    found: dict[str, Path] = {}
    members: dict[Path, str] = {}  # a file that is named twice is stored once
    for kind, content in parts:
        if kind == "text":
            document += [{"text": content}] if content.strip() else []
            continue
        path = known.get(f"{folder}/{content}", known.get(content))
        if path is None:
            left_out.add(f"{kind} that is not there", content)
            continue
        if path not in members:
            for extension in _extension(kind, path, left_out):
                members[path] = f"{len(members)}.{extension}"
        if path in members:
            found[members[path]] = path
            document.append({kind: members[path]})
    return document, found


def _extension(kind: str, path: Path, left_out: LeftOut) -> list[str]:
    """The extension that is true of a file, none if it is not of that kind."""
    if kind == "image":
        return list(as_member(path, left_out))
    extension = next(iter(as_sound(path))) if kind == "audio" else path.suffix[1:].lower()
    if extension not in KINDS[kind]:
        left_out.add(f"file that is no {kind} known here", path)
        return []
    return [extension]
