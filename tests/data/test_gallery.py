import io
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmflow.cli import main
from mmflow.data.gallery import _fitted, _font, _lines, _order, _places, show_gallery
from mmflow.data.pictures import Picture
from mmflow.data.video import Video
from tests.shards import write_data_set


def png(pixels: np.ndarray) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(file.getvalue())


def plain(colour: tuple[int, int, int], size: int = 64) -> Picture:
    return png(np.full((size, size, 3), colour, np.uint8))


def film(colours: list[tuple[int, int, int]]) -> Video:
    """A second of 64 x 64 for each colour, without sound."""
    file = io.BytesIO()
    with av.open(file, "w", "mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(5 * len(colours)):
            still = np.full((64, 64, 3), colours[number // 5], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(still)))
        container.mux(stream.encode(None))
    return Video(file.getvalue())


def sample(**fields) -> dict:
    return {"__key__": "k", "__shard__": "s", "__spec__": "mine"} | fields


def drawn(samples: list[dict], tmp_path) -> np.ndarray:
    return np.asarray(Image.open(show_gallery(samples, tmp_path / "page" / "gallery.png")))


def extent(page: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what has nearly a colour."""
    rows, columns = np.nonzero((np.abs(page.astype(int) - colour) < 24).all(2))
    return columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1


def test_a_small_picture_is_enlarged_four_times_with_sharp_pixels(tmp_path):
    checks = np.zeros((64, 64, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = (248, 0, 0)
    page = drawn([sample(image=png(checks))], tmp_path)
    left, top, width, height = extent(page, (248, 0, 0))
    assert (left, width, height) == (44, 256, 256)
    square = page[top : top + 256, left : left + 256]
    np.testing.assert_array_equal(square, checks.repeat(4, 0).repeat(4, 1))


def test_pictures_keep_their_shape():
    assert _fitted(np.zeros((30, 90, 3), np.uint8), 264, 264).size == (264, 88)
    assert _fitted(np.zeros((3000, 1000, 3), np.uint8), 264, 528).size == (176, 528)
    assert _fitted(np.zeros((1, 5000, 3), np.uint8), 264, 264).size == (264, 1)


def test_the_masks_of_a_picture_stand_beside_it(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 1
    page = drawn([sample(image=plain((248, 0, 248)), mask=png(mask))], tmp_path)
    picture = extent(page, (248, 0, 248))
    assert picture[2:] == (128, 128)  # nothing lies over it
    beside = page[picture[1] : picture[1] + 128, picture[0] + 136 : picture[0] + 264]
    assert (beside[:64] == beside[0, 0]).all()
    assert (beside[64:] == (24, 24, 32)).all()


def test_the_film_its_masks_and_its_events_are_at_the_same_times(tmp_path):
    masks = np.zeros((10, 64, 64), np.uint8)
    masks[5:] = 1
    info = {"events": [{"start": 1.0, "end": 2.0, "name": "bell", "heard": False}]}
    video = film([(240, 0, 0), (0, 0, 240)])
    page = drawn([sample(video=video, masks=masks, info=info)], tmp_path)
    red, blue = extent(page, (240, 0, 0)), extent(page, (0, 0, 240))
    assert red[0] == 44
    assert abs(blue[0] - 44 - 288) < 70  # a still is 112 px
    mask = page[red[1] + 112 + 8 + 50]
    lit = np.nonzero((mask == (40, 240, 96)).all(1))[0]
    assert abs(lit.min() - 44 - 288) < 70
    bar = page[red[1] + 2 * (112 + 8) + 12]  # 24 px high
    coloured = np.nonzero((bar.max(1).astype(int) - bar.min(1)) > 40)[0]
    assert coloured.min() == 44 + 288
    assert abs(coloured.max() - (44 + 576)) <= 2


def test_a_document_is_in_its_order(tmp_path):
    red, blue = (240, 0, 0), (0, 0, 240)
    first, second = (
        drawn([sample(document=["so", *parts])], tmp_path)
        for parts in ([plain(red), "and", plain(blue)], [plain(blue), "and", plain(red)])
    )
    assert extent(first, red)[0] < extent(first, blue)[0]
    assert extent(second, red)[0] > extent(second, blue)[0]


def test_everything_else_has_its_place_and_longer_texts_make_longer_cards(tmp_path):
    info = {
        "captions": ["a", "b"],
        "question": "Why?",
        "options": ["x", "y" * 300],
        "answer": "so",
        "dialogue": [["hi", "ho"]],
        "row": {"Age": 3, "Note": None},
        "explanation": "because",
        "class": "cat",
        "edit": {"instruction": "make it blue"},
    }
    full = sample(audio=torch.zeros(8000), text="one", info=info, other="two", npy=np.zeros(3))
    heights = [len(drawn([one], tmp_path)) for one in (sample(text="one"), sample(text="one " * 30), full)]
    assert heights[0] < heights[1] < heights[2]
    assert drawn([full] * 7, tmp_path).shape[1] == 1600


def test_the_same_samples_make_the_same_bytes(tmp_path):
    def samples():
        info = {"question": "Where?", "answer": "here"}
        return [sample(image=plain((9, 9, 200)), info=info), sample(video=film([(9, 200, 9)]))] * 3

    assert show_gallery(samples(), tmp_path / "a.png").read_bytes() == (
        show_gallery(samples(), tmp_path / "b.png").read_bytes()
    )


def test_a_text_that_questions_and_turns_have_already_is_not_there_twice(tmp_path):
    turns = {"dialogue": [["what is it?", "a cat"], ["where?", "here"]]}
    heights = [
        len(drawn([sample(text=text, info=turns)], tmp_path)) for text in ("", "what is it? a cat where? here", "this")
    ]
    assert heights[0] == heights[1] < heights[2]


@pytest.mark.parametrize(
    "info",
    [
        None,
        5,
        ["x"],
        {"question": None, "answer": {"a": 1}, "answers": [3]},
        {
            "events": [[1, 0, "x"], {"start": "a"}, None],
            "dialogue": [None, {}],
            "row": {},
            "captions": 3,
            "class": [[1]],
        },
        {"question": "\ud800\x00 <b>", "options": [1, 2], "label": float("nan"), "row": {"\udfff": [1]}},
    ],
    ids=["none", "number", "list", "kinds", "forms", "letters"],
)
def test_odd_json_is_drawn_as_far_as_it_goes(info, tmp_path):
    drawn([sample(image=plain((0, 0, 0)), text="t", info=info), sample(video=film([(9, 9, 9)]), info=info)], tmp_path)


def test_a_picture_that_cannot_be_read_is_said_on_its_card(tmp_path):
    noise = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    page = drawn([sample(image=Picture(noise.data[:2000]))], tmp_path)
    assert (np.abs(page.astype(int) - (192, 64, 16)).max(2) < 24).any()  # letters of a warning


def test_what_cannot_be_drawn_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"there are no samples to draw in .*gallery\.png; name a split with"):
        drawn([], tmp_path)
    with pytest.raises(ValueError, match=r"sample 'k' has nothing to draw in its fields .*'info'.*--out page\.html"):
        drawn([sample(info={"a": [1]})], tmp_path)
    assert not (tmp_path / "page").exists()


# -- layout ------------------------------------------------------------------------------------------------------------


def test_lines_are_as_wide_as_there_is_room_and_lose_nothing_until_they_are_cut():
    font = _font(19)
    text = "the quick brown fox jumps over the lazy dog " * 2 + "x" * 90
    lines = _lines(text, 200, font, 100)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    cut = _lines(text, 200, font, 2)
    assert len(cut) == 2
    assert cut[1].endswith("…")
    assert font.getlength(cut[1]) <= 200
    assert _lines("", 200, font) == [""]


def test_cards_fill_the_page_without_overlap():
    assert _places([(1, 100), (1, 50), (2, 80)]) == [
        [28, 28, 324, 128], [340, 28, 636, 128], [652, 28, 1260, 128]
    ]  # fmt: skip
    generator = np.random.default_rng(0)
    sizes = [(int(span), int(height)) for span, height in generator.integers([1, 40], [3, 400], (30, 2))]
    boxes = _places(sizes)
    taken = np.zeros((max(box[3] for box in boxes), 1600), int)
    for (left, top, right, bottom), (span, height) in zip(boxes, sizes, strict=True):
        assert right - left == (296, 608)[span - 1]
        assert bottom - top >= height
        taken[top:bottom, left:right] += 1
    assert taken.max() == 1


def test_the_order_is_changed_only_for_a_lower_page():
    assert _order([(1, 100)] * 5) == [0, 1, 2, 3, 4]
    sizes = [(1, 300), (2, 100), (1, 20), (2, 200), (1, 240), (2, 60), (1, 90)]
    order = _order(sizes)
    assert sorted(order) == list(range(7))
    height = [max(box[3] for box in _places([sizes[card] for card in cards])) for cards in (range(7), order)]
    assert height[1] <= height[0]


# -- the command -------------------------------------------------------------------------------------------------------


def data_set(folder, name: str, colour: tuple[int, int, int]):
    """A spec with three samples of one colour."""
    shard = [{"png": plain(colour).data, "txt": f"{name} {number}"} for number in range(3)]
    return write_data_set(folder / name, {"train": [shard]}, name, fields={"image": ["png"], "text": ["txt"]})


def test_the_command_draws_several_data_sets_or_writes_them_on_a_page(tmp_path, capsys):
    specs = [str(data_set(tmp_path, "red", (248, 0, 0))), str(data_set(tmp_path, "blue", (0, 0, 248)))]
    show = ["data", "show", "--spec", *specs]
    assert main([*show, "--count", "1", "2", "--out", str(tmp_path / "all.png")]) == 0
    assert capsys.readouterr().out == f"look at {tmp_path / 'all.png'}\n"
    page = np.asarray(Image.open(tmp_path / "all.png"))
    assert extent(page, (248, 0, 0))[2] == 256
    assert extent(page, (0, 0, 248))[2] == 256 + 296 + 16
    assert main([*show, "--out", str(tmp_path / "all.html")]) == 0
    text = (tmp_path / "all.html").read_text()
    assert re.findall(r'<h2 class="spec">(\w+)</h2>', text) == ["red", "blue"]
    assert "<h1>2 data sets: train</h1>" in text
    for options, says in (
        (["--out", "all.gif"], "--out all.gif ends in '.gif', must be .html for a page or .png for a picture"),
        (["--count", "1", "2", "3"], "--count 1 2 3 for 2 specs: give one number from 1 on, or one for each"),
        (["--count", "0"], "--count 0 for 2 specs"),
        (["--root", "x"], "--root and --units are for one spec, not for 2; show that one alone"),
    ):
        assert main([*show, *options]) != 0
        assert says in " ".join(capsys.readouterr().err.split())
