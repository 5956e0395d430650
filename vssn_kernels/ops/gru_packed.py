"""gru_packed: gru_sequence on the valid steps alone, packed as torch's PackedSequence has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.backend.table import choose, declare, implementation, offers
from vssn_kernels.ops import fast_path, flops, in_place, registration
from vssn_kernels.ops.flops import Shape
from vssn_kernels.reference import gru_packed as reference

_OP = "gru_packed"
declare(
    _OP,
    functions=("gru_packed_forward", "gru_packed_backward"),
    optional=("gru_packed_output",),  # as gru_sequence's gru_output
    reference=reference,
)


def gru_packed(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    *,
    batch_sizes: Tensor,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`gru_sequence` on a packed batch: memory and time go with the N valid steps, not with T times B.

    The batch is in order of falling length, and the rows are those of step 0, then those of step 1, ...: `data` and
    `batch_sizes` of a torch PackedSequence. The backends cuda and triton pad inside.

    Args:
        gates_x: [N, 3H] input projections x W_ih^T + b_ih, gate order r, z, n.
        h0: [B, H] first state, in the order of the batch; float32 is taken beside half-precision inputs.
        weight_hh: [3H, H].
        bias_hh: [3H].
        batch_sizes: [T] int64 on the CPU, each in [0, B], none above the one before, N in all: how many sequences have
            a step t. One that has none keeps its state.
        reverse: run from each sequence's last step to its first.
        backend: "reference", "cpu", "cuda" or "triton"; None: `use_backend`, VSSN_BACKEND, else the fastest.

    Returns:
        output [N, H] in the dtype of gates_x, h_n [B, H] in the dtype of h0: the state after the last step taken.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; or a backend that is not there.
        RuntimeError: where a gradient is differentiated again, on a backend other than "reference".
    """
    arguments.require_tensors(
        _OP, gates_x=gates_x, h0=h0, weight_hh=weight_hh, bias_hh=bias_hh, batch_sizes=batch_sizes
    )
    arguments.require_floating(_OP, "gates_x", gates_x)
    arguments.require_flag(_OP, "reverse", reverse)
    if registration.autocast_is_on(gates_x.device):
        dtype = registration.autocast_dtype(gates_x.device)
        gates_x, weight_hh, bias_hh = (registration.cast(t, dtype) for t in (gates_x, weight_hh, bias_hh))
        h0 = registration.cast_state(h0, dtype)
    chosen = choose(_OP, backend, gates_x.device, gates_x.dtype)
    output, h_n, _ = _op(gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, False, chosen)
    return output, h_n


def _check(gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, batch_sizes: Tensor) -> None:
    if gates_x.dim() != 2:
        raise ValueError(f"{_OP}: gates_x must have shape [N, 3H], got {arguments.shape_text(gates_x.shape)}")
    width = gates_x.shape[1]
    if width % 3 != 0 or width == 0:
        raise ValueError(f"{_OP}: gates_x must have a last size 3H, H >= 1, got {arguments.shape_text(gates_x.shape)}")
    hidden = width // 3
    if h0.dim() != 2:
        raise ValueError(f"{_OP}: h0 must have shape [B, H], got {arguments.shape_text(h0.shape)}")
    arguments.require_shape(_OP, "h0", h0, "[B, H]", (h0.shape[0], hidden))
    arguments.require_shape(_OP, "weight_hh", weight_hh, "[3H, H]", (width, hidden))
    arguments.require_shape(_OP, "bias_hh", bias_hh, "[3H]", (width,))
    arguments.require_alike(_OP, "gates_x", gates_x, {"h0": h0, "weight_hh": weight_hh, "bias_hh": bias_hh}, ("h0",))
    if batch_sizes.dtype != torch.int64:
        raise TypeError(f"{_OP}: batch_sizes must be int64, got {batch_sizes.dtype}; convert it with .long()")
    if batch_sizes.dim() != 1:
        raise ValueError(f"{_OP}: batch_sizes must have shape [T], got {arguments.shape_text(batch_sizes.shape)}")
    if batch_sizes.device.type not in ("cpu", "meta"):
        raise ValueError(
            f"{_OP}: batch_sizes must be on the CPU, as a PackedSequence has them, got {batch_sizes.device}; "
            "move it with .cpu()"
        )


def _checked_sizes(batch_sizes: Tensor, rows: int, batch: int) -> Tensor:
    """The batch sizes, contiguous. Raises ValueError unless they fall from B or less to 0 or more, `rows` in all."""
    sizes = batch_sizes.contiguous()
    if len(sizes):
        first, last = int(sizes[0]), int(sizes[-1])
        if first > batch or last < 0:
            raise ValueError(
                f"{_OP}: batch_sizes must lie in [0, B] = [0, {batch}], got {first if first > batch else last}"
            )
        if len(sizes) > 1 and not bool((sizes[1:] <= sizes[:-1]).all()):
            step = int((sizes[1:] > sizes[:-1]).nonzero()[0])
            pair = f"{int(sizes[step])} then {int(sizes[step + 1])}"
            raise ValueError(f"{_OP}: batch_sizes must not rise, got {pair} at step {step + 1}")
    if (total := int(sizes.sum())) != rows:
        raise ValueError(f"{_OP}: batch_sizes must add up to the N = {rows} rows of gates_x, got {total}")
    return sizes


def _kernel(gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, need_backward, backend):
    _check(gates_x, h0, weight_hh, bias_hh, batch_sizes)
    batch_sizes = _checked_sizes(batch_sizes, gates_x.shape[0], h0.shape[0])
    forward = implementation(backend, "gru_packed_forward")
    return forward(gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, need_backward)


