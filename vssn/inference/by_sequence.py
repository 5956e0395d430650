"""A model applied to sequences in the form that people have them, batch by batch, and its results in that form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vssn.data.batching import PaddedBatch, padded_batches
from vssn.data.layouts import Layout, sequences_of
from vssn.data.splits import check_values
from vssn.nn.interface import SequenceModel
from vssn.utils.random import mixed_seed
from vssn.utils.values import REAL


class Found(NamedTuple):
    results: list[list[Tensor] | None]  # of each a tensor a sequence, [T_i, ·] or [S, T_i, ·]
    xs: list[Tensor]
    layout: Layout

    def shown(self, parts: list[Tensor] | None) -> Any:
        """In the form of x."""
        return None if parts is None else self.layout.back(parts, 1 if parts[0].dim() == 3 else 0)


Call = Callable[[Any, PaddedBatch, int], Sequence[Tensor | None]]  # model, batch with batch_first, seed


def frames_and_controls(x: Any, u: Any) -> tuple[list[Tensor], list[Tensor] | None, Layout]:
    """x and u as lists, and the layout of x. Raises ValueError or TypeError where they do not fit each other."""
    xs, layout = sequences_of("x", x)
    if u is None:
        return xs, None, layout
    us, _ = sequences_of("u", u, "U")
    if [len(part) for part in us] != [len(part) for part in xs]:
        raise ValueError("u must have as many sequences as x, each as long as that of x; got others")
    return xs, us, layout


def require_finite_or_missing(xs: Sequence[Tensor], us: Sequence[Tensor] | None = None) -> None:
    """Raises DataError, naming x[i] or u of it, where an entry is infinite as float32, or a control NaN."""
    for index, x in enumerate(xs):
        check_values(f"x[{index}]", x, None if us is None else us[index], REAL, "", missing=True)


def by_sequence(
    model: SequenceModel, call: Call, x: Any, u: Any, *, seed: int, batch_size: int, whole: bool = False
) -> Found:
    """What `call` returns of every batch, tensors [..., B, T, ·], by sequence, cut to its length unless `whole`.

    Args:
        model: with batch_first.
        seed: of all batches, each of which has one that follows from it.

    Raises:
        ValueError, TypeError: x and u do not fit each other, or the model.
    """
    xs, us, layout = frames_and_controls(x, u)
    if (came := xs[0].shape[1]) != model.x_size:
        raise ValueError(f"x must have {model.x_size} features as in fit, got {came}")
    require_finite_or_missing(xs)
    found: list[list[Tensor] | None] = []
    for batch in padded_batches(xs, us, batch_size, model.a_parameter(), batch_first=True):
        results = call(model, batch, mixed_seed(seed, batch.first))
        found = found or [None if result is None else [] for result in results]
        for parts, result in zip(found, results, strict=True):
            if parts is not None and result is not None:
                each = zip(result.unbind(-3), batch.lengths.tolist(), strict=True)
                parts += [part if whole else part[..., :length, :] for part, length in each]
    return Found(found, xs, layout)


def with_observed(x: Tensor, filled: Tensor) -> Tensor:
    """x [T, X] in its own precision, `filled` [..., T, X] where it is NaN."""
    x = x.to(filled.device)
    dtype = x.dtype if x.is_floating_point() else filled.dtype
    return torch.where(x.isnan(), filled.to(dtype), x.to(dtype))
