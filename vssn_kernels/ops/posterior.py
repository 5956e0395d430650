"""posterior_sequence: the sampled chain of Gaussian latents z_{t-1} -> z_t as one op."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation
from vssn_kernels.ops import flops, registration, saved_tensors
from vssn_kernels.ops.flops import Shape
from vssn_kernels.reference import posterior as reference

_OP = "posterior_sequence"
_DIFFERENTIABLE = 10  # the leading tensor arguments of the op
declare(_OP, functions=("posterior_forward", "posterior_backward"), reference=reference)


class PriorMean(NamedTuple):
    """The part of the prior that a residual posterior needs inside the loop."""

    context: Tensor  # [T, B, M]  d_t W_d^T + b
    weight_z: Tensor  # [M, Z]
    weight_mu: Tensor  # [Z, M]
    bias_mu: Tensor  # [Z]


def posterior_sequence(
    context: Tensor,
    z0: Tensor,
    eps: Tensor,
    weight_z: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    *,
    activation: str = "tanh",
    min_logvar: float = -12.0,
    prior: PriorMean | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples z_{1:T} from q(z_t | z_{t-1}, a_t) (the paper's Eq. 4)::

        hidden = act(context_t + z_{t-1} weight_z^T);  (mu, raw) = hidden weight_out^T + bias_out
        logvar = min_logvar + softplus(raw - min_logvar);  z_t = mu + exp(logvar / 2) eps_t
        with prior:  mu += act(prior.context_t + z_{t-1} prior.weight_z^T) prior.weight_mu^T + prior.bias_mu

    Args:
        context: [T, B, M] a_t W_a^T + b.
        z0: [B, Z]; float32 is taken beside half-precision inputs.
        eps: [T, B, Z] standard normal.
        weight_z: [M, Z].
        weight_out: [2Z, M] rows: mean, then raw log-variance.
        bias_out: [2Z].
        activation: "tanh", "relu", "leaky_relu" (slope 1/3) or "silu".
        min_logvar: the floor of the log-variance, in nats.
        prior: PriorMean for the residual posterior (Fraccaro et al. 2016), else None.
        lengths: [B] int64 on the tensors' device, each in [0, T]; steps t >= lengths[b] are padding, never read.
        backend: "reference", "cpu", "cuda" or "triton"; None: `use_backend`, VSSN_BACKEND, else the fastest.

    Returns:
        z, mu, logvar: each [T, B, Z] in the dtype of context, zeros at padding.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; or a backend that is not there.
        RuntimeError: where a gradient is differentiated again, on a backend other than "reference".
    """
    arguments.require_tensors(
        _OP, context=context, z0=z0, eps=eps, weight_z=weight_z, weight_out=weight_out, bias_out=bias_out
    )
    arguments.require_floating(_OP, "context", context)
    if lengths is not None:
        arguments.require_tensors(_OP, lengths=lengths)
    arguments.require_activation(_OP, activation)
    arguments.require_finite(_OP, "min_logvar", min_logvar)
    parts: tuple[Tensor | None, ...] = (None, None, None, None)
    if prior is not None:
        if not isinstance(prior, tuple) or len(prior) != 4:
            raise TypeError(f"{_OP}: prior must be a vssn_kernels.PriorMean or None, got {type(prior).__name__}")
        parts = tuple(prior)
        arguments.require_tensors(_OP, **{f"prior.{name}": t for name, t in zip(PriorMean._fields, parts, strict=True)})
    if registration.autocast_is_on(context.device):
        dtype = registration.autocast_dtype(context.device)
        tensors = (context, eps, weight_z, weight_out, bias_out)
        context, eps, weight_z, weight_out, bias_out = (registration.cast(t, dtype) for t in tensors)
        parts = tuple(part if part is None else registration.cast(part, dtype) for part in parts)
        z0 = registration.cast_state(z0, dtype)
    chosen = choose(_OP, backend, context.device, context.dtype, "context")
    z, mu, logvar, _, _ = _op(
        context, z0, eps, weight_z, weight_out, bias_out, *parts, lengths, activation, float(min_logvar), False, chosen
    )
    return z, mu, logvar


