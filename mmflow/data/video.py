"""Videos: the pictures of a clip and the sound of the same interval, from the bytes of one file, by PyAV alone.

Time 0 is when the first picture is shown, wherever the file's own clock begins; sound is placed on the same line.

A clip costs what its pictures cost. Reading packets is cheap (about 4 us each) and tells every picture's time and which
are key frames, so all of them up to the clip's end are read first. Then only the packets between a wanted picture and
the last key frame before it are decoded, without the pictures that nothing else refers to, and only wanted pictures
are turned into RGB. decord 0.6 was measured against this and left out: bare decord took 1.05 to 2.4 times as long for
8 and for 16 pictures of a 10 s H.264, VP9 or MPEG-4 file of 640 x 360 (one thread), it has no AV1, misses frames of
open GOPs and leaks decoded sound.
"""

import bisect
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from mmflow.data.decode import (
    AUDIO_RATES,
    MAX_MEMBER_BYTES,
    MAX_PEAK,
    SAMPLE_RATE,
    BadSample,
    resample,
    resampling_ratio,
)

MAX_VIDEO_SECONDS = 6 * 3600.0
MAX_PIXELS = 8192 * 4320  # of one picture
MAX_CLIP_VALUES = 2**31  # bytes of one decoded clip
MAX_RATE = 1000.0  # pictures/s
CHECKED_S = 10  # at a time, where all is decoded

# Playlists (HLS, DASH, concat) are formats too for FFmpeg; they would open other files and addresses
FORMATS = "mov,matroska,avi,mpeg,mpegts,ogg,flv"
# Decoders that tell by a flag in a packet that no other picture refers to it; tested to skip such pictures exactly
SKIPPING = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4")
ROUNDING_S = 0.0005  # of time stamps: Matroska and FLV count milliseconds
PREROLL_S = 0.5  # decoded before the wanted sound: AAC, Opus and MP3 need what came before to settle
GAP_S = 0.01  # sound whose time stamps leave its own count of samples by more begins anew at the time stamp
CONTEXT = 8  # periods of a resampling ratio to either side of a piece of sound, more than the filter reaches


