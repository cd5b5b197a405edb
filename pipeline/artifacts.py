"""Artifacts: their digests, fingerprints, manifests, and how they appear all at once or not at all.

A product is written into a hidden folder beside its place and renamed when it is whole, so that a killed
stage leaves either the old product or none.  Half-made training lives elsewhere, in a scratch folder keyed by
the fingerprint of the settings and of the inputs' digests: the same command finds it again, another does not.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pipeline
from pipeline import user_cache
from pipeline.errors import EnvironmentProblem, InputError, MismatchedInput, MissingInput, UsageError

MANIFEST = "manifest.json"
TIMING = "timing.json"  # volatile: never tracked, never in a digest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits.

    Of a large file it is remembered, as git does, for as long as size, inode and times of modification and
    change stay the same.

    Raises:
        MissingInput: there is no such file.
    """
    try:
        _refuse_endless(path)
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            settled = time.time() - state.st_mtime > 2  # a later change would show in the clock's ticks
            if state.st_size < user_cache.LARGE or not settled:
                return hashlib.file_digest(file, "sha256").hexdigest()
            times = (state.st_mtime_ns, state.st_ctime_ns)
            identity = f"{path.resolve()} {state.st_ino} {state.st_size} {times}"
            name = f"digest-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
            return user_cache.kept_digest(name, lambda: hashlib.file_digest(file, "sha256").hexdigest())
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(f"{path} does not exist") from None
    except IsADirectoryError:
        weights = path / "detector.pth"
        hint = f"name a file in it, e.g. {weights}" if weights.exists() else "name a file"
        raise InputError(f"{path} is a folder, where a file is needed", hint) from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None


