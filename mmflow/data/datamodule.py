"""The LightningDataModule under every system's: shards in, planned batches out."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from mmflow.data.corpus import Corpus
from mmflow.data.decode import BadSample
from mmflow.data.make import ensure
from mmflow.data.plan import BatchRule, Ids, Micro, Plan, once, once_by_shard
from mmflow.data.spec import DataSpec

log = logging.getLogger(__name__)

Sample = dict[str, Any]
Prepare = Callable[[Sample, np.random.Generator], Sample]
Collate = Callable[[list[Sample], np.random.Generator], dict[str, Any]]

SPLITS = ("train", "validation", "test")


class Reader(Dataset):
    """Turns one planned micro-batch into tensors. All that is random in it is seeded by the plan's numbers.

    A sample that cannot be decoded is replaced by the next usable one and reported under `__broken__`. In a pass that
    sees each sample once, its row stays under its own name and is marked in `valid` as not counting.

    Args:
        corpus: where samples are read.
        usable: numbers of the samples that may be read, ascending.
        prepare: sample, generator -> sample; raises BadSample for what cannot be used.
        collate: samples, generator -> batch of tensors.
        seed: of all draws.
        training: replace broken samples for good instead of masking their rows.
        most_tries: so many broken samples in a row are passed over.
    """

    def __init__(
        self,
        corpus: Corpus,
        usable: Ids,
        prepare: Prepare,
        collate: Collate,
        seed: int,
        training: bool,
        most_tries: int,
    ) -> None:
        self.corpus, self.usable, self.seed, self.training = corpus, usable, seed, training
        self.prepare, self.collate, self.most_tries = prepare, collate, most_tries

    def __getitem__(self, micro: Micro) -> dict[str, Any]:
        broken: list[tuple[str, str, str]] = []
        samples, valid = [], []
        for number in micro.ids:
            sample, own = self._read(number, micro.epoch, broken)
            samples.append(sample)
            valid.append((own or self.training) and not micro.padding)
        batch = self.collate(samples, np.random.default_rng([self.seed, 4, micro.step, micro.lane]))
        batch["valid"] = torch.tensor(valid)
        batch["__key__"] = [sample["__key__"] for sample in samples]
        batch["__shard__"] = [sample["__shard__"] for sample in samples]
        batch["__broken__"] = broken
        return batch

    def _read(self, number: int, epoch: int, broken: list[tuple[str, str, str]]) -> tuple[Sample, bool]:
        for tried, candidate in enumerate(self._from(number)):
            try:
                draw = np.random.default_rng([self.seed, 3, epoch, candidate])
                sample = self.prepare(self.corpus.read(candidate), draw)
            except BadSample as error:
                broken.append((*self.corpus.name(candidate), str(error)))
                if tried == self.most_tries:
                    raise too_many_broken(self.corpus, tried + 1, *broken[-1]) from error
                continue
            if candidate == number or self.training:
                return sample, candidate == number
            shard, key = self.corpus.name(number)
            return sample | {"__shard__": shard, "__key__": key}, False
        raise ValueError(f"no sample of split {self.corpus.split!r} can be read; the last: {' '.join(broken[-1])}")

    def _from(self, number: int) -> Iterator[int]:
        """`number` and then the usable samples behind it, round to it again."""
        yield number
        at = int(np.searchsorted(self.usable, number))
        for i in range(at + 1, at + len(self.usable)):
            yield int(self.usable[i % len(self.usable)])


def too_many_broken(corpus: Corpus, count: int, shard: str, key: str, reason: str) -> ValueError:
    """The error that stops a run."""
    return ValueError(
        f"{count} of {len(corpus)} samples of split {corpus.split!r} are broken, more than data.max_broken allows; "
        f"for example {key} in {shard}: {reason}. "
        f"Repair the data (`data check` lists every broken sample) or raise data.max_broken"
    )


class TrainingOrder:
    """The endless micro-batches of one rank. Has no length, so no epoch arithmetic of Lightning's applies."""

    def __init__(self, plan: Plan, step: int, rank: int, world: int) -> None:
        self.plan, self.step, self.rank, self.world = plan, step, rank, world

    def __iter__(self) -> Any:
        return self.plan.micro_batches(self.step, self.rank, self.world)


