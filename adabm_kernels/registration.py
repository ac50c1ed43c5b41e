"""The hooks that importing the package leaves in Python's import. They register the operators with torch, and find modules by their
old names.

The operators are there as soon as this package and torch are both imported, in either order. The package itself does not load
torch.

A program that torch.export or AOTInductor wrote names its operators only, so `import adabm_kernels` must be all that a process
needs to run one. The only hook of this kind in torch is its entry points `torch.backends`, which would load the package into every
process that imports torch.
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


# The modules of version 0.1.0 that have moved since, each with the modules in which its names are now. The next version drops them.
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
    """Lets modules be imported by their old names, with a DeprecationWarning. Old names are looked for when nothing else was
    found."""
    sys.meta_path.append(_OldNames())


def register_with_torch() -> None:
    """Registers `torch.ops.adabm.*`: at once where torch is loaded, and otherwise as soon as it has been loaded."""
    hook = _Hook()
    sys.meta_path.insert(0, hook)
    if hook.may_leave():
        importlib.import_module(OPERATORS)


class _Hook(MetaPathFinder):
    """A hook that finds no module, but registers the operators after torch's own import. Where a module that they need is itself
    being imported at that time, it registers them at the next import of anything."""

    def __init__(self) -> None:
        self._taken = threading.Lock()  # The one import that registers takes this lock, and never releases it.

    def may_leave(self) -> bool:
        """Takes the hook away and returns True if torch is loaded and no module of the package is still being loaded. It returns
        True only once."""
        own = [name for name in list(sys.modules) if name.startswith(f"{PACKAGE}.")]
        if "torch" not in sys.modules or any(map(_loading, ["torch", *own])) or not self._taken.acquire(blocking=False):
            return False
        # The list is made anew, because imports that are going through the old one, this one among them, would otherwise miss the
        # finder behind the hook.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        return True

    def register(self) -> None:
        """Registers the operators if it can be done now. It runs within an import of something else, which an error of this package
        must not break."""
        if not self.may_leave():
            return
        try:
            importlib.import_module(OPERATORS)
        except Exception as error:  # any error: code that needs the operators imports the same module, which raises it again
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
        module.__loader__ = spec.loader = self._loader  # nothing of this loader stays in the module
        self._loader.exec_module(module)
        spec._initializing = False  # because all of the module's code has been executed
        self._hook.register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _loading(name: str) -> bool:
    """Whether a module's code is being executed."""
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


class _OldNames(MetaPathFinder, Loader):
    """Finds modules by their old names. Such a module has no names of its own and hands on those of the modules in its place."""

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
