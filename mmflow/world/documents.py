"""Pictures, clips and texts in turn: little stories about scenes that change, and few-shot episodes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mmflow.data.documents import EXTENSION
from mmflow.world import clips, language, pictures, sounds
from mmflow.world.scene import (
    CLEAR,
    COLOURS,
    COLUMNS,
    GAP,
    MOTIONS,
    RADII,
    REACH,
    ROWS,
    SHAPES,
    SIZES,
    TRIES,
    Scene,
    SceneOptions,
    Sound,
    Thing,
    check_chosen,
    choose,
    draw_scene,
    held_out,
)
from mmflow.world.stills import WorldSource, check_picture, picture_bytes
from mmflow.world.wording import article, describe, draw_new, listed, template

DOCUMENTS_STREAM, EPISODES_STREAM = 60, 61  # what a sample's generator is for

# ---- stories

MOST_THINGS = 4
MOST_STEPS = 8  # pictures and clips of a story
FAR = 0.12  # canvas widths that a thing moves at least, so that it is seen
CLIP_S, CLIP_RATE = 1.5, 8  # length, and pictures/s
CLIP_BYTES = 10_000  # about, most of which is sound


class WorldDocuments(WorldSource):
    """Little stories: a scene, then one change after the other, each told and shown.

    Members: "doc.json" (see `mmflow.data.documents`): a text in front of each picture or clip says what is to be seen
    in it; "0.jpg", "1.jpg" or "1.mp4", ... in the order of reading; "json": "scenes" (one for each of them), "changes"
    (one for each but the first: {kind, thing, text}, where kind is move, colour, size, come, go or sound, and thing is
    the number of the one that changes, in the scene before it if it goes), "unseen" (a pair of colour and shape or
    templates that training never shows), "unseen_template".

    In a clip a thing moves, or sounds and flashes; the scene after it begins where the clip ends.

    Args:
        train, validation, test: how many documents.
        seed: another seed gives others.
        size: pixels of a side, 32 to 256, and even if there are clips.
        steps: fewest and most pictures and clips of a document, 2 to 8.
        things: fewest in the first scene, and most in any: 2 to 4.
        clips: chance that a change is shown by a clip.
        format: of pictures, jpg or png.
    """

    def __init__(
        self,
        train: int = 2000,
        validation: int = 200,
        test: int = 200,
        seed: int = 0,
        size: int = 64,
        steps: tuple[int, int] = (2, 4),
        things: tuple[int, int] = (1, 3),
        clips: float = 0.0,
        format: str = "jpg",
    ) -> None:
        super().__init__(train, validation, test, seed)
        check_picture(size, format)
        if not 0 <= clips <= 1:
            raise ValueError(f"clips={clips} is a chance; it must be in 0..1")
        if clips and size % 2:
            raise ValueError(f"size={size} must be even, for there are clips")
        if not 2 <= steps[0] <= steps[1] <= MOST_STEPS:
            raise ValueError(f"steps={steps} must be from at least 2 to at most {MOST_STEPS}")
        if not 1 <= things[0] <= things[1] or not 2 <= things[1] <= MOST_THINGS:
            raise ValueError(f"things={things} must be from at least 1 to 2, 3 or {MOST_THINGS}, so that some can come")
        self.size, self.steps, self.clips, self.format = size, steps, clips, format
        self.scenes = SceneOptions((things[0], things[1]))

    def bytes_each(self) -> int:
        """About the bytes of a document and what is in it."""
        each = picture_bytes(self.size, self.format) + CLIP_BYTES * self.clips + 900
        return round(each * sum(self.steps) / 2)

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A document."""
        draw = self.draw(DOCUMENTS_STREAM, split, number)
        new = draw_new(draw, split)
        scene = draw_scene(draw, split, self.scenes)
        count = int(draw.integers(self.steps[0], self.steps[1], endpoint=True))
        told = [f"{article(describe(thing))} {place(thing)}" for thing in scene.things]
        document = [
            {"text": template(draw, TEMPLATES["opening"], split, new).format(things=listed(told))},
            {"image": f"0.{self.format}"},
        ]
        members: dict[str, Any] = {f"0.{self.format}": pictures.encode(pictures.render(scene, self.size), self.format)}
        scenes, changes = [scene], []
        for i in range(1, count):
            lasting = bool(draw.random() < self.clips)
            change = changed(scene, draw, self.scenes.things[1], lasting)
            shown, scene = change.shown, change.after
            words = {"what": template(draw, TEMPLATES[change.kind], split, new).format(**change.words)}
            text = template(draw, TEMPLATES["last" if i == count - 1 else "next"], split, new).format(**words)
            name = f"{i}.mp4" if lasting else f"{i}.{self.format}"
            if lasting:
                film = clips.frames(shown, self.size, CLIP_RATE)
                members[name] = clips.encode(film, CLIP_RATE, sounds.mix(shown, draw))
            else:
                members[name] = pictures.encode(pictures.render(shown, self.size), self.format)
            document += [{"text": text}, {"video" if lasting else "image": name}]
            scenes.append(shown)
            changes.append({"kind": change.kind, "thing": change.thing, "text": text})
        info = {
            "scenes": [one.as_json() for one in scenes],
            "changes": changes,
            "unseen": new or any(one.unseen for one in scenes),
            "unseen_template": new,
        }
        return {EXTENSION: document, **members, "json": info}


