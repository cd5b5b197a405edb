"""Colour augmentation, in batch and by OpenCV, against torchvision's classic functions and slow loops."""

import colorsys
import dataclasses
import math

import numpy as np
import pytest
import torch
from syncs import Syncs
from torch import Tensor
from torchvision.transforms import functional as classic

from pipeline.data.photometric import MEAN, STD, normalise, on_canvas, to_float
from pipeline.data.photometric_batch import _pixels, batch_numbers, coloured_canvases, coloured_in_batch
from pipeline.data.photometric_draws import Photometric, PhotometricSettings, blur_kernel, draw_photometric
from pipeline.data.photometric_opencv import coloured, coloured_on_cpu
from pipeline.errors import SettingsError
from pipeline.settings import build

CPU = torch.device("cpu")


def random_image(seed: int, height: int = 23, width: int = 31) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def changed(way: str, *cases: tuple[np.ndarray, Photometric]) -> list[Tensor]:
    """Each image (3, h, w) in [0, 1], all in one batch, or one by one."""
    images, drawn = [image for image, _ in cases], [numbers for _, numbers in cases]
    if way == "opencv":
        found = [
            torch.from_numpy(coloured(i, d)).permute(2, 0, 1) for i, d in cases
        ]  # (h, w, 3) -> (3, h, w)
    else:
        canvas = (max(i.shape[1] for i in images) + 5, max(i.shape[0] for i in images) + 3)
        batch = coloured_in_batch(_pixels(images, canvas, CPU), batch_numbers(images, drawn, CPU))
        std, mean = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
        cut = [row[:, : i.shape[0], : i.shape[1]] for row, i in zip(batch, images, strict=True)]
        found = [image * std + mean for image in cut]
    return found


WAYS = pytest.mark.parametrize("way", ["batch", "opencv"])


def reference(pixels: np.ndarray, drawn: Photometric) -> Tensor:
    """The same numbers given to torchvision's classic functions, one after the other."""
    image = to_float(pixels, CPU)
    if drawn.brightness is not None:
        image = classic.adjust_brightness(image, drawn.brightness)
    if drawn.contrast is not None:
        image = classic.adjust_contrast(image, drawn.contrast)
    if drawn.saturation is not None:
        image = classic.adjust_saturation(image, drawn.saturation)
    if drawn.hue is not None:
        image = classic.adjust_hue(image, drawn.hue)
    if drawn.grayscale:
        image = classic.rgb_to_grayscale(image, num_output_channels=3)
    if drawn.blur_sigma is not None:
        image = classic.gaussian_blur(image, [13, 13], [drawn.blur_sigma] * 2)
    return classic.solarize(image, 128 / 255) if drawn.solarize else image


@WAYS
def test_random_draws_of_mixed_sizes_equal_the_classic_functions(way: str) -> None:
    rng, settings = np.random.default_rng(0), PhotometricSettings()
    for trial in range(15):
        sizes = rng.integers(8, 40, (4, 2)).tolist()
        images = [random_image(10 * trial + i, *size) for i, size in enumerate(sizes)]
        drawn = [draw_photometric(settings, bool(trial % 2), rng) for _ in images]
        found_all = changed(way, *zip(images, drawn, strict=True))
        for image, numbers, found in zip(images, drawn, found_all, strict=True):
            assert found.shape == (3, *image.shape[:2]) and found.dtype == torch.float32
            assert found.min() >= -1e-5 and found.max() <= 1 + 1e-5
            expected = reference(image, dataclasses.replace(numbers, solarize=False))
            if numbers.solarize:  # at the threshold itself a rounding decides
                clear = (expected - 128 / 255).abs() > 1e-4
                inverted = torch.where(expected < 128 / 255, expected, 1 - expected)
                found, expected = found[clear], inverted[clear]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_both_ways_give_the_same_canvas() -> None:
    """Also for strengths, sizes and numbers that are not the usual ones; far below one level of 255."""
    rng = np.random.default_rng(1)
    wild = PhotometricSettings(jitter=0.9, strength=(1.0, 1.0, 1.0, 0.5), blur=0.7, grayscale=0.1)
    for trial in range(10):
        images = [random_image(trial * 10 + i, *rng.integers(1, 30, 2).tolist()) for i in range(3)]
        drawn = [draw_photometric(wild, False, rng) for _ in images]
        one = coloured_on_cpu(images, drawn, (33, 31))
        other = coloured_in_batch(_pixels(images, (33, 31), CPU), batch_numbers(images, drawn, CPU))
        assert one.shape == (3, 3, 31, 33) and other.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
        assert torch.equal(one, coloured_canvases(images, drawn, (33, 31), CPU))
        for row, other_row, image in zip(one, other, images, strict=True):
            for canvas in (row, other_row):
                assert not canvas[:, image.shape[0] :].any() and not canvas[:, :, image.shape[1] :].any()


