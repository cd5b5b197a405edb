"""Everything the page says, as plain data: read once, judged once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifacts
from pipeline.data.settings import Split
from pipeline.errors import MissingInput, TwoDRCLError
from pipeline.evaluation.intervals import SAMPLES, Difference, paired
from pipeline.report.chain import Stage, folders, mixed, read_chain
from pipeline.report.curves import Curves, curves
from pipeline.report.dataset import Categories, read_dataset, scored_categories
from pipeline.report.figures import Figure, figure_files, read_figures
from pipeline.report.paper import PaperTable, read_paper
from pipeline.report.pictures import Picture, hardest_first, read_pictures
from pipeline.report.reader import Gap, Reader
from pipeline.report.runs import Run, read_run
from pipeline.report.verdict import Verdict, verdict

PRODUCTS = {
    "finetune": ("manifest.json", "history.jsonl"),
    "evaluate": (
        "manifest.json",
        "metrics.json",
        "intervals.json",
        "figures/bootstrap.csv",
        "predictions.json",
        "figures/per_category.csv",
    ),
    "analyze": ("manifest.json", "errors.json", "detections.csv", "figures/weight_norms.csv"),
}
SHARED = (
    *(f"stats/default/{name}" for name in ("manifest.json", "categories.parquet", "repeat_factors.parquet")),
    *("sample/manifest.json", "proposals/default/manifest.json"),
    *("pretrain/default/manifest.json", "pretrain/default/history.jsonl"),
)


@dataclass(frozen=True)
class Report:
    """The page's content.  `hardest`: category ids, see `pictures.hardest_first`."""

    verdict: Verdict
    runs: list[Run]
    categories: Categories
    hardest: list[int]
    pretraining: Curves
    chain: list[Stage]
    pictures: list[Picture]
    figures: list[Figure]
    paper: list[PaperTable]
    beyond_paper: list[str]
    gaps: list[Gap]


@dataclass(frozen=True)
class Sources:
    """What a report is made of.

    root: the folder of all artifacts.  runs: of fine-tuning.  val: what was evaluated on.  with_sample: the
    data is the rendered sample.
    """

    root: Path
    runs: tuple[str, ...]
    val: Split
    with_sample: bool


def digests(sources: Sources) -> dict[str, str]:
    """Path below `root` -> digest of every tracked file that is there (timing.json is not: it is volatile).

    Raises:
        MissingInput: there is none at all.
    """
    reader = Reader(sources.root)
    names = [
        f"{stage}/{run}/{name}" for stage, files in PRODUCTS.items() for run in sources.runs for name in files
    ]
    names += [*SHARED, *(name for name, _ in figure_files(reader, sources.runs))]
    found = {name: artifacts.file_digest(sources.root / name) for name in names if reader.exists(name)}
    if not found:
        raise MissingInput(
            f"{sources.root} holds nothing to report on: no stage of this params.yaml has finished",
            "run `dvc repro`, or the stages one by one, beginning with `2drcl proposals`",
        )
    return found


def collect(sources: Sources) -> Report:
    """Read what is there; what is not is named in `gaps`."""
    reader = Reader(sources.root)
    chain = read_chain(reader, folders(sources.runs, with_sample=sources.with_sample))
    categories = read_dataset(reader, "default")
    categories = categories if categories.ids else scored_categories(reader, sources.runs)
    todo = "2drcl pretrain"
    before = reader.lines("pretrain/default/history.jsonl", "history of pre-training", todo)
    runs = [read_run(reader, name) for name in sources.runs]
    rare = [i for i, letter in zip(categories.ids, categories.frequency, strict=True) if letter == "r"]
    judged = verdict(runs, rare, lambda run, other, metric: _paired(reader, run, other, metric))
    order = _order(categories, runs, judged.main)
    evaluated = [run.name for run in runs if run.metrics]
    pictures = read_pictures(reader, sources.val, evaluated, order)
    paper, beyond = read_paper(reader, evaluated)
    figures = read_figures(reader, sources.runs)
    for sentence in mixed(chain):
        reader.note("a chain in one piece", sentence, "dvc repro")
    return Report(
        judged,
        runs,
        categories,
        order,
        curves(before),
        chain,
        pictures,
        figures,
        paper,
        beyond,
        _once(reader.gaps),
    )


def _paired(reader: Reader, run: Run, other: Run, metric: str) -> Difference:
    """run - other on the same resamples of the images."""
    first, second = (reader.root / "evaluate" / one.name for one in (other, run))
    if not all((folder / SAMPLES).exists() for folder in (first, second)):
        return Difference(None, None, None)
    try:
        return paired(first, second, [other.metrics, run.metrics])[metric]
    except (TwoDRCLError, KeyError, TypeError, AttributeError) as problem:
        reader.note(
            f"{run.name} and {other.name} on the same resamples", str(problem), "2drcl evaluate --fresh"
        )
        return Difference(None, None, None)


def _order(categories: Categories, runs: Sequence[Run], main: str | None) -> list[int]:
    chosen = next((run for run in runs if run.name == main), None)
    of_main = chosen.categories if chosen else {}
    ap = {number: row.get("bbox_AP") for number, row in of_main.items()}
    ids = categories.ids
    return hardest_first(ids, categories.frequency, categories.instances or [0] * len(ids), ap)


def _once(gaps: Sequence[Gap]) -> list[Gap]:
    return list(dict.fromkeys(gaps))
