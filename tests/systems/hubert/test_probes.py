"""What linear classifiers read off the layers: spans, the optimum of scikit-learn, splits by speaker, resuming."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mmflow.cli import main
from mmflow.data.writer import TarShard
from mmflow.systems.hubert.data import AnnotatedSpeech
from mmflow.systems.hubert.model import Hubert
from mmflow.systems.hubert.probes import LinearProbe, Whiten, segments, span_means, spans, untrained
from tests.command import Command
from tests.shards import encoded, noise, write_spec
from tests.tiny_speech import hum

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

SMALL: dict[str, Any] = {
    **{"dim": 16, "depth": 2, "num_heads": 2, "ffn_dim": 32, "conv_dim": 8},
    **{"position_kernel": 16, "position_groups": 4},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A network as a training leaves it, though nothing was trained."""
    path = tmp_path_factory.mktemp("checkpoint") / "round.ckpt"
    torch.manual_seed(1)
    hubert = {"class_path": "mmflow.systems.hubert.model.Hubert", "init_args": SMALL}
    weights = {f"hubert.{name}": weight for name, weight in Hubert(**SMALL).state_dict().items()}
    torch.save({"hyper_parameters": {"hubert": hubert}, "state_dict": weights}, path)
    return path


# -- items -------------------------------------------------------------------------------------------------------------


def test_an_annotation_tells_phones_a_speaker_and_words():
    info = {"speaker": 7, "phones": [[0, 1, "A"]], "words": [[0, 0.5, "HI"], [0.5, 1, "YOU"]]}
    assert segments("phone", {"info": info}) == [[0, 1, "A"]]
    assert segments("speaker", {"info": info}) == [(0.0, math.inf, "7")]
    assert segments("keyword", {"info": info, "text": "HI YOU"}) == info["words"]


def test_a_text_of_one_word_is_that_word_and_a_sentence_without_times_is_none():
    assert segments("keyword", {"info": {}, "text": "seven"}) == [(0.0, math.inf, "SEVEN")]
    assert segments("keyword", {"info": {}, "text": "seven seven"}) == []
    assert [segments(target, {}) for target in ("phone", "speaker", "keyword")] == [[], [], []]


def test_spans_are_frames_whose_centre_lies_in_a_segment():
    # centres are at 12.5, 32.5, 52.5, 72.5 ms ...
    phones = {"info": {"phones": [[0.0, 0.03, "A"], [0.03, 0.06, "E"], [0.06, 0.08, "X"]]}}
    assert spans("phone", phones, 6, ["E", "A"]) == [[0, 1, 1], [1, 2, 0], [2, 3, 0]]
    words = {"info": {"words": [[0.0, 0.05, "HI"], [0.05, 0.051, "A"], [0.06, 0.11, "HI"], [0.11, 0.2, "YOU"]]}}
    assert spans("keyword", words, 6, ["A", "HI"]) == [[0, 2, 1], [3, 5, 1]]  # no frame is in A, YOU is no class
    assert spans("speaker", {"info": {"speaker": "s"}}, 6, ["s", "t"]) == [[0, 6, 0]]
    assert spans("speaker", {"info": {"speaker": "u"}}, 6, ["s", "t"]) == []


def test_span_means():
    x = torch.arange(12.0).view(2, 3, 2)  # row 0: 0 1, 2 3, 4 5; row 1: 6 7, 8 9, 10 11
    means = span_means(x, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]), torch.tensor([1, 3, 3]))
    assert means.tolist() == [[0.0, 1.0], [8.0, 9.0], [10.0, 11.0]]


def moments(x: Tensor) -> Tensor:
    with_one = torch.nn.functional.pad(x.double(), (1, 0), value=1.0)
    return with_one.T @ with_one