def _check(
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
    *_: object,
) -> None:
    arguments.require_activation(_OP, activation)
    arguments.require_finite(_OP, "min_logvar", min_logvar)
    if context.dim() != 3:
        raise ValueError(f"{_OP}: context must have shape [T, B, M], got {arguments.shape_text(context.shape)}")
    if z0.dim() != 2:
        raise ValueError(f"{_OP}: z0 must have shape [B, Z], got {arguments.shape_text(z0.shape)}")
    steps, batch, hidden = context.shape
    latent = z0.shape[1]
    if hidden == 0 or latent == 0:
        raise ValueError(f"{_OP}: of context and z0 M and Z must be at least 1, got M = {hidden} and Z = {latent}")
    arguments.require_shape(_OP, "z0", z0, "[B, Z]", (batch, latent))
    arguments.require_shape(_OP, "eps", eps, "[T, B, Z]", (steps, batch, latent))
    arguments.require_shape(_OP, "weight_z", weight_z, "[M, Z]", (hidden, latent))
    arguments.require_shape(_OP, "weight_out", weight_out, "[2Z, M]", (2 * latent, hidden))
    arguments.require_shape(_OP, "bias_out", bias_out, "[2Z]", (2 * latent,))
    others = {"z0": z0, "eps": eps, "weight_z": weight_z, "weight_out": weight_out, "bias_out": bias_out}
    prior = (prior_context, prior_weight_z, prior_weight_mu, prior_bias_mu)
    parts = {
        "prior.context": ("[T, B, M]", (steps, batch, hidden)),
        "prior.weight_z": ("[M, Z]", (hidden, latent)),
        "prior.weight_mu": ("[Z, M]", (latent, hidden)),
        "prior.bias_mu": ("[Z]", (latent,)),
    }
    if any(part is not None for part in prior):
        for (name, (letters, expected)), part in zip(parts.items(), prior, strict=True):
            if part is None:
                raise ValueError(f"{_OP}: {name} is missing: a prior needs all of {', '.join(parts)}")
            arguments.require_shape(_OP, name, part, letters, expected)
            others[name] = part
    arguments.require_alike(_OP, "context", context, others, ("z0",))
    arguments.require_lengths_form(_OP, lengths, batch, context.device)


def _kernel(*args):
    _check(*args)
    *inputs, lengths, activation, min_logvar, need_backward, backend = args
    context, *_ = inputs
    lengths = arguments.checked_lengths(_OP, lengths, len(context))
    return implementation(backend, "posterior_forward")(*inputs, lengths, activation, min_logvar, need_backward)


def _fake(*args):
    _check(*args)
    context, z0, _, _, _, _, prior_context, *_, need_backward, _ = args
    steps, batch, _ = context.shape
    z, mu, logvar = (context.new_empty(steps, batch, z0.shape[1]) for _ in range(3))
    saved = context.new_empty(context.shape) if need_backward else context.new_empty(0)
    prior_saved = (
        context.new_empty(context.shape) if need_backward and prior_context is not None else context.new_empty(0)
    )
    return z, mu, logvar, saved, prior_saved


def _backward_kernel(*args):
    _, _, _, z, *_ = args
    *saved, lengths, activation, min_logvar, needs, backend = args
    lengths = arguments.checked_lengths(_OP, lengths, len(z))
    grads = implementation(backend, "posterior_backward")(*saved, lengths, activation, min_logvar, needs)
    return registration.pack_grads(grads, z)


def _backward_fake(
    grad_z,
    grad_mu,
    grad_logvar,
    z,
    logvar,
    hidden,
    prior_hidden,
    z0,
    eps,
    weight_z,
    weight_out,
    prior_weight_z,
    prior_weight_mu,
    lengths,
    activation,
    min_logvar,
    needs,
    backend,
):
    bias_out = weight_out.new_empty(weight_out.shape[0])
    bias_mu = None if prior_weight_mu is None else prior_weight_mu.new_empty(prior_weight_mu.shape[0])
    inputs = (hidden, z0, eps, weight_z, weight_out, bias_out, prior_hidden, prior_weight_z, prior_weight_mu, bias_mu)
    return registration.empty_gradients(inputs, needs, z)


@flops.formula(_OP)
def _flops(
    context: Shape, z0: Shape, eps: Shape, weight_z: Shape, weight_out: Shape, bias_out: Shape,
    prior_context: Shape | None, *_: object, **__: object,
) -> int:  # fmt: skip
    steps, batch, hidden = context
    widths = 3 * z0[1] + (0 if prior_context is None else 2 * z0[1])  # weight_z, and out's two halves; the prior's two
    return flops.product(steps, batch, hidden, widths)


@flops.formula(f"{_OP}_backward")
def _backward_flops(
    grad_z: object, grad_mu: object, grad_logvar: object, z: Shape, logvar: Shape, hidden: Shape, prior_hidden: Shape,
    z0: Shape, eps: Shape, weight_z: Shape, weight_out: Shape, prior_weight_z: Shape | None, prior_weight_mu: object,
    lengths: object, activation: str, min_logvar: float, needs: Sequence[bool], *_: object, **__: object,
) -> int:  # fmt: skip
    latent = z0[1]
    widths = 3 * latent + latent * needs[3] + 2 * latent * needs[4]
    if prior_weight_z is not None:
        widths += 2 * latent + latent * needs[7] + latent * needs[8]
    return flops.product(*hidden, widths)


