"""Rows of a table about the world's things, each with a review: neither text nor columns tell the label, both do.

The law is that of a known benchmark design: a review says one bit A = +-1 by one of its words, the colour gives a bit
G = +-1, the price a number z, and the label is 1 with probability 1 / (1 + exp(-(1.2 A + 0.9 z + 2.0 A G))). What a
review is worth thus depends on the colour. `limits` has the best figures that are possible with some of the parts.
"""

import itertools
import math
from collections.abc import Collection
from typing import Any

import numpy as np

from mmflow.world.scene import COLOURS, Scene, SceneOptions, choose, draw_scene
from mmflow.world.stills import WorldSource
from mmflow.world.templates import AREAS

STREAM = 70  # what a sample's generator is for
COLUMNS = {  # kind -> columns; what they are called in column_info.json too
    "text": ("review",),
    "categorical": ("shape", "colour", "size", "seller"),
    "numerical": ("price", "weight", "age"),
}
CLASSES = ("returned", "kept")  # of labels 0 and 1
PARTS = ("text", "categorical", "numerical")

# What a review is worth is turned round by the other colours. The sum of pairs of colour and shape that these four have
# is half of all in each part of the data, so the bit is as often +1 as -1.
TURNED = tuple(COLOURS)[4:]
SYNONYMS = dict(  # words for the same colours, which training never has
    zip(COLOURS, ("scarlet", "emerald", "navy", "golden", "violet", "turquoise", "amber", "ivory"), strict=True)
)
PRAISE = ("lovely", "great", "perfect", "excellent")
BLAME = ("awful", "poor", "broken", "terrible")
FILLERS = (
    "i", "bought", "this", "one", "last", "week", "for", "my", "room", "and", "it", "came", "in", "a", "box", "with",
    "paper", "then", "we", "put", "that", "on", "the", "shelf", "by",
)  # fmt: skip
WORDS = (10, 15)  # of a review, from and to
SELLERS = tuple(f"stall {number}" for number in range(1, 21))
MISSING = {"price": 0.1, "age": 0.05, "seller": 0.05}
OLDEST = 365  # days
HEAVY = 1000.0  # weight of a canvas, g

TEXT, NUMBER, BOTH = 1.2, 0.9, 2.0  # weights of A, z and A G
MOST_Z = 2.0
PRICE = (3.0, 1.2)  # price = exp(3 + 1.2 z)


class WorldTable(WorldSource):
    """Rows about one thing of a scene each, as `mmflow.data.sources.table` has rows.

    Members: "txt" ("review: " and the words) and "json": "row" (column -> text, number or null, in the order of
    COLUMNS), "label" and "class" (returned, kept), "chance" (the true probability of label 1), "scene", "unseen"
    (whether training never has the colour's word or the pair of colour and shape), "unseen_category" (the former).

    Shape, colour, size and weight (its area) are those of the thing; price is by chance (a tenth missing), seller and
    age are too and tell nothing.

    Args:
        train, validation, test: how many rows.
        seed: another seed gives others.
        unseen: share of the rows of the test with another word for the colour (SYNONYMS). With 0 all else is the same,
            so that there can be a copy without.
    """

    def __init__(
        self, train: int = 12_000, validation: int = 2000, test: int = 4000, seed: int = 0, unseen: float = 0.1
    ) -> None:
        super().__init__(train, validation, test, seed)
        if not 0 <= unseen <= 1:
            raise ValueError(f"unseen={unseen} is a share; it must be in 0..1")
        self.unseen = unseen
        self.scenes = SceneOptions((1, 1))

    def bytes_each(self) -> int:
        """About the bytes of a row."""
        return 1000

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A row."""
        draw = self.draw(STREAM, split, number)
        scene = draw_scene(draw, split, self.scenes)
        told = tell(scene, 0, draw)
        other = split == "test" and bool(draw.random() < self.unseen)
        if other:
            told["row"]["colour"] = SYNONYMS[told["row"]["colour"]]
        unseen = {"unseen": scene.unseen or other, "unseen_category": other}
        return {"txt": written(told["row"]), "json": told | {"scene": scene.as_json()} | unseen}


def tell(scene: Scene, number: int, draw: np.random.Generator) -> dict[str, Any]:
    """The row of thing `number` of a scene: "row", "label", "class" and "chance" as `WorldTable` has them."""
    thing = scene.things[number]
    opinion = choose(draw, (1, -1))
    z = float(np.clip(draw.standard_normal(), -MOST_Z, MOST_Z))
    chance = _chance(opinion, z, -1 if thing.colour in TURNED else 1)
    label = int(draw.random() < chance)
    cells = {
        "review": _review(draw, opinion),
        "shape": thing.shape,
        "colour": thing.colour,
        "size": thing.size,
        "seller": choose(draw, SELLERS),
        "price": round(math.exp(PRICE[0] + PRICE[1] * z), 2),
        "weight": round(HEAVY * AREAS[thing.shape] * thing.radius**2, 1),
        "age": int(draw.integers(OLDEST, endpoint=True)),
    }
    absent = {name for name, share in MISSING.items() if draw.random() < share}
    row = {name: None if name in absent else value for name, value in cells.items()}
    return {"row": row, "label": label, "class": CLASSES[label], "chance": round(chance, 4)}


def written(row: dict[str, Any]) -> str:
    """The text columns of a row, a line for each: "review: ..."."""
    return "\n".join(f"{name}: {row[name]}" for name in COLUMNS["text"])


def _review(draw: np.random.Generator, opinion: int) -> str:
    words = [choose(draw, FILLERS) for _ in range(int(draw.integers(*WORDS, endpoint=True)))]
    words[int(draw.integers(len(words)))] = choose(draw, PRAISE if opinion > 0 else BLAME)
    return " ".join(words)


def _chance(opinion: int, z: float, colour: int) -> float:
    return 1 / (1 + math.exp(-(TEXT * opinion + NUMBER * z + BOTH * opinion * colour)))


# ---- what is possible


def known(row: dict[str, Any]) -> tuple[int, int | None, float | None]:
    """A, G and z of a row; None for the G of a colour's other word and the z of a missing price."""
    opinion = 1 if set(row["review"].split()) & set(PRAISE) else -1
    colour = (-1 if row["colour"] in TURNED else 1) if row["colour"] in COLOURS else None
    z = None if row["price"] is None else (math.log(row["price"]) - PRICE[0]) / PRICE[1]
    return opinion, colour, z


