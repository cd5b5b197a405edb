"""The layers that decide on classes, box and mask predictor: whether a file has those that a method wants.

Two classifiers of equal width may be as different as a softmax and a row of cosines; a detector.pth of ours
says whose its classifier is, and which mask predictor it has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.engine.checkpoint import load_tensors
from pipeline.finetune.method import Method
from pipeline.finetune.methods import METHODS

CLASSIFIER = "roi_head.bbox_head.fc_cls"
MASK_PREDICTOR = "roi_head.mask_head.conv_logits"


def meta_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a detector.pth says of itself; nothing for other files."""
    meta = content.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def mask_predictor_of(method: Method) -> str:
    """mmdet's name of the last layer of the mask head."""
    return "Conv" if method.mask_predictor is None else str(method.mask_predictor["type"])


def is_plain(method: Method) -> bool:
    """Whether the classifier means the same as pre-training's, which is MMDetection's own detector's."""
    return "." not in method.loss and method.cls_predictor is None


def last_layers_to_renew(
    method: Method, path: Path | None, detector: nn.Module, classifier: str = CLASSIFIER
) -> dict[str, str]:
    """Last layers of initial weights that are of no use to a method of one stage, and why.

    Args:
        method: to be trained.
        path: of the initial weights, if there are any.
        detector: untrained.
        classifier: MMDetection's name of that layer in the detector.
    """
    content = {} if path is None or not path.exists() else load_tensors(path)
    renewed, made_by = {}, METHODS.get(str(meta_of(content).get("classifier")))
    if not _means_the_same(method, made_by):
        of = "pre-training" if made_by is None else made_by.name
        renewed[classifier] = f"{method.name} classifies in another way than {of}"
    elif (found := _columns(content, classifier)) not in (None, own := _own_columns(detector, classifier)):
        renewed[classifier] = f"the file's has {found} columns, and {own} are trained"
    found_kind, wanted = meta_of(content).get("mask_predictor", "Conv"), mask_predictor_of(method)
    if found_kind != wanted:
        renewed[MASK_PREDICTOR] = f"{wanted} and not the {found_kind} of the initial weights"
    return renewed


def _means_the_same(method: Method, made_by: Method | None) -> bool:
    """made_by: what the file's classifier was trained with; None: it does not say, and is a plain one."""
    if made_by is None:
        return is_plain(method)
    return (made_by.loss, made_by.cls_predictor) == (method.loss, method.cls_predictor)


def _columns(content: Mapping[str, Any], classifier: str) -> int | None:
    """Of a file's classifier, if it has one."""
    state = content.get("state_dict")
    tensor = state.get(f"{classifier}.weight") if isinstance(state, Mapping) else None
    return None if tensor is None else len(tensor)


def _own_columns(detector: nn.Module, classifier: str) -> int:
    return len(detector.state_dict()[f"{classifier}.weight"])
