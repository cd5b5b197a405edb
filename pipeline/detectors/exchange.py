"""Names and layouts of a Faster or Mask R-CNN's tensors in torchvision and detectron2, there and back.

    ours (MMDetection)      torchvision                       detectron2
    backbone.layer1.0.bn1   backbone.body.layer1.0.bn1        backbone.bottom_up.res2.0.conv1.norm
    neck.lateral_convs.0    backbone.fpn.inner_blocks.0       backbone.fpn_lateral2
    background              row 0 of the classifier           last row, as ours

Sources: torchvision/models/detection/{faster_rcnn,mask_rcnn,backbone_utils}.py; detectron2's
modeling/backbone/{resnet,fpn}.py, proposal_generator/rpn.py, roi_heads/{box_head,fast_rcnn,mask_head}.py.
Shapes: N categories, F width of the box layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import MismatchedInput, first_ten

HEAD = "roi_head.bbox_head."
CLASS_ROWS = {  # what has one row (or four) for each category
    f"{HEAD}fc_cls": 1,
    f"{HEAD}fc_reg": 4,
    "roi_head.mask_head.conv_logits": 1,
}


@dataclass(frozen=True)
class Layout:
    """How another library lays out a two-stage detector.

    Args:
        library: its name.
        prefixes: (ours, theirs); the first that fits decides.
        inner: (ours, theirs) replaced anywhere in a backbone's name.
        background_first: its classifier has the background in row 0, and its other class-shaped layers an
            unused row for it.
        with_counters: batch norm keeps `num_batches_tracked`.
    """

    library: str
    prefixes: tuple[tuple[str, str], ...]
    inner: tuple[tuple[str, str], ...] = ()
    background_first: bool = False
    with_counters: bool = True


TORCHVISION = Layout(
    "torchvision",
    (
        ("backbone.", "backbone.body."),
        *((f"neck.lateral_convs.{i}.conv.", f"backbone.fpn.inner_blocks.{i}.0.") for i in range(4)),
        *((f"neck.fpn_convs.{i}.conv.", f"backbone.fpn.layer_blocks.{i}.0.") for i in range(4)),
        ("rpn_head.rpn_conv.", "rpn.head.conv.0.0."),
        ("rpn_head.rpn_cls.", "rpn.head.cls_logits."),
        ("rpn_head.rpn_reg.", "rpn.head.bbox_pred."),
        (f"{HEAD}shared_fcs.0.", "roi_heads.box_head.fc6."),
        (f"{HEAD}shared_fcs.1.", "roi_heads.box_head.fc7."),
        (f"{HEAD}fc_cls.", "roi_heads.box_predictor.cls_score."),
        (f"{HEAD}fc_reg.", "roi_heads.box_predictor.bbox_pred."),
        *((f"roi_head.mask_head.convs.{i}.conv.", f"roi_heads.mask_head.{i}.0.") for i in range(4)),
        ("roi_head.mask_head.upsample.", "roi_heads.mask_predictor.conv5_mask."),
        ("roi_head.mask_head.conv_logits.", "roi_heads.mask_predictor.mask_fcn_logits."),
    ),
    background_first=True,
)

DETECTRON2 = Layout(
    "detectron2",
    (
        *((f"backbone.layer{i}.", f"backbone.bottom_up.res{i + 1}.") for i in range(1, 5)),
        ("backbone.", "backbone.bottom_up.stem."),
        *((f"neck.lateral_convs.{i}.conv.", f"backbone.fpn_lateral{i + 2}.") for i in range(4)),
        *((f"neck.fpn_convs.{i}.conv.", f"backbone.fpn_output{i + 2}.") for i in range(4)),
        ("rpn_head.rpn_conv.", "proposal_generator.rpn_head.conv."),
        ("rpn_head.rpn_cls.", "proposal_generator.rpn_head.objectness_logits."),
        ("rpn_head.rpn_reg.", "proposal_generator.rpn_head.anchor_deltas."),
        (f"{HEAD}shared_fcs.0.", "roi_heads.box_head.fc1."),
        (f"{HEAD}shared_fcs.1.", "roi_heads.box_head.fc2."),
        (f"{HEAD}fc_cls.", "roi_heads.box_predictor.cls_score."),
        (f"{HEAD}fc_reg.", "roi_heads.box_predictor.bbox_pred."),
        *((f"roi_head.mask_head.convs.{i}.conv.", f"roi_heads.mask_head.mask_fcn{i + 1}.") for i in range(4)),
        ("roi_head.mask_head.upsample.", "roi_heads.mask_head.deconv."),
        ("roi_head.mask_head.conv_logits.", "roi_heads.mask_head.predictor."),
    ),
    inner=(
        *((f".bn{i}.", f".conv{i}.norm.") for i in range(1, 4)),
        (".downsample.0.", ".shortcut."),
        (".downsample.1.", ".shortcut.norm."),
    ),
    with_counters=False,
)


def to_layout(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our tensors under the names, and in the row order, of another library.

    Raises:
        MismatchedInput: there is something that the other library has no place for.
    """
    kept = {n: t for n, t in state.items() if layout.with_counters or not n.endswith("num_batches_tracked")}
    renamed = {name: _theirs(name, layout) for name in kept}
    _refuse([name for name, new in renamed.items() if new is None], layout)
    return {
        str(renamed[n]): _background_first(n, t) if layout.background_first else t for n, t in kept.items()
    }


