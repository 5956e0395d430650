"""What autograd keeps of a call for its backward.

Kernels read the memory of what they get, and what comes back may be another tensor than was kept: `.data = ` puts other
memory under a parameter without a word to autograd, as `module.double()` does, and a hook
(torch.autograd.graph.saved_tensors_hooks) may give back what it likes. So shapes, dtypes and devices are noted, and
compared when the tensors come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vssn_kernels.arguments import is_dense
from vssn_kernels.ops import torch_internals


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    """ctx.save_for_backward."""
    ctx.save_for_backward(*tensors)
    ctx.forms, ctx.hooked = _forms(tensors), torch_internals.saving_hooks()


def kept(ctx: Any, op: str) -> tuple[Any, ...]:
    """ctx.saved_tensors. Raises RuntimeError, in the name of the op, where they are not as they were."""
    tensors: tuple[Any, ...] = ctx.saved_tensors
    if (ctx.hooked and not all(tensor is None or is_dense(tensor) for tensor in tensors)) or (
        _forms(tensors) != ctx.forms
    ):
        pairs = zip(tensors, ctx.forms, strict=True)
        tensor, form = next((t, f) for t, f in pairs if t is not None and (not is_dense(t) or _forms([t]) != [f]))
        came = _text(*_forms([tensor])[0]) if is_dense(tensor) else type(tensor).__name__
        must = (
            "a hook of saved tensors must give back what it was given"
            if ctx.hooked
            else "backward must meet the tensors of the call as they were (module.to, .double and .data come behind it)"
        )
        raise RuntimeError(f"{op}: {must}, {_text(*form)}, got {came}")
    return tensors


def own(steps: Tensor | None) -> Tensor | None:
    """A copy of lengths or batch sizes, which kernels trust: nobody else writes to it. On a GPU, where it would be
    another kernel, they are as they came."""
    return steps.clone() if steps is not None and steps.device.type == "cpu" else steps


def _forms(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def _text(shape: Sequence[int], dtype: object, device: object) -> str:
    return f"{list(shape)} of {dtype} on {device}"
