"""Attention on tail categories (Fig. 3): which images, how much of a map lies on the objects, and the figure.

The maps come from `pipeline.detectors.attention`.  A picture convinces too easily: beside each stands which
share of the map lies inside the objects' boxes (chance: their share of the image), and whether its peak does.

Shapes: H x W the stored image, n objects of the category in the image, C categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.analysis.tables import write_table
from pipeline.data.annotations import Annotations
from pipeline.data.images import read_image
from pipeline.drawing import GROUP_NAMES, save
from pipeline.errors import MismatchedInput, first_ten

COLUMNS = ("run", "image_id", "category_id", "name", "frequency", "method", "layer")
MEASURES = ("share_in_boxes", "share_of_area", "peak_in_boxes")


@dataclass(frozen=True)
class Subject:
    """The image at position `image`, asked about its category `label`; `boxes` (n, 4) xyxy: its objects."""

    image: int
    label: int
    boxes: np.ndarray


@dataclass(frozen=True)
class Choice:
    """What is shown; `group` is the letter of the categories it was drawn among, None if ids were given."""

    subjects: list[Subject]
    group: str | None


@dataclass(frozen=True)
class Measure:
    """Of one map; all None for a map that is 0 everywhere."""

    share_in_boxes: float | None
    share_of_area: float
    peak_in_boxes: bool | None


def choose(
    annotations: Annotations,
    letters: Sequence[str] | None,
    count: int,
    seed: int,
    image_ids: Sequence[int] = (),
) -> Choice:
    """Images of tail categories, each asked about its rarest one.

    Args:
        annotations: the split.
        letters: r, c or f of each category (C); None: the rarest are those with the fewest images.
        count: how many to draw, as many as there are at most, each category once before one comes again.
        seed: of the draw.
        image_ids: these instead of a draw.

    Returns:
        in the order of `image_ids`, or of the draw; of the rarest group that any image shows.

    Raises:
        MismatchedInput: an id is not of this split, or its image shows no object.
    """
    rarity = _rarity(annotations, letters)
    rows = np.flatnonzero(annotations.trainable)
    if image_ids:
        return Choice(_given(annotations, rows, rarity, image_ids), None)
    if not len(rows) or not count:
        return Choice([], None)
    group = None
    if letters is not None:
        present = {letters[label] for label in annotations.labels[rows].tolist()}
        group = next((letter for letter in "rcf" if letter in present), None)
        rows = rows[np.array([letters[label] == group for label in annotations.labels[rows].tolist()])]
    pairs = np.unique(np.stack([annotations.labels[rows], annotations.box_images[rows]], axis=1), axis=0)
    drawn = _drawn(pairs, rarity, count, np.random.default_rng(seed))
    return Choice([_subject(annotations, image, label) for label, image in drawn], group)


def _rarity(annotations: Annotations, letters: Sequence[str] | None) -> np.ndarray:
    """(C,) smaller is rarer: by group, then by images in this split, then by id."""
    pairs = np.unique(np.stack([annotations.labels, annotations.box_images], axis=1), axis=0)
    images = np.bincount(pairs[:, 0], minlength=len(annotations.category_ids))
    group = np.array(["rcf".find(letter) for letter in letters or [""] * len(images)])
    return np.argsort(np.lexsort((annotations.category_ids, images, group)))


def _given(
    annotations: Annotations, rows: np.ndarray, rarity: np.ndarray, image_ids: Sequence[int]
) -> list[Subject]:
    position = {int(i): p for p, i in enumerate(annotations.image_ids)}
    unknown = [i for i in image_ids if i not in position]
    if unknown:
        raise MismatchedInput(
            f"analyze.attention.image_ids: {first_ten(unknown)} not in {annotations.path}",
            "name image ids of the split that is analysed",
        )
    labels = {i: annotations.labels[rows[annotations.box_images[rows] == position[i]]] for i in image_ids}
    empty = [i for i in image_ids if not len(labels[i])]
    if empty:
        raise MismatchedInput(
            f"analyze.attention.image_ids: {first_ten(empty)} show no object",
            "a map is asked about an annotated category",
        )
    rarest = {i: int(labels[i][rarity[labels[i]].argmin()]) for i in image_ids}
    return [_subject(annotations, position[i], rarest[i]) for i in image_ids]


def _drawn(
    pairs: np.ndarray, rarity: np.ndarray, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """`count` of the (label, image) pairs in random order: new categories and images first, rarest first."""
    pairs = pairs[rng.permutation(len(pairs))]
    seen_before = np.zeros(len(pairs), dtype=int)  # how often the category came up before in this order
    times: dict[int, int] = {}
    for row, label in enumerate(pairs[:, 0].tolist()):
        seen_before[row] = times[label] = times.get(label, -1) + 1
    chosen: list[tuple[int, int]] = []
    for row in np.lexsort((rarity[pairs[:, 0]], seen_before)):
        label, image = pairs[row].tolist()
        if len(chosen) < count and image not in [i for _, i in chosen]:
            chosen.append((label, image))
    return chosen


def _subject(annotations: Annotations, image: int, label: int) -> Subject:
    inside = annotations.of_image(image)
    is_meant = (annotations.labels[inside] == label) & annotations.trainable[inside]
    return Subject(image, label, annotations.clipped_boxes[inside][is_meant])


def measure(heat: np.ndarray, boxes: np.ndarray) -> Measure:
    """How much of a map (H, W) lies on `boxes` (n, 4) xyxy; pixels belong to a box by their centre."""
    height, width = heat.shape
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros(heat.shape, dtype=bool)
    for x1, y1, x2, y2 in boxes.tolist():
        inside |= (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    total, area = float(heat.sum()), float(inside.mean())
    if total <= 0:
        return Measure(None, area, None)
    return Measure(float(heat[inside].sum()) / total, area, bool(inside.flat[int(heat.argmax())]))


def write_measures(
    path: Path,
    annotations: Annotations,
    letters: Sequence[str] | None,
    subjects: Sequence[Subject],
    maps: Mapping[str, Sequence[np.ndarray]],
    method: tuple[str, str],
) -> None:
    """A row per run and image.

    Args:
        path: the CSV.
        annotations, letters: of the split.
        subjects: of `choose`.
        maps: run -> its maps, one per subject.
        method: grad-cam or eigen-cam, and the layer.
    """
    rows = []
    for run, heats in maps.items():
        for subject, heat in zip(subjects, heats, strict=True):
            found = measure(heat, subject.boxes)
            what = (int(annotations.category_ids[subject.label]), annotations.category_names[subject.label])
            letter = letters[subject.label] if letters else ""
            values = (found.share_in_boxes, found.share_of_area, found.peak_in_boxes)
            rows.append((run, int(annotations.image_ids[subject.image]), *what, letter, *method, *values))
    write_table(path, (*COLUMNS, *MEASURES), rows)


def attention_figure(
    annotations: Annotations,
    images: Path,
    choice: Choice,
    maps: Mapping[str, Sequence[np.ndarray]],
    method: tuple[str, str],
    path: Path,
) -> None:
    """A row per image: the image, then the map of each run over it, bright where it is high.

    Args:
        annotations, images: the split.
        choice: of `choose`, at least one image.
        maps: run -> its maps (H, W), each drawn up to its own largest value.
        method: grad-cam or eigen-cam, and the layer.
        path: a PNG; an SVG is written beside it.
    """
    subjects = choice.subjects
    figure = Figure(figsize=(2.7 * (1 + len(maps)) + 0.6, 2.35 * len(subjects) + 0.9), layout="constrained")
    cells = figure.subplots(len(subjects), 1 + len(maps), squeeze=False)
    for row, subject in zip(cells, subjects, strict=True):
        width, height = annotations.sizes_wh[subject.image].tolist()
        pixels = read_image(images / annotations.file_names[subject.image], (width, height))
        name = annotations.category_names[subject.label][:28]
        _cell(row[0], pixels, subject.boxes)
        row[0].set_title(
            f"{name}\nimage {annotations.image_ids[subject.image]}", fontsize=8, parse_math=False
        )
        for ax, (run, heats) in zip(row[1:], maps.items(), strict=True):
            heat = heats[subjects.index(subject)]
            _cell(ax, pixels, subject.boxes)
            if heat.max() > 0:
                opacity = np.clip(0.25 + 0.6 * heat / heat.max(), 0, 1)
                ax.imshow(heat, cmap="inferno", alpha=opacity)
            ax.set_title(f"{run}\n{_said(measure(heat, subject.boxes))}", fontsize=8, parse_math=False)
    figure.suptitle(_title(choice, method), x=0.01, ha="left", fontsize=10)
    save(figure, path, dpi=100, svg=True)


def _title(choice: Choice, method: tuple[str, str]) -> str:
    name = {"grad-cam": "Grad-CAM of the category", "eigen-cam": "Eigen-CAM"}[method[0]]
    which = "given by id" if choice.group is None else f"{GROUP_NAMES[choice.group]}, drawn by the seed"
    said = f"{name} on {method[1].upper()} (dashed: the objects)"
    return f"{said}\ncategories: {which}; each map up to its maximum"


def _said(found: Measure) -> str:
    if found.share_in_boxes is None:
        return "0 everywhere"
    peak = "peak on it" if found.peak_in_boxes else "peak elsewhere"
    return f"{100 * found.share_in_boxes:.0f} % in {100 * found.share_of_area:.0f} % of area, {peak}"


def _cell(ax: Axes, pixels: np.ndarray, boxes: np.ndarray) -> None:
    ax.imshow(pixels)
    ax.set_axis_off()
    for x1, y1, x2, y2 in boxes.tolist():
        for colour, style in (("black", "-"), ("white", (0, (4, 3)))):  # seen on any ground
            ax.add_patch(
                Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=colour, ls=style, lw=1.3)
            )
