"""`2drcl doctor`: every line on a sound machine, and the right red one on a broken machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from stages import doctor
from stages.doctor import CHECKS, Result, drift, is_pair

ROOT = Path(__file__).resolve().parent.parent
Usage = namedtuple("Usage", "total used free")
Version = namedtuple("Version", "major minor micro")


@pytest.fixture(scope="module")
def real() -> dict[str, Result]:
    """This machine."""
    return doctor.examine()


def only(monkeypatch: pytest.MonkeyPatch, **results: Result) -> None:
    """Put made-up results in the place of the checks."""
    made = {name: (lambda result=result: result, "") for name, result in results.items()}
    monkeypatch.setattr(doctor, "CHECKS", made)


def test_this_machine_passes_what_the_other_tests_need(real: dict[str, Result]) -> None:
    for name in ("python", "packages", "torch", "mmdet", "metrics", "gpus", "threads"):
        assert real[name].state in ("ok", "warn"), real[name]
    assert torch.__version__ in real["torch"].detail and "nms works" in real["torch"].detail
    assert "mmdet 3.3.0" in real["mmdet"].detail and "RoIAlign works" in real["mmdet"].detail
    assert real["mmdet"].detail.endswith(("operators: torchvision", "operators: compiled"))
    assert "lvis" in real["metrics"].detail and str(ROOT) in real["packages"].detail
    assert list(real) == [name for name in CHECKS if name in real]


def test_whatever_is_not_well_has_a_remedy(real: dict[str, Result]) -> None:
    for result in real.values():
        assert result.detail and (result.state == "ok") == (result.remedy == "")
    assert all(remedy for _, remedy in CHECKS.values())


@pytest.mark.parametrize(("worst", "code"), [("ok", 0), ("warn", 0), ("FAIL", 4)])
def test_the_exit_code_is_4_on_red_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], worst: Any, code: int
) -> None:
    only(monkeypatch, first=Result("ok", "well"), second=Result(worst, "[red] so", "do [this]"))
    assert doctor.run(as_json=False) == code
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "ok    first     well",
        f"{worst:4s}  second    [red] so",
        "                -> do [this]",
    ]
    assert err == ""


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    only(monkeypatch, one=Result("warn", "hm", "so"), two=Result("ok", "well"))
    assert doctor.run(as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "one", "state": "warn", "detail": "hm", "remedy": "so"},
        {"name": "two", "state": "ok", "detail": "well", "remedy": ""},
    ]


def test_a_check_that_raises_is_red_and_one_that_has_nothing_to_say_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Result:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", {"torch": (broken, "reinstall"), "shm": (lambda: None, "")})
    message = "OSError: libcudart.so.13: cannot open shared object file"
    assert doctor.examine() == {"torch": Result("FAIL", message, "reinstall")}


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for minor, state in ((10, "FAIL"), (11, "ok"), (12, "ok"), (13, "FAIL")):
        monkeypatch.setattr(sys, "version_info", Version(3, minor, 0))
        assert doctor.check_python().state == state


@pytest.mark.parametrize(
    ("torch_version", "vision_version", "fits"),
    [
        ("2.11.0", "0.26.0", True),
        ("2.11.0+cpu", "0.26.0+cpu", True),
        ("2.6.0", "0.21.0", True),
        ("2.13.0", "0.26.0", False),
        ("2.11.0", "0.25.1", False),
        ("2.5.1", "0.20.1", False),  # torch.load would not refuse code by default
        ("1.13.0", "0.14.0", False),
    ],
)
def test_pairs(torch_version: str, vision_version: str, fits: bool) -> None:
    assert is_pair(torch_version, vision_version) == fits


def test_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision, "__version__", "0.20.0")
    assert "not built for each other" in doctor.check_torch().detail
    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, scores, threshold: torch.tensor([1, 0]))
    found = doctor.check_torch()
    assert found.state == "FAIL" and "kept [1, 0]" in found.detail


def test_operators_that_answer_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmcv.ops

    class Doubling(mmcv.ops.RoIAlign):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(*args)

    monkeypatch.setattr(mmcv.ops, "RoIAlign", Doubling)
    assert doctor.check_mmdet().state == "FAIL"


def test_no_gpu_is_not_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.check_gpus().state == "ok"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found = doctor.check_gpus()
    assert found.state == "warn" and "driver" in found.remedy


@pytest.mark.parametrize(("gib", "state"), [(2.9, "FAIL"), (3.1, "warn"), (9.9, "warn"), (10.1, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, gib: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, int(gib * 2**30)))
    found = doctor.check_disk()
    assert found.state == state and f"{gib:.1f} GiB" in found.detail


def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 0))
    found = doctor.check_shared_memory(tmp_path)
    assert found is not None and found.state == "warn" and "--shm-size" in found.remedy
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(8 * 2**30, 0, 0))
    found = doctor.check_shared_memory(tmp_path)
    assert found is not None and found.state == "ok"
    assert doctor.check_shared_memory(tmp_path / "absent") is None


def test_dvc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no dvc.yaml" in doctor.check_dvc().detail
    stages = {"stats": {"cmd": "2drcl stats"}, "proposals": {"cmd": "2drcl proposals"}}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))  # JSON is YAML
    assert doctor.check_dvc().state == "ok" and "2 stages" in doctor.check_dvc().detail
    stages["proposals"]["frozen"] = True  # type: ignore[assignment]
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    found = doctor.check_dvc()
    assert found.state == "warn" and "frozen: proposals" in found.detail
    assert "dvc unfreeze proposals" in found.remedy
    (tmp_path / "dvc.yaml").write_text("stages: [")
    assert doctor.examine()["dvc"].state == "FAIL"


def test_drift() -> None:
    installed = torch.__version__.split("+")[0]
    lines = [
        f"torch=={installed}",
        "torchvision==0.1.0",
        "no-such-package==1.0  # why",
        "",
        "# a comment",
        "no-such-package==2.0 ; sys_platform == 'win32'",
        f"NumPy=={doctor.version('numpy')} ; python_version >= '3.11'",
        "pandas==0.1 ; implementation_name == 'cpython'",
    ]
    assert drift(lines) == [
        f"torchvision {doctor.version('torchvision')} (==0.1.0)",
        "no-such-package missing (==1.0)",
        f"pandas {doctor.version('pandas')} (==0.1)",
    ]


def test_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_root_of", lambda package: tmp_path)
    (tmp_path / "requirements.lock").write_text("torch==0.1\n")
    assert doctor.check_lock() is None  # no checkout
    (tmp_path / "pyproject.toml").touch()
    found = doctor.check_lock()
    assert found is not None and found.state == "warn" and "torch" in found.detail
    assert found.remedy == f"pip install --no-deps -r {tmp_path / 'requirements.lock'}"
    (tmp_path / "requirements.lock").write_text("no-such-package==1 ; python_version < '3'\n")
    found = doctor.check_lock()
    assert found is not None and found.state == "ok"
    (tmp_path / "requirements.lock").unlink()
    assert doctor.check_lock() is None


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert doctor.check_threads().state == "warn"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert doctor.check_threads().state == "ok"


def in_process(program: str, folder: Path) -> tuple[int, list[dict[str, str]]]:
    """Run the doctor in a process that finds the packages in `folder` before all others."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


