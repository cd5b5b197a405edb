"""COCO-LT: the published numbers, which annotations stay, the json that comes out, and the command."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import file_digest
from pipeline.data import json_records
from pipeline.data.coco_lt import (
    Columns,
    Membership,
    Selection,
    draw_sample,
    read_membership,
    select_listed,
)
from pipeline.data.coco_lt_counts import (
    COCO_LT,
    Difference,
    PublishedClass,
    PublishedSplit,
    bin_sizes,
    bins_of,
    differences,
)
from pipeline.data.coco_lt_records import read_columns, write_split
from pipeline.data.coco_lt_report import report
from pipeline.errors import InputError, MismatchedInput, MissingInput

DATA = Path(os.environ.get("TWODRCL_DATA", Path(__file__).parents[1] / "../shared/data")) / "longtail"
needs_data = pytest.mark.skipif(
    not (DATA / "coco_lt_tail_class_image_ids.json").exists(),
    reason="no SimCal lists (set TWODRCL_DATA to the folder of longtail/coco_lt_*.json)",
)
LISTS = DATA / "coco_lt_tail_class_image_ids.json"
# One class in each bin, two in the third; `person` is kept whole.
SMALL = PublishedSplit(
    (
        PublishedClass(1, "person", 8_000, 300),
        PublishedClass(2, "bicycle", 420, 250),
        PublishedClass(5, "airplane", 400, 390),
        PublishedClass(6, "bus", 60, 50),
        PublishedClass(11, "fire hydrant", 5, 4),
    ),
    num_images=500,
)


def columns_of(pairs: np.ndarray, image_ids: np.ndarray, path: Path = Path("a.json")) -> Columns:
    """Columns with shuffled annotation ids; `pairs` (A, 2) are labels and image positions."""
    ids = np.random.default_rng(5).permutation(len(pairs)) * 3 + 100
    crowd = np.arange(len(pairs)) % 97 == 0
    return Columns(path, image_ids, ids, pairs[:, 1], pairs[:, 0], crowd)


def lists_and_columns(
    published: PublishedSplit, lists: list[np.ndarray], image_ids: np.ndarray, seed: int = 0
) -> tuple[Membership, Columns]:
    """A file in which the listed images hold more boxes than stay, and other images hold some too.

    Args:
        published: its numbers are met by construction.
        lists: for each class the listed image ids, empty where the class is kept whole.
        image_ids: of the file; the last tenth is in no list and holds listed classes alone.
    """
    rng = np.random.default_rng(seed)
    size = len(image_ids)
    inside, outside = np.arange(size - size // 10), np.arange(size - size // 10, size)
    at = {int(i): p for p, i in enumerate(image_ids)}
    covered = np.zeros(size, dtype=bool)
    pairs = []
    for label, listed in enumerate(lists):
        if len(listed):
            own = np.array([at[int(i)] for i in listed])
            covered[own] = True
            more = rng.choice(own, published.classes[label].instances - len(own) + 7)  # 7 too many
            pairs += [(label, p) for p in (*own, *more, *rng.choice(outside, 11))]
    uncovered = inside[~covered[inside]]
    for label, listed in enumerate(lists):
        if not len(listed):
            wanted = published.classes[label]
            others = rng.permutation(np.setdiff1d(inside, uncovered))
            own = np.concatenate([uncovered[: wanted.images], others])[: wanted.images]
            uncovered = uncovered[wanted.images :]
            pairs += [(label, p) for p in (*own, *rng.choice(own, wanted.instances - wanted.images))]
    assert not len(uncovered)
    labels = np.repeat(np.arange(len(lists)), [len(i) for i in lists])
    instances = np.where([len(i) > 0 for i in lists], published.instances, -1)
    membership = Membership(Path("lists.json"), labels, np.concatenate(lists), instances)
    return membership, columns_of(rng.permutation(np.array(pairs)), image_ids)


@pytest.fixture(scope="module")
def small():
    image_ids = np.random.default_rng(1).permutation(5_000)[:560]  # 504 in lists or with persons
    published = dataclasses.replace(SMALL, num_images=504)
    rng = np.random.default_rng(2)
    lists = [np.array([], dtype=np.int64)]
    lists += [rng.choice(image_ids[:504], c.images, replace=False) for c in published.classes[1:]]
    membership, columns = lists_and_columns(published, lists, image_ids)
    return published, membership, columns


def slow_selection(columns: Columns, membership: Membership, seed: int) -> set[int]:
    """Ids that stay, one image and class after the other, from the keys that the module promises."""
    ids = sorted(columns.annotation_ids.tolist())
    words = np.random.Philox(np.random.SeedSequence(seed)).random_raw(len(ids))
    key = dict(zip(ids, words.tolist(), strict=True))
    boxes: dict[int, dict[int, list[int]]] = {}
    for i, image, label in zip(columns.annotation_ids, columns.images, columns.labels, strict=True):
        boxes.setdefault(int(label), {}).setdefault(int(columns.image_ids[image]), []).append(int(i))
    stay = set()
    for label, of_image in boxes.items():
        if membership.instances[label] < 0:
            stay |= {i for found in of_image.values() for i in found}
            continue
        listed = membership.image_ids[membership.labels == label].tolist()
        first = [min(of_image[image], key=key.__getitem__) for image in listed]
        rest = sorted({i for image in listed for i in of_image[image]} - set(first), key=key.__getitem__)
        stay |= {*first, *rest[: membership.instances[label] - len(first)]}
    return stay


def ids_of(columns: Columns, mask: np.ndarray) -> set[int]:
    return set(columns.annotation_ids[mask].tolist())


# the published numbers


def test_bins_close_below():
    assert bins_of(np.array([0, 19, 20, 399, 400, 7_999, 8_000, 10**6])).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_published_numbers_have_the_published_sums():
    assert len(COCO_LT.classes) == 80 and COCO_LT.num_images == 99_411
    assert COCO_LT.instances.sum() == 666_493
    assert bin_sizes(COCO_LT.instances) == [4, 24, 32, 20]
    assert [c.name for c in COCO_LT.classes if c.instances < 20] == [
        "fire hydrant",
        "parking meter",
        "frisbee",
        "toothbrush",
    ]


@needs_data
def test_published_numbers_are_those_of_the_lists():
    rows = json.loads((DATA / "coco_lt_category_counts.json").read_text())["categories"]
    theirs = [
        (r["coco_category_id"], r["name"].replace("_", " "), r["instance_count"], r["image_count"])
        for r in rows
    ]
    assert theirs == [tuple(c) for c in COCO_LT.classes]
    assert [r["bin"] for r in rows] == bins_of(COCO_LT.instances).tolist()


def test_differences_name_class_found_and_expected():
    instances = SMALL.instances.copy()
    assert differences(SMALL, instances, SMALL.images, 500) == []
    instances[4] = 20
    images = SMALL.images.copy()
    images[1] = 251
    assert differences(SMALL, instances, images, 499) == [
        Difference("fire hydrant", "instances", 20, 5),
        Difference("bicycle", "images", 251, 250),
        Difference("all classes", "images", 499, 500),
        Difference("bin 1", "classes", 0, 1),
        Difference("bin 2", "classes", 2, 1),
    ]
    assert [d.quantity for d in differences(SMALL, instances, None, None)] == [
        "instances",
        "classes",
        "classes",
    ]


# a seeded sample


def sample_columns(surplus: int = 30) -> Columns:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), [8_000, *(SMALL.instances[1:] + surplus)])
    return columns_of(
        np.stack([rng.permutation(labels), rng.integers(0, 560, len(labels))], 1), np.arange(560)
    )


def test_sample_meets_every_count_and_says_what_was_drawn():
    columns = sample_columns()
    selection = draw_sample(columns, SMALL, seed=4)
    assert np.bincount(columns.labels[selection.keep]).tolist() == SMALL.instances.tolist()
    assert np.bincount(columns.labels[selection.drawn]).tolist() == [0, *SMALL.instances[1:]]
    assert selection.keep[columns.labels == 0].all()


def test_sample_depends_on_the_seed_and_not_on_the_order_of_the_file():
    columns = sample_columns()
    order = np.random.default_rng(8).permutation(len(columns.labels))
    shuffled = dataclasses.replace(
        columns,
        annotation_ids=columns.annotation_ids[order],
        images=columns.images[order],
        labels=columns.labels[order],
    )
    kept = ids_of(columns, draw_sample(columns, SMALL, 4).keep)
    assert kept == ids_of(shuffled, draw_sample(shuffled, SMALL, 4).keep)
    assert kept != ids_of(columns, draw_sample(columns, SMALL, 5).keep)


def test_smaller_samples_of_one_seed_are_parts_of_larger_ones():
    columns = sample_columns()
    half = PublishedSplit(tuple(c._replace(instances=c.instances // 2) for c in SMALL.classes), 500)
    fewer, more = draw_sample(columns, half, 4).keep, draw_sample(columns, SMALL, 4).keep
    assert fewer.sum() < more.sum() and (more | ~fewer).all()


def test_sample_is_uniform():
    """20 annotations of which 5 stay: over 2,000 seeds each stays 500 times, give or take 5 deviations."""
    columns = columns_of(np.stack([np.zeros(20, int), np.arange(20)], axis=1), np.arange(20))
    split = PublishedSplit((PublishedClass(1, "person", 5, 5),), 5)
    times = sum(draw_sample(columns, split, seed).keep.astype(int) for seed in range(2_000))
    assert times.sum() == 10_000
    assert np.abs(times - 500).max() < 5 * np.sqrt(2_000 * 0.25 * 0.75)


def test_shortage_names_every_class():
    columns = sample_columns(surplus=-2)
    with pytest.raises(
        MismatchedInput, match="4 classes: bicycle 418 of 420, airplane 398 of 400"
    ) as refused:
        draw_sample(columns, SMALL, 0)
    assert "fire hydrant 3 of 5" in refused.value.message and "instances_train2017" in refused.value.hint
    assert refused.value.exit_code == 3


# the canonical split


@pytest.mark.parametrize("seed", [0, 7])
def test_listed_selection_equals_the_slow_one(small, seed):
    published, membership, columns = small
    selection = select_listed(columns, membership, published, seed)
    assert ids_of(columns, selection.keep) == slow_selection(columns, membership, seed)


def test_listed_selection_meets_every_published_number(small):
    published, membership, columns = small
    selection = select_listed(columns, membership, published, 1)
    made = report(columns, selection, published, canonical=True)
    assert made["differences"] == [] and made["images"] == 504
    assert made["annotations"] == published.instances.sum()
    assert made["bins"] == [1, 1, 2, 1]
    assert (
        made["crowds"]
        == (columns.is_crowd & selection.keep).sum()
        == sum(r["crowds"] for r in made["classes"])
    )


def test_drawn_is_what_the_lists_leave_open(small):
    """Never a class kept whole nor an image with one box of the class; and everything that seeds change."""
    published, membership, columns = small
    first = select_listed(columns, membership, published, 0)
    boxes: dict[tuple[int, int], int] = {}
    for pair in zip(columns.labels.tolist(), columns.images.tolist(), strict=True):
        boxes[pair] = boxes.get(pair, 0) + 1
    for row in np.flatnonzero(first.drawn):
        label, image = int(columns.labels[row]), int(columns.images[row])
        assert label != 0 and boxes[label, image] > 1
    assert not (first.drawn & ~first.keep).any()
    always = first.keep.copy()
    for seed in range(1, 40):
        always &= select_listed(columns, membership, published, seed).keep
    assert not (first.keep & ~first.drawn & ~always).any()
    assert (first.drawn & ~always).sum() > 100


def test_a_class_without_surplus_is_settled():
    columns = columns_of(np.array([[0, 0], [0, 0], [0, 1]]), np.array([4, 9]))
    split = PublishedSplit((PublishedClass(2, "bicycle", 3, 2),), 2)
    lists = Membership(Path("l"), np.array([0, 0]), np.array([9, 4]), np.array([3]))
    selection = select_listed(columns, lists, split, 0)
    assert selection.keep.all() and not selection.drawn.any()


def test_a_whole_class_with_more_than_published_is_kept_and_reported(small):
    published, membership, columns = small
    fewer = (published.classes[0]._replace(instances=7_999 + 1 - 100), *published.classes[1:])
    less = PublishedSplit(fewer, published.num_images)
    selection = select_listed(columns, membership, less, 0)
    assert selection.keep[columns.labels == 0].all()
    found = report(columns, selection, less, canonical=True)["differences"]
    assert {"subject": "person", "quantity": "instances", "found": 8_000, "expected": 7_900} in found


def test_listed_images_that_the_annotations_lack_are_counted(small):
    published, membership, columns = small
    ids = membership.image_ids.copy()
    ids[:12] = 10_000 + np.arange(12)
    other = dataclasses.replace(membership, image_ids=ids)
    with pytest.raises(MismatchedInput, match=r"lacks 12 images .* 10009 and 2 more"):
        select_listed(columns, other, published, 0)


def test_a_listed_image_without_the_class_is_named(small):
    published, membership, columns = small
    row = int(np.flatnonzero(membership.labels == 3)[0])
    image = np.flatnonzero(columns.image_ids == membership.image_ids[row])[0]
    away = (columns.labels == 3) & (columns.images == image)
    labels = np.where(away, 0, columns.labels)
    with pytest.raises(MismatchedInput, match=f"bus in {membership.image_ids[row]}"):
        select_listed(dataclasses.replace(columns, labels=labels), membership, published, 0)


def test_too_few_boxes_in_the_listed_images(small):
    published, membership, columns = small
    instances = membership.instances.copy()
    instances[[1, 3]] += 8  # the file holds 7 more than wanted
    with pytest.raises(MismatchedInput, match="2 classes: bicycle 427 of 428, bus 67 of 68"):
        select_listed(columns, dataclasses.replace(membership, instances=instances), published, 0)


@pytest.fixture(scope="module")
def canonical():
    """The real lists, and a file of the real size that holds more than stays."""
    published = COCO_LT
    membership = read_membership(LISTS, published)
    listed_ids = np.array(json.loads((DATA / "coco_lt_image_ids.json").read_text())["image_ids"])
    image_ids = np.concatenate([listed_ids, 600_000 + np.arange(len(listed_ids) // 9)])
    lists = [membership.image_ids[membership.labels == label] for label in range(80)]
    same, columns = lists_and_columns(published, lists, image_ids)
    assert np.array_equal(same.instances, membership.instances)
    return membership, columns


@needs_data
def test_the_real_lists_give_the_published_split(canonical):
    membership, columns = canonical
    selection = select_listed(columns, membership, COCO_LT, 0)
    made = report(columns, selection, COCO_LT, canonical=True)
    assert made["differences"] == []
    assert (made["images"], made["annotations"], made["bins"]) == (99_411, 666_493, [4, 24, 32, 20])
    kept_images = np.unique(columns.image_ids[columns.images[selection.keep]])
    theirs = json.loads((DATA / "coco_lt_image_ids.json").read_text())["image_ids"]
    assert kept_images.tolist() == sorted(theirs)


@needs_data
@pytest.mark.parametrize("name", ["coco_lt_image_ids.json", "coco_lt_category_counts.json"])
def test_the_other_two_files_are_no_membership(name):
    with pytest.raises(InputError, match="does not list image ids per class") as refused:
        read_membership(DATA / name, COCO_LT)
    assert "coco_lt_tail_class_image_ids.json" in refused.value.hint


def membership_file(folder: Path, **changes: object) -> Path:
    classes = {
        "bicycle": {"coco_category_id": 2, "instance_count": 420, "image_ids": [1, 2]},
        "airplane": {"coco_category_id": 5, "instance_count": 400, "image_ids": [2]},
        "bus": {"coco_category_id": 6, "instance_count": 60, "image_ids": [3]},
        "fire_hydrant": {"coco_category_id": 11, "instance_count": 5, "image_ids": [1]},
        **changes,
    }
    path = folder / "lists.json"
    path.write_text(json.dumps({"classes": {k: v for k, v in classes.items() if v is not None}}))
    return path


def test_membership_is_read_by_category_id(tmp_path):
    found = read_membership(membership_file(tmp_path), SMALL)
    assert found.instances.tolist() == [-1, 420, 400, 60, 5]
    assert found.labels.tolist() == [1, 1, 2, 3, 4] and found.image_ids.tolist() == [1, 2, 2, 3, 1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cup": {"coco_category_id": 47, "instance_count": 1, "image_ids": [1]}}, MismatchedInput, "cup"),
        ({"bus": None}, MismatchedInput, "lacks 1 classes of COCO-LT: bus"),
        ({"bus": {"coco_category_id": 6, "instance_count": 9, "image_ids": [1, 1]}}, InputError, "bus twice"),
        (
            {"bus": {"coco_category_id": 6, "instance_count": 1, "image_ids": [1, 2]}},
            InputError,
            "2 images of bus",
        ),
        ({"coach": {"coco_category_id": 6, "instance_count": 1, "image_ids": [1]}}, InputError, "two names"),
        (
            {"bus": {"coco_category_id": 6, "instance_count": 1, "image_ids": ["1"]}},
            InputError,
            r"image_ids\[0\]",
        ),
        (
            {"bus": {"coco_category_id": 6, "instance_count": 1, "image_ids": [2**70]}},
            InputError,
            "per class",
        ),
    ],
)
def test_membership_that_contradicts_itself_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        read_membership(membership_file(tmp_path, **changes), SMALL)


def test_membership_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match="nowhere"):
        read_membership(tmp_path / "nowhere.json", SMALL)
    with pytest.raises(InputError, match="cannot be read"):
        read_membership(tmp_path, SMALL)


# json in and out


def write_coco(path: Path, columns: Columns, published: PublishedSplit) -> Path:
    """A COCO json with an odd order of keys, and spaces, unicode and extra fields that must survive."""
    images = [
        f'{{ "file_name": "b\u00fccher/{i:012d}.jpg", "id" : {i}, "width": 640, "height":480}}'
        for i in columns.image_ids
    ]
    rows = zip(
        columns.annotation_ids, columns.images, columns.labels, columns.is_crowd.astype(int), strict=True
    )
    records = [
        f'{{"segmentation": [[1.50, 2,3.0,4e0, 5,6]], "area": 702.1057499999998, "iscrowd": {crowd}, '
        f'"image_id": {columns.image_ids[image]}, "bbox": [1.0, 2, 30, 40.50], '
        f'"category_id": {published.classes[label].category_id}, "id": {i}, "x": {{"id": [-1]}}}}'
        for i, image, label, crowd in rows
    ]
    categories = [{"supercategory": "s", "id": c.category_id, "name": c.name} for c in published.classes]
    path.write_text(
        '{"info": {"year": 2017, "id": [1, {"images": []}]}, "annotations": [\n'
        + ",\n".join(records)
        + '],\n "licenses": [{"id": 1}], "images":[ '
        + " , ".join(images)
        + f'], "categories": {json.dumps(categories)}, "type": "instances"}}\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def coco(small, tmp_path_factory):
    published, _, columns = small
    return write_coco(tmp_path_factory.mktemp("coco") / "instances_train2017.json", columns, published)


def test_columns_are_those_of_the_file(small, coco):
    published, _, columns = small
    found = read_columns(coco, published)
    for field in dataclasses.fields(Columns):
        if field.name != "path":
            assert np.array_equal(getattr(found, field.name), getattr(columns, field.name)), field.name


def kept_text(source: Path, columns: Columns, selection: Selection) -> dict[str, object]:
    """The split, the slow way."""
    content = json.loads(source.read_text(encoding="utf-8"))
    content["annotations"] = [r for r, k in zip(content["annotations"], selection.keep, strict=True) if k]
    used = {r["image_id"] for r in content["annotations"]}
    content["images"] = [r for r in content["images"] if r["id"] in used]
    return content


@pytest.mark.parametrize("window", [2**23, 4096])
def test_written_split_is_the_file_without_the_rest(small, coco, tmp_path, monkeypatch, window):
    """Whether it is read in one window or in hundreds; and each record is the same text as before."""
    monkeypatch.setattr(json_records, "WINDOW", window)
    published, membership, _ = small
    columns = read_columns(coco, published)
    selection = select_listed(columns, membership, published, 0)
    write_split(columns, selection, tmp_path / "split.json")
    text = (tmp_path / "split.json").read_text(encoding="utf-8")
    expected = kept_text(coco, columns, selection)
    assert json.loads(text) == expected and list(json.loads(text)) == list(expected)
    assert (
        text.count('"segmentation": [[1.50, 2,3.0,4e0, 5,6]], "area": 702.1057499999998')
        == selection.keep.sum()
    )
    assert text.count('.jpg", "id" : ') == 504


@pytest.mark.parametrize("kept", [[0], [4], [0, 4], [1, 2]])
def test_first_and_last_records_may_go(tmp_path, kept):
    split = PublishedSplit((PublishedClass(1, "person", 1, 1),), 1)
    columns = columns_of(np.stack([np.zeros(5, int), np.arange(5)], axis=1), np.arange(10, 15))
    source = write_coco(tmp_path / "a.json", columns, split)
    columns = read_columns(source, split)
    keep = np.isin(np.arange(5), kept)
    write_split(columns, Selection(keep, keep), tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == kept_text(source, columns, Selection(keep, keep))


BROKEN = {
    "other categories": (
        {"categories": [{"id": 1, "name": "person"}]},
        MismatchedInput,
        "2 is missing, not bicycle",
    ),
    "another name": (
        {"categories": [{"id": c.category_id, "name": c.name.upper()} for c in SMALL.classes]},
        MismatchedInput,
        "1 is PERSON, not person",
    ),
    "repeated image": ({"images": [{"id": 3}, {"id": 3}]}, InputError, "image ids appear more than once: 3"),
    "unknown image": (
        {"annotations": [{"id": 8, "image_id": 9, "category_id": 1}]},
        InputError,
        r"unknown image_id: 8",
    ),
    "unknown category": (
        {"annotations": [{"id": 8, "image_id": 3, "category_id": 3}]},
        InputError,
        r"unknown category_id: 8",
    ),
    "no annotation": ({"annotations": []}, InputError, "has no annotation"),
    "no image": ({"images": []}, InputError, "has no image"),
    "a text id": ({"images": [{"id": "3"}]}, InputError, "images"),
    "no list": ({"images": {}}, InputError, "no list `images`"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations_are_refused(tmp_path, case):
    changes, error, message = BROKEN[case]
    content = {
        "images": [{"id": 3}],
        "annotations": [{"id": 8, "image_id": 3, "category_id": 1}],
        "categories": [{"id": c.category_id, "name": c.name} for c in SMALL.classes],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert len(read_columns(path, SMALL).labels) == 1
    path.write_text(json.dumps({**content, **changes}))
    with pytest.raises(error, match=message):
        read_columns(path, SMALL)


# the command


@pytest.fixture
def ordered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def order(**options: object):
        from stages.common import Order
        from stages.params import Params

        given = {"params": Params({}, 3), "out": tmp_path / "out", "as_json": True, **options}
        return Order(**given)

    return order


@pytest.fixture
def lists(small, tmp_path):
    published, membership, _ = small
    classes = {
        c.name: {
            "coco_category_id": c.category_id,
            "instance_count": c.instances,
            "image_ids": membership.image_ids[membership.labels == label].tolist(),
        }
        for label, c in enumerate(published.classes)
        if membership.instances[label] >= 0
    }
    path = tmp_path / "lists.json"
    path.write_text(json.dumps({"source": "a test", "classes": classes}))
    return path


def test_command_writes_its_contract_and_says_all_is_as_published(small, coco, lists, ordered, capfd):
    from stages.coco_lt import run

    run(ordered(), coco, lists, small[0])
    out, err = capfd.readouterr()
    answer = json.loads(out)
    folder = Path(answer["out"])
    assert {p.name for p in folder.iterdir()} == {
        "train_coco_lt.json",
        "manifest.json",
        "figures",
        "timing.json",
    }
    assert (folder / "figures/counts.png").read_bytes()[:4] == b"\x89PNG"
    assert answer["differences"] == [] and "images, instances and bins of every class are as published" in err
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["stage"] == "coco-lt" and manifest["seed"] == 3
    assert manifest["inputs"] == {"annotations": file_digest(coco), "membership": file_digest(lists)}
    split = json.loads((folder / "train_coco_lt.json").read_text(encoding="utf-8"))
    assert len(split["annotations"]) == answer["annotations"] == 8_885
    assert {r["id"] for r in split["images"]} == {r["image_id"] for r in split["annotations"]}
    run(ordered(), coco, lists, small[0])  # up to date: the same answer
    again, talk = capfd.readouterr()
    assert json.loads(again) == answer and "up to date" in talk


def test_one_seed_is_one_file_and_another_seed_another(small, coco, lists, ordered, capfd):
    from stages.coco_lt import run
    from stages.params import Params

    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(ordered(out=Path(name), params=Params({}, seed)), coco, None, small[0])
        files = [Path(name, f) for f in ("train_coco_lt.json", "figures/counts.png", "manifest.json")]
        digests.append([file_digest(f) for f in files])
    assert digests[0] == digests[1] and digests[0][0] != digests[2][0]


def test_a_sample_is_not_held_to_the_published_images(small, coco, ordered, capfd):
    from stages.coco_lt import run

    run(ordered(), coco, None, small[0])
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["differences"] == [] and answer["annotations"] == 8_885
    assert any(r["images"] != r["published_images"] for r in answer["classes"])
    assert "a sample has its own images; the published split has 504" in err
    assert answer["drawn"] == 885  # all but the class that has no more than published


def test_differences_are_a_table_on_stderr(small, coco, lists, ordered, capfd):
    from stages.coco_lt import run

    person, bicycle, *others = small[0].classes
    other = PublishedSplit((person, bicycle._replace(instances=380, images=249), *others), 504)
    run(ordered(), coco, lists, other)
    out, err = capfd.readouterr()
    assert "warning: 4 numbers are not as published" in err
    rows = [line.split("\u2502")[1:-1] for line in err.splitlines() if "\u2502" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["bicycle", "instances", "420", "380"],
        ["bicycle", "images", "250", "249"],
        ["bin 2", "classes", "1", "2"],
        ["bin 3", "classes", "2", "1"],
    ]
    assert len(json.loads(out)["differences"]) == 4


def test_cli_on_annotations_that_are_not_train2017(coco, lists, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = cli("coco-lt", "--annotations", coco)
    assert answer.code == 3 and "other categories" in answer.err and "instances_train2017.json" in answer.err
    assert not (tmp_path / "artifacts/coco-lt/default").exists()
    assert cli("coco-lt", "--annotations", "nowhere.json", "--out", "o").code == 3
    assert cli("coco-lt", "--annotations", coco, "--membership", "nowhere.json", "--out", "o").code == 3
    assert cli("coco-lt", "--annotations", coco, "--membership", coco, "--out", "o").code == 3
    assert cli("coco-lt").code == 2


def test_cli_dry_run_and_shortage(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = columns_of(np.array([[0, 0]]), np.array([9]))
    path = write_coco(tmp_path / "a.json", one, COCO_LT)
    answer = cli("coco-lt", "--annotations", path, "--dry-run", "--seed", "5")
    planned = json.loads(answer.out)
    assert (answer.code, planned["seed"], planned["up_to_date"]) == (0, 5, False)
    assert planned["out"] == "artifacts/coco-lt/default" and not Path("artifacts").exists()
    answer = cli("coco-lt", "--annotations", path, "--out", "o")
    assert answer.code == 3 and "80 classes: person 1 of 262465, bicycle 0 of 3530" in answer.err
    assert "toothbrush 0 of 15" in answer.err and not Path("o").exists()
