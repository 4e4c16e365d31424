"""Pictures with labels: what a batch holds, and which samples are no good."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmflow.data.augmentation import MixupOrCutMix
from mmflow.data.errors import BadSample
from mmflow.systems.vit.data import Label, LabelledPictures
from tests.data.test_pictures import photo, saved
from tests.shards import write_data_set


def sample(number: int, **more: Any) -> dict[str, Any]:
    return {"jpg": saved(photo(24, 20, number), "JPEG"), "json": {"label": number % 3} | more}


def write(folder: Path, samples: list[dict[str, Any]]) -> Path:
    splits = {split: [samples] for split in ("train", "validation", "test")}
    return write_data_set(folder, splits, "pictures", fields={"image": ["jpg"], "info": ["json"]})


def data_of(spec: Path, training: bool = False, **options: Any) -> LabelledPictures:
    given = {"batch_size": 4, "lanes": 1, "num_workers": 0} | options
    data = LabelledPictures(str(spec), size=16, **given)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0, training=training)  # type: ignore
    return data


def test_a_batch_holds_pictures_labels_names_and_what_is_unseen(tmp_path):
    names = ["ring", "cross", "disc"]
    spec = write(tmp_path, [sample(n, **{"class": names[n % 3], "unseen": n > 1}) for n in range(4)])
    data = data_of(spec)
    data.corpus("validation")
    (batch,) = [data.on_after_batch_transfer(b, 0) for b in data.val_dataloader()]
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert 0 <= float(batch["image"].min()) < float(batch["image"].max()) <= 1
    assert batch["label"].tolist() == [0, 1, 2, 0]
    assert batch["class"] == ["ring", "cross", "disc", "ring"]
    assert batch["unseen"].tolist() == [False, False, True, True]


def test_training_mixes_labels_and_keeps_them_beside_their_pictures(tmp_path):
    mixing = MixupOrCutMix(3, label_smoothing=0.3)
    data = data_of(write(tmp_path, [sample(n) for n in range(8)]), True, augmentations=[mixing])
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["label"].shape == (4, 3)
    assert torch.allclose(batch["label"].sum(1), torch.ones(4))
    assert float(batch["label"].min()) >= 0.099
    assert not batch["unseen"].any()  # the data does not tell


@pytest.mark.parametrize(
    ("info", "said"),
    [({}, "no 'label': there is no 'label'"), ({"label": "cat"}, "'label' is 'cat', must be int"),
     ({"label": -1}, "'label' is -1; classes are numbered from 0")],
)  # fmt: skip
def test_a_picture_without_a_class_is_broken(info, said):
    with pytest.raises(BadSample, match=said):
        Label()(info, None)


def test_another_number_may_be_the_class():
    assert Label("scan.grade")({"scan": {"grade": 2}, "label": 0}, None)["label"] == 2
