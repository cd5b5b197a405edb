"""`2drcl methods`: the table of fine-tuning methods, or one of them explained."""

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.finetune.method import ONE_STAGE, ClassCounts, Method
from pipeline.finetune.methods import METHODS, get_method
from stages import loss_source, method_heads
from stages.console import OUT, data

WIDTH = 100  # characters
FROM_STATS = ("num_classes", *(f.name for f in fields(ClassCounts)))
ANY_COUNTS = ClassCounts((1, 1), (1, 1), 2)  # entries are asked for their constants only
LEGEND = (
    "s = logit, p = sigmoid(s), C = classes, label C = background (bg), n = training instances of a class, "
    "f = share of images that show it, [..] = 1 or 0; losses are means over RoIs, or as the formula says"
)
_CE = "-log softmax(s)_label"
FORMULAS = {
    "ce": _CE,
    "bce": "sum over the C + 1 columns of -[label] log p - [not label] log(1 - p)",
    "rfs": f"{_CE}; an image is drawn max(1, sqrt(t / f)) times for the rarest of its classes",
    "irfs": f"{_CE}; as rfs, with f = sqrt(share of images x share of instances)",
    "eql": "sum_j w_j BCE(p_j); w_j = 0 for f_j < lambda in the row of an object of another class, else 1",
    "eqlv2": "sum_j w_j BCE(p_j); g = positive / negative gradients so far, w = sigmoid(gamma (g - mu)) "
    "where the answer is no, 1 + alpha (1 - w) at the label",
    "droploss": "as eql; in background rows w_j of infrequent classes is 1 with probability rho, the share "
    "of infrequent objects in the batch, else 0",
    "seesaw": "-log softmax(s + log S)_label, S_j = min(1, n_j / n_label)^p max(1, P_j / P_label)^q with n "
    "as seen so far; plus cross-entropy of object against bg",
    "ecm": "sum_j w_j BCE(sigmoid(2 s_j + ln(n_j / m_j) / 4)), m = all other instances, "
    "w = (m / n) ln(1 + n / m); n_bg = fg_bg_ratio x all instances",
    "bags": "sum over groups of softmax cross-entropy, each group with a column for all others; of these "
    "up to beta per own RoI are drawn; plus object against bg",
    "acsl": "BCE(p_label) plus the sum of -log(1 - p_j) over j with p_j >= score_thr; bg rows suppress "
    "frequent classes always, common ones in 10 %, rare ones in 1 % of the rows",
    "pcb": f"(1 - a) ({_CE}) + a KL(Q_.label / sum || softmax(s)), Q = running confusion matrix, "
    "a = 0 before start_epoch",
    "loce": "-log softmax(s + ln m)_label, m = running mean of the probability that objects give their class",
    "bacl": "sum_j k_j BCE(sigmoid(s_j + alpha ln(Q_label,j / Q_j,label))), Q = running confusion matrix, "
    "k_j = [score_j >= min(own score, prob_thr)], 1 in bg rows",
    "focal": "sum_j -a_j (1 - P_j)^gamma log P_j; at the label P = p, a = alpha, elsewhere P = 1 - p, "
    "a = 1 - alpha; sum over anchors / positive anchors of all processes",
    "ecm on atss": "as focal, p_j = sigmoid(2 s_j + ln(n_j / m_j) / 4), times w_j = (m / n) ln(1 + n / m); "
    "m = all other instances, without bg",
    "rog": "BCE plus the mean over classes and their objects i of wrong_i / rank_i among all N x C logits; "
    "gradient times lam (1 / RoIs of the class)^gamma",
}


def run(name: str | None, as_json: bool) -> None:
    """Print the table, or everything about one method.

    Raises:
        UsageError: no such method.
    """
    chosen = list(METHODS.values()) if name is None else [get_method(name)]
    if as_json:
        data([explanation(m) for m in chosen], True, [])
    elif name is None:
        OUT.print(_table(chosen))
        data(None, False, _notes())
    else:
        data(None, False, _lines(explanation(chosen[0])))


def _table(methods: list[Method]) -> Table:
    width = min(WIDTH, OUT.width) if OUT.is_terminal else WIDTH
    table = Table(box=SIMPLE_HEAD, width=width, pad_edge=False, padding=0)
    for column in ("method", "what it is", "columns", "score", "sampler", "epochs", "state", "AP/APr"):
        wrapped = {"what it is": 20, "score": 15, "state": 17}.get(column)
        table.add_column(column, no_wrap=wrapped is None, width=wrapped)
    for method in methods:
        found = explanation(method)
        paper = "/".join(f"{v:.1f}" for v in _headline(method).values()) or "-"
        score = method.score.replace("background", "bg").replace("object", "obj")
        cells = (found["classifier_columns"], score, method.sampler, found["stages"])
        table.add_row(method.name, method.summary, *cells, "\n".join(found["state"]) or "-", paper)
    return table


def _notes() -> list[str]:
    return [
        "columns: logits per RoI; epochs: of the authors, stage 1 + stage 2; state: kept in checkpoints.",
        "AP/APr: box, LVIS v1, ResNet-50, without 2DRCL: Table A.1, else 3a, 3b, A.2.",
        f"detectors: faster-rcnn and mask-rcnn have all but {_missing('mask-rcnn')}; atss has "
        f"{', '.join(m.name for m in METHODS.values() if ONE_STAGE in m.detectors)}.",
        "`2drcl methods NAME` explains one: formula, settings, recipe, source, published rows.",
    ]


