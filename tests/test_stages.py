"""The whole chain on a tiny project: contracts between stages, resume, processes, wrong inputs."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, write_params

from pipeline import artifacts
from pipeline.engine.checkpoint import CheckpointFolder
from stages import launch

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
    assert "continuing from step" in talk and "GiB of memory" in talk
    assert f"the detector is {out}/detector.pth; next: 2drcl finetune --init {out}/detector.pth" in talk
    mine, theirs = weights(project / out), weights(whole)
    if processes == "1":
        assert all(torch.equal(mine[n], theirs[n]) for n in theirs)
        for name in ("history.jsonl", "figures/reconstructions.png"):
            assert (project / out / name).read_bytes() == (whole / name).read_bytes(), name
    else:
        # L_det's normalisers are per process in mmdet; every other term of the first steps is the same number
        assert_terms_agree(project / out / "history.jsonl", whole / "history.jsonl")


def test_a_dry_run_says_what_would_be_continued_and_what_it_takes(project, cli, monkeypatch):
    monkeypatch.chdir(project)
    arguments = ("pretrain", "--out", "artifacts/pretrain/dry", "--dry-run")
    plan = json.loads(cli(*arguments).out)
    assert plan["up_to_date"] is False and plan["continues_from_step"] == {} and not plan["is_running"]
    assert set(plan["inputs"]) == {"annotations", "stats", "proposals"}
    assert plan["inputs"]["annotations"] == artifacts.file_digest(Path("artifacts/sample/train_lvis.json"))
    assert plan["settings"]["pretrain"]["contrast"]["temperature"] == 0.2
    assert plan["estimate"]["gflop_per_image"] > 0 and plan["images_drawn"] == 4 * plan["steps"] > 0
    work = Path(plan["work"])
    assert not work.exists() and not Path("artifacts/pretrain/dry").exists()
    saved = CheckpointFolder(work / "checkpoints")
    for step in (3, 5):
        saved.save(step, {"step": step})
    assert json.loads(cli(*arguments).out)["continues_from_step"] == {".": 5}
    next(work.glob("checkpoints/step-00000005.pth")).write_bytes(b"half")
    assert json.loads(cli(*arguments).out)["continues_from_step"] == {".": 3}
    assert json.loads(cli(*arguments, "--fresh").out)["continues_from_step"] == {}
    with launch.exclusive(work, fresh=False):
        assert json.loads(cli(*arguments).out)["is_running"] is True
    assert json.loads(cli(*arguments).out)["is_running"] is False
    shutil.rmtree(work)


def test_processes_that_srun_started_join(jitter, cli, monkeypatch):
    monkeypatch.chdir(jitter)
    assert cli("proposals", "--out", "apart").code == 0
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    ranks = []
    for rank in ("0", "1"):
        for name, value in {**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}.items():
            monkeypatch.setenv(name, value)
        ranks.append(start(jitter, "proposals", "--out", "srun"))
    answers = [process.communicate(timeout=100) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], answers
    assert [out for out, _ in answers] == ["srun\n", ""]  # the first process answers
    assert boxes_in(jitter / "srun") == boxes_in(jitter / "apart")


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


# --- proposals from several processes, killed, stopped, refused


@pytest.fixture(scope="module")
def jitter(tmp_path_factory):
    """A folder with annotations, but without images, whose proposals come from gt-jitter."""
    folder = tmp_path_factory.mktemp("jitter")
    write_params(folder, proposals={"source": "gt-jitter"}, sample={**TINY["sample"], "train_images": 300})
    process = start(folder, "sample", "--no-pixels")
    assert process.communicate(timeout=60) and process.returncode == 0
    return folder


def boxes_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}


def test_proposals_of_any_number_of_processes_are_the_same_bytes(jitter, cli, monkeypatch):
    monkeypatch.chdir(jitter)
    assert cli("proposals", "--out", "one").code == 0
    assert not (jitter / "artifacts/sample/train").exists()  # and no image was looked for
    made = json.loads((jitter / "one/manifest.json").read_text())
    assert set(made["inputs"]) == {"annotations"}
    assert len(pq.read_table(jitter / "one/images.parquet")) == 300
    process = start(jitter, "proposals", "--procs", "2", "--out", "two")
    talk = process.communicate(timeout=100)[1]
    assert process.returncode == 0, talk
    assert boxes_in(jitter / "two") == boxes_in(jitter / "one")
    assert not list((jitter / ".work").glob("proposals/*"))


def test_proposals_in_a_group_that_somebody_else_started(jitter, cli, monkeypatch):
    monkeypatch.chdir(jitter)
    assert cli("proposals", "--out", "alone").code == 0
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages.cli"]
    done = subprocess.run(
        [sys.executable, *group, "proposals", "--out", "group"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "group\n"  # the first process answers, the other says nothing
    assert boxes_in(jitter / "group") == boxes_in(jitter / "alone")


def workers_of(command: int) -> list[int]:
    """Processes that run stages.worker below a command."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rsplit(")", 1)[1].split()
            parents[int(stat.parent.name)] = int(words[1])

    def is_below(pid: int) -> bool:
        while pid in parents and pid != command:
            pid = parents[pid]
        return pid == command

    found = []
    for pid in parents:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "stages.worker" in words and "torch.distributed.run" not in words and is_below(pid):
                found.append(pid)
    return found