# The last template is the test's own, the one before validation's; training has the rest.
TEMPLATES = {
    "opening": ("First there was {things}.", "At first there was {things}.", "In the beginning there was {things}.",
                "It all began with {things}.", "Once there was {things}."),
    "next": ("Then {what}.", "After that {what}.", "Next {what}.", "Later {what}.", "Soon {what}."),
    "last": ("Then {what}.", "In the end {what}.", "At last {what}.", "Finally {what}.", "Last of all {what}."),
    "move": ("{thing} moved {way}", "{thing} went {way}", "{thing} slid {way}", "{thing} drifted {way}"),
    "sound": ("{thing} flashed and made a sound", "{thing} lit up and was heard",
              "{thing} gave a flash and a sound", "a flash and a sound came from {thing}"),
    "colour": ("{thing} turned {colour}", "{thing} became {colour}",
               "{thing} was painted {colour}", "{thing} changed its colour to {colour}"),
    "size": ("{thing} {grew}", "{thing} became {size}", "{thing} got {size}", "{thing} changed its size to {size}"),
    "come": ("{new} came in {place}", "{new} appeared {place}", "{new} turned up {place}", "{new} joined in {place}"),
    "go": ("{thing} went away", "{thing} disappeared", "{thing} vanished", "{thing} was gone"),
}  # fmt: skip
DIRECTIONS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


def place(thing: Thing) -> str:
    """Where a thing is in the picture."""
    if thing.row == "centre":
        return "in the middle" if thing.column == "middle" else f"on the {thing.column}"
    return f"at the {thing.row}" + ("" if thing.column == "middle" else f" {thing.column}")


class Change(NamedTuple):
    """A step of a story.

    Attributes:
        shown: the scene as it is shown; while it happens, if it is shown by a clip.
        after: how it is afterwards.
        kind: move, colour, size, come, go or sound.
        thing: the number of the one that changes, in the scene before it if it goes, else in `shown`.
        words: for the places of the kind's TEMPLATES.
    """

    shown: Scene
    after: Scene
    kind: str
    thing: int
    words: dict[str, str]


def changed(scene: Scene, draw: np.random.Generator, most: int, lasting: bool) -> Change:
    """Something happens to one thing of a still scene, so that there are `most` things at most.

    lasting: whether it is shown while it happens, for CLIP_S seconds."""
    kinds = ("move", "sound") if lasting else ("move", "colour", "size", "come", "go")
    for kind in draw.permutation(kinds).tolist():
        change = _happens(kind, scene, draw, most, lasting)
        if change:
            return change
    raise ValueError(f"nothing can change in {scene}")  # a thing of another colour always can


