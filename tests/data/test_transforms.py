import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from mmflow.data.decode import SAMPLE_RATE, decode
from mmflow.data.errors import BadSample
from mmflow.data.pictures import Picture, random_resized_crop
from mmflow.data.transforms import Array, Clip, Crop, Entry, Excerpt, OneOf, Parts, Several, Text, Transform
from mmflow.data.video import Video
from tests.data.test_pictures import photo, plain, saved
from tests.data.test_video import burst, movie, numbers


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- pictures --------------------------------------------------------------------------------------------------------

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(width: int = 40, height: int = 40) -> Picture:
    """Red and green above, blue and white below."""
    image = Image.new("RGB", (width, height))
    for place, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        left, top = place % 2 * width // 2, place // 2 * height // 2
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    return Picture(saved(image))


def corners(pixels: Tensor) -> list[tuple[int, ...]]:
    """Colours of the corners, as the rows of the picture are read."""
    return [tuple(pixels[:, y, x].tolist()) for y in (0, -1) for x in (0, -1)]


def test_evaluation_takes_the_square_in_the_middle():
    pixels = Crop(20, crop_ratio=0.5)(quadrants(60, 40), None)
    assert (pixels.shape, pixels.dtype) == ((3, 20, 20), torch.uint8)
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]
    assert [tuple(pixels[:, 9, x].tolist()) for x in (9, 10)] == [RED, GREEN]  # cut where the picture is cut


@pytest.mark.parametrize(
    ("ratio", "box"), [(0.875, (11, 3, 53, 45)), (1.0, (8, 0, 56, 48)), (0.9, (10.4, 2.4, 53.6, 45.6))]
)
def test_evaluation_is_what_pillow_crops_and_resizes(ratio, box):
    data = saved(photo(64, 48))
    gap = Crop(32, crop_ratio=ratio)(Picture(data), None).int() - plain(data, (32, 32), box).int()
    assert gap.abs().max() <= 1


def test_training_takes_random_boxes():
    image, crop = photo(64, 48), Crop(16, scale=(0.2, 0.6), ratio=(0.5, 2.0))
    for seed in range(20):
        box = random_resized_crop(draws(seed), 64, 48, (0.2, 0.6), (0.5, 2.0))
        gap = crop(Picture(saved(image)), draws(seed)).int() - plain(saved(image), (16, 16), box).int()
        assert gap.abs().max() <= 1


def test_all_of_a_picture_at_its_size_is_the_picture():
    data = saved(photo(48, 48))
    assert torch.equal(Crop(48, scale=(1, 1), ratio=(1, 1))(Picture(data), draws()), plain(data))


def test_a_flip_mirrors_exactly_and_draws_the_same_box():
    data = saved(photo(64, 48))
    for seed in range(5):
        straight, mirrored = (Crop(16, flip=flip)(Picture(data), draws(seed)) for flip in (0.0, 1.0))
        assert torch.equal(mirrored, straight.flip(2))
    whole = Crop(40, scale=(1, 1), ratio=(1, 1), flip=1.0)
    assert corners(whole(quadrants(), draws())) == [GREEN, RED, WHITE, BLUE]
    assert corners(whole(quadrants(), None))[:2] == [RED, GREEN]  # never in evaluation


def test_a_flip_happens_as_often_as_asked():
    crop, picture = Crop(4, scale=(1, 1), ratio=(1, 1), flip=0.3), quadrants()
    draw = draws()
    flipped = sum(corners(crop(picture, draw))[0] == GREEN for _ in range(1000))
    assert abs(flipped - 300) < 4 * (1000 * 0.3 * 0.7) ** 0.5


