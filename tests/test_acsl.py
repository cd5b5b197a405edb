"""Adaptive class suppression loss against the released code's numbers, its draws repeated, and a loop."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import together

from pipeline.errors import InputError, MismatchedInput, UsageError
from pipeline.finetune.acsl import (
    ACSLLoss,
    acsl_losses,
    draw_suppressors,
    frequency_of_images,
    spared_columns,
)

ALL = slice(None)  # rows
VECTORS = json.loads((Path(__file__).parent / "reference/vectors/acsl.json").read_text())
CONFIG = VECTORS["config"]
LETTERS = CONFIG["frequency_of_category_1_to_6"]
FREQUENCY = torch.tensor(["rcf".index(letter) for letter in LETTERS])
IMAGES = [{"r": 5, "c": 50, "f": 500}[letter] for letter in LETTERS]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows, columns=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def many_labels(rows):
    """A tenth foreground, the rest background."""
    labels = torch.full((rows,), 6)
    labels[: rows // 10] = torch.arange(rows // 10) % 6
    return labels


def read_step():
    """Logits, labels and gradient of the vectors with the background last, as everywhere here."""
    (step,) = VECTORS["steps"]
    order = [1, 2, 3, 4, 5, 6, 0]
    labels = (torch.tensor(step["labels"]) - 1) % 7  # 0 -> 6, c -> c - 1
    return step, tensor(step["logits"])[:, order], labels, tensor(step["grad"])[:, order]


def official_suppressors(labels, seed):
    """The released code's draws: rare, common, frequent, each without replacement from the background."""
    draws, background = np.random.RandomState(seed), (labels == 6).nonzero().flatten().numpy()
    chosen = torch.zeros(3, len(labels), dtype=torch.bool)
    for row, share in enumerate((0.01, 0.1, 1.0)):
        picks = draws.choice(background, size=int(len(background) * share), replace=False)
        chosen[row, torch.from_numpy(picks)] = True
    return chosen


