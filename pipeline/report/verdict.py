"""Did the tail get better, by how much, and can it be chance?

A run with pre-training is set against runs with the same method without it: first the control, which was
fine-tuned for as many images as pre-training and fine-tuning drew together, then the same fine-tuning alone.

Whether a difference can be chance is asked of the images where both runs were resampled
(`evaluate.bootstrap`): the 95 % interval and p of the difference on the same resamples.  Beside it, and alone
where nobody resampled, it is asked of the categories: if pre-training made no difference, each category's
difference could as well have had the other sign; the share of all sign patterns whose mean is at least as far
from 0 is p (Fisher's randomisation test, two-sided).  With five rare categories it cannot fall below
2 / 2^5 = 0.06.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.intervals import Difference
from pipeline.report.runs import Run

TAIL = {
    "bbox_APr": "rare categories",
    "bbox_AP1": "categories below 20 instances",
    "bbox_AP": "all categories",
}
LEVEL = 0.05
EXACT_UP_TO = 14  # categories; 2^14 sign patterns
DRAWS = 10_000
NO_DIFFERENCE = 0.05  # AP points: what two decimals hide


@dataclass(frozen=True)
class Comparison:
    """One run against another, in the tail.

    is_equal: both drew the same number of images.  interval, image_p: of the difference on the same resamples
    of the images, percent points; None: not resampled.  p: of the test over categories; None: fewer than two.
    better, worse: categories.
    """

    run: str
    against: str
    is_equal: bool
    metric: str
    value: float
    other: float
    interval: tuple[float, float] | None
    image_p: float | None
    p: float | None
    better: int
    worse: int

    @property
    def difference(self) -> float:
        return self.value - self.other

    @property
    def is_significant(self) -> bool | None:
        """By the images where they were resampled, else by the categories; None: nobody could ask."""
        p = self.p if self.image_p is None else self.image_p
        return None if p is None else p <= LEVEL


@dataclass(frozen=True)
class Verdict:
    """The first screen: a headline, what it rests on, and the comparisons, the fairest first."""

    headline: str
    sentences: list[str]
    comparisons: list[Comparison]
    main: str | None


Paired = Callable[[Run, Run, str], Difference]


def not_resampled(run: Run, other: Run, metric: str) -> Difference:
    """What is known without resamples."""
    return Difference(None, None, None)


def verdict(runs: Sequence[Run], tail_ids: Sequence[int], paired: Paired = not_resampled) -> Verdict:
    """Judge the runs.

    Args:
        runs: in the order of params.yaml.
        tail_ids: ids of the rare categories; empty: all categories count.
        paired: (run, other, metric) -> their difference on the same resamples.
    """
    scored = [run for run in runs if any(value is not None for value in run.metrics.values())]
    if not scored:
        return Verdict("Not known yet: no run has been evaluated.", [], [], None)
    main = next((run for run in scored if run.is_pretrained), scored[0])
    partners = [run for run in scored if run is not main and not run.is_pretrained]
    same = [run for run in partners if run.method == main.method] or partners
    foreign = [run.name for run in same if run.annotations != main.annotations]
    others = [run.name for run in same if run.name not in foreign and run.protocol != main.protocol]
    found = [
        compare(main, run, tail_ids, paired)
        for run in same
        if run.name not in (*foreign, *others) and (metric_of(main, run) is not None)
    ]
    found.sort(key=lambda comparison: not comparison.is_equal)
    sentences = [_sentence(comparison) for comparison in found]
    if foreign:
        listed = ", ".join(foreign)
        sentences.append(f"{listed}: evaluated on other annotations than {main.name}, hence not compared.")
    if others:
        listed = ", ".join(others)
        sentences.append(f"{listed}: scored by another protocol than {main.name}, hence not compared.")
    return Verdict(_headline(main, found), sentences, found, main.name)


def metric_of(main: Run, other: Run) -> str | None:
    """The tail's metric that both have."""
    both = (m for m in TAIL if main.metrics.get(m) is not None and other.metrics.get(m) is not None)
    return next(both, None)


def compare(main: Run, other: Run, tail_ids: Sequence[int], paired: Paired = not_resampled) -> Comparison:
    """Two runs that share a tail metric."""
    metric = metric_of(main, other)
    assert metric is not None
    value, base = main.metrics[metric], other.metrics[metric]
    assert value is not None and base is not None
    wanted = set(tail_ids) if metric == "bbox_APr" else None
    differences = [
        a - b
        for number in main.categories
        if wanted is None or number in wanted
        if (a := main.categories[number].get("bbox_AP")) is not None
        if (b := other.categories.get(number, {}).get("bbox_AP")) is not None
    ]
    on_images = paired(main, other, metric)
    return Comparison(
        run=main.name,
        against=other.name,
        is_equal=main.all_drawn is not None and main.all_drawn == other.all_drawn,
        metric=metric,
        value=value,
        other=base,
        interval=on_images.interval,
        image_p=on_images.p,
        p=sign_flip_p(differences) if metric != "bbox_AP1" else None,
        better=sum(d > 0 for d in differences),
        worse=sum(d < 0 for d in differences),
    )


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Fisher's randomisation test: exact up to `EXACT_UP_TO` values, else by seeded draws.

    Returns:
        None for fewer than two values that differ from 0.
    """
    values = np.array([d for d in differences if d != 0])
    if len(values) < 2:
        return None
    if len(values) <= EXACT_UP_TO:
        patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        signs = 1 - 2 * patterns  # (2^n, n)
    else:
        drawn = np.random.default_rng(0).integers(0, 2, (DRAWS, len(values)), dtype=np.int8)
        signs = np.concatenate([1 - 2 * drawn, np.ones((1, len(values)), np.int8)])  # the one observed counts
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) * (1 - 1e-12)).mean())


def _headline(main: Run, found: Sequence[Comparison]) -> str:
    if not found:
        return f"One side only: nothing to compare {main.name} with."
    first = found[0]
    tail, points = TAIL[first.metric], f"{abs(first.difference):.1f}"
    at = " for equal images" if first.is_equal else ""
    if abs(first.difference) < NO_DIFFERENCE:
        return f"No change: {tail} stay where they were{at}."
    if first.is_significant:
        word = "Yes: " if first.difference > 0 else "No: "
        moved = "gain" if first.difference > 0 else "lose"
        return f"{word}{tail} {moved} {points} AP{at}."
    sure = "which may be chance" if first.is_significant is False else "and nobody tested it for chance"
    word, moved = ("Perhaps: ", "gain") if first.difference > 0 else ("Not here: ", "lose")
    return f"{word}{tail} {moved} {points} AP{at}, {sure}."


def _sentence(c: Comparison) -> str:
    cost = "equal images drawn" if c.is_equal else "another number of images drawn"
    name = c.metric.removeprefix("bbox_")
    text = f"{c.run} against {c.against} ({cost}): {name} {c.value:.1f} against {c.other:.1f}, "
    text += f"a difference of {_signed(c.difference)}."
    if c.interval is not None and c.image_p is not None:
        low, high = (_signed(end) for end in c.interval)
        text += f" On resampled images it lies between {low} and {high} (95 %), p {_p(c.image_p)}."
    if c.better or c.worse:
        text += f" {c.better} categories better, {c.worse} worse"
        text += "." if c.p is None else f"; by a randomisation test over categories, p {_p(c.p)}."
    return text


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")


def _p(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"
