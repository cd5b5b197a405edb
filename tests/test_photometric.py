"""Colour augmentation against torchvision's classic functions, slow loops and MMDetection's numbers."""

import colorsys
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as classic

from pipeline.data.photometric import (
    MEAN,
    STD,
    apply_photometric,
    gaussian_blur,
    normalise,
    on_canvas,
    to_float,
)
from pipeline.data.photometric_draws import Photometric, PhotometricSettings, draw_photometric
from pipeline.errors import SettingsError
from pipeline.settings import build

CPU = torch.device("cpu")


def random_image(seed: int, height: int = 23, width: int = 31) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return to_float(pixels, CPU)


def reference(image: Tensor, drawn: Photometric) -> Tensor:
    """The same numbers given to torchvision's classic functions, one after the other."""
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


def test_random_draws_equal_the_classic_functions_and_stay_in_range() -> None:
    rng, settings = np.random.default_rng(0), PhotometricSettings()
    for trial in range(60):
        drawn, image = draw_photometric(settings, bool(trial % 2), rng), random_image(trial)
        found = apply_photometric(image, drawn)
        assert found.shape == image.shape and found.dtype == torch.float32
        assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
        expected = reference(image, dataclasses.replace(drawn, solarize=False))
        if drawn.solarize:  # at the threshold itself a rounding decides
            clear = (expected - 128 / 255).abs() > 1e-5
            found, expected = found[clear], torch.where(expected < 128 / 255, expected, 1 - expected)[clear]
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


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
def test_each_change_by_its_definition_pixel_by_pixel(drawn: Photometric) -> None:
    image = random_image(1, 5, 6)
    found = apply_photometric(image, drawn).permute(1, 2, 0).reshape(-1, 3)  # (3, H, W) -> (H W, 3)
    pixels = [tuple(p) for p in image.permute(1, 2, 0).reshape(-1, 3).tolist()]  # (3, H, W) -> (H W, 3)
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


def test_solarize_inverts_from_128_on_as_in_8_bits() -> None:
    levels = to_float(np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2), CPU)
    found = apply_photometric(levels, Photometric(solarize=True))[0, 0] * 255
    assert found.round().int().tolist() == [v if v < 128 else 255 - v for v in range(256)]


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_against_a_slow_loop_with_mirrored_borders(sigma: float) -> None:
    image = random_image(2, 9, 12).double()
    height, width = 9, 12
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-6, 7)]

    def mirrored(i: int, size: int) -> int:
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    found = gaussian_blur(image, sigma)
    for y in range(height):
        for x in range(width):
            total = sum(
                wy * wx * image[:, mirrored(y + dy, height), mirrored(x + dx, width)]
                for wy, dy in zip(weights, range(-6, 7), strict=True)
                for wx, dx in zip(weights, range(-6, 7), strict=True)
            )
            torch.testing.assert_close(found[:, y, x], total / sum(weights) ** 2, atol=1e-12, rtol=0)


def test_blur_equals_torchvision_with_the_same_kernel() -> None:
    for sigma in (0.1, 0.7, 1.3, 2.0):
        image = random_image(3, 40, 57)
        expected = classic.gaussian_blur(image, [13, 13], [sigma, sigma])
        torch.testing.assert_close(gaussian_blur(image, sigma), expected, atol=1e-6, rtol=0)


def test_blur_cuts_nothing_that_matters_from_its_kernel() -> None:
    image = random_image(4, 40, 57)
    wide = classic.gaussian_blur(image, [31, 31], [2.0, 2.0])  # torchvision's own advice: six sigmas and more
    assert (gaussian_blur(image, 2.0) - wide).abs().max() < 0.003


@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (50, 1), (2, 3), (6, 7), (7, 6)])
def test_blur_of_images_smaller_than_its_kernel(height: int, width: int) -> None:
    image = random_image(5, height, width)
    found = gaussian_blur(image, 2.0)
    assert found.shape == image.shape and found.isfinite().all()
    torch.testing.assert_close(gaussian_blur(torch.full_like(image, 0.3), 2.0), torch.full_like(image, 0.3))


def test_nothing_drawn_changes_nothing() -> None:
    image = random_image(6)
    assert torch.equal(apply_photometric(image, Photometric()), image)


def test_strength_zero_is_the_identity_to_rounding() -> None:
    settings = PhotometricSettings(
        jitter=1.0, strength=(0.0,) * 4, grayscale=0.0, blur=0.0, solarize=(0.0, 0.0)
    )
    drawn = draw_photometric(settings, False, np.random.default_rng(0))
    assert drawn == Photometric(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0)
    image = random_image(7)
    torch.testing.assert_close(apply_photometric(image, drawn), image, atol=1e-6, rtol=0)


def test_input_is_not_changed() -> None:
    image = random_image(8)
    before = image.clone()
    apply_photometric(image, Photometric(1.2, 0.8, 1.2, 0.1, True, 1.0, True))
    assert torch.equal(image, before)


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
    images = [random_image(i, h, w) for i, (h, w) in enumerate([(5, 9), (8, 3), (1, 1)])]
    canvas = on_canvas(images, (10, 8))
    assert canvas.shape == (3, 3, 8, 10) and canvas.is_contiguous()
    for row, image in zip(canvas, images, strict=True):
        _, height, width = image.shape
        assert torch.equal(row[:, :height, :width], image)
        assert row.abs().sum() == pytest.approx(image.abs().sum().item(), rel=1e-6)