def _refuse_endless(path: Path) -> None:
    """Refuse pipes and devices, which would be waited for: what is read must be there a second time."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is not a regular file", "write it to a file first")


def fingerprint(content: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change when any setting or input digest does; key order does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, deterministic to the byte; NaN and infinity are a bug here, not a value."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file through a temporary neighbour, flushed to disk, then renamed."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush and rename it there, on any failure remove it.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, re.escape(path.name), "tmp")
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left', 'file too large' and 'read-only' into the message a user can act on."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            free = free_space(path) // 2**20
            raise EnvironmentProblem(
                f"disk full while writing {path} ({free} MiB free)",
                "free some space and run the command again",
            ) from None
        if problem.errno == errno.EFBIG:
            raise EnvironmentProblem(
                f"{path} grew larger than a file may be here", "raise `ulimit -f`, or choose another disk"
            ) from None
        if problem.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            # the whole problem: what could not be opened may be another file than `path`
            raise EnvironmentProblem(f"cannot write {path}: {problem}", "choose another --out") from None
        raise


def free_space(path: Path) -> int:
    """Bytes free on the disk that `path`, which need not exist, lies on."""
    return shutil.disk_usage(_existing_parent(path)).free


def _existing_parent(path: Path) -> Path:
    return next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut; some network file systems cannot, and need not stop a run."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def sweep(folder: Path, name: str, kinds: str) -> None:
    """Remove what killed processes left as `.NAME.PID.KIND`; another live process keeps its own.

    A container's processes get the same small numbers each time, so this process's number is a dead one's:
    call it before making anything.

    Args:
        folder: where to look; need not exist.
        name, kinds: regular expressions.
    """
    pattern = re.compile(rf"\.(?:{name})\.(\d+)\.(?:{kinds})")
    for path in folder.iterdir() if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and not _is_another_alive(int(match.group(1))):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_another_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)  # asks, sends nothing
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def manifest(stage: str, settings: Any, inputs: Mapping[str, str], seed: int, **more: Any) -> dict[str, Any]:
    """What made an artifact, without anything volatile: stage, settings, input digests, seed, versions.

    Args:
        stage: the command's name.
        settings: plain data (`settings.to_plain`).
        inputs: name of each input -> its digest.
        seed: the seed of every draw.
        more: facts the next stage checks or shows, plain data.
    """
    content = {"stage": stage, "settings": settings, "inputs": dict(inputs), "seed": seed, **more}
    content["fingerprint"] = fingerprint(
        {"stage": stage, "settings": settings, "inputs": dict(inputs), "seed": seed}
    )
    content["versions"] = {"2drcl": pipeline.__version__, **library_versions()}
    return content


def library_versions() -> dict[str, str]:
    """What is installed of the libraries that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "torchvision", "mmdet", "numpy", "pillow", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_manifest(folder: Path, stage: str) -> dict[str, Any]:
    """The manifest of `folder`, which must have been written by `stage`.

    Raises:
        MissingInput: no such folder, or it holds no manifest.
        MismatchedInput: another stage wrote it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(f"{folder} holds no finished {stage}", f"run `2drcl {stage}` first") from None
    except (OSError, ValueError) as problem:
        raise InputError(
            f"{path} is broken: {problem}", f"remove {folder} and run `2drcl {stage}` again"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no manifest", f"remove {folder} and run `2drcl {stage}` again")
    if content.get("stage") != stage:
        raise MismatchedInput(f"{folder} was written by `{content.get('stage')}`, not by `{stage}`")
    return content


def is_current(folder: Path, stage: str, wanted: str) -> bool:
    """Whether `folder` already holds the finished product with fingerprint `wanted`, and all its files.

    Raises:
        UsageError: the folder belongs to another stage, or holds things that no stage wrote.
    """
    refuse_foreign(folder, stage)
    if not (folder / MANIFEST).exists():
        return False
    found = read_manifest(folder, stage)
    return found.get("fingerprint") == wanted and all(
        (folder / name).exists() for name in found.get("files", [])
    )


def refuse_foreign(folder: Path, stage: str) -> None:
    """Refuse to replace a folder that is not an earlier product of `stage`.

    Raises:
        UsageError: naming what is in the way.
    """
    place = folder.resolve()
    if Path.cwd().is_relative_to(place) or os.path.ismount(place):
        raise UsageError(
            f"--out {folder} cannot be replaced: the command runs in it, or it is a mount point",
            "name a folder inside it",
        )
    if not _existing_parent(place).is_dir():
        raise UsageError(f"--out {folder}: {_existing_parent(place)} is a file", "name a folder")
    if not place.is_dir() or not any(place.iterdir()):
        return
    found = _stage_of(place)
    leftovers_only = all(p.name in (TIMING, ".gitignore") for p in place.iterdir())  # DVC removed the rest
    if found != stage and not leftovers_only:
        owner = f"belongs to `2drcl {found}`" if found else "holds files of somebody else"
        raise UsageError(f"--out {folder} {owner}", "name an empty folder, or another one")


def _stage_of(folder: Path) -> str | None:
    """The stage that made `folder`, or None when that cannot be told."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("stage") if isinstance(content, dict) else None


@contextlib.contextmanager
def publishing(folder: Path, stage: str) -> Iterator[Path]:
    """Yield an empty hidden folder; on success it takes the place of `folder`, on failure it vanishes.

    Raises:
        UsageError: `folder` is not this stage's to replace.
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    refuse_foreign(folder, stage)
    place = folder.resolve()  # a link to a larger disk stays one
    temporary = place.with_name(f".{place.name}.{os.getpid()}.new")
    retired = place.with_name(f".{place.name}.{os.getpid()}.old")
    with disk_errors(folder):
        sweep(place.parent, re.escape(place.name), "new|old")
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _flush(path)
            if place.exists():
                os.replace(place, retired)
            os.replace(temporary, place)
            _flush_folder(place.parent)
        finally:
            if retired.exists() and not place.exists():
                os.replace(retired, place)  # interrupted between the two renames
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(retired, ignore_errors=True)


def scratch(out: Path, stage: str, wanted: str) -> Path:
    """The untracked folder of unfinished work with this fingerprint, beside the products: `.work/STAGE/...`.

    It lies in `artifacts/.work` when `out` is inside an `artifacts` folder, else beside `out`.
    """
    parents = [p for p in out.absolute().parents if p.name == "artifacts"]
    root = parents[0] if parents else out.absolute().parent
    return root / ".work" / stage / wanted
