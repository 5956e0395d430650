"""The sampled chain z_{t-1} -> z_t, forward and backward; equations and gradients stand in vssn_kernels/README.md.

Each direction has two forms, as in gru.py. "resident": one program for ROWS sequences, weights loaded once, z in
registers; for M and Z that fit one tile each. "tiled": a group of `slices` programs for ROWS sequences; a step is two
phases with a barrier after each: tiles of HIDDEN units over M, then tiles of LATENT over Z, sums over the other in
parts of DEPTH.

Every output is written in full, with 0 at padding; padding is never read. LENGTHS None means T for every row.

    context, prior_context [T, B, M]   eps [T, B, Z]   z0 [B, Z]                       any strides; float32 inside
    weight_z, prior_weight_z [M, Z]    weight_out [2Z, M]   prior_weight_mu [Z, M]     any strides
    bias_out [2Z]   prior_bias [Z]     lengths [B] int64                               biases contiguous
    z, mu, logvar [T, B, Z]            contiguous
    hidden, prior_hidden [T, B, M]     what backward needs: act(x), or x for silu; None: not kept; contiguous
    grad_out [T, B, 2Z]                gradients of (mu, raw)                          contiguous
    grad_context, grad_prior [T, B, M], grad_eps [T, B, Z], grad_z0 [B, Z]             contiguous

prior_context None: no prior mean. All parts that belong to the prior are then None.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssn_kernels.backend.triton.kernels.cell import (
    activate,
    barrier,
    expm1,
    product,
    put,
    row_lengths,
    softplus,
    within,
)
from vssn_kernels.backend.triton.kernels.compilation import kernel
from vssn_kernels.backend.triton.kernels.parts import (
    add_product,
    hidden_grad,
    keep,
    load_sample_grads,
    load_tile,
    store_out_grads,
    store_three,
)


@triton.jit
def _sample(mu, raw, eps, min_logvar):
    """(z, logvar)"""
    logvar = min_logvar + softplus(raw - min_logvar)
    return mu + tl.exp(logvar * 0.5) * eps, logvar


@triton.jit
def _out_grads(dz, d_mu, d_log, log, noise, valid, min_logvar):
    """Gradients of (mu, raw, eps) from the gradient dz of z_t; 0 at padding."""
    sigma = tl.exp(log * 0.5)
    d_raw = -(d_log + dz * sigma * noise * 0.5) * expm1(min_logvar - log)
    return tl.where(valid, d_mu + dz, 0.0), tl.where(valid, d_raw, 0.0), tl.where(valid, dz * sigma, 0.0)


# ---- Resident --------------------------------------------------------------------------------------------


@kernel("steps", "batch")
def posterior_forward_resident(
    context,
    context_t,
    context_b,
    context_u,
    eps,
    eps_t,
    eps_b,
    eps_u,
    z0,
    z0_b,
    z0_u,
    weight_z,
    weight_z_r,
    weight_z_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    bias_out,
    prior_context,
    prior_context_t,
    prior_context_b,
    prior_context_u,
    prior_weight_z,
    prior_weight_z_r,
    prior_weight_z_c,
    prior_weight_mu,
    prior_weight_mu_r,
    prior_weight_mu_c,
    prior_bias,
    lengths,
    z_out,
    mu_out,
    logvar_out,
    hidden_out,
    prior_hidden_out,
    min_logvar,
    steps,
    batch,
    M: tl.constexpr,
    Z: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """z, mu, logvar and what backward needs of ROWS sequences, HIDDEN >= M and LATENT >= Z."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    units = tl.arange(0, HIDDEN).to(tl.int64)
    latents = tl.arange(0, LATENT).to(tl.int64)
    inside = rows < batch
    m_mask = (units < M)[None, :]
    z_mask = (latents < Z)[None, :]
    length = row_lengths(lengths, rows, inside, steps)

    zm = (latents < Z)[:, None] & m_mask  # of tiles [K = Z, N = M]
    mz = (units < M)[:, None] & z_mask  # of tiles [K = M, N = Z]
    w_z = load_tile(weight_z, weight_z_r, weight_z_c, units[None, :], latents[:, None], zm)
    w_mu = load_tile(weight_out, weight_out_r, weight_out_c, latents[None, :], units[:, None], mz)
    w_raw = load_tile(weight_out, weight_out_r, weight_out_c, Z + latents[None, :], units[:, None], mz)
    b_mu = tl.load(bias_out + latents[None, :], mask=z_mask, other=0).to(tl.float32)
    b_raw = tl.load(bias_out + Z + latents[None, :], mask=z_mask, other=0).to(tl.float32)
    if prior_context is not None:
        p_z = load_tile(prior_weight_z, prior_weight_z_r, prior_weight_z_c, units[None, :], latents[:, None], zm)
        p_mu = load_tile(prior_weight_mu, prior_weight_mu_r, prior_weight_mu_c, latents[None, :], units[:, None], mz)
        b_mu += tl.load(prior_bias + latents[None, :], mask=z_mask, other=0).to(tl.float32)
    z = load_tile(z0, z0_b, z0_u, rows, latents[None, :], inside & z_mask).to(tl.float32)

    # The next step's inputs are on their way while a step computes.
    valid = length > 0
    x = load_tile(context, context_b, context_u, rows, units[None, :], valid & m_mask)
    noise = load_tile(eps, eps_b, eps_u, rows, latents[None, :], valid & z_mask)
    if prior_context is not None:
        y = load_tile(prior_context, prior_context_b, prior_context_u, rows, units[None, :], valid & m_mask)
    for time in range(steps):
        step = tl.cast(time, tl.int64)
        valid = time < length
        soon = time + 1 < length
        next_context = context + (step + 1) * context_t
        next_x = load_tile(next_context, context_b, context_u, rows, units[None, :], soon & m_mask)
        next_noise = load_tile(eps + (step + 1) * eps_t, eps_b, eps_u, rows, latents[None, :], soon & z_mask)
        at = (step * batch + rows) * M + units[None, :]
        hidden = product(z, w_z, x.to(tl.float32), PRECISION, EMULATED)
        active = within(activate(hidden, ACTIVATION), m_mask)
        keep(hidden_out, at, hidden, active, valid, inside & m_mask, ACTIVATION, EMULATED)
        mu = product(active, w_mu, tl.zeros_like(z) + b_mu, PRECISION, EMULATED)
        raw = product(active, w_raw, tl.zeros_like(z) + b_raw, PRECISION, EMULATED)
        if prior_context is not None:
            later = prior_context + (step + 1) * prior_context_t
            next_y = load_tile(later, prior_context_b, prior_context_u, rows, units[None, :], soon & m_mask)
            prior_hidden = product(z, p_z, y.to(tl.float32), PRECISION, EMULATED)
            prior_active = within(activate(prior_hidden, ACTIVATION), m_mask)
            keep(prior_hidden_out, at, prior_hidden, prior_active, valid, inside & m_mask, ACTIVATION, EMULATED)
            mu = product(prior_active, p_mu, mu, PRECISION, EMULATED)
            y = next_y
        z, logvar = _sample(mu, raw, noise.to(tl.float32), min_logvar)
        z = within(z, z_mask)
        at = (step * batch + rows) * Z + latents[None, :]
        store_three(z_out, mu_out, logvar_out, at, z, mu, logvar, valid, inside & z_mask, EMULATED)
        x, noise = next_x, next_noise


