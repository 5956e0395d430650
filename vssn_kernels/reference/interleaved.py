"""A recurrence whose deterministic state takes the sample of the step before (VRNN, RSSM), in plain PyTorch and with
the backward written by hand.

e         = act_e(embed_context_t + W_e z_{t-1})
r, u      = sigmoid(gates_x_t[r, u] + W_zh[r, u] e + W_hh[r, u] h_{t-1} + b[r, u])
n         = tanh(gates_x_t[n] + W_zh[n] e + r * (W_hh[n] h_{t-1} + b[n]))
h_t       = (1 - u) n + u h_{t-1}                          (torch.nn.GRU's; u is its gate z)
hidden    = act(context_t + W_h h_t)
(mu, raw) = W_out hidden + b_out
logvar    = min_logvar + softplus(raw - min_logvar),  or with scale="softplus":  2 log(softplus(raw) + min_std)
z_t       = mu + exp(logvar / 2) eps_t

Where resets[t, b] is set, reset_h and reset_z stand in the place of h_{t-1} and z_{t-1}.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn_kernels.activations import activate, activation_slope
from vssn_kernels.reference.sequence import (
    compute_dtype,
    each_step,
    outer_sum,
    softplus,
    stack_steps,
    valid_steps,
    zero_padding,
)


def interleaved_sequence(
    gates_x: Tensor,  # [T, B, 3H]
    embed_context: Tensor,  # [T, B, E]
    context: Tensor,  # [T, B, M]
    h0: Tensor,  # [B, H]
    z0: Tensor,  # [B, Z]
    eps: Tensor,  # [T, B, Z]
    weight_embed: Tensor,  # [E, Z]
    weight_zh: Tensor,  # [3H, E]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
    weight_h: Tensor,  # [M, H]
    weight_out: Tensor,  # [2Z, M]
    bias_out: Tensor,  # [2Z]
    *,
    embed_activation: str = "relu",
    activation: str = "tanh",
    scale: str = "logvar",
    min_logvar: float = -12.0,
    min_std: float = 0.1,
    lengths: Tensor | None = None,  # [B]
    resets: Tensor | None = None,  # [T, B] bool
    reset_h: Tensor | None = None,  # [B, H]
    reset_z: Tensor | None = None,  # [B, Z]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The plain function, differentiable any number of times: (h [T, B, H], z, mu, logvar, each [T, B, Z])."""
    h, z, mu, logvar, *_ = _unroll(
        gates_x, embed_context, context, h0, z0, eps, weight_embed, weight_zh, weight_hh, bias_hh, weight_h, weight_out,
        bias_out, reset_h, reset_z, resets, lengths, embed_activation, activation, scale, min_logvar, min_std,
    )  # fmt: skip
    dtype = context.dtype
    return h.to(dtype), z.to(dtype), mu.to(dtype), logvar.to(dtype)


