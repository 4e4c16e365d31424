"""The LightningDataModule under every system's: shards in, planned batches out."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before Lightning)
from lightning.pytorch import LightningDataModule
from typing_extensions import override

from mmflow.data.corpus import Corpus
from mmflow.data.loader import Collate, Loader, Prepare, Reader, Steps, TrainingOrder, micro_batches, too_many_broken
from mmflow.data.make import ensure
from mmflow.data.plan import BatchRule, Ids, Micro, Plan, once, once_by_shard
from mmflow.data.spec import DataSpec

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


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
        num_workers: processes that decode, per rank; no influence on what is read. With 0 the run's own process
            decodes, and a decoder that hangs or crashes takes it along.
        seed: of everything drawn.
        window: samples shuffled together.
        max_broken: share of the samples of a split that may be unreadable; with more the run stops.
        predict_splits: what `predict` goes through.
        stuck_after_s: a worker that is longer on one sample is replaced, and the sample counts as broken.
    """

    fields: tuple[str, ...] = ()
    crops: ClassVar[bool] = False  # whether samples longer than max_seconds are cropped to it rather than left out
    partial: ClassVar[bool] = False  # whether a field may be absent from a spec

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
        stuck_after_s: float = 60.0,
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
        if not stuck_after_s > 0:
            raise ValueError(f"stuck_after_s={stuck_after_s} must be above 0; a good sample takes a while, too")
        self.rule = BatchRule(batch_size, batch_seconds, max_seconds)
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self.lanes, self.num_workers, self.seed, self.window = lanes, num_workers, seed, window
        self.max_broken, self.stuck_after_s = max_broken, stuck_after_s
        self.predict_splits = tuple(predict_splits)
        self.broken: dict[str, dict[str, str]] = {}  # shard -> key -> reason, over the whole run
        self.resumed_broken: dict[str, dict[str, str]] = {}  # what a resumed run had found broken before
        self.resumed_on: dict[str, Any] | None = None  # identity of the training corpus of a resumed run
        self.corpora: dict[str, Corpus] = {}
        self.usable: dict[str, Ids] = {}  # per opened split
        self.joins_lanes = False  # a rank's micro-batches of a step come as one batch, a list; the training sets it
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
            corpus = Corpus(self.specs, split, self.fields, self.sidecars, self.partial)
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
        if self.rule.length is not None and not corpus.timed.all():
            raise ValueError(
                f"batch_seconds={self.rule.length:g} needs a field `audio` or `video` with one member per sample in "
                f"every spec; give batch_size instead"
            )
        if not corpus.timed.any():
            return np.flatnonzero(good)
        fits = (corpus.seconds >= self.min_seconds) & (self.crops | (corpus.seconds <= self.max_seconds))
        fits |= ~corpus.timed
        if count := int((good & ~fits).sum()):
            bounded = not self.crops and self.max_seconds < float("inf")
            bounds = f"under {self.min_seconds:g} s" + (f" or over {self.max_seconds:g} s" if bounded else "")
            log.warning("%s: %d of %d samples are %s and left out", corpus.split, count, len(corpus), bounds)
        return np.flatnonzero(good & fits)

    # -- loaders -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Loader | Steps:
        assert self.trainer is not None
        plan, trainer = self.plan(), self.trainer
        order = TrainingOrder(plan, trainer.global_step, trainer.global_rank, trainer.world_size)
        text = "the first epoch is %d steps of %d micro-batches; %d of its %d samples are left over"
        log.info(text, plan.steps(0), plan.lanes, plan.left_over(0), plan.drawn)
        loader = self.loader("train", order, training=True)
        return Steps(loader, plan.lanes // trainer.world_size) if self.joins_lanes else loader

    def plan(self) -> Plan:
        """The training order."""
        corpus, usable = self.corpus("train"), self.usable["train"]
        return Plan(corpus.sources(usable, self.weights), corpus.seconds, self.rule, self.lanes, self.seed, self.window)

    def val_dataloader(self) -> Loader:
        return self.once("validation", self.usable["validation"])

    def test_dataloader(self) -> Loader:
        return self.once("test", self.usable["test"])

    def once(self, split: str, ids: Ids) -> Loader:
        """This rank's share of `ids`, each exactly once over all ranks; padding rows have `valid` False."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return self.loader(split, once(ids, self.corpus(split).seconds, self.rule, rank, world), training=False)

    def predict_dataloader(self) -> list[Loader]:
        """One loader per split; whole shards of it, dealt round robin to the ranks, without the finished ones."""
        finished = self.finished()
        return [self._predict_loader(split, finished) for split in self.predict_splits]

    def _predict_loader(self, split: str, finished: set[str]) -> Loader:
        assert self.trainer is not None
        corpus = self.corpus(split)
        shards = [ids for ids in corpus.by_shard(self.usable[split]) if corpus.name(int(ids[0]))[0] not in finished]
        mine = shards[self.trainer.global_rank :: self.trainer.world_size]
        return self.loader(split, once_by_shard(mine, corpus.seconds, self.rule), training=False)

    def loader(self, split: str, order: Iterable[Micro], training: bool) -> Loader:
        """What makes the micro-batches of `order`."""
        corpus = self.corpus(split)
        prepare, collate = self.transforms(training)
        most_tries = max(100, int(self.max_broken * len(corpus)))  # a few let the main process say it better
        usable, known = self.usable[split], self._known_broken(corpus)
        reader = Reader(corpus, usable, prepare, collate, self.seed, training, most_tries, known)
        return Loader(reader, order, self.num_workers, self.stuck_after_s)

    def _known_broken(self, corpus: Corpus) -> dict[int, str]:
        """Number -> reason, for what a resumed run does not try again, because it may hang again."""
        known: dict[int, str] = {}
        for start, name, shard in zip(corpus.starts[:-1].tolist(), corpus.names, corpus.shards, strict=True):
            if reasons := self.resumed_broken.get(name):
                known |= {start + row: reasons[key] for row, key in enumerate(shard.keys) if key in reasons}
        return known

    # -- broken samples ----------------------------------------------------------------------------------------------

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        for shard, key, reason in (broken for micro in micro_batches(batch) for broken in micro.pop("__broken__", ())):
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
            self.resumed_broken, self.resumed_on = state_dict["broken"], state_dict["data"]
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
