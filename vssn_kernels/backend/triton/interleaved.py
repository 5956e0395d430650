"""interleaved_sequence in Triton, and the weights' gradients as products after the loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from vssn_kernels.backend.common import Grads, activated, weight_gradients
from vssn_kernels.backend.triton.configurations import Tiles, interleaved_tiles, tile
from vssn_kernels.backend.triton.kernels import interleaved as kernels
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
from vssn_kernels.reference.interleaved import states_before


def _cut(
    weight_zh: Tensor, weight_out: Tensor, embed_activation: str, activation: str, scale: str
) -> tuple[Tiles, dict[str, Any]]:
    """The tiles and the constants of both directions."""
    (gates, embed), (outputs, width) = weight_zh.shape, weight_out.shape
    size, latent = gates // 3, outputs // 2
    tiles = interleaved_tiles(
        size, embed, width, latent, weight_zh.element_size(), on_matrix_cores(weight_zh), shared_memory(weight_zh)
    )
    constants = {"H": size, "E": embed, "M": width, "Z": latent, "ROWS": tiles.rows, **products(weight_zh)}
    constants |= {"EMBED_ACTIVATION": embed_activation, "ACTIVATION": activation, "SCALE": scale}
    constants |= {"UNITS": tiles.units, "LATENT": tiles.latents}
    if tiles.form == "resident":
        return tiles, constants | {"EMBED": tile(embed), "HIDDEN": tile(width)}
    return tiles, constants | {"DEPTH": tiles.depth}


def _bytes(resets: Tensor | None) -> Tensor | None:
    """As the kernels read them."""
    return None if resets is None else resets.contiguous().view(torch.uint8)


def _floor(scale: str, min_logvar: float, min_std: float) -> float:
    return min_std if scale == "softplus" else min_logvar


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
    [T, B, M]: after their activations, for "silu" before it; the last three empty where not needed)"""
    (steps, batch, width), size, embed_size, latent = context.shape, h0.shape[1], embed_context.shape[2], z0.shape[1]
    new = partial(new_like, context)
    h, z, mu, logvar = (new(steps, batch, units) for units in (size, latent, latent, latent))
    gates, embed, hidden = (
        new(steps, batch, units) if need_backward else new(0) for units in (4 * size, embed_size, width)
    )
    outputs = h, z, mu, logvar, gates, embed, hidden
    if steps == 0 or batch == 0:
        return outputs
    h_anew, z_anew = h0 if reset_h is None else reset_h, z0 if reset_z is None else reset_z
    weights = [part for w in (weight_embed, weight_zh, weight_hh, weight_h, weight_out) for part in strided(w, 2)]
    kept = (gates, embed, hidden) if need_backward else (None, None, None)
    inputs = [part for sequence in (gates_x, embed_context, context, eps) for part in strided(sequence, 3)]
    rest = (
        *(*weights, bias_hh.contiguous(), bias_out.contiguous(), *strided(h_anew, 2), *strided(z_anew, 2)),
        *(_bytes(resets), lengths, h, z, mu, logvar, *kept),
    )
    floor = _floor(scale, min_logvar, min_std)
    with on(context):
        tiles, constants = _cut(weight_zh, weight_out, embed_activation, activation, scale)
        if tiles.form == "resident":
            kernels.interleaved_forward_resident[(triton.cdiv(batch, tiles.rows),)](
                *inputs, *strided(h0, 2), *strided(z0, 2), *rest, floor, steps, batch, **constants, **options(tiles)
            )
            return outputs
        states = torch.empty((2, batch, size), dtype=torch.float32, device=h0.device)
        latent_state = torch.empty((batch, latent), dtype=torch.float32, device=z0.device)
        states[0].copy_(h0 if resets is None else torch.where(resets[0, :, None], h_anew, h0))
        latent_state.copy_(z0 if resets is None else torch.where(resets[0, :, None], z_anew, z0))
        arguments = (*inputs, *rest, states, latent_state, new(batch, embed_size), new(batch, width), floor)
        widest = max(size, embed_size, width)
        launch_tiled(kernels.interleaved_forward_tiled, arguments, constants, tiles, steps, h0, widest, 4 * steps)
    return outputs


