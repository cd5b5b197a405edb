"""Settings of the proposals that contradict each other are refused with a remedy."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SettingsError
from pipeline.proposals.settings import ProposalsSettings
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
