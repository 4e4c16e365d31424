"""Pictures, videos and sounds as pieces of a page (`mmflow.data.show`), each within a bound of bytes.

Legend: S samples at 16 kHz, F spectrogram columns (one per 10 ms), T units (one per 20 ms).
"""

import base64
import html
import io
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmflow.data.decode import SAMPLE_RATE, BadSample
from mmflow.data.pictures import MAX_PIXELS, Picture

Intervals: TypeAlias = "list[tuple[float, float, str]]"  # start s, end s, name

MOST_STRIPS = 6  # of one kind; what overlaps more lies over others in the last one
INTERVAL = ("start", "t0", "onset"), ("end", "t1", "offset"), ("name", "label", "class", "kind", "shape", "event")
UNIT_S = 320 / SAMPLE_RATE  # one unit per 20 ms
HOP = 160  # samples from one spectrogram column to the next
WINDOW = 400  # samples
RANGE_DB = 80.0  # below the loudest point everything is black

WAVE_PX, SPECTRUM_PX = 64, 176  # heights
MAX_COLUMNS = 8000  # of the picture; longer recordings get coarser columns
PX_PER_S = 200  # width of a second on the page: a phone of 50 ms has room for its name
WIDTH_PX = (480, 24_000)  # of the time line, least and most
FILM_PX = (1100, 64)  # a strip of stills is about so wide and high, and has twice the pixels
STILLS = (4, 20)  # in a strip, least and most
SOUND_BYTES_PER_S = 3 * SAMPLE_RATE  # at most, as FLAC with its waveform and spectrogram
TINY_PX, ENLARGED_PX = 130, 256  # pictures and videos under the first are enlarged to about the second
REDUCED_PX, MASK_PX = 1024, 1024  # longest side of a picture that is too large, and of a mask
MOST_LABELS = 64  # a mask with more values is one of shares, not of classes

# -- pictures ----------------------------------------------------------------------------------------------------------


def shot(picture: Picture, masks: Sequence[Picture | np.ndarray], info: Mapping[str, Any], budget: int) -> str:
    """A picture with masks, outlines and boxes that can be laid over it.

    Args:
        picture: shown as it is in the shard if it has at most `budget` bytes.
        masks: maps of labels, pictures or arrays (H, W) or (N, H, W), 0 being nothing.
        info: "objects" are a list of {"class", "box": [x, y, w, h], "segmentation": polygons or a run-length code}, in
            pixels of a picture of "width" and "height".
        budget: bytes.
    """
    said = [f"{picture.width} x {picture.height}"]
    data = picture.data
    try:
        if len(data) > budget:
            data, size = _reduced(picture, budget)
            said.append(f"reduced to {size} for this page, {len(picture.data) / 1e6:.1f} MB in the shard")
        overs = [_over(mask_picture(mask)) for mask in masks]
    except BadSample as error:
        return f'<p class="warn">{html.escape(str(error))}</p>'
    objects = [entry for entry in _list(info.get("objects")) if isinstance(entry, dict)]
    stated = _numbers([info.get("width"), info.get("height")])
    width, height = map(int, stated) if stated and min(stated) >= 1 else (picture.width, picture.height)
    overs += _outlines(objects, width, height) if objects else []
    switch = '<label><input type="checkbox"> masks</label>' if overs else ""
    classes = Counter(str(entry.get("class", "object")) for entry in objects)
    names = "".join(
        f'<span class="chip" style="--hue:{hue(name)}"><i></i>{html.escape(name)}{f" × {n}" if n > 1 else ""}</span>'
        for name, n in classes.most_common()
    )
    picture_html = f'<img alt="{said[0]}"{_enlarged(picture)} src="{data_url(kind_of_data(data), data)}">'
    caption = f"<figcaption>{' · '.join(said)} {switch}{names}</figcaption>"
    return f'<figure class="shot"><div class="frame">{picture_html}{"".join(overs)}</div>{caption}</figure>'


def _enlarged(shown: Any) -> str:
    """The style of a small picture or video: a whole number of times larger, with sharp pixels."""
    longest = max(shown.width, shown.height)
    if longest >= TINY_PX:
        return ""
    return f' style="width:{max(1, ENLARGED_PX // longest) * shown.width}px;image-rendering:pixelated"'


