"""`2drcl stats`: annotations (and proposals) -> categories.parquet, repeat_factors.parquet, figures."""

from pathlib import Path

from pipeline import artifacts
from pipeline.data.annotations import read_annotations
from pipeline.data.settings import Split
from pipeline.settings import to_plain
from pipeline.stats import figures, tables
from pipeline.stats.frequencies import categories_of_images, count_frequencies
from pipeline.stats.sampler import category_factors, expected_draws
from pipeline.stats.settings import resolve_threshold
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
        store = None
        if proposals is not None:
            from pipeline.proposals.store import ProposalStore

            cache = artifacts.scratch(order.out, "stats", "proposal-cache")
            store = ProposalStore.open(proposals, annotations.digest, cache)
        found = count_frequencies(annotations, store, settings.denominator, settings.instances)
        threshold = resolve_threshold(settings.threshold, found.num_images)
        tables.write_categories(folder / "categories.parquet", found)
        tables.write_repeat_factors(
            folder / "repeat_factors.parquet", found, epochs, threshold, settings.first_epoch
        )
        (folder / "figures").mkdir()
        figures.frequency_figure(found, folder / "figures" / "frequency.png")
        figures.repeat_factor_figure(
            found, epochs, threshold, folder / "figures" / "repeat_factors.png", settings.first_epoch
        )
        images = categories_of_images(annotations)
        draws = {}
        for scheme in ("rfs", "irfs", "drb"):
            factors = category_factors(scheme, found, epochs, threshold, settings.first_epoch)
            draws[scheme] = expected_draws(factors, images, settings.rounding)
            if scheme == "drb" and (factors == 1).all():
                warn("every repeat factor is 1: rebalancing has no effect; set stats.threshold: auto")
        figures.epoch_length_figure(
            draws, len(annotations.image_ids), folder / "figures" / "epoch_length.png"
        )

    make(order, manifest, produce)
    answer(order)
