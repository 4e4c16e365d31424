"""What is said of a scene, in several languages, and the way back: captions, and what a caption says.

One grammar serves all languages; a `Language` is a table of words, endings and sentences, and sentence i of a kind
means the same in each. `content` decides what to say, `say` says it in a language, `read` is the inverse of `say` and
reads what it can of a text that is not quite right. A text has lower-case words, commas and full stops; words may
contain a hyphen or, in French and Italian, an apostrophe.

The last sentence of each kind is for the test part alone and the last but one for the validation part.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mmflow.world.scene import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    MOTIONS,
    ROWS,
    SHAPES,
    SIZES,
    SPLITS,
    STYLES,
    Scene,
    Thing,
    choose,
)

HELD_OUT = {"validation": -2, "test": -1}  # places in each list of sentences
OWN_SHARE = 0.5  # of a split's sentences that are its own, where it holds one out

PLACES = (
    "left", "middle", "right", "top", "bottom", *(f"{row} {column}" for row in ROWS for column in COLUMNS)
)  # fmt: skip
DOINGS = (*MOTIONS, "heard", "seen")
RELATIONS = {"left_of": (-1, 0), "right_of": (1, 0), "above": (0, -1), "below": (0, 1)}
FAR = 0.1  # canvas widths that things are apart, at least, to be told as left of or above each other
KINDS = ("things", "also", "relation", "does", "heard", "order", "style", "background")
IN_A_SENTENCE = 3  # things that a sentence lists at most
NAMING = (  # ways to name one thing, short ones first
    ("shape",), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape"), ("colour", "shape", "column"),
    ("size", "colour", "shape", "column"), ("size", "colour", "shape", "column", "row"),
)  # fmt: skip


@dataclass(frozen=True)
class Language:
    """The words of a language. What is separated by commas is in the order of the constants that the scene is told by.

    Attributes:
        name: its name in English.
        genders: letters, in the order of all that has one entry for each gender.
        articles: "a" and "the", in German followed by the case -> article of each gender.
        agreement: the same -> number of an adjective's form for each gender.
        shapes: noun and, where there are several, its gender.
        sizes, colours: forms of each, one if there is only one.
        order: of a noun phrase.
        places: of PLACES.
        doings: verbs of DOINGS, in German and Dutch in a main clause and, after "|", in a subordinate one.
        that: relative pronoun of each gender. relative: a relative clause with it.
        relations: of RELATIONS. styles, backgrounds: words of each.
        conjunction: "and". then: before what is heard next.
        joined: (pattern, replacement) that spoken words are drawn together by, in order.
        parted: such a word -> what it was.
        sentences: kind of KINDS -> sentences. {0}, {1} are noun phrases, with their case in German; {0:x|y} is x for
            one thing, y for several.
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
    sentences: dict[str, list[str]]
    genders: str = "x"
    agreement: dict[str, str] = field(default_factory=dict)
    relative: str = "{that} {doing}"
    joined: tuple[tuple[str, str], ...] = ()
    parted: dict[str, str] = field(default_factory=dict)


def _declined(stems: str) -> str:
    return ", ".join(" ".join(stem + ending for ending in ("e", "er", "es", "en")) for stem in stems.split())


