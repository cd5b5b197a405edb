"""Start a job: in this process, or as several through torchrun; bring errors back whole."""

import atexit
import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipeline.artifacts import disk_errors, write_json
from pipeline.engine import signals
from pipeline.engine.distributed import leave
from pipeline.errors import UsageError
from pipeline.settings import to_plain
from stages import jobs, outcome, preflight
from stages.console import warn
from stages.interrupts import stoppable
from stages.machine import Machine, in_group, is_first

LOCK = "lock"


def run(kind: str, job: Any, machine: Machine, world: int, use_gpu: bool) -> None:
    """Do a job to its end, continuing from its scratch folder, which the caller holds (`exclusive`).

    Args:
        kind: key of `jobs.JOBS`.
        job: its job dataclass.
        machine: loader processes and checkpoints.
        world: number of processes.
        use_gpu: one GPU for each, else CPUs.

    Raises:
        TwoDRCLError: what stopped the run, whichever process it happened in.
    """
    workers = machine.loader_workers(use_gpu)
    preflight.check(1 if in_group() else world, workers, use_gpu=use_gpu)
    if world == 1 or in_group():
        atexit.register(leave)
        jobs.run(kind, job, use_gpu, workers, machine.save_every)
    else:
        order = {
            "kind": kind,
            "job": to_plain(job),
            "use_gpu": use_gpu,
            "workers": workers,
            "command": os.getpid(),
        }
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
        preexec_fn=signals.end_with_parent,
        start_new_session=True,  # ctrl-C in a terminal reaches it once, through `_forwarding`
    )
    with _forwarding(child) as forwarded:
        _pass_on(child, log)
        code = child.wait()
    if code:
        raise outcome.first_error(work, code, log, world, forwarded)


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
def _forwarding(child: "subprocess.Popen[str]") -> Iterator[list[int]]:
    """Pass the first SIGTERM or SIGINT on: the workers save and stop, then we do.

    A second one ends them, and so does the time that a signal allows: they keep to it themselves, but
    torchrun takes seconds to hand a signal over, and to leave after them.

    Yields:
        the signals that came.
    """
    forwarded: list[int] = []
    began = 0.0

    def forward(number: int, frame: object) -> None:
        nonlocal began
        if not forwarded:
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, signals.GRACE_S)
            child.send_signal(number)
        elif time.monotonic() - began > signals.AGAIN_S:
            child.kill()  # the workers and their loaders die with it
        forwarded.append(number)

    handlers = dict.fromkeys(signals.SIGNALS, forward) | {signal.SIGALRM: lambda *_: child.kill()}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield forwarded
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_held(work: Path) -> bool:
    """Whether a run is at work in a scratch folder."""
    if not (work / LOCK).exists():
        return False
    with (work / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _hold(file: TextIO, work: Path) -> None:
    """Lock the folder's file, and leave word of who has it.

    The lock is the kernel's: it ends with the process, also on another machine of a network file system.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = (work / LOCK).read_text()
        raise UsageError(f"another run is at work in {work}: {holder}", "wait for it, or stop it") from None
    except OSError as problem:
        if problem.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        warn(f"the file system of {work} knows no locks: see to it that no second run works there")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


@contextlib.contextmanager
def exclusive(work: Path, *, fresh: bool) -> Iterator[None]:
    """Hold the scratch folder; a second run on it is refused, a dead one's hold is gone with it.

    Of a group, the first process holds it for all: it does so before it joins, and nobody gets past the
    joining without it.

    Args:
        work: the folder.
        fresh: forget unfinished work first.

    Raises:
        UsageError: another run is at work here.
    """
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        file = (work / LOCK).open("a")
    # a forked loader process outlives a killed run by seconds: it must not keep the hold for it
    os.register_at_fork(after_in_child=file.close)
    with file:
        if is_first():
            _hold(file, work)
            if fresh:
                _empty(work)
        with stoppable():
            yield
