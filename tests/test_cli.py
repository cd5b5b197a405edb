"""The command line: frozen options, exit codes, one line per error, nothing half-written."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_params

from pipeline.data.annotations import read_annotations

COMMON = {"--params", "--out", "--seed", "--fresh", "--dry-run", "--json", "--help"}
MACHINE = {"--gpus", "--procs", "--workers", "--save-every"}
SPLIT = {"--annotations", "--images"}
# Other programs rely on these names; a new knob belongs in params.yaml.
OPTIONS = {
    "sample": COMMON | {"--no-pixels"},
    "proposals": COMMON | MACHINE | SPLIT | {"--allow-partial", "--weights"},
    "stats": COMMON | {"--annotations", "--proposals"},
    "pretrain": COMMON
    | MACHINE
    | SPLIT
    | {"--proposals", "--stats", "--init", "--allow-partial", "--show-batch"},
    "finetune": COMMON | MACHINE | SPLIT | {"--method", "--run", "--stats", "--init", "--allow-partial"},
    "evaluate": COMMON
    | SPLIT
    | {"--gpus", "--weights", "--predictions", "--proposals", "--run", "--stats", "--protocol"}
    | {"--engine", "--bootstrap"},
    "analyze": COMMON | SPLIT | {"--predictions", "--weights", "--run", "--stats"},
    "report": COMMON,
    "methods": {"--json", "--help"},
    "compare": {"--json", "--help"},
    "coco-lt": COMMON - {"--params"} | {"--annotations", "--membership"},
    "export": {"--to", "--weights", "--out", "--fresh", "--dry-run", "--json", "--help"},
    "show-config": {"--params", "--json", "--help"},
    "doctor": {"--json", "--help"},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    return tmp_path


def annotations(folder: Path, **changes) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400}],
        "categories": [{"id": 7, "name": "cup"}],
        **changes,
    }
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


def test_options_are_frozen():
    import typer.main

    from stages.cli import app

    group = typer.main.get_command(app)
    found = {
        name: {o for p in command.params for o in getattr(p, "opts", []) if o.startswith("--")} | {"--help"}
        for name, command in group.commands.items()
    }
    assert found == OPTIONS


def test_importing_the_cli_is_light():
    heavy = "('torch', 'mmdet', 'pandas', 'matplotlib')"
    code = f"import sys, stages.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sample_twice_is_up_to_date(project, cli):
    assert cli("sample").code == 0
    before = (project / "artifacts/sample/train_lvis.json").stat().st_mtime_ns
    again = cli("sample")
    assert again.code == 0 and "up to date" in again.err
    assert (project / "artifacts/sample/train_lvis.json").stat().st_mtime_ns == before
    assert again.out.strip() == "artifacts/sample"


def test_a_product_with_a_missing_file_is_made_again(project, cli):
    assert cli("sample", "--no-pixels").code == 0
    (project / "artifacts/sample/val_coco.json").unlink()
    assert "up to date" not in cli("sample", "--no-pixels").err
    assert (project / "artifacts/sample/val_coco.json").exists()


def test_dry_run_writes_nothing(project, cli):
    answer = cli("sample", "--dry-run")
    assert answer.code == 0 and json.loads(answer.out)["up_to_date"] is False
    assert not (project / "artifacts").exists()


def test_stats_alone_on_anybodys_file(project, cli):
    answer = cli("stats", "--annotations", annotations(project), "--out", project / "s", "--json")
    assert answer.code == 0, answer.err
    assert {p.name for p in (project / "s").iterdir()} == {
        "categories.parquet",
        "repeat_factors.parquet",
        "figures",
        "manifest.json",
        "timing.json",
    }
    assert "seconds" not in (project / "s/manifest.json").read_text()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"pretrain": {"contrast": {"temprature": 0.1}}}, 2, "pretrain.contrast.temprature"),
        ({"pretrain": {"epochs": "twelve"}}, 2, "pretrain.epochs must be a whole number"),
        ({"stats": {"threshold": "1e-3"}}, 2, "stats.threshold"),
        ({"statz": {}}, 2, "unknown key: statz"),
        ({"preset": "papr"}, 2, "preset must be one of"),
        ({"seed": -1}, 2, "seed"),
    ],
)
def test_wrong_params_exit_2(project, cli, changes, code, message):
    write_params(project, **changes)
    answer = cli("stats", "--annotations", annotations(project), "--out", project / "s")
    assert (answer.code, message in answer.err) == (code, True), answer.err
    assert answer.err.startswith("error: ") and "Traceback" not in answer.err
    assert not (project / "s").exists()


BROKEN = {
    "unknown image": {"annotations": [{"id": 5, "image_id": 9, "category_id": 7, "bbox": [1, 1, 2, 2]}]},
    "unknown category": {"annotations": [{"id": 5, "image_id": 1, "category_id": 8, "bbox": [1, 1, 2, 2]}]},
    "NaN box": {"annotations": [{"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, float("nan"), 2, 2]}]},
    "negative box": {"annotations": [{"id": 5, "image_id": 1, "category_id": 7, "bbox": [9, 9, -2, 2]}]},
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations_exit_3_and_leave_nothing(project, cli, case):
    answer = cli("stats", "--annotations", annotations(project, **BROKEN[case]), "--out", project / "s")
    assert answer.code == 3 and "5" in answer.err and "Traceback" not in answer.err
    assert not (project / "s").exists() and not list(project.glob(".s*"))


def test_missing_and_truncated_json_exit_3(project, cli):
    assert cli("stats", "--annotations", "nowhere.json", "--out", "s").code == 3
    whole = annotations(project).read_text()
    (project / "half.json").write_text(whole[: len(whole) // 2])
    assert cli("stats", "--annotations", "half.json", "--out", "s").code == 3


def test_more_gpus_than_there_are_exits_4_before_reading_anything(project, cli):
    answer = cli("pretrain", "--gpus", "8", "--annotations", "nowhere.json")
    assert answer.code == 4 and "--gpus 8" in answer.err and "hint" in answer.err


def test_out_of_another_stage_exits_2(project, cli):
    assert cli("sample", "--out", "x", "--no-pixels").code == 0
    answer = cli("stats", "--annotations", annotations(project), "--out", "x")
    assert answer.code == 2 and "belongs to `2drcl sample`" in answer.err
    assert (project / "x/train_coco.json").exists()


def test_usage_comes_before_environment(project, cli):
    write_params(project, pretrain={"contrast": {"temprature": 0.1}})
    assert cli("pretrain", "--gpus", "8").code == 2
    assert cli("finetune", "--method", "emc", "--gpus", "8").code == 2


def test_a_users_folder_of_figures_is_not_replaced(project, cli):
    (project / "mine/figures").mkdir(parents=True)
    (project / "mine/figures/paper.txt").write_text("keep")
    assert cli("stats", "--annotations", annotations(project), "--out", "mine").code == 2
    assert (project / "mine/figures/paper.txt").read_text() == "keep"


def test_a_method_and_a_run_of_another_method_are_refused(project, cli):
    assert cli("finetune", "--run", "ecm", "--method", "ce").code == 2
    write_params(project, finetune={"runs": {"ecm": {"method": "seesaw"}}})
    answer = cli("finetune", "--method", "ecm")
    assert answer.code == 2 and "seesaw" in answer.err


def test_every_run_name_is_checked_before_anything_trains(project, cli):
    write_params(project, finetune={"runs": {"ecm": {"method": "ecm"}, "My_Run": {"method": "ce"}}})
    answer = cli("finetune")
    assert answer.code == 2 and "My_Run" in answer.err


def test_the_same_file_for_training_and_validation_exits_3(project, cli):
    assert cli("sample").code == 0
    same = {"annotations": "artifacts/sample/train_lvis.json", "images": "artifacts/sample/train"}
    write_params(project, data={"train": same, "val": same})
    assert cli("proposals").code == 3


def test_json_of_several_runs_is_refused(project, cli):
    assert cli("evaluate", "--json").code == 2


def test_unknown_method_exits_2_and_names_the_known(project, cli):
    answer = cli("finetune", "--method", "emc")
    assert answer.code == 2 and "did you mean ecm" in answer.err


def test_stages_without_their_inputs_say_what_to_run(project, cli):
    assert cli("sample").code == 0
    answer = cli("pretrain")
    assert answer.code == 3 and "run `2drcl stats` first" in answer.err


def test_missing_images_are_listed(project, cli):
    assert cli("sample").code == 0
    (project / "artifacts/sample/train/000002.jpg").unlink()
    answer = cli("proposals")
    assert answer.code == 3 and "000002.jpg" in answer.err


def test_a_validation_image_in_the_training_set_exits_3(project, cli):
    assert cli("sample").code == 0
    same = {"annotations": "artifacts/sample/train_lvis.json", "images": "artifacts/sample/train"}
    coco = {"annotations": "artifacts/sample/train_coco.json", "images": "artifacts/sample/train"}
    write_params(project, data={"train": same, "val": coco})
    answer = cli("proposals")
    assert answer.code == 3 and "in the training set" in answer.err


def test_science_overrides_are_refused_under_dvc(project, cli, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "sample")
    answer = cli("sample", "--seed", "4")
    assert answer.code == 2 and "params.yaml" in answer.err


def test_evaluate_anybodys_predictions(project, cli):
    assert cli("sample").code == 0
    truth = read_annotations(Path("artifacts/sample/val_lvis.json"))
    records = [
        {
            "image_id": int(truth.image_ids[i]),
            "category_id": int(truth.category_ids[c]),
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "score": 0.9,
        }
        for i, c, b in zip(truth.box_images, truth.labels, truth.boxes, strict=True)
    ]
    (project / "p.json").write_text(json.dumps(records))
    named = ("--annotations", "artifacts/sample/val_lvis.json", "--predictions", "p.json")
    answer = cli("evaluate", *named, "--protocol", "lvis", "--out", "e", "--json")
    assert answer.code == 0 and json.loads(answer.out)["bbox_AP"] == pytest.approx(100)
    assert cli("analyze", *named, "--out", "an").code == 0
    assert json.loads((project / "an/errors.json").read_text())["all"]["correct"]["percent"] == 100
    bad = [{**records[0], "category_id": 99}]
    (project / "bad.json").write_text(json.dumps(bad))
    answer = cli("evaluate", "--annotations", named[1], "--predictions", "bad.json", "--out", "e2")
    assert answer.code == 3 and "99" in answer.err and not (project / "e2").exists()


def test_show_config_and_methods_answer_json(project, cli):
    config = json.loads(cli("show-config", "--json").out)
    assert config["pretrain"]["contrast"]["temperature"] == 0.2 and config["seed"] == 3
    assert {m["name"] for m in json.loads(cli("methods", "--json").out)} >= {
        "ce",
        "bce",
        "rfs",
        "irfs",
        "seesaw",
        "ecm",
    }


def test_an_interrupted_command_says_so(cli, monkeypatch):
    def interrupted(json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.doctor.run", interrupted)
    answer = cli("doctor")
    assert (answer.code, answer.out) == (130, "")
    assert answer.err.startswith("interrupted: ") and answer.err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_any_command_with_its_exit_code(number: int, code: int) -> None:
    """Also from inside `exec`, where a KeyboardInterrupt makes Python end with its own."""
    body = f"import os; os.kill(os.getpid(), {int(number)})\nfor i in range(10**9): pass"
    script = f"""
