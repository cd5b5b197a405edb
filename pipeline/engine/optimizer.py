"""SGD as detectors are trained with it."""

import torch
from torch import nn


def sgd(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Fused SGD over the parameters that need a gradient: one pass over memory instead of four."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
