"""BACL's hallucinated features against running means and variances in a loop.  C = 4, features of 3."""

import pytest
import torch
from processes import together

from pipeline.finetune.hallucination import FeatureHallucination, mean_and_variance, sums_of_classes

LABELS = torch.tensor([0, 2, 2, 4, 2, 0, 1, 4])
RATIO = torch.tensor([0.9, 0.5, 0.0, 0.4])


def hallucination(**settings):
    return FeatureHallucination(4, 3, sampled_num_classes=5, sampled_num_features=7, **settings)


def drawn(found, seed=0, images=1, ratio=RATIO):
    """Features for some images."""
    generator = torch.Generator().manual_seed(seed)
    choice = torch.rand(images, *found.draws_per_image, generator=generator)
    return found.sample(ratio, choice, torch.randn(images, *found.noise_per_image, generator=generator))


def random_features(rows=8, seed=0):
    return 5 + torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def test_running_statistics_equal_a_loop():
    found = hallucination(decay_ratio=0.3)
    expected = {}
    for seed in range(4):
        features, labels = random_features(seed=seed), LABELS if seed != 1 else LABELS[:3]
        features = features[: len(labels)]
        found.collect(features, labels)
        for label in labels.unique().tolist():
            if label == 4:
                continue
            own = features[labels == label]
            new = (own.mean(dim=0), own.var(dim=0) if len(own) > 1 else torch.zeros(3))
            old = expected.get(label)
            expected[label] = (
                new if old is None else [0.3 * n + 0.7 * o for n, o in zip(new, old, strict=True)]
            )
    for label, (mean, variance) in expected.items():
        torch.testing.assert_close(found.feature_prototype[label], mean)
        torch.testing.assert_close(found.feature_variance[label], variance)
    assert found.feature_used.tolist() == [1, 1, 1, 0]


def test_variance_of_large_close_numbers():
    features = 1000 + 0.01 * random_features(6)
    _, variance, _ = mean_and_variance(sums_of_classes(features, torch.zeros(6, dtype=torch.long), 1))
    torch.testing.assert_close(variance[0], features.double().var(dim=0), rtol=1e-6, atol=0)


def test_samples_follow_the_gaussians_of_weak_classes():
    found = hallucination()
    found.collect(random_features(), LABELS)
    features, labels, weights = drawn(found, images=1500)
    assert features.shape == (1500 * 35, 3)
    assert torch.equal(weights, (labels != 3).float())  # class 3 was never collected
    own = features[labels == 2]
    torch.testing.assert_close(own.mean(dim=0), found.feature_prototype[2], rtol=0, atol=0.1)
    torch.testing.assert_close(own.var(dim=0), found.feature_variance[2], rtol=0.1, atol=0)
    shares = torch.bincount(labels, minlength=4) / len(labels)
    torch.testing.assert_close(shares, (1 - RATIO) / (1 - RATIO).sum(), rtol=0.2, atol=0)


def test_before_any_object_all_samples_weigh_nothing():
    features, _, weights = drawn(hallucination(), ratio=torch.zeros(4))
    assert features.isfinite().all() and not weights.any()


@pytest.mark.parametrize("labels", [torch.full((5,), 4), torch.zeros(0, dtype=torch.long)])
def test_without_objects_nothing_changes(labels):
    found = hallucination()
    found.collect(random_features(), LABELS)
    before = {name: value.clone() for name, value in found.state_dict().items()}
    found.collect(random_features(len(labels), seed=1), labels)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


def test_statistics_carry_no_gradient_and_are_no_parameters():
    found = hallucination()
    found.collect(random_features().requires_grad_(), LABELS)
    assert not found.feature_prototype.requires_grad and list(found.parameters()) == []


def test_resume_continues_exactly():
    found, other = hallucination(), hallucination()
    found.collect(random_features(), LABELS)
    other.load_state_dict(found.state_dict())
    for seed in (1, 2):
        for each in (found, other):
            each.collect(random_features(seed=seed), LABELS)
        samples = (drawn(each, seed) for each in (found, other))
        assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))


def test_images_are_drawn_for_as_if_each_were_alone():
    found = hallucination()
    found.collect(random_features(), LABELS)
    choice, noise = torch.rand(3, *found.draws_per_image), torch.randn(3, *found.noise_per_image)
    together = found.sample(RATIO, choice, noise)
    alone = [found.sample(RATIO, choice[i : i + 1], noise[i : i + 1]) for i in range(3)]
    for whole, *parts in zip(together, *alone, strict=True):
        assert torch.equal(whole, torch.cat(parts))


def collect_in_a_process(rank, world):
    """The first process has all objects, the second background only."""
    shared, own = hallucination(), hallucination(synchronize=False)
    batches = [(random_features(), LABELS), (random_features(2, seed=1), torch.tensor([4, 4]))]
    for first in (0, 1):  # then the other way round
        for each in (shared, own):
            each.collect(*batches[(rank + first) % 2])
    return (shared.state_dict(), own.state_dict())


def test_two_processes_collect_as_one(tmp_path):
    whole = hallucination()
    for _ in range(2):
        whole.collect(random_features(), LABELS)
    results = together(2, collect_in_a_process, tmp_path)
    for shared, own in results:
        assert torch.equal(shared["feature_prototype"], whole.feature_prototype)
        assert torch.equal(shared["feature_variance"], whole.feature_variance)
        assert own["feature_used"].tolist() == [1, 1, 1, 0]
