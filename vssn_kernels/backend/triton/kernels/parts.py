"""What the recurrences' kernels load, multiply, keep and store in a step.

What has no annotation here is a Triton value; tiles are [ROWS, units].
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssn_kernels.backend.triton.kernels.cell import activation_slope, product, put


@triton.jit
def load_tile(base, row_stride, column_stride, rows, columns, mask):
    """A tile at rows x columns (one of them [N, 1], the other [1, N], int64), 0 where masked out."""
    return tl.load(base + rows * row_stride + columns * column_stride, mask=mask, other=0)


@triton.jit
def add_product(
    total, left, left_width, weight, weight_k, weight_n, rows, columns, inside, column_mask, size,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """total + left weight; left has rows of `left_width`, of which the first `size` count, weight is [K, N]."""
    for part in range(0, size, DEPTH):
        inner = (part + tl.arange(0, DEPTH)).to(tl.int64)
        known = inside & (inner < size)[None, :]
        values = tl.load(left + rows * left_width + inner[None, :], mask=known, other=0, cache_modifier=".cg")
        matrix = load_tile(weight, weight_k, weight_n, inner[:, None], columns, (inner < size)[:, None] & column_mask)
        total = product(values, matrix, total, PRECISION, EMULATED)
    return total


@triton.jit
def load_gate_weight(weight, gate, rows, columns, row_stride, column_stride, H: tl.constexpr):
    """weight_hh[gate H + rows, columns] as a tile of the shape of rows + columns, 0 outside."""
    address = weight + (gate * H + rows).to(tl.int64) * row_stride + columns.to(tl.int64) * column_stride
    return tl.load(address, mask=(rows < H) & (columns < H), other=0)


@triton.jit
def load_three(base, gate_step, mask):
    """Three tiles, gate_step apart, as float32; 0 where masked out."""
    return (
        tl.load(base, mask=mask, other=0).to(tl.float32),
        tl.load(base + gate_step, mask=mask, other=0).to(tl.float32),
        tl.load(base + 2 * gate_step, mask=mask, other=0).to(tl.float32),
    )


@triton.jit
def store_four(base, offsets, gate_step, mask, r, z, n, a, EMULATED: tl.constexpr):
    put(base, offsets, r, mask, EMULATED)
    put(base, offsets + gate_step, z, mask, EMULATED)
    put(base, offsets + 2 * gate_step, n, mask, EMULATED)
    put(base, offsets + 3 * gate_step, a, mask, EMULATED)


@triton.jit
def gate_grads(dh, r, z, n, a, h):
    """Gradients of the inputs of r, z, n and of a, from the gradient dh of h'."""
    grad_z = dh * (h - n) * (z * (1 - z))
    grad_n = dh * (1 - z) * (1 - n * n)
    return grad_n * a * (r * (1 - r)), grad_z, grad_n, grad_n * r


@triton.jit
def keep(
    base, offset, hidden, active, valid, mask, ACTIVATION: tl.constexpr, EMULATED: tl.constexpr
):  # fmt: skip
    """Stores what backward needs of a hidden layer, 0 at padding."""
    if base is not None:
        kept = hidden if ACTIVATION == "silu" else active
        put(base, offset, tl.where(valid, kept, 0.0), mask, EMULATED)


@triton.jit
def hidden_grad(kept_base, at, gradient, mask, ACTIVATION: tl.constexpr):
    """gradient times the slope of the activation at what forward kept."""
    kept = tl.load(kept_base + at, mask=mask, other=0).to(tl.float32)
    return gradient * activation_slope(kept, ACTIVATION)


@triton.jit
def store_three(z_out, mu_out, logvar_out, offset, z, mu, logvar, valid, mask, EMULATED: tl.constexpr):
    put(z_out, offset, tl.where(valid, z, 0.0), mask, EMULATED)
    put(mu_out, offset, tl.where(valid, mu, 0.0), mask, EMULATED)
    put(logvar_out, offset, tl.where(valid, logvar, 0.0), mask, EMULATED)


@triton.jit
def load_sample_grads(
    grad_z, grad_z_t, grad_z_b, grad_z_u, grad_mu, grad_mu_t, grad_mu_b, grad_mu_u,
    grad_logvar, grad_logvar_t, grad_logvar_b, grad_logvar_u, logvar, eps, eps_t, eps_b, eps_u,
    step, batch, rows, columns, mask, Z: tl.constexpr,
):  # fmt: skip
    """What backward needs of one step: grad_z, grad_mu, grad_logvar, logvar, eps; 0 where masked out."""
    log = tl.load(logvar + (step * batch + rows) * Z + columns, mask=mask, other=0).to(tl.float32)
    noise = load_tile(eps + step * eps_t, eps_b, eps_u, rows, columns, mask).to(tl.float32)
    d_z = tl.zeros_like(log)
    if grad_z is not None:
        d_z = load_tile(grad_z + step * grad_z_t, grad_z_b, grad_z_u, rows, columns, mask).to(tl.float32)
    d_mu = tl.zeros_like(log)
    if grad_mu is not None:
        d_mu = load_tile(grad_mu + step * grad_mu_t, grad_mu_b, grad_mu_u, rows, columns, mask).to(tl.float32)
    d_log = tl.zeros_like(log)
    if grad_logvar is not None:
        address = grad_logvar + step * grad_logvar_t
        d_log = load_tile(address, grad_logvar_b, grad_logvar_u, rows, columns, mask).to(tl.float32)
    return d_z, d_mu, d_log, log, noise


@triton.jit
def store_out_grads(
    grad_out, grad_eps, step, batch, rows, columns, mask, g_mu, g_raw, g_eps, Z: tl.constexpr, EMULATED: tl.constexpr
):
    row = step * batch + rows
    put(grad_out, row * (2 * Z) + columns, g_mu, mask, EMULATED)
    put(grad_out, row * (2 * Z) + Z + columns, g_raw, mask, EMULATED)
    put(grad_eps, row * Z + columns, g_eps, mask, EMULATED)
