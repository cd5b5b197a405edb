"""Is a compressed mask whole?  pycocotools reads past the end of a cut one, and may loop over garbage.

COCO's compressed counts are run lengths, from the fourth on as the difference to the one two places before,
each in groups of five bits, lowest first, one character a group: 48 + bits, + 32 if another group follows;
bit 16 of the last group is the sign (maskApi.c of the COCO API, rleFrString).  A mask is whole if every run
is 0 or longer and all runs together are the image.  All masks are read at once, not in a loop.

Shapes: N masks, M characters, R runs.
"""

import itertools
from collections.abc import Sequence

import numpy as np

LONGEST = 7  # characters of a run of less than 2^32 pixels
AT_ONCE = 200_000  # characters; each takes some 100 bytes on the way


def is_damaged(counts: Sequence[str], num_pixels: np.ndarray) -> np.ndarray:
    """Which masks are not whole.

    Args:
        counts: N compressed counts.
        num_pixels: (N,) int64 height x width of each.

    Returns:
        (N,) bool.
    """
    piece = np.cumsum([len(text) for text in counts], dtype=np.int64) // AT_ONCE  # (N,)
    edges = np.flatnonzero(np.diff(piece, prepend=-1, append=-1)).tolist()
    parts = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return np.concatenate([np.zeros(0, bool), *(_is_damaged(counts[p], num_pixels[p]) for p in parts)])


def _is_damaged(counts: Sequence[str], num_pixels: np.ndarray) -> np.ndarray:
    texts = [text.encode("utf-8", "surrogatepass") for text in counts]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    characters = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48  # (M,)
    of_mask = np.repeat(np.arange(len(texts)), lengths)  # (M,)
    last = characters & 32 == 0
    ends = np.cumsum(lengths) - 1
    bad = lengths == 0
    bad[of_mask[(characters < 0) | (characters > 63)]] = True
    bad[~bad] = ~last[ends[~bad]]
    sound = ~bad[of_mask]
    masks, numbers, too_long = _numbers(characters[sound], of_mask[sound])
    bad[masks[too_long]] = True
    runs = _runs(masks, np.where(too_long, 0, numbers))
    bad[masks[runs < 0]] = True
    total = np.bincount(masks, weights=runs, minlength=len(texts))
    return bad | (total != num_pixels)


def _numbers(characters: np.ndarray, of_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M,), (M,) -> (R,) mask, (R,) signed number, (R,) bool more characters than a number can have."""
    ends = np.flatnonzero(characters & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    sizes = ends - starts + 1
    place = np.arange(len(characters)) - np.repeat(starts, sizes)
    groups = (characters & 31) << (5 * np.minimum(place, LONGEST))
    numbers = np.add.reduceat(groups, starts) if len(ends) else np.zeros(0, dtype=np.int64)
    is_negative = characters[ends] & 16 > 0
    numbers -= np.where(is_negative, 1 << (5 * np.minimum(sizes, LONGEST)), 0)
    return of_mask[ends], numbers, sizes > LONGEST


def _runs(masks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(R,), (R,) -> (R,) run lengths: differences summed up along every other run, the first apart."""
    first = np.flatnonzero(np.diff(masks, prepend=-1))
    size = np.diff(np.append(first, len(masks)))
    place = np.arange(len(masks)) - np.repeat(first, size)
    runs = np.where(place == 0, numbers, 0)
    for chain in ((place % 2 == 1), (place % 2 == 0) & (place > 0)):
        sums = np.cumsum(np.where(chain, numbers, 0))
        before = (sums - np.where(chain, numbers, 0))[first]
        runs += np.where(chain, sums - np.repeat(before, size), 0)
    return runs
