import json
import pickle
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmflow.data.decode import decode
from mmflow.data.make import build_source
from mmflow.data.spec import DataSpec
from mmflow.world.scans import (
    CLOSED,
    HELD_OUT,
    KINDS,
    MILLIMETRES,
    MODALITIES,
    PLACES,
    TEMPLATES,
    WIDTH,
    Finding,
    Patient,
    WorldScans,
    ask,
    draw_patient,
    report,
    scan,
)

NODULE = Finding("nodule", "left", "upper", 40, -75.0, -60.0)
EFFUSION = Finding("effusion", "right", "lower", 36, 75.0, 44.0)
PATIENT = Patient(1.0, 1.0, 1.0, (NODULE, EFFUSION), unseen=False, seed=5)
WELL = Patient(1.0, 1.0, 1.0, (), unseen=False, seed=5)
# A process of its own, with a seed of its own for the hashes of texts, makes what it is sent.
MAKE = "import pickle, sys; sys.stdout.buffer.write(pickle.dumps([i.sample() for i in pickle.load(sys.stdin.buffer)]))"


@pytest.fixture(scope="module")
def samples():
    """Of 12 patients in each split, with pictures."""
    return [(item, item.sample()) for item in WorldScans(12, 12, 12, seed=4, size=64, questions=2).items()]


@pytest.fixture(scope="module")
def questions():
    """What is asked about 1000 patients of training and 300 of the other splits: (patient, split, question)."""
    found = []
    for split, count in {"train": 1000, "validation": 300, "test": 300}.items():
        for number in range(count):
            draw = np.random.default_rng([9, len(split), number])
            patient = draw_patient(draw, split)
            found += [(patient, split, ask(patient, "soft-tissue", draw, split)) for _ in range(8)]
    return found


def near(share, expected, count):
    """Within 4 standard errors of independent draws."""
    return abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


# ---- patients


def test_patients_have_findings_where_they_may_be():
    unseen = Counter()
    well = 0
    for number in range(900):
        split = ("train", "validation", "test")[number % 3]
        patient = draw_patient(np.random.default_rng(number), split)
        findings = patient.findings
        assert len(findings) <= 3
        assert len({found.kind for found in findings}) == len({(f.side, f.level) for f in findings}) == len(findings)
        homes = {HELD_OUT.get((found.kind, found.side, found.level)) for found in findings}
        assert homes <= {None, split}
        assert patient.unseen == (split in homes)
        unseen[split] += patient.unseen
        well += split == "train" and not findings
        for found in findings:
            assert found.size in MILLIMETRES
            assert (found.x > 0) == (found.side == "right")
            assert found.kind != "effusion" or found.level == "lower"
            assert found.kind == "effusion" or (found.y < -40) == (found.level == "upper")
    assert unseen["train"] == 0
    assert near(unseen["validation"] / 300, 0.5, 300)
    assert near(unseen["test"] / 300, 0.5, 300)
    assert near(well / 300, 1 / 9, 300)


def test_a_few_pairs_of_kind_and_place_are_held_out():
    """14 pairs there are, for effusions are low."""
    pairs = {(k, *place) for k in KINDS for place in PLACES if k != "effusion" or place[1] == "lower"}
    assert len(pairs) == 14
    assert set(HELD_OUT) < pairs
    assert Counter(HELD_OUT.values()) == {"validation": 2, "test": 2}


# ---- pictures


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("modality", MODALITIES)
def test_findings_are_where_they_are_told_and_nowhere_else(size, modality):
    """Against the same body without findings."""
    shown, body = (scan(patient, modality, size).astype(int) for patient in (PATIENT, WELL))
    assert shown.shape == (size, size)
    rows, columns = np.nonzero(abs(shown - body) > 20)
    x, y = ((at + 0.5) / size * WIDTH - WIDTH / 2 for at in (columns, rows))
    left = x < 0
    assert x[left].mean() == pytest.approx(NODULE.x, abs=4)
    assert y[left].mean() == pytest.approx(NODULE.y, abs=4)
    pixel = WIDTH / size  # what is blurred over the rim changes too
    assert np.pi * 19**2 < left.sum() * pixel**2 < np.pi * (20 + 0.75 * pixel) ** 2
    assert y[~left].min() == pytest.approx(EFFUSION.y, abs=WIDTH / size + 2)
    assert abs(x[~left] - 75).max() < 56
    at = round((NODULE.y + WIDTH / 2) / WIDTH * size), round((NODULE.x + WIDTH / 2) / WIDTH * size)
    assert shown[at] > 180


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_each_kind_of_finding_is_to_be_seen(kind, modality):
    for millimetres in MILLIMETRES:
        found = Finding(kind, "left", "lower", millimetres, -75.0, 80.0 - millimetres if kind == "effusion" else 5.0)
        with_it = scan(Patient(1.0, 1.0, 1.0, (found,), unseen=False, seed=5), modality, 64)
        changed = abs(with_it.astype(int) - scan(WELL, modality, 64)) > 20
        assert changed.sum() >= 4
        assert not changed[:, 32:].any()


