import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmflow.data.decode import BadSample
from mmflow.data.writer import TarShard
from mmflow.systems.hubert.data import (
    SpeechUnits,
    TranscribedSpeech,
    Utterances,
    collate_crops,
    collate_transcripts,
    collate_utterances,
    prepare_crop,
    prepare_transcript,
)
from mmflow.systems.hubert.model import num_frames
from tests.shards import encoded, noise, write_data_set

META = {"fingerprint": "f1", "num_clusters": 100, "rate": 50, "features": "mfcc"}
LENGTHS = {"train": [[1.0, 1.5, 2.0], [1.2, 0.5]], "validation": [[1.1, 1.3]]}


def module(kind: Any, path: Path, rank: int = 0, world: int = 1, **options: Any) -> Any:
    data = kind(spec=str(path), num_workers=0, max_broken=1.0, **options)
    data.trainer = SimpleNamespace(
        global_step=0,
        global_rank=rank,
        world_size=world,
        is_global_zero=True,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(barrier=lambda: None),
    )
    return data


def write_units(folder: Path, splits: dict[str, Any] = LENGTHS, meta: dict[str, dict[str, Any]] | None = None) -> str:
    """Units 0, 1, 2, ... of every utterance. `meta` changes what single shards say; a sample that is no number is an
    array of units itself."""
    for split, shards in splits.items():
        for number, samples in enumerate(shards):
            name = f"{split}-{number:06d}.tar"
            with TarShard(folder / "toy" / name, META | (meta or {}).get(name, {})) as tar:
                for place, what in enumerate(samples):
                    frames = what if isinstance(what, np.ndarray) else np.arange(num_frames(round(what * 16_000))) % 100
                    tar.write({"__key__": f"{split}-{number}-{place}", "units.npy": frames.astype(np.uint16)})
    return str(folder)


def units_of(tmp_path: Path, units: dict[str, Any] = LENGTHS, meta: Any = None, **options: Any) -> SpeechUnits:
    path = write_data_set(tmp_path, LENGTHS)
    folder = write_units(tmp_path / "units", units, meta)
    return module(SpeechUnits, path, sidecars={"units": folder}, **({"batch_size": 2, "min_seconds": 0.4} | options))


# -- crops keep their labels (specification of HuBERT, traps 1 and 12) -------------------------------------------------


def ramp(frames: int, extra: int = 0) -> dict[str, Any]:
    """An utterance whose samples tell where they are, with the number of its frame as label."""
    audio = torch.arange(400 + 320 * (frames - 1) + extra, dtype=torch.float32)
    return {"audio": audio, "units": np.arange(frames, dtype=np.uint16)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 319)), min_size=1, max_size=5),
    st.integers(0, 99),
    st.sampled_from([3.0, 12.0, float("inf")]),
)
def test_the_labels_of_a_crop_are_those_of_its_own_frames(utterances, seed, max_frames):
    rng = np.random.default_rng(seed)
    samples = [prepare_crop(ramp(*size), rng, normalize=False, num_clusters=50, train=True) for size in utterances]
    batch = collate_crops(samples, rng, max_frames, mask_prob=0.8, mask_span=2)
    frames = min(max_frames, *(size for size, _ in utterances))
    assert batch["audio"].shape == (len(utterances), 400 + 320 * (frames - 1))
    assert batch["units"].shape == batch["mask"].shape == (len(utterances), frames)
    starts = batch["audio"][:, 0].long()
    assert (starts % 320 == 0).all()
    assert torch.equal(batch["units"], starts[:, None] // 320 + torch.arange(int(frames)))
    assert torch.equal(batch["audio"], starts[:, None] + torch.arange(batch["audio"].shape[1]).float())
    assert batch["lengths"].tolist() == [batch["audio"].shape[1]] * len(utterances)
    assert int(num_frames(batch["lengths"][0])) == frames


def test_crops_start_anywhere_in_training_and_at_the_beginning_otherwise():
    def starts(train: bool) -> Counter[int]:
        found: Counter[int] = Counter()
        for seed in range(200):
            rng = np.random.default_rng(seed)
            sample = prepare_crop(ramp(8), rng, normalize=False, num_clusters=50, train=train)
            found[int(collate_crops([sample], rng, 5.0, 0.8, 2)["units"][0, 0])] += 1
        return found

    assert starts(train=False) == {0: 200}
    assert set(starts(train=True)) == {0, 1, 2, 3}
    assert min(starts(train=True).values()) > 30


def test_an_utterance_is_normalised_before_it_is_cropped():
    audio = torch.cat([torch.full((16_000,), 3.0), torch.from_numpy(noise(1.0) / 8000).float()])
    sample = {"audio": audio, "units": np.zeros(num_frames(32_000), np.uint16)}
    whole = prepare_crop(dict(sample), np.random.default_rng(0), normalize=True, num_clusters=1, train=False)
    assert whole["audio"].mean().abs() < 1e-5
    assert whole["audio"].var(unbiased=False) == pytest.approx(1.0, abs=1e-3)
    crop = collate_crops([whole], np.random.default_rng(0), 20.0, 0.8, 10)["audio"][0]
    assert torch.equal(crop, whole["audio"][: len(crop)])
    assert crop.mean() > 0.5  # a crop normalised by itself would have mean 0
    raw = prepare_crop(dict(sample), np.random.default_rng(0), normalize=False, num_clusters=1, train=False)
    assert torch.equal(raw["audio"], audio)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"audio": torch.zeros(16_000), "units": np.zeros(98, np.uint16)}, "98 units for 49 frames"),
        ({"audio": torch.zeros(16_000), "units": np.zeros(0, np.uint16)}, "0 units for 49 frames"),
        ({"audio": torch.zeros(399), "units": np.zeros(0, np.uint16)}, "0 units for 0 frames"),
        ({"audio": torch.zeros(400), "units": np.array([7], np.uint16)}, "unit 7 is outside the dictionary of 7"),
    ],
)
def test_units_that_do_not_fit_one_utterance_make_it_a_bad_sample(sample, reason):
    with pytest.raises(BadSample, match=reason):
        prepare_crop(sample, np.random.default_rng(0), normalize=False, num_clusters=7, train=True)


