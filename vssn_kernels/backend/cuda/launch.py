"""Where the CUDA kernels are launched, and the names of the dtypes that they take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vssn_kernels import _cuda

STORAGE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}  # csrc/cuda/storage.h


@contextmanager
def launch_on(tensor: Tensor) -> Iterator[int]:
    """Makes the tensor's device the current one, of PyTorch and of the extension (which has a CUDA runtime of its own),
    and gives the address of the caller's current stream there."""
    if not tensor.is_cuda:  # the tests run the kernels on the host
        yield 0
        return
    with torch.cuda.device(tensor.device):
        _cuda.set_device(tensor.device.index)
        yield torch.cuda.current_stream(tensor.device).cuda_stream
