"""Data that is made to do harm: nothing is run or unpickled, nothing outside is read, written or asked, and memory and
time stay within the bounds of the modules. One such member costs its sample, one such file is an error that names it.
"""

import bz2
import contextlib
import gzip
import http.server
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmflow.data import remote
from mmflow.data.corpus import Corpus
from mmflow.data.decode import decode
from mmflow.data.errors import BadSample
from mmflow.data.index import build, open_shard, open_shards
from mmflow.data.make import make
from mmflow.data.pictures import Picture
from mmflow.data.remote import cache_folder, fetch, is_remote
from mmflow.data.show import show_page
from mmflow.data.spec import DataSpec
from mmflow.data.video import Video
from mmflow.pipeline import read_yaml
from tests.data.test_video import movie
from tests.shards import encoded, noise, write_data_set, write_spec

SPECS = Path(__file__).parents[2] / "data_specs"
BLOCK, END = 512, bytes(1024)  # of a tar
SECRET = "what no shard may hold"


@contextlib.contextmanager
def peak_below(num_bytes: int) -> Iterator[None]:
    """Fails if Python and NumPy take more memory than this meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < num_bytes
    finally:
        tracemalloc.stop()


# ---- making tars that no program would write


def number(value: int) -> bytes:
    """A number as GNU tar writes those that do not fit octal digits: base 256, also below zero."""
    return (b"\x80" if value >= 0 else b"\xff") + (value % 2**88).to_bytes(11, "big")


def header(name: bytes, size: bytes, kind: bytes = b"0", fields: dict[int, bytes] | None = None) -> bytes:
    """One block, with other fields at their offsets and the right checksum."""
    block = bytearray(BLOCK)
    for at, value in ({0: name, 100: b"0000644", 124: size, 156: kind, 257: b"ustar\x0000"} | (fields or {})).items():
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, b"%011o" % len(data), kind) + padded(data)


def pax(*records: tuple[str, str]) -> bytes:
    """An extended header for the member that follows."""
    lines = b""
    for key, value in records:
        body = f" {key}={value}\n".encode()
        length = next(n for n in range(len(body), len(body) + 9) if n == len(body) + len(str(n)))
        lines += str(length).encode() + body
    return member(b"PaxHeaders/x", lines, b"x")


GOOD = member(b"good.txt", b"good")


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def opened(folder: Path, samples: list[dict[str, Any]], **fields: list[str]) -> Corpus:
    """A corpus of one shard with these samples."""
    return Corpus([DataSpec.read(write_data_set(folder, {"train": [samples]}, fields=fields))], "train", list(fields))


# ---- pickles


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def trapped(path: Path) -> dict[str, bytes]:
    """Files of every kind that would run something when they are loaded."""
    files = {extension: pickle.dumps(Trap(path)) for extension in ("pkl", "pickle", "pyd", "cls", "joblib", "ten")}
    array, arrays, weights = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Trap(path)], dtype=object), allow_pickle=True)
    np.savez(arrays, a=np.array([Trap(path)], dtype=object))
    torch.save(Trap(path), weights)
    files |= dict.fromkeys(("pth", "pt", "ckpt"), weights.getvalue())
    return files | {"npy": array.getvalue(), "npz": arrays.getvalue(), "units.npy": array.getvalue()}


def test_nothing_in_a_shard_is_unpickled(tmp_path):
    trap = tmp_path / "trap"
    pickle.loads(trapped(trap)["pkl"])
    assert trap.exists()  # it works
    trap.unlink()
    sample = trapped(trap) | {"txt": b"text"}
    corpus = opened(tmp_path, [sample], text=["txt"])
    assert corpus.read(0)["text"] == "text"
    for extension in sample.keys() - {"npy", "units.npy", "txt"}:
        spec = DataSpec.read(write_spec(tmp_path / "toy", tmp_path, fields={"x": [extension]}))
        with pytest.raises(ValueError, match=rf"field 'x' names \.{extension}, for which there is no decoder"):
            Corpus([spec], "train", ["x"])
    for extension in ("npy", "units.npy"):
        spec = DataSpec.read(write_spec(tmp_path / "toy", tmp_path, fields={"x": [extension]}))
        with pytest.raises(BadSample, match="it holds Python objects, which are never unpickled"):
            Corpus([spec], "train", ["x"]).read(0)
    for data in sample.values():
        for extension in ("json", "txt", "npy", "jpg", "flac", "mp4", "bin"):
            with contextlib.suppress(BadSample):
                decode(data, extension)
    assert not trap.exists()


def test_an_index_is_never_unpickled(tmp_path):
    shard = write(tmp_path / "a.tar", GOOD + END)
    for data in trapped(tmp_path / "trap").values():
        (tmp_path / "a.tar.idx").unlink(missing_ok=True)
        write(tmp_path / "a.tar.idx", data)
        assert open_shard(shard).keys == ["good"]
    assert not (tmp_path / "trap").exists()


def npy(shape: str, kind: str, values: bytes = b"") -> bytes:
    """An array file with what NumPy does not write; `kind` is Python source."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + values


