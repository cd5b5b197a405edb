"""`2drcl report`: whole, half, damaged and missing artifacts; one file that needs nothing else."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import report_tree

from pipeline.data.settings import Split
from pipeline.report.collect import Sources, collect
from pipeline.report.page import data_block


@pytest.fixture(scope="session")
def reported(report_project, tmp_path_factory):
    """The same with its report, made by the command; not to be changed."""
    folder = tmp_path_factory.mktemp("reported") / "project"
    shutil.copytree(report_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report_tree.command(patch, "report")
    return folder / "artifacts/report/default"


@pytest.fixture
def project(report_project, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(report_project, folder)
    monkeypatch.chdir(folder)
    return folder


def collected():
    """The page's data, of the project in this folder, by the library alone."""
    val = Split(Path("artifacts/sample/val_lvis.json"), Path("artifacts/sample/val"))
    return json.loads(data_block(collect(Sources(Path("artifacts"), tuple(report_tree.RUNS), val, True))))


def content_of(page):
    """The data inside a page, and the page."""
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(block), text


def test_a_whole_chain(reported, report_project):
    assert {p.name for p in reported.iterdir()} == {"report.html", "figures", "manifest.json", "timing.json"}
    content, text = content_of(reported / "report.html")
    assert "rare categories gain" in content["verdict"]["headline"]
    assert content["verdict"]["main"] == "ecm"
    assert [c["against"] for c in content["verdict"]["comparisons"]] == ["ecm-control", "ecm-alone"]
    assert [c["is_equal"] for c in content["verdict"]["comparisons"]] == [True, False]
    assert len(text) < 2_000_000
    metrics = json.loads((report_project / "artifacts/evaluate/ecm/metrics.json").read_text())
    assert content["runs"][0]["metrics"]["bbox_APr"] == pytest.approx(metrics["bbox_APr"], rel=1e-5)
    assert set(content["categories"]["names"]) >= set(report_tree.HOSTILE)
    assert {gap["what"] for gap in content["gaps"]} == {"stage proposals"}  # none were made here
    painted = next(figure for figure in content["figures"] if figure["name"] == "reconstructions")
    assert painted["title"] == "Reconstructions" and painted["picture"]["width"] == 600


def test_figures_of_all_runs_and_their_numbers(reported):
    figures = reported / "figures"
    drawn = {f"{name}.{kind}" for name in ("metrics", "error_types", "error_bars") for kind in ("png", "svg")}
    names = {"metrics.csv", "categories.csv", *drawn}
    assert {p.name for p in figures.iterdir()} == names
    with (figures / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "bbox_APr"]
    assert [row["run"] for row in rows] == list(report_tree.RUNS) and all(row["value"] for row in rows)
    with (figures / "categories.csv").open(newline="", encoding="utf-8") as file:
        assert {row["name"] for row in csv.DictReader(file)} >= set(report_tree.HOSTILE)


