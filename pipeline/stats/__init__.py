"""Category frequencies, repeat factors (RFS, IRFS, eq. 4) and the epoch sampler (Sec. 3.2).

`tables` (Parquet) and `figures` are imported by name: the sampler needs neither library.
"""

from pipeline.stats.frequencies import (
    CategoryFrequencies,
    ImageCategories,
    categories_of_images,
    count_frequencies,
    match_proposals,
)

# `pipeline.stats.repeat_factors` is the function, a contract; `from ... import` still finds its module.
from pipeline.stats.repeat_factors import (
    alphas,
    effective_frequency,
    image_factors,
    irfs_factors,
    repeat_factors,
    rfs_factors,
)
from pipeline.stats.sampler import EpochSampler, build_sampler, category_factors, expected_draws
from pipeline.stats.settings import StatsSettings, resolve_threshold

__all__ = [
    "CategoryFrequencies",
    "EpochSampler",
    "ImageCategories",
    "StatsSettings",
    "alphas",
    "build_sampler",
    "categories_of_images",
    "category_factors",
    "count_frequencies",
    "effective_frequency",
    "expected_draws",
    "image_factors",
    "irfs_factors",
    "match_proposals",
    "repeat_factors",
    "resolve_threshold",
    "rfs_factors",
]