def interleaved_forward(
    gates_x: Tensor,
    embed_context: Tensor,
    context: Tensor,
    h0: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_embed: Tensor,
    weight_zh: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    weight_h: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    reset_h: Tensor | None,
    reset_z: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    embed_activation: str,
    activation: str,
    scale: str,
    min_logvar: float,
    min_std: float,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(h [T, B, H], z, mu, logvar [T, B, Z], gates [T, B, 4H]: r, u, n and W_hh[n] h + b[n], embed [T, B, E] and hidden
    [T, B, M]: before their activations; the last three empty if not needed)."""
    *outputs, gates, embed, hidden = _unroll(
        gates_x, embed_context, context, h0, z0, eps, weight_embed, weight_zh, weight_hh, bias_hh, weight_h, weight_out,
        bias_out, reset_h, reset_z, resets, lengths, embed_activation, activation, scale, min_logvar, min_std,
    )  # fmt: skip
    dtype = context.dtype
    h, z, mu, logvar = (output.to(dtype) for output in outputs)
    if not need_backward:
        return h, z, mu, logvar, context.new_empty(0), context.new_empty(0), context.new_empty(0)
    return h, z, mu, logvar, gates.to(dtype), embed.to(dtype), hidden.to(dtype)


def _unroll(
    gates_x: Tensor,
    embed_context: Tensor,
    context: Tensor,
    h0: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_embed: Tensor,
    weight_zh: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    weight_h: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    reset_h: Tensor | None,
    reset_z: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    embed_activation: str,
    activation: str,
    scale: str,
    min_logvar: float,
    min_std: float,
) -> list[Tensor]:
    dtype = compute_dtype(context.dtype)
    steps = len(context)
    valid = valid_steps(lengths, steps)
    x, embed_contexts, contexts, noise = (
        each_step(zero_padding(tensor.to(dtype), valid)) for tensor in (gates_x, embed_context, context, eps)
    )
    weight_embed, weight_zh, weight_hh, weight_h, weight_out = (
        weight.to(dtype) for weight in (weight_embed, weight_zh, weight_hh, weight_h, weight_out)
    )
    bias_hh, bias_out, h, z = bias_hh.to(dtype), bias_out.to(dtype), h0.to(dtype), z0.to(dtype)
    h_anew, z_anew = h if reset_h is None else reset_h.to(dtype), z if reset_z is None else reset_z.to(dtype)
    results: list[list[Tensor]] = [[], [], [], [], [], [], []]
    for t in range(steps):
        if resets is not None:
            h, z = torch.where(resets[t, :, None], h_anew, h), torch.where(resets[t, :, None], z_anew, z)
        if valid is not None:  # a NaN that is carried over padding: no gradient
            h, z = zero_padding(h, valid[t]), zero_padding(z, valid[t])
        embed = embed_contexts[t] + z @ weight_embed.T
        x_r, x_u, x_n = (x[t] + activate(embed, embed_activation) @ weight_zh.T).chunk(3, -1)
        h_r, h_u, h_n = torch.addmm(bias_hh, h, weight_hh.T).chunk(3, -1)
        r, u = torch.sigmoid(x_r + h_r), torch.sigmoid(x_u + h_u)
        n = torch.tanh(x_n + r * h_n)
        h = (1 - u) * n + u * h
        hidden = contexts[t] + h @ weight_h.T
        mu, raw = F.linear(activate(hidden, activation), weight_out, bias_out).chunk(2, -1)
        logvar = log_variance(raw, scale, min_logvar, min_std)
        z = mu + torch.exp(logvar / 2) * noise[t]
        step = (h, z, mu, logvar, torch.cat((r, u, n, h_n), -1), embed, hidden)
        for result, value in zip(results, step, strict=True):
            result.append(value)
    latent, size = z0.shape[1], h0.shape[1]
    widths = (size, latent, latent, latent, 4 * size, embed_context.shape[2], context.shape[2])
    return [
        zero_padding(stack_steps(result, context, width), valid) for result, width in zip(results, widths, strict=True)
    ]


def log_variance(raw: Tensor, scale: str, min_logvar: float, min_std: float) -> Tensor:
    """Of what the output layer gave."""
    if scale == "softplus":
        return 2 * torch.log(softplus(raw) + min_std)
    return min_logvar + softplus(raw - min_logvar)


def log_variance_slope(logvar: Tensor, scale: str, min_logvar: float, min_std: float) -> Tensor:
    """d logvar / d raw, from logvar: softplus' = 1 - exp(-softplus)."""
    if scale == "softplus":
        std = torch.exp(logvar / 2)
        return -2 * torch.expm1((min_std - std).clamp(max=0)) / std  # rounded, std may lie below its floor
    return -torch.expm1((min_logvar - logvar).clamp(max=0))


def interleaved_backward(
    grad_h: Tensor | None,  # [T, B, H]
    grad_z: Tensor | None,  # [T, B, Z]
    grad_mu: Tensor | None,  # [T, B, Z]
    grad_logvar: Tensor | None,  # [T, B, Z]
    h: Tensor,
    z: Tensor,
    logvar: Tensor,
    gates: Tensor,
    embed: Tensor,
    hidden: Tensor,
    h0: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_embed: Tensor,
    weight_zh: Tensor,
    weight_hh: Tensor,
    weight_h: Tensor,
    weight_out: Tensor,
    reset_h: Tensor | None,
    reset_z: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    embed_activation: str,
    activation: str,
    scale: str,
    min_logvar: float,
    min_std: float,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of (gates_x, embed_context, context, h0, z0, eps, weight_embed, weight_zh, weight_hh, bias_hh,
    weight_h, weight_out, bias_out, reset_h, reset_z), None where not needed.

    With dz and dh the gradients that reach z_t and h_t, and sigma = exp(logvar / 2):
        grad_mu  += dz                            grad_eps = dz sigma
        grad_raw  = (grad_logvar + dz sigma eps_t / 2) d logvar / d raw
        grad_context = act'(hidden) * [grad_mu, grad_raw] W_out               dh += grad_context W_h
        grad_u = dh (h_{t-1} - n) u (1 - u)       grad_n = dh (1 - u) (1 - n^2)
        grad_r = grad_n (W_hh[n] h_{t-1} + b[n]) r (1 - r)
        grad_embed_context = act_e'(embed) * [grad_r, grad_u, grad_n] W_zh
        dz <- grad_embed_context W_e,   dh <- dh u + [grad_r, grad_u, r grad_n] W_hh
    which at a reset go to reset_z and reset_h (to z0 and h0 where those stand for them) and no further.
    """
    storage, dtype = h.dtype, compute_dtype(h.dtype)
    steps, batch, size = h.shape
    latent = z.shape[2]
    valid = valid_steps(lengths, steps)
    logvar, hidden, embed = logvar.to(dtype), hidden.to(dtype), embed.to(dtype)
    sigma = zero_padding(torch.exp(logvar / 2), valid)
    noise = sigma * zero_padding(eps.to(dtype), valid) / 2  # d z / d logvar
    slope_raw = zero_padding(log_variance_slope(logvar, scale, min_logvar, min_std), valid)
    gates = zero_padding(gates.to(dtype), valid)
    h_before = states_before(h, h0, reset_h, resets, lengths)
    z_before = states_before(z, z0, reset_z, resets, lengths)
    weight_embed_, weight_zh_, weight_hh_, weight_h_, weight_out_ = (
        weight.to(dtype) for weight in (weight_embed, weight_zh, weight_hh, weight_h, weight_out)
    )
    zero = torch.zeros_like(z, dtype=dtype)
    grad_z, grad_mu, grad_logvar = (
        zero if grad is None else zero_padding(grad.to(dtype), valid) for grad in (grad_z, grad_mu, grad_logvar)
    )
    grad_h = h_before.new_zeros(h.shape) if grad_h is None else zero_padding(grad_h.to(dtype), valid)

    dh, dz = h_before.new_zeros(batch, size), h_before.new_zeros(batch, latent)
    dh_anew, dz_anew = dh, dz
    grads_z, grads_out, grads_context, grads_gates, grads_hidden_gates, grads_embed = ([dz] * steps for _ in range(6))
    for t in reversed(range(steps)):
        grads_z[t] = dz + grad_z[t]
        grads_out[t] = torch.cat((grad_mu[t] + grads_z[t], (grad_logvar[t] + grads_z[t] * noise[t]) * slope_raw[t]), -1)
        grads_context[t] = grads_out[t] @ weight_out_ * activation_slope(hidden[t], activation)
        total = dh + grad_h[t] + grads_context[t] @ weight_h_
        if valid is not None:  # 0 already, unless a weight is NaN
            total = zero_padding(total, valid[t])
        r, u, n, h_n = gates[t].chunk(4, -1)
        grad_u = total * (h_before[t] - n) * u * (1 - u)
        grad_n = total * (1 - u) * (1 - n * n)
        grad_r = grad_n * h_n * r * (1 - r)
        grads_gates[t] = torch.cat((grad_r, grad_u, grad_n), -1)
        grads_hidden_gates[t] = torch.cat((grad_r, grad_u, grad_n * r), -1)
        grads_embed[t] = grads_gates[t] @ weight_zh_ * activation_slope(embed[t], embed_activation)
        dz = grads_embed[t] @ weight_embed_
        dh = torch.addmm(total * u, grads_hidden_gates[t], weight_hh_)
        if valid is not None:
            dh, dz = zero_padding(dh, valid[t]), zero_padding(dz, valid[t])
        if resets is not None:
            here = resets[t, :, None]
            dh_anew, dz_anew = dh_anew + torch.where(here, dh, 0), dz_anew + torch.where(here, dz, 0)
            dh, dz = torch.where(here, 0, dh), torch.where(here, 0, dz)
    if reset_h is None:
        dh = dh + dh_anew
    if reset_z is None:
        dz = dz + dz_anew
    out = stack_steps(grads_out, zero, 2 * latent)
    context, embed_context = (
        zero_padding(stack_steps(grads, zero, layer.shape[2]), valid)
        for grads, layer in ((grads_context, hidden), (grads_embed, embed))
    )
    gates_x, hidden_gates = (stack_steps(grads, zero, 3 * size) for grads in (grads_gates, grads_hidden_gates))

    grads = (
        lambda: gates_x,
        lambda: embed_context,
        lambda: context,
        lambda: dh.clone(),
        lambda: dz.clone(),
        lambda: stack_steps(grads_z, zero, latent) * sigma,
        lambda: outer_sum(embed_context, z_before),
        lambda: outer_sum(gates_x, zero_padding(activate(embed, embed_activation), valid)),
        lambda: outer_sum(hidden_gates, h_before),
        lambda: hidden_gates.sum((0, 1)),
        lambda: outer_sum(context, h.to(dtype)),
        lambda: outer_sum(out, activate(hidden, activation)),
        lambda: out.sum((0, 1)),
        lambda: dh_anew.clone(),
        lambda: dz_anew.clone(),
    )
    states = {3: h0, 4: z0, 13: h0 if reset_h is None else reset_h, 14: z0 if reset_z is None else reset_z}
    return tuple(
        grad().to(states[number].dtype if number in states else storage) if need else None
        for number, (grad, need) in enumerate(zip(grads, needs, strict=True))
    )


def states_before(
    states: Tensor, first: Tensor, anew: Tensor | None, resets: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """[T, B, ·] of [T, B, ·]: the state that each step started from, zeros at padding."""
    dtype = compute_dtype(states.dtype)
    if not len(states):
        return states.to(dtype)
    before = torch.cat((first.to(dtype)[None], states[:-1].to(dtype)))
    if resets is not None:
        before = torch.where(resets[..., None], (first if anew is None else anew).to(dtype), before)
    return zero_padding(before, valid_steps(lengths, len(states)))
