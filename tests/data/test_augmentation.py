"""Augmentation: the draws, the arithmetic against Pillow and closed forms, what stays, and the errors."""

import colorsys
import math
import random
import subprocess
import sys

import jsonargparse
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from mmflow.data import augmentation
from mmflow.data.augmentation import (
    OPERATIONS,
    Augmentation,
    ColourJitter,
    CutMix,
    Mixup,
    MixupOrCutMix,
    RandAugment,
    RandomErasing,
    SpecAugment,
)
from mmflow.torchaudio_cpu import torchaudio

ALL = {
    "colour_jitter": ColourJitter(),
    "rand_augment": RandAugment(),
    "erasing": RandomErasing(probability=0.5),
    "mixup": Mixup(10),
    "cutmix": CutMix(10),
    "either": MixupOrCutMix(10),
    "spec_augment": SpecAugment(time_width=9, frequency_width=5),
}
PICTURES = [name for name in ALL if name != "spec_augment"]


def made(count: int = 8, step: int = 3, lane: int = 1, **fields) -> dict:
    """A training batch of noisy pictures, labels and spectrograms."""
    draw = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.rand(count, 3, 24, 32, generator=draw),
        "label": torch.arange(count) % 10,
        "spectrogram": torch.randn(count, 20, 40, generator=draw),
    }
    return batch | {"__step__": step, "__lane__": lane} | fields


def bars(count: int, size: int = 32) -> torch.Tensor:
    """Picture i holds i / count everywhere (count, 3, size, size)."""
    return (torch.arange(count) / count)[:, None, None, None].expand(-1, 3, size, size).contiguous()


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in ("image", "label", "spectrogram"))


# -- draws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_depends_on_seed_step_and_lane_alone(name):
    augment = ALL[name]
    torch.manual_seed(1)
    first = augment(made(), 7)
    torch.manual_seed(2)
    torch.rand(100)
    for other in ALL.values():  # the order in which lanes and augmentations come does not matter
        other(made(lane=5), 7)
    assert same(first, augment(made(), 7))
    assert not same(first, made())
    assert not same(first, augment(made(lane=2), 7))
    assert not same(first, augment(made(step=4), 7))
    assert not same(first, augment(made(), 8))


