"""Files that may be missing or damaged become values or named gaps, never exceptions."""

import pytest

from pipeline.report.reader import Reader, number


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"a": '])
def test_a_damaged_object_is_a_gap_with_its_path_and_its_command(tmp_path, content):
    (tmp_path / "m.json").write_bytes(content)
    reader = Reader(tmp_path)
    assert reader.mapping("m.json", "metrics", "2drcl evaluate") == {}
    (gap,) = reader.gaps
    assert str(tmp_path / "m.json") in gap.why and "cannot be read" in gap.why
    assert gap.todo == "2drcl evaluate --fresh"


def test_what_is_not_there_is_a_gap_unless_it_is_optional(tmp_path):
    reader = Reader(tmp_path)
    assert reader.mapping("i.json", "intervals", "", optional=True) == {} and not reader.gaps
    assert reader.rows("a.csv", "table", "2drcl analyze", ("x",)) == []
    assert "is not there" in reader.gaps[0].why and reader.gaps[0].todo == "2drcl analyze"


def test_a_half_written_history_keeps_its_lines(tmp_path):
    (tmp_path / "h.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"ste')
    reader = Reader(tmp_path)
    assert [line["step"] for line in reader.lines("h.jsonl", "history", "")] == [0, 1]
    assert "line 3" in reader.gaps[0].why


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), ("2.5", 2.5), ("", None), ("x", None), (None, None), (True, None), (float("nan"), None),
     (float("inf"), None), ("nan", None), ([1], None)],
)  # fmt: skip
def test_numbers(value, expected):
    assert number(value) == expected
