"""A detector.pth in the form that another library reads.

mmdet         detector.pth, config.py              init_detector("config.py", "detector.pth")
torchvision   torchvision.pth, facts.json          a bare state dict of FasterRCNN or MaskRCNN
detectron2    detectron2.pth, detectron2.yaml      cfg.merge_from_file, DetectionCheckpointer
safetensors   detector.safetensors, config.py      MMDetection's names, no pickle
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from mmengine.config import Config
from torch import Tensor

from pipeline.artifacts import write_bytes, write_json
from pipeline.data.photometric import MEAN, STD
from pipeline.detectors.exchange import DETECTRON2, HEAD, TORCHVISION, to_layout
from pipeline.detectors.publish import CONFIG, WEIGHTS, load_published
from pipeline.detectors.torchvision_model import torchvision_detector
from pipeline.engine.checkpoint import load_tensors, save_tensors
from pipeline.errors import MismatchedInput

TORCHVISION_FILE, DETECTRON2_FILE, SAFETENSORS_FILE = (
    "torchvision.pth",
    "detectron2.pth",
    "detector.safetensors",
)


@dataclass(frozen=True)
class Published:
    """A detector that is to be exported, checked: it loads."""

    weights: Path
    state: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    config: Any  # mmengine's Config
    test_wh: tuple[int, int]

    @property
    def classes(self) -> list[str]:
        """Category names in label order."""
        return list(self.meta["dataset_meta"]["classes"])


def read_detector(weights: Path) -> Published:
    """A detector.pth and the config.py beside it.

    Raises:
        MissingInput, InputError, MismatchedInput: as `load_published`.
    """
    _, _, test_wh = load_published(weights)
    content = load_tensors(weights)
    config = Config.fromfile(str(weights.with_name(CONFIG)))
    return Published(weights, content["state_dict"], content["meta"], config, test_wh)


def export(detector: Published, target: str, folder: Path) -> list[str]:
    """Write the files of `target`, a key of `TARGETS`, into `folder`.

    Returns:
        what a user of that library should know, line by line.

    Raises:
        MismatchedInput: that library has no such detector.
    """
    return TARGETS[target](detector, folder)


def _mmdet(detector: Published, folder: Path) -> list[str]:
    for name in (WEIGHTS, CONFIG):
        write_bytes(folder / name, detector.weights.with_name(name).read_bytes())
    return ["mmdet.apis.init_detector('config.py', 'detector.pth')"]


def _torchvision(detector: Published, folder: Path) -> list[str]:
    _refuse_other_heads(detector, "torchvision")
    state = to_layout(detector.state, TORCHVISION)
    model = torchvision_detector(detector.config.model, len(detector.classes), detector.test_wh)
    model.load_state_dict(state, strict=True)
    save_tensors(folder / TORCHVISION_FILE, state)
    facts = {
        "num_classes": len(detector.classes) + 1,
        "classes": ["background", *detector.classes],
        "min_size": min(detector.test_wh),
        "max_size": max(detector.test_wh),
        "depth": detector.config.model.backbone.depth,
    }
    write_json(folder / "facts.json", facts)
    return [
        "pipeline.detectors.torchvision_model.torchvision_detector computes the same as here",
        f"fasterrcnn_resnet50_fpn(num_classes={facts['num_classes']}) takes the weights too, but pools "
        "without the half-pixel shift and rounds its anchors: boxes move by about a pixel, so fine-tune it",
    ]


def _detectron2(detector: Published, folder: Path) -> list[str]:
    _refuse_other_heads(detector, "detectron2")
    state = to_layout(detector.state, DETECTRON2)
    save_tensors(folder / DETECTRON2_FILE, {"model": state})
    text = yaml.safe_dump(detectron2_settings(detector), sort_keys=False, default_flow_style=None)
    write_bytes(folder / "detectron2.yaml", text.encode())
    return [
        "cfg.merge_from_file('detectron2.yaml') after get_cfg(): RGB input, ImageNet's mean and deviation, "
        "stride in the 3 x 3 convolutions; its own defaults differ, and give no error but worse boxes"
    ]


def detectron2_settings(detector: Published) -> dict[str, Any]:
    """What differs from detectron2's defaults, for this detector; keys of detectron2/config/defaults.py."""
    model, (long_side, short_side) = detector.config.model, detector.test_wh
    anchors, test = model.rpn_head.anchor_generator, model.test_cfg
    levels = ["p2", "p3", "p4", "p5"]
    settings: dict[str, Any] = {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "WEIGHTS": DETECTRON2_FILE,
        "MASK_ON": "mask_head" in model.roi_head,
        "PIXEL_MEAN": [round(m * 255, 6) for m in MEAN],
        "PIXEL_STD": [round(s * 255, 6) for s in STD],
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {
            "DEPTH": model.backbone.depth,
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "STRIDE_IN_1X1": False,
            **({"RES2_OUT_CHANNELS": 64} if model.backbone.depth < 50 else {}),
        },
        "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"], "OUT_CHANNELS": model.neck.out_channels},
        "ANCHOR_GENERATOR": {
            "SIZES": [[s * anchors.scales[0]] for s in anchors.strides],
            "ASPECT_RATIOS": [list(anchors.ratios)],
        },
        "RPN": {
            "IN_FEATURES": [*levels, "p6"],
            "PRE_NMS_TOPK_TEST": test.rpn.nms_pre,
            "POST_NMS_TOPK_TEST": test.rpn.max_per_img,
            "NMS_THRESH": test.rpn.nms.iou_threshold,
        },
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": levels,
            "NUM_CLASSES": len(detector.classes),
            "SCORE_THRESH_TEST": test.rcnn.score_thr,
            "NMS_THRESH_TEST": test.rcnn.nms.iou_threshold,
        },
        **_roi_settings(model.roi_head),
    }
    return {
        "MODEL": settings,
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": short_side, "MAX_SIZE_TEST": long_side},
        "TEST": {"DETECTIONS_PER_IMAGE": test.rcnn.max_per_img},
        "VERSION": 2,
    }


