"""Entry of each process that torchrun starts: `python -m stages.worker job.json`."""

import json
import os
import sys
import time
import traceback
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.engine.distributed import leave
from pipeline.engine.signals import end_with_parent
from pipeline.errors import Stopped, TwoDRCLError
from pipeline.settings import build
from stages import jobs
from stages.console import listen
from stages.interrupts import end_quickly, stoppable


def main(order_path: Path) -> int:
    """Run the job; leave an account of any error beside it, because torchrun only passes a number on."""
    end_with_parent()
    end_quickly()
    listen()
    order = json.loads(order_path.read_text())
    if _is_orphan(order["command"]):
        return Stopped.exit_code
    job = build(jobs.JOBS[order["kind"]].job_class(), order["job"], "job")
    try:
        with stoppable():
            jobs.run(order["kind"], job, order["use_gpu"], order["workers"], order["save_every"])
    except BaseException as problem:
        report = {
            "message": str(problem) if isinstance(problem, TwoDRCLError) else traceback.format_exc(),
            "hint": getattr(problem, "hint", ""),
            "exit_code": getattr(problem, "exit_code", 1),
            "time": time.time(),
        }
        write_json(order_path.with_name(f"error-{os.environ.get('RANK', 0)}.json"), report)
        return int(report["exit_code"]) if isinstance(report["exit_code"], int) else 1
    finally:
        leave()
    return 0


def _is_orphan(command: int) -> bool:
    """Whether torchrun, a child of `command`, was killed while this process imported: nobody would end it."""
    if not Path("/proc/self/stat").exists():
        return False
    try:
        stat = Path(f"/proc/{os.getppid()}/stat").read_text()
    except OSError:
        return True
    return int(stat.rsplit(")", 1)[1].split()[1]) != command


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
