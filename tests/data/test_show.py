import base64
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread
from PIL import Image

from mmflow.data import show
from mmflow.data.pictures import Picture
from mmflow.data.show import show_page
from mmflow.data.video import Video


class Page(HTMLParser):
    """Every tag with its attributes, and all text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def sample(audio: torch.Tensor, **more) -> dict:
    return {"__key__": "key", "__shard__": "train-000000.tar", "audio": audio, "text": "hello", "info": {}} | more


def shown(samples, tmp_path, title="mine") -> Page:
    return Page(show_page(samples, title, tmp_path / "page" / "show.html").read_text())


def tone(seconds: float) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * 1000 / 16_000 * torch.arange(round(seconds * 16_000)))


def test_the_sound_on_the_page_is_the_sound_of_the_sample(tmp_path):
    (player,) = shown([sample(tone(0.5))], tmp_path).all("audio")
    kind, data = player["src"].split(",")
    assert kind == "data:audio/flac;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert rate == 16_000
    np.testing.assert_allclose(samples, tone(0.5).numpy(), atol=1 / 32_768)


def test_the_spectrogram_of_a_1_khz_tone_is_brightest_at_an_eighth_of_its_height(tmp_path):
    (picture,) = shown([sample(tone(6.0))], tmp_path).all("img")
    pixels = imread(io.BytesIO(base64.b64decode(picture["src"].split(",")[1])))  # (240, 601, 4)
    assert pixels.shape == (64 + 176, 601, 4)
    brightness = pixels[64:, 100:500, :3].sum(axis=(1, 2))
    assert abs(int(brightness.argmax()) - 176 * 7 / 8) <= 2


def test_words_phones_and_units_stand_where_they_are_heard(tmp_path):
    info = {"words": [[0.0, 1.0, "so"]], "phones": [[0.0, 0.5, "s"], [0.5, 1.0, "oʊ"]]}
    units = torch.tensor([7, 7, 7, 3] + [3] * 95)  # T(32000) is 99
    spans = shown([sample(tone(2.0), info=info, units=units)], tmp_path).all("span")
    styles = {attributes["title"]: attributes["style"] for attributes in spans if "title" in attributes}
    assert styles["so 0.00-1.00 s"] == "left:0.000%;width:50.000%"
    assert styles["oʊ 0.50-1.00 s"] == "left:25.000%;width:25.000%"
    assert styles["7 0.00-0.06 s"].startswith("left:0.000%;width:3.000%;background:hsl(")
    assert styles["3 0.06-1.98 s"].startswith("left:3.000%;width:96.000%;background:hsl(")


def test_key_shard_length_speaker_and_level_are_said(tmp_path):
    info = {"speaker": "1089", "phone_sequence": ["HH", "AH0"], "room": "hall"}
    page = shown([sample(tone(1.5), info=info), sample(tone(0.5), text="")], tmp_path, title="LibriSpeech train")
    text = " ".join(" ".join(page.text).split())
    for words in (
        "LibriSpeech train",
        "2 samples · 2.0 s · 1 shards · 1 speakers · 1 without text",
        "speaker 1089 · 1.50 s · train-000000.tar · peak -6.0 dB, mean -9.0 dB",
        "phones: HH AH0",
        '"room": "hall"',
        "no text",
    ):
        assert words in text


def png(pixels: np.ndarray) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(file.getvalue())


def film(codec: str = "mpeg4", kind: str = "avi", pixels: str = "yuv420p", seconds: int = 2) -> Video:
    """A video of 64 x 48 whose pictures go from black to white, at 25 pictures/s, without sound."""
    file = io.BytesIO()
    with av.open(file, "w", kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for number in range(25 * seconds):
            grey = np.full((48, 64, 3), 10 * (number // 2), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
        container.mux(stream.encode(None))
    return Video(file.getvalue())


def plain(**fields) -> dict:
    return {"__key__": "k", "__shard__": "s"} | fields


def pixels_of(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def words_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


# -- pictures, masks and videos ----------------------------------------------------------------------------------------


def test_pictures_are_on_the_page_as_they_are_in_the_shard(tmp_path):
    picture = png(np.zeros((2, 3, 3), np.uint8))
    page = shown([plain(document=["words", picture], info={"captions": ["a", "<b>"]}, text="a")], tmp_path)
    (shot,) = page.all("img")
    assert shot["src"] == "data:image/png;base64," + base64.b64encode(picture.data).decode()
    assert shot["alt"] == "3 x 2"
    assert "width:255px" in shot["style"]  # small ones are enlarged
    assert not page.all("audio")
    for words in ("1 samples · 1 shards · 1 pictures", "<b>", "words"):
        assert words in words_of(page)


@pytest.mark.parametrize(
    "mask",
    [
        png(np.array([[0, 0, 7], [2, 2, 7]], np.uint8)),
        np.array([[0, 0, 7], [2, 2, 7]]),
        np.array([[[0, 0, 0], [1, 1, 0]], [[0, 0, 1], [0, 0, 1]]], bool),
    ],
    ids=["picture", "array", "stack"],
)
def test_masks_lie_over_their_pictures_one_colour_for_each_label(mask, tmp_path):
    picture = png(np.zeros((2, 3, 3), np.uint8))
    _, over = shown([plain(image=picture, mask=mask)], tmp_path).all("img")
    assert over["class"] == "over"
    colours = pixels_of(over["src"])  # (2, 3, 4)
    assert colours[..., 3].tolist() == [[0, 0, 150], [150, 150, 150]]
    assert (colours[1, 0] == colours[1, 1]).all()
    assert (colours[0, 2] == colours[1, 2]).all()
    assert (colours[1, 0] != colours[1, 2]).any()


def test_masks_go_to_the_picture_of_their_number_and_the_rest_stand_alone(tmp_path):
    picture, mask = (png(np.full((150, 150), value, np.uint8)) for value in (9, 1))
    sample = plain(frame_0=picture, frame_1=picture, mask_1=mask, mask_2=mask, masks=[mask])
    tags = [(tag, a.get("class")) for tag, a in shown([sample], tmp_path).tags if tag in ("figure", "img")]
    assert tags == [
        ("figure", "shot"), ("img", None), ("figure", "shot"), ("img", None), ("img", "over"),
        ("figure", "shot"), ("img", None), ("figure", "shot"), ("img", None),
    ]  # fmt: skip


def test_outlines_and_boxes_are_drawn_in_pixels_of_the_picture_and_named(tmp_path):
    objects = [
        {"class": "cat", "box": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6]]},
        {"class": "cat", "box": [0, 0, 1, 1], "segmentation": "junk"},
        {"box": ["x"], "segmentation": {"size": [2, 3], "counts": [1, 2, 3]}},
        "junk",
    ]
    info = {"objects": objects, "width": 10, "height": 8}
    page = shown([plain(image=png(np.zeros((8, 10), np.uint8)), info=info)], tmp_path)
    (drawing,) = page.all("svg")
    assert drawing["viewbox"] == "0 0 10 8"
    assert [polygon["points"] for polygon in page.all("polygon")] == ["1,2 4,2 4,6"]
    assert [(box["x"], box["y"], box["width"], box["height"]) for box in page.all("rect")] == [
        ("1", "2", "3", "4"), ("0", "0", "1", "1")
    ]  # fmt: skip
    assert "cat × 2 object" in words_of(page)
    assert pixels_of(page.all("img")[1]["src"])[..., 3].tolist() == [[0, 110, 0], [110, 0, 0]]  # column by column


def test_videos_that_browsers_play_are_videos_and_of_others_there_are_stills(tmp_path):
    page = shown([plain(video=film("libvpx-vp9", "webm")), plain(video=film())], tmp_path)
    (video,) = page.all("video")
    assert video["src"].startswith("data:video/webm;base64,")
    strips = [image for image in page.all("img") if image.get("class") == "film"]
    assert [strip["alt"] for strip in strips] == ["13 stills", "13 stills"]
    pixels = pixels_of(strips[1]["src"]).mean((0, 2))
    assert (np.diff(pixels[80::169]) > 5).all()  # from black to white
    assert "64 x 48 · 2.00 s at 25 pictures/s · without sound · in a format browsers do not play" in words_of(page)


def test_events_stand_under_a_video_where_they_are(tmp_path):
    spans = shown([plain(video=film(), info={"events": [[0.5, 1, "bark"]]})], tmp_path).all("span")
    (bark,) = [span for span in spans if "title" in span]
    assert (bark["title"], bark["style"].partition(";background")[0]) == (
        "bark 0.50-1.00 s", "left:25.000%;width:25.000%"
    )  # fmt: skip


def test_events_may_be_dictionaries_and_those_that_overlap_have_strips_of_their_own(tmp_path):
    events = [
        {"kind": "bell", "t0": 0, "t1": 1.5, "seen": False},
        {"shape": "ring", "start": 1, "end": 2, "heard": True},
        {"kind": "late", "t0": 1.5, "t1": 2},
        {"kind": "junk", "t0": "x", "t1": 2},
    ]
    page = shown([plain(video=film(), info={"events": events})], tmp_path)
    strips = [div["class"] for div in page.all("div") if "strip" in div.get("class", "")]
    assert strips == ["strip events", "strip events 2"]
    titles = [span["title"] for span in page.all("span") if "title" in span]
    assert titles == ["bell, not seen 0.00-1.50 s", "late 1.50-2.00 s", "ring 1.00-2.00 s"]


def test_masks_are_hidden_until_they_are_asked_for(tmp_path):
    picture = png(np.zeros((2, 3, 3), np.uint8))
    (switch,) = shown([plain(image=picture, mask=picture)], tmp_path).all("input")
    assert switch == {"type": "checkbox"}  # not checked


def test_small_videos_are_enlarged_with_sharp_pixels(tmp_path):
    (video,) = shown([plain(video=film("libvpx-vp9", "webm"))], tmp_path).all("video")
    assert video["style"] == "width:256px;image-rendering:pixelated"  # 64 x 48


def test_each_of_several_data_sets_has_a_heading(tmp_path):
    samples = [plain(text="a", __spec__="one"), plain(text="b", __spec__="<two>"), plain(text="c", __spec__="one")]
    page = shown(samples, tmp_path)
    assert [h["class"] for h in page.all("h2")] == ["spec", "spec"]
    said = words_of(page)
    assert said.index("one k") < said.index("c") < said.index("<two>")
    assert not shown([plain(text="a", __spec__="one")], tmp_path).all("h2")


def test_what_dictionaries_in_the_json_say_is_shown_too(tmp_path):
    info = {"edit": {"instruction": "make it blue"}, "captions": {"en": "a", "de": "ein"}, "report": "no finding"}
    said = words_of(shown([plain(text="a", info=info)], tmp_path))
    for words in ("instruction make it blue", "de ein", "report no finding"):
        assert words in said
    assert "en a" not in said.partition("info")[0]  # it is the text


def test_broken_pictures_and_videos_are_said_to_be(tmp_path):
    data = film("libvpx-vp9", "webm").data
    noise = png(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    page = shown([plain(image=noise, mask=Picture(noise.data[:2000]), video=Video(data[: -len(data) // 4]))], tmp_path)
    assert "not a readable PNG picture" in words_of(page)
    assert "cut off after" in words_of(page)


def test_large_media_are_reduced_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "PAGE_BYTES", 400_000)
    noise = np.random.default_rng(0).integers(0, 255, (600, 1200, 3), np.uint8)
    samples = [plain(image=png(noise)), plain(video=film("libvpx-vp9", "webm")), sample(tone(60.0))]
    page = show_page(samples, "mine", tmp_path / "show.html")
    assert page.stat().st_size < 1_000_000
    said = words_of(Page(page.read_text()))
    assert re.search(r"1200 x 600 · reduced to \d+ x \d+ for this page, 2.2 MB in the shard", said)
    assert re.search(r"the first \d s, more is too large for this page", said)


# -- words -------------------------------------------------------------------------------------------------------------


def test_questions_dialogues_rows_and_classes_have_their_form(tmp_path):
    info = {
        "question": "What is it?",
        "options": ["a cat", "a dog"],
        "answer": "a dog",
        "answers": [{"answer": "a dog"}, {"answer": "wolf"}, {"answer": "wolf"}],
        "dialogue": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hello"}],
        "row": {"Age": 3, "Note": None, "Title": "Fine"},
        "class": "animal",
        "label": 4,
        "quality": "good",
    }
    page = shown([plain(info=info, text="Title: Fine"), plain(info={"question": "Why?", "answer": None})], tmp_path)
    said = words_of(page)
    assert "What is it? a cat a dog a dog wolf × 2" in said
    assert "user Hi bot Hello" in said
    assert [turn["class"] for turn in page.all("div") if "turn" in turn.get("class", "")] == ["turn", "turn other"]
    assert "Age 3 Note missing" in said
    assert said.count("Fine") == 2  # in the text and in the info, not in the table
    assert "animal label 4 quality good" in said
    assert "Why? no answer" in said


def test_documents_are_in_their_order_and_other_fields_have_their_names(tmp_path):
    picture = png(np.zeros((2, 2), np.uint8))
    document = ["one", picture, "two", tone(0.1)]
    page = shown(
        [plain(document=document, alt="other", bytes=np.frombuffer(b"raw", np.uint8), npy=np.zeros(3))], tmp_path
    )
    order = [word for word in page.text if word.strip() in ("one", "two", "2 x 2")]
    assert [word.strip() for word in order] == ["one", "2 x 2", "two"]
    assert len(page.all("audio")) == 1
    for words in ("alt other", "bytes, 3 bytes raw", "npy: float64 (3,)"):
        assert words in words_of(page)


def test_long_texts_are_cut(tmp_path):
    page = shown([plain(text="word " * 10_000)], tmp_path)
    assert "(47,000 characters more)" in words_of(page)


# -- in a browser ------------------------------------------------------------------------------------------------------


def opened(page: Path) -> tuple[str, str]:
    """What a headless Chromium makes of a page, and what it says on its console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome to open the page with")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    run = subprocess.run(
        [browser, *options, profile, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    return run.stdout, "\n".join(line for line in run.stderr.splitlines() if "CONSOLE" in line)


def test_a_browser_loads_all_media_without_a_word_on_the_console(tmp_path):
    info = {"objects": [{"class": "cat", "box": [1, 2, 3, 4]}], "events": [[0.5, 1, "bark"]]}
    picture = png(np.zeros((8, 10), np.uint8))
    samples = [
        plain(image=picture, mask=picture, info=info),
        plain(video=film("libvpx-vp9", "webm"), info=info),
        plain(video=film()),
        sample(tone(0.5)),
    ]
    dom, console = opened(show_page(samples, "mine", tmp_path / "show.html"))
    assert console == ""
    states = [attributes.get("data-state") for tag, attributes in Page(dom).tags if tag in ("img", "video", "audio")]
    assert states == ["loaded"] * 7


def test_a_browser_plays_real_videos_that_the_page_takes_for_playable(real_data, tmp_path):
    kinds = (".mp4", ".mov", ".mkv", ".webm")
    paths = [path for path in sorted((real_data / "video_codecs").iterdir()) if path.suffix in kinds]
    videos = {path.name: Video(path.read_bytes()) for path in paths if path.stat().st_size < 400_000}
    samples = [plain(video=video) | {"__key__": name} for name, video in videos.items()]
    page = show_page(samples, "real", tmp_path / "show.html")
    dom, console = opened(page)
    assert console == ""
    states = {attributes["data-state"] for tag, attributes in Page(dom).tags if tag in ("img", "video", "audio")}
    assert states == {"loaded"}
    assert len(Page(dom).all("video")) == 9  # H.264 in MP4 and MOV, VP8, VP9; not H.265, and nothing in Matroska
    assert words_of(Page(dom)).count("in a format browsers do not play") == len(videos) - 9


def test_a_browser_says_which_media_it_cannot_load(tmp_path):
    page = show_page([sample(tone(0.1))], "mine", tmp_path / "show.html")
    page.write_text(page.read_text().replace("data:audio/flac;base64,", "data:audio/flac;base64,AAAA"))
    dom, _ = opened(page)
    assert [audio["data-state"] for audio in Page(dom).all("audio")] == ["failed"]


def test_nothing_in_a_sample_becomes_markup(tmp_path):
    evil = '"><script>alert(1)</script>&'
    info = {"speaker": evil, "words": [[0.0, 0.1, evil]], "phone_sequence": [evil], evil: evil}
    page = shown([sample(tone(0.2), __key__=evil, __shard__=evil, text=evil, info=info)], tmp_path, title=evil)
    assert page.all("script") == [{}]  # the page's own
    assert page.text.count(evil) >= 4


def test_the_page_needs_no_network_and_runs_its_own_script_only(tmp_path):
    text = show_page([sample(tone(0.2))], "mine", tmp_path / "show.html").read_text()
    page = Page(text)
    assert not page.all("link")
    assert all(attributes["src"].startswith("data:") for tag in ("img", "audio") for attributes in page.all(tag))
    policy = page.all("meta")[2]["content"]
    script = re.search(r"<script>(.*)</script>", text, re.S)[1]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (torch.zeros(0), "no audio samples"),
        (torch.zeros(3), "silent"),
        (torch.zeros(16_000), "silent"),
        (torch.full((4000,), 2.5), "over full scale, cut here"),
        (torch.tensor([0.5, float("nan"), float("inf"), -0.5]), "2 samples are not finite"),
        (torch.full((400,), float("nan")), "400 samples are not finite"),
    ],
    ids=["empty", "three", "silence", "loud", "nan", "all nan"],
)
def test_odd_audio_is_shown_with_what_is_wrong(audio, says, tmp_path):
    assert says in " ".join(shown([sample(audio)], tmp_path).text)


def test_labels_that_are_no_intervals_are_passed_over(tmp_path):
    info = {"phones": "junk", "words": [[0.0, 0.1], ["a", "b", "c"], [0.3, 0.1, "back"], [0.9, 5.0, "late"], None]}
    spans = shown([sample(tone(1.0), info=info), sample(tone(1.0), info=None)], tmp_path).all("span")
    assert [span["title"] for span in spans if "title" in span] == ["late 0.90-1.00 s"]


def test_no_samples_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="there are no samples to show for 'mine'"):
        show_page([], "mine", tmp_path / "show.html")
