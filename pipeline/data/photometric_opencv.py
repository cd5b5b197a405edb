"""Colour augmentation on a CPU: OpenCV in float32, image by image, what was not drawn is skipped.

Brightness and contrast act on each of 256 levels alike, given the image's mean, so they are one table; the
mean comes from sums of the levels.  Nothing is rounded to 8 bits on the way.
"""

import itertools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.data.photometric import MEAN, STD
from pipeline.data.photometric_draws import LUMA, RADIUS, SOLARIZE_FROM, Photometric, blur_kernel

LEAST_WEIGHT = 1e-7  # of the blur: the ends of a narrow kernel are cut where nothing of them would be seen
# (3, 4): an affine map of colours
NORMALISING = np.column_stack([np.diag(1 / np.array(STD)), -np.array(MEAN) / STD]).astype(np.float32)
STRIP = 64  # rows changed at once, from levels to the canvas, so that they stay in the processor's cache
Strips = Iterator[tuple[slice, np.ndarray]]  # rows of an image, and their pixels (n, w, 3)


def coloured_on_cpu(
    images: Sequence[np.ndarray], drawn: Sequence[Photometric], canvas_wh: tuple[int, int]
) -> Tensor:
    """As photometric_batch.coloured_canvases: B arrays (h, w, 3) uint8 -> (B, 3, H, W) float32."""
    canvas = np.empty((len(images), 3, canvas_wh[1], canvas_wh[0]), dtype=np.float32)
    for place, image, numbers in zip(canvas, images, drawn, strict=True):
        height, width = image.shape[:2]
        place[:, height:], place[:, :height, width:] = 0, 0
        for rows, pixels in _coloured_strips(image, numbers):
            planes = [plane[rows, :width] for plane in place]
            normalised = cv2.transform(pixels, NORMALISING)
            cv2.mixChannels([normalised], planes, [0, 0, 1, 1, 2, 2])  # into the planes
    return torch.from_numpy(canvas)


def coloured(image: np.ndarray, drawn: Photometric) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w, 3) float32 in [0, 1], changed in the order of photometric_batch."""
    return np.concatenate([pixels for _, pixels in _coloured_strips(image, drawn)])


def _coloured_strips(image: np.ndarray, drawn: Photometric) -> Strips:
    """Rows and their changed pixels, a strip after the other."""
    table = _table(image, drawn)
    strips: Strips = ((rows, _turned(cv2.LUT(image[rows], table), drawn)) for rows in _strips(image))
    if drawn.blur_sigma is not None:
        strips = _blurred(strips, blur_kernel(drawn.blur_sigma, (image.shape[1], image.shape[0])))
    for rows, pixels in strips:
        yield rows, _solarized(pixels) if drawn.solarize else pixels


def _blurred(strips: Strips, weights: list[float]) -> Strips:
    """Blur each strip as soon as the next one is there, with RADIUS rows of its neighbours."""
    kernel = np.array([w for w in weights if w >= LEAST_WEIGHT], dtype=np.float32)
    above: list[np.ndarray] = []
    end = (slice(0), np.empty((0, 0, 3), dtype=np.float32))
    for (rows, pixels), (_, following) in itertools.pairwise(itertools.chain(strips, [end])):
        below = [following[:RADIUS]] if following.size else []
        wide = cv2.vconcat([*above, pixels, *below])
        blurred = cv2.sepFilter2D(wide, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
        top = RADIUS if above else 0
        yield rows, blurred[top : top + len(pixels)]
        above = [pixels[-RADIUS:]]


def _solarized(pixels: np.ndarray) -> np.ndarray:
    """1 - x where x is at least SOLARIZE_FROM, as x + [x > a little less] (1 - 2 x)."""
    below = np.nextafter(np.float32(SOLARIZE_FROM), np.float32(0))
    is_bright = cv2.threshold(pixels, float(below), 1, cv2.THRESH_BINARY)[1]
    step = cv2.multiply(is_bright, cv2.addWeighted(pixels, -2, pixels, 0, 1))
    return cv2.add(pixels, step)


def _strips(image: np.ndarray) -> list[slice]:
    """Rows of an image, a strip after the other."""
    height = image.shape[0]
    return [slice(top, min(top + STRIP, height)) for top in range(0, height, STRIP)]


def _turned(pixels: np.ndarray, drawn: Photometric) -> np.ndarray:
    """Saturation, hue, grayscale of (h, w, 3) float32."""
    if drawn.saturation is not None:
        weights = drawn.saturation * np.eye(3) + (1 - drawn.saturation) * np.array(LUMA)
        pixels = cv2.transform(pixels, weights.astype(np.float32))
        if drawn.saturation > 1:  # below, it is a mean of colours
            np.clip(pixels, 0, 1, out=pixels)
    if drawn.hue is not None:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 0] += 360 * (drawn.hue % 1)  # OpenCV goes round the circle by itself, forwards only
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if drawn.grayscale:
        pixels = cv2.transform(pixels, np.tile(np.array(LUMA, dtype=np.float32), (3, 1)))
    return pixels


def _table(image: np.ndarray, drawn: Photometric) -> np.ndarray:
    """(256,) float32: what brightness and contrast make of each level."""
    levels = np.arange(256) / 255
    if drawn.brightness is not None:
        levels = np.clip(levels * drawn.brightness, 0, 1)
    if drawn.contrast is not None:
        mean = _mean_grey(image, 1.0 if drawn.brightness is None else drawn.brightness)
        levels = np.clip(drawn.contrast * levels + (1 - drawn.contrast) * mean, 0, 1)
    return levels.astype(np.float32)


def _mean_grey(image: np.ndarray, brightness: float) -> float:
    """Mean over the pixels of the grey of min(brightness x, 1), for x = (h, w, 3) uint8 / 255.

    It is 1 from the level L = 255 / brightness on; with l = floor(L), min(x, L) is min(x, l), and L - l more
    where x > l.  Sums of bytes take a tenth of a histogram's time.
    """
    rows = image.reshape(image.shape[0], -1)  # (h, w, 3) -> (h, 3 w)
    sums = _sums(rows)
    if brightness > 1:
        whole, part = divmod(255 / brightness, 1)
        above = cv2.threshold(rows, whole, 1, cv2.THRESH_BINARY)[1]
        sums = _sums(cv2.min(rows, whole)) + part * _sums(above)
    return float(np.dot(LUMA, sums) * brightness / (255 * image[..., 0].size))


def _sums(rows: np.ndarray) -> np.ndarray:
    """(h, 3 w) uint8 -> (3,) sums of the channels."""
    columns = cv2.reduce(rows, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return np.asarray(columns.reshape(-1, 3).sum(axis=0, dtype=np.int64))  # (1, 3 w) -> (w, 3) -> (3,)
