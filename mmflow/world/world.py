"""The world all in one: samples in which picture, clip, sound, speech, text, questions and table tell of one scene."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmflow.world import clips, dialogues, edits, language, pictures, questions, sounds, spoken, tables
from mmflow.world.scene import Scene, draw_scene
from mmflow.world.stills import WorldSource, objects, structure

STREAM = 71  # what a sample's generator is for
RATE = 8  # pictures/s
EVENTS = (1, 3)
TURNS = (2, 5)  # of a dialogue
_SPEECH_BYTES = 50_000  # of a spoken caption, about


class World(WorldSource):
    """One scene a sample, told in every way there is.

    Members: "jpg" (the scene at its beginning), "mask.png" (which thing each of its pixels shows: 0 none, i + 1 thing
    i), "edges.png" and "skeleton.png" (its outlines and bones), "edited.jpg" (after an edit), "mp4" (8 pictures/s, with
    sound), "masks.npy" (as mask.png for each picture of the clip), "txt" (a caption), "flac" (the caption spoken, in
    languages that take turns), "doc.json" (caption, picture, instruction, edited picture, long caption and clip as a
    document, see `mmflow.data.documents`), and "json":
        scene, objects, events: as in the world's pictures and clips.
        captions: the text in each language; long: a long one in English.
        speech: language, translation, speaker, voice, room, phones and words of the spoken caption.
        questions: one of each kind that can be asked, as `mmflow.world.questions.ask` tells them; some need the sound.
        edit: "instruction", "edit" (see `mmflow.world.edits.Edit`) and "after" (the scene then, still).
        dialogue: as `mmflow.world.dialogues.talk` tells it.
        table: a row about thing "about", as `mmflow.world.tables` has it.
        unseen: whether a pair of colour and shape is one that training never shows.

    Args:
        train, validation, test: how many samples.
        seed: another seed gives others.
        size: pixels of a side, even, 32 to 256.
        things: fewest (2 or more, for dialogues) and most in a scene, up to 9.
        seconds: length of the clips, 1 to 10.
        moving: chance that a thing moves.
        languages, voices: of what is spoken, as in `mmflow.world.spoken.WorldSpokenCaptions`.
    """

    def __init__(
        self,
        train: int = 1000,
        validation: int = 100,
        test: int = 100,
        seed: int = 0,
        size: int = 64,
        things: tuple[int, int] = (2, 4),
        seconds: float = 2.0,
        moving: float = 0.5,
        languages: Sequence[str] = spoken.LANGUAGES,
        voices: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(train, validation, test, seed)
        # what these are given is checked there
        of_clips = clips.WorldClips(0, 0, 0, seed, size, RATE, (seconds, seconds), things, EVENTS, moving)
        self.spoken = spoken.WorldSpokenCaptions(0, 0, 0, seed, languages, voices)
        if things[0] < 2:
            raise ValueError(f"things={things} must be from at least 2, for a dialogue turns from one to another")
        self.size = size
        self.scenes = replace(of_clips.scenes, seconds=round(seconds * RATE) / RATE)

    def bytes_each(self) -> int:
        """About the bytes of a sample."""
        clip = round(self.scenes.seconds * (RATE * self.size**2 * 17 / 16 + clips.SOUND_BITS / 8))
        return clip + _SPEECH_BYTES + self.size**2 + 10_000

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A sample."""
        draw = self.draw(STREAM, split, number)
        scene = draw_scene(draw, split, self.scenes)
        scene = clips.draw_events(draw, scene, int(draw.integers(*EVENTS, endpoint=True)))
        shown = clips.frames(scene, self.size, RATE)
        said = language.content(scene, draw, split)
        text = language.say(said, scene)
        long = language.caption(scene, draw, split=split, long=True)
        flac, heard = self.spoken.speak(said, scene, split, number, draw)
        edit = self._edit(scene, draw, split)
        about = max(range(len(scene.things)), key=lambda i: scene.things[i].radius)
        turns = int(draw.integers(*TURNS, endpoint=True))
        return {
            "jpg": pictures.encode(shown[0]),
            "mask.png": pictures.encode(pictures.segmentation(scene, self.size), "png"),
            "edges.png": pictures.encode(structure(scene, self.size, "edges"), "png"),
            "skeleton.png": pictures.encode(structure(scene, self.size, "skeleton"), "png"),
            "edited.jpg": pictures.encode(pictures.render(Scene.from_json(edit["after"]), self.size)),
            "mp4": clips.encode(shown, RATE, sounds.mix(scene, draw)),
            "masks.npy": clips.labels(scene, self.size, RATE),
            "txt": text,
            "flac": flac,
            "doc.json": [
                *({"text": text}, {"image": "jpg"}),
                *({"text": edit["instruction"]}, {"image": "edited.jpg"}),
                *({"text": long}, {"video": "mp4"}),
            ],
            "json": {
                "scene": scene.as_json(),
                "objects": objects(scene, self.size),
                "events": clips.events_of(scene),
                "captions": {name: language.say(said, scene, name) for name in language.LANGUAGES},
                "long": long,
                "speech": heard,
                "questions": questions.ask(scene, draw, questions.KINDS, split, self.scenes),
                "edit": edit,
                "dialogue": dialogues.talk(scene, draw, turns, split, self.scenes),
                "table": {"about": about} | tables.tell(scene, about, draw),
                "unseen": scene.unseen,
            },
        }

    def _edit(self, scene: Scene, draw: np.random.Generator, split: str) -> dict[str, Any]:
        """An edit of the scene as it is at its beginning, of any kind that is possible."""
        things = (replace(thing, motion="still", speed=0.0, sounds=()) for thing in scene.things)
        still = replace(scene, things=tuple(things), seconds=0.0)
        kinds = (edits.KINDS[i] for i in draw.permutation(len(edits.KINDS)))
        found = (edits.draw_edit(draw, still, kind, split, self.scenes) for kind in kinds)
        edit = next(edit for edit in found if edit is not None)  # at least "restyle" is possible
        instruction, new = edits.instruct(draw, still, edit, split)
        after = edits.apply(still, edit)
        return {
            "instruction": instruction,
            "edit": edit.as_json(),
            "after": after.as_json(),
            "unseen_template": new,
        }
