"""Small audio files for synthetic copies of the original layouts."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def audio_bytes() -> Callable[[str], bytes]:
    """The bytes of 0.1 s of a tone in a format such as "WAV", "FLAC", "OGG", "MP3" or "AIFF"."""

    def encoded(kind: str) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, np.sin(np.arange(1600) * 0.1), 16_000, format=kind)
        return buffer.getvalue()

    return encoded


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    """Write a file below the test's folder, making its parents."""

    def write(name: str, content: bytes | str = b"audio") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