@kernel("steps", "batch")
def posterior_backward_resident(
    grad_z,
    grad_z_t,
    grad_z_b,
    grad_z_u,
    grad_mu,
    grad_mu_t,
    grad_mu_b,
    grad_mu_u,
    grad_logvar,
    grad_logvar_t,
    grad_logvar_b,
    grad_logvar_u,
    logvar,
    eps,
    eps_t,
    eps_b,
    eps_u,
    hidden,
    prior_hidden,
    weight_z,
    weight_z_r,
    weight_z_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    prior_weight_z,
    prior_weight_z_r,
    prior_weight_z_c,
    prior_weight_mu,
    prior_weight_mu_r,
    prior_weight_mu_c,
    lengths,
    grad_out,
    grad_eps,
    grad_context,
    grad_prior,
    grad_z0,
    min_logvar,
    steps,
    batch,
    M: tl.constexpr,
    Z: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """grad_out, grad_eps, grad_context, grad_prior and grad_z0 of ROWS sequences, HIDDEN >= M and LATENT >= Z."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    units = tl.arange(0, HIDDEN).to(tl.int64)
    latents = tl.arange(0, LATENT).to(tl.int64)
    inside = rows < batch
    m_mask = (units < M)[None, :]
    z_mask = (latents < Z)[None, :]
    length = row_lengths(lengths, rows, inside, steps)

    zm = (latents < Z)[:, None] & m_mask  # of tiles [K = Z, N = M]
    mz = (units < M)[:, None] & z_mask  # of tiles [K = M, N = Z]
    w_z = load_tile(weight_z, weight_z_r, weight_z_c, units[:, None], latents[None, :], mz)
    w_mu = load_tile(weight_out, weight_out_r, weight_out_c, latents[:, None], units[None, :], zm)
    w_raw = load_tile(weight_out, weight_out_r, weight_out_c, Z + latents[:, None], units[None, :], zm)
    if prior_hidden is not None:
        p_z = load_tile(prior_weight_z, prior_weight_z_r, prior_weight_z_c, units[:, None], latents[None, :], mz)
        p_mu = load_tile(prior_weight_mu, prior_weight_mu_r, prior_weight_mu_c, latents[:, None], units[None, :], zm)

    dz = tl.zeros((ROWS, LATENT), tl.float32)
    for i in range(steps):
        time = steps - 1 - i
        step = tl.cast(time, tl.int64)
        valid = time < length
        d_z, d_mu, d_log, log, noise = load_sample_grads(
            grad_z, grad_z_t, grad_z_b, grad_z_u, grad_mu, grad_mu_t, grad_mu_b, grad_mu_u,
            grad_logvar, grad_logvar_t, grad_logvar_b, grad_logvar_u, logvar, eps, eps_t, eps_b, eps_u,
            step, batch, rows, latents[None, :], valid & z_mask, Z,
        )  # fmt: skip
        g_mu, g_raw, g_eps = _out_grads(dz + d_z, d_mu, d_log, log, noise, valid, min_logvar)
        store_out_grads(
            grad_out, grad_eps, step, batch, rows, latents[None, :], inside & z_mask, g_mu, g_raw, g_eps, Z, EMULATED
        )
        at = (step * batch + rows) * M + units[None, :]
        none = tl.zeros((ROWS, HIDDEN), tl.float32)
        g_hidden = product(g_raw, w_raw, product(g_mu, w_mu, none, PRECISION, EMULATED), PRECISION, EMULATED)
        g_hidden = hidden_grad(hidden, at, g_hidden, valid & m_mask, ACTIVATION)
        put(grad_context, at, g_hidden, inside & m_mask, EMULATED)
        dz = product(g_hidden, w_z, tl.zeros_like(dz), PRECISION, EMULATED)
        if prior_hidden is not None:
            g_prior = hidden_grad(
                prior_hidden, at, product(g_mu, p_mu, none, PRECISION, EMULATED), valid & m_mask, ACTIVATION
            )
            put(grad_prior, at, g_prior, inside & m_mask, EMULATED)
            dz = product(g_prior, p_z, dz, PRECISION, EMULATED)
    put(grad_z0, rows * Z + latents[None, :], dz, inside & z_mask, EMULATED)


# ---- Tiled -----------------------------------------------------------------------------------------------


@kernel("steps", "batch", "first_tile", "slices", "begin", "end")
def posterior_forward_tiled(
    context,
    context_t,
    context_b,
    context_u,
    eps,
    eps_t,
    eps_b,
    eps_u,
    weight_z,
    weight_z_r,
    weight_z_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    bias_out,
    prior_context,
    prior_context_t,
    prior_context_b,
    prior_context_u,
    prior_weight_z,
    prior_weight_z_r,
    prior_weight_z_c,
    prior_weight_mu,
    prior_weight_mu_r,
    prior_weight_mu_c,
    prior_bias,
    lengths,
    z_out,
    mu_out,
    logvar_out,
    hidden_out,
    prior_hidden_out,
    state,
    active,
    prior_active,
    min_logvar,
    counters,
    steps,
    batch,
    first_tile,
    slices,
    begin,
    end,
    M: tl.constexpr,
    Z: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    DEPTH: tl.constexpr,
    SYNC: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Phases begin..end - 1 of the rows of tiles first_tile.. : phase 2t makes the hidden layers of step t, 2t + 1 its
    sample.

    state [B, Z] float32 holds z_{t-1} (the caller puts z0 into it); active and prior_active [B, M], in the inputs'
    dtype, hold the hidden layers; counters [tiles] int32, zeros.
    """
    group = first_tile + tl.program_id(0) // slices
    slice_ = tl.program_id(0) % slices
    rows = (group.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = rows < batch
    length = row_lengths(lengths, rows, inside, steps)
    for phase in range(begin, end):
        time = phase // 2
        step = tl.cast(time, tl.int64)
        valid = time < length
        if phase % 2 == 0:
            for first in range(slice_ * HIDDEN, M, slices * HIDDEN):
                units = (first + tl.arange(0, HIDDEN)).to(tl.int64)[None, :]
                m_mask = units < M
                kept = (step * batch + rows) * M + units
                x = load_tile(context + step * context_t, context_b, context_u, rows, units, valid & m_mask)
                sum_ = add_product(
                    x.to(tl.float32), state, Z, weight_z, weight_z_c, weight_z_r, rows, units, inside, m_mask, Z,
                    DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                result = activate(sum_, ACTIVATION)
                keep(hidden_out, kept, sum_, result, valid, inside & m_mask, ACTIVATION, EMULATED)
                put(active, rows * M + units, result, inside & m_mask, EMULATED)
                if prior_context is not None:
                    here = prior_context + step * prior_context_t
                    y = load_tile(here, prior_context_b, prior_context_u, rows, units, valid & m_mask)
                    sum_ = add_product(
                        y.to(tl.float32), state, Z, prior_weight_z, prior_weight_z_c, prior_weight_z_r, rows, units,
                        inside, m_mask, Z, DEPTH, PRECISION, EMULATED,
                    )  # fmt: skip
                    result = activate(sum_, ACTIVATION)
                    keep(prior_hidden_out, kept, sum_, result, valid, inside & m_mask, ACTIVATION, EMULATED)
                    put(prior_active, rows * M + units, result, inside & m_mask, EMULATED)
        else:
            for first in range(slice_ * LATENT, Z, slices * LATENT):
                latents = (first + tl.arange(0, LATENT)).to(tl.int64)[None, :]
                z_mask = latents < Z
                mu = tl.load(bias_out + latents, mask=z_mask, other=0).to(tl.float32)
                raw = tl.load(bias_out + Z + latents, mask=z_mask, other=0).to(tl.float32)
                if prior_context is not None:
                    mu += tl.load(prior_bias + latents, mask=z_mask, other=0).to(tl.float32)
                none = tl.zeros((ROWS, LATENT), tl.float32)
                mu = add_product(
                    none + mu, active, M, weight_out, weight_out_c, weight_out_r, rows, latents, inside, z_mask, M,
                    DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                below = weight_out + tl.cast(weight_out_r, tl.int64) * Z
                raw = add_product(
                    none + raw, active, M, below, weight_out_c, weight_out_r, rows, latents, inside, z_mask, M,
                    DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                if prior_context is not None:
                    mu = add_product(
                        mu, prior_active, M, prior_weight_mu, prior_weight_mu_c, prior_weight_mu_r, rows, latents,
                        inside, z_mask, M, DEPTH, PRECISION, EMULATED,
                    )  # fmt: skip
                noise = load_tile(eps + step * eps_t, eps_b, eps_u, rows, latents, valid & z_mask).to(tl.float32)
                z, logvar = _sample(mu, raw, noise, min_logvar)
                at = (step * batch + rows) * Z + latents
                store_three(z_out, mu_out, logvar_out, at, z, mu, logvar, valid, inside & z_mask, EMULATED)
                tl.store(state + rows * Z + latents, z, mask=inside & z_mask)
        barrier(counters + group, (phase + 1 - begin) * slices, SYNC)


@kernel("steps", "batch", "first_tile", "slices", "begin", "end")
def posterior_backward_tiled(
    grad_z,
    grad_z_t,
    grad_z_b,
    grad_z_u,
    grad_mu,
    grad_mu_t,
    grad_mu_b,
    grad_mu_u,
    grad_logvar,
    grad_logvar_t,
    grad_logvar_b,
    grad_logvar_u,
    logvar,
    eps,
    eps_t,
    eps_b,
    eps_u,
    hidden,
    prior_hidden,
    weight_z,
    weight_z_r,
    weight_z_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    prior_weight_z,
    prior_weight_z_r,
    prior_weight_z_c,
    prior_weight_mu,
    prior_weight_mu_r,
    prior_weight_mu_c,
    lengths,
    grad_out,
    grad_eps,
    grad_context,
    grad_prior,
    grad_z0,
    min_logvar,
    counters,
    steps,
    batch,
    first_tile,
    slices,
    begin,
    end,
    M: tl.constexpr,
    Z: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    DEPTH: tl.constexpr,
    SYNC: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Phases begin..end - 1 of the rows of tiles first_tile.. : phase 2i takes what step T - i sends back through the
    weights of z and makes grad_out of step T - 1 - i, 2i + 1 its grad_context and grad_prior; phase 2T makes grad_z0.

    counters [tiles] int32, zeros.
    """
    group = first_tile + tl.program_id(0) // slices
    slice_ = tl.program_id(0) % slices
    rows = (group.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = rows < batch
    length = row_lengths(lengths, rows, inside, steps)
    for phase in range(begin, end):
        time = steps - 1 - phase // 2
        step = tl.cast(time, tl.int64)
        valid = time < length
        if phase % 2 == 0:
            sent = (step + 1) * batch * M
            count = tl.where(phase > 0, M, 0)
            for first in range(slice_ * LATENT, Z, slices * LATENT):
                latents = (first + tl.arange(0, LATENT)).to(tl.int64)[None, :]
                z_mask = latents < Z
                dz = add_product(
                    tl.zeros((ROWS, LATENT), tl.float32), grad_context + sent, M, weight_z, weight_z_r, weight_z_c,
                    rows, latents, inside, z_mask, count, DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                if prior_hidden is not None:
                    dz = add_product(
                        dz, grad_prior + sent, M, prior_weight_z, prior_weight_z_r, prior_weight_z_c,
                        rows, latents, inside, z_mask, count, DEPTH, PRECISION, EMULATED,
                    )  # fmt: skip
                if time >= 0:
                    d_z, d_mu, d_log, log, noise = load_sample_grads(
                        grad_z, grad_z_t, grad_z_b, grad_z_u, grad_mu, grad_mu_t, grad_mu_b, grad_mu_u,
                        grad_logvar, grad_logvar_t, grad_logvar_b, grad_logvar_u, logvar, eps, eps_t, eps_b, eps_u,
                        step, batch, rows, latents, valid & z_mask, Z,
                    )  # fmt: skip
                    g_mu, g_raw, g_eps = _out_grads(dz + d_z, d_mu, d_log, log, noise, valid, min_logvar)
                    store_out_grads(
                        grad_out, grad_eps, step, batch, rows, latents, inside & z_mask, g_mu, g_raw, g_eps, Z, EMULATED
                    )
                else:
                    put(grad_z0, rows * Z + latents, dz, inside & z_mask, EMULATED)
        else:
            out = grad_out + step * batch * (2 * Z)
            for first in range(slice_ * HIDDEN, M, slices * HIDDEN):
                units = (first + tl.arange(0, HIDDEN)).to(tl.int64)[None, :]
                m_mask = units < M
                at = (step * batch + rows) * M + units
                none = tl.zeros((ROWS, HIDDEN), tl.float32)
                # rows of weight_out are those of grad_out: mean and raw in one sum over 2Z
                total = add_product(
                    none, out, 2 * Z, weight_out, weight_out_r, weight_out_c, rows, units, inside, m_mask, 2 * Z,
                    DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                total = hidden_grad(hidden, at, total, valid & m_mask, ACTIVATION)
                put(grad_context, at, total, inside & m_mask, EMULATED)
                if prior_hidden is not None:
                    total = add_product(
                        none, out, 2 * Z, prior_weight_mu, prior_weight_mu_r, prior_weight_mu_c, rows, units, inside,
                        m_mask, Z, DEPTH, PRECISION, EMULATED,
                    )  # fmt: skip
                    total = hidden_grad(prior_hidden, at, total, valid & m_mask, ACTIVATION)
                    put(grad_prior, at, total, inside & m_mask, EMULATED)
        barrier(counters + group, (phase + 1 - begin) * slices, SYNC)
