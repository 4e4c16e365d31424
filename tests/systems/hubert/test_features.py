"""MFCC features against Kaldi's arithmetic as torchaudio has it."""

import math

import pytest
import torch
from torch import Tensor

from mmflow.systems.hubert.features import MFCC
from mmflow.systems.hubert.model import num_frames


def speech(samples: int, seed: int = 0) -> Tensor:
    """A vowel-like buzz with noise and a pause, (S,), so that frames differ in level and in spectrum."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    t = torch.arange(samples) / 16_000
    buzz = sum(torch.sin(2 * math.pi * 120 * k * (1 + 0.1 * t) * t) / k for k in range(1, 30))
    return 0.1 * buzz * (t * 7 % 1 > 0.3) + 0.01 * noise


def kaldi(audio: Tensor) -> Tensor:
    """(S,) -> (M, 39) at 100 Hz: torchaudio's MFCC and its five-tap differences."""
    torchaudio = pytest.importorskip("mmflow.torchaudio_cpu", exc_type=ImportError).torchaudio
    static = torchaudio.compliance.kaldi.mfcc(audio[None], dither=0.0).T[None]  # (1, 13, M)
    delta = torchaudio.functional.compute_deltas(static, win_length=5, mode="replicate")
    return torch.cat([static, delta, torchaudio.functional.compute_deltas(delta, win_length=5)], 1)[0].T


@pytest.mark.parametrize("samples", [400, 560, 719, 720, 3333, 16_000])
def test_features_are_every_second_frame_of_kaldis(samples):
    audio = speech(samples)
    features, frames = MFCC()(audio[None])
    assert features.shape == (1, num_frames(samples), 39)
    assert frames.tolist() == [num_frames(samples)]
    assert (features[0] - kaldi(audio)[::2]).abs().max() < 1e-3
    assert features[..., :13].abs().mean() > 1


def test_every_length_gives_exactly_as_many_frames_as_the_model():
    for samples in range(400, 4000):
        at_100_hz = range((samples - 400) // 160 + 1)
        assert list(at_100_hz[::2]) == [2 * t for t in range(num_frames(samples))]
    mfcc = MFCC()
    for samples in range(400, 4000, 7):
        assert mfcc(torch.zeros(1, samples))[0].shape[1] == num_frames(samples)


def test_a_frame_sees_the_400_samples_that_the_models_frame_sees():
    audio, mfcc = speech(8000), MFCC()
    spoilt = audio.clone()
    spoilt[320 * 7 : 320 * 7 + 400] += 0.1
    spoilt[: 320 * 7] *= -1  # the power spectrum does not see a sign
    static, other = mfcc(audio[None])[0][0, :, :13], mfcc(spoilt[None])[0][0, :, :13]
    assert torch.allclose(static[9:], other[9:])
    assert torch.allclose(static[7], other[7], atol=1e-3)  # nor, within one frame, a constant
    assert not torch.allclose(static[8], other[8], atol=1e-1)


def test_features_do_not_depend_on_padding_or_neighbours():
    rows, mfcc = [speech(9000, 1), speech(4321, 2), speech(400, 3)], MFCC()
    batch = torch.full((3, 9000), 0.5)  # a padding that would be heard
    for row, audio in enumerate(rows):
        batch[row, : len(audio)] = audio
    features, frames = mfcc(batch, torch.tensor([len(audio) for audio in rows]))
    for row, audio in enumerate(rows):
        alone, count = mfcc(audio[None])
        assert frames[row] == count[0]
        assert torch.allclose(features[row, : count[0]], alone[0], atol=1e-4)
        assert features[row, count[0] :].abs().sum() == 0


def test_the_level_moves_only_the_first_coefficient():
    audio, mfcc = speech(8000), MFCC()
    shift = mfcc(8 * audio[None])[0] - mfcc(audio[None])[0]
    assert torch.allclose(shift[..., 0], torch.tensor(math.sqrt(23) * math.log(64)), atol=1e-3)
    assert shift[..., 1:].abs().max() < 1e-3


def test_silence_has_the_floor_as_its_level_and_nothing_else():
    features = MFCC()(torch.zeros(1, 4000))[0]
    assert torch.allclose(features[..., 0], torch.tensor(math.sqrt(23) * math.log(2**-23)), atol=1e-4)
    assert features[..., 1:].abs().max() < 1e-4


def test_autocast_does_not_round_the_features():
    audio, mfcc = speech(8000)[None], MFCC()
    with torch.autocast("cpu", torch.bfloat16):
        features = mfcc(audio)[0]
    assert features.dtype == torch.float32
    assert torch.equal(features, mfcc(audio)[0])


def test_a_checkpoint_holds_nothing_of_the_features():
    mfcc = MFCC()
    assert mfcc.state_dict() == {}
    assert mfcc.dim == 39
    assert mfcc.fingerprint == "mfcc39-kaldi-50hz-1"


def test_an_utterance_without_a_frame_is_refused_by_its_length():
    with pytest.raises(ValueError, match="an utterance of 399 samples is shorter than the 400"):
        MFCC()(torch.zeros(1, 399))
