"""Pictures, speech and video in batches, against the loaders that others train with, on the same bytes.

Peers that are not installed are passed over by name. `pictures` and `audio` read one epoch, shuffled, with `--workers`
processes; "bare" only decodes the same bytes from memory, in as many, "batched" also stacks them. `video` cuts clips in
one process. `resume` goes on in the middle of an epoch, and tells what is read then with other numbers of workers and
ranks.

    pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/loader.py pictures --workers 2
    python benchmarks/loader.py audio --data ../shared/data/librispeech
    python benchmarks/loader.py video
    python benchmarks/loader.py resume

What the peers get of a picture is decoded by `--decoder`: `pillow` as their examples do it, `draft` with JPEG's scaled
decoding where it helps, `mmflow` by the same function as ours, so that only the loaders differ.
"""

import importlib
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile
import timing
import torch
import webdataset
import yaml
from PIL import Image
from speech import hum
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from mmflow.data.fields import FieldData
from mmflow.data.loader import Loader, Reader, TrainingOrder
from mmflow.data.pictures import Picture, random_resized_crop
from mmflow.data.plan import Micro
from mmflow.data.transforms import Crop, Excerpt, Transform
from mmflow.data.video import Video
from mmflow.data.writer import ShardWriter

SIZE = 224  # pixels of a crop
CLIP_S, CLIP_RATE, CLIP_SIZE = 2.0, 8.0, (128, 128)  # 16 pictures
SHARDS = 8
SEED = 0

Batch = tuple[Tensor, list[str]]  # and the keys of its samples
draw = np.random.default_rng(SEED)  # of the peers; each worker has a copy


# -- what is done with one sample ------------------------------------------------------------------------------------


def crop_pillow(data: bytes, reducing_gap: float | None = None) -> Tensor:
    """A random resized crop, uint8 (3, 224, 224)."""
    image = Image.open(io.BytesIO(data))
    box = random_resized_crop(draw, image.width, image.height)
    if reducing_gap:
        width = image.width
        smallest = [round(side * SIZE / (box[i + 2] - box[i])) for i, side in enumerate(image.size)]
        image.draft("RGB", [round(side * reducing_gap) for side in smallest])
        box = tuple(edge * image.width / width for edge in box)
    image = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box, reducing_gap)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def crop_draft(data: bytes) -> Tensor:
    """The same, for which a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still twice what is wanted."""
    return crop_pillow(data, 2.0)


def crop_mmflow(data: bytes) -> Tensor:
    """The same by the function that ours uses."""
    picture = Picture(bytes(data))  # litdata gives a view
    return picture.tensor((SIZE, SIZE), random_resized_crop(draw, picture.width, picture.height))


def decode_audio(data: bytes) -> Tensor:
    """Float32 (S,) at 16 kHz, which is what the files have."""
    return torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])


CROPS = {"pillow": crop_pillow, "draft": crop_draft, "mmflow": crop_mmflow}


