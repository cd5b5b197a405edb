"""Part of `2drcl analyze`: what checkpoints show, weight norms (Fig. A.2) and attention maps (Fig. 3)."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.analysis.attention import Choice, attention_figure, choose, write_measures
from pipeline.analysis.settings import AnalyzeSettings
from pipeline.analysis.weight_norms import Categories, Norms, norms_figure, write_norms
from pipeline.data.annotations import Annotations
from pipeline.detectors.attention import Attention
from pipeline.detectors.classifier import classifier
from pipeline.stats.frequencies import categories_of_images
from pipeline.stats.tables import read_categories
from stages.console import say
from stages.evaluate import load_detector


def look_inside(analysis: Any, images: Path | None, figures: Path) -> None:
    """weight_norms and attention, each as .png, .svg and .csv.

    Args:
        analysis: of `stages.analyze`.
        images: folder of the split, or None: no attention maps.
        figures: the folder for all.

    Raises:
        MismatchedInput: a checkpoint knows other categories, or an image id is unknown.
    """
    settings: AnalyzeSettings = analysis.settings
    split, letters, asked = analysis.annotations, analysis.letters, settings.attention
    choice = Choice([], None)
    if images is not None and asked.images:
        choice = choose(split, letters, asked.images, analysis.order.params.seed, asked.image_ids)
        _say_what_is_shown(choice)
    norms: dict[str, Norms] = {}
    maps: dict[str, list[np.ndarray]] = {}
    device = analysis.order.machine.one_device()
    for name, path in analysis.material.weights.items():
        model, test_wh = load_detector(path, split)
        found = classifier(model, len(split.category_ids))
        norms[name] = Norms(found.norms, found.note)
        if images is not None:
            look = Attention(model.to(device), split, images, test_wh, device, asked.method, asked.layer)
            maps[name] = [look.map(s.image, s.label, s.boxes) for s in choice.subjects]
    categories = _categories(split, letters, analysis.stats)
    norms_figure(norms, categories, settings.norm_degree, figures / "weight_norms.png")
    write_norms(norms, categories, settings.norm_degree, figures / "weight_norms.csv")
    if images is not None and choice.subjects:
        how = (asked.method, asked.layer)
        attention_figure(split, images, choice, maps, how, figures / "attention.png")
        write_measures(figures / "attention.csv", split, letters, choice.subjects, maps, how)


def _say_what_is_shown(choice: Choice) -> None:
    if not choice.subjects:
        say("analyze: no image shows an object: no attention maps")
    elif choice.group in ("c", "f"):
        say("analyze: no image shows a rare category: attention maps are of the rarest there are")


def _categories(split: Annotations, letters: list[str] | None, stats: Path | None) -> Categories:
    """How often training saw each category; without its stats, how often this split shows it."""
    counts = np.bincount(categories_of_images(split).labels, minlength=len(split.category_ids))
    where = "this split (--stats: in training)"
    if stats is not None:
        found = read_categories(stats / "categories.parquet")
        if np.array_equal(found.category_ids, split.category_ids):
            counts, where = found.image_count, "training"
    return Categories(split.category_ids, split.category_names, letters or [""] * len(counts), counts, where)