def test_a_large_jpeg_is_decoded_no_larger_than_needed(monkeypatch):
    sizes = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *a: (draft(self, *a), sizes.append(self.size)))
    large = saved(photo(1600, 1200), "JPEG")
    Crop(64, scale=(1, 1), ratio=(1, 1))(Picture(large), draws())
    Crop(64)(Picture(large), None)
    assert sizes == [(200, 150)] * 2
    Crop(64, scale=(0.004, 0.004))(Picture(large), draws())  # 88 pixels to 64
    assert len(sizes) == 2


def test_several_pictures_are_stacked_up_to_a_maximum():
    pictures = [Picture(saved(photo(30 + n, 40, seed=n))) for n in range(4)]
    several = Several(Crop(8), maximum=3)(pictures, None)
    assert several.shape == (3, 3, 8, 8)
    assert all(torch.equal(one, Crop(8)(picture, None)) for one, picture in zip(several, pictures, strict=False))
    assert Several(Crop(8), maximum=3)(pictures[:1], None).shape == (1, 3, 8, 8)
    crops = Several(Crop(8))([pictures[0]] * 2, draws())
    assert not torch.equal(crops[0], crops[1])  # each has draws of its own


# -- videos ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counter() -> bytes:
    """Picture i, shown i / 30 s, for 4 s, shows the number i."""
    return movie(pts=list(range(120)), options={"crf": "10"})


def test_a_clip_starts_at_random_in_training_and_lies_in_the_middle_in_evaluation(counter):
    clip, opened = Clip(1.0, 10, (48, 128)), Video(counter)
    middle = clip(opened, None)
    assert (middle.shape, middle.dtype) == ((10, 3, 48, 128), torch.uint8)
    assert numbers(middle) == list(range(45, 75, 3))  # from 1.5 s, every third of 30 pictures/s
    starts = [numbers(clip(opened, draws(seed)))[0] for seed in range(12)]
    assert starts == [int(30 * 3.0 * draws(seed).random()) for seed in range(12)]
    assert len(set(starts)) > 8


def test_a_video_that_is_shorter_is_held_and_its_sound_ends_in_zeros():
    data = movie("libx264", "matroska", pts=list(range(30)), sound=burst(0, 1, 1, 48_000), sound_codec="flac")
    for draw in (None, draws()):
        made = Clip(2.0, 15, (48, 128), sound="audio")(Video(data), draw)
        assert isinstance(made, dict)
        assert numbers(made["video"]) == [*range(0, 30, 2), *[29] * 15]
        assert made["audio"].shape == (32_000,)
        assert made["audio"][:15_900].abs().max() > 0.4
        assert made["audio"][16_100:].abs().max() == 0


def test_what_is_seen_and_heard_at_once_stays_together():
    """A tone begins at 2 s with picture 60."""
    sound = burst(2.0, 4.0, 4, 48_000)
    data = movie("libx264", "matroska", pts=list(range(120)), sound=sound, sound_codec="flac", options={"crf": "10"})
    clip = Clip(2.5, 30, (48, 128), sound="audio")
    for seed in [*range(8), None]:
        made = clip(Video(data), None if seed is None else draws(seed))
        assert isinstance(made, dict)
        start = 1.5 * (0.5 if seed is None else draws(seed).random())
        heard = int((made["audio"].abs() > 0.1).nonzero()[0]) / SAMPLE_RATE
        seen = next(i for i, number in enumerate(numbers(made["video"])) if number >= 60) / 30
        assert heard == pytest.approx(2.0 - start, abs=0.001)
        assert 0 <= seen - heard + 0.001 <= 1 / 30 + 0.001  # the first picture shown at or after it


def test_a_video_without_sound_is_broken_only_where_its_sound_is_asked_for(counter):
    with pytest.raises(BadSample, match="a video without sound"):
        Clip(1.0, 10, (48, 128), sound="audio")(Video(counter), None)


# -- sound, text, numbers, arrays ------------------------------------------------------------------------------------