def test_vectors_with_their_repeated_draws():
    step, logits, labels, gradient = read_step()
    suppressors = official_suppressors(labels, step["numpy_seed"])
    spared = spared_columns(logits, labels, suppressors, FREQUENCY, CONFIG["score_thr"])
    recorded = (gradient == 0).double()
    recorded[torch.arange(len(labels)), labels] = spared(ALL)[torch.arange(len(labels)), labels]
    assert torch.equal(spared(ALL), recorded)
    logits.requires_grad_()
    value = acsl_losses(logits, labels, spared).mean()
    value.backward()
    torch.testing.assert_close(value.detach(), tensor(step["loss"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-6, atol=1e-9)


def test_official_draws_are_possible_ones():
    step, _, labels, _ = read_step()
    chosen = official_suppressors(labels, step["numpy_seed"])
    found = draw_suppressors(labels == 6, (~chosen).int().argsort(dim=1))
    assert torch.equal(found, chosen)
    assert found.sum(dim=1).tolist() == [1, 11, 110]


def test_foreground_of_the_vectors_through_the_module_in_the_official_layout():
    step, logits, labels, _ = read_step()
    loss = ACSLLoss(6, image_counts=IMAGES, score_thr=CONFIG["score_thr"], background_column=0)
    official = tensor(step["logits"]).requires_grad_()
    rows = loss(official, labels, reduction_override="none")
    rows.sum().backward()
    torch.testing.assert_close(official.grad[:20] / 130, tensor(step["grad"])[:20], rtol=1e-6, atol=1e-9)
    plain = ACSLLoss(6, image_counts=IMAGES)(logits, labels, reduction_override="none")
    assert torch.equal(rows, plain)
    torch.testing.assert_close(loss.get_activation(official), logits.sigmoid())


def slow_acsl(logits, labels, suppressors, frequency, score_thr):
    losses = []
    for i, label in enumerate(labels.tolist()):
        loss = 0.0
        for j, logit in enumerate(logits[i].tolist()):
            p = 1 / (1 + math.exp(-logit))
            if j == label:
                loss -= math.log(p)
            elif label == len(frequency):  # background; its own column is the label
                loss -= math.log(1 - p) if suppressors[frequency[j]][i] else 0
            elif p >= score_thr:
                loss -= math.log(1 - p)
        losses.append(loss)
    return tensor(losses)


@pytest.mark.parametrize("score_thr", [0.1, 0.7, 0.95])
def test_equals_a_loop(score_thr):
    loss = ACSLLoss(6, frequency=LETTERS, score_thr=score_thr)
    logits, labels = random_logits(300), many_labels(300)
    orders = loss.draws.eval().orders(3, 300, labels.device)
    suppressors = draw_suppressors(labels == 6, orders)
    expected = slow_acsl(logits, labels, suppressors.tolist(), FREQUENCY.tolist(), score_thr)
    torch.testing.assert_close(loss(logits, labels, reduction_override="none"), expected)
    torch.testing.assert_close(loss(logits, labels), expected.mean())


@pytest.mark.parametrize(
    ("background", "expected"), [(99, [0, 9, 99]), (100, [1, 10, 100]), (9, [0, 0, 9]), (0, [0, 0, 0])]
)
def test_shares_of_the_background_are_truncated(background, expected):
    is_background = torch.arange(background + 20) >= 20
    noise = torch.rand(3, background + 20, generator=torch.Generator().manual_seed(0))
    found = draw_suppressors(is_background, noise.argsort(dim=1))
    assert found.sum(dim=1).tolist() == expected
    assert not found[:, :20].any()


def test_frequency_by_images():
    counts = torch.tensor([0, 1, 10, 11, 100, 101, 5000])
    assert frequency_of_images(counts).tolist() == [0, 0, 0, 1, 1, 2, 2]
    by_images, by_letters = ACSLLoss(6, image_counts=IMAGES), ACSLLoss(6, frequency=LETTERS)
    assert torch.equal(by_images.frequency, by_letters.frequency)
    assert torch.equal(by_letters.frequency, FREQUENCY)


def test_label_counts_whatever_the_mask_says():
    logits, labels = random_logits(4), torch.tensor([0, 3, 6, 6])
    spared = torch.ones(4, 7, dtype=torch.float64)
    expected = -torch.nn.functional.logsigmoid(logits[torch.arange(4), labels])
    torch.testing.assert_close(acsl_losses(logits, labels, spared.__getitem__), expected)
    spared[torch.arange(4), labels] = 0
    torch.testing.assert_close(acsl_losses(logits, labels, spared.__getitem__), expected)


def test_extreme_logits():
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    losses = acsl_losses(logits, torch.tensor([1]), torch.zeros(1, 3).__getitem__)
    losses.sum().backward()
    assert losses.item() == pytest.approx(400 + math.log(2))
    assert logits.grad.tolist() == [[1, -1, 0.5]]


def test_background_batch_pushes_frequent_classes_and_few_rois_push_rare_ones():
    logits = torch.zeros(200, 7, dtype=torch.float64, requires_grad=True)
    ACSLLoss(6, frequency=LETTERS)(logits, torch.full((200,), 6), reduction_override="sum").backward()
    pushes = (logits.grad > 0).sum(dim=0)
    assert [pushes[i].item() for i in range(6)] == [{"r": 2, "c": 20, "f": 200}[x] for x in LETTERS]
    assert (logits.grad[:, 6] == -0.5).all()


def test_draws_change_with_the_step_and_the_seed_only():
    logits, labels = random_logits(200), many_labels(200)
    losses = [ACSLLoss(6, frequency=LETTERS, seed=seed) for seed in (0, 0, 1)]
    values = [[loss(logits, labels).item() for _ in range(3)] for loss in losses]
    assert values[0] == values[1] != values[2]
    assert len(set(values[0])) == 3


def test_resume_repeats_the_draws():
    logits, labels = random_logits(200), many_labels(200)
    loss, resumed = ACSLLoss(6, frequency=LETTERS), ACSLLoss(6, frequency=LETTERS)
    for _ in range(2):
        loss(logits, labels)
    state = loss.state_dict()
    assert list(state) == ["draws.step"]
    resumed.load_state_dict(state)
    assert [resumed(logits, labels).item() for _ in range(2)] == [
        loss(logits, labels).item() for _ in range(2)
    ]


def test_no_rois_cost_nothing():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = ACSLLoss(6, frequency=LETTERS)(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_class_without_instances_is_rare():
    loss = ACSLLoss(3, image_counts=[0, 50, 500])
    value = loss(random_logits(30, 4), torch.tensor([0, 1, 2] + [3] * 27))
    assert loss.frequency.tolist() == [0, 1, 2] and value.isfinite()


def test_nan_logits_make_a_nan_loss():
    for row in (0, 3):
        logits = random_logits(4)
        logits[row, 2] = float("nan")  # of a rare class: not suppressed by this background RoI
        assert ACSLLoss(6, frequency=LETTERS)(logits, torch.tensor([0, 6, 6, 6])).isnan()


def test_label_weights_avg_factor_reduction_and_loss_weight():
    logits, labels = random_logits(4), torch.tensor([0, 3, 5, 6])
    loss = ACSLLoss(6, frequency=LETTERS, loss_weight=2.0)  # one background RoI: no draw but of frequent
    rows = loss(logits, labels, reduction_override="none")
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    assert rows.shape == (4,)
    torch.testing.assert_close(loss(logits, labels), rows.mean())
    torch.testing.assert_close(loss(logits, labels, None, 3.0, "mean"), rows.sum() / 3)
    torch.testing.assert_close(loss(logits, labels, weights, 3.0), (rows * weights).sum() / 3)
    torch.testing.assert_close(loss(logits, labels, weights, 3.0, "sum"), (rows * weights).sum())
    assert loss(logits, labels, torch.zeros(4)).item() == 0


def test_rois_of_weight_0_are_not_drawn():
    labels, weights = torch.full((200,), 6), (torch.arange(200) >= 100).float()
    logits = torch.zeros(200, 7, dtype=torch.float64, requires_grad=True)
    ACSLLoss(6, frequency=LETTERS)(logits, labels, weights, reduction_override="sum").backward()
    assert (logits.grad[:100] == 0).all()
    assert (logits.grad > 0).sum(dim=0)[2] == 1  # a hundredth of the hundred that take part


def test_gradcheck():
    loss = ACSLLoss(6, frequency=LETTERS).eval()  # the same draw in every call
    labels = torch.tensor([0, 2, 3, 6, 6, 1])
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), random_logits(6).requires_grad_())


def test_dtypes():
    logits, labels = random_logits(6), torch.tensor([0, 2, 3, 6, 6, 1])
    assert ACSLLoss(6, frequency=LETTERS)(logits, labels).dtype == torch.float64
    half = ACSLLoss(6, frequency=LETTERS)(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert half == ACSLLoss(6, frequency=LETTERS)(logits.bfloat16().float(), labels)


def test_scores_are_plain_sigmoids():
    logits = random_logits(5)
    found = ACSLLoss(6, frequency=LETTERS).get_activation(logits)
    torch.testing.assert_close(found, 1 / (1 + (-logits).exp()))


def test_head_width_and_settings_that_make_no_sense():
    assert ACSLLoss(6, frequency=LETTERS).get_cls_channels(6) == 7
    with pytest.raises(UsageError, match="image_counts or frequency"):
        ACSLLoss(6)
    for bad in (0, 1, -0.5):
        with pytest.raises(UsageError, match="score_thr between 0 and 1"):
            ACSLLoss(6, frequency=LETTERS, score_thr=bad)
    with pytest.raises(UsageError, match="background_column between 0 and 6, but got 7"):
        ACSLLoss(6, frequency=LETTERS, background_column=7)
    with pytest.raises(InputError, match="positions 1, 2"):
        ACSLLoss(3, frequency=["r", "x", ""])
    with pytest.raises(MismatchedInput, match="6 letters, but the detector has 5"):
        ACSLLoss(5, frequency=LETTERS)
    with pytest.raises(MismatchedInput, match="6 categories, but the detector has 5"):
        ACSLLoss(5, image_counts=IMAGES)


def train_in_a_process(rank, world):
    """Rank 0 sees objects, rank 1 background only, then no RoI at all."""
    loss = ACSLLoss(6, frequency=LETTERS)
    for rows in (200, 200 * (1 - rank)):
        labels = many_labels(rows) if rank == 0 else torch.full((rows,), 6)
        loss(random_logits(rows), labels)
    return loss.state_dict()


def test_processes_keep_step_whatever_they_see(tmp_path):
    first, second = together(2, train_in_a_process, tmp_path)
    assert first == second == {"draws.step": torch.tensor(2)}
