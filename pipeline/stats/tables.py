"""The Parquet files of the stage: categories.parquet and repeat_factors.parquet.

Both carry `2drcl.schema` and the digest of the annotations that were counted, and equal content gives equal
bytes.  The paths lie in a folder that the caller publishes as a whole.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, MissingInput
from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.schemes import alpha_schedule, category_scores, factors_of_scores
from pipeline.stats.settings import StatsSettings, resolve_threshold

CATEGORIES = pa.schema(
    {
        "category_id": pa.int64(),
        "name": pa.string(),
        "frequency": pa.string(),
        "image_count": pa.int64(),
        "instance_count": pa.int64(),
        "proposal_count": pa.int64(),
        "f_image": pa.float64(),
        "f_instance": pa.float64(),
    }
)
REPEAT_FACTORS = pa.schema(
    {
        "scheme": pa.string(),
        "epoch": pa.int32(),
        "alpha": pa.float64(),
        "threshold": pa.float64(),
        "category_id": pa.int64(),
        "f": pa.float64(),
        "r": pa.float64(),
    }
)
NULLABLE = ("proposal_count", "alpha")
SCHEMA_VERSION = b"1"


def write_categories(path: Path, frequencies: CategoryFrequencies) -> None:
    """Write categories.parquet: a row per category by ascending id; proposal_count null without proposals."""
    num_categories = len(frequencies.category_ids)
    proposals = frequencies.proposal_count
    columns = {
        "category_id": frequencies.category_ids,
        "name": frequencies.names,
        "frequency": frequencies.frequency,
        "image_count": frequencies.image_count,
        "instance_count": frequencies.instance_count,
        "proposal_count": [None] * num_categories if proposals is None else proposals,
        "f_image": frequencies.f_image,
        "f_instance": frequencies.f_instance,
    }
    _write(path, pa.table(columns, schema=CATEGORIES), frequencies)


def read_categories(path: Path) -> CategoryFrequencies:
    """Read and check categories.parquet.

    Raises:
        MissingInput: no such file.
        InputError: damaged, of another schema, or with values that no data set can have.
    """
    table = _read(path, CATEGORIES)
    column = {name: table[name].to_numpy() for name in CATEGORIES.names}
    has_proposals = table["proposal_count"].null_count == 0
    _check_categories(path, table, column)
    most = column["image_count"].argmax()
    return CategoryFrequencies(
        annotations_digest=table.schema.metadata[b"2drcl.annotations"].decode(),
        num_images=round(column["image_count"][most] / column["f_image"][most]),
        category_ids=column["category_id"],
        names=table["name"].to_pylist(),
        frequency=table["frequency"].to_pylist(),
        image_count=column["image_count"],
        instance_count=column["instance_count"],
        proposal_count=column["proposal_count"] if has_proposals else None,
        f_image=column["f_image"],
        f_instance=column["f_instance"],
    )


def _check_categories(path: Path, table: pa.Table, column: dict[str, np.ndarray]) -> None:
    most = column["image_count"].argmax()
    shares = np.concatenate([column["f_image"], column["f_instance"]])
    holds = {
        "category_id must ascend": (np.diff(column["category_id"]) > 0).all(),
        "frequency must be r, c or f": np.isin(column["frequency"].astype(str), ["r", "c", "f"]).all(),
        "image_count must not be negative": column["image_count"].min() >= 0,
        "instance_count must not be negative": column["instance_count"].min() >= 0,
        "proposal_count must be null everywhere or nowhere": table["proposal_count"].null_count
        in (0, len(table)),
        "f_image and f_instance must be in [0, 1]": ((shares >= 0) & (shares <= 1)).all(),
        "some category must have images": column["image_count"][most] > 0 and column["f_image"][most] > 0,
    }
    broken = [rule for rule, kept in holds.items() if not kept]
    if broken:
        raise InputError(f"{path}: {broken[0]}", "run `2drcl stats` again")


def write_repeat_factors(
    path: Path, frequencies: CategoryFrequencies, epochs: int, settings: StatsSettings
) -> None:
    """Write repeat_factors.parquet: a block of C rows for rfs, one for irfs, one per epoch for drb.

    `alpha` is the weight of the instance level in eq. 4, whatever the direction; `r` is the factor after
    floor and cap.

    Args:
        path: the file.
        frequencies: shares of every category.
        epochs: of pre-training; the drb blocks are epochs 0 to epochs - 1.
        settings: threshold, schedule of alpha, floor and cap.
    """
    fixed = [("rfs", -1, None), ("irfs", -1, None)]
    dynamic = [("drb", epoch, alpha) for epoch, alpha in enumerate(alpha_schedule(epochs, settings).tolist())]
    scores = [
        category_scores("rfs", frequencies, 1, settings),
        category_scores("irfs", frequencies, 1, settings),
        category_scores("drb", frequencies, epochs, settings),
    ]
    rows = np.concatenate(scores)  # (1, C), (1, C), (E, C) -> (2 + E, C)
    factors = factors_of_scores(rows, frequencies, settings)
    threshold = resolve_threshold(settings.threshold, frequencies.num_images)
    blocks = [
        _block(key, threshold, frequencies, f, r)
        for key, f, r in zip([*fixed, *dynamic], rows, factors, strict=True)
    ]
    _write(path, pa.concat_tables(blocks), frequencies)


def read_repeat_factors(path: Path) -> pa.Table:
    """Read repeat_factors.parquet; columns and metadata as written.

    Raises:
        MissingInput: no such file.
        InputError: damaged, or of another schema.
    """
    return _read(path, REPEAT_FACTORS)


def _block(
    key: tuple[str, int, float | None],
    threshold: float,
    frequencies: CategoryFrequencies,
    f: np.ndarray,
    r: np.ndarray,
) -> pa.Table:
    """The rows of one (scheme, epoch, alpha)."""
    num_categories = len(f)
    scheme, epoch, alpha = key
    columns = {
        "scheme": [scheme] * num_categories,
        "epoch": [epoch] * num_categories,
        "alpha": [alpha] * num_categories,
        "threshold": [threshold] * num_categories,
        "category_id": frequencies.category_ids,
        "f": f,
        "r": r,
    }
    return pa.table(columns, schema=REPEAT_FACTORS)


def _write(path: Path, table: pa.Table, frequencies: CategoryFrequencies) -> None:
    metadata = {
        b"2drcl.schema": SCHEMA_VERSION,
        b"2drcl.annotations": frequencies.annotations_digest.encode(),
    }
    pq.write_table(table.replace_schema_metadata(metadata).combine_chunks(), path, write_page_checksum=True)


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except FileNotFoundError:
        raise MissingInput(f"{path} does not exist", "run `2drcl stats` first") from None
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{path} cannot be read: {problem}", "run `2drcl stats` again") from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"2drcl.schema") != SCHEMA_VERSION or b"2drcl.annotations" not in metadata:
        known = {key: value for key, value in metadata.items() if key.startswith(b"2drcl.")}
        raise InputError(
            f"{path} is not of 2drcl.schema 1: its metadata is {known}", "run `2drcl stats` again"
        )
    if not table.schema.equals(schema):
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise InputError(
            f"{path} has other columns than {path.name} should: {found}", "run `2drcl stats` again"
        )
    holes = [name for name in schema.names if name not in NULLABLE and table[name].null_count]
    if holes or not len(table):
        raise InputError(f"{path} has no rows or empty cells: {', '.join(holes)}", "run `2drcl stats` again")
    return table
