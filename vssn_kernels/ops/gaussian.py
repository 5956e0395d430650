"""gaussian_rsample_kl and gaussian_kl: the reparameterised sample and the KL divergence as single ops."""

from __future__ import annotations

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation
from vssn_kernels.ops import flops, registration, saved_tensors
from vssn_kernels.reference import gaussian as reference

_RSAMPLE, _KL = "gaussian_rsample_kl", "gaussian_kl"
declare(_RSAMPLE, _KL, functions=("gaussian_forward", "gaussian_backward"), reference=reference)


def gaussian_rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) eps and KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)), summed over Z.

    Args:
        mu, logvar, eps: [..., Z], eps standard normal.
        prior_mu, prior_logvar: [..., Z]; both None: N(0, I).
        backend: "reference", "cpu", "cuda" or "triton"; None: `use_backend`, VSSN_BACKEND, else the fastest.

    Returns:
        z [..., Z], kl [...] in nats.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; or a backend that is not there.

    A second derivative goes through the reference, whatever the backend.
    """
    arguments.require_tensors(_RSAMPLE, mu=mu, logvar=logvar, eps=eps)
    tensors, chosen = _prepare(_RSAMPLE, backend, mu, logvar, eps, prior_mu, prior_logvar)
    return _rsample_op(*tensors, chosen)


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)), summed over Z: kl [...] in nats.

    Arguments and errors as in `gaussian_rsample_kl`.
    """
    arguments.require_tensors(_KL, mu=mu, logvar=logvar)
    tensors, chosen = _prepare(_KL, backend, mu, logvar, prior_mu, prior_logvar)
    return _kl_op(*tensors, chosen)


def _prepare(op: str, backend: str | None, *tensors: Tensor | None) -> tuple[list[Tensor | None], str]:
    """Autocast takes a divergence to float32, as it takes PyTorch's own losses."""
    for name, tensor in zip(("prior_mu", "prior_logvar"), tensors[-2:], strict=True):
        if tensor is not None:
            arguments.require_tensors(op, **{name: tensor})
    mu = tensors[0]
    assert mu is not None
    arguments.require_floating(op, "mu", mu)
    if registration.autocast_is_on(mu.device):
        tensors = tuple(t if t is None else registration.cast(t, torch.float32) for t in tensors)
        mu = tensors[0]
        assert mu is not None
    return list(tensors), choose(op, backend, mu.device, mu.dtype, "mu")


def _check(
    op: str,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
) -> None:
    if mu.dim() == 0:
        raise ValueError(f"{op}: mu must have shape [..., Z], got a scalar")
    if (prior_mu is None) != (prior_logvar is None):
        missing = "prior_mu" if prior_mu is None else "prior_logvar"
        raise ValueError(f"{op}: {missing} is missing: give both prior_mu and prior_logvar, or neither for N(0, I)")
    others = {"logvar": logvar, "eps": eps, "prior_mu": prior_mu, "prior_logvar": prior_logvar}
    given = {name: tensor for name, tensor in others.items() if tensor is not None}
    for name, tensor in given.items():
        arguments.require_shape(op, name, tensor, "[..., Z] of mu", tuple(mu.shape))
    arguments.require_alike(op, "mu", mu, given)


def _rsample_kernel(mu, logvar, eps, prior_mu, prior_logvar, backend):
    _check(_RSAMPLE, mu, logvar, eps, prior_mu, prior_logvar)
    return implementation(backend, "gaussian_forward")(mu, logvar, eps, prior_mu, prior_logvar)


def _rsample_fake(mu, logvar, eps, prior_mu, prior_logvar, backend):
    _check(_RSAMPLE, mu, logvar, eps, prior_mu, prior_logvar)
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape[:-1])


def _rsample_backward_kernel(grad_z, grad_kl, mu, logvar, eps, prior_mu, prior_logvar, needs, backend):
    backward = implementation(backend, "gaussian_backward")
    return registration.pack_grads(backward(grad_z, grad_kl, mu, logvar, eps, prior_mu, prior_logvar, needs), mu)


def _rsample_backward_fake(grad_z, grad_kl, mu, logvar, eps, prior_mu, prior_logvar, needs, backend):
    return registration.empty_gradients((mu, logvar, eps, prior_mu, prior_logvar), needs, mu)


def _kl_kernel(mu, logvar, prior_mu, prior_logvar, backend):
    _check(_KL, mu, logvar, None, prior_mu, prior_logvar)
    return implementation(backend, "gaussian_forward")(mu, logvar, None, prior_mu, prior_logvar)[1]


