"""Checks of what tensors hold: a likelihood's support, and that nothing is NaN or infinite.

One reduction over the tensor, in an op of its own: so it is made under torch.compile, vmap and tracing too. On a GPU it
would wait for the device, so there it is made with VSSN_CHECK=1 only, as the check of lengths is.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

from vssn.errors import DataError
from vssn_kernels import arguments
from vssn_kernels.ops.torch_internals import is_plain_call


class Support(NamedTuple):
    """The values that every entry of x may have under a likelihood."""

    text: str  # behind "x must"
    low: float
    high: float
    whole: bool = False  # whole numbers alone
    advice: str = ""  # what to do with other values; without it what the values look like decides


UNIT = Support("lie in [0, 1]", 0.0, 1.0)
COUNTS = Support("hold counts 0, 1, 2, ...", 0.0, math.inf, whole=True)
BINARY = Support("hold 0 and 1 alone", 0.0, 1.0, whole=True)
REAL = Support("be finite", -math.inf, math.inf)

COARSE = 0.1  # of a feature's standard deviation: rounding that is worth a word
_SAID: ContextVar[list[str] | None] = ContextVar("said", default=None)  # what `one_word_of_rounding` has said
MARK_MISSING = (
    "leave missing values out with mask=, True where x is observed; a model made with masked=True takes NaN as missing"
)
NO_NAN_IN_U = "fill in missing controls: a mask speaks of x alone"


def require_values(name: str, tensor: Tensor, support: Support, if_not_finite: str, likelihood: str = "") -> None:
    """Raises DataError, a ValueError, unless every entry is finite and in the support.

    Args:
        if_not_finite: what to do where one is NaN or infinite.
        likelihood: whose support it is, as messages name it: "likelihood='nade'".
    """
    if not looked_at(tensor.device) or _no_checks():
        return
    check = _check if is_plain_call() else torch.ops.vssn.require_values
    must = f"{support.text} with {likelihood}" if likelihood else support.text
    check(tensor.detach(), name, must, support.low, support.high, support.whole, if_not_finite, support.advice)


def require_finite(name: str, tensor: Tensor | None, advice: str, valid: Tensor | None = None) -> None:
    """As `require_values`, for real numbers at the steps [T, B] that are valid; None for the tensor is right."""
    if tensor is not None and looked_at(tensor.device):
        if valid is not None:
            tensor = torch.where(valid[..., None], tensor, 0)
        require_values(name, tensor, REAL, advice)


def require_whole_frames(observed: Tensor, likelihood: str) -> None:
    """Raises ValueError where a frame is observed in part, naming the likelihood by its title. Made on every device:
    what follows would be wrong."""
    if _no_checks():
        return
    check = _check_whole_frames if is_plain_call() else torch.ops.vssn.require_whole_frames
    check(observed, likelihood)


def nan_as_missing(x: Tensor) -> Tensor | None:
    """True where x is not NaN, bool in its shape; None where nothing is, as far as that is looked at: on the CPU, and
    where the call is not traced."""
    # NaN goes through a sum; so does inf - inf, which costs the comparison alone.
    if x.device.type == "cpu" and is_plain_call() and not bool(x.sum().isnan()):
        return None
    return ~x.isnan()


def require_lengths_in_range(lengths: Tensor, steps: int) -> None:
    """Raises ValueError for a length outside [0, T]. The ops check it too, under their own names; only they do so
    where a call is traced."""
    if lengths.device.type == "cpu" and lengths.numel() and is_plain_call():
        low, high = (int(end) for end in torch.aminmax(lengths))
        if low < 0 or high > steps:
            raise ValueError(f"lengths must lie in [0, T] = [0, {steps}], got {low if low < 0 else high}")


@contextlib.contextmanager
def one_word_of_rounding() -> Iterator[None]:
    """Of all that `warn_of_rounding` finds inside the block, and inside of further ones in it, only the first is said:
    many sequences of one kind are a line, not one each."""
    token = _SAID.set([]) if _SAID.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _SAID.reset(token)


def warn_of_rounding(name: str, x: Tensor) -> None:
    """A warning of one line where a feature of x [T, X], in float64 or whole numbers, changes by so little beside its
    size that float32, which it becomes, does not show it. Not of what differs by float64's own rounding."""
    said = _SAID.get()
    if said or x.dtype not in (torch.float64, torch.int64, torch.int32):
        return
    exact = x.detach().double()
    known = exact.isfinite()
    lost = torch.where(known, exact.float().double() - exact, 0).abs().amax(0)
    if not lost.any():
        return
    count = known.sum(0).clamp(min=1)
    mean = torch.where(known, exact, 0).sum(0) / count
    std = (torch.where(known, exact - mean, 0).square().sum(0) / count).sqrt()
    coarse = (lost > COARSE * std) & (std > 1e-12 * mean.abs())
    if coarse.any():
        if said is not None:
            said.append(name)
        at = int((lost / std.clamp(min=torch.finfo(torch.float64).tiny) * coarse).argmax())
        warnings.warn(
            f"{name}, feature {at}: float32, which it becomes, rounds it by up to {lost[at]:.3g}, and its standard "
            f"deviation is {std[at]:.3g}; subtract a constant from it beforehand, such as {mean[at]:.10g}",
            stacklevel=3,
        )


