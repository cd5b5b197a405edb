"""Drawing the sample's scenes: ground, clutter, textured objects with a rim, light, grain.

Pixel (i, j) covers [j, j + 1) x [i, i + 1), as in COCO's boxes; shapes are anti-aliased by 4 x 4 coverage.
Clutter wears the same textures as objects and lies behind them, so that no texture alone marks an object.

Shapes: H, W image; h, w window around one shape; P outline points.  A canvas is (3, H, W) and a colour
(3, 1, 1), float32 RGB in [0, 1]: planes, because arithmetic on rows of three numbers is several times slower.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.data.sample_plan import SampleSettings, stream
from pipeline.data.sample_scene import PIXELS, PlacedObject, Scene
from pipeline.data.sample_shapes import RIMS, TEXTURES, kind_of

SUPERSAMPLING = 4
RIM_COLOURS: dict[str, tuple[float, float, float] | None] = {  # hue, saturation, value
    "dark": None,  # a shade of the object's own dark colour
    "white": (0.0, 0.0, 0.96),
    "red": (0.0, 0.9, 0.9),
    "yellow": (0.15, 0.9, 0.95),
    "green": (0.35, 0.85, 0.7),
    "cyan": (0.5, 0.9, 0.9),
    "blue": (0.64, 0.85, 0.9),
    "magenta": (0.85, 0.85, 0.9),
}


@dataclass(frozen=True)
class Paint:
    """How a shape is filled: a texture mixes two colours, the rim has its own."""

    texture: str
    dark: np.ndarray
    light: np.ndarray
    edge: np.ndarray
    rim_px: float
    tilt: float = 0.0  # how much brighter the right side is than the left


def draw_scene(scene: Scene, settings: SampleSettings, seed: int, split: int, index: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB; an object added or removed changes only the pixels it covers."""
    rng = stream(seed, split, index, PIXELS)
    height, width = scene.height, scene.width
    canvas = _ground(height, width, rng)
    for _ in range(int(rng.integers(*settings.clutter, endpoint=True))):
        _draw_clutter(canvas, rng)
    light = 0.82 + 0.36 * _smooth_noise(height, width, 2, rng)
    grain = rng.random((3, height, width), dtype=np.float32) - np.float32(0.5)
    grain *= np.float32(rng.uniform(0.03, 0.1))
    for placed in sorted(scene.objects, key=lambda o: o.depth):
        _draw(canvas, placed.outline, placed.centre, placed.size, placed.slant, _paint_of(placed))
    canvas *= light
    canvas += grain
    return np.ascontiguousarray(_to_bytes(canvas).transpose(1, 2, 0))  # (3, H, W) -> (H, W, 3)


