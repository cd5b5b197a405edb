"""The decision table: every case has one row, and the rows say what A.1 and our decisions say."""

import itertools

import numpy as np
import pytest

from pipeline.analysis.error_decisions import DECISIONS, ON_CROWD, OTHER, SAME, TYPES, decide

EDGES = (0.0, 1e-12, 0.0999, 0.1, 0.3, 0.4999, 0.5, 0.7, 1.0)


def test_the_table_has_every_case_once_and_nothing_else() -> None:
    assert list(DECISIONS) == list(itertools.product(SAME, OTHER))
    assert set(DECISIONS.values()) == set(TYPES)
    assert set(ON_CROWD) <= set(TYPES)


def expected(same: float, other: float, crowd: float) -> str:
    """A.1 in its own words, with what design decides where it is silent."""
    is_right_class = same > 0
    if is_right_class and same >= 0.5:
        return "correct"
    if is_right_class and same >= 0.1:
        return "localization"
    if other < 0.1:
        return "ignored" if crowd >= 0.1 else "background"
    return "classification" if not is_right_class and other >= 0.5 else "other"


@pytest.mark.parametrize("crowd", [0.0, 0.0999, 0.1, 1.0])
def test_every_combination_of_edges(crowd: float) -> None:
    pairs = list(itertools.product(EDGES, EDGES))
    same, other = (np.array(v) for v in zip(*pairs, strict=True))
    found = decide(same, other, np.full(len(pairs), crowd)).tolist()
    assert found == [expected(s, o, crowd) for s, o in pairs]


def test_nothing_to_decide() -> None:
    assert decide(np.zeros(0), np.zeros(0), np.zeros(0)).shape == (0,)
