"""The `cuda` backend: CUDA C++ kernels in csrc/cuda, one launch per sequence on memory that PyTorch allocates.

Tensors arrive checked (shape, dtype, device); values of lengths are clamped by the kernels. Every function returns
freshly allocated tensors, written in full, and works on the caller's current stream without synchronising.
"""

from vssn_kernels.backend.cuda.gaussian import gaussian_backward, gaussian_forward
from vssn_kernels.backend.cuda.gru import gru_backward, gru_forward
from vssn_kernels.backend.cuda.interleaved import interleaved_backward, interleaved_forward
from vssn_kernels.backend.cuda.posterior import posterior_backward, posterior_forward
from vssn_kernels.reference.gru_packed import by_padding

__all__ = [
    "gaussian_backward",
    "gaussian_forward",
    "gru_backward",
    "gru_forward",
    "gru_packed_backward",
    "gru_packed_forward",
    "interleaved_backward",
    "interleaved_forward",
    "posterior_backward",
    "posterior_forward",
]

gru_packed_forward, gru_packed_backward = by_padding(gru_forward, gru_backward)
