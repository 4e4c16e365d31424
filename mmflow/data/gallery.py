"""`data show` as one picture: samples of any data sets as cards on a page, at a glance.

What is on a card goes by the kinds of its fields; a card is a stack of RGB images as wide as its inside.
"""

import functools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmflow.atomic import atomic_file
from mmflow.data import media
from mmflow.data.decode import BadSample, Lazy
from mmflow.data.pictures import Picture
from mmflow.data.told import Captions, Labels, Paragraph, Piece, Question, Row, Turn, as_list, says_all, told

COLUMNS, COLUMN, GAP, MARGIN, PAD = 5, 296, 16, 28, 16  # px; all together 1600, of which half can still be read
SPACE = 8  # px between the images of a card
WIDE = 2 * COLUMN + GAP - 2 * PAD  # inside of a card of two columns
PAPER, CARD, LINE, STRIP, INK, SOFT = "#f1eff7", "#ffffff", "#dcd9e6", "#efedf5", "#1f1d27", "#6f6b7c"
ACCENT, GOOD, GOOD_PAPER, WAVE, NIGHT, WARN = "#6636c2", "#17703c", "#dcf3e4", "#e8963a", "#17151f", "#c2410c"
BODY, SMALL = 19, 16  # px, of letters
FILM_PX, WAVE_PX, SPECTRUM_PX, BAR_PX = 108, 52, 64, 24  # heights
MOST_LINES, MOST_TURNS, MOST_QUESTIONS, MOST_PARTS = 8, 8, 3, 12  # of a text, dialogue, list and document
STEP = 8  # from one shade to the next: noise that nobody sees takes a third of the file
SHADES = 12  # of a spectrogram, for the same reason
TRIES = 1500  # of moving a card to another place
LONGEST = 600  # characters of a text that are laid out


def show_gallery(samples: Iterable[Mapping[str, Any]], out: Path) -> Path:
    """Draw samples as cards on one picture, in their order from left to right and down, and return its path.

    Args:
        samples: as for `mmflow.data.show.show_page`. Pictures are drawn with their names below where there are more
            than one, and small ones enlarged without blur; videos as films with their masks, sound and events along
            one time line; sounds as waveform and spectrogram; documents in their order; what JSON says as
            `mmflow.data.told` understands it. A sample with a video or document takes two columns of four, others one.
        out: the PNG file. The same samples make the same bytes.

    Raises ValueError when there are no samples or one has nothing to draw, naming it.
    """
    cards = [(2 if _is_wide(sample) else 1, _card(sample)) for sample in samples]
    if not cards:
        raise ValueError(f"there are no samples to draw in {out}; name a split with samples in it")
    sizes = [(span, card.height + 2 * PAD) for span, card in cards]
    order = _order(sizes)
    boxes = _places([sizes[card] for card in order])
    width, height = (MARGIN + max(box[side] for box in boxes) for side in (2, 3))
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    for (x0, y0, x1, y1), number in zip(boxes, order, strict=True):
        draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), 14, CARD, LINE)
        page.paste(cards[number][1], (x0 + PAD, y0 + PAD))
    page = page.point([min(255, STEP * round(value / STEP)) for value in range(256)] * 3)
    with atomic_file(out) as file:
        page.save(file, "PNG", optimize=True)
    return out


