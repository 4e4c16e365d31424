"""`data show`: a page to look at samples, play and listen to them, in one HTML file that needs no network."""

import base64
import hashlib
import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmflow.data import media
from mmflow.data.decode import SAMPLE_RATE, Lazy
from mmflow.data.pictures import Picture
from mmflow.data.told import Captions, Facts, Labels, Paragraph, Piece, Question, Row, Turn, as_list, says_all, told

PAGE_BYTES = 20_000_000  # of all media together before they are written as text, which takes 4/3 of it
LONG_TEXT = 3000  # characters; of longer texts the beginning is shown

STYLE = """
:root { color-scheme: light dark; --paper: #f6f5f1; --card: #fff; --ink: #1d1d22; --soft: #676772; --line: #dedce4;
  --strip: #efedf4; --accent: #6d3fc4; --good: #17703c; --good-paper: #e2f4e8; --shade: 92%; --write: 28%; }
@media (prefers-color-scheme: dark) { :root { --paper: #131218; --card: #1d1c24; --ink: #ece9f2; --soft: #a09cae;
  --line: #34323e; --strip: #2a2833; --accent: #b99bf7; --good: #8fe0ad; --good-paper: #173524; --shade: 24%;
  --write: 82%; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 28px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 26px; letter-spacing: -0.01em; }
.facts { margin: 4px 0 24px; color: var(--soft); }
article { min-width: 0; padding: 16px 18px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
h2.spec { margin: 32px 0 10px; font-size: 20px; color: var(--accent); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 16px; }
.cards .wide { grid-column: 1 / -1; }
h3 { display: inline; margin: 0 10px 0 0; font: 600 15px/1.3 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.meta, .size, figcaption, details { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.size { margin: 4px 0; }
.body { display: flex; flex-wrap: wrap; gap: 4px 28px; margin-top: 12px; align-items: flex-start; }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; flex: 0 1 auto; max-width: 100%; }
.said { flex: 1 1 260px; min-width: 0; }
.said > :first-child { margin-top: 0; }
.text { margin: 8px 0; font-size: 17px; overflow-wrap: anywhere; white-space: pre-line; max-width: 80ch; }
.paragraph { margin: 6px 0; color: var(--soft); overflow-wrap: anywhere; white-space: pre-line; max-width: 80ch; }
.paragraph b { font-weight: 600; }
.captions { margin: 8px 0; padding-left: 20px; color: var(--soft); max-width: 80ch; }
.none { color: var(--soft); font-style: italic; font-size: 15px; }
.warn { color: #c2410c; font-weight: 600; }
@media (prefers-color-scheme: dark) { .warn { color: #fb923c; } }
.shot { margin: 0; max-width: 100%; }
.frame { position: relative; width: fit-content; max-width: 100%; border-radius: 6px; overflow: hidden;
  background: var(--strip); }
.frame > img:first-child { display: block; max-width: min(100%, 640px); max-height: 480px; }
.over { position: absolute; inset: 0; width: 100%; height: 100%; }
.shot:has(input:not(:checked)) .over { display: none; }
.over g { fill: hsl(var(--hue) 90% 55% / .32); stroke: hsl(var(--hue) 95% 60%); }
.over polygon, .over rect { stroke-width: 1.6px; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.over rect { fill: none; stroke-dasharray: 4 3; opacity: .75; }
figcaption { max-width: 640px; margin-top: 3px; }
figcaption label { margin: 0 6px; white-space: nowrap; cursor: pointer; }
figcaption input { margin: 0; vertical-align: -2px; accent-color: var(--accent); }
.chip { display: inline-block; margin: 2px 4px 2px 0; padding: 1px 9px; border-radius: 11px; font-size: 13px;
  background: hsl(var(--hue) 60% var(--shade)); color: hsl(var(--hue) 60% var(--write)); overflow-wrap: anywhere; }
.chip i { display: inline-block; width: 8px; height: 8px; margin-right: 5px; border-radius: 50%;
  background: hsl(var(--hue) 90% 55%); }
.fact { display: inline-block; margin: 2px 12px 2px 0; font-size: 13px; overflow-wrap: anywhere; }
.fact b, th { font-weight: 400; color: var(--soft); }
.question { margin: 8px 0 4px; font-size: 17px; font-weight: 600; overflow-wrap: anywhere; }
.said p { margin: 6px 0; }
.answers { margin: 0 0 10px; }
.answer, .option { display: inline-block; margin: 2px 6px 2px 0; padding: 2px 11px; border-radius: 7px;
  background: var(--strip); overflow-wrap: anywhere; }
.answer { background: var(--good-paper); color: var(--good); font-weight: 600; }
.turn { margin: 6px 0; max-width: 70ch; padding: 7px 12px; border-radius: 12px 12px 12px 3px; background: var(--strip);
  overflow-wrap: anywhere; white-space: pre-line; width: fit-content; }
.turn.other { margin-left: 40px; border-radius: 12px 12px 3px 12px; background: var(--good-paper); }
.turn b { display: block; font-size: 12px; font-weight: 600; color: var(--soft); }
.document { max-width: 80ch; margin: 8px 0; padding-left: 14px; border-left: 3px solid var(--line); }
.document > * { margin: 0 0 12px; }
table { border-collapse: collapse; margin: 8px 0; font-size: 14px; }
th, td { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; white-space: pre-line; }
th { white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; }
audio { display: block; width: min(100%, 520px); height: 36px; margin: 8px 0 10px; }
video { display: block; max-width: min(100%, 640px); max-height: 420px; margin: 0 0 6px; border-radius: 6px;
  background: #000; }
.unplayable, video[data-state=failed] { display: none; }
video[data-state=failed] + .unplayable { display: block; }
img[data-state=failed] { outline: 2px solid #c2410c; }
.film-roll { flex: 1 1 100%; min-width: 0; }
.film { border-radius: 6px; margin-bottom: 2px; height: 64px; }
.beside { height: 66px; }
.plot { display: grid; grid-template-columns: 56px minmax(0, 1fr); font-size: 11px; margin-top: 6px; }
.names { color: var(--soft); text-align: right; padding-right: 8px; }
.scale { display: flex; flex-direction: column; justify-content: space-between; line-height: 1; }
.name { height: 22px; margin-top: 2px; line-height: 22px; }
.scroll { overflow-x: auto; }
.time { position: relative; cursor: crosshair; }
.time img { display: block; width: 100%; }
.time .plotted { border-radius: 4px 4px 0 0; background: #000; }
.axis, .strip { position: relative; overflow: hidden; }
.axis { height: 18px; color: var(--soft); }
.axis span { position: absolute; top: 2px; padding-left: 3px; border-left: 1px solid var(--soft); line-height: 1; }
.strip { height: 22px; margin-top: 2px; background: var(--strip); border-radius: 3px; }
.strip span { position: absolute; top: 0; bottom: 0; overflow: hidden; text-align: center; line-height: 22px;
  white-space: nowrap; border-left: 1px solid var(--card); }
.units span, .events span { color: #fff; border-left-color: #0006; }
.cursor { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #22d3ee; pointer-events: none;
  visibility: hidden; }
.sequence { margin: 8px 0 0; color: var(--soft); overflow-wrap: anywhere; }
details { margin-top: 8px; }
summary { cursor: pointer; }
pre { margin: 6px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
"""