def as_it_is(batch: Any) -> Any:
    """For DataLoader, which otherwise walks through every list of a batch in search of arrays."""
    return batch


def ignore_signals(_: int) -> None:
    """Workers leave SIGTERM, SIGUSR1 and Ctrl-C to their parent, which saves first and then ends them."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Packed(NamedTuple):
    """A batch on its way from a worker, with its tensors in one: each costs a connection between the processes."""

    buffer: Tensor  # (bytes,) uint8
    places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]  # name -> first byte, and what begins there
    others: dict[str, Any]


ALIGNMENT = 64  # bytes


def pack(batch: dict[str, Any]) -> Packed:
    """The tensors of a batch, one after the other, and what is no tensor."""
    tensors = {name: value.contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
    places, size = {}, 0
    for name, tensor in tensors.items():
        places[name] = (size, tensor.dtype, tuple(tensor.shape))
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8)
    for name, tensor in tensors.items():
        buffer[places[name][0] :][: tensor.nbytes] = tensor.flatten().view(torch.uint8)
    return Packed(buffer, places, {name: value for name, value in batch.items() if name not in tensors})


def unpack(packed: Packed) -> dict[str, Any]:
    """The batch again; its tensors are views of the buffer."""
    batch = dict(packed.others)
    for name, (start, dtype, shape) in packed.places.items():
        batch[name] = packed.buffer[start:][: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
    return batch


class TimedLoader(DataLoader):
    """A DataLoader that knows how long it kept its reader waiting, and receives in a thread what workers send.

    Attributes:
        waited_s: seconds between asking for a batch and getting it, over all batches so far.
    """

    waited_s = 0.0

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = super().__iter__()
        with ThreadPoolExecutor(1, "receiver") as receiver:
            coming: Future | None = None
            while True:
                asked_at = time.perf_counter()
                try:
                    batch = coming.result() if coming else next(batches, None)
                except Exception:
                    # An error and the frames it passed through hold each other, and these the workers, who ignore the
                    # signal that ends them with the process: it would wait for them for ever.
                    if self.num_workers:
                        batches._shutdown_workers()
                    raise
                self.waited_s += time.perf_counter() - asked_at
                if batch is None:
                    return
                if self.num_workers:  # without them the next batch is not made before it is wanted
                    coming = receiver.submit(next, batches, None)
                yield unpack(batch) if isinstance(batch, Packed) else batch


class ShardData(LightningDataModule):
    """Batches from the shards that a data spec names, in the order of the plan (`mmflow.data.plan`).

    Args:
        spec: path of a data spec, or several to mix.
        root: where the shards are, instead of the root that the spec names; for one spec only.
        weights: share of samples of each spec; by default each counts by its size.
        sidecars: field -> folder that a predict stage wrote.
        batch_size: samples per micro-batch.
        batch_seconds: instead of batch_size, padded seconds of audio per micro-batch.
        min_seconds: shorter samples are left out and counted.
        max_seconds: longer samples are left out and counted.
        lanes: micro-batches per step; the number of processes must divide it. Part of the recipe: changing it changes
            the batches.
        num_workers: processes that decode, per rank; no influence on what is read.
        seed: of everything drawn.
        window: samples shuffled together.
        max_broken: share of the samples of a split that may be unreadable; with more the run stops.
        predict_splits: what `predict` goes through.
    """

    fields: tuple[str, ...] = ()
    crops: ClassVar[bool] = False  # whether samples longer than max_seconds are cropped to it rather than left out

    def __init__(
        self,
        spec: str | list[str],
        root: str | None = None,
        weights: list[float] | None = None,
        sidecars: dict[str, str] | None = None,
        batch_size: int | None = None,
        batch_seconds: float | None = None,
        min_seconds: float = 0.025,
        max_seconds: float = float("inf"),
        lanes: int = 2,
        num_workers: int = 1,
        seed: int = 0,
        window: int = 8192,
        max_broken: float = 0.01,
        predict_splits: Sequence[str] = SPLITS,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have no shard left to predict
        self.specs = [DataSpec.read(Path(path)) for path in ([spec] if isinstance(spec, str) else spec)]
        if root is not None and len(self.specs) > 1:
            raise ValueError(f"root={root!r} is for one spec, but there are {len(self.specs)}; set `root` in each spec")
        if root is not None:
            self.specs = [self.specs[0].with_root(root)]
        if weights is not None and len(weights) != len(self.specs):
            raise ValueError(f"{len(weights)} weights for {len(self.specs)} specs; give one for each")
        self.weights, self.sidecars = weights, sidecars or {}
        if min_seconds > max_seconds:
            raise ValueError(f"min_seconds={min_seconds} is above max_seconds={max_seconds}; no sample is between")
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken={max_broken} is a share of the samples; it must be in 0..1")
        self.rule = BatchRule(batch_size, batch_seconds, max_seconds)
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self.lanes, self.num_workers, self.seed, self.window = lanes, num_workers, seed, window
        self.max_broken = max_broken
        self.predict_splits = tuple(predict_splits)
        self.broken: dict[str, dict[str, str]] = {}  # shard -> key -> reason, over the whole run
        self.resumed_on: dict[str, Any] | None = None  # identity of the training corpus of a resumed run
        self.corpora: dict[str, Corpus] = {}
        self.usable: dict[str, Ids] = {}  # per opened split
        self.finished: Callable[[], set[str]] = set  # says which shards need no prediction; a writer sets it

    def transforms(self, training: bool) -> tuple[Prepare, Collate]:
        """The two picklable functions that make samples and batches; a subclass says them."""
        raise NotImplementedError(f"{type(self).__name__} must say how its samples and batches are made")

    # -- set-up ------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        for spec in self.specs:
            ensure(spec)

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        splits = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}
        if not self.trainer.is_global_zero:  # the first process builds missing indexes, the others read them
            self.trainer.strategy.barrier()
        for split in splits.get(stage, self.predict_splits):
            self.corpus(split)
        if self.trainer.is_global_zero:
            self.trainer.strategy.barrier()

    def corpus(self, split: str) -> Corpus:
        """The samples of one split, opened and checked the first time."""
        if split not in self.corpora:
            corpus = Corpus(self.specs, split, self.fields, self.sidecars)
            self.check(corpus)
            self.corpora[split] = corpus
            self.usable[split] = self.find_usable(corpus)
            self._check_resumed()
        return self.corpora[split]

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError when what was opened does not fit this module; a subclass adds its own rules."""

    def problems(self, corpus: Corpus) -> dict[int, str]:
        """Number -> reason, for the samples that are known to be broken before they are read."""
        return corpus.problems()

    def find_usable(self, corpus: Corpus) -> Ids:
        """Numbers of the samples that are not known to be broken and have a fitting length, ascending."""
        problems, good = self.problems(corpus), np.ones(len(corpus), dtype=bool)
        for number, reason in problems.items():
            good[number] = False
            self._note_broken(*corpus.name(number), reason)
        if problems:
            self._check_broken(corpus)
        if "audio" not in self.fields:
            return np.flatnonzero(good)
        fits = (corpus.seconds >= self.min_seconds) & (self.crops | (corpus.seconds <= self.max_seconds))
        if count := int((good & ~fits).sum()):
            bounded = not self.crops and self.max_seconds < float("inf")
            bounds = f"under {self.min_seconds:g} s" + (f" or over {self.max_seconds:g} s" if bounded else "")
            log.warning("%s: %d of %d samples are %s and left out", corpus.split, count, len(corpus), bounds)
        return np.flatnonzero(good & fits)

    # -- loaders -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        plan, trainer = self.plan(), self.trainer
        order = TrainingOrder(plan, trainer.global_step, trainer.global_rank, trainer.world_size)
        first = plan.epoch(0)
        used, drawn = sum(len(batch) for lane in first for batch in lane), len(plan.order(0))
        text = "the first epoch is %d steps of %d micro-batches; %d of its %d samples are left over"
        log.info(text, len(first[0]), plan.lanes, drawn - used, drawn)
        return self.loader("train", order, training=True)

    def plan(self) -> Plan:
        """The training order."""
        corpus, usable = self.corpus("train"), self.usable["train"]
        return Plan(corpus.sources(usable, self.weights), corpus.seconds, self.rule, self.lanes, self.seed, self.window)

    def val_dataloader(self) -> DataLoader:
        return self.once("validation", self.usable["validation"])

    def test_dataloader(self) -> DataLoader:
        return self.once("test", self.usable["test"])

    def once(self, split: str, ids: Ids) -> DataLoader:
        """This rank's share of `ids`, each exactly once over all ranks; padding rows have `valid` False."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return self.loader(split, once(ids, self.corpus(split).seconds, self.rule, rank, world), training=False)

    def predict_dataloader(self) -> list[DataLoader]:
        """One loader per split; whole shards of it, dealt round robin to the ranks, without the finished ones."""
        finished = self.finished()
        return [self._predict_loader(split, finished) for split in self.predict_splits]

    def _predict_loader(self, split: str, finished: set[str]) -> DataLoader:
        assert self.trainer is not None
        corpus = self.corpus(split)
        shards = [ids for ids in corpus.by_shard(self.usable[split]) if corpus.name(int(ids[0]))[0] not in finished]
        mine = shards[self.trainer.global_rank :: self.trainer.world_size]
        return self.loader(split, once_by_shard(mine, corpus.seconds, self.rule), training=False)

    def loader(self, split: str, order: Any, training: bool) -> DataLoader:
        """A DataLoader that makes the micro-batches of `order`."""
        corpus = self.corpus(split)
        prepare, collate = self.transforms(training)
        most_tries = max(100, int(self.max_broken * len(corpus)))  # a few let the main process say it better
        return TimedLoader(
            Reader(corpus, self.usable[split], prepare, collate, self.seed, training, most_tries),
            sampler=order,
            batch_size=None,
            collate_fn=pack if self.num_workers else as_it_is,  # type: ignore[arg-type]  # of one item, no list
            num_workers=self.num_workers,
            prefetch_factor=4 if self.num_workers else None,
            persistent_workers=training and self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
            generator=torch.Generator().manual_seed(self.seed),  # else every new iterator draws from the global state
        )

    # -- broken samples ----------------------------------------------------------------------------------------------

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        for shard, key, reason in batch.pop("__broken__", ()) if isinstance(batch, dict) else ():
            self._note_broken(shard, key, reason)
            for corpus in self.corpora.values():
                if shard in corpus.paths:
                    self._check_broken(corpus)
        return batch

    def _note_broken(self, shard: str, key: str, reason: str) -> None:
        known = self.broken.setdefault(shard, {})
        if key not in known:
            known[key] = reason
            log.warning("broken sample %s in %s: %s", key, shard, reason)

    def _check_broken(self, corpus: Corpus) -> None:
        found = [(s, key, reason) for s in corpus.paths for key, reason in self.broken.get(s, {}).items()]
        if len(found) > self.max_broken * len(corpus):
            raise too_many_broken(corpus, len(found), *found[-1])

    # -- resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Every rank's broken samples, which all ranks know from then on, and what the run is trained on."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everywhere: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, self.broken)
            for part in everywhere:
                self._learn_broken(part)
        identity = self.corpora["train"].identity if "train" in self.corpora else self.resumed_on
        return {"broken": self.broken, "data": identity}

    def _learn_broken(self, broken: dict[str, dict[str, str]]) -> None:
        for shard, known in broken.items():
            self.broken[shard] = self.broken.get(shard, {}) | known

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the counts of a run. Raises ValueError when training would go on with other data."""
        self._learn_broken(state_dict["broken"])
        if self.trainer is None or self.trainer.state.fn == "fit":
            self.resumed_on = state_dict["data"]
            self._check_resumed()

    def _check_resumed(self) -> None:
        if self.resumed_on is None or "train" not in self.corpora:
            return
        before, now = self.resumed_on, self.corpora["train"].identity
        if before == now:
            return
        same = before["shards"] == now["shards"] and before["samples"] == now["samples"]
        raise ValueError(
            f"the training data changed since the checkpoint was written: it was {before['samples']} samples in "
            f"{len(before['shards'])} shards, now it is {now['samples']} in {len(now['shards'])}"
            f"{' with other keys or lengths' if same else ''}; the plan would go on with other samples than it began "
            f"with. Bring back the old data, or start a new run (another --workdir, or --rerun)"
        )