def _order(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """An order of cards of (columns, height) that makes a low page, so one with few holes, near to the one given."""

    def cost(order: Sequence[int]) -> int:
        moved = sum(abs(place - card) for place, card in enumerate(order))
        return max(box[3] for box in _places([sizes[card] for card in order])) + moved

    draw, best = random.Random(0), list(range(len(sizes)))
    lowest = cost(best)
    for _ in range(TRIES):
        order = best.copy()
        order.insert(draw.randrange(len(order)), order.pop(draw.randrange(len(order))))
        if (height := cost(order)) < lowest:
            best, lowest = order, height
    return best


def _places(cards: Sequence[tuple[int, int]]) -> list[list[int]]:
    """[left, top, right, bottom] of cards of (columns, height): each as high up as its columns allow, the leftmost of
    such places; cards above and at the end are made longer where there would be a hole."""
    boxes: list[list[int]] = []
    last: list[int | None] = [None] * COLUMNS  # the card at the bottom of each column
    bottoms = [MARGIN - GAP] * COLUMNS

    def fill(column: int, bottom: int) -> None:
        card = last[column]
        if card is not None and last.count(card) == cards[card][0]:  # nothing below it in another column
            boxes[card][3] = max(boxes[card][3], bottom)
            for place in range(COLUMNS):
                bottoms[place] = boxes[card][3] if last[place] == card else bottoms[place]

    for card, (span, height) in enumerate(cards):
        first = min(range(COLUMNS - span + 1), key=lambda column: max(bottoms[column : column + span]))
        bottom = max(bottoms[first : first + span])
        left, top = MARGIN + first * (COLUMN + GAP), bottom + GAP
        for column in range(first, first + span):
            fill(column, bottom)
        boxes.append([left, top, left + span * COLUMN + (span - 1) * GAP, top + height])
        last[first : first + span], bottoms[first : first + span] = [card] * span, [top + height] * span
    for column in range(COLUMNS):
        fill(column, max(bottoms))
    return boxes


def _is_wide(sample: Mapping[str, Any]) -> bool:
    return any(_is_video(value) or _is_document(value) for value in sample.values())


def _is_video(value: Any) -> bool:
    return isinstance(value, Lazy) and not isinstance(value, Picture)


def _is_document(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, str) for part in value)


def _card(sample: Mapping[str, Any]) -> Image.Image:
    """Everything of a sample, one below the other."""
    fields = {name: value for name, value in sample.items() if not name.startswith("__")}
    width = WIDE if _is_wide(sample) else COLUMN - 2 * PAD
    info = fields.pop("info", None)
    info = info if isinstance(info, dict) else {}
    key = str(sample.get("__key__", ""))
    try:
        images = [*_fields(fields, info, width), *_words(fields.get("text"), info, width)]
    except BadSample as error:
        images = [_text(str(error), width, colour=WARN)]
    if not images:
        raise ValueError(
            f"sample {key!r} has nothing to draw in its fields {sorted(sample)}; name a spec with pictures, videos, "
            "sounds, texts or JSON, or show it as a page (--out page.html)"
        )
    return _stack([_heading(str(sample.get("__spec__", "")), key, width), *images], width)


def _fields(fields: Mapping[str, Any], info: Mapping[str, Any], width: int) -> Iterator[Image.Image]:
    """Pictures, films, sounds, documents, other texts."""
    parts = {name: as_list(value) for name, value in fields.items() if not _is_document(value)}
    films = [part for value in parts.values() for part in value if _is_video(part)]
    masks = {name: value for name, value in fields.items() if "mask" in name and isinstance(value, np.ndarray)}
    pictures = [(name, part) for name, value in parts.items() for part in value if isinstance(part, Picture)]
    if pictures or (masks and not films):
        shown = [(name, picture.tensor().permute(1, 2, 0).numpy()) for name, picture in pictures if "mask" not in name]
        shown += [(name, _mask(picture)) for name, picture in pictures if "mask" in name]
        shown += [(name, _mask(mask)) for name, mask in masks.items() if not films]
        yield _pictures(shown, width)
    for film in films:
        moving = [mask for mask in masks.values() if mask.ndim == 3]
        yield from _film(film, moving, info, width)
    for name, value in fields.items():
        if _is_document(value):
            yield _document(value, width)
        elif isinstance(value, Tensor) and value.ndim == 1 and len(value):
            yield _sound(value.float(), width, SPECTRUM_PX)
        elif isinstance(value, str) and name != "text" and value:
            yield _text(f"{name}: {value}", width, SMALL, SOFT)
        elif isinstance(value, np.ndarray) and name not in masks:
            yield _text(f"{name}: {value.dtype} {value.shape}", width, SMALL, SOFT)


# -- words -------------------------------------------------------------------------------------------------------------


def _words(text: Any, info: Mapping[str, Any], width: int) -> Iterator[Image.Image]:
    """The text of a sample and what its JSON says, without its facts."""
    text = str(text or "")
    pieces = list(told(info, text))
    if text and not says_all(pieces, text):
        yield _text(text, width)
    questions = [piece for piece in pieces if isinstance(piece, Question)]
    turns = [piece for piece in pieces if isinstance(piece, Turn)]
    for piece in pieces:
        if not (piece in questions[MOST_QUESTIONS:] or piece in turns[MOST_TURNS:]):
            yield from _piece(piece, width)


