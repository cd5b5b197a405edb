"""Feature hallucination of BACL (Qi et al., TMM 2024); official: Tianhao-Qi/BACL,
mmdet/models/roi_heads/bbox_heads/fhm_convfc_bbox_head.py.

For every class a running mean and variance of the classifier's input is kept.  For every image some classes
are drawn, the less the true class stands out the likelier, and features drawn from their Gaussians are
classified beside those of the batch.

R = rows collected at once, B = images of this process, C = foreground classes, D = width of the classifier's
input.
"""

import torch
from torch import Tensor, nn

from pipeline.finetune.head_contract import sum_over_processes
from pipeline.finetune.weak_classes import draw_classes


@torch.no_grad()
def sums_of_classes(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Per class the sums of the features and of their squares, and the number of rows.

    Args:
        features: (R, D); labels: (R,) int64 in 0..C, C left out.

    Returns:
        (C, 2 D + 1) float64: a variance from sums needs the digits.
    """
    features = features.double()
    rows = torch.cat([features, features.square(), torch.ones_like(features[:, :1])], dim=1)
    total = rows.new_zeros(num_classes + 1, rows.shape[1])
    return total.index_add(0, labels, rows)[:-1]  # (R, 2 D + 1) -> (C, 2 D + 1)


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(C, 2 D + 1), see `sums_of_classes` -> means (C, D), unbiased variances (C, D), rows (C, 1).

    The variance of a single row is 0.
    """
    width = sums.shape[1] // 2
    sum_1, sum_2, number = sums.split([width, width, 1], dim=1)
    mean = sum_1 / number.clamp(min=1)
    variance = (sum_2 - number * mean.square()) / (number - 1).clamp(min=1)
    return mean, variance.clamp(min=0), number


class FeatureHallucination(nn.Module):
    """Gaussians of the classifier's inputs, one per class.

    Differences from the official code: it collects and draws per process, from numpy's and torch's global
    generators, so that neither two processes nor a resumed run repeat one; here all processes keep the same
    numbers, and whoever calls `sample` draws for each image.

    Args:
        num_classes: C.
        feature_width: D.
        decay_ratio: weight of a step in the running mean and variance, in (0, 1]; the first counts fully.
        sampled_num_classes, sampled_num_features: classes drawn for an image, and features of each.  The
            official code draws 8 classes for a process, which has 2 images.
        synchronize: collect over all processes; False is the official way, and a resumed run then gives every
            process the numbers of the first.  True makes `collect` a collective: every process calls it once
            a step.
    """

    feature_prototype: Tensor
    feature_variance: Tensor
    feature_used: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_width: int = 1024,
        decay_ratio: float = 0.1,
        sampled_num_classes: int = 4,
        sampled_num_features: int = 12,
        synchronize: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.decay_ratio, self.synchronize = num_classes, decay_ratio, synchronize
        self.sampled_num_classes, self.sampled_num_features = sampled_num_classes, sampled_num_features
        self.register_buffer("feature_prototype", torch.zeros(num_classes, feature_width))
        self.register_buffer("feature_variance", torch.zeros(num_classes, feature_width))
        self.register_buffer("feature_used", torch.zeros(num_classes))

    @torch.no_grad()
    def collect(self, features: Tensor, labels: Tensor) -> None:
        """Take in the classifier's inputs of boxes jittered around the objects.

        Args:
            features: (R, D); labels: (R,) int64 in 0..C, C left out.
        """
        sums = sums_of_classes(features, labels, self.num_classes)
        mean, variance, number = mean_and_variance(sum_over_processes(sums) if self.synchronize else sums)
        rate = torch.where(self.feature_used[:, None] > 0, self.decay_ratio, 1.0)  # (C) -> (C, 1)
        rate = torch.where(number > 0, rate.double(), 0.0)
        self.feature_prototype.copy_(rate * mean + (1 - rate) * self.feature_prototype)
        self.feature_variance.copy_(rate * variance + (1 - rate) * self.feature_variance)
        self.feature_used.copy_(self.feature_used.maximum((number > 0)[:, 0].float()))

    @property
    def draws_per_image(self) -> tuple[int]:
        """Shape of what chooses the classes of an image."""
        return (self.sampled_num_classes,)

    @property
    def noise_per_image(self) -> tuple[int, int, int]:
        """Shape of the normal numbers of an image."""
        width = self.feature_prototype.shape[1]
        return self.sampled_num_classes, self.sampled_num_features, width

    @torch.no_grad()
    def sample(self, correct_ratio: Tensor, choice: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw weak classes with replacement, and features of each.

        Args:
            correct_ratio: (C,) in [0, 1], see `FCBLLoss.correct_ratio`.
            choice: (B, sampled_num_classes) numbers in [0, 1).
            noise: (B, sampled_num_classes, sampled_num_features, D) of a standard normal.

        Returns:
            (S, D) features, (S,) int64 labels and (S,) label weights, 0 for classes not collected yet: the
            host does not know how many to drop.  S = B x `sampled_num_classes` x `sampled_num_features`.
        """
        device = self.feature_prototype.device
        classes = draw_classes(1 - correct_ratio, choice.flatten().to(device, non_blocking=True))
        labels = classes.repeat_interleave(self.sampled_num_features)  # (B 4) -> (S)
        noise = noise.flatten(0, 2).to(device, non_blocking=True)  # (B, 4, 12, D) -> (S, D)
        features = self.feature_prototype[labels] + self.feature_variance[labels].sqrt() * noise
        return features, labels, self.feature_used[labels]
