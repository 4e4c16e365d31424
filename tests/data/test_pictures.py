import io
import math
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from mmflow.data.errors import BadSample
from mmflow.data.pictures import Picture, center_box, picture_size, random_resized_crop


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Colours as in a photo: most of the contrast in large shapes, a little of it from pixel to pixel."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (max(2, height // n), max(2, width // n), 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            dtype=np.float64,
        )
        * n
        for n in (1, 4, 16, 64)
    ]
    return Image.fromarray((sum(layers) / (1 + 4 + 16 + 64)).round().astype(np.uint8))


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, kind: int, packed: bytes, before: bytes = b"") -> bytes:
    """A PNG with what Pillow does not write. kind: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA. packed: zlib's output."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png16(kind: int, *values: int, before: bytes = b"") -> bytes:
    """2 x 2 equal pixels of 16 bits per channel."""
    row = b"\0" + struct.pack(f">{len(values)}H", *values) * 2
    return png(2, 2, 16, kind, zlib.compress(row * 2), before)


def plain(data: bytes, size: tuple[int, int] | None = None, box: Any = None) -> torch.Tensor:
    """Pillow without shortcuts: decode all, turn it, convert, crop and resize."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if box is not None and all(edge == int(edge) for edge in box):
        image, box = image.crop(box), None
    if size is not None:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC, box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def difference(a: torch.Tensor, b: torch.Tensor) -> tuple[float, int]:
    """Mean and largest absolute difference."""
    assert a.shape == b.shape
    gap = (a.int() - b.int()).abs()
    return gap.float().mean().item(), int(gap.max())


@pytest.fixture(scope="module")
def large() -> bytes:
    return saved(photo(1600, 1200), "JPEG")


@pytest.fixture(scope="module")
def places() -> bytes:
    """Red tells the column, green the row."""
    across, down = np.meshgrid(np.arange(1600) / 1600, np.arange(1200) / 1200)
    return saved(Image.fromarray((256 * np.stack([across, down, 0 * down], 2)).astype(np.uint8)), "JPEG", quality=95)


@pytest.fixture
def no_decoding(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))


FORMATS = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_a_whole_picture_is_what_pillow_decodes(format, options):
    data = saved(photo(61, 40), format, **options)
    tensor = Picture(data).tensor()
    assert (tensor.dtype, tensor.shape, tensor.is_contiguous()) == (torch.uint8, (3, 40, 61), True)
    assert torch.equal(tensor, plain(data))


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_the_header_alone_tells_the_size(no_decoding, format, options):
    data = saved(photo(61, 40), format, **options)
    picture = Picture(data)
    assert (picture.width, picture.height, picture.data) == (61, 40, data)
    assert picture_size(io.BytesIO(data)) == (61, 40)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_header_is_read_without_the_rest(format):
    data = saved(photo(300, 200), format, quality=100)
    file = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    assert picture_size(file) == (300, 200)
    assert file.raw.tell() <= 8192 < len(data)


def test_the_first_bytes_say_what_a_picture_is(tmp_path):
    data = saved(photo(8, 8))
    assert Picture(data).tensor().shape == (3, 8, 8)
    gif = saved(photo(8, 8), "GIF")
    with pytest.raises(BadSample, match="not a JPEG, PNG or WebP picture: it begins with b'GIF8"):
        Picture(gif)


GREEN = (0, 255, 0)


COLOURS = {
    "1": (saved(Image.new("1", (2, 2), 1)), (255, 255, 255)),
    "L": (saved(Image.new("L", (2, 2), 77)), (77, 77, 77)),
    "L, JPEG": (saved(Image.new("L", (2, 2), 77), "JPEG"), (77, 77, 77)),
    "L, invisible": (saved(Image.new("L", (2, 2), 77), transparency=77), (255, 255, 255)),
    "L, another invisible": (saved(Image.new("L", (2, 2), 77), transparency=78), (77, 77, 77)),
    "LA": (saved(Image.new("LA", (2, 2), (100, 51))), (224, 224, 224)),  # 0.2 x 100 + 0.8 x 255
    "RGBA": (saved(Image.new("RGBA", (2, 2), (100, 0, 255, 51))), (224, 204, 255)),
    "RGBA, WebP": (saved(Image.new("RGBA", (2, 2), (100, 0, 255, 51)), "WEBP", lossless=True), (224, 204, 255)),
    "RGBA, invisible": (saved(Image.new("RGBA", (2, 2), (*GREEN, 0))), (255, 255, 255)),
    "RGB, invisible": (saved(Image.new("RGB", (2, 2), GREEN), transparency=GREEN), (255, 255, 255)),
    "P": (saved(Image.new("RGB", (2, 2), GREEN).quantize(4)), GREEN),
    "P, invisible": (saved(Image.new("RGB", (2, 2), GREEN).quantize(4), transparency=0), (255, 255, 255)),
    "P, alpha": (saved(Image.new("RGB", (2, 2), GREEN).quantize(4), transparency=bytes([51])), (204, 255, 204)),
    "CMYK": (saved(Image.new("CMYK", (16, 16), (255, 0, 255, 0)), "JPEG"), GREEN),
    "CMYK, black": (saved(Image.new("CMYK", (16, 16), (0, 0, 0, 51)), "JPEG"), (204, 204, 204)),
    "16 bits, white": (png16(0, 65_535), (255, 255, 255)),
    "16 bits": (png16(0, 25_700), (100, 100, 100)),
    "16 bits, invisible": (png16(0, 25_700, before=chunk(b"tRNS", struct.pack(">H", 25_700))), (255, 255, 255)),
    "16 bits, another": (png16(0, 25_700, before=chunk(b"tRNS", struct.pack(">H", 25_701))), (100, 100, 100)),
    "48 bits": (png16(2, 25_700, 0, 65_535), (100, 0, 255)),
    "16 bits and alpha": (png16(4, 25_700, 13_107), (224, 224, 224)),
    "64 bits": (png16(6, 25_700, 0, 65_535, 13_107), (224, 204, 255)),
}