@pytest.mark.parametrize("name", ALL)
def test_global_generators_and_the_batch_are_left_as_they_were(name):
    batch = made()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    ALL[name](batch, 7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert random.getstate() == before[2]
    assert same(batch, made())
    assert "__augmented__" not in batch


class Draw(Augmentation):
    def augment(self, batch):
        return batch | {"drawn": torch.rand(2)}


def test_an_own_augmentation_draws_from_torch_and_each_place_in_the_order_has_its_own_stream():
    first = Draw()(made(step=0, lane=0), 0)
    second = Draw()(first, 0)
    number = np.random.SeedSequence([0, 6, 0, 0, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(int(number)))
    assert torch.equal(first["drawn"], expected)
    assert not torch.equal(first["drawn"], second["drawn"])
    assert second["__augmented__"] == 2


def test_the_generator_is_restored_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="float32"):
        RandAugment()(made(image=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_a_cuda_device_augments_as_the_cpu_does_and_keeps_its_generator(name):
    batch = made()
    there = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    before = torch.cuda.get_rng_state()
    out, here = ALL[name](there, 7), ALL[name](batch, 7)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert same(out, ALL[name](there, 7))
    for key in ("image", "label", "spectrogram"):
        assert out[key].is_cuda
        if (name, key) != ("erasing", "image"):  # its noise is the device's; a rounding may cost single pixels a step
            assert (out[key].cpu() - here[key]).abs().float().mean() < 1e-3


# -- pictures and clips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_keep_shape_type_and_range(name):
    for step in range(10):
        out = ALL[name](made(step=step), 0)["image"]
        assert out.shape == (8, 3, 24, 32)
        assert out.dtype == torch.float32
        assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("name", PICTURES)
def test_all_frames_of_a_clip_are_changed_alike(name):
    still = made()["image"][:, None].expand(-1, 4, -1, -1, -1)  # (B, T, 3, H, W) of one frame each
    out = ALL[name](made(image=still), 7)["image"]
    assert out.shape == (8, 4, 3, 24, 32)
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert torch.equal(out[:, 0], ALL[name](made(), 7)["image"])


@pytest.mark.parametrize("name", PICTURES)
def test_the_order_in_memory_does_not_matter(name):
    turned = made()["image"].to(memory_format=torch.channels_last)
    out = ALL[name](made(image=turned), 7)["image"]
    torch.testing.assert_close(out, ALL[name](made(), 7)["image"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PICTURES)
def test_a_batch_without_pictures_and_one_of_a_single_picture_pass(name):
    empty = made(image=torch.zeros(0, 3, 24, 32), label=torch.zeros(0, dtype=torch.int64))
    assert ALL[name](empty, 0)["image"].shape == (0, 3, 24, 32)
    assert ALL[name](made(count=1), 0)["image"].shape == (1, 3, 24, 32)


def test_mixing_a_single_picture_leaves_it():
    for name in ("mixup", "cutmix"):
        out = ALL[name](made(count=1), 0)
        torch.testing.assert_close(out["image"], made(count=1)["image"])
        torch.testing.assert_close(out["label"], F.one_hot(torch.tensor([0]), 10).float())


# -- colour jitter -----------------------------------------------------------------------------------------------------


def test_brightness_factors_are_uniform_within_their_bounds():
    x = torch.full((4000, 3, 2, 2), 0.5)
    out = ColourJitter(0.4, 0, 0, 0, probability=1)(made(image=x), 0)["image"]
    factors = out[:, 0, 0, 0] / 0.5
    torch.testing.assert_close(out, (factors / 2)[:, None, None, None].expand_as(out), atol=1e-5, rtol=0)
    assert 0.6 - 1e-5 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4 + 1e-5
    assert factors.mean() == pytest.approx(1, abs=4 * 0.8 / math.sqrt(12 * 4000))
    assert factors.var() == pytest.approx(0.8**2 / 12, rel=0.06)


def test_contrast_spreads_about_the_mean_grey_within_its_bounds():
    x = torch.tensor([0.4, 0.6]).expand(500, 3, 2, 2).contiguous()  # mean grey 0.5
    out = ColourJitter(0, 0.8, 0, 0, probability=1)(made(image=x), 0)["image"]
    spread = (out[..., 1] - out[..., 0]) / 0.2  # the factor
    torch.testing.assert_close(out.mean(-1), torch.full_like(out.mean(-1), 0.5), atol=1e-5, rtol=0)
    assert 0.2 - 1e-4 <= spread.min() < 0.25
    assert 1.75 < spread.max() <= 1.8 + 1e-4


def test_a_grey_picture_has_no_saturation_and_no_hue_to_change():
    x = torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1)
    out = ColourJitter(0, 0, 0.9, 0.5, probability=1)(made(image=x), 0)["image"]
    torch.testing.assert_close(out, x, atol=1e-5, rtol=0)


def test_hue_turns_within_its_bounds_and_keeps_value_and_saturation():
    colour = (0.8, 0.2, 0.4)
    x = torch.tensor(colour)[:, None, None].expand(300, 3, 2, 2)
    out = ColourJitter(0, 0, 0, 0.1, probability=1)(made(image=x), 0)["image"]
    turned = np.array([colorsys.rgb_to_hsv(*picture[:, 0, 0].tolist()) for picture in out])  # (300, 3)
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    np.testing.assert_allclose(turned[:, 1], saturation, atol=1e-4)
    np.testing.assert_allclose(turned[:, 2], value, atol=1e-4)
    turns = (turned[:, 0] - hue + 0.5) % 1 - 0.5
    assert -0.1 - 1e-4 <= turns.min() < -0.09
    assert 0.09 < turns.max() <= 0.1 + 1e-4


def test_the_unchosen_share_of_pictures_keeps_its_bits():
    x = torch.rand(2000, 3, 2, 2)
    out = ColourJitter(probability=0.8)(made(image=x), 0)["image"]
    kept = (out == x).flatten(1).all(1).float().mean()
    assert kept == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 2000))
    assert torch.equal(ColourJitter(probability=0)(made(image=x), 0)["image"], x)


# -- RandAugment -------------------------------------------------------------------------------------------------------


def photo() -> torch.Tensor:
    """A smooth picture of 8-bit values with colours, a flat region and noise (3, 40, 48)."""
    draw = torch.Generator().manual_seed(3)
    down, along = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
    x = torch.stack([0.1 + 0.7 * down, 0.2 + 0.5 * along, 0.4 + 0.3 * down * along])
    x = x + 0.05 * torch.randn(x.shape, generator=draw)
    x[:, 5:15, 5:15] = 0.6
    return (x.clamp(0, 1) * 255).round() / 255


def as_pillow(x: torch.Tensor) -> Image.Image:
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


PILLOW = {
    "identity": (0.9, lambda image: image),
    "auto_contrast": (0.9, ImageOps.autocontrast),
    "equalize": (0.9, ImageOps.equalize),
    "solarize": (-0.5, lambda image: ImageOps.solarize(image, 128)),
    "posterize": (0.75, lambda image: ImageOps.posterize(image, 5)),
    "colour": (0.5, lambda image: ImageEnhance.Color(image).enhance(1.45)),
    "contrast": (-0.5, lambda image: ImageEnhance.Contrast(image).enhance(0.55)),
    "brightness": (-0.5, lambda image: ImageEnhance.Brightness(image).enhance(0.55)),
    "sharpness": (1.0, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
    "rotate": (1.0, lambda image: image.rotate(30, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))),
    "shear_x": (1.0, lambda image: moved(image, (1, 0.3, -0.3 * 20, 0, 1, 0))),
    "shear_y": (1.0, lambda image: moved(image, (1, 0, 0, 0.3, 1, -0.3 * 24))),
    "translate_x": (-1.0, lambda image: moved(image, (1, 0, -0.45 * 48, 0, 1, 0))),
    "translate_y": (0.5, lambda image: moved(image, (1, 0, 0, 0, 1, 0.225 * 40))),
}


def moved(image: Image.Image, matrix: tuple) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_pillow_does(name):
    amount, pillow = PILLOW[name]
    ours = OPERATIONS[name](photo()[None], torch.tensor([amount])).clamp(0, 1)[0]
    theirs = torch.from_numpy(np.array(pillow(as_pillow(photo())))).permute(2, 0, 1) / 255
    error = (ours - theirs).abs() * 255
    assert error.mean() < (3 if name in ("rotate", "shear_x", "shear_y", "translate_x") else 1)
    inside = error[:, 12:28, 22:26]  # the outermost pixels of what is moved fade to grey here, in Pillow they do not
    assert inside.max() < 2.1


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"auto_contrast", "equalize"}))
def test_an_operation_of_magnitude_0_changes_nothing(name):
    x = torch.stack([photo(), torch.ones(3, 40, 48), torch.zeros(3, 40, 48)])
    torch.testing.assert_close(OPERATIONS[name](x, torch.zeros(3)), x, atol=2e-5, rtol=0)