SCRIPT = """
for (const medium of document.querySelectorAll("img, video, audio")) {
  const mark = state => { medium.dataset.state = state; };
  medium.addEventListener("error", () => mark("failed"));
  medium.addEventListener(medium.tagName === "IMG" ? "load" : "loadedmetadata", () => mark("loaded"));
  if (medium.error) mark("failed");
  else if (medium.complete) mark(medium.naturalWidth ? "loaded" : "failed");
  else if (medium.readyState) mark("loaded");
}
const players = document.querySelectorAll("audio, video");
for (const player of players) {
  player.addEventListener("play", () => {
    for (const other of players) if (other !== player) other.pause();
  });
}
for (const part of document.querySelectorAll(".timed")) {
  const player = part.querySelector("audio, video"), time = part.querySelector(".time");
  const cursor = part.querySelector(".cursor");
  if (!player) continue;
  const follow = () => {
    cursor.style.visibility = "visible";
    cursor.style.left = 100 * player.currentTime / time.dataset.seconds + "%";
    if (!player.paused) requestAnimationFrame(follow);
  };
  player.addEventListener("play", follow);
  player.addEventListener("seeked", follow);
  time.addEventListener("click", event => {
    const box = time.getBoundingClientRect();
    player.currentTime = (event.clientX - box.left) / box.width * time.dataset.seconds;
    player.play();
  });
}
"""


