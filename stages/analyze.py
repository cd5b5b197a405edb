"""`2drcl analyze`: predictions, and the detectors that made them, -> errors.json and the paper's analyses.

Error types (Fig. 2) and their cost need predictions alone; weight norms (Fig. A.2) need weights; attention
maps (Fig. 3) weights and images; detections before and after (Fig. A.1) a second run and images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifacts
from pipeline.analysis.error_figures import error_bars, error_pies
from pipeline.analysis.error_types import error_types
from pipeline.analysis.settings import AnalyzeSettings
from pipeline.analysis.tide import tide
from pipeline.analysis.tide_figures import tide_bars, write_error_types, write_tide
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.settings import Split
from pipeline.errors import MismatchedInput, SettingsError, UsageError
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.predictions_file import read_predictions
from pipeline.settings import to_plain
from stages.common import Order, answer, default_out, make
from stages.console import say, warn
from stages.evaluate import frequency_letters, source_digest


@dataclass(frozen=True)
class Material:
    """What is looked at.

    predictions: run name -> file; the last one is analysed, those before it stand beside it.  weights: run
    name -> detector.pth, in the order of the figures.  needs_images: the folder was named, it must be right.
    """

    predictions: Mapping[str, Path]
    weights: Mapping[str, Path]
    needs_images: bool


@dataclass(frozen=True)
class _Analysis:
    """One command's inputs, read."""

    order: Order
    settings: AnalyzeSettings
    split: Split
    annotations: Annotations
    letters: list[str] | None
    material: Material
    stats: Path | None


def run(
    order: Order, split: Split, material: Material, stats: Path | None = None, ranks: Path | None = None
) -> None:
    """Sort the best detections of every category into the paper's five types (A.1), and look closer.

    Args:
        order: options.
        split: annotations the predictions are of.
        material: predictions and weights.
        stats: folder of the training split's stats: frequency groups where the annotations carry none, and
            the order of the categories in Fig. A.2.
        ranks: the same for this order alone, if it is of these categories.

    Raises:
        MismatchedInput: the runs were made on other annotations, a checkpoint knows other categories, or an
            image id is unknown.
    """
    settings: AnalyzeSettings = order.params.section("analyze")
    annotations = read_annotations(split.annotations)
    letters = frequency_letters(annotations, stats)
    for name, path in material.predictions.items():
        _refuse_other_annotations(name, path, annotations)
    analysis = _Analysis(order, settings, split, annotations, letters, material, stats or ranks)
    plain = {"analyze": to_plain(settings), "frequency": letters}
    manifest = artifacts.manifest("analyze", plain, _digests(analysis), order.params.seed)
    make(order, manifest, lambda folder: _produce(analysis, folder))
    answer(order)


def run_of_params(order: Order, split: Split, name: str, stats: Path | None = None) -> None:
    """Analyse the products of a run of params.yaml, with those of `analyze.baseline` beside them.

    Weights or training statistics that are not there are left out.

    Raises:
        SettingsError: the baseline is no run, and nothing of that name was evaluated.
    """
    baseline = order.params.section("analyze").baseline
    runs = order.params.section("finetune").runs
    if baseline is not None and baseline not in runs and not default_out("evaluate", baseline).exists():
        raise SettingsError(
            f"analyze.baseline is {baseline!r}, which is no run of finetune.runs",
            f"name one of {', '.join(runs)}, or null",
        )
    names = [name] if baseline in (None, name) else [baseline, name]
    weights = {n: default_out("finetune", n) / "detector.pth" for n in names}
    material = Material(
        predictions={n: default_out("evaluate", n) / "predictions.json" for n in names},
        weights={n: path for n, path in weights.items() if path.exists()},
        needs_images=True,
    )
    of_training = default_out("stats")
    ranks = of_training if (of_training / artifacts.MANIFEST).exists() else None
    run(order, split, material, stats, ranks)


