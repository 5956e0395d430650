"""gru_sequence and gru_packed on the CPU: csrc/cpu/gru.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssn_kernels import _cpu
from vssn_kernels.backend.common import Grads, as_rows, as_steps, pointer, row_arguments, step_arguments
from vssn_kernels.backend.cpu.call import empty_like, empty_sums, storage, stored, widened
from vssn_kernels.reference import gru_packed
from vssn_kernels.reference.gru import states


def gru_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, B, H], h_n [B, H], gates [T, B, 4H]: r, z, n and W_hn h + b_hn; empty where not needed)"""
    shape, gates_x_ = gates_x.shape[:2], as_steps(gates_x)
    sequence = step_arguments(gates_x_)
    return forward(shape, sequence, shape[0], lengths, None, h0, weight_hh, bias_hh, reverse, need_backward)


def gru_packed_forward(
    gates_x: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    batch_sizes: Tensor,
    reverse: bool,
    need_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output [N, H], h_n [B, H], gates [N, 4H]; empty where not needed)"""
    shape, gates_x_ = gates_x.shape[:1], as_rows(gates_x)
    sequence, steps = packed_arguments(gates_x_), len(batch_sizes)
    return forward(shape, sequence, steps, None, batch_sizes, h0, weight_hh, bias_hh, reverse, need_backward)


def forward(
    shape: torch.Size,  # [T, B], or packed [N]
    gates_x: tuple[int, int, int],
    steps: int,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    reverse: bool,
    need_backward: bool,
    gates: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the functions above. gates: memory for them, not of a single step; gates_x may be its r, z, n."""
    batch, hidden = h0.shape
    if _is_one_step(steps, lengths, batch_sizes, weight_hh) and product_by_library(batch, hidden):
        output, h_n = h0.new_empty(*shape, hidden), h0.new_empty(batch, hidden)
        gates = h0.new_empty(*shape, 4 * hidden) if need_backward else h0.new_empty(0)
        cell(gates_x, h0, weight_hh, bias_hh, output, h_n, gates.data_ptr() if need_backward else 0)
        return output, h_n, gates
    h0_, weight, bias = as_rows(widened(h0)), as_rows(weight_hh), bias_hh.contiguous()
    output, h_n = bias.new_empty(*shape, hidden), h0_.new_empty(batch, hidden)
    if gates is None:
        gates = bias.new_empty(*shape, 4 * hidden) if need_backward else bias.new_empty(0)
    _cpu.gru_forward(
        storage=storage(bias),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        H=hidden,
        reverse=reverse,
        lengths=pointer(lengths),
        batch_sizes=pointer(batch_sizes),
        gates_x=gates_x,
        h0=row_arguments(h0_),
        weight=row_arguments(weight),
        bias=pointer(bias),
        output=output.data_ptr(),
        h_n=h_n.data_ptr(),
        gates=gates.data_ptr() if need_backward else 0,
    )
    return output, stored(h_n, h0.dtype), gates


def _is_one_step(steps: int, lengths: Tensor | None, batch_sizes: Tensor | None, weight_hh: Tensor) -> bool:
    """Whether the kernels of a single step may run: there are none for bfloat16."""
    return steps == 1 and lengths is batch_sizes is None and weight_hh.dtype is not torch.bfloat16


def product_by_library(rows: int, hidden: int) -> bool:
    """Whether W_hh h of a single step is PyTorch's product: for so many rows that weights as they are come too often
    from the caches, where packing them for one step costs more than PyTorch's product does."""
    return rows >= (32 if hidden < 512 else 16)


# Where PyTorch's product of few rows is faster turned: from so wide weights on, by what instructions it takes.
TURNED_FROM = 512 if torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AVX10")) else 1024


def turns_product(rows: int, width: int) -> bool:
    """Whether x W^T of x [rows, width] is computed as (W x^T)^T: few rows of wide weights, of which PyTorch's product
    reads W at a higher rate in this order. An Intel Xeon with AVX-512 takes 0.6 to 0.9 of the time, the copy included;
    an AMD EPYC with AVX2 0.5 to 1.1 from a width of 1024 on, and at 512 1.0 to 1.3."""
    return 16 <= rows <= 48 and width >= TURNED_FROM


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b of x [rows, width], rows contiguous."""
    if not turns_product(*x.shape):
        return torch.nn.functional.linear(x, weight, bias)
    if bias is None:
        return torch.mm(weight, x.t()).t().contiguous()
    return torch.addmm(bias[:, None], weight, x.t()).t().contiguous()


def cell(
    gates_x: tuple[int, int, int],
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    output: Tensor,
    h_n: Tensor,
    gates: int,
) -> None:
    (batch, hidden), h0_, bias, hidden_gates = h0.shape, as_rows(h0), bias_hh.contiguous(), product(h0, weight_hh)
    address, _, stride = gates_x
    _cpu.gru_cell(
        storage=storage(h0),
        threads=torch.get_num_threads(),
        B=batch,
        H=hidden,
        gates_x=(address, stride),
        product=row_arguments(hidden_gates),
        h=row_arguments(h0_),
        bias=pointer(bias),
        output=output.data_ptr(),
        h_n=h_n.data_ptr(),
        gates=gates,
    )


def cell_backward(
    grad_output: tuple[int, int, int],
    grad_h_n: Tensor | None,
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    shape: torch.Size,
    needs: Sequence[bool],
) -> Grads:
    need_gates_x, need_h0, need_weight, need_bias = needs
    batch, hidden = h0.shape
    gates = gates.contiguous()
    grad_gates_x, grad_product = h0.new_empty(*shape, 3 * hidden), h0.new_empty(batch, 3 * hidden)
    grad_h0, grad_h_n_, h0_ = empty_like(h0, need_h0), as_rows(grad_h_n), as_rows(h0)
    address, _, stride = grad_output
    _cpu.gru_cell_backward(
        storage=storage(h0),
        threads=torch.get_num_threads(),
        B=batch,
        H=hidden,
        grad_output=(address, stride),
        grad_h_n=row_arguments(grad_h_n_),
        h=row_arguments(h0_),
        gates=pointer(gates),
        grad_gates_x=grad_gates_x.data_ptr(),
        grad_product=grad_product.data_ptr(),
        grad_h=pointer(grad_h0),
    )
    return (
        grad_gates_x if need_gates_x else None,
        None if grad_h0 is None else grad_h0.addmm_(grad_product, weight_hh),
        torch.mm(grad_product.t(), h0) if need_weight else None,
        grad_product.sum(0) if need_bias else None,
    )


def gru_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (gates_x, h0, weight_hh, bias_hh)."""
    grad_output_ = as_steps(grad_output)
    sequence, steps = step_arguments(grad_output_), output.shape[0]
    return backward(sequence, grad_h_n, output, gates, h0, weight_hh, steps, lengths, None, reverse, needs)


