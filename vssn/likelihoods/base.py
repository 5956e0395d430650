"""What a likelihood is: the emission density p(x_t | z_t, d_t) of a frame, from what a decoder returns for it.

`support` says which values of x have a density. `log_prob` does not look at them: a model checks x once, for all that
it does with it (`vssn.utils.values.require_values`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vssn.nn.blocks import reset_children
from vssn.utils.checks import require_device, require_like, require_numbers, require_shape, require_size, require_tensor
from vssn.utils.values import REAL, Support
from vssn_kernels.arguments import shown

QUANTILE_SAMPLES = 1000


def bounded(raw: Tensor, low: float, high: float) -> Tensor:
    """raw, bent so that it stays within low and high: as it is up to 1 from them, and from there on ever slower, by a
    slope that falls as 1 / (1 + distance)^2. However far off a decoder is, there is a gradient that leads back."""
    near = raw.detach().clamp(low + 1, high - 1)
    within = torch.where(raw == near, raw, near)  # versions of PyTorch differ in the slope of clamp at a bound itself
    beyond = raw - within
    return within + beyond.sign() * (1 - 1 / (1 + beyond.abs()))


def sum_observed(terms: Tensor, observed: Tensor | None) -> Tensor:
    """Over the entries [..., X]: what is missing carries no likelihood."""
    if observed is not None:
        terms = torch.where(observed, terms, terms.new_zeros(()))
    return terms.sum(-1)


def draw_class(log_probs: Tensor) -> Tensor:
    """A class of each row, int64: [..., C] to [...]."""
    if not log_probs.numel():  # of which PyTorch draws none
        return log_probs.new_zeros(log_probs.shape[:-1], dtype=torch.int64)
    drawn: Tensor = torch.distributions.Categorical(logits=log_probs).sample()
    return drawn


def full_precision(tensor: Tensor) -> Tensor:
    """float32 of half precision, for what PyTorch has in half precision on no CPU, and for differences of large terms,
    such as log-gammas, which half precision has not the digits for."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _fitting(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, on arguments that fit: it would broadcast others."""
    asks_what_is_observed = method.__name__ == "given_observed"

    @wraps(method)
    def run(self: Likelihood, parameters: Tensor, *frames: Any, **named: Any) -> Any:
        _check_parameters(parameters, self.parameter_size)
        weight = self.multiplied()
        if weight is not None:
            require_like("parameters", parameters, weight)
        if frames or named:
            _check_frames(parameters, self.x_size, asks_what_is_observed, *frames, **named)
            if weight is not None:
                require_like("x", frames[0] if frames else named["x"], weight)
        return method(self, parameters, *frames, **named)

    return run


def _check_parameters(parameters: object, size: int) -> None:
    given = require_tensor("parameters", parameters)
    if given.shape[-1:] != (size,):
        raise ValueError(f"parameters must have shape [..., {size}], got {list(given.shape)}")
    if not given.is_floating_point():
        raise TypeError(f"parameters must be floating point, got {given.dtype}")


def _check_frames(
    parameters: Tensor, size: int, needs_observed: bool, x: object, observed: object = None, **_: Any
) -> None:
    shape, where = (*parameters.shape[:-1], size), "parameters are"
    x = require_tensor("x", x)
    require_shape("x", x, "[..., X]", shape)
    require_device("x", x, parameters.device, where)
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; convert it with .to({parameters.dtype})")
    if observed is None and not needs_observed:
        return
    observed = require_tensor("observed", observed, "bool torch.Tensor")
    if observed.dtype != torch.bool:
        raise TypeError(f"observed must be a bool torch.Tensor, got {observed.dtype}; convert it with .bool()")
    require_shape("observed", observed, "[..., X]", shape)
    require_device("observed", observed, parameters.device, where)


