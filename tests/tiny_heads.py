"""RoI heads of the smallest real detector (R18, FPN of 32, 4 classes), on pyramids of random numbers.

Two images on a canvas of 96 x 64 px; the second is smaller, and padded.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import pipeline.finetune.heads  # noqa: F401  registers them
from pipeline.data.targets import Target
from pipeline.detectors.box_head import training_config
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.two_stage import data_sample
from pipeline.finetune.method import ClassCounts
from pipeline.finetune.methods import get_method
from pipeline.finetune.step_draws import seeded_generator
from pipeline.settings import build

# isort: split
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

CLASSES = 4
CHANNELS = 32
CANVAS_WH = (96, 64)
COUNTS = ClassCounts(image_counts=[40, 2, 9, 1], instance_counts=[90, 2, 20, 1], num_images=50)
SETTINGS = {
    "depth": 18,
    "stem_channels": 16,
    "norm": "gn",
    "fpn_channels": CHANNELS,
    "fc_channels": 24,
    "finest_scale": 14,
    "roi_samples": 16,
}


def published_config(method: str, kind: str = "faster-rcnn", **roi_head: Any) -> dict[str, Any]:
    """With the loss of a method; `roi_head` replaces settings of mmdet's StandardRoIHead."""
    settings = build(DetectorSettings, {"type": kind, **SETTINGS}, "detector")
    model = model_config(settings, CLASSES, box_head=get_method(method).bbox_head(CLASSES, COUNTS))
    model["roi_head"] |= roi_head
    return model


def tiny_config(method: str, kind: str = "faster-rcnn", **roi_head: Any) -> dict[str, Any]:
    """`published_config` as it is trained."""
    return training_config(published_config(method, kind, **roi_head))


def tiny_head(method: str, kind: str = "faster-rcnn", *, seed: int = 0, **roi_head: Any) -> Any:
    """The RoI head of `tiny_config`, ready to train; scores are far from uniform from the start."""
    head = build_model(tiny_config(method, kind, **roi_head), seed).roi_head.train()
    with torch.no_grad():
        head.bbox_head.fc_cls.weight *= 30
    return head


def sample(boxes: list[list[float]], labels: list[int], size_wh: tuple[int, int], key: int) -> DetDataSample:
    """Annotated boxes with triangles as masks."""
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    corners = [[np.array([x1, y1, x2, y1, (x1 + x2) / 2, y2])] for x1, y1, x2, y2 in boxes]
    target = Target(array, np.array(labels, dtype=np.int64), size_wh, key, corners)
    return data_sample(target, CANVAS_WH, torch.device("cpu"), with_mask=True)


def two_images() -> list[DetDataSample]:
    """Two objects of class 2 and one of class 0, then one of class 3 in a corner."""
    first = [[10.0, 12, 40, 50], [30.5, 8, 90, 33], [4, 4, 24, 24]]
    return [
        sample(first, [2, 0, 2], (96, 64), key=11),
        sample([[0.0, 0, 50, 58]], [3], (80, 60), key=12),
    ]


def without_objects() -> list[DetDataSample]:
    return [sample([], [], (96, 64), key=13), sample([], [], (80, 60), key=14)]


def pyramid(seed: int = 0) -> tuple[Tensor, ...]:
    """P2..P6 of two images."""
    generator = torch.Generator().manual_seed(seed)
    width, height = CANVAS_WH
    sizes = [(max(height // s, 1), max(width // s, 1)) for s in (4, 8, 16, 32, 64)]
    return tuple(torch.randn(2, CHANNELS, *size, generator=generator) for size in sizes)


def proposals(number: int = 30, seed: int = 0) -> list[InstanceData]:
    """As mmdet's RPN gives them to the RoI head, which changes them."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, number, 2, generator=generator) * 40
    side = 8 + torch.rand(2, number, 2, generator=generator) * torch.tensor([40.0, 16.0])
    boxes = torch.cat([corner, corner + side], dim=2)
    return [
        InstanceData(bboxes=b, scores=torch.ones(number), labels=torch.zeros(number).long()) for b in boxes
    ]


def sampled_rois(head: Any, samples: list[DetDataSample], number: int = 30) -> list[Any]:
    """What the head's `loss` samples, which has drawn by the images' keys."""
    results = []
    for found, annotated in zip(proposals(number), samples, strict=True):
        found.priors = found.pop("bboxes")
        instances = annotated.gt_instances
        assigned = head.bbox_assigner.assign(found, instances, annotated.ignored_instances)
        results.append(head.bbox_sampler.sample(assigned, found, instances))
    return results


def rois_of(sampled: list[Any]) -> Tensor:
    """(N, 5): image, xyxy."""
    rows = [[i, *box] for i, one in enumerate(sampled) for box in one.priors.tolist()]
    return torch.tensor(rows).reshape(-1, 5)


def labels_of(sampled: list[Any]) -> Tensor:
    """(N,): objects first, in every image."""
    rows = [[*one.pos_gt_labels.tolist(), *[CLASSES] * len(one.neg_inds)] for one in sampled]
    return torch.tensor([label for row in rows for label in row], dtype=torch.long)


def boxes_around(samples: list[DetDataSample]) -> tuple[Tensor, Tensor, list[int]]:
    """RoIs (R, 5), their objects (R, 4) and labels, side by side in a loop."""
    rois, objects, labels = [], [], []
    for image, annotated in enumerate(samples):
        instances = annotated.gt_instances
        key = instances.metainfo["draw_key"]
        lengths = torch.rand(16, 4, generator=seeded_generator("boxes around objects", key))
        height, width = annotated.img_shape
        for box, label in zip(instances.bboxes.tolist(), instances.labels.tolist(), strict=True):
            size = [box[2] - box[0], box[3] - box[1]] * 2
            for number in range(16):
                signs = [1 if number & bit else -1 for bit in (8, 4, 2, 1)]
                sides = [
                    min(max(b + s * u * z / 6, 0), limit)
                    for b, s, u, z, limit in zip(
                        box, signs, lengths[number].tolist(), size, [width, height] * 2, strict=True
                    )
                ]
                rois.append([image, *sides])
                objects.append(box)
                labels.append(label)
    return torch.tensor(rois).reshape(-1, 5), torch.tensor(objects).reshape(-1, 4), labels
