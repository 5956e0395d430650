"""interleaved_sequence on the GPU: csrc/cuda/interleaved_forward.cu and interleaved_backward.cu, and the gradients of
the weights as products after the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vssn_kernels import _cuda
from vssn_kernels.backend.common import (
    Grads,
    activated,
    allows_tf32,
    as_rows,
    as_steps,
    pointer,
    row_arguments,
    step_arguments,
    weight_gradients,
)
from vssn_kernels.backend.cuda.launch import STORAGE, launch_on
from vssn_kernels.reference.interleaved import states_before

VARIANTS = ("choice", "block", "cluster", "streamed")  # csrc/cuda/interleaved.h

# Which variant of the kernels runs. For the tests, which set it.
variant = "choice"


class Sizes(NamedTuple):
    """H, E, M and Z of a call."""

    state: int
    embed: int
    hidden: int
    latent: int


class Plan(NamedTuple):
    """How the kernels are laid out for a size on the current device."""

    variant: str
    cluster: int  # blocks that share a batch tile
    warps: int
    tiles: int  # of weights, in a block
    kept: int  # of these in shared memory
    shared_bytes: int  # of a block
    workspace_bytes: int
    at_once: int  # batch tiles, by the device's own answer
    step_cycles: float  # an estimate


def plan(
    dtype: torch.dtype, sizes: Sizes, backward: bool, tf32: bool = False, batch: int = 8, with_resets: bool = False
) -> Plan:
    """The layout for B = batch."""
    return Plan(**_cuda.interleaved_plan(**_layout(dtype, tf32, batch, sizes, with_resets), backward=backward))


def _layout(dtype: torch.dtype, tf32: bool, batch: int, sizes: Sizes, with_resets: bool) -> dict[str, object]:
    return {
        "storage": STORAGE[dtype],
        "tf32": tf32,
        "variant": variant,
        "B": batch,
        "H": sizes.state,
        "E": sizes.embed,
        "M": sizes.hidden,
        "Z": sizes.latent,
        "with_resets": with_resets,
    }


def _workspace(like: Tensor, layout: dict[str, object], backward: bool) -> Tensor | None:
    size = _cuda.interleaved_workspace(**layout, backward=backward)
    return torch.empty(size, dtype=torch.uint8, device=like.device) if size else None


def _state_arguments(state: Tensor | None) -> tuple[int, int, bool]:
    """(address, stride of the rows, whether it is float32) of what `as_rows` gave."""
    return (*row_arguments(state), state is not None and state.dtype is torch.float32)


def _words(resets: Tensor | None) -> Tensor | None:
    """The kernels read no single bytes."""
    return None if resets is None else resets.to(torch.int32, memory_format=torch.contiguous_format)


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
    """(h [T, B, H], z, mu, logvar [T, B, Z], gates [T, B, 4H]: r, u, n and W_hh[n] h + b[n] of each unit, embed
    [T, B, E] and hidden [T, B, M]: after their activations, for "silu" before it; the last three empty where not
    needed)"""
    steps, batch, width = context.shape
    sizes = Sizes(h0.shape[1], embed_context.shape[2], width, z0.shape[1])
    h, z, mu, logvar = (
        context.new_empty(steps, batch, units) for units in (sizes.state, sizes.latent, sizes.latent, sizes.latent)
    )
    gates, embed, hidden = (
        context.new_empty((steps, batch, units) if need_backward else 0)
        for units in (4 * sizes.state, sizes.embed, width)
    )
    if steps == 0 or batch == 0:
        return h, z, mu, logvar, gates, embed, hidden
    given = {"gates_x": gates_x, "embed_context": embed_context, "context": context, "eps": eps}
    sequences = {name: as_steps(tensor) for name, tensor in given.items()}
    states = {"h0": h0, "z0": z0, "reset_h": reset_h, "reset_z": reset_z}
    states_ = {name: as_rows(tensor) for name, tensor in states.items()}
    weights = {"weight_embed": weight_embed, "weight_zh": weight_zh, "weight_hh": weight_hh}
    weights |= {"weight_h": weight_h, "weight_out": weight_out}
    weights_ = {name: as_rows(tensor) for name, tensor in weights.items()}
    biases, words = (bias_hh.contiguous(), bias_out.contiguous()), _words(resets)
    tf32 = context.dtype is torch.float32 and allows_tf32()
    layout = _layout(context.dtype, tf32, batch, sizes, resets is not None)
    with launch_on(context) as stream:
        workspace = _workspace(context, layout, False)
        _cuda.interleaved_forward(
            **layout,
            steps=steps,
            embed_activation=embed_activation,
            activation=activation,
            scale=scale,
            min_logvar=min_logvar,
            min_std=min_std,
            lengths=pointer(lengths),
            resets=pointer(words),
            **{name: _state_arguments(tensor) for name, tensor in states_.items()},
            **{name: step_arguments(tensor) for name, tensor in sequences.items()},
            **{name: row_arguments(tensor) for name, tensor in weights_.items()},
            workspace=pointer(workspace),
            stream=stream,
            bias_hh=biases[0].data_ptr(),
            bias_out=biases[1].data_ptr(),
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
    steps, batch, _ = h.shape
    sizes = Sizes(h.shape[2], embed.shape[2], hidden.shape[2], z.shape[2])
    size = sizes.state
    grad_gates_x, grad_a, grad_embed_context, grad_context, grad_out = (
        h.new_empty(steps, batch, units) for units in (3 * size, size, sizes.embed, sizes.hidden, 2 * sizes.latent)
    )
    # Where no states were given for the resets, theirs are the first ones' gradients.
    wanted: dict[str, tuple[Tensor | None, bool]] = {
        "grad_h0": (h0, needs[3]),
        "grad_z0": (z0, needs[4]),
        "grad_eps": (eps, needs[5]),
        "grad_reset_h": (reset_h, needs[13]),
        "grad_reset_z": (reset_z, needs[14]),
    }
    others = {
        name: torch.empty(like.shape, dtype=like.dtype, device=like.device) if need and like is not None else None
        for name, (like, need) in wanted.items()
    }
    if batch > 0:
        grads = {"grad_h": grad_h, "grad_z": grad_z, "grad_mu": grad_mu, "grad_logvar": grad_logvar, "eps": eps}
        sequences = {name: as_steps(tensor) for name, tensor in grads.items()}
        states = {"h0": h0, "z0": z0, "reset_h": reset_h, "reset_z": reset_z}
        states_ = {name: as_rows(tensor) for name, tensor in states.items()}
        weights = {"weight_embed": weight_embed, "weight_zh": weight_zh, "weight_hh": weight_hh}
        weights |= {"weight_h": weight_h, "weight_out": weight_out}
        weights_ = {name: as_rows(tensor) for name, tensor in weights.items()}
        words = _words(resets)
        tf32 = h.dtype is torch.float32 and allows_tf32()
        layout = _layout(h.dtype, tf32, batch, sizes, resets is not None)
        with launch_on(h) as stream:
            workspace = _workspace(h, layout, True)
            _cuda.interleaved_backward(
                **layout,
                steps=steps,
                embed_activation=embed_activation,
                activation=activation,
                scale=scale,
                min_logvar=min_logvar,
                min_std=min_std,
                lengths=pointer(lengths),
                resets=pointer(words),
                **{name: _state_arguments(tensor) for name, tensor in states_.items()},
                **{name: step_arguments(tensor) for name, tensor in sequences.items()},
                **{name: row_arguments(tensor) for name, tensor in weights_.items()},
                workspace=pointer(workspace),
                stream=stream,
                h=h.data_ptr(),
                logvar=logvar.data_ptr(),
                gates=gates.data_ptr(),
                embed=embed.data_ptr(),
                hidden=hidden.data_ptr(),
                grad_gates_x=grad_gates_x.data_ptr(),
                grad_a=grad_a.data_ptr(),
                grad_embed_context=grad_embed_context.data_ptr(),
                grad_context=grad_context.data_ptr(),
                grad_out=grad_out.data_ptr(),
                **{name: pointer(tensor) for name, tensor in others.items()},
            )

    def recurrent(grads: Tensor, after: Tensor, first: Tensor, anew: Tensor | None, out: Tensor) -> Tensor:
        """Of a weight that meets the state before each step."""
        if resets is None:
            return weight_gradients(grads, after, first, lengths, False, out)
        before = states_before(after, first, anew, resets, lengths).to(grads.dtype)
        return torch.mm(grads.flatten(0, 1).t(), before.flatten(0, 1), out=out)

    def product(grads: Tensor, inputs: Tensor) -> Tensor:
        return torch.mm(grads.flatten(0, 1).t(), inputs.flatten(0, 1))

    grad_weight_embed = grad_weight_zh = grad_weight_hh = grad_bias_hh = None
    grad_weight_h = grad_weight_out = grad_bias_out = None
    gates_of = ((grad_gates_x[..., : 2 * size], slice(2 * size)), (grad_a, slice(2 * size, None)))
    if needs[6]:
        grad_weight_embed = recurrent(grad_embed_context, z, z0, reset_z, torch.empty_like(weight_embed))
    if needs[7]:
        grad_weight_zh = product(grad_gates_x, activated(embed, embed_activation))
    if needs[8]:
        grad_weight_hh = h.new_empty(3 * size, size)
        for grad, part in gates_of:
            recurrent(grad, h, h0, reset_h, grad_weight_hh[part])
    if needs[9]:
        grad_bias_hh = h.new_empty(3 * size)
        for grad, part in gates_of:
            torch.sum(grad, (0, 1), out=grad_bias_hh[part])
    if needs[10]:
        grad_weight_h = product(grad_context, h)
    if needs[11]:
        grad_weight_out = product(grad_out, activated(hidden, activation))
    if needs[12]:
        grad_bias_out = grad_out.sum((0, 1))
    return (
        grad_gates_x if needs[0] else None,
        grad_embed_context if needs[1] else None,
        grad_context if needs[2] else None,
        others["grad_h0"],
        others["grad_z0"],
        others["grad_eps"],
        grad_weight_embed,
        grad_weight_zh,
        grad_weight_hh,
        grad_bias_hh,
        grad_weight_h,
        grad_weight_out,
        grad_bias_out,
        others["grad_reset_h"],
        others["grad_reset_z"],
    )