WHITER = 172  # grey level that no tissue has
RIMS = {
    "effusion": 6.2,
    "fracture": -1.1,
    "cyst": 4.0,
    "nodule": 2.7,
}  # mm of blurred rims that are darker, at 128 pixels


def read_scan(pixels):
    """(kind, side, level) -> size, x, y in mm: of each field what is whiter than tissue, told apart by its form."""
    pixel = WIDTH / len(pixels)
    at = (np.arange(len(pixels)) + 0.5) * pixel - WIDTH / 2
    x, y = np.meshgrid(at, at)
    white = (pixels > WHITER) & (abs(x) > 30) & (abs(x) < 135) & (y < 100) & (y > -125)
    found = {}
    for side, level in PLACES:
        own = white & ((x < 0) == (side == "left")) & ((y < -30) == (level == "upper"))
        if own.sum() < 3:
            continue
        across, down = x[own], y[own]
        wide, high = np.ptp(across) + pixel, np.ptp(down) + pixel
        away = np.hypot(across - across.mean(), down - down.mean())
        middle = (across.min() + across.max()) / 2, (down.min() + down.max()) / 2
        if down.max() > 58:
            kind, size, middle = "effusion", high, (np.median(across), down.min() - 2.4)
        elif high < 0.8 * wide:
            kind, size = "fracture", wide
        elif own.sum() * pixel**2 > 0.64 * wide * high:
            kind, size = "nodule", 3 * away.mean()  # of a disc, two thirds of the radius
        elif away.min() > 0.35 * away.max():
            kind, size = "cyst", 2 * away.mean()
        else:
            kind, size = "fracture", wide
        found[kind, side, level] = (size + RIMS[kind], *middle)
    return found


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_reader_of_pixels_finds_what_the_report_tells(modality):
    """Kinds and fields of 97 % of the scans; of what is found, 95 % of the sizes within 4 mm, centres within 6 mm."""
    right, sizes, places = [], [], []
    for number in range(120):
        patient = draw_patient(np.random.default_rng([5, number]), ("train", "test")[number % 2])
        seen = read_scan(scan(patient, modality, 128))
        true = {(found.kind, found.side, found.level): found for found in patient.findings}
        right.append(set(seen) == set(true))
        for key in set(seen) & set(true):
            size, x, y = seen[key]
            sizes.append(abs(size - true[key].size) < 4)
            places.append(np.hypot(x - true[key].x, y - true[key].y) < 6)
            words = f"a {key[0]} of {true[key].size} mm in the {key[1]} {key[2]} field"
            if key[0] == "effusion":
                words = f"an effusion on the {key[1]} that is {true[key].size} mm high"
            assert words in report(patient, modality)
    assert np.mean(right) >= 0.97
    assert len(sizes) > 170
    assert np.mean(sizes) >= 0.95
    assert np.mean(places) >= 0.95


def test_a_cyst_is_hollow_and_a_nodule_is_not():
    levels = {}
    for kind in ("nodule", "cyst"):
        found = Finding(kind, "left", "upper", 40, -75.0, -60.0)
        shown = scan(Patient(1.0, 1.0, 1.0, (found,), unseen=False, seed=5), "bright-bone", 128)
        levels[kind] = int(shown[44, 40])
    assert levels["cyst"] < 40 < 180 < levels["nodule"]


def test_the_bar_is_50_mm():
    row = scan(WELL, "soft-tissue", 256)[round((190 + WIDTH / 2) / WIDTH * 256)]
    assert (row > 200).sum() / 256 * WIDTH == pytest.approx(50, abs=3)


