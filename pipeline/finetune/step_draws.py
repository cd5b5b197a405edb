"""Random draws that a resumed run repeats exactly, and choices that never wait for the GPU.

The draws of a step follow from (seed, process, step) alone, and the step is a buffer: whoever loads the
checkpoint continues with the next draw.  Nothing touches torch's global generator.

G = rows drawn at once (groups of classes), N = RoIs of this process.
"""

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

LEVELS = 1 << 16


def seeded_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that follows from the parts of a key; another kind of device draws other numbers."""
    # A digest: torch's CPU generator takes only the low 32 bits of its seed, so that keys would overlap.
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


class StepDraws(nn.Module):
    """A new generator in every training step.

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

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """This step's, for tensors on `device`: many numbers are drawn where they are used.

        In training mode the next call gives another one; in evaluation this one again.
        """
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        generator = seeded_generator(self.seed, rank, self._step, device=device)
        if self.training:
            self._step += 1
            self.step += 1
        return generator

    def orders(self, num_groups: int, num_rois: int, device: torch.device) -> Tensor:
        """(G, N) int64, each row a random order of 0..N-1, drawn on the CPU: the same on every device."""
        generator = self.generator()
        rows = [torch.randperm(num_rois, generator=generator) for _ in range(num_groups)]
        return torch.stack(rows).to(device, non_blocking=True)  # G x (N) -> (G, N)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        self._step = int(self.step)


def draw_levels(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Whole numbers from 0 to LEVELS - 1, all alike, on the generator's device: (...) float32.

    Four come from each 64 bits, in half the time of torch.rand on a CPU.
    """
    num_rows, num_columns = shape
    # whole numbers of bits per row, so that a CPU draws the same whether rows come all at once or in parts
    bits = torch.empty(num_rows, -(-num_columns // 4), dtype=torch.int64, device=generator.device)
    bits.random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:, :num_columns].float().add_(LEVELS // 2)


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