def test_auto_contrast_leaves_a_flat_channel_and_solarize_of_all_inverts():
    flat = torch.full((1, 3, 4, 4), 0.25)
    assert torch.equal(OPERATIONS["auto_contrast"](flat, torch.ones(1)), flat)
    torch.testing.assert_close(OPERATIONS["solarize"](flat, torch.ones(1)), 1 - flat)


def test_each_picture_draws_its_own_operations_evenly_with_either_sign(monkeypatch):
    seen: list[tuple[str, list[float]]] = []

    def watched(name):
        def operation(x, amount):
            seen.append((name, amount.tolist()))
            return x

        return operation

    monkeypatch.setattr(augmentation, "OPERATIONS", {name: watched(name) for name in OPERATIONS})
    RandAugment(n=3, m=6, m_std=0.5)(made(image=torch.zeros(2800, 3, 1, 1)), 0)
    assert len(seen) == 3 * 14
    counts = np.array([len(amounts) for _, amounts in seen])  # each Binomial(2800, 1 / 14)
    assert counts.reshape(3, 14).sum(1).tolist() == [2800] * 3
    assert ((counts - 200) ** 2 / 200).sum() < 70  # chi squared of 39 degrees: 0.2 % lie above 68
    amounts = np.concatenate([amounts for _, amounts in seen])
    assert (amounts > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert np.abs(amounts).mean() == pytest.approx(0.6, abs=0.002)
    assert np.abs(amounts).std() == pytest.approx(0.05, abs=0.002)


def test_magnitudes_stay_in_range_and_are_all_m_without_spread(monkeypatch):
    seen: list[float] = []
    watch = {"one": lambda x, amount: (seen.extend(amount.abs().tolist()), x)[1]}
    monkeypatch.setattr(augmentation, "OPERATIONS", watch)
    RandAugment(n=1, m=10, m_std=3)(made(image=torch.zeros(100, 3, 1, 1)), 0)
    assert max(seen) == 1
    assert min(seen) >= 0
    seen.clear()
    RandAugment(n=1, m=4, m_std=0)(made(image=torch.zeros(100, 3, 1, 1)), 0)
    np.testing.assert_allclose(seen, 0.4, rtol=1e-6)


def test_rand_augment_of_magnitude_0_leaves_all_but_stretched_histograms(monkeypatch):
    without = {name: OPERATIONS[name] for name in OPERATIONS if name not in ("auto_contrast", "equalize")}
    monkeypatch.setattr(augmentation, "OPERATIONS", without)
    x = (made(count=64)["image"] * 255).round() / 255
    out = RandAugment(n=2, m=0, m_std=0)(made(image=x), 0)["image"]
    torch.testing.assert_close(out, x, atol=5e-5, rtol=0)


# -- random erasing ----------------------------------------------------------------------------------------------------


def test_erasing_fills_one_rectangle_of_a_bounded_share_in_the_chosen_pictures():
    x = torch.ones(3000, 3, 48, 64)
    out = RandomErasing(probability=0.4, area=(0.1, 0.3), ratio=(0.5, 2.0), fill=0.25)(made(image=x), 0)["image"]
    erased = out[:, 0] == 0.25  # (B, H, W)
    assert torch.equal(out, torch.where(erased[:, None], 0.25, 1.0).expand_as(out))
    tall, wide = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(erased.sum((1, 2)), tall * wide)  # all of its rows by all of its columns
    chosen = tall > 0
    assert chosen.float().mean() == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 3000))
    share = (tall * wide)[chosen] / (48 * 64)
    assert 0.1 * 0.95 < share.min() < 0.12
    assert 0.28 < share.max() < 0.3 * 1.05
    assert share.mean() == pytest.approx(0.2, abs=0.008)  # of 1,200 uniform ones, standard error 0.0017
    ratio = (tall / wide)[chosen].log()
    assert ratio.abs().max() < math.log(2.0) + 0.1
    assert ratio.mean() == pytest.approx(0, abs=0.05)
    for edge in (erased[:, 0], erased[:, -1], erased[:, :, 0], erased[:, :, -1]):
        assert edge.any()  # places reach every side


