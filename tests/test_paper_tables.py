"""The paper's tables as data: identities that its text states, and our runs beside its rows."""

import pytest

from pipeline.evaluation.paper_tables import (
    COMPONENTS,
    TABLES,
    OwnRun,
    PaperRow,
    Setting,
    beside_paper,
    columns_of,
    paper_rows,
    unmatched,
)

ROWS_OF = {
    "1": 7,
    "2": 6,
    "3a": 12,
    "3b": 12,
    "4a": 5,
    "4b": 8,
    "5": 7,
    "A.1": 32,
    "A.2": 3,
    "A.3": 6,
    "A.4": 3,
}
ALL = frozenset(COMPONENTS)


def row(table: str, label: str, detector: str = "r50") -> PaperRow:
    found = [
        r
        for r in paper_rows()
        if (r.table, r.label) == (table, label) and r.setting.detector.endswith(detector)
    ]
    assert len(found) == 1
    return found[0]


def setting(
    method: str = "ecm", start: str = "2drcl", components: frozenset[str] = ALL, **facts: str
) -> Setting:
    paper = {"detector": "mask-rcnn_r50", "data": "lvis-v1", "schedule": "1x"}
    return Setting(method, start, components, **{**paper, **facts})


def test_every_table_has_all_its_rows_and_no_cell_is_lost() -> None:
    assert {t: sum(r.table == t for r in paper_rows()) for t in TABLES} == ROWS_OF
    assert sum(len(r.numbers) for r in paper_rows()) == 422
    assert len({(r.table, r.label, r.setting.detector) for r in paper_rows()}) == len(paper_rows())


@pytest.mark.parametrize("r", paper_rows(), ids=lambda r: f"{r.table} {r.label}")
def test_a_mean_lies_between_its_groups(r: PaperRow) -> None:
    """No two neighbouring columns are exchanged."""
    for kind in ("bbox", "segm"):
        if f"{kind}_APf" in r.numbers:
            rare, common, frequent = (r.numbers[f"{kind}_AP{group}"] for group in "rcf")
            assert rare < common < frequent
            assert rare < r.numbers[f"{kind}_AP"] < frequent
        if f"{kind}_AP50" in r.numbers:
            assert r.numbers[f"{kind}_AP"] < r.numbers[f"{kind}_AP75"] < r.numbers[f"{kind}_AP50"]


def test_the_differences_that_the_text_states() -> None:
    rare = {label: row("5", label).numbers["bbox_APr"] for label in ("baseline", "HCL+LCL", "HCL+LCL+DRB")}
    whole = row("5", "HCL+LCL+DRB+AR+SR").numbers["bbox_APr"]
    assert rare["HCL+LCL"] - rare["baseline"] == pytest.approx(1.7)
    assert rare["HCL+LCL+DRB"] - rare["HCL+LCL"] == pytest.approx(3.5)
    assert whole - rare["baseline"] == pytest.approx(6.1)
    ce, ecm, ours = (row("A.3", label).numbers for label in ("CE", "ECM", "Ours"))
    assert ours["bbox_AP"] - ce["bbox_AP"] == pytest.approx(5.7)
    assert [ours[f"bbox_AP{k}"] - ecm[f"bbox_AP{k}"] for k in (1, 2)] == pytest.approx([3.4, 1.5])


def test_rows_that_stand_in_two_tables_agree() -> None:
    assert row("2", "Ours").numbers == row("A.1", "RFS +Ours").numbers
    for label in ("RFS", "ECM"):
        assert row("4b", label).numbers == row("A.1", label).numbers
    assert row("4b", "EQL").numbers == row("A.1", "EQLv2").numbers
    assert row("4a", "1x (Ours)").numbers.items() <= row("1", "Ours").numbers.items()
    assert row("4b", "ECM +Ours").numbers.items() >= {"bbox_AP": 27.0, "bbox_APr": 19.0}.items()
    assert dict(row("A.4", "+Ours (6+6 epochs)").numbers) == {
        **{"bbox_AP": 27.0, "bbox_APr": 19.0},
        **{"vram_gb": 106, "hours": 20.6},
    }


@pytest.mark.parametrize(("label", "printed"), [("CE", 18.7), ("BAGS", 21.5), ("EQLv2", 23.1)])
def test_coco_lt_is_the_mean_over_its_bins(label: str, printed: float) -> None:
    numbers = row("A.3", label).numbers
    mean = sum(count * numbers[f"bbox_AP{k}"] for k, count in enumerate((4, 24, 32, 20), start=1)) / 80
    assert mean == pytest.approx(printed, abs=0.05)  # rows of Seesaw, ECM and Ours are not consistent


def test_columns_of_a_table() -> None:
    assert columns_of("2") == ("bbox_AP", "bbox_APr", "bbox_APc", "bbox_APf")
    assert set(columns_of("A.4")) == {"bbox_AP", "bbox_APr", "vram_gb", "hours"}


def test_a_run_stands_beside_its_rows_with_the_difference() -> None:
    metrics = {"bbox_AP": 27.0, "bbox_APr": 20.2, "bbox_APc": None, "bbox_APf": 32.5}
    run = OwnRun("mine", setting(), metrics)
    found = beside_paper([run])
    mine = {(c.row.table, c.row.label, c.row.setting.detector): c for c in found if c.run is run}
    here = mine["A.1", "ECM +Ours", "mask-rcnn_r50"]
    assert here.unlike == ()
    assert here.difference == pytest.approx(
        {"bbox_AP": -0.3, "bbox_APr": 1.0, "bbox_APf": 0.0, "bbox_APc": None}
    )
    assert mine["A.1", "ECM +Ours", "mask-rcnn_r101"].unlike == (
        "detector mask-rcnn_r50, not mask-rcnn_r101",
    )
    assert mine["3b", "Ours", "mask-rcnn_r50"].difference["segm_AP"] is None  # we have no masks
    assert ("A.1", "ECM", "mask-rcnn_r50") not in mine


def test_missing_rows_stay_visible() -> None:
    found = beside_paper([])
    assert [c.row for c in found] == list(paper_rows())
    assert all(c.run is None and set(c.ours.values()) == {None} == set(c.difference.values()) for c in found)


def test_a_row_may_have_several_runs_and_a_run_no_row() -> None:
    seeds = [OwnRun(f"seed-{s}", setting(), {"bbox_AP": 27.0}) for s in (0, 1)]
    stranger = OwnRun("eql", setting(method="eql"), {"bbox_AP": 1.0})
    found = beside_paper([*seeds, stranger])
    table_a1 = [c.run for c in found if c.row == row("A.1", "ECM +Ours")]
    assert table_a1 == seeds
    assert unmatched([*seeds, stranger]) == [stranger]


def test_components_must_agree() -> None:
    half = OwnRun("half", setting(method="rfs", components=frozenset({"hcl", "lcl"})), {"bbox_AP": 22.4})
    labels = [(c.row.table, c.row.label) for c in beside_paper([half]) if c.run]
    assert labels == [("5", "HCL+LCL")]


def test_random_weights_stand_for_imagenet_and_say_so() -> None:
    plain = OwnRun("plain", setting(start="random", components=frozenset()), {"bbox_AP": 20.0})
    found = [c for c in beside_paper([plain]) if c.row == row("A.1", "ECM")]
    assert [c.unlike for c in found] == [("start random, not imagenet",)]
