"""RoI heads of LOCE, BACL and PCB on two processes, one of which has neither object nor RoI: no one waits.

In the first step the first process has two images with objects and the second process nothing, in the second
step the other way round.
"""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from processes import together
from tiny_heads import proposals, pyramid, tiny_head, two_images, without_objects

HEADS = {
    "loce": {"type": "twodrcl.MemoryRoIHead"},
    "bacl": {"type": "twodrcl.HallucinationRoIHead"},
    "pcb": {"type": "twodrcl.IterativeRoIHead"},
}


def step(head, number, has_objects):
    samples = two_images() if has_objects else without_objects()
    losses = head.loss(pyramid(number), proposals(30 if has_objects else 0, seed=number), samples)
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    assert all(p.grad is not None for p in head.bbox_head.parameters())
    assert all(value.isfinite() for value in losses.values())
    return {name: value.detach() for name, value in losses.items()}


def run_in_a_process(folder, rank, world):
    states = {}
    for method, settings in HEADS.items():
        head, path = tiny_head(method, **settings), folder / f"{method}.pth"
        losses = [step(head, 0, has_objects=rank == 0)]
        if rank == 0:
            torch.save(head.state_dict(), path)
        dist.barrier()
        resumed = tiny_head(method, seed=5, **settings)
        resumed.load_state_dict(torch.load(path, weights_only=True))
        losses += [step(each, 1, has_objects=rank == 1) for each in (head, resumed)]
        states[method] = head.state_dict()
        states[f"{method} resumed"] = resumed.state_dict()
        states[f"{method} losses"] = losses
    return states


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """State dicts of all heads on both processes."""
    folder = tmp_path_factory.mktemp("processes")
    return together(2, partial(run_in_a_process, folder), folder)


def one_process(method):
    """The same two steps on one process, which has the images of both."""
    head = tiny_head(method, **HEADS[method])
    for number in range(2):
        order = [number == 0, number == 1]  # which process has objects
        parts = [
            (two_images() if has else without_objects(), proposals(30 if has else 0, seed=number))
            for has in order
        ]
        x = tuple(torch.cat([level, level]) for level in pyramid(number))  # both processes have the same
        samples, found = ([*first, *second] for first, second in zip(*parts, strict=True))
        head.loss(x, found, samples)
    return head.state_dict()


@pytest.mark.parametrize("method", HEADS)
def test_processes_agree(both, method):
    assert_same(*(states[method] for states in both))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.endswith("_extra_state"):
            assert all(torch.equal(value[key], second[name][key]) for key in value)
        else:
            assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("method", HEADS)
def test_processes_resume_from_the_file_of_one(both, method):
    """The first process had no objects after it, the second none before."""
    for states in both:
        _, whole, resumed = states[f"{method} losses"]
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)
        assert_same(states[method], states[f"{method} resumed"])


@pytest.mark.parametrize("method", HEADS)
def test_state_is_that_of_one_process(both, method):
    """All of it, also what LOCE's mean scores and BACL's confusion learn from what images draw."""
    expected, found = one_process(method), both[0][method]
    for name, value in expected.items():
        if name.endswith("_extra_state"):
            for key, part in value.items():
                torch.testing.assert_close(found[name][key], part, rtol=1e-5, atol=1e-6, msg=f"{name} {key}")
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_the_state_that_is_compared_has_moved(both):
    loce, bacl, pcb = (both[0][method] for method in HEADS)
    assert loce["class_features._extra_state"]["num_filled"].tolist() == [32, 0, 64, 32]
    assert (loce["bbox_head.loss_cls.mean_score"][[0, 2, 3]] != 0.01).all()
    assert bacl["class_features.feature_used"].tolist() == [1, 0, 1, 1]
    assert bacl["bbox_head.loss_cls.num_gt"].sum() > 100  # most of them drawn
    assert pcb["bbox_head.loss_cls.confusion"].any() and pcb["bbox_head.loss_cls.num_inst_cnt"].any()
