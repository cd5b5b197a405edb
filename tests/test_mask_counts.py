"""Whole masks pass, cut and garbled ones do not: against pycocotools' encoder and a plain loop."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.evaluation import mask_counts
from pipeline.evaluation.mask_counts import is_damaged


def encoded(runs: list[int]) -> str:
    """Any runs, also impossible ones, by the rule of the COCO API, in a loop."""
    text = ""
    for place, run in enumerate(runs):
        rest = run - (runs[place - 2] if place > 2 else 0)
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def whole(seed: int, number: int = 40) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(number):
        height, width = rng.integers(1, 90, 2)
        pixels = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1])
        masks.append(coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8))))
    pixels_of = np.array([m["size"][0] * m["size"][1] for m in masks])
    return [m["counts"].decode() for m in masks], pixels_of


def test_the_loop_is_pycocotools() -> None:
    runs = [3, 70, 1, 2000, 5, 921]
    theirs = coco_mask.frPyObjects({"size": [30, 100], "counts": runs}, 30, 100)
    assert encoded(runs) == theirs["counts"].decode()


@pytest.mark.parametrize("at_once", [70, 200_000])
def test_whole_masks_pass(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(mask_counts, "AT_ONCE", at_once)
    counts, pixels = whole(0)
    assert not is_damaged(counts, pixels).any()
    assert is_damaged(counts, pixels + 1).all()


def test_one_bad_mask_among_whole_ones_is_found() -> None:
    counts, pixels = whole(1)
    bad = {3: counts[3][:-1], 9: "", 20: encoded([5, -2, int(pixels[20]) - 3]), 31: "zz!!~~", 39: "é"}
    bad |= {25: "o" * 40 + "0", 12: encoded([int(pixels[12]) - 1])}
    found = is_damaged([bad.get(i, text) for i, text in enumerate(counts)], pixels)
    assert np.flatnonzero(found).tolist() == sorted(bad)


def test_a_continuation_at_the_end_is_not_read_into_the_next_mask() -> None:
    found = is_damaged([chr(48 + 32 + 4), encoded([4])], np.array([4, 4]))
    assert found.tolist() == [True, False]
    assert is_damaged([], np.zeros(0, np.int64)).shape == (0,)
