"""Pictures of one colour with captions that say it, in shards, and a vocabulary of their words."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmflow.systems.clip.tokenizer import BytePairTokenizer
from tests.shards import write_data_set

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "white": (235, 235, 235)}
PLACES = {"left": (0, 8), "right": (8, 16)}  # columns of 16
TEXTS = [f"there is a {colour} bar on the {place}" for colour in COLOURS for place in PLACES]
VOCAB_SIZE, CONTEXT = 540, 24


def picture(colour: str, place: str, seed: int) -> bytes:
    """A bar of half of 16 x 16 pixels, on grey noise."""
    pixels = np.random.default_rng(seed).integers(40, 70, (16, 16, 3), dtype=np.uint8)
    pixels[:, slice(*PLACES[place])] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sample(number: int) -> dict[str, Any]:
    """Number n has colour n % 4 and place n // 4 % 2; its captions name the colour alone, and both."""
    colour, place = list(COLOURS)[number % 4], list(PLACES)[number // 4 % 2]
    captions = [f"a {colour} bar", f"there is a {colour} bar on the {place}"]
    info = {"captions": captions, "colour": colour, "place": place, "unseen": number % 8 == 5}
    return {"png": picture(colour, place, number), "txt": captions[1], "json": json.dumps(info).encode()}


def write_pairs(folder: Path, train: int = 16, validation: int = 10, changes: dict[int, Any] | None = None) -> Path:
    """The spec `pairs`; `changes` are of samples of validation, by number."""
    held = [sample(n) | (changes or {}).get(n, {}) for n in range(validation)]
    shards = {"train": [[sample(n) for n in range(train)]], "validation": [held[:6], held[6:]], "test": [held]}
    named = {"image": ["png"], "text": ["txt"], "info": ["json"]}
    return write_data_set(folder, shards, "pairs", fields=named)


def vocabulary(folder: Path) -> Path:
    """A file of it."""
    BytePairTokenizer.train(TEXTS, VOCAB_SIZE, CONTEXT).save(folder / "tokenizer.json")
    return folder / "tokenizer.json"
