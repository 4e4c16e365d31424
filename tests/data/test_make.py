import errno
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmflow.data.make import build_source, make
from mmflow.data.spec import DataSpec


class Tones:
    """A source with options that needs no original data.

    Args:
        count: samples in each split.
        splits: which splits.
    """

    def __init__(self, count: int, splits: list[str] | None = None) -> None:
        self.count, self.splits = count, splits or ["train", "test"]

    def samples(self, root: Path | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in range(self.count):  # the splits take turns
            for split in self.splits:
                yield split, {"__key__": f"{split}{i}", "wav": b"audio", "txt": "hi", "json": {"speaker": "a"}}


class Again(Tones):
    """A source during which somebody else makes the same data."""

    def __init__(self, out: str) -> None:
        super().__init__(3)
        self.out = Path(out)

    def samples(self, root: Path | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        for position, sample in enumerate(super().samples()):
            if position == 1:
                with pytest.raises(ValueError, match=f"{self.out} is being written by .*process {os.getpid()}; wait"):
                    make(spec(), None, self.out)
            yield sample


def spec(kind: str = "Tones", **init_args: Any) -> DataSpec:
    return DataSpec(
        name="mine",
        licence="CC0",
        root="data/mine",
        splits={"train": "train-*.tar", "test": "test-*.tar"},
        fields={"audio": ["wav"]},
        make={"class_path": f"{__name__}.{kind}", "init_args": init_args or {"count": 3}},
        path=Path("mine.yaml"),
    )


def members(folder: Path, split: str) -> list[str]:
    with tarfile.open(folder / f"{split}-000000.tar") as tar:
        return tar.getnames()


def test_shards_of_all_splits_appear_in_the_folder(tmp_path):
    assert make(spec(), None, tmp_path / "a" / "out") == {"train": 3, "test": 3}
    assert sorted(path.name for path in (tmp_path / "a" / "out").iterdir()) == ["test-000000.tar", "train-000000.tar"]
    assert members(tmp_path / "a" / "out", "test")[:3] == ["test0.json", "test0.txt", "test0.wav"]
    assert [path.name for path in (tmp_path / "a").iterdir() if path.is_dir()] == ["out"]


def test_the_root_of_the_spec_is_the_place_unless_another_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(spec(), None)
    assert len(spec().shards("train")) == 1


def test_the_same_source_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        make(spec(), None, tmp_path / name)
    first, second = ((tmp_path / name / "train-000000.tar").read_bytes() for name in ("one", "two"))
    assert first == second


def test_shards_that_are_there_are_not_overwritten(tmp_path):
    make(spec(), None, tmp_path / "out")
    before = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    with pytest.raises(ValueError, match=rf"{tmp_path}/out already holds shards .*another --out, or remove the folder"):
        make(spec(), None, tmp_path / "out")
    assert (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns == before


def test_a_folder_with_other_things_in_it_is_not_touched_nor_its_removal_proposed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").touch()
    with pytest.raises(ValueError, match=r"is not empty \(it holds thesis.doc\); give another --out$"):
        make(spec(), None, tmp_path / "out")
    with pytest.raises(ValueError, match=r"thesis.doc is not a folder; give another --out"):
        make(spec(), None, tmp_path / "out" / "thesis.doc")


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert make(spec(), None, tmp_path / "out") == {"train": 3, "test": 3}


def test_two_at_once_into_one_folder_do_not_destroy_each_other(tmp_path):
    assert make(spec("Again", out=str(tmp_path / "out")), None, tmp_path / "out") == {"train": 3, "test": 3}
    assert len(members(tmp_path / "out", "train")) == 9


KILLED = """
import time
from pathlib import Path
from mmflow.data.make import make
from mmflow.data.spec import DataSpec

class Slow:
    def samples(self, root=None):
        for i in range(1001):
            yield "train", {"__key__": f"k{i}", "wav": b"audio"}
        Path("waiting").touch()
        time.sleep(60)

if __name__ == "__main__":
    make(DataSpec("n", "l", "out", {"train": "*.tar"}, {"audio": ["wav"]}, make={"class_path": "killed.Slow"}), None)
"""


def test_a_run_killed_in_the_middle_leaves_nothing_published_and_the_next_one_clears_up(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    process = subprocess.Popen([sys.executable, "killed.py"], cwd=tmp_path, env=environment)
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob("train-000000.tar"))  # a whole shard, but where nobody looks
    make(spec(), None, tmp_path / "out")
    assert [path.parent.name for path in tmp_path.rglob("*.tar")] == ["out", "out"]


def test_a_full_disk_names_the_folder_and_publishes_nothing(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"the disk is full; no shard was published: '{tmp_path}/out'"):
        make(spec(), None, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_source_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r'has no split \'dev\', which its source makes; add dev: "dev-\*.tar"'):
        make(spec(count=1, splits=["train", "dev"]), None, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_no_samples_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="Tones found no sample in None; nothing was written"):
        make(spec(count=0), None, tmp_path / "out")


def test_a_converter_of_originals_needs_their_folder(tmp_path):
    converter = DataSpec.read(Path(__file__).parents[2] / "data_specs" / "ljspeech.yaml")
    with pytest.raises(ValueError, match="LJSpeech converts an original data set; name its folder with --root FOLDER"):
        make(converter, None, tmp_path / "out")
    with pytest.raises(ValueError, match=r"does not hold metadata\.csv"):
        make(converter, tmp_path, tmp_path / "out")


def test_a_url_is_not_written_to():
    with pytest.raises(ValueError, match="is a URL, which is not written to; give --out FOLDER"):
        make(spec().with_root("https://example.org/x"), None)


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("os.system", "'os.system' is not a class with a method samples"),
        ("pathlib.Path", "is not a class with a method samples"),
        ("mmflow.data.sources.librispeech.LibriSpech", "cannot be imported .*LibriSpech"),
        ("no_such_module.X", "cannot be imported .*no_such_module"),
        ("LibriSpeech", "cannot be imported"),
    ],
)
def test_only_sources_are_instantiated(class_path, message):
    wrong = DataSpec("n", "l", "r", {"train": "*"}, {"audio": ["wav"]}, make={"class_path": class_path})
    with pytest.raises(ValueError, match=message):
        build_source(wrong)


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        ({"cuont": 3}, "Tones has no option 'cuont'; did you mean 'count'. Known: count, splits"),
        ({"count": "many"}, r"make.init_args: .*count.*options of Tones: \(count: int, splits"),
        ({"splits": ["train"]}, "make.init_args: .*count"),
    ],
)
def test_wrong_options_name_the_right_ones(init_args, message):
    with pytest.raises(ValueError, match=message):
        build_source(spec(**init_args))


