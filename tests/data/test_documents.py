import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from PIL import Image

from mmflow.data.documents import parse, references
from mmflow.data.errors import BadSample
from mmflow.data.pictures import Picture


@pytest.fixture(scope="module")
def members() -> dict[str, Any]:
    """A picture of 5 x 4 pixels, and a sound."""
    file = io.BytesIO()
    Image.new("RGB", (5, 4)).save(file, "PNG")
    return {"0.png": Picture(file.getvalue()), "1.flac": torch.zeros(160), "txt": "a caption", "json": {}}


def test_parts_come_in_order_with_the_members_that_they_name(members):
    value = [{"text": "Look: "}, {"image": "0.png"}, {"text": "and hear"}, {"audio": "1.flac"}, {"image": "0.png"}]
    first, picture, second, sound, again = parse(value, members)
    assert (first, second) == ("Look: ", "and hear")
    assert (picture.width, picture.height) == (5, 4)
    assert sound.shape == (160,)
    assert again is picture


def test_text_is_kept_as_it_is_unless_it_is_empty(members):
    value = [{"text": ""}, {"text": " a\n"}, {"text": "\n"}, {"text": ""}]
    assert parse(value, members) == [" a\n", "\n"]


def test_videos_are_known_by_their_extension():
    video = object()
    assert parse([{"video": "0.mp4"}], {"0.mp4": video}) == [video]


def test_members_that_the_document_does_not_name_are_not_touched():
    class Watched(Mapping[str, Any]):
        def __getitem__(self, extension: str) -> Any:
            assert extension == "1.jpg"
            return "the picture"

        def __iter__(self):
            return iter(["0.jpg", "1.jpg", "pickle"])

        def __len__(self):
            return 3

        def __contains__(self, extension: object) -> bool:
            return extension in list(self)

    assert parse([{"image": "1.jpg"}], Watched()) == ["the picture"]


def test_references_are_the_members_of_the_right_kind_that_are_named():
    value = [{"text": "0.jpg"}, {"image": "1.jpg"}, {"video": "2.mp4"}, {"audio": "3.flac"}, {"image": "1.jpg"}]
    assert references(value) == {"1.jpg", "2.mp4", "3.flac"}


@pytest.mark.parametrize(
    "value", [None, 3, "0.jpg", {"image": "0.jpg"}, [["image", "0.jpg"]], [{"image": 0}], [{"image": "0.pickle"}], [{}]]
)
def test_what_is_no_document_refers_to_nothing(value):
    assert references(value) == set()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "a"}, r"a document must be a list of parts, not \{'text': 'a'\}"),
        ("text", "a document must be a list of parts, not 'text'"),
        (None, "a document must be a list of parts, not None"),
        ([], "a document without any part"),
        ([{"text": ""}], "a document without any part"),
        (["text"], "part 0 of the document is 'text', must have one key, which says what it is"),
        ([{"text": "a"}, {}], r"part 1 of the document is \{\}, must have one key"),
        ([{"text": "a", "image": "0.png"}], "part 0 of the document is .*, must have one key"),
        ([{"text": None}], "part 0 of the document: 'text' must be text, not None"),
        ([{"image": ["0.png"]}], r"part 0 of the document: 'image' must be text, not \['0.png'\]"),
        ([{"pickle": "0.pickle"}], "part 0 of the document is 'pickle', must be one of text, image, video, audio"),
        ([{"image": "0.pickle"}], "part 0 of the document: image '0.pickle' must end in one of jpg, jpeg, png, webp"),
        ([{"image": "txt"}], "part 0 of the document: image 'txt' must end in one of jpg"),
        ([{"video": "0.png"}], "part 0 of the document: video '0.png' must end in one of mp4"),
        ([{"audio": "0.png"}], "part 0 of the document: audio '0.png' must end in one of flac"),
        ([{"image": "1.png"}], r"image '1.png' is not in the sample, only \['0.png', '1.flac', 'json', 'txt'\]"),
        ([{"image": "/etc/x.jpg"}], "image '/etc/x.jpg' is not in the sample"),
        ([{"image": "../0.png"}], "image '../0.png' is not in the sample"),
    ],
)
def test_what_is_no_document_is_a_bad_sample_that_says_why(members, value, message):
    with pytest.raises(BadSample, match=message):
        parse(value, members)


def test_a_hundred_thousand_parts_are_no_trouble(members):
    assert len(parse([{"text": "a"}, {"image": "0.png"}] * 50_000, members)) == 100_000
