"""Reading an LVIS json into columns over json.load and pandas: seconds and peak memory, in one run.

    python benchmarks/read_annotations.py                    # 100,000 annotations, 110 MB
    python benchmarks/read_annotations.py --annotations 1270141 --images 100170  # LVIS v1 train, takes 10 GB

The file is synthetic: LVIS's fields, a Zipf tail of 1,203 categories, polygons of 60 corners on average.
Each way runs in a process of its own; ours from the file, then from the cache of columns, both again with the
masks.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

CATEGORIES, CORNERS = 1203, 60
BASELINE = "json.load + pandas"
COLUMNS = ("id", "image_id", "category_id", "bbox", "area")


def main() -> None:
    """Write the file, measure each way, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--annotations", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(_measured(args.one, args.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis.json"
        with path.open("w") as file:
            _write(file, args.annotations, args.images)
        print(f"{path.stat().st_size / 1e6:,.0f} MB, {args.annotations:,} annotations")
        environment = {**os.environ, "TWODRCL_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, "--file", str(path)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found[way] = json.loads(answer.stdout)
        _print(found)


def _print(found: dict[str, dict[str, float]]) -> None:
    base = found[BASELINE]
    for way, one in found.items():
        assert one["instances"] == base["instances"]
        faster, smaller = base["seconds"] / one["seconds"], base["mib"] / one["mib"]
        print(
            f"{way:24s} {one['seconds']:8.2f} s {one['mib']:8,.0f} MiB"
            f"   {faster:6.1f} x as fast, 1/{smaller:.1f} of the memory"
        )


def _measured(way: str, path: Path) -> dict[str, float]:
    """Seconds of the reading, and what it adds to the memory of the process that has imported everything."""
    import pandas  # noqa: F401

    import pipeline.data.annotations  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    counts = WAYS[way](path)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mib": (after - before) / 1024, "instances": int(counts.sum())}


def _with_pandas(path: Path) -> np.ndarray:
    import pandas as pd

    with path.open() as file:
        content = json.load(file)
    frame = pd.DataFrame(content["annotations"], columns=COLUMNS)
    images = pd.DataFrame(content["images"], columns=["id", "width", "height", "file_name"])
    return frame[frame.image_id.isin(images.id)].groupby("category_id").size().to_numpy()


def _with_columns(path: Path) -> np.ndarray:
    from pipeline.data.annotations import read_annotations

    return np.bincount(read_annotations(path).labels)


def _with_masks(path: Path) -> np.ndarray:
    from pipeline.data.annotations import read_annotations

    annotations = read_annotations(path)
    assert annotations.polygons(0)
    return np.bincount(annotations.labels)


WAYS = {
    BASELINE: _with_pandas,
    "columns, first time": _with_columns,
    "columns, second time": _with_columns,
    "masks, first time": _with_masks,
    "masks, second time": _with_masks,
}


def _write(file: TextIO, annotations: int, images: int) -> None:
    """LVIS's fields in LVIS's order."""
    rng = np.random.default_rng(0)
    letters = ["r"] * 337 + ["c"] * 461 + ["f"] * 405
    categories = [
        {"id": i + 1, "name": f"thing_{i}", "synset": f"thing.n.{i}", "frequency": letters[i]}
        for i in range(CATEGORIES)
    ]
    file.write('{"info": {"year": 2026}, "licenses": [], "categories": ' + json.dumps(categories))
    file.write(', "images": [' + ", ".join(json.dumps(_image(i, rng)) for i in range(images)))
    file.write('], "annotations": [')
    shares = 1 / np.arange(CATEGORIES, 0, -1)
    labels = rng.choice(CATEGORIES, annotations, p=shares / shares.sum())
    for i, label in enumerate(labels.tolist()):
        file.write((", " if i else "") + json.dumps(_annotation(i + 1, label + 1, images, rng)))
    file.write("]}")


def _image(index: int, rng: np.random.Generator) -> dict[str, Any]:
    name = f"train2017/{index + 1:012d}.jpg"
    return {
        "id": index + 1, "width": 640, "height": 480, "license": 1, "date_captured": "2013-11-14 16:28:13",
        "coco_url": f"images.example/{name}", "flickr_url": f"photographs.example/{name}",
        "neg_category_ids": rng.integers(1, CATEGORIES, 8).tolist(), "not_exhaustive_category_ids": [],
    }  # fmt: skip


def _annotation(number: int, category: int, images: int, rng: np.random.Generator) -> dict[str, Any]:
    corners = 3 + int(rng.gamma(1.2, CORNERS / 1.2))
    x, y, w, h = (rng.random(4) * (300, 200, 300, 200) + (0, 0, 2, 2)).round(2).tolist()
    polygon = (rng.random((corners, 2)) * (w, h) + (x, y)).round(2).ravel().tolist()
    return {
        "id": number, "image_id": int(rng.integers(images)) + 1, "category_id": category,
        "segmentation": [polygon], "area": round(w * h / 2, 2), "bbox": [x, y, w, h],
    }  # fmt: skip


if __name__ == "__main__":
    main()
