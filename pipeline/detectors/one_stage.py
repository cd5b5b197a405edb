"""ATSS in the parts that 2DRCL names: trunk, pyramid, box features, losses.

A one-stage detector has no box layers that LCL (eq. 2) could contrast.  For pre-training it gets a small RoI
branch of its own: RoIAlign on P3..P7 and two layers, as wide as a two-stage detector's (`fc_channels`).  It
trains by LCL alone, and through it LCL reaches pyramid and backbone; it is no part of the detector that is
published.

Shapes: B images, M boxes per image, F width of the branch.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.data.targets import Target
from pipeline.detectors.atss import STRIDES
from pipeline.detectors.build import roi_extractor_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.two_stage import Encoder, Trunk, TwoStageModel, as_scalar, data_sample

POOLED = 7  # cells on each side, as in a two-stage detector
DIVISOR = 32  # of the padded sides of an image, as MMDetection's preprocessor has them


class RoIBranch(nn.Module):
    """RoIAlign and two layers, initialised as mmdet's box heads are, from torch's global generator.

    The level of a box follows two-stage detectors' rule, which gives P4 to 224 px; smaller ones share P3.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        # P3 is the finest level here, one above P2; all levels, so that none waits for a gradient
        extractor = roi_extractor_config(settings.fpn_channels, 2 * settings.finest_scale, POOLED)
        self.roi_extractor: nn.Module = MODELS.build({**extractor, "featmap_strides": list(STRIDES)})
        widths = (settings.fpn_channels * POOLED**2, settings.fc_channels, settings.fc_channels)
        self.shared_fcs = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        for layer in self.shared_fcs:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class OneStageModel(nn.Module):
    """The detector with its encoder in view and its losses as one named mapping.

    Args:
        detector: MMDetection's ATSS.
        roi_branch: for LCL; without it the encoder has no box features.
    """

    def __init__(self, detector: nn.Module, roi_branch: RoIBranch | None = None) -> None:
        super().__init__()
        self.detector: Any = detector
        self.roi_branch = roi_branch

    @property
    def encoder(self) -> Trunk:
        """The encoder, sharing every parameter with the detector and the RoI branch."""
        detector, branch = self.detector, self.roi_branch
        if branch is None:
            return Trunk(detector.backbone, detector.neck)
        return Encoder(detector.backbone, detector.neck, branch.roi_extractor, branch.shared_fcs)

    @property
    def box_width(self) -> int:
        """F."""
        assert self.roi_branch is not None, "LCL needs a RoI branch"
        return int(self.roi_branch.shared_fcs[-1].out_features)

    @property
    def c5_width(self) -> int:
        """Channels of C5."""
        return int(self.detector.neck.in_channels[-1])

    @property
    def loss_cls(self) -> nn.Module:
        """The classification loss, which may have a state."""
        loss: nn.Module = self.detector.bbox_head.loss_cls
        return loss

    def detection_losses(
        self,
        pyramid: Sequence[Tensor],
        targets: Sequence[Target],
        canvas_wh: tuple[int, int],
        with_mask: bool,
    ) -> dict[str, Tensor]:
        """ATSS's own losses on P3..P7: scalars loss_cls, loss_bbox, loss_centerness.

        Args:
            pyramid: float32 P3..P7 of the query view.
            targets: ground truth of each image.
            canvas_wh: size of the canvas.
            with_mask: False, ATSS has no masks.
        """
        assert not with_mask, "ATSS has no mask head"
        samples = [data_sample(t, canvas_wh, pyramid[0].device, with_mask=False) for t in targets]
        for sample in samples:  # anchors beyond an image's own padding do not count, as in MMDetection
            sample.set_metainfo(
                {"pad_shape": tuple(-(-side // DIVISOR) * DIVISOR for side in sample.img_shape)}
            )
        losses = self.detector.bbox_head.loss(tuple(pyramid), samples)
        return {name: as_scalar(value) for name, value in losses.items()}

    def predict(self, pyramid: Sequence[Tensor], samples: list[DetDataSample]) -> list[InstanceData]:
        """Detections on float32 P3..P7, in stored pixels."""
        return list(self.detector.bbox_head.predict(tuple(pyramid), samples, rescale=True))


def in_parts(detector: nn.Module, roi_branch: RoIBranch | None = None) -> TwoStageModel | OneStageModel:
    """A MMDetection detector in its parts; `roi_branch` only for one that has no RoI head."""
    return TwoStageModel(detector) if hasattr(detector, "roi_head") else OneStageModel(detector, roi_branch)
