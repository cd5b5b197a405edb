"""The bootstrap: weights are repetitions, draws pair up between runs, intervals cover what they should."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_metrics import random_lvis, scored

from pipeline.evaluation.bootstrap import bootstrap, draws, interval, p_value


def repeated(content: dict[str, Any], results: list[dict[str, Any]], weights: np.ndarray) -> Any:
    """The split in which each image stands as often as its weight says, as a file of its own."""
    made: dict[str, Any] = {"images": [], "annotations": [], "categories": content["categories"]}
    detections = []
    for image, weight in zip(content["images"], weights.tolist(), strict=True):
        for copy_ in range(weight):
            number = 100 * image["id"] + copy_  # ids in the same order: they break ties
            made["images"].append({**image, "id": number, "file_name": f"{number}.jpg"})
            made["annotations"] += [
                {**t, "image_id": number, "id": 1000 * number + n}
                for n, t in enumerate(content["annotations"])
                if t["image_id"] == image["id"]
            ]
            detections += [{**r, "image_id": number} for r in results if r["image_id"] == image["id"]]
    return made, detections


@pytest.mark.parametrize("protocol", ["lvis", "coco"])
def test_a_weight_is_a_repetition(tmp_path: Path, protocol: str) -> None:
    content, results = random_lvis(2)
    for number, r in enumerate(np.random.default_rng(0).permutation(len(results))):
        results[number]["score"] = float(r)  # no ties: the copies of an image tie with each other alone
    found = scored(tmp_path, content, results, protocol=protocol)
    weights = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [0, 2, 1, 0, 3, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 8]])
    weighed = found.weigh(weights.astype(np.int16))
    for name, value in found.metrics.items():
        assert weighed[name][0] == pytest.approx(np.nan if value is None else value, nan_ok=True)
    for row in (1, 2):
        (tmp_path / str(row)).mkdir()
        again = scored(tmp_path / str(row), *repeated(content, results, weights[row]), protocol=protocol)
        for name, value in again.metrics.items():
            expected = np.nan if value is None else value
            assert weighed[name][row] == pytest.approx(expected, abs=1e-9, nan_ok=True), name


def test_draws_follow_from_their_arguments() -> None:
    first = draws(50, 20, seed=3)
    np.testing.assert_array_equal(first, draws(50, 20, seed=3))
    assert first.shape == (20, 50) and (first.sum(axis=1) == 50).all()
    assert (first != draws(50, 20, seed=4)).any()


def test_parts_join_up() -> None:
    def weigh(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": weights @ np.arange(30.0) / 30}

    samples = bootstrap(weigh, 30, 120, seed=0)["mean"]
    np.testing.assert_array_equal(samples, draws(30, 120, 0) @ np.arange(30.0) / 30)


def test_the_interval_of_a_mean_is_its_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    samples = bootstrap(lambda weights: {"mean": weights @ values / 400}, 400, 4000, seed=1)["mean"]
    low, high = interval(samples) or (0, 0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_intervals_and_p_values_without_numbers() -> None:
    assert interval(np.full(5, np.nan)) is None and p_value(np.full(5, np.nan)) is None
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1, 1)
    assert p_value(np.zeros(99)) == 1
    assert p_value(np.ones(99)) == pytest.approx(2 / 100)
    assert p_value(np.array([-1.0] * 30 + [1.0] * 69)) == pytest.approx(62 / 100)


def test_evaluate_and_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content, results = random_lvis(0)
    (tmp_path / "a.json").write_text(json.dumps(content))
    worse = copy.deepcopy(results)
    for r in worse[::2]:
        r["bbox"][2] += 60
    for name, detections in {"good": results, "bad": worse}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(detections))
        arguments = ("--annotations", "a.json", "--predictions", f"{name}.json", "--out", name)
        answer = cli("evaluate", *arguments, "--bootstrap", 40)
        assert answer.code == 0, answer.err
        intervals = json.loads((tmp_path / name / "intervals.json").read_text())
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        assert set(intervals) == {key for key, value in metrics.items() if value is not None}
        assert sum(low <= metrics[key] <= high for key, (low, high) in intervals.items()) > 0.8 * len(
            intervals
        )
    found = json.loads(cli("compare", "good", "bad", "--json").out)["differences"]["bbox_AP"]
    assert found["value"] < 0 and found["interval"][0] <= found["value"] <= found["interval"][1]
    assert 0 < found["p"] <= 1
    same = json.loads(cli("compare", "good", "good", "--json").out)["differences"]["bbox_AP"]
    assert same == {"value": 0.0, "interval": [0.0, 0.0], "p": 1.0}  # paired: what is alike cancels
    assert "95 % interval" in cli("compare", "good", "bad").out
    answer = cli("evaluate", *arguments[:4], "--bootstrap", 40, "--seed", 9, "--out", "other")
    refused = cli("compare", "good", "other")
    assert refused.code == 3 and "resamples of good and other" in refused.err
    cli("evaluate", *arguments[:4], "--bootstrap", 40, "--protocol", "coco", "--out", "as-coco")
    refused = cli("compare", "good", "as-coco")
    assert refused.code == 3 and "'protocol': 'coco'" in refused.err
    content["images"].append({**content["images"][0], "id": 999, "file_name": "new.jpg"})
    (tmp_path / "a.json").write_text(json.dumps(content))
    cli("evaluate", *arguments[:4], "--out", "elsewhere")
    refused = cli("compare", "good", "elsewhere")
    assert refused.code == 3 and "different annotations" in refused.err


def test_what_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content, results = random_lvis(0)
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "p.json").write_text(json.dumps(results))
    files = ("--annotations", "a.json", "--predictions", "p.json", "--out", "o")
    answer = cli("evaluate", *files, "--bootstrap", 5, "--engine", "official")
    assert answer.code == 2 and "official engine cannot weigh" in answer.err
    assert cli("evaluate", *files, "--engine", "quick").code == 2
    assert cli("evaluate", *files, "--bootstrap", -1).code == 2
    answer = cli("evaluate", *files, "--protocol", "coco-lt")
    assert answer.code == 2 and "--stats" in answer.err
    assert not (tmp_path / "o").exists()
    for category in content["categories"]:
        del category["frequency"]
    (tmp_path / "b.json").write_text(json.dumps(content))
    unnamed = cli("evaluate", "--annotations", "b.json", *files[2:4], "--out", "b")
    assert unnamed.code == 0 and "no APr, APc, APf" in unnamed.err and "APr" not in unnamed.out
    official = cli("evaluate", *files, "--engine", "official", "--json")
    assert json.loads(official.out)["bbox_AP"] == pytest.approx(
        json.loads(cli("evaluate", *files, "--json").out)["bbox_AP"], abs=1e-10
    )