def test_a_source_without_options_says_so():
    wrong = DataSpec.read(Path(__file__).parents[2] / "data_specs" / "ljspeech.yaml")
    wrong.make["init_args"] = {"rate": 16_000}
    with pytest.raises(ValueError, match="LJSpeech has no option 'rate'; it takes none"):
        build_source(wrong)


def test_a_spec_without_a_converter_says_what_to_add():
    with pytest.raises(ValueError, match="says nothing under make; add class_path"):
        build_source(DataSpec("n", "l", "r", {"train": "*"}, {"audio": ["wav"]}))


@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("librispeech", "librispeech", {"train": 30, "validation": 10, "test": 10}),
        ("ljspeech", "LJSpeech-1.1", {"train": 20, "validation": 2, "test": 2}),
        ("audio_folder", "odd/audio", {"train": 21, "validation": 3, "test": 3}),
    ],
)
def test_real_originals_become_shards_that_the_spec_finds(name, folder, counts, real_data, tmp_path):
    found = DataSpec.read(Path(__file__).parents[2] / "data_specs" / f"{name}.yaml").with_root(tmp_path / "out")
    assert make(found, real_data / folder) == counts
    for split, count in counts.items():
        (shard,) = found.shards(split)
        with tarfile.open(shard) as tar:
            assert sum(member.endswith(".json") for member in tar.getnames()) == count
