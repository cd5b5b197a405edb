"""What is derived from large files and wanted again: in the user's cache folder.

`TWODRCL_CACHE`/2drcl, else `XDG_CACHE_HOME`/2drcl, else ~/.cache/2drcl; to be deleted whenever nothing runs.
Entries are named after what they depend on, so none is ever out of date; those not used for two months go.
A folder that cannot be written costs time, not the run.
"""

import contextlib
import os
import re
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

LARGE = 8 * 2**20  # bytes: reading less again is as quick as asking
DAY = 24 * 3600  # seconds
UNUSED = 60 * DAY
DIGEST = re.compile("[0-9a-f]{64}")
ENTRY = re.compile(r"(digest|annotations|masks)-[0-9a-f-]+(\.npz)?")
LEFT_OVER = re.compile(rf"\.{ENTRY.pattern}\.\d+\.tmp")


def folder() -> Path:
    """The cache folder; it need not exist."""
    base = os.environ.get("TWODRCL_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "2drcl"


def kept_digest(name: str, make: Callable[[], str]) -> str:
    """The digest kept under `name`, made and kept if there is none; a damaged entry is made again."""
    path = folder() / name
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="ascii")
        if DIGEST.fullmatch(text):
            os.utime(path)
            return text
    made = make()
    _keep(path, lambda file: file.write(made.encode()))
    return made


def kept_arrays(name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays kept under `name`, made and kept if there are none; a damaged entry is made again."""
    path = folder() / f"{name}.npz"
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
        with np.load(path, allow_pickle=False) as found:
            arrays = dict(found)
        os.utime(path)
        return arrays
    made = dict(make())
    _keep(path, lambda file: np.savez(file, **made))  # type: ignore[arg-type]
    return made


def _keep(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write an entry through a temporary neighbour; leave nothing where that is not possible."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sweep(path.parent)


def is_unused(path: Path) -> bool:
    """Whether an entry has not been used for so long that it may go."""
    return time.time() - path.stat().st_mtime > UNUSED


def _sweep(place: Path) -> None:
    """Remove entries that have not been used for long, and what killed processes left; no file of others."""
    for path in place.iterdir():
        with contextlib.suppress(OSError):  # another process may be quicker
            left = LEFT_OVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > DAY
            if left or (ENTRY.fullmatch(path.name) and is_unused(path)):
                path.unlink()
