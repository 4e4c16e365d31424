"""Questions about a scene, with answers and, where it takes thinking, an explanation whose every step can be checked.

A question has a kind (its "question_type"), a form (what is asked), and one of the form's templates (how). Forms are in
`still_forms` and `clip_forms`; here they are chosen from. `explanations.follows` checks explanations.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmflow.world import clip_forms, pictures, still_forms
from mmflow.world.forms import Possible
from mmflow.world.scene import SPLITS, Scene, SceneOptions, choose, draw_scene, held_out
from mmflow.world.stills import WorldSource, check_picture, picture_bytes, scene_options
from mmflow.world.wording import check_split, draw_new, template

STREAM = 50  # what a sample's generator is for
TRIES, CLIP_TRIES = 200, 1000  # scenes that are drawn until one has the wanted answer; in clips more must coincide

DrawScene = Callable[[np.random.Generator, str, SceneOptions], Scene]
FORMS = still_forms.FORMS | clip_forms.FORMS
PICTURE_KINDS = ("existence", "counting", "colour", "shape", "size", "place", "relation", "comparison")
REASONING_KINDS = ("comparison", "same", "remaining", "either", "outermost", "nearest")  # these have explanations
CLIP_KINDS = ("motion", "flashing", "hearing", "sounding", "order", "where", "together")
KINDS = tuple(dict.fromkeys(form.kind for form in FORMS.values()))


# ---- asking


def ask(
    scene: Scene, draw: np.random.Generator, kinds: Sequence[str], split: str, options: SceneOptions | None = None
) -> list[dict[str, Any]]:
    """A question of each kind that can be asked of the scene, each answer that it may have there as likely.

    Args:
        scene: what is asked about. Places and relations are asked of things that do not move.
        draw: the generator.
        kinds: some of KINDS.
        split: one of train, validation and test, whose templates are used: validation and test have one each that
            training never has, for half of their questions.
        options: what scenes may have, so that questions are about nothing else.

    Returns dicts with "question", "answer", "question_type" (the kind), "form" (of FORMS), "about" (the words in the
    template), "unseen" (whether training never has the template, the pair asked for, or a pair of the scene),
    "unseen_template", of a scene that lasts "needs" ("picture", "sound" or "both": what the answer cannot be known
    without), and where there is one "explanation", which ends in "So the answer is ...".
    """
    check_kinds(kinds)
    check_split(split)
    options = options or SceneOptions()
    asked = []
    for kind in kinds:
        possible = [
            (name, one)
            for name, form in FORMS.items()
            if form.kind == kind
            for one in form.find(scene, draw, split, options)
        ]
        if possible:
            form = choose(draw, list(dict.fromkeys(name for name, _ in possible)))
            own = [one for name, one in possible if name == form]
            answer = choose(draw, list(dict.fromkeys(one.answer for one in own)))
            asked.append(_worded(scene, draw, split, form, choose(draw, [one for one in own if one.answer == answer])))
    return asked


def _worded(scene: Scene, draw: np.random.Generator, split: str, form: str, one: Possible) -> dict[str, Any]:
    new = draw_new(draw, split)
    words = template(draw, FORMS[form].templates, split, new)
    asked: dict[str, Any] = {
        "question": (words.replace("the picture", "the clip") if scene.seconds else words).format(*one.about),
        "answer": one.answer,
        "question_type": FORMS[form].kind,
        "form": form,
        "about": list(one.about),
        "unseen": scene.unseen or one.unseen or new,
        "unseen_template": new,
    }
    if scene.seconds:
        asked["needs"] = FORMS[form].needs
    if one.steps:
        asked["explanation"] = " ".join((*one.steps, f"So the answer is {one.answer}."))
    return asked


def draw_question(
    draw: np.random.Generator, split: str, kinds: Sequence[str], options: SceneOptions, scenes: DrawScene = draw_scene
) -> tuple[Scene, dict[str, Any]]:
    """A scene (one of those that `scenes` draws) and a question about it: first the kind is drawn, then the form, then
    the answer, then a scene that has it, so that the question tells little of the answer. Raises ValueError where no
    scene can be asked so."""
    check_kinds(kinds)
    check_split(split)
    kind = choose(draw, kinds)
    forms = askable(kind, split, options)
    if not forms:
        raise ValueError(f"no question of kind {kind!r} has several answers in scenes with {options}; name other kinds")
    return draw_of_form(draw, split, choose(draw, forms), options, scenes)


def draw_of_form(
    draw: np.random.Generator, split: str, form: str, options: SceneOptions, scenes: DrawScene = draw_scene
) -> tuple[Scene, dict[str, Any]]:
    """The same, of one of FORMS."""
    answers = FORMS[form].answers(options, split)
    for number in draw.permutation(len(answers)).tolist():  # the first one, but where it does not occur
        answer = answers[number]
        for _ in range(CLIP_TRIES if options.seconds else TRIES):
            scene = scenes(draw, split, options)
            if attribute := FORMS[form].alike:
                scene = alike(scene, draw, attribute, options)
            fitting = [one for one in FORMS[form].find(scene, draw, split, options) if one.answer == answer]
            if fitting:
                return scene, _worded(scene, draw, split, form, choose(draw, fitting))
    raise ValueError(f"{form!r} cannot be asked of scenes with {options}; name other kinds")


def alike(scene: Scene, draw: np.random.Generator, attribute: str, options: SceneOptions) -> Scene:
    """The scene with one colour, or shape, for about half of its things. Pairs that are held out stay, and no further
    ones come; no two things become the same."""
    word = choose(draw, getattr(options, f"{attribute}s"))
    things = list(scene.things)
    for i, thing in enumerate(things):
        other = replace(thing, **{attribute: word})
        taken = {(t.colour, t.shape) for t in things}
        fits = not (held_out(thing.colour, thing.shape) or held_out(other.colour, other.shape))
        if draw.random() < 0.5 and fits and (other.colour, other.shape) not in taken:
            things[i] = other
    return replace(scene, things=tuple(things))


def askable(kind: str, split: str, options: SceneOptions) -> list[str]:
    """The forms of a kind that may have several answers."""
    return [name for name, form in FORMS.items() if form.kind == kind and len(form.answers(options, split)) > 1]


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise ValueError for kinds that there are not."""
    foreign = [kind for kind in kinds if kind not in KINDS]
    if isinstance(kinds, str) or foreign or not kinds or len(set(kinds)) < len(kinds):
        said = kinds if isinstance(kinds, str) else list(kinds)
        raise ValueError(f"kinds={said} must be a list of one or more of {', '.join(KINDS)}, each once")