def _happens(kind: str, scene: Scene, draw: np.random.Generator, most: int, lasting: bool) -> Change | None:
    """A change of some kind, if it is possible."""
    things = list(scene.things)
    i = int(draw.integers(len(things)))
    thing = things[i]
    words = {"thing": language.phrase(thing, scene)}
    shown = None
    if kind == "move":
        motion, far = _way(i, things, draw)
        if not motion:
            return None
        dx, dy = MOTIONS[motion]
        things[i] = replace(thing, x=thing.x + far * dx, y=thing.y + far * dy)
        words["way"] = DIRECTIONS[motion]
        shown = _with(scene, things, i, replace(thing, motion=motion, speed=far / CLIP_S))
    elif kind == "sound":
        start = round(float(draw.uniform(0.1, 0.6)), 3)
        event = Sound(start, round(start + float(draw.uniform(0.4, 0.8)), 3), heard=True, seen=True)
        shown = _with(scene, things, i, replace(thing, sounds=(event,)))
    elif kind == "colour":
        pairs = [(c, s) for c, s in _free(scene) if s == thing.shape]
        if not pairs:
            return None
        things[i] = replace(thing, colour=choose(draw, pairs)[0])
        words["colour"] = things[i].colour
    elif kind == "size":
        size = SIZES[1 - SIZES.index(thing.size)]
        things[i] = replace(thing, size=size, radius=_radius(size, draw))
        if not _fits(things[i], things[:i] + things[i + 1 :]):
            return None
        words |= {"size": size, "grew": "grew" if size == "big" else "shrank"}
    elif kind == "come":
        new = _newcomer(scene, draw)
        if len(things) == most or not new:
            return None
        i = len(things)
        things.append(new)
        words = {"new": article(describe(new)), "place": place(new)}
    else:
        if len(things) == 1:
            return None
        del things[i]
    after = _with(scene, things)
    return Change(replace(shown, seconds=CLIP_S) if lasting and shown else after, after, kind, i, words)


def _with(scene: Scene, things: list[Thing], number: int = 0, thing: Thing | None = None) -> Scene:
    """The scene with other things, one of them perhaps as given."""
    if thing:
        things = [*things[:number], thing, *things[number + 1 :]]
    unseen = any(held_out(one.colour, one.shape) for one in things)
    return replace(scene, things=tuple(things), unseen=unseen)


def _free(scene: Scene) -> list[tuple[str, str]]:
    """Pairs of colour and shape that no thing has, of those that training shows."""
    taken = {(thing.colour, thing.shape) for thing in scene.things}
    return [(c, s) for c in COLOURS for s in SHAPES if not held_out(c, s) and (c, s) not in taken]


def _newcomer(scene: Scene, draw: np.random.Generator) -> Thing | None:
    """A thing that fits among those of the scene."""
    colour, shape = choose(draw, _free(scene))
    size = choose(draw, SIZES)
    radius = _radius(size, draw)
    for _ in range(TRIES):
        x, y = draw.uniform(radius + GAP, 1 - radius - GAP, 2).tolist()
        new = Thing(shape, colour, size, x, y, radius)
        if _fits(new, scene.things):
            return new
    return None


def _radius(size: str, draw: np.random.Generator) -> float:
    return float(draw.uniform(*RADII[MOST_THINGS][SIZES.index(size)]))


def _way(number: int, things: Sequence[Thing], draw: np.random.Generator) -> tuple[str, float]:
    """Where a thing can move to without touching another: a motion and canvas widths, "" and 0 for nowhere."""
    thing, others = things[number], [*things[:number], *things[number + 1 :]]
    for _ in range(TRIES):
        motion = choose(draw, tuple(DIRECTIONS))
        far = float(draw.uniform(FAR, 0.7))
        dx, dy = MOTIONS[motion]
        way = [
            replace(thing, x=thing.x + far * dx * part, y=thing.y + far * dy * part) for part in np.linspace(0, 1, 9)
        ]
        if _fits(way[-1], others) and all(_fits(step, others, clear=0) for step in way):
            return motion, far
    return "", 0.0


