"""A spy for what would make the host wait for the device; it works on CPU tensors too.

Two nets, because CPU tensors hide much: what reaches the dispatcher (`.item()`, `nonzero`), and the calls
themselves (`.cpu()`, `.tolist()`, `.numpy()` of a CPU tensor dispatch nothing).
"""

import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU_ALONE = {
    "roi_align_forward",  # looks for NaN where a kernel would end the process
    "_counted_on_cpu",  # bincount, where index_add would be slow
}


class _Dispatched(TorchDispatchMode):
    """Operations whose result, or the size of whose result, the host needs before it can go on."""

    WAITS = (
        "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "allclose", "_unique2",
        "unique_dim", "unique_consecutive", "bincount",
    )  # fmt: skip

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if (name in self.WAITS or _lists_a_mask(name, args) or _counts(func, kwargs)) and not _on_cpu_alone():
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    """Methods that bring a tensor to the host."""

    WAITS = ("cpu", "tolist", "numpy", "item", "__array__", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if (name in self.WAITS or _goes_to_the_cpu(name, args, kwargs or {})) and not _on_cpu_alone():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Syncs:
    """While it is entered, `found` collects the names of what the host would wait for."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._modes = (_Called(self.found), _Dispatched(self.found))

    def __enter__(self) -> "Syncs":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def _lists_a_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask: it is turned into places with `nonzero`, inside the kernel."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    kinds = (torch.bool, torch.uint8)
    return any(index is not None and index.dtype in kinds for index in args[1])


def _counts(func: Any, kwargs: Any) -> bool:
    """Whether repeats are on the device and the size of the result is not given."""
    return str(func) == "aten.repeat_interleave.Tensor" and (kwargs or {}).get("output_size") is None


def _goes_to_the_cpu(name: str, args: Any, kwargs: Any) -> bool:
    targets = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, str | torch.device)]
    if name != "to" or kwargs.get("non_blocking"):  # which is also how draws of the host reach the device
        return False
    return any(torch.device(target).type == "cpu" for target in targets)


def _on_cpu_alone() -> bool:
    """Whether this happens inside one of `CPU_ALONE`."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in CPU_ALONE:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
