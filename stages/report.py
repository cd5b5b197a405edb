"""`2drcl report`: what all stages left -> one page."""

from pathlib import Path

import pipeline
from pipeline import artifacts
from pipeline.report import figures_of_all, page
from pipeline.report.collect import Sources, collect, digests
from stages.common import Order, make
from stages.console import data, say, warn
from stages.params import ARTIFACTS

PAGE = "report.html"
SAMPLE = ARTIFACTS / "sample"


def run(order: Order) -> None:
    """Write report.html from the artifacts of every run in params.yaml.

    Raises:
        MissingInput: there is not one finished stage.
    """
    runs = tuple(order.params.section("finetune").runs) or _evaluated(ARTIFACTS)
    split = order.params.section("data").val
    with_sample = split.annotations.is_relative_to(SAMPLE)
    sources = Sources(ARTIFACTS, runs, split, with_sample)
    inputs = {**digests(sources), "page": page.template_digest()}
    settings = {
        "runs": list(runs),
        "val": {"annotations": str(split.annotations), "images": str(split.images)},
    }
    manifest = artifacts.manifest("report", settings, inputs, order.params.seed)

    def produce(folder: Path) -> None:
        report = collect(sources)
        text = page.page(report, f"2DRCL {pipeline.__version__}: {report.verdict.headline}")
        artifacts.write_bytes(folder / PAGE, text.encode("utf-8"))
        (folder / "figures").mkdir()
        figures_of_all.write(report, folder / "figures")
        say(report.verdict.headline)
        for gap in report.gaps:
            warn(f"{gap.what}: {gap.why}" + (f" (`{gap.todo}` makes it)" if gap.todo else ""))

    make(order, manifest, produce)
    if not order.dry_run:
        path = order.out / PAGE
        data({"out": str(order.out), "report": str(path)}, order.as_json, [str(path)])


def _evaluated(root: Path) -> tuple[str, ...]:
    """Without runs in params.yaml: everything that was evaluated, proposals apart."""
    found = sorted(path.parent.name for path in root.glob("evaluate/*/predictions.json"))
    return tuple(found)
