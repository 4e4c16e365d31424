"""What is said of a scene, in several languages, and the way back: captions, and what a caption says.

One grammar serves all languages; a `Language` is a table of words, endings and sentences (`mmflow.world.languages`),
and sentence i of a kind means the same in each. `content` decides what to say, `say` says it in a language, `read` is
the inverse of `say` and reads what it can of a text that is not quite right. A text has lower-case words, commas and
full stops; words may contain a hyphen or, in French and Italian, an apostrophe.

The last sentence of each kind is for the test part alone and the last but one for the validation part.
"""

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mmflow.world.languages.de import GERMAN
from mmflow.world.languages.en import ENGLISH
from mmflow.world.languages.es import SPANISH
from mmflow.world.languages.fr import FRENCH
from mmflow.world.languages.it import ITALIAN
from mmflow.world.languages.nl import DUTCH
from mmflow.world.languages.table import DOINGS, PLACES, RELATIONS, SENTENCES, Language, listed
from mmflow.world.scene import BACKGROUNDS, COLOURS, MOTIONS, ROWS, SHAPES, SIZES, SPLITS, STYLES, Scene, Thing, choose

HELD_OUT = {"validation": -2, "test": -1}  # places in each list of sentences
OWN_SHARE = 0.5  # of a split's sentences that are its own, where it holds one out
FAR = 0.1  # canvas widths that things are apart, at least, to be told as left of or above each other
IN_A_SENTENCE = 3  # things that a sentence lists at most
NAMING = (  # ways to name one thing, short ones first
    ("shape",), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape"), ("colour", "shape", "column"),
    ("size", "colour", "shape", "column"), ("size", "colour", "shape", "column", "row"),
)  # fmt: skip
LANGUAGES = {
    "en": ENGLISH, "de": GERMAN, "fr": FRENCH, "es": SPANISH, "it": ITALIAN, "nl": DUTCH
}  # fmt: skip


# ---- what to say


class Mention(NamedTuple):
    """A thing in a sentence.

    thing: its number in the scene. said: attributes of it that are said: size, colour, shape, column, row, motion.
    article: "a" or "the"."""

    thing: int
    said: tuple[str, ...]
    article: str


class Statement(NamedTuple):
    """A sentence in no language: its kind, which of them, its things, and the doing, relation, style or background."""

    kind: str
    number: int
    mentions: tuple[Mention, ...] = ()
    word: str = ""


class Content(NamedTuple):
    """What a caption says. unseen: whether training never has one of its sentences, or a pair of colour and shape."""

    statements: tuple[Statement, ...]
    unseen: bool


