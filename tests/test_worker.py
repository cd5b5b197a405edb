"""A process of a run that nobody would end."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_process_whose_launcher_is_gone_ends_before_it_works(tmp_path: Path) -> None:
    """Killed in the seconds that importing takes, torchrun would leave processes that wait for minutes."""
    order = {"kind": "pretrain", "job": {}, "command": os.getpid()}  # which is its parent, not its launcher's
    (tmp_path / "job.json").write_text(json.dumps(order))
    worker = [sys.executable, "-m", "stages.worker", str(tmp_path / "job.json")]
    done = subprocess.run(worker, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "")
    assert [p.name for p in tmp_path.iterdir()] == ["job.json"]
