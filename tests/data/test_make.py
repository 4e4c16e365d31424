import errno
import functools
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmflow.data import make as make_module
from mmflow.data.make import build_source, ensure, make
from mmflow.data.sources.items import Item
from mmflow.data.spec import DataSpec
from tests.test_processes import is_running


class Tones:
    """A source with options that needs no original data.

    Args:
        count: samples in each split.
        splits: which splits.
    """

    def __init__(self, count: int, splits: list[str] | None = None) -> None:
        self.count, self.splits = count, splits or ["train", "test"]

    def items(self, root: Path | None = None) -> Iterator[Item]:
        for i in range(self.count):  # the splits take turns
            for split in self.splits:
                yield Item(f"{split}{i}", split, "a", values={"wav": b"audio", "txt": "hi", "json": {"speaker": "a"}})


class Again(Tones):
    """A source during which somebody else makes the same data."""

    def __init__(self, out: str) -> None:
        super().__init__(3)
        self.out = Path(out)

    def items(self, root: Path | None = None) -> Iterator[Item]:
        for position, item in enumerate(super().items()):
            if position == 1:
                with pytest.raises(ValueError, match=f"{self.out} is being written by .*process {os.getpid()}; wait"):
                    make(spec(), None, self.out)
            yield item


class Texts:
    """Each file of a folder as a sample, in no order; one that is called zbad cannot be read."""

    def items(self, root: Path) -> list[Item]:
        return [Read(path.stem, "train", path.stem, {"txt": path}) for path in root.iterdir()]


class Plain(Texts):
    """Another name for the same."""


class Read(Item):
    """A file that must not be called zbad."""

    __slots__ = ()

    def sample(self) -> dict[str, Any]:
        if self.key == "zbad":
            raise ValueError(f"{self.files['txt']} is broken; download it again")
        return Item.sample(self)


class Sized(Item):
    """An item that says that it is large."""

    __slots__ = ()

    @property
    def size(self) -> int:
        return 100 * 2**20


class Large:
    def items(self, root: Path | None = None) -> list[Item]:
        return [Sized(f"k{i}", "train", "a", values={"txt": "x"}) for i in range(7)]


class Twice:
    def items(self, root: Path | None = None) -> list[Item]:
        return [Item(key, "train", key) for key in ("a", "b", "a")]


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


def texts(samples_per_shard: int = 10) -> DataSpec:
    made_by = {"class_path": f"{__name__}.Texts", "samples_per_shard": samples_per_shard}
    return DataSpec("mine", "CC0", "data/mine", {"train": "train-*.tar"}, {"text": ["txt"]}, make=made_by)


@pytest.fixture
def original(tmp_path) -> Path:
    """A folder of 95 files."""
    folder = tmp_path / "original"
    folder.mkdir()
    for i in range(95):
        (folder / f"k{i:02d}.txt").write_text(str(i) * 1000)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


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


def test_shards_are_the_same_bytes_for_any_number_of_workers_in_the_order_of_the_keys(original, tmp_path):
    for workers in (1, 2, 3):
        assert make(texts(), original, tmp_path / str(workers), workers) == {"train": 95}
    found = hashes(tmp_path / "1")
    assert list(found) == [f"train-{number:06d}.tar" for number in range(10)]
    assert found == hashes(tmp_path / "2") == hashes(tmp_path / "3")
    with tarfile.open(tmp_path / "2" / "train-000009.tar") as tar:
        assert tar.getnames() == [f"k{i}.txt" for i in range(90, 95)]


def test_shards_are_cut_by_samples_and_by_bytes(tmp_path, original):
    make(texts(40), original, tmp_path / "a")
    assert [count(path) for path in sorted((tmp_path / "a").iterdir())] == [40, 40, 15]
    make(spec(count=300, splits=["train"]), None, tmp_path / "b")
    assert [count(path) for path in sorted((tmp_path / "b").iterdir())] == [256, 44]
    large = DataSpec("n", "l", "r", {"train": "*"}, {"text": ["txt"]}, make={"class_path": f"{__name__}.Large"})
    make(large, None, tmp_path / "c")
    assert [count(path) for path in sorted((tmp_path / "c").iterdir())] == [3, 3, 1]  # of 256 MiB and one sample more


def count(path: Path) -> int:
    with tarfile.open(path) as tar:
        return len({name.split(".")[0] for name in tar.getnames()})


