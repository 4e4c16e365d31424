"""What recognisers get wrong: edits of words and characters, and a report that a person can read."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein


class Edit(NamedTuple):
    """One error: a substitution, a deletion (nothing was said for `meant`) or an insertion (`said` for nothing)."""

    meant: str | None
    said: str | None

    def __str__(self) -> str:
        if self.meant is None:
            return f"+{self.said}"
        return f"-{self.meant}" if self.said is None else f"{self.meant}>{self.said}"


def edits(meant: Sequence[str], said: Sequence[str]) -> list[Edit]:
    """The fewest edits that make `said` of `meant`, in order; of characters for strings, of words for lists."""
    found = []
    for step in Levenshtein.editops(meant, said):
        before = None if step.tag == "insert" else meant[step.src_pos]
        found.append(Edit(before, None if step.tag == "delete" else said[step.dest_pos]))
    return found


def describe(meant: str, said: str) -> str:
    """The wrong words of one utterance: THE>A for a substitution, -CAT for a deletion, +OF for an insertion."""
    return " ".join(map(str, edits(meant.split(), said.split())))


def error_report(pairs: Sequence[tuple[str, str]], most: int = 30) -> dict[str, Any]:
    """Figures over a corpus of (transcript, hypothesis).

    Error rates are edits of all utterances per unit of all transcripts, spaces counted as characters, as torchmetrics
    has them. Pairs with an empty transcript have no rate: they are left out and counted. Confusions are the `most`
    commonest substitutions of words, each with its count.
    """
    spoken = [(meant, said) for meant, said in pairs if meant.split()]
    words = [(meant.split(), said.split()) for meant, said in spoken]
    confusions = Counter(edit for pair in words for edit in edits(*pair) if None not in edit)
    return {
        "utterances": len(spoken),
        "empty_transcripts": len(pairs) - len(spoken),
        "empty_hypotheses": sum(not said for _, said in words) / max(len(words), 1),
        "words": _rates(words),
        "characters": _rates(spoken),
        "confusions": [
            [*edit, count] for edit, count in sorted(confusions.items(), key=lambda c: (-c[1], c[0]))[:most]
        ],
    }


def _rates(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, float]:
    found = [edit for meant, said in pairs for edit in edits(meant, said)]
    total = sum(len(meant) for meant, _ in pairs)
    return {
        "error_rate": len(found) / max(total, 1),
        "substitutions": sum(None not in edit for edit in found),
        "deletions": sum(edit.said is None for edit in found),
        "insertions": sum(edit.meant is None for edit in found),
        "total": total,
    }
