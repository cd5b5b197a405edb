"""The Parquet contract: columns, types, metadata, round trip, and files that are refused."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, MissingInput
from pipeline.stats.frequencies import CategoryFrequencies
from pipeline.stats.repeat_factors import effective_frequency, irfs_factors, repeat_factors, rfs_factors
from pipeline.stats.settings import StatsSettings
from pipeline.stats.tables import read_categories, read_repeat_factors, write_categories, write_repeat_factors

AT_2_PERCENT = StatsSettings(threshold=0.02)


@pytest.fixture
def frequencies() -> CategoryFrequencies:
    """Three categories, the last without instances."""
    return CategoryFrequencies(
        annotations_digest="ab" * 32,
        num_images=1311,
        category_ids=np.array([2, 5, 9]),
        names=["cup", "caf\u00e9", "pan"],
        frequency=["f", "r", "r"],
        image_count=np.array([1203, 7, 0]),
        instance_count=np.array([4001, 9, 0]),
        proposal_count=np.array([8000, 3, 0]),
        f_image=np.array([1203, 7, 0]) / 1311,
        f_instance=np.array([4001, 9, 0]) / 4010,
    )


def assert_same(found: CategoryFrequencies, expected: CategoryFrequencies) -> None:
    for field in fields(CategoryFrequencies):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert a == b, field.name


def test_categories_survive_the_round_trip(frequencies: CategoryFrequencies, tmp_path: Path) -> None:
    write_categories(tmp_path / "categories.parquet", frequencies)
    assert_same(read_categories(tmp_path / "categories.parquet"), frequencies)
    without = replace(frequencies, proposal_count=None)
    write_categories(tmp_path / "categories.parquet", without)
    assert_same(read_categories(tmp_path / "categories.parquet"), without)


def test_number_of_images_survives_for_any_counts(frequencies: CategoryFrequencies, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        num_images = int(rng.integers(3, 2_000_000))
        counts = rng.integers(1, num_images + 1, size=3)
        some = replace(frequencies, num_images=num_images, image_count=counts, f_image=counts / num_images)
        write_categories(tmp_path / "c.parquet", some)
        assert read_categories(tmp_path / "c.parquet").num_images == num_images


def test_categories_have_the_columns_of_the_contract(
    frequencies: CategoryFrequencies, tmp_path: Path
) -> None:
    write_categories(tmp_path / "c.parquet", replace(frequencies, proposal_count=None))
    table = pq.read_table(tmp_path / "c.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "category_id": "int64",
        "name": "string",
        "frequency": "string",
        "image_count": "int64",
        "instance_count": "int64",
        "proposal_count": "int64",
        "f_image": "double",
        "f_instance": "double",
    }
    assert table["proposal_count"].to_pylist() == [None] * 3
    assert table.schema.metadata[b"2drcl.schema"] == b"1"
    assert table.schema.metadata[b"2drcl.annotations"] == b"ab" * 32


def test_repeat_factors_have_the_columns_of_the_contract(
    frequencies: CategoryFrequencies, tmp_path: Path
) -> None:
    write_repeat_factors(tmp_path / "r.parquet", frequencies, 4, AT_2_PERCENT)
    table = pq.read_table(tmp_path / "r.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("scheme", "string"),
        ("epoch", "int32"),
        ("alpha", "double"),
        ("threshold", "double"),
        ("category_id", "int64"),
        ("f", "double"),
        ("r", "double"),
    ]
    assert table.schema.metadata[b"2drcl.schema"] == b"1"
    assert table.schema.metadata[b"2drcl.annotations"] == b"ab" * 32
    assert table["scheme"].to_pylist() == ["rfs"] * 3 + ["irfs"] * 3 + ["drb"] * 12
    assert table["epoch"].to_pylist() == [-1] * 6 + [e for e in range(4) for _ in range(3)]
    assert table["alpha"].to_pylist() == [None] * 6 + [e / 4 for e in range(4) for _ in range(3)]
    assert table["category_id"].to_pylist() == [2, 5, 9] * 6
    assert set(table["threshold"].to_pylist()) == {0.02}


def test_repeat_factors_hold_the_numbers_of_each_scheme(
    frequencies: CategoryFrequencies, tmp_path: Path
) -> None:
    write_repeat_factors(tmp_path / "r.parquet", frequencies, 3, StatsSettings(threshold=0.02, first_epoch=1))
    table = read_repeat_factors(tmp_path / "r.parquet")
    f, r = (table[name].to_numpy().reshape(5, 3) for name in ("f", "r"))  # (blocks C) -> (blocks, C)
    f_im, f_in = frequencies.f_image, frequencies.f_instance
    np.testing.assert_array_equal(f[0], f_im)
    np.testing.assert_array_equal(r[0], rfs_factors(f_im, 0.02))
    np.testing.assert_allclose(f[1], np.sqrt(f_im * f_in), rtol=1e-14)
    np.testing.assert_array_equal(r[1], irfs_factors(f_im, f_in, 0.02))
    for epoch in range(3):
        alpha = (epoch + 1) / 3
        np.testing.assert_array_equal(f[2 + epoch], effective_frequency(f_im, f_in, alpha))
        np.testing.assert_array_equal(r[2 + epoch], repeat_factors(f_im, f_in, alpha, 0.02))
    assert (f[:, 2] == 0).all() and (r[:, 2] == 1).all()  # no instances


def test_r_is_the_factor_after_floor_and_cap_and_alpha_the_weight_of_instances(
    frequencies: CategoryFrequencies, tmp_path: Path
) -> None:
    settings = StatsSettings(
        threshold=0.02, floor=0, max_factor=1.5, direction="to-images", progress_max=0.5, irfs_mean="harmonic"
    )
    write_repeat_factors(tmp_path / "r.parquet", frequencies, 4, settings)
    table = read_repeat_factors(tmp_path / "r.parquet")
    f, r = (table[name].to_numpy().reshape(6, 3) for name in ("f", "r"))  # (blocks C) -> (blocks, C)
    f_im, f_in = frequencies.f_image, frequencies.f_instance
    assert table["alpha"].to_pylist()[6::3] == [1.0, 0.75, 0.5, 0.5]
    for row, alpha in enumerate([1.0, 0.75, 0.5, 0.5], start=2):
        np.testing.assert_array_equal(f[row], effective_frequency(f_im, f_in, alpha))
        expected = repeat_factors(f_im, f_in, alpha, 0.02, floor=0, max_factor=1.5)
        np.testing.assert_array_equal(r[row], expected)
    np.testing.assert_array_equal(f[1], effective_frequency(f_im, f_in, 0.5))
    assert r.max() == 1.5 and r.min() < 1


def test_equal_content_gives_equal_bytes(frequencies: CategoryFrequencies, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_categories(tmp_path / f"{name}1", frequencies)
        write_repeat_factors(tmp_path / f"{name}2", frequencies, 3, AT_2_PERCENT)
    assert (tmp_path / "a1").read_bytes() == (tmp_path / "b1").read_bytes()
    assert (tmp_path / "a2").read_bytes() == (tmp_path / "b2").read_bytes()


@pytest.mark.parametrize("read", [read_categories, read_repeat_factors])
def test_missing_and_foreign_files_are_refused(read: Callable, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="does not exist") as caught:
        read(tmp_path / "none.parquet")
    assert "2drcl stats" in caught.value.hint
    (tmp_path / "text").write_text("not a table")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)  # a folder
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x")
    with pytest.raises(InputError, match="schema 1"):
        read(tmp_path / "x")


def test_each_reader_refuses_the_other_table(frequencies: CategoryFrequencies, tmp_path: Path) -> None:
    write_categories(tmp_path / "c", frequencies)
    write_repeat_factors(tmp_path / "r", frequencies, 2, AT_2_PERCENT)
    with pytest.raises(InputError, match="other columns"):
        read_categories(tmp_path / "r")
    with pytest.raises(InputError, match="other columns"):
        read_repeat_factors(tmp_path / "c")


def test_damaged_bytes_are_refused(frequencies: CategoryFrequencies, tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_categories(path, frequencies)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_categories(path)
    middle = whole.index(b"cup")  # a value, not the footer
    path.write_bytes(whole[:middle] + b"cap" + whole[middle + 3 :])
    with pytest.raises(InputError, match="cannot be read"):
        read_categories(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("category_id", [2, 2, 9], "ascend"),
        ("frequency", ["f", "x", "r"], "r, c or f"),
        ("image_count", [1203, -7, 0], "image_count"),
        ("instance_count", [1203, -7, 0], "instance_count"),
        ("f_image", [0.5, 1.5, 0.0], "f_image and f_instance"),
        ("f_instance", [0.5, float("nan"), 0.0], "f_image and f_instance"),
        ("proposal_count", [1, None, 0], "proposal_count"),
        ("image_count", [0, 0, 0], "have images"),
        ("name", ["cup", None, "pan"], "empty cells: name"),
    ],
)
def test_values_that_no_data_set_has_are_refused(
    frequencies: CategoryFrequencies, tmp_path: Path, column: str, values: list, message: str
) -> None:
    path = tmp_path / "c"
    write_categories(path, frequencies)
    table = pq.read_table(path)
    index = table.schema.get_field_index(column)
    kind = table.schema.field(column).type
    pq.write_table(table.set_column(index, column, pa.array(values, kind)), path)
    with pytest.raises(InputError, match=message):
        read_categories(path)


def test_empty_table_is_refused(frequencies: CategoryFrequencies, tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_categories(path, frequencies)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(InputError, match="no rows"):
        read_categories(path)
