"""Start a training job: in this process, or as several through torchrun; bring errors back whole."""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import disk_errors, write_json
from pipeline.errors import TwoDRCLError, UsageError
from pipeline.settings import to_plain
from stages import jobs
from stages.machine import Machine, in_group

LOCK = "lock"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def train(stage: str, job: Any, machine: Machine, batch_size: int, *, fresh: bool) -> None:
    """Train `job` to its end, continuing from its scratch folder.

    Args:
        stage: key of `jobs.JOBS`.
        job: its job dataclass.
        machine: processes and devices.
        batch_size: global, to divide.
        fresh: forget unfinished work first.

    Raises:
        TwoDRCLError: what stopped the run, whichever process it happened in.
    """
    world, use_gpu = machine.processes(batch_size)
    workers = machine.loader_workers(use_gpu)
    with exclusive(job.work):
        if fresh and not in_group():
            _empty(job.work)
        if world == 1 or in_group():
            jobs.run(stage, job, use_gpu, workers, machine.save_every)
        else:
            order = {"stage": stage, "job": to_plain(job), "use_gpu": use_gpu, "workers": workers}
            _torchrun(job.work, world, {**order, "save_every": machine.save_every})


def _empty(work: Path) -> None:
    """Remove all but the lock that this process holds."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _torchrun(work: Path, world: int, content: dict[str, Any]) -> None:
    order = work / "job.json"
    write_json(order, content)
    for old in work.glob("error-*.json"):
        old.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world)), **os.environ}
    log = work / "torchrun.log"
    child = subprocess.Popen(
        [*command, "-m", "stages.worker", str(order)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    with _forwarding(child):
        _pass_on(child, log)
        code = child.wait()
    if code:
        raise _first_error(work, code, log)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends: a killed run must not leave workers behind that
    hold the GPUs and wait for each other."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on(child: "subprocess.Popen[str]", log: Path) -> None:
    """Copy the workers' talk to stderr, but what torchrun says of a failure (fifty lines that hide the one
    that matters) to `log` only."""
    assert child.stderr is not None
    failed = False
    with log.open("w") as file:
        for line in child.stderr:
            failed = failed or line.startswith("Traceback") or re.match(r"[EW]\d{4} ", line) is not None
            print(line, end="", file=file if failed else sys.stderr, flush=True)


@contextlib.contextmanager
def _forwarding(child: "subprocess.Popen[str]") -> Iterator[None]:
    """Pass SIGTERM and SIGINT on; the workers save and stop, then we do."""

    def forward(number: int, frame: object) -> None:
        child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _first_error(work: Path, code: int, log: Path) -> TwoDRCLError:
    """The error of the process that failed first, as it was raised there."""
    reports = sorted(work.glob("error-*.json"), key=lambda p: json.loads(p.read_text())["time"])
    if not reports:
        tail = "\n".join(log.read_text().splitlines()[-15:]) if log.exists() else ""
        return TwoDRCLError(f"a training process ended with code {code}\n{tail}", f"see {log}")
    report = json.loads(reports[0].read_text())
    error = TwoDRCLError(report["message"], report["hint"])
    error.exit_code = report["exit_code"]
    return error


@contextlib.contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """Hold the scratch folder; a second run on it is refused, a dead one's hold is gone with it.

    Raises:
        UsageError: another process trains here.
    """
    if in_group():
        work.mkdir(parents=True, exist_ok=True)
        yield
        return
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        file = (work / LOCK).open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is training in {work}", "wait for it, or stop it") from None
        yield
