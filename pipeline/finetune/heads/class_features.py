"""What the second stages of LOCE and BACL add to a RoI head: features of boxes around every object.

Both keep, class by class, something of these features, and give some of it back to the box head in every
step.  The boxes of an image, and what is given back for it, follow from the key of its draw, as its RoI
samples do (`pipeline.detectors.sampling`): neither a resume nor the number of processes changes them.  The
official codes draw for each process, whose two images they do not look at: with more processes they give back
more, and what they count of it is another state.

R = boxes around the objects of all images, 16 each; F = shape of a RoI feature (256, 7, 7).
"""
# ruff: noqa: TID251  the heads are subclasses of mmdet's

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.detectors.sampling import KEY
from pipeline.errors import UsageError
from pipeline.finetune.head_contract import BoxHeadLoss
from pipeline.finetune.step_draws import seeded_generator
from pipeline.finetune.weak_classes import NUM_JITTERED, jittered_boxes

UNPUBLISHED = "roi_head.class_features."  # of tensors that only training needs, in a detector's state dict


class AroundObjects(NamedTuple):
    """Boxes around the objects of a batch."""

    rois: Tensor  # (R, 5): image, xyxy
    objects: Tensor  # (R, 4): the object's own box
    labels: Tensor  # (R,) int64


def boxes_around_objects(samples: Sequence[DetDataSample]) -> AroundObjects:
    """16 boxes around every annotated object, see `jittered_boxes`.

    Args:
        samples: with gt_instances that carry a draw key; without one torch's global generator draws, as in
            KeyedRandomSampler.
    """
    boxes = []
    for sample in samples:
        height, width = sample.img_shape
        around = jittered_boxes(sample.gt_instances.bboxes, _lengths(sample.gt_instances), (width, height))
        boxes.append(around.flatten(0, 1))  # (G, 16, 4) -> (16 G, 4)
    objects = torch.cat([s.gt_instances.bboxes for s in samples])
    labels = torch.cat([s.gt_instances.labels for s in samples])
    repeated = (values.repeat_interleave(NUM_JITTERED, dim=0) for values in (objects, labels))
    return AroundObjects(bbox2roi(boxes), *repeated)


def _lengths(instances: InstanceData) -> Tensor:
    """(1, 64) numbers in [0, 1): one set for all objects of an image, as in the official codes."""
    generator = _generator("boxes around objects", instances.metainfo.get(KEY))
    return torch.rand(1, 4 * NUM_JITTERED, generator=generator).to(instances.bboxes.device)


def _generator(purpose: str, key: int | None) -> torch.Generator | None:
    # its own words in the key: the samplers of RPN and RoIs draw from the number alone
    return None if key is None else seeded_generator(purpose, int(key))


def draws_of_images(
    sampling_results: Sequence[SamplingResult], num_uniform: Sequence[int], num_normal: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor]:
    """What is drawn for each image of a batch, from its key.

    Args:
        sampling_results: of each image, B in all; of KeyedRandomSampler, else torch's generator draws.
        num_uniform, num_normal: shapes of what one image needs.

    Returns:
        (B, *num_uniform) in [0, 1) and (B, *num_normal) of a standard normal, on the CPU.
    """
    draws = []
    for sampled in sampling_results:
        generator = _generator("class features", getattr(sampled, KEY, None))
        uniform = torch.rand(*num_uniform, generator=generator)
        draws.append((uniform, torch.randn(*num_normal, generator=generator)))
    uniforms, normals = zip(*draws, strict=True)
    return torch.stack(uniforms), torch.stack(normals)  # B x (...) -> (B, ...)


class ClassFeaturesRoIHead(StandardRoIHead):
    """StandardRoIHead that looks at boxes around the objects of a batch before it computes its losses.

    Inference is StandardRoIHead's.

    Attributes:
        class_features: what is kept of the classes, a part of checkpoints; subclasses set it.
    """

    class_features: nn.Module

    def collect(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> None:
        """Take in the objects of a batch.

        Args:
            x: pyramid levels of the batch, the finest first, in float32.
            batch_data_samples: annotated; no objects at all are allowed.

        Where `class_features` is synchronised this is a collective: every process calls it equally often.
        """
        raise NotImplementedError

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: list[InstanceData], batch_data_samples: list[Any]
    ) -> dict[str, Any]:
        """As StandardRoIHead; the batch's objects are collected first, and so are among what is drawn."""
        self.collect(x, batch_data_samples)
        return super().loss(x, rpn_results_list, batch_data_samples)

    def pooled(self, x: Sequence[Tensor], rois: Tensor) -> Tensor:
        """RoIAlign for the box head: (R, 5) -> (R, *F)."""
        return self.bbox_roi_extractor(tuple(x)[: self.bbox_roi_extractor.num_inputs], rois)

    def _require(self, loss: type[BoxHeadLoss]) -> None:
        found = self.bbox_head.loss_cls
        if not isinstance(found, loss):
            raise UsageError(
                f"{type(self).__name__} works with {loss.__name__}, but loss_cls is {type(found).__name__}",
                f"set loss_cls to twodrcl.{loss.__name__}, or take mmdet's StandardRoIHead",
            )
