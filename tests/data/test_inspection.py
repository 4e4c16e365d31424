import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mmflow.data.inspection import check, check_shard, pick, present_splits
from mmflow.data.spec import DataSpec
from mmflow.data.walk import Row
from mmflow.data.writer import TarShard
from tests.shards import encoded, noise, write_data_set


@pytest.fixture
def spec(tmp_path) -> DataSpec:
    train = [[0.5, "cut", 1.0], ["junk", {"flac": encoded(noise(0.1)), "txt": b"\xff"}]]
    return DataSpec.read(write_data_set(tmp_path, {"train": train, "test": [[0.25]]}))


def test_every_broken_sample_is_listed_with_shard_key_and_reason(spec):
    table, broken = check(spec, 0)
    assert [(Path(shard).name, key) for shard, key, _ in broken] == [
        ("train-000000.tar", "train-0-1"),
        ("train-000001.tar", "train-1-0"),
        ("train-000001.tar", "train-1-1"),
    ]
    assert [reason[:26] for *_, reason in broken] == [
        "audio: not readable audio:", "audio: not readable audio:", "text: text is not UTF-8: '"
    ]  # fmt: skip
    assert table["train"] | {"hours": 0} == {"shards": 2, "samples": 5, "hours": 0, "mean_s": 0.525, "broken": 3}
    assert table["train"]["hours"] == pytest.approx((0.5 + 0.5 + 1.0 + 0.1) / 3600)
    assert table["test"] == {"shards": 1, "samples": 1, "hours": 0.25 / 3600, "mean_s": 0.25, "broken": 0}
    assert "validation" not in table


def test_keys_that_occur_twice_are_listed(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1, 0.1]]})
    with TarShard(tmp_path / "toy" / "train-000001.tar") as shard:
        shard.write({"__key__": "train-0-1", "flac": encoded(noise(0.1)), "txt": "A"})
    _, broken = check(DataSpec.read(path), 0)
    assert [(Path(shard).name, key, reason) for shard, key, reason in broken] == [
        ("train-000000.tar", "train-0-1", "this key occurs in more than one shard"),
        ("train-000001.tar", "train-0-1", "this key occurs in more than one shard"),
    ]


def test_a_spec_without_any_shard_is_an_error(spec, tmp_path):
    assert present_splits(spec) == ["train", "test"]
    with pytest.raises(ValueError, match="no shards of split 'test' match"):
        check(spec.with_root(tmp_path / "nowhere"), 0)


def test_samples_are_picked_evenly_without_their_broken_fields(spec, caplog):
    picked = list(pick(spec, "train", 3))
    assert [sample["__key__"] for sample in picked] == ["train-0-0", "train-0-2", "train-1-1"]
    assert len(picked[1]["audio"]) == 16_000
    assert picked[1]["text"] == "HELLO"
    assert "text" not in picked[2]
    assert "train-1-1 in" in caplog.text


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
    _, broken = check(DataSpec.read(path), 0)
    assert [(key, reason[:35]) for _, key, reason in broken] == [("train-0-1", "images: not a readable JPEG picture")]


# -- what else a check finds -------------------------------------------------------------------------------------------


def found(path: Path, workers: int = 0) -> list[tuple[str, str, str]]:
    """Name of the shard, key and reason of each fault."""
    _, faults = check(DataSpec.read(path), workers)
    return [(Path(shard).name, key, reason) for shard, key, reason in faults]


