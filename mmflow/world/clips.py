"""Scenes that last: clips with moving, flashing and sounding things as MP4 files, and what belongs to each frame."""

import io
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.codec.context import Flags
from numpy.typing import NDArray

from mmflow.world import language, pictures, sounds
from mmflow.world.acoustics import SAMPLE_RATE
from mmflow.world.scene import BACKGROUNDS, STYLES, Scene, SceneOptions, Sound, choose, draw_scene
from mmflow.world.stills import WorldSource

Frames = NDArray[np.uint8]  # (T, H, W, 3), RGB
Labels = NDArray[np.uint8]  # (T, H, W)

STREAM = 30  # what a sample's generator is for
SECONDS = (1, 10)  # least and most of a clip
EVENT_S = (0.25, 1.0)  # least and most of an event
PAUSE_S = 0.15  # between events, at least; two of one thing are then heard as two
PART_S = EVENT_S[0] + PAUSE_S  # least part of a clip that has one event
RATES = (4, 60)  # least and most pictures/s; one of an event at least
SIZES = (32, 256)
QUALITY = 14  # H.264's constant rate factor; here errors of flat colours stay within 6 of 255
SOUND_BITS = 64_000  # per second

# RGB to Y and to U, V in 65536ths, for 219 and 224 levels
LUMA = np.array([16829, 33039, 6416], np.int32)
CHROMA = np.array([[-9714, 28784], [-19070, -24103], [28784, -4681]], np.int32)  # (3, 2)


def frames(scene: Scene, size: int, rate: float) -> Frames:
    """The scene's pictures (T, size, size, 3), T = round(seconds * rate), number i as it is at i / rate s."""
    behind = pictures.backdrop(scene.background, size)
    shown = np.empty((_count(scene, rate), size, size, 3), np.uint8)
    for i in range(len(shown)):
        canvas = behind.copy()
        for thing in scene.things:
            pictures.draw_thing(canvas, thing, scene.style, i / rate)
        shown[i] = canvas + np.float32(0.5)
    return shown


def labels(scene: Scene, size: int, rate: float) -> Labels:
    """Which thing each pixel of `frames` shows (T, size, size): 0 none, i + 1 thing i."""
    shown = np.empty((_count(scene, rate), size, size), np.uint8)
    numbers = np.arange(1, len(scene.things) + 1, dtype=np.uint8)
    for i in range(len(shown)):
        shown[i] = np.tensordot(numbers, pictures.masks(scene, size, i / rate).view(np.uint8), 1)
    return shown


def _count(scene: Scene, rate: float) -> int:
    if not scene.seconds * rate >= 0.5:
        raise ValueError(
            f"a scene of {scene.seconds} s at {rate} pictures/s has no picture; a clip needs one that lasts"
        )
    return round(scene.seconds * rate)


