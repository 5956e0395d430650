"""The one place that checks the arguments of every op, for all backends.

The shape, dtype and device checks read metadata only, so they run under fake tensors too; the check of the
values of `lengths` is apart from them because it reads data. Each failure is one line that names the
op, the argument, what was expected and what came.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from vssn_kernels.activations import ACTIVATIONS

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MLP_INPUTS = 16  # csrc/cpu/kernels.h
HALF = (torch.float16, torch.bfloat16)
# Checking lengths on a GPU needs a synchronisation, so it is asked for. Read once.
CHECK_ON_DEVICE = os.environ.get("VSSN_CHECK", "0") == "1"


def shape_text(shape: torch.Size | tuple) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def require_tensors(op: str, **tensors: object) -> None:
    """Raises TypeError unless every named argument is a Tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def require_list(op: str, name: str, tensors: object) -> list[Tensor]:
    """The tensors as a list. Raises TypeError unless it is a list or tuple of some of them."""
    if not isinstance(tensors, list | tuple) or not tensors:
        raise TypeError(f"{op}: {name} must be a list of tensors, one at least, got {type(tensors).__name__}")
    for number, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}[{number}] must be a torch.Tensor, got {type(tensor).__name__}")
    return list(tensors)


def require_floating(op: str, name: str, tensor: Tensor) -> None:
    """Raises TypeError for a dtype that no backend takes."""
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def require_flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def require_activation(op: str, value: object) -> None:
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {value!r}")


def require_finite(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # torch.compile traces this with a symbolic value, math.isfinite it does not
        raise ValueError(f"{op}: {name} must be finite, got {value}")


def _require_shape(op: str, name: str, tensor: Tensor, letters: str, expected: tuple) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"{op}: {name} must have shape {letters} = {shape_text(expected)}, got {shape_text(tensor.shape)}"
        )


def _require_alike(op: str, first_name: str, first: Tensor, others: dict[str, Tensor], states: tuple[str, ...] = ()):
    """Same device and dtype for all; a state may also be float32 beside half-precision inputs."""
    require_floating(op, first_name, first)
    for name, tensor in others.items():
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


def _require_lengths_form(op: str, lengths: Tensor | None, batch: int, device: torch.device) -> None:
    if lengths is None:
        return
    if lengths.dtype != torch.int64:
        raise TypeError(f"{op}: lengths must be int64, got {lengths.dtype}; convert it with .long()")
    _require_shape(op, "lengths", lengths, "[B]", (batch,))
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


def check_gru(op: str, gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Tensor | None) -> None:
    if gates_x.dim() != 3:
        raise ValueError(f"{op}: gates_x must have shape [T, B, 3H], got {shape_text(gates_x.shape)}")
    _, batch, width = gates_x.shape
    if width % 3 != 0 or width == 0:
        raise ValueError(f"{op}: gates_x must have a last size 3H, H >= 1, got {shape_text(gates_x.shape)}")
    hidden = width // 3
    _require_shape(op, "h0", h0, "[B, H]", (batch, hidden))
    _require_shape(op, "weight_hh", weight_hh, "[3H, H]", (width, hidden))
    _require_shape(op, "bias_hh", bias_hh, "[3H]", (width,))
    _require_alike(op, "gates_x", gates_x, {"h0": h0, "weight_hh": weight_hh, "bias_hh": bias_hh}, ("h0",))
    _require_lengths_form(op, lengths, batch, gates_x.device)


def check_posterior(
    op: str,
    context: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    prior: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    lengths: Tensor | None,
    activation: str,
    min_logvar: float,
) -> None:
    require_activation(op, activation)
    require_finite(op, "min_logvar", min_logvar)
    if context.dim() != 3:
        raise ValueError(f"{op}: context must have shape [T, B, M], got {shape_text(context.shape)}")
    if z0.dim() != 2:
        raise ValueError(f"{op}: z0 must have shape [B, Z], got {shape_text(z0.shape)}")
    steps, batch, hidden = context.shape
    latent = z0.shape[1]
    if hidden == 0 or latent == 0:
        raise ValueError(f"{op}: M and Z must be at least 1, got M = {hidden} and Z = {latent}")
    _require_shape(op, "z0", z0, "[B, Z]", (batch, latent))
    _require_shape(op, "eps", eps, "[T, B, Z]", (steps, batch, latent))
    _require_shape(op, "weight_z", weight_z, "[M, Z]", (hidden, latent))
    _require_shape(op, "weight_out", weight_out, "[2Z, M]", (2 * latent, hidden))
    _require_shape(op, "bias_out", bias_out, "[2Z]", (2 * latent,))
    others = {"z0": z0, "eps": eps, "weight_z": weight_z, "weight_out": weight_out, "bias_out": bias_out}
    parts = {
        "prior.context": ("[T, B, M]", (steps, batch, hidden)),
        "prior.weight_z": ("[M, Z]", (hidden, latent)),
        "prior.weight_mu": ("[Z, M]", (latent, hidden)),
        "prior.bias_mu": ("[Z]", (latent,)),
    }
    if any(part is not None for part in prior):
        for (name, (letters, expected)), part in zip(parts.items(), prior, strict=True):
            if part is None:
                raise ValueError(f"{op}: {name} is missing: a prior needs all of {', '.join(parts)}")
            _require_shape(op, name, part, letters, expected)
            others[name] = part
    _require_alike(op, "context", context, others, ("z0",))
    _require_lengths_form(op, lengths, batch, context.device)


