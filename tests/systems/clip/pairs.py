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
GROUNDS = {"grey": 120, "black": 0}
TEXTS = [f"there is a {colour} bar on {ground}" for colour in COLOURS for ground in GROUNDS]
VOCAB_SIZE, CONTEXT = 534, 24


def picture(colour: str, ground: str, seed: int) -> bytes:
    """A bar over half of 16 x 16 pixels, on noise."""
    pixels = GROUNDS[ground] + np.random.default_rng(seed).integers(0, 20, (16, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sample(number: int) -> dict[str, Any]:
    """Number n has colour n % 4 and ground n // 4 % 2; its captions name the colour alone, and both."""
    colour, ground = list(COLOURS)[number % 4], list(GROUNDS)[number // 4 % 2]
    captions = [f"a {colour} bar", f"there is a {colour} bar on {ground}"]
    info = {"captions": captions, "colour": colour, "ground": ground, "unseen": number % 8 == 5}
    return {"png": picture(colour, ground, number), "txt": captions[1], "json": json.dumps(info).encode()}


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
