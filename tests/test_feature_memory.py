"""LOCE's feature memory against a list per class.  C = 4, features of 2 x 3, 5 rows per class."""

import pytest
import torch
from processes import together

from pipeline.errors import MismatchedInput
from pipeline.finetune.feature_memory import FeatureMemory, ranks_in_class

SCORES = torch.tensor([0.5, 0.01, 0.2, 0.01, 0.01])


def memory(**settings):
    return FeatureMemory(4, (2, 3), queue_size=5, sampled_num_classes=6, sampled_num_features=3, **settings)


def drawn(found, scores=SCORES, seed=0, images=1):
    """Rows for some images."""
    generator = torch.Generator().manual_seed(seed)
    return found.sample(scores, torch.rand(images, *found.draws_per_image, generator=generator))


def rows(labels, first=0):
    """Features and box targets that tell the row: r in every place."""
    labels = torch.tensor(labels, dtype=torch.long)
    number = torch.arange(first, first + len(labels), dtype=torch.float32)
    return number[:, None, None].expand(-1, 2, 3), labels, number[:, None].expand(-1, 4)


def kept(found, label):
    """The rows of a class, as a set of numbers."""
    count = int(found.num_filled[label])
    assert torch.equal(found.features[label, :count, 0], found.box_targets[label, :count, 0])
    return {int(n) for n in found.features[label, :count, 0]}


def test_ranks_count_earlier_rows_of_the_class():
    assert ranks_in_class(torch.tensor([2, 0, 2, 2, 0, 1]), 4).tolist() == [0, 0, 1, 2, 1, 0]
    assert ranks_in_class(torch.zeros(0, dtype=torch.long), 4).tolist() == []


def test_keeps_the_latest_rows_of_every_class():
    found, queues, first = memory(), {c: [] for c in range(4)}, 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        labels = torch.randint(-1, 5, (7,), generator=generator).tolist()  # -1 and 4 are no classes
        found.store(*rows(labels, first))
        for number, label in enumerate(labels, first):
            if 0 <= label < 4:
                queues[label] = [*queues[label], number][-5:]
        first += 7
        assert all(kept(found, c) == set(queues[c]) for c in range(4))


def test_of_many_rows_at_once_the_first_are_kept():
    found = memory()
    found.store(*rows([1, 1, 1]))
    found.store(*rows([1] * 8, first=10))
    assert kept(found, 1) == {10, 11, 12, 13, 14}
    found.store(*rows([1], first=20))
    assert kept(found, 1) == {11, 12, 13, 14, 20}


def test_samples_are_rows_of_weak_classes():
    found = memory()
    found.store(*rows([0, 1, 1, 1, 2, 1]))  # nothing of class 3
    scores = torch.tensor([0.5, 0.2, 0.25, 0.2, 0.01])
    features, labels, targets, images = drawn(found, scores, images=200)
    assert features.shape == (len(labels), 2, 3) and targets.shape == (len(labels), 4)
    for feature, label, target in zip(features, labels.tolist(), targets, strict=True):
        assert feature[0, 0] == target[0] and int(target[0]) in kept(found, label)
    of_images = torch.bincount(images, minlength=200)
    assert (of_images % 3 == 0).all() and of_images.max() == 18 and of_images.min() < 18
    number = torch.bincount(labels, minlength=4).float()
    assert number[3] == 0
    # by 1 / m: 2, 5, 4 and 5 in 16; class 3 is drawn, and gives nothing
    expected = 200 * 18 * torch.tensor([2.0, 5, 4]) / 16
    torch.testing.assert_close(number[:3], expected, rtol=0.2, atol=0)


def test_images_are_drawn_for_as_if_each_were_alone():
    found = memory()
    found.store(*rows([0, 1, 1, 1, 2, 1]))
    uniform = torch.rand(3, *found.draws_per_image, generator=torch.Generator().manual_seed(5))
    together = found.sample(SCORES, uniform)
    alone = [found.sample(SCORES, one[None]) for one in uniform]
    assert together.images.unique().tolist() == [0, 1, 2]
    for image, one in enumerate(alone):
        own = together.images == image
        assert torch.equal(together.features[own], one.features)
        assert torch.equal(together.labels[own], one.labels)
        assert torch.equal(together.box_targets[own], one.box_targets)


