from mmflow.data.told import Facts, Labels, Paragraph, Question, Row, Turn, says_all, told


def test_questions_rows_and_labels_are_told_by_their_names():
    info = {
        "question": "What?",
        "options": ["a", "b"],
        "answer": "a",
        "answers": ["a", {"answer": "b"}, "b"],
        "row": {"Age": 3, "Title": "Fine"},
        "label": 4,
        "quality": "good",
    }
    assert list(told(info, "Title: Fine")) == [
        Question("What?", ["a", "b"], "a", [("b", 2)]),
        Row({"Age": 3}),
        Labels(["4"]),
        Facts({"quality": "good"}),
    ]


def test_a_reply_is_by_another_speaker_or_every_second_turn():
    said = told({"messages": [{"from": "x", "value": "1"}, {"from": "y", "value": "2"}, {"from": "x", "value": "3"}]})
    assert list(said) == [Turn("x", "1", False), Turn("y", "2", True), Turn("x", "3", False)]
    assert [turn.is_reply for turn in told({"dialogue": [["q", "a"], "r"]})] == [False, True, False]


def test_dictionaries_one_level_down_tell_what_they_have_but_facts():
    info = {"edit": {"instruction": "move it", "kind": "move", "deeper": {"report": "no"}}}
    assert list(told(info)) == [Paragraph("instruction", "move it")]


def test_a_text_is_said_only_if_all_its_words_are():
    pieces = list(told({"question": "is it?", "answer": "yes"}))
    assert says_all(pieces, "is it? yes")
    assert not says_all(pieces, "is it? yes, it is")
    assert not says_all([], "")
