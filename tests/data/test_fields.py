"""FieldData: which fields are read, what becomes of them, and that a mixture is resumed exactly anywhere."""

import itertools
import os
import pickle
import signal
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from mmflow import cli, signals
from mmflow.data import fields
from mmflow.data.augmentation import Augmentation, RandomErasing
from mmflow.data.fields import FieldData, collate
from mmflow.data.transforms import Array, Clip, Crop, Entry, Excerpt, OneOf, Parts, Several, Text, Transform
from mmflow.evaluation.pictures import read_curves
from mmflow.pipeline import Pipeline
from mmflow.stage import build_data
from mmflow.training.objective import StepMean
from tests.data.test_pictures import photo, saved
from tests.data.test_video import burst, movie
from tests.shards import write_data_set

KNOWN = {"label": Entry("label"), "caption": OneOf()}
TRANSFORMS: dict[str, Transform] = {
    "image": Crop(8, flip=0.5),
    "audio": Excerpt(0.05),
    "video": Clip(0.2, 10, (12, 32), sound="audio"),
    "text": Text(),
    "info": Parts(KNOWN),
}
PHOTOS = {field: TRANSFORMS[field] for field in ("image", "info")}


def described(number: int) -> dict[str, Any]:
    return {"label": number % 3, "captions": [f"{number} a", f"{number} b"]}


def write_pictures(folder: Path, counts: list[int]) -> Path:
    """The spec `pictures`, of shards with so many photos and their descriptions."""
    numbers = itertools.count()
    shards = [
        [{"jpg": saved(photo(40, 30, n), "JPEG"), "json": described(n)} for n in itertools.islice(numbers, count)]
        for count in counts
    ]
    named = {"image": ["jpg"], "info": ["json"]}
    return write_data_set(folder, {"train": shards, "validation": shards}, "pictures", fields=named)


def write_sounds(folder: Path, counts: list[int]) -> Path:
    seconds = itertools.cycle([0.1, 0.15, 0.2, 0.04])
    shards = [list(itertools.islice(seconds, count)) for count in counts]
    named = {"audio": ["flac"], "text": ["txt"]}
    return write_data_set(folder, {"train": shards, "validation": shards}, "sounds", fields=named)


def write_videos(folder: Path, counts: list[int]) -> Path:
    films = [
        movie(pts=list(range(n, n + 12)), sound=burst(0.1, 0.3, 0.4, 48_000), options={"g": "6"})
        for n in range(max(counts))
    ]
    shards = [[{"mp4": films[n], "json": described(n)} for n in range(count)] for count in counts]
    named = {"video": ["mp4"], "info": ["json"]}
    return write_data_set(folder, {"train": shards, "validation": shards}, "videos", fields=named)


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> list[str]:
    """30 photos, 20 sounds and 12 videos of 0.4 s, in seven shards."""
    folder = tmp_path_factory.mktemp("mixed")
    made = [write_pictures(folder, [13, 9, 8]), write_sounds(folder, [11, 9]), write_videos(folder, [7, 5])]
    return [str(path) for path in made]


def opened(
    spec: Any, transforms: Any = None, rank: int = 0, world: int = 1, step: int = 0, fn: str = "fit", **options: Any
) -> FieldData:
    """The module as the rank of a run at some step has it."""
    data = FieldData(spec, transforms or TRANSFORMS, **({"batch_size": 2, "lanes": 1, "num_workers": 0} | options))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step, global_rank=rank, world_size=world, is_global_zero=rank == 0, training=fn == "fit",
        strategy=SimpleNamespace(barrier=lambda: None), state=SimpleNamespace(fn=fn),
    )  # fmt: skip
    data.setup(fn)
    return data


def first(data: FieldData, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(data.train_dataloader(), count))


