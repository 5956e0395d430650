"""Standardisation of data, which a model keeps: its networks see (x - mean) / std, its users data as it came."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vssn_kernels.arguments import is_dense, shown

_SMALLEST = 1e-6  # a feature whose std is smaller beside its mean is constant but for rounding: it is left at std 1


class Scaling(NamedTuple):
    """Means and standard deviations of the features of x and, where there are any, of the controls u."""

    x_mean: Tensor  # [X]
    x_std: Tensor  # [X] above 0
    u_mean: Tensor | None = None  # [U]
    u_std: Tensor | None = None  # [U] above 0

    @classmethod
    def of(cls, sequences: Iterable[Tensor], controls: Iterable[Tensor] | None = None) -> Scaling:
        """That of all frames of x [T_i, X] and u [T_i, U], without NaN: 0 and 1 for a feature that has no number."""
        return cls(*_moments(sequences), *(() if controls is None else _moments(controls)))

    def like(self, parameter: Tensor) -> Scaling:
        """A copy in the dtype of the parameter, on its device."""
        copies = (None if part is None else part.detach().clone().to(parameter.detach()) for part in self)
        return Scaling(*copies)  # type: ignore[arg-type]  # as many as there were

    @classmethod
    def identity(cls, x_size: int, control_size: int = 0) -> Scaling:
        """That which changes nothing."""
        u = (torch.zeros(control_size), torch.ones(control_size)) if control_size else ()
        return cls(torch.zeros(x_size), torch.ones(x_size), *u)


def _moments(sequences: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and std as float32: summed in float64, around the mean in a second pass."""
    parts = [part.detach().double() for part in sequences]
    known = [~part.isnan() for part in parts]
    count = torch.stack([of.sum(0) for of in known]).sum(0).clamp(min=1)
    mean = torch.stack([part.nansum(0) for part in parts]).sum(0) / count
    squares = torch.stack([(part - mean).square().nansum(0) for part in parts]).sum(0)
    std = (squares / count).sqrt()
    std = torch.where(std > _SMALLEST * mean.abs() + torch.finfo(torch.float32).tiny, std, 1.0)
    return mean.float(), std.float()


def check_scaling(scaling: object, x_size: int, control_size: int) -> Scaling:
    """Raises TypeError or ValueError where it does not fit a model of X features and U controls."""
    if not isinstance(scaling, Scaling):
        raise TypeError(f"scaling must be a vssn.utils.scaling.Scaling, got {type(scaling).__name__}")
    for name, size in (("x_mean", x_size), ("x_std", x_size), ("u_mean", control_size), ("u_std", control_size)):
        part = getattr(scaling, name)
        if part is None and not size:
            continue
        came = list(part.shape) if is_dense(part) else shown(part)
        if not is_dense(part) or tuple(part.shape) != ((size,) if size else None):
            raise ValueError(f"scaling.{name} must be {f'a tensor [{size}]' if size else 'None'}, got {came}")
        if not part.is_floating_point():
            raise TypeError(f"scaling.{name} must be floating point, got {part.dtype}")
        if part.device.type != "meta" and not (part.isfinite().all() and ("std" not in name or (part > 0).all())):
            raise ValueError(f"scaling.{name} must be finite{' and above 0' if 'std' in name else ''}")
    return scaling
