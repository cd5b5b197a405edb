"""Part of `2drcl analyze`: detections before and after (Fig. A.1)."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.analysis.difference_figures import difference_figure
from pipeline.analysis.run_differences import difference, shown, write_differences
from pipeline.analysis.settings import AnalyzeSettings
from pipeline.data.annotations import Annotations
from pipeline.evaluation.predictions import Predictions
from stages.console import say


def before_and_after(
    settings: AnalyzeSettings,
    annotations: Annotations,
    letters: list[str] | None,
    images: Path | None,
    predictions: Mapping[str, Predictions],
    figures: Path,
) -> None:
    """Set the first and the last run side by side where they differ most: differences.csv, .png and .svg.

    Args:
        settings: how many images, and which boxes.
        annotations, letters: the split.
        images: its folder, or None: no figure.
        predictions: of two runs or more.
        figures: the folder for all three.
    """
    first, last = next(iter(predictions)), list(predictions)[-1]
    sides = [shown(annotations, predictions[n], settings.example_score) for n in (first, last)]
    found = difference(annotations, *sides)
    write_differences(figures / "differences.csv", annotations, found, letters)
    if not len(found.images):
        say(f"analyze: {first} and {last} find the same objects: no pictures of differences")
    elif images is not None and settings.examples:
        difference_figure(
            annotations, images, found, (first, last), settings.examples, figures / "differences.png"
        )
