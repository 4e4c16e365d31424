"""Decoders against all paths counted one by one, against each other and against the CTC loss."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmflow.data.text import Characters
from mmflow.systems.hubert.decoding import BeamSearch, Greedy
from mmflow.systems.hubert.language_model import estimate, read_arpa

CHARACTERS = Characters()
EXHAUSTIVE = {"width": 100_000, "top_k": 28, "min_prob": 0.0, "threshold": 1e9}


def over(letters: str, probabilities: list[list[float]]) -> Tensor:
    """Log probabilities (T, V) from those of some characters only; "_" is the blank."""
    numbers = [CHARACTERS.blank if letter == "_" else CHARACTERS.numbers[letter] for letter in letters]
    found = torch.zeros(len(probabilities), len(CHARACTERS))
    found[:, numbers] = torch.tensor(probabilities)
    return found.log()


def drawn(letters: str, frames: int, seed: int = 0) -> Tensor:
    draw = np.random.default_rng(seed)
    return over(letters, draw.dirichlet(np.ones(len(letters)), frames).tolist())


def all_texts(log_probs: Tensor) -> dict[str, float]:
    """The probability of each text: the sum over all paths that collapse to it."""
    allowed = (log_probs > -math.inf).any(0).nonzero()[:, 0].tolist()
    found: dict[str, float] = {}
    for path in itertools.product(allowed, repeat=len(log_probs)):
        text = CHARACTERS.collapse(torch.tensor(path))
        p = math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        found[text] = found.get(text, 0.0) + p
    return found


def spelled(text: str, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Peaked frames that say `text`, a blank after each character."""
    tokens = [number for token in CHARACTERS.encode(text).tolist() for number in (token, token, CHARACTERS.blank)]
    logits = noise * torch.randn(len(tokens), len(CHARACTERS), generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(len(tokens)), tokens] += 10
    logits[:, 1:4] = -math.inf
    return logits.log_softmax(-1)


def test_a_wide_beam_sums_over_all_paths():
    for seed in range(3):
        log_probs = drawn("_AB|", 5, seed)
        expected = all_texts(log_probs)
        found = BeamSearch(**EXHAUSTIVE).nbest(log_probs)
        assert {h.text: math.exp(h.score) for h in found} == pytest.approx({t: p for t, p in expected.items() if p})
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert sum(math.exp(h.score) for h in found) == pytest.approx(1.0)


def test_the_score_is_that_of_the_formula(tmp_path):
    model = estimate(["A B", "AB A", "B"], 2)
    model.write(tmp_path / "lm.arpa")
    log_probs = drawn("_AB|", 5)
    decoder = BeamSearch(
        language_model=str(tmp_path / "lm.arpa"), lm_weight=0.7, word_bonus=0.3, unknown_letter=-2.0, **EXHAUSTIVE
    )  # fmt: skip
    expected = {
        text: math.log(p)
        + 0.7 * (sum(model.sentence(text)) - 2.0 * sum(len(word) for word in text.split() if word not in model.words))
        + 0.3 * len(text.split())
        for text, p in all_texts(log_probs).items()
    }
    assert {h.text: h.score for h in decoder.nbest(log_probs)} == pytest.approx(expected, abs=1e-5)
    assert decoder(log_probs) == max(expected, key=expected.__getitem__)


def test_the_likeliest_text_need_not_be_on_the_best_path():
    log_probs = over("_A", [[0.6, 0.4], [0.6, 0.4]])  # two blanks 0.36, but three paths say A: 0.64
    assert Greedy()(log_probs) == ""
    best, second = BeamSearch().nbest(log_probs)
    assert best.text == "A"
    assert math.exp(best.score) == pytest.approx(0.64)
    assert math.exp(second.score) == pytest.approx(0.36)


def test_equal_letters_need_a_blank_between_them():
    assert BeamSearch()(over("_A", [[0.01, 0.99]] * 4)) == "A"
    assert BeamSearch()(over("_A", [[0.01, 0.99], [0.99, 0.01], [0.01, 0.99]])) == "AA"


@pytest.mark.parametrize("width", [1, 50])
def test_on_peaked_frames_it_is_the_best_path(width):
    for seed, text in enumerate(["HELLO", "THE OLD BOOK", "ISN'T IT", "A"]):
        log_probs = spelled(text, noise=0.5, seed=seed)
        assert Greedy()(log_probs) == text
        assert BeamSearch(width=width)(log_probs) == text


