"""`2drcl export`: detector.pth and config.py -> the files of another library."""

from pathlib import Path

from pipeline import artifacts
from pipeline.errors import UsageError
from stages.common import Order, answer, make
from stages.console import say

TARGETS = ("mmdet", "torchvision", "detectron2", "safetensors")


def run(order: Order, weights: Path, target: str) -> None:
    """Write the files of `target`, and say how that library reads them.

    Raises:
        UsageError: no such target.
        InputError and its children: it is no detector of ours, or one that the library does not have.
    """
    if target not in TARGETS:
        raise UsageError(f"--to {target}: no such form", f"one of {', '.join(TARGETS)}")
    inputs = {
        "weights": artifacts.file_digest(weights),
        "config": artifacts.file_digest(weights.with_name("config.py")),
    }
    manifest = artifacts.manifest("export", {"to": target}, inputs, order.params.seed)

    def produce(folder: Path) -> None:
        from pipeline.detectors.exports import export, read_detector

        for line in export(read_detector(weights), target, folder):
            say(f"export: {line}")

    make(order, manifest, produce)
    answer(order)