def test_a_batch_makes_the_host_wait_for_nothing() -> None:
    always = PhotometricSettings(jitter=1, grayscale=0.5, blur=1, solarize=(1, 1))
    images = [random_image(i) for i in range(2)]
    drawn = [draw_photometric(always, True, np.random.default_rng(i)) for i in range(2)]
    with Syncs() as syncs:
        pixels, numbers = _pixels(images, (40, 40), CPU), batch_numbers(images, drawn, CPU)
    assert set(syncs.found) == {"numpy"}  # of the host's canvas
    with Syncs() as syncs:
        coloured_in_batch(pixels, numbers)
    assert syncs.found == []


@pytest.mark.parametrize(
    "drawn",
    [
        Photometric(brightness=1.4),
        Photometric(contrast=0.6),
        Photometric(saturation=1.4),
        Photometric(hue=-0.1),
        Photometric(hue=0.5),
        Photometric(grayscale=True),
        Photometric(solarize=True),
    ],
)
@WAYS
def test_each_change_by_its_definition_pixel_by_pixel(way: str, drawn: Photometric) -> None:
    image = random_image(1, 5, 6)
    found = changed(way, (image, drawn))[0].permute(1, 2, 0).reshape(-1, 3)  # (3, H, W) -> (H W, 3)
    pixels = [tuple(p) for p in (image.reshape(-1, 3) / 255).tolist()]  # (H, W, 3) -> (H W, 3)
    grey = [0.2989 * r + 0.587 * g + 0.114 * b for r, g, b in pixels]
    mean = sum(grey) / len(grey)
    for pixel, level, new in zip(pixels, grey, found.tolist(), strict=True):
        if drawn.brightness is not None:
            expected = [drawn.brightness * v for v in pixel]
        elif drawn.contrast is not None:
            expected = [drawn.contrast * v + (1 - drawn.contrast) * mean for v in pixel]
        elif drawn.saturation is not None:
            expected = [drawn.saturation * v + (1 - drawn.saturation) * level for v in pixel]
        elif drawn.hue is not None:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected = list(colorsys.hsv_to_rgb((hue + drawn.hue) % 1, saturation, value))
        elif drawn.grayscale:
            expected = [level] * 3
        else:
            expected = [v if round(v * 255) < 128 else 1 - v for v in pixel]
        assert new == pytest.approx([min(max(v, 0), 1) for v in expected], abs=1e-5)


@WAYS
@pytest.mark.parametrize("brightness", [0.0, 0.7, 1.0, 1.01, 1.275, 1.4, 2.0])
def test_contrast_is_about_the_mean_of_what_brightness_left(way: str, brightness: float) -> None:
    image = random_image(3)
    drawn = Photometric(brightness=brightness, contrast=0.6)  # 255 / 1.275 is a whole level
    torch.testing.assert_close(changed(way, (image, drawn))[0], reference(image, drawn), atol=2e-6, rtol=0)


@WAYS
def test_solarize_inverts_from_128_on_as_in_8_bits(way: str) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    (found,) = changed(way, (levels, Photometric(solarize=True)))
    wanted = [v if v < 128 else 255 - v for v in range(256)]
    assert (found[0, 0] * 255).round().int().tolist() == wanted


@WAYS
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_against_a_slow_loop_with_mirrored_borders(way: str, sigma: float) -> None:
    pixels, height, width = random_image(2, 9, 12), 9, 12
    image = to_float(pixels, CPU).double()
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-6, 7)]

    def mirrored(i: int, size: int) -> int:
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    (found,) = changed(way, (pixels, Photometric(blur_sigma=sigma)))
    for y in range(height):
        for x in range(width):
            total = sum(
                wy * wx * image[:, mirrored(y + dy, height), mirrored(x + dx, width)]
                for wy, dy in zip(weights, range(-6, 7), strict=True)
                for wx, dx in zip(weights, range(-6, 7), strict=True)
            )
            expected = (total / sum(weights) ** 2).float()
            torch.testing.assert_close(found[:, y, x], expected, atol=2e-6, rtol=0)


