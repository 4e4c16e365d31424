"""The specs of the world: their shards are the same everywhere, and are made when a run needs them."""

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from mmflow.data.fields import FieldData
from mmflow.data.make import build_source, make
from mmflow.data.sources.items import Item
from mmflow.data.spec import DataSpec
from mmflow.data.transforms import Crop
from mmflow.data.writer import TarShard
from mmflow.world.scene import SPLITS

SPECS = sorted(Path("data_specs").glob("world*.yaml"))
FEW = {"train": 2, "validation": 1, "test": 1}


def few(path: Path) -> Any:
    """The source of a spec with little of everything."""
    spec = DataSpec.read(path)
    asked = {f"{split}_minutes": 0.01 for split in SPLITS} if spec.name == "world_speech" else FEW
    return build_source(replace(spec, make=spec.make | {"init_args": spec.make["init_args"] | asked}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Item):
    """A sample of a source under another key."""

    of: Item

    def sample(self) -> dict[str, Any]:
        return self.of.sample() | {"__key__": self.key}


class Every:
    """Some samples of every spec of the world."""

    def items(self, root: Path | None = None) -> list[Item]:
        every = [(path.stem, item) for path in SPECS for item in few(path).items()]
        return [Named(f"{name}-{item.key}", item.split, item.group, of=item) for name, item in every]


def every() -> DataSpec:
    made = {"class_path": f"{__name__}.Every"}
    return DataSpec("every", "none", "every", {s: f"{s}-*.tar" for s in SPLITS}, {"info": ["json"]}, make=made)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.slow
def test_shards_of_every_spec_are_the_same_for_other_processes_settings_and_order(tmp_path):
    assert len(SPECS) >= 18
    make(every(), None, tmp_path / "here", workers=1, progress=False)
    program = (
        "from pathlib import Path; from mmflow.data.make import make; from tests.world.test_specs import every;"
        f"make(every(), None, Path({str(tmp_path / 'there')!r}), workers=2, progress=False)"
    )
    other = {"PYTHONHASHSEED": "7", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"}
    elsewhere = {"PYTHONPATH": str(Path.cwd()), "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=os.environ | other | elsewhere, check=True)
    (tmp_path / "back").mkdir()
    samples = {(item.split, item.key): item.sample() for item in reversed(Every().items())}
    for split in SPLITS:
        with TarShard(tmp_path / "back" / f"{split}-000000.tar") as shard:
            for key in sorted(samples):
                if key[0] == split:
                    shard.write(samples[key])
    assert list(hashes(tmp_path / "here")) == ["test-000000.tar", "train-000000.tar", "validation-000000.tar"]
    assert hashes(tmp_path / "here") == hashes(tmp_path / "there") == hashes(tmp_path / "back")


def content(member: str, value: Any) -> bytes:
    """What a member says, whatever its encoder: text, pixels, samples; sound of clips is left out, which FFmpeg's AAC
    encoder rounds a little differently on processors without AVX2."""
    kind = member.rpartition(".")[2]
    if kind in ("jpg", "png"):
        return np.array(Image.open(io.BytesIO(value))).tobytes()
    if kind == "mp4":
        with av.open(io.BytesIO(value)) as container:
            return b"".join(frame.to_ndarray(format="yuv420p").tobytes() for frame in container.decode(video=0))
    if kind == "flac":
        return soundfile.read(io.BytesIO(value), dtype="int16")[0].tobytes()
    if kind == "npy":
        return value.tobytes()
    if kind == "json":  # a last digit may be another one with another C library
        value = json.dumps(json.loads(json.dumps(value), parse_float=lambda x: round(float(x), 6)), sort_keys=True)
    return value.encode()


def contents(path: Path) -> str:
    """The digest of the first sample of a spec."""
    sample = few(path).items()[0].sample()
    digest = hashlib.sha256()
    for member in sorted(sample):
        digest.update(member.encode() + content(member, sample[member]))
    return digest.hexdigest()[:12]


CONTENTS = {
    "world": "9d577415829b",
    "world_ave": "610462970640",
    "world_clip_questions": "96dae6808b49",
    "world_clip": "280c22ace031",
    "world_clips": "f0439bbf9a3d",
    "world_dialogues": "66151dd060cb",
    "world_documents": "beb27db9bcb7",
    "world_edits": "c01f79909082",
    "world_episodes": "a46fed80e74c",
    "world_listening": "59f8ab1f911c",
    "world_ms3": "b8f14871f837",
    "world_pictures": "e08c0dc72e81",
    "world_questions": "f653f81ba959",
    "world_reasoning": "490c1da23926",
    "world_s4": "2f92364c4912",
    "world_scans": "9389f11ea684",
    "world_shapes": "280c22ace031",
    "world_speech": "e1b4fc3181f0",
    "world_spoken": "d24927756aca",
    "world_structures": "fc8475c34df0",
    "world_table": "b63e8d047a2b",
}


def test_what_is_made_changes_only_on_purpose():
    """A failure after a change of a generator is right: then put the new digests here. Otherwise something has become
    random, or differs by machine."""
    assert {path.stem: contents(path) for path in SPECS} == CONTENTS


# ---- made when a run needs it


@pytest.fixture
def spec(tmp_path, monkeypatch) -> Path:
    """A spec like that of the world's pictures, small, for runs in `tmp_path`."""
    told = yaml.safe_load(Path("data_specs/world_pictures.yaml").read_text())
    told["make"] |= {"init_args": {"train": 90, "validation": 4, "test": 4, "size": 32}, "samples_per_shard": 10}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(told | {"root": "data/pictures"}))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    return path


OPEN = """
from tests.world.test_specs import opened
print(len(opened("spec.yaml")))
"""


SLOWLY = """
import time
from mmflow.world import stills
quick = stills.WorldPictures.sample
stills.WorldPictures.sample = lambda *arguments: time.sleep(0.02) or quick(*arguments)
"""


def opened(spec: Path | str) -> list[Any]:
    """The batches of an epoch, as a run reads them."""
    data = FieldData([str(spec)], {"image": Crop(32)}, batch_size=10, lanes=1, num_workers=0)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=0, global_rank=0, world_size=1, is_global_zero=True, training=True,
        strategy=SimpleNamespace(barrier=lambda: None), state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return list(itertools.islice(data.train_dataloader(), 9))


def test_a_run_makes_what_it_needs_once(spec, caplog):
    with caplog.at_level("INFO"):
        assert len(opened(spec)) == 9
        before = {path: path.stat().st_mtime_ns for path in Path("data/pictures").glob("*.tar")}
        assert len(before) == 11
        opened(spec)
    assert [line for line in caplog.messages if line.startswith("making")] == [
        f"making world_pictures in {Path.cwd()}/data/pictures"
    ]
    assert {path: path.stat().st_mtime_ns for path in Path("data/pictures").glob("*.tar")} == before


@pytest.mark.slow
def test_two_runs_that_begin_together_make_it_once_and_both_read_it(spec):
    runs = [
        subprocess.Popen([sys.executable, "-c", OPEN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [run.communicate(timeout=120) for run in runs]
    assert [(run.returncode, out) for run, (out, _) in zip(runs, printed, strict=True)] == [(0, "9\n")] * 2, printed
    assert len(list(Path("data/pictures").glob("*.tar"))) == 11
    assert not Path("data/.pictures.part").exists()


def test_a_run_that_is_killed_while_it_makes_leaves_nothing_half_and_the_next_goes_on(spec):
    run = subprocess.Popen([sys.executable, "-c", SLOWLY + OPEN])
    part = Path("data/.pictures.part")
    while len(list(part.glob("[!.]*.tar"))) < 2:
        assert run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.wait()
    assert not Path("data/pictures").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in part.glob("[!.]*.tar")}
    assert 2 <= len(kept) < 11
    assert len(opened(spec)) == 9
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in Path("data/pictures").glob("*.tar")}.items()
    make(DataSpec.read(spec), None, Path("whole"), workers=1)
    assert hashes(Path("data/pictures")) == hashes(Path("whole"))