def test_whitened_features_are_uncorrelated_with_unit_variance():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, generator=generator) @ torch.tensor([[3.0, 0, 0], [2, 0.5, 0], [1, 1, 0.8]]) + 5
    whiten = Whiten(3)
    whiten.fit(moments(x))
    white = (x - whiten.mean) @ whiten.matrix
    assert torch.allclose(white.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(torch.cov(white.T), torch.eye(3), atol=0.05)
    assert torch.equal(whiten.matrix, whiten.matrix.T) or torch.allclose(whiten.matrix, whiten.matrix.T, rtol=1e-4)


def test_few_items_are_whitened_without_blowing_up_what_they_do_not_show():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # nothing is known of the second axis
    whiten = Whiten(2)
    whiten.fit(moments(x))
    # variances 1 and 0 with mean 1/2; D / N = 1, so that both get 1/2 more
    assert torch.allclose(whiten.matrix, torch.diag(torch.tensor([1.5**-0.5, 0.5**-0.5])))


def test_an_untrained_network_has_the_shape_and_the_seed_decides_on_its_weights():
    state = torch.random.get_rng_state()
    hubert = Hubert(**SMALL, normalize=True)
    fresh = [untrained(hubert, seed) for seed in (0, 0, 1)]
    shapes = {name: weight.shape for name, weight in hubert.state_dict().items()}
    weights = [network.state_dict() for network in fresh]
    assert {name: weight.shape for name, weight in weights[0].items()} == shapes
    name = "blocks.0.ffn.expand.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert fresh[0].normalize
    torch.random.set_rng_state(state)


# -- data --------------------------------------------------------------------------------------------------------------


def write_speakers(folder: Path, speakers: dict[str, int]) -> Path:
    """So many training utterances of each speaker, in turn, and one of somebody else as validation and test."""
    samples = [name for turn in range(max(speakers.values())) for name, count in speakers.items() if turn < count]
    splits = {"train": samples, "validation": ["else"], "test": ["else"]}
    for split, names in splits.items():
        with TarShard(folder / "toy" / f"{split}-000000.tar") as shard:
            for number, name in enumerate(names):
                flac = encoded(noise(0.1, number))
                shard.write({"__key__": f"{split}{number}", "flac": flac, "txt": name, "json": {"speaker": name}})
    return write_spec(folder / "toy", folder, fields={"audio": ["flac"], "text": ["txt"], "info": ["json"]})


def opened(path: Path, **options: Any) -> AnnotatedSpeech:
    data = AnnotatedSpeech(spec=str(path), num_workers=0, batch_size=4, **options)
    alone: dict[str, Any] = {"global_step": 0, "global_rank": 0, "world_size": 1, "is_global_zero": True}
    data.trainer = SimpleNamespace(**alone, strategy=SimpleNamespace(barrier=lambda: None))  # type: ignore[assignment]
    return data


def speakers_of(data: AnnotatedSpeech, split: str) -> list[str]:
    return sorted(found["info"]["speaker"] for found in data.annotations(split, data.usable[split]))


def test_every_so_many_th_utterance_of_each_speaker_is_held_out(tmp_path):
    path = write_speakers(tmp_path, {"a": 6, "b": 4, "c": 2})
    data = opened(path, held_out=3)
    data.setup("fit")
    assert speakers_of(data, "train") == ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    again = opened(path, held_out=3)
    again.setup("test")
    assert again.usable["test"].tolist() == data.usable["test"].tolist()
    assert not set(data.usable["test"]) & set(data.usable["train"])
    batches = list(again.test_dataloader())
    assert sorted(info["speaker"] for batch in batches for info in batch["info"]) == ["a", "a", "b"]
    assert {key[:5] for batch in batches for key in batch["__key__"]} == {"train"}


def test_nothing_is_held_out_by_default(tmp_path):
    data = opened(write_speakers(tmp_path, {"a": 3}))
    data.setup("test")
    assert speakers_of(data, "test") == ["else"]


def test_held_out_must_leave_something_on_both_sides(tmp_path):
    path = write_speakers(tmp_path, {"a": 3, "b": 2})
    with pytest.raises(ValueError, match=r"held_out=1 must be 2 \(each second utterance\) or more, or 0"):
        opened(path, held_out=1)
    with pytest.raises(ValueError, match=r"no speaker has held_out=4 utterances in the training split"):
        opened(path, held_out=4).setup("fit")


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])


def pipeline(folder: Path, spec: Path, checkpoint: Path, steps: int = 200, **model: Any) -> Path:
    options = {"checkpoints": {"round": str(checkpoint)}, **model}
    tree = {
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 10},
        "data": {"init_args": {"spec": str(spec), "num_workers": 0, "batch_seconds": 6.0}},
        "stages": {
            "probe": {
                "run": "fit",
                "model": {"class_path": "mmflow.systems.hubert.probes.LinearProbe", "init_args": options},
                "data": {"class_path": "mmflow.systems.hubert.data.AnnotatedSpeech"},
                "trainer": {"max_steps": steps, "limit_val_batches": 0},
            },
            "test": {
                "run": "test",
                "ckpt_path": "${stages.probe.checkpoint}",
                "model": "${stages.probe.model}",
                "data": "${stages.probe.data}",
            },
        },
    }
    (folder / "probes.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "probes.yaml"


def run(config: Path, work: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), "--workdir", str(work), *more])


