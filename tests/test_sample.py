"""The sample data set: its files are whole, exact and repeatable, and its tail is the one asked for."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.annotations import read_annotations
from pipeline.data.images import check_files, read_image
from pipeline.data.sample import SampleSettings, write_sample
from pipeline.data.sample_plan import TRAIN, VAL, assign, ranking, tail
from pipeline.data.sample_scene import plan_scene
from pipeline.data.sample_shapes import SHAPES, contains, interior, kind_of, outline
from pipeline.errors import SettingsError, UsageError
from pipeline.settings import build

SMALL = SampleSettings(
    train_images=20, val_images=20, categories=6, val_instances=2, not_exhaustive_fraction=0.5
)
NAMES = ("train_coco", "train_lvis", "val_coco", "val_lvis")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small set with pixels."""
    folder = tmp_path_factory.mktemp("small")
    return folder, write_sample(folder, SMALL, seed=3)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The json of the default set, by name, and the folder."""
    folder = tmp_path_factory.mktemp("default")
    counts = write_sample(folder, SampleSettings(), seed=0, pixels=False)
    return folder, counts, {name: json.loads((folder / f"{name}.json").read_text()) for name in NAMES}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def image_counts(content: dict) -> Counter:
    """Images per category id, from the annotations alone."""
    return Counter(
        category for _, category in {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    )


# --- bytes ------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes(small, tmp_path):
    write_sample(tmp_path, SMALL, seed=3)
    found = digests(tmp_path)
    assert found == digests(small[0])
    assert len(found) == 20 + 20 + 4 + 1


def test_another_seed_writes_other_scenes(small, tmp_path):
    write_sample(tmp_path, SMALL, seed=4)
    here, there = digests(tmp_path), digests(small[0])
    assert here.keys() == there.keys()
    assert all(here[name] != there[name] for name in here)


def test_the_json_do_not_depend_on_pixels(small, tmp_path):
    assert write_sample(tmp_path, SMALL, seed=3, pixels=False) == small[1]
    with_pixels = digests(small[0])
    without = digests(tmp_path)
    assert sorted(without) == sorted(f"{name}.json" for name in NAMES)
    assert all(with_pixels[name] == digest for name, digest in without.items())


def test_a_scene_does_not_depend_on_the_size_of_the_set():
    labels = np.array([5, 2, 2, 0])
    one, other = (
        plan_scene(SampleSettings(train_images=n, val_images=200), 0, TRAIN, 7, labels) for n in (50, 240)
    )
    assert one.objects and [o.polygon.tolist() for o in one.objects] == [
        o.polygon.tolist() for o in other.objects
    ]
    another = plan_scene(SampleSettings(), 0, TRAIN, 8, labels)
    assert another.objects[0].polygon.tolist() != one.objects[0].polygon.tolist()


# --- what other programs read -----------------------------------------------------------------------------


def test_our_reader_finds_nothing_to_set_right(small):
    for name in NAMES:
        read = read_annotations(small[0] / f"{name}.json")
        assert read.trainable.all() and len(read.boxes) > 0
        assert not [r for r in read.remarks() if "no instance" not in r]
        assert read.is_lvis == name.endswith("lvis")
        assert read.frequency is not None


def test_images_are_on_disk_in_both_orientations_and_of_the_stated_size(small):
    shapes = set()
    for split in ("train", "val"):
        read = read_annotations(small[0] / f"{split}_coco.json")
        check_files(small[0] / split, read.file_names)
        for name, size in zip(read.file_names, read.sizes_wh.tolist(), strict=True):
            pixels = read_image(small[0] / split / name, tuple(size))
            assert pixels.shape == (size[1], size[0], 3)
            shapes.add(tuple(size))
    assert shapes == {(160, 128), (128, 160)}


def test_ids_and_names_never_repeat_across_splits(default):
    _, _, content = default
    train, val = content["train_coco"]["images"], content["val_coco"]["images"]
    assert [i["id"] for i in train + val] == list(range(1, 341))
    assert len({i["file_name"] for i in train + val}) == 340


def test_pycocotools_rasterises_every_polygon(small):
    from pycocotools.coco import COCO

    for name in NAMES:
        coco = COCO(str(small[0] / f"{name}.json"))
        for annotation in coco.dataset["annotations"]:
            mask = coco.annToMask(annotation)
            polygon = np.reshape(annotation["segmentation"][0], (-1, 2))
            perimeter = np.hypot(*(polygon - np.roll(polygon, 1, axis=0)).T).sum()
            assert abs(int(mask.sum()) - annotation["area"]) < 0.5 * perimeter + 2


def test_lvis_loads_and_scores_perfect_detections_as_perfect(small, monkeypatch):
    from lvis import LVIS, LVISEval, LVISResults

    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 still uses the removed alias
    truth = LVIS(str(small[0] / "val_lvis.json"))
    detections = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for a in truth.dataset["annotations"]
    ]
    evaluation = LVISEval(truth, LVISResults(truth, detections), "bbox")
    evaluation.run()
    assert evaluation.get_results()["AP"] == pytest.approx(1.0)


# --- geometry ---------------------------------------------------------------------------------------------


def test_boxes_are_the_exact_bounds_and_areas_those_of_the_polygon(default):
    cut = 0
    for split in ("train", "val"):
        content = default[2][f"{split}_coco"]
        sizes = {i["id"]: (i["width"], i["height"]) for i in content["images"]}
        for annotation in content["annotations"]:
            (flat,) = annotation["segmentation"]
            xs, ys = flat[0::2], flat[1::2]
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w, y + h) == (min(xs), min(ys), max(xs), max(ys))
            width, height = sizes[annotation["image_id"]]
            assert 0 <= x < x + w <= width and 0 <= y < y + h <= height
            twice = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
            assert annotation["area"] == abs(twice) / 2 > 0
            cut += x == 0 or y == 0 or x + w == width or y + h == height
    assert cut > 50  # objects that reach over the border are common


def test_a_cut_object_keeps_exactly_what_is_inside_the_image():
    settings, checked = SampleSettings(), 0
    assignment = assign(settings, 0, TRAIN)
    rng = np.random.default_rng(0)
    for index in range(60):
        scene = plan_scene(settings, 0, TRAIN, index, assignment.of_image(index))
        for placed in scene.objects:
            if placed.outline.shape == placed.polygon.shape:
                continue
            points = placed.outline.min(axis=0) + rng.random((4000, 2)) * np.ptp(placed.outline, axis=0)
            inside = ((points >= 0) & (points <= (scene.width, scene.height))).all(axis=1)
            wanted = contains(placed.outline, points) & inside
            assert (
                np.mean(wanted != contains(placed.polygon, points)) < 0.005
            )  # the grid moves edges by 1/8 px
            checked += 1
    assert checked > 10


def test_every_object_stays_visible():
    """The share left by the objects on top, counted on 60 x 60 points instead of the planner's own."""
    settings, overlapped = SampleSettings(), 0
    for split in (TRAIN, VAL):
        assignment = assign(settings, 1, split)
        for index in range(40):
            objects = plan_scene(settings, 1, split, index, assignment.of_image(index)).objects
            for placed in objects:
                above = [o for o in objects if o.depth > placed.depth]
                x1, y1, x2, y2 = placed.box
                grid = np.stack(np.meshgrid(np.linspace(x1, x2, 60), np.linspace(y1, y2, 60)), -1).reshape(
                    -1, 2
                )
                own = grid[contains(placed.polygon, grid)]
                hidden = np.zeros(len(own), dtype=bool)
                for other in above:
                    hidden |= contains(other.polygon, own)
                overlapped += bool(hidden.any())
                assert 1 - hidden.mean() > settings.min_visible - 0.08  # the planner counts some 100 points
    assert overlapped > 20  # occlusion does occur