def _piece(piece: Piece, width: int) -> Iterator[Image.Image]:
    match piece:
        case Captions(texts):
            yield _text(texts[-1], width, SMALL, SOFT, most=4)
        case Question():
            yield _text(piece.text, width, bold=True)
            answers = [piece.answer] if piece.answer is not None else [text for text, _ in piece.given[:1]]
            options = [option for option in piece.options if option not in answers]
            yield _chips([(text, GOOD_PAPER, GOOD) for text in answers] + [(o, STRIP, INK) for o in options], width)
        case Turn(speaker, text, is_reply):
            yield _bubble(f"{speaker}: {text}" if speaker else text, is_reply, width)
        case Row(cells):
            yield _table(cells, width)
        case Paragraph(name, text):
            yield _text(f"{name.rstrip(':')}: {text}", width, SMALL, SOFT)
        case Labels(names):
            yield _chips([(name, *_colours(name)) for name in dict.fromkeys(names[:6])], width)


@functools.lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, so that it is the same everywhere."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def _lines(text: str, width: int, font: ImageFont.FreeTypeFont, most: int = MOST_LINES) -> list[str]:
    """A text in lines of at most `width` px, cut with "…" after `most`."""
    text = " ".join(text[:LONGEST].encode("utf-8", "replace").decode().split()) + ("…" if len(text) > LONGEST else "")
    lines, line = [], ""
    for word in text.split(" "):
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        lines += [line] if line else []
        while font.getlength(word) > width:  # an address, or a language without blanks
            fits = max(1, next(i for i in range(len(word), -1, -1) if font.getlength(word[:i]) <= width))
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    lines.append(line)
    if len(lines) > most:
        last = lines[most - 1]
        while font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last.rstrip(' ,.;')}…"]
    return lines


