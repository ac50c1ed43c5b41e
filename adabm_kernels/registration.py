"""The operators are there as soon as this package and torch are both imported, in whatever order; the package loads no torch.

A program that torch.export or AOTInductor wrote names its operators only: `import adabm_kernels` must be all that a process needs
to run one. torch has no hook of the kind but its entry points `torch.backends`, which would load the package into every process
that imports torch.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __package__
OPERATORS = f"{PACKAGE}.ops"


def register_with_torch() -> None:
    """Register `torch.ops.adabm.*` where torch is loaded, else when it will have been."""
    hook = _Hook()
    sys.meta_path.insert(0, hook)
    if hook.may_leave():
        importlib.import_module(OPERATORS)


class _Hook(MetaPathFinder):
    """Finds no module; registers the operators behind torch's own import or, where a module that they need is itself being imported
    then, at the next import of anything."""

    def __init__(self) -> None:
        self._taken = threading.Lock()  # by the one import that registers; never released

    def may_leave(self) -> bool:
        """True once, where torch and all modules of the package that are there have been loaded; the hook is then taken away."""
        own = [name for name in list(sys.modules) if name.startswith(f"{PACKAGE}.")]
        if "torch" not in sys.modules or any(map(_loading, ["torch", *own])) or not self._taken.acquire(blocking=False):
            return False
        # A new list: imports that are going through the old one, this one among them, would miss the finder behind the hook.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        return True

    def register(self) -> None:
        """Now, where it can be, behind an import of something else, which an error of this package must not break."""
        if not self.may_leave():
            return
        try:
            importlib.import_module(OPERATORS)
        except Exception as error:  # whatever it is: what needs the operators imports the same module and raises it again
            text = f"{PACKAGE}: torch.ops.adabm is missing, as {OPERATORS} cannot be imported: {type(error).__name__}: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            self.register()
            return None
        finders = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(Loader):
    """A loader that registers the operators when the module has been executed."""

    def __init__(self, loader: Any, hook: _Hook):
        self._loader, self._hook = loader, hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self._loader  # nothing of this stays
        self._loader.exec_module(module)
        module.__spec__._initializing = False  # all of it has been executed
        self._hook.register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _loading(name: str) -> bool:
    """Whether a module's code is being executed."""
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)
