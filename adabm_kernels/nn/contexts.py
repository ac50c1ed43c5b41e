"""The contexts of torch that a network may be made or called in: those that it leaves, and those that it refuses with a
sentence."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

_BUFFERS_ALONE = (
    "the packed weights are made from the buffers as conversion left them. Prune or parametrize the float network, then convert it"
)
Compute = Callable[..., torch.Tensor]
_AUTOCAST = ("cpu", "cuda")  # types of devices that a network computes on


@contextmanager
def as_imported() -> Iterator[None]:
    """Inside the block, torch is as it is when it is imported: new tensors are ordinary ones, on the CPU and of float32 where
    nothing else is said, and gradients are recorded.

    Models are made like this, whatever surrounds the call: a tensor made in inference mode could not be changed outside of it, and
    one made under another default dtype would not fit the operators. Modes belong to the calling thread. The default dtype belongs
    to the process: where it is another one, all threads see float32 until the last block of this kind has been left.
    """
    with ExitStack() as left:
        for context in (torch.inference_mode(False), torch.enable_grad(), torch.device("cpu")):
            left.enter_context(context)
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                left.enter_context(torch.autocast(kind, enabled=False))
        left.enter_context(_DEFAULT_DTYPE.float32())
        yield


class _DefaultDtype:
    """The default dtype of the process, for overlapping blocks of several threads. A block by itself could find the float32 that
    another block has set, and would restore that."""

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        self._before: torch.dtype | None = None  # the dtype that was found, where it was not float32

    @contextmanager
    def float32(self) -> Iterator[None]:
        with self._lock:
            self._blocks += 1
            found = torch.get_default_dtype()
            if found != torch.float32:
                self._before = found
                torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if self._blocks == 0 and self._before is not None:
                    torch.set_default_dtype(self._before)
                    self._before = None


_DEFAULT_DTYPE = _DefaultDtype()


class WithoutParameters(nn.Module):
    """A module of buffers that depend on one another. It refuses torch's tools for changing one of them (prune, parametrize), and a
    copy of it shares no buffer with it."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        raise TypeError(f"{type(self).__name__}: parameter {name!r} cannot be added: {_BUFFERS_ALONE}")

    def __delattr__(self, name: str) -> None:
        if name in self._buffers:
            raise TypeError(f"{type(self).__name__}: buffer {name!r} cannot be removed: {_BUFFERS_ALONE}")
        super().__delattr__(name)

    def __copy__(self) -> WithoutParameters:
        # A shallow copy would share what settings change: buffers, layers and recorded graphs.
        return copy.deepcopy(self)


def make_ordinary(module: nn.Module) -> None:
    """Turns buffers that were made in inference mode into ordinary tensors, which may be changed anywhere."""
    with torch.inference_mode(False):
        for part in module.modules():
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()


def run(model: nn.Module, compute: Compute, x: torch.Tensor, offset: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    """Returns compute(x, offset, *rest), where `compute` is a method of `model`. It runs as outside of inference mode and autocast,
    and without gradients.

    Buffers that a network keeps are then ordinary tensors wherever it is first called, and its float layers always compute alike. A
    derivative that is asked for through this call raises RuntimeError when it is computed, and torch.vmap computes a batch of
    batches.
    """
    if not torch.compiler.is_compiling():
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return run(model, compute, x, offset, *rest)
        recorded = x.requires_grad and torch.is_grad_enabled()
        if recorded or forward_ad._current_level >= 0 or _transformed(model):
            return _Opaque.apply(x, offset, model, compute, rest)
    elif torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{type(model).__name__}: torch.compile cannot look through a transform of torch.func around the model: "
            "leave the transform uncompiled"
        )
    elif x.requires_grad and torch.is_grad_enabled():
        raise _no_derivative(model)
    return _plainly(compute, x, offset, *rest)