def interleaved_backward(
    grad_h: Tensor | None,
    grad_z: Tensor | None,
    grad_mu: Tensor | None,
    grad_logvar: Tensor | None,
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
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (gates_x, embed_context, context, h0, z0, eps, weight_embed, weight_zh, weight_hh, bias_hh,
    weight_h, weight_out, bias_out, reset_h, reset_z)."""
    (steps, batch, size), latent, embed_size, width = h.shape, z.shape[2], embed.shape[2], hidden.shape[2]
    new = partial(new_like, h)
    grad_gates_x, grad_a, grad_embed, grad_context, grad_out = (
        new(steps, batch, units) for units in (3 * size, size, embed_size, width, 2 * latent)
    )
    grad_eps = new(steps, batch, latent) if needs[5] else None
    zeros = partial(torch.zeros, dtype=torch.float32, device=h.device)
    first_h, first_z = zeros((batch, size)), zeros((batch, latent))
    anew_h, anew_z = (None, None) if resets is None else (zeros((batch, size)), zeros((batch, latent)))
    if steps > 0 and batch > 0:
        inputs = (
            *strided(grad_h, 3), *strided(grad_z, 3), *strided(grad_mu, 3), *strided(grad_logvar, 3),
            h, logvar, gates, embed, hidden, *strided(eps, 3), *strided(h0, 2),
            *strided(weight_embed, 2), *strided(weight_zh, 2), *strided(weight_hh, 2), *strided(weight_h, 2),
            *strided(weight_out, 2), *strided(h0 if reset_h is None else reset_h, 2), _bytes(resets), lengths,
            grad_gates_x, grad_a, grad_embed, grad_context, grad_out, grad_eps,
        )  # fmt: skip
        floor = _floor(scale, min_logvar, min_std)
        with on(h):
            tiles, constants = _cut(weight_zh, weight_out, embed_activation, activation, scale)
            if tiles.form == "resident":
                kernels.interleaved_backward_resident[(triton.cdiv(batch, tiles.rows),)](
                    *inputs, first_h, first_z, anew_h, anew_z, floor, steps, batch, **constants, **options(tiles)
                )
            else:
                # Of each two, one is read while the other is written.
                carry, last = zeros((2, batch, size)), (steps + 1) % 2
                first_h = carry[last]
                sums_h, sums_z = None, None
                if resets is not None:
                    sums_h, sums_z = zeros((2, batch, size)), zeros((2, batch, latent))
                    anew_h, anew_z = sums_h[last], sums_z[last]
                arguments = (*inputs, carry, sums_h, sums_z, first_z, floor)
                widest, phases = max(size, embed_size, width), 4 * steps + 1
                launch_tiled(kernels.interleaved_backward_tiled, arguments, constants, tiles, steps, h0, widest, phases)
    # Where no states were given for the resets, they go on from the first ones.
    if anew_h is not None and reset_h is None:
        first_h = first_h + anew_h
    if anew_z is not None and reset_z is None:
        first_z = first_z + anew_z

    states_h, states_z = (h, h0, reset_h), (z, z0, reset_z)

    def with_states(grads: Tensor, states: tuple[Tensor, Tensor, Tensor | None], out: Tensor) -> Tensor:
        """A weight's gradient that multiplies the states before each step."""
        after, first, anew = states
        if resets is None:
            return weight_gradients(grads, after, first, lengths, False, out)
        before = states_before(after, first, anew, resets, lengths).to(h.dtype)
        return torch.mm(grads.flatten(0, 1).t(), before.flatten(0, 1), out=out)

    def of_weight(grads: Tensor, rows: Tensor) -> Tensor:
        return torch.mm(grads.flatten(0, 1).t(), rows.flatten(0, 1))

    grad_weight_hh = grad_bias_hh = None
    if needs[8]:
        grad_weight_hh = new(3 * size, size)
        with_states(grad_gates_x[..., : 2 * size], states_h, grad_weight_hh[: 2 * size])
        with_states(grad_a, states_h, grad_weight_hh[2 * size :])
    if needs[9]:
        grad_bias_hh = torch.cat((grad_gates_x[..., : 2 * size].sum((0, 1)), grad_a.sum((0, 1))))
    return (
        grad_gates_x if needs[0] else None,
        grad_embed if needs[1] else None,
        grad_context if needs[2] else None,
        first_h.to(h0.dtype) if needs[3] else None,
        first_z.to(z0.dtype) if needs[4] else None,
        grad_eps,
        with_states(grad_embed, states_z, new(embed_size, latent)) if needs[6] else None,
        of_weight(grad_gates_x, activated(embed, embed_activation)) if needs[7] else None,
        grad_weight_hh,
        grad_bias_hh,
        of_weight(grad_context, h) if needs[10] else None,
        of_weight(grad_out, activated(hidden, activation)) if needs[11] else None,
        grad_out.sum((0, 1)) if needs[12] else None,
        anew_h.to(reset_h.dtype) if needs[13] and anew_h is not None and reset_h is not None else None,
        anew_z.to(reset_z.dtype) if needs[14] and anew_z is not None and reset_z is not None else None,
    )