def check_askable(kinds: Sequence[str], options: SceneOptions, scenes: str) -> None:
    """Raise ValueError for kinds that there are not, or that have fewer than two answers in scenes with such options,
    which `scenes` describes."""
    check_kinds(kinds)
    for kind in kinds:
        if not all(askable(kind, split, options) for split in SPLITS):
            raise ValueError(
                f"questions of kind {kind!r} need scenes in which they have several answers, which {scenes} are not; "
                f"leave it out of kinds, or allow more"
            )


# ---- sources


class WorldQuestions(WorldSource):
    """Questions about pictures: "jpg", "txt" (the question) and "json" as told by `ask`, with "scene".

    Args:
        train, validation, test: how many pictures.
        seed: another seed gives other pictures and questions.
        size: pixels of a side, 32 to 256.
        things: fewest and most in a picture, up to 9.
        kinds: what is asked, of PICTURE_KINDS and REASONING_KINDS; by default the former.
        questions: how many about each picture, each a sample of its own. The first is drawn before the picture, so that
            every answer is as likely; the others are what the picture allows.
        shapes, colours, styles, backgrounds: what there may be, by default all of `mmflow.world.scene`.
    """

    default_kinds: tuple[str, ...] = PICTURE_KINDS
    stream = STREAM

    def __init__(
        self,
        train: int = 8000,
        validation: int = 800,
        test: int = 800,
        seed: int = 0,
        size: int = 64,
        things: tuple[int, int] = (1, 4),
        kinds: list[str] | None = None,
        questions: int = 1,
        shapes: list[str] | None = None,
        colours: list[str] | None = None,
        styles: list[str] | None = None,
        backgrounds: list[str] | None = None,
    ) -> None:
        super().__init__(questions * train, questions * validation, questions * test, seed)
        check_picture(size, "jpg")
        if questions < 1:
            raise ValueError(f"questions={questions} about a picture must be 1 or more")
        self.size, self.questions = size, questions
        self.scenes = scene_options(things, shapes, colours, styles, backgrounds)
        self.kinds = self.default_kinds if kinds is None else tuple(kinds)
        many = f"{len(self.scenes.shapes)} shapes and {len(self.scenes.colours)} colours"
        check_askable(self.kinds, self.scenes, f"stills with things={things}, {many}")

    def group(self, split: str, number: int) -> str:
        """The picture."""
        return f"{split}-{number // self.questions:06d}"

    def bytes_each(self) -> int:
        """About the bytes of a picture, and of its scene and question."""
        return picture_bytes(self.size, "jpg") + 1300

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A picture and a question about it."""
        picture, part = divmod(number, self.questions)
        draw = self.draw(self.stream, split, picture)
        scene, first = draw_question(draw, split, self.kinds, self.scenes)
        asked = [first]
        while len(asked) <= part:
            kinds = [self.kinds[i] for i in draw.permutation(len(self.kinds))]
            asked += ask(scene, draw, kinds, split, self.scenes)
        return {
            "jpg": pictures.encode(pictures.render(scene, self.size)),
            "txt": asked[part]["question"],
            "json": {**asked[part], "scene": scene.as_json()},
        }


class WorldReasoning(WorldQuestions):
    """Questions that take thinking (REASONING_KINDS), whose "json" has an "explanation" of three or four steps and the
    conclusion; `mmflow.world.explanations.follows` checks one. Options as for WorldQuestions."""

    default_kinds = REASONING_KINDS
    stream = STREAM + 1
