"""Every loss of the table behind a toy head: on two processes, resumed in the middle, and with NaN logits.

The steps are the awkward ones: a process without any object, a process without any RoI, background alone on
both.  A collective that only some processes reach would hang (until the patience of `processes` ends).
"""

import copy
import importlib
import io
from functools import partial

import pytest
import torch
import torch.distributed as dist
from processes import together
from syncs import Syncs
from torch import nn

from pipeline.finetune import object_rows, pcb, seesaw
from pipeline.finetune.loce import EquilibriumLoss
from pipeline.finetune.method import ClassCounts
from pipeline.finetune.methods import METHODS

CLASSES = 4
COUNTS = ClassCounts([40, 2, 9, 150], [90, 2, 20, 1500], 500)
OWN = [name for name, method in METHODS.items() if "." in method.loss]
# labels of each process in each step
STEPS = [
    ([0, 3, 4, 4, 2], [4, 4, 4]),
    ([4, 4], [1, 1, 3, 4, 4, 4]),
    ([], [0, 1, 2, 3, 4, 4]),
    ([4, 4, 4], [4]),
    ([2, 4], [2, 0]),
]
# state that is drawn for each process, or follows from its own draws
OF_A_PROCESS = ("draws.step", "_epoch")


class Toy(nn.Module):
    """A linear classifier and its loss."""

    def __init__(self, name):
        super().__init__()
        module, _, kind = METHODS[name].loss.rpartition(".")
        config = METHODS[name].loss_config(CLASSES, COUNTS, seed=5)
        config.pop("type")
        if name == "pcb":
            config |= {"start_epoch": 1, "momentum": 0.5}
        torch.manual_seed(0)
        self.loss = getattr(importlib.import_module(module), kind)(**config)
        self.classifier = nn.Linear(6, self.loss.get_cls_channels(CLASSES))
        self.loss.epoch = 1  # PCB's

    def forward(self, number, labels):
        """All losses of a step summed; the same features for the same step and place in `labels`."""
        logits = self.classifier(features(number, labels))
        labels = torch.tensor([label for label, _ in labels], dtype=torch.int64)
        if isinstance(self.loss, EquilibriumLoss):  # its head tells it which RoIs are of one object
            self.loss.update_mean_score(logits, labels, torch.arange(len(labels)), len(labels))
        found = self.loss(logits, labels, torch.ones(len(labels)), avg_factor=max(1.0, len(labels)))
        return sum(found.values()) if isinstance(found, dict) else found


def features(number, labels):
    rows = [torch.randn(6, generator=torch.Generator().manual_seed(100 * number + at)) for _, at in labels]
    return torch.stack(rows) if rows else torch.zeros(0, 6)


def share(step, rank):
    """Labels of one process, each with its place in the global batch; rank None: the whole of it."""
    first, second = STEPS[step]
    rows = list(zip(first + second, range(99), strict=False))
    return {0: rows[: len(first)], 1: rows[len(first) :], None: rows}[rank]


def train(toy, steps, rank):
    """SGD without averaging between processes: here only the loss's own state is looked at."""
    values = []
    for step in steps:
        toy.zero_grad()
        value = toy(step, share(step, rank))
        value.backward()
        assert all(p.grad is not None for p in toy.classifier.parameters())
        values.append(float(value.detach()))
    return values


def state_of(toy):
    return {k: v.clone() for k, v in toy.loss.state_dict().items() if not k.endswith(OF_A_PROCESS)}


def run_in_a_process(folder, rank, world):
    found = {}
    for name in OWN:
        toy = Toy(name)
        values = train(toy, range(len(STEPS)), rank)
        found[name] = (values, state_of(toy), toy.loss.state_dict(), *resumed_from_the_first(name, folder))
    return found


