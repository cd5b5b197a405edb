"""What the source of a loss says of it: signature and docstrings, so that nothing can differ from what runs.

The source is parsed and not imported, which would take torch.
"""

import ast
import functools
import re
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

PACKAGE = "pipeline.finetune"
ON_OFFICIAL = re.compile(r"\bofficial|\breleased|\bmmdet (3\.3|counts)")  # sentences about other code

Definition = ast.ClassDef | ast.FunctionDef


@functools.cache
def _modules() -> dict[str, ast.Module]:
    """Every file of pipeline.finetune and of its heads, by its dotted name."""
    found: dict[str, ast.Module] = {}
    for package in (PACKAGE, f"{PACKAGE}.heads"):
        paths = [
            p for p in files(PACKAGE).joinpath(*package.split(".")[2:]).iterdir() if p.name.endswith(".py")
        ]
        found |= {f"{package}.{p.name[:-3]}": ast.parse(p.read_text(encoding="utf-8")) for p in paths}
    return found


@functools.cache
def _definitions() -> dict[str, Definition]:
    """Top-level classes and functions of pipeline.finetune, by name."""
    nodes = (node for module in _modules().values() for node in module.body)
    return {node.name: node for node in nodes if isinstance(node, Definition)}


def _class_of(loss: str) -> ast.ClassDef | None:
    """The class of a dotted path; None for mmdet's losses."""
    node = _definitions()[loss.rpartition(".")[2]] if "." in loss else None
    return node if isinstance(node, ast.ClassDef) else None


def _ancestry(node: ast.ClassDef | None) -> Iterator[ast.ClassDef]:
    """The class and its bases in pipeline.finetune, nearest first."""
    while node is not None:
        yield node
        bases = [_definitions().get(ast.unparse(base)) for base in node.bases]
        node = next((base for base in bases if isinstance(base, ast.ClassDef)), None)


def _docstring(node: Any) -> str:
    return ast.get_docstring(node) or ""


def description(loss: str) -> list[str]:
    """Paragraphs of the module docstring, without the paper before and the names of shapes behind them."""
    if "." not in loss:
        return ["MMDetection's own loss and classifier."]
    paragraphs = _docstring(_modules()[loss.rpartition(".")[0]]).split("\n\n")[1:]
    return [" ".join(p.split()) for p in paragraphs if not re.match(r"[A-Z] = ", p)]


def columns(loss: str) -> str:
    """Width of the classifier, as the docstring or the class attribute says it."""
    if loss == "FocalLoss":
        return "C"
    for node in _ancestry(_class_of(loss)):
        if said := re.search(r"\((C(?: \+ \w)*) (?:\w+ )?columns\)", _docstring(node)):
            return said.group(1)
    return "C + 1"


def state(loss: str) -> list[str]:
    """Names of what is in checkpoints beside parameters, that of submodules included."""
    node = _class_of(loss)
    return _extra_state(node) + _buffers(node, "")


def _extra_state(node: ast.ClassDef | None) -> list[str]:
    """Keys of the mapping that `get_extra_state` returns."""
    made = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef)] if node else []
    bodies = [n for n in made if n.name == "get_extra_state"]
    kept = [n for body in bodies for n in ast.walk(body) if isinstance(n, ast.Return)]
    keys = [key for r in kept if isinstance(r.value, ast.Dict) for key in r.value.keys if key is not None]
    return [ast.literal_eval(key) for key in keys]


def _buffers(node: ast.ClassDef | None, prefix: str) -> list[str]:
    found: list[str] = []
    for owner in reversed(list(_ancestry(node))):
        for call in (n for n in ast.walk(owner) if isinstance(n, ast.Call)):
            constant = any(k.arg == "persistent" for k in call.keywords)
            if ast.unparse(call.func) == "self.register_buffer" and not constant:
                found.append(prefix + ast.literal_eval(call.args[0]))
        for made in (n for n in ast.walk(owner) if isinstance(n, ast.Assign)):
            kind = _definitions().get(ast.unparse(made.value).partition("(")[0])
            if isinstance(kind, ast.ClassDef) and isinstance(made.value, ast.Call):
                found += _buffers(kind, f"{prefix}{ast.unparse(made.targets[0]).removeprefix('self.')}.")
    return found


def arguments(loss: str) -> dict[str, tuple[Any, str]]:
    """Name -> default (None too where there is none) and meaning, of the constructor; {} for mmdet's."""
    node = _class_of(loss)
    if node is None:
        return {}
    makers = (n for owner in _ancestry(node) for n in owner.body if isinstance(n, ast.FunctionDef))
    signature = next(n for n in makers if n.name == "__init__").args
    names = [a.arg for a in (*signature.args[1:], *signature.kwonlyargs)]
    given = [*signature.defaults, *(d or ast.Constant(None) for d in signature.kw_defaults)]
    required = [None] * (len(names) - len(given))
    defaults = [*required, *map(ast.literal_eval, given)]
    meanings = _meanings(node)
    return {n: (d, meanings.get(n, "")) for n, d in zip(names, defaults, strict=True)}


def _meanings(node: Definition) -> dict[str, str]:
    """Name -> text of the Args in docstrings; what they only refer to is looked up there."""
    found: dict[str, str] = {}
    for owner in reversed(list(_ancestry(node))) if isinstance(node, ast.ClassDef) else [node]:
        section = re.search(r"^Args:\n(.*?)(?:\n\n\S|\n\S|\Z)", _docstring(owner), re.DOTALL | re.MULTILINE)
        body = textwrap.dedent(section.group(1)) if section else ""
        for names, text in re.findall(r"^(\w+(?:, \w+)*): ((?:.|\n )+)", body, re.M):
            for name in names.split(", "):
                text = " ".join(text.split())
                found[name] = _referred(name, text, owner, with_rest="," not in names)
    return found


def _referred(name: str, text: str, owner: Definition, with_rest: bool) -> str:
    """The text; where it begins with `see THIS`, what THIS says of the same name goes first.

    Args:
        name: of the argument.
        text: of its entry.
        owner: whose docstring it is in.
        with_rest: whether what follows `see THIS` is about this name.
    """
    match = re.match(r"see `?(\w+)`?[.;,]?\s*", text)
    target = _definitions().get(match.group(1)) if match else None
    if match is None or target is None or target is owner:
        return text
    said = _meanings(target).get(name, "")
    rest = text[match.end() :] if with_rest else ""
    return " ".join(part for part in (said, rest) if part) if said else text


def deviations(loss: str) -> list[str]:
    """Sentences of the docstrings that compare with the official code."""
    if "." not in loss:
        return []
    found: list[str] = []
    module = _modules()[loss.rpartition(".")[0]]
    for node in ast.walk(module):
        if isinstance(node, ast.Module | Definition):
            # the first paragraph says whose it is, or what the thing does
            body = _docstring(node).partition("\n\n")[2]
            text = re.sub(r"(?m)^\s*(Args|Returns|Raises|Attributes):$", "", body)
            sentences = re.split(r"(?<=[.:])\s+(?=[A-Z])|\n\n|\n\s*(?=\w+(?:, \w+)*: )", text)
            found += [" ".join(s.split()) for s in sentences if ON_OFFICIAL.search(s)]
    return found