def state(work: Path) -> dict[str, Tensor]:
    path = max((work / "probe" / "checkpoints").glob("step-*.ckpt"))
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def phones(tmp_path_factory, tiny_speech, checkpoint) -> tuple[Path, Path]:
    """Config and work folder of the probe for phones."""
    folder = tmp_path_factory.mktemp("phones")
    config = pipeline(folder, tiny_speech, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cli.py"])
        assert run(config, folder / "work") == 0
    return config, folder / "work"


def test_every_source_is_measured(phones):
    folder = phones[1] / "test"
    report = json.loads((folder / "probes.json").read_text())
    sources = [(row["source"], row["layer"]) for row in report["rows"]]
    layers = [(name, layer) for name in ("round", "untrained") for layer in range(3)]
    assert sources == [("mfcc", None), *layers, ("round", "mix"), ("majority", None)]
    accuracy = {source: row["accuracy"] for source, row in zip(sources, report["rows"], strict=True)}
    assert accuracy["mfcc", None] > 0.8  # hummed phones are told apart by their spectra
    assert accuracy["majority", None] < 0.35
    assert sum(report["mixtures"]["round"]) == pytest.approx(1)
    assert sorted(report["classes"]) == ["A", "E", "I", "O", "S"]
    metrics = json.loads((folder / "done.json").read_text())["metrics"]
    assert metrics.keys() == {f"phone/{name}" for name in ("round", "mfcc", "untrained", "majority")}
    assert metrics["phone/round"] == pytest.approx(max(accuracy["round", layer] for layer in range(3)))
    assert (folder / "probes.png").read_bytes().startswith(b"\x89PNG")


def test_encoders_are_no_part_of_a_checkpoint(phones):
    names = {name.split(".")[0] for name in state(phones[1])}
    assert names == {"whiten", "mixtures", "classifiers"}


def frames(split: str, count: int, probe: LinearProbe, step: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of all sources and labels of the tiny speech."""
    from mmflow.data.decode import decode

    parts = []
    for number in range(count):
        sample = hum(f"{split}{number:02d}")
        audio = decode(sample["flac"], "flac")[None]
        batch = {"audio": audio, "lengths": torch.tensor([audio.shape[1]]), "info": [sample["json"]]}
        parts.append(probe.encode(batch, [0], step))
    features = {s: torch.cat([p.features[s] for p in parts]).double().numpy() for s in parts[0].features}
    return features, torch.cat([p.labels for p in parts]).numpy()


def test_accuracies_are_those_of_scikit_learn(phones, checkpoint):
    """Its LogisticRegression without regularisation to speak of, on the same frames, in its own way to the optimum."""
    report = json.loads((phones[1] / "test" / "probes.json").read_text())
    probe = LinearProbe({"round": str(checkpoint)})
    probe.build(report["classes"])
    x, y = frames("train", 36, probe, 2)
    test_x, test_y = frames("test", 12, probe, 1)
    assert report["items"] == len(test_y)
    for row in report["rows"][:4]:  # MFCCs and the layers of the round
        source = "mfcc" if row["layer"] is None else f"{row['source']}/{row['layer']}"
        mean, deviation = x[source].mean(0), x[source].std(0) + 1e-6
        theirs = LogisticRegression(C=100, max_iter=2000).fit((x[source] - mean) / deviation, y)
        accuracy = theirs.score((test_x[source] - mean) / deviation, test_y)
        assert row["accuracy"] == pytest.approx(accuracy, abs=0.02), source


@pytest.mark.parametrize("limit", [100_000, 300])  # all utterances are kept in memory, a few are
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, tiny_speech, checkpoint, limit):
    config = pipeline(tmp_path, tiny_speech, checkpoint, steps=6, max_items=limit)
    tree = yaml.safe_load(config.read_text())
    del tree["stages"]["test"]
    tree["checkpoints"] = {"every_steps": 3}
    config.write_text(yaml.safe_dump(tree))
    assert run(config, tmp_path / "work") == 0
    whole, folder = state(tmp_path / "work"), tmp_path / "work" / "probe"
    for path in [folder / "done.json", *folder.glob("checkpoints/step-00000006*")]:
        path.unlink()
    assert run(config, tmp_path / "work") == 0
    resumed = state(tmp_path / "work")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_speakers_of_held_out_utterances(tmp_path, checkpoint, capsys):
    """Three speakers who hum at pitches of their own."""
    for split, count in (("train", 24), ("validation", 2), ("test", 2)):
        with TarShard(tmp_path / "toy" / f"{split}-000000.tar") as shard:
            for number in range(count):
                sample = hum(f"pitch{number % 3}") | {"__key__": f"{split}{number:02d}"}
                shard.write(sample | {"json": {"speaker": f"{split}{number % 3}"}})
    spec = write_spec(tmp_path / "toy", tmp_path, fields={"audio": ["flac"], "info": ["json"]})
    config = pipeline(tmp_path, spec, checkpoint, steps=20, target="speaker")
    assert run(config, tmp_path / "work") == 2
    assert "no speaker in the test utterances is among the 3 classes of the training" in capsys.readouterr().err
    assert run(config, tmp_path / "held", "--data.held_out", "4") == 0
    report = json.loads((tmp_path / "held" / "test" / "probes.json").read_text())
    assert (report["items"], report["classes"]) == (6, ["train0", "train1", "train2"])
    assert report["rows"][0]["accuracy"] == 1.0


def test_isolated_words_are_the_most_frequent_ones(tmp_path, checkpoint):
    words = ["AES", "OOO", "AES", "OOO", "AES", "OOO", "AES", "III"]
    for split in ("train", "validation", "test"):
        with TarShard(tmp_path / "toy" / f"{split}-000000.tar") as shard:
            for number, word in enumerate(words):
                shard.write(hum(word) | {"__key__": f"{split}{number}", "txt": word.lower(), "json": {}})
    spec = write_spec(tmp_path / "toy", tmp_path, fields={"audio": ["flac"], "text": ["txt"], "info": ["json"]})
    config = pipeline(tmp_path, spec, checkpoint, steps=20, target="keyword", max_classes=2)
    assert run(config, tmp_path / "work") == 0
    report = json.loads((tmp_path / "work" / "test" / "probes.json").read_text())
    assert (report["items"], report["classes"]) == (7, ["AES", "OOO"])
    assert report["rows"][-1] == {"source": "majority", "layer": None, "accuracy": pytest.approx(4 / 7)}
    assert report["rows"][0]["accuracy"] == 1.0


@pytest.mark.slow
def test_two_processes_measure_what_one_does(phones, tmp_path):
    config, work = phones
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = Command("fit", "--config", config, "--workdir", tmp_path, *ddp)
    assert command.end() == 0, command.output
    alone, both = state(work), state(tmp_path)
    assert all(torch.allclose(alone[name], both[name], atol=2e-2) for name in alone if "matrix" not in name)
    one, two = (json.loads((folder / "test" / "probes.json").read_text()) for folder in (work, tmp_path))
    assert two["items"] == one["items"]
    for row, other in zip(one["rows"], two["rows"], strict=True):
        assert other["accuracy"] == pytest.approx(row["accuracy"], abs=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages.probe.data.class_path", "mmflow.systems.hubert.data.Utterances"], "which Utterances does not read"),
        (["--stages.probe.model.checkpoints", "{}"], "checkpoints names []; give at least one"),
        (["--stages.probe.model.target", "vowel"], "vowel"),
    ],
)
def test_what_cannot_be_probed_is_named(tmp_path, tiny_speech, checkpoint, capsys, words, message):
    config = pipeline(tmp_path, tiny_speech, checkpoint, steps=1)
    assert run(config, tmp_path / "work", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--stages.probe.model.target", "keyword"],
            "nothing is probed: the training split has 0 classes of target keyword",
        ),
        (
            ["--stages.probe.model.max_classes", "1"],
            "nothing is probed: the training split has 1 classes of target phone",
        ),
    ],
)
def test_data_with_nothing_to_tell_apart_do_not_stop_a_pipeline(
    tmp_path, tiny_speech, checkpoint, caplog, words, message
):
    config = pipeline(tmp_path, tiny_speech, checkpoint, steps=1)
    assert run(config, tmp_path / "work", *words) == 0
    assert message in caplog.text
    assert not (tmp_path / "work" / "test" / "probes.json").exists()


def test_a_probe_is_tested_after_its_training(tmp_path, tiny_speech, checkpoint, capsys):
    config = pipeline(tmp_path, tiny_speech, checkpoint)
    tree = yaml.safe_load(config.read_text())
    tree["stages"]["test"] |= {"model": tree["stages"]["probe"]["model"], "data": tree["stages"]["probe"]["data"]}
    del tree["stages"]["test"]["ckpt_path"], tree["stages"]["probe"]
    config.write_text(yaml.safe_dump(tree))
    assert run(config, tmp_path / "work") == 2
    assert "this LinearProbe is not trained; set ckpt_path" in capsys.readouterr().err