def show_page(samples: Iterable[Mapping[str, Any]], title: str, out: Path) -> Path:
    """Write a page with everything in each sample, and return its path.

    Args:
        samples: each with "__key__", "__shard__", and what `Corpus.read` gives: pictures, videos, sounds (S,) at
            16 kHz, text, JSON, arrays, documents and other lists. Of a field "audio" there is a time line too, with
            "units" (T,). Pictures and arrays of a field with "mask" in its name can be laid over the picture whose
            name or place is the same otherwise. What is known of JSON: "words", "phones" and "events" are [start in s,
            end in s, name] or {"start", "end", "name"}; "objects" as COCO has them; `mmflow.data.told` has the rest.
            Where "__spec__" differs, each has a heading.
        title: what the page is about.
        out: the HTML file. It stays below about PAGE_BYTES * 4 / 3: larger pictures are reduced, larger videos shown
            by their stills, and longer sounds cut, which the page says.

    Raises ValueError when there are no samples.
    """
    samples = list(samples)
    if not samples:
        raise ValueError(f"there are no samples to show for {title!r}; name a split with samples in it")
    parts = [part for sample in samples for value in sample.values() for part in as_list(value)]
    kinds = Counter(map(_kind, parts))
    budget = _budget([size for part in parts if (size := _size(part))])
    specs = list(dict.fromkeys(str(sample.get("__spec__", "")) for sample in samples))
    cards = ""
    for spec in specs:
        own = [_card(sample, budget) for sample in samples if str(sample.get("__spec__", "")) == spec]
        heading = f'<h2 class="spec">{html.escape(spec)}</h2>\n' if len(specs) > 1 else ""
        cards += f'{heading}<div class="cards">\n{"".join(own)}\n</div>\n'
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
<p class="facts">{html.escape(_facts(samples, kinds))}</p>
{cards}
<script>{SCRIPT}</script>
</body>
</html>
"""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, "utf-8", errors="replace")
    return out


def _kind(part: Any) -> str:
    if isinstance(part, Picture):
        return "pictures"
    if isinstance(part, Lazy):
        return "videos"
    return "sounds" if isinstance(part, Tensor) else "others"


def _size(part: Any) -> int:
    """Bytes that a medium would take on the page as it is."""
    if isinstance(part, Tensor):
        return math.ceil(len(part) / SAMPLE_RATE * media.SOUND_BYTES_PER_S)
    return len(part.data) if isinstance(part, Picture | Lazy) else 0


def _budget(sizes: list[int]) -> int:
    """The most bytes that each medium may take for all to fit; those that need less leave the rest to the others."""
    left = PAGE_BYTES
    for place, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - place)
        if size > share:
            return share
        left -= size
    return PAGE_BYTES


def _facts(samples: list[Mapping[str, Any]], kinds: Mapping[str, int]) -> str:
    seconds = sum(len(sample["audio"]) for sample in samples if "audio" in sample) / SAMPLE_RATE
    speakers = {str(_info(sample)["speaker"]) for sample in samples if "speaker" in _info(sample)}
    silent = sum("text" in sample and not sample["text"] for sample in samples)
    facts = [f"{len(samples)} samples"] + ([f"{seconds:.1f} s"] if seconds else [])
    facts.append(f"{len({s['__shard__'] for s in samples})} shards")
    facts += [f"{kinds[kind]} {kind}" for kind in ("pictures", "videos") if kinds.get(kind)]
    facts += [f"{len(speakers)} speakers"] if speakers else []
    facts += [f"{silent} without text"] if silent else []
    return " · ".join(facts)


def _info(sample: Mapping[str, Any]) -> dict[str, Any]:
    info = sample.get("info")
    return info if isinstance(info, dict) else {}


def _card(sample: Mapping[str, Any], budget: int) -> str:
    info = _info(sample)
    audio = sample["audio"].detach().float().cpu() if isinstance(sample.get("audio"), Tensor) else None  # (S,)
    meta = [f"speaker {info['speaker']}"] if "speaker" in info else []
    meta += [f"{len(audio) / SAMPLE_RATE:.2f} s"] if audio is not None else []
    meta.append(str(sample["__shard__"]))
    fields = {name: value for name, value in sample.items() if not name.startswith("__")}
    masks = {name: fields.pop(name) for name, value in sample.items() if "mask" in name and _is_mask(value)}
    heard = "" if audio is None else media.recording(audio, info, fields.pop("units", None), budget)
    fields.pop("audio", None)
    pictures = "".join(_pictures(fields, masks, info, budget))
    text, pieces = fields.pop("text", None), list(told(info, str(sample.get("text"))))
    said = "" if "text" not in sample or says_all(pieces, str(text)) else _text(text)
    said += "".join(map(_piece, pieces))
    said += "".join(_field(name, value, budget) for name, value in fields.items() if name != "info")
    films = "".join(media.film(value, info, budget) for value in fields.values() if _kind(value) == "videos")
    about = fields.get("info")
    if isinstance(about, dict):
        about = {name: value for name, value in about.items() if name not in ("words", "phones", "phone_sequence")}
    rest = json.dumps(about, indent=2, ensure_ascii=False, default=str) if about else ""
    is_wide = audio is not None or films or any(map(_is_document, fields.values()))
    return f"""<article{' class="wide"' if is_wide else ""}>
