import io
import pickle
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from mmflow.data import video
from mmflow.data.decode import BadSample
from mmflow.data.video import Video, video_size

HEIGHT, WIDTH = 48, 128
BITS = 8  # a picture shows its number as that many dark or bright bars, lowest bit left


def bars(number: int) -> np.ndarray:
    """(48, 128, 3) uint8."""
    row = np.repeat([255 * (number >> bit & 1) for bit in range(BITS)], WIDTH // BITS)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).astype(np.uint8)


def numbers(clip: Tensor) -> list[int]:
    """The numbers that the pictures of a clip (T, 3, H, W) show."""
    bright = clip.float().mean((1, 2)).unflatten(1, (BITS, -1)).mean(2) > 128  # (T, BITS)
    return (bright * 2 ** torch.arange(BITS)).sum(1).tolist()


def burst(first: float, last: float, seconds: float, rate: int) -> np.ndarray:
    """A tone of 1 kHz between two times, silence elsewhere: float32 (S,)."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 1000 * time) * ((time >= first) & (time < last))).astype(np.float32)


def movie(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    pts: list[int] | None = None,
    rate: int = 30,
    options: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    sound_rate: int = 48_000,
    sound_starts: float = 0.0,
    prepare: Callable = lambda stream: None,
) -> bytes:
    """A file whose picture i shows the number i at `pts[i]` / rate s, with mono sound."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        pictures = output.add_stream(codec, rate=rate, options=options or {})
        pictures.width, pictures.height = WIDTH, HEIGHT
        pictures.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        prepare(pictures)
        packets = []
        if sound is not None:
            voice = output.add_stream(sound_codec, rate=sound_rate, layout="mono")
            size = voice.codec_context.frame_size or 1024
            for at in range(0, len(sound), size):
                kind = voice.codec_context.format.name.removesuffix("p")
                piece = sound[None, at : at + size]
                whole_numbers = {"s16": np.int16, "s32": np.int32}.get(kind)
                if whole_numbers:
                    piece = (piece * np.iinfo(whole_numbers).max).astype(whole_numbers)
                frame = av.AudioFrame.from_ndarray(piece, voice.codec_context.format.name, "mono")
                frame.sample_rate, frame.time_base = sound_rate, Fraction(1, sound_rate)
                frame.pts = at + round(sound_starts * sound_rate)
                packets += voice.encode(frame)
            packets += voice.encode()
        for number, time in enumerate(range(60) if pts is None else pts):
            picture = av.VideoFrame.from_ndarray(bars(number), format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, rate)
            packets += pictures.encode(picture)
        packets += pictures.encode()
        output.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return file.getvalue()


def sequential(data: bytes) -> tuple[list[float], list[np.ndarray]]:
    """Times (s after the first) and upright pictures (H, W, 3) by decoding everything in order."""
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.best("video")
        frames = []
        for packet in file.demux(stream):
            if packet.size or packet.dts is None:  # Theora repeats a picture by a packet of no bytes
                frames += packet.decode()
        frames.sort(key=lambda frame: frame.pts)
        times = [float((frame.pts - frames[0].pts) * stream.time_base) for frame in frames]
        return times, [np.rot90(f.to_ndarray(format="rgb24", threads=1), round(f.rotation / 90)) for f in frames]


def agrees_with_sequential(data: bytes, clips: int = 8) -> None:
    """Clips at drawn places show what decoding everything in order shows at their times."""
    opened, draw = Video(data), random.Random(0)
    times, pictures = sequential(data)
    for _ in range(clips):
        start = draw.uniform(0, 0.9 * opened.seconds)
        rate = draw.choice([2, 8, 30])
        count = draw.choice([1, 4, 8])
        clip = opened.clip(start, count / rate, rate)
        assert clip.shape == (count, 3, opened.height, opened.width)
        for i, picture in enumerate(clip):
            time = start + i / rate
            if min(abs(time - other) for other in times) < 0.001:
                continue  # a boundary, where rounding decides
            expected = pictures[max(np.searchsorted(times, time) - 1, 0)]
            assert np.array_equal(picture.permute(1, 2, 0).numpy(), expected), (time, i)


ENCODINGS = {
    "h264 with pyramids of B pictures": ("libx264", "mp4", {"bf": "3", "g": "12"}),
    "h264 without B pictures": ("libx264", "matroska", {"bf": "0", "g": "250"}),
    "h264 in open groups": ("libx264", "mp4", {"bf": "3", "g": "12", "x264-params": "open-gop=1:scenecut=0"}),
    "h264 in a transport stream": ("libx264", "mpegts", {"bf": "2", "g": "15"}),
    "h264 refreshed without key pictures": ("libx264", "mp4", {"x264-params": "intra-refresh=1:keyint=12"}),
    "h265 in open groups": ("libx265", "mp4", {"x265-params": "open-gop=1:keyint=12:log-level=none:pools=1"}),
    "vp9": ("libvpx-vp9", "webm", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    "vp8 with packets that show nothing": ("libvpx", "webm", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "mpeg-4 in avi": ("mpeg4", "avi", {"g": "12", "q:v": "4"}),
    "mpeg-4 with B pictures, which avi gives no times": ("mpeg4", "avi", {"g": "12", "bf": "2"}),
    "mpeg-1": ("mpeg1video", "mpeg", {"bf": "2", "g": "12"}),
    "mjpeg": ("mjpeg", "mov", {}),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_picture_shown_at_each_time_is_given(name):
    codec, container, options = ENCODINGS[name]
    if codec not in av.codec.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    data = movie(codec, container, options=options, prepare=lambda s: setattr(s, "bit_rate", 1_000_000))
    opened = Video(data)
    assert (opened.width, opened.height, opened.has_audio) == (WIDTH, HEIGHT, False)
    assert opened.rate == pytest.approx(30, abs=0.5)
    if container != "mpeg":  # has no header with a length, and FFmpeg's estimate needs a longer file
        assert opened.seconds == pytest.approx(2, abs=0.1)
    assert numbers(opened.clip(0, 2, 30)) == list(range(60))
    assert numbers(opened.clip(0, 2, 4)) == [0, 7, 15, 22, 30, 37, 45, 52]
    for start in (59, 13, 12, 11, 0, 31):  # back and forth in one opened file
        assert numbers(opened.clip(start / 30, 0.1, 30)) == [min(start + i, 59) for i in range(3)]
    assert numbers(opened.clip(1.9, 0.5, 10)) == [57, 59, 59, 59, 59]  # the last is held


def test_variable_frame_rate_goes_by_time_stamps():
    opened = Video(movie(pts=[0, 1, 2, 30, 45, 46, 90]))
    assert numbers(opened.clip(0, 3.5, 10)) == [0, *[2] * 9, *[3] * 5, 4, *[5] * 14, *[6] * 5]


def test_time_0_is_the_first_picture_wherever_the_clock_begins():
    for container in ("mpegts", "matroska"):
        assert numbers(Video(movie(container=container, pts=list(range(300, 330)))).clip(0, 1, 30)) == list(range(30))


def test_milliseconds_of_matroska_are_not_a_picture_late():
    opened = Video(movie(container="matroska"))  # picture 2 is at 67 ms there, later than 2 / 30 s
    assert [numbers(opened.clip(i / 30, 1 / 30, 30)) for i in range(60)] == [[i] for i in range(60)]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pictures_are_turned_upright(degrees):
    opened = Video(movie(prepare=lambda stream: stream.set_display_rotation(degrees)))
    upright = np.rot90(bars(5), degrees // 90)
    clip = opened.clip(5 / 30, 1 / 30, 30)
    assert (opened.height, opened.width) == upright.shape[:2]
    assert opened.aspect == upright.shape[1] / upright.shape[0]
    assert np.abs(clip[0].permute(1, 2, 0).numpy().astype(int) - upright).mean() < 12
    assert opened.clip(0, 0.1, 30, size=(20, 30)).shape == (3, 3, 20, 30)


def test_pictures_are_scaled_to_the_asked_size():
    opened = Video(movie())
    clip = opened.clip(0, 1, 10, size=(24, 64))
    assert clip.shape == (10, 3, 24, 64)
    assert clip.dtype == torch.uint8
    assert numbers(clip) == list(range(0, 30, 3))
    full = opened.clip(0, 1, 10).float()
    halved = torch.nn.functional.interpolate(full, scale_factor=0.5, mode="bilinear", antialias=True)
    assert (clip.float() - halved).abs().mean() < 3


def test_colours_keep_their_order():
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 0] = 255
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        output.mux(stream.encode())
    opened = Video(file.getvalue())
    for size in (None, (30, 40)):
        mean = opened.clip(0, 0.1, 10, size).float().mean((0, 2, 3))
        assert torch.allclose(mean, torch.tensor([255.0, 0, 0]), atol=6), size


@pytest.mark.parametrize(
    ("codec", "container", "sound_codec", "rate"),
    [
        ("libx264", "mp4", "aac", 48_000),
        ("libx264", "mp4", "aac", 44_100),
        ("libx264", "matroska", "flac", 16_000),
        ("libx264", "mpegts", "mp2", 44_100),
        ("libvpx", "webm", "libopus", 48_000),
    ],
)
def test_sound_is_where_it_was_put(codec, container, sound_codec, rate):
    wave = burst(0.8, 1.2, 2.0, rate)
    data = movie(codec, container, sound=wave, sound_codec=sound_codec, sound_rate=rate)
    opened = Video(data)
    assert opened.has_audio
    heard = opened.sound(0, 2)
    assert heard.shape == (32_000,)
    assert heard.dtype == torch.float32
    expected = torch.from_numpy(burst(0.8, 1.2, 2.0, 16_000))
    lags = [torch.dot(heard[100 + lag : 31_900 + lag], expected[100:31_900]).item() for lag in range(-40, 41)]
    assert abs(int(np.argmax(lags)) - 40) <= (8 if container == "webm" else 1)  # WebM rounds its start to 1 ms
    assert max(lags) > 0.95 * expected.square().sum()


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("mp4", "aac", 44_100), ("mp4", "aac", 8_000), ("matroska", "aac", 48_000), ("mpegts", "mp2", 44_100)],
)
def test_cuts_of_the_sound_agree_with_the_whole(container, codec, rate):
    time = np.arange(3 * rate) / rate
    sweep = (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)
    opened = Video(movie(container=container, sound=sweep, sound_codec=codec, sound_rate=rate))
    whole = opened.sound(0, 3)
    for start in (0.25, 1.0, 1.7, 2.5):
        cut = opened.sound(start, 0.4)
        assert cut.shape == (6400,)
        assert (cut - whole[round(start * 16_000) :][:6400]).abs().max() < 0.003, start  # AAC draws some noise anew


def test_sound_that_starts_late_and_ends_early_has_silence_around_it():
    tone = burst(0, 0.5, 0.5, 48_000)
    data = movie(container="matroska", sound=tone, sound_starts=0.7, sound_codec="flac")
    heard = Video(data).sound(0, 2)
    assert heard.shape == (32_000,)
    assert heard[:11_180].abs().max() < 1e-3
    assert heard[11_250:19_150].square().mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=0.01)
    assert heard[19_250:].abs().max() < 1e-3
    assert Video(data).sound(1.5, 0.25).abs().max() < 1e-6


def test_size_is_told_by_the_header():
    assert video_size(io.BytesIO(movie())) == (60, 30.0, 2.0)
    count, rate, seconds = video_size(io.BytesIO(movie("libvpx", "webm")))
    assert (count, rate) == (60, 30.0)
    assert seconds == pytest.approx(2, abs=0.04)


def test_a_video_can_be_pickled():
    opened = Video(movie())
    assert torch.equal(pickle.loads(pickle.dumps(opened)).clip(1, 0.5, 8), opened.clip(1, 0.5, 8))


def test_nothing_else_is_opened(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(movie())
    for text in (
        f"#EXTM3U\n#EXTINF:2,\n{tmp_path}/secret.mp4\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
    ):
        with pytest.raises(BadSample, match="not readable video"):
            Video(text.encode())


def only_sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        voice = output.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48_000
        output.mux([*voice.encode(frame), *voice.encode()])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a video of 0 bytes"),
        (b"<html>404</html>", "not readable video"),
        (bytes(5000), "not readable video"),
        (only_sound(), "no video stream"),
    ],
)
def test_what_is_no_video_is_a_bad_sample(data, reason):
    with pytest.raises(BadSample, match=reason):
        Video(data)


