"""Colour augmentation of a batch of views: MoCo v2's list (jitter, grayscale, blur) and BYOL's solarize.

The numbers are drawn on the CPU (photometric_draws).  On a GPU all images are changed at once: one transfer
of uint8 pixels, one of numbers, every operation over the whole canvas, and nothing that makes the host wait.
What was not drawn is an operation with a number that changes nothing.  On a CPU OpenCV does it image by image
(photometric_opencv), and skips what was not drawn.

Shapes: B images, canvas H x W, each image at the top left of its canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.photometric import normalise
from pipeline.data.photometric_draws import LUMA, RADIUS, SOLARIZE_FROM, Photometric, blur_kernel
from pipeline.data.photometric_opencv import coloured_on_cpu


@dataclass(frozen=True)
class BatchNumbers:
    """The drawn numbers of B images on the device; (B, 1, 1, 1) each but `kernel` (B, 2 RADIUS + 1)."""

    width: Tensor
    height: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    has_hue: Tensor
    grayscale: Tensor
    solarize: Tensor
    kernel: Tensor


def coloured_canvases(
    images: Sequence[np.ndarray],
    drawn: Sequence[Photometric],
    canvas_wh: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Views with their colours changed, normalised, on zero canvases.

    Args:
        images: B arrays (h, w, 3) uint8.
        drawn: the numbers of each.
        canvas_wh: size of the canvas.
        device: where the pixels are changed, and where the result is.

    Returns:
        (B, 3, H, W) float32; on a GPU in channels_last memory.
    """
    if device.type == "cpu":
        return coloured_on_cpu(images, drawn, canvas_wh)
    numbers = batch_numbers(images, drawn, device)
    return coloured_in_batch(_pixels(images, canvas_wh, device), numbers)


def _pixels(images: Sequence[np.ndarray], canvas_wh: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1], channels_last; one transfer of uint8."""
    canvas = torch.zeros(
        len(images), canvas_wh[1], canvas_wh[0], 3, dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    for row, image in zip(canvas.numpy(), images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return canvas.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)  # (B, H, W, 3) -> NCHW


def batch_numbers(
    images: Sequence[np.ndarray], drawn: Sequence[Photometric], device: torch.device
) -> BatchNumbers:
    """One tensor on the host, one transfer, and views of it."""
    rows = []
    for image, d in zip(images, drawn, strict=True):
        height, width = image.shape[:2]
        jitter = [1.0 if v is None else v for v in (d.brightness, d.contrast, d.saturation)]
        hue = [d.hue or 0.0, float(d.hue is not None)]
        kernel = blur_kernel(d.blur_sigma, (width, height))
        rows.append([width, height, *jitter, *hue, float(d.grayscale), float(d.solarize), *kernel])
    host = torch.tensor(rows, dtype=torch.float32)
    moved = (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
    columns = moved[:, :9, None, None, None].unbind(dim=1)  # (B, 9) -> nine (B, 1, 1, 1)
    return BatchNumbers(*(*columns, moved[:, 9:]))


def coloured_in_batch(pixels: Tensor, numbers: BatchNumbers) -> Tensor:
    """Brightness, contrast, saturation, hue, grayscale, blur, solarize, in this order, and normalisation.

    Args:
        pixels: (B, 3, H, W) float in [0, 1], zero beside the images.
        numbers: of B images.

    Returns:
        (B, 3, H, W), zero beside the images.
    """
    pixels = (pixels * numbers.brightness).clamp(0, 1)
    mean = _grey(pixels).sum(dim=(1, 2, 3), keepdim=True) / (numbers.width * numbers.height)  # beside: zeros
    pixels = (pixels * numbers.contrast + (1 - numbers.contrast) * mean).clamp(0, 1)
    pixels = (pixels * numbers.saturation + (1 - numbers.saturation) * _grey(pixels)).clamp(0, 1)
    pixels = torch.where(numbers.has_hue > 0, _turned(pixels, numbers.hue), pixels)
    pixels = torch.where(numbers.grayscale > 0, _grey(pixels), pixels)
    pixels = _blurred(pixels, numbers)
    inverted = (numbers.solarize > 0) & (pixels >= SOLARIZE_FROM)
    pixels = normalise(torch.where(inverted, 1 - pixels, pixels))
    rows = torch.arange(pixels.shape[2], device=pixels.device)[:, None] < numbers.height  # (B, 1, H, 1)
    columns = torch.arange(pixels.shape[3], device=pixels.device) < numbers.width  # (B, 1, 1, W)
    # the blur leaves (1, 3 B, h, w), that is NCHW
    return torch.where(rows & columns, pixels, 0.0).contiguous(memory_format=torch.channels_last)


def _grey(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = pixels.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _turned(pixels: Tensor, hue: Tensor) -> Tensor:
    """Hue moved by a share of the circle (HSV; Smith 1978, "Color gamut transform pairs").

    In sixths of the circle a channel is v - c clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1.
    """
    value, chroma = pixels.amax(1, keepdim=True), pixels.amax(1, keepdim=True) - pixels.amin(1, keepdim=True)
    red, green, blue = (pixels / torch.where(chroma == 0, 1.0, chroma)).split(1, dim=1)
    is_red, is_green = (value == channel for channel in pixels.split(1, dim=1)[:2])
    angle = (
        torch.where(is_red, green - blue, torch.where(is_green, 2 + blue - red, 4 + red - green)) + 6 * hue
    )
    offsets = pixels.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (angle + offsets).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blurred(pixels: Tensor, numbers: BatchNumbers) -> Tensor:
    """Separable blur with borders mirrored at each image's own edge: two one-dimensional convolutions."""
    count, channels = pixels.shape[:2]
    weights = numbers.kernel.repeat_interleave(channels, dim=0)[:, None, None]  # (B, K) -> (3 B, 1, 1, K)
    for dim, size in ((3, numbers.width), (2, numbers.height)):
        length = pixels.shape[dim]
        at = torch.arange(-RADIUS, length + RADIUS, device=pixels.device)
        last = size.flatten()[:, None] - 1  # (B, 1, 1, 1) -> (B, 1)
        mirrored = (last - (last - at.abs()).abs()).clamp(min=0).long()  # (B, L + 2 RADIUS)
        index = mirrored.view(count, 1, *((1, -1) if dim == 3 else (-1, 1)))
        wide = pixels.gather(dim, index.expand(*_with(pixels.shape, dim, len(at))))
        grouped = wide.reshape(1, count * channels, *wide.shape[2:])  # (B, 3, h, w) -> (1, 3 B, h, w)
        kernel = weights if dim == 3 else weights.transpose(2, 3)
        pixels = F.conv2d(grouped, kernel, groups=count * channels).view(pixels.shape)
    return pixels


def _with(shape: torch.Size, dim: int, length: int) -> list[int]:
    """`shape` with `length` at `dim`."""
    return [length if i == dim else side for i, side in enumerate(shape)]
