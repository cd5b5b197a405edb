"""One epoch's draw at LVIS size: ours over the loops of detectron2 and mmengine, in one interleaved run.

    python benchmarks/epoch_draw.py

All start from what each keeps in memory (ours: categories of images in columns; theirs: a dictionary per
image), compute the factors of the same categories at the same threshold, and end with a shuffled list of
images.  The loops are our own, with the steps of
  detectron2  RepeatFactorTrainingSampler: repeat_factors_from_category_frequency, _get_epoch_indices
  mmengine    ClassBalancedDataset: get_cat_ids of every image twice, ceil, a list; DefaultSampler's shuffle
Both compute RFS, once per run.  Eq. 4 changes the factors, so that here they count anew every epoch; what
remains of each when the factors are kept is shown as well.
The counts of LVIS v1 are used where TWODRCL_DATA holds them, else a Zipf tail of that size.
"""

import itertools
import json
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.stats.frequencies import CategoryFrequencies, ImageCategories, frequency_letters
from pipeline.stats.sampler import EpochSampler, build_sampler
from pipeline.stats.settings import StatsSettings

NUM_IMAGES, NUM_CATEGORIES, THRESHOLD, BATCH, EPOCHS, ROUNDS = 99_388, 1203, 1e-3, 16, 12, 5
Records = list[dict[str, Any]]


def main() -> None:
    """Measure and print."""
    source, image_count, instance_count = _counts()
    image_of, label_of = _place(image_count, instance_count)
    frequencies, categories = _columns(image_of, label_of)
    records = _records(image_of, label_of)
    rfs = _sampler("rfs", frequencies, categories)
    drb = _sampler("drb", frequencies, categories)
    _check(rfs, records)
    kept_factors, kept_copies = _detectron2_factors(records), _mmengine_copies(_mmengine_factors(records))
    cases: dict[str, Callable[[int], object]] = {
        "ours, eq. 4, in batches": drb.steps,
        "ours, RFS, in batches": rfs.steps,
        "detectron2's loops": lambda epoch: _detectron2_draw(_detectron2_factors(records), epoch),
        "mmengine's loops": lambda epoch: _shuffled(_mmengine_copies(_mmengine_factors(records)), epoch),
        "detectron2, factors kept": lambda epoch: _detectron2_draw(kept_factors, epoch),
        "mmengine, copies kept": lambda epoch: _shuffled(kept_copies, epoch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(ROUNDS):
        for name, draw in cases.items():
            started = time.perf_counter()
            draw(EPOCHS - 1 - round_)
            seconds[name].append(time.perf_counter() - started)
    print(f"{source}: {NUM_IMAGES:,} images, {len(label_of):,} boxes, {len(categories.labels):,} pairs")
    print("draw of one epoch                 ms   over ours")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:28s} {value * 1e3:7.1f} {value / medians['ours, eq. 4, in batches']:11.1f}")


def _counts() -> tuple[str, np.ndarray, np.ndarray]:
    """Images and instances per category."""
    folder = Path(os.environ.get("TWODRCL_DATA", Path(__file__).parents[1] / "../shared/data"))
    path = folder / "longtail" / "lvis_v1_train_cat_info.json"
    if path.exists():
        rows = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda row: row["id"])
        images, instances = ([row[f"{what}_count"] for row in rows] for what in ("image", "instance"))
        return "counts of LVIS v1", np.array(images), np.array(instances)
    images = np.maximum(1, (2000 / (1 + np.arange(NUM_CATEGORIES) / 100) ** 3).astype(np.int64))
    return "a Zipf tail", images, images * 3