def test_the_ctc_loss_of_its_text_is_not_above_that_of_the_best_path():
    better = 0
    for seed in range(10):
        logits = 2 * torch.randn(30, len(CHARACTERS), generator=torch.Generator().manual_seed(seed))
        logits[:, 1:4] = -20
        log_probs = logits.log_softmax(-1)
        greedy, beam = (nats(log_probs, decoder(log_probs)) for decoder in (Greedy(), BeamSearch()))
        assert beam <= greedy
        better += beam < greedy
    assert better


def nats(log_probs: Tensor, text: str) -> float:
    """The CTC loss of a text, summed over spellings with and without a last word end."""
    spelling = CHARACTERS.encode(text)
    losses = [
        F.ctc_loss(log_probs[:, None], target[None], torch.tensor([len(log_probs)]), torch.tensor([len(target)]))
        * max(len(target), 1)
        for target in (spelling, spelling[:-1])
    ]
    return -float(torch.logsumexp(-torch.stack(losses), 0))


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path):
    estimate(["THE SEA IS DEEP", "I SEE THE SEA", "THE SEA WAS COLD", "I SEE A BOOK"], 3).write(tmp_path / "lm.arpa")
    the = spelled("THE SEA")
    the[-6] = over("_EA", [[0.1, 0.51, 0.39]])[0]  # the last letter, one frame of A or E
    the[-5] = over("_EA", [[0.1, 0.51, 0.39]])[0]
    i_see = spelled("I SEE")
    i_see[-6] = i_see[-5] = over("_EA", [[0.1, 0.39, 0.51]])[0]
    assert [Greedy()(said) for said in (the, i_see)] == ["THE SEE", "I SEA"]
    assert [BeamSearch()(said) for said in (the, i_see)] == ["THE SEE", "I SEA"]
    decoder = BeamSearch(language_model=str(tmp_path / "lm.arpa"))
    assert [decoder(said) for said in (the, i_see)] == ["THE SEA", "I SEE"]
    assert decoder(spelled("SEE THE ZEBRA")) == "SEE THE ZEBRA"  # a word that it does not know can be said


def test_a_bonus_for_words_splits_them():
    log_probs = over("_A|B", [[0, 1, 0, 0], [0.6, 0, 0.4, 0], [0, 0, 0, 1]])
    assert BeamSearch()(log_probs) == "AB"
    assert BeamSearch(word_bonus=1.0)(log_probs) == "A B"
    assert BeamSearch(word_bonus=-1.0)(log_probs) == "AB"


def test_long_recordings_do_not_underflow():
    log_probs = torch.cat([spelled("THE OLD BOOK", noise=1.0, seed=seed) for seed in range(60)])
    assert BeamSearch(width=5)(log_probs) == " ".join(["THE OLD BOOK"] * 60)
    assert BeamSearch(width=5).nbest(log_probs)[0].score < 0


def test_padding_and_unknown_tokens_are_never_said():
    log_probs = over("_A", [[0.1, 0.2]])
    log_probs[0, 1:4] = math.log(0.2)
    assert [h.text for h in BeamSearch().nbest(log_probs)] == ["A", ""]


def test_no_frames_are_no_words():
    assert BeamSearch()(torch.zeros(0, len(CHARACTERS))) == ""
    assert Greedy()(torch.zeros(0, len(CHARACTERS))) == ""


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="width=0 and top_k=12 must both be at least 1"):
        BeamSearch(width=0)
    with pytest.raises(ValueError, match=r"threshold=20\.0 must be above 0 and min_prob=1\.0 in"):
        BeamSearch(min_prob=1.0)
    with pytest.raises(ValueError, match=r"log_probs has shape \(2, 3, 32\); one utterance is \(T, 32\)"):
        BeamSearch()(torch.zeros(2, 3, 32))
    with pytest.raises(ValueError, match="a frame has a probability of 0 for everything"):
        BeamSearch()(torch.full((2, 32), math.nan))
    estimate(["the cat"], 1).write(tmp_path / "lm.arpa")
    with pytest.raises(ValueError, match=r"no word of .*lm.arpa can be spelled in capital letters"):
        BeamSearch(language_model=str(tmp_path / "lm.arpa"))
    assert read_arpa(tmp_path / "lm.arpa").order == 1
