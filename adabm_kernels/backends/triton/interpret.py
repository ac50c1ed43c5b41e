"""Adds to Triton's interpreter whatever it lacks for these kernels to compute the same on a CPU as on a GPU.

Its multiply-add rounds twice. Its maximum and minimum are NaN where one operand is. It knows no inline assembly. A scalar bounds no
loop where NumPy does not take an array of one element for a number. This file supplies all four: a multiply-add as the reference
computes it, a maximum and minimum that return the operand that is not NaN, the few instructions of assembly that the kernels of
this folder contain, and scalars that bound loops.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from ..reference import fma32

_INSTRUCTIONS = {
    "shr.u32": lambda a, b: a >> b,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
}


class _Results(list):
    get_result = list.__getitem__


def _fma(self: InterpreterBuilder, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    assert z.data.dtype == np.float32, "only float32 multiply-adds are used"
    a, b, c = (torch.from_numpy(np.ascontiguousarray(handle.data)) for handle in (x, y, z))
    return TensorHandle(fma32(a, b, c).numpy(), z.dtype.scalar)


def _inline_asm(
    self: InterpreterBuilder, asm: str, constraints: str, values: list[TensorHandle], types: list[Any], is_pure: bool, pack: int
) -> _Results:
    """Computes inline PTX on bytes, four to a 32-bit register: $0 is the result, and $1, $2, ... are the arguments."""
    assert pack == 4 and len(types) == 1, "only byte-wise assembly with one result is used"
    shape = values[0].data.shape
    registers = {f"${i}": np.ascontiguousarray(v.data).reshape(-1).view(np.uint32) for i, v in enumerate(values, 1)}
    for statement in filter(None, map(str.strip, asm.split(";"))):
        name, to, *operands = re.split(r"[\s,]+", statement)
        registers[to] = _INSTRUCTIONS[name](*(registers[o] if o in registers else np.uint32(int(o, 0)) for o in operands))
    scalar = types[0].scalar
    return _Results([TensorHandle(registers["$0"].view(np.int8 if scalar.is_int_signed() else np.uint8).reshape(shape), scalar)])


def _patch_tensor(patch: Callable[..., None], tensor: Any, *scope: Any) -> None:
    """Applies the interpreter's own patch of tensors of the language, and lets a scalar bound a loop."""
    patch(tensor, *scope)
    bound = lambda self: self.handle.data.item()  # noqa: E731
    scope[0].set_attr(tensor, "__index__", bound) if scope else setattr(tensor, "__index__", bound)


def install() -> None:
    """Gives all of this to the interpreter of this process."""
    InterpreterBuilder.create_fma = _fma
    InterpreterBuilder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    InterpreterBuilder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    InterpreterBuilder.create_inline_asm = _inline_asm
    interpreter._patch_lang_tensor = functools.partial(_patch_tensor, interpreter._patch_lang_tensor)
