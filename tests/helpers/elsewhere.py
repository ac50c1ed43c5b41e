"""A device that is not the CPU, for machines that have none: tensors say device "meta" and hold their values on the CPU.

An operation on tensors of both devices fails, as it would on a GPU, and so does handing one to numpy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
_MOVES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class _Tensor(torch.Tensor):
    @staticmethod
    def __new__(cls, values: torch.Tensor) -> _Tensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values: torch.Tensor):
        self.values = values

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Inside this context tensors can be made on and moved to DEVICE."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = any(isinstance(value, _Tensor) for value in given)
    if there and func not in _MOVES:
        others = [tuple(value.shape) for value in given if not isinstance(value, _Tensor) and value.ndim]
        if others:
            raise RuntimeError(f"{func}: expected all tensors on the same device, and those of shape {others} are on the CPU")
    target = kwargs.get("device")
    target = (DEVICE if there else torch.device("cpu")) if target is None else torch.device(target)
    if func is torch.ops.aten.copy_.default:
        target = args[0].device
    if "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map_only(_Tensor, lambda value: value.values, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    by_values = {id(value.values): value for value in given if isinstance(value, _Tensor)}

    def back(value: torch.Tensor) -> torch.Tensor:
        if target != DEVICE:
            return value
        return by_values[id(value)] if id(value) in by_values else _Tensor(value)

    return tree_map_only(torch.Tensor, back, result)