def _to_bytes(canvas: np.ndarray) -> np.ndarray:
    return np.clip(canvas * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3, 1, 1) from hue (any turn), saturation and value."""
    rgb = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return np.array(rgb, dtype=np.float32)[:, None, None]  # (3,) -> (3, 1, 1)


def _paint_of(placed: PlacedObject) -> Paint:
    """The category's texture and rim in the object's colours: a bright one, a dark one of another hue."""
    kind, look = kind_of(placed.label), placed.look.tolist()
    hue, other = look[0], look[0] + 0.2 + 0.6 * look[1]
    light = _colour(hue, 0.25 + 0.6 * look[2], 0.85 + 0.15 * look[3])
    dark = _colour(other, 0.6 + 0.4 * look[4], 0.25 + 0.35 * look[5])
    rim = RIM_COLOURS[RIMS[kind.rim]]
    edge = np.float32(0.35) * dark if rim is None else _colour(*rim)
    rim_px = max(1.0, 0.05 * placed.size)
    return Paint(TEXTURES[kind.texture], dark, light, edge, rim_px, tilt=look[6] - 0.5)


def _draw(
    canvas: np.ndarray, outline: np.ndarray, centre: np.ndarray, size: float, slant: float, paint: Paint
) -> None:
    """Fill an outline (P, 2) on the canvas; centre, size and slant orient the texture."""
    x, y = _window(outline, canvas.shape[1], canvas.shape[2])
    if x.start >= x.stop or y.start >= y.stop:
        return
    inside, rim = _coverage(outline, x, y, paint.rim_px)
    u, v = _frame(x, y, centre, size, slant)
    mix = TEXTURE_FIELDS[paint.texture](u, v)
    colour = paint.dark + (paint.light - paint.dark) * mix  # (h, w) -> (3, h, w)
    colour *= 1 + np.float32(0.2 * paint.tilt) * u - np.float32(0.15) * v  # lit from above
    colour += (paint.edge - colour) * rim
    canvas[:, y, x] += (colour - canvas[:, y, x]) * inside


def _window(outline: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """The columns and rows of the image that the outline touches; empty if it lies outside."""
    x1, y1 = np.floor(outline.min(axis=0)).astype(int).tolist()
    x2, y2 = np.ceil(outline.max(axis=0)).astype(int).tolist()
    return slice(max(x1, 0), min(x2, width)), slice(max(y1, 0), min(y2, height))


def _coverage(outline: np.ndarray, x: slice, y: slice, rim_px: float) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) share of each pixel that is inside the outline, and that is in its rim."""
    fine = np.zeros(((y.stop - y.start) * SUPERSAMPLING, (x.stop - x.start) * SUPERSAMPLING), dtype=np.uint8)
    # OpenCV's integer coordinates are pixel centres, ours are pixel corners: half a fine pixel less.
    corners = np.rint(2 * SUPERSAMPLING * (outline - [x.start, y.start])).astype(np.int32) - 1
    cv2.fillPoly(fine, [corners], 255, shift=1)
    band = np.zeros_like(fine)
    cv2.polylines(band, [corners], True, 255, thickness=round(2 * SUPERSAMPLING * rim_px), shift=1)
    return _average(fine), _average(fine & band)


def _average(fine: np.ndarray) -> np.ndarray:
    """(4 h, 4 w) uint8 -> (h, w) float32 in [0, 1], the mean of each cell."""
    height, width = (n // SUPERSAMPLING for n in fine.shape)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(
        255
    )


