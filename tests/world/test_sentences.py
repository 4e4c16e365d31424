import re
from collections import Counter

import numpy as np
import pytest

from mmflow.world.sentences import sentence, vocabulary


@pytest.fixture(scope="module")
def drawn():
    generator = np.random.default_rng(0)
    return [sentence(generator) for _ in range(5000)]


def test_only_letters_apostrophes_and_single_spaces_are_written(drawn):
    assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", one.text) for one in drawn)


def test_what_is_spoken_has_the_written_words_and_ends_in_a_mark(drawn):
    assert all(re.sub("[,.?]", "", one.spoken) == one.text for one in drawn)
    assert {one.spoken[-1] for one in drawn} == {".", "?"}


def test_thousands_of_sentences_are_distinct(drawn):
    assert len({one.text for one in drawn}) > 4900


def test_sentences_have_two_to_thirty_odd_words(drawn):
    lengths = [len(one.text.split()) for one in drawn]
    assert min(lengths) >= 2
    assert max(lengths) <= 36
    assert 8 < np.mean(lengths) < 12


def test_the_vocabulary_is_what_the_sentences_use(drawn):
    used = Counter(word.removesuffix("'s") for one in drawn for word in one.text.split())
    known = {word.removesuffix("'s") for word in vocabulary()}
    assert set(used) <= known
    assert len(set(used)) > 0.98 * len(known)
    assert 600 < len(known) < 800


def test_a_becomes_an_before_a_vowel_sound_only(drawn):
    pairs = {pair for one in drawn for pair in re.findall(r"\b(an?) (\w+)", one.text)}
    assert {("an", "apple"), ("an", "honest"), ("a", "usual"), ("a", "happy")} <= pairs
    assert not {("a", "apple"), ("a", "honest"), ("an", "usual"), ("an", "happy")} & pairs


def test_plurals_follow_english_spelling():
    assert {"babies", "boxes", "wolves", "mice", "keys", "toys", "monkeys", "watches"} <= set(vocabulary())
    assert not {"babys", "boxs", "wolfs", "mouses", "keies", "toies", "monkeies"} & set(vocabulary())


def test_the_same_generator_state_gives_the_same_sentence():
    assert sentence(np.random.default_rng(3)) == sentence(np.random.default_rng(3))