import sys
import stages.cli, stages.doctor
stages.doctor.run = lambda json: exec({body!r})
sys.argv[1:] = ["doctor"]
stages.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.startswith("interrupted: ")


def test_what_was_imported_is_not_searched_for_garbage_at_the_end(tmp_path: Path) -> None:
    """It took up to two of the twenty seconds that a signal leaves."""
    script = """
import atexit, gc
atexit.register(lambda: print("frozen", gc.get_freeze_count()))  # runs after what is registered later
import stages.cli
stages.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    word, count = done.stdout.split()[-2:]
    assert word == "frozen" and int(count) > 10_000


def test_a_product_is_not_made_over_its_own_input(cli, project):
    """`--out` holds the input of the same stage's earlier run: replacing the folder would remove it."""
    truth = annotations(project)
    (project / "p.json").write_text("[]")
    options = ("--annotations", truth, "--protocol", "coco")
    assert cli("evaluate", *options, "--predictions", "p.json", "--out", "out").code == 0
    before = (project / "out/predictions.json").read_bytes()
    answer = cli("evaluate", *options, "--predictions", "out/predictions.json", "--out", "./out")
    assert answer.code == 2 and "--out out holds the input out/predictions.json" in answer.err
    assert (project / "out/predictions.json").read_bytes() == before


@pytest.mark.parametrize("change", ["names", "ids"])
def test_stats_that_mean_other_categories_by_the_same_ids_are_refused(cli, project, change: str) -> None:
    """Groups of frequency would be those of other categories, and nobody would see it."""
    cups = [{"id": 7, "name": "cup"}, {"id": 8, "name": "bowl"}]
    truth = annotations(project, categories=cups)
    assert cli("stats", "--annotations", truth, "--out", "stats").code == 0
    other = [{"id": 7, "name": "bowl"}, {"id": 8, "name": "cup"}]
    content = json.loads(truth.read_text())
    content["categories"] = other if change == "names" else [*cups, {"id": 9, "name": "jug"}]
    (project / "other.json").write_text(json.dumps(content))
    (project / "p.json").write_text("[]")
    arguments = ("--predictions", "p.json", "--protocol", "coco", "--stats", "stats", "--out", "out")
    answer = cli("evaluate", "--annotations", "other.json", *arguments)
    assert answer.code == 3 and "give the stats of its train split" in answer.err
    assert ("by the same ids: 7 is cup and bowl, 8 is bowl and cup" in answer.err) == (change == "names")
    assert cli("evaluate", "--annotations", truth, *arguments).code == 0
