"""PyTorch's setting for the precision of float32 products on GPUs."""

from __future__ import annotations

from functools import cache

import torch


@cache
def _has_fp32_precision() -> bool:
    return hasattr(torch.backends.cuda.matmul, "fp32_precision")


def allows_tf32() -> bool:
    """Whether products may run in tf32; the older setting where the newer is absent (mixing them raises)."""
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if _has_fp32_precision() else matmul.allow_tf32
