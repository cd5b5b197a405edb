"""Running a detector over images: boxes, scores, labels and masks in stored pixels.

Three things happen at once: loader processes decode and resize the next batches, the model runs one, and a
thread brings the results of the one before to the CPU.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from pycocotools import mask as mask_api
from torch import Tensor, nn

from pipeline.data.annotations import Annotations
from pipeline.data.handover import Handover
from pipeline.data.photometric import normalise, on_canvas, to_float
from pipeline.detectors.inference_views import TestViews, loader_of, padded_wh, runs_of_one_canvas
from pipeline.detectors.one_stage import in_parts
from pipeline.engine.failures import ending_loaders, explained
from pipeline.errors import TwoDRCLError

UNREAD = 2  # batches whose results may be on their way to the CPU


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
    workers: int = 0,
) -> Iterator[Detections]:
    """Detections of every image, in order.

    Args:
        model: a MMDetection detector in eval mode on `device`.
        annotations: names and sizes of the images.
        images: their folder.
        test_wh: long and short side that an image is resized to fit.
        device: where the model is.
        order: positions of the images, default as annotated.
        batch: images forwarded together, if they come one after the other and fill the same canvas; the
            results do not depend on it beyond float rounding.
        workers: loader processes; 0 decodes in this one.  The results do not depend on it.

    Raises:
        MissingInput, InputError: an image is absent, damaged or of another size than annotated.
    """
    positions = range(len(annotations.image_ids)) if order is None else order
    batches = runs_of_one_canvas(annotations.sizes_wh, positions, test_wh, batch)
    return detect_batches(model, annotations, images, test_wh, device, batches, workers=workers)


def detect_batches(
    model: nn.Module,
    annotations: Annotations,
    images: Path,
    test_wh: tuple[int, int],
    device: torch.device,
    batches: Sequence[Sequence[int]],
    *,
    workers: int,
    bf16: bool = False,
) -> Iterator[Detections]:
    """Detections of the images of each batch, batch after batch.

    Args:
        batches: positions of images that fill the same canvas (`batches_of_one_canvas`).
        bf16: backbone and neck in bfloat16; heads, boxes and NMS stay float32.
        model, annotations, images, test_wh, device, workers: as for `detect`.

    Raises:
        MissingInput, InputError: as `detect`.
        MachineFailed: the GPU's memory, or a loader process, gave out.
    """
    handover = Handover(workers)
    loader = loader_of(TestViews(annotations, images, test_wh), batches, workers, handover)
    unread: deque[Future[list[Detections]]] = deque()
    problem: TwoDRCLError | None = None
    with ThreadPoolExecutor(1) as reader, ending_loaders(), explained(lambda: "detecting", _memory_hint):
        # no name for the iterator: an error's traceback would keep it, and its processes, to Python's end
        for positions, views in zip(batches, map(handover.unpacked, loader), strict=True):
            if isinstance(views, TwoDRCLError):
                problem = views
                break
            sizes_wh = annotations.sizes_wh[positions]
            results = _forward(model, views, sizes_wh, device, bf16)
            unread.append(reader.submit(_read_results, positions, results, sizes_wh))
            if len(unread) == UNREAD:
                yield from unread.popleft().result()
        for future in unread:
            yield from future.result()
    if problem is not None:  # after all that came before it
        raise problem


def _memory_hint() -> str:
    return "set a smaller long_side and short_sides, or use a larger GPU"


def _forward(
    model: Any, views: Sequence[np.ndarray], sizes_wh: np.ndarray, device: torch.device, bf16: bool
) -> list[Any]:
    """MMDetection's instances of each view, on the device, in stored pixels."""
    shapes_wh = [(view.shape[1], view.shape[0]) for view in views]
    canvas = padded_wh(shapes_wh[0])
    samples = [_sample(size, shape, canvas) for size, shape in zip(sizes_wh, shapes_wh, strict=True)]
    with torch.inference_mode():
        batch = on_canvas([normalise(to_float(view, device)) for view in views], canvas)
        if not bf16:
            return [sample.pred_instances for sample in model.predict(batch, samples, rescale=True)]
        parts = in_parts(model)
        pyramid: tuple[Tensor, ...] = parts.encoder.pyramid(parts.encoder.trunk(batch, True), True)
        return parts.predict(pyramid, samples)


def _sample(size_wh: np.ndarray, view_wh: tuple[int, int], canvas: tuple[int, int]) -> DetDataSample:
    width, height = view_wh
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


def _read_results(positions: Sequence[int], results: Sequence[Any], sizes_wh: np.ndarray) -> list[Detections]:
    """Wait for the device and bring the results of one batch to the CPU."""
    return [_detections(*one) for one in zip(positions, results, sizes_wh, strict=True)]


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
