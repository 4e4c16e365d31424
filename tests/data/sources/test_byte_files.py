import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmflow.data.make import build_source
from mmflow.data.sources.byte_files import ByteFiles
from mmflow.data.spec import DataSpec
from tests.data.sources.made import made

SPECS = Path(__file__).parents[3] / "data_specs"


def pieces(root, **options):
    return [(split, sample["json"]["path"], sample["bin"]) for split, sample in made(ByteFiles(**options), root)]


def whole(samples) -> dict[str, bytes]:
    """Path -> its pieces put together in the order of their keys."""
    found = defaultdict(bytes)
    for _, sample in sorted(samples, key=lambda pair: pair[1]["__key__"]):
        assert sample["json"]["offset"] == len(found[sample["json"]["path"]])
        found[sample["json"]["path"]] += sample["bin"]
    return found


def test_pieces_end_at_line_ends_where_there_are_any(put, tmp_path):
    put("train.txt", b"one\ntwo\nthree\n" + b"x" * 20 + b"\nlast")
    put("valid.txt", b"\r\n")
    put("test.txt", b"\xff\x00")
    assert pieces(tmp_path, max_bytes=8) == [
        ("train", "train.txt", b"one\ntwo\n"),
        ("train", "train.txt", b"three\n"),
        ("train", "train.txt", b"x" * 8),
        ("train", "train.txt", b"x" * 8),
        ("train", "train.txt", b"x" * 4 + b"\n"),
        ("train", "train.txt", b"last"),
        ("validation", "valid.txt", b"\r\n"),
        ("test", "test.txt", b"\xff\x00"),
    ]


def test_all_byte_values_come_back_with_their_hash(put, tmp_path):
    content = bytes(range(256)) * 40
    put("a/all.dat", content)
    samples = made(ByteFiles(max_bytes=1000), tmp_path)
    assert whole(samples) == {"a/all.dat": content}
    assert {sample["__key__"] for _, sample in samples} == {f"000000-{i:06d}" for i in range(len(samples))}
    assert all(len(sample["bin"]) <= 1000 for _, sample in samples)
    assert samples[0][1]["json"] == {
        "path": "a/all.dat",
        "num_bytes": 10_240,
        "sha256": hashlib.sha256(content).hexdigest(),
        "offset": 0,
    }


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_single_file_is_split_in_its_own_order(put, tmp_path, named):
    lines = [f"line {i:03d}\n".encode() for i in range(200)]  # 9 bytes each
    path = put("plays/valid.txt", b"".join(lines))
    found = pieces(path if named == "file" else tmp_path, max_bytes=90)
    parts = {split: b"".join(data for s, _, data in found if s == split) for split in ("train", "validation", "test")}
    assert parts == {
        "train": b"".join(lines[:160]),
        "validation": b"".join(lines[160:180]),
        "test": b"".join(lines[180:]),
    }
    assert {name for _, name, _ in found} == {"valid.txt" if named == "file" else "plays/valid.txt"}


def test_the_cuts_of_a_single_file_move_back_to_line_ends(put):
    found = pieces(put("a.txt", b"x" * 75 + b"\n" + b"y" * 12 + b"\n" + b"z" * 11))
    assert found == [
        ("train", "a.txt", b"x" * 75 + b"\n"),
        ("validation", "a.txt", b"y" * 12 + b"\n"),
        ("test", "a.txt", b"z" * 11),
    ]


def test_a_single_line_is_cut_anywhere(put):
    found = pieces(put("a.txt", b"x" * 100))
    assert [(split, len(data)) for split, _, data in found] == [("train", 80), ("validation", 10), ("test", 10)]


@given(st.binary(min_size=1, max_size=300), st.integers(1, 40))
def test_any_file_comes_back_whole_in_pieces_of_any_size(tmp_path_factory, content, max_bytes):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(content)
    samples = made(ByteFiles(max_bytes=max_bytes), path)
    assert whole(samples) == {"any.bin": content}
    assert all(0 < len(sample["bin"]) <= max_bytes for _, sample in samples)


