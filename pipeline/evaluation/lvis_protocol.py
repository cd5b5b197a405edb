"""The official LVIS evaluator (lvis-api 0.5.3) on records in memory.

The published package stops on numpy >= 1.24 at `np.float`, wants paths and at least one detection, and
configures the root logger when imported.  All of that is handled here and nowhere else; the numbers are its
own.  Shapes: T = 10 IoU thresholds, R = 101 recalls, K categories, A = 4 areas (all, small, medium, large).
"""

import contextlib
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np


def evaluate(
    truth: dict[str, Any], detections: list[dict[str, Any]], kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision, and recall, of each category.

    Args:
        truth: images with LVIS's federated fields, categories, annotations with ids from 1, `area` in pixels.
        detections: records with ids from 1 and `area`; the protocol's cap has been applied.
        kind: "bbox" or "segm".

    Returns:
        (T, R, K, A) and (T, K, A, 1), K in ascending category id; -1 where there is no ground truth.
    """
    categories = [{"id": c["id"], "frequency": "f"} for c in truth["categories"]]  # r, c, f: see metrics
    with _lvis_api() as lvis:
        evaluation = lvis.LVISEval(
            _indexed(lvis.LVIS, {**truth, "categories": categories}),
            _indexed(lvis.LVISResults, {**truth, "categories": categories, "annotations": detections}),
            kind,
        )
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"][..., None]


def _indexed(kind: Any, dataset: dict[str, Any]) -> Any:
    """An LVIS or LVISResults of records; the constructors want a path, a detection, a deep copy."""
    made = kind.__new__(kind)
    made.logger = logging.getLogger("lvis")  # its own talk of indices is nobody's news
    made.dataset = dataset
    made._create_index()
    return made


@contextlib.contextmanager
def _lvis_api() -> Iterator[ModuleType]:
    """The lvis package, with the alias it needs only while it runs, and the root logger left as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import lvis
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    with _float_alias():
        yield lvis


@contextlib.contextmanager
def _float_alias() -> Iterator[None]:
    """`np.float`, gone since numpy 1.24, exists inside this block; afterwards numpy is as it was."""
    had_it = "float" in vars(np)
    vars(np).setdefault("float", float)
    try:
        yield
    finally:
        if not had_it:
            del vars(np)["float"]
