"""Programs of small layers over a memory, for loops of single steps of few rows. Not public: vssn/nn/filter_steps.py
makes them of a model's networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vssn_kernels.backend.table import choose
from vssn_kernels.ops import fast_path

if TYPE_CHECKING:
    from vssn_kernels.backend.cpu.program import Program


def make_program(like: Tensor) -> Program | None:
    """An empty program for weights of this dtype and device; None unless the `cpu` backend runs their recurrences."""
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return None
    if choose("gru_sequence", None, like.device, like.dtype) != "cpu":
        return None
    from vssn_kernels.backend.cpu.program import Program

    return Program(like.dtype)


def takes(tensors: tuple[Tensor, ...]) -> bool:
    """Whether a program may read these itself: plain tensors on the CPU, and nothing that compiles, transforms or looks
    on."""
    return not torch.compiler.is_compiling() and fast_path.is_open(tensors, on_cpu=True)
