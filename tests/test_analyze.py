"""`2drcl analyze` on a rendered split: what it writes from predictions and weights, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY, write_params

from pipeline.data.annotations import read_annotations
from pipeline.data.sample import SampleSettings, write_sample
from pipeline.data.settings import Split
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.publish import publish_detector
from pipeline.detectors.settings import DetectorSettings
from pipeline.errors import MismatchedInput, UsageError
from pipeline.settings import build
from stages import analyze
from stages.analyze import material_of_files

VAL = "artifacts/sample/val_lvis.json"
ERRORS = {
    *("error_types.png", "error_types.svg", "error_types.csv", "error_bars.png", "error_bars.svg"),
    *("tide.png", "tide.svg", "tide.csv"),
}
DIFFERENCES = {"differences.png", "differences.svg", "differences.csv"}
INSIDE = {
    *("weight_norms.png", "weight_norms.svg", "weight_norms.csv", "weight_norms_groups.csv"),
    *("attention.png", "attention.svg", "attention.csv"),
}


def write_predictions(path: Path, keep: int, score: float = 0.9) -> None:
    """The ground truth of every `keep`-th object."""
    truth = read_annotations(Path(VAL))
    records = [
        {
            "image_id": int(truth.image_ids[i]),
            "category_id": int(truth.category_ids[c]),
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "score": score,
        }
        for i, c, b in zip(truth.box_images[::keep], truth.labels[::keep], truth.boxes[::keep], strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))


def publish(folder: Path, classes: list[str]) -> Path:
    settings = build(DetectorSettings, TINY["detector"], "detector")
    config = model_config(settings, len(classes))
    publish_detector(folder, build_model(config, seed=1).state_dict(), config, classes, (96, 64), {})
    return folder / "detector.pth"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "artifacts/sample").mkdir(parents=True)
        write_sample(folder / "artifacts/sample", build(SampleSettings, TINY["sample"], "sample"), seed=3)
        names = read_annotations(Path(VAL)).category_names
        publish(folder / "weights/one", names)
        publish(folder / "weights/two", names)
        publish(folder / "weights/strange", [*names[:-1], "griffin"])
        write_predictions(folder / "good.json", keep=1)
        write_predictions(folder / "half.json", keep=2)
    return folder


@pytest.fixture
def project(rendered: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for products; the inputs are read where they are."""
    monkeypatch.chdir(rendered)
    write_params(rendered)
    return tmp_path


def figures(out: Path) -> set[str]:
    return {p.name for p in (out / "figures").iterdir()}


def test_predictions_alone(project: Path, cli: Any) -> None:
    answer = cli("analyze", "--annotations", VAL, "--predictions", "half.json", "--out", project / "a")
    assert answer.code == 0 and answer.out.split() == [str(project / "a")]
    assert figures(project / "a") == ERRORS
    types = pd.read_csv(project / "a/figures/error_types.csv").query("group == 'all' and type == 'correct'")
    assert types["percent"].tolist() == [100] and types["run"].tolist() == ["half"]
    costs = pd.read_csv(project / "a/figures/tide.csv").query("group == 'all' and error == 'miss'")
    assert 20 < costs["dap50"].item() < 80


def test_two_runs_and_two_checkpoints(project: Path, cli: Any) -> None:
    named = ("--predictions", "good.json", "--predictions", "half.json")
    seen = ("--weights", "weights/one/detector.pth", "--weights", "weights/two/detector.pth")
    split = ("--annotations", VAL, "--images", "artifacts/sample/val")
    answer = cli("analyze", *split, *named, *seen, "--out", project / "a")
    assert answer.code == 0, answer.err
    assert figures(project / "a") == ERRORS | DIFFERENCES | INSIDE
    assert json.loads((project / "a/errors.json").read_text())["all"]["missing"] == 0  # the first is analysed
    table = pd.read_csv(project / "a/figures/error_types.csv")
    assert list(dict.fromkeys(table["run"])) == ["half", "good"]
    assert set(pd.read_csv(project / "a/figures/differences.csv")["change"].dropna()) == {"gained"}
    assert set(pd.read_csv(project / "a/figures/weight_norms.csv")["run"]) == {"one", "two"}
    assert "this split" in (project / "a/figures/weight_norms.svg").read_text()
    assert cli("analyze", *split, *named, *seen, "--out", project / "a").err.strip().endswith("up to date")


def test_no_predictions_at_all(project: Path, cli: Any) -> None:
    (project / "none.json").write_text("[]")
    answer = cli(
        "analyze", "--annotations", VAL, "--predictions", project / "none.json", "--out", project / "a"
    )
    assert answer.code == 0 and "no detections" in answer.err
    assert json.loads((project / "a/errors.json").read_text())["all"]["correct"]["percent"] is None


def test_without_images_there_are_no_pictures(project: Path, cli: Any) -> None:
    named = ("--predictions", "good.json", "--predictions", "half.json")
    one = ("--weights", "weights/one/detector.pth")
    (project / "apart").mkdir()
    alone = project / "apart/val.json"
    alone.write_bytes(Path(VAL).read_bytes())
    answer = cli("analyze", "--annotations", alone, *named, *one, "--out", project / "a")
    assert answer.code == 0 and "name the folder with --images" in answer.err
    shown = {"weight_norms.png", "weight_norms.svg", "weight_norms.csv", "weight_norms_groups.csv"}
    assert figures(project / "a") == ERRORS | {"differences.csv"} | shown
    wrong = cli("analyze", "--annotations", alone, "--images", project, *named, "--out", project / "b")
    assert wrong.code == 3 and not (project / "b").exists()


