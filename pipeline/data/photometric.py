"""From uint8 pixels to what a network sees: float, normalised, on a canvas; and back, for people."""

import numpy as np
import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]: what torchvision's weights expect
STD = (0.229, 0.224, 0.225)


def to_float(image: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) float32 in [0, 1] on `device`."""
    pixels = torch.from_numpy(image).to(device, non_blocking=True)
    return pixels.permute(2, 0, 1).float().div_(255)  # (H, W, 3) -> (3, H, W)


def normalise(image: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation, per channel of (..., 3, H, W)."""
    mean = image.new_tensor(MEAN).view(3, 1, 1)
    return (image - mean) / image.new_tensor(STD).view(3, 1, 1)


def on_canvas(images: list[Tensor], canvas_wh: tuple[int, int]) -> Tensor:
    """Put (3, h, w) images at the top left of zero canvases: (B, 3, H, W)."""
    width, height = canvas_wh
    canvas = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(canvas, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return canvas


def pixels_of(view: Tensor, size_wh: Tensor) -> np.ndarray:
    """The image on a canvas as people see it.

    Args:
        view: (3, H, W) normalised.
        size_wh: (2,) size of the image on its canvas.

    Returns:
        (h, w, 3) float in [0, 1].
    """
    width, height = (int(side) for side in size_wh)
    pixels = view[:, :height, :width].float().permute(1, 2, 0).cpu().numpy()  # (3, H, W) -> (h, w, 3)
    return np.asarray((pixels * np.array(STD) + np.array(MEAN)).clip(0, 1))
