"""The `triton` backend: the kernels of triton_kernels/, on GPUs, or on CPU tensors in Triton's interpreter.

Tensors arrive checked (shape, dtype, device); any strides are passed on. Every function returns freshly allocated
tensors, written in full. Nothing synchronises: lengths outside [0, T] count as the nearer end in the kernels.

A recurrence is one launch where its kernel is resident or alone (configurations.py), and where several programs share
a batch tile and the device has cooperative launches: then as many batch tiles go into one launch as the device runs at
once. Without cooperative launches (Triton before 3.3, devices other than CUDA's and AMD's, the interpreter) shared
programs wait for each other at the end of a launch: one for each step of the GRU, two for each of the posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from vssn_kernels.backend.common import Grads, allows_tf32, weight_gradients
from vssn_kernels.backend.triton_kernels import gaussian, gru, posterior
from vssn_kernels.backend.triton_kernels.configurations import (
    Tiles,
    gaussian_tiles,
    gru_tiles,
    posterior_tiles,
)


class Device(NamedTuple):
    """What the choice of a kernel asks of a device."""

    processors: int  # multiprocessors or compute units
    shared_memory: int  # bytes that one program can have
    cooperative: bool  # launches programs that may wait for each other
    tf32: bool  # has matrix cores that take tf32
    float32: bool  # has matrix cores that take float32


FUSED = {"enable_fp_fusion": True}  # multiply-adds; Triton's default depends on its version
# Large tiles: what it interprets costs by the operation, not by the element.
INTERPRETER = Device(processors=8, shared_memory=232448, cooperative=False, tf32=False, float32=True)


def info() -> str:
    """Triton's version and where its kernels run, for bug reports."""
    interpreted = gru.gru_forward_resident.interpreted
    return f"Triton {triton.__version__}, {'interpreter' if interpreted else 'compiled'}"


# ---- Devices and launches --------------------------------------------------------------------------------


@cache
def _gpu(index: int, kind: str) -> Device:
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    processors, shared_memory = properties["multiprocessor_count"], properties["max_shared_mem"]
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    cooperative = kind == "cuda" and version >= (3, 3) and bool(properties.get("cooperativeLaunch", True))
    if kind == "cuda" and torch.version.hip:
        chip = torch.cuda.get_device_properties(index).gcnArchName
        return Device(processors, shared_memory, cooperative, chip.startswith("gfx942"), chip.startswith("gfx9"))
    return Device(processors, shared_memory, cooperative, tf32=kind == "cuda", float32=False)


def device_of(tensor: Tensor) -> Device:
    """The device of a tensor; its GPU must be the current one."""
    return INTERPRETER if tensor.device.type == "cpu" else _gpu(tensor.device.index, tensor.device.type)


