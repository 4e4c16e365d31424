"""MFCC features, on which the units of the first HuBERT iteration are clustered (arXiv:2106.07447, section 3.1).

B batch, S samples, M MFCC frames (100 Hz), T HuBERT frames (50 Hz).
"""

import math

import torch
from torch import Tensor, nn

from mmflow.nn.masking import valid_mask
from mmflow.systems.hubert.model import SAMPLE_RATE, check_lengths, num_frames, without_autocast

WINDOW = 400  # samples, 25 ms
STEP = 160  # samples, 10 ms
FFT = 512  # samples
NUM_MELS = 23
NUM_CEPSTRA = 13
LOWEST = 20.0  # Hz; the highest filter ends at the Nyquist frequency
PREEMPHASIS = 0.97
LIFTER = 22


class MFCC(nn.Module):
    """13 cepstra with their first and second differences, as Kaldi computes them without dither, every 20 ms.

    MFCC frames come at 100 Hz; differences are taken at that rate and then every second frame is kept: frame 2t spans
    exactly the 400 samples that HuBERT's frame t sees, so frames and model frames agree one to one.
    Coefficient 0 depends on the level of the recording (it is no energy, but moves with it); give every file as read.
    """

    dim = 3 * NUM_CEPSTRA

    def __init__(self) -> None:
        super().__init__()
        hann = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
        self.window: Tensor
        self.register_buffer("window", hann.pow(0.85).float(), persistent=False)  # Kaldi's "povey" window
        self.mels: Tensor
        self.register_buffer("mels", _mel_filters().float(), persistent=False)
        self.cepstra: Tensor
        self.register_buffer("cepstra", _cepstra().float(), persistent=False)

    @property
    def fingerprint(self) -> str:
        """Names what is computed; changes whenever the numbers would."""
        return "mfcc39-kaldi-50hz-1"

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """audio (B, S) in [-1, 1], lengths (B,) samples or None = nothing padded -> features (B, T, 39), frames (B,).

        A row's features do not depend on its padding or its neighbours; frames past its end are 0."""
        padded = check_lengths(audio, lengths)
        if padded is None:
            padded = torch.full((len(audio),), audio.shape[1], device=audio.device)
        with without_autocast(audio):
            static = self._cepstra_at_100_hz(audio.float())  # (B, M, 13)
        last = (padded - WINDOW) // STEP  # (B,) index of each row's last frame at 100 Hz
        delta = _differences(static, last)
        features = torch.cat([static, delta, _differences(delta, last)], -1)[:, ::2]  # (B, T, 39)
        frame_lengths = num_frames(padded)
        valid = valid_mask(frame_lengths, features.shape[1])
        return features.masked_fill(~valid[..., None], 0), frame_lengths

    def _cepstra_at_100_hz(self, audio: Tensor) -> Tensor:
        frames = audio.unfold(1, WINDOW, STEP)  # (B, M, 400)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], -1)  # the first sample is its own predecessor
        power = torch.fft.rfft((frames - PREEMPHASIS * before) * self.window, n=FFT).abs().square()  # (B, M, 257)
        energies = (power @ self.mels).clamp(min=torch.finfo(torch.float32).eps)  # (B, M, 23)
        return energies.log() @ self.cepstra


def _differences(x: Tensor, last: Tensor) -> Tensor:
    """Slope of x (B, M, C) over five frames by least squares; frames 0 and `last` (B,) are repeated past each end."""
    frame = torch.arange(x.shape[1], device=x.device)

    def at(offset: int) -> Tensor:
        index = torch.minimum((frame + offset).clamp(min=0), last[:, None])  # (B, M)
        return x.gather(1, index[..., None].expand_as(x))

    return (at(1) - at(-1) + 2 * (at(2) - at(-2))) / 10


def _mel_filters() -> Tensor:
    """(257, 23): triangles that are equally spaced and linear in mel; the Nyquist bin belongs to none."""
    width = (_mel(SAMPLE_RATE / 2) - _mel(LOWEST)) / (NUM_MELS + 1)
    edges = _mel(LOWEST) + width * torch.arange(NUM_MELS + 2, dtype=torch.float64)
    bins = torch.arange(FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT  # Hz
    mels = 1127 * torch.log1p(bins / 700)[:, None]  # (257, 1)
    rise = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


def _mel(hertz: float) -> float:
    return 1127 * math.log1p(hertz / 700)


def _cepstra() -> Tensor:
    """(23, 13): orthonormal DCT-II of the log energies, then Kaldi's lifter, which raises the high ones."""
    mel = torch.arange(NUM_MELS, dtype=torch.float64)[:, None]
    order = torch.arange(NUM_CEPSTRA, dtype=torch.float64)
    dct = math.sqrt(2 / NUM_MELS) * torch.cos(math.pi / NUM_MELS * (mel + 0.5) * order)
    dct[:, 0] = math.sqrt(1 / NUM_MELS)
    return dct * (1 + LIFTER / 2 * torch.sin(math.pi * order / LIFTER))
