"""Generator, AR (eq. 5), masks, SR (eq. 6) against loops over images, channels and pixels."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.pretrain.mask_draws import draw_mask
from pipeline.pretrain.reconstruction import (
    STRIDES,
    Generator,
    appearance_loss,
    apply_masks,
    halved_levels,
    masked_mean_square,
    reconstruct,
    semantic_loss,
    valid_area,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sizes(*wh):
    return torch.tensor(wh, dtype=torch.float32)


def levels_of(images, canvas_wh, seed=0, dtype=torch.float64):
    """C2..C5 with 2 to 5 channels."""
    return [
        randn(images, 2 + i, -(-canvas_wh[1] // s), -(-canvas_wh[0] // s), seed=seed + i, dtype=dtype)
        for i, s in enumerate(STRIDES)
    ]


def slow_mean_square(a, b, sizes_wh, stride):
    """Mean over images of the mean over the positions that begin inside the image, and channels."""
    means = []
    for image, (width, height) in enumerate(sizes_wh.tolist()):
        squares = [
            (a[image, c, y, x] - b[image, c, y, x]).item() ** 2
            for c in range(a.shape[1])
            for y in range(a.shape[2])
            for x in range(a.shape[3])
            if y * stride < height and x * stride < width
        ]
        means.append(sum(squares) / len(squares))
    return sum(means) / len(means)


# the generator


def test_generator_of_the_paper():
    generator = Generator(2048)
    assert sum(p.numel() for p in generator.parameters()) == 19_140_419
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in generator.layers] == [
        (2048, 512, (4, 4)),
        (512, 256, (4, 4)),
        (256, 64, (4, 4)),
        (64, 3, (4, 4)),
    ]


def test_generator_doubles_the_size_four_times():
    """25 x 38 -> 50 x 76 -> 100 x 152 -> 200 x 304 -> 400 x 608 for an 800 x 1216 image."""
    maps = torch.empty(1, 2048, 25, 38, device="meta")
    shapes = []
    with torch.device("meta"):
        generator = Generator(2048)
    for layer in generator.layers:
        maps = layer(maps)
        shapes.append(tuple(maps.shape[-2:]))
    assert shapes == [(50, 76), (100, 152), (200, 304), (400, 608)]


def test_generator_has_relu_between_its_layers_and_a_linear_output():
    torch.manual_seed(0)
    generator = Generator(6).double()
    nn.init.constant_(generator.layers[-1].bias, -1.0)
    c5 = randn(2, 6, 2, 3)
    stock = nn.Sequential(*[m for layer in generator.layers for m in (layer, nn.ReLU())][:-1])
    found = generator(c5)
    torch.testing.assert_close(found, stock(c5))
    assert found.shape == (2, 3, 32, 48) and (found < 0).any()


def test_reconstruction_fills_the_image_and_nothing_else():
    torch.manual_seed(0)
    generator, c5 = Generator(6), randn(2, 6, 2, 3, dtype=torch.float32)
    found = reconstruct(generator, c5, sizes((96, 64), (50, 33)), (64, 96))
    assert found.shape == (2, 3, 64, 96)
    assert (found[0] != 0).all()
    assert (found[1, :, :33, :50] != 0).all()
    assert found[1, :, 33:].abs().max() == 0 and found[1, :, :, 50:].abs().max() == 0
    half = reconstruct(generator, c5, sizes((48, 32), (25, 16)), (32, 48))
    torch.testing.assert_close(half[0], generator(c5)[0])  # half size is the generator's own


# what counts


@pytest.mark.parametrize("stride", [1, 4, 8, 32])
def test_valid_area_is_every_cell_that_overlaps_the_image(stride):
    sizes_wh = sizes((64, 64), (1, 64), (33, 5), (32, 32), (31, 63))
    found = valid_area(sizes_wh, (-(-64 // stride), -(-64 // stride)), stride)
    for image, (width, height) in enumerate(sizes_wh.tolist()):
        for y in range(found.shape[1]):
            for x in range(found.shape[2]):
                assert found[image, y, x].item() == (y * stride < height and x * stride < width)


def test_masked_mean_square_weighs_images_equally():
    difference = torch.zeros(2, 3, 4, 4)
    difference[0] = 1.0
    difference[1] = 3.0
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[0, 0, 0] = True
    valid[1] = True
    assert masked_mean_square(difference, valid).item() == pytest.approx((1 + 9) / 2)


def test_half_precision_squares_do_not_overflow():
    difference = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)
    assert masked_mean_square(difference, torch.ones(1, 2, 2, dtype=torch.bool)).item() == 90000.0


# eq. 5


def test_appearance_equals_a_loop():
    image, reconstruction = randn(3, 3, 6, 8), randn(3, 3, 6, 8, seed=1)
    sizes_wh = sizes((8, 6), (5, 6), (3, 2))
    found = appearance_loss(image, reconstruction, sizes_wh)
    assert found.item() == pytest.approx(slow_mean_square(image, reconstruction, sizes_wh, 1), rel=1e-12)


def test_appearance_is_zero_for_the_image_and_mean_square_for_nothing():
    image = randn(2, 3, 8, 8)
    assert appearance_loss(image, image, sizes((8, 8), (3, 4))).item() == 0.0
    found = appearance_loss(image, torch.zeros_like(image), sizes((8, 8), (8, 8)))
    assert found.item() == pytest.approx(image.square().mean().item())


def test_a_fresh_generator_paints_nothing_so_that_appearance_starts_at_the_mean_square():
    torch.manual_seed(0)
    generator, sizes_wh = Generator(512), sizes((192, 128), (150, 90))
    image = randn(2, 3, 128, 192, dtype=torch.float32)
    with torch.no_grad():
        painted = reconstruct(
            generator, torch.relu(randn(2, 512, 4, 6, dtype=torch.float32)), sizes_wh, (128, 192)
        )
    found = appearance_loss(image, painted, sizes_wh).item()
    start = appearance_loss(image, torch.zeros_like(image), sizes_wh).item()
    assert found == pytest.approx(start, rel=0.05) and start == pytest.approx(1.0, abs=0.05)


def test_padding_never_counts_in_appearance():
    image, reconstruction = randn(1, 3, 8, 8), randn(1, 3, 8, 8, seed=1)
    before = appearance_loss(image, reconstruction, sizes((5, 3)))
    reconstruction[:, :, 3:] += 100
    reconstruction[:, :, :, 5:] -= 100
    reconstruction.requires_grad_()
    after = appearance_loss(image, reconstruction, sizes((5, 3)))
    assert after.item() == before.item()
    after.backward()
    assert reconstruction.grad[0, :, :3, :5].abs().min() > 0
    assert (
        reconstruction.grad[0, :, 3:].abs().max() == 0 and reconstruction.grad[0, :, :, 5:].abs().max() == 0
    )


# eq. 6


@pytest.mark.parametrize("canvas_wh", [(64, 64), (96, 64), (64, 96), (80, 48)])
def test_semantic_equals_a_loop(canvas_wh):
    targets, again = levels_of(2, canvas_wh), levels_of(2, canvas_wh, seed=10)
    sizes_wh = sizes(canvas_wh, (33, 40))
    expected = sum(
        slow_mean_square(t, a, sizes_wh, s) for t, a, s in zip(targets, again, STRIDES, strict=True)
    )
    assert semantic_loss(targets, again, sizes_wh, True).item() == pytest.approx(expected, rel=1e-12)


def test_semantic_is_zero_for_equal_features():
    levels = levels_of(2, (64, 64))
    assert semantic_loss(levels, levels, sizes((64, 64), (20, 50)), True).item() == 0.0


def test_padding_never_counts_in_semantics():
    targets, again = levels_of(1, (96, 64)), levels_of(1, (96, 64), seed=10)
    before = semantic_loss(targets, again, sizes((40, 30)), True)
    for level, stride in zip(again, STRIDES, strict=True):
        level[:, :, -(-30 // stride) :] += 7
        level[:, :, :, -(-40 // stride) :] += 7
    assert semantic_loss(targets, again, sizes((40, 30)), True).item() == before.item()


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_the_target(detach):
    targets, again = levels_of(1, (32, 32)), levels_of(1, (32, 32), seed=10)
    for level in (*targets, *again):
        level.requires_grad_()
    semantic_loss(targets, again, sizes((32, 32)), detach).backward()
    for target, level in zip(targets, again, strict=True):
        torch.testing.assert_close(level.grad, 2 * (level - target).detach() / level.numel())
        if detach:
            assert target.grad is None
        else:
            torch.testing.assert_close(target.grad, -level.grad)


def test_bf16_features_are_compared_in_float32():
    targets, again = (levels_of(1, (32, 32), seed=s, dtype=torch.float32) for s in (0, 10))
    low = [[level.bfloat16() for level in side] for side in (targets, again)]
    found = semantic_loss(*low, sizes((32, 32)), True)
    assert found.dtype == torch.float32
    exact = semantic_loss(*[[level.float() for level in side] for side in low], sizes((32, 32)), True)
    assert found.item() == exact.item()


def test_halved_levels_average_the_cells_that_see_the_image():
    canvas_wh, sizes_wh = (96, 160), [(96, 160), (70, 90)]
    levels = levels_of(2, canvas_wh)
    found = halved_levels(levels, sizes(*sizes_wh))
    for level, half, stride in zip(levels, found, STRIDES, strict=True):
        height, width = level.shape[-2:]
        assert half.shape[-2:] == (-(-height // 2), -(-width // 2))
        for image, (w, h) in enumerate(sizes_wh):
            rows, columns = min(height, -(-h // stride)), min(width, -(-w // stride))
            for y in range(half.shape[2]):
                for x in range(half.shape[3]):
                    cells = level[image, :, 2 * y : min(2 * y + 2, rows), 2 * x : min(2 * x + 2, columns)]
                    expected = cells.mean(dim=(1, 2)) if cells.numel() else torch.zeros(level.shape[1])
                    torch.testing.assert_close(half[image, :, y, x], expected.double())


def test_halved_levels_lie_on_the_levels_of_the_half_size_image():
    """Cell i at half size covers pixels [2 s i, 2 s i + 2 s) of the image, whatever the canvas."""
    for side in (32, 64, 96, 160):
        ramp = [torch.arange(-(-side // s)).double().view(1, 1, 1, -1) * s for s in STRIDES]
        for half, stride in zip(halved_levels(ramp, sizes((side, 1))), STRIDES, strict=True):
            assert half.shape[-1] == -(-(side // 2) // stride)
            assert half[0, 0, 0, 0].item() == (0.0 if side <= stride else stride / 2)


# masks


def random_boxes(count, low, high, seed):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 200, (count, 2))
    return np.concatenate([corners, corners + random.uniform(low, high, (count, 2))], axis=1).astype(
        np.float32
    )


@pytest.mark.parametrize(("low", "high"), [(16.01, 24), (16.01, 120), (100, 800)])
def test_masks_take_a_quarter_of_the_box_from_its_inside(low, high):
    random = np.random.default_rng(0)
    for box in random_boxes(1500, low, high, seed=int(high)):
        x1, y1, x2, y2 = mask = draw_mask(box, 0.25, random)
        assert mask.dtype == np.int64
        assert box[0] <= x1 < x2 <= box[2] and box[1] <= y1 < y2 <= box[3]
        share = (x2 - x1) * (y2 - y1) / float((box[2] - box[0]) * (box[3] - box[1]))
        assert 0.24 <= share <= 0.26


def test_mask_of_whole_pixels_is_half_the_sides():
    for seed in range(20):
        x1, y1, x2, y2 = draw_mask(np.float32([10, 20, 50, 100]), 0.25, np.random.default_rng(seed))
        assert (x2 - x1, y2 - y1) == (20, 40)


def test_masks_reach_every_place_in_the_box():
    random, box = np.random.default_rng(0), np.float32([10, 20, 26, 36])
    masks = np.stack([draw_mask(box, 0.25, random) for _ in range(2000)])
    assert set(masks[:, 0]) == set(range(10, 19)) and set(masks[:, 1]) == set(range(20, 29))


def test_masks_depend_on_the_generator_alone():
    box = np.float32([3.5, 4.5, 60.2, 80.9])
    first, second, other = (draw_mask(box, 0.25, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (first == second).all() and (first != other).any()


@pytest.mark.parametrize(
    ("box", "fraction"), [((5.2, 5.2, 5.9, 40), 0.25), ((5.6, 5.6, 6.3, 6.3), 0.25), ((0, 0, 40, 40), 0.0)]
)
def test_nothing_to_mask(box, fraction):
    x1, y1, x2, y2 = draw_mask(np.float32(box), fraction, np.random.default_rng(0))
    assert max(x2 - x1, 0) * max(y2 - y1, 0) == 0


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 1.0])
def test_other_fractions(fraction):
    x1, y1, x2, y2 = draw_mask(np.float32([0, 0, 64, 48]), fraction, np.random.default_rng(0))
    assert (x2 - x1) * (y2 - y1) == pytest.approx(fraction * 64 * 48, rel=0.01)


def slow_masks(images, masks, valid, scale):
    """Pixel by pixel: hidden where its centre lies in the rectangle."""
    masked = images.clone()
    for b in range(images.shape[0]):
        for (x1, y1, x2, y2), is_valid in zip(masks[b].tolist(), valid[b].tolist(), strict=True):
            for y in range(images.shape[2]):
                for x in range(images.shape[3]):
                    cx, cy = (x + 0.5) / scale, (y + 0.5) / scale
                    if is_valid and x1 <= cx < x2 and y1 <= cy < y2:
                        masked[b, :, y, x] = 0
    return masked


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_masked_pixels_are_the_union_of_valid_rectangles(scale):
    images = randn(2, 3, int(16 * scale), int(24 * scale)) + 10
    masks = torch.tensor(
        [[[2, 3, 9, 10], [5, 6, 14, 12], [0, 0, 24, 16]], [[1, 1, 1, 9], [20, 3, 24, 16], [3, 3, 5, 7]]]
    )
    valid = torch.tensor([[True, True, False], [True, True, True]])
    found = apply_masks(images, masks, valid, scale)
    assert torch.equal(found, slow_masks(images, masks, valid, scale))
    if scale == 1.0:
        assert (found[0, 0] == 0).sum().item() == 7 * 7 + 9 * 6 - 4 * 4


def test_nothing_is_masked_for_invalid_rows():
    images = randn(1, 3, 8, 8) + 10
    masks = torch.tensor([[[0, 0, 8, 8], [0, 0, 1, 1]]])
    assert torch.equal(apply_masks(images, masks, torch.zeros(1, 2, dtype=torch.bool)), images)


def test_masks_at_half_size_keep_a_quarter():
    """Rectangles of odd place and size lose at most half a pixel at each side."""
    masks = torch.tensor([[[3, 5, 23, 45]]])
    found = apply_masks(torch.ones(1, 3, 32, 32), masks, torch.ones(1, 1, dtype=torch.bool), 0.5)
    assert (found[0, 0] == 0).sum().item() == 10 * 20


def test_no_gradient_flows_through_masked_pixels():
    images = randn(1, 3, 6, 6).requires_grad_()
    masked = apply_masks(images, torch.tensor([[[1, 2, 4, 5]]]), torch.ones(1, 1, dtype=torch.bool))
    masked.sum().backward()
    expected = torch.ones(1, 3, 6, 6, dtype=torch.float64)
    expected[:, :, 2:5, 1:4] = 0
    assert torch.equal(images.grad, expected)
