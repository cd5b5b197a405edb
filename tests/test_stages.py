"""The whole chain on a tiny project: contracts between stages, resume, processes, wrong inputs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import write_params

COMMAND = [sys.executable, "-m", "stages.cli"]
CHAIN = ("sample", "proposals", "stats", "pretrain", "finetune", "evaluate", "analyze")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which the chain has run once, each stage a process of its own."""
    folder = tmp_path_factory.mktemp("project")
    write_params(folder)
    for stage in CHAIN:
        done = start(folder, stage).communicate(timeout=300)
        assert (folder / "artifacts" / stage).is_dir(), (stage, done[1])
    return folder


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"manifest.json", "timing.json", "figures"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "detector.pth", weights_only=True)["state_dict"]


def test_every_folder_holds_exactly_its_contract(project):
    made = project / "artifacts"
    assert files(made / "proposals/default") == {"proposals", "images.parquet"}
    assert files(made / "stats/default") == {"categories.parquet", "repeat_factors.parquet"}
    for folder in (made / "pretrain/default", made / "finetune/ecm", made / "finetune/control"):
        assert files(folder) == {"detector.pth", "config.py", "history.jsonl"}
    assert files(made / "evaluate/ecm") == {"predictions.json", "metrics.json"}
    assert files(made / "analyze/ecm") == {"errors.json", "detections.csv"}
    assert not list(made.glob("**/.*.new")) and not list((made / ".work").glob("*/*/checkpoints"))


def test_proposals_reach_the_frequencies(project):
    table = pq.read_table(project / "artifacts/stats/default/categories.parquet").to_pydict()
    assert all(count is not None for count in table["proposal_count"])


def test_history_names_the_terms_as_the_paper_does(project):
    lines = (project / "artifacts/pretrain/default/history.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert {
        "step",
        "epoch",
        "images",
        "lr",
        "alpha",
        "loss",
        "hcl",
        "lcl",
        "ar",
        "sr",
        "det",
        "grad_norm",
    } <= set(first)
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))
    assert {json.loads(line)["alpha"] for line in lines} == {0.0, 0.5}


def test_the_control_draws_as_many_images(project):
    made = project / "artifacts"
    control, ecm, pretrain = (
        json.loads((made / path / "manifest.json").read_text())
        for path in ("finetune/control", "finetune/ecm", "pretrain/default")
    )
    assert ecm["images_drawn_with_init"] == ecm["images_drawn"] + pretrain["images_drawn"]
    # seesaw and ecm draw their own epochs (both RFS): the control's total is its own plus pre-training's
    assert control["images_drawn"] == control["images_drawn_with_init"]
    assert control["images_drawn"] > pretrain["images_drawn"]


def test_metrics_are_flat_percents_or_null(project):
    metrics = json.loads((project / "artifacts/evaluate/ecm/metrics.json").read_text())
    assert {"bbox_AP", "bbox_AP50", "bbox_APr", "bbox_APc", "bbox_APf"} <= set(metrics)
    assert all(v is None or 0 <= v <= 100 for v in metrics.values())


def test_a_second_run_does_nothing(project):
    before = (project / "artifacts/pretrain/default/detector.pth").stat().st_mtime_ns
    process = start(project, "pretrain")
    assert "up to date" in process.communicate(timeout=120)[1] and process.returncode == 0
    assert (project / "artifacts/pretrain/default/detector.pth").stat().st_mtime_ns == before


def assert_terms_agree(one: Path, other: Path) -> None:
    lines = [path.read_text().splitlines() for path in (one, other)]
    assert len(lines[0]) == len(lines[1])
    first, same = (json.loads(content[0]) for content in lines)
    for term in ("ar", "sr"):
        assert first[term] == pytest.approx(same[term], rel=1e-4), term
    second, alike = (json.loads(content[1]) for content in lines)  # the queues are empty before
    for term in ("hcl", "lcl"):
        assert second[term] > 0 and second[term] == pytest.approx(alike[term], rel=0.02), term


@pytest.mark.parametrize("processes", ["1", "2"])
def test_killed_and_continued_equals_undisturbed(project, processes):
    """kill -9 after the first checkpoint; the same command ends with the same bytes."""
    whole = project / "artifacts/pretrain/default"
    out = f"artifacts/pretrain/killed-{processes}"
    arguments = ("pretrain", "--out", out, "--procs", processes, "--save-every", "0")
    process = start(project, *arguments)
    work = project / "artifacts/.work/pretrain"
    deadline = time.monotonic() + 120
    while not list(work.glob("*/checkpoints/step-00000002.sha256")) and time.monotonic() < deadline:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # returns once no worker holds the pipe any more
    assert not (project / out).exists()
    process = start(project, *arguments)
    talk = process.communicate(timeout=200)[1]
    assert process.returncode == 0, talk
    assert "continuing from step" in talk
    mine, theirs = weights(project / out), weights(whole)
    if processes == "1":
        assert all(torch.equal(mine[n], theirs[n]) for n in theirs)
        assert (project / out / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()
    else:
        # L_det's normalisers are per process in mmdet; every other term of the first steps is the same number
        assert_terms_agree(project / out / "history.jsonl", whole / "history.jsonl")


def test_sigterm_saves_and_exits_75(project):
    process = start(project, "finetune", "--run", "control", "--out", "artifacts/finetune/stopped")
    work = project / "artifacts/.work/finetune"
    deadline = time.monotonic() + 120
    while not list(work.glob("*/history.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    talk = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "continues" in talk
    process = start(project, "finetune", "--run", "control", "--out", "artifacts/finetune/stopped")
    assert process.communicate(timeout=200)[1] and process.returncode == 0
    mine, theirs = (
        weights(project / "artifacts/finetune/stopped"),
        weights(project / "artifacts/finetune/control"),
    )
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)


def test_a_checkpoint_of_another_detector_is_refused(project, cli, monkeypatch):
    monkeypatch.chdir(project)
    detector = {"depth": 18, "stem_channels": 16, "norm": "gn", "fpn_channels": 64, "fc_channels": 32}
    other = write_params(project / "artifacts", detector=detector)
    answer = cli("finetune", "--run", "ecm", "--params", other, "--out", "artifacts/finetune/other")
    assert answer.code == 3 and "of another detector" in answer.err
    assert not (project / "artifacts/finetune/other").exists()


def test_products_of_other_annotations_are_refused(project, cli, monkeypatch):
    monkeypatch.chdir(project)
    other = ("--annotations", "artifacts/sample/train_coco.json", "--images", "artifacts/sample/train")
    answer = cli("pretrain", *other, "--out", "artifacts/pretrain/other")
    assert answer.code == 3 and "other annotations" in answer.err
    assert cli("stats", *other[:2], "--out", "artifacts/stats/other").code == 0
    answer = cli("pretrain", *other, "--stats", "artifacts/stats/other", "--out", "artifacts/pretrain/other")
    assert answer.code == 3 and "annotations" in answer.err


def test_a_batch_that_does_not_divide_is_refused(project, cli, monkeypatch):
    monkeypatch.chdir(project)
    answer = cli("pretrain", "--procs", "3", "--fresh", "--out", "artifacts/pretrain/three")
    assert answer.code == 2 and "does not divide" in answer.err