def check_gaussian(
    op: str,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
) -> None:
    if mu.dim() == 0:
        raise ValueError(f"{op}: mu must have shape [..., Z], got a scalar")
    if (prior_mu is None) != (prior_logvar is None):
        missing = "prior_mu" if prior_mu is None else "prior_logvar"
        raise ValueError(f"{op}: {missing} is missing: give both prior_mu and prior_logvar, or neither for N(0, I)")
    others = {"logvar": logvar, "eps": eps, "prior_mu": prior_mu, "prior_logvar": prior_logvar}
    given = {name: tensor for name, tensor in others.items() if tensor is not None}
    for name, tensor in given.items():
        _require_shape(op, name, tensor, "[..., Z] of mu", tuple(mu.shape))
    _require_alike(op, "mu", mu, given)


def check_mlp(
    op: str,
    inputs: list[Tensor],
    weights: list[Tensor],
    bias: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    activation: str,
    min_logvar: float | None,
) -> None:
    require_activation(op, activation)
    if not 1 <= len(inputs) <= MLP_INPUTS or len(weights) not in (1, len(inputs)):
        raise ValueError(
            f"{op}: expected 1 to {MLP_INPUTS} inputs, and a weight for each or one for all, got {len(inputs)} inputs "
            f"and {len(weights)} weights"
        )
    if bias.dim() != 1 or bias.shape[0] == 0:
        raise ValueError(f"{op}: bias must have shape [M], M >= 1, got {shape_text(bias.shape)}")
    if inputs[0].dim() == 0:
        raise ValueError(f"{op}: inputs[0] must have shape [..., K], got a scalar")
    hidden, leading = bias.shape[0], inputs[0].shape[:-1]
    others: dict[str, Tensor] = {"bias": bias}
    for number, x in enumerate(inputs):
        if number:
            if x.dim() == 0 or x.shape[:-1] != leading:
                raise ValueError(
                    f"{op}: inputs[{number}] must have shape [..., K] with the leading sizes {shape_text(leading)} of "
                    f"inputs[0], got {shape_text(x.shape)}"
                )
            others[f"inputs[{number}]"] = x
    widths = [x.shape[-1] for x in inputs]
    for number, weight in enumerate(weights):
        width = widths[number] if len(weights) == len(inputs) else sum(widths)
        _require_shape(op, f"weights[{number}]", weight, "[M, K]", (hidden, width))
        others[f"weights[{number}]"] = weight
    if (weight_out is None) != (bias_out is None):
        missing = "weight_out" if weight_out is None else "bias_out"
        raise ValueError(f"{op}: {missing} is missing: give both weight_out and bias_out, or neither")
    if weight_out is not None and bias_out is not None:
        if weight_out.dim() != 2 or weight_out.shape[0] == 0:
            raise ValueError(f"{op}: weight_out must have shape [O, M], O >= 1, got {shape_text(weight_out.shape)}")
        _require_shape(op, "weight_out", weight_out, "[O, M]", (weight_out.shape[0], hidden))
        _require_shape(op, "bias_out", bias_out, "[O]", (weight_out.shape[0],))
        others |= {"weight_out": weight_out, "bias_out": bias_out}
    if min_logvar is not None:
        require_finite(op, "min_logvar", min_logvar)
        if weight_out is None or weight_out.shape[0] % 2:
            got = "none" if weight_out is None else shape_text(weight_out.shape)
            raise ValueError(f"{op}: with min_logvar weight_out must have shape [2Z, M], got {got}")
    _require_alike(op, "inputs[0]", inputs[0], others)


def check_bernoulli(op: str, logits: Tensor, x: Tensor) -> None:
    if logits.dim() == 0:
        raise ValueError(f"{op}: logits must have shape [..., X], got a scalar")
    _require_shape(op, "x", x, "[..., X] of logits", tuple(logits.shape))
    _require_alike(op, "logits", logits, {"x": x})