def _plainly(compute: Compute, x: torch.Tensor, offset: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    kind = x.device.type
    if kind in _AUTOCAST and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return _plainly(compute, x, offset, *rest)
    if torch.compiler.is_compiling():
        # Nothing here needs gradients, and torch 2.6 cannot load an exported program that turns them off.
        return compute(x, offset, *rest)
    with torch.no_grad():
        return compute(x, offset, *rest)


def _transformed(model: nn.Module) -> bool:
    """Whether the call is inside a transform of torch.func. Raises RuntimeError for a transform that is not supported."""
    if not torch._C._are_functorch_transforms_active():
        return False
    functorch = torch._C._functorch
    if any(map(functorch.is_functorch_wrapped_tensor, model.buffers())):
        raise RuntimeError(
            f"{type(model).__name__}: torch.func can transform x and offset, not the tensors of the model, which depend on "
            "one another and on its plan"
        )
    transform = functorch.peek_interpreter_stack()
    if transform is not None and transform.key() == functorch.TransformType.Functionalize:
        raise RuntimeError(
            f"{type(model).__name__}: torch.func.functionalize knows no operators of others that write into their arguments: use "
            "torch.export.export and run_decompositions"
        )
    return True


class _Opaque(torch.autograd.Function):
    """A forward pass that differentiation cannot look into."""

    @staticmethod
    def forward(x: torch.Tensor, offset: torch.Tensor | None, model: nn.Module, compute: Compute, rest: tuple) -> Any:
        y = _plainly(compute, x, offset, *rest)
        # No view is returned, because torch lets nobody write into the views that such a function returns.
        return tuple(one.data for one in y) if isinstance(y, tuple) else y.data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.model = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        raise _no_derivative(ctx.model)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _no_derivative(ctx.model)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, x: torch.Tensor, offset: torch.Tensor | None, model: nn.Module, compute: Compute, rest: tuple
    ) -> tuple[Any, Any]:
        images = _batched(x, in_dims[0], info.batch_size)
        offsets = None if offset is None else _batched(offset, in_dims[1], info.batch_size)
        y = _Opaque.apply(images, offsets, model, compute, rest)
        if isinstance(y, tuple):
            return tuple(one.unflatten(0, (info.batch_size, -1)) for one in y), (0,) * len(y)
        return y.unflatten(0, (info.batch_size, -1)), 0


def _batched(value: torch.Tensor, dim: int | None, count: int) -> torch.Tensor:
    """The `count` batches of a mapped tensor as one batch. A tensor that is not mapped is repeated `count` times."""
    return (value.expand(count, *value.shape) if dim is None else value.movedim(dim, 0)).flatten(0, 1)


def _no_derivative(model: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"{type(model).__name__} has no derivative: it computes in integers. Differentiate the network that "
        "model.float_model() gives, or pass x.detach() where no gradient is meant to go through the model"
    )


def refuse_recorders(name: str, x: Any) -> None:
    """Raises RuntimeError where a tool records a forward pass and cannot record this one. The message names a tool that can."""
    compiling = torch.compiler.is_compiling()
    if not compiling and type(x) is torch.Tensor and not torch._C._is_tracing():
        return  # a plain call, which should not pay for the rest
    if _exporting_to_onnx():
        raise RuntimeError(
            f"{name}: ONNX has no operator for convolutions whose bits are data: adabm_kernels.export_onnx writes the model with "
            "fixed bits, or its float network, and torch.export.export exports it as it is"
        )
    if compiling:
        return
    if isinstance(x, torch.fx.Proxy):
        raise RuntimeError(
            f"{name}: torch.fx.symbolic_trace cannot follow the forward pass, which depends on the size of x: make the model a "
            "leaf (is_leaf_module of the Tracer), or use torch.export.export"
        )
    if torch.jit.is_tracing():
        raise RuntimeError(f"{name}: torch.jit.trace {NO_SCRIPT}")


def _exporting_to_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# This is what torch.compiler.assume_constant_result does, without importing the compiler, which takes torch's own function for
# False.
_exporting_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]

NO_SCRIPT = (
    "cannot hold a converted model, whose plan and kernels are Python's: use torch.export.export, and torch.export.save for a file"
)
