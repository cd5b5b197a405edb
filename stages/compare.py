"""`2drcl compare A B`: evaluations side by side, with what each was trained on; or two stats folders."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline import artifacts
from pipeline.errors import InputError, MismatchedInput, MissingInput, UsageError
from stages.console import OUT, data, say, warn

STAGES = ("evaluate", "stats")
SHOWN = (
    *("bbox_AP", "bbox_AP50", "bbox_APr", "bbox_APc", "bbox_APf", "segm_AP", "segm_APr"),
    *("AR@100", "AR@1000", "AR@1000_r", "AR@1000_c", "AR@1000_f", "AUC"),
)
DIFFERENCES = 10  # categories listed; --json has them all


def run(folders: list[Path], as_json: bool) -> None:
    """Print one row per evaluation, or two stats folders beside each other.

    Raises:
        UsageError: folders of both stages, or another number of stats folders than two.
        InputError and its children: a folder is missing, broken, or of another stage.
    """
    stages = [_stage(folder) for folder in folders]
    if len(set(stages)) > 1:
        listed = ", ".join(f"{folder} ({stage})" for folder, stage in zip(folders, stages, strict=True))
        raise UsageError(f"evaluations and stats cannot be compared: {listed}", "name folders of one stage")
    if stages[0] == "stats":
        if len(folders) != 2:
            raise UsageError(f"stats are compared two at a time, but {len(folders)} folders are given")
        _compare_stats(folders, as_json)
        return
    rows = [_row(folder) for folder in folders]
    _check_same_split(folders)
    _remark_on_protocols(folders)
    pair = _paired(folders, rows)
    if as_json:
        data({"runs": rows, "differences": pair} if pair else rows, True, [])
        return
    keys = [k for k in SHOWN if any(k in row["metrics"] for row in rows)]
    table = Table("run", *(k.replace("bbox_", "") for k in keys), "images drawn", title="in percent")
    for row in rows:
        values = (row["metrics"].get(k) for k in keys)
        cells = ("n/a" if v is None else f"{v:.2f}" for v in values)
        table.add_row(row["run"], *cells, row["images_drawn"])
    OUT.print(table)
    if pair:
        _print_paired(pair, rows)
    elif len(folders) == 2:
        say("is the difference real?  evaluate both with --bootstrap 1000, and compare again")


def _check_same_split(folders: list[Path]) -> None:
    """Two numbers on different images say nothing about two runs.

    Raises:
        MismatchedInput: evaluations of different annotations.
    """
    digests = [
        artifacts.read_manifest(folder, "evaluate").get("inputs", {}).get("annotations") for folder in folders
    ]
    for folder, digest in zip(folders[1:], digests[1:], strict=True):
        if None not in (digest, digests[0]) and digest != digests[0]:
            raise MismatchedInput(
                f"{folders[0]} and {folder} were evaluated on different annotations",
                "evaluate both on the same file",
            )


def _remark_on_protocols(folders: list[Path]) -> None:
    """LVIS beside LVIS-Fixed is a fair question, but no difference between runs."""
    named = {str(folder): artifacts.read_manifest(folder, "evaluate").get("protocol") for folder in folders}
    if len(set(named.values()) - {None}) > 1:
        listed = ", ".join(f"{folder} by {protocol}" for folder, protocol in named.items())
        warn(f"scored by different protocols: {listed}")


def _paired(folders: list[Path], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Differences of two runs with their intervals, empty unless both were evaluated with resamples."""
    from pipeline.evaluation.intervals import SAMPLES, paired

    if len(folders) != 2 or not all((folder / SAMPLES).exists() for folder in folders):
        return {}
    found = paired(folders[0], folders[1], [row["metrics"] for row in rows])
    return {name: asdict(difference) for name, difference in found.items()}


