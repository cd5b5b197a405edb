"""Weights in detectron2's files: .pkl of numpy arrays (a backbone, or a model of its zoo) or .pth of tensors.

What its names do not say is which pixels the network takes: RGB normalised as torchvision does (converted
backbones, `2drcl export`), or BGR of 0 to 255 minus the mean (its zoo).  The stem of the latter is rewritten:

    y_c = 255 std_c x_c        so  w_ours[:, c] = 255 std_c w_theirs[:, 2 - c]

Its zoo's ResNets also stride in the 1x1 convolutions (STRIDE_IN_1X1, its default), ours in the 3x3 as
torchvision's: such a file has the same names and shapes, and is another network.

Sources: detectron2/checkpoint/detection_checkpoint.py, config/defaults.py,
tools/convert-torchvision-to-d2.py.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.photometric import STD
from pipeline.detectors.exchange import DETECTRON2, from_layout
from pipeline.detectors.settings import Pixels
from pipeline.errors import InputError, MismatchedInput, MissingInput

STEM = "backbone.conv1.weight"
NOT_LOADED = ("stem.fc.", "proposal_generator.anchor_generator.", "pixel_mean", "pixel_std")
_BACKBONE = ("stem.", "res2.", "res3.", "res4.", "res5.")


class _ArraysOnly(pickle.Unpickler):
    """Arrays and plain data: a pickle may name any function, and would call it."""

    ALLOWED = (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, and only arrays and plain data are read")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """The content of a .pkl of arrays, these as tensors.

    Raises:
        MissingInput: no such file.
        InputError: damaged, or it holds more than arrays and plain data.
    """
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError:
        raise MissingInput(f"weights {path} do not exist") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
    except Exception as problem:  # a damaged pickle raises anything
        raise InputError(f"{path} is not a readable file of weights: {problem}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a mapping of weights")
    named = content.get("model", content)
    if not isinstance(named, Mapping):
        raise InputError(f"{path} holds no mapping of weights under `model`")
    tensors = {n: torch.from_numpy(np.array(a)) for n, a in named.items() if isinstance(a, np.ndarray)}
    return {**{k: v for k, v in content.items() if isinstance(v, str)}, "model": tensors}


def is_detectron2(content: Mapping[str, Any]) -> bool:
    """Whether a file's content has detectron2's names."""
    names = content.get("model")
    return isinstance(names, Mapping) and any(
        str(n).startswith(("backbone.bottom_up.", *_BACKBONE)) for n in names
    )


def from_detectron2(content: Mapping[str, Any], path: Path, pixels: Pixels) -> tuple[dict[str, Tensor], bool]:
    """Our names and our pixels, and whether it is a whole detector.

    Args:
        content: of the file; its `model` maps detectron2's names to tensors.
        path: for messages.
        pixels: what the network takes; `auto`: what the file says of its author.

    Raises:
        MismatchedInput: the file does not say which pixels, or is of a detector that ours has no place for.
    """
    kept = {n: t for n, t in content["model"].items() if isinstance(t, Tensor)}
    named = {n: t for n, t in kept.items() if not n.startswith(NOT_LOADED)}
    is_detector = not all(n.startswith(_BACKBONE) for n in named)
    if not is_detector:
        named = {f"backbone.bottom_up.{n}": t for n, t in named.items()}
    named = {n: t for n, t in named.items() if not n.endswith("num_batches_tracked")}
    state = from_layout(named, DETECTRON2)
    if _pixels(content, path, pixels) == "bgr":
        scale = 255 * torch.tensor(STD).view(1, 3, 1, 1)
        state[STEM] = state[STEM].flip(1) * scale
    return state, is_detector


def _pixels(content: Mapping[str, Any], path: Path, asked: Pixels) -> Pixels:
    if asked != "auto":
        return asked
    if content.get("__author__") == "torchvision":
        return "rgb"
    raise MismatchedInput(
        f"{path} is detectron2's, and does not say which pixels its network takes",
        "set detector.init_pixels: rgb (converted from torchvision, or exported by 2drcl) or bgr (its zoo, "
        "0 to 255; its own ResNets stride in the 1x1 convolutions: another network than ours)",
    )
