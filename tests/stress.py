"""Calls at the ends of what numbers can be: gates that stand at 0 and 1, variances at their floor, weights of norm
1000, logits of 1e30, denormals, products that leave float32 on the way; and sequences of any length.

Each entry of CALLS makes a `Sample` in float64, of numbers that float32 holds; `check` runs it on a backend against the
plain reference in float64. What is finite there, and small enough for float32, must be finite; how near it must come
stands in `check`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vssn_kernels.testing import (
    TOLERANCES,
    Normal,
    Sample,
    Target,
    cotangents,
    expected,
    find_sample,
    gradients,
    gru_packed_sample,
    gru_sample,
    interleaved_sample,
    poisoned_empty,
    posterior_sample,
)

BEYOND_PLAIN = 10  # times what the plain reference loses in the same precision, a kernel may
DENORMAL = 1e-40  # of float32
SMALLEST = 1e-35  # an error below is none: kernels may take denormals for 0
LARGEST = torch.finfo(torch.float32).max / 4  # what is larger in float64 may be infinite in float32


def _changed(op: str, name: str, **change: Callable[[Tensor], Tensor]) -> Sample:
    """A sample of the ops' tests with some tensors changed. weight0 is weights[0], prior_context is prior.context."""
    sample = find_sample(op, name)
    plain = {part: part.replace(".", "_").replace("s[", "").rstrip("]") for part in sample.tensors}
    assert set(change) <= set(plain.values()), f"{sample} has {sorted(plain.values())}, got {sorted(change)}"
    made = {part: change.get(plain[part], torch.clone)(tensor) for part, tensor in sample.tensors.items()}
    return sample.replace({part: tensor.float().double() for part, tensor in made.items()})


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: factor * tensor


