"""Texts to tokens: CLIP's byte pairs, published or trained on own texts, and SigLIP's sentence pieces.

B texts, T tokens of each, V tokens in the vocabulary.
"""

import gzip
import hashlib
import html
import json
import string
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from mmflow.atomic import atomic_file
from mmflow.data.errors import BadSample
from mmflow.nn.published import read_json

try:
    import ftfy
except ImportError:  # only `repair` needs it
    ftfy = None  # type: ignore[assignment]

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
PUBLISHED_MERGES = 48_894  # the published file goes on, but the model knows no more

# The words of a text: abbreviations, letters, single digits, and anything else that is not white space.
_WORDS = Regex(r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


class Encoded(NamedTuple):
    """Texts as tokens.

    Attributes:
        tokens: (B, T) int64, padded to T = `context`.
        truncated: how many of the texts lost their last words.
    """

    tokens: Tensor
    truncated: int


class TextTokenizer(ABC):
    """What both tokenizers do. It may be sent to other processes.

    Args:
        tokenizer: splits what `clean` returns.
        context: tokens T of every text.
        before: tokens that every text begins with.
        end_id: the token that ends a text.
        pad_id: the token that fills up a text behind its end.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, before: Sequence[int], end_id: int, pad_id: int) -> None:
        if context <= len(before) + 1:
            raise ValueError(f"context={context} has no room for words; take {len(before) + 2} or more")
        self.tokenizer, self.context = tokenizer, context
        self.before, self.end_id, self.pad_id = list(before), end_id, pad_id

    @abstractmethod
    def clean(self, text: str) -> str:
        """The text as it is split into tokens."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Texts to tokens; a text that is too long keeps its first words and its end.

        Raises BadSample for a text without words."""
        if isinstance(texts, str):
            raise ValueError(f"texts is the text {texts!r:.40}; give a list of texts, [{texts!r:.40}]")
        tokens = torch.full((len(texts), self.context), self.pad_id, dtype=torch.int64)
        truncated, room = 0, self.context - len(self.before) - 1
        for row, text in zip(tokens, texts, strict=True):
            words = self._words(text)
            truncated += len(words) > room
            whole = [*self.before, *words[:room], self.end_id]
            row[: len(whole)] = torch.tensor(whole)
        return Encoded(tokens, truncated)

    def _words(self, text: str) -> list[int]:
        try:
            cleaned = self.clean(text)
            cleaned.encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a character
            raise BadSample(f"the text {text!r:.60} is no Unicode: {error.reason}") from error
        words = self.tokenizer.encode(cleaned, add_special_tokens=False).ids
        if not words:
            raise BadSample(f"the text {text!r:.60} is empty or white space; leave such samples out, or give words")
        return words

    @property
    def vocab_size(self) -> int:
        """V, one more than the highest token."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """The same for two tokenizers if, and only if, they have the same vocabulary."""
        model = json.loads(self.tokenizer.to_str())["model"]
        vocabulary = model["vocab"]  # token -> number, or a list of tokens and scores
        if isinstance(vocabulary, dict):
            vocabulary = sorted(vocabulary.items(), key=lambda item: item[1])
        content = json.dumps([vocabulary, _pairs(model.get("merges", [])), self.end_id, self.pad_id])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def check(self, fingerprint: str) -> None:
        """Raise ValueError where weights were trained with another vocabulary, of the given fingerprint."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"this is a tokenizer of another vocabulary than the checkpoint's: {self.fingerprint} of "
                f"{self.vocab_size} tokens, not {fingerprint}; give the one that the model was trained with"
            )

    def save(self, path: str | Path) -> None:
        """Write one JSON file, which loads again and which transformers reads as tokenizer.json."""
        with atomic_file(Path(path)) as file:
            file.write(self.tokenizer.to_str().encode())


class BytePairTokenizer(TextTokenizer):
    """CLIP's tokenizer: lower-cased byte pairs between a start and an end (arXiv:2103.00020, section 2.4).

    Tokens are those of the published one if the vocabulary is. As there, the names of start and end in a text, if
    someone wrote them, are the start and the end.

    Args:
        path: the vocabulary: OpenAI's file of merges (bpe_simple_vocab_16e6.txt, or .gz), what `save` wrote, or the
            folder or tokenizer.json of a model of transformers.
        context: tokens T of every text, with start and end.
        repair: undo wrong decoding and typographic quotes first, as OpenAI and open_clip do and transformers does not.
            Needs the package ftfy.
    """

    def __init__(self, path: str | Path, context: int = 77, repair: bool = False) -> None:
        self._set_up(_read(Path(path)), context, repair)

    def _set_up(self, vocabulary: "_Vocabulary", context: int, repair: bool) -> None:
        if repair and ftfy is None:
            raise ValueError("repair=True needs the package ftfy; pip install ftfy, or take repair=False")
        tokens, merges = vocabulary
        needed = {*_byte_tokens(), START, END}.union(*((left, right, left + right) for left, right in merges))
        if missing := sorted(needed - tokens.keys()):
            raise ValueError(f"the vocabulary lacks {missing[:5]} ({len(missing)} in all); it is not one of CLIP's")
        tokenizer = Tokenizer(models.BPE(tokens, merges, end_of_word_suffix=END_OF_WORD))
        tokenizer.pre_tokenizer = _words()
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (START, END)])
        super().__init__(tokenizer, context, before=[tokens[START]], end_id=tokens[END], pad_id=0)
        self.repair = repair

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, context: int = 77, repair: bool = False
    ) -> "BytePairTokenizer":
        """A vocabulary of `vocab_size` out of own texts, in the order of the published one: bytes, merges, start, end.

        Raises ValueError for a size that the texts are too few for."""
        merges = vocab_size - len(_byte_tokens()) - 2
        if merges < 0:
            raise ValueError(
                f"vocab_size={vocab_size} is too small; bytes, start and end alone are {vocab_size - merges}"
            )
        self = cls.__new__(cls)
        self._set_up(_vocabulary([]), context, repair)
        learning = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
        learning.pre_tokenizer = _words()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,  # of which bytes that no word ends with are left out, so it learns enough
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        )
        learning.train_from_iterator((self.clean(text) for text in texts), trainer)
        learnt = _pairs(json.loads(learning.to_str())["model"]["merges"])
        if len(learnt) < merges:
            most = vocab_size - merges + len(learnt)
            raise ValueError(f"vocab_size={vocab_size} is more than the texts give; take {most} or less, or more texts")
        self._set_up(_vocabulary(learnt[:merges]), context, repair)
        return self

    def clean(self, text: str) -> str:
        """HTML characters for their names (twice, as web texts need), single spaces, lower case."""
        text = ftfy.fix_text(text) if self.repair else unicodedata.normalize("NFC", text)
        return " ".join(html.unescape(html.unescape(text)).split()).lower()


