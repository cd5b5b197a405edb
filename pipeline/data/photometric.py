"""Colour augmentation of one view: MoCo v2's list (jitter, grayscale, blur) and BYOL's solarize.

The numbers are drawn on the CPU (photometric_draws); the pixels are changed on the device.
Images are (3, H, W) float in [0, 1], without padding, because contrast looks at the image's mean.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as colour

from pipeline.data.photometric_draws import Photometric

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]: what torchvision's weights expect
STD = (0.229, 0.224, 0.225)
BLUR_RADIUS = 6  # three times the largest sigma


def apply_photometric(image: Tensor, drawn: Photometric) -> Tensor:
    """Apply in the order brightness, contrast, saturation, hue, grayscale, blur, solarize."""
    if drawn.brightness is not None:
        image = colour.adjust_brightness(image, drawn.brightness)
    if drawn.contrast is not None:
        image = colour.adjust_contrast(image, drawn.contrast)
    if drawn.saturation is not None:
        image = colour.adjust_saturation(image, drawn.saturation)
    if drawn.hue is not None:
        image = colour.adjust_hue(image, drawn.hue)
    if drawn.grayscale:
        image = colour.rgb_to_grayscale(image, num_output_channels=3)
    if drawn.blur_sigma is not None:
        image = gaussian_blur(image, drawn.blur_sigma)
    return colour.solarize(image, 128 / 255) if drawn.solarize else image


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable blur with mirrored borders; two one-dimensional convolutions (torchvision's 2-D kernel of
    23 x 23 takes seconds on a CPU).  (3, H, W) -> (3, H, W)."""
    radius = min(BLUR_RADIUS, image.shape[1] - 1, image.shape[2] - 1)
    at = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    weights = torch.softmax(-(at**2) / (2 * sigma**2), dim=0)
    padded = F.pad(image[:, None], (radius,) * 4, mode="reflect")  # (3, H, W) -> (3, 1, H + 2r, W + 2r)
    across = F.conv2d(padded, weights.view(1, 1, 1, -1))
    return F.conv2d(across, weights.view(1, 1, -1, 1))[:, 0]  # (3, 1, H, W) -> (3, H, W)


def to_float(image: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) float32 in [0, 1] on `device`."""
    pixels = torch.from_numpy(image).to(device, non_blocking=True)
    return pixels.permute(2, 0, 1).float().div_(255)  # (H, W, 3) -> (3, H, W)


def normalise(image: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation, per channel."""
    mean = image.new_tensor(MEAN).view(3, 1, 1)
    return (image - mean) / image.new_tensor(STD).view(3, 1, 1)


def on_canvas(images: list[Tensor], canvas_wh: tuple[int, int]) -> Tensor:
    """Put (3, h, w) images at the top left of zero canvases: (B, 3, H, W)."""
    width, height = canvas_wh
    canvas = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(canvas, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return canvas
