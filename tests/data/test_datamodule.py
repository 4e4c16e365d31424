import itertools
import logging
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from mmflow import cli
from mmflow.data.datamodule import ShardData
from mmflow.data.decode import BadSample
from mmflow.data.loader import Prepare, Sample
from mmflow.data.spec import DataSpec
from mmflow.pipeline import data_identity
from tests.shards import encoded, film, noise, write_data_set, write_spec

LOUD = "LOUD"


def jitter(sample: Sample, rng: np.random.Generator) -> Sample:
    """Adds a number of its own to every sample, and refuses those whose text is LOUD."""
    if sample["text"] == LOUD:
        raise BadSample("too loud")
    return sample | {"audio": sample["audio"] + rng.random()}


def pad(samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:
    audio = pad_sequence([sample["audio"] for sample in samples], batch_first=True)
    return {"audio": audio, "lengths": torch.tensor([len(s["audio"]) for s in samples]), "drawn": rng.random()}


class Toy(ShardData):
    fields = ("audio", "text")

    def transforms(self, training: bool) -> tuple[Prepare, Any]:
        return jitter, pad


def toy(
    path: Path | list[Path],
    rank: int = 0,
    world: int = 1,
    step: int = 0,
    fn: str = "fit",
    kind: type[Toy] = Toy,
    **options: Any,
) -> Toy:
    """The module as the rank of a run at some step has it."""
    spec = [str(p) for p in path] if isinstance(path, list) else str(path)
    options.setdefault("max_broken", 1.0)
    data = kind(spec, **({"batch_size": 2, "num_workers": 0} | options))
    strategy = SimpleNamespace(barrier=lambda: None)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step, global_rank=rank, world_size=world, is_global_zero=rank == 0, strategy=strategy,
        state=SimpleNamespace(fn=fn),
    )  # fmt: skip
    data.setup(fn)
    return data