registration.define(
    f"{_OP}(Tensor context, Tensor z0, Tensor eps, Tensor weight_z, Tensor weight_out, Tensor bias_out, "
    "Tensor? prior_context, Tensor? prior_weight_z, Tensor? prior_weight_mu, Tensor? prior_bias_mu, "
    "Tensor? lengths, str activation, float min_logvar, bool need_backward, str backend) -> "
    "(Tensor z, Tensor mu, Tensor logvar, Tensor hidden, Tensor prior_hidden)",
    _kernel,
    _fake,
)
registration.define(
    f"{_OP}_backward(Tensor? grad_z, Tensor? grad_mu, Tensor? grad_logvar, Tensor z, Tensor logvar, Tensor hidden, "
    "Tensor prior_hidden, Tensor z0, Tensor eps, Tensor weight_z, Tensor weight_out, Tensor? prior_weight_z, "
    "Tensor? prior_weight_mu, Tensor? lengths, str activation, float min_logvar, bool[] needs, str backend) -> "
    "(Tensor grad_context, Tensor grad_z0, Tensor grad_eps, Tensor grad_weight_z, Tensor grad_weight_out, "
    "Tensor grad_bias_out, Tensor grad_prior_context, Tensor grad_prior_weight_z, Tensor grad_prior_weight_mu, "
    "Tensor grad_prior_bias_mu)",
    _backward_kernel,
    _backward_fake,
)
_op = registration.caller(_OP, names={f"prior_{name}": f"prior.{name}" for name in PriorMean._fields})
_backward_op = registration.caller(f"{_OP}_backward")


def _reference(inputs, lengths, activation, min_logvar):
    return reference.posterior_sequence(
        *inputs[:6],
        activation=activation,
        min_logvar=min_logvar,
        prior=None if inputs[6] is None else inputs[6:],
        lengths=lengths,
    )


def _plain(*args):
    _check(*args)
    *inputs, lengths, activation, min_logvar, _, _ = args
    context, *_ = inputs
    lengths = registration.where_readable(partial(arguments.checked_lengths, _OP), lengths, len(context))
    return *_reference(inputs, lengths, activation, min_logvar), context.new_empty(0), context.new_empty(0)


class _PosteriorSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        inputs, (lengths, activation, min_logvar, _, backend) = args[:_DIFFERENTIABLE], args[_DIFFERENTIABLE:]
        z, mu, logvar, hidden, prior_hidden = run(*inputs, lengths, activation, min_logvar, True, backend)
        _, z0, eps, weight_z, weight_out, _, _, prior_weight_z, prior_weight_mu, _ = inputs
        saved = (z, logvar, hidden, prior_hidden, z0, eps, weight_z, weight_out, prior_weight_z, prior_weight_mu)
        # What a second derivative would need is 2M a step more: only the reference keeps it.
        again = inputs if backend == "reference" else ()
        saved_tensors.keep(ctx, *saved, saved_tensors.own(lengths), *again)
        ctx.activation, ctx.min_logvar, ctx.backend = activation, min_logvar, backend
        ctx.mark_non_differentiable(hidden, prior_hidden)
        ctx.set_materialize_grads(False)
        return z, mu, logvar, hidden, prior_hidden

    @staticmethod
    def backward(ctx, grad_z, grad_mu, grad_logvar, *_):
        found = saved_tensors.kept(ctx, _OP)
        *saved, lengths = found[:11]
        inputs, needs = found[11:], list(ctx.needs_input_grad[1 : 1 + _DIFFERENTIABLE])
        if inputs and registration.takes_plain_backward((grad_z, grad_mu, grad_logvar)):

            def plain(*inputs):
                return _reference(inputs, lengths, ctx.activation, ctx.min_logvar)

            grads = registration.differentiate_again(plain, inputs, (grad_z, grad_mu, grad_logvar), needs)
        else:
            grads = registration.unpack_grads(
                _backward_op(
                    grad_z, grad_mu, grad_logvar, *saved, lengths, ctx.activation, ctx.min_logvar, needs, ctx.backend
                ),
                needs,
            )
        return None, *grads, None, None, None, None, None


registration.define_autograd(_OP, _PosteriorSequence, _plain)
registration.define_first_order(f"{_OP}_backward", _OP)
