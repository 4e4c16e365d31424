import contextlib
import io
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmflow.data import decode
from mmflow.data.decode import BadSample, audio, audio_size, resample, resampled_length
from mmflow.data.pictures import Picture
from tests.shards import cut_flac, encoded, noise


def sine(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * math.pi * hz * np.arange(round(seconds * rate)) / rate)


def test_16_khz_mono_is_not_changed():
    samples = noise(0.1)
    assert torch.equal(audio(encoded(samples)), torch.from_numpy(samples / 32768).float())


@pytest.mark.parametrize("kind", ["flac", "wav", "ogg", "aiff"])
def test_formats_give_the_same_waveform(kind):
    decoded = audio(encoded(sine(16_000), kind))
    assert decoded.shape == (8000,)
    assert decoded.dtype == torch.float32
    assert (decoded - torch.from_numpy(sine(16_000)).float()).square().mean().sqrt() < 0.01


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_all_widths_of_numbers_are_read_at_the_same_scale(subtype):
    decoded = audio(encoded(sine(16_000), "wav", subtype=subtype))
    assert decoded.abs().max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_become_16_khz_with_the_same_pitch(rate):
    decoded = audio(encoded(sine(rate), "wav", rate=rate)).numpy()
    assert len(decoded) == 8000
    middle = slice(1000, 7000)
    assert np.abs(decoded[middle] - sine(16_000)[middle]).max() < 0.01


def test_channels_are_averaged():
    left, right = sine(16_000), np.full(8000, 0.25)
    decoded = audio(encoded(np.stack([left, right], axis=1), "wav", subtype="FLOAT")).numpy()
    assert np.abs(decoded - (left + right) / 2).max() < 1e-6


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([8000, 11_025, 22_050, 44_100, 44_101, 48_000]), st.integers(1, 400_000))
def test_the_length_after_resampling_is_known_beforehand(rate, frames):
    assert len(resample(torch.zeros(frames), rate)) == resampled_length(frames, rate)
    assert resampled_length(np.array([frames]), rate).tolist() == [resampled_length(frames, rate)]
    assert abs(resampled_length(frames, rate) - frames * 16_000 / rate) < 1 + 3e-5 * frames


def test_the_length_is_exact_where_single_precision_would_lose_a_sample():
    assert resampled_length(180_697, 44_100) == 65_560  # 65559.0023 rounded up
    assert len(resample(torch.zeros(180_697), 44_100)) == 65_560


@pytest.mark.parametrize("rate", [44_101, 22_254, 399_999])
def test_a_filter_for_an_odd_rate_stays_small(rate):
    ratio = decode.resampling_ratio(rate)
    assert ratio.denominator <= 1000
    assert float(ratio) * rate / 16_000 == pytest.approx(1, abs=3e-5)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not readable audio: Format not recognised"),
        (b"<html>404</html>", "not readable audio: Format not recognised"),
        (cut_flac(0.5), "not readable audio: .*lost sync"),
        (encoded(np.zeros(0), "wav"), "no audio samples"),
        (encoded(np.array([0.0, np.nan]), "wav", subtype="FLOAT"), "a peak of nan"),
        (encoded(np.array([0.0, -np.inf]), "wav", subtype="FLOAT"), "a peak of inf"),
        (encoded(np.array([[3e38, 3e38]]), "wav", subtype="FLOAT"), "a peak of .*, where full scale is 1"),
        (encoded(np.zeros(10), "wav", rate=3), "sampled at 3 Hz, which is not in 1000..400000"),
        (encoded(np.zeros(10), "wav", rate=2**31 - 1), "sampled at 2147483647 Hz, which is not in 1000..400000"),
    ],
    ids=["empty", "html", "cut", "no samples", "nan", "inf", "overflow", "3 Hz", "2 GHz"],
)
def test_audio_that_cannot_be_used_is_a_bad_sample(data, reason):
    with pytest.raises(BadSample, match=reason):
        audio(data)


def test_no_object_in_memory_is_named_in_a_reason():
    with pytest.raises(BadSample, match=r"^not readable audio: Format not recognised\.$"):
        audio(b"junk")


def test_size_of_audio_is_bounded_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(decode, "MAX_AUDIO_SECONDS", 1.0)
    with pytest.raises(BadSample, match="2 s of audio with 1 channels at 16000 Hz, more than 1 s"):
        audio(encoded(np.zeros(32_000)))
    monkeypatch.setattr(decode, "MAX_AUDIO_VALUES", 20_000)
    with pytest.raises(BadSample, match="1 s of audio with 2 channels at 16000 Hz, more than 1 s or 20000 values"):
        audio(encoded(np.zeros((12_000, 2))))


