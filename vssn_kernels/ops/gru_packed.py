"""gru_packed: gru_sequence on the valid steps alone, packed as torch's PackedSequence has them."""

from __future__ import annotations

import torch
from torch import Tensor

from vssn_kernels import arguments
from vssn_kernels.ops import gru_forms
from vssn_kernels.reference import gru_packed as reference

_OP = "gru_packed"


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
    return _call(gates_x, h0, weight_hh, bias_hh, batch_sizes, reverse, backend)


def _check(gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, batch_sizes: Tensor) -> None:
    gru_forms.check_tensors(_OP, gates_x, h0, weight_hh, bias_hh, padded=False)
    if batch_sizes.dtype != torch.int64:
        raise TypeError(f"{_OP}: batch_sizes must be int64, got {batch_sizes.dtype}; convert it with .long()")
    if batch_sizes.dim() != 1:
        raise ValueError(f"{_OP}: batch_sizes must have shape [T], got {arguments.shape_text(batch_sizes.shape)}")
    if batch_sizes.device.type != "cpu" and not (batch_sizes.is_meta and gates_x.is_meta):
        raise ValueError(
            f"{_OP}: batch_sizes must be on the CPU, as a PackedSequence has them, got {batch_sizes.device}; "
            "move it with .cpu()"
        )


def checked_sizes(batch_sizes: Tensor, sequence: Tensor, h0: Tensor) -> Tensor:
    """The batch sizes, contiguous. Raises ValueError unless they fall from B or less to 0 or more, N in all."""
    sizes, rows, batch = batch_sizes.contiguous(), sequence.shape[0], h0.shape[0]
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


def _plain(
    gates_x: Tensor, h0: Tensor, weight_hh: Tensor, bias_hh: Tensor, batch_sizes: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    return reference.gru_packed(gates_x, h0, weight_hh, bias_hh, batch_sizes=batch_sizes, reverse=reverse)


_call = gru_forms.define(gru_forms.Form(_OP, _OP, "Tensor batch_sizes", _check, checked_sizes, reference, _plain))
