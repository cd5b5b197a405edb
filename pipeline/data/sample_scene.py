"""One scene of the sample as geometry: where the objects lie and what may be seen of them.

Nothing here depends on drawing, so the annotations are the same whether pixels are made or not.  Everything
drawn at random comes from the image's own stream.

An annotation is the outline of the whole object, hidden parts included, cut off at the image border.
Objects reach over one side of the image at most, never over a corner: one straight cut of a simple polygon
leaves the exact bounds of what is inside, a second cut across the first would not.

Coordinates are pixels on a grid of 1/4 (exact in binary, so that bounds and areas are exact too).
Shapes: P outline points, M interior points.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.sample_plan import SampleSettings, stream
from pipeline.data.sample_shapes import contains, interior, kind_of, outline

GEOMETRY, PIXELS, VERIFICATION = 1, 2, 3  # last key of an image's random streams
GRID = 4  # steps per pixel
TRIES = 12  # placements of an object before it is left out; each asks for less room than the one before
MAX_CUT = 0.3  # share of an object's side that may lie outside the image
MAX_SLANT = math.radians(30)
MAX_STRETCH = 0.2  # in log scale
NUM_LOOKS = 8  # numbers in [0, 1) that decide an object's colours


@dataclass(frozen=True)
class PlacedObject:
    """One object; everything in pixels."""

    label: int
    depth: float  # larger lies on top
    outline: np.ndarray  # (P, 2) also outside the image, for drawing
    polygon: np.ndarray  # (P', 2) cut off at the border, for the annotation
    points: np.ndarray  # (M, 2) interior points inside the image
    centre: np.ndarray  # (2,)
    size: float  # longer side of the box before the cut
    slant: float  # radians, clockwise on the screen
    look: np.ndarray  # (NUM_LOOKS,)

    @functools.cached_property
    def box(self) -> tuple[float, float, float, float]:
        """Bounds of the polygon, xyxy."""
        x1, y1 = self.polygon.min(axis=0).tolist()
        x2, y2 = self.polygon.max(axis=0).tolist()
        return x1, y1, x2, y2


@dataclass(frozen=True)
class Scene:
    """The objects of one image, in order of placement (rarest category first)."""

    width: int
    height: int
    objects: tuple[PlacedObject, ...]


def plan_scene(settings: SampleSettings, seed: int, split: int, index: int, labels: np.ndarray) -> Scene:
    """Place objects of the given categories (n,), in this order; those that find no room are left out.

    The same arguments give the same scene however large the data set is.
    """
    rng = stream(seed, split, index, GEOMETRY)
    width, height = settings.width, settings.height
    if rng.random() < settings.portrait_fraction:
        width, height = height, width
    depths = rng.random(len(labels)).tolist()
    looks = rng.random((len(labels), NUM_LOOKS))
    draws = rng.random((len(labels), TRIES, 6)).tolist()
    placed: list[PlacedObject] = []
    hidden: list[np.ndarray] = []  # per placed object: which of its points are covered
    for label, depth, look, tries in zip(labels.tolist(), depths, looks, draws, strict=True):
        for attempt, draw in enumerate(tries):
            low, high = settings.object_size_px
            size = low * (high / low) ** (draw[0] * (1 - attempt / TRIES))
            candidate = _candidate(label, depth, look, size, draw[1:], (width, height))
            covered = _cover(candidate, placed, hidden)
            if _enough_visible(candidate, covered, settings.min_visible):
                placed.append(candidate)
                hidden = covered
                break
    return Scene(width, height, tuple(placed))


def _candidate(
    label: int, depth: float, look: np.ndarray, size: float, draw: Sequence[float], wh: tuple[int, int]
) -> PlacedObject:
    """An object whose slant, stretch and position are set by five numbers in [0, 1)."""
    shape = kind_of(label).shape
    rim = outline(shape)
    slant, stretch = (2 * draw[0] - 1) * MAX_SLANT, math.exp((2 * draw[1] - 1) * MAX_STRETCH)
    cos, sin = math.cos(slant), math.sin(slant)
    turn = np.array([[cos * stretch, sin * stretch], [-sin / stretch, cos / stretch]])
    moved = np.concatenate([rim, interior(shape)]) @ turn  # (P + M, 2)
    lowest = moved[: len(rim)].min(axis=0)
    extent = moved[: len(rim)].max(axis=0) - lowest
    scale = size / float(extent.max())
    cuts = (MAX_CUT, 0.0) if draw[2] < 0.5 else (0.0, MAX_CUT)
    corner = [
        _slide(u, side, full, cut)
        for u, side, full, cut in zip(draw[3:], (extent * scale).tolist(), wh, cuts, strict=True)
    ]
    moved = (moved - lowest) * scale + corner
    whole = _snap(moved[: len(rim)])
    points = moved[len(rim) :]
    inside = ((points >= 0) & (points <= wh)).all(axis=1)
    centre = np.array(corner) - lowest * scale  # where the outline's own (0, 0) went
    return PlacedObject(label, depth, whole, _cut(whole, wh), points[inside], centre, size, slant, look)


def _slide(u: float, side: float, full: float, cut: float) -> float:
    """Where a side begins that may leave [0, full] by the share `cut`; u in [0, 1)."""
    first, last = -cut * side, full - side + cut * side
    return first + u * (last - first)


def _snap(points: np.ndarray) -> np.ndarray:
    """The nearest points of the grid; never -0.0, which json would show."""
    return np.rint(points * GRID) / GRID + 0.0


def _cut(polygon: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
    """The part of the polygon (P, 2) inside [0, width] x [0, height]; it is outside on one side at most."""
    for axis, full in enumerate(wh):
        if polygon[:, axis].min() < 0:
            polygon = _keep_above(polygon, axis, 0.0)
        if polygon[:, axis].max() > full:
            polygon = -_keep_above(-polygon, axis, -float(full))
    return polygon


def _keep_above(polygon: np.ndarray, axis: int, limit: float) -> np.ndarray:
    """Sutherland and Hodgman's cut at one line: the part with coordinate >= limit, on the grid."""
    kept: list[np.ndarray] = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        a, b = start[axis] - limit, end[axis] - limit
        if a >= 0:
            kept.append(start)
        if a * b < 0:
            crossing = _snap(start + (end - start) * (a / (a - b)))
            crossing[axis] = limit
            kept.append(crossing)
    return np.array(kept)


def _cover(candidate: PlacedObject, placed: list[PlacedObject], hidden: list[np.ndarray]) -> list[np.ndarray]:
    """Which points of every object, the candidate last, would be covered if it were placed."""
    own = np.zeros(len(candidate.points), dtype=bool)
    covered = list(hidden)
    x1, y1, x2, y2 = candidate.box
    for i, other in enumerate(placed):
        u1, v1, u2, v2 = other.box
        if u1 >= x2 or u2 <= x1 or v1 >= y2 or v2 <= y1:
            continue
        if other.depth > candidate.depth:
            own = own | contains(other.polygon, candidate.points)
        else:
            covered[i] = covered[i] | contains(candidate.polygon, other.points)
    return [*covered, own]


def _enough_visible(candidate: PlacedObject, covered: list[np.ndarray], least: float) -> bool:
    """Whether at least half of the candidate is in the image, and of every object `least` stays visible."""
    if 2 * len(candidate.points) < len(interior(kind_of(candidate.label).shape)):
        return False
    return all(np.count_nonzero(mask) <= (1 - least) * len(mask) for mask in covered)
