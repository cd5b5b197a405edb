"""`2drcl coco-lt`: instances_train2017.json (and SimCal's lists) -> the COCO-LT training split."""

from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline import artifacts
from pipeline.data.coco_lt import draw_sample, read_membership, select_listed
from pipeline.data.coco_lt_counts import COCO_LT, PublishedSplit
from stages.common import Order, make
from stages.console import ERR, data, say, warn

NAME = "coco-lt"
SPLIT = "train_coco_lt.json"


def run(
    order: Order, annotations: Path, membership: Path | None, published: PublishedSplit = COCO_LT
) -> None:
    """Write the split, and say what differs from the published one.

    Args:
        order: options.
        annotations: COCO's instances_train2017.json.
        membership: image ids and instance counts per class, for the canonical split; None: a seeded sample.
        published: the numbers to meet.
    """
    inputs = {"annotations": artifacts.file_digest(annotations)}
    lists = None
    if membership is not None:
        lists = read_membership(membership, published)
        inputs["membership"] = artifacts.file_digest(membership)
    plain = {"selection": "sample" if lists is None else "membership"}
    manifest = artifacts.manifest(NAME, plain, inputs, order.params.seed)

    def produce(folder: Path) -> None:
        from pipeline.data.coco_lt_records import read_columns, write_split
        from pipeline.data.coco_lt_report import counts_figure, report

        columns = read_columns(annotations, published)
        if lists is None:
            selection = draw_sample(columns, published, order.params.seed)
        else:
            selection = select_listed(columns, lists, published, order.params.seed)
        manifest["split"] = report(columns, selection, published, canonical=lists is not None)
        write_split(columns, selection, folder / SPLIT)
        (folder / "figures").mkdir()
        counts_figure(manifest["split"], folder / "figures" / "counts.png")

    make(order, manifest, produce)
    if not order.dry_run:
        split = artifacts.read_manifest(order.out, NAME)["split"]
        _talk(split, canonical=lists is not None)
        data({"out": str(order.out), **split}, order.as_json, [str(order.out)])


def _talk(split: dict[str, Any], canonical: bool) -> None:
    """What was made, and what is not as published, on stderr."""
    counts = f"{split['images']} images, {split['annotations']} annotations, {split['crowds']} of them crowds"
    say(f"{NAME}: {counts}")
    say(f"{NAME}: {split['drawn']} annotations were drawn: another seed may keep others")
    say(f"{NAME}: bins of {split['bins']} classes; {split['bins_without_crowds']} without the crowds")
    if split["differences"]:
        warn(f"{len(split['differences'])} numbers are not as published")
        table = Table("of", "quantity", "found", "published")
        for row in split["differences"]:
            table.add_row(row["subject"], row["quantity"], f"{row['found']:,}", f"{row['expected']:,}")
        ERR.print(table)
    else:
        compared = "images, instances" if canonical else "instances"
        say(f"{NAME}: {compared} and bins of every class are as published")
    if not canonical:
        say(f"{NAME}: a sample has its own images; the published split has {split['published_images']}")