def encode(frames: Frames, rate: float, sound: sounds.Samples | None = None) -> bytes:
    """An MP4 file: frames (T, H, W, 3) as H.264, and with `sound` (S,) at 16 kHz, full scale 1, also AAC.

    Frame i is shown from i / rate s on, sample n of the sound is heard at n / 16000 s. The same input gives the same
    bytes on all x86 processors with AVX2; on older ones FFmpeg's AAC rounds otherwise.

    Raises ValueError for an odd height or width, which H.264's usual half-size colour planes cannot have.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or not len(frames) or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; give uint8 (T, H, W, 3) with T of 1 or more")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"frames are of {frames.shape[2]} x {frames.shape[1]} pixels; both numbers must be even")
    step = 1 / Fraction(rate).limit_denominator(1001)  # s
    file = io.BytesIO()
    # Without "bitexact" the file would tell versions and the time. "faststart" reads the file again to move its end
    # to the front.
    with av.open(
        file,
        "w",
        format="mp4",
        options={"movflags": "+faststart", "fflags": "+bitexact"},
        io_open=lambda url, flags, options: io.BytesIO(file.getvalue()),  # noqa: ARG005
    ) as container:
        video: Any = container.add_stream(
            "libx264",
            rate=1 / step,
            options={"preset": "veryfast", "crf": str(QUALITY), "x264-params": "cpu-independent=1:bframes=0"},
        )
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio: Any = None
        if sound is not None:  # "fast" takes a third of the time, and errs less on these sounds
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = SOUND_BITS
        for stream in filter(None, (video, audio)):
            stream.codec_context.thread_count = 1
            stream.codec_context.flags |= Flags.bitexact
        plain = BitStreamFilterContext("filter_units=remove_types=6", video)  # of x264's 600 bytes about itself
        for i, planes in enumerate(_planes(frames)):
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts, frame.time_base = i, step
            for packet in video.encode(frame):
                container.mux(plain.filter(packet))
        for packet in video.encode():
            container.mux(plain.filter(packet))
        if sound is not None:
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None], np.float32), "fltp", "mono")
            heard.sample_rate, heard.pts, heard.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(heard))
            container.mux(audio.encode())
    return file.getvalue()


def _planes(frames: Frames) -> NDArray[np.uint8]:
    """Y, then U and V of half the size, below each other (T, 3 H / 2, W): ITU-R BT.601 in integers, so that it is the
    same everywhere; FFmpeg's own conversion also makes all a little darker."""
    wide = frames.astype(np.int32)
    luma = (wide @ LUMA + (16 << 16) + (1 << 15)) >> 16
    quads = wide.reshape(len(wide), wide.shape[1] // 2, 2, wide.shape[2] // 2, 2, 3).sum((2, 4))  # (T, H/2, W/2, 3)
    chroma = (np.moveaxis(quads @ CHROMA, -1, 1) + (128 << 18) + (1 << 17)) >> 18  # (T, 2, H/2, W/2)
    planes = np.concatenate([luma.reshape(len(wide), -1), chroma.reshape(len(wide), -1)], 1)
    return planes.astype(np.uint8).reshape(len(wide), -1, wide.shape[2])


class WorldClips(WorldSource):
    """Clips of scenes in which things move, flash and sound.

    Members: "mp4", "masks.npy" (which thing each pixel of each frame shows, see `labels`), "txt" (a short caption),
    "json": "scene", "captions" (the text and a long one), "unseen", and "events" in the order of time, each {thing,
    shape, start, end, heard, seen, gain}: a thing sounds, flashes or does both. In some clips events of
    different things overlap.

    Args:
        train, validation, test: how many clips.
        seed: another seed gives other clips.
        size: pixels of a side, even, 32 to 256.
        rate: pictures/s, 4 to 60.
        seconds: shortest and longest clip, 1 to 10; a clip has a whole number of pictures.
        things: fewest and most in a clip.
        events: fewest and most in a clip.
        moving: chance that a thing moves.
        overlapping: chance that events of a clip may overlap; else one comes after the other.
        styles, backgrounds: what there may be.
    """

    def __init__(
        self,
        train: int = 2000,
        validation: int = 200,
        test: int = 200,
        seed: int = 0,
        size: int = 64,
        rate: int = 8,
        seconds: tuple[float, float] = (2.0, 4.0),
        things: tuple[int, int] = (1, 3),
        events: tuple[int, int] = (1, 3),
        moving: float = 0.7,
        overlapping: float = 0.5,
        styles: list[str] | None = None,
        backgrounds: list[str] | None = None,
    ) -> None:
        super().__init__(train, validation, test, seed)
        if not SIZES[0] <= size <= SIZES[1] or size % 2:
            raise ValueError(f"size={size} must be even and in {SIZES[0]}..{SIZES[1]}")
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(
                f"rate={rate} pictures/s must be in {RATES[0]}..{RATES[1]}, so that a flash of {EVENT_S[0]} s is seen"
            )
        if not SECONDS[0] <= seconds[0] <= seconds[1] <= SECONDS[1]:
            raise ValueError(f"seconds={seconds} must be from at least {SECONDS[0]} to at most {SECONDS[1]}")
        shortest = round(seconds[0] * rate) / rate
        most = _fitting(shortest)
        if not 0 <= events[0] <= events[1] <= most:
            raise ValueError(
                f"events={events} must be from at least 0 to at most {most}: more do not fit in {shortest} s"
            )
        if not 0 <= overlapping <= 1:
            raise ValueError(f"overlapping={overlapping} is a chance; it must be in 0..1")
        self.size, self.rate, self.seconds, self.events = size, rate, seconds, events
        self.overlapping = overlapping
        self.scenes = SceneOptions(
            things,
            styles=STYLES if styles is None else styles,
            backgrounds=BACKGROUNDS if backgrounds is None else backgrounds,
            seconds=seconds[1],
            moving=moving,
        )

    def bytes_each(self) -> int:
        """About the bytes of a clip: masks of a byte per pixel, a sixteenth of that for the pictures, and the sound."""
        seconds = sum(self.seconds) / 2
        return round(seconds * (17 / 16 * self.rate * self.size**2 + SOUND_BITS / 8)) + 3000

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A clip; times of events are whole milliseconds."""
        draw = self.draw(STREAM, split, number)
        shortest, longest = (round(seconds * self.rate) for seconds in self.seconds)
        seconds = int(draw.integers(shortest, longest, endpoint=True)) / self.rate
        scene = draw_scene(draw, split, replace(self.scenes, seconds=seconds))
        count = int(draw.integers(*self.events, endpoint=True))
        scene = draw_events(draw, scene, count, overlap=bool(draw.random() < self.overlapping))
        captions = [language.caption(scene, draw, split=split, long=long) for long in (False, True)]
        shown = frames(scene, self.size, self.rate)
        return {
            "mp4": encode(shown, self.rate, sounds.mix(scene, draw)),
            "masks.npy": labels(scene, self.size, self.rate),
            "txt": captions[0],
            "json": {
                "scene": scene.as_json(),
                "events": events_of(scene),
                "captions": captions,
                "unseen": scene.unseen,
            },
        }


def draw_events(draw: np.random.Generator, scene: Scene, count: int, overlap: bool = False) -> Scene:
    """The scene with `count` events of its things, half of them seen and heard, half only one.

    One comes after the other; with `overlap` each may last on while those of other things come. In either case they
    begin 0.4 s apart, and events of one thing have PAUSE_S between them. Raises ValueError where they do not fit."""
    if count > _fitting(scene.seconds):
        raise ValueError(f"{count} events do not fit in {scene.seconds} s; each needs {PART_S} s")
    part, first = scene.seconds / max(count, 1), 0.0
    if overlap:  # nearer to each other, anywhere
        part = draw.uniform(PART_S, min(part, EVENT_S[1]))
        first = draw.uniform(0, scene.seconds - count * part)
    events: list[list[Sound]] = [[] for _ in scene.things]
    own: list[Sound] = []
    for i in range(count):
        length = round(draw.uniform(EVENT_S[0], min(EVENT_S[1], part - PAUSE_S)), 3)
        start = round(first + i * part + draw.uniform(0, max(part - PAUSE_S - length, 0)), 3)
        heard, seen = choose(draw, ((True, True), (True, True), (True, False), (False, True)))
        gain = round(draw.uniform(-6, 0), 1) if heard else 0.0
        others = [one for one in events if one is not own] if overlap else []
        own = choose(draw, others or events)
        if overlap:
            length = round(draw.uniform(length, min(EVENT_S[1], scene.seconds - start)), 3)
            if own and own[-1].end > start - PAUSE_S:  # it has lasted longer than its part, which now is too long
                own[-1] = replace(own[-1], end=round(start - PAUSE_S, 3))
        own.append(Sound(start, min(round(start + length, 3), scene.seconds), gain, heard, seen))
    things = (replace(thing, sounds=tuple(own)) for thing, own in zip(scene.things, events, strict=True))
    return replace(scene, things=tuple(things))


def _fitting(seconds: float) -> int:
    """The most events."""
    return math.floor(seconds / PART_S + 1e-6)


def events_of(scene: Scene) -> list[dict[str, Any]]:
    """The events of a scene in the order of time, as plain values."""
    events = [
        {"thing": i, "shape": thing.shape, "start": sound.start, "end": sound.end}
        | {"heard": sound.heard, "seen": sound.seen, "gain": sound.gain}
        for i, thing in enumerate(scene.things)
        for sound in thing.sounds
    ]
    return sorted(events, key=lambda event: (event["start"], event["thing"]))
