"""Checkpoints that survive being killed while they are written.

A checkpoint is written to a temporary file, flushed, renamed, and only then are older ones removed (two are
kept).  Beside it lies its SHA-256, which is there first; a file that does not match its own is skipped loudly
and the one before is used.  Files are read with `weights_only=True`: tensors and plain data, never code.
"""

import hashlib
import io
import logging
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import file_digest, free_space, sweep, write_bytes
from pipeline.errors import EnvironmentProblem, InputError, MissingInput, UsageError

LOG = logging.getLogger(__name__)
KEPT = 2
_NAME = re.compile(r"step-(\d+)\.pth")
_FILES = r"step-\d+\.(?:pth|sha256)"
_DAMAGED = (  # what the unpickler of a damaged file has been seen to raise
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
)


class CheckpointFolder:
    """The checkpoints of one run, by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps with a checkpoint file, ascending, whether readable or not."""
        names = [_NAME.fullmatch(p.name) for p in self.folder.glob("step-*.pth")]
        return sorted(int(m.group(1)) for m in names if m)

    def refuse_full_disk(self, size: int) -> None:
        """Look for room for the checkpoints of a run: those that are kept, and one while it is written.

        Args:
            size: of one, bytes.

        Raises:
            EnvironmentProblem: there is less.
        """
        there = sum(path.stat().st_size for path in map(self._path, self.steps()))
        needed, free = (KEPT + 1) * size - there, free_space(self.folder)
        if free < needed:
            raise EnvironmentProblem(
                f"the checkpoints of this run need {needed / 2**20:.1f} MiB in {self.folder}, "
                f"where {free / 2**20:.1f} MiB are free",
                "free some space, or choose an --out on another disk: the work is kept beside it",
            )

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of `step`; others but the last `KEPT` up to it go only after it is whole.

        Later ones go too: the run that is now at `step` could not read them.
        """
        path, content = self._path(step), _serialised(state)
        sweep(self.folder, _FILES, "tmp")
        # the digest first: a kill between the two renames must not make a whole checkpoint look damaged
        write_bytes(_digest_path(path), hashlib.sha256(content).hexdigest().encode())
        write_bytes(path, content)
        kept = [s for s in self.steps() if s <= step][-KEPT:]
        for other in set(self.steps()) - set(kept):
            self._path(other).unlink(missing_ok=True)
            _digest_path(self._path(other)).unlink(missing_ok=True)

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None when there is none at all.

        Raises:
            InputError: checkpoints exist and none of them is readable.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self._path(step)
            if _is_whole(path):
                return step, load_tensors(path)
            LOG.warning("checkpoint %s is damaged: trying the one before", path)
        if steps:
            raise InputError(f"no checkpoint in {self.folder} is readable", "start over with --fresh")
        return None

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint that is whole; reads none of them."""
        return next((step for step in reversed(self.steps()) if _is_whole(self._path(step))), None)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pth"


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    digest = _digest_path(path)
    return digest.exists() and digest.read_bytes() == file_digest(path).encode()


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """torch.save, atomically.  The file's bytes depend on the content only.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    write_bytes(path, _serialised(content))


def _serialised(content: dict[str, Any]) -> memoryview:
    """The bytes of torch.save.  Through memory: torch writes the name of a file it opens itself into it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain data onto the CPU.

    Raises:
        MissingInput: no such file.
        InputError: damaged, or it holds more than tensors and plain data (such a file could run code).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(f"weights {path} do not exist") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder", f"name the file, e.g. {path / 'detector.pth'}") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
    except _DAMAGED as problem:
        raise InputError(f"{path} is not a readable file of weights: {_reason(problem)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a mapping of weights")
    return content


def _reason(problem: BaseException) -> str:
    """One line.  Torch's own advice, to switch the protection off, is not passed on."""
    text = str(problem)
    code = re.search(r"GLOBAL (\S+)", text)
    if code:
        return f"it calls {code.group(1)}, and only tensors and plain data are read"
    if not text or isinstance(problem, pickle.UnpicklingError):
        return "it is damaged, or of another kind"
    return text.splitlines()[0]


def state_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of the tensors of a state dict, by name; the same weights give the same digest anywhere."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            # any shape and type -> (bytes,)
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
