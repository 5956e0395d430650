"""The ops in PyTorch's own, for what takes a graph apart: torch.export's `run_decompositions`, and by it ONNX.

A recurrence over a number of steps that is known becomes that many steps. Where T is a symbol it becomes one
`torch.ops.higher_order.scan`, which ONNX has as Scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from vssn_kernels.ops import registration
from vssn_kernels.ops.torch_internals import ANOTHER_VERSION
from vssn_kernels.reference import gru, posterior
from vssn_kernels.reference.sequence import compute_dtype


def decompositions() -> dict[Any, Callable]:
    """The op of every forward with the same in PyTorch's own ops::

        exported = torch.export.export(model, (x,), dynamic_shapes=...)
        exported = exported.run_decompositions(vssn_kernels.decompositions())

    An op that keeps something for its own backward is left as it is. torch.onnx.export needs no table: it gets these
    forms by itself.
    """
    return {registration.overload(name): form for name, form in registration.inference_forms.items()}


def _for_inference(plain: Callable, scanned: Callable | None, *args: Any) -> Any:
    *_, need_backward, _ = args  # as (bool need_backward, str backend) where the op has the first
    if need_backward is True:
        return NotImplemented
    first = args[0]
    if scanned is None or isinstance(first.shape[0], int):
        return plain(*args)
    return scanned(*args)


def _scan_op() -> Callable | None:
    """None where tensors that all steps share cannot be given to it."""
    try:
        from torch._higher_order_ops.scan import scan_op
    except ImportError:
        return None
    return None if "dim" in signature(type(scan_op).__call__).parameters else scan_op


def _scan(step: Callable, start: Tensor, sequences: Sequence[Tensor], shared: Sequence[Tensor]) -> list[Tensor]:
    """[the last state, *what the steps give, each [T, ·]].

    Args:
        step: of the state, of one row of each sequence, then of all that is shared: [state, *outputs].
    """
    scan = _scan_op()
    if scan is None:
        raise ImportError(
            f"a dynamic T needs a newer torch.ops.higher_order.scan than torch {torch.__version__} has; export with a "
            f"fixed T, or {ANOTHER_VERSION}"
        )
    parts = [start, *sequences, *shared]
    if torch.onnx.is_in_onnx_export():  # which cannot take apart what a step would keep for its backward
        parts = [part.detach() for part in parts]
    count = 1 + len(sequences)
    return list(scan(step, parts[:1], parts[1:count], tuple(parts[count:])))


def _steps_there(lengths: Tensor | None, like: Tensor) -> list[Tensor]:
    """[T, B] int64: 1 where the sequence has that step, as `lengths` of one step; none without lengths."""
    if lengths is None:
        return []
    return [(torch.arange(like.shape[0], device=like.device)[:, None] < lengths).to(torch.int64)]


def _gru_sequence(gates_x, h0, weight_hh, bias_hh, lengths, reverse, need_backward, backend):
    wide = compute_dtype(gates_x.dtype)

    def step(h, x, *rest):
        there = rest[0] if lengths is not None else None
        output, h = gru.gru_sequence(x[None], h, *rest[-2:], lengths=there)
        return [h.clone(), output[0].clone()]

    sequences = [gates_x.to(wide), *_steps_there(lengths, gates_x)]
    if reverse:  # padding comes first then, and hands the state on
        sequences = [part.flip(0) for part in sequences]
    h, output = _scan(step, h0.to(wide), sequences, [weight_hh.to(wide), bias_hh.to(wide)])
    output = output.flip(0) if reverse else output
    return output.to(gates_x.dtype), h.to(h0.dtype), gates_x.new_empty(0)


def _posterior_sequence(*args):
    *inputs, lengths, activation, min_logvar, _, _ = args
    context, z0, eps, *weights = inputs
    wide = compute_dtype(context.dtype)
    prior_context, prior = weights[3], [part for part in weights[4:] if part is not None]

    def step(z, *rest):
        rows, shared = rest[: len(sequences)], rest[len(sequences) :]
        there = rows[-1] if lengths is not None else None
        z, mu, logvar = posterior.posterior_sequence(
            rows[0][None],
            z,
            rows[1][None],
            *shared[:3],
            activation=activation,
            min_logvar=min_logvar,
            prior=(rows[2][None], *shared[3:]) if prior else None,
            lengths=there,
        )
        return [z[0].clone(), z[0].clone(), mu[0].clone(), logvar[0].clone()]

    sequences = [context, eps] + ([] if prior_context is None else [prior_context])
    sequences = [part.to(wide) for part in sequences] + _steps_there(lengths, context)
    _, *results = _scan(step, z0.to(wide), sequences, [part.to(wide) for part in (*weights[:3], *prior)])
    empty = context.new_empty(0)
    return *(part.to(context.dtype) for part in results), empty, context.new_empty(0)


_scanned = {"gru_sequence": _gru_sequence, "posterior_sequence": _posterior_sequence}
for _name, _plain in registration.plain_forms().items():
    registration.inference_forms[_name] = partial(_for_inference, _plain, _scanned.get(_name))
