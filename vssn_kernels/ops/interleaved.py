"""interleaved_sequence: a GRU whose input takes the latent sampled at the step before, as one op."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.activations import MORE_ACTIVATIONS
from vssn_kernels.backend.table import choose, declare, implementation
from vssn_kernels.ops import flops, registration, saved_tensors
from vssn_kernels.ops.flops import Shape
from vssn_kernels.reference import interleaved as reference

_OP = "interleaved_sequence"
_NAMES = (
    *("gates_x", "embed_context", "context", "h0", "z0", "eps", "weight_embed", "weight_zh", "weight_hh", "bias_hh"),
    *("weight_h", "weight_out", "bias_out", "reset_h", "reset_z"),
)
_DIFFERENTIABLE = len(_NAMES)  # the leading arguments of the op; the last two may be None
_STATES = ("h0", "z0", "reset_h", "reset_z")
SCALES = ("logvar", "softplus")
declare(_OP, functions=("interleaved_forward", "interleaved_backward"), reference=reference)


def interleaved_sequence(
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
    *,
    embed_activation: str = "relu",
    activation: str = "tanh",
    scale: str = "logvar",
    min_logvar: float = -12.0,
    min_std: float = 0.1,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_z: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The recurrence of VRNN (Chung et al. 2015) and RSSM (Hafner et al. 2019): h_t takes z_{t-1}, z_t takes h_t::

        e_t = embed_activation(embed_context_t + z_{t-1} weight_embed^T)
        h_t = GRU(gates_x_t + e_t weight_zh^T, h_{t-1})                      gates and equations of torch.nn.GRU
        hidden = activation(context_t + h_t weight_h^T);  (mu, raw) = hidden weight_out^T + bias_out
        logvar = min_logvar + softplus(raw - min_logvar)                     scale="logvar"
        logvar = 2 log(softplus(raw) + min_std)                              scale="softplus"
        z_t = mu + exp(logvar / 2) eps_t

    Args:
        gates_x: [T, B, 3H] what does not depend on z, gate order r, z, n; an expanded tensor is fine.
        embed_context: [T, B, E] what the embedding of z_{t-1} takes beside it: an action, a bias.
        context: [T, B, M] x_t W_x^T + b.
        h0, z0: [B, H] and [B, Z]; float32 is taken beside half-precision inputs.
        eps: [T, B, Z] standard normal.
        weight_embed: [E, Z].
        weight_zh: [3H, E].
        weight_hh, bias_hh: [3H, H] and [3H].
        weight_h: [M, H].
        weight_out, bias_out: [2Z, M] and [2Z], rows: mean, then the raw scale.
        embed_activation, activation: "tanh", "relu", "leaky_relu" (slope 1/3), "silu", "elu" or "identity".
        scale: what the raw scale stands for.
        min_logvar: the floor of the log-variance, in nats, with scale="logvar".
        min_std: that of the standard deviation, with scale="softplus"; 0 or more.
        lengths: [B] int64 on the tensors' device, each in [0, T]; steps t >= lengths[b] are padding, never read.
        resets: [T, B] bool: before step t, reset_h [B, H] and reset_z [B, Z] replace h_{t-1} and z_{t-1}; no effect at
            padding.
        reset_h, reset_z: None: h0 and z0.
        backend: "reference", "cpu", "cuda" or "triton"; None: `use_backend`, VSSN_BACKEND, else the fastest.

    Returns:
        h [T, B, H], z, mu, logvar [T, B, Z] in the dtype of gates_x, zeros at padding. On "cpu" bfloat16 is computed in
        float32 and rounded once.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; or a backend that is not there.
        RuntimeError: where a gradient is differentiated again, on a backend other than "reference".
    """
    tensors: tuple[Tensor | None, ...] = (
        *(gates_x, embed_context, context, h0, z0, eps, weight_embed, weight_zh, weight_hh, bias_hh),
        *(weight_h, weight_out, bias_out, reset_h, reset_z),
    )
    named = {**dict(zip(_NAMES, tensors, strict=True)), "resets": resets, "lengths": lengths}
    may_be_none = ("reset_h", "reset_z", "resets", "lengths")
    arguments.require_tensors(
        _OP, **{name: tensor for name, tensor in named.items() if tensor is not None or name not in may_be_none}
    )
    arguments.require_floating(_OP, "gates_x", gates_x)
    _check_options(embed_activation, activation, scale, min_logvar, min_std)
    if registration.autocast_is_on(gates_x.device):
        dtype = registration.autocast_dtype(gates_x.device)
        casts = (registration.cast_state if name in _STATES else registration.cast for name in _NAMES)
        tensors = tuple(
            None if tensor is None else cast(tensor, dtype) for cast, tensor in zip(casts, tensors, strict=True)
        )
        gates_x = registration.cast(gates_x, dtype)
    chosen = choose(_OP, backend, gates_x.device, gates_x.dtype, "gates_x")
    h, z, mu, logvar, *_ = _op(
        *tensors, resets, lengths, embed_activation, activation, scale, float(min_logvar), float(min_std), False, chosen
    )
    return h, z, mu, logvar


