"""The product of training: detector.pth and config.py, a plain MMDetection detector.

`mmdet.apis.init_detector(config, checkpoint)` works on them where mmcv is compiled, and here after
`import pipeline.detectors`.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from pipeline.artifacts import write_bytes
from pipeline.detectors.build import build_model, preprocessor_config
from pipeline.engine.checkpoint import load_tensors, save_tensors
from pipeline.errors import InputError, MismatchedInput, MissingInput

WEIGHTS, CONFIG = "detector.pth", "config.py"


def publish_detector(
    folder: Path,
    state: Mapping[str, Tensor],
    model: Mapping[str, Any],
    classes: Sequence[str],
    test_wh: tuple[int, int],
    meta: Mapping[str, Any],
    custom_imports: Sequence[str] = (),
) -> None:
    """Write detector.pth and config.py.

    Args:
        folder: of the product.
        state: the detector's tensors, MMDetection's names.
        model: the model config it was built from.
        classes: category names in label order.
        test_wh: long and short side at test time.
        meta: further plain facts for `meta`.
        custom_imports: modules the config needs (a method's own loss).
    """
    dataset_meta = {"classes": list(classes), "palette": "random"}  # random: mmdet's word, always the same
    content = {"state_dict": dict(state), "meta": {"dataset_meta": dataset_meta, **meta}}
    save_tensors(folder / WEIGHTS, content)
    config = Config(_config(model, classes, test_wh, custom_imports))
    write_bytes(folder / CONFIG, config.pretty_text.encode())


def _config(
    model: Mapping[str, Any], classes: Sequence[str], test_wh: tuple[int, int], custom_imports: Sequence[str]
) -> dict[str, Any]:
    facts = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pipeline = [
        # stored orientation, as in pipeline.data.images
        {"type": "LoadImageFromFile", "color_type": "color_ignore_orientation"},
        {"type": "Resize", "scale": tuple(test_wh), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": facts},
    ]
    dataset = {
        "type": "CocoDataset",
        # palette: COCO's 80 colours are too few for LVIS, and mmdet's drawing stops there
        "metainfo": {"classes": tuple(classes), "palette": None},
        "ann_file": "annotations.json",
        "data_prefix": {"img": "images/"},
        "test_mode": True,
        "lazy_init": True,
        "pipeline": pipeline,
    }
    config: dict[str, Any] = {"default_scope": "mmdet", "model": _stock(model)}
    if custom_imports:
        config["custom_imports"] = {"imports": list(custom_imports), "allow_failed_imports": False}
    config["test_dataloader"] = {
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": dataset,
    }
    backends = [{"type": "LocalVisBackend"}]
    config["visualizer"] = {"type": "DetLocalVisualizer", "vis_backends": backends, "name": "visualizer"}
    return config


def _stock(model: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with MMDetection's own sampler: ours is a matter of training here."""

    def swap(node: Any) -> Any:
        if isinstance(node, Mapping):
            node = {k: swap(v) for k, v in node.items()}
            return {**node, "type": "RandomSampler"} if node.get("type") == "KeyedRandomSampler" else node
        return [swap(v) for v in node] if isinstance(node, list) else copy.copy(node)

    return swap(model)


def load_published(weights: Path) -> tuple[nn.Module, list[str], tuple[int, int]]:
    """Build the detector beside `weights` and load it.

    Args:
        weights: a detector.pth with its config.py beside it.

    Returns:
        the model in eval mode, its class names, and (long, short) side at test time.

    Raises:
        MissingInput: detector.pth or config.py is not there.
        InputError: one of them is not what `publish_detector` writes.
        MismatchedInput: they do not belong together.
    """
    content = load_tensors(weights)
    config_path = weights.with_name(CONFIG)
    if not config_path.exists():
        raise MissingInput(f"{config_path} does not exist", "keep config.py beside detector.pth")
    try:
        state, classes = content["state_dict"], list(content["meta"]["dataset_meta"]["classes"])
    except (KeyError, TypeError):
        raise InputError(f"{weights} is no published detector: it has {sorted(map(str, content))}") from None
    config, test_wh = _read_config(config_path)
    model = build_model(config.model, seed=0)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as problem:
        raise MismatchedInput(f"{weights} does not fit {config_path}: {str(problem)[:500]}") from None
    return model.eval(), classes, test_wh


def _read_config(path: Path) -> tuple[Config, tuple[int, int]]:
    """The config, and (long, short) side at test time.

    Raises:
        InputError: it is not of our making: pipeline.detectors.inference would prepare images in another way.
    """
    try:
        config = Config.fromfile(str(path))
        normalisation = {key: config.model.data_preprocessor[key] for key in ("mean", "std", "bgr_to_rgb")}
        steps = config.test_dataloader.dataset.pipeline
        scale = next(step["scale"] for step in steps if step["type"] == "Resize")
    except (SyntaxError, KeyError, AttributeError, StopIteration) as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise InputError(f"{path} is no config of a published detector ({reason})") from None
    ours = preprocessor_config()
    if any(normalisation[key] != ours[key] for key in normalisation):
        raise InputError(
            f"{path} normalises images in another way: {normalisation}",
            "run it with mmdet.apis.inference_detector instead",
        )
    return config, (int(max(scale)), int(min(scale)))