def same(one: Any, other: Any) -> bool:
    """Whether two batches are equal bit for bit, but for the time they took."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        names = [name for name in one if not name.endswith("seconds__")]
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in names)
    return one == other


# -- a mixture -------------------------------------------------------------------------------------------------------


def test_every_name_comes_with_the_rows_that_have_it(specs):
    data = opened(specs, batch_size=62, fn="validate")
    (batch,) = data.val_dataloader()
    kinds = [Path(shard).parent.name for shard in batch["__shard__"]]
    assert Counter(kinds) == {"pictures": 30, "sounds": 20, "videos": 12}
    rows = {kind: [row for row, found in enumerate(kinds) if found == kind] for kind in kinds}
    assert batch["image"].shape == (30, 3, 8, 8)
    assert batch["image_rows"].tolist() == rows["pictures"]
    assert batch["video"].shape == (12, 2, 3, 12, 32)
    assert batch["video_rows"].tolist() == rows["videos"]
    assert batch["video_lengths"].tolist() == [2] * 12
    assert batch["audio_rows"].tolist() == sorted(rows["sounds"] + rows["videos"])
    sound = dict(zip(batch["audio_rows"].tolist(), batch["audio_lengths"].tolist(), strict=True))
    assert {sound[row] for row in rows["sounds"]} == {800}
    assert {sound[row] for row in rows["videos"]} == {3200}
    assert batch["audio"].shape == (32, 3200)
    assert batch["text"] == ["HELLO"] * 20
    assert batch["label_rows"].tolist() == batch["caption_rows"].tolist() == sorted(rows["pictures"] + rows["videos"])
    assert batch["label"].tolist() == [n % 3 for n in [*range(30), *range(7), *range(5)]]
    assert batch["caption"][:3] == ["0 a", "1 a", "2 a"]
    assert batch["caption"][30:32] == ["0 a", "1 a"]
    assert not any(name.startswith("image_l") for name in batch)


def test_specs_are_mixed_by_weight_each_with_its_own_transforms(specs):
    own: dict[str, dict[str, Transform]] = {"sounds": {"audio": Excerpt(0.02)}, "pictures": {"info": OneOf()}}
    data = opened(specs, weights=[1.0, 3.0, 2.0], spec_transforms=own, batch_size=4)
    batches = first(data, 15)  # 60 of the 62 of one epoch
    found = Counter(Path(shard).parent.name for batch in batches for shard in batch["__shard__"])
    assert found["sounds"] == pytest.approx(31, abs=2)
    assert found["videos"] == pytest.approx(62 / 3, abs=2)
    for batch in batches:
        kinds = [Path(shard).parent.name for shard in batch["__shard__"]]
        if "sounds" in kinds:
            rows = batch.get("audio_rows", torch.arange(4)).tolist()
            lengths = [320 if kinds[row] == "sounds" else 3200 for row in rows]
            assert batch["audio_lengths"].tolist() == lengths
        assert len(batch.get("info", [])) == kinds.count("pictures")
        assert len(batch.get("label", [])) == kinds.count("videos")


def test_all_samples_of_a_batch_that_have_a_name_need_no_rows(specs):
    batch = first(opened(specs[0], PHOTOS), 1)[0]
    assert batch["image"].shape == (2, 3, 8, 8)
    assert not any(name.endswith("_rows") for name in batch)
    assert batch.keys() >= {"label", "caption", "valid"}


def test_the_seconds_of_a_field_include_its_transform(specs, monkeypatch):
    ticks = itertools.count(0, 10)
    monkeypatch.setattr(fields, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    (batch,) = first(opened(specs[0], PHOTOS), 1)
    assert batch["__seconds__"].keys() == {"image", "info"}
    assert all(20 <= seconds < 21 for seconds in batch["__seconds__"].values())  # two samples, and the reading


def test_what_a_transform_refuses_is_a_broken_sample_that_names_its_field(tmp_path):
    spec = write_pictures(tmp_path, [4])
    data = opened(str(spec), {"image": Crop(8), "info": Entry("lable")}, max_broken=1.0)
    with pytest.raises(ValueError, match=r"no sample of split 'train' can be read.* info: no 'lable': there is no"):
        first(data, 1)


# -- one batch -------------------------------------------------------------------------------------------------------


def batch_of(*values: Any) -> dict[str, Any]:
    return collate([{"x": value} for value in values], np.random.default_rng(0))


def test_collation_of_each_kind():
    assert same(batch_of(1, 2), {"x": torch.tensor([1, 2])})
    assert same(batch_of(1.5, 2), {"x": torch.tensor([1.5, 2.0])})
    assert same(batch_of("a", "b"), {"x": ["a", "b"]})
    assert same(batch_of(torch.tensor(3), torch.tensor(4)), {"x": torch.tensor([3, 4])})
    vectors = {"x": torch.tensor([[1, 2, 3], [4, 0, 0]]), "x_lengths": torch.tensor([3, 1])}
    assert same(batch_of(torch.tensor([1, 2, 3]), torch.tensor([4])), vectors)
    equal = {"x": torch.ones(2, 3), "x_lengths": torch.tensor([3, 3])}  # a model may count on the lengths
    assert same(batch_of(torch.ones(3), torch.ones(3)), equal)
    pictures = torch.ones(3, 4, 5, dtype=torch.uint8)
    assert same(batch_of(pictures, pictures), {"x": torch.ones(2, 3, 4, 5, dtype=torch.uint8)})
    several = batch_of(pictures[None].repeat(2, 1, 1, 1), pictures[None])
    assert several["x"].shape == (2, 2, 3, 4, 5)
    assert several["x"][1, 1].max() == 0
    assert several["x_lengths"].tolist() == [2, 1]
    unlike = [torch.ones(3, 4, 4, dtype=torch.uint8), torch.ones(3, 5, 5, dtype=torch.uint8)]
    assert batch_of(*unlike)["x"] == unlike
    assert batch_of(1, "a")["x"] == [1, "a"]
    assert same(collate([{"a": 1}, {"b": 2}, {"a": 3}], np.random.default_rng(0)), {
        "a": torch.tensor([1, 3]), "a_rows": torch.tensor([0, 2]), "b": torch.tensor([2]), "b_rows": torch.tensor([1]),
    })  # fmt: skip


class Negative(Augmentation):
    """1 - x, and tells the seed."""

    def __init__(self, field: str = "image") -> None:
        super().__init__(field)
        self.field, self.seeds = field, []

    def forward(self, batch: dict[str, Any], seed: int) -> dict[str, Any]:
        self.seeds.append(seed)
        return batch | {self.field: 1 - batch[self.field]}


@pytest.mark.parametrize("fn", ["fit", "validate"])
def test_pictures_and_clips_become_floats_and_are_augmented_in_training_only(specs, fn):
    data = opened(specs, augmentations=[Negative(), Negative("video")], fn=fn, seed=5)
    values = torch.arange(256, dtype=torch.uint8)
    image, video = values[:192].view(1, 3, 8, 8), values[:96].view(1, 2, 3, 4, 4)
    mask, codes = values[:64].view(1, 1, 8, 8), values[:12].view(1, 12)
    batch = {"image": image, "video": video, "mask": mask, "codes": codes, "__key__": ["a"]}
    given = data.on_after_batch_transfer(dict(batch), 0)
    expected = torch.tensor([number / 255 for number in range(192)])
    training = fn == "fit"
    assert torch.equal(given["image"].flatten(), 1 - expected if training else expected)
    assert torch.equal(given["video"].flatten(), 1 - expected[:96] if training else expected[:96])
    assert given["image"].shape == image.shape
    assert all(given[name] is batch[name] for name in ("mask", "codes", "__key__"))
    assert [augmentation.seeds for augmentation in data.augmentations] == [[5] if training else []] * 2
    assert data.on_after_batch_transfer({"codes": codes}, 0) == {"codes": codes}  # no picture to augment in this batch


def test_augmented_batches_are_the_same_for_the_same_step_and_lane(specs):
    data = opened(specs[0], PHOTOS, augmentations=[RandomErasing(probability=1.0)], lanes=2)
    batches, plain = ([data.on_after_batch_transfer(b, 0) for b in first(data, 4)] for _ in range(2))
    assert all(map(same, batches, plain))
    data.augmentations = ()
    plain = [data.on_after_batch_transfer(b, 0) for b in first(data, 4)]
    assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(batches, plain, strict=True))


# -- exact and elastic -----------------------------------------------------------------------------------------------

LANES, STEPS = 8, 6  # 62 samples make 3 steps of 8 x 2, so that the last step is the end of the second epoch


@pytest.fixture(scope="module")
def alone(specs) -> dict[tuple[int, int], dict[str, Any]]:
    """(step, lane) -> batch, of one process without workers that runs through."""
    return micro_batches(specs, 1, 0, 0, STEPS)


def micro_batches(
    specs: list[str], world: int, workers: int, start: int, stop: int
) -> dict[tuple[int, int], dict[str, Any]]:
    """(step, lane) -> batch, of the steps start..stop of all ranks of a run that is resumed at `start`."""
    found = {}
    for rank in range(world):
        data = opened(
            specs, rank=rank, world=world, step=start, num_workers=workers, lanes=LANES, seed=7, weights=[2.0, 1.0, 1.0]
        )
        batches = first(data, (stop - start) * LANES // world)
        for number, batch in enumerate(batches):
            place = start + number * world // LANES, rank + number * world % LANES
            assert (batch["__step__"], batch["__lane__"]) == place
            found[place] = batch
    assert sorted(found) == list(itertools.product(range(start, stop), range(LANES)))
    return found


def keys(batches: dict[tuple[int, int], dict[str, Any]]) -> list[Counter[tuple[str, str]]]:
    """(shard, key) of what each step consumed, with how often."""
    consumed: dict[int, Counter[tuple[str, str]]] = {}
    for (step, _), batch in batches.items():
        consumed.setdefault(step, Counter()).update(zip(batch["__shard__"], batch["__key__"], strict=True))
    return [consumed[step] for step in sorted(consumed)]


def test_an_epoch_of_the_mixture_has_all_kinds(alone):
    consumed = sum(keys(alone)[:3], Counter())
    kinds = Counter(Path(shard).parent.name for shard, _ in consumed.elements())
    assert kinds["pictures"] == pytest.approx(24, abs=6)
    assert kinds["sounds"] == pytest.approx(12, abs=4)
    assert kinds["videos"] == pytest.approx(12, abs=4)
    # 31 of 30 photos, 15 of 20 sounds and 16 of 12 videos are in the order of an epoch of 62
    assert all(count <= (1 if "sounds" in shard else 2) for (shard, _), count in consumed.items())
    names = {name for batch in alone.values() for name in batch}
    assert names >= {"image", "audio", "video", "text", "label", "caption"}


def test_a_sample_is_drawn_anew_each_time_it_comes(alone):
    """Also within an epoch: the photos come more often than there are, for their set has a large weight."""
    crops: dict[str, list[bytes]] = {}
    for batch in alone.values():
        if "image" not in batch:
            continue
        rows = batch.get("image_rows", torch.arange(len(batch["valid"]))).tolist()
        for row, image in zip(rows, batch["image"], strict=True):
            crops.setdefault(batch["__key__"][row], []).append(image.numpy().tobytes())
    assert max(map(len, crops.values())) > 1
    assert all(len(set(found)) == len(found) for found in crops.values())


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_steps_are_the_same_for_any_number_of_processes_and_workers(specs, alone, world, workers):
    batches = micro_batches(specs, world, workers, 0, STEPS)
    assert keys(batches) == keys(alone)
    assert all(same(batches[place], alone[place]) for place in alone)


@pytest.mark.parametrize(
    "runs",
    [  # (processes, workers, step at which the run is interrupted)
        [(1, 1, 1), (8, 0, 4), (2, 3, STEPS)],
        [(4, 0, 2), (1, 3, 3), (2, 1, 5), (8, 1, STEPS)],
    ],
)
def test_a_run_interrupted_within_epochs_goes_on_elsewhere_without_repeating_or_missing_anything(specs, alone, runs):
    resumed: dict[tuple[int, int], dict[str, Any]] = {}
    start = 0
    for world, workers, stop in runs:
        resumed |= micro_batches(specs, world, workers, start, stop)
        start = stop
    assert sum(keys(resumed), Counter()) == sum(keys(alone), Counter())
    assert all(same(resumed[place], alone[place]) for place in alone)


def test_what_goes_to_a_worker_is_small_and_can_be_pickled(specs):
    prepare, gather = opened(specs).transforms(True)
    assert len(pickle.dumps((prepare, gather))) < 3000


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transforms", "options", "message"),
    [
        ({}, {}, "transforms={} reads nothing; name at least one field and its transform"),
        ({"imge": Crop()}, {}, r"no spec has a field 'imge'; did you mean 'image'\? There are: audio, image, info"),
        ({"image": Crop()}, {"spec_transforms": {"picture": {"image": Crop()}}},
         r"spec_transforms: no spec is named 'picture'; did you mean 'pictures'\? There are: pictures, sounds, videos"),
        ({"image": Crop()}, {"spec_transforms": {"pictures": {"imag": Crop()}}},
         r"spec_transforms.pictures: that spec has no field 'imag'; did you mean 'image'\? There are: image, info"),
        ({"image": Crop()}, {"spec_transforms": {"pictures": {"info": Entry("label")}}},
         r"spec_transforms.pictures: field 'info' is not among transforms; did you mean 'image'\?"),
        ({"image": Crop()}, {"sidecars": {"units": "x"}}, "the sidecar 'units' is not among transforms"),
        ({"image": Excerpt()}, {},
         r"pictures.yaml: field 'image' may be .jpg, which Excerpt does not take; it takes one member of flac, .*"
         r"Choose another transform, or correct `fields:` in the spec"),
        ({"image": Several(Crop())}, {}, "Several does not take; it takes several members of jpg"),
        ({"units": Several(Array())}, {"sidecars": {"units": "x"}}, "field 'units' may be .npy, which Several does"),
        ({"video": Clip(1, 1, (8, 8), sound="label"), "info": Parts(KNOWN)}, {},
         "spec 'videos': fields 'video' and 'info' both make 'label'; give one of them another name"),
        ({"image": Crop()}, {"augmentations": [Negative("imgae")]},
         r"Negative reads 'imgae', which no field makes; did you mean 'image'\? There are: image, image_lengths"),
        ({"image": Crop(), "audio": Excerpt()}, {"weights": [1.0]}, "1 weights for 3 specs"),
    ],
)  # fmt: skip
def test_senseless_arguments_are_refused(specs, transforms, options, message):
    with pytest.raises(ValueError, match=message):
        FieldData(specs, transforms, **({"batch_size": 2} | options))


def test_two_fields_may_make_one_name_in_different_specs(specs):
    data = FieldData(specs, TRANSFORMS, batch_size=2)
    assert {spec: list(chosen) for spec, chosen in data.by_spec.items()} == {
        "pictures": ["image", "info"],
        "sounds": ["audio", "text"],
        "videos": ["video", "info"],
    }


CONFIG = """
class_path: mmflow.data.fields.FieldData
init_args:
  transforms:
    image: {class_path: mmflow.data.transforms.Crop, init_args: {size: 8, flip: 0.5}}
    info:
      class_path: mmflow.data.transforms.Parts
      init_args: {parts: {label: {class_path: mmflow.data.transforms.Entry, init_args: {path: label}}}}
  augmentations:
    - {class_path: mmflow.data.augmentation.RandomErasing, init_args: {probability: 0.5}}
  batch_size: 4
  num_workers: 1