LANGUAGES = {
    "en": Language(
        name="English",
        articles={"a": "a", "the": "the"},
        shapes="circle, square, triangle, cross, ring, diamond",
        sizes="small, big",
        colours="red, green, blue, yellow, purple, cyan, orange, white",
        order="{article} {size} {colour} {noun}",
        places="""on the left, in the middle, on the right, at the top, at the bottom,
            at the top left, at the top in the middle, at the top right,
            on the left at mid height, in the centre, on the right at mid height,
            at the bottom left, at the bottom in the middle, at the bottom right""",
        doings="""does not move, moves to the left, moves to the right, moves up, moves down, makes a sound, flashes""",
        that="that",
        relations="to the left of, to the right of, above, below",
        styles="in flat colours, in outline, with shading, with stripes",
        backgrounds="plain, a gradient, noisy, checked",
        conjunction="and",
        then="then",
        joined=((r"\ba (?=[aeiou])", "an "),),
        parted={"an": "a"},
        sentences={
            "things": [
                "{0}", "there is {0}", "the picture shows {0}", "you can see {0}", "in the picture there is {0}",
                "here we have {0}",
            ],
            "also": ["there is also {0}", "you can also see {0}", "in addition there is {0}", "we also have {0}"],
            "relation": [
                "{0} is {relation} {1}", "you can see {0} {relation} {1}", "{relation} {1} is {0}",
                "{0} can be found {relation} {1}",
            ],
            "does": ["{0} {main}", "you can see that {0} {sub}", "we see how {0} {sub}", "notice that {0} {sub}"],
            "heard": ["{0} {main}", "you can hear {0}", "a sound comes from {0}", "{0} can be heard"],
            "order": [
                "first {0} makes a sound{rest}", "first you hear {0}{rest}", "at the beginning you hear {0}{rest}",
                "{0} is heard first{rest}",
            ],
            "style": ["everything is drawn {word}", "all shapes are drawn {word}", "the shapes appear {word}"],
            "background": [
                "the background is {word}", "the canvas is {word}", "behind the shapes the background is {word}"
            ],
        },
    ),
    "de": Language(
        name="German",
        genders="mfn",
        articles={
            "a nom": "ein eine ein", "a acc": "einen eine ein", "a dat": "einem einer einem",
            "the nom": "der die das", "the acc": "den die das", "the dat": "dem der dem",
        },
        agreement={
            "a nom": "102", "a acc": "302", "a dat": "333", "the nom": "000", "the acc": "300", "the dat": "333"
        },
        shapes="kreis m, quadrat n, dreieck n, kreuz n, ring m, raute f",
        sizes=_declined("klein groß"),
        colours=_declined("rot grün blau gelb violett türkisfarben orangefarben weiß"),
        order="{article} {size} {colour} {noun}",
        places="""links, in der mitte, rechts, oben, unten,
            oben links, oben in der mitte, oben rechts,
            links auf halber höhe, genau in der mitte, rechts auf halber höhe,
            unten links, unten in der mitte, unten rechts""",
        doings="""bewegt sich nicht | sich nicht bewegt, bewegt sich nach links | sich nach links bewegt,
            bewegt sich nach rechts | sich nach rechts bewegt, bewegt sich nach oben | sich nach oben bewegt,
            bewegt sich nach unten | sich nach unten bewegt, gibt einen ton von sich | einen ton von sich gibt,
            leuchtet auf | aufleuchtet""",
        that="der die das",
        relative=", {that} {doing},",
        relations="links von, rechts von, über, unter",
        styles="flächig, im umriss, schattiert, gestreift",
        backgrounds="einfarbig, ein farbverlauf, körnig, kariert",
        conjunction="und",
        then="dann",
        joined=((r"\bvon dem\b", "vom"),),
        parted={"vom": "von dem"},
        sentences={
            "things": [
                "{0}", "es gibt {0:acc}", "das bild zeigt {0:acc}", "man sieht {0:acc}",
                "auf dem bild sieht man {0:acc}", "hier haben wir {0:acc}",
            ],
            "also": [
                "außerdem gibt es {0:acc}", "man sieht auch {0:acc}", "dazu gibt es {0:acc}",
                "ferner haben wir {0:acc}",
            ],
            "relation": [
                "{0} ist {relation} {1:dat}", "man sieht {0:acc} {relation} {1:dat}", "{relation} {1:dat} ist {0}",
                "{0} befindet sich {relation} {1:dat}",
            ],
            "does": ["{0} {main}", "man sieht, dass {0} {sub}", "wir sehen, wie {0} {sub}", "beachte, dass {0} {sub}"],
            "heard": ["{0} {main}", "man hört {0:acc}", "ein ton kommt von {0:dat}", "{0} ist zu hören"],
            "order": [
                "zuerst ertönt {0}{rest}", "zuerst hört man {0:acc}{rest:acc}", "am anfang hört man {0:acc}{rest:acc}",
                "{0} ist zuerst zu hören{rest}",
            ],
            "style": [
                "alles ist {word} gezeichnet", "alle formen sind {word} gezeichnet", "die formen erscheinen {word}"
            ],
            "background": [
                "der hintergrund ist {word}", "die leinwand ist {word}", "hinter den formen ist der hintergrund {word}"
            ],
        },
    ),
    "fr": Language(
        name="French",
        genders="mf",
        articles={"a": "un une", "the": "le la"},
        agreement={"a": "01", "the": "01"},
        shapes="cercle m, carré m, triangle m, croix f, anneau m, losange m",
        sizes="petit petite, grand grande",
        colours="rouge, vert verte, bleu bleue, jaune, violet violette, cyan, orange, blanc blanche",
        order="{article} {size} {noun} {colour}",
        places="""à gauche, au milieu, à droite, en haut, en bas,
            en haut à gauche, en haut au milieu, en haut à droite,
            à gauche à mi-hauteur, au centre, à droite à mi-hauteur,
            en bas à gauche, en bas au milieu, en bas à droite""",
        doings="""ne bouge pas, se déplace vers la gauche, se déplace vers la droite, se déplace vers le haut,
            se déplace vers le bas, émet un son, clignote""",
        that="qui qui",
        relations="à gauche de, à droite de, au-dessus de, en dessous de",
        styles="en aplat, en contour, avec des ombres, avec des rayures",
        backgrounds="uni, en dégradé, granuleux, en damier",
        conjunction="et",
        then="puis",
        joined=((r"\b(le|la) (?=[aeiou])", "l'"), (r"\bde le\b", "du"), (r"\bde (?=une?\b)", "d'")),
        parted={"l'": "le", "du": "de le", "d'": "de"},
        sentences={
            "things": [
                "{0}", "il y a {0}", "l'image montre {0}", "on voit {0}", "sur cette image il y a {0}",
                "ici nous avons {0}",
            ],
            "also": ["il y a aussi {0}", "on voit aussi {0}", "de plus il y a {0}", "nous avons aussi {0}"],
            "relation": [
                "{0} est {relation} {1}", "on voit {0} {relation} {1}", "{relation} {1} se trouve {0}",
                "{0} se situe {relation} {1}",
            ],
            "does": ["{0} {main}", "on voit que {0} {sub}", "nous voyons que {0} {sub}", "remarquez que {0} {sub}"],
            "heard": ["{0} {main}", "on entend {0}", "un son vient de {0}", "{0} se fait entendre"],
            "order": [
                "d'abord {0} émet un son{rest}", "on entend d'abord {0}{rest}", "au début on entend {0}{rest}",
                "{0} se fait entendre en premier{rest}",
            ],
            "style": [
                "tout est dessiné {word}", "toutes les formes sont dessinées {word}", "les formes apparaissent {word}"
            ],
            "background": [
                "le fond est {word}", "l'arrière-plan est {word}", "derrière les formes le fond est {word}"
            ],
        },
    ),
    "es": Language(
        name="Spanish",
        genders="mf",
        articles={"a": "un una", "the": "el la"},
        agreement={"a": "01", "the": "01"},
        shapes="círculo m, cuadrado m, triángulo m, cruz f, anillo m, rombo m",
        sizes="pequeño pequeña, grande",
        colours="rojo roja, verde, azul, amarillo amarilla, morado morada, cian, naranja, blanco blanca",
        order="{article} {noun} {colour} {size}",
        places="""a la izquierda, en el medio, a la derecha, arriba, abajo,
            arriba a la izquierda, arriba en el medio, arriba a la derecha,
            a la izquierda a media altura, en el centro, a la derecha a media altura,
            abajo a la izquierda, abajo en el medio, abajo a la derecha""",
        doings="""no se mueve, se mueve hacia la izquierda, se mueve hacia la derecha, se mueve hacia arriba,
            se mueve hacia abajo, emite un sonido, destella""",
        that="que que",
        relations="a la izquierda de, a la derecha de, por encima de, por debajo de",
        styles="con colores planos, solo con contornos, con sombras, con rayas",
        backgrounds="liso, un degradado, granulado, de cuadros",
        conjunction="y",
        then="luego",
        joined=((r"\bde el\b", "del"),),
        parted={"del": "de el"},
        sentences={
            "things": [
                "{0}", "hay {0}", "la imagen muestra {0}", "podemos ver {0}", "en la imagen hay {0}",
                "aquí tenemos {0}",
            ],
            "also": ["también hay {0}", "también podemos ver {0}", "además hay {0}", "también tenemos {0}"],
            "relation": [
                "{0} está {relation} {1}", "podemos ver {0} {relation} {1}", "{relation} {1} se encuentra {0}",
                "{0} se sitúa {relation} {1}",
            ],
            "does": ["{0} {main}", "se ve que {0} {sub}", "vemos cómo {0} {sub}", "fíjate en que {0} {sub}"],
            "heard": ["{0} {main}", "se oye {0}", "un sonido viene de {0}", "podemos oír {0}"],
            "order": [
                "primero suena {0}{rest}", "primero se oye {0}{rest}", "al principio se oye {0}{rest}",
                "{0} suena primero{rest}",
            ],
            "style": [
                "todo está dibujado {word}", "todas las formas están dibujadas {word}", "las formas aparecen {word}"
            ],
            "background": ["el fondo es {word}", "el lienzo es {word}", "detrás de las formas el fondo es {word}"],
        },
    ),
    "it": Language(
        name="Italian",
        genders="mf",
        articles={"a": "un una", "the": "il la"},
        agreement={"a": "01", "the": "01"},
        shapes="cerchio m, quadrato m, triangolo m, croce f, anello m, rombo m",
        sizes="piccolo piccola, grande",
        colours="rosso rossa, verde, blu, giallo gialla, viola, ciano, arancione, bianco bianca",
        order="{article} {size} {noun} {colour}",
        places="""a sinistra, in mezzo, a destra, in alto, in basso,
            in alto a sinistra, in alto al centro, in alto a destra,
            a sinistra a metà altezza, al centro, a destra a metà altezza,
            in basso a sinistra, in basso al centro, in basso a destra""",
        doings="""non si muove, si muove verso sinistra, si muove verso destra, si muove verso l'alto,
            si muove verso il basso, emette un suono, lampeggia""",
        that="che che",
        relations="a sinistra di, a destra di, sopra, sotto",
        styles="con colori piatti, solo con il contorno, con ombre, a strisce",
        backgrounds="uniforme, sfumato, granuloso, a scacchi",
        conjunction="e",
        then="poi",
        joined=(
            (r"\b(il|la) (?=[aeiou])", "l'"), (r"\bdi il\b", "del"), (r"\bdi l(?='|a\b)", "dell"),
            (r"\bda il\b", "dal"), (r"\bda l(?='|a\b)", "dall"),
        ),
        parted={
            "l'": "il", "del": "di il", "dell'": "di il", "della": "di la", "dal": "da il", "dall'": "da il",
            "dalla": "da la",
        },
        sentences={
            "things": [
                "{0}", "{0:c'è|ci sono} {0}", "la figura mostra {0}", "{0:si vede|si vedono} {0}",
                "nella figura {0:c'è|ci sono} {0}", "qui abbiamo {0}",
            ],
            "also": [
                "{0:c'è|ci sono} anche {0}", "{0:si vede|si vedono} anche {0}", "inoltre {0:c'è|ci sono} {0}",
                "abbiamo anche {0}",
            ],
            "relation": [
                "{0} è {relation} {1}", "si vede {0} {relation} {1}", "{relation} {1} c'è {0}",
                "{0} si trova {relation} {1}",
            ],
            "does": ["{0} {main}", "si vede che {0} {sub}", "vediamo che {0} {sub}", "nota che {0} {sub}"],
            "heard": ["{0} {main}", "si sente {0}", "un suono viene da {0}", "{0} si fa sentire"],
            "order": [
                "prima suona {0}{rest}", "prima si sente {0}{rest}", "all'inizio si sente {0}{rest}",
                "per cominciare suona {0}{rest}",
            ],
            "style": [
                "tutto è disegnato {word}", "tutte le forme sono disegnate {word}", "le forme appaiono {word}"
            ],
            "background": ["lo sfondo è {word}", "il fondo è {word}", "dietro le forme lo sfondo è {word}"],
        },
    ),
    "nl": Language(
        name="Dutch",
        genders="cn",
        articles={"a": "een een", "the": "de het"},
        agreement={"a": "01", "the": "00"},
        shapes="cirkel c, vierkant n, driehoek c, kruis n, ring c, ruit c",
        sizes="kleine klein, grote groot",
        colours="rode rood, groene groen, blauwe blauw, gele geel, paarse paars, turquoise, oranje, witte wit",
        order="{article} {size} {colour} {noun}",
        places="""links, in het midden, rechts, bovenaan, onderaan,
            linksboven, bovenaan in het midden, rechtsboven,
            links op halve hoogte, precies in het midden, rechts op halve hoogte,
            linksonder, onderaan in het midden, rechtsonder""",
        doings="""beweegt niet | niet beweegt, beweegt naar links | naar links beweegt,
            beweegt naar rechts | naar rechts beweegt, beweegt naar boven | naar boven beweegt,
            beweegt naar beneden | naar beneden beweegt, maakt een geluid | een geluid maakt, licht op | oplicht""",
        that="die dat",
        relations="links van, rechts van, boven, onder",
        styles="in vlakke kleuren, alleen in omtrek, met schaduw, met strepen",
        backgrounds="effen, een kleurverloop, korrelig, geruit",
        conjunction="en",
        then="dan",
        sentences={
            "things": [
                "{0}", "{0:er is|er zijn} {0}", "de afbeelding toont {0}", "je ziet {0}",
                "op de afbeelding {0:staat|staan} {0}", "hier hebben we {0}",
            ],
            "also": [
                "{0:er is|er zijn} ook {0}", "je ziet ook {0}", "daarnaast zie je {0}", "verder hebben we {0}"
            ],
            "relation": [
                "{0} is {relation} {1}", "je ziet {0} {relation} {1}", "{relation} {1} staat {0}",
                "{0} bevindt zich {relation} {1}",
            ],
            "does": ["{0} {main}", "je ziet dat {0} {sub}", "we zien hoe {0} {sub}", "merk op dat {0} {sub}"],
            "heard": ["{0} {main}", "je hoort {0}", "een geluid komt van {0}", "{0} is te horen"],
            "order": [
                "eerst klinkt {0}{rest}", "eerst hoor je {0}{rest}", "in het begin hoor je {0}{rest}",
                "{0} is het eerst te horen{rest}",
            ],
            "style": ["alles is {word} getekend", "alle vormen zijn {word} getekend", "de vormen zijn {word} te zien"],
            "background": [
                "de achtergrond is {word}", "het doek is {word}", "achter de vormen is de achtergrond {word}"
            ],
        },
    ),
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
    count = len(LANGUAGES["en"].sentences[kind])
    if split in HELD_OUT and draw.random() < OWN_SHARE:
        return count + HELD_OUT[split]
    return int(draw.integers(count - len(HELD_OUT)))


def _held_out(statement: Statement) -> bool:
    return statement.number >= len(LANGUAGES["en"].sentences[statement.kind]) - len(HELD_OUT)


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
    """Its words, commas and full stops. What ends with an apostrophe is a word by itself: l' anneau."""
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*'?|[.,]", text.lower().replace("’", "'"))


def _listed(text: str) -> list[str]:
    return [entry.strip() for entry in " ".join(text.split()).split(",")]


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
        self.noun = dict(zip(SHAPES, (entry.split() for entry in _listed(language.shapes)), strict=True))
        self.size = dict(zip(SIZES, (entry.split() for entry in _listed(language.sizes)), strict=True))
        self.colour = dict(zip(COLOURS, (entry.split() for entry in _listed(language.colours)), strict=True))
        self.place = dict(zip(PLACES, _listed(language.places), strict=True))
        clauses = [[clause.strip() for clause in entry.split("|")] for entry in _listed(language.doings)]
        self.main = {doing: forms[0] for doing, forms in zip(DOINGS, clauses, strict=True)}
        self.sub = {doing: forms[-1] for doing, forms in zip(DOINGS, clauses, strict=True)}
        self.relation = dict(zip(RELATIONS, _listed(language.relations), strict=True))
        self.word = dict(zip(STYLES, _listed(language.styles), strict=True)) | dict(
            zip(BACKGROUNDS, _listed(language.backgrounds), strict=True)
        )
        self.lexicon = self._lexicon()
        self.longest = max(map(len, self.lexicon))
        known = {word for entry in self.lexicon for word in entry}
        known |= {t for lines in language.sentences.values() for line in lines for t in self._literal(line)}
        self.vocabulary = known | set(language.parted) | {language.conjunction}

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

    def _lexicon(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """What is said by words that belong together."""
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
        return {tuple(self.part(spoken)): said for spoken, said in entries}

    def marks(self, sentence: Sequence[str]) -> list[dict[str, Any]]:
        """What is said by a sentence's words, in order; the longest entries first."""
        found, start = [], 0
        while start < len(sentence):
            for length in range(min(self.longest, len(sentence) - start), 0, -1):
                if said := self.lexicon.get(tuple(sentence[start : start + length])):
                    found.append(said)
                    break
            start += length
        return found


# ---- reading it


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says.

    Attributes:
        things: what is said of each, in the order they are mentioned: shape, colour, size, column, row, motion; heard
            and seen (true); order, its place (from 1) among those that sound; left_of, right_of, above, below (numbers
            of other things in this list).
        scene: style and background, if told.
        unknown: words that no caption has.
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
    reading = Reading([], {}, [token for token in parted if token != "." and token not in own.vocabulary])
    for stop, sentence in itertools.groupby(parted, key=lambda token: token == "."):
        if not stop:
            _understand(own.marks(list(sentence)), reading)
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
            reading.scene.update(mark)
        elif fresh and not {"shape", "colour", "size"} & set(mark):
            (mentions[-1] if mentions else ahead).update(mark)
        else:
            if fresh or any(mentions[-1].get(name, value) != value for name, value in mark.items()):
                mentions.append(ahead)
                articles.append(article)
                ahead, article, fresh = {}, None, False
            mentions[-1].update(mark)
    numbers: list[int] = []
    for mention, article in zip(mentions, articles, strict=True):
        numbers.append(_same(mention, reading.things, numbers) if article != "a" else len(reading.things))
        if numbers[-1] == len(reading.things):
            reading.things.append({})
        reading.things[numbers[-1]].update(mention)
    for relation, before in relations:
        subject, other = (before - 1, before) if before else (1, 0)
        if max(subject, other) < len(numbers):
            said = reading.things[numbers[subject]].setdefault(relation, [])
            said.append(numbers[other])
    if ordered:
        for place, number in enumerate(numbers, 1):
            reading.things[number].update(heard=True, order=place)


def _same(mention: dict[str, Any], things: Sequence[dict[str, Any]], taken: Sequence[int]) -> int:
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

    Returns right (share of the attributes said that are true, 1.0 where none is said), said (how many), missed (numbers
    of the scene's things that are not mentioned), invented (how many things are mentioned that are not there), unknown
    (words that no caption has).
    """
    reading = read(text, language)
    true = [_truth(scene, number) for number in range(len(scene.things))]
    share = {
        (told, number): sum(truth.get(name) == value for name, value in thing.items() if name in PLAIN)
        / max(sum(name in PLAIN for name in thing), 1)
        for told, thing in enumerate(reading.things)
        for number, truth in enumerate(true)
    }
    meant: dict[int, int] = {}
    for told, number in sorted(share, key=lambda pair: -share[pair]):
        if share[told, number] >= 0.5 and told not in meant and number not in meant.values():
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
        "right": right / said if said else 1.0,
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
