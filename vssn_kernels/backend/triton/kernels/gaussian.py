"""Reparameterised sample and KL divergence of diagonal Gaussians, forward and backward, each in one pass.

z  = mu + exp(logvar / 2) eps
kl = 1/2 sum_Z [exp(d) - 1 - d + (mu - mp)^2 exp(-lp)],  d = logvar - lp      (prior mp, lp; None: N(0, I))

A program takes ROWS rows, in parts of COLUMNS. Inputs are [R, Z] with any strides, outputs contiguous; eps, z and the
priors may be None, as may each gradient that is not wanted. grad_kl is [R] with its stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssn_kernels.backend.triton.kernels.cell import exp_excess, expm1, put
from vssn_kernels.backend.triton.kernels.compilation import kernel


@triton.jit
def _load(base, row_stride, column_stride, rows, columns, mask):
    """A tile as float32; 0 where masked out, and everywhere for None."""
    if base is None:
        return tl.zeros(mask.shape, tl.float32)
    else:
        return tl.load(base + rows * row_stride + columns * column_stride, mask=mask, other=0).to(tl.float32)


@kernel("count")
def gaussian_forward(
    mu,
    mu_r,
    mu_c,
    logvar,
    logvar_r,
    logvar_c,
    eps,
    eps_r,
    eps_c,
    prior_mu,
    prior_mu_r,
    prior_mu_c,
    prior_logvar,
    prior_logvar_r,
    prior_logvar_c,
    z,
    kl,
    count,
    Z: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """kl [R], and z [R, Z] unless None, of ROWS rows."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = rows < count
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, Z, COLUMNS):
        columns = (first + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
        mask = inside & (columns < Z)
        mean = _load(mu, mu_r, mu_c, rows, columns, mask)
        log = _load(logvar, logvar_r, logvar_c, rows, columns, mask)
        prior_mean = _load(prior_mu, prior_mu_r, prior_mu_c, rows, columns, mask)
        prior_log = _load(prior_logvar, prior_logvar_r, prior_logvar_c, rows, columns, mask)
        if z is not None:
            noise = _load(eps, eps_r, eps_c, rows, columns, mask)
            put(z, rows * Z + columns, mean + tl.exp(log * 0.5) * noise, mask, EMULATED)
        scaled = (mean - prior_mean) * tl.exp(-0.5 * prior_log)
        total += exp_excess(log - prior_log) + scaled * scaled
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    put(kl, at, tl.sum(total, 1) * 0.5, at < count, EMULATED)


@kernel("count")
def gaussian_backward(
    mu,
    mu_r,
    mu_c,
    logvar,
    logvar_r,
    logvar_c,
    eps,
    eps_r,
    eps_c,
    prior_mu,
    prior_mu_r,
    prior_mu_c,
    prior_logvar,
    prior_logvar_r,
    prior_logvar_c,
    grad_z,
    grad_z_r,
    grad_z_c,
    grad_kl,
    grad_kl_r,
    grad_mu,
    grad_logvar,
    grad_eps,
    grad_prior_mu,
    grad_prior_logvar,
    count,
    Z: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """The gradients that are not None, of ROWS rows and COLUMNS columns."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = rows < count
    mask = inside & (columns < Z)
    at = rows * Z + columns
    mean = _load(mu, mu_r, mu_c, rows, columns, mask)
    log = _load(logvar, logvar_r, logvar_c, rows, columns, mask)
    dz = _load(grad_z, grad_z_r, grad_z_c, rows, columns, mask)
    if grad_kl is None:
        weight = tl.zeros((ROWS, 1), tl.float32)
    else:
        weight = tl.load(grad_kl + rows * grad_kl_r, mask=inside, other=0).to(tl.float32)
    prior_mean = _load(prior_mu, prior_mu_r, prior_mu_c, rows, columns, mask)
    prior_log = _load(prior_logvar, prior_logvar_r, prior_logvar_c, rows, columns, mask)
    factor = tl.exp(-0.5 * prior_log)
    scaled = (mean - prior_mean) * factor
    ratio = expm1(log - prior_log)
    grad = weight * (scaled * factor)
    put(grad_mu, at, dz + grad, mask, EMULATED)
    put(grad_prior_mu, at, -grad, mask, EMULATED)
    put(grad_prior_logvar, at, -0.5 * weight * (ratio + scaled * scaled), mask, EMULATED)
    sigma = tl.exp(log * 0.5)
    put(grad_eps, at, dz * sigma, mask, EMULATED)
    if grad_logvar is not None:
        noise = _load(eps, eps_r, eps_c, rows, columns, mask)
        put(grad_logvar, at, dz * noise * sigma * 0.5 + 0.5 * weight * ratio, mask, EMULATED)
