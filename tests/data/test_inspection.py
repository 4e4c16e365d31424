import io
from pathlib import Path

import pytest
from PIL import Image

from mmflow.data.inspection import check, pick, present_splits
from mmflow.data.spec import DataSpec
from mmflow.data.writer import TarShard
from tests.shards import encoded, noise, write_data_set


@pytest.fixture
def spec(tmp_path) -> DataSpec:
    train = [[0.5, "cut", 1.0], ["junk", {"flac": encoded(noise(0.1)), "txt": b"\xff"}]]
    return DataSpec.read(write_data_set(tmp_path, {"train": train, "test": [[0.25]]}))


def test_every_broken_sample_is_listed_with_shard_key_and_reason(spec):
    table, broken = check(spec)
    assert [(Path(shard).name, key) for shard, key, _ in broken] == [
        ("train-000000.tar", "train-0-1"),
        ("train-000001.tar", "train-1-0"),
        ("train-000001.tar", "train-1-1"),
    ]
    assert [reason.partition(":")[0] for *_, reason in broken] == [
        "not readable audio", "not readable audio", "text is not UTF-8"
    ]  # fmt: skip
    assert table["train"] | {"hours": 0} == {"shards": 2, "samples": 5, "hours": 0, "mean_s": 0.525, "broken": 3}
    assert table["train"]["hours"] == pytest.approx((0.5 + 0.5 + 1.0 + 0.1) / 3600)
    assert table["test"] == {"shards": 1, "samples": 1, "hours": 0.25 / 3600, "mean_s": 0.25, "broken": 0}
    assert "validation" not in table


def test_keys_that_occur_twice_are_listed(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1, 0.1]]})
    with TarShard(tmp_path / "toy" / "train-000001.tar") as shard:
        shard.write({"__key__": "train-0-1", "flac": encoded(noise(0.1)), "txt": "A"})
    _, broken = check(DataSpec.read(path))
    assert [(Path(shard).name, key, reason) for shard, key, reason in broken] == [
        ("train-000000.tar", "train-0-1", "this key occurs in more than one shard"),
        ("train-000001.tar", "train-0-1", "this key occurs in more than one shard"),
    ]


def test_a_spec_without_any_shard_is_an_error(spec, tmp_path):
    assert present_splits(spec) == ["train", "test"]
    with pytest.raises(ValueError, match="no shards of split 'test' match"):
        check(spec.with_root(tmp_path / "nowhere"))


def test_samples_are_picked_evenly_and_broken_ones_left_out(spec, caplog):
    picked = list(pick(spec, "train", 3))
    assert [sample["__key__"] for sample in picked] == ["train-0-0", "train-0-2"]
    assert len(picked[1]["audio"]) == 16_000
    assert picked[1]["text"] == "HELLO"
    assert "train-1-1 in" in caplog.text
    assert len(list(pick(spec, "train", 100))) == 2


def test_units_are_picked_with_their_samples(spec, tmp_path):
    for number, keys in enumerate([["train-0-0", "train-0-1", "train-0-2"], ["train-1-0", "train-1-1"]]):
        with TarShard(tmp_path / "units" / "toy" / f"train-{number:06d}.tar") as shard:
            for key in keys:
                shard.write({"__key__": key, "units.npy": noise(0.001, number)})
    (first, *_) = pick(spec, "train", 2, tmp_path / "units")
    assert first["units"].tolist() == noise(0.001, 0).tolist()


def test_pictures_that_are_cut_off_are_found_although_their_headers_are_good(tmp_path):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "JPEG")
    whole, cut = file.getvalue(), file.getvalue()[: len(file.getvalue()) // 2]
    shards = [[{"0.jpg": whole, "1.jpg": whole}, {"0.jpg": whole, "1.jpg": cut}]]
    path = write_data_set(tmp_path, {"train": shards}, fields={"images": ["*.jpg"]})
    _, broken = check(DataSpec.read(path))
    assert [(key, reason.partition(":")[0]) for _, key, reason in broken] == [
        ("train-0-1", "not a readable JPEG picture")
    ]
