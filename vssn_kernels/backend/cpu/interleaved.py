"""interleaved_sequence on the CPU: csrc/cpu/interleaved.cpp.

bfloat16 is computed in float32: all tensors of a call are widened before it, and its results rounded after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, activated, as_rows, as_steps, pointer, row_arguments, step_arguments
from vssn_kernels.backend.cpu.call import empty_like, storage, stored, widened
from vssn_kernels.reference.interleaved import states_before


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
    """(h [T, B, H], z, mu, logvar [T, B, Z], gates [T, B, 4H], its order the kernels' own, embed [T, B, E] and hidden
    [T, B, M]: after their activations, for "silu" before it; the last three empty where not needed)"""
    if context.dtype is torch.bfloat16:
        forward: Callable[..., tuple[Tensor, ...]] = interleaved_forward
        inputs = (gates_x, embed_context, context, h0, z0, eps, weight_embed, weight_zh, weight_hh, bias_hh, weight_h)
        others = (weight_out, bias_out, reset_h, reset_z)
        options = (resets, lengths, embed_activation, activation, scale, min_logvar, min_std, need_backward)
        results = forward(*map(widened, inputs), *map(widened, others), *options)
        h, z, mu, logvar, gates, embed, hidden = (stored(result, torch.bfloat16) for result in results)
        return h, z, mu, logvar, gates, embed, hidden
    (steps, batch, width), size, embed_size, latent = context.shape, h0.shape[1], embed_context.shape[2], z0.shape[1]
    h, z, mu, logvar = (h0.new_empty(steps, batch, units) for units in (size, latent, latent, latent))
    gates, embed, hidden = (
        h0.new_empty((steps, batch, units) if need_backward else 0) for units in (4 * size, embed_size, width)
    )
    given = {"gates_x": gates_x, "embed_context": embed_context, "context": context, "eps": eps}
    sequences = {name: as_steps(tensor) for name, tensor in given.items()}
    rows = {"h0": h0, "z0": z0, "weight_embed": weight_embed, "weight_zh": weight_zh, "weight_hh": weight_hh}
    rows |= {"weight_h": weight_h, "weight_out": weight_out}
    rows |= {"reset_h": h0 if reset_h is None else reset_h, "reset_z": z0 if reset_z is None else reset_z}
    rows = {name: as_rows(tensor) for name, tensor in rows.items()}
    biases = bias_hh.contiguous(), bias_out.contiguous()
    resets_ = None if resets is None else resets.contiguous()
    _cpu.interleaved_forward(
        storage=storage(h0),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        H=size,
        E=embed_size,
        M=width,
        Z=latent,
        embed_activation=embed_activation,
        activation=activation,
        scale=scale,
        min_logvar=min_logvar,
        min_std=min_std,
        lengths=pointer(lengths),
        resets=pointer(resets_),
        **{name: step_arguments(tensor) for name, tensor in sequences.items()},
        **{name: row_arguments(tensor) for name, tensor in rows.items()},
        bias_hh=pointer(biases[0]),
        bias_out=pointer(biases[1]),
        h=h.data_ptr(),
        z=z.data_ptr(),
        mu=mu.data_ptr(),
        logvar=logvar.data_ptr(),
        gates=gates.data_ptr() if need_backward else 0,
        embed=embed.data_ptr() if need_backward else 0,
        hidden=hidden.data_ptr() if need_backward else 0,
    )
    return h, z, mu, logvar, gates, embed, hidden


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
    if h.dtype is torch.bfloat16:
        backward: Callable[..., Grads] = interleaved_backward
        saved = (grad_h, grad_z, grad_mu, grad_logvar, h, z, logvar, gates, embed, hidden, h0, z0, eps, weight_embed)
        others = (weight_zh, weight_hh, weight_h, weight_out, reset_h, reset_z)
        options = (resets, lengths, embed_activation, activation, scale, min_logvar, min_std, needs)
        sums = backward(*map(widened, saved), *map(widened, others), *options)
        states = {3: h0, 4: z0, 13: reset_h, 14: reset_z}  # may be float32, and then are their gradients
        dtypes = (h.dtype if (state := states.get(i)) is None else state.dtype for i in range(len(sums)))
        return tuple(stored(grad, dtype) for grad, dtype in zip(sums, dtypes, strict=True))
    (steps, batch, size), latent, embed_size, width = h.shape, z.shape[2], embed.shape[2], hidden.shape[2]
    grad_gates_x, grad_a, grad_embed_context, grad_context, grad_out = (
        h.new_empty(steps, batch, units) for units in (3 * size, size, embed_size, width, 2 * latent)
    )
    grad_h0, grad_z0, grad_eps = empty_like(h0, needs[3]), empty_like(z0, needs[4]), empty_like(eps, needs[5])
    with_resets = resets is not None
    grad_reset_h, grad_reset_z = empty_like(h0, with_resets), empty_like(z0, with_resets)
    shapes = {
        "weight_embed": (embed_size, latent),
        "weight_zh": (3 * size, embed_size),
        "weight_hh": (3 * size, size),
        "bias_hh": (3 * size,),
        "weight_h": (width, size),
        "weight_out": (2 * latent, width),
        "bias_out": (2 * latent,),
    }
    weights = {
        name: h.new_empty(shape) if need else None
        for (name, shape), need in zip(shapes.items(), needs[6:], strict=False)
    }
    grads = {"grad_h": grad_h, "grad_z": grad_z, "grad_mu": grad_mu, "grad_logvar": grad_logvar, "eps": eps}
    sequences = {name: as_steps(tensor) for name, tensor in grads.items()}
    rows = {
        "before_h": states_before(h, h0, reset_h, resets, lengths),
        "before_z": states_before(z, z0, reset_z, resets, lengths),
        "embed_active": activated(embed, embed_activation),
        "active": activated(hidden, activation),
        "weight_embed": weight_embed,
        "weight_zh": weight_zh,
        "weight_hh": weight_hh,
        "weight_h": weight_h,
        "weight_out": weight_out,
    }
    rows = {name: as_rows(tensor) for name, tensor in rows.items()}
    resets_ = None if resets is None else resets.contiguous()
    _cpu.interleaved_backward(
        storage=storage(h),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        H=size,
        E=embed_size,
        M=width,
        Z=latent,
        embed_activation=embed_activation,
        activation=activation,
        scale=scale,
        min_logvar=min_logvar,
        min_std=min_std,
        lengths=pointer(lengths),
        resets=pointer(resets_),
        **{name: step_arguments(tensor) for name, tensor in sequences.items()},
        **{name: row_arguments(tensor) for name, tensor in rows.items()},
        h=pointer(h),
        logvar=pointer(logvar),
        gates=pointer(gates),
        embed=pointer(embed),
        hidden=pointer(hidden),
        grad_gates_x=grad_gates_x.data_ptr(),
        grad_a=grad_a.data_ptr(),
        grad_embed_context=grad_embed_context.data_ptr(),
        grad_context=grad_context.data_ptr(),
        grad_out=grad_out.data_ptr(),
        grad_eps=pointer(grad_eps),
        grad_h0=pointer(grad_h0),
        grad_z0=pointer(grad_z0),
        grad_reset_h=pointer(grad_reset_h),
        grad_reset_z=pointer(grad_reset_z),
        **{f"grad_{name}": pointer(tensor) for name, tensor in weights.items()},
    )
    # Where no states were given for the resets, they go on from the first ones.
    for first, anew, given in ((grad_h0, grad_reset_h, reset_h), (grad_z0, grad_reset_z, reset_z)):
        if first is not None and anew is not None and given is None:
            first += anew
    return (
        grad_gates_x if needs[0] else None,
        grad_embed_context if needs[1] else None,
        grad_context if needs[2] else None,
        grad_h0,
        grad_z0,
        grad_eps,
        *weights.values(),
        grad_reset_h if needs[13] else None,
        grad_reset_z if needs[14] else None,
    )