@pytest.mark.parametrize(
    ("bound", "value", "reason"),
    [
        ("MAX_PIXELS", 6143, "pictures of 6144 pixels, which is not in 1..6143"),
        ("MAX_VIDEO_SECONDS", 1.9, "a video of 2.0 s"),
        ("MAX_MEMBER_BYTES", 100, "which is not in 1..100"),
        ("MAX_RATE", 29.0, "30.0 pictures/s"),
    ],
)
def test_bounds_are_checked_before_decoding(monkeypatch, bound, value, reason):
    monkeypatch.setattr(video, bound, value)
    with pytest.raises(BadSample, match=reason):
        Video(movie())


def test_a_clip_beyond_its_bound_and_sound_that_is_not_there_are_bad_samples():
    opened = Video(movie())
    with pytest.raises(BadSample, match="ask for fewer or smaller pictures"):
        opened.clip(0, 1000, 1000)
    with pytest.raises(BadSample, match="without sound"):
        opened.sound(0, 1)
    with pytest.raises(ValueError, match="at least one picture"):
        opened.clip(0, 0.01, 1)
    with pytest.raises(ValueError, match="start of at least 0"):
        opened.clip(-1, 1, 1)


def test_sound_of_an_unknown_codec_leaves_the_pictures():
    data = movie("libvpx", "webm", sound=burst(0, 1, 1, 48_000), sound_codec="libopus", pts=list(range(30)))
    assert Video(data).has_audio
    opened = Video(data.replace(b"A_OPUS", b"A_NONE"))
    assert not opened.has_audio
    assert numbers(opened.clip(0, 1, 3)) == [0, 10, 20]


