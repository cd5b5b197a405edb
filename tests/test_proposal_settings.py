"""Settings of the proposals that contradict each other are refused with a remedy."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SettingsError
from pipeline.proposals.settings import PRESETS, ProposalsSettings
from pipeline.settings import build, to_plain


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"source": "import"}, "source is import, but proposals.file is not set", "name the JSON"),
        ({"file": "b.json"}, "file is b.json, but proposals.source is oln", "source: import"),
        (
            {"file": "b.json", "source": "gt-jitter"},
            "file is b.json, but proposals.source is gt-jitter",
            "remove proposals.file",
        ),
        ({"source": "gt-jitter", "seen": "voc"}, "seen is voc, but source gt-jitter trains", "oln or rpn"),
        ({"source": "import", "file": "b.json", "seen": "names.txt"}, "seen is names.txt", "seen: all"),
    ],
)
def test_contradictions(values: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        build(ProposalsSettings, values, "proposals")
    assert hint in refused.value.hint and refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"source": "edge-boxes"}, "proposals.source"),
        ({"jitter": {"per_object": 0}}, "proposals.jitter.per_object"),
        ({"jitter": {"shift": 1.5}}, "proposals.jitter.shift"),
        ({"search": {"mode": "slow"}}, "proposals.search.mode"),
        ({"search": {"height": 8}}, "proposals.search.height"),
        ({"clip_norm": 0}, "proposals.clip_norm"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], path: str) -> None:
    with pytest.raises(SettingsError, match=path):
        build(ProposalsSettings, values, "proposals")


@pytest.mark.parametrize(
    ("values", "trained"),
    [
        ({}, True),
        ({"source": "rpn", "seen": "voc"}, True),
        ({"source": "gt-jitter", "jitter": {"per_object": 3}}, False),
        ({"source": "selective-search", "search": {"mode": "quality"}}, False),
        ({"source": "import", "file": "b.json"}, False),
    ],
)
def test_sources(values: dict[str, Any], trained: bool) -> None:
    settings = build(ProposalsSettings, values, "proposals")
    assert settings.is_trained == trained
    assert build(ProposalsSettings, to_plain(settings), "proposals") == settings


def test_the_file_is_a_path() -> None:
    settings = build(ProposalsSettings, {"source": "import", "file": "b.json"}, "proposals")
    assert settings.file == Path("b.json")


# another value than the default, for every key that some source does not use
OTHER = {
    "jitter": {"per_object": 3},
    "search": {"mode": "quality"},
    "allowed_border": -1,
    "neg_fill": False,
    "border_objects": False,
    "reg_bias": 0.25,
    "normalize_by": "samples",
    "rpn_nms": None,
    "depth": 18,
    "milestones": [3],
    "init": "weights.pth",
    "lr": 0.01,
    "rpn_max": 200,
    "keep": 50,
}
FOR_OLN = ("allowed_border", "neg_fill", "border_objects", "reg_bias", "normalize_by", "rpn_nms")
FOR_DETECTORS = ("depth", "milestones", "init", "lr", "rpn_max", "keep")


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("oln", {*FOR_OLN, *FOR_DETECTORS}),
        ("rpn", {*FOR_DETECTORS}),
        ("gt-jitter", {"jitter", "keep"}),
        ("selective-search", {"search", "keep"}),
        ("import", set()),
    ],
)
def test_what_a_source_does_not_use_does_not_count(source: str, used: set[str]) -> None:
    values = {"source": source} | ({"file": "b.json"} if source == "import" else {})
    plain = to_plain(build(ProposalsSettings, values, "proposals"))
    for key, value in OTHER.items():
        changed = to_plain(build(ProposalsSettings, {**values, key: value}, "proposals"))
        assert (changed != plain) == (key in used), key
    everything = build(ProposalsSettings, {**values, **OTHER}, "proposals")
    assert build(ProposalsSettings, to_plain(everything), "proposals") == everything


def test_the_log_names_what_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pipeline")
    made = build(
        ProposalsSettings, {"source": "rpn", "rpn_nms": 0.5, "lr": 0.01, "jitter": None}, "proposals"
    )
    assert caplog.messages == ["proposals: source rpn does not use rpn_nms"] and made.lr == 0.01
    caplog.clear()
    build(ProposalsSettings, to_plain(made), "proposals")  # as another process builds it
    build(ProposalsSettings, {"rpn_nms": 0.5, "depth": 18}, "proposals")
    assert not caplog.messages


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("source", ["oln", "rpn", "gt-jitter", "selective-search"])
def test_presets_fit_every_source(preset: str, source: str) -> None:
    made = build(ProposalsSettings, {**PRESETS[preset], "source": source}, "proposals")
    assert made.keep == 1500
    assert (made.border_objects, made.rpn_nms) == ((False, None) if source == "oln" else (True, 0.7))
    assert (made.norm == "frozen-bn") == made.is_trained


def test_every_key_gives_its_reason() -> None:
    for field in dataclasses.fields(ProposalsSettings):
        why = field.metadata["why"]
        assert why
        if field.name in FOR_OLN:
            assert why.startswith("oln alone") or "source rpn always" in why, field.name
