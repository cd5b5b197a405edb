"""CPU time of the input pipeline against the usual one of Pillow and torchvision: two views, equal sizes.

    python benchmarks/loader.py [--short 800] [--images 12] [--rounds 3]

usual      Pillow: decode, crop, resize, jitter, grayscale, blur, solarize, flip; float tensors, normalised
worker     ours: decode, crop, resize, flip in uint8 (what a loader process does; a GPU does the colours)
whole      ours: the same, and the colours on the CPU
batch      the GPU's code for colours, run on the CPU (for its memory traffic, not for use)

The images are noise with JPEG's usual size (about 100 kB; COCO's are some 150 kB).  One thread; the ways take
turns, and of the rounds the least, the median and the median ratio are printed.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as classic

from pipeline.data.draws import Draw, generator
from pipeline.data.images import read_image
from pipeline.data.photometric import MEAN, STD
from pipeline.data.photometric_batch import _pixels, batch_numbers, coloured_canvases, coloured_in_batch
from pipeline.data.photometric_draws import Photometric, PhotometricSettings, draw_photometric
from pipeline.data.views import Geometry, canvas_wh, draw_geometry

SIZES_WH = ((640, 480), (480, 640), (640, 427))
CPU, SETTINGS = torch.device("cpu"), PhotometricSettings()
View = tuple[Geometry, Photometric]


def main() -> None:
    """Measure and print."""
    args = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = [photograph(Path(folder), i) for i in range(args.images)]
        size = statistics.mean(path.stat().st_size for path, _ in files) / 1000
        views = [_views(wh, i, args.short) for i, (_, wh) in enumerate(files)]
        print(f"{args.images} images of {size:.0f} kB, short side {args.short}, two views")
        print("CPU ms per image: least, median, ratio")
        rounds = [
            {name: _measured(way, files, views, args.short) for name, way in WAYS.items()}
            for _ in range(args.rounds)
        ]
    for name in WAYS:
        least, median = (f([times[name] for times in rounds]) for f in (min, statistics.median))
        ratio = statistics.median(times["usual"] / times[name] for times in rounds)
        print(f"{name:10s} {least:8.1f} {median:8.1f} {ratio:7.1f} x")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", type=int, default=800)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def photograph(folder: Path, number: int) -> tuple[Path, tuple[int, int]]:
    """1/f noise: its JPEG is as large as a photograph's."""
    width, height = SIZES_WH[number % 3]
    rng = np.random.default_rng(number)
    pixels = np.zeros((height, width, 3))
    for octave in (4, 8, 16, 32, 64, 128, 256):
        coarse = rng.normal(0, 200 / octave, (octave * height // width + 1, octave, 3))
        layers = [
            Image.fromarray(c.astype(np.float32)).resize((width, height)) for c in coarse.transpose(2, 0, 1)
        ]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=2)  # 3 x (H, W) -> (H, W, 3)
    pixels += rng.normal(128, 8, pixels.shape)
    path = folder / f"{number}.jpg"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return path, (width, height)


def _views(wh: tuple[int, int], number: int, short: int) -> list[View]:
    found = []
    for is_key, (view, photo) in enumerate((("view_query", "photo_query"), ("view_key", "photo_key"))):
        draw = Draw(0, number, number, (1, 1))
        crop = draw_geometry(wh, (short,), 5 * short // 3, generator(0, draw, view), crop=(0.5, 1.0))
        found.append((crop, draw_photometric(SETTINGS, bool(is_key), generator(0, draw, photo))))
    return found


def usual(path: Path, wh: tuple[int, int], views: list[View], canvas: tuple[int, int]) -> list[Tensor]:
    """As MoCo v2's transforms do it."""
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    found = []
    for geometry, drawn in views:
        view = image.crop(geometry.crop).resize(geometry.size_wh, Image.Resampling.BILINEAR)
        if drawn.brightness is not None:
            view = classic.adjust_brightness(view, drawn.brightness)
            view = classic.adjust_contrast(view, drawn.contrast)
            view = classic.adjust_saturation(view, drawn.saturation)
            view = classic.adjust_hue(view, drawn.hue)
        if drawn.grayscale:
            view = classic.to_grayscale(view, 3)
        if drawn.blur_sigma is not None:
            view = view.filter(ImageFilter.GaussianBlur(drawn.blur_sigma))
        view = ImageOps.solarize(view) if drawn.solarize else view
        view = ImageOps.mirror(view) if geometry.flip else view
        found.append(classic.normalize(classic.to_tensor(view), MEAN, STD))
    return found


def worker(path: Path, wh: tuple[int, int], views: list[View], canvas: tuple[int, int]) -> list[np.ndarray]:
    """What PretrainDataset does to pixels."""
    pixels = read_image(path, wh)
    return [geometry.apply(pixels) for geometry, _ in views]


def whole(path: Path, wh: tuple[int, int], views: list[View], canvas: tuple[int, int]) -> list[Tensor]:
    """With `to_batch`'s part, on the CPU."""
    images = worker(path, wh, views, canvas)
    return [coloured_canvases([i], [d], canvas, CPU) for i, (_, d) in zip(images, views, strict=True)]


def batch(path: Path, wh: tuple[int, int], views: list[View], canvas: tuple[int, int]) -> Tensor:
    """Both views as one batch, in the way of the GPU."""
    images = worker(path, wh, views, canvas)
    numbers = batch_numbers(images, [drawn for _, drawn in views], CPU)
    return coloured_in_batch(_pixels(images, canvas, CPU), numbers)


WAYS: dict[str, Callable[..., object]] = {"usual": usual, "worker": worker, "whole": whole, "batch": batch}


def _measured(
    way: Callable[..., object],
    files: list[tuple[Path, tuple[int, int]]],
    views: list[list[View]],
    short: int,
) -> float:
    """CPU milliseconds per image of one round."""
    canvases = [canvas_wh(np.array([wh]), (short,), 5 * short // 3) for _, wh in files]
    way(*files[0], views[0], canvases[0])
    started = time.process_time()
    for (path, wh), pair, canvas in zip(files, views, canvases, strict=True):
        way(path, wh, pair, canvas)
    return (time.process_time() - started) / len(files) * 1000


if __name__ == "__main__":
    main()
