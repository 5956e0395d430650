"""The `cpu` backend: C++ kernels in csrc/cpu, called once per sequence on memory that PyTorch allocates.

Tensors arrive checked (shape, dtype, device, lengths). Last-dimension-contiguous strides are passed on; other tensors
are copied. Every function returns freshly allocated tensors, written in full.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch  # before _cpu, so that the extension uses the OpenMP runtime that PyTorch has loaded
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import (
    ACTIVATION_CODES,
    Grads,
    as_rows,
    as_steps,
    pointer,
    row_arguments,
    step_arguments,
)
from vssn_kernels.reference.gru import states


def _after_fork() -> None:
    # The threads of the parent's OpenMP pool do not exist in the child: a parallel region, ours or PyTorch's,
    # would wait for them forever.
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)


def info() -> str:
    """The instruction set in use, threads and compiler, for bug reports."""
    return f"{_cpu.isa()} instructions, {torch.get_num_threads()} threads, built by {_cpu.compiler}"


# ---- Memory ----------------------------------------------------------------------------------------------


def _float64(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float64


def _like(tensor: Tensor, need: bool = True) -> Tensor | None:
    return torch.empty(tensor.shape, dtype=tensor.dtype) if need else None


def _workspace(size: int) -> Tensor:
    """The kernels' working memory: packed weights and states."""
    return torch.empty(size, dtype=torch.uint8)


# ---- GRU -------------------------------------------------------------------------------------------------


def gru_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, B, H], h_n [B, H], gates [T, B, 4H], its order the kernels' own; empty where not needed)"""
    steps, batch, _ = gates_x.shape
    hidden = h0.shape[1]
    output = torch.empty((steps, batch, hidden), dtype=h0.dtype)
    h_n = torch.empty((batch, hidden), dtype=h0.dtype)
    gates = torch.empty((steps, batch, 4 * hidden) if need_backward else 0, dtype=h0.dtype)
    gates_x_, h0_, weight, bias = as_steps(gates_x), as_rows(h0), as_rows(weight_hh), bias_hh.contiguous()
    float64 = _float64(h0)
    workspace = _workspace(_cpu.gru_workspace(float64, batch, hidden, False))
    _cpu.gru_forward(
        float64,
        torch.get_num_threads(),
        steps,
        batch,
        hidden,
        reverse,
        pointer(lengths),
        *step_arguments(gates_x_),
        *row_arguments(h0_),
        *row_arguments(weight),
        bias.data_ptr(),
        output.data_ptr(),
        h_n.data_ptr(),
        gates.data_ptr() if need_backward else 0,
        workspace.data_ptr(),
    )
    return output, h_n, gates