def _on(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device and its current stream: inside the block the tensor's."""
    return (
        nullcontext() if tensor.device.type == "cpu" else torch.get_device_module(tensor.device).device(tensor.device)
    )


def _precision(tensor: Tensor) -> str:
    """Of products: PyTorch's setting for float32, where the device has tf32."""
    if tensor.dtype != torch.float32 or not device_of(tensor).tf32:
        return "ieee"
    return "tf32" if allows_tf32() else "ieee"


def _on_matrix_cores(tensor: Tensor) -> bool:
    """Whether products run there: float32 in full precision does on few devices."""
    return tensor.dtype != torch.float32 or _precision(tensor) == "tf32" or device_of(tensor).float32


def _emulated(tensor: Tensor) -> bool:
    """Whether the interpreter has to be helped with bfloat16 (cell.narrow)."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16


def _products(tensor: Tensor) -> dict[str, Any]:
    return {"PRECISION": _precision(tensor), "EMULATED": _emulated(tensor)}


def _options(tiles: Tiles) -> dict[str, int]:
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, **FUSED}


def _strided(tensor: Tensor | None, dims: int) -> tuple[Any, ...]:
    """A tensor and its strides, as a kernel takes them."""
    return (None, *(0,) * dims) if tensor is None else (tensor, *tensor.stride())


def _launch_tiled(
    kernel: Any, arguments: Sequence[Any], constants: dict[str, Any], tiles: Tiles, steps: int, like: Tensor,
    width: int, phases: int,
) -> None:  # fmt: skip
    """Launches a tiled kernel over `phases` phases; `like` [B, ·] gives batch and device, `width` the widest loop."""
    batch, device = like.shape[0], device_of(like)
    groups = triton.cdiv(batch, tiles.rows)
    counters = torch.zeros(groups, dtype=torch.int32, device=like.device)

    def launch(first: int, count: int, slices: int, begin: int, end: int, sync: str) -> None:
        more = {"launch_cooperative_grid": True} if sync == "grid" else {}
        kernel[(count * slices,)](
            *arguments, counters, steps, batch, first, slices, begin, end, SYNC=sync, **constants, **_options(tiles),
            **more,
        )  # fmt: skip

    slices = min(triton.cdiv(width, tiles.units), device.processors)
    if tiles.form == "alone" or slices == 1:
        launch(0, groups, 1, 0, phases, "block")
    elif device.cooperative:
        at_once = device.processors // slices
        for first in range(0, groups, at_once):
            launch(first, min(at_once, groups - first), slices, 0, phases, "grid")
    else:
        for phase in range(phases):
            launch(0, groups, slices, phase, phase + 1, "launch")


def _new(like: Tensor, *shape: int) -> Tensor:
    """Unwritten memory of that dtype and device."""
    return torch.empty(shape, dtype=like.dtype, device=like.device)


# ---- GRU -------------------------------------------------------------------------------------------------


def _gru_tiles(weight_hh: Tensor) -> Tiles:
    shared_memory = device_of(weight_hh).shared_memory
    return gru_tiles(weight_hh.shape[1], weight_hh.element_size(), _on_matrix_cores(weight_hh), shared_memory)


def gru_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, B, H], h_n [B, H], gates [T, B, 4H]: r, z, n and W_hn h + b_n; empty where not needed)"""
    steps, batch, _ = gates_x.shape
    hidden = h0.shape[1]
    new = partial(_new, gates_x)
    output = new(steps, batch, hidden)
    h_n = _new(h0, batch, hidden)
    gates = new(steps, batch, 4 * hidden) if need_backward else new(0)
    if batch == 0:
        return output, h_n, gates
    kept = gates if need_backward else None
    with _on(gates_x):
        tiles = _gru_tiles(weight_hh)
        constants = {"H": hidden, "REVERSE": reverse, "ROWS": tiles.rows, "UNITS": tiles.units, **_products(gates_x)}
        weight = (*_strided(weight_hh, 2), *_strided(bias_hh, 1))
        if tiles.form == "resident":
            gru.gru_forward_resident[(triton.cdiv(batch, tiles.rows),)](
                *_strided(gates_x, 3), *_strided(h0, 2), *weight, lengths, output, h_n, kept, steps, batch,
                **constants, **_options(tiles),
            )  # fmt: skip
            return output, h_n, gates
        states = torch.empty((2, batch, hidden), dtype=torch.float32, device=h0.device)
        states[0].copy_(h0)
        arguments = (*_strided(gates_x, 3), *weight, lengths, output, kept, states)
        constants["DEPTH"] = tiles.depth
        _launch_tiled(gru.gru_forward_tiled, arguments, constants, tiles, steps, h0, hidden, steps)
        h_n.copy_(states[steps % 2])
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
    new = partial(_new, output)
    grad_gates_x = new(steps, batch, 3 * hidden)
    grad_a = new(steps, batch, hidden)
    grad_h0 = _new(h0, *h0.shape) if need_h0 else None
    if batch > 0:
        with _on(output):
            _gru_backward(
                grad_output, grad_h_n, output, gates, h0, weight_hh, lengths, reverse, grad_gates_x, grad_a, grad_h0
            )
    grad_weight = grad_bias = None
    if need_weight:
        grad_weight = new(3 * hidden, hidden)
        for grad, rows in ((grad_gates_x[..., : 2 * hidden], slice(2 * hidden)), (grad_a, slice(2 * hidden, None))):
            weight_gradients(grad, output, h0, lengths, reverse, grad_weight[rows])
    if need_bias:
        grad_bias = torch.cat((grad_gates_x[..., : 2 * hidden].sum((0, 1)), grad_a.sum((0, 1))))
    return grad_gates_x if need_gates_x else None, grad_h0, grad_weight, grad_bias


def _gru_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    grad_gates_x: Tensor,
    grad_a: Tensor,
    grad_h0: Tensor | None,
) -> None:
    """Writes grad_gates_x, grad_a and grad_h0 (None: not wanted)."""
    steps, batch, hidden = output.shape
    tiles = _gru_tiles(weight_hh)
    constants = {"H": hidden, "REVERSE": reverse, "ROWS": tiles.rows, "UNITS": tiles.units, **_products(output)}
    inputs = (output, gates, *_strided(h0, 2), *_strided(weight_hh, 2), lengths, grad_gates_x, grad_a)
    if tiles.form == "resident":
        gru.gru_backward_resident[(triton.cdiv(batch, tiles.rows),)](
            *_strided(grad_output, 3), *_strided(grad_h_n, 2), *inputs, grad_h0, steps, batch,
            **constants, **_options(tiles),
        )  # fmt: skip
        return
    carry = torch.empty((2, batch, hidden), dtype=torch.float32, device=h0.device)
    if grad_h_n is None:
        carry[0].zero_()
    else:
        carry[0].copy_(grad_h_n)
    arguments = (*_strided(grad_output, 3), *inputs, carry)
    constants["DEPTH"] = tiles.depth
    _launch_tiled(gru.gru_backward_tiled, arguments, constants, tiles, steps, h0, hidden, steps + 1)
    if grad_h0 is not None:
        grad_h0.copy_(carry[(steps + 1) % 2])


