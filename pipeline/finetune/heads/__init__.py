"""RoI heads that a method needs beside its loss, found as `twodrcl.MemoryRoIHead` and so on.

They are subclasses of mmdet's heads, and so this package imports mmdet, which takes seconds: what only needs
losses imports `pipeline.finetune`.  LOCE's and BACL's heads differ from mmdet's in training only: what
`UNPUBLISHED` begins is no part of a published detector, whose config names mmdet's StandardRoIHead.
"""

import pipeline.detectors.operators  # noqa: F401  answers for mmcv's operators: before mmdet.models

# isort: split
from pipeline.finetune.heads.class_features import UNPUBLISHED
from pipeline.finetune.heads.hallucination_head import HallucinationRoIHead
from pipeline.finetune.heads.iterative_head import NEW_LAYERS, IterativeRoIHead
from pipeline.finetune.heads.memory_head import MemoryRoIHead

__all__ = ["NEW_LAYERS", "UNPUBLISHED", "HallucinationRoIHead", "IterativeRoIHead", "MemoryRoIHead"]
