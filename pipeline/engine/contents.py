"""A checkpoint's account of itself: which parts it has, and which versions of what wrote it.

An optimizer would load without its momentum, a dictionary without one of its numbers: so the parts are listed
by path beside them, and each must be there.  Other versions may continue a run, but are told of: the end may
not be that of a run that was not interrupted.
"""

import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pipeline
from pipeline.artifacts import library_versions
from pipeline.errors import InputError, first_ten

LOG = logging.getLogger(__name__)
CONTENTS, VERSIONS = "contents", "versions"


def described(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state`, a mapping of parts, with the account of it."""
    whole = {**state, VERSIONS: dict(versions())}
    return {**whole, CONTENTS: list(_paths(whole))}


def refuse_incomplete(found: Mapping[str, Any], parts: tuple[str, ...]) -> None:
    """Refuse a checkpoint that lacks anything its account lists, or one of `parts`; or that has more.

    Raises:
        InputError: with the paths.
    """
    there = list(_paths({name: part for name, part in found.items() if name != CONTENTS}))
    listed = found.get(CONTENTS, [f"/{CONTENTS}"])  # itself is never in the list
    needed = dict.fromkeys([*listed, *(f"/{name}" for name in (*parts, VERSIONS))])
    has, known = set(there), set(listed)
    lacking = [path for path in needed if path not in has]
    extra = [path for path in there if path not in known]
    if lacking or extra:
        says = [f"{word} {first_ten(paths)}" for word, paths in (("lacks", lacking), ("has", extra)) if paths]
        raise InputError(
            f"the checkpoint lacks parts of a run, or has others: it {', and '.join(says)}",
            "start with --fresh",
        )


def _paths(content: Any, path: str = "") -> Iterator[str]:
    """The path of every part of nested dicts and lists."""
    yield path
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if isinstance(content, Mapping):
        for name, part in content.items():
            yield from _paths(part, f"{path}/{name}")


@functools.cache
def versions() -> Mapping[str, str]:
    """Of this code, with a digest of its files, and of the libraries that compute and draw."""
    folder, digest = Path(pipeline.__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return {"2drcl": pipeline.__version__, "code": digest.hexdigest()[:12], **library_versions()}


def remark_on_versions(found: Mapping[str, Any]) -> None:
    """Tell of every version that is not the one here."""
    before, here = found[VERSIONS], versions()
    names = [n for n in dict.fromkeys([*before, *here]) if before.get(n) != here.get(n)]
    if names:
        other = ", ".join(f"{n} {before.get(n, 'none')} (here {here.get(n, 'none')})" for n in names)
        LOG.warning(
            "step %s was saved by other versions: %s; the run goes on, and may end differently from one that "
            "was not interrupted (--fresh starts it anew)",
            found["step"],
            other,
        )