def _reduced(picture: Picture, budget: int) -> tuple[bytes, str]:
    """A JPEG of at most `budget` bytes or 64 pixels, and its size in words."""
    longest = REDUCED_PX
    while True:
        scale = min(1, longest / max(picture.width, picture.height))
        size = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
        data = jpeg(picture.tensor(size).permute(1, 2, 0).numpy())
        if len(data) <= budget or longest <= 64:
            return data, f"{size[1]} x {size[0]}"
        longest //= 2


def jpeg(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def mask_picture(mask: Picture | np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4): labels as colours, nothing as transparent; shares as more or less of one colour."""
    labels = _labels(mask)
    step = max(1, max(labels.shape) // MASK_PX)
    labels = labels[::step, ::step]
    found, places = np.unique(labels, return_inverse=True)
    if len(found) <= MOST_LABELS:
        colours = np.array([[*rgb(hue(str(label))), 150 if label else 0] for label in found.tolist()], np.uint8)
        return colours[places.reshape(labels.shape)]
    share = (labels - labels.min()) / max(int(labels.max() - labels.min()), 1)
    pixels = np.empty((*labels.shape, 4), np.uint8)
    pixels[..., :3] = rgb(hue("1"))
    pixels[..., 3] = np.round(200 * share)
    return pixels


def _labels(mask: Picture | np.ndarray) -> np.ndarray:
    """int64 (H, W). Colours of a picture count as labels, grey ones as their value. Raises BadSample."""
    if isinstance(mask, Picture):
        red, green, blue = mask.tensor().to(torch.int64)
        grey = (red == green) & (green == blue)
        return torch.where(grey, red, (red << 16) + (green << 8) + blue).numpy()
    values = mask
    if values.ndim == 3 and len(values) > 1:
        values = (values > 0.5).argmax(0) + (values > 0.5).any(0)  # the number of the first that is there, from 1
    if values.ndim == 3:
        values = values[0]
    if values.ndim != 2 or not 0 < values.size <= MAX_PIXELS or values.dtype.kind not in "biuf":
        raise BadSample(f"a mask of shape {mask.shape} and type {mask.dtype}, must be numbers (H, W) or (N, H, W)")
    values = np.nan_to_num(values.astype(np.float64))
    is_share = mask.dtype.kind == "f" and values.max() <= 1
    return np.round(values * 255 if is_share else values).astype(np.int64)


def _over(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f'<img class="over" alt="mask" src="{data_url("image/png", file.getvalue())}">'


def _outlines(objects: list[dict[str, Any]], width: int, height: int) -> list[str]:
    """Polygons and boxes as a drawing, and the masks of run-length codes."""
    drawn, overs = [], []
    for entry in objects:
        name, segmentation = str(entry.get("class", "object")), entry.get("segmentation")
        shapes = []
        for polygon in _list(segmentation):
            corners = _numbers(polygon)
            if len(corners) >= 6:
                points = " ".join(f"{x:g},{y:g}" for x, y in zip(corners[::2], corners[1::2], strict=False))
                shapes.append(f'<polygon points="{points}"/>')
        if isinstance(segmentation, dict) and (mask := _run_lengths(segmentation)) is not None:
            pixels = np.zeros((*mask.shape, 4), np.uint8)
            pixels[mask] = (*rgb(hue(name)), 110)
            overs.append(_over(pixels))
        if len(box := _numbers(entry.get("box"))) == 4:
            shapes.append('<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}"/>'.format(*box))
        drawn.append(f'<g style="--hue:{hue(name)}"><title>{html.escape(name)}</title>{"".join(shapes)}</g>')
    overs.append(f'<svg class="over" viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(drawn)}</svg>')
    return overs


def _run_lengths(code: Mapping[str, Any]) -> np.ndarray | None:
    """bool (H, W) from COCO's run-length code, column by column, beginning with what is not the object.

    None for one that is not right. As text, "counts" has five bits in a character; a sixth one says that more follow,
    and from the fourth run on the difference to the run two before stands for it.
    """
    counts = code.get("counts")
    size, counts = _numbers(code.get("size")), _numbers(_counts(counts) if isinstance(counts, str) else counts)
    if len(size) != 2:
        return None
    height, width = map(int, size)
    runs = np.array(counts, dtype=np.int64)
    if not (0 < height * width <= MAX_PIXELS and (runs >= 0).all() and runs.sum() == height * width):
        return None
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _counts(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32 and shift < 60:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _numbers(value: Any) -> list[float]:
    """A list of sensible numbers, empty for anything else."""
    right = isinstance(value, list) and all(type(n) in (int, float) and abs(n) < 1e9 for n in value)
    return value if right else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def hue(name: str) -> int:
    """The same degrees for the same name; neighbouring numbers get hues far apart: steps of the golden angle."""
    number = int(name) if name.isascii() and name.isdigit() else zlib.crc32(name.encode("utf-8", "replace"))
    return round(number * 137.508) % 360


def rgb(degrees: int) -> tuple[int, int, int]:
    """A strong colour of a hue: hsl(degrees 90% 55%)."""
    grey, span = 0.55, 0.405
    channels = []
    for at in (0, 8, 4):
        k = (at + degrees / 30) % 12
        channels.append(round(255 * (grey - span * max(-1, min(k - 3, 9 - k, 1)))))
    return channels[0], channels[1], channels[2]


# -- videos ------------------------------------------------------------------------------------------------------------


def film(video: Any, info: Mapping[str, Any], budget: int) -> str:
    """A video (`mmflow.data.video.Video`) with its stills and its sound along one time line.

    It plays where browsers can play it and it has at most `budget` bytes; of others the sound does.
    """
    said = f"{video.seconds:.2f} s at {video.rate:.4g} pictures/s"
    try:
        heard = min(video.seconds, budget / SOUND_BYTES_PER_S)
        strip, count = _stills(video)
        audio = video.sound(0, heard) if video.has_audio else None
        said = f"{video.width} x {video.height} · {said}"
    except BadSample as error:
        return f'<p class="warn">{html.escape(str(error))}</p>'
    said += "" if video.has_audio else " · without sound"
    kind = _played(video.data)
    if kind and len(video.data) <= budget:
        player = (
            f'<video controls preload="metadata"{_enlarged(video)} src="{data_url(kind, video.data)}"></video>'
            '<p class="none unplayable">this browser does not play it</p>'
        )
    else:
        why = (
            f"too large for this page ({len(video.data) / 1e6:.1f} MB)" if kind else "in a format browsers do not play"
        )
        said += f" · {why}: its stills" + (" and its sound" if audio is not None else "")
        player = sound(audio) if audio is not None else ""
    picture = f'<img class="film" alt="{count} stills" src="{data_url("image/jpeg", strip)}">'
    line = time_line(video.seconds, strips(info, video.seconds), audio=audio, above=picture)
    return f'<div class="timed film-roll">{player}<p class="size">{html.escape(said)}</p>{line}</div>'


def _stills(video: Any) -> tuple[bytes, int]:
    """Pictures evenly over a video side by side as a JPEG, and how many. Raises BadSample."""
    width, height = FILM_PX
    count = min(max(round(width / (height * video.aspect)), STILLS[0]), STILLS[1])
    tile = 2 * width // count
    size = max(2, min(round(tile / video.aspect), tile * 2)), tile
    clip = video.clip(0, video.seconds, count / video.seconds, size)  # (count, 3, H, W)
    return jpeg(np.concatenate(list(clip.permute(0, 2, 3, 1).numpy()), axis=1)), count


def _played(data: bytes) -> str | None:
    """The media type of a video that browsers play, by its container and the name of its codec; None for others."""
    if data[4:8] == b"ftyp" and any(codec in data for codec in (b"avc1", b"vp09", b"av01")):
        return "video/mp4"
    return "video/webm" if data.startswith(b"\x1aE\xdf\xa3") and b"webm" in data[:64] else None


# -- sounds ------------------------------------------------------------------------------------------------------------


def recording(audio: Tensor, info: Mapping[str, Any], units: Any, budget: int) -> str:
    """A player of a sound (S,) and its time line; of a sound that is too long the beginning."""
    if not len(audio):
        return '<p class="none">no audio samples</p>'
    bound = max(SAMPLE_RATE, int(budget / SOUND_BYTES_PER_S * SAMPLE_RATE))
    cut = f'<p class="size">the first {bound / SAMPLE_RATE:.0f} s, more is too large for this page</p>'
    cut, audio = (cut, audio[:bound]) if len(audio) > bound else ("", audio)
    seconds = len(audio) / SAMPLE_RATE
    shown = strips(info, seconds)
    if units is not None:
        shown["units"] = _runs(np.asarray(units).reshape(-1).tolist(), seconds)
    width = min(max(seconds * PX_PER_S, WIDTH_PX[0]), WIDTH_PX[1])
    return f'<div class="timed">{sound(audio)}{cut}{time_line(seconds, shown, audio=audio, width=width)}</div>'


def sound(audio: Tensor) -> str:
    """A player of a sound (S,)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.nan_to_num(0, 1, -1).clamp(-1, 1).numpy(), SAMPLE_RATE, format="FLAC")
    return f'<audio controls preload="metadata" src="{data_url("audio/flac", buffer.getvalue())}"></audio>'


