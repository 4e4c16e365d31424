import errno
import io
import json
import resource
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from mmflow.data.index import open_shard
from mmflow.data.writer import ShardWriter, TarShard, check_key, encode


def write(folder: Path, count: int, **bounds: int) -> list[Path]:
    with ShardWriter(folder, "train", **bounds) as writer:
        for i in range(count):
            writer.write({"__key__": f"k{i}", "txt": f"text {i}", "npy": np.arange(i)})
    return writer.shards


def fill(folder: Path, values: list[Any], max_samples: int) -> None:
    with ShardWriter(folder, "train", max_samples=max_samples) as writer:
        for i, value in enumerate(values):
            writer.write({"__key__": f"k{i}", "bin": value})


def test_shards_are_plain_webdataset_tars(tmp_path):
    (path,) = write(tmp_path, 2)
    dataset = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == ["k0", "k1"]
    assert samples[1]["txt"] == b"text 1"
    assert np.load(io.BytesIO(samples[1]["npy"])).tolist() == [0]


def test_a_shard_ends_at_its_bound_of_samples_or_bytes(tmp_path):
    shards = write(tmp_path / "a", 5, max_samples=2)
    assert [path.name for path in shards] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [len(open_shard(str(path))) for path in shards] == [2, 2, 1]
    assert len(write(tmp_path / "b", 5, max_bytes=1)) == 5
    assert write(tmp_path / "c", 0) == []


def test_the_same_samples_give_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "a", 3), write(tmp_path / "b", 3)
    assert one[0].read_bytes() == two[0].read_bytes()


def test_members_have_no_headers_but_their_own(tmp_path):
    with TarShard(tmp_path / "a.tar") as shard:
        shard.write({"__key__": "k" * 80, "mask.png": b"p", "cls": "7"})
        shard.write({"__key__": "ключ", "txt": "x"})  # only such a name needs one
    data = (tmp_path / "a.tar").read_bytes()
    assert data.count(b"PaxHeader") == 1
    assert data.index(b"PaxHeader") >= 4 * 512  # header and content of two members come first
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [(m.name, m.size, m.mtime, m.mode) for m in members] == [
        (f"{'k' * 80}.cls", 1, 0, 0o444),
        (f"{'k' * 80}.mask.png", 1, 0, 0o444),
        ("ключ.txt", 1, 0, 0o444),
    ]
    one, other = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)
    assert (one["__key__"], one["cls"], one["mask.png"]) == ("k" * 80, b"7", b"p")
    assert (other["__key__"], other["txt"]) == ("ключ", b"x")
    assert open_shard(str(tmp_path / "a.tar")).keys == ["k" * 80, "ключ"]


def test_values_become_bytes_by_their_type():
    assert encode(b"\x00") == b"\x00"
    assert encode("é") == b"\xc3\xa9"
    assert json.loads(encode({"a": [1, "é"]})) == {"a": [1, "é"]}
    assert np.load(io.BytesIO(encode(np.arange(3)))).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="allow_pickle"):
        encode(np.array([object()]))


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "__a", "a\n", "a\0", "../a", "\udcff"])
def test_keys_that_a_reader_would_split_skip_or_misplace_are_refused(key):
    with pytest.raises(ValueError, match=r'must be printable, without ".", "/" and a leading "__"; rename it'):
        check_key(key)


def test_keys_that_are_too_long_or_not_unique_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 81 bytes, a tar takes 80; shorten it"):
        check_key("k" * 81)
    with ShardWriter(tmp_path, "train") as writer:
        writer.write({"__key__": "k0", "txt": ""})
        with pytest.raises(ValueError, match="'k0' occurs twice in split 'train'"):
            writer.write({"__key__": "k0", "txt": ""})


def test_shards_that_stand_are_not_overwritten_or_mixed(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(ValueError, match=r"already holds shards of split 'train', first .*train-000000\.tar"):
        ShardWriter(tmp_path, "train")
    ShardWriter(tmp_path, "test")


def test_an_error_publishes_the_shards_before_it_only(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        fill(tmp_path, [b"a", b"b", b"c", object()], max_samples=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000000.tar"]


def test_meta_is_kept_where_readers_do_not_see_it(tmp_path):
    with TarShard(tmp_path / "a.tar", {"rate": 50}) as tar:
        tar.write({"__key__": "a", "txt": "x"})
    assert open_shard(str(tmp_path / "a.tar")).meta == {"rate": 50}
    dataset = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)
    assert [sample["__key__"] for sample in dataset] == ["a"]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["__mmflow__/meta.json", "a.txt"]


def test_a_full_disk_leaves_whole_shards_only_and_names_the_one_that_failed(tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # like a disk with so much room for one file
    try:
        with pytest.raises(OSError, match=r"nothing was published: .*train-000001\.tar") as caught:
            fill(tmp_path, [bytes(20_000), bytes(20_000), bytes(40_000), bytes(40_000)], max_samples=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]
    assert len(open_shard(str(tmp_path / "train-000000.tar"))) == 2


def test_a_disk_that_is_really_full_leaves_whole_shards_only(small_disk):
    with pytest.raises(OSError, match=r"No space left on device; nothing was published: .*train-0") as caught:
        fill(small_disk, [bytes(50_000)] * 100, max_samples=3)
    assert caught.value.errno == errno.ENOSPC
    names = sorted(path.name for path in small_disk.iterdir())
    assert names == [f"train-{number:06d}.tar" for number in range(len(names))]
    assert all(len(open_shard(str(small_disk / name))) == 3 for name in names)
