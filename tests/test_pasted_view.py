"""Draws with copy-paste: made of their parts, the same whatever came before, and a picture to look at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.annotations import read_annotations
from pipeline.data.copy_paste import choose, layer_of, paste
from pipeline.data.draws import Draw, generator, key_of
from pipeline.data.images import read_image
from pipeline.data.jitter import draw_jittered
from pipeline.data.loading import BatchSource
from pipeline.data.pasted_view import PastedViewDataset
from pipeline.engine.distributed import Process
from pipeline.engine.schedule import Schedule
from pipeline.errors import InputError

SIDE, SCALES = 96, (0.8, 1.25)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Six images of coloured squares, the last without any; annotations with polygons."""
    folder, random = tmp_path_factory.mktemp("split"), np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": c, "name": str(c)} for c in (1, 2, 3)]}
    for image in range(6):
        size = [(120, 80), (80, 120), (100, 100)][image % 3]
        pixels = random.integers(100, 140, (size[1], size[0], 3), dtype=np.uint8)
        for _ in range(image and 5 - image):
            x, y, side = (int(v) for v in random.integers(5, 40, 3))
            pixels[y : y + side, x : x + side] = random.integers(0, 256, 3)
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            record = {"id": len(content["annotations"]), "image_id": image, "category_id": 1 + image % 3}
            content["annotations"].append(record | {"bbox": [x, y, side, side], "segmentation": [polygon]})
        Image.fromarray(pixels).save(folder / f"{image}.png")
        shape = {"width": size[0], "height": size[1]}
        content["images"].append({"id": image, "file_name": f"{image}.png", **shape})
    (folder / "split.json").write_text(json.dumps(content))
    return folder


def dataset(split, **changes):
    settings = {"flip": 0.5, "seed": 4, "with_polygons": True} | changes
    return PastedViewDataset(read_annotations(split / "split.json"), split, SIDE, SCALES, 99, **settings)


def draw(index, epoch=0):
    return Draw(epoch, index, index % 6, (SIDE, SIDE))


def content_of(sample):
    target = sample.target
    shapes = (
        [[p.tolist() for p in o] for o in target.polygons],
        [[p.tolist() for p in o] for o in target.hidden],
    )
    return sample.image.tobytes(), target.boxes.tolist(), target.labels.tolist(), shapes, target.key


def test_a_draw_is_made_of_its_parts(split):
    data, annotations = dataset(split), read_annotations(split / "split.json")

    def view(image, random):
        wh = tuple(int(v) for v in annotations.sizes_wh[image])
        geometry = draw_jittered(wh, SIDE, SCALES, random, flip=0.5)
        return layer_of(annotations, image, geometry, read_image(split / f"{image}.png"))

    counts = []
    for index in range(12):
        random = generator(4, draw(index), "paste")
        source = [1, 2, 3, 4][random.integers(4)]  # those with objects
        above = choose(view(source, random), 99, random)
        below = view(index % 6, generator(4, draw(index), "view_query"))
        expected, found = paste(below, above, SIDE), data[draw(index)]
        assert np.array_equal(found.image, expected.image) and found.canvas_wh == (SIDE, SIDE)
        assert np.array_equal(found.target.boxes, expected.boxes)
        assert np.array_equal(found.target.labels, expected.labels)
        assert found.target.size_wh == (SIDE, SIDE)
        assert found.target.key == key_of(4, draw(index), "roi_samples")
        counts.append((len(above.masks), len(below.masks) + len(above.masks) - len(expected.masks)))
    assert len({pasted for pasted, _ in counts}) > 2 and sum(gone for _, gone in counts) > 0


def test_draws_do_not_depend_on_others(split):
    one, other = dataset(split), dataset(split)
    forwards = [content_of(one[draw(i)]) for i in range(8)]
    backwards = [content_of(other[draw(i)]) for i in reversed(range(8))]
    assert forwards == backwards[::-1] and len(set(map(str, forwards))) == 8
    assert content_of(one[draw(0, epoch=1)]) != forwards[0]
    assert content_of(dataset(split, seed=5)[draw(0)]) != forwards[0]


class InOrder:
    """Two steps of four images."""

    def steps(self, epoch):
        return np.arange(8).reshape(2, 4) % 6


