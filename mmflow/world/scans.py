"""Grey pictures that look like medical scans, with invented findings, reports and questions. Nothing in it is medical.

Lengths are in millimetres; places are counted from the centre of the picture, x to the right and y down. Left and right
are those of the picture.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmflow.world import pictures
from mmflow.world.scene import SPLITS, Background, check_chosen, choose
from mmflow.world.stills import WorldSource, check_picture, picture_bytes
from mmflow.world.wording import draw_new, listed, template

PATIENT_STREAM, QUESTION_STREAM = 65, 66  # what a generator is for
WIDTH = 400.0  # mm that a picture shows
LEAST_SIZE = 64  # pixels of a side
MOST = 100  # scans of a patient, questions about a scan
MODALITIES = ("bright-bone", "soft-tissue")
KINDS = ("nodule", "cyst", "fracture", "effusion")
SIDES, LEVELS = ("left", "right"), ("upper", "lower")
PLACES = tuple((side, level) for side in SIDES for level in LEVELS)
MOST_FINDINGS = 3
WELL = 1 / 9  # share of patients without findings; their fewer types of questions make a quarter of the counts 0
MILLIMETRES = (16, 20, 24, 32, 36, 40)  # sizes of findings
LIMIT = 28  # mm, from which on half of them are called large
HELD_OUT = {  # kind, side and level that only one split shows
    ("nodule", "left", "lower"): "validation",
    ("cyst", "left", "upper"): "validation",
    ("nodule", "right", "lower"): "test",
    ("cyst", "right", "upper"): "test",
}
GREYS = {  # modality -> grey levels
    "bright-bone": {"air": 8, "body": 74, "lung": 34, "heart": 112, "liver": 98, "bone": 176, "rim": 92},
    "soft-tissue": {"air": 5, "body": 84, "lung": 24, "heart": 142, "liver": 118, "bone": 48, "rim": 158},
}
BRIGHT, HOLLOW, FLUID = 222, 12, 200  # grey levels of findings
RIB_MM, RIBS_MM = 9.0, 33.0  # width of a rib, and from one to the next
ZIGZAG = ((-0.5, 0.1), (-0.2, -0.12), (0.0, 0.1), (0.2, -0.12), (0.5, 0.1))  # of a fracture, in its lengths

Plane = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to be found.

    Attributes:
        kind, side, level: one of KINDS, SIDES, LEVELS.
        size: mm; diameter of a nodule or cyst, length of a fracture, height of an effusion.
        x, y: its centre; of an effusion the middle of its surface.
    """

    kind: str
    side: str
    level: str
    size: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Patient:
    """A body that nobody has.

    Attributes:
        width, height: of the body compared with the usual one.
        heart: size of the heart likewise.
        findings: one of each kind at most, each at another place.
        unseen: whether one has a place that training never shows for its kind.
        seed: of the texture.
    """

    width: float
    height: float
    heart: float
    findings: tuple[Finding, ...]
    unseen: bool
    seed: int


def draw_patient(draw: np.random.Generator, split: str) -> Patient:
    """A patient of a split. Half of those for validation and test have a finding where training never shows it."""
    width, height, heart = (float(draw.uniform(low, 1.06)) for low in (0.92, 0.94, 0.85))
    unseen = split != "train" and bool(draw.random() < 0.5)
    well = not unseen and bool(draw.random() < WELL)
    count = 0 if well else int(draw.integers(1, MOST_FINDINGS, endpoint=True))
    while True:  # until the kinds fit the places
        kinds = draw.permutation(KINDS)[:count].tolist()
        places = [PLACES[i] for i in draw.permutation(len(PLACES))[:count]]
        homes = [HELD_OUT.get((kind, *place)) for kind, place in zip(kinds, places, strict=True)]
        sinks = all(kind != "effusion" or level == "lower" for kind, (_, level) in zip(kinds, places, strict=True))
        if sinks and set(homes) <= {None, split} and (split in homes) == unseen:
            break
    findings = tuple(_finding(kind, place, width, height, draw) for kind, place in zip(kinds, places, strict=True))
    return Patient(width, height, heart, findings, unseen, int(draw.integers(2**31)))


