"""Samples that follow the image's key and nothing else.

N = 200 priors: the first 40 match the one object, the next 140 are background, the last 20 are ignored.
"""

import copy
from typing import Any

import pytest
import torch

from pipeline.detectors.sampling import KEY, KeyedRandomSampler, set_draw_key

# isort: split
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

POSITIVE, NEGATIVE = range(0, 40), range(40, 180)
SETTINGS: dict[str, Any] = {"num": 32, "pos_fraction": 0.25, "add_gt_as_proposals": False}


def truth(key: int | None) -> InstanceData:
    made = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([1]))
    if key is not None:
        set_draw_key(made, key)
    return made


def assigned() -> AssignResult:
    gt_inds = torch.tensor([1] * 40 + [0] * 140 + [-1] * 20)
    labels = gt_inds.clamp(min=0)
    return AssignResult(num_gts=1, gt_inds=gt_inds, max_overlaps=torch.zeros(200), labels=labels)


def choice(sampler: Any, key: int | None) -> tuple[list[int], list[int]]:
    priors = InstanceData(priors=torch.rand(200, 4, generator=torch.Generator().manual_seed(0)))
    found = sampler.sample(assigned(), priors, truth(key))
    return found.pos_inds.tolist(), found.neg_inds.tolist()


def keyed(**changes: Any) -> KeyedRandomSampler:
    return TASK_UTILS.build({"type": "KeyedRandomSampler", **SETTINGS, **changes})


def test_the_same_key_is_the_same_choice_whatever_the_global_generator() -> None:
    sampler = keyed()
    torch.manual_seed(1)
    first = choice(sampler, key=7)
    torch.manual_seed(2)
    assert choice(sampler, key=7) == first
    assert choice(keyed(), key=7) == first


def test_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    choice(keyed(), key=7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [0, 8, 7 + 2**32, 2**62 + 7, 2**63 - 1])
def test_another_key_is_another_choice(other: int) -> None:
    sampler = keyed()
    positives, negatives = choice(sampler, key=7)
    other_positives, other_negatives = choice(sampler, key=other)
    assert positives != other_positives and negatives != other_negatives


def test_what_was_sampled_before_does_not_matter() -> None:
    sampler = keyed()
    alone = choice(sampler, key=7)
    choice(sampler, key=3)
    choice(sampler, key=None)
    assert choice(sampler, key=7) == alone
    assert choice(copy.deepcopy(sampler), key=7) == alone


def test_without_a_key_it_is_mmdets_sampler() -> None:
    torch.manual_seed(5)
    expected = choice(RandomSampler(**SETTINGS), key=None)
    torch.manual_seed(5)
    assert choice(keyed(), key=None) == expected
    torch.manual_seed(6)
    assert choice(keyed(), key=None) != expected


def test_counts_and_kinds() -> None:
    positives, negatives = choice(keyed(), key=7)
    assert len(set(positives)) == 8 and set(positives) <= set(POSITIVE)
    assert len(set(negatives)) == 24 and set(negatives) <= set(NEGATIVE)


def test_too_few_candidates_are_all_taken() -> None:
    positives, negatives = choice(keyed(num=400), key=7)
    assert positives == list(POSITIVE) and negatives == list(NEGATIVE)


def test_ground_truth_boxes_join_the_priors_when_asked() -> None:
    priors = InstanceData(priors=torch.zeros(200, 4))
    found = keyed(num=400, add_gt_as_proposals=True).sample(assigned(), priors, truth(7))
    assert len(found.pos_priors) == 41 and len(found.neg_priors) == 140
    assert found.pos_priors[0].tolist() == [0.0, 0, 10, 10]


def test_all_candidates_are_equally_likely() -> None:
    sampler, gallery, num_keys = keyed(), torch.arange(100, 120), 2000
    counts = torch.zeros(20)
    for key in range(num_keys):
        sampler.sample(assigned(), InstanceData(priors=torch.zeros(200, 4)), truth(key))
        counts[sampler.random_choice(gallery, 5) - 100] += 1
    expected = num_keys * 5 / 20
    deviation = (num_keys * 0.25 * 0.75) ** 0.5
    assert float((counts - expected).abs().max()) < 4 * deviation


def test_the_key_survives_the_copies_that_mmdet_makes() -> None:
    sample = DetDataSample(gt_instances=truth(2**61 + 1))
    copied = copy.deepcopy(sample)
    copied.gt_instances.labels = torch.zeros_like(copied.gt_instances.labels)
    assert copied.gt_instances.metainfo[KEY] == 2**61 + 1
    assert copied.gt_instances[torch.tensor([True])].metainfo[KEY] == 2**61 + 1