def _fits(thing: Thing, others: Sequence[Thing], clear: float = CLEAR) -> bool:
    """Whether a thing is within the canvas, touches no other, and is clearly left, in the middle or right."""
    low, high = thing.radius + GAP, 1 - thing.radius - GAP
    within = low <= thing.x <= high and low <= thing.y <= high
    named = all(abs(value - line) >= clear for value in (thing.x, thing.y) for line in (1 / 3, 2 / 3))
    apart = (math.dist((thing.x, thing.y), (o.x, o.y)) > REACH * (thing.radius + o.radius) for o in others)
    return within and named and all(apart)


# ---- episodes

TASKS = ("name", "question", "caption")
MOST_WAYS, MOST_SHOTS = 4, 8
# Nonsense words; the last four are the test's own, the four before them validation's.
WORDS = (
    "dax", "wug", "blick", "fep", "toma", "zib", "gorp", "lorn", "mib", "nof", "pim", "quib", "ruzz", "sprock",
    "tulver", "vonk", "yex", "kiv", "plim", "modi", "grell", "hask", "jeb", "stroon",
)  # fmt: skip
OWN_WORDS = 4
ASKED = {"colour": tuple(COLOURS), "shape": SHAPES, "size": SIZES, "column": COLUMNS, "row": ROWS}
# Ways to describe a picture; the last one is the test's own, the one before it validation's.
FORMS = (
    "a {size} {colour} {shape}", "{colour} {shape}", "{shape}, {colour}, {size}", "{colour} thing {place}",
    "{size} {shape} {place}", "{place}: {shape}", "{colour}, {colour}, {colour}!", "{shape} / {colour}",
    "{size} and {colour}",
)  # fmt: skip


