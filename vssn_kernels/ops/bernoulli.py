"""bernoulli_log_prob: the log-density of independent Bernoulli entries, summed, as one op."""

from __future__ import annotations

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation
from vssn_kernels.ops import flops, registration, saved_tensors
from vssn_kernels.reference import bernoulli as reference

_OP = "bernoulli_log_prob"
declare(
    _OP,
    functions=("bernoulli_log_prob_forward", "bernoulli_log_prob_backward"),
    reference=reference,
    left_to_reference=True,
)


def bernoulli_log_prob(logits: Tensor, x: Tensor, *, backend: str | None = None) -> Tensor:
    """sum_X (x l - softplus(l)), the log-density of x in {0, 1} with logits l; the cross-entropy for x in between.

    Args:
        logits, x: [..., X].
        backend: "reference", "cpu", "cuda" or "triton"; None: `use_backend`, VSSN_BACKEND, else the fastest.

    Returns:
        [...] in nats.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; or a backend that is not there.

    A second derivative goes through the reference, whatever the backend.
    """
    arguments.require_tensors(_OP, logits=logits, x=x)
    arguments.require_floating(_OP, "logits", logits)
    if registration.autocast_is_on(logits.device):
        logits, x = (registration.cast(tensor, torch.float32) for tensor in (logits, x))
    return _op(logits, x, choose(_OP, backend, logits.device, logits.dtype, "logits"))


def _check(logits: Tensor, x: Tensor) -> None:
    if logits.dim() == 0:
        raise ValueError(f"{_OP}: logits must have shape [..., X], got a scalar")
    arguments.require_shape(_OP, "x", x, "[..., X] of logits", tuple(logits.shape))
    arguments.require_alike(_OP, "logits", logits, {"x": x})


def _kernel(logits, x, backend):
    _check(logits, x)
    return implementation(backend, "bernoulli_log_prob_forward")(logits, x)


def _fake(logits, x, backend):
    _check(logits, x)
    return logits.new_empty(logits.shape[:-1])


def _backward_kernel(grad, logits, x, needs, backend):
    return registration.pack_grads(
        implementation(backend, "bernoulli_log_prob_backward")(grad, logits, x, needs), logits
    )


def _backward_fake(grad, logits, x, needs, backend):
    return registration.empty_gradients((logits, x), needs, logits)


flops.no_products(_OP)
flops.no_products(f"{_OP}_backward")
registration.define(f"{_OP}(Tensor logits, Tensor x, str backend) -> Tensor", _kernel, _fake)
registration.define(
    f"{_OP}_backward(Tensor grad, Tensor logits, Tensor x, bool[] needs, str backend) -> "
    "(Tensor grad_logits, Tensor grad_x)",
    _backward_kernel,
    _backward_fake,
)
_op, _backward_op = registration.caller(_OP), registration.caller(f"{_OP}_backward")


def _plain(logits, x, backend):
    _check(logits, x)
    return reference.bernoulli_log_prob(logits, x)


class _BernoulliLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        saved_tensors.keep(ctx, *args[:2])
        ctx.backend = args[2]
        return run(*args)

    @staticmethod
    def backward(ctx, grad):
        inputs, needs = saved_tensors.kept(ctx, _OP), list(ctx.needs_input_grad[1:3])
        if registration.takes_plain_backward((grad,)):

            def plain(*inputs):
                return (reference.bernoulli_log_prob(*inputs),)

            grads = registration.differentiate_again(plain, inputs, (grad,), needs)
        else:
            grads = registration.unpack_grads(_backward_op(grad, *inputs, needs, ctx.backend), needs)
        return None, *grads, None


registration.define_autograd(_OP, _BernoulliLogProb, _plain)
registration.define_first_order(f"{_OP}_backward", _OP)
