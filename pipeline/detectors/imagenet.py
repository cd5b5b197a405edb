"""Which file holds a trunk's ImageNet weights: torchvision's, which a user fetches; nothing is downloaded.

Paper, A.1: "the supervised pre-trained ResNet in PyTorch"; that is IMAGENET1K_V1, as in MMDetection's
configs.  V2 has the same names and shapes, and comes from another recipe: its results are others.
"""

import json
import shlex
from pathlib import Path

from torchvision.models import get_weight

VERSION = "IMAGENET1K_V1"


def file_name(depth: int) -> str:
    """torchvision's own name of the file, with the first digits of its digest."""
    return str(get_weight(f"ResNet{depth}_Weights.{VERSION}").url).rsplit("/", 1)[-1]


def how_to_get(path: Path, depth: int) -> str:
    """What to run, where there is a network, so that `path` holds the weights.

    Args:
        path: where they are looked for.
        depth: of the ResNet: 18, 50 or 101.
    """
    model = f'torchvision.models.resnet{depth}(weights="{VERSION}")'
    code = f"import torch, torchvision; torch.save({model}.state_dict(), {json.dumps(str(path))})"
    return (
        f"ImageNet weights of a ResNet-{depth} are torchvision's {file_name(depth)} "
        f"(ResNet{depth}_Weights.{VERSION}); nothing is downloaded for you: copy that file there, or run "
        f"python -c {shlex.quote(code)}"
    )
