"""The losses as their official code computes them, written naively: the yardstick of `losses.py`.

Each maker takes the class counts, C and the device, and returns a function of (N, columns) logits and (N,)
labels, C = background, that keeps its state between calls.  Rows, columns and names as in pipeline.finetune.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.finetune.method import ClassCounts

Loss = Callable[[Tensor, Tensor], Tensor]
INFREQUENT, DROP_INFREQUENT = 0.0011, 0.00177


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    target = logits.new_zeros(len(logits), logits.shape[1] + 1)  # one more, for labels without a column
    target[torch.arange(len(labels), device=labels.device), labels] = 1
    return target[:, : logits.shape[1]]


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def bce(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """Sum over columns, mean over RoIs."""
    return lambda logits, labels: _binary(logits, _one_hot(logits, labels)).sum() / len(logits)


def _is_infrequent(counts: ClassCounts, threshold: float, device: torch.device) -> Tensor:
    return (torch.tensor(counts.image_counts, device=device) / counts.num_images < threshold).float()


def eql(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """1 - [object] [infrequent] [not label] as a matrix."""
    infrequent = _is_infrequent(counts, INFREQUENT, device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        target = _one_hot(logits, labels)
        is_object = (labels < num_classes).float()[:, None].expand_as(logits)
        weight = 1 - is_object * infrequent.expand_as(logits) * (1 - target)
        return (weight * _binary(logits, target)).sum() / len(logits)

    return loss


def droploss(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """EQL, and a random matrix for the background rows."""
    infrequent = _is_infrequent(counts, DROP_INFREQUENT, device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        target = _one_hot(logits, labels)
        is_object = labels < num_classes
        ratio = infrequent[labels[is_object]].sum() / is_object.sum()
        dropped = (torch.rand_like(logits) > ratio).float()
        rows = is_object.float()[:, None].expand_as(logits)
        threshold = infrequent.expand_as(logits)
        weight = 1 - (rows * threshold + (1 - rows) * threshold * dropped) * (1 - target)
        return (weight * _binary(logits, target)).sum() / len(logits)

    return loss


def eqlv2(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """Weights as a matrix, gradients again from the probabilities."""
    positive, negative = torch.zeros(num_classes, device=device), torch.zeros(num_classes, device=device)
    ratio = torch.full((num_classes,), 100.0, device=device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        target = _one_hot(logits, labels)
        low = torch.cat([1 / (1 + torch.exp(-12 * (ratio - 0.8))), ratio.new_ones(1)]).expand_as(logits)
        high = 1 + 4 * (1 - low)
        weight = high * target + low * (1 - target)
        value = (weight * _binary(logits, target)).sum() / len(logits)
        probability = logits.detach().sigmoid()
        gradient = (target * (probability - 1) + (1 - target) * probability).abs() * weight
        positive.add_((gradient * target).sum(0)[:-1])
        negative.add_((gradient * (1 - target)).sum(0)[:-1])
        ratio.copy_(positive / (negative + 1e-10))
        return value

    return loss


def seesaw(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """Factors as matrices, labels counted one by one."""
    seen = torch.zeros(num_classes + 1, device=device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        for label in labels.unique().tolist():
            seen[label] += (labels == label).sum()
        rows = labels < num_classes
        score, label, number = logits[rows, :-2], labels[rows], seen[:-1].clamp(min=1)
        target = F.one_hot(label, num_classes).float()
        ratio = number[None] / number[:, None]
        mitigation = (ratio.pow(0.8) * (ratio < 1) + (ratio >= 1))[label]
        probability = score.detach().softmax(1)
        own = probability[torch.arange(len(label), device=device), label].clamp(min=0.01)
        excess = probability / own[:, None]
        factor = mitigation * (excess.pow(2) * (excess > 1) + (excess <= 1))
        shifted = score + (factor.log() * (1 - target))
        of_classes = F.cross_entropy(shifted, label, reduction="none").sum() / len(logits)
        return of_classes + F.cross_entropy(logits[:, -2:], (~rows).long())

    return loss


def ecm(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """The surrogate probability from exponentials, then its logarithms."""
    number = torch.tensor(counts.instance_counts, dtype=torch.float64)
    number = torch.cat([number, 6.3313 * number.sum().reshape(1)])
    others = number.sum() - number
    up, down = ((1 / m**0.25).float().to(device) for m in (others, number))
    weight = (others / number * torch.log1p(number / others)).float().to(device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        target = _one_hot(logits, labels)
        yes, no = up * torch.exp(logits), down * torch.exp(-logits)
        probability = yes / (yes + no)
        return (weight * F.binary_cross_entropy(probability, target, reduction="none")).sum() / len(logits)

    return loss


def bags(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """A loop over groups, "others" drawn by a permutation."""
    number = torch.tensor(counts.instance_counts, device=device)
    group = torch.bucketize(number, torch.tensor([10, 100, 1000], device=device), right=True)
    members = [(group == g).nonzero()[:, 0] for g in range(4)]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        first, total = 0, logits.new_zeros(())
        for columns in members:
            place = torch.zeros(num_classes + 1, dtype=torch.int64, device=device)
            place[columns] = torch.arange(1, len(columns) + 1, device=device)
            label = place[labels]
            own, other = (label > 0).nonzero()[:, 0], (label == 0).nonzero()[:, 0]
            chosen = other[torch.randperm(len(other), device=device)[: 8 * len(own)]]
            part = logits[:, first : first + len(columns) + 1]
            weight = torch.zeros_like(labels, dtype=logits.dtype)
            weight[own], weight[chosen] = 1, 1
            losses = F.cross_entropy(part, label, reduction="none")
            total = total + (losses * weight).sum() / weight.sum().clamp(min=1)
            first += len(columns) + 1
        return total + F.cross_entropy(logits[:, first:], (labels == num_classes).long())

    return loss


def acsl(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """The mask filled in frequency by frequency."""
    images = torch.tensor(counts.image_counts, device=device)
    frequency = torch.bucketize(images, torch.tensor([11, 101], device=device), right=True)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        target = _one_hot(logits, labels)
        mask = (logits.detach().sigmoid() >= 0.7).float()
        background = (labels == num_classes).nonzero()[:, 0]
        mask[background] = 0
        for kind, share in enumerate((0.01, 0.1, 1.0)):
            order = background[torch.randperm(len(background), device=device)]
            rows = order[: int(share * len(background))]
            columns = (frequency == kind).nonzero()[:, 0]
            mask[rows[:, None], columns[None]] = 1
        mask[torch.arange(len(labels), device=device), labels] = 1
        return (mask * _binary(logits, target)).sum() / len(logits)

    return loss


def loce(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """Cross-entropy after the margins."""
    mean_score = torch.full((num_classes + 1,), 0.01, device=device)
    return lambda logits, labels: F.cross_entropy(logits + mean_score.log(), labels)


def bacl(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """Margins, activations and weights as matrices; the confusion matrix row by row."""
    sums = torch.zeros(num_classes, num_classes, device=device)
    number = torch.zeros(num_classes, device=device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        target, rows = _one_hot(logits, labels), labels < num_classes
        confusion = sums / number.clamp(min=1)[:, None]
        table = 0.85 * (confusion.clamp(min=1e-3) / confusion.T.clamp(min=1e-3)).log()
        margin = torch.zeros_like(logits)
        margin[rows, :-1] = table[labels[rows]]
        score = logits.detach().sigmoid()
        score[:, :-1] *= 1 - score[:, -1:]
        own = score[torch.arange(len(labels), device=device), labels][:, None]
        weight = ((score >= own) | (score >= 0.7)).float()
        weight[~rows], weight[:, -1] = 1, 1
        value = (weight * _binary(logits + margin, target)).sum() / len(logits)
        classes = logits.detach()[:, :-1].softmax(1)
        for label in labels[rows].unique().tolist():
            sums[label] += classes[labels == label].sum(0)
            number[label] += (labels == label).sum()
        return value

    return loss


def pcb(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """Both losses beside each other; the confusion matrix row by row."""
    confusion = torch.full((num_classes, num_classes), 1 / num_classes, device=device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        rows = labels < num_classes
        classes = logits.detach()[:, :-1].softmax(1)
        for label in labels[rows].unique().tolist():
            moved = 0.99 * confusion[label] + 0.01 * classes[labels == label].mean(0)
            confusion[label] = moved / moved.sum()
        entropy = F.cross_entropy(logits, labels, reduction="none")
        pulled = (confusion / confusion.sum(0)).T[labels[rows]]
        target = torch.cat([pulled, pulled.new_zeros(len(pulled), 1)], dim=1)
        divergence = F.kl_div(logits[rows].log_softmax(1), target, reduction="none").sum()
        total = entropy[~rows].sum() + 0.6 * entropy[rows].sum() + 0.4 * divergence
        return total / len(logits)

    return loss


class _Ranking(torch.autograd.Function):
    """Loops over classes and their objects, each over all negatives that could matter."""

    @staticmethod
    def forward(ctx, logits, labels, class_weights, delta, lam):  # type: ignore[no-untyped-def]
        num_classes = logits.shape[1]
        gradient = torch.zeros_like(logits)
        present = labels[labels < num_classes].unique().tolist()
        is_own = F.one_hot(labels, num_classes + 1)[:, :-1].bool()
        total = logits.new_zeros(())
        for m in present:
            objects = (labels == m).nonzero()[:, 0]
            positives = logits[objects, m]
            chosen = ~is_own & (logits >= positives.min() - delta)
            negatives, collected = logits[chosen], torch.zeros_like(logits[chosen])
            factor = class_weights[m] / (len(objects) * len(present)) * lam
            for i, row in enumerate(objects.tolist()):
                above = ((positives - positives[i]) / (2 * delta) + 0.5).clamp(0, 1)
                wrong = ((negatives - positives[i]) / (2 * delta) + 0.5).clamp(0, 1)
                rank = above.sum() + wrong.sum()
                error = wrong.sum() / rank
                collected += wrong / rank * factor
                gradient[row, m] -= error * factor
                total += error / (len(objects) * len(present))
            gradient[chosen] += collected
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, outer):  # type: ignore[no-untyped-def]
        return ctx.saved_tensors[0] * outer, None, None, None, None


def rog(counts: ClassCounts, num_classes: int, device: torch.device) -> Loss:
    """BCE plus the ranking."""
    seen = torch.zeros(num_classes + 1, device=device)
    plain = bce(counts, num_classes, device)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.add_(torch.bincount(labels, minlength=num_classes + 1))
        weights = 1 / seen[:-1].clamp(min=1)
        weights = weights / weights.sum() * num_classes
        return plain(logits, labels) + _Ranking.apply(logits[:, :-1], labels, weights, 0.5, 0.1)

    return loss


NAIVE: dict[str, Callable[[ClassCounts, int, torch.device], Loss]] = {
    maker.__name__: maker
    for maker in (bce, eql, eqlv2, droploss, seesaw, ecm, bags, acsl, pcb, loce, bacl, rog)
}
