"""The `triton` backend: Triton kernels (kernels/), on GPUs, or on CPU tensors in Triton's interpreter.

Tensors arrive checked (shape, dtype, device); any strides are passed on. Every function returns freshly allocated
tensors, written in full. Nothing synchronises: lengths outside [0, T] count as the nearer end in the kernels.
"""

from __future__ import annotations

import triton

from vssn_kernels.backend.triton.gaussian import gaussian_backward, gaussian_forward
from vssn_kernels.backend.triton.gru import gru_backward, gru_forward
from vssn_kernels.backend.triton.interleaved import interleaved_backward, interleaved_forward
from vssn_kernels.backend.triton.kernels.gru import gru_forward_resident
from vssn_kernels.backend.triton.posterior import posterior_backward, posterior_forward
from vssn_kernels.reference.gru_packed import by_padding

__all__ = [
    "gaussian_backward",
    "gaussian_forward",
    "gru_backward",
    "gru_forward",
    "gru_packed_backward",
    "gru_packed_forward",
    "info",
    "interleaved_backward",
    "interleaved_forward",
    "posterior_backward",
    "posterior_forward",
]

gru_packed_forward, gru_packed_backward = by_padding(gru_forward, gru_backward)


def info() -> str:
    """Triton's version and where its kernels run, for bug reports."""
    interpreted = gru_forward_resident.interpreted
    return f"Triton {triton.__version__}, {'interpreter' if interpreted else 'compiled'}"