def _check_options(embed_activation: object, activation: object, scale: object, min_logvar: Any, min_std: Any) -> None:
    arguments.require_choice(_OP, "embed_activation", embed_activation, MORE_ACTIVATIONS)
    arguments.require_choice(_OP, "activation", activation, MORE_ACTIVATIONS)
    arguments.require_choice(_OP, "scale", scale, SCALES)
    arguments.require_finite(_OP, "min_logvar", min_logvar)
    arguments.require_finite(_OP, "min_std", min_std)
    if min_std < 0:
        raise ValueError(f"{_OP}: min_std must be at least 0, got {min_std}")


def _check(*args: Any) -> None:
    inputs, (resets, lengths, *options) = args[:_DIFFERENTIABLE], args[_DIFFERENTIABLE:]
    tensors = dict(zip(_NAMES, inputs, strict=True))
    _check_options(*options[:5])
    gates_x, embed_context, context, z0 = (tensors[name] for name in ("gates_x", "embed_context", "context", "z0"))
    of_sizes = {"gates_x": "[T, B, 3H]", "embed_context": "[T, B, E]", "context": "[T, B, M]", "z0": "[B, Z]"}
    for name, letters in of_sizes.items():
        if tensors[name].dim() != letters.count(",") + 1:
            raise ValueError(
                f"{_OP}: {name} must have shape {letters}, got {arguments.shape_text(tensors[name].shape)}"
            )
    (steps, batch, width), embed, hidden, latent = gates_x.shape, embed_context.shape[2], context.shape[2], z0.shape[1]
    size = width // 3
    if width % 3 or min(size, embed, hidden, latent) == 0:
        sizes = f"3H = {width}, E = {embed}, M = {hidden} and Z = {latent}"
        raise ValueError(f"{_OP}: gates_x, embed_context, context and z0 must have H, E, M, Z >= 1, got {sizes}")
    shapes = {
        "embed_context": ("[T, B, E]", (steps, batch, embed)),
        "context": ("[T, B, M]", (steps, batch, hidden)),
        "h0": ("[B, H]", (batch, size)),
        "z0": ("[B, Z]", (batch, latent)),
        "eps": ("[T, B, Z]", (steps, batch, latent)),
        "weight_embed": ("[E, Z]", (embed, latent)),
        "weight_zh": ("[3H, E]", (3 * size, embed)),
        "weight_hh": ("[3H, H]", (3 * size, size)),
        "bias_hh": ("[3H]", (3 * size,)),
        "weight_h": ("[M, H]", (hidden, size)),
        "weight_out": ("[2Z, M]", (2 * latent, hidden)),
        "bias_out": ("[2Z]", (2 * latent,)),
        "reset_h": ("[B, H]", (batch, size)),
        "reset_z": ("[B, Z]", (batch, latent)),
    }
    others = {name: tensor for name, tensor in tensors.items() if tensor is not None and name != "gates_x"}
    for name, tensor in others.items():
        arguments.require_shape(_OP, name, tensor, *shapes[name])
    arguments.require_alike(_OP, "gates_x", gates_x, others, _STATES)
    arguments.require_lengths_form(_OP, lengths, batch, gates_x.device)
    if resets is None:
        if given := [name for name in ("reset_h", "reset_z") if tensors[name] is not None]:
            raise ValueError(f"{_OP}: resets must be given with {given[0]}: where it is to stand")
        return
    if resets.dtype != torch.bool:
        raise TypeError(f"{_OP}: resets must be bool, got {resets.dtype}; convert it with .bool()")
    arguments.require_shape(_OP, "resets", resets, "[T, B]", (steps, batch))
    if resets.device != gates_x.device:
        raise ValueError(
            f"{_OP}: resets must be on {gates_x.device} as gates_x is, got {resets.device}; "
            f"move it with .to({str(gates_x.device)!r})"
        )