def _finding(kind: str, place: tuple[str, str], width: float, height: float, draw: np.random.Generator) -> Finding:
    side, level = place
    size = choose(draw, MILLIMETRES)
    x, y = float(draw.uniform(66, 88)), float(draw.uniform(-88, -56) if level == "upper" else draw.uniform(-4, 28))
    if kind == "effusion":
        x, y = 75.0, 80.0 - size / height
    return Finding(kind, side, level, size, round(width * (x if side == "right" else -x), 1), round(height * y, 1))


def scan(patient: Patient, modality: str, size: int) -> NDArray[np.uint8]:
    """What a patient looks like: (size, size) grey. Raises ValueError for an unknown modality."""
    if modality not in GREYS:
        raise ValueError(f"modality={modality!r} must be one of {', '.join(MODALITIES)}")
    grey = GREYS[modality]
    pixel = np.float32(WIDTH / size)
    at = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) / size - np.float32(0.5)) * np.float32(WIDTH)
    x, y = np.meshgrid(at / np.float32(patient.width), at / np.float32(patient.height))
    across = np.abs(x)
    canvas = np.full((size, size), grey["air"], np.float32)

    def paint(cover: Plane, level: float | Plane, share: float = 1.0) -> None:
        nonlocal canvas
        canvas = canvas + np.float32(share) * cover * (level - canvas)

    def inside(distance: Plane, blur: float = 1.0) -> Plane:
        """1 within an outline, 0 outside, for distances in mm."""
        return np.clip(np.float32(0.5) - distance / (pixel * np.float32(blur)), 0, 1)

    def ellipse(cx: float, cy: float, a: float, b: float) -> Plane:
        """About the distance to an ellipse."""
        return (np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2) - 1) * np.float32(min(a, b))

    # squares of squares, for a fourth power differs from processor to processor
    torso = (((across / 165) ** 2) ** 2 + (((y - 62) / 216) ** 2) ** 2 - 1) * 42
    neck = np.maximum(across - 44 - np.maximum(y + 168, 0) * 2, y + 130)
    body = np.minimum(torso, neck)
    paint(inside(body, 2), grey["rim"])
    paint(inside(body + 9, 3), grey["body"])
    lungs = np.minimum(ellipse(-75, -25, 52, 105), ellipse(75, -25, 52, 105))
    paint(inside(ellipse(-55, 128, 92, 56), 3), grey["liver"])
    paint(inside(ellipse(88, 122, 48, 42), 3), grey["liver"], 0.6)
    paint(inside(lungs, 2), grey["lung"])
    # the ribs are one pattern that repeats downwards; they fall towards the sides
    rib = np.abs((y - np.float32(0.0028) * across**2 + 8) % RIBS_MM - RIBS_MM / 2) - RIB_MM / 2
    cage = np.maximum(ellipse(0, -25, 146, 132), 14 - across)
    paint(inside(np.maximum(rib, cage), 2), grey["bone"], 0.55)
    collar = np.abs(y + 136 + across * np.float32(0.12)) - 5
    paint(inside(np.maximum(np.maximum(collar, across - 132), 18 - across), 2), grey["bone"], 0.8)
    disc = np.abs((y + 5) % 24 - 12) - 9.5
    paint(inside(np.maximum(np.maximum(across - 15, disc), -170 - y), 2) * inside(body), grey["bone"], 0.85)
    large = patient.heart
    paint(inside(ellipse(20, 38, 44 * large, 50 * large), 4), grey["heart"], 0.9)

    # texture: patches of the tissue, grain of the machine
    mottle = pictures.backdrop(Background("noise", (-7, 7), patient.seed), size)[..., 0]
    grain = np.random.default_rng([patient.seed, MODALITIES.index(modality)]).standard_normal((size, size), np.float32)
    canvas = canvas + mottle * inside(body) + grain * np.float32(3.5)

    x, y = x * np.float32(patient.width), y * np.float32(patient.height)  # findings are in mm of no one's body
    for found in patient.findings:
        away = np.sqrt((x - found.x) ** 2 + (y - found.y) ** 2) - found.size / 2
        if found.kind == "nodule":
            paint(inside(away, 1.5), BRIGHT, 0.9)
        elif found.kind == "cyst":
            paint(inside(away), BRIGHT)
            paint(inside(away + max(4, float(pixel))), HOLLOW)
        elif found.kind == "effusion":
            side = 1 if found.side == "right" else -1
            paint(inside(lungs, 2) * inside(found.y - y) * (side * x > 0), FLUID, 0.9)
        else:
            points = [(found.x + found.size * (u + 0.3 * v), found.y + found.size * (v - 0.6 * u)) for u, v in ZIGZAG]
            lines = [pictures.squared_distance(x, y, *pair) for pair in itertools.pairwise(points)]
            paint(inside(np.sqrt(np.min(lines, axis=0)) - max(2, float(pixel) / 2)), BRIGHT)
    bar = np.maximum(np.maximum(np.abs(x + 160) - 25, np.abs(y - 190) - 2), -y)  # 50 mm
    paint(inside(bar), 235)
    return (np.clip(canvas, 0, 255) + np.float32(0.5)).astype(np.uint8)


