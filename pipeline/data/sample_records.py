"""The sample's json: records of objects and categories, and a file that is written while scenes are planned.

COCO and LVIS files hold the same records; ids start at 1 because evaluators take 0 for "unmatched".
Shapes: P outline points, C categories.
"""

import json
from typing import Any, TextIO

import numpy as np

from pipeline.data.sample_scene import PlacedObject
from pipeline.data.sample_shapes import kind_of

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class AnnotationFile:
    """One json file, its annotations written as they come, so that memory does not grow with them."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._images: list[str] = []
        self._file.write('{"annotations":[')
        self._separator = ""

    def add_image(self, record: dict[str, Any]) -> None:
        """Keep an image's record for the end of the file."""
        self._images.append(encode(record))

    def add_annotation(self, text: str) -> None:
        """Write one encoded annotation."""
        self._file.write(self._separator + text)
        self._separator = ","

    def finish(self, categories: list[dict[str, Any]]) -> None:
        """Write what comes after the annotations."""
        self._file.write('],"images":[' + ",".join(self._images))
        self._file.write('],"categories":' + encode(categories))
        self._file.write(',"licenses":[],"info":{"description":"2drcl sample, rendered"}}\n')


def annotation(placed: PlacedObject, annotation_id: int, image_id: int) -> dict[str, Any]:
    """The record of one object; bbox is xywh, area is the polygon's, all exact on the grid of 1/4 pixel."""
    x1, y1, x2, y2 = placed.box
    x, y = np.concatenate([placed.polygon, placed.polygon[:1]]).T
    doubled_area = abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1]))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": placed.label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": doubled_area / 2,
        "segmentation": [placed.polygon.ravel().tolist()],  # (P, 2) -> (2 P)
        "iscrowd": 0,
    }


def category_records(images: np.ndarray, objects: np.ndarray, letters: list[str]) -> list[dict[str, Any]]:
    """The records of all categories, from train's counts of images and objects (C,) and its letters."""
    return [
        {
            "id": label + 1,
            "name": kind_of(label).name,
            "synset": f"{kind_of(label).name}.n.01",
            "frequency": letters[label],
            "image_count": int(images[label]),
            "instance_count": int(objects[label]),
        }
        for label in range(len(letters))
    ]


def file_name(image_id: int) -> str:
    """Relative to the split's image folder."""
    return f"{image_id:06d}.jpg"