def _frame(
    x: slice, y: slice, centre: np.ndarray, size: float, slant: float
) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float32 coordinates of the pixel centres in the upright shape, about -1 to 1."""
    columns = ((np.arange(x.start, x.stop) + 0.5 - centre[0]) * (2 / size)).astype(np.float32)[None, :]
    rows = ((np.arange(y.start, y.stop) + 0.5 - centre[1]) * (2 / size)).astype(np.float32)[:, None]
    cos, sin = np.float32(math.cos(slant)), np.float32(math.sin(slant))
    return cos * columns + sin * rows, cos * rows - sin * columns


def _steep(wave: np.ndarray, slope: float = 2.5) -> np.ndarray:
    """A wave around 0 as two tones in [0, 1] with a soft edge, so that fine textures do not alias."""
    return np.clip(0.5 + slope * wave, 0, 1)


# Each texture: (h, w) coordinates -> (h, w) mix in [0, 1] of the dark (0) and the light (1) colour.
TEXTURE_FIELDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "smooth": lambda u, v: np.clip(1.0 - 0.55 * np.hypot(u - 0.2, v + 0.35), 0, 1),
    "striped": lambda u, v: _steep(np.sin(9.5 * u)),
    "checkered": lambda u, v: _steep(np.sin(6.5 * u + 0.8) * np.sin(6.5 * v + 0.8), 4.0),
    "dotted": lambda u, v: _steep(np.cos(8.5 * u) + np.cos(8.5 * v) - 0.7, 1.5),
    "ringed": lambda u, v: _steep(np.cos(10.0 * np.hypot(u, v))),
    "zigzag": lambda u, v: _steep(np.sin(9.0 * v + 1.6 * np.arcsin(np.sin(7.0 * u)))),
    "gridded": lambda u, v: _steep(0.75 - np.maximum(np.cos(9.0 * u), np.cos(9.0 * v)), 3.0),
    "halved": lambda u, v: _steep(u + v, 4.0),
}


def _smooth_noise(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 in [0, 1]: random values on a coarse grid, interpolated."""
    coarse = rng.random((cells + 2, cells + 2), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A greyish colour, for everything that is no object."""
    hue, saturation, value = rng.random(3).tolist()
    return _colour(hue, 0.05 + 0.4 * saturation, 0.25 + 0.6 * value)


def _ground(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(3, H, W) two muted colours mixed by one of four fields, under fractal noise."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    fractal = np.zeros((height, width), dtype=np.float32)
    for octave in range(4):
        fractal += _smooth_noise(height, width, 3 * 2**octave, rng) / np.float32(1.875 * 2**octave)
    angle, place = rng.uniform(0, 2 * math.pi), rng.random()
    along = math.cos(angle) * x + math.sin(angle) * y
    fields: list[Callable[[], np.ndarray]] = [
        lambda: fractal,
        lambda: 0.5 + 0.35 * along,
        lambda: _steep(np.sin((5 + 7 * place) * along + 2 * fractal), 1.0),  # wavy stripes
        lambda: _steep(y + 0.5 - 0.8 * place - 0.4 * (fractal - 0.5), 6.0),  # land below a horizon
    ]
    mix = fields[int(rng.integers(len(fields)))]()
    first, second = _muted(rng), _muted(rng)
    return first + (second - first) * mix.astype(np.float32) + np.float32(0.35) * (fractal - np.float32(0.5))


def _draw_clutter(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """One thing of no category: an irregular blob, a splinter or a squiggle."""
    centre = rng.random(2) * [canvas.shape[2], canvas.shape[1]]
    size = rng.uniform(8, 40)
    shape = (_blob, _splinter, None)[int(rng.integers(3))]
    if shape is None:
        _draw_squiggle(canvas, centre + rng.normal(0, size / 4, size=(9, 2)).cumsum(axis=0), rng)
        return
    outline = centre + size / 2 * shape(rng)
    texture, dark = TEXTURES[int(rng.integers(len(TEXTURES)))], _muted(rng)
    paint = Paint(texture, dark, _muted(rng), np.float32(0.4) * dark, rim_px=1.0)
    _draw(canvas, outline, centre, size, 0.0, paint)


def _blob(rng: np.random.Generator) -> np.ndarray:
    """(20, 2) a wobbly closed outline around 0."""
    angle = np.arange(20) * (2 * math.pi / 20)
    radius = np.full(20, 0.8)
    for waves in (1, 2, 3, 4):
        radius += rng.uniform(-0.3, 0.3) / waves * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _splinter(rng: np.random.Generator) -> np.ndarray:
    """(4, 2) a long thin quadrilateral around 0."""
    angle = rng.uniform(0, math.pi)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = along[::-1] * [-1, 1] * rng.uniform(0.08, 0.2)
    return np.stack([along + across, 0.8 * along - across, -along - across, across - 0.9 * along])


def _draw_squiggle(canvas: np.ndarray, path: np.ndarray, rng: np.random.Generator) -> None:
    """A line through (9, 2) points in one muted colour."""
    colour, thickness = _muted(rng), int(rng.integers(1, 4))
    ink = np.zeros(canvas.shape[1:], dtype=np.uint8)
    fixed_point = np.rint(16 * path).astype(np.int32)
    cv2.polylines(ink, [fixed_point], False, 255, thickness=thickness, lineType=cv2.LINE_AA, shift=4)
    canvas += (colour - canvas) * (ink.astype(np.float32) / np.float32(255))
