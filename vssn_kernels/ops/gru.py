"""gru_sequence: the GRU recurrence over a whole sequence as one op."""

from __future__ import annotations

from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.ops import gru_forms
from vssn_kernels.reference import gru as reference

_OP = "gru_sequence"


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
    if lengths is not None:
        arguments.require_tensors(_OP, lengths=lengths)
    return _call(gates_x, h0, weight_hh, bias_hh, lengths, reverse, backend)


def _check(gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Tensor | None) -> None:
    gru_forms.check_tensors(_OP, gates_x, h0, weight_hh, bias_hh, padded=True)
    arguments.require_lengths_form(_OP, lengths, gates_x.shape[1], gates_x.device)


def _checked(lengths: Tensor | None, sequence: Tensor, h0: Tensor) -> Tensor | None:
    return arguments.checked_lengths(_OP, lengths, sequence.shape[0])


def _plain(
    gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    return reference.gru_sequence(gates_x, h0, weight_hh, bias_hh, lengths=lengths, reverse=reverse)


_call = gru_forms.define(gru_forms.Form(_OP, "gru", "Tensor? lengths", _check, _checked, reference, _plain))
