"""Weights packed once for many calls on the CPU: csrc/cpu/gru_step.cpp, and csrc/cpu/mlp.cpp with panels of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import as_rows, pointer, row_arguments
from vssn_kernels.backend.cpu.call import storage
from vssn_kernels.backend.cpu.mlp import columns_of


class PreparedGru:
    """A step of the GRU: gates_x [B, 3H], h [B, H] to the next h [B, H]."""

    def __init__(self, weight_hh: Tensor, bias_hh: Tensor) -> None:
        self.hidden, self.dtype, self.storage = weight_hh.shape[1], weight_hh.dtype, storage(weight_hh)
        weight = as_rows(weight_hh.detach())
        size = _cpu.gru_pack(storage=self.storage, H=self.hidden, weight=(0, 0), panels=0)
        self.panels = torch.empty(size, dtype=self.dtype)
        _cpu.gru_pack(storage=self.storage, H=self.hidden, weight=row_arguments(weight), panels=self.panels.data_ptr())
        self.bias = bias_hh.detach().clone(memory_format=torch.contiguous_format)

    def fits(self, gates_x: Tensor, h: Tensor) -> bool:
        """Whether a call takes these tensors."""
        return (
            h.dim() == 2
            and h.shape[1] == self.hidden
            and gates_x.shape == (h.shape[0], 3 * self.hidden)
            and gates_x.dtype == h.dtype == self.dtype
        )

    def __call__(self, gates_x: Tensor, h: Tensor) -> Tensor:
        gates_x_, h_ = as_rows(gates_x), as_rows(h)
        out = torch.empty(h.shape, dtype=self.dtype)
        _cpu.gru_step(
            storage=self.storage,
            threads=torch.get_num_threads(),
            B=h.shape[0],
            H=self.hidden,
            gates_x=row_arguments(gates_x_),
            h=row_arguments(h_),
            panels=self.panels.data_ptr(),
            bias=pointer(self.bias),
            out=out.data_ptr(),
        )
        return out


class PreparedMlp:
    """One or two layers over inputs of the sizes `widths`: x_i [..., K_i] to (out [..., O], logvar or an empty one)."""

    def __init__(
        self,
        widths: Sequence[int],
        weights: Sequence[Tensor],
        bias: Tensor,
        weight_out: Tensor | None,
        bias_out: Tensor | None,
        activation: str,
        min_logvar: float | None,
    ) -> None:
        self.widths, self.activation, self.dtype = list(widths), activation, bias.dtype
        self.storage, self.hidden = storage(bias), bias.shape[0]
        self.floored, self.min_logvar = min_logvar is not None, 0.0 if min_logvar is None else min_logvar
        self.two, self.columns = weight_out is not None, self.hidden
        if weight_out is not None:
            self.columns = weight_out.shape[0] // (2 if self.floored else 1)
        rows = [as_rows(weight.detach()) for weight in weights]
        out = None if weight_out is None else as_rows(weight_out.detach())
        self.panels = torch.empty(self._pack(rows, out, 0), dtype=self.dtype)
        self._pack(rows, out, self.panels.data_ptr())
        self.bias, self.bias_out = (
            None if b is None else b.detach().clone(memory_format=torch.contiguous_format) for b in (bias, bias_out)
        )
        # Where a kernel looks for its weights: it reads none, but a second layer is known by its own.
        self._nowhere = [(0, 0)] * len(self.widths)
        self._out = (self.panels.data_ptr(), 0) if self.two else (0, 0)

    def _pack(self, weights: Sequence[Tensor], weight_out: Tensor | None, panels: int) -> int:
        return _cpu.mlp_pack(
            storage=self.storage,
            M=self.hidden,
            O=self.columns,
            floored=self.floored,
            K=self.widths,
            weight=columns_of(weights, self.widths),
            weight_out=row_arguments(weight_out),
            panels=panels,
        )

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a call takes these tensors."""
        if len(inputs) != len(self.widths):
            return False
        leading, dtype = inputs[0].shape[:-1], self.dtype
        for x, width in zip(inputs, self.widths, strict=True):
            if x.dtype != dtype or not x.dim() or x.shape[-1] != width or x.shape[:-1] != leading:
                return False
        return True

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        leading, rows = inputs[0].shape[:-1], [as_rows(x) for x in inputs]
        out = torch.empty((*leading, self.columns), dtype=self.dtype)
        logvar = torch.empty((*leading, self.columns), dtype=self.dtype) if self.floored else None
        _cpu.mlp_forward(
            storage=self.storage,
            threads=torch.get_num_threads(),
            N=leading.numel(),
            M=self.hidden,
            O=self.columns,
            activation=self.activation,
            floored=self.floored,
            min_logvar=self.min_logvar,
            K=self.widths,
            x=[row_arguments(x) for x in rows],
            weight=self._nowhere,
            bias=pointer(self.bias),
            weight_out=self._out,
            bias_out=pointer(self.bias_out),
            panels=self.panels.data_ptr(),
            out=out.data_ptr(),
            logvar=pointer(logvar),
            hidden=0,
        )
        return out, logvar