def report(patient: Patient, modality: str) -> str:
    """The findings in words."""
    told = [
        f"an effusion on the {found.side} that is {found.size} mm high"
        if found.kind == "effusion"
        else f"a {found.kind} of {found.size} mm in the {found.side} {found.level} field"
        for found in patient.findings
    ]
    kinds = {found.kind for found in patient.findings}
    absent = [f"no {kind}" for kind in KINDS if kind not in kinds]
    first = f"there is {listed(told)}" if told else "nothing is found"
    return f"{modality} scan. {first}." + (f" {listed(absent)} is seen." if told else "")


# Templates by type of question. Of each the last one is the test's own, the one before validation's.
TEMPLATES = {
    "modality": ("what kind of scan is this?", "which kind of scan is shown?",
                 "how was this scan made?", "name the kind of this scan."),
    "presence": ("is there {a} {kind}?", "does the scan show {a} {kind}?",
                 "can you see {a} {kind}?", "is {a} {kind} present?"),
    "side": ("is the {kind} on the {side}?", "does the {kind} lie on the {side}?",
             "is the {side} the side of the {kind}?", "can the {kind} be seen on the {side}?"),
    "large": ("is the {kind} larger than {limit} mm?", "does the {kind} measure more than {limit} mm?",
              "is the size of the {kind} above {limit} mm?", "do you find more than {limit} mm for the {kind}?"),
    "place": ("where is the {kind}?", "in which field is the {kind}?",
              "where do you see the {kind}?", "which field has the {kind}?"),
    "kind": ("what is seen in the {place} field?", "what does the {place} field show?",
             "what is there in the {place} field?", "what can be found in the {place} field?"),
    "size": ("how large is the {kind}?", "what is the size of the {kind}?",
             "how many mm has the {kind}?", "what does the {kind} measure?"),
    "count": ("how many findings are there?", "how many findings does the scan show?",
              "how many findings can you see?", "count the findings."),
}  # fmt: skip
CLOSED = ("presence", "side", "large")  # yes or no
WITHOUT_FINDINGS = ("modality", "kind", "count")
NOTHING = 0.1  # share of questions about what a field shows whose answer is nothing, where there are findings


