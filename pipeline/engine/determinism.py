"""Initial weights that depend on a seed and on nothing that ran before."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator as if it were fresh from `seed`, and leave it as it was found.

    PyTorch's layers take their initial weights from the global generator and accept no other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators too
        yield