"""


def config(spec: str | list[str]) -> dict[str, Any]:
    tree = yaml.safe_load(CONFIG)
    tree["init_args"]["spec"] = spec
    return tree


def test_it_is_built_from_yaml(specs):
    tree = config(specs)
    tree["init_args"]["spec_transforms"] = {
        "pictures": {"image": {"class_path": "mmflow.data.transforms.Crop", "init_args": {"size": 16}}}
    }
    data = build_data({"data": tree})
    assert isinstance(data, FieldData)
    assert data.fields == ("image", "info")
    assert vars(data.by_spec["pictures"]["image"]) == vars(Crop(16))
    assert list(data.by_spec["videos"]) == ["info"]
    assert [type(augmentation) for augmentation in data.augmentations] == [RandomErasing]
    tree["init_args"]["transforms"]["imgae"] = tree["init_args"]["transforms"].pop("image")
    with pytest.raises(ValueError, match="no spec has a field 'imgae'; did you mean 'image'"):
        build_data({"data": tree})


def test_the_example_in_the_module_can_be_built(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    text = (fields.__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[0]
    data = build_data(yaml.safe_load(text))
    assert data.fields == ("image", "video", "text")
    assert {spec: list(chosen) for spec, chosen in data.by_spec.items()} == {
        "flickr8k": ["image", "text"],
        "grid": ["video", "text"],
    }


# -- a training ------------------------------------------------------------------------------------------------------


class Classifier(StepMean):
    """Labels from photos of 8 x 8, with dropout. Signals its process at `stop_at`."""

    stop_at: ClassVar[int | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, 3))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.global_step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = nn.functional.cross_entropy(self.net(batch["image"]), batch["label"], reduction="sum")
        self.log("train/loss", loss.detach() / len(batch["label"]))
        return self.add(loss, torch.tensor(len(batch["label"])))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.usefixtures("handled")
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers
def test_a_training_that_is_stopped_and_resumed_ends_with_the_same_weights(specs, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    tree = {
        "model": {"class_path": f"{__name__}.Classifier"},
        "data": config(specs[0]),
        "trainer": {"max_steps": 9, "accelerator": "cpu", "log_every_n_steps": 1, "limit_val_batches": 0},
    }
    path = tmp_path / "photos.yaml"
    path.write_text(yaml.safe_dump(tree))

    def run(name: str) -> int:
        return cli.main(["fit", "--config", str(path), "--workdir", str(tmp_path / name)])

    def result(name: str) -> tuple[dict[str, Tensor], Any]:
        stage = Pipeline(path, folder=tmp_path / name).stages["photos"]
        done = stage.done()
        assert done is not None
        saved = torch.load(stage.folder / done["checkpoint"], weights_only=True)
        return saved["state_dict"], read_curves(sorted(stage.folder.glob("logs/*/metrics.csv")))["train/loss"]

    assert run("whole") == 0
    monkeypatch.setattr(Classifier, "stop_at", 4)  # the first epoch has 3 steps
    with pytest.raises(SystemExit) as left:
        run("cut")
    assert left.value.code == 75
    signals.received = 0  # as in a new process
    monkeypatch.setattr(Classifier, "stop_at", None)
    assert run("cut") == 0
    (weights, losses), (resumed, losses_again) = result("whole"), result("cut")
    assert all(torch.equal(resumed[name], weight) for name, weight in weights.items())
    assert losses_again == losses
    assert weights["net.2.weight"].abs().sum() > 0


# -- real data -------------------------------------------------------------------------------------------------------


def test_real_photos_speech_and_video_in_one_mixture(real_data: Path, tmp_path):
    photos = sorted((real_data / "flickr8k" / "Images").glob("*.jpg"))[:24]
    films = sorted((real_data / "grid_av").rglob("*.mp*g"))[:6]
    speech = sorted((real_data / "librispeech").rglob("*.flac"))[:12]
    sets = {
        "photos": ([{"jpg": p.read_bytes(), "json": {"captions": [p.stem, p.name]}} for p in photos], ["jpg"]),
        "films": ([{"mpg": p.read_bytes(), "json": {"captions": [p.stem]}} for p in films], ["mpg"]),
        "speech": ([{"flac": p.read_bytes(), "json": {"captions": [p.stem]}} for p in speech], ["flac"]),
    }
    names = {"photos": "image", "films": "video", "speech": "audio"}
    specs = []
    for name, (samples, extensions) in sets.items():
        splits, named = {"train": [samples], "validation": [samples]}, {names[name]: extensions, "info": ["json"]}
        specs.append(str(write_data_set(tmp_path, splits, name, fields=named)))
    transforms: dict[str, Transform] = {
        "image": Crop(64, flip=0.5),
        "video": Clip(1.0, 5, (48, 60), sound="audio"),
        "audio": Excerpt(1.0),
        "info": Parts({"caption": OneOf()}),
    }
    whole = first(opened(specs, transforms, lanes=2, batch_size=4), 20)
    tail = first(opened(specs, transforms, lanes=2, batch_size=4, step=4, num_workers=2), 12)
    assert all(map(same, tail, whole[8:]))
    assert not any(batch["__broken__"] for batch in whole)
    assert {tuple(batch["audio"].shape[1:]) for batch in whole if "audio" in batch} == {(16_000,)}
    assert {tuple(batch["video"].shape[1:]) for batch in whole if "video" in batch} == {(5, 3, 48, 60)}
    assert all(len(batch["caption"]) == 4 for batch in whole)
