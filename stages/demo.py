"""`make demo`: the whole chain through DVC, then the table and where to look."""

import os
import subprocess
import sys
import time
from pathlib import Path

from pipeline.errors import TwoDRCLError
from pipeline.report.efficiency import cost_figure, costs, write_costs
from stages import compare
from stages.console import say
from stages.params import ARTIFACTS, load

REPORT = "artifacts/report/default/report.html"
LOOK_AT = (
    ("the data", "artifacts/sample/figures/examples.png"),
    ("the long tail, and what rebalancing does to it", "artifacts/stats/default/figures/"),
    ("pre-training, term by term", "artifacts/pretrain/default/figures/losses.png"),
    ("errors by frequency group", "artifacts/analyze/ecm/figures/error_types.png"),
    ("where it looks on rare categories", "artifacts/analyze/ecm/figures/attention.png"),
    ("what pre-training finds, and loses", "artifacts/analyze/ecm/figures/differences.png"),
    ("what each stage cost", "artifacts/efficiency/costs.png"),
    ("AP of every category", "artifacts/evaluate/ecm/figures/per_category.csv"),
)


def main() -> int:
    """Run `dvc repro` here and show what came out."""
    started = time.monotonic()
    code = _dvc("repro")
    if code:
        say(f"dvc repro ended with code {code}; the same command continues where it stopped")
        return code
    runs = list(load(None).section("finetune").runs)
    compare.run([ARTIFACTS / "evaluate" / run for run in runs], as_json=False)
    found = costs(ARTIFACTS)
    write_costs(found, ARTIFACTS / "efficiency" / "costs.csv")
    cost_figure(found, ARTIFACTS / "efficiency" / "costs.png")
    say("`images drawn` is pre-training + fine-tuning: a comparison is fair at equal sums.")
    for what, where in LOOK_AT:
        say(f"  {where:52s} {what}")
    say(f"done in {time.monotonic() - started:.0f} s; `dvc repro` now does nothing; see `dvc metrics show`")
    say(f"all of it on one page, for any browser: {REPORT}")
    return 0


def _dvc(*arguments: str) -> int:
    """Run DVC; without a git checkout it works without one."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    if not Path(".git").exists():
        subprocess.run([sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"], check=True)
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TwoDRCLError as problem:
        say(f"error: {problem.message}")
        sys.exit(problem.exit_code)