def test_erasing_writes_noise_of_the_whole_range():
    out = RandomErasing(probability=1, area=(1, 1), ratio=(1, 1))(made(image=torch.zeros(8, 3, 64, 64)), 0)["image"]
    assert (out > 0).float().mean() > 0.999
    assert out.mean() == pytest.approx(0.5, abs=0.01)
    assert out.std() == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_a_rectangle_longer_than_the_picture_is_cut():
    out = RandomErasing(1, area=(0.5, 0.5), ratio=(100, 100), fill=0)(made(image=torch.ones(4, 3, 20, 20)), 0)["image"]
    assert torch.equal((out[:, 0] == 0).any(2).sum(1), torch.full((4,), 20))
    assert torch.equal((out[:, 0] == 0).any(1).sum(1), torch.ones(4, dtype=torch.int64))


# -- mixup and cutmix --------------------------------------------------------------------------------------------------


def test_mixup_weighs_pictures_and_labels_alike():
    x = made(count=6)["image"]
    labels = torch.arange(6)
    out = Mixup(6, alpha=1.0)(made(count=6, image=x, label=labels), 0)
    kept = out["label"][labels, labels]  # no two have one label, so what a row keeps stands at its own
    assert out["label"].dtype == torch.float32
    assert out["label"].shape == (6, 6)
    assert len(set(kept.tolist())) == 6
    for i in range(6):
        share, before = kept[i], (i - 1) % 6
        torch.testing.assert_close(out["image"][i], share * x[i] + (1 - share) * x[before], atol=0, rtol=0)
        assert out["label"][i, before] == 1 - share
        assert out["label"][i].count_nonzero() == 2


def test_what_mixup_keeps_is_beta_distributed():
    alpha, count = 0.4, 20_000
    out = Mixup(2, alpha)(made(image=torch.zeros(count, 3, 1, 1), label=torch.arange(count) % 2), 0)
    kept = out["label"][torch.arange(count), torch.arange(count) % 2].double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert kept.mean() == pytest.approx(0.5, abs=4 * math.sqrt(variance / count))
    assert kept.var() == pytest.approx(variance, rel=0.02)
    peer = np.random.default_rng(0).beta(alpha, alpha, count)
    quantiles = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(kept, quantiles), np.quantile(peer, quantiles), atol=0.02)