@pytest.mark.parametrize("kind", COLOURS)
@pytest.mark.parametrize("size", [None, (3, 1)])
def test_every_kind_of_colour_becomes_rgb_over_white(kind, size):
    data, colour = COLOURS[kind]
    gap = Picture(data).tensor(size).int() - torch.tensor(colour)[:, None, None]
    assert gap.abs().max() <= 1


def test_cmyk_is_inverted_only_where_adobe_is_named():
    image = Image.new("CMYK", (16, 16), (255, 0, 255, 0))
    data = saved(image, "JPEG")
    marker = data.index(b"\xff\xee")  # a segment of 14 bytes after its two
    assert data[marker + 4 : marker + 9] == b"Adobe"
    plain_ink = data[:marker] + data[marker + 16 :]
    assert Picture(data).tensor()[:, 0, 0].tolist() == [0, 255, 0]
    assert Picture(plain_ink).tensor()[:, 0, 0].tolist() == [0, 0, 0]  # the same numbers mean ink (0, 255, 0, 255)
    small = Picture(saved(Image.new("CMYK", (16, 16), (0, 255, 0, 255)), "JPEG"))
    assert torch.equal(Picture(plain_ink).tensor((4, 4)), small.tensor((4, 4)))


def test_colour_behind_transparency_does_not_bleed_when_it_is_resized():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # invisible red
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    tensor = Picture(saved(image)).tensor((3, 3))
    assert torch.equal(tensor[0], tensor[1])
    assert torch.equal(tensor[0], tensor[2])


def turned(image: Image.Image, orientation: int, format: str = "PNG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, format, exif=exif, **options)


BOX = (5.0, 2.0, 33.0, 30.0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {})])
def test_boxes_are_those_of_the_upright_picture(orientation, format, options):
    data = turned(photo(61, 40), orientation, format, **options)
    picture, upright = Picture(data), plain(data)
    assert (picture.height, picture.width) == upright.shape[1:] == ((61, 40) if orientation > 4 else (40, 61))
    assert picture_size(io.BytesIO(data)) == (picture.width, picture.height)
    assert torch.equal(picture.tensor(), upright)
    assert torch.equal(picture.tensor(box=BOX), plain(data, box=BOX))
    # sides are resized one after the other, rounding between; of a swapped picture in the other order
    assert difference(picture.tensor((17, 9), BOX), plain(data, (17, 9), BOX))[1] <= 2
    odd = (3.3, 0.4, 38.2, 21.7)
    assert difference(picture.tensor((50, 23), odd), plain(data, (50, 23), odd))[1] <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_decoding_keeps_boxes_of_turned_pictures_in_place(orientation):
    data = turned(photo(643, 430), orientation, "JPEG", quality=95)
    for box in [None, (20.0, 31.0, 420.0, 390.0), (201.5, 33.25, 429.0, 401.0)]:
        mean, largest = difference(Picture(data).tensor((40, 38), box), plain(data, (40, 38), box))
        assert mean < 0.5
        assert largest <= 5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09", b"x"], ids=["empty", "far", "cut", "junk"]
)
def test_damaged_exif_costs_the_orientation_only(exif):
    for format in ("JPEG", "PNG", "WEBP"):
        picture = Picture(saved(photo(20, 10), format, exif=b"Exif\0\0" + exif))
        assert picture.tensor().shape == (3, 10, 20)


