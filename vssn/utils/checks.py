"""Checks of the arguments of layers and models; a failure is one line: the argument, what was expected, what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vssn_kernels.ops.registration import autocast_is_on


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def require_size(name: str, value: object, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an int of at least {minimum}, got {value!r}")


def require_seed(name: str, value: object) -> None:
    """What both PyTorch's generators and NumPy's take."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise ValueError(f"{name} must be an int in [0, 2**64), got {value!r}")


def require_number(name: str, value: object, minimum: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value >= minimum):
        least = "" if minimum == -math.inf else f" of at least {minimum}"
        raise ValueError(f"{name} must be a finite number{least}, got {value}")


def require_factor(name: str, value: object) -> float | Tensor:
    """A finite number, or a tensor of one without dimensions."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one, got shape {list(value.shape)}")
        return value.reshape(())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor of one, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # torch.compile traces this with a symbolic value, math.isfinite it does not
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


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
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got the layout {value.layout}; convert it with .to_dense()")
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