def test_an_excerpt_is_random_in_training_and_the_middle_in_evaluation():
    audio = torch.arange(16_000, dtype=torch.float32)
    excerpt = Excerpt(0.25)
    assert torch.equal(excerpt(audio, None), audio[6000:10_000])
    for seed in range(5):
        start = int(draws(seed).integers(12_001))
        assert torch.equal(excerpt(audio, draws(seed)), audio[start : start + 4000])
    last = {int(Excerpt(15_999 / 16_000)(audio, draws(seed))[0]) for seed in range(20)}
    assert last == {0, 1}  # the last place is reached


def test_short_sound_is_padded_behind_and_without_a_length_it_stays_as_it_is():
    audio = torch.arange(1, 5, dtype=torch.float32)
    for draw in (None, draws()):
        assert Excerpt(6 / 16_000)(audio, draw).tolist() == [1, 2, 3, 4, 0, 0]
        assert Excerpt()(audio, draw) is audio


def test_text_stays_as_it_is():
    assert Text()("two dogs", draws()) == "two dogs"


INFO = {"label": 3, "captions": ["a", "b", "c"], "speaker": {"age": 41.5, "name": "x"}, "answers": [[7, 8], [9]]}


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [
        ("label", "int", 3),
        ("label", "float", 3.0),
        ("speaker.age", "float", 41.5),
        ("speaker.name", "str", "x"),
        ("captions.1", "str", "b"),
        ("answers.0.1", "int", 8),
    ],
)
def test_an_entry_is_found_by_its_path(path, kind, value):
    found = Entry(path, kind)(INFO, None)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "path", "kind", "message"),
    [
        (INFO, "lable", "int", r"no 'lable': there is no 'lable' in \{'label': 3"),
        (INFO, "speaker.weight", "int", r"no 'speaker.weight': there is no 'weight' in \{'age'"),
        (INFO, "answers.2", "int", r"no 'answers.2': there is no '2' in \[\[7, 8\], \[9\]\]"),
        (INFO, "answers.x", "int", "there is no 'x'"),
        (INFO, "label.x", "int", "there is no 'x' in 3"),
        (INFO, "speaker.name.x", "str", "there is no 'x' in 'x'"),
        (INFO, "speaker.age", "int", "'speaker.age' is 41.5, must be int"),
        (INFO, "speaker.name", "float", "'speaker.name' is 'x', must be float"),
        (INFO, "label", "str", "'label' is 3, must be str"),
        ({"label": True}, "label", "int", "'label' is True, must be int"),
        ({"label": None}, "label", "int", "'label' is None, must be int"),
        ({"label": 2**63}, "label", "int", "'label' is 9223372036854775808, must be int"),
        ({"label": 10**400}, "label", "float", "'label' is 1000.*, must be float"),
        ({"label": float("nan")}, "label", "float", "'label' is nan, must be float"),
    ],
)
def test_what_is_no_such_entry_is_a_bad_sample(value, path, kind, message):
    with pytest.raises(BadSample, match=message):
        Entry(path, kind)(value, None)


def test_one_of_several_captions_is_drawn_in_training_and_the_first_taken_in_evaluation():
    draw = draws()
    drawn = Counter(OneOf("captions")(INFO, draw) for _ in range(900))
    assert sorted(drawn) == ["a", "b", "c"]
    assert all(abs(count - 300) < 4 * (900 * 2 / 9) ** 0.5 for count in drawn.values())
    assert OneOf()(INFO, None) == "a"
    for captions in ([], "abc", ["a", 1], None):
        with pytest.raises(BadSample, match=r"'captions' is .*, must be a list of texts"):
            OneOf()({"captions": captions}, None)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ("float64", torch.float32),
        (">f4", torch.float32),
        ("float16", torch.float32),
        ("uint16", torch.int64),
        (">i2", torch.int64),
        ("int64", torch.int64),
        ("uint8", torch.uint8),
        ("bool", torch.bool),
    ],
)
def test_arrays_become_tensors(stored, dtype):
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(stored)
    tensor = Array()(values, None)
    assert (tensor.dtype, tensor.shape) == (dtype, (2, 3))
    assert tensor.tolist() == values.tolist()