def level(audio: Tensor) -> str:
    """Peak and mean level in dB of full scale, and what is wrong with them."""
    finite = audio[audio.isfinite()]
    peak = finite.abs().max().item() if len(finite) else 0.0
    if not peak:
        level = "silent"
    else:
        rms = finite.square().mean().sqrt().item()
        level = f"peak {20 * math.log10(peak):.1f} dB, mean {20 * math.log10(rms):.1f} dB"
    faults = [f"{len(audio) - len(finite)} samples are not finite"] if len(finite) < len(audio) else []
    faults += ["over full scale, cut here"] if peak > 1 else []
    return level + "".join(f' <span class="warn">{fault}</span>' for fault in faults)


def kind_of_data(data: bytes) -> str:
    """The media type that the first bytes of a picture tell."""
    starts = {b"\xff\xd8": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}
    return next((kind for start, kind in starts.items() if data.startswith(start)), "application/octet-stream")


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def strips(info: Mapping[str, Any], seconds: float) -> dict[str, Intervals]:
    """What an info tells of times: its events, words and phones, as far as they are well-formed.

    Those that overlap are in strips of their own: "events", "events 2", ...
    """
    found: dict[str, Intervals] = {}
    for name in ("events", "words", "phones"):
        for interval in sorted(_intervals(info.get(name), seconds), key=lambda interval: interval[0]):
            names = [name, *(f"{name} {number}" for number in range(2, MOST_STRIPS + 1))]
            free = [n for n in names if n not in found or found[n][-1][1] <= interval[0] + 1e-6]
            found.setdefault([*free, names[-1]][0], []).append(interval)
    return found


