"""What the JSON of a sample says, by the names that converters and usual data sets use, in pieces that a page shows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

CLASSES = ("class", "classes", "labels", "category", "language")  # what stands out, or else "label"
QUESTIONS = ("question", "answer", "answers", "options", "choices")
DIALOGUES = ("dialogue", "dialog", "conversation", "conversations", "messages", "turns")
PARAGRAPHS = ("explanation", "rationale", "instruction", "report", "translation", "long")
TIMES = ("words", "phones", "events")
SPEAKERS, SAYINGS = ("speaker", "role", "from", "name"), ("text", "content", "value", "utterance")
ELSEWHERE = (
    *CLASSES,
    *QUESTIONS,
    *DIALOGUES,
    *PARAGRAPHS,
    *TIMES,
    "captions",
    "objects",
    "row",
    "speaker",
    "phone_sequence",
    "width",
    "height",
)
SHORT = 60  # characters of a fact


@dataclass
class Captions:
    """More captions after the first, which is the text."""

    texts: list[str]


@dataclass
class Question:
    """A question, what may be chosen, the right answer, and (answer, times given) of those that people gave."""

    text: str
    options: list[str]
    answer: str | None
    given: list[tuple[str, int]]


@dataclass
class Turn:
    """What one of two, or of more, says in a dialogue; `is_reply` for all but the first speaker."""

    speaker: str
    text: str
    is_reply: bool


@dataclass
class Row:
    """The columns of a row of a table; None is missing."""

    cells: dict[str, Any]


@dataclass
class Paragraph:
    """A longer text by its name."""

    name: str
    text: str


@dataclass
class Labels:
    """Classes."""

    names: list[str]


@dataclass
class Facts:
    """Short values by their names."""

    values: dict[str, str]


Piece: TypeAlias = Captions | Question | Turn | Row | Paragraph | Labels | Facts


def told(info: Mapping[str, Any], text: str = "") -> Iterator[Piece]:
    """All that `info` says besides the `text` of the sample; what is not of the form its name promises is left out.

    A dictionary in it, such as "edit" with an "instruction", says what it would by itself, but for its facts.
    """
    yield from _told(info, text)
    for name, value in info.items():
        if isinstance(value, dict) and name not in ("row", "captions"):
            yield from (piece for piece in _told(value, text) if not isinstance(piece, Facts | Labels))


def _told(info: Mapping[str, Any], text: str) -> Iterator[Piece]:
    captions = info.get("captions")
    if isinstance(captions, dict):
        for name, caption in captions.items():
            if str(caption) != text:
                yield Paragraph(str(name), str(caption))
    elif isinstance(captions, list) and len(captions) > 1:  # the first one is the text
        yield Captions([str(caption) for caption in captions[1:]])
    if "question" in info:
        yield _question(info)
    for entry in info.get("questions", []) if isinstance(info.get("questions"), list) else []:
        yield _question(entry if isinstance(entry, dict) else {"question": entry})
    for name in DIALOGUES:
        if isinstance(info.get(name), list):
            yield from _turns(info[name])
    if isinstance(info.get("row"), dict):
        yield Row({name: value for name, value in info["row"].items() if f"{name}: {value}" not in text})
    for name in PARAGRAPHS:
        if isinstance(info.get(name), str) and info[name] != text:
            yield Paragraph(name, info[name])
    classes = [name for name in CLASSES if info.get(name) is not None]
    names = classes if set(classes) - {"language"} else [*classes, "label"]
    labels = [str(n) for name in names for n in as_list(info.get(name)) if isinstance(n, str | int | float)]
    if labels:
        yield Labels(labels)
    if isinstance(info.get("phone_sequence"), list):
        yield Paragraph("phones:", " ".join(map(str, info["phone_sequence"])))
    facts = {
        str(name): str(value)
        for name, value in info.items()
        if name not in (*ELSEWHERE, *names) and isinstance(value, str | int | float) and len(str(value)) <= SHORT
    }
    if facts:
        yield Facts(facts)


def says_all(pieces: Sequence[Piece], text: str) -> bool:
    """Whether questions and dialogues alone already have every word of a text, so that it need not stand there too."""
    said = [part for piece in pieces if isinstance(piece, Question) for part in (piece.text, piece.answer or "")]
    said += [piece.text for piece in pieces if isinstance(piece, Turn)]
    for part in sorted(said, key=len, reverse=True):
        text = text.replace(part, " ") if part else text
    return bool(said) and not text.strip()


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else a list of it."""
    return value if isinstance(value, list) else [value]


def _question(entry: Mapping[str, Any]) -> Question:
    options = [str(o) for name in ("options", "choices") for o in as_list(entry.get(name)) if o]
    answer = None if entry.get("answer") is None else str(entry["answer"])
    given = Counter(str(a.get("answer") if isinstance(a, dict) else a) for a in as_list(entry.get("answers") or []))
    others = [(text, times) for text, times in given.most_common() if text != answer]
    return Question(str(entry.get("question")), options, answer, others)


def _turns(turns: Sequence[Any]) -> Iterator[Turn]:
    """Turns as text, {"speaker", "text"} or whatever names are usual for these, and [question, answer] pairs."""
    lines: list[tuple[str, str]] = []
    for turn in turns:
        if isinstance(turn, dict):
            who, what = (next((turn[name] for name in names if name in turn), "") for names in (SPEAKERS, SAYINGS))
            lines.append((str(who), str(what)))
        else:
            lines += [("", str(part)) for part in as_list(turn)]
    for place, (who, what) in enumerate(lines):
        yield Turn(who, what, who != lines[0][0] if who else place % 2 == 1)
