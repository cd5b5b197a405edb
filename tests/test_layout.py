"""The architecture, enforced: who may import whom, how long a function may be, what dvc.yaml must list."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py")])
FRAMEWORKS = ("mmdet", "mmcv", "mmengine")
# heads that subclass MMDetection's classes, and the registration of losses
MAY_IMPORT_MMDET = (
    "pipeline/detectors/",
    "pipeline/proposals/rpn_head.py",
    "pipeline/proposals/roi_head.py",
    "pipeline/finetune/heads/",
)
MATHEMATICS = ("contrast", "key_queue", "momentum", "projection", "reconstruction", "objective")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_only_the_bridge_imports_mmdetection(path):
    used = {m.split(".")[0] for m in imports(path)} & set(FRAMEWORKS)
    assert not used or names(path).startswith(MAY_IMPORT_MMDET)


def test_the_library_does_not_import_the_commands():
    for path in SOURCES:
        if names(path).startswith("pipeline/"):
            assert not any(m.split(".")[0] == "stages" for m in imports(path)), path


def test_the_mathematics_imports_torch_and_nothing_of_the_detectors():
    for name in MATHEMATICS:
        modules = imports(ROOT / f"pipeline/pretrain/{name}.py")
        assert not any(m.startswith("pipeline.detectors") for m in modules), name


def test_the_engine_knows_no_detector():
    for path in ROOT.glob("pipeline/engine/*.py"):
        foreign = [
            m for m in imports(path) if m.startswith("pipeline.") and not m.startswith("pipeline.engine")
        ]
        assert set(foreign) <= {"pipeline.errors", "pipeline.artifacts"}, path


@pytest.mark.parametrize(
    ("folder", "later"), [("evaluation", ("analysis", "report")), ("analysis", ("report",))]
)
def test_what_judges_does_not_import_what_comes_after_it(folder, later):
    for path in ROOT.glob(f"pipeline/{folder}/*.py"):
        assert not any(m.startswith(tuple(f"pipeline.{name}" for name in later)) for m in imports(path)), path


def test_functions_fit_on_a_screen_and_modules_say_their_idea():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 50, (path, node.name)


def test_dvc_tracks_every_shared_key_of_fine_tuning():
    from dataclasses import fields

    from pipeline.finetune.settings import FinetuneSettings

    shared = {f.name for f in fields(FinetuneSettings)} - {"runs"}
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["finetune"]["do"]
    listed = {p.split(".")[1] for p in stage["params"] if p.startswith("finetune.") and "runs" not in p}
    given = set(yaml.safe_load((ROOT / "params.yaml").read_text())["finetune"]) - {"runs"}
    assert listed == given == shared


def test_the_lock_holds_names_and_versions_only():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert "://" not in line and "==" in line


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *ROOT.glob("stages/recipes/*.yaml")], ids=names)
def test_every_params_file_is_accepted_and_has_what_dvc_tracks(path):
    from stages.params import load

    load(path).check_all()
    content = yaml.safe_load(path.read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        for tracked in stage.get("do", stage)["params"]:
            value = content
            for key in tracked.replace("${key}", next(iter(content["finetune"]["runs"]))).split("."):
                assert key in value, f"{tracked} of dvc.yaml is not in {path.name}"
                value = value[key]
