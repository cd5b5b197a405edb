"""`2drcl evaluate --protocol proposals`: what it writes, what it warns of, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Answer, write_params

from pipeline import artifacts
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.proposals.writer import write_proposals

Command = Callable[..., Answer]
TRAIN = Path("artifacts/sample/train_lvis.json")
SAMPLE = {**TINY["sample"], "train_images": 40, "categories": 8}  # some common, some frequent, none rare


def perfect_but_common(annotations: Annotations) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Every object of categories that are not common, as a proposal."""
    assert annotations.frequency is not None
    found = {}
    for image, number in enumerate(annotations.image_ids.tolist()):
        rows = annotations.of_image(image)
        known = np.array([annotations.frequency[c] != "c" for c in annotations.labels[rows]], dtype=bool)
        boxes = annotations.boxes[rows][known]
        found[number] = (boxes, np.linspace(0.9, 0.1, len(boxes), dtype=np.float32))
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Command) -> Path:
    """Sample annotations, and a finished proposals stage for the training split."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, sample=SAMPLE)
    assert cli("sample", "--no-pixels").code == 0
    annotations = read_annotations(TRAIN)
    with artifacts.publishing(Path("artifacts/proposals/default"), "proposals") as folder:
        write_proposals(folder, annotations, perfect_but_common(annotations), "test", "0" * 64)
        manifest = artifacts.manifest("proposals", {}, {"annotations": annotations.digest}, 0)
        artifacts.write_json(folder / artifacts.MANIFEST, manifest)
    return tmp_path


def test_the_default_looks_at_the_training_split(project: Path, cli: Command) -> None:
    done = cli("evaluate", "--protocol", "proposals", "--json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    out = project / "artifacts/evaluate/proposals"
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["AR@1000_f"] == pytest.approx(100) and metrics["AR@1000_c"] == 0
    assert metrics["AR@1000_r"] is None
    letters = read_annotations(TRAIN).frequency
    assert letters is not None
    assert f"no object of {letters.count('c')} of {len(letters)} categories is found" in done.err
    assert "warning: no image has more than" in done.err and "AR@1000 are what these give" in done.err
    assert {p.name for p in out.iterdir()} == {"metrics.json", "figures", "manifest.json", "timing.json"}
    assert {p.name for p in (out / "figures").iterdir()} == {"recall.png", "recall.csv", "per_category.csv"}
    again = cli("evaluate", "--protocol", "proposals")
    assert "up to date" in again.err and "AUC" in again.out and "proposals per image" in again.out


def test_the_protocol_may_come_from_params(project: Path, cli: Command) -> None:
    write_params(project, evaluate={"protocol": "proposals"})
    assert json.loads(cli("evaluate", "--out", "e", "--json").out)["AR@1000_c"] == 0
    assert not (project / "e/predictions.json").exists()


def test_seen_categories_are_left_out(project: Path, cli: Command) -> None:
    annotations = read_annotations(TRAIN)
    assert annotations.frequency is not None
    pairs = zip(annotations.category_names, annotations.frequency, strict=True)
    (project / "seen.txt").write_text("\n".join(name for name, letter in pairs if letter == "f"))
    write_params(project, evaluate={"seen": "seen.txt"})
    metrics = json.loads(cli("evaluate", "--protocol", "proposals", "--out", "e", "--json").out)
    assert metrics["AR@1000_f"] is None and metrics["AR@1000_c"] == 0
    write_params(project, evaluate={"seen": "all"})
    refused = cli("evaluate", "--protocol", "proposals", "--out", "e2")
    assert refused.code == 2 and "no unseen category" in refused.err


def test_proposals_of_other_annotations_are_refused(project: Path, cli: Command) -> None:
    val = ("--annotations", "artifacts/sample/val_lvis.json", "--out", "e")
    refused = cli("evaluate", "--protocol", "proposals", *val)
    assert refused.code == 3 and "was made for annotations" in refused.err
    assert not (project / "e").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--protocol", "proposals", "--run", "ecm"), 2, "not at a detector"),
        (("--protocol", "proposals", "--predictions", "p.json"), 2, "not at a detector"),
        (("--proposals", "artifacts/proposals/default"), 2, "add --protocol proposals"),
        (("--protocol", "proposals", "--proposals", "nowhere"), 3, "run `2drcl proposals` first"),
        (("--protocol", "propsals"), 2, "evaluate.protocol must be one of"),
    ],
)
def test_wrong_usage(
    project: Path, cli: Command, arguments: tuple[str, ...], code: int, message: str
) -> None:
    refused = cli("evaluate", *arguments)
    assert (refused.code, message in refused.err) == (code, True), refused.err


def test_a_dry_run_writes_nothing(project: Path, cli: Command) -> None:
    planned = json.loads(cli("evaluate", "--protocol", "proposals", "--dry-run").out)
    assert planned["up_to_date"] is False and set(planned["inputs"]) == {"annotations", "proposals"}
    assert not (project / "artifacts/evaluate").exists()