@pytest.mark.parametrize(
    "data",
    [
        npy("(5,)", "'|V0'"),
        npy("(10000000000000,)", "'|S0'"),
        npy("(-1, -8)", "'|u1'", bytes(8)),
        npy("(-8,)", "'|u1'", bytes(8)),
        npy("(" + "1," * 100 + ")", "'|u1'", b"x"),
        npy("(0, 4611686018427387904, 4611686018427387904)", "'|u1'"),
        npy("(0, 10000000000000000000000)", "'|u1'"),
        npy("(True, 8)", "'|u1'", bytes(8)),
        npy("(0x" + "f" * 9000 + ",)", "'|u1'"),
        npy("(2,)", "[('a', '<i4'), ('b', '|O')]", bytes(24)),
        npy("(1,)", "[" * 400 + "]" * 400, bytes(8)),
        npy("(1,)", "__import__('os').abort()", bytes(8)),
        npy("(1,)", "'|V9223372036854775807'", bytes(8)),
        b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(100),
    ],
)
def test_arrays_with_absurd_headers_are_bad_samples(data):
    with pytest.raises(BadSample, match="not a plain npy array"):
        decode(data, "npy")


# ---- names and links


def secret(folder: Path) -> Path:
    """A picture that says something that is found wherever it is copied to."""
    path = folder / "outside" / "secret.jpg"
    path.parent.mkdir()
    Image.new("RGB", (8, 8)).save(path, comment=SECRET.encode())
    return path


def test_names_in_a_shard_are_never_paths(tmp_path):
    """Absolute ones, `..`, links, devices, pipes, and a name that a reader could take for a command."""
    outside = secret(tmp_path)
    names = [str(outside), "../outside/secret.jpg", "/dev/zero.jpg", "pipe:touch ran.jpg", "file:///etc/passwd.jpg"]
    kinds = {b"1": b"hard.jpg", b"2": b"soft.jpg", b"3": b"character.jpg", b"4": b"block.jpg", b"6": b"fifo.jpg"}
    tar = GOOD + b"".join(member(name.encode(), b"junk") for name in names)
    for kind, name in kinds.items():
        tar += header(name, b"0" * 11, kind, {157: str(outside).encode(), 329: b"0000001", 337: b"0000005"})
    folder = tmp_path / "toy"
    folder.mkdir()
    write(folder / "train-0.tar", tar + END)
    before = sorted(tmp_path.rglob("*"))
    corpus = Corpus([DataSpec.read(write_spec(folder, tmp_path, fields={"image": ["jpg"]}))], "train", ["image"])
    assert [corpus.name(n)[1] for n in range(len(corpus))] == ["good", *(name.removesuffix(".jpg") for name in names)]
    for number in range(1, 1 + len(names)):  # each has the bytes that stand in the tar
        with pytest.raises(BadSample, match="not a JPEG, PNG or WebP picture: it begins with b'junk'"):
            corpus.read(number)
    made = {folder / "train-0.tar.idx", tmp_path / "toy.yaml"}
    assert set(tmp_path.rglob("*")) - set(before) == made


def coco(folder: Path, name: str) -> None:
    photos = [{"id": 1, "file_name": "good.jpg"}, {"id": 2, "file_name": name}]
    captions = [{"image_id": number, "caption": "A cat."} for number in (1, 2)]
    (folder / "annotations").mkdir()
    path = folder / "annotations" / "captions_train2017.json"
    path.write_text(json.dumps({"images": photos, "annotations": captions}))


def flickr8k(folder: Path, name: str) -> None:
    (folder / "captions.txt").write_text(f"image,caption\ngood.jpg,A cat.\n{name},A cat.\n")


def cc3m(folder: Path, name: str) -> None:
    (folder / "train.tsv").write_text(f"A cat.\thttp://a/b\tgood.jpg\nA cat.\thttp://a/c\t{name}\n")


def mmc4(folder: Path, name: str) -> None:
    lines = [{"content": [{"type": "image", "image": image}]} for image in ("train2017/good.jpg", name)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))


LAYOUTS = {"coco_captions": coco, "flickr8k": flickr8k, "cc3m": cc3m, "mmc4": mmc4}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "way", ["../outside/secret.jpg", "{}", "train2017/../../outside/secret.jpg", "train2017/link.jpg", "link.jpg"]
)
def test_names_in_metadata_never_lead_out_of_the_data_set(tmp_path, layout, way):
    outside = secret(tmp_path)
    folder = tmp_path / "original"
    (folder / "train2017").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "train2017" / "good.jpg")
    (folder / "train2017" / "link.jpg").symlink_to(outside)
    LAYOUTS[layout](folder, way.format(outside))
    spec = DataSpec.read(SPECS / f"{layout}.yaml")
    assert sum(make(spec, folder, tmp_path / "shards", workers=1, progress=False).values()) == 1
    shards = list((tmp_path / "shards").rglob("*.tar"))
    assert len(shards) == 1
    assert SECRET.encode() in outside.read_bytes()
    assert SECRET.encode() not in shards[0].read_bytes()


# ---- headers of tars


