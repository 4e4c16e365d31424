import pytest

from mmflow.data.sources.layout import LeftOut
from mmflow.data.sources.recordings import audio_extension, by_stem, read_lines, read_pairs, recording


@pytest.mark.parametrize(
    ("kind", "extension"),
    [("WAV", "wav"), ("RF64", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("AIFF", "aiff"), ("MP3", "mp3")],
)
def test_the_bytes_tell_the_format_whatever_the_name_says(audio_bytes, kind, extension):
    assert audio_extension(audio_bytes(kind), "lying.xyz") == extension


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (b"\0\0\0\x20ftypM4A ", "m4a"),
        (b"OggS" + bytes(24) + b"OpusHead", "opus"),
        (b"\xff\xfb\x90\x00", "mp3"),
        (b"ID3\x04\0\0\0\0\x01\x00" + bytes(128) + b"\xff\xfb", "mp3"),
        (b"ID3\x04\0\0\0\0\x01\x00" + bytes(128) + b"fLaC", "flac"),
        (b"\xff\xf1\x50\x80", "wav"),  # AAC in ADTS frames is no MP3; the name decides
        (b"<html>", "wav"),
        (b"", "wav"),
    ],
)
def test_headers_and_the_name_when_they_say_nothing(data, extension):
    assert audio_extension(data, "a.WAV") == extension


@pytest.mark.parametrize(("name", "extension"), [("a.oga", "ogg"), ("a.AIF", "aiff"), ("a.aifc", "aiff")])
def test_other_spellings_of_a_name(name, extension):
    assert audio_extension(b"", name) == extension


def test_a_sample_holds_the_bytes_of_the_file(put):
    path = put("a.wav", b"\x00\xff\r\n")
    item = recording("a", "train", "bob", path, "hello", {"take": 3})
    assert (item.group, item.size) == ("bob", 9)
    assert item.sample() == {
        "__key__": "a",
        "wav": b"\x00\xff\r\n",
        "txt": "hello",
        "json": {"speaker": "bob", "take": 3},
    }
    assert "txt" not in recording("a", "train", "bob", path).sample()


def test_the_first_of_two_files_with_one_stem_is_kept_and_the_other_counted(put):
    left_out = LeftOut("set")
    paths = [put("a.flac"), put("a.ogg"), put("b.ogg")]
    assert by_stem(paths, left_out) == {"a": paths[0], "b": paths[2]}
    assert left_out.counts == {"second audio file of the same name": 1}


def test_lines_with_byte_order_mark_any_line_end_and_none_at_the_end(put):
    text = "\ufeffone 1\r\n\r\ntwo 2\n  three\u2028 3"  # U+2028 is no line end here
    assert read_lines(put("a.txt", text)) == ["one 1", "two 2", "three\u2028 3"]
    assert read_lines(put("empty.txt", b"")) == []


def test_latin_1_is_an_error_that_names_the_file(put):
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text \(byte 3\); convert it"):
        read_lines(put("a.txt", "caf\xe9".encode("latin-1")))


def test_pairs_keep_spaces_in_the_value_and_count_what_is_no_pair(put):
    left_out = LeftOut("set")
    assert read_pairs(put("a.txt", "x  one two\ny\tthree\nz\nx four"), left_out) == {"x": "one two", "y": "three"}
    assert left_out.counts == {"line with nothing after the name": 1, "second line for the same name": 1}


def test_the_last_line_without_a_line_end_is_read(real_data):
    pairs = read_pairs(real_data / "odd" / "text" / "no_final_newline.trans.txt", LeftOut("set"))
    assert len(pairs) == 10
    assert pairs["1688-142285-0009"] == "WHY IT MIGHT HAVE BEEN IN THE WORKHOUSE"
