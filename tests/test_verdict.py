"""Did the tail get better: which runs are compared, what is said, and the randomisation test."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.intervals import Difference
from pipeline.report.curves import Curves
from pipeline.report.runs import Run
from pipeline.report.verdict import compare, sign_flip_p, verdict

RARE = tuple(range(1, 9))
EMPTY = Run(
    name="",
    method="ecm",
    init="pretrain",
    drawn=100,
    drawn_before=0,
    is_control=False,
    annotations="same",
    protocol="lvis",
    metrics={},
    intervals={},
    categories={},
    errors={},
    judged={},
    norms={},
    history=Curves(),
)


def run(name, ap, *, before=0, drawn=100, **changes):
    """A run whose rare categories all have about `ap`."""
    made = replace(
        EMPTY,
        name=name,
        drawn=drawn,
        drawn_before=before,
        metrics={"bbox_AP": ap + 10, "bbox_APr": ap},
        categories={i: {"bbox_AP": ap + 0.01 * i * (len(name) % 3)} for i in RARE},
    )
    return replace(made, **changes)


def brute_force(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_p_is_that_of_all_sign_patterns(count):
    differences = np.random.default_rng(count).normal(0.4, 1, count).tolist()
    assert sign_flip_p(differences) == pytest.approx(brute_force(differences))


def test_p_by_draws_is_near_the_exact_one():
    differences = np.random.default_rng(1).normal(0.3, 1, 15).tolist()  # the first number that is drawn
    assert sign_flip_p(differences) == pytest.approx(brute_force(differences), abs=0.02)


def test_p_needs_two_differences_and_never_is_zero():
    assert sign_flip_p([]) is None and sign_flip_p([3.0]) is None and sign_flip_p([0.0, 0.0, 2.0]) is None
    assert 0 < sign_flip_p([1.0] * 200) < 0.001
    assert sign_flip_p([1.0] * 5) == pytest.approx(2 / 32)


def test_the_control_comes_first_and_decides():
    runs = [run("a", 20, before=50), run("alone", 5), run("control", 30, drawn=150)]
    judged = verdict(runs, RARE)
    assert [c.against for c in judged.comparisons] == ["control", "alone"]
    assert judged.headline == "No: rare categories lose 10.0 AP for equal images."
    assert "a against control (equal images drawn)" in judged.sentences[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "image_p", "headline", "significant"),
    [
        (20, 10, 0.01, "Yes: rare categories gain 10.0 AP.", True),
        (20, 10, None, "Yes: rare categories gain 10.0 AP.", True),  # eight categories of eight: p = 2 / 256
        (20, 10, 0.2, "Perhaps: rare categories gain 10.0 AP, which may be chance.", False),
        (10, 20, 0.01, "No: rare categories lose 10.0 AP.", True),
        (10, 20, 0.2, "Not here: rare categories lose 10.0 AP, which may be chance.", False),
        (10, 10.04, 0.9, "No change: rare categories stay where they were.", False),
    ],
)
def test_headlines(ours, theirs, image_p, headline, significant):
    runs = [run("a", ours, before=50), run("b", theirs)]
    asked = []

    def paired(main, other, metric):
        asked.append((main.name, other.name, metric))
        return Difference(ours - theirs, None if image_p is None else (-1.0, 2.0), image_p)

    judged = verdict(runs, RARE, paired)
    assert judged.headline == headline and judged.comparisons[0].is_significant is significant
    assert asked == [("a", "b", "bbox_APr")]
    assert ("between \N{MINUS SIGN}1.0 and +2.0" in judged.sentences[0]) is (image_p is not None)


def test_what_may_be_chance_and_what_nobody_tested_is_said():
    ours, theirs = run("a", 20, before=50), run("b", 15)
    mixed = {i: {"bbox_AP": 20.0 + (-30 if i % 2 else 31)} for i in RARE}
    assert verdict([replace(ours, categories=mixed), theirs], RARE).headline.endswith("which may be chance.")
    judged = verdict([replace(ours, categories={}), theirs], RARE)
    assert judged.headline == "Perhaps: rare categories gain 5.0 AP, and nobody tested it for chance."
    assert judged.comparisons[0].is_significant is None


def test_runs_on_other_annotations_are_named_and_not_compared():
    judged = verdict([run("a", 20, before=50), run("b", 5, annotations="other")], RARE)
    assert judged.comparisons == []
    assert "b: evaluated on other annotations than a, hence not compared." in judged.sentences
    assert judged.headline == "One side only: nothing to compare a with."


def test_without_groups_all_categories_are_the_tail():
    flat = {"bbox_AP": 12.0, "bbox_APr": None}
    judged = verdict([run("a", 20, before=50, metrics=flat), run("b", 5)], [])
    assert judged.comparisons[0].metric == "bbox_AP" and judged.headline.startswith("No change") is False
    assert "all categories lose 3.0 AP" in judged.headline


def test_only_the_rare_categories_are_counted():
    ours, theirs = run("a", 20, before=50), run("b", 5)
    found = compare(ours, replace(theirs, categories={**theirs.categories, 99: {"bbox_AP": 100.0}}), [1, 2])
    assert (found.better, found.worse) == (2, 0)


def test_nothing_evaluated():
    assert verdict([EMPTY], []).main is None
    assert "no run has been evaluated" in verdict([], []).headline