def material_of_files(
    predictions: Sequence[Path], weights: Sequence[Path], needs_images: bool, name: str | None = None
) -> Material:
    """Anybody's files: the first predictions are analysed, as `name` if given; the others stand beside them.

    Raises:
        UsageError: one file twice.
    """
    for option, paths in (("--predictions", predictions), ("--weights", weights)):
        if len({p.resolve() for p in paths}) < len(paths):
            raise UsageError(f"{option}: the same file twice", "name each once")
    analysed = name or next(iter(_named(predictions[:1])))
    others = _named(predictions[1:], taken=(analysed,))
    return Material({**others, analysed: predictions[0]}, _named(weights), needs_images)


def _named(paths: Sequence[Path], taken: Sequence[str] = ()) -> dict[str, Path]:
    """Names as short as can be told apart: the folder's for our own products, else the file's."""
    found: dict[str, Path] = {}
    for path in paths:
        folder = path.absolute().parent.name
        name = folder if path.name in ("predictions.json", "detector.pth") and folder else path.stem
        number = 2
        while name in found or name in taken:
            name, number = f"{name.removesuffix(f' ({number - 1})')} ({number})", number + 1
        found[name] = path
    return found


def _refuse_other_annotations(name: str, predictions: Path, annotations: Annotations) -> None:
    """Where `2drcl evaluate` made the file, its manifest says for which annotations."""
    try:
        made = json.loads(predictions.with_name(artifacts.MANIFEST).read_text(encoding="utf-8"))
        digest = made["inputs"]["annotations"] if made["stage"] == "evaluate" else annotations.digest
    except (OSError, ValueError, KeyError, TypeError):
        return  # anybody's file: its ids are checked
    if digest != annotations.digest:
        raise MismatchedInput(
            f"{name}: {predictions} was made on other annotations ({digest[:8]}) than {annotations.path} "
            f"({annotations.digest[:8]})",
            "runs can be compared on one split alone: evaluate them again, or name their own --annotations",
        )


def _digests(analysis: _Analysis) -> dict[str, str]:
    material, stats = analysis.material, analysis.stats
    found = {"annotations": analysis.annotations.digest}
    for kind in ("predictions", "weights"):
        for name, path in getattr(material, kind).items():
            found[f"{kind} {name}"] = source_digest(path)
    if stats is not None:
        found["stats"] = artifacts.file_digest(stats / "categories.parquet")
    return found


def _produce(analysis: _Analysis, folder: Path) -> None:
    predictions = {
        name: read_predictions(path, analysis.annotations)
        for name, path in analysis.material.predictions.items()
    }
    for name, found in predictions.items():
        for remark in found.remarks(analysis.annotations):
            warn(f"{name}: {remark}")
    figures = folder / "figures"
    figures.mkdir()
    _errors(analysis, predictions, folder)
    if len(predictions) > 1:
        from stages.analyze_pictures import before_and_after

        before_and_after(
            analysis.settings, analysis.annotations, analysis.letters, _images(analysis), predictions, figures
        )
    if analysis.material.weights:
        from stages.analyze_weights import look_inside

        look_inside(analysis, _images(analysis), figures)


def _errors(analysis: _Analysis, predictions: Mapping[str, Predictions], folder: Path) -> None:
    """The five types and the cost of errors, runs side by side."""
    split, letters, figures = analysis.annotations, analysis.letters, folder / "figures"
    types = {
        name: error_types(split, found, letters, analysis.settings.top_n)
        for name, found in predictions.items()
    }
    last = list(types.values())[-1]
    artifacts.write_json(folder / "errors.json", last.to_plain())
    last.table.to_csv(folder / "detections.csv", index=False, lineterminator="\n")
    error_pies(types, figures / "error_types.png")
    error_bars(types, figures / "error_bars.png")
    write_error_types(types, figures / "error_types.csv")
    costs = {name: tide(split, found, letters) for name, found in predictions.items()}
    tide_bars(costs, figures / "tide.png")
    write_tide(costs, figures / "tide.csv")


def _images(analysis: _Analysis) -> Path | None:
    """The image folder, or None where nobody named one and it is not beside the annotations."""
    folder, names = analysis.split.images, analysis.annotations.file_names
    if analysis.material.needs_images or (names and (folder / names[0]).exists()):
        return folder
    say(f"analyze: {folder} holds no images of the split: no pictures (name the folder with --images)")
    return None