class Video:
    """One video file in memory (mp4, mov, webm, mkv, avi, mpg, ts, ogv, flv with whatever codec FFmpeg has).

    Opening reads headers only. The file stays open for as long as the object lives. Open it in the process that reads
    it; a pickled Video travels as its bytes. Of several streams FFmpeg's best picture is taken, and the sound that goes
    with it. Pictures keep the pixels they are stored with: where those are not square (`aspect` differs from
    width / height), a `size` of that aspect makes the picture look right. Interlaced pictures are not separated.

    Raises BadSample for what is unreadable, empty, beyond the bounds of this module or without a video stream.
    """

    seconds: float  # from the first picture to the end of the last, by the header
    rate: float  # pictures/s on average
    has_audio: bool

    def __init__(self, data: bytes) -> None:
        if not 0 < len(data) <= MAX_MEMBER_BYTES:
            raise BadSample(f"a video of {len(data)} bytes, which is not in 1..{MAX_MEMBER_BYTES}")
        self.data = data
        self._open()
        self._read_header()

    def _read_header(self) -> None:
        stream = self._video
        self._tick = stream.time_base or Fraction(1, 1000)
        with _bad():
            first = next(self._container.demux(stream), None)
        # ticks. Headers of AVI forget that pictures wait for their turn, edit lists begin behind the first packet
        self._origin = max(stream.start_time or 0, (first and first.pts) or 0)
        self.has_audio = self._audio is not None
        pixels = stream.codec_context.width * stream.codec_context.height
        if not 0 < pixels <= MAX_PIXELS:
            raise BadSample(f"pictures of {pixels} pixels, which is not in 1..{MAX_PIXELS}")
        if stream.duration:
            self.seconds = float(stream.duration * self._tick)
        elif self._container.duration:
            self.seconds = self._container.duration / av.time_base - float(max(self._origin * self._tick, 0))
        else:
            raise BadSample("a video without a length")
        if not 0 < self.seconds <= MAX_VIDEO_SECONDS:
            raise BadSample(f"a video of {self.seconds:.1f} s, which is not in 0..{MAX_VIDEO_SECONDS:.0f} s")
        self.rate = float(stream.average_rate or stream.guessed_rate or 0)
        if not 0 < self.rate <= MAX_RATE:
            raise BadSample(f"{self.rate} pictures/s, which is not in 0..{MAX_RATE:.0f}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Video, (self.data,)

    def _close(self) -> None:
        # PyAV's streams and containers refer to each other; closed, they are freed without waiting for a collection
        if hasattr(self, "_container"):
            self._container.close()

    __del__ = _close

    def _open(self, file: BinaryIO | None = None) -> None:
        self._close()
        with _bad():
            self._container: Any = av.open(
                file or io.BytesIO(self.data),
                metadata_errors="replace",
                options={"max_pixels": str(MAX_PIXELS)},  # opening decodes pictures where the header leaves things open
                container_options={"format_whitelist": FORMATS, "protocol_whitelist": ""},
            )
        streams = self._container.streams
        self._video: Any = streams.best("video")
        if self._video is None or self._video.codec_context is None:
            raise BadSample("no video stream that can be decoded")
        if self._video.disposition & av.stream.Disposition.attached_pic:
            raise BadSample("no video stream, only a cover picture")
        self._audio: Any = streams.best("audio", related=self._video)
        if self._audio is not None and self._audio.codec_context is None:  # a codec that FFmpeg has no decoder for
            self._audio = None
        for stream in filter(None, (self._video, self._audio)):
            stream.codec_context.thread_count = 1  # the loader's workers are the parallelism
        self._video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}

    # ---- pictures

    @cached_property
    def _turns(self) -> int:
        """Quarter turns counter-clockwise that make the pictures upright. Only a decoded picture tells."""
        with _bad():
            self._container.seek(self._origin, stream=self._video)
            return _turns(next(self._container.decode(self._video)))

    @property
    def _upright(self) -> tuple[int, int]:
        context = self._video.codec_context
        return (context.width, context.height) if self._turns % 2 == 0 else (context.height, context.width)

    @property
    def width(self) -> int:
        """Pixels of an upright picture."""
        return self._upright[0]

    @property
    def height(self) -> int:
        """Pixels of an upright picture."""
        return self._upright[1]

    @property
    def aspect(self) -> float:
        """Width over height of an upright picture as it should be seen; pixels need not be square."""
        pixel = float(self._video.sample_aspect_ratio or 1)
        return self.width / self.height * (pixel if self._turns % 2 == 0 else 1 / pixel)

    def clip(self, start: float, seconds: float, rate: float, size: tuple[int, int] | None = None) -> Tensor:
        """round(seconds * rate) pictures, number i the one shown `start + i / rate` s after the first: uint8
        (T, 3, H, W), upright RGB, scaled to `size` = (H, W) where given. In memory the channels come last.

        The last picture is held to the end. Raises BadSample where pictures in the interval are damaged or cut off.
        """
        count = round(seconds * rate)
        if not start >= 0 or count < 1:
            raise ValueError(
                f"start={start} s and {seconds} s at {rate} pictures/s make {count} pictures; "
                "give a start of at least 0 and at least one picture"
            )
        context = self._video.codec_context
        values = count * 3 * (math.prod(size) if size else context.width * context.height)
        if values > MAX_CLIP_VALUES:
            raise BadSample(f"a clip of {values} bytes, more than {MAX_CLIP_VALUES}: ask for fewer or smaller pictures")
        tick = float(self._tick)
        times = start + np.arange(count) / rate + min(ROUNDING_S, tick / 2)
        wanted = (self._origin + np.floor(times / tick)).astype(np.int64).tolist()
        with _bad():
            packets = self._packets(self._video, wanted[0], wanted[-1])
            clip = self._planned(packets, wanted, size)
            if clip is None:
                self._open()
                clip = _fill(self._decoded([self._packets(self._video, None, wanted[-1])]), wanted, None, size)
        if clip is None:
            raise BadSample(f"no intact picture between {start} and {start + seconds} s")
        return clip.permute(0, 3, 1, 2)  # (T, 3, H, W)

    def check(self) -> None:
        """Decode all pictures and all sound. Raises BadSample where something is damaged or cut off."""
        for start in range(0, math.ceil(self.seconds), CHECKED_S):
            seconds = min(CHECKED_S, self.seconds - start)
            self.clip(start, seconds, self.rate, (16, 16))
            if self.has_audio:
                self.sound(start, seconds)

    def _packets(self, stream: Any, first: int | None, last: int) -> list[Packet]:
        """The packets of a stream from a key frame at or before `first` ticks (None: from a file just opened) until no
        later one is shown at or before `last`."""
        origin, step = stream.start_time or 0, round(1 / stream.time_base)
        at, earliest = first, origin if first is None else first
        while True:
            if at is not None:
                self._container.seek(at, stream=stream)
            packets, begun, ended = [], at is None or at <= origin, True
            for packet in self._container.demux(stream):
                if packet.dts is None and packet.size == 0:
                    break  # the end of the file
                if packet.size == 0:
                    continue  # the last picture again
                packets.append(packet)
                begun = begun or (packet.is_keyframe and packet.pts is not None and packet.pts <= earliest)
                if packet.dts is not None and packet.dts > (last if begun else earliest):
                    ended = False
                    break
            if begun or at is None:
                break
            at, step = max(at - step, origin), 4 * step  # came out behind `first`, or within a group of pictures
        if ended:
            self._check_end(stream, packets, last)
        return packets

    def _check_end(self, stream: Any, packets: list[Packet], last: int) -> None:
        """Raises BadSample if the file ends before `last` although its header speaks of more."""
        end = max((p.pts + (p.duration or 0) for p in packets if p.pts is not None), default=None)
        if end is None or end > last:
            return
        promised = (stream.start_time or 0) + (stream.duration or 0)
        frame = 1 / (self.rate * float(stream.time_base))  # ticks, what headers may differ by
        if end + frame < min(promised, last) or _segment_is_cut(self.data):
            at = float((end - (stream.start_time or 0)) * stream.time_base)
            raise BadSample(f"cut off after {at:.2f} s of {self.seconds:.2f} s")

    def _planned(self, packets: list[Packet], wanted: list[int], size: tuple[int, int] | None) -> Tensor | None:
        """The wanted pictures (T, H, W, 3) from as few packets as needed; None where the packets' time stamps are not
        those of the pictures (AVI with B pictures has none, VP8 has packets without a picture)."""
        shown = sorted({p.pts for p in packets if p.pts is not None and not p.is_discard})
        if not shown or len(shown) < sum(not p.is_discard for p in packets):
            return None
        targets = [shown[max(bisect.bisect_right(shown, time) - 1, 0)] for time in wanted]
        times: list[Any] = [packet.pts for packet in packets]
        index = {time: i for i, time in enumerate(times)}
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        needed: set[int] = set()
        for target in sorted(set(targets)):
            # a picture shown before a key frame but stored behind it may refer to what is stored before it
            key = max((i for i in keys if i <= index[target] and times[i] <= target), default=0)
            needed.update(range(key, index[target] + 1))
        runs: list[list[Packet]] = [[]]
        for i in sorted(needed):
            if runs[-1] and packets[i - 1] is not runs[-1][-1]:
                runs.append([])
            runs[-1].append(packets[i])
        return _fill(self._decoded(runs, set(targets)), wanted, targets, size)

    def _decoded(self, runs: list[list[Packet]], targets: set[int] | None = None) -> Iterator[VideoFrame]:
        """The pictures of runs of packets that each begin with a key frame, in the order they are shown.

        With `targets` (ticks), others may be missing."""
        context = self._video.codec_context
        shown = targets if targets is not None and context.name in SKIPPING else None
        for run in runs:
            context.flush_buffers()
            for packet in run:
                if packet.is_corrupt:
                    raise BadSample(f"damaged or cut off at {float((packet.pts or 0) * self._tick):.2f} s")
                context.skip_frame = "DEFAULT" if shown is None or packet.pts in shown else "NONREF"
                yield from context.decode(packet)
            yield from context.decode(None)

    # ---- sound

    def sound(self, start: float, seconds: float) -> Tensor:
        """The sound from `start` s after the first picture: mono float32 (round(seconds * 16000),) at 16 kHz, zeros
        where there is none yet or no more. Any two cuts agree where they overlap.

        Raises BadSample without a sound stream (`has_audio`), and where the sound is damaged or cut off.
        """
        stream, count = self._audio, round(seconds * SAMPLE_RATE)
        if not start >= 0 or count < 1:
            raise ValueError(f"start={start} s and {seconds} s: give a start of at least 0 and a length above 0")
        if seconds > MAX_VIDEO_SECONDS:
            raise BadSample(f"{seconds} s of sound, more than {MAX_VIDEO_SECONDS:.0f} s")
        if stream is None:
            raise BadSample("a video without sound")
        rate = stream.rate
        if not AUDIO_RATES[0] <= rate <= AUDIO_RATES[1]:
            raise BadSample(f"sound at {rate} Hz, which is not in {AUDIO_RATES[0]}..{AUDIO_RATES[1]}")
        # Samples are numbered from the first picture, in whole periods of the ratio: every cut is resampled alike
        ratio = resampling_ratio(rate)
        first = round(start * SAMPLE_RATE)
        period = first // ratio.numerator - CONTEXT
        begin = round(period * ratio.numerator * rate / SAMPLE_RATE)
        skipped = first - period * ratio.numerator  # samples at 16 kHz before the wanted
        samples = (math.ceil((skipped + count) / ratio.numerator) + CONTEXT) * ratio.denominator
        mono = np.zeros(samples, np.float32)
        with _bad():
            for at, piece in self._pieces(begin, begin + samples):
                low, high = max(at - begin, 0), min(at - begin + len(piece), samples)
                if low < high:
                    mono[low:high] = piece[low - (at - begin) : high - (at - begin)]
        return resample(torch.from_numpy(mono), rate)[skipped : skipped + count]

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number of its first sample, mono samples) of what is decoded from before `begin` to `end`, in samples."""
        stream = self._audio
        tick = stream.time_base
        zero = self._origin * self._tick  # s, of the first picture on the file's clock
        start = stream.start_time or 0
        first, last = (math.floor((Fraction(n, stream.rate) + zero) / tick) for n in (begin, end))
        early: int | None = first - round(PREROLL_S / tick)
        # A clock coarser than the samples (Matroska, FLV) could not place them after a seek: their count from the
        # beginning does. Decoding what is passed over takes about 1/300 of its length.
        if first - round(PREROLL_S / tick) <= start or tick * stream.rate > 1:
            self._open()
            stream, early = self._audio, None
        context, following = stream.codec_context, None
        context.flush_buffers()
        for packet in [*self._packets(stream, early, last), None]:
            if packet is not None and packet.is_corrupt:
                raise BadSample("damaged or cut off sound")
            try:
                frames = context.decode(packet)
            except av.InvalidDataError:
                if early is None or packet is None or (packet.pts or 0) >= first:
                    raise
                continue  # the rest of a frame that began before the place a seek came out at
            for frame in frames:
                at = following
                if frame.pts is not None:
                    stamp = (frame.pts * tick - zero) * stream.rate
                    if at is None or abs(stamp - at) > GAP_S * stream.rate:
                        at = round(stamp)
                if at is None:
                    raise BadSample("sound without time stamps")
                following = at + frame.samples
                yield at, _mono(frame)


def video_size(file: BinaryIO) -> tuple[int, float, float]:
    """Pictures (an estimate where the header does not count them), pictures/s and seconds, by the header alone.

    Raises BadSample for what `Video` would refuse."""
    video = Video.__new__(Video)  # without the bytes, most of which need not be read
    video._open(file)
    video._read_header()
    return video._video.frames or max(round(video.seconds * video.rate), 1), video.rate, video.seconds


@contextmanager
def _bad() -> Iterator[None]:
    """FFmpeg's errors as BadSample."""
    try:
        yield
    except av.FFmpegError as error:
        raise BadSample(f"not readable video: {error.strerror}") from error