def test_a_process_that_is_killed_ends_the_command(jitter):
    process = start(jitter, "proposals", "--procs", "2", "--out", "dead")
    deadline = time.monotonic() + 60
    while len(found := workers_of(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
    os.kill(found[1], signal.SIGKILL)
    talk = process.communicate(timeout=60)[1]
    assert process.returncode == 4, talk
    assert re.search(r"error: process [01] of the run died of signal 9", talk), talk
    assert not (jitter / "dead").exists()


def test_a_second_run_on_the_same_scratch_is_refused(jitter, cli, monkeypatch):
    from pipeline.artifacts import scratch
    from stages.launch import exclusive

    monkeypatch.chdir(jitter)
    plan = json.loads(cli("proposals", "--out", "second", "--dry-run").out)
    with exclusive(scratch(Path("second"), "proposals", plan["fingerprint"]), fresh=False):
        answer = cli("proposals", "--out", "second")
        assert answer.code == 2 and "another run is at work" in answer.err
    assert cli("proposals", "--out", "second").code == 0


def test_imported_boxes_need_no_images(jitter, cli, monkeypatch):
    monkeypatch.chdir(jitter)
    image = json.loads(Path("artifacts/sample/train_lvis.json").read_text())["images"][0]
    boxes = [{"image_id": image["id"], "bbox": [1, 2, 30, 40], "score": 0.5}]
    Path("boxes.json").write_text(json.dumps(boxes))
    params = write_params(jitter / "artifacts", proposals={"source": "import", "file": "boxes.json"})
    answer = cli("proposals", "--params", params, "--out", "imported")
    assert answer.code == 0 and "299 images have no box" in answer.err, answer.err
    made = json.loads(Path("imported/manifest.json").read_text())
    digest = artifacts.file_digest(Path("boxes.json"))
    assert made["inputs"]["file"] == digest
    table = pq.read_table("imported/proposals")
    assert table.to_pylist() == [
        {"image_id": image["id"], "x1": 1.0, "y1": 2.0, "x2": 31.0, "y2": 42.0, "score": 0.5}
    ]
    assert pq.read_metadata("imported/images.parquet").metadata[b"2drcl.weights"] == digest.encode()
    Path("boxes.json").unlink()
    assert cli("proposals", "--params", params, "--out", "imported").code == 3


def test_a_trained_detector_makes_the_boxes_of_another_split(project, cli, monkeypatch):
    monkeypatch.chdir(project)
    (kept,) = Path("artifacts/.work/proposals").glob("weights-*.pth")
    val = ["--annotations", "artifacts/sample/val_lvis.json"]
    answer = cli("proposals", "--weights", kept, *val, "--images", "artifacts/sample/val", "--out", "boxes")
    assert answer.code == 0, answer.err
    found, trained = (
        pq.read_metadata(f"{folder}/images.parquet").metadata
        for folder in ("boxes", "artifacts/proposals/default")
    )
    assert found[b"2drcl.weights"] == trained[b"2drcl.weights"]
    assert found[b"2drcl.annotations"] != trained[b"2drcl.annotations"]
    assert {p.name for p in Path("boxes/figures").iterdir()} == {"summary.png", "examples.png"}
    recall = cli(
        "evaluate", "--protocol", "proposals", "--proposals", "boxes", *val, "--out", "recall", "--json"
    )
    assert recall.code == 0 and json.loads(recall.out)["AR@100"] >= 0, recall.err
    assert files(Path("recall")) == {"metrics.json"}
    refused = cli("evaluate", "--protocol", "proposals", "--proposals", "boxes", "--out", "recall-of-train")
    assert refused.code == 3 and "was made for annotations" in refused.err


def test_weights_of_another_detector_are_refused(project, cli, monkeypatch):
    monkeypatch.chdir(project)
    (kept,) = Path("artifacts/.work/proposals").glob("weights-*.pth")
    (project / "other").mkdir(exist_ok=True)
    wider = write_params(project / "other", proposals={**TINY["proposals"], "fc_channels": 64})
    answer = cli("proposals", "--params", wider, "--weights", kept, "--out", "wider")
    assert answer.code == 3 and "are not of the detector" in answer.err and "size mismatch" in answer.err
    jitter = write_params(project / "other", proposals={"source": "gt-jitter"})
    assert cli("proposals", "--params", jitter, "--weights", kept, "--out", "wider").code == 2
    assert not Path("wider").exists()


def test_a_trained_detector_is_not_trained_again_after_a_kill(project, cli, monkeypatch):
    from stages import proposals

    monkeypatch.chdir(project)

    def killed(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(proposals, "merge", killed)
        with pytest.raises(MemoryError):
            cli("proposals", "--out", "artifacts/proposals/killed")
    answer = cli("proposals", "--out", "artifacts/proposals/killed")
    assert answer.code == 0 and "steps" not in answer.err
    again = cli("proposals", "--out", "artifacts/proposals/again")
    assert again.code == 0 and "steps" in again.err
    assert boxes_in(Path("artifacts/proposals/killed")) == boxes_in(Path("artifacts/proposals/again"))