@pytest.mark.parametrize("stored", ["complex64", "U3", "M8[s]"])
def test_arrays_of_other_things_are_bad_samples(stored):
    with pytest.raises(BadSample, match=r"an array of .*, must be of bool, integers or floats"):
        Array()(np.zeros(3, stored), None)


def test_parts_make_several_things_of_one_field():
    parts = Parts({"label": Entry("label"), "caption": OneOf()})
    assert parts(INFO, None) == {"label": 3, "caption": "a"}
    assert parts(INFO, draws(5))["caption"] == "abc"[int(draws(5).integers(3))]


# -- what holds for all ----------------------------------------------------------------------------------------------

EVERY = {
    "image": Crop(16, flip=0.5),
    "images": Several(Crop(16)),
    "video": Clip(0.5, 8, (24, 64), sound="audio"),
    "audio": Excerpt(0.5),
    "info": Parts({"label": Entry("label"), "caption": OneOf()}),
    "units": Array(),
}


def test_the_same_draws_make_the_same_bits(counter):
    video = movie(pts=list(range(60)), sound=burst(0, 2, 2, 48_000))
    values: dict[str, Any] = {
        "image": lambda: Picture(saved(photo(64, 48), "JPEG")),
        "images": lambda: [Picture(saved(photo(64, 48, n), "JPEG")) for n in range(2)],
        "video": lambda: Video(video),
        "audio": lambda: torch.arange(16_000.0),
        "info": lambda: INFO,
        "units": lambda: np.arange(5),
    }
    for name, transform in EVERY.items():
        copy = pickle.loads(pickle.dumps(transform))
        for seed in (0, 1, None):
            once, again = (t(values[name](), None if seed is None else draws(seed)) for t in (transform, copy))
            pairs = zip(once.values(), again.values(), strict=True) if isinstance(once, dict) else [(once, again)]
            assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
    assert len(pickle.dumps(EVERY)) < 2000


class AsItIs(Transform):
    """Takes everything, as the base does."""

    def __call__(self, value, draw):
        return value


@pytest.mark.parametrize(
    ("transform", "extensions", "refused"),
    [
        (Crop(), ["jpg", "png", "webp"], None),
        (Crop(), ["jpg", "mp4"], "mp4"),
        (Crop(), ["*.jpg"], "*.jpg"),
        (Several(Crop()), ["*.jpg", "*.png"], None),
        (Several(Crop()), ["jpg"], "jpg"),
        (Several(Crop()), ["*.txt"], "*.txt"),
        (Clip(1, 1, (8, 8)), ["mp4", "webm"], None),
        (Excerpt(), ["flac", "npy"], "npy"),
        (Entry("label"), ["json"], None),
        (Entry("label"), ["label.txt"], "label.txt"),
        (Array(), ["units.npy", "bin"], None),
        (Parts({"a": Entry("a"), "b": Text()}), ["json"], "json"),
        (AsItIs(), ["jpg", "txt"], None),
    ],
)
def test_a_transform_tells_which_members_it_takes(transform, extensions, refused):
    assert transform.refused(extensions) == refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(0), "size=0 pixels must be at least 1"),
        (lambda: Crop(scale=(0.5, 0.1)), r"scale=\(0.5, 0.1\) must be two shares of the area in 0..1, the least first"),
        (lambda: Crop(scale=(0.5, 1.1)), r"scale=\(0.5, 1.1\) must be"),
        (lambda: Crop(ratio=(0, 1)), r"ratio=\(0, 1\) must be two ratios of width to height above 0"),
        (lambda: Crop(flip=1.5), r"flip=1.5 is a probability; it must be in 0\.\.1"),
        (lambda: Crop(crop_ratio=0), "crop_ratio=0 must be above 0 and at most 1"),
        (lambda: Several(Crop(), 0), "maximum=0 members must be at least 1"),
        (lambda: Clip(0.1, 4, (8, 8)), "seconds=0.1 at rate=4 pictures/s must make at least one picture"),
        (lambda: Clip(-1, -4, (8, 8)), "seconds=-1 at rate=-4 pictures/s must make"),
        (lambda: Clip(1, 4, (8, 0)), r"size=\(8, 0\) pixels \(H, W\) must be at least 1 x 1"),
        (lambda: Clip(1, 4, (8, 8), sound="video"), "sound='video' is the name of the pictures"),
        (lambda: Excerpt(0), "seconds=0 must be at least one sample of 1/16000 s, or null for all"),
        (lambda: Parts({}), "parts={} makes nothing"),
    ],
)
def test_senseless_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- configuration ---------------------------------------------------------------------------------------------------