def _time(frame: VideoFrame) -> int:
    """Ticks; a picture without its own time (AVI with B pictures) is shown when its turn comes in the file."""
    time = frame.dts if frame.pts is None else frame.pts
    if time is None:
        raise BadSample("pictures without time stamps")
    return time


def _turns(frame: VideoFrame) -> int:
    """Quarter turns counter-clockwise, as the file asks for them; other angles and mirroring are not applied."""
    return round(frame.rotation / 90) % 4


def _fill(
    frames: Iterator[VideoFrame], wanted: list[int], targets: list[int] | None, size: tuple[int, int] | None
) -> Tensor | None:
    """The pictures shown at the `wanted` ticks (T, H, W, 3) out of those that come by.

    None if one of them is not the target it should be, is damaged, or none comes at all."""
    reformatter, filled = VideoReformatter(), 0
    clip = shown = held = None
    for frame in chain(frames, [None]):
        until = math.inf if frame is None else _time(frame)
        while shown is not None and filled < len(wanted) and wanted[filled] < until:
            if shown.is_corrupt or (targets is not None and shown.pts != targets[filled]):
                return None
            if clip is None:
                turns = _turns(shown)
                height, width = size or (shown.height, shown.width)
                if size and turns % 2:
                    height, width = width, height
                clip = np.empty((len(wanted), height, width, 3), np.uint8)  # in huge pages, unlike torch.empty
            if held is shown:
                clip[filled] = clip[filled - 1]
            else:
                # FFmpeg scales into planes 1.4 times as fast as into packed RGB
                packed = (shown.height, shown.width) == (height, width)
                rgb = reformatter.reformat(shown, width, height, "rgb24" if packed else "gbrp", threads=1)
                clip[filled] = rgb.to_ndarray()
            held, filled = shown, filled + 1
        if filled == len(wanted):
            break
        if frame is not None and (shown is None or until > _time(shown)):
            shown = frame
    if clip is None or filled < len(wanted):
        return None
    pictures = torch.from_numpy(clip)
    return pictures.rot90(turns, (1, 2)) if turns else pictures


