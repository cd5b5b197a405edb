"""What `2drcl methods` says of a RoI head: what it keeps in checkpoints, and what a run may set of it."""

from typing import Any

from pipeline.finetune.method import Method
from stages import loss_source

# by its key in the settings of the head: what keeps something of the classes, or the head itself
PARTS = {
    "memory": "pipeline.finetune.feature_memory.FeatureMemory",
    "hallucination": "pipeline.finetune.hallucination.FeatureHallucination",
    "pass_weights": "pipeline.finetune.heads.iterative_head.IterativeRoIHead",
}
FIXED = ("num_classes", "feature_shape", "feature_width", "seed", "hidden_width")  # by detector and run


def state(method: Method) -> list[str]:
    """Names of what the head keeps beside parameters; none of a plain head."""
    return loss_source.state(_part(method)[0])


def settings(method: Method) -> list[dict[str, Any]]:
    """Name, value of this method, default, and meaning of what a run may change by `runs.NAME.head`."""
    path, given = _part(method)
    known = {k: v for k, v in loss_source.arguments(path).items() if k not in FIXED}
    return [
        {"name": name, "value": _plain(given.get(name, default)), "default": _plain(default), "meaning": text}
        for name, (default, text) in known.items()
    ]


def _part(method: Method) -> tuple[str, dict[str, Any]]:
    """The dotted path in PARTS, and what the table gives it; an empty path for plain heads."""
    head = method.training_roi_head or method.roi_head or {}
    key = next((key for key in PARTS if key in head), "")
    given = head.get(key)
    return PARTS.get(key, ""), dict(given) if isinstance(given, dict) else {key: given}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
