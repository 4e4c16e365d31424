"""Pictures on their way into shards: bytes as they are, under the extension that is true of them."""

from pathlib import Path

from mmflow.data.sources.layout import LeftOut, files

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
HEAD = 12  # bytes that tell these formats apart


def picture_extension(data: bytes) -> str | None:
    """The extension that says what `data` is: "jpg", "png" or "webp"; None for anything else, such as a GIF.

    The first 12 bytes decide. The name does not count: ImageNet holds a PNG called .JPEG, and what a server sent
    instead of a picture is often a web page called .jpg.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def as_member(path: str | Path, left_out: LeftOut) -> dict[str, str]:
    """{extension: path}, as `Item.files` takes it; empty, and counted, for a file that is no picture."""
    with Path(path).open("rb") as file:
        extension = picture_extension(file.read(HEAD))
    if extension is None:
        left_out.add("file that is no JPEG, PNG or WebP", path)
        return {}
    return {extension: str(path)}


def pictures_by_name(folder: Path, left_out: LeftOut) -> dict[str, Path]:
    """All files named like pictures below `folder` by their names, folders aside; of two of one name the first."""
    found: dict[str, Path] = {}
    for path in files(folder, PICTURE_ENDINGS, left_out):
        if path.name in found:
            left_out.add("second picture of the same name", path)
        found.setdefault(path.name, path)
    return found


def one_line(caption: str) -> str:
    """A caption without line breaks and without spaces around it."""
    return " ".join(line.strip() for line in caption.splitlines()).strip()