def time_line(
    seconds: float, shown: Mapping[str, Intervals], audio: Tensor | None, width: float | None = None, above: str = ""
) -> str:
    """A picture, waveform and spectrogram of `audio` (S,), the time axis, and strips of labels.

    Args:
        seconds: that the line is long.
        shown: strips by name.
        audio: from the beginning on, perhaps not to the end.
        width: pixels of the page, by default all there are.
        above: HTML of what comes first, as wide as the line.
    """
    room = width or FILM_PX[0]
    names = "".join(f'<div class="name">{html.escape(name)}</div>' for name in shown)
    rows = "".join(_strip(name, intervals, seconds, room) for name, intervals in shown.items())
    scale = plot = ""
    if audio is not None and len(audio):
        scale = (
            f'<div style="height:{WAVE_PX}px"></div><div class="scale" style="height:{SPECTRUM_PX}px">'
            f"<span>{SAMPLE_RATE // 2000} kHz</span><span>0</span></div>"
        )
        share = 100 * min(1.0, len(audio) / SAMPLE_RATE / seconds)
        picture = data_url("image/png", _picture(audio.nan_to_num(0, 0, 0), MAX_COLUMNS if width else 2 * FILM_PX[0]))
        style = f"width:{share:.3f}%;height:{WAVE_PX + SPECTRUM_PX}px"
        plot = f'<img class="plotted" alt="waveform and spectrogram" style="{style}" src="{picture}">'
    wide = f' style="width:{width:.0f}px"' if width else ""
    return f"""<div class="plot">
<div class="names">{'<div class="beside"></div>' if above else ""}{scale}<div class="axis"></div>{names}</div>
<div class="scroll"><div class="time" data-seconds="{seconds}"{wide}>
{above}{plot}
<div class="axis">{_ticks(seconds, room)}</div>{rows}<div class="cursor"></div></div></div></div>"""


