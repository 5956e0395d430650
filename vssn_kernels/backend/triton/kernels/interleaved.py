"""The interleaved chain h_t <- (h_{t-1}, z_{t-1}), z_t <- h_t, forward and backward; equations and gradients stand in
vssn_kernels/README.md.

Each direction has two forms, as in gru.py. "resident": one program for ROWS sequences, all five weights loaded once,
both states in registers; for sizes that fit one tile each. "tiled": a group of `slices` programs for ROWS sequences; a
step is four products, each of which needs all of the one before, so four phases with a barrier after each: tiles of
UNITS over E, H and M, tiles of LATENT over Z, sums in parts of DEPTH.

Every output is written in full, with 0 at padding; padding is never read. LENGTHS None means T for every row.

    gates_x [T, B, 3H]   embed_context [T, B, E]   context [T, B, M]   eps [T, B, Z]   any strides
    h0, reset_h [B, H]   z0, reset_z [B, Z]        any strides; float32 inside
    weight_embed [E, Z]  weight_zh [3H, E]   weight_hh [3H, H]   weight_h [M, H]   weight_out [2Z, M]   any strides
    bias_hh [3H]         bias_out [2Z]       contiguous
    resets [T, B]        bytes, contiguous, or None: reset_h and reset_z are then not read
    lengths [B]          int64
    h_out [T, B, H]      z_out, mu_out, logvar_out [T, B, Z]                           contiguous, as all below
    gates_out [T, B, 4H] r, u, n and W_hh[n] h + b[n]; embed_out [T, B, E] and hidden_out [T, B, M]: act(x), or x for
                         silu; None: not kept
    grad_a [T, B, H]     of W_hh[n] h + b[n]
    grad_out [T, B, 2Z]  gradients of (mu, raw)
    grad_h0, grad_reset_h [B, H], grad_z0, grad_reset_z [B, Z] float32: what reaches the first states, and what the
                         resets take of it

floor: min_logvar with SCALE "logvar", min_std with "softplus".
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssn_kernels.backend.triton.kernels.cell import (
    activate,
    barrier,
    expm1,
    has_step,
    is_reset,
    product,
    put,
    row_lengths,
    sigmoid,
    softplus,
    tanh,
    within,
)
from vssn_kernels.backend.triton.kernels.compilation import kernel
from vssn_kernels.backend.triton.kernels.parts import (
    add_product,
    gate_grads,
    hidden_grad,
    keep,
    load_gate_weight,
    load_sample_grads,
    load_three,
    load_tile,
    store_four,
    store_out_grads,
    store_three,
)


@triton.jit
def _sample(mu, raw, eps, floor, SCALE: tl.constexpr):
    """(z, logvar)"""
    if SCALE == "softplus":
        std = softplus(raw) + floor
        logvar = 2 * tl.log(std)
    else:
        logvar = floor + softplus(raw - floor)
        std = tl.exp(logvar * 0.5)
    return mu + std * eps, logvar


@triton.jit
def _out_grads(dz, d_mu, d_log, log, noise, valid, floor, SCALE: tl.constexpr):
    """Gradients of (mu, raw, eps) from the gradient dz of z_t; 0 at padding. Rounded, log may lie below its floor."""
    sigma = tl.exp(log * 0.5)
    if SCALE == "softplus":
        slope = -2 * expm1(tl.minimum(floor - sigma, 0.0)) / sigma
    else:
        slope = -expm1(tl.minimum(floor - log, 0.0))
    d_raw = (d_log + dz * sigma * noise * 0.5) * slope
    return tl.where(valid, d_mu + dz, 0.0), tl.where(valid, d_raw, 0.0), tl.where(valid, dz * sigma, 0.0)


@triton.jit
def _state_before(
    h_out, h0, h0_b, h0_u, reset_h, reset_h_b, reset_h_u, resets, time, length, batch, rows, units, mask,
    H: tl.constexpr,
):  # fmt: skip
    """h_{t-1} as the step took it: of the step before, h0 or reset_h."""
    goes_on = has_step(time - 1, length)
    other = mask
    if resets is not None:
        here = is_reset(resets, time, length, batch, rows)
        anew = load_tile(reset_h, reset_h_b, reset_h_u, rows, units, mask & here).to(tl.float32)
        other = mask & (here == 0)
    before = h_out + ((tl.cast(time, tl.int64) - 1) * batch + rows) * H + units
    h = tl.load(before, mask=other & goes_on, other=0).to(tl.float32)
    h += load_tile(h0, h0_b, h0_u, rows, units, other & (goes_on == 0)).to(tl.float32)
    if resets is not None:
        h += anew
    return h


# ---- Resident --------------------------------------------------------------------------------------------


@kernel("steps", "batch")
def interleaved_forward_resident(
    gates_x,
    gates_x_t,
    gates_x_b,
    gates_x_u,
    embed_context,
    embed_context_t,
    embed_context_b,
    embed_context_u,
    context,
    context_t,
    context_b,
    context_u,
    eps,
    eps_t,
    eps_b,
    eps_u,
    h0,
    h0_b,
    h0_u,
    z0,
    z0_b,
    z0_u,
    weight_embed,
    weight_embed_r,
    weight_embed_c,
    weight_zh,
    weight_zh_r,
    weight_zh_c,
    weight_hh,
    weight_hh_r,
    weight_hh_c,
    weight_h,
    weight_h_r,
    weight_h_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    bias_hh,
    bias_out,
    reset_h,
    reset_h_b,
    reset_h_u,
    reset_z,
    reset_z_b,
    reset_z_u,
    resets,
    lengths,
    h_out,
    z_out,
    mu_out,
    logvar_out,
    gates_out,
    embed_out,
    hidden_out,
    floor,
    steps,
    batch,
    H: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    Z: tl.constexpr,
    EMBED_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    EMBED: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """h, z, mu, logvar and what backward needs of ROWS sequences, UNITS >= H, EMBED >= E, HIDDEN >= M, LATENT >= Z."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    units = tl.arange(0, UNITS).to(tl.int64)
    embeds = tl.arange(0, EMBED).to(tl.int64)
    hiddens = tl.arange(0, HIDDEN).to(tl.int64)
    latents = tl.arange(0, LATENT).to(tl.int64)
    inside = rows < batch
    h_mask = (units < H)[None, :]
    e_mask = (embeds < E)[None, :]
    m_mask = (hiddens < M)[None, :]
    z_mask = (latents < Z)[None, :]
    length = row_lengths(lengths, rows, inside, steps)
    gate_step = tl.cast(gates_x_u, tl.int64) * H

    # Of tiles [K, N]
    w_embed = load_tile(
        weight_embed, weight_embed_r, weight_embed_c, embeds[None, :], latents[:, None], (latents < Z)[:, None] & e_mask
    )
    eh = (embeds < E)[:, None] & h_mask
    z_r = load_tile(weight_zh, weight_zh_r, weight_zh_c, units[None, :], embeds[:, None], eh)
    z_u = load_tile(weight_zh, weight_zh_r, weight_zh_c, H + units[None, :], embeds[:, None], eh)
    z_n = load_tile(weight_zh, weight_zh_r, weight_zh_c, 2 * H + units[None, :], embeds[:, None], eh)
    w_r = load_gate_weight(weight_hh, 0, units[None, :], units[:, None], weight_hh_r, weight_hh_c, H)
    w_u = load_gate_weight(weight_hh, 1, units[None, :], units[:, None], weight_hh_r, weight_hh_c, H)
    w_n = load_gate_weight(weight_hh, 2, units[None, :], units[:, None], weight_hh_r, weight_hh_c, H)
    w_hidden = load_tile(
        weight_h, weight_h_r, weight_h_c, hiddens[None, :], units[:, None], (units < H)[:, None] & m_mask
    )
    mz = (hiddens < M)[:, None] & z_mask
    w_mu = load_tile(weight_out, weight_out_r, weight_out_c, latents[None, :], hiddens[:, None], mz)
    w_raw = load_tile(weight_out, weight_out_r, weight_out_c, Z + latents[None, :], hiddens[:, None], mz)
    b_r, b_u, b_n = load_three(bias_hh + units[None, :], H, h_mask)
    b_mu = tl.load(bias_out + latents[None, :], mask=z_mask, other=0).to(tl.float32)
    b_raw = tl.load(bias_out + Z + latents[None, :], mask=z_mask, other=0).to(tl.float32)

    h = load_tile(h0, h0_b, h0_u, rows, units[None, :], inside & h_mask).to(tl.float32)
    z = load_tile(z0, z0_b, z0_u, rows, latents[None, :], inside & z_mask).to(tl.float32)
    if resets is not None:
        h_anew = load_tile(reset_h, reset_h_b, reset_h_u, rows, units[None, :], inside & h_mask).to(tl.float32)
        z_anew = load_tile(reset_z, reset_z_b, reset_z_u, rows, latents[None, :], inside & z_mask).to(tl.float32)
        anew = is_reset(resets, 0, length, batch, rows)

    # The next step's inputs are on their way while a step computes.
    valid = length > 0
    x = gates_x + rows * gates_x_b + units[None, :] * gates_x_u
    x_r, x_u, x_n = load_three(x, gate_step, valid & h_mask)
    y = load_tile(embed_context, embed_context_b, embed_context_u, rows, embeds[None, :], valid & e_mask)
    c = load_tile(context, context_b, context_u, rows, hiddens[None, :], valid & m_mask)
    noise = load_tile(eps, eps_b, eps_u, rows, latents[None, :], valid & z_mask)
    for time in range(steps):
        step = tl.cast(time, tl.int64)
        valid = time < length
        soon = time + 1 < length
        next_r, next_u, next_n = load_three(x + (step + 1) * gates_x_t, gate_step, soon & h_mask)
        later = embed_context + (step + 1) * embed_context_t
        next_y = load_tile(later, embed_context_b, embed_context_u, rows, embeds[None, :], soon & e_mask)
        later = context + (step + 1) * context_t
        next_c = load_tile(later, context_b, context_u, rows, hiddens[None, :], soon & m_mask)
        next_noise = load_tile(eps + (step + 1) * eps_t, eps_b, eps_u, rows, latents[None, :], soon & z_mask)
        if resets is not None:
            h = tl.where(anew, h_anew, h)
            z = tl.where(anew, z_anew, z)
            anew = is_reset(resets, time + 1, length, batch, rows)
        row = step * batch + rows

        sum_ = product(z, w_embed, y.to(tl.float32), PRECISION, EMULATED)
        e = within(activate(sum_, EMBED_ACTIVATION), e_mask)
        keep(embed_out, row * E + embeds[None, :], sum_, e, valid, inside & e_mask, EMBED_ACTIVATION, EMULATED)

        r = product(h, w_r, product(e, z_r, x_r + b_r, PRECISION, EMULATED), PRECISION, EMULATED)
        u = product(h, w_u, product(e, z_u, x_u + b_u, PRECISION, EMULATED), PRECISION, EMULATED)
        n = product(e, z_n, x_n, PRECISION, EMULATED)
        a = product(h, w_n, tl.zeros_like(h) + b_n, PRECISION, EMULATED)
        r = sigmoid(r)
        u = sigmoid(u)
        n = tanh(n + r * a)
        h = within(n + u * (h - n), h_mask)
        zero = tl.zeros_like(h)
        put(h_out, row * H + units[None, :], tl.where(valid, h, zero), inside & h_mask, EMULATED)
        if gates_out is not None:
            store_four(
                gates_out, row * (4 * H) + units[None, :], H, inside & h_mask,
                tl.where(valid, r, zero), tl.where(valid, u, zero), tl.where(valid, n, zero), tl.where(valid, a, zero),
                EMULATED,
            )  # fmt: skip

        sum_ = product(h, w_hidden, c.to(tl.float32), PRECISION, EMULATED)
        active = within(activate(sum_, ACTIVATION), m_mask)
        keep(hidden_out, row * M + hiddens[None, :], sum_, active, valid, inside & m_mask, ACTIVATION, EMULATED)

        mu = product(active, w_mu, tl.zeros_like(z) + b_mu, PRECISION, EMULATED)
        raw = product(active, w_raw, tl.zeros_like(z) + b_raw, PRECISION, EMULATED)
        z, logvar = _sample(mu, raw, noise.to(tl.float32), floor, SCALE)
        z = within(z, z_mask)
        at = row * Z + latents[None, :]
        store_three(z_out, mu_out, logvar_out, at, z, mu, logvar, valid, inside & z_mask, EMULATED)
        x_r, x_u, x_n, y, c, noise = next_r, next_u, next_n, next_y, next_c, next_noise