def content(
    scene: Scene, draw: np.random.Generator, split: str = "train", long: bool = False, simple: bool = False
) -> Content:
    """Decide what a caption says, and by which sentences of the split.

    A short one says one thing of one or more things of the scene. A long one tells all of them with all attributes,
    style and background, a relation, and in a scene that lasts what moves, sounds (in order) and flashes.

    Args:
        simple: say only "a big red circle on the left" (or "in the middle", "on the right") of one thing.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    if not scene.things:
        raise ValueError("the scene has no things to speak of; draw at least one")
    if simple:
        mention = Mention(int(draw.integers(len(scene.things))), ("size", "colour", "shape", "column"), "a")
        return Content((Statement("things", 0, (mention,)),), scene.unseen)
    parts = _long(scene, draw) if long else [_short(scene, draw)]
    statements = tuple(Statement(kind, _number(draw, kind, split), about, word) for kind, about, word in parts)
    return Content(statements, scene.unseen or any(_held_out(s) for s in statements))


_Part = tuple[str, tuple[Mention, ...], str]  # a statement before its sentence is chosen


def _short(scene: Scene, draw: np.random.Generator) -> _Part:
    numbers = range(len(scene.things))
    heard = _in_order(scene)
    pairs = _pairs(scene)
    possible = ["things", "things"]
    possible += ["relation"] * bool(pairs) + ["does"] * (scene.seconds > 0)
    possible += ["heard"] * bool(heard) + ["order"] * (len(heard) > 1)
    kind = choose(draw, possible)
    if kind == "things":
        told = [int(draw.integers(len(numbers)))] if draw.random() < 0.5 else list(numbers)[: IN_A_SENTENCE + 1]
        size, place, moving = draw.random() < 0.6, int(draw.integers(3)), draw.random() < 0.5
        mentions = []
        for number in told:
            thing = scene.things[number]
            said = [*["size"] * size, "colour", "shape", *["column", "row"][:place]]
            if said[-1] == "column" and thing.column == "middle":
                said.append("row")  # "in the middle" alone sounds like the centre
            said += ["motion"] * (moving and thing.motion != "still")
            mentions.append(Mention(number, tuple(said), "a"))
        return kind, tuple(mentions), ""
    if kind == "relation":
        pair = choose(draw, pairs)
        relation = _relation(scene, *pair)
        if draw.random() < 0.5:
            return kind, tuple(_the(scene, number) for number in pair), relation
        seen = ("size", "colour", "shape") if draw.random() < 0.5 else ("colour", "shape")
        return kind, tuple(Mention(number, seen, "a") for number in pair), relation
    if kind == "does":
        number = int(draw.integers(len(numbers)))
        return kind, (_the(scene, number),), scene.things[number].motion
    if kind == "heard":
        return kind, (_the(scene, choose(draw, heard)),), "heard"
    return kind, tuple(_the(scene, number) for number in heard), ""


def _long(scene: Scene, draw: np.random.Generator) -> list[_Part]:
    numbers = range(len(scene.things))
    everything = [Mention(number, ("size", "colour", "shape", "column", "row"), "a") for number in numbers]
    parts: list[_Part] = [
        ("also" if start else "things", tuple(everything[start : start + IN_A_SENTENCE]), "")
        for start in range(0, len(everything), IN_A_SENTENCE)
    ]
    parts += [("style", (), scene.style), ("background", (), scene.background.kind)]
    pairs = _pairs(scene)
    if pairs:
        pair = choose(draw, pairs)
        parts.append(("relation", tuple(_the(scene, number) for number in pair), _relation(scene, *pair)))
    if scene.seconds:
        parts += [("does", (_the(scene, number),), scene.things[number].motion) for number in numbers]
    heard = _in_order(scene)
    if heard:
        kind, word = ("order", "") if len(heard) > 1 else ("heard", "heard")
        parts.append((kind, tuple(_the(scene, number) for number in heard), word))
    flashing = [n for n in numbers if any(sound.seen for sound in scene.things[n].sounds)]
    return parts + [("does", (_the(scene, number),), "seen") for number in flashing]


def _the(scene: Scene, number: int) -> Mention:
    return Mention(number, _naming(scene.things[number], scene), "the")


def _naming(thing: Thing, scene: Scene) -> tuple[str, ...]:
    """The fewest attributes that no other thing of the scene has."""
    for said in NAMING:
        if sum(all(getattr(other, name) == getattr(thing, name) for name in said) for other in scene.things) == 1:
            break
    return said


def _in_order(scene: Scene) -> list[int]:
    """Numbers of the things that sound, in the order of their first sounds."""
    first = {
        number: min(sound.start for sound in thing.sounds if sound.heard)
        for number, thing in enumerate(scene.things)
        if any(sound.heard for sound in thing.sounds)
    }
    return sorted(first, key=lambda number: first[number])


def _apart(scene: Scene, number: int, other: int) -> dict[str, float]:
    """How far one thing is left of another, right of it, above it and below it."""
    a, b = scene.things[number], scene.things[other]
    return {name: dx * (a.x - b.x) + dy * (a.y - b.y) for name, (dx, dy) in RELATIONS.items()}


def _relation(scene: Scene, number: int, other: int) -> str:
    """How one thing lies to another: that in which they are farthest apart."""
    apart = _apart(scene, number, other)
    return max(apart, key=lambda name: apart[name])


def _pairs(scene: Scene) -> list[tuple[int, int]]:
    """Those things, both ways round, that are far enough apart to say how they lie."""
    both = itertools.permutations(range(len(scene.things)), 2)
    return [pair for pair in both if max(_apart(scene, *pair).values()) > FAR]


def _number(draw: np.random.Generator, kind: str, split: str) -> int:
    count, _ = SENTENCES[kind]
    if split in HELD_OUT and draw.random() < OWN_SHARE:
        return count + HELD_OUT[split]
    return int(draw.integers(count - len(HELD_OUT)))


def _held_out(statement: Statement) -> bool:
    return statement.number >= SENTENCES[statement.kind][0] - len(HELD_OUT)


# ---- saying it


def caption(
    scene: Scene,
    draw: np.random.Generator,
    language: str = "en",
    split: str = "train",
    long: bool = False,
    simple: bool = False,
) -> str:
    """A true description of the scene, see `content`. The same `draw` gives the same content in every language.

    Raises ValueError for an unknown language or split, and for a scene without things.
    """
    grammar(language)
    return say(content(scene, draw, split, long, simple), scene, language)


def say(content: Content, scene: Scene, language: str = "en") -> str:
    """The caption with this content: one sentence without a full stop, or several that each end with one."""
    own = grammar(language)
    spoken = [own.sentence(statement, scene) for statement in content.statements]
    return spoken[0] if len(spoken) == 1 else ". ".join(spoken) + "."


def phrase(thing: Thing, scene: Scene, language: str = "en", case: str = "nom") -> str:
    """The shortest noun phrase that names one thing of the scene: "the circle", "the big red circle on the left".

    Where another thing is alike in all that can be said, it is the longest. case: nom, acc or dat, for German.
    """
    own = grammar(language)
    return own.join(own.noun_phrase(thing, _naming(thing, scene), "the", case))


@cache
def grammar(language: str) -> "_Grammar":
    """The grammar of a language. ValueError for one that is not known."""
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r} is not spoken here; take one of {', '.join(LANGUAGES)}")
    return _Grammar(LANGUAGES[language])


def words(language: str = "en") -> list[str]:
    """Every word of the language's captions, sorted. Words are as `tokens` parts them."""
    return sorted(grammar(language).vocabulary)


