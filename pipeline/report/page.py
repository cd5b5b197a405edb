"""A `Report` as one html file: no network, no folder beside it, nothing that a name in the data could break.

Data go into a block of JSON that scripts read with `textContent`; the page's own scripts and styles are named
by their digests in its Content-Security-Policy, so that nothing else can run, and nothing can be fetched.
"""

import base64
import dataclasses
import hashlib
import json
from importlib.resources import files
from string import Template
from typing import Any

from pipeline.artifacts import fingerprint
from pipeline.report.collect import Report

# in the order in which they build on each other
SCRIPTS = ("state.js", "dom.js", "charts.js", "tables.js", "sections.js", "pictures.js", "main.js")
STYLES = ("report.css",)
PAGE = "page.html"


def page(report: Report, title: str) -> str:
    """The whole file.

    Args:
        report: what to show.
        title: plain text, of the window.
    """
    script = "\n".join(_text(name) for name in SCRIPTS)
    style = "\n".join(_text(name) for name in STYLES)
    policy = (
        f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_text(PAGE)).substitute(
        title=_escaped(title), policy=policy, style=style, script=script, data=data_block(report)
    )


def template_digest() -> str:
    """Changes with any file of the page itself, so that a new page is made of old artifacts."""
    return fingerprint({name: _text(name) for name in (PAGE, *STYLES, *SCRIPTS)})


def data_block(report: Report) -> str:
    """The report as JSON that html cannot misread: no `<`, `>` or `&`, whatever the names hold.

    Escaped as \\u003c and so on, they are the same text to a JSON parser; so are the two line separators that
    JSON allows in strings and old JavaScript does not.
    """
    text = json.dumps(plain(report), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    # a lone surrogate, which JSON can hold, is no character that a file could
    text = text.encode("utf-8", "replace").decode("utf-8")
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def plain(report: Report) -> dict[str, Any]:
    """Dicts, lists and numbers; floats rounded to what a page shows."""
    content: dict[str, Any] = _rounded(dataclasses.asdict(report))
    for pair, comparison in zip(content["verdict"]["comparisons"], report.verdict.comparisons, strict=True):
        pair["difference"] = _rounded(comparison.difference)
        pair["is_significant"] = comparison.is_significant
    for shown, run in zip(content["runs"], report.runs, strict=True):
        shown["all_drawn"] = run.all_drawn
        shown["is_pretrained"] = run.is_pretrained
    return content


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _text(name: str) -> str:
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
