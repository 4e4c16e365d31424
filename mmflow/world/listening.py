"""Audio-visual tasks with known limits: what can be done from pictures alone, from sound alone, and from both.

In each clip a disc, a square, a triangle and a plus lie in four of nine cells, in four of six colours; some of them
sound, each kind in its own way (`mmflow.world.sounds`). Four tasks ask what only sight and sound together tell, in the
forms of public data sets: which kind is both seen to flash and heard in each second (AVE), where that is which sounds
(S4, MS3 of AVSBench), and questions (MUSIC-AVQA). `ceilings` finds what one modality can reach at best.
"""

import io
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from mmflow.world import pictures, sounds
from mmflow.world.acoustics import SAMPLE_RATE
from mmflow.world.clips import SOUND_BITS, encode
from mmflow.world.scene import MOTIONS, SPLITS, Background, Scene, Sound, Thing, choose
from mmflow.world.stills import WorldSource

KINDS = {"disc": "circle", "square": "square", "triangle": "triangle", "plus": "cross"}  # and what scenes call them
NAMES = {shape: kind for kind, shape in KINDS.items()}
COLOURS = {  # RGB
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 240),
    "yellow": (230, 210, 40),
    "purple": (210, 60, 210),
    "cyan": (50, 210, 220),
}
SIDE = 64  # pixels of the canvas, which lengths are told by
GREY, GRAIN = 0.08, 0.01  # background: mean and standard deviation, white is 1
IDLE = 0.55  # brightness of what does not flash
MARGIN_S = 0.05  # of silence at either end of an event
GAIN_DB = (-6, 0)
AVE_SECONDS, MASK_SECONDS, QUESTION_SECONDS = 10, 5, 10
BACKGROUND = len(KINDS)  # label of a second without an event that is both seen and heard
SOUND_S, ONSETS_S = 2.0, 3.0  # of the sounds that questions are about: length, and least time between two beginnings

QUESTIONS = {  # question type -> its template
    ("Audio", "Counting"): "how many different sounds are there?",
    ("Visual", "Colour"): "what colour is the {}?",
    ("Audio-Visual", "Colour-first"): "what colour is the shape that sounds first?",
    ("Audio-Visual", "Where-first"): "is the shape that sounds first on the left, in the middle or on the right?",
    ("Audio-Visual", "Exists"): "does the {} shape sound?",
    ("Audio-Visual", "Before"): "does the {} shape sound before the {} shape?",
    ("Audio-Visual", "Louder"): "is the {} shape louder than the {} shape?",
}
QuestionType = tuple[str, str]
Told = dict[str, Any]  # what the JSON has besides scene and events


# ---- clips


