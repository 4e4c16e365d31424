import io
import logging
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmflow.data import index as index_module
from mmflow.data.decode import BadSample
from mmflow.data.index import build, open_shard, open_shards
from mmflow.data.pictures import Picture
from tests.shards import cut_flac, encoded, film, noise

Members = Iterable[tuple[str, bytes]]


def tar_bytes(members: Members, format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path, members: Members) -> str:
    path.write_bytes(tar_bytes(members))
    return str(path)


def content(shard: str) -> dict[str, dict[str, bytes]]:
    """Everything that an index finds, read through it."""
    index = open_shard(shard)
    return {
        key: {e: index.read(row, e) for e in index.offsets if index.offsets[e][row] >= 0}
        for row, key in enumerate(index.keys)
    }


names = st.from_regex(r"([a-z]{1,3}/){0,2}[a-zé ]{1,4}\.[a-c]{1,2}(\.d)?", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(names, st.binary(max_size=1500)), min_size=1, max_size=8, unique_by=lambda member: member[0]),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_the_index_equals_the_view_of_tarfile_and_webdataset(tmp_path_factory, members, format):
    members = sorted(members)  # WebDataset takes neighbours together
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(tar_bytes(members, format))
    seen: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            file: Any = tar.extractfile(member)
            seen.setdefault(f"{folder}/{stem}".lstrip("/"), {})[extension] = file.read()
    assert content(str(path)) == seen
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    theirs: dict[str, dict[str, bytes]] = {}
    for sample in samples:
        theirs.setdefault(sample["__key__"], {}).update({k: v for k, v in sample.items() if not k.startswith("__")})
    assert theirs == seen


def test_samples_have_the_order_of_the_tar_and_any_of_their_members(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("b.txt", b"B"), ("a.TXT", b"A"), ("b.json", b"{}"), ("c.json", b"[]")])
    index = open_shard(shard)
    assert index.keys == ["b", "a", "c"]
    assert [index.extension(row, ["json", "txt"]) for row in range(3)] == ["json", "txt", "json"]
    assert index.extension(1, ["flac"]) is None
    with pytest.raises(BadSample, match=r"no member \.json"):
        index.read(1, "json")


def test_length_of_audio_is_in_the_index_for_each_of_its_members(tmp_path):
    shard = write_tar(
        tmp_path / "a.tar",
        [
            ("a.flac", encoded(noise(0.5))),
            ("a.far.wav", encoded(noise(0.25, rate=8000), "wav", rate=8000)),
            ("b.flac", b"junk"),
            ("c.flac", cut_flac(1.0)),
            ("d.txt", b"no audio"),
        ],
    )
    index = open_shard(shard)
    assert index.frames["flac"].tolist() == [8000, 0, 16_000, 0]
    assert index.rates["flac"].tolist() == [16_000, 0, 16_000, 0]
    assert index.frames["far.wav"].tolist() == [2000, 0, 0, 0]
    assert index.problems == {"flac": {1: "not readable audio: Format not recognised."}}
    assert index.broken == {"flac": 1}
    assert index.counts == {"flac": 3, "far.wav": 1, "txt": 1}
    assert index.measured("flac").tolist() == [[8000, 16_000], [0, 0], [16_000, 16_000]]
    assert index.has("flac").tolist() == [True, True, True, False]