<h3>{html.escape(str(sample["__key__"]))}</h3>
<span class="meta">{html.escape(" · ".join(meta))}{"" if audio is None else f" · {media.level(audio)}"}</span>
<div class="body">{f'<div class="pictures">{pictures}</div>' if pictures else ""}
<div class="said">{said}</div>{films}</div>
{heard}
{f"<details><summary>info</summary><pre>{html.escape(_short(rest))}</pre></details>" if rest else ""}
</article>"""


# -- pictures and masks ------------------------------------------------------------------------------------------------


def _is_mask(value: Any) -> bool:
    return all(isinstance(part, Picture | np.ndarray) for part in as_list(value))


def _pictures(
    fields: Mapping[str, Any], masks: Mapping[str, Any], info: Mapping[str, Any], budget: int
) -> Iterator[str]:
    """The pictures of a sample with their masks; then those masks for which there is no picture."""
    places = {(name, i): part for name, value in masks.items() for i, part in enumerate(as_list(value))}
    found = [
        (name, i, part)
        for name, value in fields.items()
        if not _is_document(value)
        for i, part in enumerate(as_list(value))
        if isinstance(part, Picture)
    ]
    for name, i, picture in found:
        own = [place for place in places if place[1] == i and (len(found) == 1 or _ending(place[0]) == _ending(name))]
        yield media.shot(picture, [places.pop(place) for place in own], info, budget)
    for mask in places.values():
        if isinstance(mask, Picture):
            yield media.shot(mask, [], {}, budget)


def _ending(name: str) -> str:
    """The number at the end of the name of a field, such as "3" of "mask_3"; "" without one."""
    return name[len(name.rstrip("0123456789")) :]


def _is_document(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, str) for part in value)


# -- words -------------------------------------------------------------------------------------------------------------


def _text(text: Any) -> str:
    if not text:
        return '<p class="text none">no text</p>'
    return f'<p class="text" dir="auto">{html.escape(_short(str(text)))}</p>'


def _short(text: str) -> str:
    return text if len(text) <= LONG_TEXT else f"{text[:LONG_TEXT]} … ({len(text) - LONG_TEXT:,} characters more)"


def _escaped(value: Any) -> str:
    return html.escape(_short(str(value)))


def _piece(piece: Piece) -> str:
    match piece:
        case Captions(texts):
            items = "".join(f"<li dir=auto>{_escaped(text)}</li>" for text in texts)
            return f'<ol class="captions" start="2">{items}</ol>'
        case Question():
            return _question(piece)
        case Turn(speaker, text, is_reply):
            who = f"<b>{html.escape(speaker)}</b>" if speaker else ""
            return f'<div class="turn{" other" if is_reply else ""}" dir="auto">{who}{_escaped(text)}</div>'
        case Row(cells):
            return _table(cells)
        case Paragraph(name, text):
            return f'<p class="paragraph" dir="auto"><b>{html.escape(name)}</b> {_escaped(text)}</p>'
        case Labels(names):
            chips = (f'<span class="chip" style="--hue:{media.hue(name)}">{html.escape(name)}</span>' for name in names)
            return f"<p>{''.join(chips)}</p>"
        case Facts(values):
            facts = (
                f'<span class="fact"><b>{html.escape(name)}</b> {_escaped(value)}</span>'
                for name, value in values.items()
            )
            return f"<p>{''.join(facts)}</p>"


def _question(question: Question) -> str:
    """A question, what may be chosen, and the answers that were given."""
    shown = f'<span class="answer">{_escaped(question.answer)}</span>' if question.answer is not None else ""
    shown += "".join(
        f'<span class="option">{_escaped(text)}{f" × {times}" if times > 1 else ""}</span>'
        for text, times in question.given
    )
    choices = "".join(f'<span class="option">{_escaped(option)}</span>' for option in question.options)
    return (
        f'<p class="question" dir="auto">{_escaped(question.text)}</p>'
        + (f'<p class="answers">{choices}</p>' if choices else "")
        + f'<p class="answers">{shown or "<span class=none>no answer</span>"}</p>'
    )


def _table(row: Mapping[str, Any]) -> str:
    """The columns of a row and their values."""
    cells = []
    for name, value in row.items():
        kind = ' class="number"' if isinstance(value, int | float) else ""
        shown = '<span class="none">missing</span>' if value is None else _escaped(value)
        cells.append(f"<tr><th>{html.escape(str(name))}</th><td{kind} dir=auto>{shown}</td></tr>")
    return f"<table>{''.join(cells)}</table>"


def _field(name: str, value: Any, budget: int) -> str:
    """Any other field."""
    label = f'<p class="size">{html.escape(name)}</p>'
    if _is_document(value):
        return f'<div class="document">{"".join(_part(part, budget) for part in value)}</div>'
    if isinstance(value, str):
        return label + _text(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
        text = value[: LONG_TEXT + 1].tobytes().decode("utf-8", "replace")
        return f'<p class="size">{html.escape(name)}, {len(value):,} bytes</p><pre>{html.escape(_short(text))}</pre>'
    if isinstance(value, np.ndarray):
        return f'<p class="size">{html.escape(name)}: {value.dtype} {value.shape}</p>'
    if isinstance(value, dict):
        return label + "".join(map(_piece, told(value)))
    return "".join(_part(part, budget) for part in as_list(value) if isinstance(part, Tensor))


def _part(part: Any, budget: int) -> str:
    """One part of a document."""
    if isinstance(part, str):
        return f'<p class="text" dir="auto">{html.escape(_short(part))}</p>'
    if isinstance(part, Picture):
        return media.shot(part, [], {}, budget)
    if isinstance(part, Tensor):
        return media.sound(part[: int(budget / media.SOUND_BYTES_PER_S * SAMPLE_RATE)])
    return media.film(part, {}, budget)