def first(data: Toy, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(data.train_dataloader(), count))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two batches are equal bit for bit, but for the seconds that it took to make them."""
    one, other = ({k: v for k, v in batch.items() if "seconds__" not in k} for batch in (one, other))
    tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    rest = one.keys() - set(tensors)
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in tensors)
        and all(one[name] == other[name] for name in rest)
    )


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key, valid in zip(batch["__key__"], batch["valid"], strict=True) if valid]


@pytest.fixture
def spec(tmp_path) -> Path:
    return write_data_set(
        tmp_path,
        {
            "train": [[0.1, 0.2, 0.3, 0.4, "cut"], [0.5, 0.1, 0.2], [0.3, 0.4]],
            "validation": [[0.1, 0.2], [0.3, 0.2, 0.1]],
        },
    )


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "step"), [(1, 0), (2, 0), (2, 2)])
def test_the_micro_batches_of_a_step_may_come_as_one_list(spec, world, step):
    for rank in range(world):
        plain, joined = (toy(spec, rank, world, step) for _ in "12")
        joined.joins_lanes = True
        count = plain.lanes // world
        steps = first(joined, 3)
        assert [len(own) for own in steps] == [count] * 3
        together = [micro for own in steps for micro in own]
        assert all(same(a, b) for a, b in zip(together, first(plain, 3 * count), strict=True))
        assert [(micro["__step__"], micro["__lane__"]) for micro in together] == [
            (number, lane) for number in range(step, step + 3) for lane in range(rank, plain.lanes, world)
        ]


def test_broken_samples_of_joined_micro_batches_are_noted(spec, caplog):
    data = toy(spec, lanes=4)
    data.joins_lanes = True
    for step in first(data, 6):
        data.on_before_batch_transfer(step, 0)
        assert not any("__broken__" in micro for micro in step)
    assert list(data.broken.values()) == [{"train-0-4": data.broken[next(iter(data.broken))]["train-0-4"]}]
    assert "broken sample train-0-4" in caplog.text


def test_waiting_for_joined_micro_batches_is_counted(spec):
    data = toy(spec)
    data.joins_lanes = True
    loader = data.train_dataloader()
    assert loader.waited_s == 0
    next(iter(loader))
    assert loader.waited_s > 0


def test_a_run_that_is_resumed_reads_the_tail(spec):
    whole = first(toy(spec), 14)
    for step in (1, 3, 6):
        assert all(map(same, first(toy(spec, step=step, num_workers=1), 14 - 2 * step), whole[2 * step :]))


def test_two_processes_read_the_lanes_of_one(spec):
    whole = first(toy(spec), 8)
    ranks = [first(toy(spec, rank=rank, world=2), 4) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert all(map(same, together, whole))


def test_the_draws_of_a_sample_change_with_the_epoch_and_the_seed(tmp_path):
    spec = write_data_set(tmp_path, {"train": [[0.1]], "validation": [[0.1]]})

    def offsets(seed: int) -> list[float]:
        batches = first(toy(spec, batch_size=1, lanes=1, seed=seed), 2)
        return [float(batch["audio"].mean()) for batch in batches]

    assert offsets(0) == offsets(0)
    assert len({*offsets(0), *offsets(1)}) == 4


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_validation_sees_each_sample_once_with_as_many_batches_on_each_rank(spec, world):
    passes = [list(toy(spec, rank=rank, world=world).val_dataloader()) for rank in range(world)]
    assert sorted(keys(itertools.chain(*passes))) == [f"validation-{n}" for n in ("0-0", "0-1", "1-0", "1-1", "1-2")]
    assert len(set(map(len, passes))) == 1
    if world == 1:
        assert all(map(same, passes[0], toy(spec, num_workers=2).val_dataloader()))


def test_a_mixture_of_specs_is_read_by_weight(tmp_path):
    one = write_data_set(tmp_path, {"train": [[0.1] * 6], "validation": [[0.1]]}, "one")
    two = write_data_set(tmp_path, {"train": [[0.1] * 6], "validation": [[0.1]]}, "two")
    data = toy([one, two], weights=[2.0, 1.0], lanes=1)
    epoch = first(data, 6)
    assert Counter(Path(shard).parent.name for batch in epoch for shard in batch["__shard__"]) == {"one": 8, "two": 4}


def test_prediction_goes_shard_by_shard_and_passes_over_finished_ones(spec):
    def shards(rank: int, world: int, finished: set[str]) -> list[str]:
        data = toy(spec, rank, world, fn="predict", predict_splits=["train", "validation"])
        data.finished = lambda: finished
        batches = itertools.chain(*data.predict_dataloader())
        return [Path(batch["__shard__"][0]).name for batch in batches if len(set(batch["__shard__"])) == 1]

    train = [f"train-{number:06d}.tar" for number in (0, 0, 0, 1, 1, 2)]
    validation = ["validation-000000.tar", "validation-000001.tar", "validation-000001.tar"]
    assert shards(0, 1, set()) == train + validation
    dealt = [shards(rank, 2, set()) for rank in range(2)]
    assert set(dealt[0]) | set(dealt[1]) == set(train + validation)
    assert not set(dealt[0]) & set(dealt[1])
    done = {str(spec.parent / "toy" / "train-000000.tar"), str(spec.parent / "toy" / "validation-000001.tar")}
    assert shards(0, 1, done) == train[3:] + validation[:1]
    assert len(shards(4, 5, set())) == 0  # a rank without a shard


def test_the_share_of_an_epoch_that_is_left_over_is_told(spec, caplog):
    with caplog.at_level(logging.INFO, "mmflow"):
        first(toy(spec), 1)
    assert "the first epoch is 2 steps of 2 micro-batches; 2 of its 10 samples are left over" in caplog.text


def test_short_and_long_samples_are_left_out_and_counted(spec, caplog):
    data = toy(spec, min_seconds=0.2, max_seconds=0.4)
    assert [data.corpus("train").seconds[number] for number in data.usable["train"]] == pytest.approx(
        [0.2, 0.3, 0.4, 0.2, 0.3, 0.4]
    )
    assert "train: 4 of 10 samples are under 0.2 s or over 0.4 s and left out" in caplog.text


class Films(ShardData):
    fields = ("video",)


def test_bounds_of_length_are_those_of_videos_too(tmp_path, caplog):
    films = [{"mp4": film(seconds)} for seconds in (0.2, 0.5, 1.0)]
    spec = write_data_set(tmp_path, {"train": [films]}, fields={"video": ["mp4"]})
    data = Films(str(spec), batch_seconds=1.0, lanes=1, min_seconds=0.3, max_seconds=1.0)
    assert data.corpus("train").seconds.tolist() == [0.2, 0.5, 1.0]
    assert data.usable["train"].tolist() == [1, 2]
    assert "train: 1 of 3 samples are under 0.3 s or over 1 s and left out" in caplog.text
    assert sorted(map(len, data.plan().epoch(0)[0])) == [1, 1]


class Texts(ShardData):
    fields = ("text",)


def test_bounds_of_length_are_nothing_to_samples_without_one(spec):
    data = Texts(str(spec), batch_size=2)
    assert len(data.corpus("train")) == len(data.usable["train"]) == 10
    with pytest.raises(
        ValueError, match=r"batch_seconds=2 needs a field `audio` or `video` .*; give batch_size instead"
    ):
        Texts(str(spec), batch_seconds=2.0).corpus("train")


# -- broken samples --------------------------------------------------------------------------------------------------


def broken_set(tmp_path: Path, *shards: list[Any]) -> Path:
    return write_data_set(tmp_path, {"train": list(shards), "validation": list(shards)})


def loud(seconds: float = 0.1) -> dict[str, Any]:
    return {"flac": encoded(noise(seconds)), "txt": LOUD}


def take(data: Toy, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What arrives at the step, after the Trainer passed the batches through the module."""
    return [data.on_before_batch_transfer(batch, 0) for batch in batches]


