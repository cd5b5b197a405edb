"""The registry of this project's own modules, a sibling of mmdet's below mmengine's root registry.

Any MMDetection config finds a module of ours by its scope, `type='twodrcl.ECMLoss'`, once
`custom_imports=['pipeline.finetune']` has registered it.  Our names are never found without the scope, so
that our `SeesawLoss` and mmdet's live side by side.
"""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

SCOPE = "twodrcl"  # a Python name: `2drcl` is none

MODELS = Registry("model", parent=ROOT_MODELS, scope=SCOPE)
