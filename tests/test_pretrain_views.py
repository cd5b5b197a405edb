"""What one draw brings: views, paired boxes, masks and targets, checked by mapping everything back."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from toy_detector import ToyDetector, tiny_settings, without_colour

from pipeline.data.annotations import read_annotations
from pipeline.data.boxes import area, clip
from pipeline.data.draws import Draw, generator
from pipeline.data.photometric import MEAN, STD
from pipeline.data.photometric_draws import PhotometricSettings
from pipeline.data.views import draw_geometry
from pipeline.errors import MissingInput
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.settings import ViewSettings
from pipeline.pretrain.views import PretrainDataset, to_batch

SIZES = [(120, 90), (90, 120), (100, 100)]
CANVAS = (128, 128)
VIEWS = ViewSettings(short_sides=(64, 80), long_side=120, photometric=without_colour())
CPU = torch.device("cpu")


class Boxes:
    """Proposals by image id."""

    def __init__(self, boxes):
        self.boxes = boxes

    def of_image(self, image_id):
        boxes = np.asarray(self.boxes.get(image_id, np.zeros((0, 4))), dtype=np.float32)
        return boxes, np.linspace(1, 0.5, len(boxes), dtype=np.float32)


def random_proposals(size, count=40, seed=0):
    random = np.random.default_rng(seed)
    width, height = size
    corners = random.uniform(0, [0.7 * width, 0.7 * height], (count, 2))
    ends = np.minimum(corners + random.uniform(8, 60, (count, 2)), [width, height])
    return np.concatenate([corners, ends], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Three images (ids 11, 12, 13) with two annotations each but the last."""
    folder = tmp_path_factory.mktemp("views")
    random = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{i}.png")
    content = {
        "images": [
            {"id": 11 + i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(SIZES)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {
                "id": 10 * i + j,
                "image_id": 11 + i,
                "category_id": 1 + j,
                "bbox": [10 + 20 * j, 15, 40, 50],
                "iscrowd": 0,
            }
            for i in range(2)
            for j in range(2)
        ],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return read_annotations(folder / "train.json"), folder


def dataset(split, proposals=None, seed=0, **changes):
    annotations, folder = split
    if proposals is None:
        proposals = {11 + i: random_proposals(size, seed=i) for i, size in enumerate(SIZES)}
    settings = tiny_settings(views=VIEWS, **changes)
    return PretrainDataset(annotations, folder, Boxes(proposals), settings, seed)


def draws(count, image=None):
    return [
        Draw(epoch=i % 3, index=i, image=i % 3 if image is None else image, canvas_wh=CANVAS)
        for i in range(count)
    ]


def geometries(found, draw, seed=0):
    """The two geometries of a draw, drawn again."""
    size = SIZES[draw.image]
    candidates = found.proposals.of_image(11 + draw.image)[0][: found.settings.contrast.candidates]
    return [
        draw_geometry(
            size,
            VIEWS.short_sides,
            VIEWS.long_side,
            generator(seed, draw, purpose),
            crop=VIEWS.crop,
            flip=VIEWS.flip,
            keep=candidates,
        )
        for purpose in ("view_query", "view_key")
    ]


def mapped_back(boxes, geometry):
    """View pixels -> stored pixels: (n, 4)."""
    inverse = np.linalg.inv(geometry.homography)
    corners = [np.stack([boxes[:, i], boxes[:, j], np.ones(len(boxes))]) for i, j in ((0, 1), (2, 3))]
    first, second = ((inverse @ c)[:2].T for c in corners)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def shown(proposals, geometry):
    """The part of each proposal inside the view's window, in stored pixels."""
    x1, y1, x2, y2 = geometry.crop
    return np.clip(proposals, [x1, y1, x1, y1], [x2, y2, x2, y2])


def matched(boxes, proposals, geometry):
    """For each view box the proposals whose visible part it is."""
    distance = np.abs(mapped_back(boxes, geometry)[:, None] - shown(proposals, geometry)[None]).max(axis=2)
    return [set(np.flatnonzero(row < 1e-3)) for row in distance]


def test_pairs_are_one_proposal_seen_twice(split):
    """Mapped back by its homography, each box is what its view shows of a proposal: the same one in both."""
    found, pairs = dataset(split), 0
    for draw in draws(30):
        sample = found[draw]
        query, key = geometries(found, draw)
        proposals = found.proposals.of_image(sample.image_id)[0]
        valid = sample.boxes.valid
        in_query = matched(sample.boxes.query[valid], proposals, query)
        in_key = matched(sample.boxes.key[valid], proposals, key)
        both = [a & b for a, b in zip(in_query, in_key, strict=True)]
        assert all(both)
        assert len({min(b) for b in both}) == len(both)  # no proposal twice
        pairs += len(both)
    assert pairs > 60


def is_whole(stored, geometry):
    """Whether no side of the box is a side of the crop."""
    distance = np.abs(stored - np.array(geometry.crop))
    return bool((distance > 0.01).all())


def test_a_box_that_both_views_show_whole_covers_the_same_pixels_in_both(split):
    found, seen = dataset(split), 0
    for draw in draws(20):
        boxes, (query, key) = found[draw].boxes, geometries(found, draw)
        in_query = mapped_back(boxes.query[boxes.valid], query)
        in_key = mapped_back(boxes.key[boxes.valid], key)
        for stored, stored_key in zip(in_query, in_key, strict=True):
            if is_whole(stored, query) and is_whole(stored_key, key):
                np.testing.assert_allclose(stored, stored_key, atol=1e-3)
                seen += 1
    assert seen > 5


def marker_edges(view):
    """Corners of a bright rectangle on black, to a fraction of a pixel: xyxy from its centroid and extent."""
    light = view[..., 0].astype(float) / 255
    edges = []
    for axis in (0, 1):
        profile = light.sum(axis=axis)
        extent = profile.sum() / profile.max()
        centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
        edges.append((centre - extent / 2, centre + extent / 2))
    (x1, x2), (y1, y2) = edges
    return np.array([x1, y1, x2, y2])


def test_a_drawn_marker_lies_at_its_box_in_both_views(split, tmp_path):
    """Crop, resize and flip: the box's corners are the marker's, to half a pixel, in each view."""
    marker, found = np.array([47, 31, 78, 58]), dataset(split, proposals={11: [[47, 31, 78, 58]]})
    pixels = np.zeros((90, 120, 3), dtype=np.uint8)
    pixels[31:58, 47:78] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    found.images, pairs, flips = tmp_path, 0, set()
    for draw in draws(60, image=0):
        sample = found[draw]
        if not sample.boxes.valid[0] or not all(
            is_whole(marker, geometry) and geometry.map_boxes(marker[None])[1][0] > 0.999
            for geometry in geometries(found, draw)
        ):
            continue
        np.testing.assert_allclose(marker_edges(sample.query), sample.boxes.query[0], atol=0.5)
        np.testing.assert_allclose(marker_edges(sample.key), sample.boxes.key[0], atol=0.5)
        pairs += 1
        flips.add(tuple(h[0, 0] < 0 for h in sample.homographies))
    assert pairs > 10 and len(flips) == 4


def test_homographies_are_kept_and_lead_from_view_to_view(split):
    found, pairs = dataset(split), 0
    for draw in draws(30):
        sample, (query, key) = found[draw], geometries(found, draw)
        np.testing.assert_array_equal(sample.homographies[0], query.homography)
        np.testing.assert_array_equal(sample.homographies[1], key.homography)
        across = sample.homographies[1] @ np.linalg.inv(sample.homographies[0])
        valid, boxes = sample.boxes.valid, sample.boxes
        for box, expected in zip(boxes.query[valid], boxes.key[valid], strict=True):
            corners = [across @ [box[i], box[i + 1], 1] for i in (0, 2)]
            moved = [f(a, b) for f in (min, max) for a, b in zip(*(c[:2] for c in corners), strict=True)]
            if is_whole(mapped_back(box[None], query)[0], query) and is_whole(
                mapped_back(expected[None], key)[0], key
            ):
                np.testing.assert_allclose(moved, expected, atol=1e-3)
                pairs += 1
    assert pairs > 5


def test_survivors_are_visible_and_large_in_both_views(split):
    found = dataset(split)
    settings, rejected = found.settings.contrast, 0
    for draw in draws(30):
        sample, (query, key) = found[draw], geometries(found, draw)
        proposals = found.proposals.of_image(sample.image_id)[0]
        survivors = set()
        for i, proposal in enumerate(proposals):
            views = [shown(proposal[None], g)[0] for g in (query, key)]
            shares = [area(v[None])[0] / area(proposal[None])[0] for v in views]
            scales = [
                np.array(g.size_wh) / (g.crop[2] - g.crop[0], g.crop[3] - g.crop[1]) for g in (query, key)
            ]
            sides = [((v[2:] - v[:2]) * s).min() for v, s in zip(views, scales, strict=True)]
            if min(shares) >= settings.min_visible and min(sides) >= settings.min_side:
                survivors.add(i)
        rejected += len(proposals) - len(survivors)
        valid = sample.boxes.valid
        assert valid.sum() == min(settings.boxes, len(survivors))
        for candidates in matched(sample.boxes.query[valid], proposals, query):
            assert candidates & survivors
        for boxes, geometry in ((sample.boxes.query, query), (sample.boxes.key, key)):
            assert (boxes == clip(boxes, *geometry.size_wh)).all()
            assert ((boxes[valid, 2:] - boxes[valid, :2]) >= settings.min_side - 1e-3).all()
    assert rejected > 100


def test_boxes_are_drawn_uniformly_among_the_best_proposals(split):
    """With whole views and 10 candidates each is drawn 3 times in 10; the eleventh and later never."""
    views = dataclasses.replace(VIEWS, crop=(1.0, 1.0))
    annotations, folder = split
    grid = np.array([[5 * i, 5 * i, 5 * i + 30, 5 * i + 30] for i in range(12)], dtype=np.float32)
    found = PretrainDataset(
        annotations, folder, Boxes({13: grid}), tiny_settings(views=views, contrast={"candidates": 10}), 0
    )
    counts = np.zeros(12)
    for draw in draws(400, image=2):
        sample = found[draw]
        geometry = draw_geometry(
            SIZES[2],
            views.short_sides,
            views.long_side,
            generator(0, draw, "view_query"),
            crop=(1.0, 1.0),
            flip=0.5,
        )
        for candidates in matched(sample.boxes.query, grid, geometry):
            counts[list(candidates)] += 1
    assert counts.sum() == 1200 and (counts[10:] == 0).all()
    assert (np.abs(counts[:10] - 120) < 5 * np.sqrt(120 * 0.7)).all()


def test_fewer_survivors_leave_invalid_rows_behind_the_valid_ones(split):
    found = dataset(split, {11: [[10, 10, 60, 60], [0, 0, 120, 90]]}, contrast={"boxes": 4, "min_side": 4.0})
    for draw in draws(10, image=0):
        boxes = found[draw].boxes
        assert boxes.valid[2:].tolist() == [False, False]
        assert (boxes.query[~boxes.valid] == [0, 0, 1, 1]).all() and (
            boxes.key[~boxes.valid] == [0, 0, 1, 1]
        ).all()
        assert boxes.query.shape == boxes.key.shape == boxes.masks.shape == (4, 4)
        assert (boxes.query.dtype, boxes.key.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("proposals", [{}, {11: [[5, 5, 9, 9]]}], ids=["none", "too small"])
def test_without_survivors_shapes_and_types_stay(split, proposals):
    boxes = dataset(split, proposals)[draws(1, image=0)[0]].boxes
    assert not boxes.valid.any()
    assert (boxes.query.shape, boxes.query.dtype) == ((3, 4), np.float32)
    assert (boxes.masks.shape, boxes.masks.dtype) == ((3, 4), np.int64)


def test_masks_lie_inside_their_boxes_of_the_query_view(split):
    found, count = dataset(split, contrast={"min_side": 16.0}), 0
    for draw in draws(30):
        boxes = found[draw].boxes
        valid = boxes.valid
        masks, query = boxes.masks[valid], boxes.query[valid]
        assert (masks[:, :2] >= query[:, :2]).all() and (masks[:, 2:] <= query[:, 2:]).all()
        share = area(masks) / area(query)
        assert ((share >= 0.24) & (share <= 0.26)).all()
        count += len(masks)
    assert count > 20


# draws


def same(a, b):
    """Whether two samples are equal in everything."""
    pairs = [
        (a.query, b.query),
        (a.key, b.key),
        *zip(vars(a.boxes).values(), vars(b.boxes).values(), strict=True),
    ]
    equal = all(np.array_equal(x, y) for x, y in pairs)
    return (
        equal
        and a.photometric == b.photometric
        and a.target.key == b.target.key
        and np.array_equal(a.target.boxes, b.target.boxes)
    )


def test_a_draw_decides_everything_and_its_order_nothing(split):
    there, back = dataset(split), dataset(split)
    samples = [there[draw] for draw in draws(6)]
    again = [back[draw] for draw in reversed(draws(6))][::-1]
    assert all(same(a, b) for a, b in zip(samples, again, strict=True))


@pytest.mark.parametrize("change", [{"epoch": 1}, {"index": 5}])
def test_another_draw_is_another_sample(split, change):
    found, draw = dataset(split), draws(1)[0]
    assert not same(found[draw], found[dataclasses.replace(draw, **change)])
    assert not same(found[draw], dataset(split, seed=1)[draw])


def test_an_image_that_an_epoch_draws_twice_is_drawn_anew_for_every_purpose(split):
    """A repeat of DRB, perhaps in the same batch: crops, boxes, masks, colours and RoI samples are others."""
    found, draw = dataset(split), draws(1)[0]
    found.settings = dataclasses.replace(
        found.settings, views=dataclasses.replace(VIEWS, photometric=PhotometricSettings())
    )
    one, other = (found[dataclasses.replace(draw, index=index)] for index in (0, 5))
    assert one.image_id == other.image_id and one.target.key != other.target.key
    for name in ("homographies", "photometric"):
        for first, second in zip(getattr(one, name), getattr(other, name), strict=True):
            assert not np.array_equal(first, second), name
    for name in ("query", "key", "masks"):
        assert not np.array_equal(getattr(one.boxes, name), getattr(other.boxes, name)), name


def test_views_are_drawn_independently(split):
    found = dataset(split)
    pairs = [geometries(found, draw) for draw in draws(40)]
    flips = {(query.flip, key.flip) for query, key in pairs}
    assert len(flips) == 4
    assert all(query.crop != key.crop for query, key in pairs)


def test_missing_image_is_named(split, tmp_path):
    annotations, _ = split
    with pytest.raises(MissingInput, match=r"0\.png does not exist"):
        PretrainDataset(annotations, tmp_path, Boxes({}), tiny_settings(views=VIEWS), 0)[draws(1)[0]]


def test_targets_are_the_annotations_of_the_query_view(split):
    found = dataset(split)
    annotations, _ = split
    for draw in draws(12):
        sample, (query, _) = found[draw], geometries(found, draw)
        assert sample.target.size_wh == query.size_wh == sample.query.shape[1::-1]
        whole = annotations.boxes[annotations.of_image(draw.image)]
        for box, label in zip(sample.target.boxes, sample.target.labels, strict=True):
            np.testing.assert_allclose(
                mapped_back(box[None], query)[0], shown(whole[label : label + 1], query)[0], atol=1e-3
            )


# batches


def test_batch_puts_every_view_at_the_top_left_of_its_canvas(split):
    found = dataset(split)
    samples = [found[draw] for draw in draws(3)]
    batch = to_batch(samples, CPU)
    assert batch.query.shape == batch.key.shape == (3, 3, *CANVAS[::-1])
    assert batch.image_ids.tolist() == [11, 12, 13] and batch.canvas_wh == CANVAS
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for name in ("query", "key"):
        sizes = getattr(batch, f"{name}_wh")
        for i, sample in enumerate(samples):
            pixels = getattr(sample, name)
            assert sizes[i].tolist() == [pixels.shape[1], pixels.shape[0]]
            height, width = pixels.shape[:2]
            expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
            torch.testing.assert_close(getattr(batch, name)[i, :, :height, :width], expected)
            assert getattr(batch, name)[i, :, height:].abs().sum() == 0
            assert getattr(batch, name)[i, :, :, width:].abs().sum() == 0


def test_batch_types_do_not_depend_on_what_survived(split):
    found = dataset(split, {11: random_proposals(SIZES[0])})
    mixed, empty = (
        to_batch([found[Draw(0, i, image, CANVAS)] for i, image in enumerate(images)], CPU)
        for images in ((0, 1), (1, 2))
    )
    for batch in (mixed, empty):
        assert batch.query_boxes.dtype == batch.key_boxes.dtype == torch.float32
        assert (batch.masks.dtype, batch.valid.dtype, batch.image_ids.dtype) == (
            torch.int64,
            torch.bool,
            torch.int64,
        )
        assert batch.query_wh.dtype == torch.float32
    assert mixed.valid[0].any() and not mixed.valid[1].any() and not empty.valid.any()


def test_colour_differs_between_the_views_and_follows_the_draw(split):
    annotations, folder = split
    coloured = ViewSettings(short_sides=(64, 80), long_side=120)
    found = PretrainDataset(annotations, folder, Boxes({}), tiny_settings(views=coloured), 0)
    samples = [found[draw] for draw in draws(40)]
    assert all(sample.photometric[0] != sample.photometric[1] for sample in samples)
    assert not any(sample.photometric[0].solarize for sample in samples)  # the key view alone is solarized
    assert any(sample.photometric[1].solarize for sample in samples)


@pytest.mark.parametrize("proposals", [None, {}], ids=["with proposals", "without any"])
def test_a_step_from_files_to_gradients(split, proposals):
    found = dataset(split, proposals)
    torch.manual_seed(0)
    model = TwoDRCL(ToyDetector(), found.settings, (8, 16), lambda samples: to_batch(samples, CPU)).train()
    for epoch in range(2):
        losses = model([found[Draw(epoch, i, i, CANVAS)] for i in range(3)])
        model.zero_grad()
        losses["loss"].backward()
        model.after_step()
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert (losses["lcl"].item() == 0.0) == (proposals == {})
    assert losses["hcl"].item() > 0
