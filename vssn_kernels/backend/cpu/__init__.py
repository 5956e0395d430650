"""The `cpu` backend: C++ kernels in csrc/cpu, called once per sequence on memory that PyTorch allocates.

Tensors arrive checked (shape, dtype, device, lengths). Last-dimension-contiguous strides are passed on; other tensors
are copied. Every function returns freshly allocated tensors, written in full.
"""

from __future__ import annotations

import os

import torch  # before _cpu, so that the extension uses the OpenMP runtime that PyTorch has loaded

from vssn_kernels import _cpu
from vssn_kernels.backend.cpu.bernoulli import bernoulli_log_prob_backward, bernoulli_log_prob_forward
from vssn_kernels.backend.cpu.gaussian import gaussian_backward, gaussian_forward
from vssn_kernels.backend.cpu.gru import (
    gru_backward,
    gru_forward,
    gru_output,
    gru_packed_backward,
    gru_packed_forward,
    gru_packed_output,
)
from vssn_kernels.backend.cpu.interleaved import interleaved_backward, interleaved_forward
from vssn_kernels.backend.cpu.mlp import mlp_backward, mlp_forward
from vssn_kernels.backend.cpu.posterior import posterior_backward, posterior_forward

__all__ = [
    "bernoulli_log_prob_backward",
    "bernoulli_log_prob_forward",
    "gaussian_backward",
    "gaussian_forward",
    "gru_backward",
    "gru_forward",
    "gru_output",
    "gru_packed_backward",
    "gru_packed_forward",
    "gru_packed_output",
    "info",
    "interleaved_backward",
    "interleaved_forward",
    "mlp_backward",
    "mlp_forward",
    "posterior_backward",
    "posterior_forward",
]


def _after_fork() -> None:
    # The threads of the parent's OpenMP pool do not exist in the child: a parallel region, ours or PyTorch's,
    # would wait for them forever.
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)


def info() -> str:
    """The instruction set in use, threads and compiler, for bug reports."""
    return f"{_cpu.isa()} instructions, {torch.get_num_threads()} threads, built by {_cpu.compiler}"
