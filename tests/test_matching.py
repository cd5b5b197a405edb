"""The greedy assignment, all cells at once, against pycocotools' loop, and hand-made cases."""

import numpy as np
import pytest

from pipeline.evaluation.matching import NOTHING, THRESHOLDS, match
from pipeline.evaluation.overlaps import PAIRS_AT_ONCE, Pairs, box_pairs


def loop(pairs: Pairs, cells: np.ndarray, is_ignored: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """The rule, detection by detection; objects that count stand before ignored ones."""
    found = np.full((len(THRESHOLDS), len(cells)), NOTHING)
    for t, threshold in enumerate(THRESHOLDS):
        taken: set[int] = set()
        for detection in range(len(cells)):
            rows = np.flatnonzero(pairs.detections == detection)
            rows = rows[np.argsort(is_ignored[pairs.objects[rows]], kind="stable")]
            best, match_ = min(threshold, 1 - 1e-10), NOTHING
            for row in rows:
                this = pairs.objects[row]
                if this in taken and not is_crowd[this]:
                    continue
                if match_ != NOTHING and not is_ignored[match_] and is_ignored[this]:
                    break
                if pairs.ious[row] < best:
                    continue
                best, match_ = pairs.ious[row], this
            if match_ != NOTHING:
                taken.add(match_)
                found[t, detection] = match_
    return found


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.integers(0, 5, 40))
    object_cells = np.sort(rng.integers(0, 6, 18))
    rows, columns = np.nonzero((cells[:, None] == object_cells) & (rng.random((40, 18)) < 0.7))
    ious = rng.choice([0.5, 0.6, 0.7, 0.75, 0.8, 1.0], len(rows))  # ties, and thresholds met exactly
    is_crowd = rng.random(18) < 0.2
    is_ignored = is_crowd | (rng.random(18) < 0.3)
    pairs = Pairs(rows, columns, ious)
    found = match(pairs, cells, is_ignored, is_crowd)
    np.testing.assert_array_equal(found, loop(pairs, cells, is_ignored, is_crowd))
    assert (found[0] != NOTHING).sum() > 5


def test_nothing_to_match() -> None:
    none = np.zeros(0, dtype=np.int64)
    pairs = Pairs(none, none, np.zeros(0))
    no = np.zeros(0, dtype=bool)
    assert match(pairs, np.array([3, 3]), no, no).tolist() == [[NOTHING] * 2] * 10
    assert match(pairs, none, no, no).shape == (10, 0)


def test_pairs_in_parts_are_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    cells, object_cells = np.sort(rng.integers(0, 9, 200)), np.sort(rng.integers(0, 9, 50))
    boxes, objects = (np.concatenate([rng.random((n, 2)), 1 + rng.random((n, 2))], 1) for n in (200, 50))
    is_crowd = rng.random(50) < 0.1
    whole = box_pairs(cells, boxes, object_cells, objects, is_crowd)
    assert PAIRS_AT_ONCE > 200 * 50
    monkeypatch.setattr("pipeline.evaluation.overlaps.PAIRS_AT_ONCE", 7)
    parts = box_pairs(cells, boxes, object_cells, objects, is_crowd)
    for name in ("detections", "objects", "ious"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert 100 < len(whole.ious) < 200 * 50