def _kl_fake(mu, logvar, prior_mu, prior_logvar, backend):
    _check(_KL, mu, logvar, None, prior_mu, prior_logvar)
    return mu.new_empty(mu.shape[:-1])


def _kl_backward_kernel(grad_kl, mu, logvar, prior_mu, prior_logvar, needs, backend):
    backward = implementation(backend, "gaussian_backward")
    needs = (*needs[:2], False, *needs[2:])
    grads = backward(None, grad_kl, mu, logvar, None, prior_mu, prior_logvar, needs)
    return registration.pack_grads(grads[:2] + grads[3:], mu)


def _kl_backward_fake(grad_kl, mu, logvar, prior_mu, prior_logvar, needs, backend):
    return registration.empty_gradients((mu, logvar, prior_mu, prior_logvar), needs, mu)


for _name in (_RSAMPLE, f"{_RSAMPLE}_backward", _KL, f"{_KL}_backward"):
    flops.no_products(_name)
registration.define(
    f"{_RSAMPLE}(Tensor mu, Tensor logvar, Tensor eps, Tensor? prior_mu, Tensor? prior_logvar, str backend) -> "
    "(Tensor z, Tensor kl)",
    _rsample_kernel,
    _rsample_fake,
)
registration.define(
    f"{_RSAMPLE}_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor eps, Tensor? prior_mu, "
    "Tensor? prior_logvar, bool[] needs, str backend) -> (Tensor grad_mu, Tensor grad_logvar, Tensor grad_eps, "
    "Tensor grad_prior_mu, Tensor grad_prior_logvar)",
    _rsample_backward_kernel,
    _rsample_backward_fake,
)
registration.define(
    f"{_KL}(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, str backend) -> Tensor",
    _kl_kernel,
    _kl_fake,
)
registration.define(
    f"{_KL}_backward(Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
    "bool[] needs, str backend) -> (Tensor grad_mu, Tensor grad_logvar, Tensor grad_prior_mu, "
    "Tensor grad_prior_logvar)",
    _kl_backward_kernel,
    _kl_backward_fake,
)
_rsample_op, _rsample_backward_op = registration.caller(_RSAMPLE), registration.caller(f"{_RSAMPLE}_backward")
_kl_op, _kl_backward_op = registration.caller(_KL), registration.caller(f"{_KL}_backward")


def _rsample_plain(mu, logvar, eps, prior_mu, prior_logvar, backend):
    _check(_RSAMPLE, mu, logvar, eps, prior_mu, prior_logvar)
    return reference.gaussian_rsample_kl(mu, logvar, eps, prior_mu, prior_logvar)


def _kl_plain(mu, logvar, prior_mu, prior_logvar, backend):
    _check(_KL, mu, logvar, None, prior_mu, prior_logvar)
    return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar)


class _GaussianRsampleKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        saved_tensors.keep(ctx, *args[:5])
        ctx.backend = args[5]
        ctx.set_materialize_grads(False)
        return run(*args)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        inputs, needs = saved_tensors.kept(ctx, _RSAMPLE), list(ctx.needs_input_grad[1:6])
        if registration.takes_plain_backward((grad_z, grad_kl)):
            grads = registration.differentiate_again(reference.gaussian_rsample_kl, inputs, (grad_z, grad_kl), needs)
        else:
            grads = registration.unpack_grads(_rsample_backward_op(grad_z, grad_kl, *inputs, needs, ctx.backend), needs)
        return None, *grads, None


class _GaussianKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        saved_tensors.keep(ctx, *args[:4])
        ctx.backend = args[4]
        ctx.set_materialize_grads(False)
        return run(*args)

    @staticmethod
    def backward(ctx, grad_kl):
        inputs, needs = saved_tensors.kept(ctx, _KL), list(ctx.needs_input_grad[1:5])
        if registration.takes_plain_backward((grad_kl,)):

            def plain(*inputs):
                return (reference.gaussian_kl(*inputs),)

            grads = registration.differentiate_again(plain, inputs, (grad_kl,), needs)
        else:
            grads = registration.unpack_grads(_kl_backward_op(grad_kl, *inputs, needs, ctx.backend), needs)
        return None, *grads, None


registration.define_autograd(_RSAMPLE, _GaussianRsampleKl, _rsample_plain)
registration.define_first_order(f"{_RSAMPLE}_backward", _RSAMPLE)
registration.define_autograd(_KL, _GaussianKl, _kl_plain)
registration.define_first_order(f"{_KL}_backward", _KL)
