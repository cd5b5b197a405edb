"""The losses written out RoI by RoI and class by class, in float64, for autograd: slow, and plain to read.

Each takes the logits (N, K), the labels as a list, and the constants of its paper, and returns (N,) losses
before any weight or mean.  C = classes, label C = background.
"""

import itertools
import math

import torch
import torch.nn.functional as F


def log_sigmoid(x):
    return F.logsigmoid(x)


def binary(logits, labels, weight):
    """Sum over columns of weight(row, column) x binary cross-entropy with the one-hot label."""
    rows = []
    for i, label in enumerate(labels):
        terms = [
            weight(i, j) * -(log_sigmoid(s) if j == label else log_sigmoid(-s))
            for j, s in enumerate(logits[i])
        ]
        rows.append(torch.stack(terms).sum())
    return stacked(rows, logits)


def stacked(rows, logits):
    return torch.stack(rows) if rows else logits.sum(dim=1)


def bce(logits, labels):
    return binary(logits, labels, lambda i, j: 1.0)


def eql(logits, labels, freq, lambda_, strict):
    num_classes = logits.shape[1]
    is_rare = [f < lambda_ if strict else f <= lambda_ for f in freq]

    def weight(i, j):
        return 0.0 if labels[i] < num_classes and is_rare[j] and j != labels[i] else 1.0

    return binary(logits, labels, weight)


def droploss(logits, labels, freq, lambda_, uniform):
    num_classes = logits.shape[1]
    is_rare = [f < lambda_ for f in freq]
    objects = [label for label in labels if label < num_classes]
    rho = sum(is_rare[label] for label in objects) / len(objects) if objects else math.nan

    def weight(i, j):
        if j == labels[i] or not is_rare[j]:
            return 1.0
        return 0.0 if labels[i] < num_classes else float(not uniform[i, j] > rho)

    return binary(logits, labels, weight)


def eqlv2(logits, labels, ratio, gamma, mu, alpha):
    """Losses, and the sums of positive and negative gradients of each class."""
    num_classes = logits.shape[1] - 1
    low = [1 / (1 + math.exp(-gamma * (g - mu))) for g in ratio] + [1.0]

    def weight(i, j):
        return 1 + alpha * (1 - low[j]) if j == labels[i] else low[j]

    pulls, pushes = [0.0] * num_classes, [0.0] * num_classes
    for i, label in enumerate(labels):
        for j in range(num_classes):
            p = float(logits[i, j].detach().sigmoid())
            if j == label:
                pulls[j] += weight(i, j) * (1 - p)
            else:
                pushes[j] += weight(i, j) * p
    return binary(logits, labels, weight), pulls, pushes


def ecm(logits, labels, instances, fg_bg_ratio):
    n = [max(1, k) for k in instances]
    n = [*n, fg_bg_ratio * sum(n)]
    m = [sum(n) - k for k in n]
    a = [m_j / n_j for m_j, n_j in zip(m, n, strict=True)]
    weights = [a_j * math.log1p(1 / a_j) for a_j in a]
    up, down = [m_j**-0.25 for m_j in m], [n_j**-0.25 for n_j in n]
    # the surrogate's log odds: w+ e^s / (w- e^-s)
    surrogate = 2 * logits + torch.tensor([math.log(u / d) for u, d in zip(up, down, strict=True)])
    return binary(surrogate, labels, lambda i, j: weights[j])


def seesaw(logits, labels, seen, p, q, eps):
    """Losses of the classes and of objectness."""
    num_classes = logits.shape[1] - 2
    of_classes, of_objects = [], []
    for row, label in zip(logits, labels, strict=True):
        of_objects.append(-row[num_classes:].log_softmax(0)[0 if label < num_classes else 1])
        if label == num_classes:
            of_classes.append(0 * row.sum())
            continue
        score = row[:num_classes]
        probability = score.detach().softmax(0)
        factors = []
        for j in range(num_classes):
            mitigation = min(1.0, max(1, seen[j]) / max(1, seen[label])) ** p
            excess = float(probability[j] / probability[label].clamp(min=eps))
            factors.append(1.0 if j == label else mitigation * max(1.0, excess) ** q)
        of_classes.append(-(score + torch.tensor(factors, dtype=score.dtype).log()).log_softmax(0)[label])
    return stacked(of_classes, logits), stacked(of_objects, logits)


