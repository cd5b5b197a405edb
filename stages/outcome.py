"""What ended a run of several processes: the reports they left, and torchrun's account of the first failure.

A process that raises leaves `error-RANK.json` (`stages.worker`).  One that is killed, or gives its step up
after a signal, leaves nothing; and torchrun stops the others by a signal as soon as one has ended, so they
report that.
"""

import json
import re
from pathlib import Path
from typing import Any

from pipeline.engine.failures import GROUP_FAILED
from pipeline.engine.signals import INTERRUPTED
from pipeline.errors import MachineFailed, Stopped, TwoDRCLError
from stages.interrupts import SAME_COMMAND, exit_code

OUT_OF_MEMORY = "signal 9 that nobody sent is the kernel's, for want of memory: fewer processes or workers"
STOPS = (Stopped.exit_code, INTERRUPTED)
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", re.DOTALL)
Reports = dict[int, dict[str, Any]]


def first_error(work: Path, code: int, log: Path, world: int, signals: list[int]) -> TwoDRCLError:
    """The error of the process that failed first, as it was raised there.

    Args:
        work: has the reports.
        code: torchrun's.
        log: what torchrun said.
        world: number of processes.
        signals: that this command got and passed on.
    """
    reports = {
        int(p.stem.removeprefix("error-")): json.loads(p.read_text()) for p in work.glob("error-*.json")
    }
    if signals:
        return _stopped(reports, exit_code(signals))
    said = log.read_text() if log.exists() else ""
    rank, ended = _root_cause(said, reports)
    if ended < 0:
        died = f"process {rank} of the run died of signal {-ended}"
        return MachineFailed(died, f"{OUT_OF_MEMORY}; {SAME_COMMAND}")
    failed = {rank: r for rank, r in reports.items() if r["exit_code"] not in STOPS}
    if ended in STOPS and all(GROUP_FAILED in r["message"] for r in failed.values()):
        return _stopped(reports, ended)  # a signal to one of the processes alone
    if failed:
        return _error_of(_earliest(failed, reports, world))
    tail = "\n".join(said.splitlines()[-15:])
    return TwoDRCLError(f"a process of the run died; torchrun ended with code {code}\n{tail}", f"see {log}")


def _root_cause(said: str, reports: Reports) -> tuple[int, int]:
    """Rank of the process that ended first, and its exit code, below 0 for a signal; 0 where nobody says.

    Torchrun may kill a process that has left its report and is only on its way out: the report says more.
    """
    found = _ROOT_CAUSE.search(said)
    if not found:
        return 0, 0
    rank, ended = int(found[1]), int(found[2])
    return rank, reports[rank]["exit_code"] if rank in reports else ended


def _earliest(failed: Reports, reports: Reports, world: int) -> dict[str, Any]:
    """The report of the first failure.  What all have found, the first process tells best: it knows where the
    bundle of a divergence is."""
    earliest = min(failed.values(), key=lambda r: r["time"])
    report = next(r for _, r in sorted(failed.items()) if r["message"] == earliest["message"])
    silent = [str(rank) for rank in range(world) if rank not in reports]
    if silent and GROUP_FAILED in report["message"]:  # one that was stopped, or hangs in a driver
        report["hint"] += f"; no word from process {', '.join(silent)}"
    return report


def _error_of(report: dict[str, Any]) -> TwoDRCLError:
    error = TwoDRCLError(report["message"], report["hint"])
    error.exit_code = report["exit_code"]
    return error


def _stopped(reports: Reports, code: int) -> TwoDRCLError:
    """After a signal: what the first process said of it, unless something else ended it.

    A process that gave its step up says nothing, and leaves the others without their group.
    """
    told = [r for r in reports.values() if GROUP_FAILED not in r["message"]]
    if told:
        error = _error_of(min(told, key=lambda r: r["time"]))
    else:
        error = Stopped("stopped by a signal before a step was finished", "the same command continues")
    if error.exit_code in STOPS:
        error.exit_code = code
    return error