def _print_paired(differences: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    title = f"{rows[1]['run']} - {rows[0]['run']}, on the same resamples of the images"
    table = Table("metric", "difference", "95 % interval", "p", title=title)
    for name, found in differences.items():
        if found["value"] is None or found["interval"] is None:
            table.add_row(name, "n/a", "", "")
            continue
        low, high = found["interval"]
        table.add_row(name, f"{found['value']:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{found['p']:.3f}")
    OUT.print(table)


def _stage(folder: Path) -> str:
    """Which of the stages that can be compared wrote a folder.

    Raises:
        MissingInput: none did yet.
        MismatchedInput: another one did.
    """
    wanted = "name folders written by `2drcl evaluate` or by `2drcl stats`"
    for stage in STAGES:
        try:
            artifacts.read_manifest(folder, stage)
        except MissingInput:
            raise MissingInput(f"{folder} holds nothing finished", wanted) from None
        except MismatchedInput as other:
            found = other
        else:
            return stage
    raise MismatchedInput(f"{found.message} or `evaluate`", wanted)


def _row(folder: Path) -> dict[str, Any]:
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(
            f"{folder / 'metrics.json'} cannot be read: {problem}", "evaluate again with --fresh"
        ) from None
    return {"run": folder.name, "metrics": metrics, "images_drawn": _images_drawn(folder)}


def _images_drawn(folder: Path) -> str:
    """Fine-tuning's draws, and those of the pre-training before it: a comparison is fair at an equal sum."""
    trained = folder.parent.parent / "finetune" / folder.name
    if not (trained / artifacts.MANIFEST).exists():
        return "unknown"
    made = artifacts.read_manifest(trained, "finetune")
    own, total = int(made["images_drawn"]), int(made["images_drawn_with_init"])
    return f"{own}" if total == own else f"{total - own} + {own} = {total}"


def _compare_stats(folders: list[Path], as_json: bool) -> None:
    from pipeline.stats.comparison import differences, match, read_stats, summarize

    sides = [read_stats(folder) for folder in folders]
    matched = len(match(sides[0].frequencies, sides[1].frequencies)[0])
    content = {
        "stats": [
            {"folder": str(folder), "groups": summarize(side), "expected_draws": side.draws}
            for folder, side in zip(folders, sides, strict=True)
        ],
        "settings": _changed_settings(folders),
        "matched": matched,
        "unmatched": [len(side.frequencies.names) - matched for side in sides],
        "differences": differences(sides[0], sides[1], most=matched),
    }
    if as_json:
        data(content, True, [])
    else:
        _print_stats(content)


def _changed_settings(folders: list[Path]) -> dict[str, list[Any]]:
    """The settings whose values differ."""
    flat = []
    for folder in folders:
        made = artifacts.read_manifest(folder, "stats").get("settings", {})
        if "stats" not in made:
            raise InputError(
                f"the manifest of {folder} lacks its settings", "run `2drcl stats --fresh` again"
            )
        flat.append({**made["stats"], "epochs": made.get("epochs")})
    keys = sorted(set(flat[0]) | set(flat[1]))
    pairs = {key: [side.get(key) for side in flat] for key in keys}
    return {key: values for key, values in pairs.items() if values[0] != values[1]}


def _print_stats(content: dict[str, Any]) -> None:
    from pipeline.stats.comparison import GROUPS, KINDS

    sides = content["stats"]
    for name, side in zip("AB", sides, strict=True):
        OUT.print(f"{name}: {side['folder']}", markup=False, highlight=False)
    for key, (a, b) in content["settings"].items():
        OUT.print(f"stats.{key}: A {a}, B {b}", markup=False, highlight=False)
    table = Table("group", "", "A", "B", title="factors: categories repeated / mean / largest")
    for group in GROUPS:
        rows = [side["groups"][group] for side in sides]
        table.add_row(group, "categories", *(f"{row['categories']:,}" for row in rows))
        table.add_row("", "images (sum)", *(f"{row['image_count']:,}" for row in rows))
        table.add_row("", "instances", *(f"{row['instance_count']:,}" for row in rows))
        for kind in KINDS:
            table.add_row("", _title(kind), *(_factors(row, kind) for row in rows))
        table.add_section()
    for kind in KINDS:
        draws = [side["expected_draws"] for side in sides]
        cells = ("unknown" if d is None else f"{d[kind]:,.0f}" for d in draws)
        table.add_row("draws" if kind == KINDS[0] else "", _title(kind), *cells)
    OUT.print(table)
    _print_differences(content)


def _title(kind: str) -> str:
    return kind.replace("drb_", "drb, ")


def _factors(row: dict[str, Any], kind: str) -> str:
    if not row["categories"]:
        return "n/a"
    return f"{row[f'{kind}_repeated']:,} / {row[f'{kind}_mean']:.2f} / {row[f'{kind}_max']:.2f}"


def _print_differences(content: dict[str, Any]) -> None:
    from pipeline.stats.comparison import KINDS

    only, found = content["unmatched"], content["differences"]
    if any(only):
        OUT.print(
            f"{content['matched']} categories are in both by name, {only[0]} only in A, {only[1]} only in B"
        )
    if not found:
        OUT.print("no category of both differs in its factors")
        return
    title = f"factors that differ most: {min(len(found), DIFFERENCES)} of {len(found)} categories, A above B"
    table = Table("category", "group", "images", *map(_title, KINDS), title=title)
    for row in found[:DIFFERENCES]:
        factors = (_both([f"{value:.2f}" for value in row[kind]]) for kind in KINDS)
        images = _both([f"{value:,}" for value in row["image_count"]])
        table.add_row(Text(row["name"]), _both(row["frequency"]), images, *factors)
    OUT.print(table)


def _both(texts: list[str]) -> str:
    """One line where A and B agree, else two: side by side they do not fit on a terminal."""
    return texts[0] if texts[0] == texts[1] else "\n".join(texts)