def limits(parts: Collection[str], steps: int = 400) -> tuple[float, float]:
    """Accuracy and area under the ROC curve of the best predictor that sees these PARTS, without unseen words.

    Computed, not drawn: z takes its two ends and the middles of `steps` parts between them, each with its probability.
    """
    if foreign := set(parts) - set(PARTS):
        raise ValueError(f"parts={list(parts)} must be some of {', '.join(PARTS)}; {sorted(foreign)} are none")
    edges = np.linspace(-MOST_Z, MOST_Z, steps + 1)
    below = np.array([(1 + math.erf(edge / math.sqrt(2))) / 2 for edge in edges])
    z = np.concatenate([[-MOST_Z], (edges[1:] + edges[:-1]) / 2, [MOST_Z]])
    share = np.concatenate([[below[0]], np.diff(below), [1 - below[-1]]])
    chances: dict[tuple[int, int], Any] = {
        (a, g): 1 / (1 + np.exp(-(TEXT * a + NUMBER * z + BOTH * a * g))) for a in (1, -1) for g in (1, -1)
    }
    # mean over what is not known of the label's probability, for each of what is
    classes: list[tuple[Any, Any]] = []  # probabilities of label 1, and how often they are
    for a, g in itertools.product((1, -1) if "text" in parts else (0,), (1, -1) if "categorical" in parts else (0,)):
        fitting = [p for (own_a, own_g), p in chances.items() if a in (0, own_a) and g in (0, own_g)]
        often = len(fitting) / len(chances)
        mean = np.mean(fitting, axis=0)
        priced = 1 - MISSING["price"] if "numerical" in parts else 0.0
        classes.append((mean, often * priced * share))
        classes.append((np.array([mean @ share]), np.array([often * (1 - priced)])))
    known_chance, shares = (np.concatenate(column) for column in zip(*classes, strict=True))
    order = np.argsort(known_chance, kind="stable")
    chance, shares = known_chance[order], shares[order]
    accuracy = float(np.maximum(chance, 1 - chance) @ shares)
    ones, zeros = chance * shares, (1 - chance) * shares
    tied = np.cumsum(np.r_[True, np.diff(chance) > 1e-12]) - 1
    ones, zeros = np.bincount(tied, ones), np.bincount(tied, zeros)
    pairs = ones @ (np.cumsum(zeros) - zeros / 2)
    return accuracy, float(pairs / (ones.sum() * zeros.sum()))