def test_every_row_of_a_class_is_drawn():
    found = memory()
    found.store(*rows([1, 1, 1, 1]))
    seen = drawn(found, images=30).box_targets[:, 0]
    assert seen.unique().tolist() == [0, 1, 2, 3]


def test_empty_memory_and_empty_batches():
    found = memory()
    features, labels, targets, _ = drawn(found)
    assert features.shape == (0, 2, 3) and labels.shape == (0,) and targets.shape == (0, 4)
    found.store(*rows([]))
    assert not found.num_filled.any()


def test_stored_rows_carry_no_gradient_and_are_float32():
    found = memory()
    features, labels, targets = rows([0])
    found.store(features.clone().bfloat16().requires_grad_(), labels, targets)
    assert found.features.dtype == torch.float32 and not found.features.requires_grad


def test_resume_continues_exactly():
    found, other = memory(), memory()
    found.store(*rows([0, 1, 1, 1, 1, 1, 2]))
    found.store(*rows([1, 1, 3], first=10))
    other.store(*rows([2] * 5))  # must go
    other.load_state_dict(found.state_dict())
    for step in range(3):
        for each in (found, other):
            each.store(*rows([1, 3, 3, 0], first=20 * step))
        samples = (drawn(each, seed=step) for each in (found, other))
        assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))
    assert [kept(found, c) for c in range(4)] == [kept(other, c) for c in range(4)]


def test_state_holds_filled_rows_only_and_survives_a_file(tmp_path):
    found, other = memory(), memory()
    found.store(*rows([0, 1, 1]))
    assert found.state_dict()["_extra_state"]["features"].shape == (3, 6)
    torch.save(found.state_dict(), tmp_path / "memory.pth")
    other.load_state_dict(torch.load(tmp_path / "memory.pth", weights_only=True))
    assert kept(other, 1) == {1, 2} and kept(other, 2) == set()


def test_state_is_a_copy():
    found = memory()
    found.store(*rows([0]))
    state = found.state_dict()
    found.store(*rows([0], first=7))
    other = memory()
    other.load_state_dict(state)
    assert kept(other, 0) == {0}


def test_rows_stay_on_the_host():
    moved = memory().to("meta")
    assert moved.features.device.type == "cpu"


@pytest.mark.parametrize(
    "other", [FeatureMemory(3, (2, 3), 5), FeatureMemory(4, (2, 2), 5), FeatureMemory(4, (2, 3), 2)]
)
def test_another_memory_is_refused(other):
    found = memory()
    found.store(*rows([0, 0, 0]))
    with pytest.raises(MismatchedInput, match="feature memory is for"):
        other.load_state_dict(found.state_dict())


BATCHES = ([[0, 1, 1, 1], []], [[1, 1, 1, 1], [3, 3]])  # steps of processes


def store_in_a_process(rank, world):
    """In the first step the second process has no object, in the second the first one has none."""
    shared, own = memory(), memory(synchronize=False)
    for step, labels in enumerate(BATCHES):
        for each in (shared, own):
            each.store(*rows(labels[rank], first=10 * step + 5 * rank))
    return (shared.state_dict(), own.state_dict())


def test_two_processes_keep_the_same_rows(tmp_path):
    whole = memory()
    for step, labels in enumerate(BATCHES):
        parts = [rows(labels[rank], first=10 * step + 5 * rank) for rank in (0, 1)]
        whole.store(*(torch.cat(part) for part in zip(*parts, strict=True)))
    results = together(2, store_in_a_process, tmp_path)
    for shared, _ in results:
        loaded = memory()
        loaded.load_state_dict(shared)
        assert torch.equal(loaded.features, whole.features)
        assert torch.equal(loaded.pointers, whole.pointers)
    assert [own["_extra_state"]["num_filled"].tolist() for _, own in results] == [
        [1, 5, 0, 0],
        [0, 0, 0, 2],
    ]
