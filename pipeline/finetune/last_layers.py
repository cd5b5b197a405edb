"""The layers that decide on classes, box and mask predictor: whether a file has those that a method wants.

Two classifiers of equal width may be as different as a softmax and a row of cosines; a detector.pth of ours
says whose its classifier is, and which mask predictor it has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pipeline.finetune.method import ONE_STAGE, Method
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


def cls_predictor_of(method: Method) -> str:
    """mmdet's name of the last layer that classifies, in the box head."""
    return "Linear" if method.cls_predictor is None else str(method.cls_predictor["type"])


def maker_of(content: Mapping[str, Any], detectors: Sequence[str]) -> Method | None:
    """The method that a detector.pth of one of these kinds was fine-tuned with; None: it does not say."""
    made_by = METHODS.get(str(meta_of(content).get("classifier")))
    on_atss = made_by is not None and tuple(detectors) == (ONE_STAGE,) and ONE_STAGE in made_by.detectors
    return made_by.on(ONE_STAGE) if made_by is not None and on_atss else made_by


def cls_predictor_in(content: Mapping[str, Any], made_by: Method | None) -> str:
    """The same of a detector.pth; of one that does not say, its method's own."""
    return str(
        meta_of(content).get("cls_predictor", "Linear" if made_by is None else cls_predictor_of(made_by))
    )


def is_plain(method: Method) -> bool:
    """Whether the classifier means the same as pre-training's, which is MMDetection's own detector's."""
    return "." not in method.loss and method.cls_predictor is None


def last_layers_to_renew(
    method: Method, content: Mapping[str, Any], detector: nn.Module, classifier: str = CLASSIFIER
) -> dict[str, str]:
    """Last layers of initial weights that are of no use to a method of one stage, and why.

    Args:
        method: to be trained.
        content: of the file of initial weights; empty: there are none.
        detector: untrained.
        classifier: MMDetection's name of that layer in the detector.
    """
    renewed, made_by = {}, maker_of(content, method.detectors)
    found_kind, wanted = cls_predictor_in(content, made_by), cls_predictor_of(method)
    if not _means_the_same(method, made_by):
        of = "pre-training" if made_by is None else made_by.name
        renewed[classifier] = f"{method.name} classifies in another way than {of}"
    elif found_kind != wanted:
        renewed[classifier] = f"{wanted} and not the {found_kind} of the initial weights"
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
    return made_by.loss == method.loss


def _columns(content: Mapping[str, Any], classifier: str) -> int | None:
    """Of a file's classifier, if it has one."""
    state = content.get("state_dict")
    tensor = state.get(f"{classifier}.weight") if isinstance(state, Mapping) else None
    return None if tensor is None else len(tensor)


def _own_columns(detector: nn.Module, classifier: str) -> int:
    return len(detector.state_dict()[f"{classifier}.weight"])
