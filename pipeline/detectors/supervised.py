"""A detector trained on its own losses: fine-tuning, and OLN."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.data.photometric import normalise, on_canvas, to_float
from pipeline.data.single_view import ViewSample
from pipeline.detectors.one_stage import in_parts


class SupervisedModel(nn.Module):
    """Samples -> `loss` and its parts by name: rpn_cls, rpn_bbox, cls, bbox[, mask]; of ATSS cls, bbox,
    centerness.

    Args:
        detector: MMDetection's.
        device: where the batch goes.
        with_mask: train the mask head.
        bf16: trunk and FPN in bf16.
    """

    PREFIX = "model.detector."  # of the detector's tensors in this module's state dict

    def __init__(self, detector: nn.Module, device: torch.device, *, with_mask: bool, bf16: bool) -> None:
        super().__init__()
        self.model = in_parts(detector)
        self.device, self.with_mask, self.bf16 = device, with_mask, bf16

    def forward(self, samples: Sequence[ViewSample]) -> dict[str, Tensor]:
        """Losses of this process's share of the batch."""
        canvas = samples[0].canvas_wh
        images = on_canvas([normalise(to_float(s.image, self.device)) for s in samples], canvas)
        encoder = self.model.encoder
        pyramid = encoder.pyramid(encoder.trunk(images, self.bf16), self.bf16)
        terms = self.model.detection_losses(pyramid, [s.target for s in samples], canvas, self.with_mask)
        named = {name.removeprefix("loss_"): value for name, value in terms.items()}
        return {"loss": torch.stack(list(named.values())).sum(), **named}

    def after_step(self) -> None:
        """Nothing: the methods' running state is updated in their losses."""
