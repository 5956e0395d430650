"""Sequences in the forms that people have them in, and results back in the form that came.

one      [T, X]
stack    [N, T, X]
list     N of [T_i, X]

Each an array of NumPy's or a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vssn.data.batching import as_sequence, named_type
from vssn.utils.checks import require_numbers


class Layout(NamedTuple):
    form: str  # one, stack or list
    numpy: bool
    dtype: torch.dtype  # of results: that which came, the wider of two, if it is a floating one, else float32
    device: torch.device

    def back(self, parts: Sequence[Tensor], axis: int = 0) -> Any:
        """Results of the sequences, one each, in the form of what came; `axis`: where N stands in those of a stack."""
        made: list[Any] = [part.detach().to(self.device, self.dtype) for part in parts]
        whole: Any = made[0] if self.form == "one" else torch.stack(made, axis) if self.form == "stack" else made
        if not self.numpy:
            return whole
        return [part.numpy() for part in whole] if self.form == "list" else whole.numpy()


def sequences_of(name: str, data: Any, features: str = "X") -> tuple[list[Tensor], Layout]:
    """The sequences [T_i, X] in the dtype that they came in, and their layout.

    Args:
        name, features: for messages.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    if isinstance(data, Tensor):
        require_numbers(name, data)
    if isinstance(data, list | tuple):
        form, items = "list", [as_sequence(f"{name}[{index}]", item, features) for index, item in enumerate(data)]
    elif not isinstance(data, Tensor | np.ndarray):
        raise TypeError(
            f"{name} must be an array or a tensor [N, T, {features}] or [T, {features}], or a list of [T, {features}], "
            f"got {named_type(data)}"
        )
    elif data.ndim == 2:
        form, items = "one", [as_sequence(name, data, features)]
    elif data.ndim == 3:
        form, items = "stack", list(as_sequence(name, data, features, 3))
    else:
        raise ValueError(
            f"{name} must have shape [N, T, {features}], or [T, {features}] of one sequence, got {list(data.shape)}; "
            f"give a feature alone as [T, 1]"
        )
    if not items:
        raise ValueError(f"{name} must hold one sequence at least, got none")
    if not items[0].shape[1]:
        raise ValueError(f"{name} must be of one feature at least, got shape {list(items[0].shape)}")
    if len(widths := {item.shape[1] for item in items}) > 1:
        raise ValueError(f"{name} must be of one number of features, got {' and '.join(map(str, sorted(widths)))}")
    first = data[0] if form == "list" else data
    widest = reduce(torch.promote_types, {item.dtype for item in items})
    dtype = widest if widest.is_floating_point else torch.float32
    return items, Layout(form, isinstance(first, np.ndarray), dtype, items[0].device)
