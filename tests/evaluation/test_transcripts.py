"""Edits against examples by hand and torchmetrics' own error rates."""

import numpy as np
import pytest
from torchmetrics.text import CharErrorRate, WordErrorRate

from mmflow.evaluation.transcripts import Edit, describe, edits, error_report


def test_edits_name_what_was_meant_and_said():
    assert edits(["A", "B", "C"], ["A", "X", "C", "D"]) == [Edit("B", "X"), Edit(None, "D")]
    assert edits("CAT", "CT") == [Edit("A", None)]
    assert edits([], ["A"]) == [Edit(None, "A")]
    assert describe("THE CAT SAT", "A CAT SAT DOWN") == "THE>A +DOWN"
    assert describe("THE CAT SAT", "THE SAT") == "-CAT"
    assert describe("THE CAT", "THE CAT") == ""


def test_a_report_counts_errors_over_the_corpus():
    pairs = [("THE CAT SAT", "A CAT"), ("THE DOG", "A DOG RAN"), ("OH", "")]
    report = error_report(pairs)
    assert report["words"] == {
        "error_rate": pytest.approx(5 / 6), "substitutions": 2, "deletions": 2, "insertions": 1, "total": 6
    }  # fmt: skip
    assert report["confusions"] == [["THE", "A", 2]]
    assert report["empty_hypotheses"] == pytest.approx(1 / 3)
    assert report["utterances"] == 3


def test_empty_transcripts_are_counted_apart():
    report = error_report([("", "THE"), ("  ", ""), ("A B", "A B")])
    assert (report["empty_transcripts"], report["utterances"], report["empty_hypotheses"]) == (2, 1, 0.0)
    assert report["words"]["error_rate"] == 0.0
    assert error_report([("", "X")])["words"]["error_rate"] == 0.0


def test_confusions_are_sorted_by_count_and_then_by_letter():
    pairs = [("B", "C"), ("A", "C"), ("A", "D"), ("B", "C")]
    assert error_report(pairs, most=2)["confusions"] == [["B", "C", 2], ["A", "C", 1]]


def test_rates_are_those_of_torchmetrics():
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(["A", "AB", "BA", "ABBA"], draw.integers(1, 9))) for _ in range(80)]
    meant, said = texts[:40], [*texts[40:79], ""]
    report = error_report(list(zip(meant, said, strict=True)))
    assert report["words"]["error_rate"] == pytest.approx(float(WordErrorRate()(said, meant)), abs=1e-6)
    assert report["characters"]["error_rate"] == pytest.approx(float(CharErrorRate()(said, meant)), abs=1e-6)
