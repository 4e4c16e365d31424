"""What an encoder promises, so that systems can take any encoder as a constructor argument.

B batch, S waveform samples, F frames, H and W pixels, N tokens, D width.
"""

from typing import Protocol

from torch import Tensor


class AudioEncoding(Protocol):
    """What an audio encoder returns, whatever it was asked."""

    @property
    def last(self) -> Tensor:
        """The encoder's result (B, F, D); frames past a row's own length hold anything finite."""

    @property
    def layers(self) -> dict[str, Tensor]:
        """Inner results by name, each (B, F, D_layer)."""

    @property
    def frame_lengths(self) -> Tensor:
        """Valid frames per row (B,), int64."""


class AudioEncoder(Protocol):
    """Waveforms to frames: audio (B, S) at 16 kHz, zero padded, and lengths (B,) in samples, None = nothing padded."""

    @property
    def dim(self) -> int:
        """Width D of `last`."""

    def __call__(self, audio: Tensor, lengths: Tensor | None = None) -> AudioEncoding: ...


class VisionEncoding(Protocol):
    """What a vision encoder returns, whatever it was asked."""

    @property
    def last(self) -> Tensor:
        """The encoder's result, all tokens (B, N, D): a class token, where there is one, and patches row by row."""

    @property
    def pooled(self) -> Tensor:
        """One vector per picture (B, D)."""

    @property
    def layers(self) -> dict[str, Tensor]:
        """Inner results by name, each (B, N_layer, D_layer)."""


class VisionEncoder(Protocol):
    """Pictures to tokens: images (B, 3, H, W), float in [0, 1]. Whatever the weights want them scaled to, they do."""

    @property
    def dim(self) -> int:
        """Width D of `last` and `pooled`."""

    def __call__(self, images: Tensor) -> VisionEncoding: ...
