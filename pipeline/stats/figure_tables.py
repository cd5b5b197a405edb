"""The numbers behind the figures as CSV, for anybody's own plots: one file beside each PNG, of its name.

Epochs count from 1, as in the figures.  Equal content gives equal bytes.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stats.drawing import ranked
from pipeline.stats.expectation import GROUPS
from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.schemes import (
    Scheme,
    category_factors,
    factors_at_both_ends,
    falling_categories,
)
from pipeline.stats.settings import StatsSettings


def write_frequencies(path: Path, frequencies: CategoryFrequencies) -> None:
    """A row per category, frequent to rare: its counts."""
    order = ranked(frequencies)
    columns = {
        **_categories(frequencies, order),
        "image_count": frequencies.image_count[order],
        "instance_count": frequencies.instance_count[order],
    }
    if frequencies.proposal_count is not None:
        columns["proposal_count"] = frequencies.proposal_count[order]
    _write(path, columns)


def write_factors(
    path: Path,
    frequencies: CategoryFrequencies,
    epochs: int,
    settings: StatsSettings,
    schemes: Sequence[Scheme],
) -> None:
    """A row per category, frequent to rare: a column per scheme, of the dynamic one a column per epoch."""
    order = ranked(frequencies)
    columns = _categories(frequencies, order)
    for scheme in schemes:
        factors = category_factors(scheme, frequencies, epochs, settings)[:, order]
        if scheme == "drb":
            columns |= {f"drb_epoch_{epoch}": row for epoch, row in enumerate(factors, start=1)}
        else:
            columns[scheme] = factors[0]
    _write(path, columns)


def write_falling_factors(path: Path, frequencies: CategoryFrequencies, settings: StatsSettings) -> int:
    """A row per category whose factor falls as alpha rises from 0 to 1, the one that loses most first.

    Returns:
        how many there are.
    """
    falling = falling_categories(frequencies, settings)
    first, last = factors_at_both_ends(frequencies, settings)
    columns = {
        **_categories(frequencies, falling),
        "image_count": frequencies.image_count[falling],
        "instance_count": frequencies.instance_count[falling],
        "f_image": frequencies.f_image[falling],
        "f_instance": frequencies.f_instance[falling],
        "r_alpha_0": first[falling],
        "r_alpha_1": last[falling],
    }
    _write(path, columns)
    return len(falling)


def write_epoch_lengths(path: Path, draws: Mapping[Scheme, np.ndarray]) -> None:
    """A row per scheme and epoch: its expected draws."""
    _write(path, {**_epochs(draws), "draws": np.concatenate(list(draws.values()))})


def write_group_shares(path: Path, shares: Mapping[Scheme, np.ndarray]) -> None:
    """A row per scheme and epoch: the expected shares of rare, common and frequent instances."""
    rows = np.concatenate(list(shares.values()))  # schemes of (E, 3) -> (S E, 3)
    _write(path, {**_epochs(shares), **dict(zip(GROUPS, rows.T, strict=True))})


def _categories(frequencies: CategoryFrequencies, order: np.ndarray) -> dict[str, Any]:
    return {
        "category_id": frequencies.category_ids[order],
        "name": [frequencies.names[i] for i in order],
        "frequency": [frequencies.frequency[i] for i in order],
    }


def _epochs(values: Mapping[Scheme, np.ndarray]) -> dict[str, Any]:
    pairs = [(scheme, epoch + 1) for scheme, rows in values.items() for epoch in range(len(rows))]
    return {"scheme": [scheme for scheme, _ in pairs], "epoch": [epoch for _, epoch in pairs]}


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    plain = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*plain, strict=True))
