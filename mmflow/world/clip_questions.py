"""Questions about clips, and what of them can be answered from the picture alone and from the sound alone."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmflow.world import clips, sounds
from mmflow.world.forms import MOST, Possible
from mmflow.world.questions import CLIP_KINDS, FORMS, alike, askable, check_askable, draw_of_form, draw_question
from mmflow.world.scene import Scene, SceneOptions, Sound, choose, draw_scene
from mmflow.world.stills import WorldSource

STREAM = 53  # what a sample's generator is for
KINDS = ("existence", "counting", "colour", "shape", "relation", *CLIP_KINDS)
POOL, IMAGINED = 4000, 200  # scenes that a guesser knows, and how many it imagines for a question


Events = list[tuple[int, Sound]]  # the number of the thing, and the event


class WorldClipQuestions(WorldSource):
    """Questions about clips in which things move, flash and sound, independently of each other.

    Members: "mp4", "txt" (the question) and "json": what `mmflow.world.questions.ask` tells of the question, also what
    it "needs" ("picture", "sound" or "both"), with "scene" and "events" (as told by `mmflow.world.clips.events_of`). At
    a time one thing at most sounds, and one at most flashes.

    Args:
        train, validation, test: how many clips, each with a question.
        seed: another seed gives others.
        size: pixels of a side, even, 32 to 256.
        rate: pictures/s, 4 to 60.
        seconds: shortest and longest clip, 1 to 10; a clip has a whole number of pictures.
        things: fewest and most in a clip, up to 9.
        moving: chance that a thing moves.
        kinds: what is asked, of `mmflow.world.questions.KINDS`; by default those of KINDS.
        styles, backgrounds: what there may be, by default all of `mmflow.world.scene`.
    """

    def __init__(
        self,
        train: int = 4000,
        validation: int = 400,
        test: int = 800,
        seed: int = 0,
        size: int = 64,
        rate: int = 8,
        seconds: tuple[float, float] = (2.0, 3.0),
        things: tuple[int, int] = (2, 4),
        moving: float = 0.5,
        kinds: list[str] | None = None,
        styles: list[str] | None = None,
        backgrounds: list[str] | None = None,
    ) -> None:
        super().__init__(train, validation, test, seed)
        of_clips = clips.WorldClips(
            size=size, rate=rate, seconds=seconds, things=things, events=(0, 1), moving=moving, styles=styles,
            backgrounds=backgrounds,
        )  # checks them  # fmt: skip
        self.size, self.rate = size, rate
        self.pictures = (round(seconds[0] * rate), round(seconds[1] * rate))  # fewest and most
        self.scenes = replace(of_clips.scenes, seconds=self.pictures[0] / rate)
        self.kinds = KINDS if kinds is None else tuple(kinds)
        check_askable(self.kinds, self.scenes, f"clips of {seconds[0]} s with things={things} and moving={moving}")

    def bytes_each(self) -> int:
        """About the bytes of a clip, and of its scene and question."""
        seconds = sum(self.pictures) / 2 / self.rate
        return round(seconds * (self.rate * self.size**2 / 16 + clips.SOUND_BITS / 8)) + 4500

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A clip and a question about it."""
        draw = self.draw(STREAM, split, number)
        scenes = replace(self.scenes, seconds=int(draw.integers(*self.pictures, endpoint=True)) / self.rate)
        scene, asked = draw_question(draw, split, self.kinds, scenes, draw_clip)
        return {
            "mp4": clips.encode(clips.frames(scene, self.size, self.rate), self.rate, sounds.mix(scene, draw)),
            "txt": asked["question"],
            "json": {**asked, "scene": scene.as_json(), "events": clips.events_of(scene)},
        }


def draw_clip(draw: np.random.Generator, split: str, options: SceneOptions) -> Scene:
    """A scene in which up to three sounds follow each other, and up to three flashes, whatever the sounds are."""
    scene = draw_scene(draw, split, options)
    return _with_events(scene, [*draw_events(draw, scene, heard=True), *draw_events(draw, scene, heard=False)])


def draw_events(draw: np.random.Generator, scene: Scene, heard: bool) -> Events:
    """None to three sounds of things of the scene, or flashes."""
    most = min(MOST, int(scene.seconds / clips.PART_S + 1e-6))
    drawn = clips.draw_events(draw, scene, int(draw.integers(most, endpoint=True)))
    return [
        (i, replace(sound, heard=heard, seen=not heard, gain=round(draw.uniform(-6, 0), 1) if heard else 0.0))
        for i, thing in enumerate(drawn.things)
        for sound in thing.sounds
    ]


def _with_events(scene: Scene, events: Events) -> Scene:
    """The scene with these events and no others."""
    ordered = sorted(events, key=lambda event: event[1].start)
    things = [
        replace(thing, sounds=tuple(sound for number, sound in ordered if number == i))
        for i, thing in enumerate(scene.things)
    ]
    return replace(scene, things=tuple(things))


# ---- what is possible