def picture(width: int, height: int, format: str = "PNG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, format, exif=exif)
    return file.getvalue()


def test_upright_sizes_of_pictures_are_in_the_index(tmp_path):
    shard = write_tar(
        tmp_path / "a.tar",
        [
            ("a.jpg", picture(30, 20, "JPEG")),
            ("a.0.png", picture(5, 6)),
            ("a.wav", encoded(noise(0.25), "wav")),
            ("b.jpg", picture(30, 20, "JPEG", orientation=6)),
            ("b.0.png", b""),
            ("c.jpg", b"<html>404</html>"),
            ("d.jpg", picture(7, 9)),
            ("d.webp", picture(11, 12, "WEBP")),
        ],
    )
    index = open_shard(shard)
    assert index.widths["jpg"].tolist() == [30, 20, 0, 7]
    assert index.heights["jpg"].tolist() == [20, 30, 0, 9]
    assert index.widths["0.png"].tolist() == [5, 0, 0, 0]
    assert index.heights["0.png"].tolist() == [6, 0, 0, 0]
    assert (index.widths["webp"][3], index.heights["webp"][3]) == (11, 12)
    assert set(index.frames) == set(index.rates) == {"wav"}
    assert set(index.widths) == set(index.heights) == {"jpg", "0.png", "webp"}
    assert index.problems == {
        "jpg": {2: "not a JPEG, PNG or WebP picture: it begins with b'<html>404</h'"},
        "0.png": {1: "not a JPEG, PNG or WebP picture: it begins with b''"},
    }


def test_no_picture_is_decoded_to_be_indexed(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", picture(30, 20, "JPEG")), ("a.png", picture(30, 20))])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    assert open_shard(shard).problems == {}


def test_sizes_of_odd_pictures_are_those_of_reading_them(tmp_path, real_data):
    paths = sorted((real_data / "odd" / "images").glob("*.[jpw]*"))
    shard = write_tar(tmp_path / "a.tar", [(f"k{i}{path.suffix}", path.read_bytes()) for i, path in enumerate(paths)])
    index = open_shard(shard)
    for row, path in enumerate(paths):
        extension = path.suffix[1:]
        try:
            opened = Picture(path.read_bytes())
            expected, problem = (opened.width, opened.height), None
        except BadSample as error:
            expected, problem = (0, 0), str(error)
        assert (index.widths[extension][row], index.heights[extension][row]) == expected, path.name
        assert index.problems.get(extension, {}).get(row) == problem
    assert len(paths) == 17


def test_header_reading_agrees_with_reading_everything(tmp_path, real_data):
    paths = sorted((real_data / "odd" / "audio").iterdir())
    shard = write_tar(tmp_path / "a.tar", [(f"k{i}{path.suffix}", path.read_bytes()) for i, path in enumerate(paths)])
    index = open_shard(shard)
    for row, path in enumerate(paths):
        if path.suffix == ".m4a":
            continue
        try:
            expected = index_module.audio_size(io.BytesIO(path.read_bytes()))
        except BadSample:
            expected = (0, 0)
        extension = path.suffix[1:]
        assert (index.frames[extension][row], index.rates[extension][row]) == expected, path.name


def test_an_index_stands_beside_its_shard_and_is_read_again(tmp_path, monkeypatch):
    shard = write_tar(
        tmp_path / "a.tar", [("a.flac", encoded(noise(0.1))), ("b.flac", b"junk"), ("c.png", picture(3, 2))]
    )
    first = open_shard(shard)
    assert (tmp_path / "a.tar.idx").exists()
    monkeypatch.setattr(index_module, "build", lambda *_: pytest.fail("built again"))
    again = open_shard(shard)
    assert (again.path, again.keys, again.problems, again.meta) == (first.path, first.keys, first.problems, first.meta)
    for table in ("offsets", "sizes", "frames", "rates", "widths", "heights"):
        ours, theirs = getattr(again, table), getattr(first, table)
        assert {name: values.tolist() for name, values in ours.items()} == {n: v.tolist() for n, v in theirs.items()}


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read through `os.pread` from now on."""
    sizes: list[int] = []
    pread = os.pread

    def counting(handle: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(handle, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    return sizes


def test_opening_reads_a_header_and_one_sample_its_own_few_bytes(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "a.tar", [(f"k{i}.{e}", b"x") for i in range(2000) for e in ("txt", "json")])
    open_shard(shard)
    monkeypatch.setattr(index_module, "build", lambda *_: pytest.fail("built again"))
    sizes = counted_reads(monkeypatch)
    index = open_shard(shard)
    assert (len(index), index.counts, sizes) == (2000, {"txt": 2000, "json": 2000}, [0])
    key, members = index.sample(1234)
    assert key == "k1234"
    assert members["json"] == (members["txt"][0] + 1024, 1)
    assert sum(sizes) < 2000  # of the index's 135 kB: the header once more, 32 + 48 + 5 bytes
    assert (tmp_path / "a.tar.idx").stat().st_size > 130_000


def test_a_header_of_any_length_is_read(tmp_path):
    members = [(f"k.{i}.jpg", b"") for i in range(1000)]
    shard = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):
        index = open_shard(shard)
        assert len(index.counts) == 1000
        assert index.sample(0)[1].keys() == {f"{i}.jpg" for i in range(1000)}


def test_an_index_grows_with_its_members_and_not_with_samples_times_extensions(tmp_path):
    numbered = [(f"k{i}.{i}.{kind}", b"") for i in range(1000) for kind in ("jpg", "ogg")]
    index = open_shard(write_tar(tmp_path / "a.tar", numbered))
    assert (len(index), len(index.counts)) == (1000, 2000)
    assert (tmp_path / "a.tar.idx").stat().st_size < 400_000  # dense tables of 8 bytes would take 64 MB
    assert index.offsets["7.ogg"][7] > 0
    assert (index.offsets["7.ogg"] >= 0).sum() == 1


def test_the_last_of_two_members_of_one_name_counts_and_it_is_told(tmp_path, caplog):
    members = [("a.txt", b"first"), ("b.txt", b"B"), ("a.txt", b"second"), ("b.json", b"{}"), ("a.TXT", b"third")]
    shard = write_tar(tmp_path / "a.tar", members)
    assert content(shard) == {"a": {"txt": b"third"}, "b": {"txt": b"B", "json": b"{}"}}
    assert (
        "a.tar: 2 members come again under the same name, first 'a.txt'; the last of each name is used" in caplog.text
    )


def test_digests_tell_keys_and_lengths_apart(tmp_path):
    def digests(*members: tuple[str, bytes]) -> tuple[str, str]:
        index = build(write_tar(tmp_path / "a.tar", members))
        return index.keys_digest, index.lengths_digest

    long, short = encoded(noise(0.2)), encoded(noise(0.1))
    keys, lengths = digests(("a.flac", long), ("b.flac", short))
    assert digests(("a.flac", long), ("a.txt", b"A"), ("b.flac", encoded(noise(0.1, 7)))) == (keys, lengths)
    assert digests(("a.flac", short), ("b.flac", long))[0] == keys
    assert digests(("a.flac", short), ("b.flac", long))[1] != lengths
    assert digests(("a.wav", encoded(noise(0.2), "wav")), ("b.flac", short))[1] != lengths
    assert digests(("b.flac", long), ("a.flac", short))[0] != keys
    assert digests(("ab.flac", long), ("c.flac", short))[0] != digests(("a.flac", long), ("bc.flac", short))[0]


def test_lengths_of_videos_are_in_the_index(tmp_path):
    members = [("a.mp4", film(2.0, 25)), ("b.mp4", b"no video"), ("c.mp4", film(0.5, 10)), ("d.txt", b"")]
    index = open_shard(write_tar(tmp_path / "a.tar", members))
    assert index.frames["mp4"].tolist() == [50, 0, 5, 0]
    assert index.seconds["mp4"].tolist() == [2.0, 0.0, 0.5, 0.0]
    assert set(index.seconds) == {"mp4"}
    assert index.problems["mp4"].keys() == {1}
    assert index.problems["mp4"][1].startswith("not readable video: ")


def test_the_pictures_of_a_video_are_not_read_to_be_indexed(tmp_path, monkeypatch):
    long = film(1.0) + b"\0\0\0\0free" + bytes(2**22)  # a box to the end of the file
    shard = write_tar(tmp_path / "a.tar", [("a.mp4", long)])
    sizes = counted_reads(monkeypatch)
    assert build(shard).seconds["mp4"].tolist() == [1.0]
    assert sum(sizes) < 2**20


def test_a_million_small_members_take_bounded_memory(tmp_path, monkeypatch):
    """Here 5,000; that the tar's own list is emptied is what bounds the memory for more."""
    shard = write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"") for i in range(5_000)])
    tracemalloc.start()
    assert len(build(shard)) == 5_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # 800 bytes each; with the list it would be 2,000