def sparse(*map: str) -> bytes:
    records = ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(2**60))
    return pax(*records, ("GNU.sparse.name", "s.txt")) + member(
        b"b.txt", padded("".join(f"{line}\n" for line in map).encode()) + b"b"
    )


HEADERS = {
    "a member of 2^60 bytes": header(b"b.txt", number(2**60)),
    "a member of 2^80 bytes": header(b"b.txt", number(2**80)),
    "a member of -512 bytes": header(b"b.txt", number(-512)),
    "a member of -2^70 bytes": header(b"b.txt", number(-(2**70))),
    "a member whose size is no number": header(b"b.txt", b"zzzzzzzzzzz"),
    "a folder of 2^60 bytes": header(b"b/", number(2**60), b"5"),
    "a link of 2^60 bytes": header(b"b.txt", number(2**60), b"2", {157: b"/etc/passwd"}),
    "2^60 bytes in an extended header": pax(("size", str(2**60))) + member(b"b.txt", b"b"),
    "-1024 bytes in an extended header": pax(("size", "-1024")) + member(b"b.txt", b"b"),
    "2^60 bytes in a header for all": member(b"x", b"28 size=1152921504606846976\n", b"g") + member(b"b.txt", b"b"),
    "an extended header of 2^60 bytes": header(b"x", number(2**60), b"x"),
    "an extended header of 100 GiB": header(b"x", number(100 * 2**30), b"x"),
    "an extended header of -512 bytes": header(b"x", number(-512), b"x"),
    "an extended header whose record has no length": member(b"x", b"0 size=1\n", b"x") + member(b"b.txt", b"b"),
    "a record of 10^50 bytes": member(b"x", b"9" * 50 + b" size=1\n", b"x") + member(b"b.txt", b"b"),
    "3000 extended headers": pax(("comment", "x")) * 3000 + member(b"b.txt", b"b"),
    "a name of 2^60 bytes": header(b"x", number(2**60), b"L"),
    "a name of -1 bytes": header(b"x", number(-1), b"L"),
    "a sparse member of 2^60 bytes": header(b"b.txt", b"1", b"S", {386: b"0" * 11, 398: number(2**60)}) + bytes(512),
    "a sparse member in an extended header": sparse("1", "0", "1"),
    "a sparse member without a map": sparse("x"),
    "a sparse member with 10^12 parts": sparse("999999999999", "0", "1"),
    "a sparse map that is none": pax(("GNU.sparse.map", "0,1,x"), ("GNU.sparse.size", "5")) + member(b"b.txt", b"b"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_absurd_headers_cost_the_rest_of_their_tar(tmp_path, caplog, what):
    with peak_below(16 * 2**20):
        index = build(write(tmp_path / "a.tar", GOOD + HEADERS[what] + END))
    assert (index.keys[0], index.read(0, "txt")) == ("good", b"good")
    assert not any(index.sample(row)[1]["txt"][1] > 2 for row in range(1, len(index)))
    assert "a.tar" in caplog.text  # the damage or the member that was passed over is told
    first = write(tmp_path / "b.tar", HEADERS[what] + END)  # with nothing before it
    try:
        assert len(open_shard(first)) <= 1
    except ValueError as error:
        assert "b.tar is not a plain tar file" in str(error)  # noqa: PT017 (either is right)


def tiny_members(start: int, stop: int) -> bytes:
    """The headers of empty members with the names `0000000.txt`, ... (numbers below 10^7)."""
    blank = np.frombuffer(header(b"0000000.txt", b"0" * 11), np.uint8)
    blocks = np.tile(blank, (stop - start, 1))
    digits = np.arange(start, stop)[:, None] // 10 ** np.arange(6, -1, -1) % 10
    blocks[:, :7] += digits.astype(np.uint8)
    sums = int(header(b"0000000.txt", b"0" * 11)[148:154], 8) + digits.sum(1)
    blocks[:, 148:154] = sums[:, None] // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
    return blocks.tobytes()


INDEXED = """
import resource, sys
from mmflow.data.index import build

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(build(sys.argv[1])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("count", [5_000, pytest.param(250_000, marks=pytest.mark.slow)])
def test_memory_for_many_tiny_members_is_small(tmp_path, count):
    with (tmp_path / "a.tar").open("wb") as file:
        for start in range(0, count, 5_000):
            file.write(tiny_members(start, start + 5_000))
        file.write(END)
    child = [sys.executable, "-c", INDEXED, str(tmp_path / "a.tar")]
    found, grown = map(int, subprocess.run(child, capture_output=True, text=True, check=True).stdout.split())
    assert found == count
    assert grown * 1024 < 600 * count + 20 * 2**20  # bytes; tarfile's own list takes 1,000 for each


# ---- the same key twice


def test_a_key_that_comes_twice_is_told(tmp_path, caplog):
    shard = write(tmp_path / "a.tar", member(b"a.txt", b"first") + member(b"a.txt", b"second") + GOOD + END)
    index = open_shard(shard)
    assert (index.keys, index.read(0, "txt")) == (["a", "good"], b"second")  # as unpacking it leaves it
    assert "a.tar" in caplog.text
    assert "'a.txt'" in caplog.text


# ---- shards and indexes that change


def test_a_shard_replaced_by_one_of_the_same_size_is_an_error(tmp_path):
    path = tmp_path / "a.tar"
    index = open_shard(write(path, member(b"a.txt", b"old") + END))
    (tmp_path / "new").write_bytes(member(b"a.txt", b"new") + END)
    os.utime(tmp_path / "new", ns=(1, 1))
    (tmp_path / "new").replace(path)
    with pytest.raises(ValueError, match=r"a\.tar was written again after it was indexed; start again"):
        index.read(0, "txt")


def test_a_shard_cut_while_it_is_read_costs_the_samples_behind_the_cut(tmp_path):
    corpus = opened(tmp_path, [{"txt": b"A" * 2000}, {"txt": b"B" * 2000}], text=["txt"])
    assert corpus.read(0)["text"] == "A" * 2000
    os.truncate(tmp_path / "toy" / "train-000000.tar", 3000)
    assert corpus.read(0)["text"] == "A" * 2000
    with pytest.raises(BadSample, match="the shard is cut off"):
        corpus.read(1)


@pytest.mark.parametrize("part", ["rows", "members", "keys"])
@pytest.mark.parametrize("value", [-1, -(2**62), 2**40, 2**62])
def test_a_tampered_index_reads_nothing_but_its_shard(tmp_path, part, value):
    path = write(tmp_path / "a.tar", GOOD + member(b"a.wav", encoded(noise(0.1), "wav")) + END)
    open_shard(path)
    stored = bytearray((tmp_path / "a.tar.idx").read_bytes())
    start = 8 + int.from_bytes(stored[:8], "little")
    begin, end = json.loads(stored[8:start])[part]["data_offsets"]
    for at in range(start + begin, start + end - 7, 8):
        struct.pack_into("<q", stored, at, value)
    (tmp_path / "a.tar.idx").unlink()
    write(tmp_path / "a.tar.idx", bytes(stored))
    index = open_shard(path)
    for row in range(2):
        with contextlib.suppress(ValueError):  # as a BadSample is one
            for extension in index.sample(row)[1]:
                assert index.read(row, extension) in Path(path).read_bytes()


# ---- pictures


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *before: bytes, pixels: bytes = b"\0\0", behind: bytes = b"") -> bytes:
    """8-bit grey."""
    start = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + b"".join(before)
    return start + chunk(b"IDAT", zlib.compress(pixels)) + behind + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg_of(width: int, height: int) -> bytes:
    """A small picture that says it is larger."""
    data = saved(Image.new("L", (64, 48)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp_of(width: int, height: int, flags: int) -> bytes:
    """A small picture on a larger canvas; flag 2 says that it moves."""
    data = saved(Image.new("RGB", (9, 9)), "WEBP", lossless=True)
    canvas = (
        b"VP8X" + struct.pack("<IB3x", 10, flags) + b"".join((n - 1).to_bytes(3, "little") for n in (width, height))
    )
    return b"RIFF" + struct.pack("<I", len(data) - 8 + len(canvas)) + b"WEBP" + canvas + data[12:]


BOMB = zlib.compress(bytes(2**26))
PICTURES = {
    "a PNG of 50,000 x 50,000": png(50_000, 50_000),
    "a PNG of 2^31 x 2^31": png(2**31 - 1, 2**31 - 1),
    "a PNG of 2^32 - 1 x 1": png(2**32 - 1, 1),
    "text in a PNG": png(1, 1, chunk(b"zTXt", b"C\0\0" + BOMB)),
    "text behind the pixels": png(1, 1, behind=chunk(b"zTXt", b"C\0\0" + BOMB)),
    "international text": png(1, 1, chunk(b"iTXt", b"C\0\1\0\0\0" + BOMB)),
    "many texts": png(1, 1, *[chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(2**20 - 9)))] * 70),
    "a colour profile": png(1, 1, chunk(b"iCCP", b"C\0\0" + BOMB)),
    "a frame of 50,000 x 50,000": png(
        1,
        1,
        chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        chunk(b"fcTL", struct.pack(">5I6x", 0, 50_000, 50_000, 0, 0)),
    ),
    "a JPEG of 65,535 x 65,535": jpeg_of(65_535, 65_535),
    "a WebP of 16,383 x 16,383": webp_of(16_383, 16_383, 0),
    "a moving WebP of 16,383 x 16,383": webp_of(16_383, 16_383, 2),
    "a WebP of 2^24 x 2^24": webp_of(2**24, 2**24, 2),
}


@pytest.mark.parametrize("what", PICTURES)
def test_bombs_among_pictures_are_refused_before_they_cost_memory(what):
    with peak_below(200 * 2**20), pytest.raises(BadSample):
        Picture(PICTURES[what]).tensor((8, 8))


def test_more_pixels_than_the_header_says_are_not_unpacked():
    data = png(1, 1, pixels=bytes(2**27))
    with peak_below(2**20):
        assert Picture(data).tensor().shape == (3, 1, 1)


def test_a_jpeg_with_very_many_scans_is_refused():
    """23 bytes of a scan cost a pass over all pixels: 100 MP in 40 kB would take minutes."""
    data = saved(Image.new("L", (64, 48)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert Picture(data[:-2] + scan * 50 + data[-2:]).tensor().shape == (3, 48, 64)
    for picture in (data[:-2] + scan * 200 + data[-2:], data[:-2] + scan * 100_000 + data[-2:]):
        with pytest.raises(BadSample, match="more than 200 scans"):
            Picture(picture).tensor()
    thumbnails = b"\xff\xda" * 1000  # as any bytes behind a picture may have them
    assert Picture(data + thumbnails).tensor().shape == (3, 48, 64)


OTHERS = {  # formats of which Pillow or ImageMagick open files, start programs or have had holes
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "mvg": b"push graphic-context\nimage over 0,0 0,0 'url(http://127.0.0.1/)'\n",
    "msl": b"<?xml version='1.0'?><image><read filename='/etc/passwd'/></image>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\n",
    "pdf": b"%PDF-1.4\n",
    "psd": b"8BPS\0\1" + bytes(20),
    "fits": b"SIMPLE  =                    T" + bytes(2880),
    "dds": b"DDS " + bytes(124),
    "tiff": b"II*\0" + bytes(20),
    "bmp": b"BM" + bytes(50),
    "ico": b"\0\0\1\0" + bytes(20),
    "gif": b"GIF89a" + bytes(20),
    "avif": b"\0\0\0\x1cftypavif" + bytes(20),
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "ppm": b"P6 1 1 255 abc",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_no_other_format_is_opened_under_the_name_of_a_picture(kind):
    with pytest.raises(BadSample, match="not a JPEG, PNG or WebP picture"):
        decode(OTHERS[kind], "jpg")


# ---- sound


def flac(samples: int, rate: int = 48_000, channels: int = 8, block: int = 65_535) -> bytes:
    """A FLAC that is all header."""
    said = (rate << 44 | (channels - 1) << 41 | 15 << 36 | samples).to_bytes(8, "big")
    stream = struct.pack(">HH", block, block) + bytes(6) + said + bytes(16)
    return b"fLaC\x80" + len(stream).to_bytes(3, "big") + stream


def wav(
    size: int, channels: int = 1, rate: int = 16_000, bits: int = 16, kind: int = 1, data: bytes = bytes(100)
) -> bytes:
    """A WAV whose header may say anything."""
    said = kind, channels, rate, rate * channels * bits // 8 % 2**32, channels * bits // 8 % 2**16, bits
    return (
        b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, *said) + b"data" + struct.pack("<I", size) + data
    )


SOUNDS = {
    "a FLAC of unknown length": flac(0),
    "a FLAC of 400 hours": flac(2**36 - 1),
    "a FLAC of an hour in 8 channels": flac(3599 * 48_000),
    "a FLAC without its samples": flac(48_000),
    "a FLAC at 0 Hz": flac(48_000, rate=0),
    "a FLAC at 655,350 Hz": flac(48_000, rate=655_350),
    "a WAV of no channels": wav(100, channels=0),
    "a WAV of 1,024 channels": wav(100, channels=1024),
    "a WAV of 65,535 channels": wav(100, channels=65_535),
    "a WAV at 0 Hz": wav(100, rate=0),
    "a WAV at 4 GHz": wav(100, rate=2**32 - 1),
    "a WAV of 0 bits": wav(100, bits=0),
    "a WAV of 65,535 bits": wav(100, bits=65_535),
    "a WAV with MP3 in it": wav(100, kind=85),
    "a WAV of infinite samples": wav(100, kind=3, bits=32, data=struct.pack("<25f", *[float("inf")] * 25)),
    "an MP3 of frames without sound": b"\xff\xfb\x90\x64" + bytes(413),
    "an MP3 tag of 256 MiB": b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100),
}


@pytest.mark.parametrize("what", SOUNDS)
def test_sounds_with_absurd_headers_are_bad_samples(what):
    with peak_below(20 * 2**20), pytest.raises(BadSample):
        decode(SOUNDS[what], "flac")


def test_a_wav_whose_header_promises_4_gb_has_what_is_there():
    for size in (2**32 - 1, 2**31 - 1):
        with peak_below(20 * 2**20):
            assert decode(wav(size), "wav").shape == (50,)


# ---- videos


def test_files_that_name_other_files_open_none(tmp_path):
    """FFmpeg knows playlists as formats and could read any file or address that they name."""
    (tmp_path / "secret.mp4").write_bytes(movie("mpeg4", "mov"))
    path = tmp_path / "secret.mp4"
    with listening() as (port, asked):
        url = f"http://127.0.0.1:{port}/secret.mp4"
        for place in (
            path,
            f"file://{path}",
            f"subfile,,start,0,end,0,,:{path}",
            f"concat:{path}",
            f"crypto:{path}",
            url,
        ):
            for text in (
                f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{place}\n#EXT-X-ENDLIST\n",
                f'#EXTM3U\n#EXT-X-MAP:URI="{place}"\n#EXTINF:2,\n{place}\n#EXT-X-ENDLIST\n',
                f"ffconcat version 1.0\nfile '{place}'\n",
                f"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period><AdaptationSet "
                f"mimeType='video/mp4'><Representation id='1'><BaseURL>{place}</BaseURL></Representation>"
                f"</AdaptationSet></Period></MPD>",
                f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={place}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
                f"[playlist]\nFile1={place}\n",
                f"<asx version='3.0'><entry><ref href='{place}'/></entry></asx>",
            ):
                with pytest.raises(BadSample, match="not readable video"):
                    decode(text.encode(), "mp4")
    assert asked == []


def referring(data: bytes, path: Path) -> bytes:
    """A QuickTime file that says its pictures are in another file."""
    at = data.index(b"dref")
    name = str(path).encode()
    record = bytes(10) + b"\1v".ljust(28, b"\0") + bytes(92) + struct.pack(">hh", -1, -1) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I", 12 + len(record)) + b"alis" + bytes(4) + record
    whole = bytearray(data[: at + 12] + entry + data[at + 24 :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        start = data.rindex(box, 0, at + 4) - 4
        (size,) = struct.unpack_from(">I", whole, start)
        struct.pack_into(">I", whole, start, size + len(entry) - 12)
    return bytes(whole)


def test_a_quicktime_file_cannot_take_its_pictures_from_another(tmp_path, caplog):
    (tmp_path / "secret.mov").write_bytes(movie("mpeg4", "mov"))
    data = referring(movie("mpeg4", "mov"), tmp_path / "secret.mov")
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(io.BytesIO(data), container_options=options) as file:
        assert file.streams.video[0].codec_context.width == 128  # with leave to do so it would
    with pytest.raises(BadSample):
        Video(data).clip(0, 1, 5)


def stills(side: int) -> bytes:
    """A video of PNG pictures whose container says 16 x 16."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        stream = output.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        for place in range(2):
            packet = av.Packet(png(side, side, pixels=bytes(side * (side + 1))))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, place, place, Fraction(1)
            packet.is_keyframe = True
            output.mux(packet)
    return file.getvalue()


def test_pictures_larger_than_their_container_says_are_not_decoded():
    assert decode(stills(100), "mov").clip(0, 1, 1).shape == (1, 3, 100, 100)
    # FFmpeg would decode one to open the file, and then tell its size
    with pytest.raises(BadSample, match="pictures of 0 pixels"):
        decode(stills(6_000), "mov")


def test_absurd_times_in_a_container_are_bad_samples():
    data = movie("mpeg4", "mov")
    for box, at in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 24)):
        for value in (0, 2**31, 2**32 - 1):
            for shift in (-4, 0):  # the time scale, and the duration
                changed = bytearray(data)
                struct.pack_into(">I", changed, data.index(box) + at + shift, value)
                with contextlib.suppress(BadSample):
                    video = Video(bytes(changed))
                    video.clip(0, 0.2, 5)
                    assert 0 < video.seconds <= 6 * 3600
                    assert 0 < video.rate <= 1000