def test_broken_samples_are_counted_once_and_kept_in_the_checkpoint(tmp_path, caplog):
    spec = broken_set(tmp_path, [0.1, "cut", "junk", 0.2])
    data = toy(spec, lanes=1)
    for _ in range(3):
        take(data, first(data, 4))
    shard = str(tmp_path / "toy" / "train-000000.tar")
    expected = {
        "train-0-1": "not readable audio: Error : flac decoder lost sync.",
        "train-0-2": "not readable audio: Format not recognised.",
    }
    assert data.broken[shard] == expected
    assert data.state_dict()["broken"][shard] == expected
    assert caplog.text.count("broken sample train-0-1 in") == 1
    assert f"broken sample train-0-2 in {shard}: not readable audio" in caplog.text
    resumed = toy(spec, lanes=1)
    resumed.load_state_dict(data.state_dict())
    assert resumed.broken == data.broken


def test_too_many_broken_samples_stop_the_run(tmp_path):
    data = toy(broken_set(tmp_path, [0.1, "cut", 0.2, "cut", 0.3]), max_broken=0.2, batch_size=1, lanes=1)
    batches = first(data, 5)
    with pytest.raises(
        ValueError,
        match=r"2 of 5 samples of split 'train' are broken, more than data.max_broken allows; for example "
        r"train-0-\d in .*train-000000\.tar: not readable audio.*`data check` lists every broken sample.* "
        r"or raise data\.max_broken",
    ):
        take(data, batches)
    assert "__broken__" not in take(toy(broken_set(tmp_path / "b", [0.1, 0.1])), batches[:1])[0]


def test_samples_that_are_broken_by_their_headers_count_before_anything_is_read(tmp_path):
    spec = broken_set(tmp_path, [0.1, "junk", {"txt": "HELLO"}])
    with pytest.raises(ValueError, match=r"2 of 3 samples of split 'train' are broken, more than data.max_broken"):
        toy(spec, max_broken=0.5)
    assert len(toy(spec, max_broken=0.7).usable["train"]) == 1


def test_broken_samples_of_one_split_do_not_count_for_another(tmp_path):
    spec = write_data_set(tmp_path, {"train": [[0.1] * 4], "validation": [["cut", 0.1, 0.1, 0.1]]})
    data = toy(spec, max_broken=0.25)
    take(data, list(data.val_dataloader()))
    assert sum(map(len, data.broken.values())) == 1


def test_a_rank_learns_what_other_ranks_found_broken_when_a_checkpoint_is_written(spec, monkeypatch):
    data = toy(spec)
    data.broken = {"a.tar": {"x": "cut"}}

    def gather(everywhere: list[Any], mine: Any) -> None:
        everywhere[:] = [mine, {"a.tar": {"y": "junk"}, "b.tar": {"z": "cut"}}]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert data.state_dict()["broken"] == {"a.tar": {"x": "cut", "y": "junk"}, "b.tar": {"z": "cut"}}
    assert data.broken == data.state_dict()["broken"]


# -- resuming on other data ------------------------------------------------------------------------------------------


def test_a_resumed_run_with_other_training_data_is_refused(tmp_path, spec):
    state = toy(spec).state_dict()
    toy(spec).load_state_dict(state)
    grown = write_data_set(tmp_path / "grown", {"train": [[0.1] * 5, [0.1] * 5], "validation": [[0.1]]})
    with pytest.raises(
        ValueError,
        match=r"changed since the checkpoint was written: it was 10 samples in 3 shards, now it is 10 in 2; .*new run",
    ):
        toy(grown).load_state_dict(state)
    other = write_data_set(tmp_path / "other", {"train": [[0.1] * 5, [0.1] * 3, [0.1] * 2], "validation": [[0.1]]})
    with pytest.raises(ValueError, match="now it is 10 in 3 with other keys or lengths; the plan would go on"):
        toy(other).load_state_dict(state)