def test_mixing_two_pictures_of_one_class_keeps_the_label():
    out = Mixup(3)(made(label=torch.full((8,), 2)), 0)
    torch.testing.assert_close(out["label"], torch.tensor([[0.0, 0, 1]]).expand(8, 3))


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_the_share_that_is_not_mixed_keeps_its_bits(kind):
    x = bars(2000, size=16)
    labels = torch.arange(2000) % 10
    out = kind(10, probability=0.7)(made(image=x, label=labels), 0)
    kept = out["label"][torch.arange(2000), labels] == 1
    if kind is Mixup:  # a rectangle may be empty, a weight of 1 is not drawn
        assert kept.float().mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 2000))
    assert torch.equal(out["image"][kept], x[kept])


def test_cutmix_pastes_a_rectangle_and_weighs_labels_by_its_area_exactly():
    count, height, width = 64, 24, 32
    x = torch.arange(count)[:, None, None, None].expand(-1, 3, height, width) / count
    out = CutMix(count)(made(image=x.contiguous(), label=torch.arange(count)), 0)
    pasted = out["image"] == x.roll(1, 0)  # (B, 3, H, W)
    assert torch.equal(out["image"], torch.where(pasted, x.roll(1, 0), x))
    pasted = pasted[:, 0]
    tall, wide = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert torch.equal(pasted.sum((1, 2)), tall * wide)
    area = pasted.float().mean((1, 2))  # counted
    rows = torch.arange(count)
    assert torch.equal(out["label"][rows, rows], 1 - area)
    assert torch.allclose(out["label"][rows, (rows - 1) % count], area, atol=1e-7, rtol=0)
    torch.testing.assert_close(out["label"].sum(1), torch.ones(count))
    assert len(set(area.tolist())) > 40


def test_the_area_that_cutmix_pastes_is_that_of_a_clipped_rectangle():
    count = 4000
    batch = made(image=torch.zeros(count, 3, 64, 64), label=torch.arange(count) % 2)
    kept = CutMix(2, alpha=1.0)(batch, 0)["label"][torch.arange(count), torch.arange(count) % 2]
    # A side s with its middle anywhere covers s - s^2 / 4; the mean of its square over uniform s^2 is 77 / 240.
    assert 1 - kept.mean() == pytest.approx(77 / 240, abs=0.02)  # whole pixels take 0.01, four standard errors 0.015


def test_label_smoothing_spreads_its_share_over_all_classes():
    out = Mixup(4, probability=0, label_smoothing=0.2)(made(count=2, label=torch.tensor([1, 3])), 0)["label"]
    torch.testing.assert_close(out, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]]))


def test_mixup_and_cutmix_take_turns_by_batches():
    count, cut, either = 400, 0, MixupOrCutMix(4, switch_probability=0.3)
    x = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    for step in range(count):
        out = either(made(image=x, label=torch.tensor([0, 1]), step=step), 0)
        torch.testing.assert_close(out["label"].sum(1), torch.ones(2))
        cut += bool(((out["image"] == 0) | (out["image"] == 1)).all())
    assert cut / count == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / count))


def test_soft_targets_go_where_labels_went():
    logits = torch.randn(8, 10)
    soft = MixupOrCutMix(10)(made(), 0)["label"]
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(F.cross_entropy(logits, soft), expected)


# -- SpecAugment -------------------------------------------------------------------------------------------------------


def test_spec_augment_hides_whole_bands_and_stretches_within_the_lengths():
    lengths = torch.tensor([40, 25, 7, 1, 0])
    x = torch.ones(5, 20, 40)
    for step in range(200):
        augment = SpecAugment(time_masks=1, time_width=12, frequency_masks=1, frequency_width=6)
        hidden = augment(made(spectrogram=x, spectrogram_lengths=lengths, step=step), 0)["spectrogram"] == 0
        for row, length in zip(hidden, lengths.tolist(), strict=True):
            assert not row[:, length:].any()
            inside = row[:, :length]
            stretch, band = inside.all(0), inside.all(1)  # (T,), (F,)
            if length and not (stretch.all() or band.all()):
                assert torch.equal(inside, stretch[None] | band[:, None])
            assert stretch.sum() <= 12
            assert band.sum() <= 6 or stretch.all()
            assert stretch.int().diff().clamp(min=0).sum() + stretch[:1].sum() <= 1  # at most one begins


