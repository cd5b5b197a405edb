"""Initial weights that a stage names and does not find: which file to get, and how."""

from pathlib import Path

from pipeline import artifacts
from pipeline.errors import MissingInput

PRODUCT = "detector.pth"  # of pretrain and finetune


def initial_digest(path: Path, depth: int, nothing: str = "null") -> str:
    """Digest of initial weights.

    Args:
        path: of the file.
        depth: of the detector's ResNet.
        nothing: what `init` is set to for a start from nothing.

    Raises:
        MissingInput: no such file.
    """
    if not path.exists():
        raise MissingInput(f"initial weights {path} do not exist", _remedy(path, depth, nothing))
    return artifacts.file_digest(path)


def _remedy(path: Path, depth: int, nothing: str) -> str:
    if path.name == PRODUCT:
        return f"run `2drcl pretrain` first, name a file with --init, or set init: {nothing}"
    from pipeline.detectors.imagenet import how_to_get  # torchvision, for this sentence alone

    return f"{how_to_get(path, depth)}; or name another file with --init, or set init: {nothing}"
