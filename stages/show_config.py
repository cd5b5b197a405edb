"""`2drcl show-config`: every setting with its value and the reason for its default, and what is open."""

import dataclasses
from typing import Any

from pipeline.pretrain.open_questions import OPEN_QUESTIONS
from pipeline.settings import to_plain
from stages.console import OUT, data
from stages.params import SECTIONS, Params


def run(params: Params, as_json: bool) -> None:
    """Print all sections, checked."""
    sections = {name: params.section(name) for name in SECTIONS}
    if as_json:
        data({"seed": params.seed, **{n: to_plain(s) for n, s in sections.items()}}, True, [])
        return
    OUT.print(f"seed: {params.seed}", highlight=False)
    for name, section in sections.items():
        OUT.print(f"{name}:", style="bold", highlight=False)
        _print(section, indent=1)
    OUT.print("where the paper is silent about pre-training:", style="bold", highlight=False)
    for question in OPEN_QUESTIONS:
        keys = f" ({', '.join(question.settings)})" if question.settings else ""
        OUT.print(f"  {question.subject}: {question.decision}{keys}", highlight=False, markup=False)


def _print(section: Any, indent: int) -> None:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            OUT.print("  " * indent + f"{field.name}:", highlight=False)
            _print(value, indent + 1)
        else:
            why = field.metadata.get("why", "")
            OUT.print(
                "  " * indent + f"{field.name}: {to_plain(value)}", highlight=False, markup=False, end=""
            )
            OUT.print(f"   # {why}" if why else "", style="dim", highlight=False, markup=False)