def _roi_settings(head: Any) -> dict[str, Any]:
    """Pooling as MMDetection does it, and the layers behind it."""
    pooler = {"POOLER_TYPE": "ROIAlignV2", "POOLER_SAMPLING_RATIO": 0}
    box = {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "FC_DIM": head.bbox_head.fc_out_channels}
    settings = {"ROI_BOX_HEAD": {**box, "POOLER_RESOLUTION": 7, **pooler}}
    if "mask_head" in head:
        mask = {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "POOLER_RESOLUTION": 14}
        settings["ROI_MASK_HEAD"] = {**mask, **pooler}
    return settings


def _safetensors(detector: Published, folder: Path) -> list[str]:
    """Tensors sorted by name and text beside them: the same detector is the same bytes."""
    metadata = {"meta": json.dumps(detector.meta, sort_keys=True)}  # one key: the library shuffles several
    tensors = {name: tensor.contiguous() for name, tensor in sorted(detector.state.items())}
    write_bytes(folder / SAFETENSORS_FILE, safetensors.torch.save(tensors, metadata))
    write_bytes(folder / CONFIG, detector.weights.with_name(CONFIG).read_bytes())
    return ["safetensors.torch.load_file('detector.safetensors') has MMDetection's names"]


def _refuse_other_heads(detector: Published, library: str) -> None:
    """A classifier of a long-tailed method means something else: its width or its scores differ."""
    model = detector.config.model
    head = model.get("roi_head", model).get("bbox_head", {})  # of a one-stage detector its own
    loss = head.get("loss_cls", {})
    rows = detector.state[f"{HEAD}fc_cls.weight"].shape[0] if f"{HEAD}fc_cls.weight" in detector.state else 0
    is_plain = (
        head.get("type") == "Shared2FCBBoxHead"
        and loss.get("type") == "CrossEntropyLoss"
        and not loss.get("use_sigmoid")
        and rows == len(detector.classes) + 1
    )
    if not is_plain:
        kind = loss.get("type") or model.type
        raise MismatchedInput(
            f"{detector.weights} has heads that {library} does not know ({head.get('type')}, {kind})",
            "a pre-trained detector, or one fine-tuned with a softmax classifier, can be exported; "
            "--to mmdet and --to safetensors take every detector",
        )


TARGETS: dict[str, Callable[[Published, Path], list[str]]] = {
    "mmdet": _mmdet,
    "torchvision": _torchvision,
    "detectron2": _detectron2,
    "safetensors": _safetensors,
}