def test_a_file_cut_off_gives_what_is_before_the_cut():
    data = movie("libvpx", "webm", options={"g": "12"})
    cut = Video(data[: round(0.7 * len(data))])
    assert numbers(cut.clip(0, 0.5, 30)) == list(range(15))
    with pytest.raises(BadSample, match=r"cut off after 1\.\d\d s of 2\.0"):
        cut.clip(0, 2, 30)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_damaged_files_raise_nothing_but_bad_sample(container):
    draw = random.Random(0)
    codec, sound_codec = ("mpeg4", "mp2") if container == "avi" else ("libx264", "mp2")
    whole = movie(codec, container, sound=burst(0, 1, 1, 48_000), sound_codec=sound_codec, pts=list(range(30)))
    read = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 10, 100])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            opened = Video(bytes(data[: draw.choice([None, draw.randrange(len(data))])]))
            opened.clip(draw.random(), 0.5, 8)
            opened.sound(draw.random(), 0.5)
            read += 1
        except BadSample:
            pass
    assert 0 < read < 60


@pytest.mark.slow
def test_memory_does_not_grow_over_2000_opens():
    data = movie(sound=burst(0, 1, 2.0, 48_000), sound_rate=48_000)

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    for i in range(2200):
        opened = Video(data)
        opened.clip(1, 0.1, 20)
        opened.sound(1, 0.1)
        if i == 200:
            before = resident()
    assert resident() - before < 8  # MiB; a leak of one picture in each would be 35