# ---- text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 101 + b"]" * 101, "JSON with more than 100 lists and objects in each other"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "JSON with more than 100 lists and objects in each other"),
        (b"[" * 900 + b"]" * 900, "JSON with more than 100"),  # json reads it, and pickle cannot send it on
        (b"[" * 10**6, "not JSON: maximum recursion depth"),
        (b"1" * 5000, "not JSON: Exceeds the limit"),
        (b"\0", "not JSON"),
        (b"", "not JSON"),
    ],
    ids=["lists", "objects", "deep", "deeper", "a large number", "zero", "nothing"],
)
def test_json_that_would_break_its_readers_is_a_bad_sample(data, reason):
    with pytest.raises(BadSample, match=reason):
        decode(data, "json")


def test_json_may_be_long_and_somewhat_deep():
    value = [[index] * 3 for index in range(1000)]
    assert decode(json.dumps(value).encode(), "json") == value
    deep = decode(b"[" * 100 + b"]" * 100, "json")
    assert pickle.loads(pickle.dumps({"info": [deep]})) == {"info": [deep]}
    assert str(decode(b"[NaN, -Infinity, 1e999]", "json")) == "[nan, -inf, inf]"


def test_nothing_is_unpacked_but_what_pictures_need(tmp_path):
    """gzip members are as any other unknown ones, and a compressed tar is no shard."""
    bomb = gzip.compress(bytes(2**24))
    corpus = opened(tmp_path, [{"txt": "A", "json.gz": bomb, "txt.gz": bomb}], text=["txt"])
    assert corpus.read(0)["text"] == "A"
    with pytest.raises(ValueError, match=r"field 'x' names \.json\.gz, for which there is no decoder"):
        Corpus([DataSpec.read(write_spec(tmp_path / "toy", tmp_path, fields={"x": ["json.gz"]}))], "train", ["x"])
    with pytest.raises(BadSample, match="text is not UTF-8"):
        decode(bomb, "txt")
    for data in (gzip.compress(GOOD + END), bz2.compress(GOOD + END), lzma.compress(GOOD + END)):
        with pytest.raises(ValueError, match=r"a\.tar is not a plain tar file"):
            open_shard(write(tmp_path / "a.tar", data))