def _plus(number: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor + number


def _filled(*numbers: float) -> Callable[[Tensor], Tensor]:
    """These numbers in turn, in place of all entries."""
    given = torch.tensor(numbers, dtype=torch.float64)
    return lambda tensor: given[torch.arange(tensor.numel()) % len(given)].view_as(tensor)


def _means_of_norm(norm: float) -> Callable[[Tensor], Tensor]:
    """Of weight_out: the rows of the means alone. A log-variance of 1000 is beyond float32."""
    return lambda weight: torch.cat((_of_norm(norm)(weight.chunk(2)[0]), weight.chunk(2)[1]))


def _of_norm(norm: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor * (norm / tensor.norm())


GRU, PACKED, CHAIN, BOTH = "gru_sequence", "gru_packed", "posterior_sequence", "interleaved_sequence"
KL, DRAW, LOGITS = "gaussian_kl", "gaussian_rsample_kl", "bernoulli_log_prob"
CALLS: dict[str, Callable[[], Sample]] = {
    # Gates at 0 and 1, exactly or nearly; tanh at its ends.
    "gru, gates of 1e4": lambda: _changed(GRU, "lengths_reverse", gates_x=_times(1e4)),
    "gru, gates of 30": lambda: _changed(GRU, "plain", gates_x=_times(30)),
    "gru, gates of 88 and 104": lambda: _changed(GRU, "plain", gates_x=_filled(-88.2, 88.6, -103.5, 104, 87.4, -95.0)),
    "gru, gates of 1e38": lambda: _changed(GRU, "plain", gates_x=_times(1e37)),
    "packed, gates of 1e4": lambda: _changed(PACKED, "reverse", gates_x=_times(1e4)),
    "both, gates of 1e4": lambda: _changed(BOTH, "resets", gates_x=_times(1e4)),
    "gru, states of 1e30": lambda: _changed(GRU, "lengths", h0=_times(1e30)),
    # Weights of norm 1000.
    "gru, weights of norm 1000": lambda: _changed(GRU, "plain", weight_hh=_of_norm(1e3)),
    "packed, weights of norm 1000": lambda: _changed(PACKED, "plain", weight_hh=_of_norm(1e3)),
    "chain, weights of norm 1000": lambda: _changed(
        CHAIN,
        "prior_tanh",
        weight_z=_of_norm(1e3),
        weight_out=_means_of_norm(1e3),
        prior_weight_z=_of_norm(1e3),
        prior_weight_mu=_of_norm(1e3),
    ),
    "both, weights of norm 1000": lambda: _changed(
        BOTH, "tanh", weight_hh=_of_norm(1e3), weight_zh=_of_norm(1e3), weight_h=_of_norm(1e3)
    ),
    "mlp, weights of norm 1000": lambda: _changed("mlp", "silu", weight0=_of_norm(1e3), weight_out=_of_norm(1e3)),
    # Variances at their floor, far above it, and where exp is near the end of float32.
    "chain, variances at the floor": lambda: _changed(CHAIN, "prior_silu", bias_out=_plus(-1e4)),
    "chain, variances just above the floor": lambda: _changed(CHAIN, "tanh", bias_out=_plus(-25)),
    "chain, raw far above the floor": lambda: _changed(CHAIN, "tanh", bias_out=_plus(15)),
    "chain, deviations of e^44": lambda: _changed(CHAIN, "tanh", bias_out=_filled(88.6)),
    "both, variances at the floor": lambda: _changed(BOTH, "tanh", bias_out=_plus(-1e4)),
    "both, deviations at the floor": lambda: _changed(BOTH, "softplus", bias_out=_plus(-1e4)),
    "both, deviations of 1e4": lambda: _changed(BOTH, "softplus", bias_out=_plus(1e4)),
    "gaussian mlp, variances at the floor": lambda: _changed("gaussian_mlp", "silu", bias_out=_plus(-1e4)),
    "gaussian mlp, raw far above the floor": lambda: _changed("gaussian_mlp", "tanh", bias_out=_plus(30)),
    "draw, variances of e^-80": lambda: _changed(DRAW, "standard", logvar=_plus(-80)),
    "draw, variances of e^-200": lambda: _changed(DRAW, "standard", logvar=_plus(-200)),
    "draw, variances of e^80": lambda: _changed(DRAW, "standard", logvar=_filled(79.0, 80.0, 81.0)),
    "draw, variances at the end of exp": lambda: _changed(DRAW, "standard", logvar=_filled(88.2, 88.5, 88.7)),
    "kl, variances at the end of exp": lambda: _changed(KL, "standard", logvar=_filled(88.29, 88.4, 88.5, 88.7)),
    "kl, a prior of e^-80": lambda: _changed(KL, "prior", prior_logvar=_plus(-80), mu=_times(1e-3)),
    "kl, a prior of e^-88.5": lambda: _changed(
        KL, "prior", logvar=_plus(-80), prior_logvar=_filled(-88.5), mu=_times(1e-4), prior_mu=_times(1e-4)
    ),
    "kl, a prior of e^60 and means of 1e25": lambda: _changed(
        KL, "prior", logvar=_plus(60), prior_logvar=_plus(60), mu=_times(1e25)
    ),
    "kl, a prior of e^-80 and means of 1e-25": lambda: _changed(
        KL, "prior", logvar=_plus(-80), prior_logvar=_plus(-80), mu=_times(1e-25), prior_mu=_times(1e-25)
    ),
    # Activations far out.
    "mlp, silu at 1e4": lambda: _changed("mlp", "silu", input0=_times(1e4)),
    "mlp, silu at -88.5": lambda: _changed("mlp", "silu", input0=_times(0), input1=_times(0), bias=_filled(-88.5)),
    "mlp, tanh at 1e4": lambda: _changed("mlp", "tanh", input0=_times(1e4)),
    "both, elu and silu at 1e3": lambda: _changed(
        BOTH, "elu", context=_times(1e3), embed_context=_times(1e3), bias_out=_plus(-1e4)
    ),
    # Logits.
    "logits of 1e4": lambda: _changed(LOGITS, "wide", logits=_times(1e4)),
    "logits of 1e30": lambda: _changed(LOGITS, "plain", logits=_times(1e30), x=torch.round),
    "logits of 88": lambda: _changed(LOGITS, "plain", logits=_filled(88.2, -88.5, 88.7, -103.0), x=torch.round),
    "logits of 1e-40": lambda: _changed(LOGITS, "plain", logits=_times(DENORMAL)),
    # Denormals.
    "gru, denormals": lambda: _changed(
        GRU, "reverse", gates_x=_times(DENORMAL), h0=_times(DENORMAL), bias_hh=_times(DENORMAL)
    ),
    "gru, denormal weights": lambda: _changed(GRU, "plain", weight_hh=_times(DENORMAL)),
    "chain, denormals": lambda: _changed(CHAIN, "tanh", context=_times(DENORMAL), z0=_times(DENORMAL)),
    "chain, denormal noise": lambda: _changed(CHAIN, "prior_relu", eps=_times(DENORMAL), z0=_times(DENORMAL)),
    "both, denormals": lambda: _changed(
        BOTH, "resets_anew", gates_x=_times(DENORMAL), h0=_times(DENORMAL), z0=_times(DENORMAL)
    ),
    "mlp, denormals": lambda: _changed("mlp", "relu", input0=_times(DENORMAL), input1=_times(DENORMAL)),
    "draw, denormals": lambda: _changed(DRAW, "prior", mu=_times(DENORMAL), eps=_times(DENORMAL)),
}


def check(name: str, target: Target) -> dict[str, float]:
    """Runs a call and its gradients on a target; of each tensor the relative error over what it may be, not above 1.

    That is the tolerance of the table or, where more, BEYOND_PLAIN times what the plain reference loses in the same
    precision; it is infinite where a number is not finite that float64 has within float32's range.
    """
    sample = CALLS[name]().to(target.device, target.dtype, requires_grad=True)
    with poisoned_empty():
        outputs = sample.run(target.backend)
        found = outputs | gradients(sample, outputs, cotangents(outputs))
    plain_outputs = sample.run_plain()
    plain = plain_outputs | gradients(sample, plain_outputs, cotangents(plain_outputs))
    want_outputs, want_grads = expected(sample)
    tolerances = TOLERANCES[target.backend, target.dtype]
    ratios = {}
    for part, want in (want_outputs | want_grads).items():
        inside = want.isfinite() if target.dtype == torch.float64 else want.abs() < LARGEST
        lost = _error(plain[part], want, inside)
        tolerance = max(tolerances[part in want_grads], BEYOND_PLAIN * lost if math.isfinite(lost) else 0.0)
        ratios[part] = _error(found[part], want, inside) / tolerance
    return ratios


def _error(actual: Tensor, want: Tensor, inside: Tensor) -> float:
    """norm(actual - want) / norm(want) of the entries inside; infinite where one of them is not finite."""
    got, exact = actual.detach().to("cpu", torch.float64)[inside], want[inside]
    if not got.isfinite().all():
        return math.inf
    error = torch.where((got - exact).abs() < SMALLEST, 0, got - exact)
    scale = max(exact.abs().max().item() if exact.numel() else 0.0, SMALLEST)  # else squares leave float64
    return (error / scale).norm().item() / max((exact / scale).norm().item(), 1.0)


def _half(sample: Sample) -> Sample:
    """With weights so small that states which differ by a rounding do not drift apart."""
    return sample.replace({part: tensor / 2 for part, tensor in sample.tensors.items() if part.startswith("weight")})


# Of few rows and units, by the number of steps.
LONG: dict[str, Callable[[Normal, int], Sample]] = {
    GRU: lambda normal, steps: _half(
        gru_sample(normal, "long", steps, 2, 5, reverse=True, lengths=torch.tensor([steps, steps - 3]))
    ),
    PACKED: lambda normal, steps: _half(gru_packed_sample(normal, "long", 2, 5, [2] * (steps - 3) + [1] * 3)),
    CHAIN: lambda normal, steps: _half(posterior_sample(normal, "long", steps, 1, 6, 3, prior=True)),
    BOTH: lambda normal, steps: _half(interleaved_sample(normal, "long", steps, 1, 5, 4, 4, 2)),
}
