"""The LightningDataModule under every system's: shards in, planned batches out."""

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
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

    A sample that cannot be decoded is replaced by the next usable one of its shard and reported under `__broken__`.
    In a pass that sees each sample once, its row stays under its own key and is marked in `valid` as not counting.

    Args:
        corpus: where samples are read.
        usable: numbers of the samples that may be read, ascending.
        prepare: sample, generator -> sample; raises BadSample for what cannot be used.
        collate: samples, generator -> batch of tensors.
        seed: of all draws.
        training: replace broken samples for good instead of masking their rows.
    """

    def __init__(
        self, corpus: Corpus, usable: Ids, prepare: Prepare, collate: Collate, seed: int, training: bool
    ) -> None:
        self.corpus, self.usable, self.seed, self.training = corpus, usable, seed, training
        self.prepare, self.collate = prepare, collate

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
        shard, key = self.corpus.name(number)
        for candidate in self._neighbours(number):
            try:
                draw = np.random.default_rng([self.seed, 3, epoch, candidate])
                sample = self.prepare(self.corpus.read(candidate), draw)
            except BadSample as error:
                broken.append((*self.corpus.name(candidate), str(error)))
                continue
            return (sample if self.training else sample | {"__key__": key}), candidate == number
        raise RuntimeError(f"no sample of {shard} can be read; the last reason: {broken[-1][2]}")

    def _neighbours(self, number: int) -> Ids:
        """`number` and then the usable samples behind it in its shard, round to it again."""
        shard, _ = self.corpus.place(number)
        low, high = np.searchsorted(self.usable, self.corpus.starts[shard : shard + 2])
        mine = self.usable[low:high]
        return np.roll(mine, -int(np.searchsorted(mine, number)))


class TrainingOrder:
    """The endless micro-batches of one rank. Has no length, so no epoch arithmetic of Lightning's applies."""

    def __init__(self, plan: Plan, step: int, rank: int, world: int) -> None:
        self.plan, self.step, self.rank, self.world = plan, step, rank, world

    def __iter__(self) -> Any:
        return self.plan.micro_batches(self.step, self.rank, self.world)


def ignore_signals(_: int) -> None:
    """Workers leave SIGTERM, SIGUSR1 and Ctrl-C to their parent, which saves first and then ends them."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class ShardData(LightningDataModule):
    """Batches from the shards that a data spec names, in the order of the plan (`mmflow.data.plan`).

    Args:
        spec: path of a data spec, or several to mix.
        weights: share of samples of each spec; by default each counts by its size.
        sidecars: field -> folder that a predict stage wrote.
        batch_size: samples per micro-batch.
        batch_seconds: instead of batch_size, padded seconds of audio per micro-batch.
        min_seconds: shorter samples are left out and counted.
        max_seconds: longer samples are cropped to this in training.
        lanes: micro-batches per step; the number of processes must divide it. Part of the recipe: changing it changes
            the batches.
        num_workers: processes that decode, per rank; no influence on what is read.
        seed: of everything drawn.
        window: samples shuffled together.
        max_broken: share of the samples of a split that may turn out to be unreadable before the run stops.
        predict_splits: what `predict` goes through.
    """

    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        spec: str | list[str],
        weights: list[float] | None = None,
        sidecars: dict[str, str] | None = None,
        batch_size: int | None = None,
        batch_seconds: float | None = None,
        min_seconds: float = 0.025,
        max_seconds: float = 15.6,
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
        if weights is not None and len(weights) != len(self.specs):
            raise ValueError(f"{len(weights)} weights for {len(self.specs)} specs; give one for each")
        self.weights, self.sidecars = weights, sidecars or {}
        self.rule = BatchRule(batch_size, batch_seconds, max_seconds)
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self.lanes, self.num_workers, self.seed, self.window = lanes, num_workers, seed, window
        self.max_broken = max_broken
        self.predict_splits = tuple(predict_splits)
        self.broken: dict[tuple[str, str], str] = {}  # (shard, key) -> reason, over the whole run
        self.corpora: dict[str, Corpus] = {}
        self.usable: dict[str, Ids] = {}  # per opened split
        self.finished: Callable[[], set[str]] = set  # says which shards need no prediction; a writer sets it

    def transforms(self, training: bool) -> tuple[Prepare, Collate]:
        """The two picklable functions that make samples and batches; a subclass says them."""
        raise NotImplementedError

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
            self.usable[split] = self._find_usable(corpus)
        return self.corpora[split]

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError when what was opened does not fit this module; a subclass adds its own rules."""

    def _find_usable(self, corpus: Corpus) -> Ids:
        """Numbers of the samples whose headers can be read and that are long enough, ascending."""
        if "audio" not in corpus.fields:
            return np.arange(len(corpus))
        for number, reason in corpus.problems().items():
            self._count_broken(*corpus.name(number), reason)
        short = (corpus.num_samples > 0) & (corpus.seconds < self.min_seconds)
        if short.any():
            text = "%s: %d of %d samples are under %g s and left out"
            log.warning(text, corpus.split, short.sum(), len(short), self.min_seconds)
        return np.flatnonzero((corpus.num_samples > 0) & ~short)

    # -- loaders -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        order = TrainingOrder(self.plan(), self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size)
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
        reader = Reader(self.corpus(split), self.usable[split], *self.transforms(training), self.seed, training)
        return DataLoader(
            reader,
            sampler=order,
            batch_size=None,
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
        if isinstance(batch, dict):
            for shard, key, reason in batch.pop("__broken__", ()):
                self._count_broken(shard, key, reason)
        return batch

    def _count_broken(self, shard: str, key: str, reason: str) -> None:
        if (shard, key) in self.broken:
            return
        self.broken[shard, key] = reason
        log.warning("broken sample %s in %s: %s", key, shard, reason)
        for split, corpus in self.corpora.items():
            inside = {index.path for index in corpus.shards}
            count = sum(1 for place, _ in self.broken if place in inside)
            if shard in inside and count > self.max_broken * len(corpus):
                raise RuntimeError(
                    f"{count} of {len(corpus)} samples of split {split!r} are broken, more than "
                    f"max_broken={self.max_broken}; the last: {key} in {shard}: {reason}. "
                    f"Repair the data (`data check` lists every broken sample) or raise data.max_broken"
                )

    def state_dict(self) -> dict[str, Any]:
        everywhere: list[Mapping[tuple[str, str], str]] = [self.broken]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everywhere = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, self.broken)
        merged = {place: reason for part in everywhere for place, reason in part.items()}
        return {"broken": [[*place, reason] for place, reason in sorted(merged.items())]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.broken = {(shard, key): reason for shard, key, reason in state_dict["broken"]}
