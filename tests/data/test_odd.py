"""Every broken or unusual file of shared/data/odd has the outcome that is stated here; its README.md says what each is.

A file without an entry in the tables fails the first test.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mmflow.data.audio_files import stream
from mmflow.data.corpus import Corpus
from mmflow.data.decode import decode, kind_of
from mmflow.data.errors import BadSample
from mmflow.data.make import make
from mmflow.data.pictures import Picture
from mmflow.data.spec import DataSpec
from mmflow.data.writer import TarShard
from tests.data.test_video import agrees_with_sequential
from tests.shards import write_spec

SPECS = Path(__file__).parents[2] / "data_specs"

# file -> (width, height) of the upright picture, or why it is refused
IMAGES: dict[str, tuple[int, int] | str] = {
    "animated.gif": "not a JPEG, PNG or WebP picture: it begins with b'GIF89a",
    "bitflips.jpg": "not a readable JPEG picture: broken data stream",
    "cmyk.jpg": (170, 200),
    "empty.jpg": "not a JPEG, PNG or WebP picture: it begins with b''",
    "exif_orientation6.jpg": (200, 200),
    "grey16.png": (200, 200),
    "greyscale.jpg": (200, 193),
    "html_named.jpg": "not a JPEG, PNG or WebP picture: it begins with b'<",
    "one_pixel.png": (1, 1),
    "palette.png": (160, 157),
    "photo.webp": (158, 160),
    "png_named.jpg": (158, 160),
    "progressive_444.jpg": (158, 160),
    "rgb48.png": (160, 178),
    "rgba_gradient_alpha.png": (160, 157),
    "trailing_garbage.jpg": (200, 194),
    "truncated.jpg": "not a readable JPEG picture: image file is truncated",
    "very_wide_1024x4.jpg": (1024, 4),
}

# file -> (samples at 16 kHz, largest absolute value), or why it is refused
AUDIO: dict[str, tuple[int, float] | str] = {
    "adpcm_ima.wav": (44_902, 0.264),
    "all_silent.wav": (16_000, 0.0),
    "big_endian.aiff": (16_000, 0.185),
    "clipped_dc_offset.wav": (16_000, 1.0),
    "double64.wav": (8_000, 0.002),
    "empty.wav": "not readable audio: Format not recognised",
    "flac_named.wav": (32_720, 0.371),
    "float32.wav": (16_000, 0.185),
    "float32_nan.wav": "audio with a peak of nan, where full scale is 1",
    "float32_over_full_scale.wav": (16_000, 2.5),
    "mono.m4a": "not readable audio: Format not recognised",  # as a shard has it under another name; m4a is no field
    "mono.ogg": (42_960, 0.272),
    "mono.opus": (42_960, 0.241),
    "mono_96k.wav": (8_000, 0.002),
    "mono_vbr_no_xing.mp3": (18_521, 0.186),
    "mulaw_8k.wav": (42_960, 0.253),
    "no_samples.wav": "no audio samples",
    "odd_list_chunk.wav": (8_000, 0.002),
    "stereo_24bit.flac": (16_000, 0.096),
    "stereo_44k.mp3": (42_961, 0.157),
    "stereo_s24.wav": (16_000, 0.096),
    "streamed_size_ffffffff.wav": (8_000, 0.002),
    "surround51_48k.flac": (16_000, 0.031),
    "three_samples.wav": (3, 0.0),
    "truncated.flac": "not readable audio: Error : flac decoder lost sync",
    "truncated.wav": (25_767, 0.236),  # what is there: its header lies as that of a stream does
    "u8_mono_8k.wav": (42_960, 0.25),
}

# file -> (seconds, pictures/s, width, height, whether it has sound), or why it is refused
VIDEO: dict[str, tuple[float, float, int, int, bool] | str] = {
    "anamorphic_sar.mp4": (1.001, 29.97, 180, 180, False),
    "audio_only.mp4": "no video stream",
    "audio_shorter_than_video.mp4": (3.003, 29.97, 320, 180, True),
    "audio_starts_0.7s_late.mkv": (3.7, 29.97, 320, 180, True),
    "corrupted.mp4": (5.0, 10.0, 1280, 720, False),
    "empty.mp4": "a video of 0 bytes",
    "interlaced.ts": (0.968, 14.985, 320, 180, False),
    "long_gop.mp4": (6.006, 29.97, 240, 136, False),
    "no_audio.mp4": (3.003, 29.97, 320, 180, False),
    "odd_size_yuv444_161x91.mkv": (1.001, 29.97, 161, 91, False),
    "one_frame.mp4": (0.033, 29.97, 320, 180, False),
    "theora_empty_packets.ogv": (8.008, 29.97, 480, 270, True),
    "truncated_faststart.mp4": (3.003, 29.97, 320, 180, True),
    "truncated_no_moov.mp4": "not readable video",
    "variable_frame_rate.mp4": (3.604, 19.98, 320, 180, True),
}
DAMAGED = {  # videos that open -> what decoding all of one raises
    "corrupted.mp4": "not readable video: Invalid data",
    "truncated_faststart.mp4": "cut off|damaged",
}

# file -> number of characters as text, or why it is none; captions by photo as a table of Flickr8k, or why it is none
NO_UTF8, NO_TABLE = "text is not UTF-8", "its first line must be"
TEXT: dict[str, tuple[int | str, dict[str, int] | str]] = {
    "binary_named.txt": (NO_UTF8, "is not UTF-8 text"),
    "captions_bom_crlf.csv": (1002, {"1001773457_577c3a7d70": 5, "1002674143_1b742ab4b8": 5}),
    "captions_latin1.csv": (NO_UTF8, "is not UTF-8 text"),
    "captions_missing_and_duplicate.txt": (226, {"1001773457_577c3a7d70": 1}),
    "captions_quotes_newlines.csv": (
        256,
        {"1001773457_577c3a7d70": 1, "1002674143_1b742ab4b8": 1, "1009434119_febe49276a": 1},
    ),
    "captions_unquoted_commas.txt": (578, {"1001773457_577c3a7d70": 5}),
    "empty.txt": (0, NO_TABLE),
    "no_final_newline.trans.txt": (1072, NO_TABLE),
}
TABLES = {"images": IMAGES, "audio": AUDIO, "video": VIDEO, "text": TEXT}
PHOTOS = "1001773457_577c3a7d70 1002674143_1b742ab4b8 1003163366_44323f5815 1007320043_627395c3d8 1009434119_febe49276a"


def test_every_file_has_an_entry(real_data):
    folder = real_data / "odd"
    assert {path.name for path in folder.iterdir()} == {"README.md", *TABLES}
    for name, table in TABLES.items():
        assert {path.name for path in (folder / name).iterdir()} == set(table)


@pytest.fixture
def path(real_data, request) -> Path:
    """Of the file that is the parameter."""
    kind, name = request.param
    return real_data / "odd" / kind / name


def each(kind: str):
    """Runs a test for each file of one kind."""
    return pytest.mark.parametrize(
        "path", [(kind, name) for name in TABLES[kind]], ids=list(TABLES[kind]), indirect=True
    )


# ---- images


@each("images")
def test_images(path):
    expected, data = IMAGES[path.name], path.read_bytes()
    if isinstance(expected, str):
        for size in (None, (8, 8)):
            with pytest.raises(BadSample, match=expected):
                Picture(data).tensor(size)
        return
    picture = decode(data, "jpg")
    assert (picture.width, picture.height) == expected
    whole = picture.tensor()
    assert whole.shape == (3, picture.height, picture.width)
    if path.name not in (
        "grey16.png",
        "rgba_gradient_alpha.png",
    ):  # which Pillow's own conversion clips or shows opaque
        plain = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert torch.equal(whole, torch.from_numpy(np.array(plain)).permute(2, 0, 1))


def test_what_pillow_would_clip_or_show_is_scaled_and_covered(real_data):
    folder = real_data / "odd" / "images"
    grey = Picture((folder / "grey16.png").read_bytes()).tensor()
    deep = np.asarray(Image.open(folder / "grey16.png"))
    assert np.abs(grey[0].numpy() - deep / 257).max() <= 1
    assert (grey == 255).float().mean() < 0.1
    covered = Picture((folder / "rgba_gradient_alpha.png").read_bytes()).tensor().numpy()
    pixels = np.asarray(Image.open(folder / "rgba_gradient_alpha.png")).astype(float).transpose(2, 0, 1)
    alpha = pixels[3] / 255
    assert np.abs(covered - (pixels[:3] * alpha + 255 * (1 - alpha))).max() <= 1


# ---- audio


@each("audio")
def test_audio(path):
    expected, data = AUDIO[path.name], path.read_bytes()
    if isinstance(expected, str):
        with pytest.raises(BadSample, match=expected):
            decode(data, "wav")
        with pytest.raises(BadSample):
            list(stream(path))
        return
    sound = decode(data, "wav")  # what it is, is told by its bytes
    assert sound.dtype == torch.float32
    assert sound.isfinite().all()
    assert (len(sound), sound.abs().max().item()) == (expected[0], pytest.approx(expected[1], abs=0.001))
    torch.testing.assert_close(torch.cat(list(stream(path))), sound, atol=1e-5, rtol=0)  # as it is read outside a shard


# ---- video


@each("video")
def test_video(path):
    expected, data = VIDEO[path.name], path.read_bytes()
    if isinstance(expected, str):
        with pytest.raises(BadSample, match=expected):
            decode(data, "mp4")
        return
    video = decode(data, "mp4")
    assert (video.width, video.height, video.has_audio) == expected[2:]
    assert (video.seconds, video.rate) == (pytest.approx(expected[0], abs=1e-3), pytest.approx(expected[1], abs=0.01))
    if path.name in DAMAGED:
        with pytest.raises(BadSample, match=DAMAGED[path.name]):
            video.check()
        return
    video.check()
    agrees_with_sequential(data, clips=3)


def test_what_is_particular_about_some_videos(real_data):
    folder = real_data / "odd" / "video"
    late = decode((folder / "audio_starts_0.7s_late.mkv").read_bytes(), "mkv").sound(0, 1)
    assert late[:9_800].abs().max() == 0  # begins at 0.64 s
    assert late[10_500:].abs().max() > 0.01
    short = decode((folder / "audio_shorter_than_video.mp4").read_bytes(), "mp4").sound(0, 3)
    assert short[19_600:].abs().max() == 0  # 1.2 s of 3 s
    assert decode((folder / "anamorphic_sar.mp4").read_bytes(), "mp4").aspect == pytest.approx(16 / 9, abs=0.01)
    # what lies before the cut is of use
    assert decode((folder / "truncated_faststart.mp4").read_bytes(), "mp4").clip(0, 0.8, 10).shape[0] == 8


# ---- text


@pytest.fixture
def photos(tmp_path) -> Path:
    """The folder of a data set that lacks its captions."""
    folder = tmp_path / "odd" / "Images"
    folder.mkdir(parents=True)
    for name in PHOTOS.split():
        Image.new("RGB", (4, 3)).save(folder / f"{name}.jpg")
    return folder.parent


@each("text")
def test_text(path):
    characters = TEXT[path.name][0]
    if isinstance(characters, str):
        with pytest.raises(BadSample, match=characters):
            decode(path.read_bytes(), "txt")
    else:
        assert len(decode(path.read_bytes(), "txt")) == characters


@each("text")
def test_captions(path, photos, tmp_path):
    expected = TEXT[path.name][1]
    shutil.copy(path, photos / "captions.txt")
    spec = DataSpec.read(SPECS / "flickr8k.yaml").with_root(tmp_path / "shards")
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            make(spec, photos, workers=1, progress=False)
        return
    found = {}
    for split in make(spec, photos, workers=1, progress=False):
        corpus = Corpus([spec], split, ["info"])
        for sample in map(corpus.read, range(len(corpus))):
            found[sample["__key__"]] = sample["info"]["captions"]
    assert {key: len(captions) for key, captions in found.items()} == expected
    if path.name == "captions_quotes_newlines.csv":
        assert [found[key] for key in sorted(found)] == [
            ['A child says "hello", then climbs.'],
            ["Two dogs on a road"],
            ["Ein Mädchen 👧 läuft — schnell…  日本語 नमस्ते"],
        ]
    if path.name == "captions_unquoted_commas.txt":
        black = "A black dog and a spotted dog are fighti , outside , in daylight ."
        assert found["1001773457_577c3a7d70"][0] == black


# ---- all of a kind in a shard


@pytest.mark.parametrize(
    ("kind", "extensions"),
    [
        ("images", ["jpg", "png", "webp"]),
        ("audio", ["wav", "flac", "mp3", "ogg", "opus", "aiff"]),
        ("video", ["mp4", "mkv", "ts", "ogv"]),
    ],
)
def test_what_headers_tell_is_what_reading_finds(real_data, tmp_path, kind, extensions):
    folder = real_data / "odd" / kind
    paths = [path for path in sorted(folder.iterdir()) if kind_of(path.name) in extensions]
    with TarShard(tmp_path / "train-0.tar") as shard:
        for path in paths:
            shard.write({"__key__": path.name.replace(".", "_"), kind_of(path.name): path.read_bytes()})
    field = {"images": "image", "audio": "audio", "video": "video"}[kind]
    spec = DataSpec.read(write_spec(tmp_path, tmp_path, fields={field: extensions}))
    corpus = Corpus([spec], "train", [field])
    problems, refused = corpus.problems(), set()
    for number, path in enumerate(paths):
        try:
            value = corpus.read(number)[field]
        except BadSample:
            refused.add(path.name)
            continue
        assert number not in problems
        if kind == "audio":
            assert len(value) == corpus.num_samples[number] == AUDIO[path.name][0]
    broken = {name for name, outcome in TABLES[kind].items() if isinstance(outcome, str)}
    late = {"truncated.jpg", "bitflips.jpg"}  # opened by `read`, and found damaged when they are looked at
    assert refused == broken & {path.name for path in paths} - late
    assert {paths[number].name for number in problems} <= refused
