"""`2drcl methods`: the table of fine-tuning methods, or one of them explained."""

from dataclasses import fields
from typing import Any

from rich.table import Table

from pipeline.finetune.method import Method
from pipeline.finetune.methods import METHODS, get_method
from stages.console import OUT, data


def run(name: str | None, as_json: bool) -> None:
    """Print the table, or everything about one method."""
    chosen = METHODS if name is None else {name: get_method(name)}
    if as_json:
        data([_plain(m) for m in chosen.values()], True, [])
    elif name is None:
        table = Table("method", "what it is", "sampler", "score")
        for method in chosen.values():
            table.add_row(method.name, method.summary, method.sampler, method.score)
        OUT.print(table)
    else:
        _explain(chosen[name])


def _explain(method: Method) -> None:
    for key, value in _plain(method).items():
        OUT.print(f"{key:18s} {value}", markup=False, highlight=False)


def _plain(method: Method) -> dict[str, Any]:
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    shown = {k: v for k, v in values.items() if not callable(v)}
    return shown | {"published": [str(row) for row in method.published]}