def test_sizes_span_the_range(default):
    sides = [max(a["bbox"][2:]) for a in default[2]["train_coco"]["annotations"]]
    assert max(sides) <= 68.5 and min(sides) > 0.65 * 16  # a border may cut 30 percent off
    assert np.percentile(sides, 90) > 2.2 * np.percentile(sides, 10)


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=list(SHAPES))
def test_outlines_are_simple_centred_and_fill_part_of_their_box(shape):
    points = outline(shape)
    assert np.allclose(points.max(axis=0), -points.min(axis=0)) and np.isclose(points.max(), 1)
    edges = [(points[i - 1], points[i]) for i in range(len(points))]
    for i, one in enumerate(edges):
        for j in range(i + 2, len(edges)):
            if (i, j) != (0, len(edges) - 1):
                assert not crosses(*one, *edges[j])
    assert 0.25 <= len(interior(shape)) / 196 <= 1


def crosses(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> bool:
    """Whether the segments ab and cd properly intersect."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> float:
        return float(np.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])))

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def test_contains_agrees_with_a_half_plane_test_on_a_triangle():
    triangle = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    points = np.random.default_rng(0).uniform(-1, 5, size=(500, 2))
    wanted = [x > 0 and y > 0 and x + y < 4 for x, y in points.tolist()]
    assert contains(triangle, points).tolist() == wanted


# --- the tail ---------------------------------------------------------------------------------------------


def test_train_follows_the_law(default):
    _, counts, content = default
    found = image_counts(content["train_coco"])
    exponent = math.log(192 / 2) / math.log((16 + 2) / (1 + 2))
    wanted = [round(0.8 * 240 * ((r + 2) / 3) ** -exponent) for r in range(1, 17)]
    by_rank = [found[int(c) + 1] for c in ranking(SampleSettings(), 0)]
    assert by_rank == wanted == sorted(by_rank, reverse=True)
    assert 1 <= by_rank[-1] <= 3 and by_rank[0] > 120
    assert counts["train_objects"] == len(content["train_coco"]["annotations"]) > 2 * 240


def test_counts_in_the_files_are_those_of_train(default):
    for family in ("coco", "lvis"):
        train, val = default[2][f"train_{family}"], default[2][f"val_{family}"]
        images, objects = image_counts(train), Counter(a["category_id"] for a in train["annotations"])
        assert train["categories"] == val["categories"]
        for category in train["categories"]:
            assert category["image_count"] == images[category["id"]]
            assert category["instance_count"] == objects[category["id"]]


def test_letters_follow_the_cuts_and_each_occurs_several_times(default):
    _, counts, content = default
    letters = Counter()
    for category in content["val_lvis"]["categories"]:
        n = category["image_count"]
        letter = "r" if n <= 0.02 * 240 else "c" if n <= 0.08 * 240 else "f"
        assert category["frequency"] == letter
        letters[letter] += 1
    assert min(letters["r"], letters["c"], letters["f"]) >= 3
    assert (counts["rare"], counts["common"], counts["frequent"]) == (
        letters["r"],
        letters["c"],
        letters["f"],
    )


@pytest.mark.parametrize("seed", range(4))
def test_val_is_balanced_over_all_categories(seed, tmp_path):
    write_sample(tmp_path, SampleSettings(), seed, pixels=False)
    content = json.loads((tmp_path / "val_lvis.json").read_text())
    objects = Counter(a["category_id"] for a in content["annotations"])
    assert set(objects) == set(range(1, 17))
    assert min(objects.values()) >= 15 and max(objects.values()) <= 1.5 * min(objects.values())


def test_which_category_is_rare_depends_on_the_seed():
    orders = {tuple(ranking(SampleSettings(), seed).tolist()) for seed in range(5)}
    assert len(orders) == 5


def test_a_given_exponent_is_used_and_the_tail_never_falls_below_the_rarest():
    settings = SampleSettings(zipf_exponent=1.0, zipf_shift=0.0, head_fraction=0.5, rarest_images=9)
    assert tail(settings).tolist() == [max(9, round(120 / r)) for r in range(1, 17)]


def test_more_wishes_than_room_keep_every_category():
    settings = SampleSettings(
        train_images=20, val_images=120, categories=40, zipf_exponent=0.0, objects_per_image=(2, 3)
    )
    assignment = assign(settings, 0, TRAIN)
    assert set(assignment.labels.tolist()) == set(range(40))
    assert all(2 <= len(assignment.of_image(i)) <= 3 for i in range(20))


# --- LVIS' federated fields -------------------------------------------------------------------------------


def test_negative_categories_are_truly_absent(default):
    for split in ("train", "val"):
        content, lvis = default[2][f"{split}_coco"], default[2][f"{split}_lvis"]
        shown: dict[int, set[int]] = {i["id"]: set() for i in content["images"]}
        for annotation in content["annotations"]:
            shown[annotation["image_id"]].add(annotation["category_id"])
        used = set()
        for image in lvis["images"]:
            negatives = image["neg_category_ids"]
            assert not shown[image["id"]] & set(negatives)
            assert len(negatives) == len(set(negatives)) == min(8, 16 - len(shown[image["id"]]))
            used |= set(negatives)
        assert used == set(range(1, 17))


def test_lvis_lacks_one_object_of_each_category_called_not_exhaustive(default):
    missing_in_all = 0
    for split in ("train", "val"):
        content, lvis = default[2][f"{split}_coco"], default[2][f"{split}_lvis"]
        kept = {a["id"]: a for a in lvis["annotations"]}
        assert all(kept.get(a["id"], a) == a for a in content["annotations"])
        missing = [a for a in content["annotations"] if a["id"] not in kept]
        listed = [(i["id"], c) for i in lvis["images"] for c in i["not_exhaustive_category_ids"]]
        assert sorted((a["image_id"], a["category_id"]) for a in missing) == sorted(listed)
        assert set(listed) <= {(a["image_id"], a["category_id"]) for a in lvis["annotations"]}
        missing_in_all += len(missing)
    assert missing_in_all == default[1]["unannotated_in_lvis"] > 5


def test_nothing_is_left_out_when_nothing_is_asked_for(tmp_path):
    settings = SampleSettings(
        train_images=20,
        val_images=20,
        categories=6,
        val_instances=2,
        not_exhaustive_fraction=0.0,
        negatives_per_image=0,
    )
    assert write_sample(tmp_path, settings, 0, pixels=False)["unannotated_in_lvis"] == 0
    coco, lvis = (json.loads((tmp_path / f"train_{family}.json").read_text()) for family in ("coco", "lvis"))
    assert coco["annotations"] == lvis["annotations"]
    assert all(image["neg_category_ids"] == [] for image in lvis["images"])


# --- many categories, the sheet, progress, mistakes -------------------------------------------------------


def test_each_of_1203_categories_has_a_look_and_a_name_of_its_own():
    kinds = [kind_of(label) for label in range(1203)]
    assert len({(k.shape, k.texture, k.rim) for k in kinds}) == len({k.name for k in kinds}) == 1203
    assert len({k.shape for k in kinds[:20]}) == 20


def test_1203_categories_all_reach_both_splits(tmp_path):
    settings = SampleSettings(train_images=1000, val_images=620, categories=1203, val_instances=1)
    write_sample(tmp_path, settings, 0, pixels=False)
    for split in ("train", "val"):
        content = json.loads((tmp_path / f"{split}_lvis.json").read_text())
        assert len({a["category_id"] for a in content["annotations"]}) == 1203
        assert len({c["name"] for c in content["categories"]}) == 1203


def test_the_contact_sheet_shows_boxes_of_rare_categories(small):
    with Image.open(small[0] / "figures" / "examples.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
        assert sheet.size == (4 * 328 + 8, 4 * 346 + 8)
    rarest = [c for c in read_categories(small[0]) if c["image_count"] <= 2]
    colour = {"r": (255, 140, 60), "c": (240, 228, 66), "f": (86, 180, 233)}[rarest[0]["frequency"]]
    assert (pixels == colour).all(axis=1).sum() > 500


def read_categories(folder: Path) -> list[dict]:
    return json.loads((folder / "train_lvis.json").read_text())["categories"]


def test_progress_counts_every_image_once(tmp_path):
    seen = []
    write_sample(tmp_path, SMALL, 0, pixels=False, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 40) for i in range(1, 41)]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"train_images": 0}, "sample.train_images"),
        ({"train_images": 100_001}, "sample.train_images"),
        ({"categories": 1204}, "sample.categories"),
        ({"categories": 1}, "sample.categories"),
        ({"categories": 16.0}, "sample.categories"),
        ({"head_fraction": 1.5}, "sample.head_fraction"),
        ({"zipf_exponent": "steep"}, "sample.zipf_exponent"),
        ({"zipf_exponent": -1.0}, "sample.zipf_exponent"),
        ({"objects_per_image": [0, 3]}, r"sample.objects_per_image\[0\]"),
        ({"objects_per_image": 3}, "sample.objects_per_image"),
        ({"colour": "red"}, "sample.colour"),
        ({"objects_per_image": [5, 3]}, "objects_per_image must be ascending"),
        ({"object_size_px": [20, 200]}, "object_size_px goes up to 200"),
        ({"rare_fraction": 0.5}, "above common_fraction"),
        ({"categories": 600, "val_images": 3000}, "train_images is 240: too few"),
        ({"val_images": 10}, "val_images is 10: too few"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, named):
    with pytest.raises(SettingsError, match=named):
        build(SampleSettings, values, "sample")


def test_the_extremes_of_the_settings_are_accepted():
    made = build(SampleSettings, {"train_images": 100_000, "categories": 1203, "val_images": 3609}, "sample")
    assert tail(made).min() == 2


def test_a_category_that_finds_no_room_is_an_error_not_a_gap(tmp_path):
    crowded = SampleSettings(
        width=32, height=32, object_size_px=(30, 32), objects_per_image=(8, 8), train_images=10, val_images=12
    )
    with pytest.raises(SettingsError, match="no room for enough objects of categories"):
        write_sample(tmp_path, crowded, 0, pixels=False)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(UsageError, match="-1"):
        write_sample(tmp_path, SMALL, -1)
