"""posterior_sequence in Triton, and the weights' gradients as products after the loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from vssn_kernels.backend.common import Grads, activated, weight_gradients
from vssn_kernels.backend.triton.configurations import Tiles, posterior_tiles
from vssn_kernels.backend.triton.kernels import posterior as kernels
from vssn_kernels.backend.triton.launch import (
    launch_tiled,
    new_like,
    on,
    on_matrix_cores,
    options,
    products,
    shared_memory,
    strided,
)


def _tiles(weight_z: Tensor, prior: bool) -> Tiles:
    width, latent = weight_z.shape
    size = weight_z.element_size()
    return posterior_tiles(width, latent, prior, size, on_matrix_cores(weight_z), shared_memory(weight_z))


def _constants(tiles: Tiles, weight_z: Tensor, activation: str) -> dict[str, Any]:
    width, latent = weight_z.shape
    sizes = {"M": width, "Z": latent, "ROWS": tiles.rows, "HIDDEN": tiles.units, "LATENT": tiles.latents}
    return {**sizes, "ACTIVATION": activation, **products(weight_z)}


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
    new = partial(new_like, context)
    z, mu, logvar = (new(steps, batch, latent) for _ in range(3))
    hidden, prior_hidden = (
        new(steps, batch, width) if keep else new(0) for keep in (need_backward, need_backward and prior)
    )
    if steps == 0 or batch == 0:
        return z, mu, logvar, hidden, prior_hidden
    bias = bias_out.contiguous()
    prior_bias = None if prior_bias_mu is None else prior_bias_mu.contiguous()
    weights = (*strided(weight_z, 2), *strided(weight_out, 2), bias)
    prior_part = (*strided(prior_context, 3), *strided(prior_weight_z, 2), *strided(prior_weight_mu, 2), prior_bias)
    kept = (hidden if need_backward else None, prior_hidden if need_backward and prior else None)
    with on(context):
        tiles = _tiles(weight_z, prior)
        constants = _constants(tiles, weight_z, activation)
        inputs = (*strided(context, 3), *strided(eps, 3))
        if tiles.form == "resident":
            kernels.posterior_forward_resident[(triton.cdiv(batch, tiles.rows),)](
                *inputs, *strided(z0, 2), *weights, *prior_part, lengths, z, mu, logvar, *kept, min_logvar, steps,
                batch, **constants, **options(tiles),
            )  # fmt: skip
            return z, mu, logvar, hidden, prior_hidden
        state = torch.empty((batch, latent), dtype=torch.float32, device=z0.device)
        state.copy_(z0)
        active = new(batch, width)
        prior_active = new(batch, width) if prior else None
        arguments = (*inputs, *weights, *prior_part, lengths, z, mu, logvar, *kept, state, active, prior_active)
        arguments += (min_logvar,)
        constants["DEPTH"] = tiles.depth
        launch_tiled(kernels.posterior_forward_tiled, arguments, constants, tiles, steps, z0, width, 2 * steps)
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
    new = partial(new_like, z)
    grad_context = new(steps, batch, width)
    grad_prior_context = new(steps, batch, width) if prior else None
    grad_out = new(steps, batch, 2 * latent)
    grad_z0 = new_like(z0, *z0.shape) if needs[1] else None
    grad_eps = new(steps, batch, latent) if needs[2] else None
    if steps == 0 and grad_z0 is not None:
        grad_z0.zero_()
    if steps > 0 and batch > 0:
        inputs = (
            *strided(grad_z, 3), *strided(grad_mu, 3), *strided(grad_logvar, 3), logvar, *strided(eps, 3),
            hidden, prior_hidden if prior else None, *strided(weight_z, 2), *strided(weight_out, 2),
            *strided(prior_weight_z, 2), *strided(prior_weight_mu, 2), lengths,
            grad_out, grad_eps, grad_context, grad_prior_context, grad_z0,
        )  # fmt: skip
        with on(z):
            tiles = _tiles(weight_z, prior)
            constants = _constants(tiles, weight_z, activation)
            if tiles.form == "resident":
                kernels.posterior_backward_resident[(triton.cdiv(batch, tiles.rows),)](
                    *inputs, min_logvar, steps, batch, **constants, **options(tiles)
                )
            else:
                kernel = kernels.posterior_backward_tiled
                constants["DEPTH"] = tiles.depth
                launch_tiled(kernel, (*inputs, min_logvar), constants, tiles, steps, z0, width, 2 * steps + 1)

    def of_weight_z(grads: Tensor) -> Tensor:
        return weight_gradients(grads, z, z0, lengths, False, new(width, latent))

    def of_weight_out(grads: Tensor, kept: Tensor) -> Tensor:
        return torch.mm(grads.flatten(0, 1).t(), activated(kept.flatten(0, 1), activation))

    return (
        grad_context if needs[0] else None,
        grad_z0,
        grad_eps,
        of_weight_z(grad_context) if needs[3] else None,
        of_weight_out(grad_out, hidden) if needs[4] else None,
        grad_out.sum((0, 1)) if needs[5] else None,
        grad_prior_context if needs[6] else None,
        of_weight_z(grad_prior_context) if needs[7] and grad_prior_context is not None else None,
        of_weight_out(grad_out[..., :latent], prior_hidden) if needs[8] else None,
        grad_out[..., :latent].sum((0, 1)) if needs[9] else None,
    )
