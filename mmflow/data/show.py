"""`data show`: a page to look at samples, play and listen to them, in one HTML file that needs no network.

Legend: S samples at 16 kHz, F spectrogram columns (one per 10 ms), T units (one per 20 ms).
"""

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mmflow.data.decode import SAMPLE_RATE, Lazy
from mmflow.data.pictures import Picture

UNIT_S = 320 / SAMPLE_RATE  # one unit per 20 ms
HOP = 160  # samples from one spectrogram column to the next
WINDOW = 400  # samples
RANGE_DB = 80.0  # below the loudest point everything is black

WAVE_PX, SPECTRUM_PX = 64, 176  # heights
MAX_COLUMNS = 8000  # of the picture; longer recordings get coarser columns
PX_PER_S = 200  # width of a second on the page: a phone of 50 ms has room for its name
WIDTH_PX = (480, 24_000)  # of the time line, least and most

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1d1d22; --soft: #6d6d78; --line: #dedce4;
  --strip: #f1eff6; }
@media (prefers-color-scheme: dark) { :root { --paper: #16151b; --card: #1f1e26; --ink: #ece9f2; --soft: #9d99aa;
  --line: #34323e; --strip: #292731; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 28px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 26px; letter-spacing: -0.01em; }
.facts { margin: 4px 0 24px; color: var(--soft); }
article { margin: 0 0 18px; padding: 16px 18px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
h2 { display: inline; margin: 0 10px 0 0; font: 600 15px/1.3 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.meta { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.text { margin: 8px 0; font-size: 18px; overflow-wrap: anywhere; }
.none { color: var(--soft); font-style: italic; font-size: 15px; }
.warn { color: #c2410c; font-weight: 600; }
.seen { display: block; max-width: min(100%, 640px); max-height: 480px; margin: 10px 0 4px; border-radius: 6px; }
audio { display: block; width: min(100%, 520px); height: 36px; margin: 4px 0 10px; }
.plot { display: grid; grid-template-columns: 56px minmax(0, 1fr); font-size: 11px; }
.names { color: var(--soft); text-align: right; padding-right: 8px; }
.scale { display: flex; flex-direction: column; justify-content: space-between; line-height: 1; }
.name { height: 22px; margin-top: 2px; line-height: 22px; }
.scroll { overflow-x: auto; }
.time { position: relative; cursor: crosshair; }
.time img { display: block; width: 100%; border-radius: 4px 4px 0 0; background: #000; }
.axis, .strip { position: relative; overflow: hidden; }
.axis { height: 18px; color: var(--soft); }
.axis span { position: absolute; top: 2px; padding-left: 3px; border-left: 1px solid var(--soft); line-height: 1; }
.strip { height: 22px; margin-top: 2px; background: var(--strip); border-radius: 3px; }
.strip span { position: absolute; top: 0; bottom: 0; overflow: hidden; text-align: center; line-height: 22px;
  white-space: nowrap; border-left: 1px solid var(--card); }
.units span { color: #fff; border-left-color: #0006; }
.cursor { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #22d3ee; pointer-events: none;
  visibility: hidden; }
.sequence { margin: 8px 0 0; color: var(--soft); overflow-wrap: anywhere; }
details { margin-top: 8px; font-size: 13px; color: var(--soft); }
pre { margin: 6px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
"""

SCRIPT = """
for (const card of document.querySelectorAll("article")) {
  const audio = card.querySelector("audio"), time = card.querySelector(".time"), cursor = card.querySelector(".cursor");
  if (!audio) continue;
  const follow = () => {
    cursor.style.visibility = "visible";
    cursor.style.left = 100 * audio.currentTime / time.dataset.seconds + "%";
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    follow();
  });
  audio.addEventListener("seeked", follow);
  time.addEventListener("click", event => {
    const box = time.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * time.dataset.seconds;
    audio.play();
  });
}
"""


def show_page(samples: Iterable[Mapping[str, Any]], title: str, out: Path) -> Path:
    """Write a page with pictures, videos, sound, text and labels of each sample, and return its path.

    Args:
        samples: each with "__key__", "__shard__", and where there are any "audio" (S,) at 16 kHz, "text", "info"
            (whose "words" and "phones" are [start in s, end in s, name], and whose "captions" are a list), "units"
            (T,), and under any name pictures, videos, or a list of them.
        title: what the page is about.
        out: the HTML file.

    Raises ValueError when there are no samples.
    """
    samples = list(samples)
    if not samples:
        raise ValueError(f"there are no samples to show for {title!r}; name a split with samples in it")
    cards = "\n".join(_card(sample) for sample in samples)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; \
style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="facts">{html.escape(_facts(samples))}</p>
{cards}
<script>{SCRIPT}</script>
</body>
</html>
"""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, "utf-8", errors="replace")
    return out


def _facts(samples: list[Mapping[str, Any]]) -> str:
    seconds = sum(len(sample["audio"]) for sample in samples if "audio" in sample) / SAMPLE_RATE
    speakers = {str(sample["info"]["speaker"]) for sample in samples if "speaker" in (sample.get("info") or {})}
    silent = sum(not sample.get("text") for sample in samples)
    facts = [f"{len(samples)} samples"] + ([f"{seconds:.1f} s"] if seconds else [])
    facts.append(f"{len({s['__shard__'] for s in samples})} shards")
    facts += [f"{len(speakers)} speakers"] if speakers else []
    facts += [f"{silent} without text"] if silent else []
    return " · ".join(facts)


def _card(sample: Mapping[str, Any]) -> str:
    info = sample.get("info") or {}
    text = sample.get("text")
    audio = sample["audio"].detach().float().cpu() if "audio" in sample else None  # (S,)
    meta = [f"speaker {info['speaker']}"] if "speaker" in info else []
    meta += [f"{len(audio) / SAMPLE_RATE:.2f} s"] if audio is not None else []
    meta.append(str(sample["__shard__"]))
    captions = info.get("captions", [])[1:] if isinstance(info.get("captions"), list) else []  # `text` is the first
    seen = "".join(_seen(part) for value in sample.values() for part in (value if isinstance(value, list) else [value]))
    phones = info.get("phone_sequence")
    sequence = f'<p class="sequence">phones: {html.escape(" ".join(map(str, phones)))}</p>' if phones else ""
    rest = {name: value for name, value in info.items() if name not in ("words", "phones", "phone_sequence")}
    return f"""<article>
<h2>{html.escape(str(sample["__key__"]))}</h2>
<span class="meta">{html.escape(" · ".join(meta))}{"" if audio is None else f" · {_level(audio)}"}</span>
{seen}
<p class="text{"" if text else " none"}" dir="auto">{html.escape(text) if text else "no text"}</p>
{"".join(f'<p class="text" dir="auto">{html.escape(str(caption))}</p>' for caption in captions)}
{"" if audio is None else _heard(audio, info, sample.get("units"))}
{sequence}
<details><summary>info</summary><pre>{html.escape(json.dumps(rest, indent=2, ensure_ascii=False, default=str))}</pre>
</details>
</article>"""


def _heard(audio: Tensor, info: Mapping[str, Any], units: Any) -> str:
    """A player of a sound (S,) and its plot."""
    if not len(audio):
        return '<p class="none">no audio samples</p>'
    return _sound(audio) + _plot(audio, info, units)


def _seen(part: object) -> str:
    """A picture or a video as it is in the shard; nothing for any other value."""
    if isinstance(part, Picture):
        size = f"{part.width} x {part.height}"
        return f'<img class="seen" alt="{size}" title="{size}" src="{_data_url(_kind(part.data), part.data)}">'
    if isinstance(part, Lazy):
        kind = _kind(part.data)
        if kind.startswith("video/"):
            return f'<video class="seen" controls preload="metadata" src="{_data_url(kind, part.data)}"></video>'
        return '<p class="none">a video in a format that browsers do not play</p>'
    return ""


def _kind(data: bytes) -> str:
    """The media type that the first bytes of a picture or video tell."""
    starts = {b"\xff\xd8": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp", b"\x1aE\xdf\xa3": "video/webm"}
    if data[4:8] == b"ftyp":
        return "video/mp4"
    return next((kind for start, kind in starts.items() if data.startswith(start)), "application/octet-stream")


def _level(audio: Tensor) -> str:
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


def _sound(audio: Tensor) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.nan_to_num(0, 1, -1).clamp(-1, 1).numpy(), SAMPLE_RATE, format="FLAC")
    return f'<audio controls preload="metadata" src="{_data_url("audio/flac", buffer.getvalue())}"></audio>'


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _plot(audio: Tensor, info: Mapping[str, Any], units: Any) -> str:
    """Waveform and spectrogram above their time axis and the strips of words, phones and units."""
    seconds = len(audio) / SAMPLE_RATE
    width = min(max(seconds * PX_PER_S, WIDTH_PX[0]), WIDTH_PX[1])
    strips = {name: _intervals(info[name], seconds) for name in ("words", "phones") if name in info}
    if units is not None:
        strips["units"] = _runs(np.asarray(units).reshape(-1).tolist())
    names = "".join(f'<div class="name">{name}</div>' for name in strips)
    rows = "".join(_strip(name, intervals, seconds, width) for name, intervals in strips.items())
    picture = _data_url("image/png", _picture(audio.nan_to_num(0, 0, 0)))
    return f"""<div class="plot">
<div class="names"><div style="height:{WAVE_PX}px"></div>
<div class="scale" style="height:{SPECTRUM_PX}px"><span>{SAMPLE_RATE // 2000} kHz</span><span>0</span></div>
<div class="axis"></div>{names}</div>
<div class="scroll"><div class="time" data-seconds="{seconds}" style="width:{width:.0f}px">
<img alt="waveform and spectrogram" style="height:{WAVE_PX + SPECTRUM_PX}px" src="{picture}">
<div class="axis">{_ticks(seconds, width)}</div>{rows}<div class="cursor"></div></div></div></div>"""


def _picture(audio: Tensor) -> bytes:
    """PNG of the waveform above the spectrogram (0 to 8 kHz, RANGE_DB), one pixel column per 10 ms, without margins."""
    spectrum = _spectrogram(audio)  # (WINDOW // 2 + 1, F)
    columns = min(max(spectrum.shape[1], WIDTH_PX[0]), MAX_COLUMNS)
    low, high = _envelope(audio, columns)
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


def _spectrogram(audio: Tensor) -> np.ndarray:
    """Power in dB below the loudest point, (WINDOW // 2 + 1, F) for audio (S,)."""
    padded = torch.nn.functional.pad(audio, (WINDOW // 2, WINDOW // 2))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True).abs().square()
    decibel = 10 * spectrum.clamp_min(1e-10).log10()
    return (decibel - decibel.max()).numpy()


def _envelope(audio: Tensor, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of at most `columns` equal stretches of audio (S,)."""
    size = math.ceil(len(audio) / columns)
    stretches = torch.nn.functional.pad(audio, (0, -len(audio) % size)).view(-1, size)
    return stretches.amin(1).numpy(), stretches.amax(1).numpy()


def _intervals(value: object, seconds: float) -> list[tuple[float, float, str]]:
    """The well-formed [start, end, name] entries, cut to the recording."""
    entries = value if isinstance(value, list) else []
    found = []
    for entry in entries:
        if isinstance(entry, list | tuple) and len(entry) == 3 and all(isinstance(t, int | float) for t in entry[:2]):
            start, end = max(entry[0], 0.0), min(entry[1], seconds)
            if start < end:
                found.append((start, end, str(entry[2])))
    return found


def _runs(units: list[int]) -> list[tuple[float, float, str]]:
    """Equal neighbouring units as one interval."""
    found, start = [], 0
    for unit, run in groupby(units):
        end = start + len(list(run))
        found.append((start * UNIT_S, end * UNIT_S, str(unit)))
        start = end
    return found


def _strip(name: str, intervals: list[tuple[float, float, str]], seconds: float, width: float) -> str:
    """One row of labels; those that have no room are in the tool tips only, but words are cut."""
    spans = []
    for start, end, label in intervals:
        colour = f";background:hsl({_hue(label)} 45% 42%)" if name == "units" else ""
        room = name == "words" or (end - start) / seconds * width > 7 * len(label) + 2
        escaped = html.escape(label)
        spans.append(
            f'<span title="{escaped} {start:.2f}-{end:.2f} s" style="left:{100 * start / seconds:.3f}%;'
            f'width:{100 * (end - start) / seconds:.3f}%{colour}">{escaped if room else ""}</span>'
        )
    return f'<div class="strip {name}">{"".join(spans)}</div>'


def _hue(label: str) -> int:
    """Neighbouring numbers get hues far apart: steps of the golden angle."""
    return round(int(label) * 137.508) % 360


def _ticks(seconds: float, width: float) -> str:
    """Times on the axis, at least 60 px apart."""
    steps = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
    step = next((step for step in steps if step / seconds * width >= 60), steps[-1])
    times = [step * i for i in range(math.ceil(seconds / step))]
    return "".join(f'<span style="left:{100 * t / seconds:.3f}%">{t:g} s</span>' for t in times)
