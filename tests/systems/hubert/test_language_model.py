"""N-gram models: literal probabilities, sums of 1, ARPA files, and the stage that leaves one."""

import gzip
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmflow.cli import main
from mmflow.systems.hubert.language_model import END, START, UNKNOWN, NGram, estimate, read_arpa
from mmflow.world.sentences import sentence
from tests.command import Command
from tests.tiny_speech import hum

ARPA = """
\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0 <unk>
-99 <s> -0.5
-0.7 </s>
-0.3 A -0.2
-0.6 B -0.1

\\2-grams:
-0.1 <s> A
-0.4 A B
-0.9 B </s>

\\end\\
"""


def probabilities(model: NGram, context: list[str]) -> dict[str, float]:
    """Of each word after a context that begins a sentence."""
    state = model.start
    for word in context:
        _, state = model.score(state, word)
    return {word: math.exp(model.score(state, word)[0]) for word in model.words if word != START}


def test_a_literal_sentence_has_the_probabilities_of_kneser_ney():
    model = estimate(["A B"], 2)
    # each of A, B and </s> follows one word; the discount is 0.5 and half the mass goes to four words evenly
    assert probabilities(model, [UNKNOWN]) == pytest.approx({"A": 7 / 24, "B": 7 / 24, END: 7 / 24, UNKNOWN: 1 / 8})
    after = probabilities(model, ["A"])
    assert after == pytest.approx({"A": 7 / 48, "B": 1 / 2 + 7 / 48, END: 7 / 48, UNKNOWN: 1 / 16})
    assert model.sentence("A B") == pytest.approx([math.log(1 / 2 + 7 / 48)] * 3)


def test_discounts_come_from_the_counts_of_counts():
    once, twice, thrice = [f"O{i}" for i in range(19)], [f"T{i}" for i in range(6)], [f"H{i}" for i in range(3)]
    model = estimate([" ".join(once + twice * 2 + thrice * 3 + ["F"] * 4)], 1)
    # with the end 20 words are there once, 6 twice, 3 three times and 1 four times: y = 20 / 32
    d1, d2, d3 = 1 - 2 * 0.625 * 6 / 20, 2 - 3 * 0.625 * 3 / 6, 3 - 4 * 0.625 * 1 / 3
    total, even = 20 + 12 + 9 + 4, (20 * d1 + 6 * d2 + 4 * d3) / 45 / 31
    found = probabilities(model, [])
    assert found["O0"] == found[END] == pytest.approx((1 - d1) / total + even)
    assert found["T0"] == pytest.approx((2 - d2) / total + even)
    assert found["H0"] == pytest.approx((3 - d3) / total + even)
    assert found["F"] == pytest.approx((4 - d3) / total + even)
    assert found[UNKNOWN] == pytest.approx(even)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_add_up_to_one_after_any_context(order):
    draw = np.random.default_rng(0)
    model = estimate([sentence(draw).text for _ in range(60)], order)
    for context in ([], ["the"], ["the", "old"], ["old", "xyz"], ["xyz"], ["in", "the", "the", "was"]):
        assert sum(probabilities(model, context).values()) == pytest.approx(1.0, abs=1e-5), context


def test_a_longer_context_is_used_where_it_was_seen():
    model = estimate(["A B C", "D B E"] * 3, 3)
    assert probabilities(model, ["A", "B"])["C"] > 0.5 > probabilities(model, ["D", "B"])["C"]


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_an_arpa_file_of_another_program_backs_off(tmp_path, name):
    write = gzip.open if name.endswith("gz") else open
    with write(tmp_path / name, "wt") as file:
        file.write(ARPA)
    model = read_arpa(tmp_path / name)
    tens = [log_prob / math.log(10) for log_prob in model.sentence("A B B X A")]
    # <s> A | A B | B has no B after it | B has no <unk> | <unk> has no weight | A has no end
    assert tens == pytest.approx([-0.1, -0.4, -0.1 - 0.6, -0.1 - 1.0, -0.3, -0.2 - 0.7])
    assert model.sentence("B")[-1] == pytest.approx(-0.9 * math.log(10))


def test_without_unk_unknown_words_are_impossible(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA.replace("-1.0 <unk>\n", ""))
    assert read_arpa(tmp_path / "lm.arpa").sentence("X")[0] == pytest.approx((-0.5 - 99) * math.log(10))


