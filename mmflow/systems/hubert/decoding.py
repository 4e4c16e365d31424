"""From the log probabilities of a CTC recogniser to text: the best path, or a prefix beam search with a language model.

T frames, V characters.
"""

import heapq
import math
from typing import NamedTuple

from torch import Tensor

from mmflow.data.text import Characters
from mmflow.systems.hubert.language_model import END, LN_10, UNKNOWN, State, read_arpa

CHARACTERS = Characters()
BLANK = CHARACTERS.blank
WORD_END = CHARACTERS.numbers["|"]  # letters stand behind it, the blank and what is never produced before it


class Hypothesis(NamedTuple):
    """A text and the natural logarithm of its score; without a language model and bonus that of its probability."""

    text: str
    score: float


class Decoder:
    """Gives the text of one utterance."""

    def __call__(self, log_probs: Tensor) -> str:
        """log_probs: (T, V) natural logarithms, V of `mmflow.data.text.Characters`."""
        raise NotImplementedError(f"{type(self).__name__} must say how log probabilities become text")


class Greedy(Decoder):
    """The text of the best path: repeats merged, blanks dropped."""

    def __call__(self, log_probs: Tensor) -> str:
        return CHARACTERS.collapse(log_probs.argmax(-1))


class Prefix:
    """The beginning of a transcript, with the probability of all paths that spell it."""

    # fmt: off
    __slots__ = (
        "blank", "bonus", "key", "label", "language", "next_blank", "next_label", "parent", "state", "token", "word",
        "words",
    )
    # fmt: on

    def __init__(self, parent: "Prefix | None", token: int, key: int) -> None:
        self.parent, self.token = parent, token
        self.key = key  # 64 bits that stand for all its tokens
        self.blank = self.label = 0.0  # of the paths that end in a blank, and in its last token
        self.next_blank = self.next_label = 0.0  # the same one frame later
        self.word, self.words = "", 0  # the letters of the word under way; words begun
        self.language, self.state = 0.0, State()  # ln p of the words that have ended, and the model's state after them
        self.bonus = 0.0  # what ranks it beside its probability

    def text(self) -> str:
        tokens, prefix = [], self
        while prefix.parent is not None:
            tokens.append(prefix.token)
            prefix = prefix.parent
        return CHARACTERS.decode(tokens[::-1])


