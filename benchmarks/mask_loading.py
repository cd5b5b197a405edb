"""Loading LVIS images with masks: polygons kept until the RoI crop, over MMDetection's bitmaps, in one run.

    python benchmarks/mask_loading.py                       # 24 images of 640 x 480 with 13 objects each

Noise with a photograph's file size (about 100 kB); polygons of 60 corners on average, as LVIS's.  Both sides
decode, resize the short side to 800, flip half of the images the same way, and end with masks that a mask
head can cut its targets from, in the process that trains:

worker     what a loader process does to one image: pixels, boxes, masks
loader     the same through a DataLoader with one worker, handing over included: the worker's CPU time and the
           trainer's, until the batch is there, masks padded to the canvas (bitmaps need it, polygons do not)
targets    what the mask head pays later for 128 RoIs, on the CPU; from bitmaps a GPU would do it faster
           than a CPU, after 10 MB per image have been sent there

All are CPU milliseconds per image, medians of the rounds; starting a worker is taken out by the difference
of a long and a short run.  Floats, normalisation and the batch of images are the device's, on both sides.
"""

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from loader import photograph
from torch.utils.data import DataLoader, Dataset

import pipeline.detectors  # the operators come first
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.draws import Draw, generator
from pipeline.data.handover import Handover
from pipeline.data.single_view import SingleViewDataset
from pipeline.data.targets import target_of
from pipeline.data.views import draw_geometry
from pipeline.detectors.two_stage import data_sample

assert pipeline.detectors
WIDTH, HEIGHT, OBJECTS, CORNERS, SEED = 640, 480, 13, 60, 0
SHORT_SIDES, LONG_SIDE, FLIP = (800,), 1333, 0.5
CANVAS_WH = (1088, 800)
ROIS, MASK_SIZE, BATCH = 128, 28, 2
Way = Callable[[int], Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations = _write(folder, args.images)
        size = statistics.mean(path.stat().st_size for path in folder.glob("*.jpg")) / 1000
        ours, theirs = _ours(annotations, folder), _mmdet(annotations, folder)
        rows = {
            name: [_alternating(ours[name], theirs[name], args) for _ in range(args.rounds)]
            for name in ("worker, masks alone", "worker, image alone", "worker")
        }
        handover = Handover(loaders=1)
        ends = (
            (ours["worker"], handover.packed, _our_end(handover)),
            (theirs["worker"], _as_is, _mmdet_end()),
        )
        rows["loader"] = [_through_a_worker(ends, args.images) for _ in range(args.rounds)]
        rows[f"targets of {ROIS} RoIs"] = _target_ms(annotations, folder)
    print(
        f"{args.images} images of {WIDTH} x {HEIGHT} and {size:.0f} kB, {OBJECTS} objects; CPU ms per image"
    )
    print(f"{'':24s}{'polygons':>10s}{'bitmaps':>10s}{'ratio':>8s}")
    for name, pairs in rows.items():
        polygons, bitmaps = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:24s}{polygons:10.2f}{bitmaps:10.2f}{bitmaps / polygons:8.1f}")


def _alternating(ours: Way, theirs: Way, args: argparse.Namespace) -> tuple[float, float]:
    """CPU milliseconds per image of both ways, pass by pass: a loader process does only one of them, and the
    other's memory, given back to the system, would have to be fetched again."""
    spent = []
    for function in (ours, theirs):
        function(0)
        started = time.process_time()
        for image in range(args.images):
            function(image)
        spent.append((time.process_time() - started) / args.images * 1e3)
    return spent[0], spent[1]


class _Way(Dataset[Any]):
    """One way of loading as a dataset that goes through the images several times."""

    def __init__(self, way: Way, images: int, times: int) -> None:
        self.way, self.images, self.times = way, images, times

    def __len__(self) -> int:
        return self.times * self.images

    def __getitem__(self, index: int) -> Any:
        return self.way(index % self.images)


def _through_a_worker(
    ends: Sequence[tuple[Way, Callable[[Any], Any], Callable[[Any], Any]]], images: int
) -> tuple[float, float]:
    """CPU milliseconds per image of worker and trainer, for each (way, collate, end)."""
    found = []
    for way, collate, end in ends:
        short, long = (_cpu_of_loader(_Way(way, images, times), collate, end) for times in (1, 5))
        found.append((long - short) / (4 * images) * 1e3)
    return found[0], found[1]


def _cpu_of_loader(dataset: _Way, collate: Callable[[Any], Any], end: Callable[[Any], Any]) -> float:
    """CPU seconds of this process and of its worker, from its start to its end."""
    started = _cpu()
    for batch in DataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=collate):
        end(batch)
    return _cpu() - started


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _as_is(samples: list[Any]) -> list[Any]:
    return samples


def _our_end(handover: Handover) -> Callable[[Any], None]:
    """What the trainer does with a batch before the mask head: MMDetection's form of each target."""

    def end(batch: Any) -> None:
        for sample in handover.unpacked(batch):
            data_sample(sample.target, CANVAS_WH, torch.device("cpu"), with_mask=True)

    return end