def bags(logits, labels, instances, splits, members):
    """(N,) shares whose sum is the loss; members: (G, N) bool, who was drawn."""
    bounds = [0, *splits, math.inf]
    groups = [
        [c for c, n in enumerate(instances) if low <= n < high] for low, high in itertools.pairwise(bounds)
    ]
    shares, first = 0 * logits.sum(dim=1), 0
    for group, drawn in zip([*groups, [len(instances)]], members, strict=True):
        number = max(1, int(drawn.sum()))
        columns = logits[:, first : first + 1 + len(group)].log_softmax(1)
        for i, label in enumerate(labels):
            place = 1 + group.index(label) if label in group else 0
            shares = shares - F.one_hot(torch.tensor(i), len(labels)) * columns[i, place] * (
                float(drawn[i]) / number
            )
        first += 1 + len(group)
    return shares


def acsl(logits, labels, letters, drawn, score_thr):
    """drawn: (3, N) bool, which background RoIs suppress rare, common, frequent classes."""
    num_classes = logits.shape[1] - 1

    def weight(i, j):
        if j == labels[i]:
            return 1.0
        if labels[i] < num_classes:
            return float(logits[i, j].detach().sigmoid() >= score_thr)
        return float(drawn["rcf".index(letters[j]), i])

    return binary(logits, labels, weight)


def pcb_confusion(confusion, logits, labels, momentum):
    """The matrix after a step; confusion: a list of rows, tensors (C,)."""
    num_classes = len(confusion)
    rows = logits.detach()[:, :num_classes].softmax(1) if num_classes else logits
    for c in range(num_classes):
        own = [rows[i] for i, label in enumerate(labels) if label == c]
        if own:
            moved = momentum * confusion[c] + (1 - momentum) * torch.stack(own).mean(0)
            confusion[c] = moved / moved.sum()
    return confusion


def pcb(logits, labels, confusion, strength):
    num_classes, rows = len(confusion), []
    for row, label in zip(logits.log_softmax(1) if len(logits) else logits, labels, strict=True):
        if label == num_classes:
            rows.append(-row[label])
            continue
        column = torch.stack([confusion[c][label] for c in range(num_classes)])
        target = column / column.sum()
        pull = torch.stack([t * (t.log() - s) for t, s in zip(target, row, strict=False) if t > 0]).sum()
        rows.append(-(1 - strength) * row[label] + strength * pull)
    return stacked(rows, logits)


def loce(logits, labels, mean_score):
    shifted = logits + torch.tensor(mean_score, dtype=logits.dtype).log()
    rows = [-row.log_softmax(0)[label] for row, label in zip(shifted, labels, strict=True)]
    return stacked(rows, logits)


def bacl(logits, labels, sums, number, alpha, prob_thr, reweight):
    """sums: (C, C) and number: (C,) of the steps before."""
    num_classes = logits.shape[1] - 1
    q = (sums / number.clamp(min=1)[:, None]).tolist()
    margin = torch.zeros_like(logits)
    keep = [[1.0] * (num_classes + 1) for _ in labels]
    for i, label in enumerate(labels):
        if label == num_classes:
            continue
        score = logits[i].detach().sigmoid() * (1 - logits[i, -1].detach().sigmoid())
        for j in range(num_classes):
            margin[i, j] = alpha * math.log(max(q[label][j], 1e-3) / max(q[j][label], 1e-3))
            if reweight and not (score[j] >= score[label] or score[j] >= prob_thr):
                keep[i][j] = 0.0
    return binary(logits + margin, labels, lambda i, j: keep[i][j])


def bacl_counts(sums, number, logits, labels):
    """Add a step's softmax rows, in place."""
    for i, label in enumerate(labels):
        if label < len(number):
            sums[label] += logits[i, :-1].detach().softmax(0)
            number[label] += 1


def rog(class_logits, labels, seen, gamma, lam, delta):
    """The mean ranking error, and its hand-written gradient (N, C)."""
    num_classes = class_logits.shape[1]
    s = class_logits.detach()

    def step(x):
        return min(1.0, max(0.0, x / (2 * delta) + 0.5))

    present = sorted({label for label in labels if label < num_classes})
    raw = [max(1.0, n) ** -gamma for n in seen[:num_classes]]
    weights = [num_classes * r / sum(raw) for r in raw]
    value, gradient = 0.0, torch.zeros_like(s)
    for m in present:
        own = [i for i, label in enumerate(labels) if label == m]
        share = 1 / (len(own) * len(present))
        for i in own:
            wrong = {
                (r, c): step(float(s[r, c] - s[i, m]))
                for r in range(len(labels))
                for c in range(num_classes)
                if c != labels[r]
            }
            false = sum(wrong.values())
            rank = false + sum(step(float(s[k, m] - s[i, m])) for k in own)
            value += share * false / rank
            gradient[i, m] -= lam * weights[m] * share * false / rank
            for (r, c), h in wrong.items():
                gradient[r, c] += lam * weights[m] * share * h / rank
    return value, gradient