def test_a_pruned_model_may_lack_the_ends_of_its_n_grams(tmp_path):
    """SRILM prunes "A B" and keeps "X A B"."""
    text = ARPA.replace("-0.4 A B\n", "").replace("-0.1 <s> A\n", "-0.1 <s> A -0.3\n")
    text = text.replace("\\end\\", "\\3-grams:\n-0.05 <s> A B\n\n\\end\\")
    (tmp_path / "lm.arpa").write_text(text)
    tens = [log_prob / math.log(10) for log_prob in read_arpa(tmp_path / "lm.arpa").sentence("A B A A")]
    assert tens == pytest.approx([-0.1, -0.05, -0.1 - 0.3, -0.2 - 0.3, -0.2 - 0.7])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\\end\\", "", r"lm.arpa does not end with .end.; it is no ARPA file, or only a part of one"),
        ("-0.4 A B", "-0.4 A C", r"lm.arpa, line 15: '-0.4 A C' is no 2-gram; a line has a log10 probability"),
        ("-0.3 A", "minus A", r"line 10: 'minus A -0.2' is no 1-gram"),
        ("\\2-grams:", "\\3-grams:", r"line 13: '.+3-grams:' where .2-grams: or .end. should be"),
        ("\\end\\", "\\3-grams:\n-0.1 B A B\n\\end\\", "3-grams whose first 2 words are no n-gram of it"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, old, new, said):
    (tmp_path / "lm.arpa").write_text(ARPA.replace(old, new))
    with pytest.raises(ValueError, match=said):
        read_arpa(tmp_path / "lm.arpa")


def test_an_estimate_needs_text_and_an_order():
    with pytest.raises(ValueError, match="order=0 must be at least 1; try 3"):
        estimate(["A"], 0)
    with pytest.raises(ValueError, match="no sentence to estimate"):
        estimate([], 3)


def test_a_model_is_the_same_after_a_file(tmp_path):
    draw = np.random.default_rng(0)
    model = estimate([sentence(draw).text for _ in range(40)], 3)
    model.write(tmp_path / "lm.arpa")
    again = read_arpa(tmp_path / "lm.arpa")
    for text in (sentence(draw).text for _ in range(20)):
        assert again.sentence(text) == model.sentence(text)
    again.write(tmp_path / "again.arpa")
    assert (tmp_path / "again.arpa").read_bytes() == (tmp_path / "lm.arpa").read_bytes()


# -- the stage ---------------------------------------------------------------------------------------------------------


def config(spec: Path, folder: Path) -> Path:
    tree = {
        "trainer": {"accelerator": "cpu", "gradient_clip_val": 1.0},
        "stages": {
            "lm": {
                "run": "fit",
                "model": {
                    "class_path": "mmflow.systems.hubert.language_model.NGramTraining",
                    "init_args": {"order": 2},
                },
                "data": {
                    "class_path": "mmflow.systems.hubert.data.TranscribedSpeech",
                    "init_args": {"spec": str(spec), "batch_size": 1, "labelled_minutes": 0.1, "num_workers": 0},
                },
                "trainer": {"max_steps": 1, "limit_val_batches": 0, "gradient_clip_val": None},
            },
        },
    }
    (folder / "lm.yaml").write_text(yaml.safe_dump(tree))
    return folder / "lm.yaml"


@pytest.mark.filterwarnings("ignore")
def test_a_stage_leaves_the_model_of_all_training_transcripts(tmp_path, tiny_speech, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    start = ["fit", "--config", str(config(tiny_speech, tmp_path)), "--workdir", str(tmp_path / "work")]
    assert main(start) == 0
    found = tmp_path / "work" / "lm" / "lm.arpa"
    texts = [hum(f"train{number:02d}")["txt"] for number in range(36)]
    estimate(texts, 2).write(tmp_path / "expected.arpa")
    assert found.read_bytes() == (tmp_path / "expected.arpa").read_bytes()
    metrics = json.loads((found.parent / "done.json").read_text())["metrics"]
    model, validation = read_arpa(found), [hum(f"validation{number:02d}")["txt"] for number in range(11)]
    words = [word for text in validation for word in [*text.split(), END]]
    log_probs = [log_prob for text in validation for log_prob in model.sentence(text)]
    known = [log_prob for word, log_prob in zip(words, log_probs, strict=True) if word in model.words]
    assert metrics["val/perplexity"] == pytest.approx(math.exp(-np.mean(known)), rel=1e-5)
    assert metrics["val/unknown"] == pytest.approx(1 - len(known) / len(words), rel=1e-5)
    (found.parent / "done.json").unlink()  # interrupted after its step
    assert main(start) == 0
    assert found.read_bytes() == (tmp_path / "expected.arpa").read_bytes()


@pytest.mark.slow
def test_two_processes_leave_the_same_model(tmp_path, tiny_speech):
    estimate([hum(f"train{number:02d}")["txt"] for number in range(36)], 2).write(tmp_path / "expected.arpa")
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    command = Command("fit", "--config", config(tiny_speech, tmp_path), "--workdir", tmp_path / "work", *two)
    assert command.end() == 0, command.output
    assert (tmp_path / "work" / "lm" / "lm.arpa").read_bytes() == (tmp_path / "expected.arpa").read_bytes()
