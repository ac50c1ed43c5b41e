"""A stand-in for ComfyUI, which no package registry has: what its documentation promises to custom nodes, and what it asks of them.

The interface is that of "Properties" of custom nodes and of "Images, Latents, and Masks" (docs.comfy.org, custom-nodes/backend):
class attributes and INPUT_TYPES, the modules `folder_paths`, `comfy.utils` and `comfy.model_management`, images as floats
[B, H, W, C] in 0..1, and masks [B, H, W]. Nodes run in inference mode.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch


class InterruptProcessingException(Exception):
    """What the cancel button raises within a node."""


class Host:
    """One ComfyUI with its folder of models. nodes: the node classes by name. bar: the values of progress bars so far, in 0..1.
    cancel_at: the value of a bar from which on the user has pressed Cancel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, node_file: Path):
        self.models, self.bar, self.cancel_at = folder / "models", [], 2.0
        self._folders: dict[str, list[str]] = {}
        paths = types.ModuleType("folder_paths")
        vars(paths).update(
            models_dir=str(self.models),
            add_model_folder_path=lambda name, path: self._folders.setdefault(name, []).append(path),
            get_filename_list=lambda name: sorted(self._files(name)),
            get_full_path=lambda name, file: self._files(name).get(file),
        )
        package, utils, management = (types.ModuleType(f"comfy{name}") for name in ("", ".utils", ".model_management"))
        utils.ProgressBar = self._progress_bar()
        management.get_torch_device = lambda: torch.device("cpu")
        management.throw_exception_if_processing_interrupted = self._interrupt
        vars(package).update(utils=utils, model_management=management, __path__=[])
        for module in (paths, package, utils, management):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        spec = importlib.util.spec_from_file_location("a_custom_node", node_file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.nodes: dict[str, type] = module.NODE_CLASS_MAPPINGS
        assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == self.nodes.keys()

    def _files(self, name: str) -> dict[str, str]:
        folders = [Path(folder) for folder in self._folders[name]]
        return {str(path.relative_to(folder)): str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}

    def _progress_bar(host) -> type:  # noqa: N805
        class ProgressBar:
            def __init__(self, total: float):
                self.total = total

            def update_absolute(self, value: float, total: float | None = None, preview: Any = None) -> None:
                host.bar.append(value / self.total)

        return ProgressBar

    def _interrupt(self) -> None:
        if self.bar and self.bar[-1] >= self.cancel_at:
            raise InterruptProcessingException

    def run(self, name: str, **inputs: Any) -> tuple:
        """Runs a node as a workflow does: with the defaults of what is not given, and with every value checked."""
        node = self.nodes[name]
        declared = node.INPUT_TYPES()
        required, optional = declared["required"], declared.get("optional", {})
        assert inputs.keys() <= required.keys() | optional.keys()
        for key, (kind, *more) in required.items():
            options = more[0] if more else {}
            if key not in inputs:
                inputs[key] = options["default"] if "default" in options else kind[0]  # a list of choices begins with its default
        for key, value in inputs.items():
            self._check(key, value, *(required | optional)[key])
        with torch.inference_mode():
            results = getattr(node(), node.FUNCTION)(**inputs)
        assert isinstance(results, tuple) and len(results) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        for kind, value in zip(node.RETURN_TYPES, results, strict=True):
            self._check(name, value, kind)
        return results

    @staticmethod
    def _check(name: str, value: Any, kind: Any, options: dict | None = None) -> None:
        if isinstance(kind, list):
            assert value in kind, f"{name}: {value!r} is none of {kind}"
        elif kind in ("IMAGE", "MASK"):
            assert isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.device.type == "cpu"
            assert value.ndim == (4 if kind == "IMAGE" else 3) and value.min() >= 0 and value.max() <= 1
        elif kind in ("INT", "FLOAT"):
            assert isinstance(value, int if kind == "INT" else float)
            assert not options or options["min"] <= value <= options["max"]
        else:
            assert kind.isupper()  # a type of the nodes' own
