"""Checks of the arguments of layers and models; a failure is one line: the argument, what was expected, what came."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vssn.utils.numbers import LARGEST_SIZE
from vssn_kernels.arguments import FLOATING, dense_instead, is_dense, shown
from vssn_kernels.ops.registration import autocast_is_on
from vssn_kernels.ops.torch_internals import is_plain_call

_LARGEST = sys.float_info.max


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def require_size(name: str, value: object, minimum: int, maximum: int | None = LARGEST_SIZE) -> None:
    """Args: maximum: None where it is no size of a tensor."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an int of at least {minimum}, got {shown(value)}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be an int of at most {maximum}, got {shown(value)}")


def require_seed(name: str, value: object) -> None:
    """What both PyTorch's generators and NumPy's take."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise ValueError(f"{name} must be an int in [0, 2**64), got {shown(value)}")


def require_key(name: str, value: object) -> None:
    """A seed, or a tuple of several."""
    for part in value if isinstance(value, tuple) else (value,):
        require_seed(name, part)


def require_path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a str or a Path, got {type(value).__name__}")


def require_number(name: str, value: object, minimum: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (-_LARGEST <= value <= _LARGEST and value >= minimum):  # also of an int that no float holds
        least = "" if minimum == -math.inf else f" of at least {minimum}"
        raise ValueError(f"{name} must be a finite number{least}, got {shown(value)}")


def require_factor(name: str, value: object, like: Tensor) -> float | Tensor:
    """A finite number, or a tensor of one without dimensions, on the CPU or where `like` is."""
    if isinstance(value, Tensor):
        value = require_tensor(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one, got shape {list(value.shape)}")
        if value.is_complex() or value.is_quantized or value.dtype == torch.bool:
            raise TypeError(f"{name} must be a number or a tensor of one, got {value.dtype}")
        if value.device.type != "cpu":
            require_device(name, value, like.device, "the parameters are")
        # Looked at where that waits for no device.
        if value.device.type == "cpu" and is_plain_call() and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {float(value)}")
        return value.reshape(())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor of one, got {type(value).__name__}")
    # torch.compile traces this with a symbolic value, math.isfinite it does not; nor does it take every int.
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return value


def require_levels(name: str, value: object) -> list[float]:
    """Numbers in a row, as a list."""
    given = value.tolist() if isinstance(value, np.ndarray | Tensor) and value.ndim == 1 else value
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise TypeError(f"{name} must be a sequence of numbers, got {shown(value)}")
    if any(isinstance(level, bool) or not isinstance(level, numbers.Real) for level in given):
        raise TypeError(f"{name} must be a sequence of numbers, got {shown(value)}")
    return [float(level) for level in given]


def require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def require_module(name: str, value: object) -> None:
    """A module, or None."""
    if value is not None and not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(value).__name__}")


def require_place(device: object, dtype: object) -> None:
    """What parameters are made with: a device and a floating-point dtype, or None."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in FLOATING):
        names = ", ".join(str(known) for known in FLOATING)
        raise TypeError(f"dtype must be one of {names}, or None, got {shown(dtype)}")
    if device is None or isinstance(device, torch.device):
        return
    if isinstance(device, bool) or not isinstance(device, str | int):
        raise TypeError(f"device must be a torch.device, its name or None, got {type(device).__name__}")
    try:
        torch.device(device)
    except (RuntimeError, OverflowError) as error:
        said = str(error).splitlines()[0] if str(error) else "no such device"
        raise ValueError(f"device must be a torch.device, its name or None, got {shown(device)}: {said}") from None


def require_parts(name: str, value: object, parts: str, instead: str = "", lists: bool = False) -> Sequence[Any]:
    """A tuple (or a list) of as many values as `parts` names, such as "(d, z, x_last)"; else TypeError."""
    if isinstance(value, (tuple, list) if lists else tuple) and len(value) == parts.count(",") + 1:
        return value
    came = type(value).__name__ + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
    raise TypeError(f"{name} must be a tuple {parts}{instead}, got {came}")


def require_tensor(name: str, value: object, kind: str = "torch.Tensor") -> Tensor:
    if not isinstance(value, Tensor):
        came = type(value).__name__
        if isinstance(value, np.ndarray):
            came = f"a NumPy array of {value.dtype}; convert it with torch.from_numpy"
        raise TypeError(f"{name} must be a {kind}, got {came}")
    if not is_dense(value):
        raise TypeError(f"{name} must be {dense_instead(value)}")
    return value


def require_numbers(name: str, value: object, like: Tensor | None = None) -> Tensor:
    """A tensor of real numbers that can be read, on the device of `like`."""
    value = require_tensor(name, value)
    if value.is_complex() or value.is_quantized:
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on meta, which has none")
    if like is not None:
        require_device(name, value, like.device, "the others are")
    return value


def require_shape(name: str, tensor: object, letters: str, expected: tuple[int, ...]) -> None:
    tensor = require_tensor(name, tensor)
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {letters} = {list(expected)}, got {list(tensor.shape)}")


def require_device(name: str, tensor: Tensor, device: torch.device, of: str) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} as {of}, got {tensor.device}; move it with .to({str(device)!r})")


def require_like(name: str, tensor: Tensor, like: Tensor, *, or_float32: bool = False) -> None:
    """Device and dtype of the parameters; under autocast the ops see to the dtype.

    Args:
        like: a parameter, or what was checked against one.
        or_float32: that may stand beside parameters in half precision.
    """
    require_device(name, tensor, like.device, "the parameters are")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}; convert it with .to({like.dtype})")
    if tensor.dtype == like.dtype or autocast_is_on(tensor.device):
        return
    if or_float32 and tensor.dtype == torch.float32 and like.dtype in (torch.float16, torch.bfloat16):
        return
    raise TypeError(
        f"{name} must be {like.dtype} as the parameters are, got {tensor.dtype}; convert it with .to({like.dtype})"
    )