def draw_layout(draw: np.random.Generator, seconds: float, radius: float, jitter: float, drift: float = 0.0) -> Scene:
    """The four kinds, in this order, without sounds. Lengths in pixels of 64, `drift` the highest speed per second."""
    cells, colours = draw.permutation(9)[: len(KINDS)], draw.permutation(len(COLOURS))[: len(KINDS)]
    things = []
    for shape, cell, colour in zip(KINDS.values(), cells.tolist(), colours.tolist(), strict=True):
        x, y = ((place + 0.5) / 3 + draw.uniform(-jitter, jitter) / SIDE for place in (cell % 3, cell // 3))
        motion = choose(draw, list(MOTIONS)[1:]) if drift else "still"
        speed = draw.uniform(0, drift) / SIDE if drift else 0.0
        things.append(Thing(shape, list(COLOURS)[colour], "big", x, y, radius / SIDE, motion, speed))
    grey = round(255 * GREY)
    return Scene(tuple(things), "flat", Background("plain", (grey, grey), int(draw.integers(2**31))), seconds)


def draw_ave(draw: np.random.Generator) -> tuple[Scene, Told]:
    """Ten seconds, each with a flash and the sound of one kind (half of them), of two, or only one of both."""
    scene = draw_layout(draw, AVE_SECONDS, radius=7, jitter=2)
    events: list[tuple[int, Sound]] = []
    labels = []
    for t in range(AVE_SECONDS):
        kind, case = int(draw.integers(len(KINDS))), draw.random()
        gain = _gain(draw)
        if case < 0.5:
            events.append((kind, Sound(t, t + 1, gain, heard=True, seen=True)))
        elif case < 0.6:
            events.append((kind, Sound(t, t + 1, heard=False, seen=True)))
        elif case < 0.7:
            events.append((kind, Sound(t, t + 1, gain, heard=True, seen=False)))
        else:
            other = (kind + int(draw.integers(1, len(KINDS)))) % len(KINDS)
            events.append((kind, Sound(t, t + 1, heard=False, seen=True)))
            events.append((other, Sound(t, t + 1, gain, heard=True, seen=False)))
        labels.append(kind if case < 0.5 else BACKGROUND)
    return _with(scene, events), {"labels": labels}


def draw_s4(draw: np.random.Generator) -> tuple[Scene, Told]:
    """Five seconds in which one kind sounds throughout."""
    scene = draw_layout(draw, MASK_SECONDS, radius=6, jitter=1, drift=0.25)
    kind = int(draw.integers(len(KINDS)))
    scene = _with(scene, [(kind, Sound(0, MASK_SECONDS, _gain(draw)))])
    return scene, {"label": kind, "class": list(KINDS)[kind], "sounding": [[kind]] * MASK_SECONDS}


def draw_ms3(draw: np.random.Generator) -> tuple[Scene, Told]:
    """Five seconds, in each of which none (a tenth of them), one or two kinds sound."""
    scene = draw_layout(draw, MASK_SECONDS, radius=6, jitter=1, drift=0.25)
    events: list[tuple[int, Sound]] = []
    sounding = []
    for t in range(MASK_SECONDS):
        count = 0 if draw.random() < 0.1 else int(draw.integers(1, 3))
        sounding.append(sorted(draw.permutation(len(KINDS))[:count].tolist()))
        events += [(kind, Sound(t, t + 1, _gain(draw))) for kind in sounding[-1]]
    return _with(scene, events), {"sounding": sounding}


def draw_question(draw: np.random.Generator, asked: QuestionType) -> tuple[Scene, Told]:
    """Ten seconds in which some kinds sound one after the other, and a question of this type, each answer as likely."""
    scene = draw_layout(draw, QUESTION_SECONDS, radius=7, jitter=2)
    count = int(draw.integers(1, 4)) if asked == ("Audio", "Counting") else 2
    room = QUESTION_SECONDS - SOUND_S - ONSETS_S * (count - 1)
    starts = [round(ONSETS_S * i + early, 3) for i, early in enumerate(sorted(draw.uniform(0, room, count).tolist()))]
    order = draw.permutation(len(KINDS)).tolist()  # the first `count` of them sound
    gains = [_gain(draw) for _ in range(count)]
    yes = bool(draw.random() < 0.5)
    things, about = scene.things, []
    if asked == ("Audio", "Counting"):
        answer = str(count)
    elif asked == ("Visual", "Colour"):
        thing = choose(draw, things)
        about, answer = [NAMES[thing.shape]], thing.colour
    elif asked == ("Audio-Visual", "Colour-first"):
        answer = things[order[0]].colour
    elif asked == ("Audio-Visual", "Where-first"):
        answer = things[order[0]].column
    else:
        answer = "yes" if yes else "no"
        if asked == ("Audio-Visual", "Exists"):
            kinds = [choose(draw, order[:count] if yes else order[count:])]
        elif asked == ("Audio-Visual", "Before"):
            kinds = order[:2] if yes else order[1::-1]
        elif asked == ("Audio-Visual", "Louder"):
            kinds = draw.permutation(order[:2]).tolist()
            softer = kinds[1] if yes else kinds[0]
            gains[1] = gains[0]
            gains[order.index(softer)] -= round(draw.uniform(6, 12), 3)
        else:
            raise ValueError(f"question type {asked} is unknown; take one of {', '.join(map(str, QUESTIONS))}")
        about = [things[kind].colour for kind in kinds]
    sounding = [Sound(start, start + SOUND_S, gain) for start, gain in zip(starts, gains, strict=True)]
    told = {"question": QUESTIONS[asked].format(*about), "answer": answer, "question_type": list(asked), "about": about}
    return _with(scene, list(zip(order, sounding, strict=False))), told


def _gain(draw: np.random.Generator) -> float:
    return round(draw.uniform(*GAIN_DB), 3)


def _with(scene: Scene, events: Sequence[tuple[int, Sound]]) -> Scene:
    """The scene with events of its things."""
    own = [tuple(sound for kind, sound in events if kind == number) for number in range(len(scene.things))]
    return replace(scene, things=tuple(replace(t, sounds=s) for t, s in zip(scene.things, own, strict=True)))


def events_of(scene: Scene) -> list[dict[str, Any]]:
    """Its events in the order of time: kind, t0 and t1 in s (a flash fills them, a sound leaves 0.05 s at either end),
    seen, heard, and gain in dB."""
    events = [
        {"kind": NAMES[t.shape], "t0": s.start, "t1": s.end, "seen": s.seen, "heard": s.heard, "gain": s.gain}
        for t in scene.things
        for s in t.sounds
    ]
    return sorted(events, key=lambda event: event["t0"])


# ---- pictures


def shapes(scene: Scene, time: float, scale: int = 1) -> NDArray[np.bool_]:
    """(4, H, W): the pixels of each thing, those with their centre in it. All kinds have the area of the disc."""
    at = np.arange(SIDE * scale) + 0.5
    planes = []
    for thing in scene.things:
        x, y = (value * SIDE * scale for value in thing.at(time))
        planes.append(_inside(thing.shape, at[None] - x, at[:, None] - y, thing.radius * SIDE * scale))
    return np.stack(planes)


def _inside(shape: str, dx: NDArray[Any], dy: NDArray[Any], radius: float) -> NDArray[np.bool_]:
    if shape == "circle":
        return dx**2 + dy**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) <= np.pi**0.5 * radius / 2
    if shape == "triangle":
        height = (2 * np.pi * radius**2 / 1.1547) ** 0.5
        down = dy + height / 2  # below the tip
        return (down <= height) & (abs(dx) <= 1.1547 / 2 * down)
    arm = 0.27 * np.pi**0.5 * radius
    length = (np.pi * radius**2 + 4 * arm**2) / (8 * arm)
    return (np.minimum(abs(dx), abs(dy)) <= arm) & (np.maximum(abs(dx), abs(dy)) <= length)


def frames(scene: Scene, times: Sequence[float], scale: int = 1) -> NDArray[np.uint8]:
    """The scene at some times (T, H, W, 3)."""
    side = SIDE * scale
    grain = np.random.default_rng(scene.background.seed).standard_normal((side, side, 1))
    behind = np.broadcast_to(GREY + GRAIN * grain, (side, side, 3))
    shown = np.empty((len(times), side, side, 3), np.uint8)
    for picture, time in zip(shown, times, strict=True):
        canvas = behind.copy()
        for thing, inside in zip(scene.things, shapes(scene, time, scale), strict=True):
            flashes = any(sound.seen and sound.start <= time < sound.end for sound in thing.sounds)
            canvas[inside] = np.array(COLOURS[thing.colour]) / 255 * (1 if flashes else IDLE)
            if flashes:
                canvas[inside & ~_core(inside, scale)] = 1
        picture[:] = np.clip(255 * canvas + 0.5, 0, 255)
    return shown


def _core(inside: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Without a rim of that many pixels."""
    for _ in range(width):
        padded = np.pad(inside, 1, constant_values=True)
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside


# ---- sources


class ListeningSource(WorldSource):
    """What the tasks have in common. The members of a clip are "mp4", or with `pictures` "0.jpg", "1.jpg", ... (of the
    middle of each second) and "wav"; and "json": "scene", "events" (`events_of`) and what the task asks for.

    All splits are drawn alike, as the ceilings need it: nothing is held out but the clips themselves.

    Args:
        train, validation, test: how many clips.
        seed: another seed gives other clips.
        scale: 1 for 64 x 64 pixels, 3 for 192 x 192.
        rate: pictures/s, 1 to 30.
        pictures: whether there are JPEG pictures and a WAV file rather than an MP4 file.
    """

    seconds: ClassVar[int]  # of a clip

    def __init__(
        self,
        train: int = 1000,
        validation: int = 100,
        test: int = 200,
        seed: int = 0,
        scale: int = 1,
        rate: int = 2,
        pictures: bool = False,
    ) -> None:
        if not 1 <= scale <= 4:
            raise ValueError(f"scale={scale} must be in 1..4, for {SIDE} to {4 * SIDE} pixels")
        if not 1 <= rate <= 30:
            raise ValueError(f"rate={rate} pictures/s must be in 1..30")
        super().__init__(train, validation, test, seed)
        self.scale, self.rate, self.pictures = scale, rate, pictures

    @abstractmethod
    def clip(self, draw: np.random.Generator) -> tuple[Scene, Told]:
        """A clip, and what the JSON tells of it."""

    def members(self, scene: Scene, told: Told) -> dict[str, Any]:  # noqa: ARG002
        """Further members."""
        return {}

    def bytes_each(self) -> int:
        """About the bytes of a clip, most of them sound."""
        a_second = 2 * SAMPLE_RATE + 1500 * self.scale**2 if self.pictures else SOUND_BITS // 8 + 300 * self.scale**2
        return 3000 + self.seconds * a_second

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A clip."""
        draw = np.random.default_rng([self.seed, SPLITS.index(split), number])
        scene, told = self.clip(draw)
        sound = sounds.mix(scene, draw, MARGIN_S)
        told = {**told, "events": events_of(scene), "scene": scene.as_json()}
        return {**self._film(scene, sound), **self.members(scene, told), "json": told}

    def _film(self, scene: Scene, sound: sounds.Samples) -> dict[str, bytes]:
        if not self.pictures:
            times = np.arange(round(scene.seconds * self.rate)) / self.rate
            return {"mp4": encode(frames(scene, times.tolist(), self.scale), self.rate, sound)}
        shown = frames(scene, _middles(scene), self.scale)
        file = io.BytesIO()
        soundfile.write(file, sound, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return {f"{t}.jpg": pictures.encode(frame) for t, frame in enumerate(shown)} | {"wav": file.getvalue()}


def _middles(scene: Scene) -> list[float]:
    """The middle of each second."""
    return [t + 0.5 for t in range(round(scene.seconds))]


class WorldAve(ListeningSource):
    """Which kind is seen and heard in each of ten seconds. "json" has "labels": the number of the kind (in the order
    of KINDS), or 4 where no kind is both, second by second."""

    seconds = AVE_SECONDS

    def clip(self, draw: np.random.Generator) -> tuple[Scene, Told]:
        """See `draw_ave`."""
        return draw_ave(draw)


class MaskSource(ListeningSource):
    """Tasks with a mask for each second."""

    seconds = MASK_SECONDS

    def members(self, scene: Scene, told: Told) -> dict[str, Any]:
        """ "masks.npy" (5, H, W): 1 where a thing that sounds is seen in the middle of each second, else 0."""
        masks = [
            shapes(scene, time, self.scale)[kinds].any(0)
            for time, kinds in zip(_middles(scene), told["sounding"], strict=True)
        ]
        return {"masks.npy": np.stack(masks).astype(np.uint8)}

    def bytes_each(self) -> int:
        """About the bytes of a clip with its masks."""
        return super().bytes_each() + MASK_SECONDS * (SIDE * self.scale) ** 2


class WorldS4(MaskSource):
    """Where is that which sounds through five seconds? "json" has "label" (number of the kind) and "class", and
    "sounding": the numbers of the kinds that sound, second by second."""

    def clip(self, draw: np.random.Generator) -> tuple[Scene, Told]:
        """See `draw_s4`."""
        return draw_s4(draw)


class WorldMs3(MaskSource):
    """Where are those that sound in each of five seconds? "json" has "sounding": the numbers of the kinds, second by
    second."""

    def clip(self, draw: np.random.Generator) -> tuple[Scene, Told]:
        """See `draw_ms3`."""
        return draw_ms3(draw)


class WorldListeningQuestions(ListeningSource):
    """A question about ten seconds of sight and sound: "txt", and in "json" as "question" with its "answer",
    "question_type" as [modality, kind], and the kind or colours it is "about"."""

    seconds = QUESTION_SECONDS

    def clip(self, draw: np.random.Generator) -> tuple[Scene, Told]:
        """See `draw_question`; each type is as likely."""
        return draw_question(draw, choose(draw, list(QUESTIONS)))

    def members(self, scene: Scene, told: Told) -> dict[str, Any]:  # noqa: ARG002
        """The question."""
        return {"txt": told["question"]}


# ---- what is possible


def ceilings(draws: int = 4000, seed: int = 0) -> dict[str, dict[str, float]]:
    """What the best predictor reaches that has no input ("majority" or the "question"), sound, pictures, or both: task
    or "modality/kind" of question -> input -> accuracy, for S4 and MS3 the mean IoU of a second.

    Found from `draws` clips of each task without rendering them: of all clips with the same seen (or heard) part the
    most frequent answer, or the best mask, is taken from one half of the clips and scored on the other.
    """
    draw = np.random.default_rng(seed)
    found = {"AVE": _ave_ceilings([draw_ave(draw) for _ in range(draws)])}
    for name, clip in (("S4", draw_s4), ("MS3", draw_ms3)):
        found[name] = _mask_ceilings([clip(draw) for _ in range(draws)])
    for asked in QUESTIONS:
        found["/".join(asked)] = _question_ceilings([draw_question(draw, asked) for _ in range(draws)], asked)
    return found


def best_accuracy(known: Sequence[Hashable], answers: Sequence[Hashable]) -> float:
    """Of the most frequent answer to each known part, found on every other clip and scored on the rest."""
    counts: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for part, answer in zip(known[::2], answers[::2], strict=True):
        counts[part][answer] += 1
    best = {part: count.most_common(1)[0][0] for part, count in counts.items()}
    return float(np.mean([best.get(part) == answer for part, answer in zip(known[1::2], answers[1::2], strict=True)]))


def best_iou(known: Sequence[Hashable], places: Sequence[set[int]], num_places: int, share: float) -> float:
    """Of the best union of places for each known part, found and scored as in `best_accuracy`.

    The things that sound are at some of `num_places` places that do not overlap, each of which fills `share` of the
    picture; a union of whole things is as good as any mask, for IoU is convex in how much of each thing is covered.
    Where nothing sounds, it is the share of the picture that is left out, as AVSBench scores it.
    """
    unions = np.arange(2**num_places)[:, None] >> np.arange(num_places) & 1  # (U, places)
    targets = np.array([[place in sounding for place in range(num_places)] for sounding in places])  # (N, places)
    both = unions @ targets.T
    either = unions.sum(1)[:, None] + targets.sum(1) - both
    iou = np.where(targets.any(1), both / np.maximum(either, 1), 1 - share * unions.sum(1)[:, None])  # (U, N)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number, part in enumerate(known):
        groups[part].append(number)
    scores = [iou[iou[:, own[::2]].mean(1).argmax(), own[1::2]] for own in groups.values() if len(own) > 1]
    return float(np.concatenate(scores).mean())


def _ave_ceilings(clips: list[tuple[Scene, Told]]) -> dict[str, float]:
    labels = [label for _, told in clips for label in told["labels"]]
    seconds = [[e for e in events_of(scene) if e["t0"] == t] for scene, _ in clips for t in range(AVE_SECONDS)]
    heard = [next((event["kind"] for event in events if event["heard"]), None) for events in seconds]
    seen = [next((event["kind"] for event in events if event["seen"]), None) for events in seconds]
    return _accuracies("majority", [()] * len(labels), heard, seen, list(zip(heard, seen, strict=True)), labels)


def _accuracies(
    nothing: str,
    given: Sequence[Hashable],
    heard: Sequence[Hashable],
    seen: Sequence[Hashable],
    both: Sequence[Hashable],
    answers: Sequence[Hashable],
) -> dict[str, float]:
    parts = {nothing: given, "audio": heard, "video": seen, "both": both}
    return {name: best_accuracy(part, answers) for name, part in parts.items()}


def _mask_ceilings(clips: list[tuple[Scene, Told]]) -> dict[str, float]:
    """Of the first second of each clip. For the eye the places are the four things, for the ear the nine cells."""
    heard = [tuple(told["sounding"][0]) for _, told in clips]
    things = [set(kinds) for kinds in heard]
    cells = [{_cell(scene.things[kind]) for kind in kinds} for (scene, _), kinds in zip(clips, heard, strict=True)]
    share = float(np.mean([shapes(scene, 0.5).mean() for scene, _ in clips[:100]]))
    return {
        "audio": best_iou(heard, cells, 9, share),
        "video": best_iou([()] * len(clips), things, len(KINDS), share),
        "both": best_iou(heard, things, len(KINDS), share),
    }


def _cell(thing: Thing) -> int:
    return int(3 * thing.x) + 3 * int(3 * thing.y)


def _question_ceilings(clips: list[tuple[Scene, Told]], asked: QuestionType) -> dict[str, float]:
    """The parts are told up to what they are symmetric in, so that there are many clips with the same one."""
    heard = [_heard(scene) for scene, _ in clips]
    seen = [_seen(scene, told, asked) for scene, told in clips]
    both = [_understood(scene, told, asked) for scene, told in clips]
    answers = [told["answer"] for _, told in clips]
    return _accuracies("question", [told["question"] for _, told in clips], heard, seen, both, answers)


def _order(scene: Scene) -> list[Thing]:
    """The things that sound, the first one first."""
    return sorted((thing for thing in scene.things if thing.sounds), key=lambda thing: thing.sounds[0].start)


def _heard(scene: Scene) -> Hashable:
    """Which kinds sound in which order, and which of them is the loudest."""
    gains = [thing.sounds[0].gain for thing in _order(scene)]
    return tuple(thing.shape for thing in _order(scene)), gains.index(max(gains))


def _seen(scene: Scene, told: Told, asked: QuestionType) -> Hashable:
    """What of the picture may bear on the answer."""
    if asked[1] == "Colour-first":
        return tuple(sorted(thing.colour for thing in scene.things))
    if asked[1] in ("Where-first", "Counting"):
        return tuple(sorted(thing.column for thing in scene.things))
    return tuple((thing.shape, thing.colour if asked[1] == "Colour" else "") for thing in _asked_about(scene, told))


def _asked_about(scene: Scene, told: Told) -> list[Thing]:
    return [thing for word in told["about"] for thing in scene.things if word in (NAMES[thing.shape], thing.colour)]


def _understood(scene: Scene, told: Told, asked: QuestionType) -> Hashable:
    """What sight and sound tell together."""
    order, about = _order(scene), _asked_about(scene, told)
    understood: dict[str, Callable[[], Hashable]] = {
        "Counting": lambda: len(order),
        "Colour": lambda: about[0].colour,
        "Colour-first": lambda: order[0].colour,
        "Where-first": lambda: order[0].column,
        "Exists": lambda: about[0] in order,
        "Before": lambda: about[0] == order[0],
        "Louder": lambda: about[0].sounds[0].gain > about[1].sounds[0].gain,
    }
    return understood[asked[1]]()
