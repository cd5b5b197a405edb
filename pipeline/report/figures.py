"""Figures of earlier stages that the page does not draw itself: contact sheets, attention, detections.

What they show is known by their names; any other PNG of `analyze` is taken along under its own name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.embed import Embedded, embed_file
from pipeline.report.reader import Reader

BUDGET = 3_000_000  # characters of all figures: the page stays below 5 MB
DRAWN_BY_THE_PAGE = ("error_types", "error_bars", "metrics", "weight_norms")
# file name without its ending -> title, and what can be seen on it
KNOWN = {
    "examples": (
        "Training images",
        "A sheet of training images with their boxes; the last row shows the rarest.",
    ),
    "summary": (
        "Proposals",
        "How many boxes an image has, how well they are scored, and how large they are.",
    ),
    "group_shares": (
        "Shares of the groups",
        "Rare, common and frequent instances an epoch draws, by scheme.",
    ),
    "reconstructions": (
        "Reconstructions",
        "The same training images as the generator paints them from C5, over pre-training.",
    ),
    "attention": ("Attention", "Class activation on images of tail categories, a column per checkpoint."),
    "differences": ("Before and after", "Images where two runs differ most, with found and missed boxes."),
    "tide": ("What each error costs", "AP that would be gained if one type of error were mended."),
}
FIXED = (
    "sample/figures/examples.png",
    "proposals/default/figures/summary.png",
    "stats/default/figures/group_shares.png",
    "pretrain/default/figures/reconstructions.png",
)


@dataclass(frozen=True)
class Figure:
    """A picture with its words; `run` is empty where it belongs to none."""

    name: str
    run: str
    title: str
    alt: str
    picture: Embedded


def figure_files(reader: Reader, runs: Sequence[str]) -> list[tuple[str, str]]:
    """(path below artifacts, run) of what is there: analyses of the runs first, as the budget may run out."""
    found = []
    for run in runs:
        folder = reader.root / "analyze" / run / "figures"
        names = sorted(path.name for path in folder.glob("*.png")) if folder.is_dir() else []
        found += [
            (f"analyze/{run}/figures/{name}", run)
            for name in names
            if not name.removesuffix(".png").startswith(DRAWN_BY_THE_PAGE)
        ]
    return found + [(name, "") for name in FIXED if reader.exists(name)]


def read_figures(reader: Reader, runs: Sequence[str]) -> list[Figure]:
    """Every figure that fits; what does not is a gap."""
    figures, left = [], BUDGET
    for name, run in figure_files(reader, runs):
        picture = reader.value(name, f"figure {name}", "", embed_file)
        if picture is None:
            continue
        if picture.num_bytes > left:
            reader.note(f"figure {name}", "the page would grow too large: open the file itself")
            continue
        left -= picture.num_bytes
        stem = name.rsplit("/", 1)[-1].removesuffix(".png")
        title, alt = _words(stem)
        figures.append(Figure(stem, run, title, alt, picture))
    return figures


def _words(stem: str) -> tuple[str, str]:
    for known, words in KNOWN.items():
        if stem.startswith(known):
            return words
    title = stem.replace("_", " ").capitalize()
    return title, f"{title}, as the stage drew it; its numbers are in the csv of the same name."
