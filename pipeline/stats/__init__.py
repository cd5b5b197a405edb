"""Category frequencies, repeat factors (RFS, IRFS, eq. 4) and the epoch sampler (Sec. 3.2).

`tables` (Parquet), `comparison` and the figures are imported by name: the sampler needs neither library.
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
    instance_aware_frequency,
    irfs_factors,
    repeat_factors,
    rfs_factors,
)
from pipeline.stats.sampler import EpochSampler, build_sampler
from pipeline.stats.schemes import category_factors, falling_categories
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
    "falling_categories",
    "image_factors",
    "instance_aware_frequency",
    "irfs_factors",
    "match_proposals",
    "repeat_factors",
    "resolve_threshold",
    "rfs_factors",
]
