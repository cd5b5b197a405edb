"""A method as one run changes it: settings of its loss and of its RoI head, and the last layers.

The table of methods has what the authors use; where their code and their paper differ, or where they report
several variants, a run names the other one (`finetune.runs.NAME.loss: {official_float32_weights: true}`).
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import UsageError
from pipeline.finetune.method import ONE_STAGE, ClassCounts, Method
from pipeline.finetune.methods import NORMED_CONV, NORMED_LINEAR, get_method, method_on
from pipeline.finetune.settings import FinetuneRun, Value

Arguments = Callable[[int, ClassCounts], dict[str, Any]]
CLASSIFIERS: dict[str, dict[str, Any] | None] = {"linear": None, "normed": NORMED_LINEAR}
MASK_PREDICTORS: dict[str, dict[str, Any] | None] = {"conv": None, "normed": NORMED_CONV}


def method_of(run: FinetuneRun, detector: str | None = None) -> Method:
    """The table's entry with the changes of a run.

    Args:
        run: names the method and the changes.
        detector: `detector.type`; None: as the entry stands.

    Raises:
        UsageError: unknown method, one that is not defined for the detector, or a key that its loss or its
            head does not have.
    """
    method = get_method(run.method) if detector is None else method_on(run.method, detector)
    if detector == ONE_STAGE:
        _refuse_last_layers(run)
    if run.classifier != "method":
        method = replace(method, cls_predictor=CLASSIFIERS[run.classifier])
    if run.mask_predictor != "method":
        method = replace(method, mask_predictor=MASK_PREDICTORS[run.mask_predictor])
    if run.bias_prior != "method":
        method = replace(method, fc_cls_bias_prior=run.bias_prior)
    if run.loss:
        method = _with_loss(method, run.loss)
    return _with_head(method, run.head) if run.head else method


def _refuse_last_layers(run: FinetuneRun) -> None:
    """The last layers of RoI heads, which ATSS does not have."""
    for key in ("classifier", "mask_predictor", "bias_prior"):
        if getattr(run, key) != "method":
            raise UsageError(
                f"{key}: {getattr(run, key)} is of RoI heads, not of {ONE_STAGE}", f"leave {key} out"
            )


def _with_loss(method: Method, changes: Mapping[str, Value]) -> Method:
    _refuse_unknown("loss", method, changes, loss_settings(method))
    own, given = method.loss_arguments, {key: _plain(value) for key, value in changes.items()}

    def arguments(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
        return {**own(num_classes, counts), **given}

    # an epoch that somebody names is one of this run
    scaled = tuple(name for name in method.epoch_arguments if name not in changes)
    return replace(method, loss_arguments=arguments, epoch_arguments=scaled)


def loss_settings(method: Method) -> tuple[str, ...]:
    """Arguments of a method's loss that a run may set; none of MMDetection's own losses."""
    module, _, name = method.loss.rpartition(".")
    if not module:
        return ()
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    fixed = ("num_classes", "seed")
    return tuple(n for n, p in parameters.items() if n not in fixed and p.kind is not p.VAR_KEYWORD)


def _with_head(method: Method, changes: Mapping[str, Value]) -> Method:
    """The RoI head's settings stand in a part of their own (`memory`, `hallucination`), or by its type."""
    head = dict(method.training_roi_head or method.roi_head or {})
    part = next((key for key, value in head.items() if isinstance(value, dict)), None)
    own: dict[str, Any] = head[part] if part else {k: v for k, v in head.items() if k != "type"}
    _refuse_unknown("head", method, changes, (*own, *(("synchronize",) if part else ())))
    changed = {**own, **{key: _plain(value) for key, value in changes.items()}}
    head |= {part: changed} if part else changed
    if method.training_roi_head:
        return replace(method, training_roi_head=head)
    return replace(method, roi_head=head)


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _refuse_unknown(
    section: str, method: Method, changes: Mapping[str, Value], known: tuple[str, ...]
) -> None:
    unknown = [key for key in changes if key not in known]
    if unknown:
        raise UsageError(
            f"{section}: {method.name} has no setting {', '.join(unknown)}",
            f"it has: {', '.join(known)}" if known else f"leave {section} out of the run",
        )
