"""What is not seen from the page; the rest is tested in test_show.py."""

import numpy as np
import pytest

from mmflow.data import media


@pytest.mark.parametrize(
    "code",
    [
        {"size": [2, 3], "counts": [1, 2, 4]},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [2, 3], "counts": [-1, 7]},
        {"size": [2], "counts": [2]},
        {"size": [2, 3], "counts": "\xff" * 50},
        {},
    ],
)
def test_run_length_codes_that_are_wrong_are_passed_over(code):
    assert media._run_lengths(code) is None


def test_run_length_codes_as_text_are_those_of_coco():
    # worked out by hand: 5 bits in a character from "0" on, and from the fourth run on the difference to two before
    assert media._counts("132030") == [1, 3, 2, 3, 5, 3]
    assert media._counts("T1O") == [36, -1]


def test_masks_of_very_many_values_are_shares_of_one_colour():
    pixels = media.mask_picture(np.linspace(0, 1, 101).reshape(1, 101))  # (1, 101, 4)
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) == 1
    assert (pixels[0, 0, 3], pixels[0, 50, 3], pixels[0, -1, 3]) == (0, 100, 200)


@pytest.mark.parametrize("mask", [np.zeros(3), np.zeros((2, 0)), np.array([["a"]])])
def test_arrays_that_are_no_masks_are_refused(mask):
    with pytest.raises(media.BadSample, match=r"must be numbers \(H, W\)"):
        media._labels(mask)


@pytest.mark.parametrize(("degrees", "colour"), [(0, (244, 37, 37)), (120, (37, 244, 37)), (240, (37, 37, 244))])
def test_hues_of_masks_are_those_of_the_style_sheet(degrees, colour):
    assert np.allclose(media.rgb(degrees), colour, atol=1)
