"""`2drcl analyze`: predictions -> errors.json and the paper's pies (Fig. 2)."""

from pathlib import Path

from pipeline import artifacts
from pipeline.data.annotations import read_annotations
from pipeline.data.settings import Split
from pipeline.evaluation.error_types import error_types
from pipeline.evaluation.figures import error_bars, error_pies
from pipeline.evaluation.predictions import read_predictions
from stages.common import Order, answer, make
from stages.evaluate import frequency_letters, source_digest


def run(order: Order, split: Split, predictions: Path, stats: Path | None = None) -> None:
    """Sort the best detections of every category into the paper's five types (A.1).

    Args:
        order: options.
        split: annotations the predictions are of.
        predictions: a file in COCO's results format.
        stats: folder of the training split's stats, for frequency groups when the annotations carry none.
    """
    annotations = read_annotations(split.annotations)
    frequency = frequency_letters(annotations, stats)
    inputs = {"annotations": annotations.digest, "predictions": source_digest(predictions)}
    manifest = artifacts.manifest("analyze", {"frequency": frequency}, inputs, order.params.seed)

    def produce(folder: Path) -> None:
        report = error_types(annotations, read_predictions(predictions, annotations), frequency)
        artifacts.write_json(folder / "errors.json", report.to_plain())
        report.table.to_csv(folder / "detections.csv", index=False, lineterminator="\n")
        (folder / "figures").mkdir()
        error_pies({order.out.name: report}, folder / "figures" / "error_types.png")
        error_bars({order.out.name: report}, folder / "figures" / "error_bars.png")

    make(order, manifest, produce)
    answer(order)