def tokens(text: str) -> list[str]:
    """Its words, commas and full stops. What ends with an apostrophe is a word by itself: l' anneau.

    Whatever else ends a sentence, also a new line, is a full stop.
    """
    text = unicodedata.normalize("NFC", text.lower()).replace("’", "'")
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*'?|[.,]", re.sub(r"[!?;:\n]+", ".", text))


class _Things:
    """Noun phrases as a sentence's slot: {0} or {0:acc}, or {0:is|are} by their number."""

    def __init__(self, own: "_Grammar", scene: Scene, mentions: Sequence[Mention], then: bool = False) -> None:
        self.own, self.scene, self.mentions, self.then = own, scene, mentions, then

    def __format__(self, spec: str) -> str:
        if "|" in spec:
            return spec.split("|")[len(self.mentions) > 1]
        said = [self.own.noun_phrase(self.scene.things[m.thing], m.said, m.article, spec) for m in self.mentions]
        if self.then:
            return "".join(f", {self.own.language.then} {one}" for one in said)
        return ", ".join(said[:-1]) + f" {self.own.language.conjunction} " * (len(said) > 1) + said[-1]


class _Grammar:
    """A language's tables taken apart, for saying and for reading."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self.noun = dict(zip(SHAPES, (entry.split() for entry in listed(language.shapes)), strict=True))
        self.size = dict(zip(SIZES, (entry.split() for entry in listed(language.sizes)), strict=True))
        self.colour = dict(zip(COLOURS, (entry.split() for entry in listed(language.colours)), strict=True))
        self.place = dict(zip(PLACES, listed(language.places), strict=True))
        clauses = [[clause.strip() for clause in entry.split("|")] for entry in listed(language.doings)]
        self.main = {doing: forms[0] for doing, forms in zip(DOINGS, clauses, strict=True)}
        self.sub = {doing: forms[-1] for doing, forms in zip(DOINGS, clauses, strict=True)}
        self.relation = dict(zip(RELATIONS, listed(language.relations), strict=True))
        self.word = dict(zip(STYLES, listed(language.styles), strict=True)) | dict(
            zip(BACKGROUNDS, listed(language.backgrounds), strict=True)
        )
        phrases = self._phrases()
        self.lexicon = {_alike(self.part(spoken)): said for spoken, said in phrases}
        self.longest = max(map(len, self.lexicon))
        self.vocabulary = {word for spoken, _ in phrases for word in self.part(spoken)}
        self.vocabulary |= {t for lines in language.sentences.values() for line in lines for t in self._literal(line)}
        self.vocabulary |= {*language.parted, language.conjunction}
        self.known = {*_alike(self.vocabulary)}
        self.denials = {*_alike(language.denials.split())}

    # saying

    def sentence(self, statement: Statement, scene: Scene) -> str:
        kind, number, mentions, word = statement
        line = self.language.sentences[kind][number]
        if kind in ("things", "also"):
            slots = [_Things(self, scene, mentions)]
        else:
            slots = [_Things(self, scene, [mention]) for mention in mentions]
        named = {"main": self.main.get(word, ""), "sub": self.sub.get(word, ""), "word": self.word.get(word, "")}
        rest = _Things(self, scene, mentions[1:], then=True)
        return self.join(line.format(*slots, relation=self.relation.get(word, ""), rest=rest, **named))

    def noun_phrase(self, thing: Thing, said: Sequence[str], article: str, case: str = "") -> str:
        own = self.language
        noun, *gender = self.noun[thing.shape]
        g = own.genders.index(gender[0]) if gender else 0
        key = article if article in own.articles else f"{article} {case or 'nom'}"
        form = int(own.agreement[key][g]) if own.agreement else 0
        parts = {
            "article": own.articles[key].split()[g],
            "noun": noun,
            "size": self.size[thing.size][form % len(self.size[thing.size])] if "size" in said else "",
            "colour": self.colour[thing.colour][form % len(self.colour[thing.colour])] if "colour" in said else "",
        }
        place = " ".join(getattr(thing, name) for name in ("row", "column") if name in said)
        spoken = own.order.format(**parts) + " " + self.place.get(place, "")
        if "motion" in said:
            spoken += " " + own.relative.format(that=own.that.split()[g], doing=self.sub[thing.motion])
        return " ".join(spoken.split())

    def join(self, text: str) -> str:
        """Words drawn together and commas in their places, as it is written."""
        for pattern, replacement in self.language.joined:
            text = re.sub(pattern, replacement, text)
        return re.sub(r"[ ,]*,", ",", text).rstrip(", ")

    # reading

    def part(self, text: str) -> list[str]:
        """Its tokens, those that were drawn together as they were before."""
        return [word for token in tokens(text) for word in self.language.parted.get(token, token).split()]

    def _literal(self, line: str) -> list[str]:
        """The words of a sentence, also those of its choices, without its slots."""
        return [t for t in self.part(re.sub(r"{\d:(.*?)\|(.*?)}|{.*?}", r" \1 \2 ", line)) if t not in ",."]

    def _phrases(self) -> list[tuple[str, dict[str, Any]]]:
        """Words that belong together, and what they say."""
        own = self.language
        entries: list[tuple[str, dict[str, Any]]] = []
        for kind in ("heard", "order"):
            for line in own.sentences[kind]:
                entries += [(piece, {"heard": True}) for piece in re.split(r"{.*?}", line) if piece.strip()]
        entries.append((own.then, {"order": True}))
        for key, forms in own.articles.items():
            entries += [(form, {"article": key.split()[0]}) for form in forms.split()]
        entries += [(noun[0], {"shape": shape}) for shape, noun in self.noun.items()]
        for name, table in (("size", self.size), ("colour", self.colour)):
            entries += [(form, {name: value}) for value, forms in table.items() for form in forms]
        for place, spoken in self.place.items():
            entries.append((spoken, {("row" if name in ROWS else "column"): name for name in place.split()}))
        for doing in DOINGS:
            said: dict[str, Any] = {"motion": doing} if doing in MOTIONS else {doing: True}
            spoken_ways = [self.main[doing], self.sub[doing]]
            spoken_ways += [f"{that} {self.sub[doing]}" for that in own.that.split()]
            entries += [(spoken, said) for spoken in spoken_ways]
        entries += [(spoken, {"relation": relation}) for relation, spoken in self.relation.items()]
        for name, values in (("style", STYLES), ("background", BACKGROUNDS)):
            entries += [(self.word[value], {name: value}) for value in values]
        return entries

    def marks(self, sentence: Sequence[str]) -> list[dict[str, Any]] | None:
        """What is said by a sentence's words, in order; the longest entries first. None for one that denies it."""
        found, start = [], 0
        while start < len(sentence):
            for length in range(min(self.longest, len(sentence) - start), 0, -1):
                if said := self.lexicon.get(tuple(sentence[start : start + length])):
                    found.append(said)
                    break
            else:
                if sentence[start] in self.denials:
                    return None
            start += length
        return found


