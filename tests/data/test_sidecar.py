import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import LightningModule, Trainer

from mmflow.data.corpus import Corpus
from mmflow.data.datamodule import SPLITS
from mmflow.data.decode import decode
from mmflow.data.index import open_shard
from mmflow.data.sidecar import SidecarWriter
from mmflow.data.spec import DataSpec
from tests.data.test_datamodule import Toy, loud
from tests.shards import encoded, noise, write_data_set, write_spec


class Lengths(LightningModule):
    """Predicts the number of samples of each utterance, and counts its calls."""

    def __init__(self, made_by: str = "v1") -> None:
        super().__init__()
        self.sidecar_meta, self.seen = {"made_by": made_by}, []

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[np.ndarray]]:
        self.seen += batch["__key__"]
        lengths = batch["lengths"][batch["valid"]].tolist()
        return {"units": [np.array([length], dtype=np.uint16) for length in lengths]}


def predict(
    spec: Path, out: Path, module: LightningModule | None = None, writer: Any = None, **options: Any
) -> list[str]:
    """Run the stage; returns the keys that the module saw."""
    module = module or Lengths()
    data = Toy(str(spec), batch_size=2, num_workers=0, max_broken=1.0, **options)
    trainer = Trainer(
        default_root_dir=out,
        callbacks=[writer or SidecarWriter("units")],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.predict(module, datamodule=data, return_predictions=False)
    return module.seen


def read(path: Path) -> dict[str, list[int]]:
    index = open_shard(str(path))
    return {key: decode(index.read(row, "units.npy"), "npy").tolist() for row, key in enumerate(index.keys)}


@pytest.fixture
def spec(tmp_path) -> Path:
    return write_data_set(
        tmp_path,
        {"train": [[0.1, 0.3, "cut", 0.2], [0.4, "junk"]], "validation": [[0.1]], "test": [["junk"], [0.2], []]},
    )


def test_every_shard_gets_a_sidecar_with_its_name_and_keys(spec, tmp_path):
    predict(spec, tmp_path / "out")
    written = tmp_path / "out" / "shards" / "toy"
    data = tmp_path / "toy"
    assert sorted(p.name for p in written.glob("*.tar")) == sorted(p.name for p in data.glob("*.tar"))
    assert read(written / "train-000000.tar") == {
        "train-0-0": [1600], "train-0-1": [4800], "train-0-2": [], "train-0-3": [3200]
    }  # fmt: skip
    assert read(written / "train-000001.tar") == {"train-1-0": [6400], "train-1-1": []}
    assert read(written / "test-000000.tar") == {"test-0-0": []}  # without one usable sample
    assert read(written / "test-000002.tar") == {}
    assert open_shard(str(written / "train-000000.tar")).meta == {"made_by": "v1"}
    for split in SPLITS:
        joined = Corpus([DataSpec.read(spec)], split, ["audio", "units"], {"units": str(tmp_path / "out" / "shards")})
        assert len(joined.joined["units"]) == len(joined.shards)


def test_finished_shards_are_not_predicted_again(spec, tmp_path):
    everything = predict(spec, tmp_path / "out")
    assert len(everything) == 7
    assert predict(spec, tmp_path / "out") == []
    written = tmp_path / "out" / "shards" / "toy"
    before = (written / "train-000001.tar").stat().st_mtime_ns
    (written / "train-000000.tar").unlink()
    assert sorted(predict(spec, tmp_path / "out")) == ["train-0-0", "train-0-1", "train-0-2", "train-0-3"]
    assert (written / "train-000001.tar").stat().st_mtime_ns == before


def test_an_interrupted_stage_leaves_whole_shards_and_goes_on_with_the_rest(spec, tmp_path):
    class Killed(Lengths):
        def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Any:
            if batch["__shard__"][0].endswith("train-000001.tar"):
                raise RuntimeError("killed")
            return super().predict_step(batch, batch_idx, dataloader_idx)

    with pytest.raises(RuntimeError, match="killed"):
        predict(spec, tmp_path / "out", Killed())
    written = tmp_path / "out" / "shards" / "toy"
    assert [path.name for path in written.iterdir()] == ["train-000000.tar"]
    assert predict(spec, tmp_path / "out")[0] == "train-1-0"
    assert len(list(written.glob("*.tar"))) == 6


def test_shards_that_were_made_in_another_way_are_refused(spec, tmp_path):
    predict(spec, tmp_path / "out", Lengths("v1"))
    with pytest.raises(
        ValueError, match=r"\.tar was made by \{'made_by': 'v1'\}, not by \{'made_by': 'v2'\}; remove its"
    ):
        predict(spec, tmp_path / "out", Lengths("v2"))


def test_the_folder_may_be_chosen(spec, tmp_path):
    predict(
        spec, tmp_path / "out", writer=SidecarWriter("units", str(tmp_path / "units")), predict_splits=["validation"]
    )
    assert [path.name for path in (tmp_path / "units" / "toy").glob("*.tar")] == ["validation-000000.tar"]


def test_keys_that_mmflow_would_not_choose_are_kept(tmp_path):
    foreign = {"__key__": "./folder/" + "long" * 30, "flac": encoded(noise(0.1)), "txt": "HELLO"}
    spec = write_data_set(tmp_path, {"train": [[foreign]]})
    predict(spec, tmp_path / "out", predict_splits=["train"])
    written = tmp_path / "out" / "shards" / "toy" / "train-000000.tar"
    assert read(written) == {"./folder/" + "long" * 30: [1600]}


def test_shards_in_folders_below_the_root_keep_their_folders(tmp_path):
    for split in ("train", "test"):
        write_data_set(tmp_path / "toy", {"part": [[0.1]]}, split)
    spec = write_spec(tmp_path / "toy", tmp_path, splits={s: f"{s}/*.tar" for s in ("train", "test")})
    predict(spec, tmp_path / "out", predict_splits=["train", "test"])
    written = tmp_path / "out" / "shards" / "toy"
    assert sorted(str(path.relative_to(written)) for path in written.rglob("*.tar")) == [
        "test/part-000000.tar", "train/part-000000.tar"
    ]  # fmt: skip


def test_two_shards_that_would_share_a_sidecar_are_refused(tmp_path):
    for name in ("a", "b"):
        write_data_set(tmp_path, {"train": [[0.1]]}, name)
    patterns = [str(tmp_path / name / "train-*.tar") for name in ("a", "b")]
    spec = write_spec("elsewhere", tmp_path, splits={"train": patterns})
    with pytest.raises(ValueError, match=r"a/train-000000\.tar and .*b/train-000000\.tar would both have the sidecar"):
        predict(spec, tmp_path / "out", predict_splits=["train"])


def test_a_stage_that_leaves_shards_out_does_not_pass_for_finished(spec, tmp_path):
    writer = SidecarWriter("units")
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[writer], accelerator="cpu", logger=False, limit_predict_batches=1,
        enable_progress_bar=False,
    )  # fmt: skip
    data = Toy(str(spec), batch_size=2, num_workers=0, max_broken=1.0)
    with pytest.raises(RuntimeError, match=r"\d of 6 sidecar shards were not written, first .*train-000000\.tar"):
        trainer.predict(Lengths(), datamodule=data, return_predictions=False)