def _mono(frame: AudioFrame) -> np.ndarray:
    """(S,) float32, channels averaged, full scale 1."""
    values = frame.to_ndarray()  # (channels, S) or (1, S * channels)
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    mono = values.mean(0, dtype=np.float64)
    if values.dtype == np.uint8:
        mono = mono / 128 - 1
    elif values.dtype.kind == "i":
        mono = mono / 2.0 ** (8 * values.itemsize - 1)
    peak = np.abs(mono).max(initial=0)
    if not peak <= MAX_PEAK:
        raise BadSample(f"sound with a peak of {peak}, where full scale is 1")
    return mono.astype(np.float32)


def _segment_is_cut(data: bytes) -> bool:
    """Whether a Matroska file is shorter than its one segment says. (Other demuxers tell; this one just ends.)"""
    if data[:4] != b"\x1a\x45\xdf\xa3":
        return False
    size, at, _ = _ebml_size(data, 4)
    if data[at + size : at + size + 4] != b"\x18\x53\x80\x67":
        return False
    size, at, known = _ebml_size(data, at + size + 4)
    return known and at + size > len(data)


def _ebml_size(data: bytes, at: int) -> tuple[int, int, bool]:
    """Value, where it ends and whether it is known, of an EBML length (RFC 8794, section 4) at a place."""
    length = 9 - data[at].bit_length()
    ones = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & ones
    return value, at + length, value < ones
