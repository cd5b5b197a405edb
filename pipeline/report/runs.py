"""What is known about one run, from the manifests and products of fine-tuning, evaluation and analysis."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.analysis.error_types import GROUPS, TYPES
from pipeline.report.curves import Curves, curves
from pipeline.report.reader import Reader, number

COUNTED = (*TYPES, "duplicates")
KEYS = ("AP", "AP50", "AP75")  # of one category


@dataclass(frozen=True)
class Run:
    """One run; what is not known is None or empty.

    Args:
        method, init: of fine-tuning, as in params.yaml.
        drawn, drawn_before: images drawn by fine-tuning, and by what its weights came from.
        is_control: drawn for as many images as pre-training and fine-tuning together.
        annotations: digest of what was evaluated on.
        metrics: metrics.json, percent.
        intervals: metric -> (low, high), percent.
        categories: category id -> its AP, AP50, AP75 by kind, e.g. bbox_AP, percent.
        errors: errors.json as group -> type -> (count, percent).
        judged: category id -> type -> boxes, from detections.csv.
        norms: category id -> norm of its classifier weights, and the curve fitted there.
    """

    name: str
    method: str | None
    init: str | None
    drawn: int | None
    drawn_before: int | None
    is_control: bool
    annotations: str | None
    protocol: str | None
    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    categories: dict[int, dict[str, float | None]]
    errors: dict[str, dict[str, Any]]
    judged: dict[int, dict[str, int]]
    norms: dict[int, tuple[float, float | None]]
    history: Curves

    @property
    def is_pretrained(self) -> bool:
        """Whether 2DRCL's pre-training (or another that was ours) came before."""
        return bool(self.drawn_before)

    @property
    def all_drawn(self) -> int | None:
        return None if self.drawn is None else self.drawn + (self.drawn_before or 0)


def read_run(reader: Reader, name: str) -> Run:
    """Everything about run `name`; gaps are left in `reader`."""
    trained = reader.mapping(
        f"finetune/{name}/manifest.json", f"training of {name}", f"2drcl finetune --run {name}"
    )
    evaluate, analyze = f"2drcl evaluate --run {name}", f"2drcl analyze --run {name}"
    evaluated = reader.mapping(f"evaluate/{name}/manifest.json", f"evaluation of {name}", evaluate)
    metrics = (
        reader.mapping(f"evaluate/{name}/metrics.json", f"metrics of {name}", evaluate) if evaluated else {}
    )
    settings = _part(trained, "settings")
    recipe = _part(settings, "run")
    drawn, total = _count(trained.get("images_drawn")), _count(trained.get("images_drawn_with_init"))
    errors = reader.mapping(f"analyze/{name}/errors.json", f"error types of {name}", analyze)
    return Run(
        name=name,
        method=_text(recipe.get("method")),
        init=_text(recipe.get("init")) if recipe else None,
        drawn=drawn,
        drawn_before=None if drawn is None or total is None else total - drawn,
        is_control=bool(_count(settings.get("extra_draws"))),
        annotations=_text(_part(evaluated, "inputs").get("annotations")),
        protocol=_protocol(evaluated),
        metrics=_metrics(reader, name, metrics, evaluate),
        intervals=_intervals(reader, name),
        categories=_categories(reader, name) if evaluated else {},
        errors=_errors(reader, name, errors, analyze),
        judged=_judged(reader, name) if errors else {},
        norms=_norms(reader, name),
        history=curves(
            reader.lines(
                f"finetune/{name}/history.jsonl", f"history of {name}", f"2drcl finetune --run {name}"
            )
            if trained
            else []
        ),
    )


def _metrics(reader: Reader, name: str, content: Mapping[str, Any], todo: str) -> dict[str, float | None]:
    wrong = [key for key, value in content.items() if value is not None and number(value) is None]
    if wrong:
        reader.note(
            f"metrics of {name}",
            f"evaluate/{name}/metrics.json holds no number for {', '.join(sorted(wrong)[:5])}",
            f"{todo} --fresh",
        )
    return {str(key): number(value) for key, value in content.items() if key not in wrong}


def _intervals(reader: Reader, name: str) -> dict[str, tuple[float, float]]:
    content = reader.mapping(f"evaluate/{name}/intervals.json", f"intervals of {name}", "", optional=True)
    found = {}
    for key, value in content.items():
        if isinstance(value, list) and len(value) == 2:
            low, high = number(value[0]), number(value[1])
            if low is not None and high is not None:
                found[key] = (low, high)
    return found


def _categories(reader: Reader, name: str) -> dict[int, dict[str, float | None]]:
    rows = reader.rows(
        f"evaluate/{name}/figures/per_category.csv",
        f"AP per category of {name}",
        f"2drcl evaluate --run {name}",
        ("category_id", "bbox_AP"),
    )
    keys = [f"{kind}_{key}" for kind in ("bbox", "segm") for key in KEYS]
    return {int(row["category_id"]): {key: number(row[key]) for key in keys if key in row} for row in rows}


def _errors(reader: Reader, name: str, content: Mapping[str, Any], todo: str) -> dict[str, dict[str, Any]]:
    groups = {}
    for group in GROUPS:
        found = _part(content, group)
        if number(found.get("n")) is None or not all(_part(found, kind) for kind in COUNTED):
            continue
        shares = {
            kind: (_count(_part(found, kind).get("count")) or 0, number(_part(found, kind).get("percent")))
            for kind in COUNTED
        }
        whole = {key: _count(found.get(key)) or 0 for key in ("n", "categories", "missing")}
        groups[group] = {**whole, **shares}
    if content and len(groups) < len(GROUPS):
        lacking = ", ".join(group for group in GROUPS if group not in groups)
        reader.note(
            f"error types of {name}",
            f"analyze/{name}/errors.json has no whole group {lacking}",
            f"{todo} --fresh",
        )
    return groups


def _judged(reader: Reader, name: str) -> dict[int, dict[str, int]]:
    rows = reader.rows(
        f"analyze/{name}/detections.csv",
        f"judged boxes of {name}",
        f"2drcl analyze --run {name}",
        ("category_id", "type"),
    )
    counts: dict[int, Counter[str]] = {}
    for row in rows:
        if row["type"] in TYPES:
            counts.setdefault(int(row["category_id"]), Counter())[row["type"]] += 1
    return {category: dict(found) for category, found in counts.items()}


def _norms(reader: Reader, name: str) -> dict[int, tuple[float, float | None]]:
    """Of weight_norms.csv the rows of this run: the file may have others beside it."""
    rows = reader.rows(
        f"analyze/{name}/figures/weight_norms.csv",
        f"weight norms of {name}",
        f"2drcl analyze --run {name}",
        ("run", "category_id", "norm"),
        optional=True,
    )
    return {
        int(row["category_id"]): (found, number(row.get("fitted")))
        for row in rows
        if row["run"] == name
        if (found := number(row["norm"])) is not None
    }


def _protocol(evaluated: Mapping[str, Any]) -> str | None:
    asked = _part(_part(evaluated, "settings"), "evaluate").get("protocol")
    return _text(evaluated.get("protocol")) or _text(asked)


def _part(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}


def _count(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