def test_an_unknown_modality_is_said():
    with pytest.raises(ValueError, match="modality='x-ray' must be one of bright-bone, soft-tissue"):
        scan(WELL, "x-ray", 64)


# ---- words


def test_reports():
    assert report(WELL, "soft-tissue") == "soft-tissue scan. nothing is found."
    assert report(PATIENT, "bright-bone") == (
        "bright-bone scan. there is a nodule of 40 mm in the left upper field and an effusion on the right that is "
        "36 mm high. no cyst and no fracture is seen."
    )


def answer(question, findings, modality):
    """From the words of a question and the findings alone."""
    words = set(re.findall("[a-z]+", question))
    (kind,) = words & set(KINDS) or [None]
    one = next((found for found in findings if found["kind"] == kind), None)
    sides, levels = words & {"left", "right"}, words & {"upper", "lower"}
    if not kind and levels:
        there = [found["kind"] for found in findings if found["side"] in sides and found["level"] in levels]
        return there[0] if there else "nothing"
    if not kind:
        return str(len(findings)) if "findings" in words else modality
    if "mm" in words and re.search(r"\d", question):
        return "yes" if one["size"] > int(re.search(r"(\d+) mm", question)[1]) else "no"
    if sides:
        return "yes" if one["side"] in sides else "no"
    if words & {"where", "field"}:
        return f"{one['side']} {one['level']}"
    if words & {"large", "size", "many", "measure"}:
        return f"{one['size']} mm"
    return "yes" if one else "no"


def test_answers_follow_from_the_findings(samples):
    for _, sample in samples:
        told = decode(json.dumps(sample["json"]).encode(), "json")
        assert told["answer"] == answer(told["question"], told["findings"], told["modality"])


def test_answers_follow_from_the_findings_of_many(questions):
    kinds = set()
    for patient, _, asked in questions:
        findings = [{"kind": f.kind, "side": f.side, "level": f.level, "size": f.size} for f in patient.findings]
        assert asked["answer"] == answer(asked["question"], findings, "soft-tissue")
        assert asked["answer_type"] == ("CLOSED" if asked["answer"] in ("yes", "no") else "OPEN")
        assert (asked["answer_type"] == "CLOSED") == (asked["question_type"] in CLOSED)
        kinds.add(asked["question_type"])
    assert kinds == set(TEMPLATES)


@pytest.mark.parametrize("kind", CLOSED)
def test_yes_is_as_frequent_as_no(questions, kind):
    for split in ("train", "validation", "test"):
        answers = [a["answer"] == "yes" for _, s, a in questions if (a["question_type"], s) == (kind, split)]
        assert len(answers) > 150
        assert near(np.mean(answers), 0.5, len(answers))


def test_templates_that_are_held_out_are_in_their_split_alone(questions):
    used = defaultdict(set)
    new = Counter()
    for patient, split, asked in questions:
        (number,) = [
            i
            for i, words in enumerate(TEMPLATES[asked["question_type"]])
            if re.fullmatch(re.sub(r"\\{\w+\\}", r"[\\w ]+", re.escape(words)), asked["question"])
        ]
        used[split].add(number)
        new[split] += number > 1
        assert asked["unseen"] == (patient.unseen or number > 1)
    assert used == {"train": {0, 1}, "validation": {0, 1, 2}, "test": {0, 1, 3}}
    assert near(new["test"] / 2400, 0.5, 2400)


# ---- the source


def test_there_are_as_many_as_asked_for():
    source = WorldScans(3, 0, 2, scans=2, questions=4)
    items = source.items()
    assert Counter(item.split for item in items) == {"train": 24, "test": 16}
    assert len({item.key for item in items}) == 40
    assert Counter(Counter(item.group for item in items).values()) == {8: 5}


def test_splits_are_disjoint_by_patient(samples):
    splits, bodies = defaultdict(set), defaultdict(set)
    for item, sample in samples:
        told = sample["json"]
        assert told["patient"] == item.group
        splits[item.group].add(item.split)
        bodies[item.group].add(json.dumps(told["findings"]))
    assert all(len(own) == 1 for own in (*splits.values(), *bodies.values()))
    assert len(splits) == 36


