"""Standardisation of data, which a model keeps: its networks see (x - mean) / std, its users data as it came."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vssn_kernels.arguments import is_dense, shown

_SMALLEST = 1e-6  # a feature whose std is smaller beside its mean is constant but for rounding: it is left at std 1
FAR = 10.0  # from there on a mean or a std is a unit of its own, which a network with fresh weights does not find


class Scaling(NamedTuple):
    """Means and standard deviations of the features of x and, where there are any, of the controls u.

    vssn.VSSN(2, 64, 8, likelihood="gaussian", scaling=vssn.Scaling.of(train)) has those of the training sequences.
    """

    x_mean: Tensor  # [X]
    x_std: Tensor  # [X] above 0
    u_mean: Tensor | None = None  # [U]
    u_std: Tensor | None = None  # [U] above 0

    @classmethod
    def of(cls, sequences: Iterable[Any], controls: Iterable[Any] | None = None) -> Scaling:
        """That of all frames of the training sequences, without NaN: 0 and 1 for a feature that has no number.

        Args:
            sequences: x [T_i, X] each, tensors or arrays; or one tensor or array [N, T, X].
            controls: u likewise, of X = U features.

        Raises:
            ValueError: there are none, or one has another shape.
        """
        u = () if controls is None else _moments("controls", controls)
        return cls(*_moments("sequences", sequences), *u)

    def far_from_unit(self) -> str | None:
        """The largest feature, by its mean or its std, in words: where that is beyond FAR, or below its inverse."""
        for letter, mean, std in (("x", self.x_mean, self.x_std), ("u", self.u_mean, self.u_std)):
            if mean is None or std is None:
                continue
            size = torch.maximum(mean.abs(), std)
            if size.max() > FAR or size.max() < 1 / FAR:
                at = int(size.argmax())
                return f"{letter}[{at}] has mean {mean[at]:.4g} and standard deviation {std[at]:.4g}"
        return None

    def like(self, parameter: Tensor) -> Scaling:
        """A copy in the dtype of the parameter, on its device."""
        copies = (None if part is None else part.detach().clone().to(parameter.detach()) for part in self)
        return Scaling(*copies)  # type: ignore[arg-type]  # as many as there were

    @classmethod
    def identity(cls, x_size: int, control_size: int = 0) -> Scaling:
        """That which changes nothing."""
        u = (torch.zeros(control_size), torch.ones(control_size)) if control_size else ()
        return cls(torch.zeros(x_size), torch.ones(x_size), *u)


def _moments(name: str, sequences: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Mean and std as float32: summed in float64, around the mean in a second pass."""
    parts = [torch.as_tensor(part).detach().double() for part in sequences]
    if not parts:
        raise ValueError(f"{name} must hold one sequence at least, got none")
    for index, part in enumerate(parts):
        if part.dim() != 2 or part.shape[1] != parts[0].shape[1]:
            came = list(part.shape)
            raise ValueError(f"{name} must be sequences [T, X] of one X, got shape {came} of number {index}")
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
        raise TypeError(f"scaling must be a vssn.Scaling, got {type(scaling).__name__}")
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