# -- labels that do not fit the audio are errors before training ------------------------------------------------------


def test_units_that_fit_are_read(tmp_path):
    data = units_of(tmp_path, batch_seconds=None, max_seconds=1.0)
    data.setup("fit")
    assert data.clustering == META
    batches = list(itertools.islice(data.train_dataloader(), 4))
    for batch in batches:
        frames = int(num_frames(min(16_000, int(min(data.corpus("train").num_samples)))))
        assert batch["units"].shape[1] >= frames
        assert torch.equal(batch["units"] - batch["units"][:, :1], torch.arange(batch["units"].shape[1]).expand(2, -1))
    assert batches[0]["audio"].shape[1] <= 16_000


@pytest.mark.parametrize(
    ("units", "meta", "message"),
    [
        (
            LENGTHS,
            {f"{s}.tar": {"rate": 100} for s in ("train-000000", "train-000001")},
            r"train-000000\.tar: units at 100 Hz, the model has 50 frames a second; run the predict stage again",
        ),
        (
            LENGTHS | {"train": [[np.zeros(98), np.zeros(148), np.zeros(198)], [np.zeros(118), np.zeros(48)]]},
            {},
            r"5 of 5 utterances have another number of units than frames; first train-0-0 in .*train-000000\.tar: "
            r"98 units for 49 frames \(2\.00 per frame\)\. The units were made from other audio or at another rate",
        ),
        (
            LENGTHS | {"train": [[1.0, 1.5, 2.0], [np.zeros(58), 0.5]]},
            {},
            r"1 of 5 utterances have another number of units than frames; first train-1-0 in .*train-000001\.tar: "
            r"58 units for 59 frames",
        ),
        (
            LENGTHS,
            {f"{s}.tar": {"num_clusters": 50} for s in ("train-000000", "train-000001")},
            r"train-000000\.tar: train-0-1 has uint16 units up to 73, but its clustering has 50 clusters; run the",
        ),
        (
            LENGTHS,
            {f"{s}.tar": {"num_clusters": 0} for s in ("train-000000", "train-000001")},
            r"train-000000\.tar: train-0-1 has uint16 units up to 73, but its clustering has 0 clusters",
        ),
        (
            LENGTHS,
            {"train-000001.tar": {"fingerprint": "f2"}},
            r"units/toy/train-000001\.tar: its units have fingerprint='f2', those of .*train-000000\.tar 'f1'; "
            r"all shards must come from one clustering",
        ),
        (
            LENGTHS,
            {"train-000001.tar": {"num_clusters": 500}},
            r"train-000001\.tar: its units have num_clusters=500, those of .*train-000000\.tar 100",
        ),
        (
            LENGTHS,
            {"validation-000000.tar": {"fingerprint": "f2"}},
            r"the units of split 'validation' come from clustering f2, those of the other splits from f1; "
            r"one clustering must label all splits",
        ),
    ],
    ids=["100 Hz by its meta", "100 Hz by its counts", "one count", "short dictionary", "no dictionary",
         "another clustering", "another size", "fitted per split"],
)  # fmt: skip
def test_labels_that_would_ruin_training_silently_are_errors(tmp_path, units, meta, message):
    with pytest.raises(ValueError, match=message):
        units_of(tmp_path, units, meta).setup("fit")