class WorldEpisodes(WorldSource):
    """Few-shot episodes: examples of a task that is another one in each episode, then a query.

    Tasks:
        name: "this is a dax", where each word stands for a pair of colour and shape in this episode.
        question: "what is the dax?", where the word stands for colour, shape, size, column or row in this episode.
        caption: descriptions that all have one form, such as "ring, red, big".

    Only the examples tell what the words and forms are. Members: "0.jpg", "1.jpg", ... (pictures of one thing, the last
    one that of the query), "doc.json" (see `mmflow.data.documents`: picture and text in turn; the last text is the
    answer alone), "json": "task", "shots" (the examples, {image, prompt, answer}), "query" (the same), "choices" (the
    answers that there could be; none for captions), "scenes", "unseen" (a pair, a word or a form that training never
    shows).

    Args:
        train, validation, test: how many episodes.
        seed: another seed gives others.
        size: pixels of a side, 32 to 256.
        tasks: what there is, each as often.
        ways: fewest and most names in an episode, 2 to 4.
        shots: fewest and most examples of each name, 1 to 8; other tasks have as many examples in all.
        format: of pictures, jpg or png.
    """

    def __init__(
        self,
        train: int = 2000,
        validation: int = 200,
        test: int = 200,
        seed: int = 0,
        size: int = 64,
        tasks: Sequence[str] = TASKS,
        ways: tuple[int, int] = (2, 3),
        shots: tuple[int, int] = (1, 2),
        format: str = "jpg",
    ) -> None:
        super().__init__(train, validation, test, seed)
        check_picture(size, format)
        check_chosen("tasks", tasks, TASKS)
        if not 2 <= ways[0] <= ways[1] <= MOST_WAYS:
            raise ValueError(
                f"ways={ways} must be from at least 2 to at most {MOST_WAYS}, which is how many words there are"
            )
        if not 1 <= shots[0] <= shots[1] <= MOST_SHOTS:
            raise ValueError(f"shots={shots} must be from at least 1 to at most {MOST_SHOTS}")
        self.size, self.tasks, self.ways, self.shots, self.format = size, tuple(tasks), ways, shots, format
        self.scenes = SceneOptions((1, 1))

    def bytes_each(self) -> int:
        """About the bytes of an episode."""
        return round((1 + sum(self.ways) * sum(self.shots) / 4) * (picture_bytes(self.size, self.format) + 500))

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """An episode."""
        draw = self.draw(EPISODES_STREAM, split, number)
        ways = int(draw.integers(self.ways[0], self.ways[1], endpoint=True))
        shots = int(draw.integers(self.shots[0], self.shots[1], endpoint=True))
        count = ways * shots + 1
        new = draw_new(draw, split)
        task = choose(draw, self.tasks)
        scenes = [draw_scene(draw, split, self.scenes) for _ in range(count)]
        choices: list[str] = []
        if task == "name":
            choices = _words(draw, split, new)[:ways]
            own = [choose(draw, range(ways))]  # the query's
            numbers = [*draw.permutation([*range(ways)] * shots).tolist(), *own]
            pairs = _pairs(draw, split, ways)
            scenes = [_paired(scene, *pairs[i]) for scene, i in zip(scenes, numbers, strict=True)]
            told = [("this is a", choices[i]) for i in numbers]
        elif task == "question":
            asked = choose(draw, tuple(ASKED))
            choices = list(ASKED[asked])
            prompt = f"what is the {_words(draw, split, new)[0]}?"
            told = [(prompt, getattr(scene.things[0], asked)) for scene in scenes]
        else:
            form = template(draw, FORMS, split, new)
            told = [("caption:", described(scene.things[0], form)) for scene in scenes]
        examples = [
            {"image": f"{i}.{self.format}", "prompt": prompt, "answer": answer}
            for i, (prompt, answer) in enumerate(told)
        ]
        document = []
        for example in examples:
            document += [{"image": example["image"]}, {"text": f"{example['prompt']} {example['answer']}."}]
        document[-1:] = [{"text": examples[-1]["prompt"]}, {"text": examples[-1]["answer"]}]
        files = {
            example["image"]: pictures.encode(pictures.render(scene, self.size), self.format)
            for example, scene in zip(examples, scenes, strict=True)
        }
        info = {
            "task": task,
            "shots": examples[:-1],
            "query": examples[-1],
            "choices": sorted(choices),
            "scenes": [scene.as_json() for scene in scenes],
            "unseen": new or any(scene.unseen for scene in scenes),
        }
        return {EXTENSION: document, **files, "json": info}


def described(thing: Thing, form: str) -> str:
    """One of FORMS filled in."""
    return form.format(size=thing.size, colour=thing.colour, shape=thing.shape, place=place(thing))


def _words(draw: np.random.Generator, split: str, new: bool) -> list[str]:
    """Nonsense words of a split in random order: its own ones or those of training."""
    ends = {"validation": len(WORDS) - OWN_WORDS, "test": len(WORDS)}
    words = WORDS[ends[split] - OWN_WORDS : ends[split]] if new else WORDS[: -2 * OWN_WORDS]
    return draw.permutation(words).tolist()


def _pairs(draw: np.random.Generator, split: str, count: int) -> list[tuple[str, str]]:
    """Different pairs of colour and shape, for validation and test half of them such as training never shows."""
    pairs: list[tuple[str, str]] = []
    possible = SceneOptions().pairs(split)
    while len(pairs) < count:
        own = split != "train" and bool(draw.random() < 0.5)
        pair = choose(draw, [pair for pair in possible if (held_out(*pair) == split) == own])
        if pair not in pairs:
            pairs.append(pair)
    return pairs


def _paired(scene: Scene, colour: str, shape: str) -> Scene:
    """The scene of one thing with another colour and shape."""
    return _with(scene, [replace(scene.things[0], colour=colour, shape=shape)])
