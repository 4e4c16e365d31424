"""Spoken captions: scenes told in several languages by many eSpeak speakers in many rooms, and in English."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmflow.world import espeak, language, speech
from mmflow.world.scene import SPLITS, Scene, SceneOptions, check_chosen, choose, draw_scene
from mmflow.world.stills import WorldSource

STREAM = 20  # what a sample's generator is for
LANGUAGES = tuple(name for name in language.LANGUAGES if name in espeak.VOICES)
_SHORT_BYTES, _LONG_BYTES = 70_000, 320_000  # of a sample with a short and with a long caption, about


class WorldSpokenCaptions(WorldSource):
    """Captions of scenes spoken in several languages; every speaker speaks all of them.

    Members: "flac" (16 kHz), "txt" (what is said, see `mmflow.world.language.caption`), "json": "scene", "language",
    "translation" (the same content in English), "unseen" (whether a pair of colour and shape or a sentence is one that
    training never has), and as in the world's speech: the speaker, the settings of voice and room, "phones" and "words"
    as [start_s, end_s, name]. Phones are those of the CMU dictionary in English and eSpeak's own in other languages.

    Args:
        train, validation, test: how many captions.
        seed: another seed gives other scenes, speakers and rooms.
        languages: two-letter names; they take turns.
        voices: split -> how many speakers, at most 160 for training, 32 for validation and 32 for the test. No speaker,
            nor any of the eSpeak variants that speakers are made from, is in two splits.
        long_share: share of captions that tell everything, in 10 to 30 s; the others tell one thing in 1 to 10 s.
        things: fewest and most things in a scene.
        seconds: how long scenes last; 0 for stills, in which nothing moves.
    """

    def __init__(
        self,
        train: int = 2000,
        validation: int = 200,
        test: int = 200,
        seed: int = 0,
        languages: Sequence[str] = LANGUAGES,
        voices: Mapping[str, int] | None = None,
        long_share: float = 0.0,
        things: tuple[int, int] = (1, 4),
        seconds: float = 0.0,
    ) -> None:
        super().__init__(train, validation, test, seed)
        check_chosen("languages", languages, tuple(LANGUAGES))
        self.voices = speech.SPEAKERS | dict(voices or {})
        for split, count in self.voices.items():
            if split not in speech.SPEAKERS:
                raise ValueError(f"voices are of split {split!r}; name {', '.join(SPLITS)}")
            if not 1 <= count <= speech.SPEAKERS[split]:
                raise ValueError(f"voices={count} for {split} must be 1 to {speech.SPEAKERS[split]}")
        if not 0 <= long_share <= 1:
            raise ValueError(f"long_share={long_share} is a share; it must be in 0..1")
        self.languages, self.long_share = tuple(languages), long_share
        self.scenes = SceneOptions(things, seconds=seconds)

    def bytes_each(self) -> int:
        """About the bytes of a caption, those of its FLAC file."""
        return round(_SHORT_BYTES + self.long_share * (_LONG_BYTES - _SHORT_BYTES))

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """The members of a sample but its key: a pure function of the source's options, split and number."""
        draw = self.draw(STREAM, split, number)
        scene = draw_scene(draw, split, self.scenes)
        content = language.content(scene, draw, split, long=bool(draw.random() < self.long_share))
        flac, told = self.speak(content, scene, split, number, draw)
        told |= {"scene": scene.as_json(), "unseen": content.unseen}
        return {"flac": flac, "txt": language.say(content, scene, told["language"]), "json": told}

    def speak(
        self, content: language.Content, scene: Scene, split: str, number: int, draw: np.random.Generator
    ) -> tuple[bytes, dict[str, Any]]:
        """What is told of a scene, in the language whose turn it is by one of the split's speakers: FLAC, and JSON."""
        spoken = self.languages[number % len(self.languages)]
        who = speech.speaker(self.seed, split, int(draw.integers(self.voices[split])))
        who = who._replace(accent=choose(draw, espeak.VOICES[spoken]))
        text = language.say(content, scene, spoken).rstrip(".") + "."
        flac, told = speech.record(who, speech.pronounce(who, text, draw), draw)
        return flac, told | {"language": spoken, "translation": language.say(content, scene)}
