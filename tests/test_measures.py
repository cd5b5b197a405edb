"""What a step measures beside its losses, against slow counts; the figures and the sentence made of it."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from toy_detector import tiny_settings, toy_batch, toy_model

from pipeline.data.annotations import read_annotations
from pipeline.pretrain.key_queue import KeyQueue
from pipeline.pretrain.measures import RareShare, feature_norms, queue_age, similarities
from stages.history import MEASURES, loss_figure, measures_figure, summary


def unit(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=-1, keepdim=True)


def test_similarities_equal_a_loop_over_the_filled_slots():
    query, key, old, queue = unit(4, 6), unit(4, 6, seed=1), unit(5, 6, seed=2), KeyQueue(8, 6)
    weights = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)
    empty = similarities(query, key, queue, weights)
    assert empty["negative"] == 0.0
    queue.enqueue(old, torch.arange(5), torch.tensor([True, True, False, True, True]))
    found = similarities(query, key, queue, weights)
    kept = [0, 1, 3, 4]
    positive = sum(float(w * (q @ k)) for w, q, k in zip(weights, query, key, strict=True))
    negative = sum(
        float(w * np.mean([float(q @ old[i]) for i in kept])) for w, q in zip(weights, query, strict=True)
    )
    assert float(found["positive"]) == pytest.approx(positive)
    assert float(found["negative"]) == pytest.approx(negative, abs=1e-6)


def test_norms_are_mean_lengths_of_the_vectors_of_each_level():
    levels = [torch.randn(2, 3, 64 // s, 96 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8)]
    levels += [torch.zeros(2, 3, 4, 6), torch.full((2, 3, 2, 3), 2.0)]
    found = feature_norms(levels)
    assert list(found) == ["norm_c2", "norm_c3", "norm_c4", "norm_c5"]
    for name, level in zip(found, levels, strict=True):
        vectors = level.permute(0, 2, 3, 1).reshape(-1, 3)
        slow = np.mean([math.sqrt(sum(x * x for x in vector)) for vector in vectors.tolist()])
        assert found[name].item() == pytest.approx(slow, rel=1e-5)
    low = feature_norms([level.bfloat16() for level in levels])
    assert low["norm_c5"].dtype == torch.float32 and low["norm_c5"] == pytest.approx(2 * 3**0.5, rel=1e-3)


@pytest.mark.parametrize(("size", "per_step"), [(8, 4), (10, 4), (3, 5), (1, 1), (64, 24)])
def test_age_equals_a_queue_that_remembers_when(size, per_step):
    slots = []
    for step in range(12):
        expected = np.mean([step - born for born in slots]) if slots else 0.0
        assert queue_age(step, size, per_step) == pytest.approx(expected)
        slots = [*slots, *[step] * per_step][-size:]


class TwoEpochs:
    def steps(self, epoch):
        return [np.array([[0, 1], [2, 0]]), np.array([[1, 1]])][epoch]


def test_share_of_rare_boxes_is_that_of_the_images_drawn(tmp_path):
    boxes = [(0, 1), (0, 1), (0, 2), (1, 2), (1, 3)]  # image, category
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 50, "height": 50} for i in range(3)],
        "categories": [{"id": c, "name": str(c)} for c in (1, 2, 3)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": [1, 1, 9, 9], "iscrowd": 0, "area": 81}
            for n, (i, c) in enumerate(boxes)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    share = RareShare(read_annotations(tmp_path / "a.json"), ["f", "r", "r"], TwoEpochs(), (2, 1))
    found = [share.of_step(step) for step in (0, 1, 2, 0)]
    assert found == pytest.approx([3 / 5, 1 / 3, 4 / 4, 3 / 5])


def test_a_step_measures_what_it_did_and_only_for_what_is_on():
    model = toy_model()
    for seed in (0, 1):
        losses = model(toy_batch(seed))
        model.after_step()
    names = {f"{c}_{s}" for c in ("hcl", "lcl") for s in ("positive", "negative")}
    assert names | {"norm_c2", "norm_c3", "norm_c4", "norm_c5"} <= set(losses)
    assert all(-1 <= losses[name].item() <= 1 for name in names)
    assert not any(losses[name].requires_grad for name in names | {"norm_c5"})
    bare = toy_model(tiny_settings(terms=("lcl", "det")))(toy_batch(0))
    assert set(bare) & names == {"lcl_positive", "lcl_negative"}


@pytest.fixture
def history(tmp_path):
    rows = [
        {
            "step": step,
            "epoch": step // 20,
            "images": 4 * step,
            "lr": 0.1,
            "alpha": step // 20 / 2,
            "loss": 4.0 - step / 20,
            "det": 2.0,
            "grad_norm": 1.0,
            "rare_share": 0.1 + step / 400,
            "hcl_positive": 0.5 + step / 100,
            "hcl_negative": 0.25,
            "norm_c5": 2.0 + step / 10,
        }
        for step in range(40)
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "history.jsonl"


def test_the_sentence_compares_the_first_tenth_with_the_last(history):
    said = summary(history)
    assert "loss 3.92 to 2.12" in said and "det 2 to 2" in said and "40 steps" in said
    assert "margin of images 0.27 to 0.62" in said and "proposals" not in said
    assert "rare boxes 10.4% to 19.4%" in said and "C5 as long times 2.67" in said


def test_figures_show_losses_apart_from_measures(history, tmp_path):
    loss_figure(history, tmp_path / "losses.png")
    assert measures_figure(history, tmp_path / "measures.png")
    with Image.open(tmp_path / "losses.png") as losses, Image.open(tmp_path / "measures.png") as measures:
        assert losses.width == 800  # loss and det
        assert (measures.width, measures.height) == (1200, 560)  # alpha, rare, cosine, length
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"step": 0, "loss": 1.0, "alpha": 0.5}\n')
    assert not measures_figure(plain, tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    assert len({name for names in MEASURES.values() for name in names}) == 12