def test_members_decode_and_questions_share_their_scan(samples):
    shown = defaultdict(set)
    for item, sample in samples:
        assert list(sample) == ["__key__", "png", "txt", "json"]
        told = sample["json"]
        assert told["report"] == sample["txt"] == decode(sample["txt"].encode(), "txt")
        picture = decode(sample["png"], "png").tensor()
        assert picture.shape == (3, 64, 64)
        assert (picture[0] == picture[2]).all()
        assert all(0 < found["x"] < 1 and 0 < found["y"] < 1 for found in told["findings"])
        shown[item.group, told["modality"]].add(sample["png"])
    assert len(shown) == 72  # both modalities of each patient
    assert all(len(own) == 1 for own in shown.values())
    assert len(set.union(*shown.values())) == 72


def test_places_of_findings_are_in_canvas_widths(samples):
    """A nodule's centre is white in the picture."""
    seen = 0
    for _, sample in samples:
        for found in sample["json"]["findings"]:
            if found["kind"] == "nodule":
                level = decode(sample["png"], "png").tensor()[0, int(64 * found["y"]), int(64 * found["x"])]
                assert level > 150
                seen += 1
    assert seen > 10


def test_unseen_things_and_words_are_in_their_split_alone(samples):
    unseen = Counter()
    for item, sample in samples:
        told = sample["json"]
        homes = {HELD_OUT.get((found["kind"], found["side"], found["level"])) for found in told["findings"]}
        assert homes <= {None, item.split}
        assert told["unseen"] or item.split not in homes
        unseen[item.split] += told["unseen"]
    assert unseen["train"] == 0
    assert min(unseen["validation"], unseen["test"]) > 20


def test_a_sample_depends_on_seed_split_and_number_alone():
    few, many = WorldScans(1, 1, 1, size=64).items(), WorldScans(3, 0, 2, size=64).items()
    assert few[5].sample() == many[5].sample()
    assert few[17].sample() == many[25].sample()
    other = WorldScans(1, 1, 1, seed=1, size=64).items()[0]
    assert few[0].sample()["png"] != other.sample()["png"]


def test_samples_are_the_same_bytes_in_another_process():
    items = WorldScans(2, 0, 1).items()
    made = subprocess.run([sys.executable, "-c", MAKE], input=pickle.dumps(items), capture_output=True, check=True)
    assert pickle.loads(made.stdout) == [item.sample() for item in items]


def test_options_are_kept():
    items = WorldScans(2, 1, 1, size=96, scans=3, questions=1, modalities=["soft-tissue"], format="jpg").items()
    assert len(items) == 12
    for item in items:
        sample = item.sample()
        assert decode(sample["jpg"], "jpg").width == 96
        assert sample["json"]["modality"] == "soft-tissue"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": -1}, "train=-1 must be in 0..10,000,000"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"size": 257}, r"size=257 pixels must be in 32\.\.256"),
        ({"size": 63}, "size=63 pixels must be 64 or more, or findings cannot be seen"),
        ({"format": "dcm"}, "format='dcm' must be one of jpg, png"),
        ({"scans": 0}, "scans=0 and questions=4 must be in 1..100"),
        ({"questions": 0}, "scans=2 and questions=0 must be in 1..100"),
        ({"modalities": []}, r"modalities=\[\] must be one or more of bright-bone, soft-tissue"),
        ({"modalities": ["x-ray"]}, r"modalities=\['x-ray'\] must be one or more"),
        ({"modalities": ["soft-tissue"] * 2}, "each once"),
    ],
)
def test_impossible_options_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        WorldScans(**options)


def test_the_size_is_about_that_of_the_members():
    items = WorldScans(4, 0, 0, questions=1).items()
    sizes = [
        sum(len(value if isinstance(value, bytes) else json.dumps(value)) for value in item.sample().values())
        for item in items
    ]
    assert np.mean(sizes) * 0.9 < items[0].size < np.mean(sizes) + 4 * 1024  # a tar adds up to 1 kB to each


def test_the_spec_is_of_the_source_and_names_its_members(samples):
    spec = DataSpec.read("data_specs/world_scans.yaml")
    source = build_source(spec)
    assert type(source) is WorldScans
    assert all(set(members) & set(samples[0][1]) for members in spec.fields.values())
    assert set(spec.splits) == set(source.counts)
