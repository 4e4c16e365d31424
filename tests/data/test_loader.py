"""Batches from workers: exactly those of the plan, whatever a decoder does to the process that runs it."""

import faulthandler
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmflow.data import loader
from mmflow.data.corpus import Corpus
from mmflow.data.decode import DECODERS, text
from mmflow.data.loader import pack, unpack
from mmflow.data.plan import BatchRule
from tests.data import test_datamodule
from tests.data.test_datamodule import Toy, broken_set, first, keys, loud, same, take, toy
from tests.data.test_video import movie
from tests.shards import encoded, noise, write_data_set


@pytest.fixture
def spec(tmp_path) -> Path:
    return write_data_set(
        tmp_path,
        {
            "train": [[0.1, 0.2, 0.3, 0.4, "cut"], [0.5, 0.1, 0.2], [0.3, 0.4]],
            "validation": [[0.1, 0.2], [0.3, 0.2, 0.1]],
        },
    )


# -- what is made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [{"batch_size": 2}, {"batch_size": None, "batch_seconds": 0.6}])
def test_batches_do_not_depend_on_the_number_of_workers(spec, rule):
    alone = first(toy(spec, **rule), 12)
    for workers in (1, 3):
        assert all(map(same, first(toy(spec, num_workers=workers, **rule), 12), alone))
    assert len({batch["drawn"] for batch in alone}) == 12


def test_training_batches_tell_their_step_and_lane(spec):
    batches = first(toy(spec, rank=1, world=2, lanes=4, batch_size=1), 5)
    assert [(batch["__step__"], batch["__lane__"]) for batch in batches] == [(0, 1), (0, 3), (1, 1), (1, 3), (2, 1)]
    assert "__step__" not in next(iter(toy(spec).val_dataloader()))


@pytest.mark.parametrize("workers", [0, 1])
def test_seconds_are_summed_by_field_and_by_shard(tmp_path, monkeypatch, workers):
    read = Corpus.read
    took = {"audio": 0.25, "text": 0.5}
    monkeypatch.setattr(Corpus, "read", lambda self, number: read(self, number) | {"__seconds__": took})
    data = toy(write_data_set(tmp_path, {"validation": [[0.1, 0.1], [0.1]]}), fn="validate", num_workers=workers)
    data.rule = BatchRule(3)
    (batch,) = data.val_dataloader()
    assert batch["__seconds__"] == {"audio": 0.75, "text": 1.5}
    assert {Path(shard).name: s for shard, s in batch["__shard_seconds__"].items()} == {
        "validation-000000.tar": 1.5,
        "validation-000001.tar": 0.75,
    }


def test_batches_of_any_size_pass_between_the_processes(tmp_path):
    """A socket takes about 200 kB before somebody reads."""
    long = [{"flac": encoded(noise(0.1)), "txt": "A" * 300_000} for _ in range(40)]
    data = toy(write_data_set(tmp_path, {"train": [long], "validation": [[0.1]]}), lanes=1, batch_size=1, num_workers=2)
    with_text(data)
    batches = first(data, 40)
    assert {batch["text"][0] for batch in batches} == {"A" * 300_000}
    assert len({batch["__key__"][0] for batch in batches}) == 40


def with_text(data: Toy) -> None:
    prepare, collate = data.transforms(True)
    data.transforms = lambda training: (  # type: ignore[method-assign]
        prepare,
        lambda samples, rng: collate(samples, rng) | {"text": [sample["text"] for sample in samples]},
    )


