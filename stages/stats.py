"""`2drcl stats`: annotations (and proposals) -> categories.parquet, repeat_factors.parquet, figures."""

from pathlib import Path

from pipeline import artifacts
from pipeline.data.annotations import Annotations, read_annotations
from pipeline.data.settings import Split
from pipeline.settings import to_plain
from pipeline.stats import epoch_figures, figure_tables, figures, tables
from pipeline.stats.expectation import group_shares, instances_by_group
from pipeline.stats.frequencies import CategoryFrequencies, categories_of_images, count_frequencies
from pipeline.stats.sampler import build_sampler
from pipeline.stats.schemes import SCHEMES
from pipeline.stats.settings import StatsSettings
from stages.common import Order, answer, make, proposals_digest
from stages.console import say, warn


def run(order: Order, split: Split, proposals: Path | None, epochs: int) -> None:
    """Count categories, and compute the repeat factors of every epoch.

    Args:
        order: options.
        split: whose annotations are counted.
        proposals: folder of the proposals stage, or None.
        epochs: of pre-training, for eq. 4.
    """
    settings = order.params.section("stats")
    annotations = read_annotations(split.annotations)
    inputs = {"annotations": annotations.digest}
    if proposals is not None:
        inputs["proposals"] = proposals_digest(proposals)
    plain = {"stats": to_plain(settings), "epochs": epochs}
    manifest = artifacts.manifest("stats", plain, inputs, order.params.seed)

    def produce(folder: Path) -> None:
        for remark in annotations.remarks():
            say(remark)
        found = _count(annotations, proposals, settings)
        tables.write_categories(folder / "categories.parquet", found)
        tables.write_repeat_factors(folder / "repeat_factors.parquet", found, epochs, settings)
        (folder / "figures").mkdir()
        _draw_categories(folder / "figures", found, epochs, settings)
        _draw_epochs(folder / "figures", annotations, found, epochs, settings)

    make(order, manifest, produce)
    answer(order)


def _count(annotations: Annotations, proposals: Path | None, settings: StatsSettings) -> CategoryFrequencies:
    store = None
    if proposals is not None:
        from pipeline.proposals.store import ProposalStore

        store = ProposalStore.open(proposals, annotations.digest)
    return count_frequencies(annotations, store, settings.denominator, settings.instances)


def _draw_categories(folder: Path, found: CategoryFrequencies, epochs: int, settings: StatsSettings) -> None:
    figures.frequency_figure(found, folder / "frequency.png")
    figure_tables.write_frequencies(folder / "frequency.csv", found)
    figures.repeat_factor_figure(found, epochs, settings, folder / "repeat_factors.png")
    figure_tables.write_factors(
        folder / "repeat_factors.csv", found, epochs, settings, ("rfs", "irfs", "drb")
    )
    figures.factor_map_figure(found, epochs, settings, folder / "factor_map.png")
    figure_tables.write_factors(folder / "factor_map.csv", found, epochs, settings, ("drb",))
    falling = figure_tables.write_falling_factors(folder / "falling_factors.csv", found, settings)
    say(f"factors that fall as alpha rises: {falling} of {len(found.names)} categories (falling_factors.csv)")


def _draw_epochs(
    folder: Path, annotations: Annotations, found: CategoryFrequencies, epochs: int, settings: StatsSettings
) -> None:
    images = categories_of_images(annotations)
    instances = instances_by_group(annotations, found.frequency)
    # expectations need no batch and no seed
    samplers = {s: build_sampler(s, found, images, epochs, settings, batch_size=1, seed=0) for s in SCHEMES}
    if samplers["drb"].all_ones:
        remedy = "" if settings.threshold == "auto" else "; set stats.threshold: auto"
        warn(f"every repeat factor is 1: rebalancing has no effect{remedy}")
    draws = {scheme: sampler.expected_draws() for scheme, sampler in samplers.items()}
    epoch_figures.epoch_length_figure(draws, len(annotations.image_ids), folder / "epoch_length.png")
    figure_tables.write_epoch_lengths(folder / "epoch_length.csv", draws)
    shares = {scheme: group_shares(sampler, instances) for scheme, sampler in samplers.items()}
    epoch_figures.group_share_figure(shares, found.frequency, folder / "group_shares.png")
    figure_tables.write_group_shares(folder / "group_shares.csv", shares)