def from_layout(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The inverse of `to_layout`; batch norm counters that the other library does not keep are zero.

    Raises:
        MismatchedInput: there is something that this detector has no place for.
    """
    renamed = {name: _ours(name, layout) for name in state}
    _refuse([name for name, new in renamed.items() if new is None], layout)
    own = {str(renamed[name]): tensor for name, tensor in state.items()}
    if layout.background_first:
        own = {name: _background_last(name, tensor) for name, tensor in own.items()}
    if not layout.with_counters:
        means = [name for name in own if name.endswith("running_mean")]
        own |= {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in means}
    return own


def _theirs(name: str, layout: Layout) -> str | None:
    if ".gn" in name:  # it would pass for another module
        return None
    for ours, theirs in layout.prefixes:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            for a, b in layout.inner if ours.startswith("backbone.") else ():
                name = name.replace(a, b)
            return name
    return None


def _ours(name: str, layout: Layout) -> str | None:
    # the longest first: torchvision's pyramid begins as its backbone does
    for ours, theirs in sorted(layout.prefixes, key=lambda pair: -len(pair[1])):
        if name.startswith(theirs):
            rest = "." + name.removeprefix(theirs)
            for a, b in sorted(layout.inner, key=lambda pair: -len(pair[1])):
                rest = rest.replace(b, a) if ours.startswith("backbone.") else rest
            return ours + rest[1:]
    return None


def _refuse(unknown: list[str], layout: Layout) -> None:
    if unknown:
        raise MismatchedInput(
            f"{layout.library} has no Faster or Mask R-CNN with {first_ten(unknown)}",
            "two-stage detectors with a ResNet of frozen batch norm and plain heads are exchanged; "
            "--to mmdet and --to safetensors take every detector",
        )


def _background_first(name: str, tensor: Tensor) -> Tensor:
    """(N + 1, ...) with the background last -> first; (4 N, ...) or (N, ...) -> with zeros before them."""
    rows = CLASS_ROWS.get(name.rpartition(".")[0])
    if rows is None:
        return tensor
    if name.startswith(f"{HEAD}fc_cls"):
        return tensor.roll(1, dims=0)
    return torch.cat([tensor.new_zeros(rows, *tensor.shape[1:]), tensor])


def _background_last(name: str, tensor: Tensor) -> Tensor:
    rows = CLASS_ROWS.get(name.rpartition(".")[0])
    if rows is None:
        return tensor
    return tensor.roll(-1, dims=0) if name.startswith(f"{HEAD}fc_cls") else tensor[rows:]
