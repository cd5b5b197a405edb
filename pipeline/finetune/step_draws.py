"""Random draws of a loss that a resumed run repeats exactly, and choices that never wait for the GPU.

The draws of a step follow from (seed, process, step) alone, and the step is a buffer: whoever loads the
checkpoint continues with the next draw.  Nothing touches torch's global generator.

G = rows drawn at once (groups of classes), N = RoIs of this process.
"""

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class StepDraws(nn.Module):
    """Random orders, new ones in every training step.

    Args:
        seed: any whole number; processes of one run share it and still draw differently.

    Attributes:
        step: () int64 buffer: draws so far.
    """

    step: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._step = 0  # the same number: reading the buffer would wait for the GPU

    def orders(self, num_groups: int, num_rois: int, device: torch.device) -> Tensor:
        """(G, N) int64, each row a random order of 0..N-1, drawn on the CPU: the same on every device.

        In training mode the next call draws others; in evaluation it repeats these.
        """
        # torch's CPU generator uses 32 bits of its seed: hashed, or seeds and steps would overlap.
        key = f"{self.seed}/{dist.get_rank() if _is_distributed() else 0}/{self._step}"
        digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        if self.training:
            self._step += 1
            self.step += 1
        rows = [torch.randperm(num_rois, generator=generator) for _ in range(num_groups)]
        return torch.stack(rows).to(device, non_blocking=True)  # G x (N) -> (G, N)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        self._step = int(self.step)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def choose(candidates: Tensor, num_chosen: Tensor, orders: Tensor) -> Tensor:
    """In every row, that many candidates, the first in the given order; all where there are fewer.

    Args:
        candidates: (G, N) bool; num_chosen: (G,) at least 0.
        orders: (G, N) int64, each row an order of 0..N-1; random ones choose without replacement.

    Returns:
        (G, N) bool.
    """
    is_candidate = candidates.gather(1, orders)
    is_chosen = is_candidate & (is_candidate.cumsum(dim=1) <= num_chosen[:, None])  # (G) -> (G, 1)
    return torch.zeros_like(candidates).scatter(1, orders, is_chosen)
