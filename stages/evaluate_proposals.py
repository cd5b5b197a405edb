"""`2drcl evaluate --protocol proposals`: proposals against ground truth -> metrics.json, recall curves.

Nothing is predicted here, so there is no predictions.json.  Proposals are made for the training split, and
that is what they are compared with by default.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.category_split import absent_names, seen_categories
from pipeline.data.settings import Split
from pipeline.errors import SettingsError, first_ten
from pipeline.evaluation import recall_figures
from pipeline.evaluation.proposal_recall import BUDGETS, proposal_recall, recall_metrics
from pipeline.evaluation.recall_figures import CategoryRecall
from pipeline.proposals.store import ProposalStore
from pipeline.settings import to_plain
from stages.common import Order, answer, make, proposals_digest
from stages.console import data, say, track, warn
from stages.evaluate import frequency_letters
from stages.machine import is_first


def run(order: Order, split: Split, proposals: Path, stats: Path | None) -> dict[str, float | None]:
    """Average recall of proposals, by size and by frequency group.

    Args:
        order: options.
        split: whose annotations the proposals were made for.
        proposals: folder of the proposals stage.
        stats: folder of the stats stage, for frequency groups when the annotations carry none.

    Returns:
        metrics.json.
    """
    settings = order.params.section("evaluate")
    annotations = read_annotations(split.annotations)
    inputs = {"annotations": annotations.digest, "proposals": proposals_digest(proposals)}
    letters = frequency_letters(annotations, stats)
    seen = _seen(settings.seen, annotations)
    seen_ids = annotations.category_ids[seen].tolist()
    plain = {"evaluate": to_plain(settings), "frequency": letters, "seen_category_ids": seen_ids}
    manifest = artifacts.manifest("evaluate", plain, inputs, order.params.seed)

    def produce(folder: Path) -> None:
        store = ProposalStore.open(proposals, annotations.digest)
        boxes = (store.of_image(i)[0] for i in annotations.image_ids.tolist())
        tracked = track(boxes, len(annotations.image_ids), "evaluate: images")
        recall = proposal_recall(annotations, tracked, seen)
        _warn_if_few(recall.num_proposals)
        metrics = recall_metrics(recall, annotations, letters)
        artifacts.write_json(folder / "metrics.json", metrics)
        figures = folder / "figures"
        figures.mkdir()
        curves = recall_figures.recall_curves(recall, annotations, letters)
        recall_figures.recall_figure(curves, figures / "recall.png")
        recall_figures.write_curves(curves, figures / "recall.csv")
        found = recall_figures.category_recall(recall, annotations)
        recall_figures.write_categories(found, annotations, letters, figures / "per_category.csv")
        _say_missed(found, letters)

    make(order, manifest, produce)
    if order.dry_run or not is_first():
        return {}
    metrics: dict[str, float | None] = json.loads((order.out / "metrics.json").read_text(encoding="utf-8"))
    data(metrics, order.as_json, _table(metrics))
    if not order.as_json:
        answer(order)
    return metrics


def _seen(seen: str, annotations: Annotations) -> np.ndarray:
    """(C,) bool."""
    if seen == "none":
        return np.zeros(len(annotations.category_ids), dtype=bool)
    if seen == "all":
        raise SettingsError(
            "evaluate.seen is all: no unseen category is left to find", "none looks at every category"
        )
    absent = absent_names(seen, annotations)
    if absent:
        warn(f"evaluate.seen: the annotations have no {first_ten(absent)}")
    return seen_categories(seen, annotations)


def _warn_if_few(num_proposals: np.ndarray) -> None:
    most = int(num_proposals.max(initial=0))
    short = [f"AR@{budget}" for budget in BUDGETS if budget > most]
    if short:
        warn(f"no image has more than {most} proposals: {', '.join(short)} are what these give")


def _say_missed(found: CategoryRecall, letters: list[str] | None) -> None:
    missed, present = found.is_missed, found.num_objects > 0
    text = f"no object of {int(missed.sum())} of {int(present.sum())} categories is found, even at IoU .5"
    if letters is not None:
        of = np.array(letters)
        named = {"rare": "r", "common": "c", "frequent": "f"}
        parts = (f"{name} {(missed & (of == x)).sum()}" for name, x in named.items())
        text += f" ({', '.join(parts)})"
    say(f"evaluate: {text}; figures/per_category.csv names them")


def _table(metrics: Mapping[str, float | None]) -> list[str]:
    """A row per budget, a column per group."""
    columns = {"AR": "AR@{}", "R50": "R50@{}"}
    columns |= {f"AR_{g}": f"AR@{{}}_{g}" for g in "smlrcf" if f"AR@{BUDGETS[0]}_{g}" in metrics}
    lines = ["    k" + "".join(f"{name:>8s}" for name in columns)]
    for budget in BUDGETS:
        cells = (_show(metrics[key.format(budget)]) for key in columns.values())
        lines.append(f"{budget:5d}" + "".join(f"{cell:>8s}" for cell in cells))
    lines.append(f"AUC {_show(metrics['AUC'])}")
    lines.append(f"{metrics['proposals_per_image']:.1f} proposals per image")
    return lines


def _show(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
