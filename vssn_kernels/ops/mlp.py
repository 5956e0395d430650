"""mlp, gaussian_mlp and split_linear: one or two linear layers over several inputs as one op.

No step depends on another here, so that any library of matrix products could do it; one op instead of eight saves the
passes over memory between the products, and their calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation
from vssn_kernels.ops import flops, registration, saved_tensors
from vssn_kernels.ops.flops import Shape
from vssn_kernels.reference import mlp as reference

_OP = "mlp"
_INPUTS = 16  # csrc/cpu/kernels.h
declare(
    *(_OP, "gaussian_mlp", "split_linear"),
    functions=("mlp_forward", "mlp_backward"),
    reference=reference,
    left_to_reference=True,
)


def _public(weight_out: Tensor | None, min_logvar: float | None) -> str:
    """The public function that was called: errors name it."""
    if weight_out is None:
        return "split_linear"
    return _OP if min_logvar is None else "gaussian_mlp"


def mlp(
    inputs: Sequence[Tensor],
    weights: Tensor | Sequence[Tensor],
    bias: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    *,
    activation: str = "tanh",
    backend: str | None = None,
) -> Tensor:
    """act(bias + sum_i x_i W_i^T) weight_out^T + bias_out.

    Args:
        inputs: x_i [..., K_i], at most 16.
        weights: W_i [M, K_i] for each input, or one [M, sum of K_i]: their columns side by side.
        bias: [M].
        weight_out: [O, M].
        bias_out: [O].
        activation: "tanh", "relu", "leaky_relu" (slope 1/3) or "silu".
        backend: "reference", "cpu", "cuda" or "triton"; None: `use_backend`, VSSN_BACKEND, else the fastest.

    Returns:
        [..., O]

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; or a backend that is not there.

    A second derivative goes through the reference, whatever the backend.
    """
    arguments.require_tensors(_OP, weight_out=weight_out, bias_out=bias_out)
    arguments.require_activation(_OP, activation)
    return _call(inputs, weights, bias, weight_out, bias_out, activation, None, backend)[0]


def gaussian_mlp(
    inputs: Sequence[Tensor],
    weights: Tensor | Sequence[Tensor],
    bias: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    *,
    activation: str = "tanh",
    min_logvar: float = -12.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean and the floored log-variance that an mlp gives: (mu, raw) = mlp(...),
    logvar = min_logvar + softplus(raw - min_logvar).

    Args:
        inputs, weights, bias, weight_out, bias_out, activation, backend: as in `mlp`, with O = 2 Z: mean, then raw.
        min_logvar: the floor, in nats.

    Returns:
        mu, logvar: each [..., Z].

    Raises as `mlp`.
    """
    arguments.require_tensors("gaussian_mlp", weight_out=weight_out, bias_out=bias_out)
    arguments.require_activation("gaussian_mlp", activation)
    arguments.require_finite("gaussian_mlp", "min_logvar", min_logvar)
    mu, logvar, _ = _call(inputs, weights, bias, weight_out, bias_out, activation, float(min_logvar), backend)
    return mu, logvar


def split_linear(
    inputs: Sequence[Tensor], weights: Tensor | Sequence[Tensor], bias: Tensor, *, backend: str | None = None
) -> Tensor:
    """bias + sum_i x_i W_i^T: [..., M]. Arguments and errors as in `mlp`, without the second layer."""
    return _call(inputs, weights, bias, None, None, "tanh", None, backend)[0]


