"""A step in parts, where a process's share of the batch does not fit: gradients add up, then one update.

    L = mean over parts of L_part,  L_part of LCL = parts * (sum over the part's boxes) / (boxes of the step)

So every term equals that of the batch at once: HCL, AR and SR, means over images, and LCL, the mean over all
valid boxes.  The keys of all parts are enqueued after the update, in the order of the images.  Two things are
of a part: the batch statistics of the projectors (`contrast.norm: none` has none), and L_det's normalisers,
as MMDetection's are of a process.

Of P parts, part p has the images p, p + P, p + 2 P, ... of a share: then it has the same images of the global
batch on any number of processes, and so the same batch statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.pretrain.settings import PretrainSettings
from pipeline.pretrain.views import PretrainSample


@dataclass(frozen=True)
class Part:
    """Some samples of a process's share of a step.

    Args:
        samples: every P-th of the share.
        boxes: valid boxes of the whole share.
    """

    samples: Sequence[PretrainSample]
    boxes: int


def parts_of(samples: Sequence[PretrainSample], count: int) -> list[Part]:
    """Cut a share, which `share_of` has found to divide, into `count` equal parts."""
    boxes = sum(int(sample.boxes.valid.sum()) for sample in samples)
    return [Part(samples[number::count], boxes) for number in range(count)]


def in_order(parts: Sequence[Tensor], per_image: int) -> Tensor:
    """Rows of the parts of a share, in the order of its images.

    Args:
        parts: (b m, ...) each, with m rows of each of its b images.
        per_image: m.

    Returns:
        (b P m, ...).
    """
    if len(parts) == 1:
        return parts[0]  # five operations less, as often as there are columns
    # P x (b m, ...) -> (P, b, m, ...) -> (b, P, m, ...) -> (b P m, ...)
    return torch.stack(list(parts)).unflatten(1, (-1, per_image)).transpose(0, 1).flatten(0, 2)


def part_statistics(settings: PretrainSettings) -> list[str]:
    """What a step in parts does differently from the batch at once, if anything."""
    has_norm = settings.contrast.norm == "batch" and {"hcl", "lcl"} & set(settings.terms)
    differs = ["batch norm of the projectors (contrast.norm: none has none)"] if has_norm else []
    differs += ["the normalisers of L_det"] if "det" in settings.terms else []
    if settings.accumulate == 1 or not differs:
        return []
    images = settings.batch_size // settings.accumulate
    return [f"{' and '.join(differs)} see {images} images at a time, all else the whole batch"]