def gru_packed_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    batch_sizes: Tensor,
    reverse: bool,
    needs: Sequence[bool],
) -> Grads:
    """Gradients of (gates_x, h0, weight_hh, bias_hh)."""
    grad_output_, steps = as_rows(grad_output), len(batch_sizes)
    sequence = packed_arguments(grad_output_)
    return backward(sequence, grad_h_n, output, gates, h0, weight_hh, steps, None, batch_sizes, reverse, needs)


def backward(
    grad_output: tuple[int, int, int],
    grad_h_n: Tensor | None,
    output: Tensor,  # [T, B, H], or packed [N, H]
    gates: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    steps: int,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    needs: Sequence[bool],
    over_gates: bool = False,
) -> Grads:
    """As the functions above. over_gates: not of a single step; the gradient of gates_x is written over gates, which
    are contiguous, and is a part of their memory."""
    shape, (batch, hidden) = output.shape[:-1], h0.shape
    need_gates_x, need_h0, need_weight, need_bias = needs
    if _is_one_step(steps, lengths, batch_sizes, weight_hh) and product_by_library(batch, hidden):
        return cell_backward(grad_output, grad_h_n, gates, h0, weight_hh, shape, needs)
    gates = gates.contiguous()  # hooks of autograd may have brought them back otherwise
    if over_gates:
        grad_gates_x, grad_a, strides = gates[..., : 3 * hidden], gates[..., 3 * hidden :], (4 * hidden, 4 * hidden)
    else:
        grad_gates_x, grad_a = output.new_empty(*shape, 3 * hidden), output.new_empty(*shape, hidden)
        strides = (3 * hidden, hidden)
    dtype = output.dtype
    # Of one row the gradient of the weight is one product each, no sum: it needs no float32 beside the result.
    outer = need_weight and dtype is torch.bfloat16 and steps == batch == 1 and lengths is batch_sizes is None
    grad_h0 = empty_sums(h0.shape, dtype, need_h0)
    grad_weight = empty_sums(weight_hh.shape, dtype, need_weight and not outer)
    grad_bias = empty_sums((3 * hidden,), dtype, need_bias)
    # The states before the other steps are there as stored.
    grad_h_n_, h0_, weight = as_rows(widened(grad_h_n)), as_rows(stored(h0, dtype)), as_rows(weight_hh)
    _cpu.gru_backward(
        storage=storage(output),
        threads=torch.get_num_threads(),
        steps=steps,
        B=batch,
        H=hidden,
        reverse=reverse,
        lengths=pointer(lengths),
        batch_sizes=pointer(batch_sizes),
        grad_output=grad_output,
        grad_h_n=row_arguments(grad_h_n_),
        output=pointer(output),
        gates=pointer(gates),
        h0=row_arguments(h0_),
        weight=row_arguments(weight),
        grad_gates_x=(grad_gates_x.data_ptr(), strides[0]),
        grad_a=(grad_a.data_ptr(), strides[1]),
        grad_h0=pointer(grad_h0),
        grad_weight=pointer(grad_weight),
        grad_bias=pointer(grad_bias),
    )
    if outer:
        grad_weight = torch.outer(torch.cat((grad_gates_x.view(-1)[: 2 * hidden], grad_a.view(-1))), h0_.view(-1))
    return (
        grad_gates_x if need_gates_x else None,
        stored(grad_h0, h0.dtype),
        stored(grad_weight, dtype),
        stored(grad_bias, dtype),
    )


def packed_arguments(rows: Tensor | None) -> tuple[int, int, int]:
    """What `as_rows` gave, as the kernels take a sequence: without a stride of T."""
    at, stride = row_arguments(rows)
    return at, 0, stride


def gru_output(gates: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Forward's output [T, B, H] once more, from the gates that it kept."""
    return stored(states(*_kept(gates), h0, lengths, reverse), gates.dtype)


def gru_packed_output(gates: Tensor, h0: Tensor, batch_sizes: Tensor, reverse: bool) -> Tensor:
    """Forward's output [N, H] once more, from the gates that it kept."""
    return stored(gru_packed.states(*_kept(gates), h0, batch_sizes, reverse), gates.dtype)


def _kept(gates: Tensor) -> tuple[Tensor, Tensor]:
    """z and n [..., H], from the gates [..., 4H]; float32 where they are bfloat16."""
    _, z, n, _ = widened(gates).chunk(4, -1)
    return z, n