def test_the_header_alone_tells_samples_and_rate_and_what_is_wrong():
    assert audio_size(io.BytesIO(encoded(noise(0.5, rate=8000), "wav", rate=8000))) == (4000, 8000)
    assert audio_size(io.BytesIO(cut_flac(0.5))) == (8000, 16_000)
    with pytest.raises(BadSample, match="no audio samples"):
        audio_size(io.BytesIO(encoded(np.zeros(0), "wav")))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["flac", "wav", "ogg"]))
def test_damaged_audio_is_decoded_to_finite_numbers_or_is_a_bad_sample(data, kind):
    whole = bytearray(encoded(noise(0.05), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    part = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        decoded = audio(part)
    except BadSample:
        return
    assert decoded.isfinite().all()
    assert len(decoded) == resampled_length(*audio_size(io.BytesIO(part)))


def test_text_loses_byte_order_mark_and_outer_white_space():
    assert decode.text("﻿ Grüße\r\n".encode()) == "Grüße"
    with pytest.raises(BadSample, match="text is not UTF-8"):
        decode.text("Grüße".encode("latin-1"))


def test_json_is_parsed_or_a_bad_sample():
    assert decode.parsed_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for wrong in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(BadSample, match="not JSON"):
            decode.parsed_json(wrong)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [np.arange(7, dtype=np.uint16), np.float32(3), np.zeros((0, 4)), np.asfortranarray(np.arange(6.0).reshape(2, 3))],
)
def test_plain_arrays_are_read_as_numpy_reads_them(array):
    decoded = decode.array(npy(array))
    np.testing.assert_array_equal(decoded, array)
    assert decoded.dtype == array.dtype
    assert decoded.flags.writeable


class Trap:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_nothing_is_unpickled():
    with pytest.raises(BadSample, match="it holds Python objects, which are never unpickled"):
        decode.array(npy(np.array([Trap()], dtype=object), allow_pickle=True))


def test_an_array_is_not_larger_than_its_bytes():
    huge = npy(np.zeros(9, np.uint8)).replace(b"(9,)", b"(9" + b"0" * 15 + b",)").replace(b" " * 15 + b"\n", b"\n")
    with pytest.raises(BadSample, match=r"9 bytes for shape \(9000000000000000,\) of uint8"):
        decode.array(huge)
    zipped = io.BytesIO()
    np.savez(zipped, a=np.zeros(3))
    with pytest.raises(BadSample, match="not a plain npy array"):
        decode.array(zipped.getvalue())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_arrays_are_read_or_bad_samples(data):
    whole = bytearray(npy(np.arange(10, dtype=np.uint16)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadSample):
        decode.array(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def test_only_listed_extensions_are_decoded():
    assert decode.decode(b"hello", "txt") == "hello"
    assert decode.decode(npy(np.arange(3)), "units.npy").tolist() == [0, 1, 2]
    assert decode.decode(json.dumps([1]).encode(), "info.json") == [1]
    for extension in ("pyd", "pickle", "pth", "m4a"):
        assert decode.kind_of(extension) not in decode.DECODERS


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "0.jpg", "left.png"])
def test_pictures_are_opened_whatever_their_extension_says(extension):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(file, "PNG")
    picture = decode.decode(file.getvalue(), extension)
    assert isinstance(picture, Picture)
    assert picture.tensor().tolist() == [[[value] * 3] * 2 for value in (1, 2, 3)]
    with pytest.raises(BadSample, match="not a JPEG, PNG or WebP picture"):
        decode.decode(b"junk", extension)


@pytest.mark.parametrize("extension", ["mp4", "webm", "mkv", "mpg", "avi", "mov", "ts", "ogv", "1.mp4"])
def test_videos_are_given_to_the_module_for_videos(monkeypatch, extension):
    monkeypatch.setitem(sys.modules, "mmflow.data.video", SimpleNamespace(Video=lambda data: ("video", data)))
    assert decode.decode(b"film", extension) == ("video", b"film")


def test_video_libraries_are_not_loaded_before_a_video_is_decoded():
    program = "import sys, mmflow.data.decode; print({'av', 'decord'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout == "set()\n"


def test_bytes_come_back_as_they_are_in_memory_of_their_own():
    values = decode.decode(bytes(range(256)), "bin")
    assert values.dtype == np.uint8
    assert values.tolist() == list(range(256))
    torch.from_numpy(values)[0] = 1
    assert decode.decode(b"", "bin").shape == (0,)