def _headline(method: Method) -> dict[str, float]:
    """Box AP, and APr where it is published, of the plain ResNet-50 detector."""
    for table in ("A.1", "3a", "3b", "A.2"):
        for row in method.published:
            if row.table == table and row.detector.endswith("_r50") and not row.with_2drcl:
                return {k: row.metrics[k] for k in ("bbox_AP", "bbox_APr") if k in row.metrics}
    return {}


def _missing(detector: str) -> str:
    return ", ".join(m.name for m in METHODS.values() if detector not in m.detectors)


def explanation(method: Method) -> dict[str, Any]:
    """All that is known of a method, plain data; `on_atss`: what of it is another there."""
    found = _explanation(method, method.name)
    if method.on_atss is None:
        return found
    there = _explanation(method.on(ONE_STAGE), f"{method.name} on {ONE_STAGE}")
    there["recipe"] = {k: v for k, v in there["recipe"].items() if v != found["recipe"][k]}
    return found | {"on_atss": {k: v for k, v in there.items() if v != found[k]}}


def _explanation(method: Method, formula: str) -> dict[str, Any]:
    first_shown = ("name", "summary", "score", "sampler", "reference", "loss", "detectors", "on_atss")
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    recipe = {k: v for k, v in values.items() if k not in first_shown and not callable(v)}
    stage = method.second_stage
    return {
        **{k: values[k] for k in first_shown[:-1]},
        "detectors": list(method.detectors),
        "on_atss": None,
        "formula": FORMULAS[formula],
        "description": loss_source.description(method.loss),
        "classifier_columns": loss_source.columns(method.loss),
        "state": loss_source.state(method.loss) + method_heads.state(method),
        "stages": str(method.epochs) if stage is None else f"{method.epochs}+{stage.epochs}",
        "recipe": recipe | {"second_stage": None if stage is None else asdict(stage)},
        "settings": _settings(method),
        "head_settings": method_heads.settings(method),
        "deviations": loss_source.deviations(method.loss),
        "published": [asdict(row) | {"metrics": dict(row.metrics)} for row in method.published],
    }


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """An explanation for reading."""
    yield f"{found['name']}: {found['summary']}"
    yield from _item("formula", found["formula"])
    yield from _item("", LEGEND)
    for key in ("score", "classifier_columns", "sampler", "loss", "reference"):
        yield from _item(key.replace("_", " "), found[key])
    yield from _item("detectors", ", ".join(found["detectors"]))
    yield from _item("state", ", ".join(found["state"]) or "none")
    for title, paragraphs in (("how", found["description"]), ("and the official code", found["deviations"])):
        for number, paragraph in enumerate(paragraphs):
            yield from (["", title] if number == 0 else [])
            yield from _wrapped(paragraph, "  ")
    yield from ("", "recipe")
    for key, value in found["recipe"].items():
        yield from _item(f"  {key}", _short(value))
    yield from ("", "settings of the loss; a run changes them by finetune.runs.NAME.loss: {setting: value}")
    yield from _settings_lines(found["settings"])
    if found["head_settings"]:
        yield from (
            "",
            "settings of the RoI head; a run changes them by finetune.runs.NAME.head: {setting: value}",
        )
    yield from _settings_lines(found["head_settings"])
    yield from _on_atss_lines(found["on_atss"])
    yield from ("", "published" if found["published"] else "published: no row in the paper")
    for row in found["published"]:
        values = ", ".join(
            f"{k if k.endswith('AP') else k[-1]} {v:.1f}" for k, v in row["metrics"].items()
        ).replace(", ", " ", 3)
        start = "2DRCL" if row["with_2drcl"] else "plain"
        yield f"  Table {row['table']:4s}{row['detector']:17s}{row['schedule']:7s}{start:7s}{values}"


def _settings_lines(settings: list[dict[str, Any]]) -> Iterator[str]:
    for setting in settings:
        yield from _item(f"  {setting['name']}", _setting_text(setting))


def _on_atss_lines(found: dict[str, Any] | None) -> Iterator[str]:
    """What is another on ATSS, of a method that is defined for two-stage detectors too."""
    if found is None:
        return
    yield from ("", "on atss")
    for key in ("formula", "score", "classifier_columns", "loss", "reference"):
        yield from _item(f"  {key.replace('_', ' ')}", found[key])
    for paragraph in found["description"]:
        yield from _wrapped(paragraph, "  ")
    for key, value in found["recipe"].items():
        yield from _item(f"  {key}", _short(value))
    yield from _settings_lines(found["settings"])


def _item(key: str, text: str) -> list[str]:
    indent = 27
    wrapped = textwrap.wrap(text, WIDTH - indent) or [""]
    return [f"{key:{indent - 1}s} {wrapped[0]}", *(" " * indent + line for line in wrapped[1:])]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_short(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value)) or "none"
    return "none" if value is None else str(value)


def _setting_text(setting: dict[str, Any]) -> str:
    differs = setting["value"] != setting["default"]
    default = f" (default {_short(setting['default'])})" if differs else ""
    return f"{_short(setting['value'])}{default}.  {setting['meaning']}"


def _settings(method: Method) -> list[dict[str, Any]]:
    """Arguments of the loss: name, value of this method, default, and meaning."""
    given = method.loss_config(2, ANY_COUNTS)
    given.pop("type")
    known = loss_source.arguments(method.loss) or {k: (v, "see MMDetection") for k, v in given.items()}
    found = []
    for name, (default, meaning) in known.items():
        values = {"value": given.get(name, default), "default": default}
        if name in FROM_STATS:
            values = dict.fromkeys(values, "from the annotations")
        found.append({"name": name, **values, "meaning": meaning})
    return found
