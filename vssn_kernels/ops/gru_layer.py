"""A whole layer of torch.nn.GRU in one call, and one node of autograd. Not public: for vssn/nn/gru.py.

Of a single step it costs most to get to the numbers: the input's product as a call of PyTorch's own and the op behind
it are two nodes with what PyTorch does around each. Of a long sequence the memory costs: two nodes keep gates_x
[T, B, 3H] and the gates [T, B, 4H], and backward their gradients beside them. One node has one array for all, in which
the gates are written over gates_x and, where the graph is not kept, their gradients over the gates.

A call that asks for more than numbers and their gradients is left to the product and the op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn_kernels.arguments import checked_lengths
from vssn_kernels.ops import fast_path, in_place, registration, saved_tensors, torch_internals
from vssn_kernels.ops.gru import gru_sequence
from vssn_kernels.ops.gru_packed import checked_sizes, gru_packed
from vssn_kernels.ops.prepared import is_unseen

_OP, _CPU = "gru_sequence", torch.device("cpu")


def gru_layer(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """x [T, B, X], or packed [N, X] with batch_sizes, and h0 [B, H] to (output [T, B, H] or [N, H], h_n [B, H]) of a
    call with a gradient of weight_ih. None where none is asked for, or more than numbers and gradients, or where the
    tensors do not fit: for the op to run, or to say so."""
    tensors = [tensor for tensor in (x, h0, weight_ih, weight_hh, bias_ih, bias_hh) if tensor is not None]
    width, hidden, steps = x.shape[-1], h0.shape[-1], lengths if batch_sizes is None else batch_sizes
    if not (
        is_unseen(_OP, tensors if steps is None else (*tensors, steps))
        and torch.is_grad_enabled()
        and weight_ih.requires_grad  # else x is not to be kept
        and not any(tensor.is_inference() for tensor in tensors)
        and x.numel() > 0
        and (x.shape[1:] == (len(h0), width) if batch_sizes is None else x.dim() == 2)
        and h0.dim() == 2
        and weight_ih.shape == (3 * hidden, width)
        and weight_hh.shape == (3 * hidden, hidden)
        and all(bias is None or bias.shape == (3 * hidden,) for bias in (bias_ih, bias_hh))
        and all(tensor.dtype is x.dtype for tensor in tensors)
        and (steps is None or (steps.dtype is torch.int64 and steps.dim() == 1))
        and (lengths is None or len(lengths) == len(h0))
    ):
        return None
    lengths = checked_lengths(_OP, lengths, len(x))
    batch_sizes = None if batch_sizes is None else checked_sizes(batch_sizes, x, h0)
    return _apply_layer(x, h0, weight_ih, weight_hh, bias_ih, bias_hh, lengths, batch_sizes, reverse)


def gru_layer_step(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """x [1, B, X], h [B, H] to (output [1, B, H], h_n [B, H]); None where a call asks for more than numbers and
    gradients, or the tensors do not fit: for `gru_sequence` to run, or to say so."""
    biases = () if bias_ih is None or bias_hh is None else (bias_ih, bias_hh)
    width, hidden, dtype = x.shape[-1], h.shape[-1], h.dtype
    if not (
        is_unseen(_OP, (x, h, weight_ih, weight_hh, *biases))
        and not (torch.is_grad_enabled() and any(part.is_inference() for part in (x, weight_ih, *biases)))
        and x.shape == (1, h.shape[0], width)
        and weight_ih.shape == (3 * hidden, width)
        and weight_hh.shape == (3 * hidden, hidden)
        and x.dtype == weight_ih.dtype == weight_hh.dtype == dtype
        and all(bias.shape == (3 * hidden,) and bias.dtype == dtype for bias in biases)
    ):
        return None
    return _call_step(x, h, weight_ih, weight_hh, bias_ih, bias_hh)[:2]


def _composed(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's product and the op."""
    bias, gates_x = weight_hh.new_zeros(len(weight_hh)) if bias_hh is None else bias_hh, F.linear(x, weight_ih, bias_ih)
    if batch_sizes is not None:
        return gru_packed(gates_x, h0, weight_hh, bias, batch_sizes=batch_sizes, reverse=reverse, backend="cpu")
    return gru_sequence(gates_x, h0, weight_hh, bias, lengths=lengths, reverse=reverse, backend="cpu")


def _without_autocast(backward: Callable) -> Callable:
    """What ran without it goes back without it."""

    @wraps(backward)
    def run(*args):
        if not registration.autocast_is_on(_CPU):
            return backward(*args)
        with torch.autocast("cpu", enabled=False):
            return backward(*args)

    return run


