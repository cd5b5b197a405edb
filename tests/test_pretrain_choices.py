"""Alternatives where the paper is silent: each does what its line in the settings says, and no more."""

import dataclasses

import numpy as np
import pytest
import torch
from test_pretrain_views import VIEWS, dataset, draws
from test_pretrain_views import split as split  # the fixture
from toy_detector import tiny_settings, toy_batch, toy_model

from pipeline.data.photometric_draws import PhotometricSettings, draw_photometric
from pipeline.errors import SettingsError
from pipeline.pretrain.mask_draws import draw_mask
from pipeline.pretrain.reconstruction import semantic_loss
from pipeline.pretrain.settings import PretrainSettings, ViewSettings
from pipeline.pretrain.views import query_photometric
from pipeline.settings import build

BOXES = [np.float32([10, 20, 50, 100]), np.float32([0, 0, 64, 60]), np.float32([3.5, 2.5, 130.5, 30.5])]


@pytest.mark.parametrize("box", BOXES)
def test_a_square_mask_is_as_square_as_the_box_allows(box):
    random, area = np.random.default_rng(0), float((box[2] - box[0]) * (box[3] - box[1]))
    for _ in range(50):
        x1, y1, x2, y2 = draw_mask(box, 0.25, random, "square")
        assert x1 >= box[0] and y1 >= box[1] and x2 <= box[2] and y2 <= box[3]
        assert 0.23 <= (x2 - x1) * (y2 - y1) / area <= 0.27
        side = min(area**0.5 / 2, box[2] - box[0] - 1, box[3] - box[1] - 1)
        assert min(x2 - x1, y2 - y1) >= side - 1


def test_a_proposal_mask_hides_a_quarter_of_the_boxes_whole():
    random = np.random.default_rng(0)
    masks = np.array([draw_mask(BOXES[0], 0.25, random, "proposal") for _ in range(2000)])
    areas = (masks[:, 2] - masks[:, 0]) * (masks[:, 3] - masks[:, 1])
    assert set(areas.tolist()) == {0, 40 * 80}
    assert (areas > 0).mean() == pytest.approx(0.25, abs=0.03)


def test_the_best_boxes_are_the_first_that_survive(split):
    """`uniform` draws the same survivors in another order; with room for all, the sets are equal."""
    contrast = {"boxes": 40, "min_side": 6.0}
    every, best = (
        dataset(split, contrast={**contrast, "choose": choose, "boxes": count})
        for choose, count in (("uniform", 40), ("best", 3))
    )
    different = 0
    for draw in draws(12):
        survivors, chosen = every[draw].boxes, best[draw].boxes
        proposals = best.proposals.of_image(11 + draw.image)[0]
        ranked = survivors.query[survivors.valid]
        place = {tuple(row): i for i, row in enumerate(in_order(best, draw, proposals))}
        expected = sorted(map(tuple, ranked), key=lambda row: place[row])[: int(chosen.valid.sum())]
        assert [tuple(row) for row in chosen.query[chosen.valid]] == expected
        different += [tuple(row) for row in ranked[:3]] != expected
    assert different > 6


def in_order(found, draw, proposals):
    """All proposals in the query view, best first."""
    query = found._geometry(
        tuple(int(s) for s in found.annotations.sizes_wh[draw.image]), proposals, draw, "view_query"
    )
    return query.map_boxes(proposals)[0]


def test_colours_of_the_query_view():
    strong = PhotometricSettings(solarize=(0.3, 0.2))
    views = ViewSettings(photometric=strong)
    assert query_photometric(views) == strong
    mild = query_photometric(dataclasses.replace(views, query_colours="mild"))
    assert mild.strength == (0.2, 0.2, 0.2, 0.05) and mild.jitter == strong.jitter
    none = query_photometric(dataclasses.replace(views, query_colours="none"))
    for seed in range(50):
        drawn = draw_photometric(mild, False, np.random.default_rng(seed))
        assert drawn.blur_sigma is None and not drawn.grayscale and not drawn.solarize
        assert draw_photometric(none, False, np.random.default_rng(seed)) == type(drawn)()


def test_mild_colours_leave_the_key_view_as_it_is(split):
    views = dataclasses.replace(VIEWS, photometric=PhotometricSettings())
    samples = []
    for colours in ("same", "none"):
        found = dataset(split)
        found.settings = dataclasses.replace(
            found.settings, views=dataclasses.replace(views, query_colours=colours)
        )
        samples.append([found[draw].photometric for draw in draws(12)])
    assert [key for _, key in samples[0]] == [key for _, key in samples[1]]
    assert all(query == type(query)() for query, _ in samples[1])
    assert any(query != type(query)() for query, _ in samples[0])


def test_projectors_without_batch_norm_learn_and_enqueue():
    model = toy_model(tiny_settings(contrast={"norm": "none"}))
    assert not [name for name in model.state_dict() if "running" in name]
    for seed in (0, 1):
        losses = model(toy_batch(seed))
        model.zero_grad()
        losses["loss"].backward()
        model.after_step()
    assert losses["hcl"] > 0 and losses["lcl"] > 0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    projector = model.holistic.projector
    rows, valid = torch.randn(5, 24), torch.ones(5, dtype=torch.bool)
    by_hand = projector.last(torch.relu(projector.first(rows)))
    assert torch.equal(projector(rows, valid), by_hand)
    torch.testing.assert_close(projector(rows[:1], valid[:1]), by_hand[:1])  # no row depends on another


@pytest.mark.parametrize("levels", [("c5",), ("c2", "c4"), ("c2", "c3", "c4", "c5")])
def test_levels_of_semantic_reconstruction_add_up(levels):
    random = torch.Generator().manual_seed(0)
    maps = [
        [torch.randn(2, 3, 16 >> i, 24 >> i, generator=random, dtype=torch.float64) for i in range(4)]
        for _ in range(2)
    ]
    sizes = torch.tensor([[96.0, 64], [50, 40]])
    found = semantic_loss(*maps, sizes, True, levels)
    alone = [semantic_loss(*maps, sizes, True, (level,)) for level in levels]
    torch.testing.assert_close(found, torch.stack(alone).sum())
    model = toy_model(tiny_settings(terms=("sr",), reconstruction={"levels": levels}))
    every = toy_model(tiny_settings(terms=("sr",)))
    assert (model(toy_batch(0))["sr"] < every(toy_batch(0))["sr"]) == (len(levels) < 4)


@pytest.mark.parametrize("levels", [[], ["c1"]])
def test_levels_that_are_none(levels):
    with pytest.raises(SettingsError, match=r"pretrain.reconstruction.levels"):
        build(PretrainSettings, {"reconstruction": {"levels": levels}}, "pretrain")
