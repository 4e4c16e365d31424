import io
from collections import Counter

import pytest
from PIL import Image

from mmflow.data.sources.images import as_member, one_line, picture_extension, pictures_by_name
from mmflow.data.sources.layout import LeftOut


@pytest.mark.parametrize(
    ("kind", "extension"),
    [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", None), ("BMP", None), ("TIFF", None)],
)
def test_the_bytes_say_what_a_picture_is(kind, extension):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, kind)
    assert picture_extension(buffer.getvalue()[:12]) == extension


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"<html>404", b"RIFF\x24\0\0\0WAVE", b"\x89PNG\n"])
def test_what_is_no_picture_has_no_extension(data):
    assert picture_extension(data) is None


def test_a_file_goes_under_its_true_extension_or_is_counted(put):
    left_out = LeftOut("x")
    path = put("a.JPEG", b"\x89PNG\r\n\x1a\n and more")
    assert as_member(path, left_out) == {"png": str(path)}
    assert as_member(put("b.jpg", "<html>"), left_out) == {}
    assert as_member(put("c.png", b""), left_out) == {}
    assert left_out.counts == {"file that is no JPEG, PNG or WebP": 2}


def test_pictures_are_found_by_name_in_any_folder_and_the_first_of_two_is_taken(put, tmp_path):
    first, other = put("a/1.jpg"), put("b/c/2.PNG")
    put("b/1.jpg")
    put("b/readme.txt")
    left_out = LeftOut("x")
    assert pictures_by_name(tmp_path, left_out) == {"1.jpg": first, "2.PNG": other}
    assert left_out.counts == {"second picture of the same name": 1}


def test_a_caption_is_put_on_one_line_and_else_left_as_it_is():
    assert one_line(" Two dogs \r\n on  a road\n") == "Two dogs on  a road"
    assert one_line(" \n ") == ""


def test_the_odd_pictures_are_told_apart(real_data):
    left_out = LeftOut("odd")
    members = {path.name: as_member(path, left_out) for path in (real_data / "odd" / "images").iterdir()}
    assert {name for name, member in members.items() if not member} == {"empty.jpg", "html_named.jpg", "animated.gif"}
    assert Counter(extension for member in members.values() for extension in member) == {"jpg": 8, "png": 6, "webp": 1}
    assert list(members["png_named.jpg"]) == ["png"]
    assert left_out.counts == {"file that is no JPEG, PNG or WebP": 3}