def _text(
    text: str, width: int, size: int = BODY, colour: str = INK, bold: bool = False, most: int = MOST_LINES
) -> Image.Image:
    font, step = _font(size, bold), round(1.32 * size)
    lines = _lines(text, width, font, most)
    image = Image.new("RGB", (width, step * len(lines)), CARD)
    draw = ImageDraw.Draw(image)
    for place, line in enumerate(lines):
        draw.text((0, place * step + step // 2), line, colour, font, anchor="lm")
    return image


def _heading(name: str, key: str, width: int) -> Image.Image:
    """The name of the data set, and the key of the sample as far as there is room."""
    image = Image.new("RGB", (width, 24), CARD)
    draw = ImageDraw.Draw(image)
    name = _lines(name or key, width, _font(17, True), 1)[0]
    draw.text((0, 12), name, ACCENT, _font(17, True), anchor="lm")
    room = width - round(_font(17, True).getlength(name)) - 12
    if key != name and _font(13).getlength(key) <= room:
        draw.text((width, 12), key, SOFT, _font(13), anchor="rm")
    return image


def _chips(chips: Sequence[tuple[str, Any, Any]], width: int) -> Image.Image:
    """(text, colour, colour of the letters) as little plates in rows."""
    font, high = _font(19), 32
    placed, x, y = [], 0, 0
    for text, paper, ink in chips:
        text = _lines(text, width - 24, font, 1)[0]
        wide = round(font.getlength(text)) + 24
        if x and x + wide > width:
            x, y = 0, y + high + 6
        placed.append((x, y, wide, text, paper, ink))
        x += wide + 8
    image = Image.new("RGB", (width, y + high), CARD)
    draw = ImageDraw.Draw(image)
    for left, top, wide, text, paper, ink in placed:
        draw.rounded_rectangle((left, top, left + wide - 1, top + high - 1), high // 2, paper)
        draw.text((left + wide / 2, top + high / 2), text, ink, font, anchor="mm")
    return image


def _colours(name: str) -> tuple[str, str]:
    """Of a plate and its letters."""
    return f"hsl({media.hue(name)}, 60%, 91%)", f"hsl({media.hue(name)}, 60%, 28%)"


def _bubble(text: str, is_reply: bool, width: int) -> Image.Image:
    font = _font(19)
    lines = _lines(text, round(0.82 * width) - 28, font)
    wide = round(max(map(font.getlength, lines))) + 28
    image = Image.new("RGB", (width, 25 * len(lines) + 12), CARD)
    draw = ImageDraw.Draw(image)
    left = width - wide if is_reply else 0
    draw.rounded_rectangle((left, 0, left + wide - 1, image.height - 1), 15, GOOD_PAPER if is_reply else STRIP)
    for place, line in enumerate(lines):
        draw.text((left + 14, 6 + 25 * place + 12), line, GOOD if is_reply else INK, font, anchor="lm")
    return image


def _table(row: Mapping[str, Any], width: int) -> Image.Image:
    """Names and values of a row with a line below each."""
    font, high = _font(18), 31
    first = min(round(max([font.getlength(str(name)) for name in row] or [0])) + 18, width // 2)
    image = Image.new("RGB", (width, high * len(row)), CARD)
    draw = ImageDraw.Draw(image)
    for place, (name, value) in enumerate(row.items()):
        middle = place * high + high // 2
        draw.text((0, middle), _lines(str(name), first - 8, font, 1)[0], SOFT, font, anchor="lm")
        said, colour = ("missing", SOFT) if value is None else (str(value), INK)
        draw.text((first, middle), _lines(said, width - first, font, 1)[0], colour, font, anchor="lm")
        draw.line((0, middle + high // 2, width, middle + high // 2), LINE)
    return image


# -- pictures and films ------------------------------------------------------------------------------------------------


def _pictures(shown: Sequence[tuple[str, np.ndarray]], width: int) -> Image.Image:
    """(name, (H, W, 3)) side by side, at most three in a row and four in two; names below where there are more."""
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3) if width < COLUMN else min(len(shown), 4)
    tile = (width - (columns - 1) * SPACE) // columns
    rows = []
    for start in range(0, len(shown), columns):
        images = []
        for name, pixels in shown[start : start + columns]:
            image = _fitted(pixels, tile, tile if len(shown) > 1 else 2 * tile)
            images.append(_stack([image, _text(name, tile, SMALL - 2, SOFT)], tile, 3) if len(shown) > 1 else image)
        rows.append(_beside(images, width))
    return _stack(rows, width)


def _mask(mask: Picture | np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): its labels in colours on a dark ground."""
    pixels = media.mask_picture(mask)
    ground = np.array([23, 21, 31])
    return np.where(pixels[..., 3:] > 0, pixels[..., :3], ground).astype(np.uint8)


def _fitted(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    """uint8 (H, W, 3) as large as fits; what is enlarged keeps its square pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if scale >= 2 and scale - int(scale) < 0.15:  # nearly: every pixel then is as large as the others
        return image.resize((int(scale) * image.width, int(scale) * image.height), Image.Resampling.NEAREST)
    if scale > 1:
        times = math.ceil(scale)
        image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.BOX if scale > 1 else Image.Resampling.LANCZOS)


def _film(video: Any, masks: Sequence[np.ndarray], info: Mapping[str, Any], width: int) -> Iterator[Image.Image]:
    """Stills of a video, its masks, its sound and its events, one below the other at the same times."""
    count = min(max(round(width / (FILM_PX * video.aspect)), 3), 12)
    tile = (width - 3 * (count - 1)) // count
    high = max(2, round(tile / video.aspect))
    clip = video.clip(0, video.seconds, count / video.seconds)  # (count, 3, H, W)
    yield _beside([_fitted(still, tile, high) for still in clip.permute(0, 2, 3, 1).numpy()], width, 3)
    for mask in masks:
        stills = [mask[number * len(mask) // count] for number in range(count)]
        yield _beside([_fitted(_mask(still), tile, high) for still in stills], width, 3)
    lines = [_sound(video.sound(0, video.seconds), width, 0)] if video.has_audio else []
    lines += [_bars(intervals, video.seconds, width) for intervals in media.strips(info, video.seconds).values()]
    yield _stack([*lines, _axis(video.seconds, width)], width, 4)


def _sound(audio: Tensor, width: int, spectrum: int) -> Image.Image:
    """Waveform of a sound (S,) above its spectrogram `spectrum` px high, if more than 0."""
    audio = audio.nan_to_num(0, 0, 0)
    image = Image.new("RGB", (width, WAVE_PX + spectrum), NIGHT)
    draw = ImageDraw.Draw(image)
    low, high = media.envelope(audio, width)
    scale = (WAVE_PX / 2 - 4) / max(float(np.abs(low).max()), float(np.abs(high).max()), 1e-4)
    for x in range(width):
        at = x * len(low) // width
        draw.line((x, WAVE_PX / 2 - scale * high[at], x, WAVE_PX / 2 - scale * low[at]), WAVE)
    if spectrum:
        power = 1 + media.spectrogram(audio)[::-1] / media.RANGE_DB
        plane = Image.fromarray(power.astype(np.float32)).resize((width, spectrum), Image.Resampling.BOX)
        steps = np.round(np.asarray(plane).clip(0, 1) * SHADES) / SHADES
        colours = matplotlib.colormaps["magma"](steps, bytes=True)[..., :3]
        image.paste(Image.fromarray(np.ascontiguousarray(colours)), (0, WAVE_PX))
    return image


def _bars(intervals: media.Intervals, seconds: float, width: int) -> Image.Image:
    """A strip of events; names without room are left out."""
    font = _font(15)
    image = Image.new("RGB", (width, BAR_PX), STRIP)
    draw = ImageDraw.Draw(image)
    for start, end, name in intervals:
        left, right = round(start / seconds * width), round(end / seconds * width) - 1
        first, comma, _ = name.partition(",")  # "bell, not seen" is a fainter bell
        colour = f"hsl({media.hue(first)}, 40%, {58 if comma else 42}%)"
        draw.rounded_rectangle((left, 0, max(left + 2, right), BAR_PX - 1), 4, colour)
        short = [text for text in (name, first) if font.getlength(text) <= right - left - 8]
        if short:
            draw.text(((left + right) / 2, BAR_PX / 2), short[0], "#ffffff", font, anchor="mm")
    return image


def _axis(seconds: float, width: int) -> Image.Image:
    """Times at least 90 px apart."""
    font = _font(15)
    image = Image.new("RGB", (width, 20), CARD)
    draw = ImageDraw.Draw(image)
    for time in media.ticks(seconds, width, 90):
        x = round(time / seconds * width)
        draw.line((x, 0, x, 6), SOFT)
        label = f"{time:g} s"
        if x + 4 + font.getlength(label) <= width:
            draw.text((x + 4, 10), label, SOFT, font, anchor="lm")
    return image


def _document(parts: Sequence[Any], width: int) -> Image.Image:
    """The parts in their order, in rows of four."""
    tile = (width - 3 * SPACE) // 4
    cells = []
    texts: list[str] = []
    for part, following in zip(parts[:MOST_PARTS], [*parts[1:], None], strict=False):
        if isinstance(part, str):
            texts.append(part)
            if not isinstance(following, str):  # texts in succession are one cell
                lines = MOST_LINES + 2
                cells.append(_stack([_text(text, tile, SMALL, most=lines) for text in texts], tile))
                texts = []
        elif isinstance(part, Picture):
            cells.append(_fitted(part.tensor().permute(1, 2, 0).numpy(), tile, tile))
        elif isinstance(part, Tensor):
            cells.append(_sound(part.float(), tile, SPECTRUM_PX) if len(part) else _text("silence", tile, SMALL, SOFT))
        else:
            cells.append(_stack(list(_film(part, [], {}, tile)), tile, 4))
    return _stack([_beside(cells[start : start + 4], width) for start in range(0, len(cells), 4)], width, 14)


def _stack(images: Sequence[Image.Image], width: int, space: int = SPACE) -> Image.Image:
    """One below the other."""
    image = Image.new("RGB", (width, sum(part.height for part in images) + space * (len(images) - 1)), CARD)
    y = 0
    for part in images:
        image.paste(part, (0, y))
        y += part.height + space
    return image


def _beside(images: Sequence[Image.Image], width: int, space: int = SPACE) -> Image.Image:
    """Side by side from the left."""
    high = max(part.height for part in images)
    image = Image.new("RGB", (width, high), CARD)
    x = 0
    for part in images:
        image.paste(part, (x, (high - part.height) // 2))
        x += part.width + space
    return image