class SentencePieceTokenizer(TextTokenizer):
    """SigLIP's tokenizer: lower case, no punctuation, sentence pieces, and always the whole context (arXiv:2303.15343).

    Args:
        path: tokenizer.json of a SigLIP model, or its folder; a spiece.model alone is not read.
        context: tokens T of every text, with the end; the model pools the last of them.
    """

    end = "</s>"

    def __init__(self, path: str | Path, context: int = 64) -> None:
        settings = _read_tokenizer_json(Path(path))
        if settings["model"].get("type") != "Unigram":
            raise ValueError(
                f"{path} has a model of type {settings['model'].get('type')!r}; SigLIP's sentence pieces are a Unigram"
            )
        tokenizer = Tokenizer.from_str(json.dumps(settings))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        end = tokenizer.token_to_id(self.end)
        if end is None:
            raise ValueError(f"{path} has no token {self.end!r}, which ends and fills up the texts of SigLIP")
        super().__init__(tokenizer, context, before=[], end_id=end, pad_id=end)

    def clean(self, text: str) -> str:
        """Lower case without punctuation, single spaces."""
        return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


# vocabularies of byte pairs


class _Vocabulary(NamedTuple):
    tokens: dict[str, int]
    merges: list[tuple[str, str]]  # the first is done first


def _byte_tokens() -> list[str]:
    """A printable letter for each byte, then each of them at the end of a word."""
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + number) for number in range(256 - len(themselves))]
    letters = [*map(chr, themselves), *others]
    return [*letters, *(letter + END_OF_WORD for letter in letters)]


def _words() -> pre_tokenizers.PreTokenizer:
    """Splits a text into words, and writes each with the letters of `_byte_tokens`."""
    split = pre_tokenizers.Split(_WORDS, behavior="removed", invert=True)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _vocabulary(merges: list[tuple[str, str]]) -> _Vocabulary:
    """Numbers in the published order."""
    tokens = [*_byte_tokens(), *(left + right for left, right in merges), START, END]
    numbers = {token: number for number, token in enumerate(tokens)}
    if len(numbers) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if numbers[token] != number)
        raise ValueError(f"the merges make the token {twice!r} twice; give the file as it was published")
    return _Vocabulary(numbers, merges)


def _read(path: Path) -> _Vocabulary:
    if path.suffix == ".json" or (path / "tokenizer.json").is_file():
        model = _read_tokenizer_json(path)["model"]
        if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != END_OF_WORD:
            raise ValueError(
                f"{path} has a {model.get('type')} whose words end in {model.get('end_of_word_suffix')!r}; "
                f"CLIP's byte pairs are a BPE with {END_OF_WORD!r}"
            )
        return _Vocabulary(model["vocab"], _pairs(model["merges"]))
    if path.is_dir():
        return _Vocabulary(read_json(path / "vocab.json"), _read_merges(path / "merges.txt"))
    return _vocabulary(_read_merges(path)[:PUBLISHED_MERGES])


def _read_tokenizer_json(path: Path) -> dict[str, Any]:
    path = path / "tokenizer.json" if path.is_dir() else path
    settings = read_json(path)
    if not isinstance(settings.get("model"), dict) or not settings["model"].get("vocab"):
        raise ValueError(f"{path} has no vocabulary under 'model'; give the tokenizer.json of the tokenizers library")
    return settings


def _read_merges(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} is not there; give the file bpe_simple_vocab_16e6.txt.gz of CLIP, or a folder or "
                         f"tokenizer.json of transformers")  # fmt: skip
    content = path.read_bytes()
    try:
        text = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error}); is it whole?") from error
    header, *lines = text.rstrip("\n").split("\n")
    if "#version" not in header:
        raise ValueError(f"{path} begins with {header!r:.60}; a file of merges begins with its #version")
    return _pairs(lines)


def _pairs(merges: Sequence[str | Sequence[str]]) -> list[tuple[str, str]]:
    """Merges as the two tokens that become one, out of lines or pairs."""
    pairs = []
    for merge in merges:
        pair = merge.split() if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise ValueError(f"{merge!r:.60} is no merge; each is two tokens, with a space between them")
        pairs.append((pair[0], pair[1]))
    return pairs