def test_tensors_anywhere_in_a_batch_become_views_of_one_buffer():
    batch = {
        "audio": torch.randn(3, 7)[:, ::2],
        "mask": torch.tensor([[True, False, True]]),
        "nothing": torch.empty(0, 4),
        "count": torch.tensor(2.5, dtype=torch.float64),
        "clips": [torch.arange(5), {"half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}],
        "__key__": ["a", "b"],
        "audio_seconds": 1.5,
    }
    back = unpack(pack(batch))
    assert back.keys() == batch.keys()
    assert {name: back[name] for name in ("__key__", "audio_seconds")} == {"__key__": ["a", "b"], "audio_seconds": 1.5}
    pairs = [(back[name], batch[name]) for name in ("audio", "mask", "nothing", "count")]
    pairs += [(back["clips"][0], batch["clips"][0]), (back["clips"][1]["half"], batch["clips"][1]["half"])]
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert one.untyped_storage().data_ptr() == back["audio"].untyped_storage().data_ptr()
    places = [one.storage_offset() * one.element_size() for one, _ in pairs]
    assert places == [0, 64, 128, 128, 192, 256]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_batch_leaves_no_file_open():
    before = open_files()
    kept = [unpack(pack({"x": torch.full((1000,), i)})) for i in range(5)]
    assert open_files() == before
    assert [int(batch["x"][-1]) for batch in kept] == [0, 1, 2, 3, 4]


# -- broken samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_replaced_by_the_next_usable_one_in_training(tmp_path, workers):
    spec = broken_set(tmp_path, [0.1, "cut", "junk", loud(), 0.2], [0.3])
    data = toy(spec, batch_size=1, lanes=1, num_workers=workers)
    batches = first(data, 5)  # one epoch of the five samples whose headers can be read
    assert Counter(batch["__key__"][0] for batch in batches) == {"train-0-0": 1, "train-0-4": 3, "train-1-0": 1}
    assert all(batch["valid"].tolist() == [True] for batch in batches)
    reported = {key: reason for batch in batches for _, key, reason in batch["__broken__"]}
    assert reported == {"train-0-1": "not readable audio: Error : flac decoder lost sync.", "train-0-3": "too loud"}
    assert all(map(same, first(toy(spec, batch_size=1, lanes=1), 5), batches))


def test_a_broken_sample_keeps_its_row_but_does_not_count_where_each_is_seen_once(tmp_path):
    data = toy(broken_set(tmp_path, [0.1, 0.2, "cut"], ["cut"]), batch_size=4)
    (batch,) = data.val_dataloader()
    assert batch["__key__"] == ["validation-0-0", "validation-0-1", "validation-0-2", "validation-1-0"]
    assert [Path(shard).name for shard in batch["__shard__"]] == ["validation-000000.tar"] * 3 + [
        "validation-000001.tar"
    ]
    assert batch["valid"].tolist() == [True, True, False, False]
    assert torch.equal(batch["audio"][2], batch["audio"][3])  # both are replaced by the first sample, round the end
    assert batch["lengths"].tolist() == [1600, 3200, 1600, 1600]


def test_a_split_in_which_nothing_can_be_read_is_an_error(tmp_path):
    data = toy(broken_set(tmp_path, ["cut", "cut"]), lanes=1)
    with pytest.raises(
        ValueError, match=r"no sample of split 'train' can be read; the last: .*train-000000\.tar train-0-"
    ):
        first(data, 1)
    data = toy(broken_set(tmp_path / "b", ["cut"] * 103), max_broken=0.1)
    with pytest.raises(ValueError, match="101 of 103 samples of split 'train' are broken"):
        first(data, 1)


# -- decoders that hang or crash -------------------------------------------------------------------------------------

FATES = {
    "HANG": ("took more than 0.4 s", lambda: time.sleep(1000)),
    "EXIT": ("ended its process with exit code 3", lambda: os._exit(3)),
    "SEGV": ("ended its process by SIGSEGV", lambda: crash()),
}


def crash() -> None:
    faulthandler.disable()  # pytest's would print all frames
    os.kill(os.getpid(), signal.SIGSEGV)


def trap(data: bytes) -> str:
    """Decodes text, except that of a fate, which comes true."""
    if data.decode() in FATES:
        assert multiprocessing.parent_process(), "decoded in the main process"
        FATES[data.decode()][1]()
    return text(data)


@pytest.fixture
def traps(monkeypatch) -> None:
    monkeypatch.setitem(DECODERS, "txt", trap)
    monkeypatch.setattr(loader, "LOOK_S", 0.05)


def fatal(fate: str) -> dict[str, Any]:
    return {"flac": encoded(noise(0.1)), "txt": fate}


def knowing(spec: Path, fates: dict[str, str], **options: Any) -> Toy:
    """A module that was told from the start which keys are broken by which fate; it decodes in the main process."""
    data = toy(spec, **options)
    broken: dict[str, dict[str, str]] = {}
    for key, fate in fates.items():
        split, shard, _ = key.split("-")
        path = str(spec.parent / "toy" / f"{split}-{int(shard):06d}.tar")
        broken.setdefault(path, {})[key] = f"decoding {FATES[fate][0]}"
    data.load_state_dict(data.state_dict() | {"broken": broken})
    return data


@pytest.mark.parametrize("fate", FATES)
def test_a_decoder_that_does_not_return_costs_its_sample_in_training(tmp_path, traps, caplog, fate):
    spec = broken_set(tmp_path, [0.1, 0.2, fatal(fate), 0.3], [0.2, 0.1, 0.3, 0.4])
    data = toy(spec, num_workers=2, stuck_after_s=0.4)
    batches = first(data, 12)  # three epochs
    assert all(map(same, batches, first(knowing(spec, {"train-0-2": fate}), 12)))
    shard = str(tmp_path / "toy" / "train-000000.tar")
    assert {entry for batch in batches for entry in batch["__broken__"]} == {
        (shard, "train-0-2", f"decoding {FATES[fate][0]}")
    }
    assert "train-0-2" not in keys(batches)
    lines = {record.getMessage() for record in caplog.records if record.name == "mmflow.data.loader"}
    text = f"data worker %d on train-0-2 in {shard}: decoding {FATES[fate][0]}; it is replaced"
    assert lines
    assert lines <= {text % 0, text % 1}  # two may be on it, for two epochs
    assert multiprocessing.active_children() == []
    take(data, batches)
    assert data.state_dict()["broken"] == {shard: {"train-0-2": f"decoding {FATES[fate][0]}"}}


def test_two_workers_that_are_lost_at_once_are_replaced_at_once(tmp_path, traps, monkeypatch):
    started = []
    work = loader.Workers.__init__
    monkeypatch.setattr(loader.Workers, "__init__", lambda self, *given: started.append(1) or work(self, *given))
    spec = broken_set(tmp_path, [fatal("HANG"), 0.2], [fatal("EXIT"), 0.1])
    batches = first(toy(spec, num_workers=2, batch_size=2, stuck_after_s=0.4), 8)
    assert all(map(same, batches, first(knowing(spec, {"train-0-0": "HANG", "train-1-0": "EXIT"}), 8)))
    assert len(started) == 2


def test_in_a_pass_that_sees_each_once_only_the_row_of_the_sample_is_lost(tmp_path, traps, caplog):
    spec = broken_set(tmp_path, [0.1, fatal("HANG"), 0.3], [0.2, fatal("SEGV")], [0.1] * 6)
    data = toy(spec, num_workers=2, stuck_after_s=0.4)
    validation = data.val_dataloader()
    known = list(knowing(spec, {"validation-0-1": "HANG", "validation-1-1": "SEGV"}).val_dataloader())
    for _ in range(2):
        batches = list(validation)
        assert all(map(same, batches, known))
        assert len(batches) == len(known) == 6
        read = [f"validation-{n}" for n in ("0-0", "0-2", "1-0", *(f"2-{i}" for i in range(6)))]
        assert keys(batches) == read
    assert caplog.text.count("; it is replaced") == 2  # not again in the second pass


def test_a_resumed_run_does_not_try_what_hung_before(tmp_path, traps, caplog):
    spec = broken_set(tmp_path, [0.1, 0.2, fatal("HANG"), 0.3], [0.2, 0.1, fatal("EXIT"), 0.4])
    data = toy(spec, num_workers=2, stuck_after_s=0.4)
    whole = first(data, 16)
    take(data, [dict(batch) for batch in whole])
    caplog.clear()
    resumed = toy(spec, num_workers=2, stuck_after_s=0.4, step=3)
    resumed.load_state_dict(pickle.loads(pickle.dumps(data.state_dict())))
    assert all(map(same, first(resumed, 10), whole[6:]))
    assert "data worker" not in caplog.text


def test_samples_that_kill_workers_are_bounded(tmp_path, traps):
    data = toy(broken_set(tmp_path, [0.1, fatal("EXIT"), fatal("EXIT"), 0.2]), lanes=1, num_workers=1)
    batches = data.train_dataloader()
    batches.reader.most_tries = 1  # as data.max_broken would have it in a large split
    with pytest.raises(ValueError, match=r"2 of 4 samples of split 'train' are broken.*ended its process with exit co"):
        list(itertools.islice(batches, 4))
    assert multiprocessing.active_children() == []
    data = toy(broken_set(tmp_path / "b", [0.1, fatal("EXIT"), 0.2]), lanes=1, num_workers=1, max_broken=0.1)
    with pytest.raises(ValueError, match=r"1 of 3 samples of split 'train' are broken, more than data.max_broken"):
        take(data, first(data, 3))


def test_the_death_of_a_worker_that_no_sample_explains_is_an_error(spec, monkeypatch):
    monkeypatch.setattr(test_datamodule, "pad", lambda samples, rng: os._exit(7))
    with pytest.raises(RuntimeError, match="data worker 0, which was on no sample, ended its process with exit code 7"):
        first(toy(spec, num_workers=1), 1)
    assert multiprocessing.active_children() == []


def test_batches_that_take_long_are_waited_for_and_told(spec, monkeypatch, caplog):
    monkeypatch.setattr(loader, "LOOK_S", 0.05)
    monkeypatch.setattr(test_datamodule, "pad", lambda samples, rng: time.sleep(0.6) or {})
    assert len(first(toy(spec, num_workers=1, stuck_after_s=0.3), 1)) == 1
    assert "data worker 0 made no batch for 0 s, with no single sample for as long" in caplog.text


def test_a_transfer_is_no_decoder(spec, monkeypatch, caplog):
    monkeypatch.setattr(loader, "LOOK_S", 0.05)
    monkeypatch.setattr(loader, "is_remote", lambda path: True)
    monkeypatch.setattr(loader, "fetch", lambda path, allow_pipe: time.sleep(0.4) or BytesIO())
    alone = first(toy(spec), 1)
    caplog.clear()
    assert all(map(same, first(toy(spec, num_workers=1, stuck_after_s=0.2), 1), alone))
    assert "it is replaced" not in caplog.text


# -- ending ----------------------------------------------------------------------------------------------------------


def test_workers_leave_signals_to_their_parent(spec):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        loader.ignore_signals(0)
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_thread_that_receives_from_workers_ends_with_its_iterator(spec):
    batches = iter(toy(spec, num_workers=1).train_dataloader())
    assert receivers() == 0
    next(batches)
    assert receivers() == 1
    batches.close()
    assert receivers() == 0
    assert len(list(toy(spec, num_workers=1).val_dataloader())) == 3
    assert receivers() == 0


def receivers() -> int:
    return sum(thread.name.startswith("receiver") for thread in threading.enumerate())


def test_an_error_of_a_worker_reaches_the_reader(spec, monkeypatch):
    data = toy(spec, num_workers=1)
    monkeypatch.setattr(test_datamodule, "pad", lambda samples, rng: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="Caught ZeroDivisionError in data worker 0"):
        first(data, 1)
    assert multiprocessing.active_children() == []  # the process could not end with a worker that ignores signals


def test_a_batch_that_cannot_be_sent_is_an_error(spec, monkeypatch):
    monkeypatch.setattr(test_datamodule, "pad", lambda samples, rng: {"made": lambda: 0})
    with pytest.raises(Exception, match=r"in data worker 0, which sends a batch(.|\n)*Can't pickle local object"):
        first(toy(spec, num_workers=1), 1)


def test_workers_that_are_stopped_are_not_mistaken_for_lost(tmp_path, traps, caplog):
    spec = broken_set(tmp_path, [0.1, 0.2, 0.1, fatal("HANG")])
    batches = iter(toy(spec, num_workers=1, lanes=1, batch_size=1).train_dataloader())
    next(batches)
    batches.close()
    assert "data worker" not in caplog.text
    assert multiprocessing.active_children() == []


PROGRAM = """
import sys
from pathlib import Path
from mmflow.data.corpus import Corpus
from mmflow.data.loader import Loader, Reader
from mmflow.data.plan import Micro
from mmflow.data.spec import DataSpec
corpus = Corpus([DataSpec.read(Path(sys.argv[1]))], "train", ["audio"])
reader = Reader(corpus, range(3), lambda sample, rng: sample, lambda samples, rng: {}, 0, True, 1)
kept = iter(Loader(reader, [Micro((0,))] * 100, num_workers=2, stuck_after_s=60.0))
print(next(kept)["__key__"], flush=True)
raise SystemExit(5)
"""


def test_a_process_ends_though_a_loader_is_not_closed(spec):
    program = [sys.executable, "-c", PROGRAM, str(spec)]
    ended = subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (5, "['train-0-0']\n"), ended.stderr


# -- memory ----------------------------------------------------------------------------------------------------------

EPOCHS, WARM_UP = 20, 8
MOST_GROWTH = 8 * 2**20  # bytes; it was -4 MB to 4.3 MB


class Mixed(Toy):
    """Samples with a picture, a sound and a video, of which each epoch decodes all."""

    fields = ("image", "audio", "video")

    def transforms(self, training: bool) -> tuple[Any, Any]:
        return keep, stack


def keep(sample: dict[str, Any], rng: Any) -> dict[str, Any]:
    clip = sample["video"].clip(0.0, 0.4, 10.0)
    return sample | {"image": sample["image"].tensor(), "video": clip, "sound": sample["video"].sound(0.0, 0.4)}


def stack(samples: list[dict[str, Any]], rng: Any) -> dict[str, Any]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "audio", "video", "sound")}