CONFIG = """
image:
  class_path: mmflow.data.transforms.Crop
  init_args: {size: 32, scale: [0.5, 1], flip: 0.5}
images:
  class_path: mmflow.data.transforms.Several
  init_args: {transform: {class_path: mmflow.data.transforms.Crop}, maximum: 2}
video:
  class_path: mmflow.data.transforms.Clip
  init_args: {seconds: 2, rate: 4, size: [24, 32], sound: audio}
info:
  class_path: mmflow.data.transforms.Parts
  init_args:
    parts:
      label: {class_path: mmflow.data.transforms.Entry, init_args: {path: label}}
      caption: {class_path: mmflow.data.transforms.OneOf}
"""


def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transforms", type=dict[str, Transform])
    return parser


def test_transforms_come_out_of_yaml_and_go_into_it_again():
    config = parser().parse_object({"transforms": yaml.safe_load(CONFIG)})
    again = parser().parse_string(parser().dump(config))
    for parsed in (config, again):
        made = parser().instantiate_classes(parsed).transforms
        assert [type(transform) for transform in made.values()] == [Crop, Several, Clip, Parts]
        assert vars(made["image"]) == vars(Crop(32, (0.5, 1.0), flip=0.5))
        assert vars(made["images"].transform) == vars(Crop())
        assert vars(made["video"]) == {"seconds": 2.0, "rate": 4.0, "size": (24, 32), "sound": "audio"}
        assert vars(made["info"].parts["label"]) == {"path": "label", "kind": "int"}


def test_a_wrong_word_in_yaml_is_refused():
    wrong = yaml.safe_load(CONFIG.replace("flip", "filp"))
    with pytest.raises(ArgumentError, match="filp"):
        parser().parse_object({"transforms": wrong})
    wrong = yaml.safe_load(CONFIG.replace("path: label", "path: label, kind: bool"))
    with pytest.raises(ArgumentError, match="Literal"):
        parser().parse_object({"transforms": wrong})


# -- real data -------------------------------------------------------------------------------------------------------


def test_real_pictures_videos_and_sound(real_data: Path):
    photos = sorted((real_data / "flickr8k" / "Images").glob("*.jpg"))[:20]
    for path in photos:
        picture = decode(path.read_bytes(), "jpg")
        for draw in (None, draws()):
            assert Crop(96)(picture, draw).shape == (3, 96, 96)
    for path in sorted((real_data / "grid_av").rglob("*.mp*g"))[:3]:
        for draw in (None, draws()):
            made = Clip(1.0, 25, (72, 90), sound="audio")(decode(path.read_bytes(), "mpg"), draw)
            assert isinstance(made, dict)
            assert made["video"].shape == (25, 3, 72, 90)
            assert made["audio"].shape == (16_000,)
            assert made["audio"].std() > 0.001
    sound = decode(next((real_data / "ESC-10" / "audio").glob("*.ogg")).read_bytes(), "ogg")
    assert Excerpt(1.0)(sound, draws()).shape == (16_000,)
