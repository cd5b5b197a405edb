"""RoI and anchor sampling that is a function of a key, not of the global generator's state.

mmdet's RandomSampler draws from torch's global generator: its choice depends on how many images one process
has seen, so neither a resumed run nor another number of processes repeats it.  Here the key travels with the
ground truth of an image (`set_draw_key`), and the same key gives the same choice anywhere.
"""

from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

KEY = "draw_key"


def set_draw_key(gt_instances: InstanceData, key: int) -> None:
    """Attach the key (0 <= key < 2**63) of an image's draw to its ground truth."""
    gt_instances.set_metainfo({KEY: key})


@TASK_UTILS.register_module()
class KeyedRandomSampler(RandomSampler):
    """RandomSampler whose draws depend only on the image's key; same arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._generator: np.random.Generator | None = None

    def sample(
        self, assign_result: Any, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> Any:
        """As RandomSampler.sample; without a key the global generator draws (plain mmdet behaviour).

        What is returned has the key too, for whoever draws something else for the image later in the step.
        """
        key = gt_instances.metainfo.get(KEY)
        # not torch's: on the CPU it looks at the last 32 bits of a seed only
        self._generator = None if key is None else np.random.Generator(np.random.Philox(key=int(key)))
        sampled = super().sample(assign_result, pred_instances, gt_instances, **kwargs)
        setattr(sampled, KEY, key)
        return sampled

    def random_choice(self, gallery: Tensor, num: int) -> Tensor:
        """`num` of the (N,) positions in `gallery`, without repetition."""
        if self._generator is None:
            return super().random_choice(gallery, num)
        chosen = torch.from_numpy(self._generator.choice(len(gallery), num, replace=False))
        return gallery[chosen.to(gallery.device)]
