"""Where ids stand in a list of ids that follows no order.

Shapes: N ids that are looked up, K that are known.
"""

import numpy as np

UNKNOWN = -1


def positions(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each wanted id among the known ones.

    Args:
        wanted: (N,) integers.
        known: (K,) integers, each once, in any order; may be empty.

    Returns:
        (N,) int64 in [0, K), or UNKNOWN.
    """
    if not len(known):
        return np.full(len(wanted), UNKNOWN, dtype=np.int64)
    order = np.argsort(known, kind="stable")
    found = order[np.searchsorted(known[order], wanted).clip(max=len(known) - 1)]
    return np.where(known[found] == wanted, found, UNKNOWN).astype(np.int64)
