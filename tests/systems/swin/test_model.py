"""Swin by itself: sizes, windows, masks, and what its blocks can see."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmflow.nn.encoders import VisionEncoder
from mmflow.systems.swin.model import Block, Swin, WindowAttention, fit, merged, relative_index, shift_mask
from tests.systems.shaken import shaken

CPU = torch.device("cpu")
SHAPE = {"image_size": 32, "patch_size": 2, "dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window": 4}
PUBLISHED = [  # name, arguments, parameters with a head of 1,000 classes, billions of multiplications and additions
    ("t", {}, 28_288_354, 4.49),
    ("s", {}, 49_606_258, 8.74),
    ("b", {}, 87_768_224, 15.43),
    ("b", {"image_size": 384, "window": 12}, 87_903_584, 47.08),
    ("l", {}, 196_532_476, 34.48),
    ("l", {"image_size": 384, "window": 12}, 196_735_516, 103.92),
]


def swin(**arguments) -> Swin:
    return shaken(Swin(**SHAPE | arguments))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "arguments", "count", "billions"), PUBLISHED)
def test_published_sizes_have_the_published_numbers_of_parameters_and_multiplications(name, arguments, count, billions):
    with torch.device("meta"):
        model = getattr(Swin, name)(**arguments)
    assert parameters(model) + 1000 * model.dim + 1000 == count
    assert abs(model.macs + 1000 * model.dim - billions * 1e9) < 0.006e9
    assert f"{parameters(model):,}" in getattr(Swin, name).__doc__


def test_parameters_have_a_closed_form():
    dim, depths, heads, window = 24, (2, 2), (2, 4), 4
    model = Swin(32, 2, dim, depths, heads, window)
    count = 3 * 2**2 * dim + dim + 2 * dim + 2 * model.dim
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        width = dim * 2**stage
        count += depth * (12 * width**2 + 13 * width + (2 * window - 1) ** 2 * head)
    count += 8 * dim**2 + 8 * dim
    assert parameters(model) == count
    assert count + 6 * model.dim + 6 == 77_130


@pytest.mark.parametrize("size", [32, (32, 48), (29, 50), (9, 70)])
def test_multiplications_are_those_that_torch_counts(size):
    model = swin(image_size=size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, *model.image_size))
    assert counter.get_total_flops() == 2 * model.macs


def test_what_it_returns_is_what_vision_encoders_promise():
    model: VisionEncoder = swin()
    images = torch.rand(2, 3, 32, 32)
    output = model(images)
    assert model.dim == 16
    assert output.last.shape == (2, 64, 16)
    torch.testing.assert_close(output.pooled, output.last.mean(1))
    assert {name: tuple(layer.shape) for name, layer in output.layers.items()} == {
        "0": (2, 256, 8),
        "1": (2, 256, 8),
        "2": (2, 256, 8),
        "3": (2, 64, 16),
        "4": (2, 64, 16),
    }
    torch.testing.assert_close(model.norm(output.layers["4"]), output.last)


def test_the_pyramid_holds_the_maps_before_merging():
    model, images = swin(), torch.rand(2, 3, 30, 44)
    first, second = model.pyramid(images)
    layers = model(images).layers
    assert (first.shape, second.shape) == ((2, 8, 15, 22), (2, 16, 8, 11))
    assert torch.equal(first.flatten(2).mT, layers["2"])
    assert torch.equal(second.flatten(2).mT, layers["4"])


def test_pictures_are_normalised_inside():
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    images = torch.rand(1, 3, 32, 32)
    plain, model = swin(mean=(0, 0, 0), std=(1, 1, 1)), swin(mean=mean, std=std)
    scaled = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(model(images).last, plain(scaled).last)


# windows


def test_indices_are_differences_of_query_and_key():
    index = relative_index(7, 7, CPU)
    assert index.shape == (49, 49)
    found = [int(index[query, key]) for query, key in [(0, 0), (0, 1), (1, 0), (0, 7), (0, 48), (48, 0)]]
    assert found == [84, 83, 85, 71, 0, 168]
    assert (index.diagonal() == 84).all()


def test_smaller_windows_take_the_middle_of_a_table():
    table = torch.arange(49).view(7, 7)[1:-1, 1:-1].flatten()  # distances up to 2 of those up to 3
    assert torch.equal(table[relative_index(3, 3, CPU)], relative_index(3, 4, CPU))


def test_the_mask_hides_what_met_only_by_rolling():
    mask = shift_mask(56, 56, 7, 3, CPU).isneginf()
    assert mask.shape == (64, 49, 49)
    assert int(mask.flatten(1).any(1).sum()) == 15
    assert mask.float().mean().item() == pytest.approx(0.1187, abs=5e-5)
    height, width, window, shift = 8, 12, 4, 2
    mask = shift_mask(height, width, window, shift, CPU)
    assert set(mask.flatten().tolist()) == {0, -math.inf}
    places = itertools.product(range(height), range(width))
    windows = {place: (place[0] // window) * (width // window) + place[1] // window for place in places}
    for one, other in itertools.product(windows, windows):
        if windows[one] == windows[other]:
            wrapped = [[at >= side - shift for at, side in zip(p, (height, width), strict=True)] for p in (one, other)]
            row, column = ((p[0] % window) * window + p[1] % window for p in (one, other))
            assert mask[windows[one], row, column].isneginf() == (wrapped[0] != wrapped[1])


def reference(attention: WindowAttention, x: Tensor, window: int, shift: int) -> Tensor:
    """What attention does to (h, w, D), token by token: with all tokens of the same window, where those of the windows
    that shifting cuts at the border are separate windows."""
    height, width, dim = x.shape
    heads, size = attention.num_heads, dim // attention.num_heads
    qkv = attention.qkv(x).view(height, width, 3, heads, size)

    def window_of(row: int, column: int) -> tuple[int, int]:
        return (row - shift) // window, (column - shift) // window  # floors, so the first ones are window -1

    side, mixed = 2 * attention.window - 1, torch.zeros(height, width, heads, size)
    for row, column in itertools.product(range(height), range(width)):
        seen = [
            place
            for place in itertools.product(range(height), range(width))
            if window_of(*place) == window_of(row, column)
        ]
        for head in range(heads):
            scores = torch.stack([
                qkv[row, column, 0, head] @ qkv[r, c, 1, head] / math.sqrt(size)
                + attention.bias_table[
                    (row - r + attention.window - 1) * side + column - c + attention.window - 1, head
                ]
                for r, c in seen
            ])  # fmt: skip
            values = torch.stack([qkv[r, c, 2, head] for r, c in seen])
            mixed[row, column, head] = scores.softmax(0) @ values
    return attention.out(mixed.flatten(2))


@pytest.mark.parametrize(("height", "width", "shift"), [(4, 6, 0), (6, 4, 1), (4, 8, 1)])
@torch.no_grad()
def test_attention_is_that_of_each_token_with_its_window(height, width, shift):
    attention, x = shaken(WindowAttention(6, 2, window=2)), torch.randn(2, height, width, 6)
    found = attention(x.roll((-shift, -shift), (1, 2)), 2, shift).roll((shift, shift), (1, 2))
    for one, other in zip(x, found, strict=True):
        torch.testing.assert_close(other, reference(attention, one, 2, shift))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.integers(1, 2))
@torch.no_grad()
def test_windows_are_put_together_as_they_were_taken_apart(down, across, window, shift, batch):
    attention = WindowAttention(4, 2, window)
    nn.init.zeros_(attention.qkv.weight)
    nn.init.zeros_(attention.qkv.bias)
    nn.init.eye_(attention.qkv.weight[8:])  # values are the tokens themselves
    nn.init.constant_(attention.bias_table, -math.inf)
    attention.bias_table[(2 * window - 1) * (window - 1) + window - 1] = 0  # each token sees itself only
    nn.init.eye_(attention.out.weight)
    nn.init.zeros_(attention.out.bias)
    x = torch.randn(batch, down * window, across * window, 4)
    torch.testing.assert_close(attention(x, window, min(shift, window - 1)), x)


@torch.no_grad()
def test_a_token_of_a_corner_reaches_its_corner_only(monkeypatch):
    block, x = Block(16, 2, window=7, shifted=True), torch.randn(1, 14, 14, 16)
    changed = x.clone()
    changed[0, 0, 0] = torch.randn(16)
    moved = (block(x) != block(changed)).any(-1)[0]
    assert moved[:3, :3].all()
    assert int(moved.sum()) == 9
    monkeypatch.setattr("mmflow.systems.swin.model.shift_mask", lambda *sizes: torch.zeros_like(shift_mask(*sizes)))
    assert int((block(x) != block(changed)).any(-1).sum()) > 40  # the whole window, from all four corners


@torch.no_grad()
def test_shifted_windows_connect_what_windows_separate():
    x = torch.randn(1, 8, 8, 16)
    changed = x.clone()
    changed[0, 3, 3] = torch.randn(16)  # the last token of the first window of 4 x 4
    for shifted, reached in ((False, (slice(0, 4), slice(0, 4))), (True, (slice(2, 6), slice(2, 6)))):
        block = Block(16, 2, window=4, shifted=shifted)
        moved = (block(x) != block(changed)).any(-1)[0]
        assert moved[reached].all()
        assert int(moved.sum()) == 16


@pytest.mark.parametrize("size", [(32, 32), (27, 50)])
@torch.no_grad()
def test_a_batch_is_as_its_pictures_one_by_one(size):
    model, images = swin(), torch.rand(3, 3, *size)
    together, alone = model(images).last, torch.cat([model(image[None]).last for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_windows_shift_only_where_there_is_more_than_one_each_way():
    with torch.device("meta"):
        model = Swin.t()
    fits = [
        [fit(*grid, block.window, block.shifted) for block in stage.blocks]
        for stage, grid in zip(model.stages, model.grids(224, 224), strict=True)
    ]
    assert fits == [[(7, 0), (7, 3)], [(7, 0), (7, 3)], [(7, 0), (7, 3)] * 3, [(7, 0), (7, 0)]]
    assert [fit(*grid, 7, True) for grid in [(7, 20), (4, 20), (8, 9)]] == [(7, 0), (4, 0), (7, 3)]


def test_windows_shrink_with_the_picture_they_are_made_for():
    model = swin(image_size=(32, 12), depths=(1, 1), window=7)
    assert model.grids(32, 12) == [(16, 6), (8, 3)]
    assert model.windows == [6, 3]
    assert model.stages[1].blocks[0].attention.bias_table.shape == (25, 2)


@torch.no_grad()
def test_a_picture_smaller_than_the_windows_is_one_window():
    model = swin(depths=(2,), num_heads=(1,))
    small = swin(depths=(2,), num_heads=(1,), image_size=6)  # 3 x 3 tokens
    state = model.state_dict()
    for block in "01":
        name = f"stages.0.blocks.{block}.attention.bias_table"
        state[name] = state[name].view(7, 7, 1)[1:-1, 1:-1].reshape(25, 1)  # distances up to 2
    small.load_state_dict(state)
    images = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(model(images).last, small(images).last)


def test_merging_takes_the_left_two_first():
    assert merged(torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 2, 2, 1)).flatten().tolist() == [0, 2, 1, 3]
    odd = merged(torch.tensor([[1.0, 2.0, 3.0]]).view(1, 1, 3, 1))
    assert odd.tolist() == [[[[1, 0, 2, 0], [3, 0, 0, 0]]]]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (31, 33), (64, 17)])
@torch.no_grad()
def test_pictures_of_any_size_have_tokens_for_all_that_is_there(size):
    model = swin()
    output = model(torch.rand(1, 3, *size))
    down, across = (-(-side // 4) for side in size)
    assert output.last.shape == (1, down * across, 16)
    assert output.last.isfinite().all()


# training


def test_the_probability_of_passing_a_block_by_rises_through_all_stages():
    model = Swin(**SHAPE | {"drop_path": 0.3})
    rates = [block.drop_path.p for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drop_path_drops_branches_of_samples_and_keeps_their_mean():
    block = shaken(Block(8, 1, window=4, shifted=True, drop_path=0.5)).train()
    x = torch.randn(1, 8, 8, 8).expand(4000, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        attended = block.drop_path(block._attended(block.attention_norm(x)))
        expected = block._attended(block.attention_norm(x[:1]))
        rows = block(x).flatten(1)
    torch.testing.assert_close(attended.mean(0), expected[0], rtol=0.05, atol=0.05)
    passed_by = (rows == x.flatten(1)).all(1).float().mean()
    assert passed_by.item() == pytest.approx(0.25, abs=0.03)  # both branches, drawn by themselves


def test_fresh_weights_are_those_of_the_paper():
    model = Swin(dim=64, depths=(1, 1), num_heads=(2, 4))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "patches" not in name:
            assert not parameter.any(), name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_every_parameter_learns():
    model = swin().train()
    model(torch.rand(2, 3, 32, 32)).pooled.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_saved_are_weights_only():
    names = set(dict(swin().named_parameters()))
    assert set(swin().state_dict()) == names


def test_what_was_computed_without_gradients_serves_training_too():
    model, images = swin(image_size=36, window=3), torch.rand(1, 3, 36, 36)
    with torch.inference_mode():  # the first one of this size
        expected = model(images).last
    last = model(images).last
    last.sum().backward()
    torch.testing.assert_close(last, expected.clone())


def test_masks_and_indices_are_computed_once_per_size():
    assert relative_index(5, 6, CPU) is relative_index(5, 6, CPU)
    assert shift_mask(8, 12, 4, 2, CPU) is shift_mask(8, 12, 4, 2, CPU)


def test_half_precision_stays_close():
    model, images = swin(), torch.rand(2, 3, 30, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images).last
    assert (rounded - model(images).last).abs().max() < 0.1
    assert swin().bfloat16()(images.bfloat16()).last.isfinite().all()


def test_the_fused_kernel_computes_the_same(monkeypatch):
    model, images = swin(), torch.rand(2, 3, 30, 44)
    expected = model(images).last
    attend = lambda query, key, value, bias: F.scaled_dot_product_attention(query, key, value, bias[None])  # noqa: E731
    monkeypatch.setattr("mmflow.systems.swin.model._attend", attend)
    torch.testing.assert_close(model(images).last, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("error:.*lru_cache")
def test_it_compiles_in_one_piece():
    model, images = swin(), torch.rand(2, 3, 30, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images).last, model(images).last)


# other sizes


def test_resized_to_the_same_size_it_is_the_same():
    model, images = swin(), torch.rand(2, 3, 32, 32)
    other = model.resized(32)
    assert torch.equal(other(images).last, model(images).last)
    assert other.patches.weight is not model.patches.weight


def test_tables_are_interpolated_for_other_windows():
    model = swin(image_size=56, window=7).double().train()
    other = model.resized(96, window=12)
    assert (other.image_size, other.windows, other.training) == ((96, 96), [12, 12], True)
    assert other.patches.weight.dtype == torch.float64
    for stage, block in itertools.product(range(2), range(2)):
        old, new = (m.stages[stage].blocks[block].attention.bias_table for m in (model, other))
        grid = old.detach().T.reshape(1, -1, 13, 13).float()
        expected = F.interpolate(grid, (23, 23), mode="bicubic", align_corners=False)[0].flatten(1).T
        torch.testing.assert_close(new.detach().float(), expected)
    assert other(torch.rand(1, 3, 96, 96).double()).last.isfinite().all()
    assert other.resized(56).arguments["window"] == 12


def test_a_published_size_goes_to_a_larger_picture():
    with torch.device("meta"):
        model = Swin.t()
        other = model.resized(384, window=12)
    assert other.windows == [12] * 4
    assert parameters(other) - parameters(model) == (23**2 - 13**2) * (2 * 3 + 2 * 6 + 6 * 12 + 2 * 24)


# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, r"image_size=0 has no pixels"),
        ({"image_size": (32, -1)}, r"image_size=\(32, -1\) has no pixels"),
        ({"window": 0}, r"patch_size=2 and window=0 must be at least 1"),
        ({"patch_size": 0}, r"patch_size=0 and window=4 must be at least 1"),
        ({"depths": (2, 2, 2)}, r"depths=\(2, 2, 2\) and num_heads=\(1, 2\) must have one number per stage"),
        ({"depths": (2, 0)}, r"depths=\(2, 0\) and .* at least 1"),
        ({"depths": (), "num_heads": ()}, r"depths=\(\) and num_heads=\(\) must have"),
        ({"num_heads": (3, 2)}, r"dim=8 is not divisible by num_heads=3; try num_heads=1 or dim=9"),
        ({"drop_path": 1.0}, r"drop_path=1\.0 is a probability"),
        ({"std": (1, 0, 1)}, r"std=\(1, 0, 1\): give three numbers each"),
    ],
)
def test_what_cannot_be_built_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Swin(**SHAPE | arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 32, 32), r"images have shape \(3, 32, 32\); this encoder takes \(B, 3, H, W\)"),
        (torch.rand(1, 1, 32, 32), r"images have shape \(1, 1, 32, 32\)"),
        (torch.rand(1, 3, 0, 32), r"images have shape \(1, 3, 0, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"images are torch\.uint8; give floating-point RGB"),
    ],
)
def test_what_is_no_picture_is_named(images, message):
    with pytest.raises(ValueError, match=message):
        swin()(images)


def test_windows_that_cannot_be_are_named_when_resizing():
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        swin().resized(64, window=0)