def _call(
    inputs: Sequence[Tensor],
    weights: Tensor | Sequence[Tensor],
    bias: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    activation: str,
    min_logvar: float | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    op = _public(weight_out, min_logvar)
    if isinstance(weights, Tensor):
        arguments.require_tensors(op, weights=weights)
        several = [weights]
    else:
        several = arguments.require_list(op, "weights", weights)
    given = arguments.require_list(op, "inputs", inputs)
    arguments.require_tensors(op, bias=bias)
    first = given[0]
    arguments.require_floating(op, "inputs[0]", first)
    if registration.autocast_is_on(first.device):
        dtype = registration.autocast_dtype(first.device)
        given, several = ([registration.cast(t, dtype) for t in tensors] for tensors in (given, several))
        bias = registration.cast(bias, dtype)
        weight_out, bias_out = (None if t is None else registration.cast(t, dtype) for t in (weight_out, bias_out))
    chosen = choose(op, backend, given[0].device, given[0].dtype, "inputs")
    return _op(given, several, bias, weight_out, bias_out, activation, min_logvar, False, chosen)


def _check(
    op: str,
    inputs: list[Tensor],
    weights: list[Tensor],
    bias: Tensor,
    weight_out: Tensor | None,
    bias_out: Tensor | None,
    activation: str,
    min_logvar: float | None,
) -> None:
    arguments.require_activation(op, activation)
    if not 1 <= len(inputs) <= _INPUTS or len(weights) not in (1, len(inputs)):
        raise ValueError(
            f"{op}: expected 1 to {_INPUTS} inputs, and a weight for each or one for all, got {len(inputs)} inputs "
            f"and {len(weights)} weights"
        )
    if bias.dim() != 1 or bias.shape[0] == 0:
        raise ValueError(f"{op}: bias must have shape [M], M >= 1, got {arguments.shape_text(bias.shape)}")
    if inputs[0].dim() == 0:
        raise ValueError(f"{op}: inputs[0] must have shape [..., K], got a scalar")
    hidden, leading = bias.shape[0], inputs[0].shape[:-1]
    others: dict[str, Tensor] = {"bias": bias}
    for number, x in enumerate(inputs):
        if number:
            if x.dim() == 0 or x.shape[:-1] != leading:
                raise ValueError(
                    f"{op}: inputs[{number}] must have shape [..., K] with the leading sizes "
                    f"{arguments.shape_text(leading)} of inputs[0], got {arguments.shape_text(x.shape)}"
                )
            others[f"inputs[{number}]"] = x
    widths = [x.shape[-1] for x in inputs]
    for number, weight in enumerate(weights):
        width = widths[number] if len(weights) == len(inputs) else sum(widths)
        arguments.require_shape(op, f"weights[{number}]", weight, "[M, K]", (hidden, width))
        others[f"weights[{number}]"] = weight
    if (weight_out is None) != (bias_out is None):
        missing = "weight_out" if weight_out is None else "bias_out"
        raise ValueError(f"{op}: {missing} is missing: give both weight_out and bias_out, or neither")
    if weight_out is not None and bias_out is not None:
        if weight_out.dim() != 2 or weight_out.shape[0] == 0:
            raise ValueError(
                f"{op}: weight_out must have shape [O, M], O >= 1, got {arguments.shape_text(weight_out.shape)}"
            )
        arguments.require_shape(op, "weight_out", weight_out, "[O, M]", (weight_out.shape[0], hidden))
        arguments.require_shape(op, "bias_out", bias_out, "[O]", (weight_out.shape[0],))
        others.update(weight_out=weight_out, bias_out=bias_out)
    if min_logvar is not None:
        arguments.require_finite(op, "min_logvar", min_logvar)
        if weight_out is None or weight_out.shape[0] % 2:
            got = "none" if weight_out is None else arguments.shape_text(weight_out.shape)
            raise ValueError(f"{op}: with min_logvar weight_out must have shape [2Z, M], got {got}")
    arguments.require_alike(op, "inputs[0]", inputs[0], others)


def _kernel(*args):
    *given, need_backward, backend = args
    _, _, _, weight_out, _, _, min_logvar = given
    _check(_public(weight_out, min_logvar), *given)
    return implementation(backend, "mlp_forward")(*given, need_backward)


def _fake(inputs, weights, bias, weight_out, bias_out, activation, min_logvar, need_backward, backend):
    op = _public(weight_out, min_logvar)
    _check(op, inputs, weights, bias, weight_out, bias_out, activation, min_logvar)
    first, empty = inputs[0], bias.new_empty(0)
    leading, width = first.shape[:-1], bias.shape[0]
    if weight_out is None:
        return first.new_empty(*leading, width), empty, bias.new_empty(0)
    out = first.new_empty(*leading, weight_out.shape[0] if min_logvar is None else weight_out.shape[0] // 2)
    logvar = empty if min_logvar is None else out.new_empty(out.shape)
    return out, logvar, first.new_empty(*leading, width) if need_backward else bias.new_empty(0)


def _backward_kernel(*args):
    grad_out, grad_logvar, _, _, _, logvar, *_, backend = args
    if grad_out is None and grad_logvar is None:
        return [grad.zero_() for grad in _backward_fake(*args)]
    grads = implementation(backend, "mlp_backward")(*args[:-1])
    return list(registration.pack_grads(grads, logvar))


def _backward_fake(
    grad_out, grad_logvar, inputs, weights, weight_out, logvar, hidden, activation, min_logvar, needs, backend
):
    bias = weights[0].new_empty(weights[0].shape[0])
    bias_out = None if weight_out is None else weight_out.new_empty(weight_out.shape[0])
    return list(registration.empty_gradients((*inputs, *weights, bias, weight_out, bias_out), needs, logvar))


@flops.formula(_OP)
def _flops(
    inputs: Sequence[Shape],
    weights: Sequence[Shape],
    bias: Shape,
    weight_out: Shape | None,
    *_: object,
    **__: object,
) -> int:
    rows = inputs[0][:-1]
    first = flops.product(*rows, sum(x[-1] for x in inputs), bias[0])
    return first + (0 if weight_out is None else flops.product(*rows, *weight_out))


@flops.formula(f"{_OP}_backward")
def _backward_flops(
    grad_out: object, grad_logvar: object, inputs: Sequence[Shape], weights: Sequence[Shape], weight_out: Shape | None,
    logvar: object, hidden: object, activation: str, min_logvar: float | None, needs: Sequence[bool],
    *_: object, **__: object,
) -> int:  # fmt: skip
    rows, width = inputs[0][:-1], weights[0][0]
    need_inputs, need_weights = needs[: len(inputs)], needs[len(inputs) : len(inputs) + len(weights)]
    wide = [x[-1] for x in inputs]
    by_weight = [need_weights[0]] * len(inputs) if len(weights) == 1 else need_weights
    columns = sum(k * (by_x + by_w) for k, by_x, by_w in zip(wide, need_inputs, by_weight, strict=True))
    total = flops.product(*rows, width, columns)
    if weight_out is not None:
        below = any(needs[:-2])  # the gradient of the hidden layer is there for these
        total += flops.product(*rows, *weight_out) * (below + needs[-2])
    return total


registration.define(
    f"{_OP}(Tensor[] inputs, Tensor[] weights, Tensor bias, Tensor? weight_out, Tensor? bias_out, str activation, "
    "float? min_logvar, bool need_backward, str backend) -> (Tensor out, Tensor logvar, Tensor hidden)",
    _kernel,
    _fake,
)
registration.define(
    f"{_OP}_backward(Tensor? grad_out, Tensor? grad_logvar, Tensor[] inputs, Tensor[] weights, Tensor? weight_out, "
    "Tensor logvar, Tensor hidden, str activation, float? min_logvar, bool[] needs, str backend) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)
_op = registration.caller(_OP, lambda args: _public(args[3], args[6]))
_backward_op = registration.caller(f"{_OP}_backward")


def _plain(*args):
    *given, _, _ = args
    inputs, weights, bias, weight_out, bias_out, activation, min_logvar = given
    _check(_public(weight_out, min_logvar), *given)
    out, logvar = reference.mlp(
        inputs, weights, bias, weight_out, bias_out, activation=activation, min_logvar=min_logvar
    )
    return out, bias.new_empty(0) if logvar is None else logvar, bias.new_empty(0)


class _Mlp(torch.autograd.Function):
    """Over flat tensors (*inputs, *weights, bias, weight_out, bias_out): autograd does not look into lists."""

    @staticmethod
    def forward(ctx, run, inputs, weights, activation, min_logvar, backend, *tensors):
        given, rest = tensors[:inputs], tensors[inputs + weights :]
        own = tensors[inputs : inputs + weights]
        out, logvar, hidden = run(given, own, *rest, activation, min_logvar, True, backend)
        saved_tensors.keep(ctx, logvar, hidden, *tensors)
        ctx.inputs, ctx.weights, ctx.activation = inputs, weights, activation
        ctx.min_logvar, ctx.backend = min_logvar, backend
        ctx.mark_non_differentiable(*([hidden] if min_logvar is not None else [logvar, hidden]))
        ctx.set_materialize_grads(False)
        return out, logvar, hidden

    @staticmethod
    def backward(ctx, grad_out, grad_logvar, _):
        logvar, hidden, *tensors = saved_tensors.kept(ctx, _OP)
        needs = list(ctx.needs_input_grad[6:])
        inputs, weights = tensors[: ctx.inputs], tensors[ctx.inputs : ctx.inputs + ctx.weights]
        options = {"activation": ctx.activation, "min_logvar": ctx.min_logvar}
        if registration.takes_plain_backward((grad_out, grad_logvar)):

            def plain(*flat):
                several = flat[: ctx.inputs], flat[ctx.inputs : ctx.inputs + ctx.weights]
                outputs = reference.mlp(*several, *flat[ctx.inputs + ctx.weights :], **options)
                return outputs if ctx.min_logvar is not None else outputs[:1]

            used = (grad_out, grad_logvar) if ctx.min_logvar is not None else (grad_out,)
            grads = registration.differentiate_again(plain, tensors, used, needs)
        else:
            grads = registration.unpack_grads(
                _backward_op(
                    grad_out, grad_logvar, inputs, weights, tensors[-2], logvar, hidden, *options.values(), needs,
                    ctx.backend,
                ),
                needs,
            )  # fmt: skip
        return None, None, None, None, None, None, *grads


def _flat(inputs, weights, bias, weight_out, bias_out, activation, min_logvar, need_backward, backend):
    tensors = (*inputs, *weights, bias, weight_out, bias_out)
    return len(inputs), len(weights), activation, min_logvar, backend, *tensors


registration.define_autograd(_OP, _Mlp, _plain, _flat)
registration.define_first_order(f"{_OP}_backward", _OP)