def _picture(audio: Tensor, most: int) -> bytes:
    """PNG of the waveform above the spectrogram (0 to 8 kHz, RANGE_DB), without margins.

    It has one pixel column per 10 ms, but not more than `most`.
    """
    spectrum = spectrogram(audio)  # (WINDOW // 2 + 1, F)
    columns = min(max(spectrum.shape[1], WIDTH_PX[0]), most)
    low, high = envelope(audio, columns)
    height = WAVE_PX + SPECTRUM_PX
    figure = Figure(figsize=(columns / 100, height / 100), dpi=100, facecolor="#0b0912")
    wave = figure.add_axes((0, SPECTRUM_PX / height, 1, WAVE_PX / height))
    peak = max(-float(low.min()), float(high.max()), 1e-4)
    wave.fill_between(np.arange(len(low)), low, high, color="#f5b84c", linewidth=0.6)
    wave.set(xlim=(0, max(len(low) - 1, 1)), ylim=(-1.05 * peak, 1.05 * peak))
    wave.axis("off")
    plane = figure.add_axes((0, 0, 1, SPECTRUM_PX / height))
    plane.imshow(spectrum, origin="lower", aspect="auto", cmap="magma", vmin=-RANGE_DB, vmax=0)
    plane.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def spectrogram(audio: Tensor) -> np.ndarray:
    """Power in dB below the loudest point, (WINDOW // 2 + 1, F) for audio (S,)."""
    padded = torch.nn.functional.pad(audio, (WINDOW // 2, WINDOW // 2))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True).abs().square()
    decibel = 10 * spectrum.clamp_min(1e-10).log10()
    return (decibel - decibel.max()).numpy()


def envelope(audio: Tensor, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of at most `columns` equal stretches of audio (S,)."""
    size = math.ceil(len(audio) / columns)
    stretches = torch.nn.functional.pad(audio, (0, -len(audio) % size)).view(-1, size)
    return stretches.amin(1).numpy(), stretches.amax(1).numpy()


def _intervals(value: object, seconds: float) -> Intervals:
    """The well-formed [start, end, name] entries, cut to the recording; {"start", "end", "name"} and the like too."""
    found = []
    for entry in map(_interval, _list(value)):
        if isinstance(entry, list | tuple) and len(entry) == 3 and len(_numbers(list(entry[:2]))) == 2:
            start, end = max(entry[0], 0.0), min(entry[1], seconds)
            if start < end:
                found.append((start, end, str(entry[2])))
    return found


def _interval(entry: Any) -> Any:
    """An event as [start, end, name], to which what is false of it is added: "bell, not seen"."""
    if not isinstance(entry, dict):
        return entry
    start, end, name = (next((entry[key] for key in keys if key in entry), None) for keys in INTERVAL)
    return [start, end, ", not ".join([str(name), *(str(key) for key, value in entry.items() if value is False)])]


def _runs(units: Iterable[int], seconds: float) -> Intervals:
    """Equal neighbouring units as one interval."""
    found, start = [], 0
    for unit, run in groupby(units):
        end = start + len(list(run))
        if start * UNIT_S < seconds:
            found.append((start * UNIT_S, end * UNIT_S, str(unit)))
        start = end
    return found


def _strip(name: str, intervals: Intervals, seconds: float, width: float) -> str:
    """One row of labels; those that have no room are in the tool tips only, but words are cut."""
    spans = []
    for start, end, label in intervals:
        colour = f";background:hsl({hue(label)} 45% 42%)" if name.split()[0] in ("units", "events") else ""
        room = name.split()[0] in ("words", "events") or (end - start) / seconds * width > 7 * len(label) + 2
        escaped = html.escape(label)
        spans.append(
            f'<span title="{escaped} {start:.2f}-{end:.2f} s" style="left:{100 * start / seconds:.3f}%;'
            f'width:{100 * (end - start) / seconds:.3f}%{colour}">{escaped if room else ""}</span>'
        )
    return f'<div class="strip {name}">{"".join(spans)}</div>'


def ticks(seconds: float, width: float, apart: float) -> list[float]:
    """Round times of an axis that is `width` px long, at least `apart` px from one to the next."""
    steps = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
    step = next((step for step in steps if step / seconds * width >= apart), steps[-1])
    return [step * i for i in range(math.ceil(seconds / step))]


def _ticks(seconds: float, width: float) -> str:
    times = ticks(seconds, width, 60)
    return "".join(f'<span style="left:{100 * t / seconds:.3f}%">{t:g} s</span>' for t in times)