def gru_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (gates_x, h0, weight_hh, bias_hh)."""
    steps, batch, hidden = output.shape
    need_gates_x, need_h0, need_weight, need_bias = needs
    grad_gates_x = torch.empty((steps, batch, 3 * hidden), dtype=output.dtype)
    grad_a = torch.empty((steps, batch, hidden), dtype=output.dtype)
    grad_h0, grad_weight = _like(h0, need_h0), _like(weight_hh, need_weight)
    grad_bias = torch.empty(3 * hidden, dtype=output.dtype) if need_bias else None
    grad_output_, grad_h_n_, h0_, weight = as_steps(grad_output), as_rows(grad_h_n), as_rows(h0), as_rows(weight_hh)
    float64 = _float64(output)
    workspace = _workspace(_cpu.gru_workspace(float64, batch, hidden, True))
    _cpu.gru_backward(
        float64,
        torch.get_num_threads(),
        steps,
        batch,
        hidden,
        reverse,
        pointer(lengths),
        *step_arguments(grad_output_),
        *row_arguments(grad_h_n_),
        output.data_ptr(),
        gates.data_ptr(),
        *row_arguments(h0_),
        *row_arguments(weight),
        grad_gates_x.data_ptr(),
        grad_a.data_ptr(),
        pointer(grad_h0),
        pointer(grad_weight),
        pointer(grad_bias),
        workspace.data_ptr(),
    )
    return grad_gates_x if need_gates_x else None, grad_h0, grad_weight, grad_bias


_VECTOR_BYTES = {"avx512": 64, "avx2": 32, "generic": 16}  # csrc/cpu/simd.h


def gru_output(gates: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Forward's output [T, B, H] once more, from the gates that it kept."""
    steps, batch, hidden = *gates.shape[:2], h0.shape[1]
    lanes = _VECTOR_BYTES[_cpu.isa()] // gates.element_size()
    whole = hidden // lanes * lanes  # the units of whole vectors: for each vector r, z, n, a; then the rest alike
    vectors = gates[..., : 4 * whole].view(steps, batch, whole // lanes, 4, lanes)
    rest = gates[..., 4 * whole :].view(steps, batch, 4, hidden - whole)
    z, n = (torch.cat((vectors[..., gate, :].reshape(steps, batch, whole), rest[..., gate, :]), -1) for gate in (1, 2))
    return states(z, n, h0, lengths, reverse)


# ---- Posterior -------------------------------------------------------------------------------------------


def posterior_forward(
    context: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    prior_context: Tensor | None,
    prior_weight_z: Tensor | None,
    prior_weight_mu: Tensor | None,
    prior_bias_mu: Tensor | None,
    lengths: Tensor | None,
    activation: str,
    min_logvar: float,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(z, mu, logvar [T, B, Z], hidden, prior_hidden [T, B, M]: after the activation, for "silu" before it; empty
    where not needed)"""
    steps, batch, width = context.shape
    latent = z0.shape[1]
    prior = prior_context is not None
    z, mu, logvar = (torch.empty((steps, batch, latent), dtype=z0.dtype) for _ in range(3))
    hidden, prior_hidden = (
        torch.empty((steps, batch, width) if keep else 0, dtype=z0.dtype)
        for keep in (need_backward, need_backward and prior)
    )
    context_, eps_, prior_context_ = as_steps(context), as_steps(eps), as_steps(prior_context)
    z0_, weight_z_, weight_out_ = as_rows(z0), as_rows(weight_z), as_rows(weight_out)
    prior_weight_z_, prior_weight_mu_ = as_rows(prior_weight_z), as_rows(prior_weight_mu)
    bias, prior_bias = bias_out.contiguous(), None if prior_bias_mu is None else prior_bias_mu.contiguous()
    float64 = _float64(z0)
    workspace = _workspace(_cpu.posterior_workspace(float64, batch, width, latent, prior, False))
    _cpu.posterior_forward(
        float64,
        torch.get_num_threads(),
        steps,
        batch,
        width,
        latent,
        ACTIVATION_CODES[activation],
        min_logvar,
        pointer(lengths),
        *step_arguments(context_),
        *step_arguments(eps_),
        *row_arguments(z0_),
        *row_arguments(weight_z_),
        *row_arguments(weight_out_),
        bias.data_ptr(),
        *step_arguments(prior_context_),
        *row_arguments(prior_weight_z_),
        *row_arguments(prior_weight_mu_),
        pointer(prior_bias),
        z.data_ptr(),
        mu.data_ptr(),
        logvar.data_ptr(),
        hidden.data_ptr() if need_backward else 0,
        prior_hidden.data_ptr() if need_backward and prior else 0,
        workspace.data_ptr(),
    )
    return z, mu, logvar, hidden, prior_hidden


def posterior_backward(
    grad_z: Tensor | None,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
    z: Tensor,
    logvar: Tensor,
    hidden: Tensor,
    prior_hidden: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    prior_weight_z: Tensor | None,
    prior_weight_mu: Tensor | None,
    lengths: Tensor | None,
    activation: str,
    min_logvar: float,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (context, z0, eps, weight_z, weight_out, bias_out, prior_context, prior_weight_z, prior_weight_mu,
    prior_bias_mu)."""
    steps, batch, latent = z.shape
    width = hidden.shape[-1]
    prior = prior_weight_z is not None
    grad_context = torch.empty(hidden.shape, dtype=z.dtype)
    grad_prior_context = torch.empty(hidden.shape, dtype=z.dtype) if prior else None
    grad_out = torch.empty((steps, batch, 2 * latent), dtype=z.dtype)
    grad_z0, grad_eps = _like(z0, needs[1]), _like(eps, needs[2])
    grad_z_, grad_mu_, grad_logvar_, eps_ = as_steps(grad_z), as_steps(grad_mu), as_steps(grad_logvar), as_steps(eps)
    weight_z_, weight_out_ = as_rows(weight_z), as_rows(weight_out)
    prior_weight_z_, prior_weight_mu_ = as_rows(prior_weight_z), as_rows(prior_weight_mu)
    z0_, active, prior_active = as_rows(z0), _activated(hidden, activation), _activated(prior_hidden, activation)
    shapes = ((width, latent), (2 * latent, width), (2 * latent,), (width, latent), (latent, width), (latent,))
    weight_grads = [
        torch.empty(shape, dtype=z.dtype) if need else None
        for shape, need in zip(shapes, (*needs[3:6], *needs[7:]), strict=True)
    ]
    float64 = _float64(z)
    workspace = _workspace(_cpu.posterior_workspace(float64, batch, width, latent, prior, True))
    _cpu.posterior_backward(
        float64,
        torch.get_num_threads(),
        steps,
        batch,
        width,
        latent,
        ACTIVATION_CODES[activation],
        min_logvar,
        pointer(lengths),
        *step_arguments(grad_z_),
        *step_arguments(grad_mu_),
        *step_arguments(grad_logvar_),
        logvar.data_ptr(),
        hidden.data_ptr(),
        prior_hidden.data_ptr() if prior else 0,
        *step_arguments(eps_),
        *row_arguments(weight_z_),
        *row_arguments(weight_out_),
        *row_arguments(prior_weight_z_),
        *row_arguments(prior_weight_mu_),
        z.data_ptr(),
        *row_arguments(z0_),
        active.data_ptr(),
        prior_active.data_ptr() if prior else 0,
        grad_context.data_ptr(),
        pointer(grad_prior_context),
        grad_out.data_ptr(),
        pointer(grad_eps),
        pointer(grad_z0),
        *(pointer(grad) for grad in weight_grads),
        workspace.data_ptr(),
    )
    return (
        grad_context if needs[0] else None,
        grad_z0,
        grad_eps,
        *weight_grads[:3],
        grad_prior_context if needs[6] else None,
        *weight_grads[3:],
    )


def _activated(hidden: Tensor, activation: str) -> Tensor:
    """[T, B, M] after the activation, from what forward kept."""
    return torch.nn.functional.silu(hidden) if activation == "silu" else hidden


# ---- MLP -------------------------------------------------------------------------------------------------


def _input_arguments(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grad_inputs: Sequence[Tensor | None],
    grad_weights: Sequence[Tensor | None],
) -> list[int]:
    """For each input K, x, its columns of the weight, and where the gradients of both go. [rows, ·] tensors."""
    arguments, size, column = [len(inputs)], inputs[0].element_size(), 0
    for number, (x, grad_x) in enumerate(zip(inputs, grad_inputs, strict=True)):
        if len(weights) == len(inputs):
            weight, grad_weight, column = weights[number], grad_weights[number], 0
        else:
            weight, grad_weight = weights[0], grad_weights[0]
        width, offset = x.shape[1], column * size
        arguments += (
            width,
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr() + offset,
            weight.stride(0),
            0 if grad_x is None else grad_x.data_ptr(),
            *((0, 0) if grad_weight is None else (grad_weight.data_ptr() + offset, grad_weight.stride(0))),
        )
        column += width
    return arguments


def mlp_forward(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    activation: str,
    min_logvar: float | None,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out or mu [..., O], logvar [..., O], hidden [..., M]: after the activation, for "silu" before it; empty where
    there is none, or not needed)"""
    dtype, leading, width = bias.dtype, inputs[0].shape[:-1], bias.shape[0]
    two, floored = weight_out is not None, min_logvar is not None
    columns = (weight_out.shape[0] // (2 if floored else 1)) if weight_out is not None else width
    out = torch.empty((*leading, columns), dtype=dtype)
    logvar = torch.empty((*leading, columns) if floored else 0, dtype=dtype)
    hidden = torch.empty((*leading, width) if two and need_backward else 0, dtype=dtype)
    rows = [as_rows(x) for x in inputs]
    weights_, nothing = [as_rows(weight) for weight in weights], [None] * len(inputs)
    bias_, weight_out_ = bias.contiguous(), as_rows(weight_out)
    bias_out_ = None if bias_out is None else bias_out.contiguous()
    float64 = _float64(bias)
    arguments = (
        *_input_arguments(rows, weights_, nothing, nothing),
        torch.get_num_threads(),
        leading.numel(),
        width,
        columns,
        ACTIVATION_CODES[activation],
        min_logvar is not None,
        0.0 if min_logvar is None else min_logvar,
        bias_.data_ptr(),
        *row_arguments(weight_out_),
        pointer(bias_out_),
        out.data_ptr(),
        logvar.data_ptr(),
        hidden.data_ptr() if two and need_backward else 0,
    )
    workspace = _workspace(_cpu.mlp_forward_workspace(float64, *arguments, 0))
    _cpu.mlp_forward(float64, *arguments, workspace.data_ptr())
    return out, logvar, hidden


def mlp_backward(
    grad_out: Tensor | None,
    grad_logvar: Tensor | None,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    weight_out: Tensor | None,
    logvar: Tensor,
    hidden: Tensor,
    activation: str,
    min_logvar: float | None,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (*inputs, *weights, bias, weight_out, bias_out)."""
    width = weights[0].shape[0]
    columns = (weight_out.shape[0] // (1 if min_logvar is None else 2)) if weight_out is not None else width
    rows, weights_, weight_out_ = [as_rows(x) for x in inputs], [as_rows(w) for w in weights], as_rows(weight_out)
    grads = [
        torch.empty(tensor.shape, dtype=tensor.dtype) if need else None
        for tensor, need in zip((*inputs, *weights), needs, strict=False)
    ]
    dtype, (need_bias, need_weight_out, need_bias_out) = weights[0].dtype, needs[len(grads) :]
    grad_bias = torch.empty(width, dtype=dtype) if need_bias else None
    grad_weight_out = grad_bias_out = None
    if weight_out is not None:
        grad_weight_out = _like(weight_out, need_weight_out)
        grad_bias_out = torch.empty(weight_out.shape[0], dtype=dtype) if need_bias_out else None
    grad_out_, grad_logvar_ = as_rows(grad_out), as_rows(grad_logvar)
    float64 = dtype is torch.float64
    arguments = (
        *_input_arguments(rows, weights_, grads[: len(inputs)], grads[len(inputs) :]),
        torch.get_num_threads(),
        inputs[0].shape[:-1].numel(),
        width,
        columns,
        ACTIVATION_CODES[activation],
        min_logvar is not None,
        0.0 if min_logvar is None else min_logvar,
        *row_arguments(weight_out_),
        *row_arguments(grad_out_),
        *row_arguments(grad_logvar_),
        logvar.data_ptr(),
        hidden.data_ptr(),
        pointer(grad_bias),
        pointer(grad_weight_out),
        pointer(grad_bias_out),
    )
    workspace = _workspace(_cpu.mlp_backward_workspace(float64, *arguments, 0))
    _cpu.mlp_backward(float64, *arguments, workspace.data_ptr())
    return *grads, grad_bias, grad_weight_out, grad_bias_out


# ---- Bernoulli -------------------------------------------------------------------------------------------


def bernoulli_log_prob_forward(logits: Tensor, x: Tensor) -> Tensor:
    """[...]"""
    result = torch.empty(logits.shape[:-1], dtype=logits.dtype)
    logits_, x_ = as_rows(logits), as_rows(x)
    sizes = (result.numel(), logits.shape[-1])
    _cpu.bernoulli(
        _float64(logits),
        False,
        torch.get_num_threads(),
        *sizes,
        *row_arguments(logits_),
        *row_arguments(x_),
        result.data_ptr(),
    )
    return result


def bernoulli_log_prob_backward(grad: Tensor, logits: Tensor, x: Tensor, needs: Sequence[bool]) -> Grads:
    """Gradients of (logits, x)."""
    logits_, x_, grad_ = as_rows(logits), as_rows(x), grad.reshape(-1, 1)
    grads = tuple(_like(logits, need) for need in needs)
    _cpu.bernoulli(
        _float64(logits),
        True,
        torch.get_num_threads(),
        grad.numel(),
        logits.shape[-1],
        *row_arguments(logits_),
        *row_arguments(x_),
        *row_arguments(grad_),
        *(pointer(part) for part in grads),
    )
    return grads


# ---- Gaussians -------------------------------------------------------------------------------------------


def gaussian_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """(z [..., Z], None without eps; kl [...])"""
    z = None if eps is None else _like(mu)
    kl = torch.empty(mu.shape[:-1], dtype=mu.dtype)
    inputs = [as_rows(tensor) for tensor in (mu, logvar, eps, prior_mu, prior_logvar)]
    arguments = [argument for rows in inputs for argument in row_arguments(rows)]
    _cpu.gaussian_forward(
        _float64(mu), torch.get_num_threads(), kl.numel(), mu.shape[-1], *arguments, pointer(z), kl.data_ptr()
    )
    return z, kl


def gaussian_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (mu, logvar, eps, prior_mu, prior_logvar); without eps, grad_z is None."""
    inputs = [as_rows(tensor) for tensor in (mu, logvar, eps, prior_mu, prior_logvar, grad_z)]
    inputs.append(None if grad_kl is None else grad_kl.reshape(-1, 1))
    arguments = [argument for rows in inputs for argument in row_arguments(rows)]
    grads = tuple(_like(mu, need) for need in needs)
    _cpu.gaussian_backward(
        _float64(mu),
        torch.get_num_threads(),
        mu.shape[:-1].numel(),
        mu.shape[-1],
        *arguments,
        *(pointer(grad) for grad in grads),
    )
    return grads
