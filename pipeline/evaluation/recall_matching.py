"""Which proposal finds which object: COCO's greedy one-to-one matching, for every budget at once.

pycocotools (`useCats=0`) lets the best-scored proposal take the free object that it overlaps most, then the
next one, and so on.  A budget of k proposals only cuts this process short, so one run gives each object the
rank at which it is found, and AR@k for every k follows.  Ignored objects (crowds, other sizes, seen
categories) are offered to a proposal only after all others: they never change which others are found.

The process is a stable matching in which objects prefer early proposals and proposals prefer large overlaps.
As all objects rank the proposals alike, it is the only one, and may be computed from the side of the objects,
which are few: each asks the first proposal that overlaps it enough, a proposal keeps the best that asked, the
others ask their next.  All images and thresholds of a batch take part in each round.

Shapes: A objects and D proposals of a batch of images, P pairs of them that overlap by .5 or more, T = 10 IoU
thresholds, M matches.
"""

from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
NEVER = np.iinfo(np.int32).max  # the rank of an object that no proposal finds


@dataclass(frozen=True)
class Pairs:
    """Proposals and objects of one image that overlap by .5 or more, sorted by object, then proposal."""

    objects: np.ndarray  # (P,) int64, ordered as pycocotools has them: by image, category, place in the file
    proposals: np.ndarray  # (P,) int64, image by image, best first
    ranks: np.ndarray  # (P,) int64 of the proposal in its image, 0 for the best
    overlaps: np.ndarray  # (P,) float64

    def take(self, wanted: np.ndarray) -> "Pairs":
        """The pairs where `wanted` (P,) is true."""
        return Pairs(self.objects[wanted], self.proposals[wanted], self.ranks[wanted], self.overlaps[wanted])


def greedy(
    pairs: Pairs, thresholds: np.ndarray, is_shared: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Match greedily in score order at each threshold.

    Args:
        pairs: what may be matched; of equal overlaps a proposal takes the later object.
        thresholds: (T,) smallest overlaps, at least .5.
        is_shared: (P,) bool, the pair's object may be taken any number of times (a crowd); default: none.

    Returns:
        Of each match its position in `thresholds` (M,) and in `pairs` (M,).
    """
    by_overlap = np.lexsort((pairs.objects, pairs.overlaps))
    preference = np.empty(len(by_overlap), dtype=np.int64)  # larger: preferred by its proposal
    preference[by_overlap] = np.arange(len(by_overlap))
    num_proposals = int(pairs.proposals.max(initial=-1)) + 1
    kept = np.full(len(thresholds) * num_proposals, -1, dtype=np.int64)  # preference of what each took
    level, pair = np.nonzero(pairs.overlaps >= thresholds[:, None])  # (T, P) -> (E,), sorted by both
    place = level * num_proposals + pairs.proposals[pair]
    if is_shared is not None:
        shared = is_shared[pair]
        np.maximum.at(kept, place[shared], preference[pair[shared]])
        level, pair, place = level[~shared], pair[~shared], place[~shared]
    _ask(level, pairs.objects[pair], place, preference[pair], kept)
    taken = np.flatnonzero(kept >= 0)
    return taken // max(num_proposals, 1), by_overlap[kept[taken]]


def _ask(
    level: np.ndarray, objects: np.ndarray, place: np.ndarray, preference: np.ndarray, kept: np.ndarray
) -> None:
    """Let every object ask its proposals in order until one keeps it; fills `kept` (T * D).

    A proposal that refuses one object keeps another: no object asks many more than there are objects in its
    image.

    Args:
        level, objects: (E,) threshold and object of each possible question, sorted; equal ones are one asker.
        place: (E,) position in `kept` of the proposal that is asked.
        preference: (E,) of that proposal for this object.
    """
    is_first = (np.diff(level, prepend=-1) != 0) | (np.diff(objects, prepend=-1) != 0)
    position = np.flatnonzero(is_first)  # what each asker asks now
    end = np.append(position[1:], len(level))
    while len(position):
        np.maximum.at(kept, place[position], preference[position])
        refused = kept[place[position]] != preference[position]
        if not refused.any():
            return
        position = position + refused
        position, end = position[position < end], end[position < end]


def ranks_of_objects(pairs: Pairs, counts: np.ndarray, is_crowd: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The rank at which each object is found: it is among the first k proposals where rank < k.

    Objects of seen categories do not use up the budget (OLN's COCOEvalXclassWrapper, cocoeval_wrappers.py):
    a proposal that is matched to one of them at the first threshold, .5, has no rank, nor does it find
    anything at a higher threshold; those behind it move up.

    Args:
        pairs: of all objects.
        counts: (A,) bool, the objects to find; the others are ignored.
        is_crowd: (A,) bool, none of which counts.
        seen: (A,) bool, none of which counts.

    Returns:
        (T, A) int32, NEVER where no proposal finds the object and where it does not count.
    """
    found = np.full((len(THRESHOLDS), len(counts)), NEVER, dtype=np.int32)
    wanted = pairs.take(counts[pairs.objects])
    level, pair = greedy(wanted, THRESHOLDS)
    proposals, ranks = wanted.proposals[pair], wanted.ranks[pair]
    if seen.any():
        removed = _removed(pairs, counts, is_crowd, seen, proposals[level == 0])
        before = np.searchsorted(removed, proposals) - np.searchsorted(removed, proposals - ranks)
        ranks = np.where(np.isin(proposals, removed), NEVER, ranks - before)
    found[level, wanted.objects[pair]] = ranks
    return found


def _removed(
    pairs: Pairs, counts: np.ndarray, is_crowd: np.ndarray, seen: np.ndarray, taken: np.ndarray
) -> np.ndarray:
    """Ascending proposals that find, at IoU .5, nothing that counts, but an object of a seen category."""
    ignored = pairs.take(~counts[pairs.objects] & ~np.isin(pairs.proposals, taken))
    _, pair = greedy(ignored, THRESHOLDS[:1], is_crowd[ignored.objects])
    return np.sort(ignored.proposals[pair[seen[ignored.objects[pair]]]])