def test_a_folder_is_split_by_file(put, tmp_path, caplog):
    for i in range(30):
        put(f"{i % 3}/{i:02d}.log", f"{i}\n" * 50)
    found = pieces(tmp_path, max_bytes=20)
    splits = {name: split for split, name, _ in found}
    assert Counter(splits.values()) == {"train": 24, "validation": 3, "test": 3}
    assert all(splits[name] == split for split, name, _ in found)
    assert "is cut by file" in caplog.text


def test_names_of_files_and_top_folders_say_the_part(put, tmp_path):
    for i, name in enumerate(["wiki.train.tokens", "dev/a.py", "Test/deep/b.py", "latest.txt", "x/test/c.py"]):
        put(f"set/{name}", f"{i}")
    assert {name: split for split, name, _ in pieces(tmp_path / "set")} == {
        "wiki.train.tokens": "train",
        "dev/a.py": "validation",
        "Test/deep/b.py": "test",
        "latest.txt": "train",
        "x/test/c.py": "train",
    }


def test_empty_and_repeated_files_are_counted(put, tmp_path, caplog):
    for name in ("train/a", "test/a", "test/b", "valid/c"):
        put(name, name[-1])
    put("empty.txt", "")
    put(".hidden", "secret")
    assert {name for _, name, _ in pieces(tmp_path)} == {"test/a", "test/b", "valid/c"}
    assert "1 x empty file" in caplog.text
    assert "1 x file with the same bytes as another" in caplog.text


def test_only_names_with_the_wanted_endings_are_taken(put, tmp_path):
    put("a.TXT", "text")
    put("README.md", "about")
    assert {name for _, name, _ in pieces(tmp_path, endings=[".txt"])} == {"a.TXT"}


def test_links_out_of_the_folder_are_not_followed(put, tmp_path, caplog):
    secret = put("secret.txt", "secret")
    put("set/a.txt", "a")
    (tmp_path / "set" / "b.txt").symlink_to(secret)
    assert {name for _, name, _ in pieces(tmp_path / "set")} == {"a.txt"}
    assert "1 x link out of the folder" in caplog.text


def test_nothing_to_read_is_an_error(put, tmp_path):
    put("empty.txt", "")
    with pytest.raises(ValueError, match=r"holds no file with any bytes in it, with a name in \['\.py'\]"):
        pieces(tmp_path, endings=[".py"])
    with pytest.raises(ValueError, match="holds no file with any bytes in it, with a name in anything"):
        pieces(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file or folder .*absent; name one with --root"):
        pieces(tmp_path / "absent")


def test_pieces_without_a_byte_are_refused():
    with pytest.raises(ValueError, match="max_bytes=0 must be at least 1, for example 65536"):
        ByteFiles(max_bytes=0)


def test_the_real_plays_are_cut_as_nanogpt_cuts_them(real_data):
    samples = made(build_source(DataSpec.read(SPECS / "tinyshakespeare.yaml")), real_data / "tinyshakespeare")
    content = (real_data / "tinyshakespeare" / "input.txt").read_bytes()
    assert whole(samples) == {"input.txt": content}
    assert Counter(split for split, _ in samples) == {"train": 55, "validation": 7, "test": 7}
    held_out = b"".join(sample["bin"] for split, sample in samples if split == "test")
    assert content.endswith(held_out)
    assert 0 <= len(held_out) - 111_540 < 100  # 0.1 x 1115394, and the rest of a line
    assert all(sample["bin"].endswith(b"\n") for _, sample in samples)


def test_the_real_articles(real_data):
    samples = made(build_source(DataSpec.read(SPECS / "wikitext2.yaml")), real_data / "wikitext-2")
    assert whole(samples) == {"valid.txt": (real_data / "wikitext-2" / "valid.txt").read_bytes()}
    assert {split for split, _ in samples} == {"train", "validation", "test"}


def test_odd_texts_come_back_untouched(real_data):
    folder = real_data / "odd" / "text"
    expected = {path.name: path.read_bytes() for path in folder.iterdir() if path.stat().st_size}
    assert whole(made(ByteFiles(max_bytes=100), folder)) == expected
