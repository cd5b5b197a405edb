"""A torch-only detector with the interface of pipeline.detectors.two_stage, small enough to train in a test.

Four levels of strides 4 to 32 (C5 has 24 channels), an FPN of 8, RoIAlign into two shared layers of 12, an
objectness head and a classifier.  Nothing mixes images, and L_det is a mean over images: N processes with
equal shares compute what one computes.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align

from pipeline.data.photometric_draws import PhotometricSettings
from pipeline.data.targets import Target
from pipeline.pretrain.contrast import at_least_float32
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.settings import ContrastSettings, PretrainSettings, ReconstructionSettings
from pipeline.pretrain.views import PretrainBatch

WIDTHS = (8, 12, 16, 24)
CLASSES = 3


class ToyBackbone(nn.Module):
    """C2..C5; sizes are halved upwards, as a ResNet does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=4, padding=3)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (a, b) in enumerate(zip((8, *WIDTHS[:-1]), WIDTHS, strict=True))
        )

    def first_stage(self, images, run=lambda layer, maps: layer(maps)):
        return torch.relu(run(self.stages[0], torch.relu(run(self.stem, images))))

    def forward(self, images):
        return self.after(self.first_stage(images))

    def after(self, maps, run=lambda layer, maps: layer(maps)):
        levels = [maps]
        for stage in self.stages[1:]:
            levels.append(torch.relu(run(stage, levels[-1])))
        return tuple(levels)


class ToyEncoder(nn.Module):
    def __init__(self, backbone, neck, shared_fcs):
        super().__init__()
        self.backbone, self.neck, self.shared_fcs = backbone, neck, shared_fcs

    def trunk(self, images, bf16=False):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return self.backbone(images)

    def trunk_again(self, images, bf16=False, *, are_weights_constant=False):
        def run(layer, maps):
            if not are_weights_constant:
                return layer(maps)
            return functional_call(layer, {name: w.detach() for name, w in layer.named_parameters()}, (maps,))

        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            first = partial(self.backbone.first_stage, run=run)
            maps = checkpoint(first, images, use_reentrant=False, preserve_rng_state=False)
            return self.backbone.after(maps, run)

    def pyramid(self, levels, bf16=False):
        with torch.autocast(levels[0].device.type, torch.bfloat16, enabled=bf16):
            return tuple(at_least_float32(conv(level)) for conv, level in zip(self.neck, levels, strict=True))

    def box_features(self, pyramid, boxes):
        scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        maps = [
            roi_align(p, list(boxes), 3, spatial_scale=s, aligned=True)
            for p, s in zip(pyramid, scales, strict=True)
        ]
        rows = torch.stack(maps).sum(dim=0).flatten(1)  # 4 x (B M, 8, 3, 3) -> (B M, 72)
        for layer in self.shared_fcs:
            rows = torch.relu(layer(rows))
        return rows


class ToyDetector(nn.Module):
    c5_width = WIDTHS[-1]
    box_width = 12

    def __init__(self):
        super().__init__()
        self.backbone = ToyBackbone()
        self.neck = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in WIDTHS)
        self.shared_fcs = nn.ModuleList([nn.Linear(72, 12), nn.Linear(12, 12)])
        self.objectness = nn.Conv2d(8, 1, 1)
        self.classifier = nn.Linear(12, CLASSES)

    @property
    def encoder(self):
        return ToyEncoder(self.backbone, self.neck, self.shared_fcs)

    def detection_losses(self, pyramid, targets, canvas_wh, with_mask):
        boxes = [torch.from_numpy(t.boxes).to(pyramid[0]) for t in targets]
        logits = self.classifier(self.encoder.box_features(pyramid, boxes))
        rows = logits.split([len(b) for b in boxes])
        per_image = [
            F.cross_entropy(r, torch.from_numpy(t.labels), reduction="sum") / max(len(r), 1)
            for r, t in zip(rows, targets, strict=True)
        ]
        seen = [(self.objectness(p) - 0.5).square().mean() for p in pyramid]
        return {"loss_cls": torch.stack(per_image).mean(), "loss_rpn": torch.stack(seen).sum()}