def ask(patient: Patient, modality: str, draw: np.random.Generator, split: str) -> dict[str, Any]:
    """A question: {"question", "answer", "question_type", "answer_type" (CLOSED is yes or no, else OPEN), "unseen"}.

    A yes is as likely as a no."""
    kind = choose(draw, tuple(TEMPLATES) if patient.findings else WITHOUT_FINDINGS)
    new = draw_new(draw, split)
    words = template(draw, TEMPLATES[kind], split, new)
    yes = bool(draw.random() < 0.5)
    present = [found.kind for found in patient.findings]
    one = choose(draw, patient.findings) if patient.findings else None
    about = {"kind": one.kind if one else "", "limit": LIMIT}
    if kind == "modality":
        answer = modality
    elif kind == "count":
        answer = str(len(present))
    elif kind == "presence":
        about["kind"] = choose(draw, present if yes else [k for k in KINDS if k not in present])
        answer = "yes" if yes else "no"
    elif kind == "kind":
        taken = {(found.side, found.level) for found in patient.findings}
        if one and draw.random() >= NOTHING:
            place, answer = (one.side, one.level), one.kind
        else:
            place, answer = choose(draw, [place for place in PLACES if place not in taken]), "nothing"
        about["place"] = " ".join(place)
    else:
        assert one is not None
        about["side"] = one.side if yes else SIDES[1 - SIDES.index(one.side)]
        answer = {
            "side": "yes" if yes else "no",
            "large": "yes" if one.size > LIMIT else "no",
            "place": f"{one.side} {one.level}",
            "size": f"{one.size} mm",
        }[kind]
    question = words.format(**about, a="an" if about["kind"] == "effusion" else "a")
    return {
        "question": question,
        "answer": answer,
        "question_type": kind,
        "answer_type": "CLOSED" if kind in CLOSED else "OPEN",
        "unseen": patient.unseen or new,
    }


class WorldScans(WorldSource):
    """Questions about scans of invented patients, one sample for each; nothing in it is medical.

    Members: "png" or "jpg" (the scan, with a bar of 50 mm), "txt" (the report), "json" in the manner of VQA-RAD:
    "question", "answer", "question_type" (of TEMPLATES), "answer_type" (CLOSED or OPEN), "report", "findings" ({kind,
    side, level, size in mm, x and y in canvas widths}), "modality", "patient", "unseen". All scans of a patient show
    the same body and findings; half of the questions of validation and test have words that training does not.

    Args:
        train, validation, test: how many patients.
        seed: another seed gives others.
        size: pixels of a side, 64 to 256.
        scans: of a patient, of one modality after the other.
        questions: about a scan.
        modalities: of MODALITIES.
        format: png or jpg.
    """

    def __init__(
        self,
        train: int = 500,
        validation: int = 50,
        test: int = 50,
        seed: int = 0,
        size: int = 128,
        scans: int = 2,
        questions: int = 4,
        modalities: Sequence[str] = MODALITIES,
        format: str = "png",
    ) -> None:
        super().__init__(train, validation, test, seed)
        check_picture(size, format)
        if size < LEAST_SIZE:
            raise ValueError(f"size={size} pixels must be {LEAST_SIZE} or more, or findings cannot be seen")
        if not (1 <= scans <= MOST and 1 <= questions <= MOST):
            raise ValueError(f"scans={scans} and questions={questions} must be in 1..{MOST}")
        check_chosen("modalities", modalities, MODALITIES)
        self.size, self.scans, self.questions, self.format = size, scans, questions, format
        self.modalities = tuple(modalities)
        self.counts = {split: count * scans * questions for split, count in self.counts.items()}

    def group(self, split: str, number: int) -> str:
        """The patient."""
        return f"{split}-{number // (self.scans * self.questions):05d}"

    def bytes_each(self) -> int:
        """About the bytes of a question with its scan."""
        return picture_bytes(self.size, self.format) + self.size**2 // 4 + 1000

    def sample(self, split: str, number: int) -> dict[str, Any]:
        """A question and its scan."""
        shown, _ = divmod(number, self.questions)
        who, turn = divmod(shown, self.scans)
        about = np.random.default_rng([self.seed, PATIENT_STREAM, SPLITS.index(split), who])
        first = int(about.integers(len(self.modalities)))
        patient = draw_patient(about, split)
        modality = self.modalities[(first + turn) % len(self.modalities)]
        asked = ask(patient, modality, self.draw(QUESTION_STREAM, split, number), split)
        text = report(patient, modality)
        findings = [
            asdict(found) | {"x": round(0.5 + found.x / WIDTH, 4), "y": round(0.5 + found.y / WIDTH, 4)}
            for found in patient.findings
        ]
        return {
            self.format: pictures.encode(scan(patient, modality, self.size), self.format),
            "txt": text,
            "json": asked
            | {"report": text, "findings": findings, "modality": modality, "patient": self.group(split, number)},
        }
