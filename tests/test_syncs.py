"""The spy sees what would make the host wait for a GPU, and nothing else, although it runs on a CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from syncs import Syncs
from torch import Tensor

WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if x.sum() > 0 else 2,
    "range": lambda x: range(x.long()[0]),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "to device": lambda x: x.to(device=torch.device("cpu")),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "set mask": lambda x: x.clone().__setitem__(x > 0, 0.0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "boolean gradient": lambda x: x.clone().requires_grad_()[x > 0].sum().backward(),
}
GOES_ON: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda x: x.sum(),
    "places": lambda x: x[torch.arange(2)],
    "slice": lambda x: x[1:],
    "set places": lambda x: x.clone().index_put_((torch.arange(2),), torch.tensor(0.0)),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "repeats": lambda x: x.repeat_interleave(3),
    "float": lambda x: x.float().to(torch.float64).to(x),
    "to, not waited for": lambda x: x.to("cpu", non_blocking=True),
    "shape": lambda x: (len(x), x.shape[0], x.numel(), x.device.type == "cpu"),
    "gradient": lambda x: (2 * x.clone().requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize("work", WAITS.values(), ids=WAITS)
def test_a_wait_is_seen(work: Callable[[Tensor], Any]) -> None:
    with Syncs() as syncs:
        work(torch.tensor([2.0, 0.0, 3.0]))
    assert syncs.found


@pytest.mark.parametrize("work", GOES_ON.values(), ids=GOES_ON)
def test_what_goes_on_is_not(work: Callable[[Tensor], Any]) -> None:
    with Syncs() as syncs:
        work(torch.tensor([2.0, 0.0, 3.0]))
    assert syncs.found == []


def test_nothing_is_seen_outside() -> None:
    with Syncs() as syncs:
        pass
    torch.ones(1).item()
    assert syncs.found == []
