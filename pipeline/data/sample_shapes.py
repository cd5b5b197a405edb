"""What the categories of the sample look like: a shape, a texture and, beyond 160 categories, a coloured rim.

A category is a `Kind`; colours, size, slant and stretch vary inside it, so neither colour nor texture alone
gives it away (categories 8 apart in the default set share their texture).

Shapes: P outline points, M interior points.  Outlines are simple polygons (no holes) in [-1, 1], y down.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TEXTURES = ("smooth", "striped", "checkered", "dotted", "ringed", "zigzag", "gridded", "halved")
RIMS = ("dark", "white", "red", "yellow", "green", "cyan", "blue", "magenta")


@dataclass(frozen=True)
class Kind:
    """How one category looks: positions in the tables of shapes, textures and rims."""

    name: str
    shape: int
    texture: int
    rim: int


@functools.cache
def kind_of(label: int) -> Kind:
    """The look of category `label` (0-based, below len(SHAPES) * len(TEXTURES) * len(RIMS))."""
    shape = label % len(SHAPES)
    texture = (shape + label // len(SHAPES)) % len(TEXTURES)
    rim = label // (len(SHAPES) * len(TEXTURES))
    assert rim < len(RIMS), "more categories than looks"
    name = f"{TEXTURES[texture]}_{tuple(SHAPES)[shape]}"
    return Kind(f"{RIMS[rim]}_rimmed_{name}" if rim else name, shape, texture, rim)


@functools.cache
def outline(shape: int) -> np.ndarray:
    """(P, 2) float64 outline around 0 whose longer side is 2."""
    points = np.asarray(tuple(SHAPES.values())[shape](), dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / ((high - low).max() / 2)


@functools.cache
def interior(shape: int) -> np.ndarray:
    """(M, 2) points of a 14 x 14 grid over the box that lie inside; the covered share is the hidden share."""
    ticks = (np.arange(14) + 0.5) / 7 - 1
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)  # (14, 14, 2) -> (196, 2)
    grid = grid * outline(shape).max(axis=0)
    return grid[contains(outline(shape), grid)]


def contains(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(M,) whether each point (M, 2) lies inside the polygon (P, 2), by the even-odd rule."""
    x, y = points.T
    x1, y1 = polygon.T[:, :, None]  # (P, 2) -> 2 x (P, 1)
    x2, y2 = np.concatenate([polygon[1:], polygon[:1]]).T[:, :, None]
    rise = y2 - y1
    crossing = x1 + (y - y1) * (x2 - x1) / np.where(rise == 0, 1, rise)  # level edges are crossed by no ray
    crossed = ((y1 > y) != (y2 > y)) & (x < crossing)  # (P, M)
    return crossed.sum(axis=0) % 2 == 1


def _arc(
    radius: float, start: float, stop: float, count: int, right: float = 0.0, down: float = 0.0
) -> np.ndarray:
    """(count, 2) points on a circle around (right, down); degrees, clockwise on the screen from the right."""
    angle = np.deg2rad(np.linspace(start, stop, count))
    return np.stack([right + radius * np.cos(angle), down + radius * np.sin(angle)], axis=1)


def _polar(radii: np.ndarray) -> np.ndarray:
    """(P, 2) points at equal angles, the first on top."""
    angle = np.arange(len(radii)) * (2 * math.pi / len(radii)) - math.pi / 2
    return radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _cross() -> np.ndarray:
    arm = np.array([[-0.3, -1.0], [0.3, -1.0], [0.3, -0.3]])
    quarter = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, k) for k in range(4)])


def _crescent() -> np.ndarray:
    return np.concatenate([_arc(1.0, 50, 310, 14), _arc(0.78, 290, 70, 9, right=0.35)])


def _heart() -> np.ndarray:
    t = np.arange(24) * (2 * math.pi / 24)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _horseshoe() -> np.ndarray:
    return np.concatenate([_arc(1.0, 120, 420, 15), _arc(0.5, 420, 120, 11)])


def _drop() -> np.ndarray:
    return np.concatenate([_arc(0.7, -30, 210, 14, down=0.3), [[0.0, -1.2]]])


def _leaf() -> np.ndarray:
    return np.concatenate([_arc(1.0, -55, 55, 9, right=-0.57), _arc(1.0, 125, 235, 9, right=0.57)])


def _fish() -> np.ndarray:
    body = _arc(0.6, 160, -160, 16, right=-0.2) * [1.2, 0.85]
    return np.concatenate([body, [[-1.35, -0.6], [-1.2, 0.0], [-1.35, 0.6]]])


def _mushroom() -> np.ndarray:
    stem = [[1.0, 0.2], [0.32, 0.2], [0.42, 1.0], [-0.42, 1.0], [-0.32, 0.2], [-1.0, 0.2]]
    return np.concatenate([_arc(1.0, 180, 360, 12), stem])


def _points(*xy: float) -> Callable[[], np.ndarray]:
    return lambda: np.reshape(xy, (-1, 2))


# Neighbours 8 apart share a texture in the default set, so those pairs differ clearly in outline.
SHAPES: dict[str, Callable[[], np.ndarray]] = {
    "disc": lambda: _arc(1.0, 0, 345, 24),
    "square": _points(-1, -1, 1, -1, 1, 1, -1, 1),
    "triangle": _points(0, -1, 1, 0.8, -1, 0.8),
    "star": lambda: _polar(np.tile([1.0, 0.42], 5)),
    "cross": _cross,
    "crescent": _crescent,
    "arrow": _points(-1, -0.3, 0.1, -0.3, 0.1, -0.85, 1, 0, 0.1, 0.85, 0.1, 0.3, -1, 0.3),
    "heart": _heart,
    "hourglass": _points(-0.8, -1, 0.8, -1, 0.15, 0, 0.8, 1, -0.8, 1, -0.15, 0),
    "horseshoe": _horseshoe,
    "fish": _fish,
    "gear": lambda: _polar(np.tile([1.0, 1.0, 0.68, 0.68], 7)),
    "drop": _drop,
    "house": _points(-0.75, 1, -0.75, -0.1, -1, -0.1, 0, -1, 1, -0.1, 0.75, -0.1, 0.75, 1),
    "clover": lambda: _polar(1 + 0.36 * np.cos(np.arange(27) * (6 * math.pi / 27))),
    "bolt": _points(0.1, -1, 0.75, -1, 0.3, -0.25, 0.8, -0.25, -0.45, 1, -0.1, 0.1, -0.65, 0.1),
    "leaf": _leaf,
    "crown": _points(-1, 0.8, -1, -0.6, -0.45, 0.05, 0, -0.8, 0.45, 0.05, 1, -0.6, 1, 0.8),
    "mushroom": _mushroom,
    "hexagon": lambda: _polar(np.ones(6)),
}