def test_units_that_no_clustering_wrote_are_refused(tmp_path):
    path = write_data_set(tmp_path, {"train": [[1.0]], "validation": [[1.0]]})
    with TarShard(tmp_path / "units" / "toy" / "train-000000.tar") as tar:
        tar.write({"__key__": "train-0-0", "units.npy": np.zeros(49, np.uint16)})
    with pytest.raises(ValueError, match=r"train-000000\.tar does not tell the fingerprint of its units; they must be"):
        module(SpeechUnits, path, sidecars={"units": str(tmp_path / "units")}, batch_size=1).setup("fit")


def test_utterances_that_were_broken_when_the_units_were_made_are_passed_over_and_counted(tmp_path):
    data = units_of(tmp_path, LENGTHS | {"train": [[1.0, np.zeros(0), 2.0], [1.2, 0.5]]}, lanes=1)
    data.setup("fit")
    assert data.usable["train"].tolist() == [0, 2, 3, 4]
    assert list(data.broken.values()) == [{"train-0-1": "it has no units"}]
    strict = units_of(tmp_path / "b", LENGTHS | {"train": [[1.0, np.zeros(0), 2.0], [1.2, 0.5]]})
    strict.max_broken = 0.1
    with pytest.raises(ValueError, match="1 of 5 samples of split 'train' are broken"):
        strict.setup("fit")


def test_all_units_empty_is_an_error_and_not_an_empty_training(tmp_path):
    none = [[np.zeros(0)] * 3, [np.zeros(0)] * 2]
    data = units_of(tmp_path, LENGTHS | {"train": none})
    data.max_broken = 0.01
    with pytest.raises(ValueError, match=r"5 of 5 samples of split 'train' are broken.*it has no units"):
        data.setup("fit")


def test_speech_units_without_a_sidecar_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="sidecars lacks `units`; name the folder that the predict stage of a clustering"
    ):
        module(SpeechUnits, write_data_set(tmp_path, LENGTHS), batch_size=1)


# -- whole utterances --------------------------------------------------------------------------------------------------


def test_utterances_are_padded_behind_and_keep_their_lengths(tmp_path):
    data = module(Utterances, write_data_set(tmp_path, {"train": [[0.1, 0.2]], "validation": [[0.1]]}))
    data.setup("fit")
    (batch,) = data.once("train", np.arange(2))
    assert batch["audio"].shape == (2, 3200)
    assert batch["lengths"].tolist() == [1600, 3200]
    assert not batch["audio"][0, 1600:].any()
    assert batch["audio_seconds"] == pytest.approx(0.3)
    assert torch.equal(batch["audio"][1], torch.from_numpy(noise(0.2, 2) / 32768).float())


def test_an_utterance_shorter_than_one_frame_is_left_out_and_one_of_a_frame_is_not(tmp_path, caplog):
    shard = [{"wav": encoded(noise(size / 16_000), "wav")} for size in (3, 399, 400)]
    data = module(Utterances, write_data_set(tmp_path, {"train": [shard], "validation": [[0.1]]}))
    data.setup("fit")
    assert data.usable["train"].tolist() == [2]
    assert "train: 2 of 3 samples are under 0.025 s and left out" in caplog.text
    (batch,) = data.pool_dataloader()
    assert num_frames(batch["lengths"]).tolist() == [1]


def test_the_utterances_of_the_pool_are_a_share_chosen_by_key_whatever_the_ranks(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1] * 10, [0.1] * 10], "validation": [[0.1]]})

    def pool(world: int, **options: Any) -> list[str]:
        keys = []
        for rank in range(world):
            data = module(Utterances, path, rank, world, **options)
            data.setup("fit")
            keys += [k for b in data.pool_dataloader() for k, v in zip(b["__key__"], b["valid"], strict=True) if v]
        return sorted(keys)

    half = pool(1, fit_fraction=0.5)
    assert len(half) == len(set(half)) == 10
    assert pool(3, fit_fraction=0.5) == half
    assert set(pool(1, fit_fraction=0.25)) < set(half)
    assert pool(1, fit_fraction=0.5, seed=1) != half
    assert len(pool(1)) == 20
    with pytest.raises(ValueError, match="fit_fraction=0 must be above 0 and at most 1"):
        module(Utterances, path, fit_fraction=0)