@kernel("steps", "batch")
def interleaved_backward_resident(
    grad_h,
    grad_h_t,
    grad_h_b,
    grad_h_u,
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
    h_out,
    logvar,
    gates,
    embed,
    hidden,
    eps,
    eps_t,
    eps_b,
    eps_u,
    h0,
    h0_b,
    h0_u,
    weight_embed,
    weight_embed_r,
    weight_embed_c,
    weight_zh,
    weight_zh_r,
    weight_zh_c,
    weight_hh,
    weight_hh_r,
    weight_hh_c,
    weight_h,
    weight_h_r,
    weight_h_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    reset_h,
    reset_h_b,
    reset_h_u,
    resets,
    lengths,
    grad_gates_x,
    grad_a,
    grad_embed,
    grad_context,
    grad_out,
    grad_eps,
    grad_h0,
    grad_z0,
    grad_reset_h,
    grad_reset_z,
    floor,
    steps,
    batch,
    H: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    Z: tl.constexpr,
    EMBED_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    EMBED: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """grad_gates_x, grad_a, grad_embed, grad_context, grad_out, grad_eps and the states' gradients of ROWS sequences,
    UNITS >= H, EMBED >= E, HIDDEN >= M, LATENT >= Z."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    units = tl.arange(0, UNITS).to(tl.int64)
    embeds = tl.arange(0, EMBED).to(tl.int64)
    hiddens = tl.arange(0, HIDDEN).to(tl.int64)
    latents = tl.arange(0, LATENT).to(tl.int64)
    inside = rows < batch
    h_mask = (units < H)[None, :]
    e_mask = (embeds < E)[None, :]
    m_mask = (hiddens < M)[None, :]
    z_mask = (latents < Z)[None, :]
    length = row_lengths(lengths, rows, inside, steps)

    # Of tiles [K, N]
    ez = (embeds < E)[:, None] & z_mask
    w_embed = load_tile(weight_embed, weight_embed_r, weight_embed_c, embeds[:, None], latents[None, :], ez)
    he = (units < H)[:, None] & e_mask
    z_r = load_tile(weight_zh, weight_zh_r, weight_zh_c, units[:, None], embeds[None, :], he)
    z_u = load_tile(weight_zh, weight_zh_r, weight_zh_c, H + units[:, None], embeds[None, :], he)
    z_n = load_tile(weight_zh, weight_zh_r, weight_zh_c, 2 * H + units[:, None], embeds[None, :], he)
    w_r = load_gate_weight(weight_hh, 0, units[:, None], units[None, :], weight_hh_r, weight_hh_c, H)
    w_u = load_gate_weight(weight_hh, 1, units[:, None], units[None, :], weight_hh_r, weight_hh_c, H)
    w_n = load_gate_weight(weight_hh, 2, units[:, None], units[None, :], weight_hh_r, weight_hh_c, H)
    mh = (hiddens < M)[:, None] & h_mask
    w_hidden = load_tile(weight_h, weight_h_r, weight_h_c, hiddens[:, None], units[None, :], mh)
    zm = (latents < Z)[:, None] & m_mask
    w_mu = load_tile(weight_out, weight_out_r, weight_out_c, latents[:, None], hiddens[None, :], zm)
    w_raw = load_tile(weight_out, weight_out_r, weight_out_c, Z + latents[:, None], hiddens[None, :], zm)

    dh = tl.zeros((ROWS, UNITS), tl.float32)
    dz = tl.zeros((ROWS, LATENT), tl.float32)
    if resets is not None:
        sum_h = tl.zeros((ROWS, UNITS), tl.float32)
        sum_z = tl.zeros((ROWS, LATENT), tl.float32)
    for i in range(steps):
        time = steps - 1 - i
        step = tl.cast(time, tl.int64)
        valid = time < length
        row = step * batch + rows
        # Asked for before the first products, which do not need them.
        kept = gates + row * (4 * H) + units[None, :]
        r, u, n = load_three(kept, H, valid & h_mask)
        a = tl.load(kept + 3 * H, mask=valid & h_mask, other=0).to(tl.float32)
        h = _state_before(
            h_out, h0, h0_b, h0_u, reset_h, reset_h_b, reset_h_u, resets, time, length, batch, rows, units[None, :],
            valid & h_mask, H,
        )  # fmt: skip
        if grad_h is not None:
            here = grad_h + step * grad_h_t
            dh += load_tile(here, grad_h_b, grad_h_u, rows, units[None, :], valid & h_mask).to(tl.float32)

        d_z, d_mu, d_log, log, noise = load_sample_grads(
            grad_z, grad_z_t, grad_z_b, grad_z_u, grad_mu, grad_mu_t, grad_mu_b, grad_mu_u,
            grad_logvar, grad_logvar_t, grad_logvar_b, grad_logvar_u, logvar, eps, eps_t, eps_b, eps_u,
            step, batch, rows, latents[None, :], valid & z_mask, Z,
        )  # fmt: skip
        g_mu, g_raw, g_eps = _out_grads(dz + d_z, d_mu, d_log, log, noise, valid, floor, SCALE)
        store_out_grads(
            grad_out, grad_eps, step, batch, rows, latents[None, :], inside & z_mask, g_mu, g_raw, g_eps, Z, EMULATED
        )

        none = tl.zeros((ROWS, HIDDEN), tl.float32)
        at = row * M + hiddens[None, :]
        total = product(g_raw, w_raw, product(g_mu, w_mu, none, PRECISION, EMULATED), PRECISION, EMULATED)
        total = tl.where(valid, hidden_grad(hidden, at, total, valid & m_mask, ACTIVATION), 0.0)
        put(grad_context, at, total, inside & m_mask, EMULATED)

        dh = tl.where(valid, product(total, w_hidden, dh, PRECISION, EMULATED), 0.0)
        g_r, g_u, g_n, g_a = gate_grads(dh, r, u, n, a, h)
        at = row * (3 * H) + units[None, :]
        put(grad_gates_x, at, g_r, inside & h_mask, EMULATED)
        put(grad_gates_x, at + H, g_u, inside & h_mask, EMULATED)
        put(grad_gates_x, at + 2 * H, g_n, inside & h_mask, EMULATED)
        put(grad_a, row * H + units[None, :], g_a, inside & h_mask, EMULATED)

        total = product(g_r, z_r, tl.zeros((ROWS, EMBED), tl.float32), PRECISION, EMULATED)
        total = product(g_u, z_u, total, PRECISION, EMULATED)
        total = product(g_n, z_n, total, PRECISION, EMULATED)
        at = row * E + embeds[None, :]
        total = tl.where(valid, hidden_grad(embed, at, total, valid & e_mask, EMBED_ACTIVATION), 0.0)
        put(grad_embed, at, total, inside & e_mask, EMULATED)

        dz = product(total, w_embed, tl.zeros_like(dz), PRECISION, EMULATED)
        dh = product(g_r, w_r, dh * u, PRECISION, EMULATED)
        dh = product(g_u, w_u, dh, PRECISION, EMULATED)
        dh = product(g_a, w_n, dh, PRECISION, EMULATED)
        dz = tl.where(valid, dz, 0.0)
        dh = tl.where(valid, dh, 0.0)
        if resets is not None:
            anew = is_reset(resets, time, length, batch, rows)
            sum_h += tl.where(anew, dh, 0.0)
            sum_z += tl.where(anew, dz, 0.0)
            dh = tl.where(anew, 0.0, dh)
            dz = tl.where(anew, 0.0, dz)
    put(grad_h0, rows * H + units[None, :], dh, inside & h_mask, EMULATED)
    put(grad_z0, rows * Z + latents[None, :], dz, inside & z_mask, EMULATED)
    if resets is not None:
        put(grad_reset_h, rows * H + units[None, :], sum_h, inside & h_mask, EMULATED)
        put(grad_reset_z, rows * Z + latents[None, :], sum_z, inside & z_mask, EMULATED)


# ---- Tiled -----------------------------------------------------------------------------------------------


@triton.jit
def _not_unrolled(size: tl.constexpr, end):
    """`size`, as a number that the compiler does not know: unrolled loops over it would take too many registers."""
    return tl.where(end > 0, size, 0)


@triton.jit
def _add_gates(
    sum_r, sum_u, sum_n, left, left_width, weight, weight_r, weight_c, rows, units, inside, size,
    H: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """The three sums + left weight^T; left and size as in add_product, weight is [3H, K]."""
    mask = units < H
    for part in range(0, size, DEPTH):
        inner = (part + tl.arange(0, DEPTH)).to(tl.int64)
        known = inside & (inner < size)[None, :]
        values = tl.load(left + rows * left_width + inner[None, :], mask=known, other=0, cache_modifier=".cg")
        within = (inner < size)[:, None] & mask
        matrix = load_tile(weight, weight_r, weight_c, units, inner[:, None], within)
        sum_r = product(values, matrix, sum_r, PRECISION, EMULATED)
        matrix = load_tile(weight, weight_r, weight_c, H + units, inner[:, None], within)
        sum_u = product(values, matrix, sum_u, PRECISION, EMULATED)
        matrix = load_tile(weight, weight_r, weight_c, 2 * H + units, inner[:, None], within)
        sum_n = product(values, matrix, sum_n, PRECISION, EMULATED)
    return sum_r, sum_u, sum_n


@kernel("steps", "batch", "first_tile", "slices", "begin", "end")
def interleaved_forward_tiled(
    gates_x,
    gates_x_t,
    gates_x_b,
    gates_x_u,
    embed_context,
    embed_context_t,
    embed_context_b,
    embed_context_u,
    context,
    context_t,
    context_b,
    context_u,
    eps,
    eps_t,
    eps_b,
    eps_u,
    weight_embed,
    weight_embed_r,
    weight_embed_c,
    weight_zh,
    weight_zh_r,
    weight_zh_c,
    weight_hh,
    weight_hh_r,
    weight_hh_c,
    weight_h,
    weight_h_r,
    weight_h_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    bias_hh,
    bias_out,
    reset_h,
    reset_h_b,
    reset_h_u,
    reset_z,
    reset_z_b,
    reset_z_u,
    resets,
    lengths,
    h_out,
    z_out,
    mu_out,
    logvar_out,
    gates_out,
    embed_out,
    hidden_out,
    states,
    latent_state,
    embed_active,
    active,
    floor,
    counters,
    steps,
    batch,
    first_tile,
    slices,
    begin,
    end,
    H: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    Z: tl.constexpr,
    EMBED_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    LATENT: tl.constexpr,
    DEPTH: tl.constexpr,
    SYNC: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Phases begin..end - 1 of the rows of tiles first_tile.. : phases 4t to 4t + 3 make the embedding, the state, the
    hidden layer and the sample of step t.

    states [2, B, H] float32, of which step t reads t % 2 and writes the other, and latent_state [B, Z] float32 hold
    what step t starts from, resets done (the caller puts that of step 0 into states[0] and latent_state); embed_active
    [B, E] and active [B, M], in the inputs' dtype, hold the layers; counters [tiles] int32, zeros.
    """
    group = first_tile + tl.program_id(0) // slices
    slice_ = tl.program_id(0) % slices
    rows = (group.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = rows < batch
    length = row_lengths(lengths, rows, inside, steps)
    state_size = tl.cast(batch, tl.int64) * H
    all_e, all_h = _not_unrolled(E, end), _not_unrolled(H, end)
    all_m, all_z = _not_unrolled(M, end), _not_unrolled(Z, end)
    for phase in range(begin, end):
        time = phase // 4
        part = phase % 4
        step = tl.cast(time, tl.int64)
        valid = time < length
        row = step * batch + rows
        if part == 0:
            for first in range(slice_ * UNITS, E, slices * UNITS):
                units = (first + tl.arange(0, UNITS)).to(tl.int64)[None, :]
                mask = units < E
                here = embed_context + step * embed_context_t
                x = load_tile(here, embed_context_b, embed_context_u, rows, units, valid & mask)
                sum_ = add_product(
                    x.to(tl.float32), latent_state, Z, weight_embed, weight_embed_c, weight_embed_r, rows, units,
                    inside, mask, all_z, DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                result = activate(sum_, EMBED_ACTIVATION)
                keep(embed_out, row * E + units, sum_, result, valid, inside & mask, EMBED_ACTIVATION, EMULATED)
                put(embed_active, rows * E + units, result, inside & mask, EMULATED)
        elif part == 1:
            read = states + (time % 2) * state_size
            write = states + (1 - time % 2) * state_size
            for first in range(slice_ * UNITS, H, slices * UNITS):
                units = (first + tl.arange(0, UNITS)).to(tl.int64)[None, :]
                mask = units < H
                here = gates_x + step * gates_x_t + rows * gates_x_b + units * gates_x_u
                x_r, x_u, x_n = load_three(here, tl.cast(gates_x_u, tl.int64) * H, valid & mask)
                b_r, b_u, b_n = load_three(bias_hh + units, H, mask)
                sum_r, sum_u, sum_n = _add_gates(
                    x_r + b_r, x_u + b_u, x_n, embed_active, E, weight_zh, weight_zh_r, weight_zh_c, rows, units,
                    inside, all_e, H, DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                sum_r, sum_u, a = _add_gates(
                    sum_r, sum_u, tl.zeros_like(x_n) + b_n, read, H, weight_hh, weight_hh_r, weight_hh_c, rows, units,
                    inside, all_h, H, DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                stored = rows * H + units
                tile = inside & mask
                h = tl.load(read + stored, mask=tile, other=0, cache_modifier=".cg")
                r = sigmoid(sum_r)
                u = sigmoid(sum_u)
                n = tanh(sum_n + r * a)
                h = n + u * (h - n)
                zero = tl.zeros_like(h)
                out = tl.where(valid, h, zero)
                put(h_out, row * H + units, out, tile, EMULATED)
                if gates_out is not None:
                    r = tl.where(valid, r, zero)
                    u = tl.where(valid, u, zero)
                    n = tl.where(valid, n, zero)
                    at = row * (4 * H) + units
                    store_four(gates_out, at, H, tile, r, u, n, tl.where(valid, a, zero), EMULATED)
                if resets is not None:
                    anew = is_reset(resets, time + 1, length, batch, rows)
                    other = load_tile(reset_h, reset_h_b, reset_h_u, rows, units, anew & mask).to(tl.float32)
                    out = tl.where(anew, other, out)
                tl.store(write + stored, out, mask=tile)
        elif part == 2:
            for first in range(slice_ * UNITS, M, slices * UNITS):
                units = (first + tl.arange(0, UNITS)).to(tl.int64)[None, :]
                mask = units < M
                x = load_tile(context + step * context_t, context_b, context_u, rows, units, valid & mask)
                # h_t as it was stored: what a product takes is rounded to that dtype anyway.
                sum_ = add_product(
                    x.to(tl.float32), h_out + step * state_size, H, weight_h, weight_h_c, weight_h_r, rows, units,
                    inside, mask, all_h, DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                result = activate(sum_, ACTIVATION)
                keep(hidden_out, row * M + units, sum_, result, valid, inside & mask, ACTIVATION, EMULATED)
                put(active, rows * M + units, result, inside & mask, EMULATED)
        else:
            for first in range(slice_ * LATENT, Z, slices * LATENT):
                latents = (first + tl.arange(0, LATENT)).to(tl.int64)[None, :]
                mask = latents < Z
                none = tl.zeros((ROWS, LATENT), tl.float32)
                bias = tl.load(bias_out + latents, mask=mask, other=0).to(tl.float32)
                mu = add_product(
                    none + bias, active, M, weight_out, weight_out_c, weight_out_r, rows, latents, inside, mask, all_m,
                    DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                bias = tl.load(bias_out + Z + latents, mask=mask, other=0).to(tl.float32)
                below = weight_out + tl.cast(weight_out_r, tl.int64) * Z
                raw = add_product(
                    none + bias, active, M, below, weight_out_c, weight_out_r, rows, latents, inside, mask, all_m,
                    DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                noise = load_tile(eps + step * eps_t, eps_b, eps_u, rows, latents, valid & mask).to(tl.float32)
                z, logvar = _sample(mu, raw, noise, floor, SCALE)
                store_three(z_out, mu_out, logvar_out, row * Z + latents, z, mu, logvar, valid, inside & mask, EMULATED)
                if resets is not None:
                    anew = is_reset(resets, time + 1, length, batch, rows)
                    other = load_tile(reset_z, reset_z_b, reset_z_u, rows, latents, anew & mask).to(tl.float32)
                    z = tl.where(anew, other, z)
                tl.store(latent_state + rows * Z + latents, z, mask=inside & mask)
        barrier(counters + group, (phase + 1 - begin) * slices, SYNC)


@kernel("steps", "batch", "first_tile", "slices", "begin", "end")
def interleaved_backward_tiled(
    grad_h,
    grad_h_t,
    grad_h_b,
    grad_h_u,
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
    h_out,
    logvar,
    gates,
    embed,
    hidden,
    eps,
    eps_t,
    eps_b,
    eps_u,
    h0,
    h0_b,
    h0_u,
    weight_embed,
    weight_embed_r,
    weight_embed_c,
    weight_zh,
    weight_zh_r,
    weight_zh_c,
    weight_hh,
    weight_hh_r,
    weight_hh_c,
    weight_h,
    weight_h_r,
    weight_h_c,
    weight_out,
    weight_out_r,
    weight_out_c,
    reset_h,
    reset_h_b,
    reset_h_u,
    resets,
    lengths,
    grad_gates_x,
    grad_a,
    grad_embed,
    grad_context,
    grad_out,
    grad_eps,
    carry,
    reset_sums_h,
    reset_sums_z,
    grad_z0,
    floor,
    counters,
    steps,
    batch,
    first_tile,
    slices,
    begin,
    end,
    H: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
    Z: tl.constexpr,
    EMBED_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    LATENT: tl.constexpr,
    DEPTH: tl.constexpr,
    SYNC: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Phases begin..end - 1 of the rows of tiles first_tile.. , with t = T - 1 - i: phase 4i takes what step t + 1
    sends to z_t and makes grad_out, 4i + 1 makes grad_context, 4i + 2 takes what step t + 1 sends to h_t and makes
    grad_gates_x and grad_a, 4i + 3 makes grad_embed; phase 4T only takes, from step 0.

    carry [2, B, H] float32 holds what reaches h past the products: round i reads i % 2 and writes the other; the caller
    puts zeros into carry[0] and finds grad_h0 in carry[(T + 1) % 2]. The sums over resets, [2, B, H] and [2, B, Z]
    float32, go the same way, to be found in [(T + 1) % 2]; reset_sums_* None: no resets. counters [tiles] int32, zeros.
    """
    group = first_tile + tl.program_id(0) // slices
    slice_ = tl.program_id(0) % slices
    rows = (group.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = rows < batch
    length = row_lengths(lengths, rows, inside, steps)
    all_h, all_m, all_z = _not_unrolled(H, end), _not_unrolled(M, end), _not_unrolled(Z, end)
    for phase in range(begin, end):
        i = phase // 4
        part = phase % 4
        time = steps - 1 - i
        step = tl.cast(time, tl.int64)
        valid = time < length
        row = step * batch + rows
        sent = (step + 1) * batch  # rows of the step that was taken before
        sends = time + 1 < length
        if part == 0:
            for first in range(slice_ * LATENT, Z, slices * LATENT):
                latents = (first + tl.arange(0, LATENT)).to(tl.int64)[None, :]
                mask = latents < Z
                # Round 0 has nothing to take: no part of the product.
                dz = add_product(
                    tl.zeros((ROWS, LATENT), tl.float32), grad_embed + sent * E, E, weight_embed, weight_embed_r,
                    weight_embed_c, rows, latents, inside, mask, tl.where(i > 0, E, 0), DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                dz = tl.where(sends, dz, 0.0)
                if resets is not None:
                    anew = is_reset(resets, time + 1, length, batch, rows)
                    stored = rows * Z + latents
                    size = tl.cast(batch, tl.int64) * Z
                    sums = tl.load(reset_sums_z + (i % 2) * size + stored, mask=inside & mask, other=0)
                    sums += tl.where(anew, dz, 0.0)
                    tl.store(reset_sums_z + (1 - i % 2) * size + stored, sums, mask=inside & mask)
                    dz = tl.where(anew, 0.0, dz)
                if time >= 0:
                    d_z, d_mu, d_log, log, noise = load_sample_grads(
                        grad_z, grad_z_t, grad_z_b, grad_z_u, grad_mu, grad_mu_t, grad_mu_b, grad_mu_u,
                        grad_logvar, grad_logvar_t, grad_logvar_b, grad_logvar_u, logvar, eps, eps_t, eps_b, eps_u,
                        step, batch, rows, latents, valid & mask, Z,
                    )  # fmt: skip
                    g_mu, g_raw, g_eps = _out_grads(dz + d_z, d_mu, d_log, log, noise, valid, floor, SCALE)
                    store_out_grads(
                        grad_out, grad_eps, step, batch, rows, latents, inside & mask, g_mu, g_raw, g_eps, Z, EMULATED
                    )
                else:
                    put(grad_z0, rows * Z + latents, dz, inside & mask, EMULATED)
        elif part == 1:
            for first in range(slice_ * UNITS, M, slices * UNITS):
                units = (first + tl.arange(0, UNITS)).to(tl.int64)[None, :]
                mask = units < M
                at = row * M + units
                # Rows of weight_out are those of grad_out: mean and raw in one sum over 2Z.
                total = add_product(
                    tl.zeros((ROWS, UNITS), tl.float32), grad_out + step * batch * (2 * Z), 2 * Z, weight_out,
                    weight_out_r, weight_out_c, rows, units, inside, mask, 2 * all_z, DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                total = tl.where(valid, hidden_grad(hidden, at, total, valid & mask, ACTIVATION), 0.0)
                put(grad_context, at, total, inside & mask, EMULATED)
        elif part == 3:
            for first in range(slice_ * UNITS, E, slices * UNITS):
                units = (first + tl.arange(0, UNITS)).to(tl.int64)[None, :]
                mask = units < E
                at = row * E + units
                total = add_product(
                    tl.zeros((ROWS, UNITS), tl.float32), grad_gates_x + step * batch * (3 * H), 3 * H, weight_zh,
                    weight_zh_r, weight_zh_c, rows, units, inside, mask, 3 * all_h, DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                total = tl.where(valid, hidden_grad(embed, at, total, valid & mask, EMBED_ACTIVATION), 0.0)
                put(grad_embed, at, total, inside & mask, EMULATED)
        if (part == 2) | (time < 0):
            size = tl.cast(batch, tl.int64) * H
            for first in range(slice_ * UNITS, H, slices * UNITS):
                units = (first + tl.arange(0, UNITS)).to(tl.int64)[None, :]
                mask = units < H
                tile = inside & mask
                stored = rows * H + units
                dh = tl.load(carry + (i % 2) * size + stored, mask=tile, other=0)
                dh = add_product(
                    dh, grad_gates_x + sent * (3 * H), 3 * H, weight_hh, weight_hh_r, weight_hh_c, rows, units, inside,
                    mask, tl.where(i > 0, 2 * H, 0), DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                below = weight_hh + tl.cast(weight_hh_r, tl.int64) * (2 * H)
                dh = add_product(
                    dh, grad_a + sent * H, H, below, weight_hh_r, weight_hh_c, rows, units, inside, mask,
                    tl.where(i > 0, H, 0), DEPTH, PRECISION, EMULATED,
                )  # fmt: skip
                dh = tl.where(sends, dh, 0.0)
                if resets is not None:
                    anew = is_reset(resets, time + 1, length, batch, rows)
                    sums = tl.load(reset_sums_h + (i % 2) * size + stored, mask=tile, other=0)
                    sums += tl.where(anew, dh, 0.0)
                    tl.store(reset_sums_h + (1 - i % 2) * size + stored, sums, mask=tile)
                    dh = tl.where(anew, 0.0, dh)
                if time >= 0:
                    kept = gates + row * (4 * H) + units
                    r, u, n = load_three(kept, H, valid & mask)
                    a = tl.load(kept + 3 * H, mask=valid & mask, other=0).to(tl.float32)
                    h = _state_before(
                        h_out, h0, h0_b, h0_u, reset_h, reset_h_b, reset_h_u, resets, time, length, batch, rows, units,
                        valid & mask, H,
                    )  # fmt: skip
                    if grad_h is not None:
                        here = grad_h + step * grad_h_t
                        dh += load_tile(here, grad_h_b, grad_h_u, rows, units, valid & mask).to(tl.float32)
                    dh = add_product(
                        dh, grad_context + step * batch * M, M, weight_h, weight_h_r, weight_h_c, rows, units, inside,
                        mask, all_m, DEPTH, PRECISION, EMULATED,
                    )  # fmt: skip
                    dh = tl.where(valid, dh, 0.0)
                    g_r, g_u, g_n, g_a = gate_grads(dh, r, u, n, a, h)
                    at = row * (3 * H) + units
                    put(grad_gates_x, at, g_r, tile, EMULATED)
                    put(grad_gates_x, at + H, g_u, tile, EMULATED)
                    put(grad_gates_x, at + 2 * H, g_n, tile, EMULATED)
                    put(grad_a, row * H + units, g_a, tile, EMULATED)
                    dh = dh * u
                tl.store(carry + (1 - i % 2) * size + stored, dh, mask=tile)
        barrier(counters + group, (phase + 1 - begin) * slices, SYNC)