def _keep(ctx: Any, given: Sequence[Tensor | None], needs: Sequence[bool], *own: Tensor | None) -> None:
    """Saves what backward reads of x, h, both weights and both biases, and what is its own. The others are for the
    composed form alone: in-place changes of them, which PyTorch allows, are an error only there."""
    read = (needs[2], True, needs[0], True, False, False)
    saved_tensors.keep(ctx, *own, *(part if reads else None for part, reads in zip(given, read, strict=True)))
    ctx.rest = [
        None if reads or part is None else (part, in_place.Changes(part))
        for part, reads in zip(given, read, strict=True)
    ]


def _composed_grads(ctx: Any, saved: Sequence[Tensor | None], *args: Any, **steps: Any) -> tuple[Tensor | None, ...]:
    """`registration.differentiate_again` of what `_keep` was given. Args: saved: what it saved of that."""
    given = []
    for part, rest in zip(saved, ctx.rest, strict=True):
        if rest is not None and rest[1]:
            raise RuntimeError(
                "vssn.GRU: an input, a weight or a bias was changed in place since the call; leave them as they are "
                "until backward where a gradient is differentiated, or taken under a transform"
            )
        given.append(part if rest is None else rest[0])
    return registration.differentiate_again(partial(_composed, **steps), given, *args)


# The backend's functions are imported where it is there: `is_unseen` has asked.


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h0, weight_ih, weight_hh, bias_ih, bias_hh, lengths, batch_sizes, reverse):
        from vssn_kernels.backend.cpu.gru_layer import gru_layer_forward

        given = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
        output, h_n, gates = gru_layer_forward(*given, lengths, batch_sizes, reverse)
        kept, ctx.changed = in_place.keep(output)
        steps = saved_tensors.own(lengths), saved_tensors.own(batch_sizes)
        _keep(ctx, given, ctx.needs_input_grad, kept, gates, *steps)
        ctx.reverse = reverse
        # Only what is certain to be nobody else's is written over.
        ctx.gates = None if torch_internals.saving_hooks() else gates.data_ptr()
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    @_without_autocast
    def backward(ctx, grad_output, grad_h_n):
        from vssn_kernels.backend.cpu.gru import gru_output, gru_packed_output
        from vssn_kernels.backend.cpu.gru_layer import gru_layer_backward

        output, gates, lengths, batch_sizes, *given = saved_tensors.kept(ctx, _OP)
        needs, reverse, grads = ctx.needs_input_grad[:6], ctx.reverse, (grad_output, grad_h_n)
        if _is_seen(grads, (*given, gates)):
            steps = {"lengths": lengths, "batch_sizes": batch_sizes, "reverse": reverse}
            return *_composed_grads(ctx, given, grads, needs, **steps), None, None, None
        x, h0, weight_ih, weight_hh, *_ = given
        if ctx.changed and batch_sizes is None:
            output = gru_output(gates, h0, lengths, reverse)
        elif ctx.changed:
            output = gru_packed_output(gates, h0, batch_sizes, reverse)
        over_gates = ctx.gates == gates.data_ptr() and not torch_internals.keeps_graph()
        if over_gates:
            torch.autograd.graph.increment_version(gates)
        found = gru_layer_backward(
            *grads, output, gates, x, h0, weight_ih, weight_hh, lengths, batch_sizes, reverse, needs, over_gates
        )
        return *found, None, None, None


class _LayerStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *given):
        output, h_n, gates = run(*given, need_backward=True)
        _keep(ctx, given, ctx.needs_input_grad[1:], gates)
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    @_without_autocast
    def backward(ctx, grad_output, grad_h_n):
        from vssn_kernels.backend.cpu.gru_layer import gru_layer_step_backward

        gates, *given = saved_tensors.kept(ctx, _OP)
        needs, grads = ctx.needs_input_grad[1:], (grad_output, grad_h_n)
        if _is_seen(grads, (*given, gates)):
            return None, *_composed_grads(ctx, given, grads, needs)
        x, h, weight_ih, weight_hh, *_ = given
        return None, *gru_layer_step_backward(*grads, gates, x, h, weight_ih, weight_hh, needs)


def _is_seen(grads: tuple[Tensor | None, ...], tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether somebody looks on at backward who did not at forward, or the gradients are of another kind. Who traces it
    would leave out what the kernels read by its address."""
    if torch.compiler.is_compiling() or registration.takes_plain_backward(grads):
        return True
    return not fast_path.is_open((*grads, *tensors))


def _step(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    need_backward: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    from vssn_kernels.backend.cpu.gru_layer import gru_layer_step

    return gru_layer_step(x, h, weight_ih, weight_hh, bias_ih, bias_hh, need_backward)


_apply_layer = super(torch.autograd.Function, _Layer).apply  # as fast_path.direct does
_call_step = fast_path.direct(_step, _LayerStep, None)
