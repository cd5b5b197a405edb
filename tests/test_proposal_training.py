"""What the class-agnostic detector is trained on: seen objects, images with one, once per epoch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.detectors.inference import detect
from pipeline.engine.distributed import Process
from pipeline.engine.loop import Trainer
from pipeline.errors import InputError, UsageError
from pipeline.proposals.settings import ProposalsSettings
from pipeline.proposals.training import ProposalsJob, ProposalsPlan, build_trainer

CPU = Process(0, 1, torch.device("cpu"))
WIDTH, HEIGHT = 96, 64
CATEGORIES = {1: "cat", 2: "zebra", 3: "tv"}  # cat and tv are PASCAL VOC's
# image -> (category, xywh, crowd)
RECORDS: dict[int, list[tuple[int, list[int], int]]] = {
    11: [(1, [10, 10, 20, 30], 0), (2, [50, 20, 30, 30], 0)],
    12: [(2, [5, 5, 40, 40], 0)],
    13: [],
    14: [(3, [30, 8, 16, 40], 0), (1, [0, 0, 96, 64], 1)],
    15: [(1, [200, 10, 20, 20], 0), (2, [8, 8, 30, 20], 0)],  # its cat lies outside
    16: [(3, [60, 30, 36, 34], 0), (3, [10, 6, 24, 24], 0)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    records = [
        {"image_id": i, "category_id": c, "bbox": box, "area": 1, "iscrowd": crowd}
        for i, found in RECORDS.items()
        for c, box, crowd in found
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in RECORDS],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": [{"id": k} | record for k, record in enumerate(records)],
    }
    (tmp_path / "split.json").write_text(json.dumps(content))
    for i in RECORDS:
        pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def job(folder: Path, **changes: Any) -> ProposalsJob:
    tiny = {"depth": 18, "stem_channels": 16, "fpn_channels": 32, "fc_channels": 32, "anchor_scale": 4.0}
    sizes = {"short_side": 64, "long_side": 96, "epochs": 2, "milestones": (), "batch_size": 2, "keep": 10}
    settings = ProposalsSettings(rpn_max=40, **(tiny | sizes | changes))  # type: ignore[arg-type]
    return ProposalsJob(folder / "split.json", folder, folder / "work", 3, settings)


def trainer_of(plan: ProposalsPlan) -> Trainer:
    return build_trainer(plan, CPU, 0, [])


def targets_by_size(trainer: Trainer) -> list[tuple[int, int]]:
    """Sorted (width, height) of every target box of a whole run; flips leave them alone."""
    found = []
    for samples in trainer.batches(0):
        for sample in samples:
            assert (sample.target.labels == 0).all()
            assert (sample.target.boxes[:, 2:] > sample.target.boxes[:, :2]).all()
            sizes = sample.target.boxes[:, 2:] - sample.target.boxes[:, :2]
            found += [(round(float(w)), round(float(h))) for w, h in sizes]
    return sorted(found)


def wanted_sizes(*categories: int) -> list[tuple[int, int]]:
    """Of two epochs."""
    kept = [
        (box[2], box[3])
        for records in RECORDS.values()
        for category, box, crowd in records
        if category in categories and not crowd and box[0] < WIDTH
    ]
    return sorted(2 * kept)


def test_all_objects_of_all_images_that_have_one(folder: Path) -> None:
    plan = ProposalsPlan(job(folder, batch_size=1))
    drawn = [plan.sampler.steps(e).ravel().tolist() for e in range(2)]
    assert [sorted(d) for d in drawn] == [[0, 1, 3, 4, 5]] * 2  # the image at position 2 is empty
    assert drawn[0] != drawn[1]
    assert plan.sampler.lengths().tolist() == [5, 5] and plan.schedule.total == 10
    assert targets_by_size(trainer_of(plan)) == wanted_sizes(1, 2, 3)


@pytest.mark.parametrize("by_file", [False, True])
def test_unseen_objects_are_no_targets(folder: Path, by_file: bool) -> None:
    (folder / "names.txt").write_text("tv\ncat\n")
    seen = str(folder / "names.txt") if by_file else "voc"
    plan = ProposalsPlan(job(folder, seen=seen, batch_size=1))
    for epoch in range(2):  # 12 and 13 have no seen object, 15 has one outside the image only
        assert sorted(plan.annotations.image_ids[plan.sampler.steps(epoch).ravel()]) == [11, 14, 16]
    sizes = targets_by_size(trainer_of(plan))
    assert sizes == wanted_sizes(1, 3) and (40, 40) not in sizes and (30, 30) not in sizes
    assert len(plan.annotations.image_ids) == 6 and plan.annotations.trainable.sum() == 7  # for generation


def test_unseen_objects_do_not_even_count_as_ignored(folder: Path) -> None:
    """Unseen boxes leave no trace in the losses: the same json without them trains to the same weights."""
    content = json.loads((folder / "split.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 2]
    (folder / "bare.json").write_text(json.dumps(content))
    states = []
    for name, seen in (("split.json", "voc"), ("bare.json", "all")):
        made = job(folder, seen=seen, epochs=1, batch_size=3)
        made = ProposalsJob(folder / name, folder, made.work, made.seed, made.proposals)
        trainer = trainer_of(ProposalsPlan(made))
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("source", ["oln", "rpn"])
def test_one_epoch_and_boxes_for_every_image(folder: Path, source: str) -> None:
    plan = ProposalsPlan(job(folder, source=source, seen="voc", epochs=1, batch_size=2))
    trainer = trainer_of(plan)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.step == 1
    # an FPN level or a layer may get a zero gradient of one batch, but every part of the detector moves
    moved = {n.split(".")[2] for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"backbone", "neck", "rpn_head", "roi_head"}
    model = trainer.model.model.detector.eval()
    found = list(detect(model, plan.annotations, folder, (96, 64), torch.device("cpu"), batch=4))
    assert [f.image for f in found] == list(range(6))
    for one in found:
        assert one.boxes.shape == (len(one.scores), 4) and 0 < len(one.scores) <= 10
        assert (one.boxes >= 0).all() and (one.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()


def test_the_source_decides_the_network(folder: Path) -> None:
    heads = [ProposalsPlan(job(folder, source=s)).model_config()["rpn_head"]["type"] for s in ("oln", "rpn")]
    assert heads == ["OLNRPNHead", "OneAnchorRPNHead"]


def test_gradients_are_cut_as_set(folder: Path) -> None:
    assert trainer_of(ProposalsPlan(job(folder))).clip_norm == 35.0
    assert trainer_of(ProposalsPlan(job(folder, clip_norm=None))).clip_norm is None


def test_nothing_to_train_on(folder: Path) -> None:
    content = json.loads((folder / "split.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 2]
    (folder / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"no box to train on \(proposals.seen: voc\)"):
        _ = ProposalsPlan(job(folder, seen="voc")).sampler
    with pytest.raises(UsageError, match="3 draws does not fill one batch of 4"):
        ProposalsPlan(job(folder, batch_size=4)).sampler.lengths()
