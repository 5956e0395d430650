"""What autograd keeps of a call for its backward.

A hook (torch.autograd.graph.saved_tensors_hooks) may give back other tensors than it was given, and kernels read the
memory of what they get: so where hooks look on, shapes and dtypes are noted, and compared when the tensors come back.
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
    ctx.forms = _forms(tensors) if torch_internals.saving_hooks() else None


def kept(ctx: Any, op: str) -> tuple[Any, ...]:
    """ctx.saved_tensors. Raises RuntimeError, in the name of the op, where they are not as they were."""
    tensors: tuple[Any, ...] = ctx.saved_tensors
    if ctx.forms is not None and (forms := _forms(tensors)) != ctx.forms:
        wanted, came = next(pair for pair in zip(ctx.forms, forms, strict=True) if pair[0] != pair[1])
        raise RuntimeError(
            f"{op}: a hook of saved tensors must give back what it was given, {_text(wanted)}, got {_text(came)}"
        )
    return tensors


def _forms(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [
        (tuple(tensor.shape), tensor.dtype, tensor.device) if is_dense(tensor) else type(tensor) for tensor in tensors
    ]


def _text(form: Any) -> str:
    return f"{list(form[0])} of {form[1]} on {form[2]}" if isinstance(form, tuple) else form.__name__
