"""Calls of the ops drawn at random: a `Case` says all about one, `cases` is hypothesis's strategy for them.

What a failing run prints is a `Case` to be pasted into EXAMPLES of tests/kernels/test_properties.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as draw
from torch import Tensor

from vssn_kernels.activations import ACTIVATIONS, MORE_ACTIVATIONS
from vssn_kernels.testing import (
    PADDED,
    RECURRENT,
    TOLERANCES,
    Normal,
    Sample,
    Target,
    bernoulli_log_prob_sample,
    cotangents,
    expected,
    gaussian_kl_of,
    gaussian_mlp_of,
    gaussian_rsample_kl_sample,
    gradients,
    gru_packed_sample,
    gru_sample,
    interleaved_sample,
    mlp_sample,
    poisoned_empty,
    posterior_sample,
    split_linear_of,
    strided,
)

LAYOUTS = ("contiguous", "transposed", "batch_first", "sliced", "expanded")
RAGGED = ("full", "drawn", "short", "none")  # "none": no lengths at all
LARGEST = 300  # of a size
WORK = 1_000_000  # multiply-adds of a call: what the reference in float64 does in some milliseconds
MOST_STEPS = 40
ABSOLUTE = 1e-6  # of a tensor whose norm is this, 0 or less, the plain norm of the difference counts

POOLED = 32  # draws that are judged together
BEYOND_PLAIN = 4  # times what the plain reference loses in the same precision, a kernel may
KINKED = frozenset(("relu", "leaky_relu"))  # activations whose slope jumps


@dataclasses.dataclass(frozen=True)
class Case:
    """One call and its gradients.

    Args:
        op: the public op.
        sizes: steps and rows or, without steps, the leading sizes come first; then the op's own.
        seed: of every number in it, and of which tensors ask for a gradient.
        layouts: of the tensors in turn.
        ragged: the lengths, of an op that takes them.
        choices: activations, directions and the like, by name.
    """

    op: str
    sizes: tuple[int, ...]
    seed: int = 0
    layouts: tuple[str, ...] = ("contiguous",)
    ragged: str = "none"
    choices: tuple[tuple[str, object], ...] = ()

    def sample(self) -> Sample:
        """In float64, contiguous."""
        source = torch.Generator().manual_seed(self.seed)
        normal: Normal = lambda *shape: torch.randn(shape, generator=source, dtype=torch.float64)  # noqa: E731
        options = dict(self.choices)
        made = _MAKERS[self.op](normal, self.sizes, options)
        if self.op in RECURRENT:
            made = made.replace({name: _of_short_rows(name, tensor) for name, tensor in made.tensors.items()})
        if self.op in PADDED and self.ragged != "none":
            made = made.replace(lengths=_lengths(self.ragged, *self.sizes[:2], source))
        if options.get("resets"):
            drawn = torch.rand(self.sizes[0], self.sizes[1], generator=source) < 0.3
            made = made.replace(resets=drawn)
        return made

    def is_smooth(self, target: Target) -> bool:
        """Whether rounding leaves the gradients where they are: the slope of a relu, leaky or not, jumps where what it
        takes is rounded to another sign, which of so many entries one or the other is."""
        return target.dtype == torch.float64 or KINKED.isdisjoint(dict(self.choices).values())

    def run(self, target: Target) -> dict[str, float]:
        """Runs it with unwritten memory full of NaN. Returns the errors of outputs and gradients by name, each over
        what it may be: not above 1.

        A few numbers alone may be what is left of larger ones, with their roundings. So where one is out, POOLED draws
        are judged together, of which no few cancel; and what the plain reference loses in the same precision is the
        case's own, not the kernel's.
        """
        found = self._compare(target)
        if any(1 < one.ratio < math.inf for one in found.values()):
            draws = [dataclasses.replace(self, seed=self.seed + number) for number in range(POOLED)]
            found = _pooled([draw._compare(target, self.seed) for draw in draws])
            if target.backend != "reference":
                plain = _pooled([draw._compare(target._replace(backend="reference"), self.seed) for draw in draws])
                found = {name: one.beside(plain[name]) for name, one in found.items()}
        return {name: one.ratio for name, one in found.items()}

    def _compare(self, target: Target, asking: int | None = None) -> dict[str, _Error]:
        """asking: the seed of which tensors ask for a gradient (its own)."""
        sample = self.sample().to(target.device, target.dtype)
        tensors = {
            name: _laid_out(tensor.detach(), self.layouts[number % len(self.layouts)])
            for number, (name, tensor) in enumerate(sample.tensors.items())
        }
        source = torch.Generator().manual_seed(self.seed if asking is None else asking)
        asked = torch.rand(len(tensors), generator=source) < (0.8 if self.is_smooth(target) else 0)
        for needed, tensor in zip(asked.tolist(), tensors.values(), strict=True):
            tensor.requires_grad_(needed)
        sample = sample.replace(tensors)
        want, want_grads = expected(sample)
        with poisoned_empty():
            outputs = sample.run(target.backend)
            grads = gradients(sample, outputs, cotangents(outputs)) if any(asked) else {}
        of_outputs, of_gradients = TOLERANCES[target.backend, target.dtype]
        found = {name: _Error.of(outputs[name], value, of_outputs) for name, value in want.items()}
        return found | {name: _Error.of(value, want_grads[name], of_gradients) for name, value in grads.items()}


def require_within(case: Case, ratios: dict[str, float], where: str = "") -> None:
    """Raises AssertionError naming what is too far off, of what `Case.run` found."""
    wrong = {name: f"{ratio:.3g}" for name, ratio in ratios.items() if not ratio <= 1}
    assert not wrong, f"{case}{where}: times the tolerance: {wrong}"


class _Error(NamedTuple):
    """Of one tensor."""

    norm: float  # of the difference, infinite where it is no number or the shapes differ
    wanted: float  # the norm of what it should be
    tolerance: float

    @classmethod
    def of(cls, actual: Tensor, wanted: Tensor, tolerance: float) -> _Error:
        if actual.shape != wanted.shape:
            return cls(math.inf, 0.0, tolerance)
        actual, wanted = (tensor.detach().to("cpu", torch.float64) for tensor in (actual, wanted))
        norm = (actual - wanted).norm().item()
        return cls(math.inf if math.isnan(norm) else norm, wanted.norm().item(), tolerance)

    @property
    def ratio(self) -> float:
        """The relative error over what it may be."""
        return self.norm / max(self.wanted, ABSOLUTE) / self.tolerance

    def beside(self, plain: _Error) -> _Error:
        """Against no less than BEYOND_PLAIN times what the plain reference loses."""
        least = BEYOND_PLAIN * plain.norm / self.tolerance
        return self._replace(wanted=max(self.wanted, least)) if math.isfinite(least) else self


def _pooled(draws: Sequence[dict[str, _Error]]) -> dict[str, _Error]:
    """Of each tensor all numbers of the draws together."""
    return {
        name: first._replace(
            norm=math.hypot(*(one[name].norm for one in draws)), wanted=math.hypot(*(one[name].wanted for one in draws))
        )
        for name, first in draws[0].items()
    }


def _of_short_rows(name: str, tensor: Tensor) -> Tensor:
    """A matrix of weights with no row longer than 1, as hardly one is of many columns. With larger ones a recurrence
    may take states that differ by a rounding far apart, in any precision."""
    if not name.startswith("weight") or tensor.dim() != 2 or not tensor.numel():
        return tensor
    return tensor / tensor.norm(dim=1, keepdim=True).clamp(min=1)


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return tensor
    if layout == "expanded":  # one row for all
        return tensor[:1].expand_as(tensor) if tensor.dim() and len(tensor) else tensor
    return strided(tensor, layout)


def _lengths(ragged: str, steps: int, batch: int, source: torch.Generator) -> Tensor:
    longest = {"full": steps, "drawn": steps, "short": min(steps, 2)}[ragged]
    drawn = torch.randint(longest + 1, (batch,), generator=source)
    return torch.full_like(drawn, steps) if ragged == "full" else drawn


# ---- The ops --------------------------------------------------------------------------------------------------------

Maker = Callable[[Normal, tuple[int, ...], dict[str, object]], Sample]


def _packed(normal: Normal, sizes: tuple[int, ...], options: dict[str, object]) -> Sample:
    steps, batch, hidden = sizes
    source = torch.Generator().manual_seed(steps + 1000 * batch)
    widths = torch.randint(batch + 1, (steps,), generator=source).sort(descending=True).values.tolist()
    return gru_packed_sample(normal, "drawn", batch, hidden, widths, **options)


def _interleaved(normal: Normal, sizes: tuple[int, ...], options: dict[str, object]) -> Sample:
    plain = {name: value for name, value in options.items() if name not in ("resets", "anew")}
    anew = bool(options.get("resets") and options.get("anew"))
    return interleaved_sample(normal, "drawn", *sizes, anew=anew, **plain)


def _mlp(normal: Normal, sizes: tuple[int, ...], options: dict[str, object]) -> Sample:
    steps, batch, first, second, hidden, out = sizes
    rest = {name: value for name, value in options.items() if name != "one"}
    return mlp_sample(normal, "drawn", (steps, batch), (first, second), hidden, out, bool(options["one"]), **rest)


def _rsample(normal: Normal, sizes: tuple[int, ...], options: dict[str, object]) -> Sample:
    return gaussian_rsample_kl_sample(normal, "drawn", *sizes, prior=bool(options["prior"]))


_MAKERS: dict[str, Maker] = {
    "gru_sequence": lambda normal, sizes, options: gru_sample(normal, "drawn", *sizes, **options),
    "gru_packed": _packed,
    "posterior_sequence": lambda normal, sizes, options: posterior_sample(normal, "drawn", *sizes, **options),
    "interleaved_sequence": _interleaved,
    "gaussian_rsample_kl": _rsample,
    "gaussian_kl": lambda *given: gaussian_kl_of(_rsample(*given)),
    "mlp": _mlp,
    "gaussian_mlp": lambda *given: gaussian_mlp_of(_mlp(*given)),
    "split_linear": lambda *given: split_linear_of(_mlp(*given)),
    "bernoulli_log_prob": lambda normal, sizes, options: bernoulli_log_prob_sample(normal, "drawn", *sizes),
}
_BOOL = draw.booleans()
_OWN_SIZES = {"gru_sequence": 1, "gru_packed": 1, "posterior_sequence": 2, "interleaved_sequence": 4}
_LEAST = {"mlp": (0, 0, 1, 1), "gaussian_mlp": (0, 0, 1, 1), "split_linear": (0, 0, 1, 1)}
_CHOICES: dict[str, dict[str, draw.SearchStrategy[object]]] = {
    "gru_sequence": {"reverse": _BOOL},
    "gru_packed": {"reverse": _BOOL},
    "posterior_sequence": {
        "activation": draw.sampled_from(ACTIVATIONS),
        "min_logvar": draw.sampled_from((-12.0, -1.0)),
        "prior": _BOOL,
    },
    "interleaved_sequence": {
        "embed_activation": draw.sampled_from(MORE_ACTIVATIONS),
        "activation": draw.sampled_from(MORE_ACTIVATIONS),
        "scale": draw.sampled_from(("logvar", "softplus")),
        "resets": _BOOL,
        "anew": _BOOL,
    },
    "gaussian_rsample_kl": {"prior": _BOOL},
    "gaussian_kl": {"prior": _BOOL},
    "mlp": {"activation": draw.sampled_from(ACTIVATIONS), "one": _BOOL},
    "gaussian_mlp": {"activation": draw.sampled_from(ACTIVATIONS), "one": _BOOL},
    "split_linear": {"one": _BOOL},
    "bernoulli_log_prob": {},
}


def _size(least: int) -> draw.SearchStrategy[int]:
    """Small ones, those about a vector's or a panel's width, and any."""
    about = sorted({size for width in (8, 16, 32, 48, 64, 128, 256) for size in (width - 1, width, width + 1)})
    return draw.one_of(draw.integers(least, 9), draw.sampled_from(about), draw.integers(least, LARGEST))


@draw.composite
def cases(choose: draw.DrawFn, op: str) -> Case:
    """Of an op: sizes from 0 (steps, rows, inputs) or 1 up to LARGEST, as long as the work of a call stays small."""
    least = (1,) * _OWN_SIZES[op] if op in RECURRENT else _LEAST.get(op, (0,))
    own = tuple(choose(_size(one)) for one in least)
    room = max(WORK // max(_work(op, own), 1), 1)
    batch = choose(draw.one_of(draw.integers(0, min(room, 9)), draw.integers(0, min(room, LARGEST))))
    most = max(min(room // max(batch, 1), MOST_STEPS), 1)
    steps = choose(draw.one_of(draw.integers(0, min(most, 4)), draw.integers(0, most)))
    return Case(
        op,
        (steps, batch, *own),
        seed=choose(draw.integers(0, 2**31)),
        layouts=choose(draw.one_of(draw.just(LAYOUTS[:1]), draw.tuples(*[draw.sampled_from(LAYOUTS)] * 5))),
        ragged=choose(draw.sampled_from(RAGGED)) if op in PADDED else "none",
        choices=tuple((name, choose(values)) for name, values in _CHOICES[op].items()),
    )


def _work(op: str, own: Sequence[int]) -> int:
    """Multiply-adds of a row of a step, about."""
    return 3 * (1 + sum(own)) * max((1, *own))
