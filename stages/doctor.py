"""`2drcl doctor`: what works on this machine, and what to do about what does not.

Every check really does what it speaks of (two boxes through NMS, a RoIAlign there and back) and imports what
it needs itself, so that one broken package costs one line, not the answer.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

State = Literal["ok", "warn", "FAIL"]
STYLES = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}
PYTHONS = ((3, 11), (3, 12))
TORCHVISION_AHEAD = 15  # torchvision 0.(n + 15) is built for torch 2.n
GIB = 2**30
REINSTALL = "install the lock again: pip install --no-deps -r requirements.lock"


@dataclass(frozen=True)
class Result:
    """What one check found; `remedy` says what to do unless all is well."""

    state: State
    detail: str
    remedy: str = ""


def run(as_json: bool) -> int:
    """Run every check and print one line each.

    Args:
        as_json: print a list of {name, state, detail, remedy} instead.

    Returns:
        the exit code: 4 if any check failed, else 0.
    """
    found = examine()
    _show(found, as_json)
    return 4 if any(result.state == "FAIL" for result in found.values()) else 0


def examine() -> dict[str, Result]:
    """The results of all checks that concern this machine, by name, in order."""
    found = {name: _guarded(check, remedy) for name, (check, remedy) in CHECKS.items()}
    return {name: result for name, result in found.items() if result is not None}


def _guarded(check: Callable[[], Result | None], remedy: str) -> Result | None:
    try:
        return check()
    except Exception as problem:  # a broken installation raises anything
        return Result("FAIL", f"{type(problem).__name__}: {problem}", remedy)


def _show(found: dict[str, Result], as_json: bool) -> None:
    if as_json:
        rows = [{"name": name, **asdict(result)} for name, result in found.items()]
        sys.stdout.write(json.dumps(rows, indent=1, sort_keys=True) + "\n")
        return
    out = Console(soft_wrap=True)  # not stages.console: it needs torch, which may be what is broken
    for name, result in found.items():
        line = f"{result.state:4s}  {name:9s} {result.detail}"
        out.print(line, style=STYLES[result.state], markup=False, highlight=False)
        if result.remedy:
            out.print(f"{'':15s} -> {result.remedy}", markup=False, highlight=False)


def check_python() -> Result:
    """The versions that the lock is made for."""
    detail = f"{sys.version.split()[0]} ({sys.executable})"
    if sys.version_info[:2] in PYTHONS:
        return Result("ok", detail)
    return Result("FAIL", detail, "make a virtual environment of Python 3.11 or 3.12")


def check_torch() -> Result:
    """torch and torchvision are built for each other, and torchvision's compiled operators load."""
    import torch
    import torchvision

    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist()
    if kept != [1]:
        return Result("FAIL", f"{versions}: nms of two boxes kept {kept} instead of [1]", REINSTALL)
    if not is_pair(torch.__version__, torchvision.__version__):
        return Result("FAIL", f"{versions} are not built for each other", REINSTALL)
    return Result("ok", f"{versions}: nms works")


def is_pair(torch_version: str, torchvision_version: str) -> bool:
    """Whether torchvision 0.(n + 15) meets torch 2.n, n >= 6."""
    major, minor = (int(v) for v in torch_version.split(".")[:2])
    vision_major, vision_minor = (int(v) for v in torchvision_version.split(".")[:2])
    return (major, vision_major) == (2, 0) and minor >= 6 and vision_minor == minor + TORCHVISION_AHEAD


def check_mmdet() -> Result:
    """mmdet imports, and whoever answers for mmcv's operators pools a box forward and backward."""
    from pipeline.detectors.operators import ANSWERED_BY

    versions = ", ".join(
        f"{name} {import_module(name).__version__}" for name in ("mmdet", "mmcv", "mmengine")
    )
    import torch

    layer = import_module("mmcv.ops").RoIAlign(2)
    feature = torch.ones(1, 1, 8, 8, requires_grad=True)
    pooled = layer(feature, torch.tensor([[0.0, 1, 1, 7, 7]]))
    pooled.sum().backward()
    assert feature.grad is not None
    # ones stay ones, and the four bins hand back all they are given
    if not torch.allclose(pooled, torch.ones(1, 1, 2, 2)) or abs(feature.grad.sum().item() - 4) > 1e-4:
        return Result("FAIL", f"{versions}: RoIAlign by {ANSWERED_BY} operators is wrong", REINSTALL)
    return Result("ok", f"{versions}; RoIAlign works, operators: {ANSWERED_BY}")


def check_metrics() -> Result:
    """The two evaluation packages import; pycocotools is compiled."""
    import numpy as np

    import_module("lvis")
    mask_api = import_module("pycocotools.mask")
    area = int(mask_api.area(mask_api.encode(np.ones((3, 4), dtype=np.uint8, order="F"))))
    versions = f"lvis {version('lvis')}, pycocotools {version('pycocotools')}"
    if area != 12:
        return Result("FAIL", f"{versions}: a mask of 12 pixels measures {area}", REINSTALL)
    return Result("ok", versions)


