"""Shards of pictures and captions as img2dataset downloads them, read as they are."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mmflow.data.corpus import Corpus
from mmflow.data.make import build_source
from mmflow.data.spec import DataSpec

SPECS = Path(__file__).parents[2] / "data_specs"


def write_shard(folder: Path, number: int, count: int) -> None:
    """A shard, and the files that img2dataset puts beside it."""
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for place in range(count):
            key = f"{number:05d}{place:04d}"
            file = io.BytesIO()
            Image.new("RGB", (6, 4), (number, place, 0)).save(file, "JPEG")
            info = {"caption": f"caption {key}", "url": "http://x/y.jpg", "key": key, "status": "success", "exif": "{}"}
            for extension, data in (
                ("jpg", file.getvalue()),
                ("json", json.dumps(info, indent=4).encode()),
                ("txt", f"caption {key}".encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / f"{number:05d}.parquet").write_bytes(b"PAR1")
    (folder / f"{number:05d}_stats.json").write_text("{}")


@pytest.fixture
def shards(tmp_path):
    for number, count in ((0, 2), (17, 1), (97, 1), (98, 2), (99, 1), (199, 1)):
        write_shard(tmp_path, number, count)
    return tmp_path


@pytest.mark.parametrize("name", ["cc12m_shards", "laion_shards"])
def test_every_shard_is_in_one_split_by_its_number(shards, name):
    spec = DataSpec.read(SPECS / f"{name}.yaml").with_root(shards)
    names = {split: [Path(path).stem for path in spec.shards(split)] for split in ("train", "validation", "test")}
    assert names == {"train": ["00000", "00017", "00097"], "validation": ["00098"], "test": ["00099", "00199"]}


@pytest.mark.parametrize("name", ["cc12m_shards", "laion_shards"])
def test_captions_pictures_and_what_is_known_are_read(shards, name):
    spec = DataSpec.read(SPECS / f"{name}.yaml").with_root(shards)
    corpus = Corpus([spec], "train", ["image", "text", "info"])
    assert (len(corpus), corpus.problems()) == (4, {})
    samples = [corpus.read(number) for number in range(4)]
    assert [sample["text"] for sample in samples] == [
        f"caption {key}" for key in ("000000000", "000000001", "000170000", "000970000")
    ]
    assert samples[1]["info"]["key"] == samples[1]["__key__"] == "000000001"
    assert {(sample["image"].width, sample["image"].height) for sample in samples} == {(6, 4)}


def test_there_is_nothing_to_make():
    with pytest.raises(ValueError, match=r"cc12m_shards\.yaml says nothing under make"):
        build_source(DataSpec.read(SPECS / "cc12m_shards.yaml"))