def test_nothing_is_fetched_and_only_the_pages_own_script_may_run(reported):
    content, text = content_of(reported / "report.html")
    (block,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    outside = text.replace(block, "")
    assert not re.findall(r'(?:src|href)="(?!#|data:)', outside)
    assert set(re.findall(r"https?://[^\"/]+", outside)) <= {"http://www.w3.org"}  # the name of SVG
    assert "default-src 'none'" in text and text.count("<script") == 2
    assert "<" not in block and ">" not in block and content["runs"]


def test_the_manifest_knows_the_page_but_no_time(reported):
    made = json.loads((reported / "manifest.json").read_text())
    assert "page" in made["inputs"] and not any("timing" in name for name in made["inputs"])


def test_twice_is_up_to_date_and_equal_to_the_byte(project, reported, cli):
    answer = cli("report", "--json")
    assert answer.code == 0, answer.err
    out = "artifacts/report/default"
    assert json.loads(answer.out) == {"out": out, "report": f"{out}/report.html"}
    assert (project / out / "report.html").read_bytes() == (reported / "report.html").read_bytes()
    again = cli("report")
    assert again.code == 0 and "up to date" in again.err and again.out.strip() == f"{out}/report.html"
    (project / "artifacts/evaluate/ecm/metrics.json").write_text('{"bbox_AP": 1.0}')
    assert json.loads(cli("report", "--dry-run").out)["up_to_date"] is False


def test_dry_run_writes_nothing(project, cli):
    answer = cli("report", "--dry-run")
    assert answer.code == 0 and json.loads(answer.out)["up_to_date"] is False
    assert not (project / "artifacts/report").exists()


def test_nothing_at_all_exits_3_and_says_what_to_run(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    answer = cli("report")
    assert answer.code == 3 and "nothing to report on" in answer.err and "dvc repro" in answer.err
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    "gone",
    ["stats", "finetune", "evaluate", "analyze", "pretrain", "sample", "evaluate/ecm/predictions.json",
     "evaluate/ecm/metrics.json", "evaluate/ecm/figures", "analyze/ecm/detections.csv",
     "stats/default/repeat_factors.parquet", "sample/val"],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_command(project, gone):
    path = project / "artifacts" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    content = collected()
    named = [gap for gap in content["gaps"] if gone.split("/")[0] in f"{gap['why']} {gap['todo']}"]
    assert named, content["gaps"]


@pytest.mark.parametrize(
    ("path", "damage"),
    [
        ("evaluate/ecm/metrics.json", '{"bbox_AP": "much", "bbox_APr": NaN, "bbox_APf": 3}'),
        ("evaluate/ecm/metrics.json", "[]"),
        ("evaluate/ecm/metrics.json", "{"),
        ("evaluate/ecm/manifest.json", '{"inputs": 3, "settings": [1]}'),
        ("evaluate/ecm/predictions.json", "{}"),
        ("evaluate/ecm/figures/per_category.csv", "category_id\nx\n,\n"),
        ("evaluate/ecm/figures/per_category.csv", "category_id,bbox_AP\n1.5,3\n"),
        ("analyze/ecm/figures/weight_norms.csv", "run,category_id,norm\necm,x,1\n"),
        ("analyze/ecm/errors.json", '{"all": {"n": "x", "correct": 4}, "r": []}'),
        ("analyze/ecm/errors.json", "null"),
        ("analyze/ecm/detections.csv", "\x00\x01"),
        (
            "finetune/ecm/manifest.json",
            '{"stage": "finetune", "settings": {"run": "ecm"}, "images_drawn": "9"}',
        ),
        ("finetune/ecm/history.jsonl", '{"step": 1, "loss": 3}\n{"st'),
        ("stats/default/categories.parquet", "PAR1"),
        ("stats/default/repeat_factors.parquet", ""),
        ("pretrain/default/history.jsonl", "nothing\n"),
        ("sample/val_lvis.json", "{"),
    ],
)
def test_what_is_damaged_is_named_and_stops_nothing(project, path, damage):
    (project / "artifacts" / path).write_text(damage)
    content = collected()
    assert len(content["gaps"]) > 1 or path.endswith("manifest.json"), content["gaps"]
    assert content["runs"][1]["metrics"]["bbox_AP"] is not None


def test_resamples_of_the_images_reach_the_page_and_the_verdict(project, cli):
    for run in report_tree.RUNS:
        found = ("--predictions", f"{run}.json", "--run", run, "--out", f"artifacts/evaluate/{run}")
        assert cli("evaluate", *found, "--bootstrap", 200).code == 0
    content = collected()
    ours, control = content["runs"][0], content["runs"][2]
    low, high = ours["intervals"]["bbox_APr"]
    assert low <= ours["metrics"]["bbox_APr"] <= high
    first = content["verdict"]["comparisons"][0]
    assert first["interval"][0] <= ours["metrics"]["bbox_APr"] - control["metrics"]["bbox_APr"]
    assert 0 < first["image_p"] < 0.05 and first["is_significant"]
    assert content["verdict"]["headline"].startswith("Yes: rare categories gain")
    assert "On resampled images" in content["verdict"]["sentences"][0]
    (project / "artifacts/evaluate/ecm/figures/bootstrap.csv").write_text("bbox_APr\nmuch\n")
    broken = collected()
    assert broken["verdict"]["comparisons"][0]["image_p"] is None
    assert any("same resamples" in gap["what"] for gap in broken["gaps"])


def test_runs_evaluated_on_different_annotations_are_said_to_be(project):
    path = project / "artifacts/evaluate/ecm-control/manifest.json"
    made = json.loads(path.read_text())
    made["inputs"]["annotations"] = "f" * 64
    path.write_text(json.dumps(made))
    content = collected()
    assert [c["against"] for c in content["verdict"]["comparisons"]] == ["ecm-alone"]
    assert any("other annotations" in sentence for sentence in content["verdict"]["sentences"])
    assert any("different annotations" in gap["why"] for gap in content["gaps"])


def test_runs_scored_by_different_protocols_are_said_to_be(project):
    path = project / "artifacts/evaluate/ecm-control/manifest.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "protocol": "lvis-fixed"}))
    content = collected()
    assert [c["against"] for c in content["verdict"]["comparisons"]] == ["ecm-alone"]
    assert any("another protocol" in sentence for sentence in content["verdict"]["sentences"])


def test_without_params_every_evaluation_is_shown(project, cli):
    (project / "params.yaml").unlink()
    assert cli("report").code == 0
    content, _ = content_of(project / "artifacts/report/default/report.html")
    assert [run["name"] for run in content["runs"]] == sorted(report_tree.RUNS)


def test_the_hardest_of_the_tail_come_first(project):
    content = collected()
    letter = dict(zip(content["categories"]["ids"], content["categories"]["frequency"], strict=True))
    ap = {int(i): row["bbox_AP"] for i, row in content["runs"][0]["categories"].items()}
    ranks = [("rcf".index(letter[i]), ap[i]) for i in content["hardest"]]
    assert ranks == sorted(ranks) and len(ranks) == 8
    shown = [content["hardest"].index(picture["category"]) for picture in content["pictures"]]
    assert shown == sorted(shown) and len(shown) >= 4


def test_boxes_that_match_are_marked_so(project):
    content = collected()
    picture = content["pictures"][0]
    assert picture["picture"]["src"].startswith("data:image/webp;base64,")
    for box in picture["found"]["ecm"]:
        same = [t for t in picture["truth"] if t["category"] == box["category"]]
        near = any(max(abs(a - b) for a, b in zip(box["xyxy"], t["xyxy"], strict=True)) < 0.2 for t in same)
        assert box["matched"] or not near
