"""What torch raises when the machine gives out in the middle of work, as errors that say what to do.

Memory of a GPU; a loader process that was killed (most often by the kernel, for want of memory) or does not
answer; another process of the run that died or hangs.  Everything else passes as it is: it is a bug.
"""

import contextlib
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.errors import MachineFailed

_LOADER = re.compile(r"DataLoader (worker|timed out)")
_GROUP = re.compile(
    r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Socket closed|Application timeout"
)
GROUP_FAILED = "another process of the run died or hangs"
CONTINUES = "the same command continues from the last checkpoint"


@contextlib.contextmanager
def explained(where: Callable[[], str], memory_hint: Callable[[], str]) -> Iterator[None]:
    """Turn failures of the machine into the user's errors.

    Args:
        where: what was being done, with sizes.
        memory_hint: what to change when a GPU's memory does not do.

    Raises:
        MachineFailed: exit code 4.
    """
    try:
        yield
    except torch.OutOfMemoryError as problem:
        message = f"{where()}: out of GPU memory: {_first_line(problem)}"
        raise MachineFailed(message, memory_hint()) from problem
    except RuntimeError as problem:
        if _LOADER.search(str(problem)):
            hint = f"look for a full memory or a hanging disk, or set fewer workers; {CONTINUES}"
            raise MachineFailed(f"{where()}: {_first_line(problem)}", hint) from problem
        if _GROUP.search(str(problem)):
            message = f"{where()}: {GROUP_FAILED}: {_first_line(problem)}"
            raise MachineFailed(message, CONTINUES) from problem
        raise


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def sizes_of(batch: Any) -> str:
    """`4 images on 1216 x 800 pixels`, of samples that have a canvas; else the shape or the number."""
    if isinstance(batch, torch.Tensor):
        return f"a batch of shape {tuple(batch.shape)}"
    canvases = {tuple(s.canvas_wh) for s in batch if hasattr(s, "canvas_wh")}
    pixels = " and ".join(f"{width} x {height}" for width, height in sorted(canvases))
    return f"{len(batch)} images" + (f" on {pixels} pixels" if pixels else "")


def smaller_parts(images: int, accumulate: int) -> str:
    """What to change when a process's batch does not fit, as the next value of `accumulate` if there is one.

    Args:
        images: of this process and step.
        accumulate: parts they are computed in now.
    """
    finer = next((n for n in range(accumulate + 1, images + 1) if images % n == 0), None)
    parts = f"set accumulate: {finer} (the same batch in more parts), or " if finer else "set "
    return f"{parts}smaller short_sides and long_side, or use more GPUs; {CONTINUES}"


@contextlib.contextmanager
def ending_loaders() -> Iterator[None]:
    """Kill what loader processes are left when the body fails.

    They ignore SIGTERM, so one that hangs would make torch, and then Python's exit, wait for it for ever.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except (Exception, KeyboardInterrupt):  # not the close of a generator, whose consumer has processes too
        # torch answers the death of a loader with an error of its own, wherever the main thread is then
        answer = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()
                process.join()
        signal.signal(signal.SIGCHLD, answer)
        raise