class Likelihood(nn.Module):
    """The base of an emission density. One of your own gives `forward` (or `log_prob`), `sample` and `mean`, and goes
    into a model as an instance, `VSSN(likelihood=...)`, or by the name that `register` gave it.

    Parameters and buffers of its own are the model's: they train, move with `.to` and stand in its checkpoints. One
    that has parameters has `reset_parameters` too.

    Args:
        x_size: X, features of a frame.
        parameter_size: P, numbers that the decoder returns for a frame.

    Raises:
        ValueError: the support is without 0.
    """

    support: Support = REAL
    whole_frames: bool = False  # a frame is observed in whole or not at all
    # What a model that makes it by name passes on: the argument here, and the model's keyword for it.
    options: ClassVar[tuple[tuple[str, str], ...]] = ()
    name: ClassVar[str]  # of the registry

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in ("log_prob", "given_observed", "mean", "sample", "probabilities", "mode"):
            if name in vars(cls):
                setattr(cls, name, _fitting(vars(cls)[name]))

    def __init__(self, x_size: int, parameter_size: int) -> None:
        super().__init__()
        require_size("x_size", x_size, 1)
        require_size("parameter_size", parameter_size, 0)
        if not self.support.low <= 0 <= self.support.high:
            raise ValueError(f"support must hold 0, which stands where x is not observed, got {self.support}")
        if isinstance(type(self).support, Support):
            self.support = type(self).support  # its own: Dynamo of PyTorch 2.6 reads no tuple that a class has
        self.x_size, self.parameter_size = x_size, parameter_size
        own = vars(type(self)).get("name")  # a subclass of a registered one is not what the name stands for
        self.title = f"likelihood={own!r}" if own else f"likelihood={type(self).__name__}"  # for messages

    def reset_parameters(self) -> None:
        """Draws its parameters anew: those of the modules in it.

        Raises:
            TypeError: it has parameters of its own and no reset_parameters.
        """
        if next(self.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(self).__name__} must have reset_parameters as it has parameters")
        reset_children(self)

    def multiplied(self) -> Tensor | None:
        """A weight that parameters or frames are multiplied by, whose dtype they then have; None: none is."""
        return None

    @_fitting
    def log_prob(self, parameters: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
        """Of every frame, in nats [T, B]: by `forward`, so that the module's hooks take part.

        Args:
            parameters: [T, B, P].
            x: [T, B, X], 0 at padding and where it is not observed.
            observed: [T, B, X] bool or None: everywhere. What is not observed has no part in the density.

        Raises:
            ValueError: a frame is observed in part, where the density of a part of a frame is not known.
        """
        log_prob: Tensor = self(parameters, x, observed)
        return log_prob

    def sample(self, parameters: Tensor) -> Tensor:
        """One draw of every frame: [..., P] to [..., X]."""
        raise NotImplementedError(f"{type(self).__name__} must have sample(parameters): a draw [..., X] for [..., P]")

    def mean(self, parameters: Tensor) -> Tensor:
        """The expectation of every frame: [..., P] to [..., X]."""
        raise NotImplementedError(f"{type(self).__name__} must have mean(parameters): E[x] [..., X] for [..., P]")

    @_fitting
    def given_observed(self, parameters: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        """The parameters of what is missing given what is observed, [T, B, P]; here the same, of entries that are
        independent. Arguments and errors as in `log_prob`."""
        return parameters

    @torch.no_grad()
    def quantile(self, parameters: Tensor, q: float) -> Tensor:
        """The q-quantile of every entry by itself, q in (0, 1): [..., P] to [..., X]. Two of them are an interval.

        An estimate from QUANTILE_SAMPLES draws, where a class has no `_quantile` that computes it.
        """
        if isinstance(q, bool) or not isinstance(q, float) or not 0 < q < 1:
            raise ValueError(f"q must be a float between 0 and 1, got {shown(q)}")
        require_numbers("parameters", parameters)
        _check_parameters(parameters, self.parameter_size)
        return self._quantile(parameters.resolve_neg(), q)

    def _quantile(self, parameters: Tensor, q: float) -> Tensor:
        draws = torch.stack([self.sample(parameters) for _ in range(QUANTILE_SAMPLES)])
        return draws.kthvalue(max(1, round(q * QUANTILE_SAMPLES)), 0).values

    def floats_per_frame(self, x: Tensor) -> int:
        """Numbers that `log_prob` holds at most for a frame, its arguments included: for the memory plan of bounds.

        Args:
            x: [S, B, X] frames that are run together; what stands in the padding may be NaN.
        """
        return 4 * self.parameter_size + 4 * self.x_size

    def extra_repr(self) -> str:
        given = "".join(f", {name}={getattr(self, name)}" for name, _ in self.options if hasattr(self, name))
        return f"{self.x_size}{given}"