def add(tar: tarfile.TarFile, name: str, data: bytes = b"words", kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(data), kind
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def texts(tmp_path) -> Path:
    """The spec of texts whose tars tests write themselves."""
    (tmp_path / "toy").mkdir()
    return write_data_set(tmp_path, {"test": [[{"txt": "A"}]]}, fields={"text": ["txt"], "info": ["json"]})


def test_a_field_that_some_samples_lack_is_wrong_and_one_that_all_lack_is_not(texts, tmp_path):
    with tarfile.open(tmp_path / "toy" / "train-0.tar", "w") as tar:
        for name in ("a.txt", "a.json", "b.txt", "c.d.txt"):
            add(tar, name, b"{}")
    assert found(texts) == [
        ("train-0.tar", "b", "info: none of ['json']; the sample has txt (keys have no dots)"),
        ("train-0.tar", "c", "info: none of ['json']; the sample has d.txt (keys have no dots)"),
        ("train-0.tar", "c", "text: none of ['txt']; the sample has d.txt (keys have no dots)"),
    ]


def test_a_field_that_a_whole_shard_lacks_is_wrong_where_another_has_it(texts, tmp_path):
    for number, names in enumerate((["a.txt", "a.json"], ["b.txt"])):
        with tarfile.open(tmp_path / "toy" / f"train-{number}.tar", "w") as tar:
            for name in names:
                add(tar, name, b"{}")
    assert [(shard, key) for shard, key, _ in found(texts)] == [("train-1.tar", "b")]


def test_members_that_are_twice_in_a_shard_are_listed(texts, tmp_path):
    with tarfile.open(tmp_path / "toy" / "train-0.tar", "w") as tar:
        for name in ("deep/a.txt", "b.txt", "deep/a.txt"):
            add(tar, name)
    assert ("train-0.tar", "deep/a", "the member deep/a.txt is there 2 times") in found(texts)


def test_damaged_tails_links_and_what_is_no_tar_count(texts, tmp_path):
    with tarfile.open(tmp_path / "toy" / "train-0.tar", "w") as tar:
        add(tar, "a.txt")
        add(tar, "b.txt", b"", tarfile.SYMTYPE)
    whole = (tmp_path / "toy" / "train-0.tar").read_bytes()
    (tmp_path / "toy" / "train-1.tar").write_bytes(whole[:512].replace(b"a.txt", b"c.txt") + whole[512:700])
    (tmp_path / "toy" / "train-2.tar").write_bytes(b"no tar at all" * 100)
    reasons = {shard: reason for shard, key, reason in found(texts) if not key}
    assert reasons["train-0.tar"].startswith("1 members are links, special files or without key")
    assert reasons["train-1.tar"]
    assert reasons["train-2.tar"].startswith("cannot be read: ")


def test_keys_of_two_splits_are_a_warning_only(texts, tmp_path, caplog):
    with tarfile.open(tmp_path / "toy" / "train-0.tar", "w") as tar:
        add(tar, "test-0-0.txt")
    assert found(texts) == []
    assert "1 keys are in more than one split, such as test-0-0" in caplog.text


def test_shards_with_signs_of_patterns_in_their_names_are_found(tmp_path):
    path = write_data_set(tmp_path / "a[1]{b}", {"train": [[{"txt": "A"}]]}, fields={"text": ["txt"]})
    assert found(path) == []


ODD = {  # what is listed; truncated.wav is not, for libsndfile takes the length that is there for the right one
    "images": {"bitflips-jpg", "empty-jpg", "html_named-jpg", "truncated-jpg"},
    "audio": {"empty-wav", "float32_nan-wav", "no_samples-wav", "truncated-flac"},
    "video": {"audio_only-mp4", "corrupted-mp4", "empty-mp4", "truncated_faststart-mp4", "truncated_no_moov-mp4"},
}
ENDINGS = {
    "images": ["jpg", "png", "webp"],
    "audio": ["wav", "flac", "ogg", "mp3", "opus", "aiff"],
    "video": ["mp4", "mkv", "ts", "ogv"],
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_of_real_data_have_their_outcome(kind, real_data, tmp_path):
    (tmp_path / "toy").mkdir()
    with TarShard(tmp_path / "toy" / "train-0.tar") as shard:
        for file in sorted((real_data / "odd" / kind).iterdir()):
            if file.suffix[1:] in ENDINGS[kind]:
                shard.write({"__key__": file.name.replace(".", "-"), file.suffix[1:]: file.read_bytes()})
    keys = {key for _, key, _ in found(write_data_set(tmp_path, {}, fields={kind: ENDINGS[kind]}))}
    assert keys == ODD[kind]


def test_two_processes_find_what_one_finds(spec):
    assert check(spec, 2) == check(spec, 0)
    with pytest.raises(ValueError, match="workers=-1 must be 0 or more"):
        check(spec, -1)


def test_a_walk_says_what_it_is_at(spec):
    rows = [one for one in check_shard(spec, "test", spec.shards("test")[0], frozenset()) if isinstance(one, Row)]
    assert rows == [Row(0, 1, "test-0-0")]
