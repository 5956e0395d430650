"""gru_sequence: the GRU recurrence over a whole sequence as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation, offers
from vssn_kernels.ops import flops, in_place, registration
from vssn_kernels.ops.flops import Shape
from vssn_kernels.reference import gru as reference

_OP = "gru_sequence"
# A backend with gru_output takes a change of output in place before backward. (torch.nn.GRU does on the CPU; cuDNN does
# not.)
declare(_OP, functions=("gru_forward", "gru_backward"), optional=("gru_output",), reference=reference)


def gru_sequence(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """GRU recurrence, equations of torch.nn.GRU (Cho et al. 2014, with the reset gate after the product)::

        r, z = sigmoid(gates_x[r, z] + W_h[r, z] h + b[r, z])
        n    = tanh(gates_x[n] + r * (W_hn h + b_n));   h' = (1 - z) n + z h

    Args:
        gates_x: [T, B, 3H] input projections x_t W_ih^T + b_ih, gate order r, z, n.
        h0: [B, H] first state; float32 is taken beside half-precision inputs.
        weight_hh: [3H, H].
        bias_hh: [3H].
        lengths: [B] int64 on the tensors' device, each in [0, T]; steps t >= lengths[b] are padding: output 0,
            state carried, never read. None: all T steps.
        reverse: run from each sequence's last valid step to its first.
        backend: "reference", "cpu", "cuda" or "triton"; None: `use_backend`, VSSN_BACKEND, else the fastest.

    Returns:
        output [T, B, H] in the dtype of gates_x, h_n [B, H] in the dtype of h0: the state after the last step taken.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; or a backend that is not there.
        RuntimeError: where a gradient is differentiated again, on a backend other than "reference".
    """
    arguments.require_tensors(_OP, gates_x=gates_x, h0=h0, weight_hh=weight_hh, bias_hh=bias_hh)
    arguments.require_floating(_OP, "gates_x", gates_x)
    if lengths is not None:
        arguments.require_tensors(_OP, lengths=lengths)
    arguments.require_flag(_OP, "reverse", reverse)
    if registration.autocast_is_on(gates_x.device):
        dtype = registration.autocast_dtype(gates_x.device)
        gates_x, weight_hh, bias_hh = (registration.cast(t, dtype) for t in (gates_x, weight_hh, bias_hh))
        h0 = registration.cast_state(h0, dtype)
    chosen = choose(_OP, backend, gates_x.device, gates_x.dtype)
    output, h_n, _ = _op(gates_x, h0, weight_hh, bias_hh, lengths, reverse, False, chosen)
    return output, h_n


def _check(gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Tensor | None) -> None:
    width, hidden = weight_hh.shape if weight_hh.dim() == 2 else (0, 0)
    if (
        lengths is None
        and width == 3 * hidden > 0
        and gates_x.dim() == 3
        and gates_x.shape[2] == width
        and h0.shape == (gates_x.shape[1], hidden)
        and bias_hh.shape == (width,)
        and gates_x.dtype == h0.dtype == weight_hh.dtype == bias_hh.dtype
        and gates_x.device == h0.device == weight_hh.device == bias_hh.device
    ):
        return  # the common case, in a third of the time that naming what is wrong takes
    if gates_x.dim() != 3:
        raise ValueError(f"{_OP}: gates_x must have shape [T, B, 3H], got {arguments.shape_text(gates_x.shape)}")
    _, batch, width = gates_x.shape
    if width % 3 != 0 or width == 0:
        raise ValueError(f"{_OP}: gates_x must have a last size 3H, H >= 1, got {arguments.shape_text(gates_x.shape)}")
    hidden = width // 3
    arguments.require_shape(_OP, "h0", h0, "[B, H]", (batch, hidden))
    arguments.require_shape(_OP, "weight_hh", weight_hh, "[3H, H]", (width, hidden))
    arguments.require_shape(_OP, "bias_hh", bias_hh, "[3H]", (width,))
    arguments.require_alike(_OP, "gates_x", gates_x, {"h0": h0, "weight_hh": weight_hh, "bias_hh": bias_hh}, ("h0",))
    arguments.require_lengths_form(_OP, lengths, batch, gates_x.device)


def _kernel(gates_x, h0, weight_hh, bias_hh, lengths, reverse, need_backward, backend):
    _check(gates_x, h0, weight_hh, bias_hh, lengths)
    lengths = arguments.checked_lengths(_OP, lengths, gates_x.shape[0])
    forward = implementation(backend, "gru_forward")
    return forward(gates_x, h0, weight_hh, bias_hh, lengths, reverse, need_backward)


def _fake(gates_x, h0, weight_hh, bias_hh, lengths, reverse, need_backward, backend):
    _check(gates_x, h0, weight_hh, bias_hh, lengths)
    steps, batch, _ = gates_x.shape
    hidden = weight_hh.shape[1]
    gates = gates_x.new_empty(steps, batch, 4 * hidden) if need_backward else gates_x.new_empty(0)
    return gates_x.new_empty(steps, batch, hidden), h0.new_empty(batch, hidden), gates


def _backward_kernel(grad_output, grad_h_n, output, gates, h0, weight_hh, lengths, reverse, needs, backend):
    lengths = arguments.checked_lengths(_OP, lengths, output.shape[0])
    backward = implementation(backend, "gru_backward")
    grads = backward(grad_output, grad_h_n, output, gates, h0, weight_hh, lengths, reverse, needs)
    return registration.pack_grads(grads, output)


def _backward_fake(grad_output, grad_h_n, output, gates, h0, weight_hh, lengths, reverse, needs, backend):
    steps, batch, hidden = output.shape
    grad_gates_x = output.new_empty(steps, batch, 3 * hidden) if needs[0] else output.new_empty(0)
    grad_bias = output.new_empty(3 * hidden) if needs[3] else output.new_empty(0)
    grad_h0, grad_weight = registration.empty_gradients((h0, weight_hh), needs[1:3], output)
    return grad_gates_x, grad_h0, grad_weight, grad_bias


def _output_kernel(gates, h0, lengths, reverse, backend):
    lengths = arguments.checked_lengths(_OP, lengths, gates.shape[0])
    return implementation(backend, "gru_output")(gates, h0, lengths, reverse)


def _output_fake(gates, h0, lengths, reverse, backend):
    return gates.new_empty(*gates.shape[:2], h0.shape[1])


@flops.formula(_OP)
def _flops(gates_x: Shape, h0: Shape, weight_hh: Shape, *_: object, **__: object) -> int:
    return flops.product(gates_x[0], *h0, weight_hh[0])


@flops.formula(f"{_OP}_backward")
def _backward_flops(
    grad_output: object, grad_h_n: object, output: Shape, gates: Shape, h0: Shape, weight_hh: Shape,
    lengths: object, reverse: bool, needs: Sequence[bool], *_: object, **__: object,
) -> int:  # fmt: skip
    return flops.product(*output, weight_hh[0]) * (1 + needs[2])


registration.define(
    f"{_OP}(Tensor gates_x, Tensor h0, Tensor weight_hh, Tensor bias_hh, Tensor? lengths, bool reverse, "
    "bool need_backward, str backend) -> (Tensor output, Tensor h_n, Tensor gates)",
    _kernel,
    _fake,
)
registration.define(
    f"{_OP}_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor gates, Tensor h0, "
    "Tensor weight_hh, Tensor? lengths, bool reverse, bool[] needs, str backend) -> "
    "(Tensor grad_gates_x, Tensor grad_h0, Tensor grad_weight_hh, Tensor grad_bias_hh)",
    _backward_kernel,
    _backward_fake,
)
registration.define(
    f"{_OP}_output(Tensor gates, Tensor h0, Tensor? lengths, bool reverse, str backend) -> Tensor",
    _output_kernel,
    _output_fake,
)
_op, _backward_op = registration.caller(_OP), registration.caller(f"{_OP}_backward")
_output_op = registration.caller(f"{_OP}_output")


def _plain(gates_x, h0, weight_hh, bias_hh, lengths, reverse, need_backward, backend):
    _check(gates_x, h0, weight_hh, bias_hh, lengths)
    lengths = registration.lengths_as_checked(_OP, lengths, gates_x.shape[0])
    output, h_n = reference.gru_sequence(gates_x, h0, weight_hh, bias_hh, lengths=lengths, reverse=reverse)
    return output, h_n.clone() if h_n is h0 else h_n, gates_x.new_empty(0)


class _GruSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, gates_x, h0, weight_hh, bias_hh, lengths, reverse, need_backward, backend):
        output, h_n, gates = run(gates_x, h0, weight_hh, bias_hh, lengths, reverse, True, backend)
        # What a second derivative would need is 3H a step more: only the reference keeps it.
        again = (gates_x, bias_hh) if backend == "reference" else (None, None)
        kept, ctx.changed = in_place.keep(output) if offers(backend, "gru_output") else (output, None)
        ctx.save_for_backward(kept, gates, h0, weight_hh, lengths, *again)
        ctx.reverse, ctx.backend = reverse, backend
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        return output, h_n, gates

    @staticmethod
    def backward(ctx, grad_output, grad_h_n, _):
        output, gates, h0, weight_hh, lengths, gates_x, bias_hh = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[1:5])
        if gates_x is not None and registration.takes_plain_backward((grad_output, grad_h_n)):

            def plain(*inputs):
                return reference.gru_sequence(*inputs, lengths=lengths, reverse=ctx.reverse)

            inputs = (gates_x, h0, weight_hh, bias_hh)
            grads = registration.differentiate_again(plain, inputs, (grad_output, grad_h_n), needs)
        else:
            if ctx.changed:
                output = _output_op(gates, h0, lengths, ctx.reverse, ctx.backend)
            grads = registration.unpack_grads(
                _backward_op(
                    grad_output, grad_h_n, output, gates, h0, weight_hh, lengths, ctx.reverse, needs, ctx.backend
                ),
                needs,
            )
        return None, *grads, None, None, None, None


registration.define_autograd(_OP, _GruSequence, _plain)
registration.define_first_order(f"{_OP}_backward", _OP)
registration.define_first_order(f"{_OP}_output", _OP)
