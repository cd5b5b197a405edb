"""The dictionary of keys against a plain list, for any number of keys per batch."""

import pytest
import torch

from pipeline.pretrain.contrast import info_nce
from pipeline.pretrain.key_queue import EMPTY, KeyQueue
from pipeline.pretrain.settings import resolve_queue


def rows(*numbers, width=2):
    """Keys that carry their own number."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, width).clone()


class SlowQueue:
    """A list of slots and a write position."""

    def __init__(self, size):
        self.slots, self.at = [None] * size, 0

    def enqueue(self, keys, image_ids, valid):
        for key, image, is_valid in zip(keys.tolist(), image_ids.tolist(), valid.tolist(), strict=True):
            self.slots[self.at % len(self.slots)] = (key, image) if is_valid else None
            self.at += 1


def same(queue, slow):
    """Equal up to where the ring begins: the order of age is what counts."""
    size = len(slow.slots)
    for age in range(size):
        slot, expected = (queue.pointer + age) % size, slow.slots[(slow.at + age) % size]
        key, image = queue.keys[slot].tolist(), queue.image_ids[slot].item()
        assert (key, image) == (expected if expected is not None else ([0.0, 0.0], EMPTY))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (3, 3, 3), (5, 5), (8, 1), (2, 7, 13, 0, 4), (16, 3, 5)])
def test_equals_a_list_for_any_count(size, counts):
    queue, slow, random = KeyQueue(size, 2), SlowQueue(size), torch.Generator().manual_seed(sum(counts))
    for step, count in enumerate(counts):
        keys = torch.randn(count, 2, generator=random)
        image_ids = torch.arange(count) + 100 * step
        valid = torch.rand(count, generator=random) < 0.7
        queue.enqueue(keys, image_ids, valid)
        slow.enqueue(keys, image_ids, valid)
        same(queue, slow)


def test_starts_empty_and_an_empty_queue_costs_nothing():
    queue = KeyQueue(4, 2)
    excluded = queue.excluded(torch.tensor([0, 7]), mask_same_image=False)
    assert excluded.shape == (2, 4) and excluded.all()
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert info_nce(query, query, queue.keys, excluded, 0.2).tolist() == [0.0, 0.0]


def test_oldest_keys_go_first_and_wrap_around():
    queue = KeyQueue(4, 2)
    for numbers in ((1, 2, 3), (4, 5), (6,)):
        queue.enqueue(rows(*numbers), torch.tensor(numbers), torch.ones(len(numbers), dtype=torch.bool))
    assert queue.keys[:, 0].tolist() == [5.0, 6.0, 3.0, 4.0]
    assert queue.image_ids.tolist() == [5, 6, 3, 4]
    assert queue.pointer == 2


def test_more_rows_than_slots_keeps_the_last():
    queue = KeyQueue(3, 2)
    queue.enqueue(rows(0), torch.tensor([0]), torch.tensor([True]))
    queue.enqueue(rows(*range(1, 8)), torch.arange(1, 8), torch.ones(7, dtype=torch.bool))
    assert sorted(queue.image_ids.tolist()) == [5, 6, 7]
    queue.enqueue(rows(9), torch.tensor([9]), torch.tensor([True]))
    assert sorted(queue.image_ids.tolist()) == [6, 7, 9]  # 5 was the oldest


def test_an_invalid_row_takes_a_slot_and_leaves_it_empty():
    queue = KeyQueue(3, 2)
    queue.enqueue(rows(1, 2, 3), torch.tensor([1, 2, 3]), torch.ones(3, dtype=torch.bool))
    queue.enqueue(torch.full((1, 2), torch.nan), torch.tensor([4]), torch.tensor([False]))
    assert queue.image_ids.tolist() == [EMPTY, 2, 3]
    assert queue.keys[0].tolist() == [0.0, 0.0]
    assert queue.excluded(torch.tensor([4]), True).tolist() == [[True, False, False]]


def test_same_image_masking():
    queue = KeyQueue(5, 2)
    queue.enqueue(rows(1, 2, 3, 4), torch.tensor([7, 8, 7, 9]), torch.ones(4, dtype=torch.bool))
    image_ids = torch.tensor([7, 9, 1])
    assert queue.excluded(image_ids, True).tolist() == [
        [True, False, True, False, True],
        [False, False, False, True, True],
        [False, False, False, False, True],
    ]
    assert queue.excluded(image_ids, False).tolist() == [[False] * 4 + [True]] * 3


def test_a_tail_image_is_not_pushed_from_its_own_older_key():
    """Drawn twice while its key is still queued, an image must not see that key as a negative."""
    queue, view = KeyQueue(4, 2), torch.tensor([[1.0, 0.0]])
    queue.enqueue(view, torch.tensor([7]), torch.tensor([True]))
    queue.enqueue(torch.tensor([[0.0, 1.0]]), torch.tensor([8]), torch.tensor([True]))
    masked = info_nce(view, view, queue.keys, queue.excluded(torch.tensor([7]), True), 1.0)
    literal = info_nce(view, view, queue.keys, queue.excluded(torch.tensor([7]), False), 1.0)
    e = torch.e
    assert masked.item() == pytest.approx(torch.log(torch.tensor((e + 1) / e)).item(), rel=1e-6)
    assert literal.item() == pytest.approx(torch.log(torch.tensor((2 * e + 1) / e)).item(), rel=1e-6)


@pytest.mark.parametrize("image_id", [0, -1, -(2**62)])
def test_every_id_that_an_image_can_have_is_an_image(image_id):
    """Annotations may number their images below zero."""
    queue = KeyQueue(3, 2)
    queue.enqueue(rows(1), torch.tensor([image_id]), torch.tensor([True]))
    assert queue.excluded(torch.tensor([5, image_id]), True).tolist() == [
        [False, True, True],
        [True, True, True],
    ]


def test_keys_are_float32_whatever_comes_and_need_no_gradient():
    queue = KeyQueue(3, 2)
    queue.enqueue(rows(1, 2).bfloat16().requires_grad_(), torch.tensor([1, 2]), torch.tensor([True, True]))
    assert queue.keys.dtype == torch.float32 and not queue.keys.requires_grad


def test_state_survives_a_file_with_its_write_position(tmp_path):
    queue = KeyQueue(4, 2)
    queue.enqueue(rows(1, 2, 3), torch.tensor([1, 2, 3]), torch.ones(3, dtype=torch.bool))
    torch.save(queue.state_dict(), tmp_path / "queue.pth")
    again = KeyQueue(4, 2)
    again.load_state_dict(torch.load(tmp_path / "queue.pth", weights_only=True), strict=True)
    for other in (queue, again):
        other.enqueue(rows(4, 5), torch.tensor([4, 5]), torch.ones(2, dtype=torch.bool))
    assert again.pointer == queue.pointer == 1
    assert torch.equal(again.keys, queue.keys) and torch.equal(again.image_ids, queue.image_ids)


def test_state_without_a_write_position_is_refused():
    queue = KeyQueue(4, 2)
    state = {name: value for name, value in queue.state_dict().items() if "extra" not in name}
    with pytest.raises(RuntimeError, match="Missing key"):
        queue.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("queue", "keys", "length"),
    [
        ("auto", 2048, 1024),
        ("auto", 2047, 512),
        ("auto", 2, 1),
        ("auto", 0, 1),
        ("auto", 10**7, 65536),
        (12, 10**7, 12),
        (65536, 10, 65536),
    ],
)
def test_resolved_length(queue, keys, length):
    assert resolve_queue(queue, keys) == length