def test_a_full_disk_names_the_shard_and_leaves_nothing_half_written(spec, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device; nothing was published: .*train-000000\.tar"):
        predict(spec, tmp_path / "out")
    assert list((tmp_path / "out" / "shards" / "toy").iterdir()) == []


def test_two_ranks_write_every_shard_once_even_when_one_comes_late(spec, tmp_path):
    writers, datas, broadcasts, published = [], [], [], []
    for rank in range(2):
        strategy = SimpleNamespace(
            barrier=lambda: None, broadcast=lambda found: broadcasts.append(found) or broadcasts[0]
        )
        trainer: Any = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            is_global_zero=rank == 0,
            strategy=strategy,
            default_root_dir=tmp_path / "out",
        )
        data, writer = Toy(str(spec), batch_size=2, num_workers=0, max_broken=1.0), SidecarWriter("units")
        trainer.datamodule = data
        data.trainer = trainer
        data.setup("predict")
        module = Lengths()
        writer.setup(trainer, module, "predict")
        for batch in (batch for loader in data.predict_dataloader() for batch in loader):
            batch = data.on_before_batch_transfer(batch, 0)
            writer.write_on_batch_end(trainer, module, module.predict_step(batch, 0), None, batch, 0, 0)
        published.append({path.name for path in (tmp_path / "out").rglob("*.tar")})  # rank 1 begins when 0 has ended
        writers.append((writer, trainer, module))
        datas.append(data)
    assert published[0] == {"train-000000.tar", "validation-000000.tar", "test-000001.tar"}
    assert published[1] == published[0] | {"train-000001.tar"}
    for writer, trainer, module in writers:
        writer.teardown(trainer, module, "predict")
    assert len(list((tmp_path / "out").rglob("*.tar"))) == 6


def test_a_sample_that_breaks_in_the_transform_gets_an_empty_prediction(tmp_path):
    spec = write_data_set(tmp_path, {"train": [[0.1, loud()]]})
    predict(spec, tmp_path / "out", predict_splits=["train"])
    written = tmp_path / "out" / "shards" / "toy" / "train-000000.tar"
    assert read(written) == {"train-0-0": [1600], "train-0-1": []}