def _kernel(*args):
    _check(*args)
    *inputs, lengths, embed_activation, activation, scale, min_logvar, min_std, need_backward, backend = args
    lengths = arguments.checked_lengths(_OP, lengths, len(inputs[2]))
    forward = implementation(backend, "interleaved_forward")
    return forward(*inputs, lengths, embed_activation, activation, scale, min_logvar, min_std, need_backward)


def _fake(*args):
    _check(*args)
    _, embed_context, context, h0, z0, *_, need_backward, _ = args
    steps, batch, hidden = context.shape
    size, latent = h0.shape[1], z0.shape[1]
    outputs = [context.new_empty(steps, batch, width) for width in (size, latent, latent, latent)]
    saved = (4 * size, embed_context.shape[2], hidden)
    return *outputs, *(context.new_empty((steps, batch, width) if need_backward else 0) for width in saved)


def _backward_kernel(*args):
    *saved, lengths, embed_activation, activation, scale, min_logvar, min_std, needs, backend = args
    h = saved[4]
    lengths = arguments.checked_lengths(_OP, lengths, len(h))
    backward = implementation(backend, "interleaved_backward")
    grads = backward(*saved, lengths, embed_activation, activation, scale, min_logvar, min_std, needs)
    return registration.pack_grads(grads, h)


def _backward_fake(
    grad_h, grad_z, grad_mu, grad_logvar, h, z, logvar, gates, embed, hidden, h0, z0, eps, weight_embed, weight_zh,
    weight_hh, weight_h, weight_out, reset_h, reset_z, resets, lengths, embed_activation, activation, scale, min_logvar,
    min_std, needs, backend,
):  # fmt: skip
    bias_hh, bias_out = (weight.new_empty(weight.shape[0]) for weight in (weight_hh, weight_out))
    gates_x = gates.new_empty(*gates.shape[:2], 3 * h.shape[2])
    inputs = (
        *(gates_x, embed, hidden, h0, z0, eps, weight_embed, weight_zh, weight_hh, bias_hh),
        *(weight_h, weight_out, bias_out, h0 if reset_h is None else reset_h, z0 if reset_z is None else reset_z),
    )
    return registration.empty_gradients(inputs, needs, h)


def _of_a_step(size: int, embed: int, latent: int, hidden: int) -> dict[str, int]:
    """Entries of the weight matrices."""
    return {
        "embed": embed * latent,
        "zh": 3 * size * embed,
        "hh": 3 * size * size,
        "h": hidden * size,
        "out": 2 * latent * hidden,
    }


@flops.formula(_OP)
def _flops(gates_x: Shape, embed_context: Shape, context: Shape, h0: Shape, z0: Shape, *_: object, **__: object) -> int:
    entries = _of_a_step(h0[1], embed_context[2], z0[1], context[2])
    return flops.product(*context[:2], sum(entries.values()), 1)


@flops.formula(f"{_OP}_backward")
def _backward_flops(
    grad_h: object, grad_z: object, grad_mu: object, grad_logvar: object, h: Shape, z: Shape, logvar: Shape,
    gates: Shape, embed: Shape, hidden: Shape, *rest: Any, **__: object,
) -> int:  # fmt: skip
    needs: Sequence[bool] = rest[-2]
    entries = _of_a_step(h[2], embed[2], z[2], hidden[2])
    twice = dict(
        zip(("embed", "zh", "hh", "h", "out"), (needs[6], needs[7], needs[8], needs[10], needs[11]), strict=True)
    )
    return flops.product(*h[:2], sum(entries[name] * (1 + twice[name]) for name in entries), 1)