def test_spec_augment_reaches_every_width_and_both_ends():
    x = torch.ones(4000, 20, 40)
    out = SpecAugment(time_masks=1, time_width=10, frequency_masks=0)(made(spectrogram=x), 0)["spectrogram"]
    stretch = (out == 0).all(1)  # (B, T)
    counts = stretch.sum(1).bincount(minlength=11)
    assert len(counts) == 11
    assert ((counts - 4000 / 11) ** 2 / (4000 / 11)).sum() < 30  # chi squared of 10 degrees: 0.1 % lie above
    assert stretch[:, 0].any()
    assert stretch[:, -1].any()


def test_the_bands_of_spec_augment_are_as_wide_as_torchaudios_and_lie_anywhere():
    x = torch.ones(20_000, 20, 4)
    ours = SpecAugment(time_masks=0, frequency_masks=1, frequency_width=8)(made(spectrogram=x), 0)["spectrogram"]
    torch.manual_seed(0)
    # torchaudio's widths stay below its parameter, and it never hides the last frequency.
    theirs = torchaudio.functional.mask_along_axis_iid(x, mask_param=9, mask_value=0.0, axis=1)
    counts = [(y == 0).all(2).sum(1).bincount(minlength=9) / 20_000 for y in (ours, theirs)]
    torch.testing.assert_close(counts[0], counts[1], atol=0.01, rtol=0)  # four standard errors: 0.0126
    expected = [
        sum(max(0, min(place, 20 - width) - max(0, place - width + 1) + 1) / (21 - width) for width in range(9)) / 9
        for place in range(20)
    ]  # of the starts 0..20 - width those that hide a place
    torch.testing.assert_close((ours == 0).float().mean((0, 2)), torch.tensor(expected), atol=0.012, rtol=0)


def test_the_widest_stretch_is_a_share_of_the_rows_own_length():
    lengths = torch.tensor([40, 10]).repeat(500)
    x = torch.ones(1000, 20, 40)
    augment = SpecAugment(time_masks=1, time_width=100, time_share=0.2, frequency_masks=0)
    widths = (augment(made(spectrogram=x, spectrogram_lengths=lengths), 0)["spectrogram"] == 0).all(1).sum(1)
    assert widths[::2].max() == 8
    assert widths[1::2].max() == 2


def test_spectrograms_with_time_first_are_hidden_alike():
    x = made()["spectrogram"]
    one = SpecAugment(time_width=9, value=-1.0)(made(), 0)["spectrogram"]
    other = SpecAugment(time_width=9, value=-1.0, time_first=True)(made(spectrogram=x.mT.contiguous()), 0)
    assert torch.equal(other["spectrogram"].mT, one)
    assert (one == -1).any()


def test_spec_augment_without_masks_changes_nothing():
    out = SpecAugment(time_masks=0, frequency_masks=0)(made(), 0)["spectrogram"]
    assert torch.equal(out, made()["spectrogram"])


# -- configuration and errors ------------------------------------------------------------------------------------------


def test_augmentations_are_written_in_yaml():
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--augmentations", type=list[Augmentation])
    text = "[{class_path: mmflow.data.augmentation.RandomErasing, init_args: {area: [0.1, 0.2], field: frames}}]"
    [erasing] = parser.instantiate_classes(parser.parse_args([f"--augmentations={text}"])).augmentations
    assert isinstance(erasing, RandomErasing)
    assert erasing.reads == ("frames",)
    assert tuple(erasing.area) == (0.1, 0.2)