# ---- Posterior -------------------------------------------------------------------------------------------


def _posterior_tiles(weight_z: Tensor, prior: bool) -> Tiles:
    width, latent = weight_z.shape
    shared_memory = device_of(weight_z).shared_memory
    return posterior_tiles(width, latent, prior, weight_z.element_size(), _on_matrix_cores(weight_z), shared_memory)


def _posterior_constants(tiles: Tiles, weight_z: Tensor, activation: str) -> dict[str, Any]:
    width, latent = weight_z.shape
    sizes = {"M": width, "Z": latent, "ROWS": tiles.rows, "HIDDEN": tiles.units, "LATENT": tiles.latents}
    return {**sizes, "ACTIVATION": activation, **_products(weight_z)}


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
    new = partial(_new, context)
    z, mu, logvar = (new(steps, batch, latent) for _ in range(3))
    hidden, prior_hidden = (
        new(steps, batch, width) if keep else new(0) for keep in (need_backward, need_backward and prior)
    )
    if steps == 0 or batch == 0:
        return z, mu, logvar, hidden, prior_hidden
    bias = bias_out.contiguous()
    prior_bias = None if prior_bias_mu is None else prior_bias_mu.contiguous()
    weights = (*_strided(weight_z, 2), *_strided(weight_out, 2), bias)
    prior_part = (*_strided(prior_context, 3), *_strided(prior_weight_z, 2), *_strided(prior_weight_mu, 2), prior_bias)
    kept = (hidden if need_backward else None, prior_hidden if need_backward and prior else None)
    with _on(context):
        tiles = _posterior_tiles(weight_z, prior)
        constants = _posterior_constants(tiles, weight_z, activation)
        inputs = (*_strided(context, 3), *_strided(eps, 3))
        if tiles.form == "resident":
            posterior.posterior_forward_resident[(triton.cdiv(batch, tiles.rows),)](
                *inputs, *_strided(z0, 2), *weights, *prior_part, lengths, z, mu, logvar, *kept, min_logvar, steps,
                batch, **constants, **_options(tiles),
            )  # fmt: skip
            return z, mu, logvar, hidden, prior_hidden
        state = torch.empty((batch, latent), dtype=torch.float32, device=z0.device)
        state.copy_(z0)
        active = new(batch, width)
        prior_active = new(batch, width) if prior else None
        arguments = (*inputs, *weights, *prior_part, lengths, z, mu, logvar, *kept, state, active, prior_active)
        arguments += (min_logvar,)
        constants["DEPTH"] = tiles.depth
        _launch_tiled(posterior.posterior_forward_tiled, arguments, constants, tiles, steps, z0, width, 2 * steps)
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
    new = partial(_new, z)
    grad_context = new(steps, batch, width)
    grad_prior_context = new(steps, batch, width) if prior else None
    grad_out = new(steps, batch, 2 * latent)
    grad_z0 = _new(z0, *z0.shape) if needs[1] else None
    grad_eps = new(steps, batch, latent) if needs[2] else None
    if steps == 0 and grad_z0 is not None:
        grad_z0.zero_()
    if steps > 0 and batch > 0:
        inputs = (
            *_strided(grad_z, 3), *_strided(grad_mu, 3), *_strided(grad_logvar, 3), logvar, *_strided(eps, 3),
            hidden, prior_hidden if prior else None, *_strided(weight_z, 2), *_strided(weight_out, 2),
            *_strided(prior_weight_z, 2), *_strided(prior_weight_mu, 2), lengths,
            grad_out, grad_eps, grad_context, grad_prior_context, grad_z0,
        )  # fmt: skip
        with _on(z):
            tiles = _posterior_tiles(weight_z, prior)
            constants = _posterior_constants(tiles, weight_z, activation)
            if tiles.form == "resident":
                posterior.posterior_backward_resident[(triton.cdiv(batch, tiles.rows),)](
                    *inputs, min_logvar, steps, batch, **constants, **_options(tiles)
                )
            else:
                kernel = posterior.posterior_backward_tiled
                constants["DEPTH"] = tiles.depth
                _launch_tiled(kernel, (*inputs, min_logvar), constants, tiles, steps, z0, width, 2 * steps + 1)

    def of_weight_z(grads: Tensor) -> Tensor:
        return weight_gradients(grads, z, z0, None, False, new(width, latent))

    def of_weight_out(grads: Tensor, kept: Tensor) -> Tensor:
        rows = kept.flatten(0, 1)
        return torch.mm(grads.flatten(0, 1).t(), F.silu(rows) if activation == "silu" else rows)

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