SLOW = """
import os, sys, time
from pathlib import Path
from mmflow.data.make import make
from mmflow.data.sources.items import Item
from mmflow.data.spec import DataSpec

class Slow(Item):
    __slots__ = ()

    def sample(self):
        Path("pids", str(os.getpid())).touch()
        time.sleep(float(os.environ.get("PAUSE_S", 0)))
        return Item.sample(self)

class Source:
    def items(self, root=None):
        return [Slow(f"k{i:03d}", "train", "a", values={"bin": bytes([i]) * 5000}) for i in range(90)]

if __name__ == "__main__":
    Path("pids").mkdir(exist_ok=True)
    by = {"class_path": "slow.Source", "samples_per_shard": 10}
    spec = DataSpec("n", "l", "r", {"train": "*.tar"}, {"bytes": ["bin"]}, make=by)
    try:
        make(spec, None, Path("out"), workers=int(sys.argv[1]))
    except ChildProcessError as error:
        sys.exit(f"error: {error}")
"""


@pytest.fixture
def interrupted(tmp_path):
    """Starts a slow run, ends it with a signal, looks at what it left, and checks that the next one ends as one whole.

    Returns what the first one printed."""
    (tmp_path / "slow.py").write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}

    def start(workers: int, pause_s: float, cwd: Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "slow.py"), str(workers)]
        told = environment | {"PAUSE_S": str(pause_s)}
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
        return subprocess.Popen(command, cwd=cwd, env=told, stderr=subprocess.PIPE, text=True, preexec_fn=heard)

    def run(workers: int, number: int, to_worker: bool = False) -> str:
        part = tmp_path / ".out.part"
        process = start(workers, 0.1, tmp_path)
        while len(list(part.glob("train-*.tar"))) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        used = [int(path.name) for path in (tmp_path / "pids").iterdir()]
        os.kill(min(used) if to_worker else process.pid, number)
        _, printed = process.communicate(timeout=60)
        assert process.returncode != 0
        assert len(used) == workers
        deadline = time.monotonic() + 30
        while any(map(is_running, used)):
            assert time.monotonic() < deadline, "workers outlive the run"
            time.sleep(0.05)
        assert not (tmp_path / "out").exists()
        kept = {path.name: path.stat().st_mtime_ns for path in part.glob("train-*.tar")}
        assert 3 <= len(kept) < 9
        (tmp_path / "whole").mkdir()
        assert start(1, 0, tmp_path / "whole").wait() == 0
        assert start(workers, 0, tmp_path).wait() == 0
        assert hashes(tmp_path / "out") == hashes(tmp_path / "whole" / "out")
        assert len(hashes(tmp_path / "out")) == 9
        assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()
        assert not part.exists()
        return printed

    return run


def test_a_run_that_is_killed_goes_on_and_its_workers_end(interrupted):
    interrupted(2, signal.SIGKILL)


def test_a_run_in_one_process_that_is_killed_goes_on(interrupted):
    interrupted(1, signal.SIGKILL)


def test_ctrl_c_ends_the_workers_and_the_next_run_goes_on(interrupted):
    assert "KeyboardInterrupt" in interrupted(2, signal.SIGINT)


def test_a_worker_that_is_killed_is_told_and_the_next_run_goes_on(interrupted):
    printed = interrupted(2, signal.SIGKILL, to_worker=True)
    assert "error: a worker process was killed, as happens when memory runs out; no shard was published" in printed


@pytest.fixture
def failed(original, tmp_path) -> Path:
    """What is left of a run into tmp_path / "out" whose very last sample was broken."""
    (original / "zbad.txt").write_text("bad")
    with pytest.raises(ValueError, match=rf"^{original}/zbad.txt is broken; download it again$"):
        make(texts(), original, tmp_path / "out")
    (original / "zbad.txt").unlink()
    return tmp_path / ".out.part"


def test_what_stood_before_an_error_is_kept_where_it_is_still_true(original, failed, tmp_path, caplog):
    assert len(json.loads((failed / "journal.json").read_text())) == 10
    assert not (tmp_path / "out").exists()
    before = {path.name: path.stat().st_mtime_ns for path in failed.glob("*.tar")}
    assert sorted(before) == [f"train-{number:06d}.tar" for number in range(9)]
    (failed / "train-000003.tar").unlink()
    (failed / ".train-000004.tar.123.part").write_text("half")
    (original / "k70.txt").write_text("changed")
    with caplog.at_level("INFO"):
        make(texts(), original, tmp_path / "out")
    assert "7 of 10 shards are there from an interrupted run, and kept" in caplog.text
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(name for name in after if after[name] != before.get(name)) == [
        f"train-00000{number}.tar" for number in (3, 7, 9)
    ]
    make(texts(), original, tmp_path / "whole")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.parametrize("change", ["cut", "no journal", "another converter"])
