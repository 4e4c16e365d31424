"""Predictions written beside the shards they were made from: same shard names, same keys, one more field."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mmflow.torchvision_cpu  # noqa: F401  # isort: skip  (before Lightning)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from mmflow.data.corpus import Corpus, sidecar_path
from mmflow.data.datamodule import ShardData
from mmflow.data.index import open_shard
from mmflow.data.writer import TarShard

log = logging.getLogger(__name__)


class SidecarWriter(BasePredictionWriter):
    """Publish each shard's predictions, atomically, as soon as its last sample came.

    `predict_step` returns `{field: one array per valid row}`, and the module has `sidecar_meta`, a dict that is stored
    in every tar and tells how the field was made. A shard that already stands with the same `sidecar_meta` is not made
    again; one with another is an error. A sample without a prediction (it was broken) gets an array of length 0.

    Args:
        field: name of what is written, as `<key>.<field>.npy`.
        folder: where the tars go, in `<spec name>/<shard name>`; by default `shards` in the Trainer's default_root_dir.
    """

    def __init__(self, field: str, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.field, self.folder = field, folder
        self.waiting: dict[str, dict[str, np.ndarray]] = {}  # shard name -> key -> prediction
        self.left: dict[str, int] = {}  # shard name -> samples still to come, for shards with any
        self.where: dict[str, tuple[Corpus, int, Path]] = {}  # shard name -> its corpus, number there, and sidecar

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.finished = partial(self.finished, data, pl_module, trainer)

    def finished(self, data: ShardData, module: Any, trainer: Trainer) -> set[str]:
        """The shards whose sidecars stand already. Raises ValueError for one that was made in another way."""
        folder = Path(self.folder or Path(trainer.default_root_dir) / "shards")
        for split in data.predict_splits:
            corpus = data.corpus(split)
            for number, (spec, index) in enumerate(zip(corpus.spec_of, corpus.shards, strict=True)):
                self.where[corpus.names[number]] = corpus, number, sidecar_path(folder, spec, index.path)
            for ids in corpus.by_shard(data.usable[split]):
                self.left[corpus.names[corpus.place(int(ids[0]))[0]]] = len(ids)
        self._check_places()
        found = {shard for shard, (_, _, path) in self.where.items() if path.exists()}
        # as the first rank sees it, for another may already have published when a late one looks, and then the shards
        # would be dealt from two different lists
        found = trainer.strategy.broadcast(found)
        for shard in found:
            self._check_made(self.where[shard][2], module.sidecar_meta)
        if found:
            log.info("%d of %d sidecar shards stand already", len(found), len(self.where))
        return found

    def _check_places(self) -> None:
        owners: dict[Path, str] = {}
        for shard, (_, _, path) in self.where.items():
            if owners.setdefault(path, shard) != shard:
                raise ValueError(
                    f"{owners[path]} and {shard} would both have the sidecar {path}; give shards of one spec different "
                    f"names, or put them below its root"
                )

    def _check_made(self, path: Path, meta: dict[str, Any]) -> None:
        stored = open_shard(str(path)).meta
        if stored != meta:
            raise ValueError(f"{path} was made by {stored}, not by {meta}; remove its folder or choose another")

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        rows = np.flatnonzero(batch["valid"].cpu().numpy())
        for row, values in zip(rows, prediction[self.field], strict=True):
            self.waiting.setdefault(batch["__shard__"][row], {})[batch["__key__"][row]] = np.asarray(values)
        for shard in dict.fromkeys(batch["__shard__"]):
            self.left[shard] -= batch["__shard__"].count(shard)
            if self.left[shard] == 0:
                self._publish(shard, pl_module.sidecar_meta)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # here and not in on_predict_end, which Lightning does not call on a rank that had nothing to predict
        if stage != "predict":
            return
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            for shard in self.where.keys() - self.left.keys():  # without one usable sample, but with keys
                if not self.where[shard][2].exists():
                    self._publish(shard, pl_module.sidecar_meta)
        trainer.strategy.barrier()
        targets = [path for _, _, path in self.where.values()]
        # listed, not asked for one by one: on a network disk the answer to a question of before may still be remembered
        present = {path for folder in {target.parent for target in targets} for path in folder.iterdir()}
        absent = [path for path in targets if path not in present]
        if absent:
            raise RuntimeError(f"{len(absent)} of {len(self.where)} sidecar shards were not written, first {absent[0]}")

    def _publish(self, shard: str, meta: Any) -> None:
        corpus, number, path = self.where[shard]
        predictions = self.waiting.pop(shard, {})
        empty = next(iter(predictions.values()), np.empty(0, np.uint16))[:0]
        with TarShard(path, meta) as tar:
            for key in corpus.shards[number].keys:
                tar.write({"__key__": key, f"{self.field}.npy": predictions.get(key, empty)})