_INPUTS = ", ".join(f"Tensor{'?' if name.startswith('reset') else ''} {name}" for name in _NAMES)
_OPTIONS = (
    "Tensor? resets, Tensor? lengths, str embed_activation, str activation, str scale, float min_logvar, float min_std"
)
registration.define(
    f"{_OP}({_INPUTS}, {_OPTIONS}, bool need_backward, str backend) -> "
    "(Tensor h, Tensor z, Tensor mu, Tensor logvar, Tensor gates, Tensor embed, Tensor hidden)",
    _kernel,
    _fake,
)
registration.define(
    f"{_OP}_backward(Tensor? grad_h, Tensor? grad_z, Tensor? grad_mu, Tensor? grad_logvar, Tensor h, Tensor z, "
    "Tensor logvar, Tensor gates, Tensor embed, Tensor hidden, Tensor h0, Tensor z0, Tensor eps, Tensor weight_embed, "
    "Tensor weight_zh, Tensor weight_hh, Tensor weight_h, Tensor weight_out, Tensor? reset_h, Tensor? reset_z, "
    f"{_OPTIONS}, bool[] needs, str backend) -> ({', '.join(f'Tensor grad_{name}' for name in _NAMES)})",
    _backward_kernel,
    _backward_fake,
)
_op, _backward_op = registration.caller(_OP), registration.caller(f"{_OP}_backward")


def _reference(inputs, resets, lengths, embed_activation, activation, scale, min_logvar, min_std):
    return reference.interleaved_sequence(
        *inputs[:-2],
        embed_activation=embed_activation,
        activation=activation,
        scale=scale,
        min_logvar=min_logvar,
        min_std=min_std,
        lengths=lengths,
        resets=resets,
        reset_h=inputs[-2],
        reset_z=inputs[-1],
    )


def _plain(*args):
    _check(*args)
    inputs, (resets, lengths, *options) = args[:_DIFFERENTIABLE], args[_DIFFERENTIABLE:-2]
    context = inputs[2]
    lengths = registration.where_readable(partial(arguments.checked_lengths, _OP), lengths, len(context))
    return *_reference(inputs, resets, lengths, *options), *(context.new_empty(0) for _ in range(3))


class _InterleavedSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        inputs, (resets, lengths, *options, _, backend) = args[:_DIFFERENTIABLE], args[_DIFFERENTIABLE:]
        h, z, mu, logvar, gates, embed, hidden = run(*inputs, resets, lengths, *options, True, backend)
        kept = dict(zip(_NAMES, inputs, strict=True))
        weights = ("weight_embed", "weight_zh", "weight_hh", "weight_h", "weight_out", "reset_h", "reset_z")
        saved = (h, z, logvar, gates, embed, hidden, *(kept[name] for name in ("h0", "z0", "eps", *weights)))
        # What a second derivative would need besides: only the reference keeps it.
        again = inputs if backend == "reference" else ()
        saved_tensors.keep(ctx, *saved, resets, saved_tensors.own(lengths), *again)
        ctx.saved, ctx.options, ctx.backend = len(saved), options, backend
        ctx.mark_non_differentiable(gates, embed, hidden)
        ctx.set_materialize_grads(False)
        return h, z, mu, logvar, gates, embed, hidden

    @staticmethod
    def backward(ctx, *grads):
        grads, kept = grads[:4], saved_tensors.kept(ctx, _OP)
        saved, (resets, lengths, *inputs) = kept[: ctx.saved], kept[ctx.saved :]
        needs = list(ctx.needs_input_grad[1 : 1 + _DIFFERENTIABLE])
        if inputs and registration.takes_plain_backward(grads):

            def plain(*inputs):
                return _reference(inputs, resets, lengths, *ctx.options)

            found = registration.differentiate_again(plain, inputs, grads, needs)
        else:
            found = registration.unpack_grads(
                _backward_op(*grads, *saved, resets, lengths, *ctx.options, needs, ctx.backend), needs
            )
        return None, *found, *(None for _ in range(9))


registration.define_autograd(_OP, _InterleavedSequence, _plain)
registration.define_first_order(f"{_OP}_backward", _OP)