def test_ends_of_a_narrow_kernel_that_opencv_leaves_out_are_below_a_millionth() -> None:
    image = random_image(9)
    for sigma in np.linspace(0.1, 2.0, 39).tolist():
        drawn = Photometric(blur_sigma=sigma)
        (one,), (other,) = changed("opencv", (image, drawn)), changed("batch", (image, drawn))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_blur_cuts_nothing_that_matters_from_its_kernel() -> None:
    image = random_image(4, 40, 57)
    wide = classic.gaussian_blur(
        to_float(image, CPU), [31, 31], [2.0, 2.0]
    )  # torchvision's advice: six sigmas
    assert (changed("batch", (image, Photometric(blur_sigma=2.0)))[0] - wide).abs().max() < 0.003


@WAYS
@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (50, 1), (2, 3), (6, 7), (7, 6)])
def test_blur_of_images_smaller_than_its_kernel(way: str, height: int, width: int) -> None:
    even = np.full((height, width, 3), 77, dtype=np.uint8)
    blur = Photometric(blur_sigma=2.0)
    (found,) = changed(way, (random_image(5, height, width), blur))
    assert found.shape == (3, height, width) and found.isfinite().all()
    (kept,) = changed(way, (even, blur))
    torch.testing.assert_close(kept, torch.full((3, height, width), 77 / 255))


def test_the_kernel_sums_to_one_and_nothing_drawn_is_its_middle_alone() -> None:
    assert blur_kernel(None, (50, 50)) == [0.0] * 6 + [1.0] + [0.0] * 6
    for sigma, size in ((0.1, (50, 50)), (2.0, (50, 50)), (2.0, (3, 50)), (1.0, (50, 1))):
        kernel = blur_kernel(sigma, size)
        assert sum(kernel) == pytest.approx(1) and kernel == kernel[::-1]
        assert all(not weight for at, weight in enumerate(kernel) if abs(at - 6) >= min(size))


@WAYS
def test_nothing_drawn_changes_nothing(way: str) -> None:
    image = random_image(6)
    torch.testing.assert_close(
        changed(way, (image, Photometric()))[0], to_float(image, CPU), atol=1e-6, rtol=0
    )


@WAYS
def test_strength_zero_is_the_identity_to_rounding(way: str) -> None:
    settings = PhotometricSettings(
        jitter=1.0, strength=(0.0,) * 4, grayscale=0.0, blur=0.0, solarize=(0.0, 0.0)
    )
    drawn = draw_photometric(settings, False, np.random.default_rng(0))
    assert drawn == Photometric(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0)
    image = random_image(7)
    torch.testing.assert_close(changed(way, (image, drawn))[0], to_float(image, CPU), atol=2e-6, rtol=0)


@WAYS
def test_grey_and_black_images_stay_finite(way: str) -> None:
    drawn = Photometric(1.2, 0.8, 1.2, 0.1, False, 1.0, False)
    for level in (0, 128, 255):
        image = np.full((9, 8, 3), level, dtype=np.uint8)
        found = changed(way, (image, drawn))[0]
        torch.testing.assert_close(found, reference(image, drawn), atol=1e-5, rtol=0)


@WAYS
def test_input_is_not_changed(way: str) -> None:
    image = random_image(8)
    before = image.copy()
    changed(way, (image, Photometric(1.2, 0.8, 1.2, 0.1, True, 1.0, True)))
    np.testing.assert_array_equal(image, before)


def test_every_setting_takes_the_same_count_of_draws() -> None:
    def after(settings: PhotometricSettings, is_key: bool) -> float:
        generator = np.random.default_rng(5)
        draw_photometric(settings, is_key, generator)
        return float(generator.random())

    never = PhotometricSettings(jitter=0, strength=(0, 0, 0, 0), grayscale=0, blur=0, solarize=(0, 0))
    always = PhotometricSettings(jitter=1, strength=(1, 1, 1, 1), grayscale=1, blur=1, solarize=(1, 1))
    states = {after(s, k) for s in (never, always, PhotometricSettings()) for k in (False, True)}
    assert len(states) == 1


