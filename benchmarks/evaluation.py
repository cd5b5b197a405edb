"""How fast is our evaluator, and in how much memory, beside lvis-api?  One run, each in a process of its own.

    python benchmarks/evaluation.py                              # 3,000 images, 300 detections, 1,203 classes
    python benchmarks/evaluation.py --images 500                 # smaller
    python benchmarks/evaluation.py --images 19809 --only fast   # the size of LVIS val: lvis-api needs 23 GB

The data are synthetic: boxes around the objects of the image with noise, other classes, and clutter; half of
the detections are of classes that nobody verified in the image.  Reading the file is apart from scoring it.
lvis-api gets all categories at once, as its README does; `--engine official` gives it a hundred at a time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CATEGORIES, OBJECTS, DETECTIONS = 1203, 12, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--only", choices=("fast", "official"))
    parser.add_argument("--measure", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure[0], Path(asked.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), asked.images)
        engines = (asked.only,) if asked.only else ("fast", "official")
        found = {engine: child(engine, folder) for engine in engines}
    for engine, numbers in found.items():
        print(engine, {key: round(value, 2) for key, value in numbers.items()})
    if len(found) == 2:
        fast, official = found["fast"], found["official"]
        apart = max(abs(fast[key] - official[key]) for key in fast if key.startswith("bbox_"))
        print(f"time: 1/{official['scoring_s'] / fast['scoring_s']:.1f}", end=", ")
        print(f"memory: 1/{official['peak_mib'] / fast['peak_mib']:.1f}, metrics apart by {apart:.1e}")


def child(engine: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", engine, folder]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(engine: str, folder: Path) -> dict[str, float]:
    from pipeline.data.annotations import read_annotations
    from pipeline.evaluation import official
    from pipeline.evaluation.metrics import score
    from pipeline.evaluation.predictions_file import read_predictions
    from pipeline.evaluation.settings import EvaluationSettings

    official.CATEGORIES_AT_ONCE = CATEGORIES
    started = time.perf_counter()
    annotations = read_annotations(folder / "annotations.json")
    predictions = read_predictions(folder / "predictions.json", annotations)
    read = time.perf_counter()
    metrics = score(annotations, predictions, EvaluationSettings(engine=engine)).metrics
    seconds = time.perf_counter() - read
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    known = {key: value for key, value in metrics.items() if value is not None}
    return {"reading_s": read - started, "scoring_s": seconds, "peak_mib": peak, **known}


def write(folder: Path, num_images: int) -> None:
    """annotations.json and predictions.json, image by image: 5.9 million detections do not fit otherwise."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, CATEGORIES + 1) ** 0.7
    share /= share.sum()
    images, objects = [], []
    with (folder / "predictions.json").open("w") as file:
        for image in range(1, num_images + 1):
            labels = rng.choice(CATEGORIES, OBJECTS, p=share) + 1
            corner, side = rng.uniform(0, 400, (OBJECTS, 2)), rng.uniform(8, 240, (OBJECTS, 2))
            boxes = np.concatenate([corner, side], axis=1).round(2)
            images.append(record_of_image(image, rng))
            objects += [
                {"id": len(objects) + n + 1, "image_id": image, "category_id": int(c), "bbox": b.tolist()}
                | {"area": float(b[2] * b[3] * 0.7)}
                for n, (c, b) in enumerate(zip(labels, boxes, strict=True))
            ]
            for line in detections(image, labels, boxes, rng):
                file.write(("[" if file.tell() == 0 else ",\n") + line)
        file.write("]")
    letters = np.where(share > share[300], "f", np.where(share > share[800], "c", "r"))
    categories = [{"id": i + 1, "name": str(i), "frequency": letters[i]} for i in range(CATEGORIES)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def record_of_image(image: int, rng: np.random.Generator) -> dict[str, object]:
    negative = (rng.choice(CATEGORIES, 9, replace=False) + 1).tolist()
    return {
        **{"id": image, "file_name": f"{image}.jpg", "width": 640, "height": 640},
        **{"neg_category_ids": negative, "not_exhaustive_category_ids": negative[:1]},
    }


def detections(image: int, labels: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> list[str]:
    source = rng.integers(0, OBJECTS, DETECTIONS)
    noise = rng.normal(0, rng.choice([0.03, 0.1, 0.5], DETECTIONS)[:, None], (DETECTIONS, 4))
    moved = boxes[source] + noise * np.tile(boxes[source, 2:], 2)
    moved[:, 2:] = np.maximum(moved[:, 2:], 1)
    classes = np.where(
        rng.random(DETECTIONS) < 0.5, labels[source], rng.integers(1, CATEGORIES + 1, DETECTIONS)
    )
    scores = rng.random(DETECTIONS)
    return [
        f'{{"image_id":{image},"category_id":{c},"bbox":[{x:.2f},{y:.2f},{w:.2f},{h:.2f}],"score":{s:.6f}}}'
        for c, (x, y, w, h), s in zip(classes.tolist(), moved.tolist(), scores.tolist(), strict=True)
    ]


if __name__ == "__main__":
    main()
