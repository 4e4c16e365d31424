"""Plain audio files: decoded and resampled in pieces, cut into chunks with margins, batched, dealt out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mmflow.data import audio_files, decode
from mmflow.data.audio_files import AudioFiles, Chunking, FileStream, batches, find_audio, resample_pieces, stream


class Count:
    """The number of samples and pieces of a recording."""

    def __init__(self) -> None:
        self.samples = self.pieces = 0

    def add(self, piece: Tensor) -> None:
        self.samples, self.pieces = self.samples + len(piece), self.pieces + 1

    def value(self) -> tuple[Tensor, ...]:
        return (torch.tensor([self.samples, self.pieces]),)


CUT = Chunking(window=400, hop=320, chunk=50, margin=10, summary=Count)


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(samples).uniform(-0.5, 0.5, (samples, channels)).astype("float32")


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


# -- decoding and resampling in pieces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 12_345, 192_000])
def test_resampled_in_pieces_it_is_what_it_is_when_resampled_whole(rate):
    audio = torch.from_numpy(noise(3 * rate + 17)[:, 0])
    sizes = [1, rate // 7, 5, rate, rate // 3, 2]
    pieces = list(audio.split([*sizes, len(audio) - sum(sizes)]))
    together = torch.cat(list(resample_pieces(iter(pieces), rate)))
    whole = decode.resample(audio, rate)
    assert together.shape == whole.shape
    torch.testing.assert_close(together, whole, atol=1e-6, rtol=0)


def test_less_than_a_period_is_resampled_too():
    audio = torch.from_numpy(noise(300)[:, 0])  # 441 samples make a period at 44.1 kHz
    together = torch.cat(list(resample_pieces(iter([audio]), 44_100)))
    torch.testing.assert_close(together, decode.resample(audio, 44_100), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "opus", "aiff"])
def test_a_file_in_pieces_is_what_decoding_it_whole_gives(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(audio_files, "PIECE_S", 0.7)
    rate, options = (48_000, {"format": "OGG", "subtype": "OPUS"}) if ending == "opus" else (44_100, {})
    path = write(tmp_path / f"x.{ending}", noise(2 * rate + 12_345, channels=2), rate, **options)
    pieces = list(stream(path))
    assert len(pieces) >= 3
    torch.testing.assert_close(torch.cat(pieces), decode.audio(path.read_bytes()), atol=1e-5, rtol=0)


def test_broken_files_are_told_apart(tmp_path):
    def reason(path: Path) -> str:
        with pytest.raises(decode.BadSample) as told:
            list(stream(path))
        return str(told.value)

    (tmp_path / "empty.wav").touch()
    assert "not readable audio" in reason(tmp_path / "empty.wav")
    assert reason(write(tmp_path / "none.wav", noise(0))) == "no audio samples"
    assert "sampled at 500 Hz, which is not in 1000..400000" in reason(write(tmp_path / "slow.wav", noise(99), 500))
    holed = np.full((16_000, 1), np.nan, "float32")
    assert "a peak of nan" in reason(write(tmp_path / "holed.wav", holed, subtype="FLOAT"))
    cut = write(tmp_path / "cut.flac", noise(160_000))
    cut.write_bytes(cut.read_bytes()[:100_000])
    assert "not readable audio" in reason(cut) or "cut off" in reason(cut)


# -- chunks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 49, 50, 51, 60, 61, 100, 101, 149, 150, 237])
def test_kept_frames_are_those_of_the_whole_each_once(frames):
    audio = torch.arange(320 * frames + 80 + 319, dtype=torch.float32)  # as many samples as give no frame more
    chunks = list(CUT("ramp", audio))
    kept = []
    for chunk in chunks:
        first, place = int(chunk.audio[0]) // 320, chunk.place
        assert chunk.audio[0] % 320 == 0
        assert torch.equal(chunk.audio, audio[first * 320 : first * 320 + len(chunk.audio)])
        assert place.name == "ramp"
        assert place.frames == frames
        assert place.seconds == len(audio) / 16_000
        assert place.skip in (0, 10)
        assert first + place.skip + place.keep <= first + CUT.frames(len(chunk.audio)) <= frames
        kept += list(range(first + place.skip, first + place.skip + place.keep))
        behind = first + CUT.frames(len(chunk.audio)) - kept[-1] - 1  # frames of the right margin
        assert behind == min(10, frames - kept[-1] - 1)
        assert chunk.summary[0].tolist() == [len(audio), 1]
    assert kept == list(range(frames))
    assert [chunk.place.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_what_fits_into_a_chunk_is_left_as_it_is():
    audio = torch.arange(320.0 * 50 + 80 + 319)
    (chunk,) = CUT("short", audio)
    assert torch.equal(chunk.audio, audio)
    assert (chunk.place.skip, chunk.place.keep) == (0, 50)


def test_a_long_file_is_cut_as_its_waveform_is(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_files, "PIECE_S", 0.3)
    path = write(tmp_path / "x.flac", noise(44_100 * 4), 44_100)
    ours, theirs = list(CUT("x", path)), list(CUT("x", decode.audio(path.read_bytes())))
    assert len(ours) == 4
    for one, two in zip(ours, theirs, strict=True):
        assert one.place == two.place
        torch.testing.assert_close(one.audio, two.audio, atol=1e-5, rtol=0)
    assert ours[0].summary[0][0] == theirs[0].summary[0][0]


def test_what_is_shorter_than_a_frame_is_refused():
    with pytest.raises(decode.BadSample, match=r"0.0249 s is too short; one frame needs 0.025 s"):
        list(CUT("short", torch.zeros(399)))


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_keep_the_order_stay_below_their_seconds_and_name_what_is_broken(tmp_path):
    sources = [
        ("a", torch.ones(40_000)),
        ("no", tmp_path / "absent.wav"),
        ("b", torch.ones(9_000)),
        ("c", torch.ones(9)),
    ]
    found = list(batches(sources, CUT, batch_seconds=2.0))
    assert [[place.name for place in batch["places"]] for batch in found] == [["a"], ["a"], ["a", "b"]]
    for batch in found:
        assert batch["audio"].numel() <= 2 * 16_000
        assert batch["audio"].shape == (len(batch["places"]), int(batch["lengths"].max()))
        for row, length in zip(batch["audio"], batch["lengths"], strict=True):
            assert row.sum() == length
        assert batch["summary"][0].shape == (len(batch["places"]), 2)
    broken = [name for batch in found for name, _ in batch["__broken__"]]
    assert broken == ["no", "c"]


def test_one_broken_file_makes_a_batch_of_its_own():
    assert list(batches([("c", torch.ones(9))], CUT, 2.0)) == [
        {"places": [], "__broken__": [("c", "0.0006 s is too short; one frame needs 0.025 s")]}
    ]


def test_data_workers_share_the_files():
    sources: list[Any] = [(str(i), torch.ones(4_000 + i)) for i in range(7)]
    loader = torch.utils.data.DataLoader(FileStream(sources, CUT, 0.6), batch_size=None, num_workers=2)
    names = [place.name for batch in loader for place in batch["places"]]
    assert sorted(names) == [str(i) for i in range(7)]
    assert [name for name in names if int(name) % 2] == ["1", "3", "5"]


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_through_and_the_largest_come_first(tmp_path):
    write(tmp_path / "small.wav", noise(100))
    write(tmp_path / "deep" / "er" / "large.v2.WAV", noise(5_000))
    write(tmp_path / "both.flac", noise(900))
    write(tmp_path / "both.wav", noise(900))
    write(tmp_path / ".hidden.wav", noise(10))
    write(tmp_path / ".cache" / "x.wav", noise(10))
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "folder.wav").mkdir()
    found = find_audio(tmp_path)
    assert next(iter(found)) == "deep/er/large.v2.WAV"
    assert found == {
        "deep/er/large.v2.WAV": "deep/er/large.v2",
        "small.wav": "small",
        "both.flac": "both.flac",
        "both.wav": "both.wav",
    }


def test_a_folder_without_audio_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder=.*/nowhere is not a folder; name one with audio files"):
        find_audio(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(ValueError, match=r"holds no audio file; known are .aiff, .flac, .mp3, .ogg, .opus, .wav"):
        find_audio(tmp_path)


def trainer(rank: int, world: int) -> Any:
    strategy = SimpleNamespace(broadcast=lambda found: found)
    return SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, lightning_module="a model")


def test_ranks_share_what_is_not_done_yet(tmp_path):
    for number in range(7):
        write(tmp_path / f"{number}.wav", noise(8_000 - 100 * number))
    seen = []
    for rank in range(2):
        data = AudioFiles(str(tmp_path), num_workers=0)
        data.trainer, data.chunking, data.finished = trainer(rank, 2), CUT, lambda name: name == "3.wav"
        data.setup("predict")
        seen.append([place.name for batch in data.predict_dataloader() for place in batch["places"]])
    assert seen == [["0.wav", "2.wav", "5.wav"], ["1.wav", "4.wav", "6.wav"]]


def test_a_model_must_say_how_it_wants_files_cut(tmp_path):
    data = AudioFiles(str(tmp_path))
    data.trainer = trainer(0, 1)
    with pytest.raises(ValueError, match=r"str does not say how it wants audio files cut; .*hubert.inference"):
        data.predict_dataloader()


def test_broken_files_are_logged_and_kept(tmp_path, caplog):
    data = AudioFiles(str(tmp_path))
    batch = {"places": [], "__broken__": [("x.wav", "no audio samples")]}
    assert data.on_before_batch_transfer(batch, 0) == {"places": []}
    assert data.broken == {"x.wav": "no audio samples"}
    assert "broken file x.wav: no audio samples" in caplog.text
