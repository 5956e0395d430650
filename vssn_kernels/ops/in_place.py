"""An op whose backward reads its own output, which the caller may still change in place (`relu_`, `+=`).

PyTorch counts the changes of a tensor's memory and refuses in backward what was changed since it was saved. An op that
can tell its output from what else it saved keeps, in place of the output, an alias with a count of its own, and with
`Changes` sees whether the memory still holds what the op wrote. So nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssn_kernels.ops import torch_internals

_NOTHING = torch.empty(0)


class Changes:
    """Whether a tensor was changed in place since; holds its counter and none of its memory."""

    __slots__ = ("_counter", "_start")

    def __init__(self, tensor: Tensor) -> None:
        self._counter = tensor.detach()
        self._start = self._counter._version
        self._counter.data = _NOTHING

    def __bool__(self) -> bool:
        return self._counter._version != self._start


def keep(output: Tensor) -> tuple[Tensor, Changes | None]:
    """What to save for backward, and what tells whether it was changed. Within torch.func, and without data, aliases
    have no count of their own: there it is the output itself, and PyTorch's error stands."""
    if torch_internals.in_transform() or output.is_meta:
        return output, None
    return output.data, Changes(output)
