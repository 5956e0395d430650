"""Single steps of the GRU and the layers around it without gradients, with weights prepared once for many calls, for
loops that change no weight. Not public: vssn/nn/prepared.py makes networks of these.

The `cpu` backend packs the weights of an op at every call, which for a few rows takes longer than the product. What is
prepared here keeps them packed, as they were at that time. A call that is to be differentiated, compiled, transformed
or looked at, one under autocast, one on another backend, one in bfloat16 and one of tensors that do not fit is given to
`plain`, which computes the same from the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vssn_kernels.backend.table import choose
from vssn_kernels.ops import fast_path, registration, torch_internals

_GRU = "gru_sequence"


def prepare_gru(
    weight_hh: Tensor, bias_hh: Tensor, plain: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """step(gates_x [B, 3H], h [B, H]) -> the next h [B, H]: one step of `gru_sequence`.

    Args:
        weight_hh: [3H, H].
        bias_hh: [3H].
        plain: the same from the weights themselves.
    """
    op = _GRU
    if not _packs(op, (weight_hh, bias_hh)):
        return plain
    from vssn_kernels.backend.cpu.prepared import PreparedGru

    kernel = PreparedGru(weight_hh, bias_hh)

    def step(gates_x: Tensor, h: Tensor) -> Tensor:
        if is_bare(op, (gates_x, h)) and kernel.fits(gates_x, h):
            return kernel(gates_x, h)
        return plain(gates_x, h)

    return step


def prepare_mlp(
    widths: Sequence[int],
    weights: Sequence[Tensor],
    bias: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    plain: Callable[..., Any],
    *,
    activation: str = "tanh",
    min_logvar: float | None = None,
) -> Callable[..., Any]:
    """run(*inputs): `split_linear` of the inputs without a second layer, `mlp` with one, `gaussian_mlp` with
    min_logvar; results as there.

    Args:
        widths: K_i of each input.
        weights: as these ops take them, a list; bias, weight_out, bias_out likewise.
        plain: the same from the weights themselves.
    """
    op = "split_linear" if weight_out is None else "mlp" if min_logvar is None else "gaussian_mlp"
    if not _packs(op, [weight for weight in (*weights, bias, weight_out, bias_out) if weight is not None]):
        return plain
    from vssn_kernels.backend.cpu.prepared import PreparedMlp

    kernel = PreparedMlp(widths, weights, bias, weight_out, bias_out, activation, min_logvar)

    def run(*inputs: Tensor) -> Any:
        if not (is_bare(op, inputs) and kernel.fits(inputs)):
            return plain(*inputs)
        out, logvar = kernel(inputs)
        return out if logvar is None else (out, logvar)

    return run


def _packs(op: str, weights: Sequence[Tensor]) -> bool:
    """Whether the backend that runs the op on such tensors packs weights, and may read these now."""
    first = weights[0]
    return (
        not torch.compiler.is_compiling()
        and _has_steps(op, first)
        and fast_path.is_open(weights)
        and all(weight.dtype == first.dtype and weight.device == first.device for weight in weights)
    )


def is_bare(op: str, inputs: Sequence[Tensor]) -> bool:
    """Whether nothing but the numbers of a call on these tensors is asked for, and of the `cpu` backend."""
    return not torch.is_grad_enabled() and is_unseen(op, inputs)


def is_unseen(op: str, inputs: Sequence[Tensor]) -> bool:
    """Whether nothing but the numbers, and their gradients backward, is asked for of a call on these tensors, and of
    the `cpu` backend, which may read them all."""
    return (
        not torch.compiler.is_compiling()
        and not torch_internals.in_dual_level()
        and fast_path.is_open(inputs, on_cpu=True)
        and _has_steps(op, inputs[0])
        and not registration.autocast_is_on(inputs[0].device)
    )


def _has_steps(op: str, tensor: Tensor) -> bool:
    """Whether the backend of the op on such tensors has kernels of single steps: `cpu`, but none for bfloat16."""
    device, dtype = tensor.device, tensor.dtype
    return device.type == "cpu" and dtype is not torch.bfloat16 and choose(op, None, device, dtype) == "cpu"
