"""Ids are found where a dictionary finds them."""

import numpy as np
import pytest

from pipeline.data.id_lookup import UNKNOWN, positions


@pytest.mark.parametrize("num_known", [0, 1, 2, 50])
@pytest.mark.parametrize("num_wanted", [0, 1, 200])
def test_a_dictionary_finds_the_same(num_known: int, num_wanted: int) -> None:
    rng = np.random.default_rng(num_known)
    known = rng.permutation(np.arange(-60, 60))[:num_known] * 2**33
    wanted = rng.integers(-80, 80, num_wanted) * 2**33
    place = {int(k): i for i, k in enumerate(known)}
    found = positions(wanted, known)
    assert found.dtype == np.int64
    assert found.tolist() == [place.get(int(w), UNKNOWN) for w in wanted]


def test_the_ends_of_the_range() -> None:
    ends = np.array([2**63 - 1, 0, -(2**63)])
    assert positions(ends, ends).tolist() == [0, 1, 2]
    assert positions(ends, ends[1:2]).tolist() == [UNKNOWN, 0, UNKNOWN]