def pad(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


class Task(NamedTuple):
    """What every contestant does."""

    field: str
    extension: str
    decode: Callable[[bytes], Tensor]  # of the peers
    stack: Callable[[list[Tensor]], Tensor]
    transform: Transform  # of ours
    rows: int  # samples per batch

    def collate(self, samples: list[tuple[str, Tensor]]) -> Batch:
        return self.stack([value for _, value in samples]), [key for key, _ in samples]


def task(options: Any) -> Task:
    if options.what == "audio":
        return Task("audio", "flac", decode_audio, pad, Excerpt(), 16)
    return Task("image", "jpg", CROPS[options.decoder], torch.stack, Crop(SIZE), 16 if options.what == "resume" else 64)


# -- the data --------------------------------------------------------------------------------------------------------


def found(folder: Path, *patterns: str) -> list[Path]:
    files = sorted(path for pattern in patterns for path in folder.rglob(pattern))
    if not files:
        raise ValueError(f"{folder} has no {' or '.join(patterns)}; leave --data out to have something made")
    return files


def photos(folder: Path | None, count: int, size: tuple[int, int]) -> Iterator[bytes]:
    """JPEGs of about 100 kB: four photos of a folder side by side, or fields with the spectrum of photos."""
    noise = np.random.default_rng(SEED)
    files = found(folder, "*.jpg") if folder else []
    for number in range(count):
        image = Image.new("RGB", size)
        half = (size[0] // 2, size[1] // 2)
        for i in range(4 if files else 0):
            place = (i % 2 * half[0], i // 2 * half[1])
            image.paste(Image.open(files[(4 * number + i) % len(files)]).convert("RGB").resize(half), place)
        if not files:
            image = Image.fromarray(pink(noise, size))
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=92)
        yield jpeg.getvalue()


def pink(noise: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) whose amplitudes fall with frequency, as in photos; the colours are alike."""
    frequency = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.fftfreq(size[0])[None])
    spectra = noise.normal(size=(4, size[1], size[0], 2)).view(complex)[..., 0] / np.maximum(frequency, 1e-3)
    fields = np.fft.ifft2(spectra).real
    fields /= fields.std(axis=(1, 2), keepdims=True)
    return np.clip(128 + 45 * fields[:1] + 15 * fields[1:], 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def utterances(folder: Path | None, count: int) -> Iterator[bytes]:
    """FLAC at 16 kHz: those of a folder again and again, or something like speech of 12 s."""
    if folder:
        yield from itertools.islice(itertools.cycle(path.read_bytes() for path in found(folder, "*.flac")), count)
        return
    noise = np.random.default_rng(SEED)
    for _ in range(count):
        flac = io.BytesIO()
        soundfile.write(flac, hum(12 * noise.uniform(0.8, 1.2), noise), 16_000, format="FLAC")
        yield flac.getvalue()


def videos(folder: Path | None, seconds: float = 10.0) -> list[bytes]:
    """Those of a folder, or moving photos as H.264 of 640 x 360 with a key frame every two seconds or so."""
    if folder:
        return [path.read_bytes() for path in found(folder, "*.mp4", "*.mpg")]
    made, noise, (width, height) = [], np.random.default_rng(SEED), (640, 360)
    for _ in range(4):
        file, still = io.BytesIO(), pink(noise, (2 * width, 2 * height))
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=25, width=width, height=height, pix_fmt="yuv420p")
            stream.gop_size = 50
            for number in range(round(25 * seconds)):
                left, top = 2 * number % width, number % height
                picture = np.ascontiguousarray(still[top:, left:][:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode(None))
        made.append(file.getvalue())
    return made


class Data(NamedTuple):
    """The same samples in every format."""

    folder: Path
    members: list[bytes]
    samples: int
    spec: Path
    shards: list[str]


def write(folder: Path, members: list[bytes], task: Task) -> Data:
    """Shards and their spec; the peers' own formats are made when they are asked for."""
    with ShardWriter(folder / "shards", "train", max_samples=-(-len(members) // SHARDS)) as writer:
        for number, data in enumerate(members):
            writer.write({"__key__": f"{number:06d}", task.extension: data})
    spec = {
        "name": "bench",
        "licence": "none",
        "root": str(folder / "shards"),
        "fields": {task.field: [task.extension]},
    }
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(spec | {"splits": {"train": "train-*.tar"}}))
    return Data(folder, members, len(members), path, sorted(map(str, (folder / "shards").glob("*.tar"))))


# -- the contestants -------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a loader runs."""

    workers: int
    rank: int = 0
    world: int = 1


class Opened(NamedTuple):
    """One epoch, or what is left of it."""

    batches: Iterable[Batch]
    state: Callable[[], Any] | None  # where it is, after some batches; None where a loader cannot go on

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Ours:
    """FieldData on the plain shards. The state is the number of the step."""

    name, lanes = "mmflow", 2

    def __init__(self, data: Data, task: Task) -> None:
        self.data, self.task = data, task
        transforms = {task.field: task.transform}
        # two lanes of half a batch, so that one and two ranks make the same steps
        self.module = FieldData(
            str(data.spec), transforms, batch_size=task.rows // self.lanes, lanes=self.lanes, seed=SEED
        )
        self.corpus = self.module.corpus("train")
        self.usable, self.transforms = self.module.usable["train"], self.module.transforms(training=True)

    def open(self, place: Place, state: Any = None) -> Opened:
        plan, step, done = self.module.plan(), state or 0, 0
        reader = Reader(self.corpus, self.usable, *self.transforms, SEED, True, 100)
        order: Iterable[Micro] = TrainingOrder(plan, step, place.rank, place.world)
        lanes = plan.lanes // place.world
        order = itertools.islice(order, lanes * (plan.steps(0) - step))
        loader = Loader(reader, order, place.workers, stuck_after_s=60)

        def batches() -> Iterator[Batch]:
            nonlocal done
            for batch in loader:
                done += 1
                yield batch[self.task.field], batch["__key__"]

        return Opened(batches(), lambda: step + done // lanes)


class WebDataset:
    """The plain pipeline. It cannot go on: one reads again what was read before."""

    name, lanes = "webdataset", 1

    def __init__(self, data: Data, task: Task) -> None:
        self.data, self.task = data, task

    def decode(self, sample: tuple[str, bytes]) -> tuple[str, Tensor]:
        return sample[0], self.task.decode(sample[1])

    def open(self, place: Place, state: Any = None) -> Opened:
        del state
        split = webdataset.split_by_node if place.world > 1 else webdataset.single_node_only
        dataset = (
            webdataset.WebDataset(
                self.data.shards, shardshuffle=len(self.data.shards), seed=SEED, nodesplitter=split, empty_check=False
            )
            .shuffle(256, seed=SEED)
            .to_tuple("__key__", self.task.extension)
            .map(self.decode)
            .batched(self.task.rows // place.world, collation_fn=self.task.collate)
        )
        return Opened(DataLoader(dataset, batch_size=None, num_workers=place.workers), None)


class LitData:
    """Optimized chunks of bytes."""

    name, lanes = "litdata", 1

    def __init__(self, data: Data, task: Task) -> None:
        self.data, self.task, self.folder = data, task, data.folder / "litdata"
        cache = importlib.import_module("litdata.streaming.cache")
        if self.folder.exists():
            return
        writer = cache.Cache(str(self.folder), chunk_bytes="32MB")
        for number, member in enumerate(data.members):
            writer._add_item(number, {"key": f"{number:06d}", "data": member})
        writer.done()
        writer.merge()

    def decode(self, sample: dict[str, Any]) -> tuple[str, Tensor]:
        return sample["key"], self.task.decode(sample["data"])

    def open(self, place: Place, state: Any = None) -> Opened:
        litdata = importlib.import_module("litdata")
        dataset = litdata.StreamingDataset(
            str(self.folder), shuffle=True, drop_last=True, seed=SEED, transform=self.decode
        )
        rows = self.task.rows // place.world
        loader = litdata.StreamingDataLoader(
            dataset, batch_size=rows, num_workers=place.workers, collate_fn=self.task.collate
        )
        if state is not None:
            loader.load_state_dict(state)
        return Opened(loader, loader.state_dict)


class Mosaic:
    """MDS shards with a column of bytes."""

    name, lanes = "mosaicml-streaming", 1

    def __init__(self, data: Data, task: Task) -> None:
        stand_in_for_torchvision()
        self.data, self.task, self.folder = data, task, data.folder / "mds"
        streaming = importlib.import_module("streaming")
        if self.folder.exists():
            return
        columns = {"key": "str", "data": "bytes"}
        with streaming.MDSWriter(out=str(self.folder), columns=columns, size_limit="32mb") as writer:
            for number, member in enumerate(data.members):
                writer.write({"key": f"{number:06d}", "data": member})

    def open(self, place: Place, state: Any = None) -> Opened:
        streaming, task = importlib.import_module("streaming"), self.task

        class Decoded(streaming.StreamingDataset):  # type: ignore[name-defined, misc]
            def __getitem__(self, at: int) -> Any:
                sample = super().__getitem__(at)
                return sample["key"], task.decode(sample["data"])

        streaming.base.util.clean_stale_shared_memory()
        rows = task.rows // place.world
        dataset = Decoded(local=str(self.folder), shuffle=True, shuffle_seed=SEED, batch_size=rows)
        loader = streaming.StreamingDataLoader(
            dataset, batch_size=rows, num_workers=place.workers, collate_fn=task.collate
        )
        if state is not None:
            loader.load_state_dict(state)
        return Opened(loader, loader.state_dict)


class Energon:
    """The plain shards with its own index."""

    name, lanes = "megatron-energon", 1

    def __init__(self, data: Data, task: Task) -> None:
        self.data, self.task, self.folder = data, task, data.folder / "energon"
        importlib.import_module("megatron.energon")
        if self.folder.exists():
            return
        self.folder.mkdir()
        for shard in data.shards:  # elsewhere, because its index is called x.tar.idx, as ours is
            (self.folder / Path(shard).name).hardlink_to(shard)
        factory = importlib.import_module("megatron.energon.flavors").BaseWebdatasetFactory
        names = [Path(shard).name for shard in data.shards]
        factory.prepare_dataset(self.folder, names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1)
        (self.folder / ".nv-meta" / "dataset.yaml").write_text(
            "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        )

    def encoder(self) -> Any:
        energon, task = importlib.import_module("megatron.energon"), self.task

        @energon.stateless
        def cook(sample: dict[str, Any]) -> Any:
            value = task.decode(sample[task.extension])
            return energon.TextSample(**energon.basic_sample_keys(sample), text=value)

        class Encoder(energon.DefaultTaskEncoder):  # type: ignore[name-defined, misc]
            decoder = None  # the bytes as they are
            cookers = [energon.Cooker(cook)]

            @energon.stateless
            def batch(self, samples: list[Any]) -> Batch:
                return task.collate([(sample.__key__.rpartition("/")[2], sample.text) for sample in samples])

        return Encoder()

    def open(self, place: Place, state: Any = None) -> Opened:
        energon = importlib.import_module("megatron.energon")
        config = energon.WorkerConfig(rank=place.rank, world_size=place.world, num_workers=place.workers)
        dataset = energon.get_train_dataset(
            self.folder,
            worker_config=config,
            batch_size=self.task.rows // place.world,
            shuffle_buffer_size=256,
            max_samples_per_sequence=100,
            virtual_epoch_length=self.data.samples // self.task.rows,
            task_encoder=self.encoder(),
        )
        loader = energon.get_savable_loader(dataset)
        if state is not None:
            loader.restore_state_rank(state)
        return Opened(loader, loader.save_state_rank)


PEERS = (WebDataset, LitData, Mosaic, Energon)


def opened_peers(data: Data, task: Task) -> list[Any]:
    """Those that are installed."""
    peers = []
    for peer in PEERS:
        try:
            peers.append(peer(data, task))
        except ImportError as error:
            print(f"{peer.name} is passed over: {error}")
    return peers


def stand_in_for_torchvision() -> None:
    """Streaming imports it for data sets that are not used here. There is no build of it for a CPU-only torch, and with
    another one installed torchmetrics, and so Lightning, no longer imports."""
    if importlib.util.find_spec("torchvision"):
        return
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules |= {name: types.ModuleType(name) for name in names}
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


# -- timing ----------------------------------------------------------------------------------------------------------


def cpu_s() -> float:
    """Seconds of processor time of this process and of those of its children that have ended."""
    multiprocessing.active_children()  # takes note of the ended
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def compare(title: str, contestants: dict[str, Callable[[], int]], options: Any) -> None:
    """Run all in turn, and print medians, and how many times the time of the first each one took in the same round."""
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in contestants}
    for turn in range(options.repeats + 1):
        for name, run in contestants.items():
            start, cpu_start = time.perf_counter(), cpu_s()
            count = run()
            if turn or options.quick:  # the first round warms up
                runs[name].append((time.perf_counter() - start, cpu_s() - cpu_start, count))
    ours, extra = next(iter(runs.values())), {}
    for name, measured in runs.items():
        columns: dict[str, Any] = {"samples": measured[0][2]}
        for clock, column in ((0, "wall"), (1, "cpu")):
            rates = [run[2] / run[clock] for run in measured]
            ratios = [own[2] / own[clock] / rate for own, rate in zip(ours, rates, strict=True)]
            columns |= {f"per_{column}_s": statistics.median(rates), f"{column}_ratio": statistics.median(ratios)}
        extra[name] = columns
    clock = list(timing.CLOCKS).index(options.clock)
    timing.report(title, {name: [run[clock] for run in measured] for name, measured in runs.items()}, extra)


def consumed(batches: Iterable[Batch]) -> int:
    return sum(len(keys) for _, keys in batches)


def load(options: Any, data: Data, task: Task) -> None:
    """`pictures` and `audio`."""
    place = Place(options.workers)

    def bare(decode: Callable[[bytes], Tensor], batched: bool = False) -> Callable[[], int]:
        def some(first: int) -> None:
            mine = data.members[first :: max(place.workers, 1)]
            for at in range(0, len(mine), task.rows):
                values = [decode(member) for member in mine[at : at + task.rows]]
                if batched:
                    task.stack(values)

        def run() -> int:
            processes = [multiprocessing.Process(target=some, args=(first,)) for first in range(place.workers)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if not processes:
                some(0)
            return data.samples

        return run

    def epoch(contestant: Any) -> Callable[[], int]:
        return lambda: consumed(contestant.open(place))

    contestants = {peer.name: epoch(peer) for peer in (Ours(data, task), *opened_peers(data, task))}
    decoders = CROPS if options.what == "pictures" else {"soundfile": decode_audio}
    for name, decode in decoders.items():
        contestants |= {f"bare {name}": bare(decode), f"bare {name}, batched": bare(decode, batched=True)}
    size = sum(map(len, data.members)) / len(data.members)
    title = (
        f"{options.what}: {len(data.members)} of {size / 1000:.0f} kB, batches of {task.rows}, {place.workers} workers"
    )
    compare(f"{title}, peers decode with {task.decode.__name__}", contestants, options)


def clips(options: Any) -> None:
    """`video`."""
    files, chance = videos(options.data), np.random.default_rng(SEED)
    jobs = []
    for number in range(options.samples):
        data = files[number % len(files)]
        jobs.append((data, chance.random() * max(Video(data).seconds - CLIP_S, 0)))

    def ours() -> int:
        return sum(len(Video(data).clip(start, CLIP_S, CLIP_RATE, CLIP_SIZE)) > 0 for data, start in jobs)

    def pyav() -> int:
        return sum(len(clip_pyav(data, start)) > 0 for data, start in jobs)

    contestants = {"mmflow": ours, "pyav": pyav}
    try:
        decord = importlib.import_module("decord")
    except ImportError as error:
        print(f"decord is passed over: {error}")
    else:
        contestants["decord"] = lambda: sum(len(clip_decord(decord, data, start)) > 0 for data, start in jobs)
    compare(f"video: clips of {CLIP_S * CLIP_RATE:g} pictures in {CLIP_S:g} s", contestants, options)


def clip_pyav(data: bytes, start: float) -> np.ndarray:
    """uint8 (T, H, W, 3): decode from the key frame before, and keep what is shown at each time."""
    height, width = CLIP_SIZE
    wanted = start + np.arange(round(CLIP_S * CLIP_RATE)) / CLIP_RATE
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        origin = stream.start_time or 0
        container.seek(origin + int(start / stream.time_base), stream=stream)
        taken, last = [], None
        for frame in container.decode(stream):
            shown = float((frame.pts - origin) * stream.time_base)
            while len(taken) < len(wanted) and wanted[len(taken)] < shown:
                taken.append(last or frame)
            if len(taken) == len(wanted):
                break
            last = frame
        taken += [last] * (len(wanted) - len(taken))
        return np.stack([frame.to_ndarray(format="rgb24", width=width, height=height) for frame in taken])


def clip_decord(decord: Any, data: bytes, start: float) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    height, width = CLIP_SIZE
    reader = decord.VideoReader(io.BytesIO(data), width=width, height=height, num_threads=1)
    wanted = (start + np.arange(round(CLIP_S * CLIP_RATE)) / CLIP_RATE) * reader.get_avg_fps()
    return reader.get_batch(np.clip(wanted.astype(int), 0, len(reader) - 1)).asnumpy()


# -- going on in the middle of an epoch ------------------------------------------------------------------------------


def resume(data: Data, task: Task) -> None:
    """`resume`: what is read after half an epoch, against what would have been read, step by step."""
    rows = []
    for contestant in (Ours(data, task), *opened_peers(data, task)):
        half, opened = data.samples // task.rows // 2, contestant.open(Place(2))
        batches = iter(opened)
        before = steps(batches, half, contestant.lanes)
        state = opened.state() if opened.state else None
        after = steps(batches, None, contestant.lanes)
        row = {
            "what": contestant.name,
            "each_run_alike": steps(contestant.open(Place(2)), None, contestant.lanes) == before + after,
        }
        start = time.perf_counter()
        going = iter(contestant.open(Place(2), state))
        for _ in range(0 if opened.state else half):
            next(going)
        next(going)
        row["first_batch_s"] = time.perf_counter() - start
        del going
        for name, workers, world in (("2_workers", 2, 1), ("1_worker", 1, 1), ("2_ranks", 1, 2)):
            row[name] = attempt(contestant, workers, world, state, after) if opened.state else "cannot"
        rows.append(row)
        print({name: timing.show(value) for name, value in row.items()}, flush=True)
    print(json.dumps({"benchmark": "resume", "rows": rows}))


def steps(batches: Iterable[Batch], count: int | None = None, lanes: int = 1) -> list[list[str]]:
    """The keys of each of the next `count` steps, by name."""
    taken = [keys for _, keys in itertools.islice(batches, None if count is None else lanes * count)]
    return [sorted(itertools.chain(*taken[i : i + lanes])) for i in range(0, len(taken), lanes)]


def attempt(contestant: Any, workers: int, world: int, state: Any, expected: list[list[str]]) -> str:
    """What comes of going on with so many workers and ranks."""
    try:
        if world == 1:
            read = steps(contestant.open(Place(workers), state), None, contestant.lanes)
        else:
            read = on_ranks(contestant, workers, world, state)
    except Exception as error:  # of every kind
        lines = str(error).strip().splitlines()  # of a rank: with its traceback in front
        return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]
    if read == expected:
        return "exact"
    found, wanted = (Counter(itertools.chain(*each)) for each in (read, expected))
    if found == wanted:
        return "the same samples in other steps"
    return f"{(wanted - found).total()} of {wanted.total()} lost, {(found - wanted).total()} others"


def on_ranks(contestant: Any, workers: int, world: int, state: Any) -> list[list[str]]:
    """The steps of several ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (
            type(contestant),
            contestant.data._replace(members=[]),
            contestant.task,
            workers,
            world,
            state,
            folder,
        )
        torch.multiprocessing.spawn(read_rank, arguments, nprocs=world)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    return [sorted(itertools.chain(*step)) for step in itertools.zip_longest(*ranks, fillvalue=[])]


def read_rank(rank: int, peer: type, data: Data, task: Task, workers: int, world: int, state: Any, folder: str) -> None:
    """What one rank reads, in a process of its own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    multiprocessing.set_start_method("fork", force=True)  # for its workers, as in a process that was not spawned
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    opened = peer(data, task).open(Place(workers, rank, world), state)
    keys = [keys for _, keys in opened]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(keys))
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("what", nargs="?", default="pictures", choices=("pictures", "audio", "video", "resume"))
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode; 0: the main one")
    parser.add_argument("--decoder", choices=CROPS, default="draft", help="of the peers' pictures")
    parser.add_argument("--data", type=Path, help="folder with jpg, flac or mp4 and mpg; by default they are made")
    parser.add_argument("--pixels", default="500x375", help="width and height of the pictures")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.repeats = min(options.samples, 128), 1
    torch.set_num_threads(options.threads)
    if options.what == "video":
        clips(options)
        return
    size = tuple(map(int, options.pixels.split("x")))
    with tempfile.TemporaryDirectory(prefix="loader") as folder:
        chosen = task(options)
        audio = options.what == "audio"
        members = utterances(options.data, options.samples) if audio else photos(options.data, options.samples, size)
        data = write(Path(folder), list(members), chosen)
        if options.what == "resume":
            resume(data, chosen)
        else:
            load(options, data, chosen)


if __name__ == "__main__":
    main()