def _fake(gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, need_backward, backend):
    _check(gates_x, h0, weight_hh, bias_hh, batch_sizes)
    rows, hidden = gates_x.shape[0], weight_hh.shape[1]
    gates = gates_x.new_empty(rows, 4 * hidden) if need_backward else gates_x.new_empty(0)
    return gates_x.new_empty(rows, hidden), h0.new_empty(h0.shape[0], hidden), gates


def _backward_kernel(grad_output, grad_h_n, output, gates, h0, weight_hh, batch_sizes, reverse, needs, backend):
    batch_sizes = _checked_sizes(batch_sizes, output.shape[0], h0.shape[0])
    backward = implementation(backend, "gru_packed_backward")
    grads = backward(grad_output, grad_h_n, output, gates, h0, weight_hh, batch_sizes, reverse, needs)
    return registration.pack_grads(grads, output)


def _backward_fake(grad_output, grad_h_n, output, gates, h0, weight_hh, batch_sizes, reverse, needs, backend):
    rows, hidden = output.shape
    grad_gates_x = output.new_empty(rows, 3 * hidden) if needs[0] else output.new_empty(0)
    grad_bias = output.new_empty(3 * hidden) if needs[3] else output.new_empty(0)
    grad_h0, grad_weight = registration.empty_gradients((h0, weight_hh), needs[1:3], output)
    return grad_gates_x, grad_h0, grad_weight, grad_bias


def _output_kernel(gates, h0, batch_sizes, reverse, backend):
    batch_sizes = _checked_sizes(batch_sizes, gates.shape[0], h0.shape[0])
    return implementation(backend, "gru_packed_output")(gates, h0, batch_sizes, reverse)


def _output_fake(gates, h0, batch_sizes, reverse, backend):
    return gates.new_empty(gates.shape[0], h0.shape[1])


@flops.formula(_OP)
def _flops(gates_x: Shape, h0: Shape, weight_hh: Shape, *_: object, **__: object) -> int:
    return flops.product(gates_x[0], h0[1], weight_hh[0])


@flops.formula(f"{_OP}_backward")
def _backward_flops(
    grad_output: object, grad_h_n: object, output: Shape, gates: Shape, h0: Shape, weight_hh: Shape,
    batch_sizes: object, reverse: bool, needs: Sequence[bool], *_: object, **__: object,
) -> int:  # fmt: skip
    return flops.product(*output, weight_hh[0]) * (1 + needs[2])


registration.define(
    f"{_OP}(Tensor gates_x, Tensor h0, Tensor weight_hh, Tensor bias_hh, Tensor batch_sizes, bool reverse, "
    "bool need_backward, str backend) -> (Tensor output, Tensor h_n, Tensor gates)",
    _kernel,
    _fake,
)
registration.define(
    f"{_OP}_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor gates, Tensor h0, "
    "Tensor weight_hh, Tensor batch_sizes, bool reverse, bool[] needs, str backend) -> "
    "(Tensor grad_gates_x, Tensor grad_h0, Tensor grad_weight_hh, Tensor grad_bias_hh)",
    _backward_kernel,
    _backward_fake,
)
registration.define(
    f"{_OP}_output(Tensor gates, Tensor h0, Tensor batch_sizes, bool reverse, str backend) -> Tensor",
    _output_kernel,
    _output_fake,
)
_op, _backward_op = registration.caller(_OP), registration.caller(f"{_OP}_backward")
_output_op = registration.caller(f"{_OP}_output")


def _plain(gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, need_backward, backend):
    _check(gates_x, h0, weight_hh, bias_hh, batch_sizes)
    if fast_path.is_plain(batch_sizes):
        batch_sizes = _checked_sizes(batch_sizes, gates_x.shape[0], h0.shape[0])
    output, h_n = reference.gru_packed(gates_x, h0, weight_hh, bias_hh, batch_sizes=batch_sizes, reverse=reverse)
    return output, h_n.clone() if h_n is h0 else h_n, gates_x.new_empty(0)


class _GruPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, need_backward, backend):
        output, h_n, gates = run(gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, True, backend)
        # What a second derivative would need is 3H a step more: only the reference keeps it.
        again = (gates_x, bias_hh) if backend == "reference" else (None, None)
        kept, ctx.changed = in_place.keep(output) if offers(backend, "gru_packed_output") else (output, None)
        ctx.save_for_backward(kept, gates, h0, weight_hh, batch_sizes, *again)
        ctx.reverse, ctx.backend = reverse, backend
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        return output, h_n, gates

    @staticmethod
    def backward(ctx, grad_output, grad_h_n, _):
        output, gates, h0, weight_hh, batch_sizes, gates_x, bias_hh = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[1:5])
        if gates_x is not None and registration.takes_plain_backward((grad_output, grad_h_n)):

            def plain(*inputs):
                return reference.gru_packed(*inputs, batch_sizes=batch_sizes, reverse=ctx.reverse)

            inputs = (gates_x, h0, weight_hh, bias_hh)
            grads = registration.differentiate_again(plain, inputs, (grad_output, grad_h_n), needs)
        else:
            if ctx.changed:
                output = _output_op(gates, h0, batch_sizes, ctx.reverse, ctx.backend)
            grads = registration.unpack_grads(
                _backward_op(
                    grad_output, grad_h_n, output, gates, h0, weight_hh, batch_sizes, ctx.reverse, needs, ctx.backend
                ),
                needs,
            )
        return None, *grads, None, None, None, None


registration.define_autograd(_OP, _GruPacked, _plain)
registration.define_first_order(f"{_OP}_backward", _OP)
registration.define_first_order(f"{_OP}_output", _OP)
