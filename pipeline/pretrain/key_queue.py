"""The dictionary of keys from earlier batches (MoCo's queue), with the image each key came from.

Differences from facebookresearch/moco, builder.py: any number of keys per batch (it wraps around), empty
slots are no negatives (MoCo starts with random vectors, which a small data set never replaces), and image
ids are kept so that keys of the query's own image can be left out.
"""

from typing import Any

import torch
from torch import Tensor, nn

EMPTY = -(2**63)  # image id of a slot that holds no key; annotations may well have -1


class KeyQueue(nn.Module):
    """First in, first out.

    Args:
        size: K, number of slots.
        width: D, width of a key.
    """

    keys: Tensor  # (K, D) float32, unit-norm or zero
    image_ids: Tensor  # (K,) int64

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.pointer = 0  # a Python int: asking the device where to write would stall it
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("image_ids", torch.full((size,), EMPTY, dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, image_ids: Tensor, valid: Tensor) -> None:
        """Append keys; the oldest ones go.

        Every process must pass the same rows (gathered), so that all queues stay equal.  An invalid row
        takes a slot and leaves it empty: dropping it would need its count on the host.

        Args:
            keys: (N, D) unit-norm.
            image_ids: (N,) int64.
            valid: (N,) bool.
        """
        size = len(self.keys)
        keys, image_ids, valid = keys[-size:], image_ids[-size:], valid[-size:]
        slots = (self.pointer + torch.arange(len(keys), device=self.keys.device)) % size
        self.keys[slots] = torch.where(valid[:, None], keys.to(self.keys.dtype), 0.0)
        self.image_ids[slots] = torch.where(valid, image_ids, EMPTY)
        self.pointer = (self.pointer + len(keys)) % size

    def excluded(self, image_ids: Tensor, mask_same_image: bool) -> Tensor:
        """Which slots are no negatives of which query.

        Args:
            image_ids: (Q,) int64, image of each query.
            mask_same_image: leave out keys of the query's own image ("unrelated images", Sec. 3.1.2).

        Returns:
            (Q, K) bool.
        """
        empty_QK = (self.image_ids == EMPTY)[None, :].expand(len(image_ids), -1)
        if not mask_same_image:
            return empty_QK
        return empty_QK | (self.image_ids[None, :] == image_ids[:, None])

    def get_extra_state(self) -> dict[str, int]:
        """The write position, as part of the state dict."""
        return {"pointer": self.pointer}

    def set_extra_state(self, state: Any) -> None:
        """Restore the write position."""
        self.pointer = int(state["pointer"])