def _place(image_count: np.ndarray, instance_count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A,) image and (A,) category of every box: each category in random images, as often as counted."""
    generator = np.random.default_rng(0)
    images, labels = [], []
    for category, (num_images, num_boxes) in enumerate(zip(image_count, instance_count, strict=True)):
        where = generator.choice(NUM_IMAGES, size=num_images, replace=False)
        images += [where, generator.choice(where, size=num_boxes - num_images)]
        labels.append(np.full(num_boxes, category))
    image_of, label_of = np.concatenate(images), np.concatenate(labels)
    order = np.argsort(image_of, kind="stable")
    return image_of[order], label_of[order]


def _columns(image_of: np.ndarray, label_of: np.ndarray) -> tuple[CategoryFrequencies, ImageCategories]:
    """What `2drcl stats` keeps."""
    images, labels = np.divmod(np.unique(image_of * NUM_CATEGORIES + label_of), NUM_CATEGORIES)
    image_count = np.bincount(labels, minlength=NUM_CATEGORIES)
    instance_count = np.bincount(label_of, minlength=NUM_CATEGORIES)
    frequencies = CategoryFrequencies(
        annotations_digest="0" * 64,
        num_images=NUM_IMAGES,
        category_ids=np.arange(NUM_CATEGORIES),
        names=[str(c) for c in range(NUM_CATEGORIES)],
        frequency=frequency_letters(image_count),
        image_count=image_count,
        instance_count=instance_count,
        proposal_count=None,
        f_image=image_count / NUM_IMAGES,
        f_instance=instance_count / len(label_of),
    )
    return frequencies, ImageCategories(np.searchsorted(images, np.arange(NUM_IMAGES + 1)), labels)


def _records(image_of: np.ndarray, label_of: np.ndarray) -> Records:
    """A dictionary per image, as both libraries keep them."""
    begins = np.searchsorted(image_of, np.arange(NUM_IMAGES + 1)).tolist()
    labels = label_of.tolist()
    return [
        {"annotations": [{"category_id": c} for c in labels[begin:end]]}
        for begin, end in itertools.pairwise(begins)
    ]


def _sampler(scheme: Any, frequencies: CategoryFrequencies, categories: ImageCategories) -> EpochSampler:
    portrait = np.random.default_rng(1).random(NUM_IMAGES) < 0.3
    settings = StatsSettings(threshold=THRESHOLD)
    return build_sampler(scheme, frequencies, categories, EPOCHS, settings, BATCH, 0, portrait)


def _check(sampler: EpochSampler, records: Records) -> None:
    """All three must mean the same."""
    ours = sampler.image_factors(0)
    np.testing.assert_allclose(_detectron2_factors(records).numpy(), ours, rtol=1e-6)  # theirs are float32
    np.testing.assert_allclose(_mmengine_factors(records), ours, rtol=1e-12)


def _detectron2_factors(records: Records) -> torch.Tensor:
    frequency: dict[int, float] = defaultdict(int)
    for record in records:
        for category in {box["category_id"] for box in record["annotations"]}:
            frequency[category] += 1
    for category, count in frequency.items():
        frequency[category] = count / len(records)
    factor = {c: max(1.0, math.sqrt(THRESHOLD / f)) for c, f in frequency.items()}
    factors = []
    for record in records:
        found = {box["category_id"] for box in record["annotations"]}
        factors.append(max((factor[c] for c in found), default=1.0))
    return torch.tensor(factors, dtype=torch.float32)


def _detectron2_draw(factors: torch.Tensor, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(epoch)
    whole = torch.trunc(factors)
    copies = whole + (torch.rand(len(factors), generator=generator) < factors - whole).float()
    indices = []
    for image, count in enumerate(copies):
        indices.extend([image] * int(count.item()))
    drawn = torch.tensor(indices, dtype=torch.int64)
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _mmengine_factors(records: Records) -> list[float]:
    frequency: dict[int, float] = defaultdict(float)
    for record in records:
        for category in set(_get_cat_ids(record)):
            frequency[category] += 1
    for category, count in frequency.items():
        frequency[category] = count / len(records)
    factor = {c: max(1.0, math.sqrt(THRESHOLD / f)) for c, f in frequency.items()}
    factors = []
    for record in records:
        found = set(_get_cat_ids(record))
        factors.append(max(factor[c] for c in found) if found else 1.0)
    return factors


def _get_cat_ids(record: dict[str, Any]) -> list[int]:
    return [box["category_id"] for box in record["annotations"]]


def _mmengine_copies(factors: list[float]) -> list[int]:
    indices: list[int] = []
    for image, factor in enumerate(factors):
        indices.extend([image] * math.ceil(factor))
    return indices


def _shuffled(indices: list[int], epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(epoch)
    return [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]


if __name__ == "__main__":
    main()