def test_probabilities_zero_and_one_are_kept_and_solarize_depends_on_the_view() -> None:
    rng = np.random.default_rng(1)
    never = PhotometricSettings(jitter=0, grayscale=0, blur=0, solarize=(0, 0))
    always = PhotometricSettings(jitter=1, grayscale=1, blur=1, solarize=(1, 1))
    key_only = PhotometricSettings(solarize=(0, 1))
    for _ in range(100):
        assert draw_photometric(never, False, rng) == draw_photometric(never, True, rng) == Photometric()
        drawn = draw_photometric(always, False, rng)
        assert all(value is not None and value is not False for value in dataclasses.astuple(drawn))
        assert not draw_photometric(key_only, False, rng).solarize
        assert draw_photometric(key_only, True, rng).solarize


def test_numbers_lie_in_their_ranges_and_happen_as_often_as_said() -> None:
    rng, settings = np.random.default_rng(2), PhotometricSettings()
    drawn = [draw_photometric(settings, True, rng) for _ in range(3000)]
    jittered = [d for d in drawn if d.brightness is not None]
    for name, strength in zip(("brightness", "contrast", "saturation"), settings.strength[:3], strict=True):
        values = np.array([getattr(d, name) for d in jittered])
        assert 1 - strength <= values.min() < 1 - 0.95 * strength
        assert 1 + 0.95 * strength < values.max() <= 1 + strength
    hues = np.array([d.hue for d in jittered])
    assert -0.1 <= hues.min() < -0.095 and 0.095 < hues.max() <= 0.1
    sigmas = np.array([d.blur_sigma for d in drawn if d.blur_sigma is not None])
    assert 0.1 <= sigmas.min() < 0.15 and 1.95 < sigmas.max() <= 2
    shares = [len(jittered), sum(d.grayscale for d in drawn), len(sigmas), sum(d.solarize for d in drawn)]
    np.testing.assert_allclose(np.array(shares) / 3000, [0.8, 0.2, 0.5, 0.2], atol=0.03)
    wild = PhotometricSettings(jitter=1, strength=(0.4, 0.4, 0.4, 1.0))  # torchvision takes hues up to 0.5
    assert max(abs(draw_photometric(wild, True, rng).hue or 0) for _ in range(200)) == 0.5


@pytest.mark.parametrize(
    "values", [{"jitter": 1.1}, {"blur": -0.1}, {"strength": [0.4, 0.4, 0.4]}, {"solarize": [0, 2]}]
)
def test_settings_out_of_range(values: dict) -> None:
    with pytest.raises(SettingsError, match=rf"photometric\.{next(iter(values))}"):
        build(PhotometricSettings, values, "photometric")


def test_to_float_keeps_order_and_values() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    found = to_float(pixels, CPU)
    assert found.shape == (3, 4, 6) and found.dtype == torch.float32
    for y, x, c in np.ndindex(4, 6, 3):
        assert found[c, y, x].item() == pytest.approx(int(pixels[y, x, c]) / 255, abs=1e-7)


def test_normalise_uses_the_numbers_of_mmdetection() -> None:
    np.testing.assert_allclose(np.array(MEAN) * 255, [123.675, 116.28, 103.53], rtol=1e-12)
    np.testing.assert_allclose(np.array(STD) * 255, [58.395, 57.12, 57.375], rtol=1e-12)
    pixels = np.random.default_rng(4).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    expected = ((pixels - mean) / std).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    np.testing.assert_allclose(normalise(to_float(pixels, CPU)).numpy(), expected, atol=2e-6)


def test_canvas_is_zero_beside_its_images() -> None:
    images = [to_float(random_image(i, h, w), CPU) for i, (h, w) in enumerate([(5, 9), (8, 3), (1, 1)])]
    canvas = on_canvas(images, (10, 8))
    assert canvas.shape == (3, 3, 8, 10) and canvas.is_contiguous()
    for row, image in zip(canvas, images, strict=True):
        _, height, width = image.shape
        assert torch.equal(row[:, :height, :width], image)
        assert row.abs().sum() == pytest.approx(image.abs().sum().item(), rel=1e-6)
