"""Text to numbers and back, by characters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmflow.data.decode import BadSample

IGNORED = frozenset('.,;:!?"()[]-–—“”„‘«»…')  # punctuation that is not spoken; read as white space


class Characters:
    """The character vocabulary of English CTC recognisers, in the order of wav2vec 2.0 and HuBERT checkpoints.

    Number 0 is the CTC blank; 1 to 3 (padding, end, unknown) are there for published weights and never produced;
    "|" ends every word, the last one too; then the letters by frequency and the apostrophe: 32 in all.
    """

    tokens: tuple[str, ...] = ("<blank>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    blank = 0

    def __init__(self) -> None:
        self.numbers = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def normalise(self, text: str) -> str:
        """Upper case, single spaces, without punctuation and with straight apostrophes."""
        plain = text.upper().replace("’", "'")
        return " ".join("".join(" " if letter in IGNORED else letter for letter in plain).split())

    def encode(self, text: str) -> Tensor:
        """Text to int64 (L,). Raises BadSample naming letters that the vocabulary does not have."""
        spelled = "".join(f"{word}|" for word in self.normalise(text).split())
        if foreign := sorted(set(spelled) - self.numbers.keys()):
            raise BadSample(f"the transcript {text[:60]!r} has {foreign}, which the vocabulary lacks; spell them out")
        return torch.tensor([self.numbers[letter] for letter in spelled], dtype=torch.int64)

    def decode(self, numbers: Sequence[int]) -> str:
        """Numbers without blanks to text."""
        return " ".join("".join(self.tokens[n] for n in numbers if n >= 4).replace("|", " ").split())

    def collapse(self, best: Tensor) -> str:
        """The text of one CTC path, int64 (T,): repeats merged, blanks dropped."""
        return self.decode([n for n in torch.unique_consecutive(best).tolist() if n != self.blank])
