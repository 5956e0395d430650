"""What the ops check their arguments with, once for all backends.

The shape, dtype and device checks read metadata only, so they run under fake tensors too; the check of the
values of `lengths` is apart from them because it reads data. Each failure is one line that names the
op, the argument, what was expected and what came.
"""

from __future__ import annotations

import os
import sys
from typing import TypeGuard

import torch
from torch import Tensor

from vssn_kernels.activations import ACTIVATIONS

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
# Checking lengths on a GPU needs a synchronisation, so it is asked for. Read once.
CHECK_ON_DEVICE = os.environ.get("VSSN_CHECK", "0") == "1"
_LARGEST = sys.float_info.max
_SHOWN = 60  # letters of a value in a message


def shape_text(shape: torch.Size | tuple) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def shown(value: object) -> str:
    """The value for a message: on one line, and by its type where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an int of thousands of digits
        text = ""
    return text if 0 < len(text) <= _SHOWN else type(value).__name__


def require_tensors(op: str, **tensors: object) -> None:
    """Raises TypeError unless every named argument is a Tensor of a dense layout. Nested and distributed ones have that
    too: they are looked at where what is no plain tensor goes its own way (vssn_kernels/ops/registration.py)."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
        if value.layout is not torch.strided:
            raise TypeError(f"{op}: {name} must be {dense_instead(value)}")


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Whether it is a Tensor whose numbers lie in memory, each at its place."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_nested
        and (type(value) is Tensor or not hasattr(type(value), "full_tensor"))  # a DTensor: on several processes
    )


def dense_instead(tensor: Tensor) -> str:
    """What a tensor must be that is not dense, what came and what to do, for a message."""
    if tensor.is_nested:
        return "dense, got a nested tensor; pad it with torch.nested.to_padded_tensor, and give lengths"
    if tensor.layout is not torch.strided:
        return f"dense, got the layout {tensor.layout}; convert it with .to_dense()"
    return "a plain tensor, got a DTensor; take its .to_local(), or its .full_tensor()"


def require_list(op: str, name: str, tensors: object) -> list[Tensor]:
    """The tensors as a list. Raises TypeError unless it is a list or tuple of some of them."""
    if not isinstance(tensors, (list, tuple)) or not tensors:
        raise TypeError(f"{op}: {name} must be a list of tensors, one at least, got {type(tensors).__name__}")
    for number, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}[{number}] must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise TypeError(f"{op}: {name}[{number}] must be {dense_instead(tensor)}")
    return list(tensors)


def require_floating(op: str, name: str, tensor: Tensor) -> None:
    """Raises TypeError for a dtype that no backend takes."""
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def require_flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {shown(value)}")


def require_activation(op: str, value: object) -> None:
    require_choice(op, "activation", value, ACTIVATIONS)


def require_choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {shown(value)}")


def require_finite(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    # torch.compile traces this with a symbolic value, math.isfinite it does not; nor does it take every int.
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{op}: {name} must be finite, got {shown(value)}")


def require_shape(op: str, name: str, tensor: Tensor, letters: str, expected: tuple) -> None:
    if tensor.shape != expected:
        raise ValueError(
            f"{op}: {name} must have shape {letters} = {shape_text(expected)}, got {shape_text(tensor.shape)}"
        )


def require_alike(op: str, first_name: str, first: Tensor, others: dict[str, Tensor], states: tuple[str, ...] = ()):
    """Same device and dtype for all; a state may also be float32 beside half-precision inputs."""
    require_floating(op, first_name, first)
    dtype, device = first.dtype, first.device
    for name, tensor in others.items():
        if tensor.dtype == dtype and tensor.device == device:
            continue
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} must be on {first.device} as {first_name} is, got {tensor.device}; "
                f"move it with .to({str(first.device)!r})"
            )
        half_with_float_state = name in states and first.dtype in HALF and tensor.dtype == torch.float32
        if tensor.dtype != first.dtype and not half_with_float_state:
            also = " or torch.float32" if name in states and first.dtype in HALF else ""
            raise TypeError(
                f"{op}: {name} must be {first.dtype}{also} as {first_name} is, got {tensor.dtype}; "
                f"convert it with .to({first.dtype})"
            )


def require_lengths_form(op: str, lengths: Tensor | None, batch: int, device: torch.device) -> None:
    if lengths is None:
        return
    if lengths.dtype != torch.int64:
        raise TypeError(f"{op}: lengths must be int64, got {lengths.dtype}; convert it with .long()")
    require_shape(op, "lengths", lengths, "[B]", (batch,))
    if lengths.device != device:
        raise ValueError(
            f"{op}: lengths must be on {device} as the other tensors are, got {lengths.device}; "
            f"move it with .to({str(device)!r})"
        )


def checked_lengths(op: str, lengths: Tensor | None, steps: int) -> Tensor | None:
    """The lengths, contiguous. Raises ValueError for one outside [0, T]: it reads data, on a GPU if VSSN_CHECK=1."""
    if lengths is None:
        return None
    if lengths.numel() and (lengths.device.type == "cpu" or CHECK_ON_DEVICE):
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            wrong = low if low < 0 else high
            raise ValueError(f"{op}: lengths must lie in [0, T] = [0, {steps}], got {wrong}")
    return lengths.contiguous()
