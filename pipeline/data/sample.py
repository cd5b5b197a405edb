"""The embedded sample: a rendered, long-tailed detection data set that needs no download.

    train/000001.jpg ... val/000241.jpg ...         with pixels; files are named by image id
    {train,val}_coco.json                           every object
    {train,val}_lvis.json                           what annotators verified, as in LVIS v1
    figures/examples.png                            with pixels

In the LVIS files each image names `negatives_per_image` categories, drawn from those truly absent: AP counts
false positives of a category there and where it is annotated.  Of the categories that repeat in an image the
share `not_exhaustive_fraction` lacks its last object and is listed in not_exhaustive_category_ids.
frequency, image_count and instance_count are those of train, in val too; COCO and LVIS files each count the
objects they hold.

The same settings and seed give the same bytes, and the json do not depend on whether pixels are drawn.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.render import draw_scene
from pipeline.data.sample_plan import TRAIN, VAL, SampleSettings, assign, frequency_letters, stream
from pipeline.data.sample_records import AnnotationFile, annotation, category_records, encode, file_name
from pipeline.data.sample_scene import VERIFICATION, Scene, plan_scene
from pipeline.data.sample_sheet import write_sheet
from pipeline.errors import SettingsError, UsageError, first_ten

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Tally:
    """What one split holds per category: (C,) int64 each, counted while writing."""

    images: np.ndarray
    coco_objects: np.ndarray
    lvis_objects: np.ndarray


@dataclass(frozen=True)
class Verification:
    """What the annotators of an LVIS image checked and what they left out."""

    negatives: list[int]  # category ids
    not_exhaustive: list[int]  # category ids
    omitted: frozenset[int]  # positions of objects in the scene


def write_sample(
    folder: Path,
    settings: SampleSettings,
    seed: int,
    *,
    pixels: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write the data set into an existing empty folder.

    Args:
        folder: the module docstring lists what appears in it.
        settings: size, tail and difficulty.
        seed: of every draw, not negative.
        pixels: False writes the four json files only.
        on_progress: called after each image with the images done and the images in all.

    Returns:
        Counts for the log: images and objects of each split, categories in all and of each frequency, and
        objects that the LVIS files leave out.

    Raises:
        UsageError: the seed is negative.
        SettingsError: so many large objects were asked for that a category found too little room.
    """
    if seed < 0:
        raise UsageError(f"the seed must not be negative, but it is {seed}", "choose 0 or more")

    def report(done: int) -> None:
        if on_progress is not None:
            on_progress(done, settings.train_images + settings.val_images)

    train = _write_split(folder, settings, seed, TRAIN, None, pixels, report)
    val = _write_split(folder, settings, seed, VAL, train, pixels, report)
    _refuse_lost_categories(train, val, settings)
    if pixels:
        write_sheet(folder, settings, seed)
    letters = frequency_letters(train.images, settings)
    return {
        "train_images": settings.train_images,
        "val_images": settings.val_images,
        "train_objects": int(train.coco_objects.sum()),
        "val_objects": int(val.coco_objects.sum()),
        "unannotated_in_lvis": sum(int((t.coco_objects - t.lvis_objects).sum()) for t in (train, val)),
        "categories": settings.categories,
        "rare": letters.count("r"),
        "common": letters.count("c"),
        "frequent": letters.count("f"),
    }


def _refuse_lost_categories(train: Tally, val: Tally, settings: SampleSettings) -> None:
    """Objects without room are left out; that must not cost a category its place in either split."""
    short = (train.images == 0) | (val.coco_objects < settings.val_instances)
    if short.any():
        ids: list[object] = [int(label) + 1 for label in np.flatnonzero(short)]
        raise SettingsError(
            f"no room for enough objects of categories {first_ten(ids)} in the sample",
            "lower objects_per_image or object_size_px, or enlarge the images",
        )


def _write_split(
    folder: Path,
    settings: SampleSettings,
    seed: int,
    split: int,
    train: Tally | None,
    pixels: bool,
    report: Callable[[int], None],
) -> Tally:
    """Write both json files of a split and its images; `train` is None for train itself."""
    assignment = assign(settings, seed, split)
    tally = Tally(*(np.zeros(settings.categories, dtype=np.int64) for _ in range(3)))
    first_id = 1 if split == TRAIN else settings.train_images + 1
    if pixels:
        (folder / SPLITS[split]).mkdir()
    with contextlib.ExitStack() as stack:
        paths = [folder / f"{SPLITS[split]}_{family}.json" for family in ("coco", "lvis")]
        coco, lvis = (AnnotationFile(stack.enter_context(path.open("w", encoding="ascii"))) for path in paths)
        for index in range(len(assignment.offsets) - 1):
            scene = plan_scene(settings, seed, split, index, assignment.of_image(index))
            verified = verify(scene, settings, stream(seed, split, index, VERIFICATION))
            _add_image(coco, lvis, tally, scene, verified, first_id + index)
            if pixels:
                image = Image.fromarray(draw_scene(scene, settings, seed, split, index))
                path = folder / SPLITS[split] / file_name(first_id + index)
                image.save(path, quality=settings.jpeg_quality)
            report(first_id + index)
        known = train or tally
        letters = frequency_letters(known.images, settings)
        coco.finish(category_records(known.images, known.coco_objects, letters))
        lvis.finish(category_records(known.images, known.lvis_objects, letters))
    return tally


def verify(scene: Scene, settings: SampleSettings, rng: np.random.Generator) -> Verification:
    """Draw an image's verified absent categories and the objects left out of LVIS (module docstring)."""
    labels = [placed.label for placed in scene.objects]
    present = sorted(set(labels))
    absent = np.delete(np.arange(settings.categories), present)
    count = min(settings.negatives_per_image, len(absent))
    negatives = np.sort(rng.choice(absent, size=count, replace=False)) + 1
    repeated = [label for label in present if labels.count(label) > 1]
    left = rng.random(len(repeated)) < settings.not_exhaustive_fraction
    partial = [label for label, chosen in zip(repeated, left, strict=True) if chosen]
    last = {label: position for position, label in enumerate(labels)}
    omitted = frozenset(last[label] for label in partial)
    return Verification(negatives.tolist(), [label + 1 for label in partial], omitted)


def _add_image(
    coco: AnnotationFile,
    lvis: AnnotationFile,
    tally: Tally,
    scene: Scene,
    verified: Verification,
    image_id: int,
) -> None:
    """Write an image and its objects to both files, and count them."""
    image = {"id": image_id, "file_name": file_name(image_id), "width": scene.width, "height": scene.height}
    federated = {
        "neg_category_ids": verified.negatives,
        "not_exhaustive_category_ids": verified.not_exhaustive,
    }
    coco.add_image(image)
    lvis.add_image(image | federated)
    first_id = int(tally.coco_objects.sum()) + 1
    for position, placed in enumerate(scene.objects):
        tally.coco_objects[placed.label] += 1
        text = encode(annotation(placed, first_id + position, image_id))
        coco.add_annotation(text)
        if position not in verified.omitted:
            tally.lvis_objects[placed.label] += 1
            lvis.add_annotation(text)
    for label in {placed.label for placed in scene.objects}:
        tally.images[label] += 1
