"""Strict loading of settings: plain mappings (params.yaml) into frozen dataclasses.

Each folder owns its dataclass and declares every key with `setting(...)`, which keeps the default beside
the reason for it, its range and its choices.  This module knows no key: it only refuses what does not fit,
naming the dotted path (`pretrain.views.crop`), the value found and what would be accepted.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipeline.errors import SettingsError, UsageError

T = TypeVar("T")


class _OutOfRange(SettingsError):
    """The type fits: no other member of a union needs to be tried."""


def setting(
    default: Any = dataclasses.MISSING,
    why: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    names: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field with the reason for its default and the values it accepts.

    Args:
        default: the value when params.yaml is silent; a dict becomes a fresh copy; a dataclass type becomes a
            nested section.  Left out: the key is required.
        why: one line, shown by `2drcl show-config`: the paper's value and place, or our reason.
        low, high: inclusive range of a number, or of each number in a tuple.
        choices: the accepted values of a word.
        names: words that may stand for a value: the setting is that value.
    """
    metadata = {"why": why, "low": low, "high": high, "choices": choices, "names": names or {}}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(section: type[T], values: Any, path: str) -> T:
    """Make `section` from a mapping, or raise SettingsError with the dotted path of what does not fit.

    Args:
        section: a frozen dataclass whose fields are declared with `setting`.
        values: a mapping from field name to value, or None for all defaults.
        path: where `values` came from, for messages, e.g. "pretrain".
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise SettingsError(f"{path} must be a section with keys, but it is {_show(values)}")
    fields = {f.name: f for f in dataclasses.fields(section)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(section)
    for key in values:
        if key not in fields:
            raise SettingsError(f"unknown key: {path}.{key}", _nearest(str(key), list(fields)))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise SettingsError(f"missing key: {path}.{name}", field.metadata.get("why", ""))
    made = {
        key: _check(hints[key], value, f"{path}.{key}", fields[key].metadata) for key, value in values.items()
    }
    return section(**made)


def _check(kind: Any, value: Any, path: str, meta: Mapping[str, Any]) -> Any:
    """Convert `value` to `kind` without guessing; every refusal names the path."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _check_union(typing.get_args(kind), value, path, meta)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, path)
    if origin is typing.Literal:
        return _check_choice(typing.get_args(kind), value, path)
    if origin is tuple:
        return _check_tuple(typing.get_args(kind), value, path, meta)
    if origin is dict:
        return _check_dict(typing.get_args(kind)[1], value, path, meta)
    checked = _check_scalar(kind, value, path, meta.get("names") or {})
    if meta.get("choices"):
        _check_choice(meta["choices"], checked, path)
    _check_range(checked, path, meta)
    return checked


def _check_scalar(kind: Any, value: Any, path: str, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str) and value in names:
        return names[value]
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if type(value) is not kind:
        raise SettingsError(
            f"{path} must be {' or '.join([_name(kind), *names])}, but it is {_show(value)}",
            _yaml_trap(kind, value),
        )
    return value


def _check_union(kinds: tuple[Any, ...], value: Any, path: str, meta: Mapping[str, Any]) -> Any:
    if value is None and type(None) in kinds:
        return None
    options = [k for k in kinds if k is not type(None)]
    hints = []
    for kind in options:
        try:
            return _check(kind, value, path, meta)
        except SettingsError as refused:
            if len(options) == 1 or isinstance(refused, _OutOfRange):
                raise
            hints.append(refused.hint)
    raise SettingsError(
        f"{path} must be {' or '.join(map(_name, options))}, but it is {_show(value)}", "".join(hints)
    )


def _check_choice(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if value not in choices or type(value) is not type(choices[choices.index(value)]):
        accepted = ", ".join(str(c) for c in choices)
        raise SettingsError(f"{path} must be one of {accepted}, but it is {_show(value)}")
    return value


def _check_tuple(kinds: tuple[Any, ...], value: Any, path: str, meta: Mapping[str, Any]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SettingsError(f"{path} must be a list, but it is {_show(value)}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise SettingsError(f"{path} must have {len(kinds)} values, but it has {len(value)}")
    return tuple(
        _check(k, v, f"{path}[{i}]", meta) for i, (k, v) in enumerate(zip(kinds, value, strict=True))
    )


def _check_dict(kind: Any, value: Any, path: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    if value is None:
        return {}  # a section whose entries are all commented out
    if not isinstance(value, Mapping):
        raise SettingsError(f"{path} must be a section with keys, but it is {_show(value)}")
    return {str(k): _check(kind, v, f"{path}.{k}", meta) for k, v in value.items()}


def _check_range(value: Any, path: str, meta: Mapping[str, Any]) -> None:
    low, high = meta.get("low"), meta.get("high")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise _OutOfRange(f"{path} must be a finite number, but it is {value}")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"{'-inf' if low is None else low} and {'inf' if high is None else high}"
        raise _OutOfRange(f"{path} must be between {bounds}, but it is {value}")


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"'{c}'" for c in typing.get_args(kind))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _nearest(key: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"


def _yaml_trap(kind: Any, value: Any) -> str:
    """YAML 1.1 reads `1e-3` as a text: the one wrong type that users write in good faith."""
    if kind not in (int, float) or not isinstance(value, str):
        return ""
    try:
        meant = float(value)
    except ValueError:
        return ""
    if not math.isfinite(meant) or (kind is int and not meant.is_integer()):
        return ""
    mantissa, *exponent = repr(kind(meant)).split("e")
    if exponent and "." not in mantissa:  # YAML's numbers with an exponent have a point
        mantissa += ".0"
    return f"write {'e'.join([mantissa, *exponent])}: YAML reads {value} as a text"


class _StrictLoader(yaml.SafeLoader):
    """YAML lets a key appear twice and keeps the last one: half of the file would silently not count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read_params(path: Path) -> dict[str, Any]:
    """The mapping in a params.yaml.

    Raises:
        UsageError: the file is missing or unreadable, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # a SafeLoader
    except FileNotFoundError:
        raise UsageError(
            f"no {path} here", "run in a project folder, or name the file with --params"
        ) from None
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as problem:  # ValueError: encoding, impossible dates
        raise UsageError(f"{path} is not valid YAML: {problem}") from None
    if not isinstance(values, Mapping):
        raise UsageError(f"{path} must hold sections (data:, pretrain:, ...), but it holds {_show(values)}")
    return dict(values)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, section by section: defaults < preset < params file < command line.

    An empty section (`contrast:` with nothing under it is None in YAML) leaves the earlier one as it is.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(merged.get(key), Mapping) and (value is None or isinstance(value, Mapping)):
                value = merge(merged[key], value or {})
            merged[key] = value
    return merged


def to_plain(settings: Any) -> Any:
    """Settings as plain data (str, int, float, bool, None, list, dict), for manifests and fingerprints."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(k): to_plain(v) for k, v in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_plain(v) for v in settings]
    return str(settings) if isinstance(settings, Path) else settings