def ceilings(
    questions: int = 400, seed: int = 0, options: SceneOptions | None = None, forms: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """What the best guesser reaches that knows the question alone, or also the sound ("audio"), the picture ("video"),
    or both: form -> "question", "audio", "video", "both" -> accuracy, of training and of `questions` of each form.

    A guesser knows the law by which clips and questions are drawn. It imagines clips that may be the one asked about,
    and by Bayes' rule gives the answer that is most likely: all answers being drawn as often, a clip counts the more,
    the fewer have its answer and the fewer questions have it there. Who sees imagines the same scene with other sounds;
    who hears, the same sounds in other scenes that have such shapes. The more are imagined (POOL, IMAGINED) the better
    the guess: the true limits are a little higher.

    options: of the scenes, by default those of WorldClipQuestions in clips of 2 s.
    forms: of FORMS, by default all that the source asks by default.
    """
    draw = np.random.default_rng(seed)
    options = options or WorldClipQuestions(0, 0, 0).scenes
    drawn = [draw_clip(draw, "train", options) for _ in range(POOL)]
    found = {}
    for form in forms or [form for kind in KINDS for form in askable(kind, "train", options)]:
        attribute = FORMS[form].alike
        pool = [alike(scene, draw, attribute, options) for scene in drawn] if attribute else drawn
        found[form] = _Guessers(form, pool, draw, options).accuracies(questions)
    return found


class _Guessers:
    """Those of `ceilings`, for questions of a form.

    Args:
        form: of FORMS.
        pool: scenes as they are drawn.
        draw: the generator.
        options: of the scenes.
    """

    def __init__(self, form: str, pool: Sequence[Scene], draw: np.random.Generator, options: SceneOptions) -> None:
        self.form, self.pool, self.draw, self.options = form, pool, draw, options
        self.shapes = [{thing.shape for thing in scene.things} for scene in pool]
        asked = [list(self._possible(scene)) for scene in pool]
        self.often = Counter(answer for own in asked for answer in {one.answer for one in own})
        self.usual = self._weights((1, own) for own in asked)

    def accuracies(self, questions: int) -> dict[str, float]:
        """Of each guesser, in so many questions."""
        hits: dict[str, list[bool]] = defaultdict(list)
        for _ in range(questions):
            scene, asked = draw_of_form(self.draw, "train", self.form, self.options, draw_clip)
            about = tuple(asked["about"])
            imagined: dict[str, Iterable[tuple[float, Scene]]] = {
                "question": (),
                "audio": itertools.islice(self._that_sound_like(scene), IMAGINED),
                "video": ((1, self._with_other_sounds(scene)) for _ in range(IMAGINED)),
                "both": itertools.repeat((1, scene), IMAGINED),  # there too absent things are drawn
            }
            for name, scenes in imagined.items():
                weights = self._weights((likely, self._possible(other)) for likely, other in scenes)
                of_this = weights.get(about) or self.usual[about]
                guess = max(of_this, key=lambda answer: of_this[answer], default=None)
                hits[name].append(guess == asked["answer"])
        return {name: float(np.mean(own)) for name, own in hits.items()}

    def _possible(self, scene: Scene) -> Iterator[Possible]:
        return FORMS[self.form].find(scene, self.draw, "train", self.options)

    def _weights(self, asked: Iterable[tuple[float, Iterable[Possible]]]) -> dict[tuple[str, ...], dict[str, float]]:
        """How likely each answer is: words of the question -> answer -> weight, from how likely scenes are and what can
        be asked of each."""
        weights: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for likely, possible in asked:
            own = list(possible)
            same = Counter(one.answer for one in own)
            for one in own:
                weights[one.about][one.answer] += likely / (max(self.often[one.answer], 1) * same[one.answer])
        return weights

    def _with_other_sounds(self, scene: Scene) -> Scene:
        return _with_events(scene, [*_events(scene, heard=False), *draw_events(self.draw, scene, heard=True)])

    def _that_sound_like(self, scene: Scene) -> Iterator[tuple[float, Scene]]:
        """Scenes of the pool with these sounds, of things of the same shapes, and how likely they sound so."""
        heard = [(scene.things[i].shape, sound) for i, sound in _events(scene, heard=True)]
        for other, shapes in zip(self.pool, self.shapes, strict=True):
            if all(shape in shapes for shape, _ in heard):
                able = [[i for i, thing in enumerate(other.things) if thing.shape == shape] for shape, _ in heard]
                sounds = [(choose(self.draw, own), sound) for own, (_, sound) in zip(able, heard, strict=True)]
                likely = math.prod(len(own) / len(other.things) for own in able)
                yield likely, _with_events(other, [*_events(other, heard=False), *sounds])


def _events(scene: Scene, heard: bool) -> Events:
    """The sounds of a scene, or its flashes, in the order of time."""
    own = [(i, sound) for i, thing in enumerate(scene.things) for sound in thing.sounds if sound.heard == heard]
    return sorted(own, key=lambda event: event[1].start)
