"""Interleaved documents: text, pictures, videos and sounds in the order in which they are read.

In a shard a document is the member `doc.json`, a list of parts such as `{"text": "A cat."}`, `{"image": "0.jpg"}`,
`{"video": "1.mp4"}` and `{"audio": "2.flac"}`, in the same sample as the members `0.jpg`, `1.mp4` and `2.flac`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from mmflow.data.decode import AUDIO_EXTENSIONS, PICTURE_EXTENSIONS, VIDEO_EXTENSIONS, kind_of
from mmflow.data.errors import BadSample
from mmflow.data.pictures import Picture

if TYPE_CHECKING:
    from mmflow.data.video import Video

EXTENSION = "doc.json"
KINDS = {"image": PICTURE_EXTENSIONS, "video": VIDEO_EXTENSIONS, "audio": AUDIO_EXTENSIONS}

Part: TypeAlias = "str | Picture | Video | Tensor"  # audio is a Tensor (S,), as mmflow.data.decode gives it


def references(value: Any) -> set[str]:
    """The members that `parse` will ask for; of what is no document those that can be told."""
    parts = value if isinstance(value, list) else []
    pairs = [pair for part in parts if isinstance(part, dict) for pair in part.items()]
    return {name for kind, name in pairs if isinstance(name, str) and kind_of(name) in KINDS.get(kind, ())}


def parse(value: Any, members: Mapping[str, Any]) -> list[Part]:
    """The parts of a document in order, text as it is written; empty text is dropped.

    Args:
        value: the content of `doc.json`.
        members: extension -> decoded member of the same sample; only those in `references` are taken.

    Raises BadSample for what is not such a list, a part that is none of the four kinds, a reference to a member of
    another kind or to one that is not there, and a document without any part.
    """
    if not isinstance(value, list):
        raise BadSample(f"a document must be a list of parts, not {value!r:.80}")
    parts = [_part(f"part {number}", part, members) for number, part in enumerate(value)]
    parts = [part for part in parts if not isinstance(part, str) or part]
    if not parts:
        raise BadSample("a document without any part")
    return parts


def _part(where: str, part: Any, members: Mapping[str, Any]) -> Part:
    if not (isinstance(part, dict) and len(part) == 1):
        raise BadSample(f"{where} of the document is {part!r:.80}, must have one key, which says what it is")
    ((kind, content),) = part.items()
    if not isinstance(content, str):
        raise BadSample(f"{where} of the document: {kind!r} must be text, not {content!r:.80}")
    if kind == "text":
        return content
    if kind not in KINDS:
        raise BadSample(f"{where} of the document is {kind!r:.80}, must be one of text, {', '.join(KINDS)}")
    if kind_of(content) not in KINDS[kind]:
        raise BadSample(f"{where} of the document: {kind} {content!r:.80} must end in one of {', '.join(KINDS[kind])}")
    if content not in members:
        raise BadSample(f"{where} of the document: {kind} {content!r:.80} is not in the sample, only {sorted(members)}")
    return members[content]
