"""Position tables of pictures, and their way to another size."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmflow.nn.positions import resize_positions, sincos_2d


def test_the_fixed_table_is_sines_and_cosines_of_column_and_row():
    table = sincos_2d(2, 3, 8)
    assert table.shape == (6, 8)
    assert table[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    row, column, slow = 1, 2, 1e-4  # two rates: 1 and 1 / 10,000
    expected = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in (1, slow)]
    assert table[row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dim", [4, 10])
def test_a_width_that_cannot_be_shared_out_is_an_error(dim):
    with pytest.raises(ValueError, match=f"dim={dim} must be a multiple of 4, and at least 8"):
        sincos_2d(2, 2, dim)


@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic_antialias", "bilinear_corners"])
def test_the_same_grid_keeps_the_table_and_the_class_row_is_never_mixed_in(interpolation):
    table = torch.randn(1, 1 + 6, 4)
    assert torch.equal(resize_positions(table, (2, 3), (2, 3), interpolation), table)
    level = torch.cat([torch.full((1, 1, 4), 100.0), torch.ones(1, 6, 4)], dim=1)
    other = resize_positions(level, (2, 3), (4, 5), interpolation)
    assert other.shape == (1, 1 + 20, 4)
    assert other[0, 0].tolist() == [100.0] * 4
    assert torch.allclose(other[0, 1:], torch.ones(20, 4), atol=1e-5)


@pytest.mark.parametrize("new", [(5, 9), (2, 2), (3, 7)])
def test_a_ramp_stays_a_ramp_from_corner_to_corner_as_in_the_original(new):
    def ramp(height, width):
        rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(1, height * width, 2)

    resized = resize_positions(ramp(3, 4), (3, 4), new, "bilinear_corners")
    assert torch.allclose(resized, ramp(*new), atol=1e-6)
    assert (resize_positions(ramp(3, 4), (3, 4), (5, 9), "bicubic") - ramp(5, 9)).abs().max() > 0.01


def test_rows_and_columns_keep_their_order():
    table = torch.zeros(1, 6, 1)
    table[0, 5] = 1.0  # the last column of the last row of 2 x 3
    resized = resize_positions(table, (2, 3), (4, 6), "bicubic").view(4, 6)
    assert divmod(int(resized.argmax()), 6) == (3, 5)
    assert resized[:, :2].abs().max() < 0.2


def test_the_conventions_are_those_of_transformers_and_timm_and_differ():
    resample = pytest.importorskip("timm.layers").resample_abs_pos_embed
    torch.manual_seed(0)
    table = torch.randn(1, 1 + 14 * 14, 16)
    antialiased = resample(table, new_size=[24, 24], old_size=[14, 14])
    assert (resize_positions(table, (14, 14), (24, 24), "bicubic_antialias") - antialiased).abs().max() < 1e-5
    grid = table[:, 1:].view(1, 14, 14, 16).permute(0, 3, 1, 2)
    plain = F.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert (resize_positions(table, (14, 14), (24, 24))[:, 1:] - plain).abs().max() < 1e-6
    assert (plain - antialiased[:, 1:]).abs().max() > 0.2


def test_half_precision_is_interpolated_in_fp32():
    table = torch.randn(1, 4, 8).bfloat16()
    assert torch.equal(resize_positions(table, (2, 2), (3, 3)), resize_positions(table.float(), (2, 2), (3, 3)))


def test_a_table_of_another_grid_is_an_error():
    with pytest.raises(ValueError, match="a table of 4 positions is none of 3 x 3 patches"):
        resize_positions(torch.zeros(1, 4, 8), (3, 3), (4, 4))
