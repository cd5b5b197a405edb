"""`2drcl pretrain --show-batch out.png`: what the next step sees and paints, as a picture; trains nothing."""

from pathlib import Path

from pipeline.engine.checkpoint import CheckpointFolder
from pipeline.errors import UsageError
from pipeline.pretrain.preview import preview
from pipeline.pretrain.preview_figure import preview_figure
from pipeline.pretrain.training import PretrainPlan
from stages.common import Order
from stages.console import data
from stages.machine import is_first

IMAGES = 4  # rows of the picture


def write(order: Order, plan: PretrainPlan, path: Path) -> None:
    """Draw the next step of a run, with the weights that it would continue from.

    Raises:
        UsageError: not the name of a PNG.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--show-batch {path}: the picture is a PNG", f"name it {path.with_suffix('.png')}")
    if not is_first():
        return
    found = CheckpointFolder(plan.job.work / "checkpoints").newest()
    state = None if found is None else (found[0], found[1]["model"])
    shown = preview(plan, order.machine.one_device(), state, IMAGES)
    weights = "the initial weights" if found is None else f"the checkpoint after step {found[0]}"
    preview_figure(shown, path, f"step {shown.step} of {plan.schedule.total}, with {weights}")
    data({"picture": str(path)}, order.as_json, [str(path)])