# ---- specs


SPEC = "name: a\nlicence: b\nroot: c\nsplits: {train: x.tar}\nfields: {t: [txt]}\n"
# 10^20 letters in 20 lines, each ten times the one before
LAUGHS = [f"&l0 [{', '.join('x' * 10)}]", *(f"&l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 20))]


@pytest.mark.parametrize(
    "text",
    [
        SPEC + "make: !!python/object/apply:os.system ['touch ran']\n",
        SPEC + "make: !!python/object/new:os.system ['touch ran']\n",
        SPEC + "make: !!python/name:os.system\n",
        SPEC + "make: !!python/module:antigravity\n",
        SPEC.replace("root: c", "root: !!python/object/apply:subprocess.check_output [[touch, ran]]"),
        "".join(f"l{n}: {line}\n" for n, line in enumerate(LAUGHS)) + SPEC,
        SPEC.replace("x.tar", f"[{', '.join(LAUGHS)}]"),
        "".join(f"- {line}\n" for line in LAUGHS),
        SPEC.replace("splits: {train: x.tar}", "splits: &a {train: *a}"),
        SPEC.replace("root: c", "root: " + "9" * 5000),
        SPEC.replace("root: c", "root: 2024-99-99"),
    ],
    ids=["object", "new", "name", "module", "root", "key", "split", "list", "itself", "number", "date"],
)
def test_a_spec_builds_no_objects_and_stays_as_small_as_it_is_written(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(text)
    with peak_below(50 * 2**20), pytest.raises(ValueError, match=r"spec\.yaml") as raised:
        DataSpec.read("spec.yaml")
    assert len(str(raised.value)) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


def test_a_spec_that_is_deeper_than_yaml_can_read_is_named(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC + "make: " + "[" * 1200 + "]" * 1200 + "\n")
    with pytest.raises(ValueError, match=r"spec\.yaml is not YAML"):
        DataSpec.read(tmp_path / "spec.yaml")


def test_a_pipeline_file_builds_no_objects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tag in ("object/apply:os.system ['touch ran']", "object/new:os.system ['touch ran']", "name:os.system"):
        (tmp_path / "run.yaml").write_text(f"model: !!python/{tag}\n")
        with pytest.raises(ValueError, match=r"run\.yaml cannot be read"):
            read_yaml(tmp_path / "run.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


COMMANDS = [
    "pipe:touch ran",
    "PIPE:touch ran",
    " pipe:touch ran",
    "pipe://x;touch ran",
    "Pipe://x;touch ran",
    "\tpipe:touch ran",
]


@pytest.mark.parametrize("command", [*COMMANDS, "pi\npe://x;touch ran", "file:touch ran", "|touch ran", "$(touch ran)"])
def test_no_spelling_of_a_command_is_run_without_leave(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for root, split in (("shards", command), ("shards", [command]), (command, "x.tar")):
        spec = DataSpec.read(write_spec(root, tmp_path, splits={"train": split}))
        with pytest.raises((ValueError, OSError)):
            open_shards(spec.shards("train"), spec.allow_pipe)
    with pytest.raises((ValueError, OSError)):
        open_shard(command)
    with pytest.raises((ValueError, OSError)):
        fetch(command)
    corpus_of = DataSpec.read(write_data_set(tmp_path, {"train": [[0.1]]}))
    with pytest.raises((ValueError, OSError)):
        Corpus([corpus_of], "train", ["units"], {"units": command})
    assert not (tmp_path / "ran").exists()
    for leave in ("yes please", 1, "true"):
        with pytest.raises(ValueError, match=r"allow_pipe is .*, must be true or false"):
            DataSpec.read(write_spec("shards", tmp_path, allow_pipe=leave))


# ---- servers


@contextlib.contextmanager
def listening(
    answer: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None,
) -> Iterator[tuple[int, list[Any]]]:
    """A server on this machine: its port, and the headers of what it was asked."""
    asked: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers)
            if answer is not None:
                with contextlib.suppress(OSError):
                    answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "sleep", lambda _: None)


def reply(status: int, body: Callable[[Any], None] = lambda _: None, **headers: str) -> Callable[[Any], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        body(handler.wfile)

    return answer


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("scheme", ["file", "ftp", "data", "pipe", "local", "jar"])
def test_a_server_cannot_send_us_to_another_kind_of_address(tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    outside = secret(tmp_path)
    target = {"data": "data:text/plain,x", "pipe": "pipe://x;touch ran", "ftp": "ftp://127.0.0.1:1/x"}
    answer = reply(302, Location=target.get(scheme, f"{scheme}://{outside}"))
    told = pytest.raises(OSError, match=r"cannot fetch the shard: HTTP 302 .*[Rr]edirect")
    with listening(answer) as (port, asked), told:
        fetch(f"http://127.0.0.1:{port}/a.tar")
    assert len(asked) == 1
    assert not (tmp_path / "ran").exists()
    assert not list(cache_folder().rglob("shard.tar*"))


@pytest.mark.usefixtures("no_waits")
def test_a_password_is_not_carried_to_another_server():
    with (
        listening(reply(200, lambda file: file.write(GOOD + END), Content_Length=str(len(GOOD + END)))) as (
            other,
            seen,
        ),
        listening(reply(302, Location=f"http://127.0.0.1:{other}/b.tar")) as (port, asked),
    ):
        fetch(f"http://name:password@127.0.0.1:{port}/a.tar").close()
    assert asked[0]["Authorization"].startswith("Basic ")
    assert seen[0]["Authorization"] is None
    assert not any("password" in value or "bmFtZTpwYXNzd29yZA" in value for value in seen[0].values())


@pytest.mark.usefixtures("no_waits")
def test_a_server_that_redirects_for_ever_is_given_up():
    told = pytest.raises(OSError, match="cannot fetch the shard: HTTP 302")
    with listening(reply(302, Location="/a.tar")) as (port, asked), told:
        fetch(f"http://127.0.0.1:{port}/a.tar")
    assert len(asked) < 20


def endless(file: Any) -> None:
    while True:
        file.write(b"10000\r\n" + bytes(65_536) + b"\r\n")


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    "answer",
    [
        reply(200, lambda file: [file.write(bytes(65_536)) for _ in range(10**6)], Content_Length=str(10**17)),
        reply(200, lambda file: [file.write(bytes(65_536)) for _ in range(10**6)]),
        reply(200, endless, Transfer_Encoding="chunked"),
    ],
    ids=["it says 10^17 bytes", "it does not say how many", "chunks without end"],
)
def test_a_body_larger_than_the_cache_is_not_stored(monkeypatch, answer):
    monkeypatch.setenv("MMFLOW_CACHE_BYTES", str(2**21))
    told = pytest.raises(OSError, match=r"bytes or more, and the whole cache may have 2097152; raise \$MMFLOW_CACHE")
    with listening(answer) as (port, asked), told:
        fetch(f"http://127.0.0.1:{port}/a.tar")
    assert len(asked) == 1
    assert sum(path.stat().st_size for path in cache_folder().rglob("*") if path.is_file()) < 2**20


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Length": "9" * 5000},
        {"Content_Length": "-1"},
        {"Content_Range": f"bytes {'9' * 5000}-1/{'9' * 5000}"},
        {"Content_Encoding": "gzip", "Content_Length": "10"},
        {"Content_Encoding": "br, gzip"},
        {"ETag": '"' + "x" * 60_000 + '"'},
        {"Repr_Digest": "sha-256=:!!!:, md5=:" + "A" * 60_000 + ":"},
        {"Retry_After": "9" * 5000},
    ],
    ids=["length", "negative", "range", "gzip", "brotli", "tag", "digest", "pause"],
)
@pytest.mark.parametrize("status", [200, 206, 503])
def test_absurd_headers_of_a_server_are_an_error_that_names_the_shard(monkeypatch, headers, status):
    monkeypatch.setattr(remote, "TRIES", 2)
    told = pytest.raises(OSError, match=r"cannot fetch the shard: .*/a\.tar")
    with listening(reply(status, lambda file: file.write(b"x"), **headers)) as (port, _), told:
        fetch(f"http://127.0.0.1:{port}/a.tar")


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "local:///etc/hostname", "zip://a::file:///etc/hostname", "data://x", "ftp://x/y"]
)
def test_urls_of_this_machine_are_not_opened(url):
    assert is_remote(url)
    with pytest.raises(ValueError, match="cannot be fetched; shards are files or at http, https"):
        fetch(url)


