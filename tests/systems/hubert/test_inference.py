"""Recordings of any length: chunks against the whole, the three results by the command line and by a call."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mmflow.cli import main
from mmflow.data import audio_files, decode
from mmflow.data.audio_files import AudioFiles, batches
from mmflow.systems.hubert.inference import (
    FeatureExtractor,
    Moments,
    Recognizer,
    Transcript,
    UnitExtractor,
    Word,
    encode,
)
from mmflow.systems.hubert.kmeans import HubertLayer, KMeans
from mmflow.systems.hubert.model import CTCHead, Hubert, num_frames

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

TINY = {"dim": 32, "depth": 2, "num_heads": 2, "ffn_dim": 64, "conv_dim": 16, "position_kernel": 16}
TINY |= {"position_groups": 4, "layer_drop": 0.0}
LARGE = {"conv_norm": "layer", "pre_norm": True, "normalize": True}
SHORT = {"chunk_seconds": 2.0, "margin_seconds": 1.0}


def speech(samples: int, seed: int = 0) -> Tensor:
    """Noise that grows louder and drifts, so that statistics of a part are not those of the whole."""
    draw = torch.Generator().manual_seed(seed)
    rise = torch.linspace(0.05, 0.5, samples)
    return torch.randn(samples, generator=draw).cumsum(0).sin() * rise + rise / 4


def hubert_of(arguments: dict[str, Any]) -> Hubert:
    torch.manual_seed(0)
    hubert = Hubert(**arguments).eval()
    with torch.no_grad():
        for parameter in hubert.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return hubert


def save(path: Path, arguments: dict[str, Any]) -> str:
    """A checkpoint of a recogniser with random weights."""
    hubert, head = hubert_of(arguments), CTCHead(32, 32)
    torch.nn.init.normal_(head.projection.weight)
    state = {f"hubert.{name}": value for name, value in hubert.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    config = {"class_path": "mmflow.systems.hubert.model.Hubert", "init_args": arguments}
    torch.save({"state_dict": state, "hyper_parameters": {"hubert": config}}, path)
    return str(path)


def save_clustering(path: Path, checkpoint: str | None) -> str:
    """A checkpoint of a clustering of that HuBERT's first layer, or of MFCCs, with random centroids."""
    features: dict[str, Any] = {"class_path": "mmflow.systems.hubert.features.MFCC"}
    if checkpoint is not None:
        init_args = {"checkpoint": checkpoint, "layer": 1}
        features = {"class_path": "mmflow.systems.hubert.kmeans.HubertLayer", "init_args": init_args}
    draw = torch.Generator().manual_seed(1)
    centroids = torch.randn(20, 39 if checkpoint is None else 32, generator=draw, dtype=torch.float64)
    state = {"centroids": centroids, "iteration": torch.tensor(1), "inertia": torch.tensor(1.0, dtype=torch.float64)}
    parameters = {
        "_class_path": f"{KMeans.__module__}.KMeans",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "features": features,
        "num_clusters": 20,
    }
    told = "mfcc39-kaldi-50hz-1" if checkpoint is None else HubertLayer(checkpoint, 1).fingerprint
    saved = {"state_dict": state | {"finished": torch.tensor(True)}, "hyper_parameters": parameters, "features": told}
    torch.save(saved | {"pytorch-lightning_version": "2.6.0"}, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("tiny") / "ctc.ckpt", TINY)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Recordings of every kind, one of them of three chunks, and what is none."""
    root = tmp_path / "recordings"
    (root / "deep" / "er").mkdir(parents=True)
    soundfile.write(root / "long.flac", speech(16_000 * 5 + 123).numpy(), 16_000)
    soundfile.write(root / "deep" / "stereo.v1.wav", speech(8_000 * 4, 1).view(-1, 2).numpy(), 8_000)
    soundfile.write(root / "deep" / "er" / "music.mp3", speech(44_100, 2).numpy(), 44_100)
    soundfile.write(root / "short.ogg", speech(480, 3).numpy(), 16_000)
    soundfile.write(root / "too_short.wav", speech(399).numpy(), 16_000)
    (root / "empty.wav").touch()
    (root / "torn.flac").write_bytes((root / "long.flac").read_bytes()[:60_000])
    (root / "notes.txt").write_text("no audio")
    return root


GOOD = ["deep/er/music.mp3", "deep/stereo.v1.wav", "long.flac", "short.ogg"]
BROKEN = ["empty.wav", "too_short.wav", "torn.flac"]


def predict(what: str, folder: Path, checkpoint: str, work: Path, *more: str) -> int:
    words = ["predict", "--config", f"pipelines/predict/hubert_{what}.yaml", "--data.folder", str(folder)]
    words += ["--model.checkpoint", checkpoint, "--workdir", str(work), "--trainer.accelerator", "cpu"]
    short = ["--model.chunk_seconds", "2", "--model.margin_seconds", "1", "--data.batch_seconds", "8"]
    return main([*words, *short, "--data.num_workers", "0", *more])


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])


# -- chunks against the whole ------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_whole_however_it_comes():
    audio = speech(50_003) + 3
    moments = Moments()
    for piece in audio.split([3, 5, 1, 20_000, 7, 29_987]):
        moments.add(piece)
    mean, variance, window_mean, covariance = moments.value()
    windows = audio.double().unfold(0, 10, 5)
    torch.testing.assert_close(mean, audio.double().mean(), atol=1e-10, rtol=0)
    torch.testing.assert_close(variance, audio.double().var(correction=0), atol=1e-10, rtol=0)
    torch.testing.assert_close(window_mean, windows.mean(0), atol=1e-10, rtol=0)
    torch.testing.assert_close(covariance, windows.T.cov(correction=0), atol=1e-10, rtol=0)


@pytest.mark.parametrize("more", [{}, LARGE, {"normalize": True}], ids=["base", "large", "base, normalised"])
def test_the_convolutions_of_chunks_are_those_of_the_whole(checkpoint, more):
    hubert, audio = hubert_of(TINY | more), speech(16_000 * 7 + 301)
    features, whole = [], []
    hubert.input_norm.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        hubert(audio[None])
        whole = features.pop()[0]
        chunking = FeatureExtractor(checkpoint, 0, **SHORT).chunking
        kept = []
        for batch in batches([("x", audio)], chunking, 9.0):
            encode(hubert, batch)
            for place, rows in zip(batch["places"], features.pop(), strict=True):
                kept.append(rows[place.skip : place.skip + place.keep])
    assert len(kept) == 4
    torch.testing.assert_close(torch.cat(kept), whole, atol=1e-5, rtol=0)
    with torch.no_grad():  # the statistics of the whole are not those of a part
        hubert(audio[None, : 320 * 150 + 80])
    assert (features[0][0, :100] - whole[:100]).abs().max() > 1e-2


@pytest.mark.parametrize("more", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("samples", [400, 9_000, 320 * 100 + 399])
def test_what_fits_into_a_chunk_gives_what_the_model_gives(tmp_path, more, samples):
    extract = FeatureExtractor(save(tmp_path / "x.ckpt", TINY | more), [0, 1, 2], **SHORT)
    with torch.no_grad():
        whole = extract.hubert(speech(samples)[None]).layers
    found = extract(speech(samples))
    assert found.shape == (num_frames(samples), 3, 32)
    torch.testing.assert_close(found, torch.stack([whole[str(k)][0] for k in range(3)], 1), atol=1e-5, rtol=0)


def test_units_and_characters_hardly_depend_on_the_cuts(tmp_path, checkpoint):
    audio = speech(16_000 * 5)
    clustering = save_clustering(tmp_path / "kmeans.ckpt", checkpoint)
    units = [UnitExtractor(clustering, chunk, 1.0)(audio) for chunk in (2.0, 20.0)]
    assert units[0].shape == (num_frames(len(audio)),)
    assert units[1].unique().numel() > 3
    assert (units[0] == units[1]).float().mean() > 0.9
    features = [FeatureExtractor(checkpoint, 2, "float32", chunk, 1.0)(audio) for chunk in (2.0, 20.0)]
    assert (features[0] - features[1]).norm() < 0.1 * features[1].norm()


def test_mfcc_units_do_not_depend_on_the_cuts_at_all(tmp_path):
    clustering, audio = save_clustering(tmp_path / "kmeans.ckpt", None), speech(16_000 * 5)
    assert torch.equal(UnitExtractor(clustering, 1.0, 0.2)(audio), UnitExtractor(clustering)(audio))


# -- transcripts -------------------------------------------------------------------------------------------------------


def test_words_have_the_times_of_their_letters(checkpoint):
    recognize = Recognizer(checkpoint)
    number = recognize.characters.numbers
    path = [0, 0, number["H"], number["H"], 0, number["I"], 0, number["|"], number["<unk>"], number["A"], number["|"]]
    frames = torch.nn.functional.one_hot(torch.tensor([*path, 0, number["B"]]), 32).float().log()
    found = recognize.result(frames)
    assert found == Transcript("HI A B", [Word("HI", 0.04, 0.12), Word("A", 0.18, 0.2), Word("B", 0.24, 0.26)])
    assert str(found) == "HI A B"


def test_the_decoder_gets_all_frames_of_the_recording(checkpoint):
    recognize = Recognizer(checkpoint, lambda log_probs: f"{tuple(log_probs.shape)}", **SHORT)
    assert recognize(speech(16_000 * 5)) == Transcript("(249, 32)", [])


# -- calls -------------------------------------------------------------------------------------------------------------


def test_a_file_gives_what_its_waveform_gives(checkpoint, folder, monkeypatch):
    monkeypatch.setattr(audio_files, "PIECE_S", 0.8)
    extract = FeatureExtractor(checkpoint, 1, **SHORT)
    path = folder / "deep" / "er" / "music.mp3"
    torch.testing.assert_close(extract(path), extract(decode.audio(path.read_bytes())), atol=1e-4, rtol=0)
    assert extract(str(folder / "long.flac")).shape == (num_frames(80_123), 32)


def test_a_call_names_what_it_cannot_read(checkpoint, folder):
    extract = FeatureExtractor(checkpoint, 1)
    with pytest.raises(ValueError, match=r"too_short.wav: 0.0249 s is too short"):
        extract(folder / "too_short.wav")
    with pytest.raises(ValueError, match=r"absent.wav: not readable audio: System error"):
        extract(folder / "absent.wav")
    with pytest.raises(ValueError, match=r"shape \(1, 500\); give mono samples \(S,\) at 16 kHz"):
        extract(torch.zeros(1, 500))


def test_arguments_that_do_not_fit_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"layer=3 is not in 0..2, the layers of .*; try 1"):
        FeatureExtractor(checkpoint, 3)
    with pytest.raises(ValueError, match=r"chunk_seconds=0.001 must be at least one frame, 0.02 s"):
        Recognizer(checkpoint, chunk_seconds=0.001)


# -- the command line --------------------------------------------------------------------------------------------------


def test_features_of_a_folder(tmp_path, folder, checkpoint):
    assert predict("features", folder, checkpoint, tmp_path / "out", "--model.layer", "[1, 2]") == 0
    results = tmp_path / "out" / "features"
    extract = FeatureExtractor(checkpoint, [1, 2], **SHORT)
    for name, stem in zip(GOOD, ["deep/er/music", "deep/stereo.v1", "long", "short"], strict=True):
        saved = np.load(results / f"{stem}.features.npy")
        assert saved.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(saved), extract(folder / name), atol=1e-5, rtol=0)
    assert sorted(json.loads((results / "broken.json").read_text())) == BROKEN
    assert (
        predict("features", folder, checkpoint, tmp_path / "half", "--model.dtype", "float16", "--model.layer", "1")
        == 0
    )
    half = np.load(tmp_path / "half" / "features" / "long.features.npy")
    assert half.dtype == np.float16
    assert half.shape == (num_frames(80_123), 32)


def test_units_of_a_folder_and_then_of_what_is_new(tmp_path, folder, checkpoint, capsys):
    clustering = save_clustering(tmp_path / "kmeans.ckpt", checkpoint)
    assert predict("units", folder, clustering, tmp_path / "out") == 0
    results = tmp_path / "out" / "units"
    saved = np.load(results / "long.units.npy")
    assert saved.dtype == np.uint16
    assert np.array_equal(saved, UnitExtractor(clustering, **SHORT)(folder / "long.flac").numpy())

    times = {path: path.stat().st_mtime_ns for path in results.rglob("*.npy")}
    assert len(times) == 4
    assert "── units" in capsys.readouterr().out
    assert predict("units", folder, clustering, tmp_path / "out") == 0
    assert "── units" not in capsys.readouterr().out  # all is done
    soundfile.write(folder / "deep" / "new.wav", speech(16_000, 9).numpy(), 16_000)
    soundfile.write(folder / "empty.wav", speech(16_000, 9).numpy(), 16_000)  # it was broken
    assert predict("units", folder, clustering, tmp_path / "out") == 0
    assert len(np.load(results / "deep" / "new.units.npy")) == len(np.load(results / "empty.units.npy")) == 49
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert sorted(json.loads((results / "broken.json").read_text())) == BROKEN[1:]


def test_transcripts_of_a_folder(tmp_path, folder, checkpoint):
    assert predict("transcripts", folder, checkpoint, tmp_path / "out") == 0
    results = tmp_path / "out" / "transcripts"
    records = [json.loads(line) for line in (results / "transcripts.jsonl").read_text().splitlines()]
    assert [record["path"] for record in records] == GOOD
    said = Recognizer(checkpoint, **SHORT)(folder / "long.flac")
    assert (results / "long.txt").read_text() == f"{said}\n"
    assert records[2]["text"] == said.text == " ".join(word["text"] for word in records[2]["words"])
    assert records[2]["seconds"] == 5.008
    ends = [word["end"] for word in records[2]["words"]]
    assert ends == sorted(ends)
    assert ends[-1] <= 5.01


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, folder, checkpoint, monkeypatch):
    frames, seen = FeatureExtractor.frames, []

    def interrupted(self: Any, batch: dict[str, Any]) -> Tensor:
        seen.append(len(batch["places"]))
        if len(seen) == 3:
            raise RuntimeError("the power went")
        return frames(self, batch)

    one = ("--model.layer", "1", "--data.batch_seconds", "0.1")  # each chunk by itself
    monkeypatch.setattr(FeatureExtractor, "frames", interrupted)
    assert predict("features", folder, checkpoint, tmp_path / "out", *one) == 1
    results = tmp_path / "out" / "features"
    assert not (results / "done.json").exists()
    made = {path: path.stat().st_mtime_ns for path in results.rglob("*.npy")}
    monkeypatch.setattr(FeatureExtractor, "frames", frames)
    assert predict("features", folder, checkpoint, tmp_path / "out", *one) == 0
    assert len(list(results.rglob("*.npy"))) == 4
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert list(results.rglob("*.part")) == []
    assert np.load(results / "long.features.npy").shape == (num_frames(80_123), 32)


def test_a_checkpoint_that_changed_under_its_name_is_noticed(tmp_path, folder, checkpoint, capsys):
    last = tmp_path / "last.ckpt"
    last.write_bytes(Path(checkpoint).read_bytes())
    assert predict("features", folder, str(last), tmp_path / "out", "--model.layer", "1") == 0
    saved = torch.load(last, weights_only=True)
    saved["state_dict"]["hubert.mask_embedding"] += 1
    torch.save(saved, last)
    (tmp_path / "out" / "features" / "done.json").unlink()
    assert predict("features", folder, str(last), tmp_path / "out", "--model.layer", "1") == 2
    assert (
        "choose another folder (--workdir DIR), or make all of them again (--rerun features)" in capsys.readouterr().err
    )


def test_mistakes_are_said_in_a_line_and_can_be_mended(tmp_path, folder, checkpoint, capsys):
    assert predict("features", tmp_path / "nowhere", checkpoint, tmp_path / "out", "--model.layer", "1") == 2
    assert "nowhere is not a folder; name one with audio files" in capsys.readouterr().err
    assert predict("features", folder, checkpoint, tmp_path / "out", "--model.layer", "7") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: stage 'features': layer=7 is not in 0..2")
    assert "Subtypes" not in error
    assert predict("features", folder, checkpoint, tmp_path / "out", "--model.layer", "1") == 0


def test_it_predicts_on_plain_files_only(tmp_path, checkpoint, tiny_speech, capsys):
    data = ("--data", f"{{class_path: mmflow.systems.hubert.data.Utterances, init_args: {{spec: {tiny_speech}}}}}")
    config = ("--config", "pipelines/predict/hubert_features.yaml", "--workdir", str(tmp_path))
    assert main(["predict", *config, *data, "--model.checkpoint", checkpoint, "--model.layer", "1"]) == 2
    assert "FeatureExtractor predicts on plain audio files; set data to mmflow.data" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_the_files_and_a_killed_run_goes_on(tmp_path, folder, checkpoint, start):
    for number in range(40):
        soundfile.write(folder / f"{number}.flac", speech(16_000 * 4, number).numpy(), 16_000)
    words = ["predict", "--config", "pipelines/predict/hubert_transcripts.yaml", "--data.folder", str(folder)]
    words += ["--model.checkpoint", checkpoint, "--workdir", str(tmp_path / "out"), "--data.batch_seconds", "4"]
    results = tmp_path / "out" / "transcripts"
    killed = start(*words)
    while len(list(results.rglob("*.words.json"))) < 3:
        time.sleep(0.02)
        assert killed.process.poll() is None, killed.output
    killed.send_all(signal.SIGKILL).end()
    made = {path: path.stat().st_mtime_ns for path in results.rglob("*.words.json")}
    ended = start(*words, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert ended.end() == 0, ended.output
    assert {path: path.stat().st_mtime_ns for path in made} == made
    records = [json.loads(line) for line in (results / "transcripts.jsonl").read_text().splitlines()]
    assert [record["path"] for record in records] == sorted([*GOOD, *(f"{number}.flac" for number in range(40))])
    assert sorted(json.loads((results / "broken.json").read_text())) == BROKEN
    assert list(results.rglob("*.part")) == []


@pytest.mark.slow
def test_a_real_recording_is_read_in_every_way(tmp_path, real_data, checkpoint):
    path = real_data / "jfk" / "jfk.flac"
    if not path.is_file():
        pytest.skip("shared/data/jfk is not there")
    whole = FeatureExtractor(checkpoint, 1)(path)
    assert whole.shape == (549, 32)
    chunked = FeatureExtractor(checkpoint, 1, chunk_seconds=4.0)(path)
    assert (whole - chunked).norm() < 0.1 * whole.norm()
    assert AudioFiles(str(path.parent)).folder == path.parent