def test_open_files_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_open", lru_cache(4)(index_module._open_checked))
    monkeypatch.setattr(index_module, "_open_stored", lru_cache(4)(index_module._open_stored.__wrapped__))
    shards = [write_tar(tmp_path / f"{i}.tar", [("a.txt", b"%d" % i)]) for i in range(20)]
    indexes = open_shards(shards)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [index.read(0, "txt") for index in indexes] == [b"%d" % i for i in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 8
    assert index_module.OPEN_COPIES == 16


def test_rows_behind_the_last_are_an_error(tmp_path):
    index = open_shard(write_tar(tmp_path / "a.tar", [("a.txt", b"A")]))
    for row in (1, -1):
        with pytest.raises(IndexError, match=f"row {row} of 1"):
            index.key(row)


def test_an_index_can_be_sent_to_another_process(tmp_path):
    index = open_shard(write_tar(tmp_path / "a.tar", [("a.txt", b"A")]))
    assert pickle.loads(pickle.dumps(index)).read(0, "txt") == b"A"


def test_a_changed_shard_gets_a_new_index(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"old")])
    assert content(shard) == {"a": {"txt": b"old"}}
    os.utime(write_tar(tmp_path / "a.tar", [("a.txt", b"new")]), ns=(1, 1))  # as large as before
    index_module._open.cache_clear()
    assert content(shard) == {"a": {"txt": b"new"}}


