"""`2drcl evaluate`: weights or predictions -> predictions.json, metrics.json."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.images import check_files
from pipeline.data.settings import Split
from pipeline.errors import MismatchedInput, MissingInput, first_ten
from pipeline.evaluation.bootstrap import bootstrap
from pipeline.evaluation.figures import metrics_figure
from pipeline.evaluation.intervals import read_intervals, write_intervals
from pipeline.evaluation.metrics import Scores, default_protocol, score
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.predictions_file import read_predictions, write_predictions
from pipeline.settings import to_plain
from pipeline.stats.frequencies import CategoryFrequencies
from stages import preflight
from stages.common import Order, answer, make, refuse_own_input
from stages.console import data, track, warn
from stages.machine import is_first


def run(
    order: Order, split: Split, *, weights: Path | None, predictions: Path | None, stats: Path | None
) -> dict[str, float | None]:
    """Score a detector, or anybody's predictions, on a split.

    Args:
        order: options.
        split: annotations and images to score on.
        weights: a detector.pth with its config.py; or
        predictions: a file in COCO's results format.
        stats: folder of the stats stage of the *training* split, for frequency groups when the annotations
            carry none.

    Returns:
        metrics.json.
    """
    settings = order.params.section("evaluate")
    source = predictions or weights
    assert source is not None
    refuse_own_input(order.out, source, split.annotations)
    annotations = read_annotations(split.annotations)
    inputs = {"annotations": annotations.digest, "source": source_digest(source)}
    if weights is not None and weights.with_name("config.py").exists():
        inputs["config"] = artifacts.file_digest(weights.with_name("config.py"))
    frequency = frequency_letters(annotations, stats)
    counts = instance_counts(annotations, stats) if settings.protocol == "coco-lt" else None
    plain = {"evaluate": to_plain(settings), "frequency": frequency}
    plain |= {} if counts is None else {"instance_counts": counts.tolist()}
    facts = _scored_on(annotations, settings.protocol)
    manifest = artifacts.manifest("evaluate", plain, inputs, order.params.seed, **facts)

    def produce(folder: Path) -> None:
        if predictions is not None:
            found = read_predictions(predictions, annotations)
        else:
            found = _detect(order, annotations, split, source)
        for remark in (*found.remarks(annotations), *_remarks(annotations, frequency)):
            warn(remark)
        write_predictions(folder / "predictions.json", annotations, found)
        found = read_predictions(folder / "predictions.json", annotations)  # score what everybody can read
        scores = score(annotations, found, settings, frequency, counts)
        (folder / "figures").mkdir()
        _write_scores(folder, order, annotations, scores, frequency)
        if settings.bootstrap:
            write_intervals(folder, _resample(scores, annotations, settings.bootstrap, order.params.seed))

    make(order, manifest, produce)
    if order.dry_run or not is_first():
        return {}
    return _tell(order)


def _remarks(annotations: Annotations, frequency: list[str] | None) -> list[str]:
    if frequency is not None or not annotations.is_lvis:
        return []
    return ["no category has a frequency, so there is no APr, APc, APf: give the training split's --stats"]


def _tell(order: Order) -> dict[str, float | None]:
    """The metrics on stdout, with their intervals where there are any."""
    metrics: dict[str, float | None] = _read_json(order.out / "metrics.json")
    intervals = read_intervals(order.out)
    lines = (f"{name:12s} {_show(value, intervals.get(name))}" for name, value in metrics.items())
    data(metrics, order.as_json, lines)
    if not order.as_json:
        answer(order)
    return metrics


def _write_scores(
    folder: Path, order: Order, annotations: Annotations, scores: Scores, frequency: list[str] | None
) -> None:
    artifacts.write_json(folder / "metrics.json", scores.metrics)
    metrics_figure({order.out.name: scores.metrics}, folder / "figures" / "metrics.png")
    _write_per_category(folder / "figures" / "per_category.csv", annotations, scores, frequency)


def _scored_on(annotations: Annotations, protocol: str) -> dict[str, Any]:
    """What tells a known benchmark from other data."""
    named = default_protocol(annotations) if protocol == "auto" else protocol
    return {"protocol": named, "num_categories": len(annotations.category_ids)}


def source_digest(source: Path) -> str:
    """Of the file to look at.

    Raises:
        MissingInput: it is not there; says which command makes it.
    """
    if not source.exists():
        makers = {"detector.pth": "finetune", "predictions.json": "evaluate"}
        maker = makers.get(source.name)
        raise MissingInput(f"{source} does not exist", f"run `2drcl {maker}` first" if maker else "")
    return artifacts.file_digest(source)


def instance_counts(annotations: Annotations, stats: Path | None) -> np.ndarray | None:
    """(C,) instances in the training split, None without its stats.

    Raises:
        MismatchedInput: the stats know other categories.
    """
    return None if stats is None else _categories(annotations, stats).instance_count


def frequency_letters(annotations: Annotations, stats: Path | None) -> list[str] | None:
    """r, c, f of each category: the annotations' own, else those of the training split's stats.

    Raises:
        MismatchedInput: the stats know other categories.
    """
    if stats is None:
        return annotations.frequency
    return list(_categories(annotations, stats).frequency)


def _categories(annotations: Annotations, stats: Path) -> CategoryFrequencies:
    from pipeline.stats.tables import read_categories

    found = read_categories(stats / "categories.parquet")
    hint = "give the stats of its train split"
    if not np.array_equal(found.category_ids, annotations.category_ids):
        raise MismatchedInput(f"{stats} has other categories than {annotations.path}", hint)
    names = zip(found.category_ids.tolist(), found.names, annotations.category_names, strict=True)
    other = [f"{number} is {theirs} and {ours}" for number, theirs, ours in names if theirs != ours]
    if other:
        raise MismatchedInput(
            f"{stats} and {annotations.path} mean other categories by the same ids: {first_ten(other)}", hint
        )
    return found


def _detect(order: Order, annotations: Annotations, split: Split, weights: Path | None) -> Predictions:
    """Run the detector over the split."""
    from pipeline.detectors.inference import detect

    check_files(split.images, annotations.file_names)
    assert weights is not None
    device = order.machine.one_device()
    use_gpu = device.type == "cuda"
    workers = order.machine.loader_workers(use_gpu)
    preflight.check(1, workers, use_gpu=use_gpu)
    model, test_wh = load_detector(weights, annotations)
    found = detect(model.to(device), annotations, split.images, test_wh, device, workers=workers)
    return _as_columns(track(found, len(annotations.image_ids), "evaluate: images"))


def load_detector(weights: Path, annotations: Annotations) -> tuple[Any, tuple[int, int]]:
    """A published detector for the categories of a split: in eval mode, and (long, short) side at test time.

    Raises:
        MismatchedInput: it was trained on other categories.
    """
    import pipeline.finetune.heads  # registers the methods' losses and heads, which decide on the scores
    from pipeline.detectors.publish import load_published

    assert pipeline.finetune
    model, classes, test_wh = load_published(weights)
    if classes != annotations.category_names:
        raise MismatchedInput(
            f"{weights} knows {len(classes)} categories ({', '.join(classes[:3])}, ...), "
            f"{annotations.path} has {len(annotations.category_ids)} "
            f"({', '.join(annotations.category_names[:3])}, ...)",
            "use annotations with the categories of training, in the same order",
        )
    return model, test_wh


def _as_columns(found: Iterator[Any]) -> Predictions:
    """Detections of all images as one set of columns."""
    images, labels, boxes, scores = (
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
        [np.zeros((0, 4))],
        [np.zeros(0)],
    )
    masks: list[Any] = []
    with_masks = False
    for one in found:
        images.append(np.full(len(one.scores), one.image))
        labels.append(one.labels)
        boxes.append(one.boxes.astype(np.float64))
        scores.append(one.scores.astype(np.float64))
        if one.masks is not None:
            with_masks = True
            masks.extend(one.masks)
    return Predictions.from_xyxy(
        np.concatenate(images),
        np.concatenate(labels),
        np.concatenate(boxes),
        np.concatenate(scores),
        masks if with_masks else None,
    )


def _write_per_category(
    path: Path, annotations: Annotations, scores: Scores, frequency: list[str] | None
) -> None:
    """One row per category: the question every user asks."""
    names = dict(zip((int(i) for i in annotations.category_ids), annotations.category_names, strict=True))
    letters = frequency or [""] * len(names)
    keys = sorted({key for row in scores.per_category.values() for key in row})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["category_id", "name", "frequency", *keys])
        for (number, name), letter in zip(names.items(), letters, strict=True):
            row = scores.per_category.get(number, {})
            writer.writerow(
                [number, name, letter, *("" if row.get(k) is None else repr(row[k]) for k in keys)]
            )


def _resample(scores: Scores, annotations: Annotations, num_samples: int, seed: int) -> dict[str, np.ndarray]:
    def progress(starts: Sequence[int]) -> Iterator[int]:
        return track(iter(starts), len(starts), "evaluate: resamples, 50 at a time")

    return bootstrap(scores.weigh, len(annotations.image_ids), num_samples, seed, progress)


def _read_json(path: Path) -> Any:
    import json

    return json.loads(path.read_text(encoding="utf-8"))


def _show(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "n/a (no category)"
    return f"{value:.2f}" + (f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