def test_information_is_read_when_asked_for(tmp_path):
    phones = {"speaker": "a", "phones": [[0.0, 0.1, "A"]]}
    shard = [{"flac": encoded(noise(0.1)), "json": phones}]
    data = module(Utterances, write_data_set(tmp_path, {"train": [shard], "validation": [shard]}), with_info=True)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert batch["info"] == [phones]
    assert "info" not in collate_utterances([{"audio": torch.zeros(9)}], np.random.default_rng(0))


# -- transcripts -------------------------------------------------------------------------------------------------------


def test_transcripts_become_padded_targets():
    samples = [
        prepare_transcript({"audio": torch.ones(size), "text": text}, np.random.default_rng(0), normalize=False)
        for size, text in ((800, "Hi."), (1600, "it's me"))
    ]
    batch = collate_transcripts(samples, np.random.default_rng(0), mask_prob=0.75, mask_span=2, train=True)
    assert batch["targets"].tolist() == [[11, 10, 4, 0, 0, 0, 0, 0], [10, 6, 27, 12, 4, 17, 5, 4]]
    assert batch["target_lengths"].tolist() == [3, 8]
    assert batch["text"] == ["HI", "IT'S ME"]
    assert batch["mask"].shape == (2, 4)
    assert not batch["mask"][0, 2:].any()
    assert "mask" not in collate_transcripts(samples, np.random.default_rng(0), 0.75, 2, train=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "the transcript is empty"), ("?!", "the transcript is empty"), ("Straße 7", r"has \['7'\]")],
)
def test_transcripts_that_cannot_be_spelled_are_bad_samples(text, reason):
    with pytest.raises(BadSample, match=reason):
        prepare_transcript({"audio": torch.ones(800), "text": text}, np.random.default_rng(0), normalize=False)


def test_an_empty_transcript_is_kept_outside_training():
    """A test counts such utterances apart."""
    sample = {"audio": torch.ones(800), "text": "?!"}
    found = prepare_transcript(sample, np.random.default_rng(0), normalize=False, train=False)
    assert found["text"] == ""
    batch = collate_transcripts([found], np.random.default_rng(0), 0.0, 10, train=False)
    assert batch["target_lengths"].tolist() == [0]


def test_a_transcript_with_foreign_letters_is_replaced_in_training_and_counted(tmp_path):
    shard = [{"flac": encoded(noise(0.5, seed)), "txt": text} for seed, text in enumerate(["ONE", "2", "THREE"])]
    path = write_data_set(tmp_path, {"train": [shard], "validation": [shard]})
    data = module(TranscribedSpeech, path, batch_size=1, lanes=1)
    data.setup("fit")
    batches = [data.on_before_batch_transfer(b, 0) for b in itertools.islice(data.train_dataloader(), 3)]
    assert Counter(batch["text"][0] for batch in batches) == {"ONE": 1, "THREE": 2}
    assert list(data.broken.values()) == [
        {"train-0-1": "the transcript '2' has ['2'], which the vocabulary lacks; spell them out"}
    ]
    valid = {b["__key__"][0]: b["valid"].item() for b in data.val_dataloader()}
    assert valid == {"validation-0-0": True, "validation-0-1": False, "validation-0-2": True}


def test_only_so_many_labelled_minutes_are_used_chosen_by_key(tmp_path):
    path = write_data_set(tmp_path, {"train": [[1.0] * 12], "validation": [[1.0] * 3]})

    def chosen(minutes: float | None) -> set[int]:
        data = module(TranscribedSpeech, path, labelled_minutes=minutes, batch_size=1)
        data.setup("fit")
        assert len(data.usable["validation"]) == 3
        return set(data.usable["train"].tolist())

    assert len(chosen(0.1)) == 6
    assert chosen(0.05) < chosen(0.1) < chosen(None)
    with pytest.raises(ValueError, match=r"labelled_minutes=0\.001 holds no utterance; raise it, or null for all"):
        chosen(0.001)


def test_padded_transcribed_audio_stays_within_the_bound(tmp_path):
    lengths = np.random.default_rng(0).uniform(0.2, 1.5, 24).round(2).tolist()
    path = write_data_set(tmp_path, {"train": [lengths], "validation": [lengths]})
    data = module(TranscribedSpeech, path, batch_seconds=2.0, max_seconds=1.0, lanes=1)
    data.setup("fit")
    for batch in [*itertools.islice(data.train_dataloader(), 20), *data.val_dataloader()]:
        assert batch["audio"].numel() <= 2.0 * 16_000
        assert batch["lengths"].max() <= 16_000  # longer ones cannot be cropped, for their text would not fit