def _mmdet_end() -> Callable[[Any], None]:
    """What MMDetection's preprocessor does with masks: all of a batch get the canvas's size."""
    from mmdet.models.data_preprocessors import DetDataPreprocessor

    preprocessor = DetDataPreprocessor(pad_mask=True, pad_size_divisor=32)

    def end(batch: Any) -> None:
        samples = [sample["data_samples"] for sample in batch]
        for sample in samples:
            sample.set_metainfo({"batch_input_shape": CANVAS_WH[::-1]})
        preprocessor.pad_gt_masks(samples)

    return end


def _write(folder: Path, count: int) -> Annotations:
    """Images and an LVIS-like json."""
    rng = np.random.default_rng(SEED)
    images, annotations = [], []
    for number in range(1, count + 1):
        path, (width, height) = photograph(folder, 3 * number)
        assert (width, height) == (WIDTH, HEIGHT)
        images.append({"id": number, "file_name": path.name, "width": WIDTH, "height": HEIGHT})
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


def _ours(annotations: Annotations, folder: Path) -> dict[str, Way]:
    """Whole samples with and without polygons, and the polygons alone."""

    def dataset(with_polygons: bool) -> SingleViewDataset:
        return SingleViewDataset(
            annotations, folder, SHORT_SIDES, LONG_SIDE, flip=FLIP, seed=SEED, with_polygons=with_polygons
        )

    with_polygons, without = dataset(True), dataset(False)

    def polygons(image: int) -> Any:
        return target_of(annotations, image, _geometry(image), 0, with_polygons=True)

    return {
        "worker": lambda image: with_polygons[_draw(image)],
        "worker, image alone": lambda image: without[_draw(image)],
        "worker, masks alone": polygons,
    }


def _draw(image: int) -> Draw:
    return Draw(epoch=0, index=image, image=image, canvas_wh=CANVAS_WH)


def _geometry(image: int) -> Any:
    random = generator(SEED, _draw(image), "view_query")
    return draw_geometry((WIDTH, HEIGHT), SHORT_SIDES, LONG_SIDE, random, flip=FLIP)


def _mmdet(annotations: Annotations, folder: Path) -> dict[str, Way]:
    """MMDetection's own pipeline with and without masks, and what the masks take of it."""
    from mmcv.transforms import Compose, LoadImageFromFile, RandomChoiceResize
    from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip

    def pipeline_with(masks: bool, flip: bool) -> Any:
        scales = [(LONG_SIDE, side) for side in SHORT_SIDES]
        return Compose(
            [
                LoadImageFromFile(),
                LoadAnnotations(with_bbox=True, with_mask=masks, poly2mask=True),
                RandomChoiceResize(scales=scales, resize_type="mmdet.Resize", keep_ratio=True),
                RandomFlip(prob=float(flip)),
                PackDetInputs(),
            ]
        )

    images = range(len(annotations.image_ids))
    infos, flips = [_info(annotations, folder, i) for i in images], [_geometry(i).flip for i in images]
    compose = {key: pipeline_with(*key) for key in itertools.product((True, False), repeat=2)}

    def bitmaps(image: int) -> Any:
        loaded = LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=True)(dict(infos[image]))
        masks = loaded["gt_masks"].rescale((LONG_SIDE, SHORT_SIDES[0]))
        return masks.flip() if flips[image] else masks

    return {
        "worker": lambda image: compose[True, flips[image]](dict(infos[image])),
        "worker, image alone": lambda image: compose[False, flips[image]](dict(infos[image])),
        "worker, masks alone": bitmaps,
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


def _target_ms(annotations: Annotations, folder: Path) -> list[tuple[float, float]]:
    """CPU milliseconds to cut the mask targets of the RoIs of some images, from polygons and from bitmaps."""
    from mmdet.datasets.transforms import LoadAnnotations
    from mmdet.structures.mask import PolygonMasks

    rng = np.random.default_rng(SEED)
    found = []
    for image in range(min(4, len(annotations.image_ids))):
        info = _info(annotations, folder, image)
        polygons = [[np.asarray(p) for p in instance["mask"]] for instance in info["instances"]]
        kinds = (
            PolygonMasks(polygons, HEIGHT, WIDTH),
            LoadAnnotations(with_bbox=True, with_mask=True)(info)["gt_masks"],
        )
        objects = rng.integers(OBJECTS, size=ROIS)
        boxes = annotations.boxes[annotations.of_image(image)][objects] + rng.normal(0, 2, (ROIS, 4))
        boxes = boxes.clip(0).astype(np.float32)
        spent = []
        for masks in kinds:
            started = time.process_time()
            masks.crop_and_resize(boxes, (MASK_SIZE, MASK_SIZE), objects, "cpu")
            spent.append(1e3 * (time.process_time() - started))
        found.append((spent[0], spent[1]))
    return found


if __name__ == "__main__":
    main()