# ---- Gaussians -------------------------------------------------------------------------------------------


def _rows(tensor: Tensor | None) -> Tensor | None:
    """[R, Z]: a view where strides allow it, else a copy."""
    if tensor is None:
        return None
    width = tensor.shape[-1]
    return tensor.reshape(tensor.shape[:-1].numel(), width)


def gaussian_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """(z [..., Z], None without eps; kl [...])"""
    z = None if eps is None else _new(mu, *mu.shape)
    kl = _new(mu, *mu.shape[:-1])
    count, latent = kl.numel(), mu.shape[-1]
    if count:
        rows, columns = gaussian_tiles(latent)
        inputs = [part for tensor in (mu, logvar, eps, prior_mu, prior_logvar) for part in _strided(_rows(tensor), 2)]
        with _on(mu):
            gaussian.gaussian_forward[(triton.cdiv(count, rows),)](
                *inputs, z, kl, count, Z=latent, ROWS=rows, COLUMNS=columns, EMULATED=_emulated(mu), **FUSED
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
    grads = tuple(_new(mu, *mu.shape) if need else None for need in needs)
    count, latent = mu.shape[:-1].numel(), mu.shape[-1]
    if mu.numel():
        rows, columns = gaussian_tiles(latent)
        tensors = (mu, logvar, eps, prior_mu, prior_logvar, grad_z)
        inputs = [part for tensor in tensors for part in _strided(_rows(tensor), 2)]
        weight = _strided(None if grad_kl is None else grad_kl.reshape(-1), 1)
        with _on(mu):
            gaussian.gaussian_backward[(triton.cdiv(count, rows), triton.cdiv(latent, columns))](
                *inputs, *weight, *grads, count, Z=latent, ROWS=rows, COLUMNS=columns, EMULATED=_emulated(mu), **FUSED
            )
    return grads