def picture() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def growth(tmp_path: Path) -> int:
    """Bytes by which the memory of the worker that grew most did so after the first epochs."""
    sound = np.random.default_rng(0).standard_normal(24_000, dtype=np.float32) / 10
    sample = {"jpg": picture(), "flac": encoded(noise(0.2)), "mp4": movie(pts=list(range(15)), sound=sound)}
    extensions = {"image": ["jpg"], "audio": ["flac"], "video": ["mp4"]}
    spec = write_data_set(tmp_path, {"train": [[sample] * 6] * 2, "validation": [[sample]]}, fields=extensions)
    data = toy(spec, kind=Mixed, batch_size=2, num_workers=2)
    held = []
    for number, _ in enumerate(itertools.islice(data.train_dataloader(), EPOCHS * 6), 1):
        if number % 6 == 0:
            held.append([own_memory(worker.pid) for worker in multiprocessing.active_children()])
    after = np.array(held[WARM_UP:])  # (epochs, workers)
    return int((after[-1] - after[0]).max())


def own_memory(pid: int | None) -> int:
    """Bytes that no other process has a part in."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_memory_of_workers_does_not_grow_over_epochs(tmp_path):
    assert growth(tmp_path) < MOST_GROWTH


@pytest.mark.slow
def test_that_growth_of_memory_would_be_noticed(tmp_path, monkeypatch):
    leaked, decode = [], DECODERS["flac"]
    monkeypatch.setitem(DECODERS, "flac", lambda data: leaked.append(b"x" * 400_000) or decode(data))
    assert growth(tmp_path) > 2 * MOST_GROWTH
