"""The list of open questions names settings that exist, and `show-config` shows it."""

import dataclasses
import importlib
import typing

import pytest

from pipeline.finetune.settings import FinetuneRun
from pipeline.pretrain.open_questions import OPEN_QUESTIONS
from stages.params import SECTIONS, load
from stages.show_config import run


def exists(key: str) -> bool:
    section, *rest = key.split(".")
    module, name = SECTIONS[section]
    kind = getattr(importlib.import_module(module), name)
    if rest[:2] == ["runs", "NAME"]:
        kind, rest = FinetuneRun, rest[2:]
    for part in rest:
        if part not in {f.name for f in dataclasses.fields(kind)}:
            return False
        kind = typing.get_type_hints(kind)[part]
    return True


@pytest.mark.parametrize("question", OPEN_QUESTIONS, ids=lambda q: q.subject)
def test_every_key_exists(question) -> None:
    assert question.decision
    assert [key for key in question.settings if not exists(key)] == []


def test_what_is_no_key() -> None:
    assert not exists("pretrain.contrast.colour") and not exists("stats.alpha")


def test_each_subject_once_and_shown(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len({q.subject for q in OPEN_QUESTIONS}) == len(OPEN_QUESTIONS) == 40
    run(load(None), as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{q.subject}: {' '.join(q.decision.split())}" in shown for q in OPEN_QUESTIONS)