def check_gpus() -> Result:
    """What CUDA shows; none at all is well."""
    import torch
    import torchvision

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "check the driver's version and CUDA_VISIBLE_DEVICES, or use --gpus 0"
            return Result(
                "warn", f"nvidia-smi is here, but torch (CUDA {torch.version.cuda}) sees no GPU", remedy
            )
        return Result("ok", "none: everything runs on the CPU (--gpus 0)")
    count = torch.cuda.device_count()
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    names = ", ".join(f"{p.name} {p.total_memory / GIB:.0f} GiB" for p in properties)
    boxes = torch.tensor([[0.0, 0, 10, 10]], device="cuda")
    torchvision.ops.nms(boxes, boxes[:, 3], 0.5)  # a torchvision built for the CPU fails here
    return Result("ok", f"{count}: {names}; CUDA {torch.version.cuda}")


def check_disk() -> Result:
    """Room for checkpoints and products where the command runs."""
    free = shutil.disk_usage(Path.cwd()).free / GIB
    detail = f"{free:.1f} GiB free in {Path.cwd()}"
    if free < 3:
        return Result("FAIL", detail, "free some space: checkpoints and caches need several GiB")
    return Result("warn", detail, "LVIS-size runs need more") if free < 10 else Result("ok", detail)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Result | None:
    """NCCL's processes exchange through shared memory; containers often have 64 MiB of it."""
    if not folder.is_dir():
        return None
    size = shutil.disk_usage(folder).total / GIB
    detail = f"{size:.2f} GiB in {folder}"
    if size < 1:
        return Result(
            "warn", detail, "several GPUs may need more: give the container more (docker: --shm-size 8g)"
        )
    return Result("ok", detail)


def check_dvc() -> Result:
    """DVC, and the pipeline of the current folder."""
    import yaml

    installed = f"dvc {version('dvc')}"
    path = Path("dvc.yaml")
    if not path.exists():
        remedy = "`dvc repro` works in the project folder; the commands work anywhere"
        return Result("warn", f"{installed}; no dvc.yaml in {Path.cwd()}", remedy)
    stages: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    frozen = [name for name, stage in stages.items() if stage.get("frozen")]
    detail = f"{installed}; dvc.yaml with {len(stages)} stages"
    if frozen:
        remedy = f"`dvc repro` skips them until `dvc unfreeze {' '.join(frozen)}`"
        return Result("warn", f"{detail}, frozen: {', '.join(frozen)}", remedy)
    return Result("ok", detail)


def check_lock() -> Result | None:
    """The installed versions are those of requirements.lock, where this is a checkout."""
    root = _root_of("stages")
    lock = root / "requirements.lock"
    if not (root / "pyproject.toml").exists() or not lock.exists():
        return None
    differing = drift(lock.read_text(encoding="utf-8").splitlines())
    if not differing:
        return Result("ok", f"every package as in {lock}")
    detail = f"{len(differing)} packages differ from {lock}: {', '.join(differing)}"
    return Result("warn", detail, f"pip install --no-deps -r {lock}")


def drift(lines: Iterable[str]) -> list[str]:
    """Packages of a lock that are missing or of another version; lines for other systems do not count."""
    from packaging.requirements import Requirement

    packages = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    differing = []
    for package in packages:
        if package.marker is not None and not package.marker.evaluate():
            continue
        found = _installed(package.name)
        if found is None or not package.specifier.contains(found, prereleases=True):  # 2.11+cpu is 2.11
            differing.append(f"{package.name} {found or 'missing'} ({package.specifier})")
    return differing


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_packages() -> Result:
    """`pipeline` and `stages` are common names: ours must not be hidden by somebody else's."""
    places = {name: _root_of(name) for name in ("pipeline", "stages")}
    if len(set(places.values())) > 1:
        shown = ", ".join(f"{name} from {place}" for name, place in places.items())
        return Result("FAIL", shown, "uninstall or rename the package that hides ours, or leave its folder")
    return Result("ok", f"pipeline and stages from {places['stages']}")


def _root_of(package: str) -> Path:
    """The folder that holds the package's folder."""
    return Path(next(iter(import_module(package).__path__))).resolve().parent


def check_threads() -> Result:
    """Threads of one process against the cores it may use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    setting = os.environ.get("OMP_NUM_THREADS", "not set")
    detail = f"{threads} of torch on {cores} cores (OMP_NUM_THREADS {setting})"
    if threads > cores:
        return Result("warn", detail, f"set OMP_NUM_THREADS={cores}: more threads than cores are slower")
    return Result("ok", detail)


CHECKS: dict[str, tuple[Callable[[], Result | None], str]] = {  # name -> check, what to do if it raises
    "python": (check_python, "make a virtual environment of Python 3.11"),
    "packages": (check_packages, "install the project: pip install --no-deps -e ."),
    "torch": (check_torch, REINSTALL),
    "mmdet": (check_mmdet, REINSTALL),
    "metrics": (check_metrics, REINSTALL),
    "gpus": (check_gpus, "install the torchvision that goes with torch and the driver, or use --gpus 0"),
    "disk": (check_disk, "run in a folder that exists and can be read"),
    "shm": (check_shared_memory, "use --workers 0"),
    "dvc": (check_dvc, "install dvc, and check that dvc.yaml is YAML with `stages:`"),
    "lock": (check_lock, "restore requirements.lock from the repository"),
    "threads": (check_threads, REINSTALL),
}