def test_an_orientation_that_does_not_exist_is_none():
    for orientation in (0, 9, 65_535):
        assert Picture(turned(photo(20, 10), orientation)).tensor().shape == (3, 10, 20)


def test_a_box_without_a_size_is_cut_out():
    data = saved(photo(61, 40))
    assert torch.equal(Picture(data).tensor(box=(7, 3, 11, 39)), plain(data)[:, 3:39, 7:11])
    assert Picture(data).tensor(box=(1.2, 2.2, 5.8, 2.5)).shape == (3, 1, 5)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 62, 40), (0, 0, 61, 41), (-1, 0, 5, 5), (5, 5, 5, 9), (5, 9, 9, 9), (9, 0, 5, 5), (0, math.nan, 5, 5)],
)
def test_a_box_outside_the_picture_is_an_error_of_the_caller(box):
    with pytest.raises(ValueError, match=r"box \(.*\) is empty or leaves the picture of 61 x 40 pixels") as told:
        Picture(saved(photo(61, 40))).tensor((8, 8), box)
    assert not isinstance(told.value, BadSample)


@pytest.mark.parametrize(
    ("size", "box", "decoded"),
    [
        (None, None, (1600, 1200)),
        ((224, 224), None, (800, 600)),  # 1200 / 224 is 5.4: half of it leaves 2.7
        ((100, 100), None, (400, 300)),
        ((75, 100), None, (200, 150)),
        ((10, 10), None, (200, 150)),  # as small as libjpeg can
        ((100, 100), (300, 100, 700, 500), (800, 600)),
        ((100, 100), (300, 100, 699, 499), (1600, 1200)),  # less than 2 x 2 would be left
        ((1000, 10), None, (1600, 1200)),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_twice_what_is_needed(monkeypatch, large, size, box, decoded):
    sizes, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda image: sizes.append(image.size) or load(image), raising=False)
    tensor = Picture(large).tensor(size, box)
    assert sizes[0] == decoded
    assert difference(tensor, plain(large, size, box))[0] < 2


@pytest.mark.parametrize("size", [(224, 224), (100, 30), (10, 10), (1000, 10)])
@pytest.mark.parametrize("box", [None, (11.0, 30.0, 1301.0, 1199.0), (300.5, 100.25, 1599.75, 1150.0)])
def test_scaled_decoding_moves_nothing(places, size, box):
    assert difference(Picture(places).tensor(size, box), plain(places, size, box))[1] <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_scaled_decoding_of_grey_and_ink(mode):
    data = saved(photo(640, 480).convert(mode), "JPEG", quality=95)
    mean, largest = difference(Picture(data).tensor((48, 64)), plain(data, (48, 64)))
    assert mean < 0.7
    assert largest <= 5


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_shrinking_far_is_close_to_the_bicubic_filter_alone(format):
    data = saved(photo(400, 300), format)
    mean, largest = difference(Picture(data).tensor((30, 40)), plain(data, (30, 40)))
    assert mean < 1
    assert largest <= 5


def test_a_picture_can_be_decoded_again_and_sent_to_another_process():
    data = saved(photo(640, 480), "JPEG")
    picture = Picture(data)
    sent = pickle.dumps(picture)
    assert len(sent) < len(data) + 1000
    first = picture.tensor((32, 32))
    assert torch.equal(picture.tensor(), plain(data))
    assert torch.equal(picture.tensor((32, 32)), first)
    assert torch.equal(pickle.loads(sent).tensor((32, 32)), first)


JPEG = saved(photo(64, 48), "JPEG")
PNG = saved(photo(64, 48))
WEBP = saved(photo(64, 48), "WEBP")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG, PNG or WebP picture: it begins with b''"),
        (b"<!DOCTYPE html><html>404", "not a JPEG, PNG or WebP picture: it begins with b'<!DOCTYPE ht'"),
        (JPEG[:20], "not a readable JPEG picture"),
        (PNG[:20], "not a readable PNG picture"),
        (WEBP[:20], "not a readable WEBP picture"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not a readable WEBP picture: not a WEBP file"),
        (png(0, 5, 8, 0, b""), "not a readable PNG picture"),
    ],
    ids=["empty", "html", "cut jpeg", "cut png", "cut webp", "wav", "no pixels"],
)
def test_what_is_no_picture_is_a_bad_sample(no_decoding, data, reason):
    with pytest.raises(BadSample, match=reason):
        Picture(data)
    with pytest.raises(BadSample, match=reason):
        picture_size(io.BytesIO(data))


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_a_picture_that_is_cut_off_is_never_shown_in_part(format, options):
    data = saved(photo(64, 48), format, **options)
    for share in (0.5, 0.7, 0.9, 0.97):
        with pytest.raises(BadSample, match=r"not a readable (JPEG|PNG|WEBP) picture"):
            Picture(data[: int(share * len(data))]).tensor((4, 4))