def tiny_settings(**changes):
    """Settings small enough for a test; `contrast` and `reconstruction` take mappings."""
    contrast = {"hidden": 16, "width": 8, "boxes": 3, "min_side": 6.0} | changes.pop("contrast", {})
    return PretrainSettings(
        contrast=ContrastSettings(**contrast),
        reconstruction=ReconstructionSettings(**changes.pop("reconstruction", {})),
        **changes,
    )


def without_colour():
    """Photometric settings that change no pixel."""
    return PhotometricSettings(jitter=0.0, grayscale=0.0, blur=0.0, solarize=(0.0, 0.0))


def toy_model(settings=None, queues=(8, 16), seed=0):
    """TwoDRCL around the toy; its batches are made by `toy_batch`, so `to_batch` has nothing left to do."""
    torch.manual_seed(seed)
    return TwoDRCL(ToyDetector(), settings or tiny_settings(), queues, lambda batch: batch).train()


def toy_batch(seed=0, images=4, boxes=3, canvas_wh=(96, 64), invalid=()):
    """A batch whose images differ in size; `invalid` lists (image, box) pairs that do not exist."""
    random = torch.Generator().manual_seed(seed)
    sizes, key_sizes = (_sizes(images, canvas_wh, random) for _ in range(2))
    valid = torch.ones(images, boxes, dtype=torch.bool)
    for image, box in invalid:
        valid[image, box] = False
    query_boxes = _boxes(images, boxes, random)
    coarse = 2 * torch.randn(images, 3, 2, 3, generator=random)
    scenes = F.interpolate(coarse, size=(canvas_wh[1], canvas_wh[0]), mode="bilinear")
    return PretrainBatch(
        query=_padded(scenes, sizes),
        key=_padded(scenes + 0.1 * torch.randn(scenes.shape, generator=random), key_sizes),
        query_wh=sizes,
        key_wh=key_sizes,
        query_boxes=query_boxes,
        key_boxes=_boxes(images, boxes, random),
        masks=(query_boxes + torch.tensor([2.0, 2, -3, -4])).long(),
        valid=valid,
        image_ids=torch.arange(images) + 10 * seed,
        targets=[_target(i) for i in range(images)],
        canvas_wh=canvas_wh,
    )


def in_float64(batch):
    """All that is a real number; the model needs `double` too."""
    fields = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in vars(batch).items()
    }
    return PretrainBatch(**fields)


def shard(batch, rank, world):
    """The share of one process: every field cut along its first dimension."""
    size = len(batch.image_ids) // world
    mine = slice(rank * size, (rank + 1) * size)
    fields = {name: value if name == "canvas_wh" else value[mine] for name, value in vars(batch).items()}
    return PretrainBatch(**fields)


def _sizes(images, canvas_wh, random):
    """(B, 2): between half and all of the canvas on each side."""
    sides = [torch.randint(side // 2, side + 1, (images,), generator=random) for side in canvas_wh]
    return torch.stack(sides, dim=1).float()  # 2 x (B,) -> (B, 2)


def _padded(views, sizes):
    """Zero outside each image."""
    views = views.clone()
    for view, (width, height) in zip(views, sizes.int().tolist(), strict=True):
        view[:, height:], view[:, :, width:] = 0, 0
    return views


def _boxes(images, boxes, random):
    corners = 20 * torch.rand(images, boxes, 2, generator=random)
    return torch.cat([corners, corners + 8 + 10 * torch.rand(images, boxes, 2, generator=random)], dim=2)


def _target(index):
    boxes = np.array([[2.0, 3.0, 20.0, 22.0], [5.0, 1.0, 15.0, 30.0]], dtype=np.float32)[: index % 3]
    return Target(boxes, np.arange(len(boxes), dtype=np.int64), (60, 34), key=index)
