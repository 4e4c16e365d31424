"""What a language is to the grammar of `mmflow.world.language`: a table of words, endings and sentences."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from string import Formatter

from mmflow.world.scene import BACKGROUNDS, COLOURS, COLUMNS, MOTIONS, ROWS, SHAPES, SIZES, STYLES

PLACES = (
    "left", "middle", "right", "top", "bottom", *(f"{row} {column}" for row in ROWS for column in COLUMNS)
)  # fmt: skip
DOINGS = (*MOTIONS, "heard", "seen")
RELATIONS = {"left_of": (-1, 0), "right_of": (1, 0), "above": (0, -1), "below": (0, 1)}
SENTENCES = {  # kind -> how many each language has, and what must be in them
    "things": (6, {"0"}), "also": (4, {"0"}), "relation": (4, {"0", "1", "relation"}), "does": (4, {"0"}),
    "heard": (4, {"0"}), "order": (4, {"0", "rest"}), "style": (3, {"word"}), "background": (3, {"word"}),
}  # fmt: skip
LISTED: dict[str, Iterable[str]] = {  # what a table has an entry for, in this order
    "shapes": SHAPES, "sizes": SIZES, "colours": COLOURS, "places": PLACES, "doings": DOINGS, "relations": RELATIONS,
    "styles": STYLES, "backgrounds": BACKGROUNDS,
}  # fmt: skip


@dataclass(frozen=True)
class Language:
    """The words of a language, lower case. What is separated by commas is in the order of LISTED.

    A table that lacks something is a ValueError that tells all it lacks.

    Attributes:
        name: its name in English.
        genders: letters, in the order of all that has one entry for each gender.
        articles: "a" and "the", in German followed by the case -> article of each gender.
        agreement: the same -> number of an adjective's form for each gender; empty where adjectives have one form.
        shapes: noun and, where there are several, its gender.
        sizes, colours: forms of each, one if there is only one.
        order: of a noun phrase.
        places: of PLACES.
        doings: verbs of DOINGS, in German and Dutch in a main clause and, after "|", in a subordinate one.
        that: relative pronoun of each gender. relative: a relative clause with it.
        relations: of RELATIONS. styles, backgrounds: words of each.
        conjunction: "and". then: before what is heard next.
        denials: words that make a sentence say that something is not so, apart from those in `doings`.
        joined: (pattern, replacement) that spoken words are drawn together by, in order.
        parted: such a word -> what it was.
        sentences: kind of SENTENCES -> sentences; number i means the same in each language, the last is for the test
            part alone and the last but one for the validation part. {0}, {1} are noun phrases, with their case in
            German; {0:x|y} is x for one thing, y for several; {main} and {sub} are a doing in either clause, {word} a
            style or background, {rest} what is heard next.
    """

    name: str
    articles: dict[str, str]
    shapes: str
    sizes: str
    colours: str
    order: str
    places: str
    doings: str
    that: str
    relations: str
    styles: str
    backgrounds: str
    conjunction: str
    then: str
    denials: str
    sentences: dict[str, list[str]]
    genders: str = "x"
    agreement: dict[str, str] = field(default_factory=dict)
    relative: str = "{that} {doing}"
    joined: tuple[tuple[str, str], ...] = ()
    parted: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lacks = []
        for name, values in LISTED.items():
            entries = listed(getattr(self, name))
            if len(entries) != len([*values]) or not all(entries):
                lacks.append(f"{name} must have an entry for each of {', '.join(values)}; it has {entries}")
        for shape in listed(self.shapes):
            if len(self.genders) > 1 and shape.split()[-1] not in [*self.genders]:
                lacks.append(f"shapes: {shape!r} must end with its gender, one of {', '.join(self.genders)}")
        for name, forms in [
            *((f"articles[{key!r}]", form) for key, form in self.articles.items()),
            ("that", self.that),
        ]:
            if len(self.genders) > 1 and len(forms.split()) != len(self.genders):
                lacks.append(f"{name}={forms!r} must have a form for each gender, {', '.join(self.genders)}")
        if {key.split()[0] for key in self.articles} != {"a", "the"}:
            lacks.append(f"articles are of {', '.join(self.articles)}; there must be a and the")
        if self.agreement and (
            set(self.agreement) != set(self.articles)
            or any(len(forms) != len(self.genders) for forms in self.agreement.values())
        ):
            lacks.append("agreement must have a digit for each gender and article")
        for kind, (count, slots) in SENTENCES.items():
            lines = self.sentences.get(kind, [])
            if len(set(lines)) != count:
                lacks.append(f"sentences[{kind!r}] must be {count} that differ, not {len(set(lines))}")
            for line in lines:
                if absent := slots - {name for _, name, _, _ in Formatter().parse(line)}:
                    lacks.append(f"sentence {line!r} of {kind} must have {{{'}, {'.join(sorted(absent))}}}")
        if lacks:
            raise ValueError(f"the table of {self.name} is not whole: " + "; ".join(lacks))


def listed(text: str) -> list[str]:
    """The entries of a table's line, which commas part."""
    return [entry.strip() for entry in " ".join(text.split()).split(",")]
