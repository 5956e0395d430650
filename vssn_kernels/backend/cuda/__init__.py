"""The `cuda` backend: CUDA C++ kernels in csrc/cuda, one launch per sequence on memory that PyTorch allocates.

Tensors arrive checked (shape, dtype, device); values of lengths are clamped by the kernels. Every function returns
freshly allocated tensors, written in full, and works on the caller's current stream without synchronising.
"""

from vssn_kernels.backend.cuda.gaussian import gaussian_backward, gaussian_forward
from vssn_kernels.backend.cuda.gru import gru_backward, gru_forward
from vssn_kernels.backend.cuda.posterior import posterior_backward, posterior_forward

__all__ = [
    "gaussian_backward",
    "gaussian_forward",
    "gru_backward",
    "gru_forward",
    "posterior_backward",
    "posterior_forward",
]
