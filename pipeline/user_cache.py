"""What is derived from large files and wanted again: in the user's cache folder, safe to delete at any time.

`TWODRCL_CACHE`, else `XDG_CACHE_HOME`/2drcl, else ~/.cache/2drcl.  Entries are named after what they depend
on, so none is ever out of date; those not used for two months go.  A folder that cannot be written
costs time, not the run.
"""

import contextlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

LARGE = 8 * 2**20  # bytes: reading less again is as quick as asking
DAY = 24 * 3600  # seconds
UNUSED = 60 * DAY


def folder() -> Path:
    """The cache folder; it need not exist."""
    if own := os.environ.get("TWODRCL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "2drcl"


def kept_text(name: str, make: Callable[[], str]) -> str:
    """The text kept under `name`, made and kept if there is none."""
    path = folder() / name
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")
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
        sweep(path.parent)


def sweep(place: Path) -> None:
    """Remove the entries, files or folders, that have not been used for long, and what killed processes left.

    The last use of an entry is the latest time of a file in it.
    """
    for path in place.iterdir():
        with contextlib.suppress(OSError):  # another process may be quicker
            inside = list(path.iterdir()) if path.is_dir() else []
            seconds = time.time() - max(p.stat().st_mtime for p in [path, *inside])
            if seconds > (DAY if path.suffix == ".tmp" else UNUSED):
                shutil.rmtree(path) if inside else path.unlink()