def test_kornia_is_imported_when_it_is_needed():
    program = "import sys, mmflow.data.augmentation; print('kornia' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColourJitter(brightness=-0.1), "brightness=-0.1 .* at least 0"),
        (lambda: ColourJitter(saturation=float("nan")), "saturation=nan"),
        (lambda: ColourJitter(hue=0.6), r"hue=0.6 .* 0\.\.0\.5"),
        (lambda: ColourJitter(probability=80), r"probability=80 is a share; give a number in 0\.\.1"),
        (lambda: RandAugment(n=0), "n=0 .* at least 1"),
        (lambda: RandAugment(m=27), r"m=27 is not a magnitude; give a number in 0\.\.10 .*divide by 3"),
        (lambda: RandAugment(m_std=-1), "m_std=-1"),
        (lambda: RandomErasing(area=(0.3, 0.1)), r"area=\(0.3, 0.1\) must be two ascending shares"),
        (lambda: RandomErasing(ratio=(0, 1)), r"ratio=\(0, 1\)"),
        (lambda: RandomErasing(fill=128), "fill=128 is a share"),
        (lambda: Mixup(1), "num_classes=1"),
        (lambda: CutMix(10, alpha=0), "alpha=0 .* above 0"),
        (lambda: MixupOrCutMix(10, label_smoothing=-0.1), "label_smoothing=-0.1"),
        (lambda: MixupOrCutMix(10, switch_probability=2), "switch_probability=2"),
        (lambda: SpecAugment(time_masks=-1), "time_masks=-1 is a count"),
        (lambda: SpecAugment(time_share=1.5), "time_share=1.5 is a share"),
    ],
)
def test_wrong_arguments_are_named_with_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("augment", "fields", "message"),
    [
        (RandAugment(field="picture"), {}, "RandAugment reads picture, but the batch has only image, label, spectrog"),
        (RandAugment(), {"image": torch.zeros(2, 3, 4, 4).byte()}, r"'image' is torch.uint8 \(2, 3, 4, 4\).*by 255"),
        (RandAugment(), {"image": torch.zeros(2, 4, 4, 3)}, r"\(2, 4, 4, 3\); pictures are .*\(B, 3, H, W\)"),
        (RandAugment(), {"image": [torch.zeros(3, 4, 4)]}, "'image' is a list; .*resize them to one"),
        (ColourJitter(), {"image": torch.full((1, 3, 2, 2), 200.0)}, "values from 200 to 200; .*divide by 255"),
        (RandomErasing(), {"image": torch.full((1, 3, 2, 2), float("nan"))}, "values from nan to nan"),
        (RandomErasing(), {"image": torch.full((1, 3, 2, 2), -0.5)}, "from -0.5 to -0.5; .*normalise after"),
        (Mixup(10), {"label": torch.arange(8) + 5}, r"'label' has classes from 5 to 12, .*0\.\.9; set num_classes=13"),
        (Mixup(10), {"label": torch.arange(8) - 1}, r"classes from -1 to 6"),
        (CutMix(10), {"label": torch.rand(8, 10)}, r"'label' is torch.float32 \(8, 10\); .*one MixupOrCutMix"),
        (CutMix(10), {"label": ["cat"] * 8}, r"'label' is a list; mixing needs .* int64 \(B,\)"),
        (CutMix(10), {"label": torch.arange(5)}, "has 8 of 'image' and 5 of 'label'; CutMix needs one label per"),
        (SpecAugment(), {"spectrogram": torch.zeros(4, 20)}, r"torch.float32 \(4, 20\); .* \(B, F, T\)"),
        (SpecAugment(time_first=True), {"spectrogram": [1]}, r"a list; .* \(B, T, F\)"),
        (SpecAugment(), {"spectrogram_lengths": torch.arange(8) * 160}, r"'spectrogram_lengths' is \[0, 160.*0\.\.40"),
        (SpecAugment(), {"spectrogram_lengths": torch.ones(3).long()}, r"must be 8 lengths"),
    ],
)
def test_wrong_batches_are_named_with_the_rule_and_the_fix(augment, fields, message):
    with pytest.raises(ValueError, match=message):
        augment(made(**fields), 0)


def test_a_batch_that_is_not_planned_is_refused():
    batch = made()
    del batch["__lane__"]
    with pytest.raises(
        ValueError, match="Mixup draws by step and lane, but the batch has no __lane__; augment only tra"
    ):
        Mixup(10)(batch, 0)


# -- real pictures -----------------------------------------------------------------------------------------------------


def test_photographs_stay_in_range_and_most_of_them_change(real_data):
    files = sorted((real_data / "CIFAR-10-images").rglob("*.jpg"))[:64]
    if not files:
        pytest.skip("shared/data/CIFAR-10-images has no pictures")
    x = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    batch = made(image=x.permute(0, 3, 1, 2).float() / 255, label=torch.arange(len(files)) % 10)
    for augment in (ColourJitter(), RandAugment(), RandomErasing(), MixupOrCutMix(10)):
        batch = augment(batch, 0)
        assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    changed = (batch["image"] - x.permute(0, 3, 1, 2) / 255).abs().mean((1, 2, 3)) > 0.01
    assert changed.float().mean() > 0.95
    assert batch["__augmented__"] == 4
