"""A single step of a whole layer of torch.nn.GRU in one call, and one node of autograd. Not public: for vssn/nn/gru.py.

What a call of a few rows costs is the way to the numbers: the input's product as a call of PyTorch's own and the op
behind it are two nodes with what PyTorch does around each. A call that asks for more than numbers and their gradients
is left to these two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssn_kernels.ops import fast_path, registration
from vssn_kernels.ops.gru import gru_sequence
from vssn_kernels.ops.prepared import is_unseen

_OP = "gru_sequence"


def gru_layer_step(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """x [1, B, X], h [B, H] to (output [1, B, H], h_n [B, H]); None where a call asks for more than numbers and
    gradients, or the tensors do not fit: for `gru_sequence` to run, or to say so."""
    biases = () if bias_ih is None or bias_hh is None else (bias_ih, bias_hh)
    width, hidden, dtype = x.shape[-1], h.shape[-1], h.dtype
    if not (
        is_unseen(_OP, (x, h, weight_ih, weight_hh, *biases))
        and x.shape == (1, h.shape[0], width)
        and weight_ih.shape == (3 * hidden, width)
        and weight_hh.shape == (3 * hidden, hidden)
        and x.dtype == weight_ih.dtype == weight_hh.dtype == dtype
        and all(bias.shape == (3 * hidden,) and bias.dtype == dtype for bias in biases)
    ):
        return None
    return _call(x, h, weight_ih, weight_hh, bias_ih, bias_hh)[:2]


def _kernel(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    need_backward: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backend's, imported where it is there: `is_unseen` has asked."""
    from vssn_kernels.backend.cpu.gru import gru_layer_step

    return gru_layer_step(x, h, weight_ih, weight_hh, bias_ih, bias_hh, need_backward)


def _composed(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's product and the op."""
    bias = weight_hh.new_zeros(len(weight_hh)) if bias_hh is None else bias_hh
    return gru_sequence(F.linear(x, weight_ih, bias_ih), h, weight_hh, bias, backend="cpu")


class _LayerStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *given):
        output, h_n, gates = run(*given, need_backward=True)
        ctx.save_for_backward(*given, gates)
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    def backward(ctx, grad_output, grad_h_n):
        from vssn_kernels.backend.cpu.gru import gru_layer_step_backward

        *given, gates = ctx.saved_tensors
        needs, grads = ctx.needs_input_grad[1:], (grad_output, grad_h_n)
        # Somebody may look on now who did not at forward, or the gradients be of another kind.
        if registration.takes_plain_backward(grads) or not fast_path.is_open((*grads, *given, gates)):
            return None, *registration.differentiate_again(_composed, given, grads, needs)
        x, h, weight_ih, weight_hh, *_ = given
        return None, *gru_layer_step_backward(grad_output, grad_h_n, gates, x, h, weight_ih, weight_hh, needs)


_call = fast_path.direct(_kernel, _LayerStep, None)