def batches(split, workers, rank=0, world=1, start=0):
    data, process = dataset(split), Process(rank, world, torch.device("cpu"))
    source = BatchSource(
        data, InOrder(), Schedule((2,), (), 0.1), data.annotations.sizes_wh, (SIDE,), SIDE,
        process=process, workers=workers,
    )  # fmt: skip
    return [[content_of(sample) for sample in step] for step in source(start)]


def test_neither_workers_nor_processes_nor_a_resume_change_them(split):
    whole = batches(split, 0)
    assert [len(step) for step in whole] == [4, 4]
    assert batches(split, 2) == whole
    halves = [batches(split, 0, rank, 2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert batches(split, 0, start=1) == whole[1:]


def test_boxes_lie_in_the_square_and_hold_their_polygons_where_nothing_hides(split):
    data = dataset(split)
    for index in range(24):
        target = data[draw(index)].target
        assert (target.boxes >= 0).all() and (target.boxes <= SIDE).all()
        assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 1).all()
        for box, shape, before in zip(target.boxes, target.polygons, target.hidden, strict=True):
            points = np.concatenate(shape).reshape(-1, 2).clip(0, SIDE)
            around = np.concatenate([points.min(axis=0), points.max(axis=0)])
            if not before:
                assert np.abs(around - box).max() <= 1
            else:
                assert (box[:2] >= around[:2] - 1).all() and (box[2:] <= around[2:] + 1).all()


def test_a_split_without_objects_has_views_without_them(split, tmp_path):
    content = json.loads((split / "split.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    data = PastedViewDataset(
        read_annotations(tmp_path / "empty.json"), split, SIDE, SCALES, 9, flip=0, seed=1
    )
    target = data[draw(0)].target
    assert target.boxes.shape == (0, 4) and target.labels.shape == (0,) and target.labels.dtype == np.int64


def test_without_polygons_none_are_carried_and_boxes_are_the_same(split):
    with_them, without = dataset(split)[draw(2)], dataset(split, with_polygons=False)[draw(2)]
    assert without.target.polygons is None and without.target.hidden is None
    assert np.array_equal(with_them.image, without.image)
    assert np.array_equal(with_them.target.boxes, without.target.boxes)


def test_boxes_alone_are_pasted_as_boxes_but_not_for_masks(split, tmp_path):
    content = json.loads((split / "split.json").read_text())
    for record in content["annotations"]:
        record.pop("segmentation")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "boxes.json")
    settings = {"flip": 0.5, "seed": 4}
    boxes = PastedViewDataset(annotations, split, SIDE, SCALES, 99, **settings)
    # the objects of the split are squares: their boxes are their masks, to a pixel on the edge
    for index in range(6):
        found, expected = boxes[draw(index)], dataset(split)[draw(index)]
        same = (found.image == expected.image).all(axis=2).mean()
        assert same > 0.97 and len(found.target.labels) == len(expected.target.labels)
    with pytest.raises(InputError, match="annotations without polygons: 0, 1, 2"):
        PastedViewDataset(annotations, split, SIDE, SCALES, 99, **settings, with_polygons=True)[draw(0)]


def test_a_picture_to_look_at(split, tmp_path):
    """`TWODRCL_PICTURES=folder` keeps it: what is pasted, what it hides, and every box."""
    import os

    from matplotlib.figure import Figure
    from matplotlib.patches import Polygon, Rectangle

    data, figure = dataset(split), Figure(figsize=(12, 6), layout="constrained")
    for index, axes in enumerate(figure.subplots(2, 4).flat):
        sample = data[draw(index)]
        axes.imshow(sample.image, extent=(0, SIDE, SIDE, 0), interpolation="nearest")
        axes.set_axis_off()
        axes.set(xlim=(0, SIDE), ylim=(SIDE, 0))
        target = sample.target
        for (x1, y1, x2, y2), shape, before in zip(target.boxes, target.polygons, target.hidden, strict=True):
            colour = "red" if before else "yellow"
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour))
            for polygon in shape:
                axes.add_patch(Polygon(polygon.reshape(-1, 2), fill=False, edgecolor="white", ls=":"))
    path = Path(os.environ.get("TWODRCL_PICTURES", tmp_path)) / "copy-paste.png"
    figure.savefig(path)
    assert np.asarray(Image.open(path)).std() > 20