# ---- the page of `data show`


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


EVIL = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"' onload='alert(3)\u2028<!--"
INFOS: list[Any] = [
    {"speaker": EVIL, "captions": [EVIL, EVIL], EVIL: EVIL, "words": [[0.0, 0.1, EVIL]], "phone_sequence": [EVIL]},
    [EVIL],
    EVIL,
    5,
    None,
    {"captions": EVIL, "words": EVIL, "phones": {EVIL: EVIL}, "speaker": [EVIL], "phone_sequence": 5},
    {"words": [[float("nan"), 1, "a"], [float("-inf"), float("inf"), "b"]], "phones": [[0, 1e308, "c"]]},
    {"question": EVIL, "answer": {EVIL: EVIL}, "answers": [EVIL], "objects": [{"class": EVIL, "box": [EVIL]}]},
    {"objects": [{"class": EVIL, "label": EVIL, "box": [1e308, -5, "x", None], "segmentation": [[1, 2, 3], EVIL]}]},
]


@pytest.mark.parametrize(
    "info", INFOS, ids=["dict", "list", "text", "number", "null", "kinds", "times", "answers", "boxes"]
)
def test_nothing_in_a_sample_runs_on_its_page(tmp_path, info):
    sample = {"__key__": EVIL, "__shard__": EVIL, "text": EVIL, "info": info}
    sample |= {"audio": torch.zeros(1600), "image": Picture(png(1, 1))}
    found = Tags(show_page([sample], EVIL, tmp_path / "show.html").read_text()).found
    tags = [tag for tag, _ in found]
    assert tags.count("script") == 1  # the page's own
    assert not {"iframe", "object", "embed", "applet", "link", "base", "form"} & set(tags)
    for _, attributes in found:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(attributes["content"] for _, attributes in found if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy
