import gzip
import io
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmflow.data.sources.fashion_mnist import FashionMNIST
from tests.data.sources.made import made

PICTURES = np.arange(20 * 4 * 3, dtype=np.uint8).reshape(20, 4, 3)
LABELS = np.arange(20, dtype=np.uint8) % 10


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(put, tmp_path):
    for part, count in (("train", 20), ("t10k", 5)):
        put(f"fashion/{part}-images-idx3-ubyte.gz", gzip.compress(idx(PICTURES[:count])))
        put(f"fashion/{part}-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS[:count])))
    return tmp_path / "fashion"


def samples(root, **options):
    return {sample["__key__"]: (split, sample) for split, sample in made(FashionMNIST(**options), root)}


def test_pictures_become_png_with_the_same_pixels(fashion):
    found = samples(fashion)
    assert Counter(split for split, _ in found.values()) == {"train": 18, "validation": 2, "test": 5}
    assert found["t10k-00003"][0] == "test"
    for number in range(20):
        sample = found[f"train-{number:05d}"][1]
        picture = Image.open(io.BytesIO(sample["png"]))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (3, 4))
        assert (np.asarray(picture) == PICTURES[number]).all()
    assert found["train-00019"][1]["json"] == {"label": 9, "class": "Ankle boot"}


def test_plain_files_with_a_dot_in_the_name_and_other_classes_do(put, tmp_path):
    put("mnist/train-images.idx3-ubyte", idx(PICTURES))
    put("mnist/train-labels.idx1-ubyte", idx(LABELS))
    found = samples(tmp_path, classes=[str(digit) for digit in range(10)])
    assert Counter(split for split, _ in found.values()) == {"train": 16, "validation": 2, "test": 2}
    assert found["train-00007"][1]["json"] == {"label": 7, "class": "7"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(PICTURES)[:-1], r"does not hold the 240 bytes of \[20, 4, 3\] that its header promises"),
        (idx(PICTURES) + b"\0", r"does not hold the 240 bytes"),
        (idx(PICTURES)[:9], "is no IDX header for 3 axes"),
        (idx(LABELS), "is no IDX header for 3 axes"),
        (struct.pack(">4B3I", 0, 0, 9, 3, 20, 4, 3), "is no IDX header"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28), "is no IDX header for 3 axes and 1 to 1073741824 bytes"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "is no IDX header for 3 axes and 1 to 1073741824 bytes"),
        (idx(PICTURES[:7]), "7 pictures of train, but 20 labels"),
    ],
)
def test_files_that_are_not_whole_are_errors(fashion, put, content, message):
    put("fashion/train-images-idx3-ubyte.gz", gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        samples(fashion)


def test_gzip_that_is_cut_or_none_is_an_error(fashion, put):
    packed = gzip.compress(idx(PICTURES))
    for broken in (packed[:-12], b"no gzip", packed[:30] + b"\xff\xff\xff" + packed[33:]):
        put("fashion/train-images-idx3-ubyte.gz", broken)
        with pytest.raises(ValueError, match=r"cannot be read .* download it again"):
            samples(fashion)


def test_a_gzip_bomb_is_not_unpacked(fashion, put, monkeypatch):
    asked = []
    real_read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda file, size=-1: asked.append(size) or real_read(file, size))
    put("fashion/train-images-idx3-ubyte.gz", gzip.compress(idx(PICTURES) + bytes(10_000_000)))
    with pytest.raises(ValueError, match="does not hold the 240 bytes"):
        samples(fashion)
    assert asked == [16, 241]


def test_a_label_without_a_name_is_an_error(fashion):
    with pytest.raises(ValueError, match="train has the label 9, but there are names for 2 classes; name all"):
        samples(fashion, classes=["a", "b"])


def test_pictures_without_labels_are_no_part(fashion):
    for path in fashion.glob("*-labels-*"):
        path.unlink()
    with pytest.raises(ValueError, match="does not hold train-images-idx3-ubyte and train-labels-idx1-ubyte"):
        samples(fashion)
