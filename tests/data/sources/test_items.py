import pickle
from dataclasses import replace

import numpy as np
import pytest

from mmflow.data.sources.byte_files import ByteFiles
from mmflow.data.sources.fashion_mnist import FashionMNIST
from mmflow.data.sources.items import Item
from mmflow.world.speech import WorldSpeech


def test_a_sample_has_the_bytes_of_the_files_and_the_values(put):
    item = Item("a", "train", "g", {"jpg": put("a.JPEG", b"123")}, {"txt": "hello", "json": {"n": 1}})
    assert item.sample() == {"__key__": "a", "jpg": b"123", "txt": "hello", "json": {"n": 1}}
    assert item.size == 8


def test_an_item_is_small_and_its_files_are_not_read_before_the_sample_is_asked_for(tmp_path):
    item = Item("a", "train", "g", {"jpg": tmp_path / "none.jpg"})
    assert not hasattr(item, "__dict__")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        item.sample()


@pytest.fixture(params=["bytes", "pictures", "speech"])
def items(request, put, tmp_path):
    if request.param == "bytes":
        put("a.txt", b"one\ntwo\n" * 20)
        return ByteFiles(max_bytes=50).items(tmp_path)
    if request.param == "pictures":
        pixels = np.arange(5 * 4 * 3, dtype=np.uint8)
        put("train-images-idx3-ubyte", b"\0\0\x08\x03" + np.array([5, 4, 3], ">u4").tobytes() + pixels.tobytes())
        put("train-labels-idx1-ubyte", b"\0\0\x08\x01" + np.array([5], ">u4").tobytes() + bytes(range(5)))
        return FashionMNIST().items(tmp_path)
    return WorldSpeech(0.1, 0, 0).items()


def test_items_of_other_kinds_travel_to_workers_and_keep_their_kind_in_another_split(items):
    for item in items:
        sent = pickle.loads(pickle.dumps(replace(item, split="test")))
        assert sent == replace(item, split="test")
        assert replace(sent, split=item.split).sample() == item.sample()
        assert item.size > 0
