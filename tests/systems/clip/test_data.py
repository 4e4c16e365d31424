"""Which caption, as which tokens, beside which picture or spectrogram."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmflow.data.errors import BadSample
from mmflow.systems.clip.data import AudioTextPairs, Captions, ClassName, Pairs, PicturesAndTexts, Spectrogram
from mmflow.systems.clip.tokenizer import BytePairTokenizer
from tests.shards import encoded, write_data_set
from tests.systems.clip.pairs import CONTEXT, sample, vocabulary, write_pairs

DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BytePairTokenizer:
    return BytePairTokenizer(vocabulary(tmp_path_factory.mktemp("vocabulary")), CONTEXT)


def opened(data: Pairs, rank: int = 0, world: int = 1, fn: str = "fit") -> Any:
    """The module as a rank of a run has it at its beginning."""
    strategy = SimpleNamespace(barrier=lambda: None)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=0, global_rank=rank, world_size=world, is_global_zero=rank == 0, strategy=strategy,
        state=SimpleNamespace(fn=fn), training=fn == "fit",
    )  # fmt: skip
    data.setup(fn)
    return data


# -- captions ----------------------------------------------------------------------------------------------------------


def test_training_draws_one_caption_and_evaluation_takes_the_asked(tokenizer):
    texts = {"captions": ["a red bar", "there is a red bar", "on the left"]}
    drawn = {Captions(tokenizer, "captions")(texts, np.random.default_rng(n))["captions"][0] for n in range(20)}
    assert drawn == set(texts["captions"])
    for evaluated, expected in ((0, texts["captions"][:1]), (-1, texts["captions"][2:]), (None, texts["captions"])):
        made = Captions(tokenizer, "captions", evaluated)(texts, None)
        assert made["captions"] == expected
        assert torch.equal(made["tokens"], tokenizer.encode(expected).tokens)
    assert Captions(tokenizer, "captions")(texts, DRAW)["tokens"].shape == (CONTEXT,)


def test_the_same_generator_draws_the_same_caption(tokenizer):
    texts = {"captions": [f"bar {n}" for n in range(9)]}
    once, again = (Captions(tokenizer, "captions")(texts, np.random.default_rng(5))["captions"] for _ in "12")
    assert once == again


def test_a_text_is_a_caption_without_a_path(tokenizer):
    made = Captions(tokenizer)("A red bar", None)
    assert made["tokens"][0, :2].tolist() == tokenizer.encode(["a red bar"]).tokens[0, :2].tolist()
    assert (made["captions"], made["truncated"]) == (["A red bar"], 0)


def test_captions_that_are_too_long_are_cut_and_counted(tokenizer):
    made = Captions(tokenizer, "captions", None)({"captions": ["red " * 30, "red", "blue " * 23]}, None)
    assert made["truncated"] == 2
    assert made["tokens"][0, -1] == tokenizer.end_id


@pytest.mark.parametrize("value", [{"captions": []}, {"captions": [" ", "\n"]}, {"captions": ""}])
def test_a_sample_without_words_is_broken(tokenizer, value):
    with pytest.raises(BadSample, match="the caption is empty or white space"):
        Captions(tokenizer, "captions")(value, DRAW)


def test_empty_captions_among_others_are_passed_over(tokenizer):
    texts = {"captions": ["", "a red bar", "  "]}
    assert Captions(tokenizer, "captions", None)(texts, None)["captions"] == ["a red bar"]
    with pytest.raises(BadSample, match=r"there is no caption number 1 of 1"):
        Captions(tokenizer, "captions", 1)(texts, None)


@pytest.mark.parametrize("value", [{"captions": 3}, {"captions": ["a", None]}, {}, []])
def test_captions_of_another_kind_are_broken(tokenizer, value):
    with pytest.raises(BadSample, match=r"must be a text or a list of texts|no 'captions'"):
        Captions(tokenizer, "captions")(value, None)


def test_names_of_classes_are_put_together():
    told = {"objects": [{"colour": "red"}], "class": "ring", "unseen": True}
    assert ClassName("{objects.0.colour} {class}")(told, None) == {"class": "red ring", "unseen": True}
    assert ClassName()({"class": "x"}, None) == {"class": "x", "unseen": False}
    with pytest.raises(BadSample, match="no 'class'"):
        ClassName()({"label": 1}, None)
    with pytest.raises(ValueError, match="class_name='ring' gives all pictures one name"):
        ClassName("ring")


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_of_training_and_of_evaluation(tmp_path, tokenizer):
    spec = str(write_pairs(tmp_path))
    given: dict[str, Any] = {"size": 16, "captions": "captions", "evaluated": None, "class_name": "{colour}"}
    data = opened(PicturesAndTexts(spec, tokenizer, **given, batch_size=4, lanes=1, num_workers=0))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    texts = [texts[0] for texts in batch["captions"]]
    tokens = tokenizer.encode(texts).tokens
    longest = int((tokens == tokenizer.end_id).int().argmax(1).max()) + 1
    assert torch.equal(batch["tokens"], tokens[:, :longest])
    assert {len(text) > 12 for text in texts} == {True, False}  # of both kinds

    (batch, *_), numbers = list(data.val_dataloader()), range(4)
    samples = [json.loads(sample(n)["json"]) for n in numbers]
    assert batch["captions"] == [own["captions"] for own in samples]
    assert batch["class"] == [own["colour"] for own in samples]
    assert batch["tokens_lengths"].tolist() == [2] * 4
    assert batch["tokens"].shape[:2] == (4, 2)
    assert batch["truncated"].tolist() == [0] * 4
    later = list(data.val_dataloader())[1]
    assert later["unseen"].tolist() == [False, True, False, False]


def test_the_field_text_is_the_caption_by_default(tmp_path, tokenizer):
    spec = str(write_pairs(tmp_path))
    data = opened(PicturesAndTexts(spec, tokenizer, 16, batch_size=4, lanes=1, num_workers=0))
    assert data.fields == ("image", "text")
    assert next(iter(data.val_dataloader()))["captions"] == [[sample(n)["txt"]] for n in range(4)]


def test_samples_with_different_numbers_of_captions_are_padded(tmp_path, tokenizer):
    three = {"json": json.dumps({"captions": ["a red bar", "red", "there is red"]}).encode()}
    spec = str(write_pairs(tmp_path, changes={1: three}))
    data = opened(PicturesAndTexts(spec, tokenizer, 16, captions="captions", evaluated=None, batch_size=3, lanes=1,
                                   num_workers=0))  # fmt: skip
    batch = next(iter(data.val_dataloader()))
    assert batch["tokens_lengths"].tolist() == [2, 3, 2]
    assert batch["tokens"].shape[:2] == (3, 3)
    assert (batch["tokens"][0, 2] == 0).all()


def test_a_picture_with_an_empty_caption_is_broken_and_told(tmp_path, tokenizer, caplog):
    spec = str(write_pairs(tmp_path, changes={2: {"txt": "  "}}))
    data = opened(PicturesAndTexts(spec, tokenizer, 16, batch_size=4, lanes=1, num_workers=0, max_broken=0.5))
    batch = data.on_before_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["valid"].tolist() == [True, True, False, True]
    assert "broken sample validation-0-2" in caplog.text
    assert "text: the caption is empty or white space" in caplog.text


def test_sentence_pieces_keep_their_whole_length(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "pad_id", tokenizer.end_id)  # as SigLIP's
    data = opened(PicturesAndTexts(str(write_pairs(tmp_path)), tokenizer, 16, batch_size=2, lanes=1, num_workers=0))
    assert next(iter(data.train_dataloader()))["tokens"].shape == (2, CONTEXT)


# -- sounds ------------------------------------------------------------------------------------------------------------


def tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(round(16_000 * seconds)) / 16_000)


@pytest.mark.parametrize(("hertz", "band"), [(200.0, 6), (1000.0, 22), (4000.0, 48)])
def test_a_tone_is_white_in_its_own_band(hertz, band):
    shown = Spectrogram(1.0, mels=64, hop=320)(tone(hertz), None)
    assert shown.shape == (3, 64, 50)
    assert shown.dtype == torch.float32
    assert torch.equal(shown[0], shown[1])
    highest = 2595 * np.log10(1 + 8000 / 700)
    expected = 2595 * np.log10(1 + hertz / 700) / highest * 65 - 1
    assert abs(expected - band) < 1
    loudest = shown[0, :, 25].argmax()
    assert abs(int(loudest) - expected) <= 1
    assert shown[0].max() == 1
    assert shown[0].min() >= 0


def test_loudness_does_not_change_the_picture_but_silence_is_black():
    spectrogram = Spectrogram(1.0, 32, 320)
    loud, soft = spectrogram(tone(500), None), spectrogram(0.5 * tone(500), None)
    assert (loud - soft).abs().max() < 1e-4
    assert spectrogram(torch.zeros(16_000), None).max() == 0


def test_a_spectrogram_has_the_frames_of_its_seconds():
    for seconds, hop, frames in ((2.0, 320, 100), (1.6, 400, 64)):
        assert Spectrogram(seconds, 16, hop)(tone(300, 0.7), None).shape == (3, 16, frames)
    with pytest.raises(ValueError, match="mels=0 bands and hop=320"):
        Spectrogram(1.0, 0, 320)
    with pytest.raises(BadSample, match="not finite"):
        Spectrogram(1.0, 16, 320)(torch.full((16_000,), torch.nan), None)


def test_sounds_become_pictures_with_captions(tmp_path, tokenizer):
    def sound(number: int) -> dict[str, Any]:
        wave = (30_000 * tone(200 * (number + 1), 0.5)).numpy().astype(np.int16)
        return {"flac": encoded(wave), "txt": f"bar {number}"}

    samples: list[Any] = [sound(n) for n in range(6)]
    spec: Path = write_data_set(tmp_path, {"train": [samples], "validation": [samples]}, "sounds")
    data = opened(AudioTextPairs(str(spec), tokenizer, 0.48, 32, 240, batch_size=3, lanes=1, num_workers=0))
    batch = next(itertools.islice(data.val_dataloader(), 1, None))
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["captions"] == [["bar 3"], ["bar 4"], ["bar 5"]]
    loudest = batch["image"][:, 0, :, 16].argmax(1)
    assert (loudest.diff() > 0).all()
