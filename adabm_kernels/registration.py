"""What importing the package leaves with Python's import: the operators for torch, and the old names of modules.

The operators are there as soon as this package and torch are both imported, in whatever order; the package loads no torch.

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


# The modules of version 0.1.0 that have another place since, each with where its names are now. The next version drops them.
MOVED = {
    **{name: (f"upscaling.{name}",) for name in ("batch", "enlarge", "flat", "interpolation", "picture", "pixels")},
    **{name: (f"upscaling.{name}",) for name in ("resampling", "sizes", "smooth", "windows")},
    "patchwise": ("upscaling.patchwise", "upscaling.cutting"),
    "metrics": ("evaluation.metrics",),
    "resize": ("evaluation.resize",),
    "bitmap": ("report.bitmap",),
    "measure": ("image_bits",),
    "tiles": ("planning.tiles", "planning.exact", "planning.layer"),
    "tile_times": ("planning.times",),
    "tune_tiles": ("tuning.tiles",),
    "tune_gpu": ("tuning.gpu",),
    "prefill": ("tuning.prefill",),
}


def keep_old_names() -> None:
    """Let the old names of modules be imported, with a DeprecationWarning; they are looked for when nothing else was found."""
    sys.meta_path.append(_OldNames())


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
        spec: Any = module.__spec__
        module.__loader__ = spec.loader = self._loader  # nothing of this stays
        self._loader.exec_module(module)
        spec._initializing = False  # all of it has been executed
        self._hook.register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _loading(name: str) -> bool:
    """Whether a module's code is being executed."""
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


class _OldNames(MetaPathFinder, Loader):
    """Finds modules by their old names: such a module has nothing of its own and hands on the names of those in its place."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if package == PACKAGE and old in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        homes = [f"{PACKAGE}.{home}" for home in MOVED[module.__name__.rpartition(".")[2]]]
        text = f"{module.__name__} is now {' and '.join(homes)}, and its old name will go with the next version"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        found = [importlib.import_module(home) for home in homes]

        def names() -> list[str]:
            return sorted({name for home in found for name in dir(home)})

        def attribute(name: str) -> Any:
            for home in found:
                if name in vars(home):
                    return vars(home)[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__.update(__doc__=text, __getattr__=attribute, __dir__=names)
