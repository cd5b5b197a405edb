"""Fine-tuning with long-tailed losses.  `custom_imports=['pipeline.finetune']` in any mmdet config registers
every loss of the table under the scope `twodrcl`, e.g. `loss_cls=dict(type='twodrcl.ECMLoss', ...)`.
"""

import importlib

from pipeline.finetune.methods import METHODS
from pipeline.finetune.registration import when_registries_exist


def _register_losses() -> None:
    from pipeline.detectors.registry import MODELS  # not above: it imports torch and mmengine

    on_atss = {method.on_atss.loss for method in METHODS.values() if method.on_atss}
    for path in sorted(on_atss | {method.loss for method in METHODS.values()}):
        module, _, name = path.rpartition(".")
        if module:  # mmdet's own losses are named without one
            MODELS.register_module(module=getattr(importlib.import_module(module), name))


when_registries_exist(_register_losses)
