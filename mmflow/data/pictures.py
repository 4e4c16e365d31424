"""JPEG, PNG and WebP pictures: sizes from headers, and crops that cost no more decoding than they need.

Boxes are (left, top, right, bottom) in pixels of the upright picture, as in Pillow; fractions of a pixel count.
"""

import io
import math
import re
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from mmflow.data.errors import BadSample

Box = tuple[float, float, float, float]

MAX_PIXELS = 100_000_000  # 0.4 GB while it is decoded
MAX_SCANS = 200  # of one JPEG, which costs a pass over all its pixels for each; programs write up to some 20
SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")  # the header of a scan of 1 to 4 colours
# Scaled decoding and box averaging leave at least this many times the wanted pixels along each side to the bicubic
# filter. Pillow's `thumbnail` takes the same, and its documentation calls that very close to the filter alone.
REDUCING_GAP = 2.0
SIGNATURES: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
}
# What makes a stored picture upright: mirror it left-right, mirror it top-bottom, then swap its sides.
Orientation = tuple[bool, bool, bool]
UPRIGHT: Orientation = (False, False, False)
ORIENTATIONS: dict[int, Orientation] = {  # by the number in EXIF
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}


class Picture:
    """One picture, of which only the header has been read so far.

    Args:
        data: the file. What it is, is told by its first bytes. Of animations the first frame is taken, embedded colour
            profiles are ignored.

    Attributes:
        data: the file.
        width, height: pixels of the upright picture.

    Raises BadSample for what is no picture or has more than MAX_PIXELS.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        image = _open(io.BytesIO(data))
        self._opened: ImageFile.ImageFile | None = image  # serves the first decoding, for Pillow can only do one
        self._orientation = _orientation(image)
        self.width, self.height = _upright_size(image, self._orientation)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # Pillow would decode it all

    def tensor(self, size: tuple[int, int] | None = None, box: Box | None = None) -> Tensor:
        """Decode to RGB, uint8 (3, H, W); what is transparent shows white behind it, 16 bits become 8.

        Args:
            size: (H, W) to resize to, bicubic with antialiasing; by default the size of `box`, rounded.
            box: the part to take; by default all.

        Raises BadSample for a file that is cut off or damaged, ValueError for a box outside the picture.
        """
        box = box or (0, 0, self.width, self.height)
        left, top, right, bottom = box
        if not (0 <= left < right <= self.width and 0 <= top < bottom <= self.height):
            raise ValueError(
                f"box {box} (left, top, right, bottom) is empty or leaves the picture of {self.width} x {self.height} "
                f"pixels"
            )
        height, width = size or (max(1, round(bottom - top)), max(1, round(right - left)))
        mirror_x, mirror_y, swap = self._orientation
        if swap:
            left, top, right, bottom = top, left, bottom, right
            height, width = width, height
        image = _open(io.BytesIO(self.data)) if self._opened is None else self._opened
        self._opened = None
        if mirror_x:
            left, right = image.width - right, image.width - left
        if mirror_y:
            top, bottom = image.height - bottom, image.height - top
        shrink = _draft(image, (right - left) / width, (bottom - top) / height)
        if self.data.count(b"\xff\xda") > MAX_SCANS and len(SCAN.findall(self.data)) > MAX_SCANS:
            raise BadSample(f"more than {MAX_SCANS} scans, each of which is a pass over all its pixels")
        try:
            image.load()
        except Exception as error:  # damaged files make Pillow raise many kinds
            raise _unreadable(image, error) from error
        part = (left / shrink, top / shrink, right / shrink, bottom / shrink)
        pixels = _resize(_on_white(image), width, height, part)
        if mirror_x:
            pixels = pixels.flip(2)
        if mirror_y:
            pixels = pixels.flip(1)
        return (pixels.transpose(1, 2) if swap else pixels).contiguous()

    def check(self) -> None:
        """Decode all of it. Raises BadSample for a file that is cut off or damaged."""
        self.tensor()


def _resize(image: Image.Image, width: int, height: int, box: Box) -> Tensor:
    """uint8 (3, height, width) from the part `box` of an L or RGB picture."""
    if all(edge == int(edge) for edge in box):
        # PyTorch has the same filter, 4 times as fast, but takes whole pixels and sees none outside of them
        pixels = torch.from_numpy(np.array(image.crop(box).convert("RGB")))  # (h, w, 3)
        return F.interpolate(pixels.permute(2, 0, 1)[None], (height, width), mode="bicubic", antialias=True)[0]
    image = image.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=REDUCING_GAP)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def picture_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of the upright picture as its header says. Raises BadSample for what `Picture` would refuse."""
    image = _open(file)
    return _upright_size(image, _orientation(image))


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """The picture in a file, not yet decoded. `Image.open` would know more formats, and warn of sizes we allow."""
    start = file.read(12)
    file.seek(0)
    format = next((format for signature, format in SIGNATURES.items() if start.startswith(signature)), None)
    if format is None:
        raise BadSample(f"not a JPEG, PNG or WebP picture: it begins with {start!r}")
    try:
        image = format(file)
    except Image.DecompressionBombError as error:  # from WebP, whose memory is taken with the header
        raise BadSample(f"more than {MAX_PIXELS} pixels: {error}") from error
    except Exception as error:  # damaged headers make Pillow raise many kinds
        raise _unreadable(format, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadSample(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def _unreadable(format: ImageFile.ImageFile | type[ImageFile.ImageFile], error: Exception) -> BadSample:
    return BadSample(f"not a readable {format.format} picture: {error}")


def _orientation(image: ImageFile.ImageFile) -> Orientation:
    """How a picture is stored, by EXIF or XMP in front of its pixels; upright where they are damaged or absent."""
    try:
        # PNG's own getexif would decode all pixels to see what is behind them
        return ORIENTATIONS.get(Image.Image.getexif(image).get(0x0112, 1), UPRIGHT)
    except Exception:  # many kinds again
        return UPRIGHT


def _upright_size(image: ImageFile.ImageFile, orientation: Orientation) -> tuple[int, int]:
    _, _, swap = orientation
    return (image.height, image.width) if swap else (image.width, image.height)


def _draft(image: ImageFile.ImageFile, shrink_x: float, shrink_y: float) -> int:
    """Let a JPEG decode to 1/2, 1/4 or 1/8 of its size if it is to shrink far more; returns 2, 4, 8, or 1 for all else.

    libjpeg then computes only the low frequencies of each block, which saves most of its time.
    """
    margin = min(shrink_x, shrink_y) / REDUCING_GAP
    factor = next((factor for factor in (8, 4, 2) if margin >= factor), 1)
    if factor == 1 or not isinstance(image, JpegImageFile):
        return 1
    image.draft(None, (image.width // factor, image.height // factor))
    return factor


def _on_white(image: Image.Image) -> Image.Image:
    """A decoded picture as 8-bit grey or RGB, over white."""
    if image.mode == "I;16":
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)  # as Pillow does it with 16-bit colours
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey)
    if image.mode == "CMYK" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # only Adobe's programs store ink inverted; Pillow undoes it for all
    if image.has_transparency_data:
        white = Image.new("RGB", image.size, "white")
        visible = image.convert("RGBA")
        white.paste(visible, mask=visible)
        return white
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def random_resized_crop(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box with a random share `scale` of the area and a random ratio of width to height, anywhere in the picture.

    Inception's augmentation (Szegedy et al. 2015, arXiv:1409.4842, section 6): share uniform, ratio uniform in its
    logarithm, whole pixels. After ten boxes that do not fit it is the largest one in the middle within `ratio`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = max(1, min(width, round(height * ratio[1]))), max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def center_box(width: int, height: int, fraction: float = 224 / 256) -> Box:
    """The square in the middle whose sides are `fraction` of the short side.

    Taking it at 224 pixels shows what resizing the short side to 256 and cropping 224 shows, in one step.
    """
    side = fraction * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