def resumed_from_the_first(name, folder):
    """Values and state of the same steps, where both continue after two from the first process's file."""
    toy, path = Toy(name), folder / f"{name}.pth"
    values = train(toy, range(2), dist.get_rank())
    if dist.get_rank() == 0:
        torch.save(toy.state_dict(), path)
    dist.barrier()
    resumed = Toy(name)
    resumed.load_state_dict(torch.load(path, weights_only=True))
    values += train(resumed, range(2, len(STEPS)), dist.get_rank())
    return values, resumed.loss.state_dict()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Values and states of all losses on both processes, undisturbed and resumed."""
    folder = tmp_path_factory.mktemp("processes")
    return together(2, partial(run_in_a_process, folder), folder)


@pytest.mark.parametrize("name", OWN)
def test_state_of_two_processes_is_that_of_one(both, name):
    toy = Toy(name)
    train(toy, range(len(STEPS)), None)
    (values, first), (others, second) = (states[name][:2] for states in both)
    assert len(values) == len(others) == len(STEPS)
    for key, value in state_of(toy).items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6)


# what a RoI costs depends on the others of its process: its draws; rankings
OF_ALL_ROIS = ("droploss", "bags", "acsl", "rog")


@pytest.mark.parametrize("name", [name for name in OWN if name not in OF_ALL_ROIS])
def test_loss_of_two_processes_is_that_of_one(both, name):
    """But for the divisor, which is each process's number of RoIs, as in mmdet's heads."""
    whole = Toy(name)
    expected = [v * len(share(i, None)) for i, v in enumerate(train(whole, range(len(STEPS)), None))]
    sums = [[v * max(1, len(share(i, rank))) for i, v in enumerate(both[rank][name][0])] for rank in (0, 1)]
    found = [a + b for a, b in zip(*sums, strict=True)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_stateful_ones_have_a_state_and_it_moves(both):
    moved = {
        name
        for name in OWN
        if any(not torch.equal(value, both[0][name][1][key]) for key, value in state_of(Toy(name)).items())
    }
    assert moved == {"eqlv2", "seesaw", "pcb", "loce", "bacl", "rog"}


@pytest.mark.parametrize("name", OWN)
def test_resumed_in_the_middle_is_bit_exact(name):
    whole, first = Toy(name), Toy(name)
    expected = train(whole, range(len(STEPS)), None)
    values = train(first, range(2), None)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = Toy(name)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    values += train(resumed, range(2, len(STEPS)), None)
    assert values == expected
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", OWN)
def test_two_processes_resume_from_the_file_of_one(both, name):
    """Also what each draws for itself goes on where it was, though the file is the first one's."""
    for values, _, state, resumed_values, resumed in (states[name] for states in both):
        assert resumed_values == values
        assert state.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[key]) for key, value in state.items())


@pytest.mark.parametrize("name", OWN)
def test_only_background_has_a_finite_loss_that_trains(name):
    toy = Toy(name)
    value = toy(3, share(3, None))
    value.backward()
    assert value.isfinite() and toy.classifier.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", OWN)
def test_the_host_never_waits_for_a_gpu(name, monkeypatch):
    for module in (object_rows, pcb, seesaw):  # on a CPU they do, for the rows of objects
        monkeypatch.setattr(module, "rows_with_objects", lambda labels, num_classes: None)
    toy = Toy(name)
    loss, logits = toy.loss, toy.classifier(features(0, share(0, None))).detach().requires_grad_()
    labels, weights = torch.tensor(STEPS[0][0] + STEPS[0][1]), torch.ones(8)
    with Syncs() as syncs:
        found = loss(logits, labels, weights, avg_factor=8.0)
        (sum(found.values()) if isinstance(found, dict) else found).backward()
    assert syncs.found == []


@pytest.mark.parametrize("place", [(0, 0), (0, -1), (2, 1), (2, -1), (1, 3)])
@pytest.mark.parametrize("name", OWN)
def test_a_nan_in_any_logit_shows(name, place):
    """In the row of an object or of background, in whatever column: no mask of a loss hides it."""
    loss = copy.deepcopy(Toy(name).loss)
    logits = torch.zeros(3, loss.get_cls_channels(CLASSES))
    logits[place] = torch.nan
    found = loss(logits.requires_grad_(), torch.tensor([0, 3, 4]), torch.ones(3), avg_factor=3.0)
    total = sum(found.values()) if isinstance(found, dict) else found
    assert total.isnan()
