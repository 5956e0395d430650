"""What gru_sequence and gru_packed are made of: all of an op but the form in which it has its steps.

`steps` stands here for the argument that tells which steps are there: lengths [B] (or None) of a padded batch, where a
sequence of width X is [T, B, X], or batch sizes [T] of a packed one, where it is [N, X].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation, offers
from vssn_kernels.ops import flops, in_place, registration, saved_tensors
from vssn_kernels.ops.flops import Shape


class Form(NamedTuple):
    op: str
    functions: str  # of a backend: what their names begin with
    steps: str  # in the schema
    check: Callable[..., None]  # (gates_x, h0, weight_hh, bias_hh, steps): raises unless they fit by their metadata
    checked: Callable[..., Tensor | None]  # (steps, sequence, h0): raises unless its values fit, where they can be read
    reference: ModuleType
    plain: Callable[..., tuple[Tensor, Tensor]]  # (gates_x, h0, weight_hh, bias_hh, steps, reverse): (output, h_n)


def check_tensors(op: str, gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, padded: bool) -> None:
    """Raises unless they fit each other, gates_x being [T, B, 3H] where padded, else [N, 3H]."""
    shape, state = gates_x.shape, h0.shape
    width = shape[-1] if shape else 0
    if (
        len(shape) == (3 if padded else 2)
        and len(state) == 2
        and 0 < width == 3 * state[1]
        and (not padded or shape[1] == state[0])
        and weight_hh.shape == (width, state[1])
        and bias_hh.shape == (width,)
        and gates_x.dtype == h0.dtype == weight_hh.dtype == bias_hh.dtype
        and gates_x.device == h0.device == weight_hh.device == bias_hh.device
    ):
        return  # the common case, in a third of the time that naming what is wrong takes
    if gates_x.dim() != (3 if padded else 2):
        letters = "[T, B, 3H]" if padded else "[N, 3H]"
        raise ValueError(f"{op}: gates_x must have shape {letters}, got {arguments.shape_text(gates_x.shape)}")
    if width % 3 != 0 or width == 0:
        raise ValueError(f"{op}: gates_x must have a last size 3H, H >= 1, got {arguments.shape_text(gates_x.shape)}")
    if not padded and h0.dim() != 2:
        raise ValueError(f"{op}: h0 must have shape [B, H], got {arguments.shape_text(h0.shape)}")
    batch, hidden = gates_x.shape[1] if padded else h0.shape[0], width // 3
    arguments.require_shape(op, "h0", h0, "[B, H]", (batch, hidden))
    arguments.require_shape(op, "weight_hh", weight_hh, "[3H, H]", (width, hidden))
    arguments.require_shape(op, "bias_hh", bias_hh, "[3H]", (width,))
    arguments.require_alike(op, "gates_x", gates_x, {"h0": h0, "weight_hh": weight_hh, "bias_hh": bias_hh}, ("h0",))


def define(form: Form) -> Callable[..., tuple[Tensor, Tensor]]:
    """Registers the op with its backward, and with what makes forward's output once more where that was changed.

    Returns:
        (gates_x, h0, weight_hh, bias_hh, steps, reverse, backend): (output, h_n), on arguments known to be tensors.
    """
    op, check, checked = form.op, form.check, form.checked
    of_forward, of_backward, of_output = (f"{form.functions}_{name}" for name in ("forward", "backward", "output"))
    # A backend with the last takes a change of output in place before backward. (torch.nn.GRU does on the CPU; cuDNN
    # does not.)
    declare(op, functions=(of_forward, of_backward), optional=(of_output,), reference=form.reference)

    def kernel(gates_x, h0, weight_hh, bias_hh, steps, reverse, need_backward, backend):
        check(gates_x, h0, weight_hh, bias_hh, steps)
        steps = checked(steps, gates_x, h0)
        forward = implementation(backend, of_forward)
        return forward(gates_x, h0, weight_hh, bias_hh, steps, reverse, need_backward)

    def fake(gates_x, h0, weight_hh, bias_hh, steps, reverse, need_backward, backend):
        check(gates_x, h0, weight_hh, bias_hh, steps)
        leading, (batch, hidden) = gates_x.shape[:-1], h0.shape
        gates = gates_x.new_empty(*leading, 4 * hidden) if need_backward else gates_x.new_empty(0)
        return gates_x.new_empty(*leading, hidden), h0.new_empty(batch, hidden), gates

    def backward_kernel(grad_output, grad_h_n, output, gates, h0, weight_hh, steps, reverse, needs, backend):
        steps = checked(steps, output, h0)
        backward = implementation(backend, of_backward)
        grads = backward(grad_output, grad_h_n, output, gates, h0, weight_hh, steps, reverse, needs)
        return registration.pack_grads(grads, output)

    def backward_fake(grad_output, grad_h_n, output, gates, h0, weight_hh, steps, reverse, needs, backend):
        leading, hidden = output.shape[:-1], output.shape[-1]
        grad_gates_x = output.new_empty(*leading, 3 * hidden) if needs[0] else output.new_empty(0)
        grad_bias = output.new_empty(3 * hidden) if needs[3] else output.new_empty(0)
        grad_h0, grad_weight = registration.empty_gradients((h0, weight_hh), needs[1:3], output)
        return grad_gates_x, grad_h0, grad_weight, grad_bias

    def output_kernel(gates, h0, steps, reverse, backend):
        return implementation(backend, of_output)(gates, h0, checked(steps, gates, h0), reverse)

    def output_fake(gates, h0, steps, reverse, backend):
        return gates.new_empty(*gates.shape[:-1], h0.shape[1])

    @flops.formula(op)
    def _flops(gates_x: Shape, h0: Shape, weight_hh: Shape, *_: object, **__: object) -> int:
        return flops.product(*gates_x[:-1], h0[1], weight_hh[0])

    @flops.formula(f"{op}_backward")
    def _backward_flops(
        grad_output: object, grad_h_n: object, output: Shape, gates: Shape, h0: Shape, weight_hh: Shape,
        steps: object, reverse: bool, needs: Sequence[bool], *_: object, **__: object,
    ) -> int:  # fmt: skip
        return flops.product(*output, weight_hh[0]) * (1 + needs[2])

    registration.define(
        f"{op}(Tensor gates_x, Tensor h0, Tensor weight_hh, Tensor bias_hh, {form.steps}, bool reverse, "
        "bool need_backward, str backend) -> (Tensor output, Tensor h_n, Tensor gates)",
        kernel,
        fake,
    )
    registration.define(
        f"{op}_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor gates, Tensor h0, "
        f"Tensor weight_hh, {form.steps}, bool reverse, bool[] needs, str backend) -> "
        "(Tensor grad_gates_x, Tensor grad_h0, Tensor grad_weight_hh, Tensor grad_bias_hh)",
        backward_kernel,
        backward_fake,
    )
    registration.define(
        f"{op}_output(Tensor gates, Tensor h0, {form.steps}, bool reverse, str backend) -> Tensor",
        output_kernel,
        output_fake,
    )
    run_op, run_backward, run_output = (registration.caller(name) for name in (op, f"{op}_backward", f"{op}_output"))

    def plain(gates_x, h0, weight_hh, bias_hh, steps, reverse, need_backward, backend):
        check(gates_x, h0, weight_hh, bias_hh, steps)
        steps = registration.where_readable(checked, steps, gates_x, h0)
        output, h_n = form.plain(gates_x, h0, weight_hh, bias_hh, steps, reverse)
        return output, h_n.clone() if h_n is h0 else h_n, gates_x.new_empty(0)

    class Gru(torch.autograd.Function):
        @staticmethod
        def forward(ctx, run, gates_x, h0, weight_hh, bias_hh, steps, reverse, need_backward, backend):
            output, h_n, gates = run(gates_x, h0, weight_hh, bias_hh, steps, reverse, True, backend)
            # What a second derivative would need is 3H a step more: only the reference keeps it.
            again = (gates_x, bias_hh) if backend == "reference" else (None, None)
            kept, ctx.changed = in_place.keep(output) if offers(backend, of_output) else (output, None)
            saved_tensors.keep(ctx, kept, gates, h0, weight_hh, saved_tensors.own(steps), *again)
            ctx.reverse, ctx.backend = reverse, backend
            # gates stay differentiable: they are what ties a gradient to the inputs that it depends on, so that one who
            # differentiates it again meets the error of `define_first_order` and no zeros.
            ctx.set_materialize_grads(False)
            return output, h_n, gates

        @staticmethod
        def backward(ctx, grad_output, grad_h_n, _):
            output, gates, h0, weight_hh, steps, gates_x, bias_hh = saved_tensors.kept(ctx, op)
            needs = list(ctx.needs_input_grad[1:5])
            if gates_x is not None and registration.takes_plain_backward((grad_output, grad_h_n)):

                def plain_of_inputs(*inputs):
                    return form.plain(*inputs, steps, ctx.reverse)

                inputs = (gates_x, h0, weight_hh, bias_hh)
                grads = registration.differentiate_again(plain_of_inputs, inputs, (grad_output, grad_h_n), needs)
            else:
                if ctx.changed:
                    output = run_output(gates, h0, steps, ctx.reverse, ctx.backend)
                packed = run_backward(
                    grad_output, grad_h_n, output, gates, h0, weight_hh, steps, ctx.reverse, needs, ctx.backend
                )
                grads = registration.unpack_grads(packed, needs)
            return None, *grads, None, None, None, None

    registration.define_autograd(op, Gru, plain)
    registration.define_first_order(f"{op}_backward", op)
    registration.define_first_order(f"{op}_output", op)

    def call(gates_x, h0, weight_hh, bias_hh, steps, reverse, backend):
        arguments.require_floating(op, "gates_x", gates_x)
        arguments.require_flag(op, "reverse", reverse)
        if registration.autocast_is_on(gates_x.device):
            dtype = registration.autocast_dtype(gates_x.device)
            gates_x, weight_hh, bias_hh = (registration.cast(t, dtype) for t in (gates_x, weight_hh, bias_hh))
            h0 = registration.cast_state(h0, dtype)
        chosen = choose(op, backend, gates_x.device, gates_x.dtype, "gates_x")
        output, h_n, _ = run_op(gates_x, h0, weight_hh, bias_hh, steps, reverse, False, chosen)
        return output, h_n

    return call
