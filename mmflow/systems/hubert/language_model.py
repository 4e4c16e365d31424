"""Word n-gram language models: estimated from transcripts, kept in ARPA files, asked word by word in a beam search.

No library that is still released does this: kenlm has no wheels, pyctcdecode wants numpy below 2, flashlight-text ends
at Python 3.12. Files of KenLM and SRILM are read, at 16 bytes of memory for each n-gram.

V words, N n-grams of one order, k words of an n-gram.
"""

import gzip
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn

from mmflow.atomic import atomic_file
from mmflow.data.corpus import Corpus
from mmflow.data.text import Characters

LN_10 = float(np.log(10.0))
START, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -99.0  # log10 of what ARPA files write for a probability of 0
FALLBACK = (0.5, 1.0, 1.5)  # discounts where a text is too small to estimate them

Gram = tuple[int, ...]  # numbers of words
State = tuple[int, ...]  # row of the last word, of the last two, ...; -1 for what the model does not have


class NGrams(NamedTuple):
    """All n-grams of one order k, probabilities as log10."""

    words: np.ndarray  # (N, k) int32
    log_probs: np.ndarray  # (N,) float32
    backoffs: np.ndarray  # (N,) float32, for what follows them


class NGram:
    """A back-off model: the probability of a word is that of the longest n-gram which the model has, times the back-off
    weights of the longer contexts that it knows.

    Args:
        words: the vocabulary, with <s>, </s> and <unk> in it.
        orders: unigrams (one for each word), bigrams and so on. What an n-gram begins with must be an n-gram too.
    """

    def __init__(self, words: Sequence[str], orders: Sequence[NGrams]) -> None:
        self.words = {word: number for number, word in enumerate(words)}
        self.order = len(orders)
        # An n-gram is found by the row of its first k - 1 words and its last word, which make one sorted number.
        self.keys: list[np.ndarray] = []
        self.log_probs: list[np.ndarray] = []
        self.backoffs: list[np.ndarray] = []
        for grams in orders:
            keys = grams.words[:, 0].astype(np.int64)
            for i in range(1, grams.words.shape[1]):
                keys = self._rows(i - 1, keys) * len(words) + grams.words[:, i]
            order = keys.argsort(kind="stable")
            self.keys.append(keys[order])
            self.log_probs.append(grams.log_probs[order])
            self.backoffs.append(grams.backoffs[order])
        self.start: State = (self.words[START], *([-1] * (self.order - 2)))[: self.order - 1]

    def _rows(self, place: int, keys: np.ndarray) -> np.ndarray:
        rows = np.searchsorted(self.keys[place], keys).clip(max=len(self.keys[place]) - 1)
        if (self.keys[place][rows] != keys).any():
            raise ValueError(f"the model has {place + 2}-grams whose first {place + 1} words are no n-gram of it")
        return rows.astype(np.int64)

    def score(self, state: State, word: str) -> tuple[float, State]:
        """Natural log of the probability of `word` after `state`, and the state after it."""
        number = self.words.get(word, self.words[UNKNOWN])
        rows = [number]  # of the n-grams that end in the word, the shortest first
        for place, row in enumerate(state, 1):
            rows.append(self._find(place, row * len(self.words) + number) if row >= 0 else -1)
        longest = max(place for place, row in enumerate(rows) if row >= 0)
        log_prob = float(self.log_probs[longest][rows[longest]])
        for place in range(longest, len(state)):
            if state[place] >= 0:
                log_prob += float(self.backoffs[place][state[place]])
        return LN_10 * log_prob, tuple(rows[: self.order - 1])

    def _find(self, place: int, key: int) -> int:
        keys = self.keys[place]
        row = int(keys.searchsorted(key))
        return row if row < len(keys) and keys[row] == key else -1

    def sentence(self, text: str) -> list[float]:
        """Natural log of the probability of each word of `text` and of its end."""
        state, found = self.start, []
        for word in [*text.split(), END]:
            log_prob, state = self.score(state, word)
            found.append(log_prob)
        return found

    def write(self, path: Path) -> None:
        """Publish as an ARPA file, atomically."""
        words = np.array(list(self.words))
        with atomic_file(path) as file:
            sizes = [f"ngram {place}={len(keys)}" for place, keys in enumerate(self.keys, 1)]
            file.write("\n".join(["\\data\\", *sizes, ""]).encode())
            rows = np.zeros((1, 0), np.int64)  # (N, k) numbers of the words
            for place, keys in enumerate(self.keys):
                rows = np.column_stack([rows[keys // len(words)], keys % len(words)])
                lines = [f"\n\\{place + 1}-grams:"]
                for numbers, log_prob, backoff in zip(
                    rows.tolist(), self.log_probs[place].tolist(), self.backoffs[place].tolist(), strict=True
                ):
                    line = f"{log_prob:.9g}\t{' '.join(words[numbers])}"
                    lines.append(line if place + 1 == self.order else f"{line}\t{backoff:.9g}")
                file.write("\n".join([*lines, ""]).encode())
            file.write(b"\n\\end\\\n")


def read_arpa(path: str | Path) -> NGram:
    """The model of an ARPA file, which may be gzipped (.gz).

    A file without <unk> gives unknown words a probability of 0. Raises ValueError for a file of another kind, a line
    that is not an n-gram, and n-grams whose beginnings are not there.
    """
    path, words, orders = Path(path), dict[str, int](), list[NGrams]()
    log_probs, backoffs, numbers = array("f"), array("f"), array("i")
    opener: Any = gzip.open if path.suffix == ".gz" else open

    def finish() -> None:
        k = len(orders) + 1
        if k == 1:
            for special in (START, END, UNKNOWN):
                if special not in words:
                    numbers.append(words.setdefault(special, len(words)))
                    log_probs.append(NEVER)
                    backoffs.append(0.0)
        grams = np.array(numbers, np.int32).reshape(-1, k)
        orders.append(NGrams(grams, np.array(log_probs, np.float32), np.array(backoffs, np.float32)))
        for column in (log_probs, backoffs, numbers):
            del column[:]

    section = 0  # the order k of the lines that follow; 0 before the first
    with opener(path, "rt", encoding="utf-8") as file:
        for at, line in enumerate(file, 1):
            fields = line.split()
            if not fields or (section == 0 and not line.startswith("\\1-grams:")):
                continue
            if line.startswith("\\"):
                if section:
                    finish()
                section += 1
                if fields[0] == "\\end\\":
                    break
                if fields[0] != f"\\{section}-grams:":
                    raise ValueError(f"{path}, line {at}: {fields[0]!r} where \\{section}-grams: or \\end\\ should be")
                continue
            try:
                if len(fields) not in (section + 1, section + 2):
                    raise ValueError
                log_probs.append(float(fields[0]))
                backoffs.append(float(fields[section + 1]) if len(fields) == section + 2 else 0.0)
                for word in fields[1 : section + 1]:
                    name = word.lower() if word in ("<S>", "</S>", "<UNK>") else word
                    numbers.append(words.setdefault(name, len(words)) if section == 1 else words[name])
            except (ValueError, KeyError):
                raise ValueError(
                    f"{path}, line {at}: {line.strip()!r} is no {section}-gram; a line has a log10 probability, "
                    f"{section} words that are unigrams of the file, and perhaps a log10 back-off weight"
                ) from None
        else:
            raise ValueError(f"{path} does not end with \\end\\; it is no ARPA file, or only a part of one")
    try:
        return NGram(list(words), orders)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def estimate(sentences: Iterable[str], order: int) -> NGram:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1998), as KenLM has it.

    Only an n-gram of the highest order, or at the beginning of a sentence, is counted by how often it occurs; a shorter
    one by how many words it follows. The unigrams are mixed with an even distribution over the vocabulary, which gives
    unknown words their probability.
    """
    if order < 1:
        raise ValueError(f"order={order} must be at least 1; try 3")
    words = {word: number for number, word in enumerate((START, END, UNKNOWN))}
    texts = []
    for sentence in sentences:
        spelled = [START, *sentence.split(), END]
        texts.append([words.setdefault(word, len(words)) for word in spelled])
    if not texts:
        raise ValueError("there is no sentence to estimate a language model from")
    seen = [
        Counter(chain.from_iterable(zip(*(text[i:] for i in range(k)), strict=False) for text in texts))
        for k in range(1, order + 1)
    ]
    orders: list[NGrams] = []
    lower: dict[Gram, float] = {}  # probabilities of the order below
    tables: list[tuple[dict[Gram, float], dict[Gram, float]]] = []
    for k in range(1, order + 1):
        counts = seen[k - 1]
        if k < order:
            following = Counter(gram[1:] for gram in seen[k])
            counts = Counter({gram: following.get(gram, count) for gram, count in counts.items()})
        if k == 1:
            del counts[(words[START],)]  # never predicted
        discounts = _discounts(counts)
        totals, freed = defaultdict[Gram, int](int), defaultdict[Gram, float](float)  # by context
        for gram, count in counts.items():
            totals[gram[:-1]] += count
            freed[gram[:-1]] += discounts[min(count, 3)]
        weights = {context: freed[context] / totals[context] for context in totals}
        probabilities = {
            gram: (count - discounts[min(count, 3)]) / totals[gram[:-1]] + weights[gram[:-1]] * lower.get(gram[1:], 0.0)
            for gram, count in counts.items()
        }
        if k == 1:
            even = weights[()] / (len(words) - 1)  # <s> is in no place
            probabilities = {(word,): probabilities.get((word,), 0.0) + even for word in range(1, len(words))}
        tables.append((probabilities, weights))
        lower = probabilities
    for k, (probabilities, _) in enumerate(tables, 1):
        backoffs = tables[k][1] if k < order else {}
        grams = sorted(probabilities)
        log_probs = [np.log10(probabilities[gram]) for gram in grams]
        if k == 1:
            grams, log_probs = [(words[START],), *grams], [NEVER, *log_probs]
        weights_of = [np.log10(backoffs.get(gram, 1.0)) for gram in grams]
        orders.append(
            NGrams(np.array(grams, np.int32), np.array(log_probs, np.float32), np.array(weights_of, np.float32))
        )
    return NGram(list(words), orders)


def _discounts(counts: Counter[Gram]) -> tuple[float, ...]:
    """What is taken from n-grams counted 0, 1, 2, and 3 or more times."""
    n = Counter(counts.values())
    if not all(n[count] for count in (1, 2, 3, 4)):
        return 0.0, *FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    found = tuple(count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3))
    return 0.0, *(found if all(0 < d < count for count, d in enumerate(found, 1)) else FALLBACK)


class NGramTraining(LightningModule):
    """`fit` estimates a word n-gram model from the transcripts of the training split and leaves it as `lm.arpa`.

    It reads all transcripts, not only those that `labelled_minutes` leaves to a recogniser. Takes one step, so
    `trainer.max_steps` is 1. Logs `val/perplexity` per word and end of sentence on the validation split, unknown words
    left out, and `val/unknown`, their share. Every rank does the same work; the first one writes.

    Args:
        order: words of the longest n-grams.
    """

    def __init__(self, order: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.order = order
        self.nothing = nn.Parameter(torch.zeros(()))  # Lightning counts the steps of an optimiser

    def setup(self, stage: str) -> None:
        if stage != "fit":
            raise ValueError(f"a language model is only fitted; the stage has run: {stage}")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        data.train_dataloader = self.train_dataloader  # where there is a datamodule Lightning asks only that

    def train_dataloader(self) -> list[int]:
        return [0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch: int, batch_idx: int) -> None:  # noqa: ARG002 the batch holds nothing
        model = estimate(self._texts("train"), self.order)
        if self.trainer.is_global_zero:
            model.write(Path(self.trainer.default_root_dir) / "lm.arpa")
        log_probs, unknown = [], 0
        for text in self._texts("validation"):
            for word, log_prob in zip([*text.split(), END], model.sentence(text), strict=True):
                if word in model.words:
                    log_probs.append(log_prob)
                else:
                    unknown += 1
        if log_probs:
            figures = {"perplexity": np.exp(-np.mean(log_probs)), "unknown": unknown / (unknown + len(log_probs))}
            self.log_dict({f"val/{name}": float(figure) for name, figure in figures.items()}, batch_size=1)
        self.optimizers().step()  # type: ignore[union-attr]

    def _texts(self, split: str) -> list[str]:
        """The transcripts of a split as a recogniser would spell them, without empty ones."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        corpus = Corpus(data.specs, split, ("text",))
        broken = corpus.problems()
        texts = [corpus.read(number)["text"] for number in range(len(corpus)) if number not in broken]
        return [text for text in map(Characters().normalise, texts) if text]
