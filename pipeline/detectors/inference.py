"""Running a detector over images: boxes, scores, labels and masks in stored pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from pycocotools import mask as mask_api
from torch import nn

from pipeline.data.annotations import Annotations
from pipeline.data.images import read_image
from pipeline.data.photometric import normalise, on_canvas, to_float
from pipeline.data.views import Geometry, limit_wh, resized_wh


@dataclass(frozen=True)
class Detections:
    """What was found in the image at position `image`: n boxes, best first.

    boxes (n, 4) float32 xyxy in stored pixels, inside the image; scores (n,) float32; labels (n,) int64;
    masks: n COCO run-length encodings with text counts, or None for a detector without masks.
    """

    image: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None


def detect(
    model: nn.Module,
    annotations: Annotations,
    images: Path,
    test_wh: tuple[int, int],
    device: torch.device,
    *,
    order: Sequence[int] | None = None,
    batch: int = 1,
) -> Iterator[Detections]:
    """Detections of every image.

    Args:
        model: a MMDetection detector in eval mode on `device`.
        annotations: names and sizes of the images.
        images: their folder.
        test_wh: long and short side that an image is resized to fit.
        device: where the model is.
        order: positions of the images, default as annotated.
        batch: images of equal size forwarded together; the results do not depend on it beyond float rounding.
    """
    positions_in_order = range(len(annotations.image_ids)) if order is None else order
    for positions in _equal_sized(annotations.sizes_wh, positions_in_order, batch):
        geometries = [_test_geometry(annotations.sizes_wh[p], test_wh) for p in positions]
        views = [
            normalise(to_float(g.apply(_read(annotations, images, p)), device))
            for p, g in zip(positions, geometries, strict=True)
        ]
        width, height = geometries[0].size_wh
        canvas = (-(-width // 32) * 32, -(-height // 32) * 32)
        samples = [
            _sample(annotations.sizes_wh[p], g, canvas) for p, g in zip(positions, geometries, strict=True)
        ]
        with torch.inference_mode():
            results = model.predict(on_canvas(views, canvas), samples, rescale=True)
        for position, result in zip(positions, results, strict=True):
            yield _detections(position, result.pred_instances, annotations.sizes_wh[position])


def _equal_sized(sizes_wh: np.ndarray, order: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Runs of consecutive images of one size, at most `batch` long."""
    run: list[int] = []
    for position in order:
        if run and (len(run) == batch or (sizes_wh[position] != sizes_wh[run[-1]]).any()):
            yield run
            run = []
        run.append(int(position))
    if run:
        yield run


def _read(annotations: Annotations, images: Path, position: int) -> np.ndarray:
    width, height = annotations.sizes_wh[position]
    return read_image(images / annotations.file_names[position], (int(width), int(height)))


def _test_geometry(size_wh: np.ndarray, test_wh: tuple[int, int]) -> Geometry:
    wh = (int(size_wh[0]), int(size_wh[1]))
    long, short = test_wh
    return Geometry((0, 0, *wh), resized_wh(wh, short, limit_wh(wh, (short,), long)), flip=False)


def _sample(size_wh: np.ndarray, geometry: Geometry, canvas: tuple[int, int]) -> DetDataSample:
    width, height = geometry.size_wh
    stored = (int(size_wh[1]), int(size_wh[0]))
    return DetDataSample(
        metainfo={
            "ori_shape": stored,
            "img_shape": (height, width),
            "scale_factor": (width / stored[1], height / stored[0]),
            "pad_shape": (canvas[1], canvas[0]),
            "batch_input_shape": (canvas[1], canvas[0]),
        }
    )


def _detections(position: int, instances: Any, size_wh: np.ndarray) -> Detections:
    limits = np.tile(size_wh, 2).astype(np.float32)
    boxes = instances.bboxes.cpu().numpy().astype(np.float32)
    masks = encode_masks(instances.masks.cpu().numpy()) if "masks" in instances else None
    return Detections(
        image=position,
        boxes=np.clip(boxes, 0, limits),  # mmdet clips in the resized image: off by a rounding here
        scores=instances.scores.cpu().numpy().astype(np.float32),
        labels=instances.labels.cpu().numpy().astype(np.int64),
        masks=masks,
    )


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """(n, H, W) bool -> COCO run-length encodings with text counts."""
    encoded: Sequence[dict[str, Any]] = mask_api.encode(
        np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)
    )
    return [{"size": [int(v) for v in r["size"]], "counts": r["counts"].decode("ascii")} for r in encoded]