def test_the_same_data_in_another_folder_may_be_resumed_on(spec, tmp_path):
    (tmp_path / "toy").rename(tmp_path / "moved")
    state = toy(spec, root=str(tmp_path / "moved")).state_dict()
    (tmp_path / "moved").rename(tmp_path / "toy")
    toy(spec).load_state_dict(state)


def test_a_checkpoint_is_used_on_any_data_outside_training(tmp_path, spec):
    state = toy(spec).state_dict()
    other = write_data_set(tmp_path / "other", {"train": [[0.1]], "test": [[0.1]]})
    for fn in ("test", "predict"):
        data = toy(other, fn=fn, predict_splits=["train"])
        data.load_state_dict(state)
        assert data.corpus("train")


def test_other_data_is_found_when_the_state_comes_before_the_data(spec, tmp_path):
    state = toy(spec).state_dict()
    other = write_data_set(tmp_path / "other", {"train": [[0.1]], "validation": [[0.1]]})
    data = Toy(str(other), batch_size=2)
    data.load_state_dict(state)
    with pytest.raises(ValueError, match="changed since the checkpoint was written"):
        data.corpus("train")


# -- arguments -------------------------------------------------------------------------------------------------------


def test_root_takes_the_place_of_the_one_in_the_spec(tmp_path):
    write_data_set(tmp_path, {"train": [[0.1, 0.1]], "validation": [[0.1]]})
    spec = write_spec("nowhere", tmp_path)
    with pytest.raises(ValueError, match="no shards of split 'train' match"):
        toy(spec)
    assert len(toy(spec, root=str(tmp_path / "toy")).corpus("train")) == 2
    with pytest.raises(ValueError, match="root='x' is for one spec, but there are 2; set `root` in each spec"):
        toy([spec, spec], root="x")


def test_the_identity_of_a_stages_data_follows_root(tmp_path):
    write_data_set(tmp_path, {"train": [[0.1, 0.1]], "validation": [[0.1]]})
    spec = str(write_spec("nowhere", tmp_path))
    options = {"spec": spec, "root": str(tmp_path / "toy")}
    assert data_identity({"data": {"init_args": {"spec": spec}}}).startswith("0 shards, ")
    assert data_identity({"data": {"init_args": options}}).startswith("2 shards, ")
    before = data_identity({"data": options})
    assert before == data_identity({"data": {"init_args": options}})
    write_data_set(tmp_path, {"validation": [[0.1, 0.3]]})
    assert data_identity({"data": {"init_args": options}}) != before
    assert data_identity({}).startswith("0 shards, ")


def test_shards_made_elsewhere_are_read_with_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for speaker, count in (("a", 4), ("b", 3), ("c", 3)):
        (tmp_path / "recordings" / speaker).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "recordings" / speaker / f"{number}.wav").write_bytes(encoded(noise(0.1), "wav"))
            (tmp_path / "recordings" / speaker / f"{number}.txt").write_text("hello")
    spec = Path(__file__).parents[2] / "data_specs" / "audio_folder.yaml"
    assert cli.main(["data", "make", "--spec", str(spec), "--root", "recordings", "--out", "shards"]) == 0
    data = toy(spec, root="shards")
    sizes = [len(data.corpus(split)) for split in ("train", "validation", "test")]
    assert sum(sizes) == 10
    assert all(sizes)
    assert DataSpec.read(spec).root == "data/audio_folder"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2.0]}, "2 weights for 1 specs; give one for each"),
        ({"batch_size": None}, "give either a batch size or a batch length"),
        ({"min_seconds": 3.0, "max_seconds": 2.0}, "min_seconds=3.0 is above max_seconds=2.0; no sample is between"),
        ({"max_broken": 1.5}, r"max_broken=1.5 is a share of the samples; it must be in 0\.\.1"),
    ],
)
def test_senseless_arguments_are_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        Toy(str(spec), **({"batch_size": 2} | options))


def test_a_rank_waits_for_the_first_to_build_the_indexes(spec):
    order = []
    for rank in (0, 1):
        data = toy(spec, rank=rank, world=2)
        data.corpora.clear()
        data.trainer.strategy.barrier = lambda data=data: order.append(sorted(data.corpora))  # type: ignore[union-attr]
        data.setup("fit")
    assert order == [["train", "validation"], []]
