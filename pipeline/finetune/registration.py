"""When the losses enter MMDetection's registry: at once, or as soon as mmengine is there.

The losses cost torch and mmengine, which take seconds to import; the table of methods is plain data that
`2drcl methods` prints in a blink.  Both are in this package.  So without mmengine in the process nothing is
registered yet, for nobody could look it up: a finder on `sys.meta_path` waits for mmengine's import, steps
aside, and registers when it is done.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence

AWAITED = "mmengine"


def when_registries_exist(register: Callable[[], None]) -> None:
    """Call `register` now, or directly after the first import of mmengine."""
    if AWAITED in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterImport(register))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the awaited module as everybody would, with one more thing to do after it is executed."""

    def __init__(self, register: Callable[[], None]) -> None:
        self.register = register

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """None for every other module: the next finder is asked."""
        if name != AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderAndMore(spec.loader, self.register)
        return spec


class _LoaderAndMore(importlib.abc.Loader):
    """A loader, and what follows; the module keeps the loader alone."""

    def __init__(self, loader: importlib.abc.Loader, then: Callable[[], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """As the loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        """As the loader, then what follows."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.then()
