import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread
from PIL import Image

from mmflow.data.pictures import Picture
from mmflow.data.show import show_page


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


def test_pictures_and_videos_are_on_the_page_as_they_are_in_the_shard(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG")
    film = SimpleNamespace(data=b"\0\0\0\x18ftypisom", check=lambda: None)
    old = SimpleNamespace(data=b"\0\0\1\xba", check=lambda: None)
    seen = {"__key__": "k", "__shard__": "s", "text": "a", "info": {"captions": ["a", "<b>"]}}
    seen |= {"document": ["words", Picture(file.getvalue())], "video": film, "second": old}
    page = shown([seen], tmp_path)
    (picture,), (video,) = page.all("img"), page.all("video")
    assert picture["src"] == "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert picture["alt"] == "3 x 2"
    assert video["src"].startswith("data:video/mp4;base64,")
    assert not page.all("audio")
    text = " ".join(" ".join(page.text).split())
    for words in ("1 samples · 1 shards", "<b>", "a video in a format that browsers do not play"):
        assert words in text


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