def test_a_shard_replaced_under_a_running_program_is_an_error(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"old")])
    index = open_shard(shard)
    write_tar(tmp_path / "a.tar", [("a.txt", bytes(20_000))])
    with pytest.raises(ValueError, match=r"a\.tar has .* bytes, but had .* when it was indexed; start again"):
        index.read(0, "txt")


def test_a_shard_replaced_by_one_as_large_is_an_error(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"old")])
    index = open_shard(shard)
    os.utime(write_tar(tmp_path / "a.tar", [("a.txt", b"new")]), ns=(1, 1))
    with pytest.raises(ValueError, match=r"a\.tar was written again after it was indexed; start again"):
        index.read(0, "txt")


def test_an_index_replaced_under_a_running_program_is_an_error(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"old")])
    index = open_shard(shard)
    write_tar(tmp_path / "a.tar", [("a.txt", b"A"), ("b.txt", b"B")])
    open_shard(shard)
    with pytest.raises(ValueError, match=r"a\.tar\.idx was made again for another shard of this name .*; start again"):
        index.read(0, "txt")


def test_a_damaged_index_is_built_again(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"A")])
    open_shard(shard)
    place = tmp_path / "a.tar.idx"
    whole = place.read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    other = header.replace(rb"mtime_ns\": \"", rb"mtime_ns\": \"1")
    for damaged in (
        b"",
        b"junk",
        b"\xff" * 100,
        whole[:100],
        whole[:-1],
        whole + b"x",
        len(other).to_bytes(8, "little") + other + whole[8 + len(header) :],
        len(b"[1]").to_bytes(8, "little") + b"[1]",
        whole.replace(b"samples", b"sample5"),
        whole.replace(rb"version\": \"4", rb"version\": \"3"),
    ):
        assert damaged != whole
        place.write_bytes(damaged)
        index_module._open_stored.cache_clear()
        assert open_shard(shard).keys == ["a"]
        assert place.read_bytes() == whole


def test_the_index_goes_to_the_cache_where_the_folder_cannot_be_written(tmp_path, cache, monkeypatch):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"A")])
    save = index_module._save

    def refuse(index: Any, path: Path) -> None:  # root may write anywhere, so the mode does not do
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        save(index, path)

    monkeypatch.setattr(index_module, "_save", refuse)
    open_shard(shard)
    assert not (tmp_path / "a.tar.idx").exists()
    assert len(list((cache / "index").iterdir())) == 1
    monkeypatch.setattr(index_module, "build", lambda *_: pytest.fail("built again"))
    assert open_shard(shard).keys == ["a"]


def test_an_index_of_energon_is_left_alone(tmp_path, cache):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"A")])
    theirs = np.array([0, 1024], dtype="<u8").tobytes()
    (tmp_path / "a.tar.idx").write_bytes(theirs)
    assert open_shard(shard).keys == ["a"]
    assert (tmp_path / "a.tar.idx").read_bytes() == theirs
    assert len(list((cache / "index").iterdir())) == 1


def test_an_index_that_can_be_stored_nowhere_is_used_all_the_same(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "a.tar", [("a.txt", b"A")])

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index_module, "_save", refuse)
    (index,) = open_shards([shard])
    assert (index.keys, index.read(0, "txt")) == (["a"], b"A")


def test_what_is_no_tar_is_named(tmp_path):
    for name, data in {"empty.tar": b"", "text.tar": b"<html>" * 500}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is not a plain tar file .*; remove it or make the shards again"):
            open_shard(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"absent\.tar"):
        open_shard(str(tmp_path / "absent.tar"))


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ValueError, match=r"a\.tar is not a plain tar file"):
        open_shard(str(tmp_path / "a.tar"))


def test_a_tar_without_members_is_an_empty_shard(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [])
    assert len(open_shard(shard)) == 0
    assert len(open_shard(shard)) == 0
    assert (tmp_path / "a.tar.idx").exists()