class BeamSearch(Decoder):
    """Prefix beam search (Hannun et al. 2014, arXiv:1408.2873) for the text with the highest
    ln p_ctc + lm_weight * ln p_lm + word_bonus * words.

    The language model judges a word when it ends, and the end of the sentence at the last frame. Before that the
    likeliest word that begins with the same letters stands for it, which decides what is kept but not the score. Words
    that the model does not know can be said, at the price of its <unk> and one for each of their letters: <unk> has
    the probability of any spelling, and without the second price words would be run together to pay it only once.

    Args:
        width: prefixes kept after each frame.
        language_model: an ARPA file of words in upper case, of a fit of NGramTraining or of KenLM or SRILM.
        lm_weight: of the language model. The paper had 2 with a model of all books.
        word_bonus: for each word, against the short words that a language model likes; the paper had -1.
        unknown_letter: ln p of each letter of a word that the model does not know; -3.3 is one of 27.
        top_k: characters that may follow a prefix in one frame, beside the blank and a repeated one.
        min_prob: of such a character.
        threshold: prefixes so many nats behind the best one are dropped.
    """

    def __init__(
        self,
        width: int = 50,
        language_model: str | None = None,
        lm_weight: float = 0.5,
        word_bonus: float = 0.0,
        unknown_letter: float = -3.3,
        top_k: int = 12,
        min_prob: float = 1e-3,
        threshold: float = 20.0,
    ) -> None:
        if min(width, top_k) < 1:
            raise ValueError(f"width={width} and top_k={top_k} must both be at least 1; try 50 and 12")
        if threshold <= 0 or not 0 <= min_prob < 1:
            raise ValueError(f"threshold={threshold} must be above 0 and min_prob={min_prob} in [0, 1)")
        self.width, self.lm_weight, self.word_bonus = width, lm_weight, word_bonus
        self.unknown_letter = unknown_letter
        self.top_k, self.min_prob, self.threshold = top_k, min_prob, threshold
        self.language = None if language_model is None else read_arpa(language_model)
        self.beginnings: dict[str, float] = {}  # letters -> ln p of the likeliest word that begins so, without context
        self.cache: dict[tuple[State, str], tuple[float, State]] = {}
        if self.language is not None:
            letters = set(CHARACTERS.tokens[WORD_END + 1 :])
            for word, number in self.language.words.items():
                if letters.issuperset(word):
                    log_prob = LN_10 * float(self.language.log_probs[0][number])
                    for end in range(1, len(word) + 1):
                        self.beginnings[word[:end]] = max(self.beginnings.get(word[:end], -math.inf), log_prob)
            if not self.beginnings:
                raise ValueError(
                    f"no word of {language_model} can be spelled in capital letters and apostrophes, which is how the "
                    f"recogniser writes; estimate it from such text"
                )
            self.unknown = LN_10 * float(self.language.log_probs[0][self.language.words[UNKNOWN]])

    def __call__(self, log_probs: Tensor) -> str:
        return self.nbest(log_probs)[0].text

    def nbest(self, log_probs: Tensor) -> list[Hypothesis]:
        """At most `width` different texts, the best first."""
        if log_probs.ndim != 2 or log_probs.shape[1] != len(CHARACTERS):
            raise ValueError(f"log_probs has shape {tuple(log_probs.shape)}; one utterance is (T, {len(CHARACTERS)})")
        root = Prefix(None, BLANK, 0)
        root.blank, root.state = 1.0, self.language.start if self.language else State()
        beam, log_scale = [root], 0.0  # probabilities are those of the prefixes divided by exp(log_scale)
        frames = log_probs.detach().cpu().double().exp()
        values, numbers = frames[:, WORD_END:].topk(min(self.top_k, len(CHARACTERS) - WORD_END))
        for frame, best, which in zip(frames.tolist(), values.tolist(), (numbers + WORD_END).tolist(), strict=True):
            labels = [(token, p) for token, p in zip(which, best, strict=True) if p > 0 and p >= self.min_prob]
            beam, scale = self._step(beam, frame, labels)
            log_scale += math.log(scale)
        return self._finish(beam, log_scale)

    def _step(
        self, beam: list[Prefix], frame: list[float], labels: list[tuple[int, float]]
    ) -> tuple[list[Prefix], float]:
        """The beam one frame later, and what its probabilities were divided by."""
        candidates = {prefix.key: prefix for prefix in beam}
        for prefix in beam:
            total = prefix.blank + prefix.label
            prefix.next_blank += total * frame[BLANK]
            prefix.next_label += prefix.label * frame[prefix.token]
            for token, p in labels:
                # without a blank between them two equal tokens are one
                said = (prefix.blank if token == prefix.token else total) * p
                if said == 0.0:
                    continue
                key = hash((prefix.key, token))
                longer = candidates.get(key)
                if longer is None:
                    longer = candidates[key] = self._extend(prefix, token, key)
                longer.next_label += said
        scored = []
        for prefix in candidates.values():
            prefix.blank, prefix.label = prefix.next_blank, prefix.next_label
            prefix.next_blank = prefix.next_label = 0.0
            if prefix.blank + prefix.label > 0:
                scored.append((math.log(prefix.blank + prefix.label) + prefix.bonus, prefix))
        if not scored:
            raise ValueError("a frame has a probability of 0 for everything that may follow; are there NaNs in it?")
        kept = heapq.nlargest(self.width, scored, key=lambda pair: pair[0])
        beam = [prefix for score, prefix in kept if score >= kept[0][0] - self.threshold]
        scale = max(prefix.blank + prefix.label for prefix in beam)
        for prefix in beam:
            prefix.blank /= scale
            prefix.label /= scale
        return beam, scale

    def _extend(self, prefix: Prefix, token: int, key: int) -> Prefix:
        longer = Prefix(prefix, token, key)
        longer.words, longer.language, longer.state = prefix.words, prefix.language, prefix.state
        if token != WORD_END:
            longer.word = prefix.word + CHARACTERS.tokens[token]
            longer.words += not prefix.word
        elif prefix.word:
            self._end_word(longer, prefix.word)
        longer.bonus = self.word_bonus * longer.words
        if self.language is not None:
            longer.bonus += self.lm_weight * (longer.language + self._coming(longer.word))
        return longer

    def _coming(self, word: str) -> float:
        """ln p of the likeliest word that begins so, whatever stands before it."""
        if not word:
            return 0.0
        return self.beginnings.get(word, self.unknown + self.unknown_letter * len(word))

    def _end_word(self, prefix: Prefix, word: str) -> None:
        if self.language is None:
            return
        place = (prefix.state, word)
        if place not in self.cache:
            log_prob, state = self.language.score(*place)
            spelling = 0.0 if word in self.language.words else self.unknown_letter * len(word)
            self.cache[place] = log_prob + spelling, state
        log_prob, prefix.state = self.cache[place]
        prefix.language += log_prob

    def _finish(self, beam: list[Prefix], log_scale: float) -> list[Hypothesis]:
        """Texts with their scores. Prefixes that differ only in where words end make one text."""
        found: dict[str, tuple[list[float], float]] = {}
        for prefix in beam:
            text = prefix.text()
            if text not in found:
                if prefix.word:
                    self._end_word(prefix, prefix.word)
                if self.language is not None:
                    prefix.language += self.language.score(prefix.state, END)[0]
                found[text] = [], self.lm_weight * prefix.language + self.word_bonus * prefix.words
            found[text][0].append(prefix.blank + prefix.label)
        texts = [Hypothesis(text, log_scale + math.log(sum(ps)) + extra) for text, (ps, extra) in found.items()]
        return sorted(texts, key=lambda hypothesis: -hypothesis.score)
