"""The contact sheet of the sample: some train images as stored, and a row with the rarest categories.

Each object has its box, name and frequency letter; the colour repeats the letter.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.sample_plan import TRAIN, SampleSettings, assign, frequency_letters
from pipeline.data.sample_records import file_name
from pipeline.data.sample_scene import Scene, plan_scene
from pipeline.data.sample_shapes import kind_of

COLUMNS, ROWS = 4, 3  # of ordinary images; one more row shows the tail
CELL, TITLE, MARGIN = 320, 26, 8  # pixels
COLOURS = {"f": (86, 180, 233), "c": (240, 228, 66), "r": (255, 140, 60)}


def write_sheet(folder: Path, settings: SampleSettings, seed: int) -> None:
    """Draw figures/examples.png from the images in `folder`/train; their scenes are planned again."""
    assignment = assign(settings, seed, TRAIN)
    image = np.repeat(np.arange(settings.train_images), np.diff(assignment.offsets))
    image, label = np.unique(np.stack([image, assignment.labels]), axis=1)
    counts = np.bincount(label, minlength=settings.categories)
    letters = frequency_letters(counts, settings)
    tail = _tail_images(image, label, counts)
    others = [i for i in range(settings.train_images) if i not in tail][: COLUMNS * ROWS]
    rows = -(-len(others) // COLUMNS)
    cells = [(i, divmod(k, COLUMNS), f"train image {i + 1}") for k, i in enumerate(others)]
    cells += [(i, (rows, k), title) for k, (i, title) in enumerate(tail.items())]
    size = (COLUMNS * (CELL + MARGIN) + MARGIN, (rows + 1) * (CELL + TITLE) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    for index, (row, column), title in cells:
        left, top = MARGIN + column * (CELL + MARGIN), row * (CELL + TITLE)
        scene = plan_scene(settings, seed, TRAIN, index, assignment.of_image(index))
        ImageDraw.Draw(sheet).text((left, top + 6), title, fill="black", font=ImageFont.load_default(14))
        path = folder / "train" / file_name(index + 1)
        sheet.paste(_annotated(path, scene, letters), (left, top + TITLE))
    (folder / "figures").mkdir()
    sheet.save(folder / "figures" / "examples.png")


def _tail_images(image: np.ndarray, label: np.ndarray, counts: np.ndarray) -> dict[int, str]:
    """The first COLUMNS images that show the rarest categories, rarest first, each with its title."""
    found: dict[int, str] = {}
    for rare in np.argsort(counts, kind="stable").tolist():
        for index in image[label == rare].tolist():
            if len(found) < COLUMNS:
                found.setdefault(index, f"{kind_of(rare).name}: {counts[rare]} train images")
    return found


def _annotated(path: Path, scene: Scene, letters: list[str]) -> Image.Image:
    """The stored image enlarged to the cell, with boxes and names."""
    scale = CELL / max(scene.width, scene.height)
    with Image.open(path) as stored:
        size = (round(scene.width * scale), round(scene.height * scale))
        picture = stored.convert("RGB").resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    for placed in scene.objects:
        letter = letters[placed.label]
        box = [scale * side for side in placed.box]
        draw.rectangle(box, outline=COLOURS[letter], width=2)
        text = f"{kind_of(placed.label).name} {letter}"
        around = draw.textbbox((0, 0), text, font=font)
        x = max(0.0, min(box[0], size[0] - around[2] - 2))
        y = max(0.0, box[1] - around[3] - 2)
        draw.rectangle([x, y, x + around[2] + 2, y + around[3] + 2], fill=COLOURS[letter])
        draw.text((x + 1, y), text, fill="black", font=font)
    return picture