@pytest.mark.parametrize("cut", [700, 1024, 1300, 1536, 2047, 2100, 2560])
def test_a_tar_that_is_cut_off_keeps_the_samples_before_the_cut_and_says_so(tmp_path, caplog, cut):
    whole = tar_bytes([("a.txt", b"A" * 512), ("b.txt", b"B" * 512), ("c.txt", b"C" * 512)])
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    index = open_shard(str(tmp_path / "a.tar"))
    assert index.keys == ["a", "b", "c"][: cut // 1024]
    for row, key in enumerate(index.keys):
        assert index.read(row, "txt") == key.upper().encode() * 512
    assert f"a.tar is damaged after {cut // 1024} samples" in caplog.text


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path, caplog):
    whole = bytearray(tar_bytes([("a.txt", b"A"), ("b.txt", b"B")]))
    whole[1024 + 148] ^= 1  # in the checksum of the second header
    (tmp_path / "a.tar").write_bytes(whole)
    assert open_shard(str(tmp_path / "a.tar")).keys == ["a"]
    assert "a.tar is damaged after 1 samples (no header at byte 1024)" in caplog.text


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_tar_with_any_damage_is_read_in_part_or_refused(tmp_path_factory, data):
    whole = bytearray(tar_bytes([("a.txt", b"A"), ("b" * 120 + ".json", b"{}")]))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(whole)
    try:
        for sample in content(str(path)).values():
            assert all(len(value) <= len(whole) for value in sample.values())
    except (ValueError, BadSample):
        pass


def test_a_shard_that_loses_its_end_later_costs_the_samples_there(tmp_path):
    path = Path(write_tar(tmp_path / "a.tar", [("a.txt", b"A" * 512), ("b.txt", b"B" * 512)]))
    index = open_shard(str(path))
    assert index.read(0, "txt") == b"A" * 512
    os.truncate(path, 1700)
    assert index.read(0, "txt") == b"A" * 512
    with pytest.raises(BadSample, match=r"\.txt: 164 of 512 bytes; the shard is cut off"):
        index.read(1, "txt")


def test_a_member_that_is_too_large_is_a_bad_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "MAX_MEMBER_BYTES", 1000)
    index = open_shard(write_tar(tmp_path / "a.tar", [("a.wav", encoded(noise(1.0), "wav")), ("a.txt", b"A")]))
    assert index.problems == {"wav": {0: "32044 bytes, more than 1000"}}
    with pytest.raises(BadSample, match=r"\.wav has 32044 bytes, more than 1000"):
        index.read(0, "wav")


def test_names_in_a_tar_are_keys_and_never_paths(tmp_path, caplog):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in (
            "../../outside.txt",
            "/etc/absolute.txt",
            "./here.txt",
            "__x__/hidden.txt",
            "__x__.txt",
            "n\nl.txt",
        ):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        for name, kind in {
            "soft.txt": tarfile.SYMTYPE,
            "hard.txt": tarfile.LNKTYPE,
            "pipe.txt": tarfile.FIFOTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo(".hidden"))
        tar.addfile(tarfile.TarInfo("README"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(file.getvalue())
    shard = str(tmp_path / "in" / "a.tar")
    with caplog.at_level(logging.WARNING):
        assert list(content(shard)) == ["../../outside", "/etc/absolute", "./here", "__x__", "n\nl"]
    assert list(content(shard)) == [
        "../../outside",
        "/etc/absolute",
        "./here",
        "__x__",
        "n\nl",
    ]  # from the stored index
    assert (
        "5 members are links, special files or without key and extension, and not used; first 'soft.txt'" in caplog.text
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "a.tar.idx", "in"]


def test_names_that_are_not_utf_8_are_kept(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("gr\xfc\xdfe.txt"))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    for _ in range(2):
        assert open_shard(str(tmp_path / "a.tar")).keys == ["gr\udcfc\udcdfe"]


def test_keys_with_dots_are_refused_before_they_cost_memory(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [(f"speaker.{i}.txt", b"") for i in range(100)])
    with pytest.raises(ValueError, match=r"more than 64 different extensions, the last \.64\.txt of 'speaker.64.txt'"):
        open_shard(shard)


def test_many_shards_are_indexed_in_order(tmp_path):
    shards = [write_tar(tmp_path / f"{i}.tar", [(f"k{i}.txt", b"")]) for i in range(5)]
    open_shard(shards[2])
    assert [index.keys for index in open_shards(shards)] == [[f"k{i}"] for i in range(5)]


@pytest.mark.slow
def test_large_shards_are_indexed_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "SERIAL_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    shards = [write_tar(tmp_path / f"{i}.tar", [(f"k{i}.flac", encoded(noise(0.1)))]) for i in range(3)]
    parallel = open_shards(shards)
    assert [index.keys for index in parallel] == [["k0"], ["k1"], ["k2"]]
    assert [index.frames["flac"].tolist() for index in parallel] == [[1600]] * 3
    assert [build(shard).offsets["flac"].tolist() for shard in shards] == [
        index.offsets["flac"].tolist() for index in parallel
    ]
    np.testing.assert_array_equal(parallel[0].sizes["flac"], open_shard(shards[0]).sizes["flac"])