def test_otherwise_it_begins_anew(original, failed, tmp_path, caplog, change):
    if change == "no journal":
        (failed / "journal.json").unlink()
    chosen = texts(15) if change == "cut" else texts()
    if change == "another converter":
        chosen.make["class_path"] = f"{__name__}.Plain"
    with caplog.at_level("INFO"):
        make(chosen, original, tmp_path / "out")
    assert "interrupted run" not in caplog.text
    assert len(hashes(tmp_path / "out")) == (7 if change == "cut" else 10)


def test_an_error_in_a_worker_is_told_as_it_is(original, tmp_path):
    (original / "zbad.txt").write_text("bad")
    with pytest.raises(ValueError, match=rf"^{original}/zbad.txt is broken; download it again$"):
        make(texts(), original, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()
    (original / "k00.txt").unlink()
    (original / "k00.txt").symlink_to(original / "none")
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{original}/k00.txt'"):
        make(texts(), original, tmp_path / "out", workers=2)


def test_the_disk_may_be_full_in_a_worker_too(original, tmp_path, small_disk):
    for i in range(30):
        (original / f"large{i}.txt").write_bytes(bytes(50_000))
    with pytest.raises(OSError, match=f"the disk is full; no shard was published: '{small_disk}/out'"):
        make(texts(), original, small_disk / "out", workers=2)
    assert not (small_disk / "out").exists()


def test_progress_is_logged_where_there_is_no_terminal(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(make_module, "LOG_S", 0.0)
    with caplog.at_level("INFO"):
        make(spec(), None, tmp_path / "a")
        first, *_, last = [line for line in caplog.messages if "samples, " in line]
        assert re.fullmatch(r"1 of 6 samples, \d+/s, 0 of 2 shards, 0:00:0\d left", first)
        assert re.fullmatch(r"6 of 6 samples, \d+/s, 2 of 2 shards, 0:00:00 left", last)
        caplog.clear()
        make(spec(), None, tmp_path / "b", progress=False)
    assert not [line for line in caplog.messages if "samples, " in line]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(original, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    make(texts(), original, tmp_path / "a", workers=2)
    assert re.search(r"━ 95 of 95 samples, \d+/s, 10 of 10 shards, 0:00:00 left", sys.stderr.getvalue())
    monkeypatch.setattr(sys, "stderr", Terminal())
    make(texts(), original, tmp_path / "b", progress=False)
    assert sys.stderr.getvalue() == ""


def test_keys_must_be_unique_in_a_split(tmp_path):
    twice = DataSpec("n", "l", "r", {"train": "*"}, {"text": ["txt"]}, make={"class_path": f"{__name__}.Twice"})
    with pytest.raises(ValueError, match="key 'a' occurs twice in split 'train'; keys must be unique"):
        make(twice, None, tmp_path / "out")


def test_there_is_at_least_one_worker(tmp_path):
    with pytest.raises(ValueError, match="workers=0 must be 1 or more"):
        make(spec(), None, tmp_path / "out", workers=0)


def test_workers_need_not_import_torch():
    code = "import sys, mmflow.data.make; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    with pytest.raises(ValueError, match="Tones found no sample; nothing was written"):
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
        ("os.system", "'os.system' is not a class with a method items"),
        ("pathlib.Path", "is not a class with a method items"),
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
        ({"count": None}, "make.init_args: count is null; give it a value, or leave it out"),
    ],
)
def test_wrong_options_name_the_right_ones(init_args, message):
    with pytest.raises(ValueError, match=message):
        build_source(spec(**init_args))


def test_an_option_that_may_be_null_may_be():
    assert build_source(spec(count=3, splits=None)).splits == ["train", "test"]


def test_shards_of_other_options_are_not_taken_for_those_of_the_spec(tmp_path):
    ensure(spec().with_root(tmp_path / "data"))
    ensure(spec(count=3).with_root(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"data was made with .*'count': 3.* now says .*'count': 4.*; remove the fol"):
        ensure(spec(count=4).with_root(tmp_path / "data"))


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