def test_a_checkpoint_with_other_classes_is_refused(project: Path, cli: Any) -> None:
    strange = ("--weights", "weights/strange/detector.pth")
    answer = cli(
        "analyze", "--annotations", VAL, "--predictions", "good.json", *strange, "--out", project / "a"
    )
    assert answer.code == 3 and "knows 4 categories" in answer.err and not (project / "a").exists()


def test_unknown_image_ids_are_refused(project: Path, rendered: Path, cli: Any) -> None:
    write_params(rendered, analyze={"attention": {"image_ids": [987654]}})
    split = ("--annotations", VAL, "--images", "artifacts/sample/val")
    one = ("--weights", "weights/one/detector.pth")
    answer = cli("analyze", *split, "--predictions", "good.json", *one, "--out", project / "a")
    assert answer.code == 3 and "987654" in answer.err and not (project / "a").exists()


def test_runs_of_other_annotations_are_refused(project: Path, cli: Any) -> None:
    made = cli("evaluate", "--annotations", VAL, "--predictions", "good.json", "--out", project / "lvis")
    assert made.code == 0
    other = ("--annotations", "artifacts/sample/val_coco.json", "--images", "artifacts/sample/val")
    both = ("--predictions", "good.json", "--predictions", project / "lvis/predictions.json")
    answer = cli("analyze", *other, *both, "--out", project / "a")
    assert answer.code == 3 and "other annotations" in answer.err and "lvis" in answer.err
    same = cli("analyze", "--annotations", VAL, *both, "--out", project / "a")
    assert same.code == 0 and "find the same objects" in same.err


@pytest.mark.parametrize("changes", [{"top_n": 0}, {"baseline": 3}, {"attention": {"method": "score-cam"}}])
def test_settings_that_make_no_sense(project: Path, rendered: Path, cli: Any, changes: Any) -> None:
    write_params(rendered, analyze=changes)
    answer = cli("analyze", "--annotations", VAL, "--predictions", "good.json", "--out", project / "a")
    assert answer.code == 2 and "analyze." in answer.err


def test_another_n_judges_other_boxes(project: Path, rendered: Path, cli: Any) -> None:
    write_params(rendered, analyze={"top_n": 1})
    answer = cli("analyze", "--annotations", VAL, "--predictions", "good.json", "--out", project / "a")
    assert answer.code == 0
    found = json.loads((project / "a/errors.json").read_text())["all"]
    assert found["n"] == found["categories"] <= 4
    assert "N = 1 " in (project / "a/figures/error_types.svg").read_text()


def test_a_run_of_params_stands_beside_its_baseline(
    project: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    (project / "artifacts").mkdir()
    (project / "artifacts/sample").symlink_to(Path("artifacts/sample").absolute())
    monkeypatch.chdir(project)
    runs = {"plain": {"method": "ce"}, "ecm": {"method": "ecm"}}
    finetune = {**TINY["finetune"], "runs": runs}  # type: ignore[dict-item]
    write_params(project, analyze={"baseline": "plain"}, finetune=finetune)
    for run, keep in (("plain", 3), ("ecm", 1)):
        write_predictions(Path(f"artifacts/evaluate/{run}/predictions.json"), keep)
    names = read_annotations(Path(VAL)).category_names
    publish(Path("artifacts/finetune/ecm"), names)
    answer = cli("analyze", "--weights", "artifacts/finetune/ecm/detector.pth")
    assert answer.code == 2 and "--weights with 2 runs" in answer.err
    answer = cli("analyze", "--run", "ecm")
    assert answer.code == 0, answer.err
    out = project / "artifacts/analyze/ecm"
    assert figures(out) == ERRORS | DIFFERENCES | INSIDE
    assert list(dict.fromkeys(pd.read_csv(out / "figures/tide.csv")["run"])) == ["plain", "ecm"]
    assert set(pd.read_csv(out / "figures/weight_norms.csv")["run"]) == {"ecm"}  # plain has no weights
    write_params(project, analyze={"baseline": "absent"}, finetune=finetune)
    answer = cli("analyze", "--run", "ecm")
    assert answer.code == 2 and "analyze.baseline is 'absent'" in answer.err


def test_names_can_be_told_apart() -> None:
    files = [Path("x/ecm/predictions.json"), Path("y/ecm/predictions.json"), Path("z/theirs.json")]
    material = material_of_files(files, [], needs_images=False)
    assert material.predictions == {"ecm (2)": files[1], "theirs": files[2], "ecm": files[0]}
    assert list(material.predictions)[-1] == "ecm"
    with pytest.raises(UsageError, match="the same file twice"):
        material_of_files([files[0], files[0]], [], needs_images=False)


def test_broken_manifests_are_nobodys(project: Path) -> None:
    annotations = read_annotations(Path(VAL))
    (project / "manifest.json").write_text('{"stage": "evaluate"')
    analyze._refuse_other_annotations("a", project / "p.json", annotations)
    (project / "manifest.json").write_text('{"stage": "evaluate", "inputs": {"annotations": "0123456789"}}')
    with pytest.raises(MismatchedInput, match=r"other annotations \(01234567\)"):
        analyze._refuse_other_annotations("a", project / "p.json", annotations)
    assert Split(annotations.path, project).images == project
