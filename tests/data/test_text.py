import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmflow.data.decode import BadSample
from mmflow.data.text import Characters

characters = Characters()


def test_text_becomes_the_numbers_of_the_published_recognisers():
    # the vocabulary of facebook/hubert-large-ls960-ft, whose blank is number 0
    assert len(characters) == 32
    assert characters.encode("HELLO WORLD").tolist() == [11, 5, 15, 15, 8, 4, 18, 8, 13, 15, 14, 4]
    assert characters.encode("it's").tolist() == [10, 6, 27, 12, 4]
    assert characters.encode("Q").dtype == torch.int64
    assert characters.encode(" ").tolist() == []


def test_case_white_space_and_punctuation_do_not_matter():
    spoken = "«Hello»,  ‘World’ –\n(it’s) … END!"
    assert characters.normalise(spoken) == "HELLO WORLD' IT'S END"
    assert characters.normalise(" -- ") == ""


@pytest.mark.parametrize(
    ("text", "letters"),
    [("room 101", r"\['0', '1'\]"), ("café", r"\['É'\]"), ("50 % & more", r"\['%', '&', '0', '5'\]"), ("<pad>", "<")],
)
def test_letters_outside_of_the_vocabulary_are_named(text, letters):
    with pytest.raises(
        BadSample, match=rf"the transcript '{text}' has .*{letters}.*, which the vocabulary lacks; spell them"
    ):
        characters.encode(text)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzABC' .,;", max_size=40))
def test_what_was_encoded_is_decoded_to_its_normal_form(text):
    assert characters.decode(characters.encode(text).tolist()) == characters.normalise(text)
    assert characters.normalise(characters.normalise(text)) == characters.normalise(text)


def test_a_path_is_collapsed_by_merging_repeats_and_dropping_blanks():
    h, e, l, o, end, blank = 11, 5, 15, 8, 4, 0  # noqa: E741
    path = torch.tensor([blank, h, h, e, blank, l, l, blank, l, o, o, end, end, blank, end, h])
    assert characters.collapse(path) == "HELLO H"
    assert characters.collapse(torch.tensor([0, 0])) == ""


def test_tokens_that_stand_for_no_sound_are_dropped():
    assert characters.decode([1, 2, 3, 11, 4]) == "H"