def test_real_videos_agree_with_decoding_everything_in_order(real_data):
    for path in sorted((real_data / "video_codecs").iterdir()):
        if path.suffix in (".md", ".csv") or path.name == "sync_test.mp4":
            continue
        agrees_with_sequential(path.read_bytes(), clips=2)


def test_picture_and_beep_of_the_synchrony_test_coincide(real_data):
    opened = Video((real_data / "video_codecs" / "sync_test.mp4").read_bytes())
    heard = opened.sound(10, 3).abs()
    onsets = [int((heard[i * 16_000 : (i + 1) * 16_000] > 0.05).float().argmax()) / 16_000 for i in range(3)]
    assert max(onsets) - min(onsets) < 0.002  # once a second, at the same place in it
    assert opened.clip(60, 3, 10).shape == (30, 3, 108, 192)


def test_grid_clips_have_75_pictures_and_3_s_of_sound(real_data):
    for path in sorted((real_data / "grid_av" / "video").iterdir()):
        opened = Video(path.read_bytes())
        assert (opened.width, opened.height, opened.rate) == (360, 288, 25.0)
        assert opened.clip(0, 3, 25, (36, 45)).shape == (75, 3, 36, 45)
        assert opened.sound(1, 1).square().mean().sqrt() > 0.01
    agrees_with_sequential(path.read_bytes(), clips=3)