def looked_at(device: torch.device) -> bool:
    return device.type == "cpu" or (arguments.CHECK_ON_DEVICE and device.type != "meta")


def _no_checks() -> bool:
    """ONNX has no way to refuse a value."""
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def _check(
    tensor: Tensor,
    name: str,
    must: str,
    lowest: float,
    highest: float,
    whole: bool,
    if_not_finite: str,
    advice: str = "",
) -> None:
    if not tensor.numel():
        return
    low, high = (float(end) for end in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        got = high if math.isfinite(low) else low
        raise DataError(f"{name} must be finite, got {got}; {if_not_finite}")
    got = low if low < lowest else high
    inside = lowest <= low and high <= highest
    if inside and whole:
        broken = tensor != tensor.round()
        inside = not bool(broken.any())
        got = high if inside else float(tensor[broken][0])
    if not inside:
        advice = advice or _advice(tensor, low, high, (lowest, highest) == (0.0, 1.0), whole)
        raise DataError(f"{name} must {must}, got {got:g}; {advice}")


def _advice(x: Tensor, low: float, high: float, within_unit: bool, whole: bool) -> str:
    """What to do with values that the likelihood does not take."""
    if low >= 0 and high <= 1:
        return "take likelihood='bernoulli' for values between"
    if low < 0 or not within_unit:
        return "take likelihood='gaussian' for real values"
    then = " and take likelihood='bernoulli'" if whole else ""
    counts = bool((x == x.round()).all())
    scale = "divide grey values of 8 bits by 255" if counts and high <= 255 else "scale it to [0, 1]"
    return f"{scale}{then}, or take likelihood=" + (
        "'poisson' or 'negative_binomial' for counts" if counts else "'gaussian'"
    )


def _check_whole_frames(observed: Tensor, likelihood: str) -> None:
    if bool((observed.all(-1) != observed.any(-1)).any()):
        raise ValueError(f"mask must leave out whole frames with {likelihood}, got a frame observed in part")


_library = torch.library.Library("vssn", "FRAGMENT")


def _define(schema: str, kernel: Callable[..., None]) -> None:
    """An op of no result, the same for every device; a check of all entries does not mind a dimension of vmap's."""
    name = schema.split("(", 1)[0]
    _library.define(schema)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    op = getattr(torch.ops.vssn, name).default
    torch.library.register_fake(f"vssn::{name}", lambda *arguments: None, lib=_library)
    torch.library.register_vmap(f"vssn::{name}", lambda info, in_dims, *arguments: (op(*arguments), None), lib=_library)
    _register_effectful_op(op, _EffectType.ORDERED)  # else a compiler drops what returns nothing


_define(
    "require_values(Tensor tensor, str name, str must, float lowest, float highest, bool whole, str if_not_finite,"
    " str advice='') -> ()",
    _check,
)
_define("require_whole_frames(Tensor observed, str likelihood) -> ()", _check_whole_frames)
