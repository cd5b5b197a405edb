"""Streaming records: equal to json.loads whatever the window, every damage an error with its byte."""

import json
import random
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.data import json_records
from pipeline.data.json_records import stream
from pipeline.errors import InputError, MissingInput

PLAIN: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[dict[str, Any]])
DECODERS = {"images": PLAIN, "annotations": PLAIN}


@pytest.fixture(params=[64, 200, 2**19])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Windows that cut everywhere, and the real one."""
    monkeypatch.setattr(json_records, "WINDOW", request.param)
    yield request.param


def lists(path: Path) -> dict[str, list[Any]]:
    """All records by key; checks on the way that the chunks say where they come from."""
    found: dict[str, list[Any]] = {key: [] for key in DECODERS}
    content = path.read_bytes()
    for chunk in stream(path, DECODERS):
        assert chunk.first == len(found[chunk.key])
        assert json.loads(chunk.text) == chunk.records
        inside = chunk.text[1:-1]
        assert content[chunk.start + 1 : chunk.start + 1 + len(inside)] == inside
        found[chunk.key] += chunk.records
    return found


def awkward_value(rng: random.Random, depth: int = 0) -> Any:
    kinds = (
        ["number", "text", "null"] if depth > 2 else ["number", "text", "null", "list", "object", "objects"]
    )
    kind = rng.choice(kinds)
    if kind == "list":
        return [awkward_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == "objects":
        return [{"id": 1, "x": rng.random()} for _ in range(rng.randint(0, 4))]
    if kind == "object":
        return {rng.choice('ab"]}'): awkward_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
    texts = ['}, {"id": 5', "}]", '"', "\\", '\\"}, {', "\u8336", "[[", "a" * 70, ""]
    return {"number": rng.choice([0, -1.5e3, 7]), "text": rng.choice(texts), "null": None}[kind]


def awkward_file(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    names = ["images", "annotations", "info", "licenses", "\u00fcber"]
    rng.shuffle(names)
    content: dict[str, Any] = {}
    for name in names:
        records = [
            {"id": i} | {f"k{k}": awkward_value(rng) for k in range(rng.randint(0, 3))}
            for i in range(rng.choice([0, 1, 2, 9]))
        ]
        content[name] = records if name in DECODERS else awkward_value(rng)
    return content


@pytest.mark.parametrize("indent", [None, 1, "\t"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_equal_to_the_standard_library(
    tmp_path: Path, window: int, indent: int | str | None, ascii_only: bool
) -> None:
    path = tmp_path / "a.json"
    for seed in range(40):
        content = awkward_file(seed)
        text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
        path.write_bytes(b"\xef\xbb\xbf" * (seed % 2) + text.encode())
        assert lists(path) == {key: content[key] for key in DECODERS}


def test_every_truncation_is_refused_at_the_end(tmp_path: Path, window: int) -> None:
    path = tmp_path / "a.json"
    for seed in (3, 4):
        text = json.dumps(awkward_file(seed)).encode()
        for length in range(len(text)):
            path.write_bytes(text[:length])
            with pytest.raises(InputError, match=r"is not valid JSON|has no list") as caught:
                lists(path)
            assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"images": [], "annotations": [], "images": []}', "`images` appears twice, again before byte 44"),
        ('{"images": [], "annotations": []} x', "something follows the outermost object (byte 34 of 35)"),
        ('{"images": [] "annotations": []}', "a comma was expected (byte 14 of 32)"),
        ('{"images": [{"a": 1} {"a": 2}], "annotations": []}', "(byte 21 of 50)"),
        ('{"images": [{"a": 1},], "annotations": []}', "is not valid JSON"),
        ('{"images": [{"a": ?ope}], "annotations": []}', "'?ope}], \"ann' is no value (byte 18 of 44)"),
        ('{"info": {"a": nope}, "images": []}', "is not valid JSON"),
        ('{"images": {}, "annotations": []}', "has no list `images`"),
        ('{"images": [5], "annotations": []}', "has no list `images`"),
        ('{"images": [{"a": 1}, 5], "annotations": []}', "has no list `images`"),
        ('{"images": []}', "has no list `annotations`"),
        ('[{"a": 1}]', "holds a list"),
        ("", "does not begin with { (byte 0 of 0)"),
    ],
)
def test_damage_by_its_byte(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        lists(path)


def test_a_truncated_download_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"a": 1}, {"a')
    with pytest.raises(InputError, match=r"\(byte 25 of 25\)") as caught:
        lists(path)
    assert "download complete" in caught.value.hint


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="do not exist"):
        list(stream(tmp_path / "none.json", DECODERS))
    with pytest.raises(InputError, match="is not a regular file"):
        list(stream(tmp_path, DECODERS))


def test_explain_sees_the_records_that_a_decoder_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [{"id": 1}, {"id": "2"}]}))
    seen: list[Any] = []
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[dict[str, int]])
    with pytest.raises(InputError, match=r"`images`: Expected `int`, got `str` - at `\$\[1\]"):
        list(stream(path, {"images": decoder}, lambda *found: seen.append(found)))
    assert seen == [("images", [{"id": 1}, {"id": "2"}], 0)]


def test_records_that_no_one_asked_for_are_passed_over_as_quickly(tmp_path: Path) -> None:
    """Once they were scanned by a slow loop, and held whole."""
    path = tmp_path / "a.json"
    captions = ", ".join(json.dumps({"id": i, "caption": "a } cup ]"}) for i in range(40_000))
    path.write_text(f'{{"captions": [{captions}], "other": [{{}}, 5], "images": [], "annotations": []}}')
    tracemalloc.start()
    assert not list(stream(path, DECODERS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * json_records.WINDOW + 2**20
    path.write_text('{"captions": [{"a": 1}, {"b": nope}], "images": [], "annotations": []}')
    with pytest.raises(InputError, match="is not valid JSON"):
        list(stream(path, DECODERS))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(records: int) -> int:
        path = tmp_path / f"{records}.json"
        one = json.dumps({"id": 1, "segmentation": [[1.5] * 40]})
        path.write_text('{"images": [' + ", ".join([one] * records) + '], "annotations": []}')
        tracemalloc.start()
        for chunk in stream(path, DECODERS):
            assert chunk.records
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(30_000) < 1.3 * peak(10_000)