def _alike(words: Iterable[str]) -> tuple[str, ...]:
    """As they are where a language's capitals are: groß as GROSS."""
    return tuple(word.casefold() for word in words)


# ---- reading it

CONTRADICTED = "contradicted"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says.

    Attributes:
        things: what is said of each, in the order they are mentioned: shape, colour, size, column, row, motion; heard
            and seen (true); order, its place (from 1) among those that sound; left_of, right_of, above, below (numbers
            of other things in this list).
        scene: style and background, if told; CONTRADICTED, as what is said of a thing, if told twice and not alike.
        unknown: words that no caption has, and all of a sentence that says something is not so, which is not read.
    """

    things: list[dict[str, Any]]
    scene: dict[str, str]
    unknown: list[str]


def parse(text: str, language: str = "en") -> list[dict[str, Any]]:
    """What a text says of each thing; the things of `read`."""
    return read(text, language).things


def read(text: str, language: str = "en") -> Reading:
    """What a text says. Of one with slips, what could be read; the inverse of `caption` for those that it makes.

    What begins with "the" is a thing that was mentioned before, if one fits. Raises ValueError for an unknown language.
    """
    own = grammar(language)
    parted = [token for token in own.part(text) if token != ","]
    reading = Reading([], {}, [])
    for stop, group in itertools.groupby(parted, key=lambda token: token == "."):
        if stop:
            continue
        sentence = _alike(group)
        marks = own.marks(sentence)
        reading.unknown.extend(word for word in sentence if marks is None or word not in own.known)
        if marks:
            _understand(marks, reading)
    return reading


def _understand(marks: Sequence[dict[str, Any]], reading: Reading) -> None:
    """Add what a sentence says to the reading."""
    mentions: list[dict[str, Any]] = []
    articles: list[str | None] = []
    relations: list[tuple[str, int]] = []  # and how many things were mentioned before
    ahead: dict[str, Any] = {}  # said before the thing it is about
    article, fresh, ordered = None, True, False
    for mark in marks:
        if "article" in mark:
            article, fresh = mark["article"], True
        elif "relation" in mark:
            relations.append((mark["relation"], len(mentions)))
            fresh = True
        elif "order" in mark:
            ordered = True
        elif "style" in mark or "background" in mark:
            _tell(reading.scene, mark)
        elif not {"shape", "colour", "size"} & set(mark):
            _tell(mentions[-1] if mentions else ahead, mark)
        else:
            if fresh or any(mentions[-1].get(name, value) != value for name, value in mark.items()):
                mentions.append(ahead)
                articles.append(article)
                ahead, article, fresh = {}, None, False
            mentions[-1].update(mark)
    numbers: list[int] = []
    taken: set[int] = set()
    for mention, article in zip(mentions, articles, strict=True):
        number = _same(mention, reading.things, taken) if article != "a" else len(reading.things)
        numbers.append(number)
        taken.add(number)
        if number == len(reading.things):
            reading.things.append({})
        reading.things[number].update(mention)
    for relation, before in relations:
        subject, other = (before - 1, before) if before else (1, 0)
        if max(subject, other) < len(numbers):
            said = reading.things[numbers[subject]].setdefault(relation, [])
            said.append(numbers[other])
    if ordered:
        for place, number in enumerate(numbers, 1):
            _tell(reading.things[number], {"heard": True, "order": place})


def _tell(known: dict[str, Any], said: dict[str, Any]) -> None:
    """Add what is said; what is said twice, and not alike, is true in neither way."""
    for name, value in said.items():
        known[name] = value if known.get(name, value) == value else CONTRADICTED


def _same(mention: dict[str, Any], things: Sequence[dict[str, Any]], taken: Collection[int]) -> int:
    """The number of the thing that a mention is about: the most alike of those that it fits, or a new one."""
    alike = {
        number: sum(thing.get(name) == value for name, value in mention.items())
        for number, thing in enumerate(things)
        if number not in taken and all(thing.get(name, value) == value for name, value in mention.items())
    }
    return max(alike, key=lambda number: (alike[number], -number)) if any(alike.values()) else len(things)


# ---- scoring it


def score(text: str, scene: Scene, language: str = "en") -> dict[str, Any]:
    """How true a text is of a scene.

    Each thing it mentions is taken for the thing of the scene that most of it is true of, if at least half is, and none
    is taken twice.

    Returns right (share of the attributes said that are true, 0.0 where none is said), said (how many), missed (numbers
    of the scene's things that are not mentioned), invented (how many things are mentioned that are not there), unknown
    (words that no caption has, and those of sentences that deny something).
    """
    reading = read(text, language)
    true = [_truth(scene, number) for number in range(len(scene.things))]
    fits = {}  # share of what is said that is true, and how much is: who says more chooses first
    for told, thing in enumerate(reading.things):
        plain = {name: value for name, value in thing.items() if name in PLAIN}
        for number, truth in enumerate(true):
            fitting = sum(truth[name] == value for name, value in plain.items())
            fits[told, number] = (fitting / max(len(plain), 1), fitting)
    meant: dict[int, int] = {}
    for told, number in sorted(fits, key=lambda pair: fits[pair], reverse=True):
        if fits[told, number][0] >= 0.5 and told not in meant and number not in meant.values():
            meant[told] = number
    right = said = 0
    for told, thing in enumerate(reading.things):
        for name, value in thing.items():
            if name in RELATIONS:
                said += len(value)
                known = [meant[other] for other in value if told in meant and other in meant]
                right += sum(_apart(scene, meant[told], other)[name] > 0 for other in known)
            else:
                said += 1
                right += told in meant and true[meant[told]].get(name) == value
    said += len(reading.scene)
    right += sum(value == {"style": scene.style, "background": scene.background.kind}[name]
                 for name, value in reading.scene.items())  # fmt: skip
    return {
        "right": right / said if said else 0.0,
        "said": said,
        "missed": [number for number in range(len(true)) if number not in meant.values()],
        "invented": len(reading.things) - len(meant),
        "unknown": reading.unknown,
    }


PLAIN = ("shape", "colour", "size", "column", "row", "motion")


def _truth(scene: Scene, number: int) -> dict[str, Any]:
    thing, order = scene.things[number], _in_order(scene)
    truth = {name: getattr(thing, name) for name in PLAIN}
    truth |= {name: True for name in ("heard", "seen") if any(getattr(sound, name) for sound in thing.sounds)}
    return truth | ({"order": order.index(number) + 1} if number in order else {})
