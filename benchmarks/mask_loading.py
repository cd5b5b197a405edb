"""Loading LVIS masks: polygons kept until the RoI crop, over MMDetection's bitmaps, in one interleaved run.

    python benchmarks/mask_loading.py                       # 24 images of 640 x 480 with 12 objects each

Images are synthetic, their polygons have 60 corners on average as LVIS's do, and both ways resize to the same
sizes and flip the same share.  What the masks cost is measured twice: from the annotation to what reaches the
training process (polygons; a stack of bitmaps), and as the difference that masks make to a whole sample,
where the image's own decoding and resizing is paid by both.  `through a worker` is the wall time per image of
a DataLoader with one worker, which also hands the samples to the training process.  The last line is what the
mask head pays later for the targets of 128 RoIs, on the CPU: cut from polygons, or from bitmaps, which a GPU
would do faster.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import pipeline.detectors  # the operators come first
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.draws import Draw, collate_as_is, generator
from pipeline.data.single_view import SingleViewDataset
from pipeline.data.targets import target_of
from pipeline.data.views import draw_geometry

assert pipeline.detectors
WIDTH, HEIGHT, OBJECTS, CORNERS, SEED = 640, 480, 12, 60, 0
SHORT_SIDES, LONG_SIDE, FLIP = (640, 672, 704, 736, 768, 800), 1333, 0.5
ROIS, MASK_SIZE = 128, 28


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        annotations = _write(Path(folder), args.images)
        ways = {**_ours(annotations, Path(folder)), **_mmdet(annotations, Path(folder))}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        order = np.random.default_rng(SEED)
        for one_round in range(args.rounds + 1):  # the first one warms up
            for image in range(args.images):
                for name in order.permutation(list(ways)).tolist():  # each leaves the next one a cold cache
                    way = ways[name]
                    started = time.perf_counter()
                    way(image)
                    if one_round:
                        seconds[name].append(time.perf_counter() - started)
            for name in ("sample, polygons", "sample, bitmaps"):
                elapsed = _through_a_worker(ways[name], args.images)
                seconds.setdefault(f"worker, {name}", []).append(elapsed)
        targets = _target_ms(annotations, Path(folder))
    _print(args, {name: 1e3 * statistics.median(values) for name, values in seconds.items()}, targets)


class _Way(Dataset[Any]):
    """One way of loading as a dataset of all images, three times over: starting a worker shall weigh less."""

    def __init__(self, way: Callable[[int], Any], images: int) -> None:
        self.way, self.images = way, images

    def __len__(self) -> int:
        return 3 * self.images

    def __getitem__(self, index: int) -> Any:
        return self.way(index % self.images)


def _through_a_worker(way: Callable[[int], Any], images: int) -> float:
    """Seconds per image, from the first batch on."""
    batches = iter(DataLoader(_Way(way, images), batch_size=2, num_workers=1, collate_fn=collate_as_is))
    next(batches)
    started = time.perf_counter()
    count = sum(len(batch) for batch in batches)
    return (time.perf_counter() - started) / count


def _print(args: argparse.Namespace, ms: dict[str, float], targets: dict[str, float]) -> None:
    print(
        f"{args.images} images of {WIDTH} x {HEIGHT}, {OBJECTS} objects; medians of {args.rounds} rounds, ms"
    )
    rows = {
        "whole sample with masks": (ms["sample, polygons"], ms["sample, bitmaps"]),
        "whole sample through a worker": (ms["worker, sample, polygons"], ms["worker, sample, bitmaps"]),
        "whole sample without": (ms["sample, ours"], ms["sample, mmdet"]),
        "masks alone": (ms["polygons"], ms["bitmaps"]),
        "difference of whole samples": (
            ms["sample, polygons"] - ms["sample, ours"],
            ms["sample, bitmaps"] - ms["sample, mmdet"],
        ),
        f"targets of {ROIS} RoIs": (targets["polygons"], targets["bitmaps"]),
    }
    print(f"{'':30s}{'polygons':>10s}{'bitmaps':>10s}{'ratio':>8s}")
    for name, (ours, theirs) in rows.items():
        print(f"{name:30s}{ours:10.2f}{theirs:10.2f}{theirs / ours:8.1f}")
    ratio = rows["masks alone"][1] / rows["masks alone"][0]
    print(f"goal, what masks cost at most a tenth: {'reached' if ratio >= 10 else 'NOT reached'}")
    most = ms["sample, bitmaps"] / ms["sample, ours"]
    print(f"whole samples cannot differ by more than {most:.1f} x: both decode and resize the image")


def _write(folder: Path, count: int) -> Annotations:
    """Images of smooth noise, whose JPEGs are as large as photographs', and an LVIS-like json."""
    rng = np.random.default_rng(SEED)
    images, annotations = [], []
    for number in range(1, count + 1):
        coarse = rng.integers(256, size=(HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.jpg"), pixels)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        for _ in range(OBJECTS):
            annotations.append(_annotation(len(annotations) + 1, number, rng))
    path = folder / "lvis.json"
    categories = [{"id": 1, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_annotations(path)


def _annotation(number: int, image: int, rng: np.random.Generator) -> dict[str, Any]:
    """A star-shaped outline: LVIS's objects are mostly small, some fill half of the image."""
    radius = np.exp(rng.uniform(np.log(8), np.log(160), 2))
    center = rng.uniform(radius, np.array([WIDTH, HEIGHT]) - radius)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 3 + int(rng.gamma(2, CORNERS / 2))))
    reach = rng.uniform(0.6, 1, len(angles))[:, None]
    xy = (center + radius * reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2)
    x, y = xy.min(axis=0)
    w, h = xy.max(axis=0) - (x, y)
    return {
        "id": number, "image_id": image, "category_id": 1, "segmentation": [xy.ravel().tolist()],
        "area": float(w * h / 2), "bbox": [float(x), float(y), float(w), float(h)],
    }  # fmt: skip


def _ours(annotations: Annotations, folder: Path) -> dict[str, Callable[[int], Any]]:
    """Whole samples with and without polygons, and the polygons alone."""

    def dataset(with_polygons: bool) -> SingleViewDataset:
        return SingleViewDataset(
            annotations, folder, SHORT_SIDES, LONG_SIDE, flip=FLIP, seed=SEED, with_polygons=with_polygons
        )

    with_polygons, without = dataset(True), dataset(False)

    def polygons(image: int) -> Any:
        random = generator(SEED, _draw(image), "view_query")
        geometry = draw_geometry((WIDTH, HEIGHT), SHORT_SIDES, LONG_SIDE, random, flip=FLIP)
        return target_of(annotations, image, geometry, 0, with_polygons=True)

    return {
        "sample, polygons": lambda image: with_polygons[_draw(image)],
        "sample, ours": lambda image: without[_draw(image)],
        "polygons": polygons,
    }


def _draw(image: int) -> Draw:
    return Draw(epoch=0, index=image, image=image, canvas_wh=(LONG_SIDE, LONG_SIDE))


def _mmdet(annotations: Annotations, folder: Path) -> dict[str, Callable[[int], Any]]:
    """MMDetection's own pipeline with and without masks, and what the masks take of it."""
    from mmcv.transforms import Compose, LoadImageFromFile, RandomChoiceResize
    from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip

    def pipeline_with(masks: bool) -> Any:
        scales = [(LONG_SIDE, side) for side in SHORT_SIDES]
        return Compose(
            [
                LoadImageFromFile(),
                LoadAnnotations(with_bbox=True, with_mask=masks, poly2mask=True),
                RandomChoiceResize(scales=scales, resize_type="mmdet.Resize", keep_ratio=True),
                RandomFlip(prob=FLIP),
                PackDetInputs(),
            ]
        )

    infos = [_info(annotations, folder, image) for image in range(len(annotations.image_ids))]
    compose = {masks: pipeline_with(masks) for masks in (True, False)}

    def sample(image: int, masks: bool) -> Any:
        np.random.seed(image)  # noqa: NPY002  mmcv draws from the global generator
        return compose[masks](dict(infos[image]))

    def bitmaps(image: int) -> Any:
        loaded = LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=True)(dict(infos[image]))
        masks = loaded["gt_masks"].rescale((LONG_SIDE, SHORT_SIDES[image % len(SHORT_SIDES)]))
        return masks.flip() if image % 2 else masks

    return {
        "sample, bitmaps": lambda image: sample(image, True),
        "sample, mmdet": lambda image: sample(image, False),
        "bitmaps": bitmaps,
    }


def _info(annotations: Annotations, folder: Path, image: int) -> dict[str, Any]:
    """What MMDetection's datasets hand to their pipeline, the json long parsed."""
    span = annotations.of_image(image)
    return {
        "img_path": str(folder / annotations.file_names[image]),
        "img_id": image,
        "height": HEIGHT,
        "ori_shape": (HEIGHT, WIDTH),
        "width": WIDTH,
        "instances": [
            {
                "bbox": annotations.boxes[row].tolist(),
                "bbox_label": 0,
                "ignore_flag": 0,
                "mask": annotations.polygons(row),
            }
            for row in range(span.start, span.stop)
        ],
    }


def _target_ms(annotations: Annotations, folder: Path) -> dict[str, float]:
    """Milliseconds to cut the mask targets of the RoIs of an image, from polygons and from bitmaps."""
    from mmdet.datasets.transforms import LoadAnnotations
    from mmdet.structures.mask import PolygonMasks

    rng = np.random.default_rng(SEED)
    found: dict[str, list[float]] = {"polygons": [], "bitmaps": []}
    for image in range(min(4, len(annotations.image_ids))):
        info = _info(annotations, folder, image)
        polygons = [[np.asarray(p) for p in instance["mask"]] for instance in info["instances"]]
        kinds = {
            "polygons": PolygonMasks(polygons, HEIGHT, WIDTH),
            "bitmaps": LoadAnnotations(with_bbox=True, with_mask=True)(info)["gt_masks"],
        }
        objects = rng.integers(OBJECTS, size=ROIS)
        boxes = annotations.boxes[annotations.of_image(image)][objects] + rng.normal(0, 2, (ROIS, 4))
        boxes = boxes.clip(0).astype(np.float32)
        for name, masks in kinds.items():
            started = time.perf_counter()
            masks.crop_and_resize(boxes, (MASK_SIZE, MASK_SIZE), objects, "cpu")
            found[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