def bomb() -> bytes:
    """50 MB of black as 50 kB."""
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(2501)) for _ in range(20_000))
    return png(20_000, 20_000, 1, 0, packed + packer.flush())


def test_pixels_are_counted_before_they_are_decoded(no_decoding, recwarn):
    data = bomb()
    assert len(data) < 100_000
    with pytest.raises(BadSample, match="20000 x 20000 pixels, more than 100000000"):
        Picture(data)
    frame = JPEG.index(b"\xff\xc0") + 5  # height and width follow
    wide = JPEG[:frame] + struct.pack(">HH", 65_000, 2_000) + JPEG[frame + 4 :]
    with pytest.raises(BadSample, match="2000 x 65000 pixels, more than 100000000"):
        Picture(wide)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    webp = b"RIFF" + struct.pack("<I", len(WEBP) - 8 + len(canvas)) + b"WEBP" + canvas + WEBP[12:]
    with pytest.raises(BadSample, match="more than 100000000 pixels"):
        Picture(webp)
    assert not recwarn.list
    assert Picture(png(10_000, 10_000, 1, 0, b"")).width == 10_000  # over Pillow's limit, not over ours
    assert not recwarn.list


def test_text_in_a_png_cannot_be_a_bomb(no_decoding):
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**24)))
    with pytest.raises(BadSample, match="not a readable PNG picture: Decompressed data too large"):
        Picture(png(1, 1, 8, 0, zlib.compress(b"\0\0"), text))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([JPEG, PNG, WEBP, turned(photo(20, 10), 6), saved(photo(9, 9).quantize(8))]))
def test_damaged_pictures_are_decoded_or_bad_samples(data, whole):
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    part = bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))])
    try:
        tensor = Picture(part).tensor((5, 7))
    except BadSample:
        return
    assert tensor.shape == (3, 5, 7)


def test_a_random_crop_is_as_large_and_as_wide_as_asked():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_crop(rng, 1000, 800) for _ in range(4000)])
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 1000).all()
    assert (boxes[:, 3] <= 800).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    share, ratio = sides.prod(axis=1) / 800_000, sides[:, 0] / sides[:, 1]
    assert share.min() == pytest.approx(0.08, abs=0.002)
    assert ratio.min() == pytest.approx(3 / 4, rel=0.01)
    assert ratio.max() == pytest.approx(4 / 3, rel=0.01)
    small = share < 0.5  # always fit, so they are as drawn
    assert share[small].mean() == pytest.approx(0.29, abs=0.01)
    assert np.log(ratio[small]).mean() == pytest.approx(0, abs=0.02)
    places = boxes[small, 0] / (1000 - sides[small, 0])
    assert places.mean() == pytest.approx(0.5, abs=0.02)
    assert np.quantile(places, [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.03)


def test_the_same_generator_draws_the_same_crop():
    first, second = (random_resized_crop(np.random.default_rng(5), 333, 500) for _ in range(2))
    assert first == second
    assert random_resized_crop(np.random.default_rng(5), 20, 20, (1.0, 1.0), (1.0, 1.0)) == (0, 0, 20, 20)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(1000, 12, (492, 0, 508, 12)), (12, 1000, (0, 492, 12, 508)), (1, 1, (0, 0, 1, 1)), (1, 9, (0, 4, 1, 5))],
)
def test_where_no_crop_fits_it_is_the_middle(width, height, box):
    rng = np.random.default_rng(0)
    assert random_resized_crop(rng, width, height, scale=(0.9, 1.0)) == box


def test_the_box_in_the_middle_shows_what_resizing_and_cropping_shows():
    assert center_box(400, 300) == (68.75, 18.75, 331.25, 281.25)
    assert center_box(300, 400, 1.0) == (0, 50, 300, 350)
    data = saved(photo(640, 512), compress_level=1)
    small = Image.open(io.BytesIO(data)).resize((320, 256), Image.Resampling.BICUBIC).crop((48, 16, 272, 240))
    ours = Picture(data).tensor((224, 224), center_box(640, 512))
    assert difference(ours, torch.from_numpy(np.array(small)).permute(2, 0, 1))[1] <= 1


def test_crops_of_real_photos_are_what_pillow_makes_of_them(real_data):
    rng = np.random.default_rng(1)
    paths = sorted((real_data / "flickr8k").rglob("*.jpg"))[:20]
    for path in paths:
        data = path.read_bytes()
        picture = Picture(data)
        for size in ((224, 224), (32, 32), (16, 24)):
            box = random_resized_crop(rng, picture.width, picture.height)
            mean, _ = difference(picture.tensor(size, box), plain(data, size, box))
            assert mean < 2, path.name
    assert len(paths) == 20