ANSWER = "import sys; from stages import doctor; sys.exit(doctor.run(as_json=True))"


def test_a_broken_torch_costs_its_lines_and_not_the_answer(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')\n")
    code, rows = in_process(ANSWER, tmp_path)
    states = {row["name"]: row["state"] for row in rows}
    assert code == 4
    assert states["torch"] == states["mmdet"] == states["threads"] == "FAIL"
    assert states["python"] == states["packages"] == "ok"
    torch_row = next(row for row in rows if row["name"] == "torch")
    assert torch_row["detail"] == "ImportError: libcudart.so.13 is missing" and "lock" in torch_row["remedy"]


def test_a_foreign_pipeline_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("__version__ = '9'\n")
    only_this = "from stages import doctor; doctor.CHECKS = {'packages': doctor.CHECKS['packages']}; "
    code, rows = in_process(only_this + ANSWER, tmp_path)
    assert code == 4 and rows[0]["state"] == "FAIL"
    assert f"pipeline from {tmp_path}" in rows[0]["detail"] and f"stages from {ROOT}" in rows[0]["detail"]


def test_the_whole_answer_comes_quickly() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", "doctor", "--json"], capture_output=True, text=True, cwd=ROOT
    )
    seconds = time.monotonic() - started
    rows = json.loads(done.stdout)
    red = any(row["state"] == "FAIL" for row in rows)
    assert done.returncode == (4 if red else 0)
    assert {row["name"] for row in rows} <= set(CHECKS) and len(rows) >= 9
    assert seconds < 30  # 4 s alone on two cores; this bound holds beside other work
